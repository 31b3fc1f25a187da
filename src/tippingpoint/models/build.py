"""Build what a workload names: a model of the Transformers library, its inputs, and one call of a phase."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models.architecture import Architecture
from tippingpoint.models.catalog import VARIANTS, architecture_of, check_subject
from tippingpoint.models.components import LOSS, OPTIMIZER
from tippingpoint.models.own import first_tensor, is_own, make
from tippingpoint.models.padding import nearly_full, padded_inputs
from tippingpoint.models.swap import swap_attention, with_max_length
from tippingpoint.stages import stage
from tippingpoint.units import format_length
from tippingpoint.workload import Workload

SEED = 0


class Call:
    """One call of a phase on a batch of its own: calling it runs the workload once.

    Args:
        model: Built for the workload.
        batch: Its inputs by name, on the device.
        workload: What to run; with `compiled`, the model goes through `torch.compile` at the first call.
        positional: Inputs without a name, on the device.

    Attributes:
        batch: Its inputs by name.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        workload: Workload,
        positional: tuple[Tensor, ...] = (),
    ) -> None:
        self._options: dict[str, Any] = {}
        self.feed(batch, positional)
        self._model = model
        self._run: Callable[..., Any] = model
        if workload.compiled:
            # Shapes never change within a call; after another batch size, code for any size would be made.
            torch.compiler.reset()
            self._run = torch.compile(model, dynamic=False)
        self._optimizer: torch.optim.Optimizer | None = None
        if workload.phase == "inference":
            return
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        kind = torch.device(workload.device).type
        self._autocast = torch.autocast(
            kind, getattr(torch, workload.dtype), enabled=workload.dtype != "float32", cache_enabled=True
        )
        # float16 gradients underflow without a scale; it is part of the cost of training in that precision
        self._scaler = torch.amp.GradScaler(kind, enabled=workload.dtype == "float16")

    def feed(
        self, batch: dict[str, Tensor], positional: tuple[Tensor, ...] = (), options: dict[str, Any] | None = None
    ) -> None:
        """Take another batch; what the optimizer knows stays.

        Args:
            batch: Inputs by name, on the device.
            positional: Inputs without a name, on the device.
            options: Further arguments of the model's forward pass.
        """
        self.batch, self._positional = batch, positional
        self._options = options or {}

    def __call__(self) -> None:
        """Run the workload once."""
        if self._optimizer is None:
            with torch.inference_mode():
                self._run(*self._positional, **self.batch, **self._options)
            return
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast:
            hidden = first_tensor(self._run(*self._positional, **self.batch, **self._options))
        with stage(LOSS):
            # The cheapest loss that reaches every layer: a task's head would add a cost of its own.
            loss = self._scaler.scale(hidden.float().square().mean())
        loss.backward()
        with stage(OPTIMIZER):
            self._scaler.step(self._optimizer)
            self._scaler.update()

    @property
    def inputs_bytes(self) -> int:
        """Bytes of the batch."""
        return _bytes([*self._positional, *self.batch.values()])

    @property
    def gradients_bytes(self) -> int:
        """Bytes of the gradients that the last call left."""
        return _bytes(p.grad for p in self._model.parameters() if p.grad is not None)

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's state after the last call."""
        states = self._optimizer.state.values() if self._optimizer else ()
        return _bytes(value for state in states for value in state.values() if isinstance(value, Tensor))


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Return bytes of tensors, those of a shared storage once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSubject:
    """A subject that was built for a workload and can be called.

    Attributes:
        architecture: The catalogue's row.
        model: On the workload's device, in its dtype, in the mode of its phase.
        config: The model's configuration as a plain mapping.
    """

    architecture: Architecture
    model: transformers.PreTrainedModel
    config: dict[str, Any]

    @property
    def parameters(self) -> int:
        """Number of parameters, shared ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def weights_bytes(self) -> int:
        """Bytes of parameters and buffers, shared ones once."""
        return _bytes([*self.model.parameters(), *self.model.buffers()])

    def inputs(self, workload: Workload) -> dict[str, Tensor]:
        """Return a seeded batch on the workload's device."""
        generator = torch.Generator().manual_seed(SEED)
        row, length = self.architecture, workload.length
        # What takes one length only pads to it by itself.
        if workload.padded and not row.why_one_length(workload.phase):
            lengths = nearly_full(row, length, workload.batch_size)
            batch = padded_inputs(row, self.config, lengths, length, generator)
        else:
            batch = row.inputs(self.config, workload.batch_size, length, generator)
        return {name: self.placed(tensor, workload) for name, tensor in batch.items()}

    def placed(self, tensor: Tensor, workload: Workload) -> Tensor:
        """Return an input on the workload's device, floating-point numbers in the dtype of the weights."""
        weights = next((p.dtype for p in self.model.parameters()), getattr(torch, workload.dtype))
        return tensor.to(workload.device, weights if tensor.is_floating_point() else tensor.dtype)

    def call(self, workload: Workload) -> Call:
        """Return what runs the workload once; its inputs are made here, not in the call."""
        return Call(self.model, self.inputs(workload), workload)

    def feed(self, call: Call, workload: Workload, lengths: Sequence[float], seed: int = SEED) -> None:
        """Give a call a batch of items with lengths of their own, padded and masked as the library would.

        The model may have been built for a longer input. Text and audio below the shortest legal length are padded to
        it; images are resized to a whole number of patches, and positions interpolated where the model can.

        Args:
            call: Made by `call`.
            workload: What the model was built for, at the batch's length; its batch size is not looked at.
            lengths: Of each item, in the native unit; none longer than the workload's length.
            seed: Of the values.
        """
        row = self.architecture
        length = row.runs_at(workload.length)
        row.tell_length(self.model, length)
        generator = torch.Generator().manual_seed(seed)
        batch = padded_inputs(row, self.config, lengths, length, generator)
        takes = inspect.signature(self.model.forward).parameters
        options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        call.feed({name: self.placed(tensor, workload) for name, tensor in batch.items()}, options=options)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSubject(LiveSubject):
    """A model of one's own; its inputs come from where the model came from."""

    def call(self, workload: Workload) -> Call:
        """Return what runs the workload once."""
        torch.manual_seed(SEED)
        _, positional, named = make(self.architecture.name, int(workload.length), workload.batch_size)
        named = {name: self.placed(tensor, workload) for name, tensor in named.items()}
        return Call(self.model, named, workload, tuple(self.placed(tensor, workload) for tensor in positional))

    def feed(self, call: Call, workload: Workload, lengths: Sequence[float], seed: int = SEED) -> None:
        """Give a call a batch of its own maker's, as long as the longest item: how it is padded is not known."""
        torch.manual_seed(seed)
        _, positional, named = make(self.architecture.name, int(workload.length), len(lengths))
        named = {name: self.placed(tensor, workload) for name, tensor in named.items()}
        call.feed(named, tuple(self.placed(tensor, workload) for tensor in positional))


def make_config(workload: Workload) -> transformers.PretrainedConfig:
    """Return the library's configuration for a workload's subject, grown to its length.

    Raises:
        InputError: If the subject, the length, the depth or the width is not legal.
        UnsupportedError: If the library's code cannot run it in the workload's dtype.
    """
    subject = check_subject(workload.subject)
    row = architecture_of(subject)
    row.check_length(workload.length)
    reason = row.why_float32(workload.phase)
    if reason and workload.dtype != "float32":
        raise UnsupportedError(f"{row.name} runs {workload.phase} in float32 only ({reason}), got {workload.dtype}")
    values = dict(row.sizes[workload.size])
    config_class = getattr(transformers, row.config_class)
    values |= row.reshape(config_class(**values).to_dict(), workload.layers, workload.width)
    defaults = config_class(**values).to_dict()
    config = config_class(**{**values, **row.fit(defaults, workload.length)})
    limit = row.limit(config.to_dict())
    if limit is not None and workload.length > limit:
        raise InputError(
            f"{row.name} takes at most {format_length(limit, row.unit)}, "
            f"got {format_length(workload.length, row.unit)}"
        )
    return config


def make_model(row: Architecture, config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """Return an encoder with random weights; what its class holds beside the encoder is left out."""
    model = getattr(transformers, row.model_class)(config)
    return model.get_submodule(row.part) if row.part else model


def _make(workload: Workload, config: transformers.PretrainedConfig, device: str) -> transformers.PreTrainedModel:
    """Return the model of a workload's subject, with its variants in place."""
    subject = check_subject(workload.subject)
    row = architecture_of(subject)
    with torch.device(device):
        model = make_model(row, config)
        # Maps are shared of what stands in the layers, so that comes last.
        for variant in sorted(subject.variants, key=lambda variant: VARIANTS[variant.name].shares_maps):
            swap_attention(model, str(with_max_length(variant, row.executed_positions(workload.length))))
    return model


def build(workload: Workload) -> LiveSubject:
    """Build a workload's subject with seeded random weights on its device.

    Raises:
        InputError: If the subject, an option or the length is not legal.
        UnsupportedError: If the architecture cannot take the variant.
    """
    architecture = architecture_of(workload.subject)
    own = is_own(architecture.name)
    config = None if own else make_config(workload)
    torch.manual_seed(SEED)
    # Of a person's own it is any module.
    model: Any
    if config is None:
        _check_own(workload)
        with torch.device(workload.device):
            model, _, _ = make(architecture.name, int(workload.length), workload.batch_size)
        model.to(workload.device)
    else:
        model = _make(workload, config, workload.device)
    if workload.phase == "inference":
        # Without requires_grad_ PyTorch's FLOP counter fails on weight normalisation under inference mode.
        model.to(getattr(torch, workload.dtype)).eval().requires_grad_(False)
    else:
        model.train()
    kind = OwnSubject if own else LiveSubject
    return kind(architecture=architecture, model=model, config={} if config is None else config.to_dict())


def _check_own(workload: Workload) -> None:
    given = [name for name in ("layers", "width") if getattr(workload, name) is not None]
    given += ["size"] if workload.size != "base" else []
    given += ["padded"] if workload.padded else []
    if given:
        raise InputError(
            f"{workload.subject.architecture} is made by your own code, which says its depth, width and inputs; "
            f"leave {' and '.join(given)} out"
        )


def count_parameters(workload: Workload) -> int:
    """Return the number of parameters without allocating them (shared ones once)."""
    model = _make(workload, make_config(workload), "meta")
    return sum(parameter.numel() for parameter in model.parameters())
