"""Build what a workload names: a model of the Transformers library, its inputs, and one call of a phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models.architecture import Architecture
from tippingpoint.models.catalog import architecture_of, check_subject
from tippingpoint.models.swap import swap_attention
from tippingpoint.units import format_length
from tippingpoint.workload import Workload

SEED = 0


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

    def inputs(self, workload: Workload) -> dict[str, Tensor]:
        """Return a seeded batch on the workload's device."""
        generator = torch.Generator().manual_seed(SEED)
        batch = self.architecture.inputs(self.config, workload.batch_size, workload.length, generator)
        weights = next(self.model.parameters()).dtype
        return {
            name: tensor.to(workload.device, weights if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in batch.items()
        }

    def call(self, workload: Workload) -> Callable[[], None]:
        """Return a function that runs the workload once; its inputs are made here, not in the call."""
        batch = self.inputs(workload)
        if workload.phase == "inference":
            return lambda: self._forward(batch)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        kind = torch.device(workload.device).type
        autocast = torch.autocast(
            kind, getattr(torch, workload.dtype), enabled=workload.dtype != "float32", cache_enabled=True
        )
        # float16 gradients underflow without a scale; it is part of the cost of training in that precision
        scaler = torch.amp.GradScaler(kind, enabled=workload.dtype == "float16")

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                hidden = self.model(**batch).last_hidden_state
            # The cheapest loss that reaches every layer: a task's head would add a cost of its own.
            loss = hidden.float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        return step

    def _forward(self, batch: dict[str, Tensor]) -> None:
        with torch.inference_mode():
            self.model(**batch)


def make_config(workload: Workload) -> transformers.PretrainedConfig:
    """Return the library's configuration for a workload's subject, grown to its length.

    Raises:
        InputError: If the subject or the length is not legal.
        UnsupportedError: If the library's code cannot run it in the workload's dtype.
    """
    subject = check_subject(workload.subject)
    row = architecture_of(subject)
    row.check_length(workload.length)
    if row.needs_float32 and workload.phase == "inference" and workload.dtype != "float32":
        raise UnsupportedError(
            f"{row.name} runs inference in float32 only ({row.needs_float32}), got {workload.dtype}"
        )
    values = dict(row.sizes[workload.size])
    config_class = getattr(transformers, row.config_class)
    defaults = config_class(**values).to_dict()
    config = config_class(**{**values, **row.fit(defaults, workload.length)})
    limit = row.limit(config.to_dict())
    if limit is not None and workload.length > limit:
        raise InputError(
            f"{row.name} takes at most {format_length(limit, row.unit)}, "
            f"got {format_length(workload.length, row.unit)}"
        )
    return config


def build(workload: Workload) -> LiveSubject:
    """Build a workload's subject with seeded random weights on its device.

    Raises:
        InputError: If the subject, an option or the length is not legal.
        UnsupportedError: If the architecture cannot take the variant.
    """
    subject = check_subject(workload.subject)
    row = architecture_of(subject)
    config = make_config(workload)
    torch.manual_seed(SEED)
    with torch.device(workload.device):
        model = getattr(transformers, row.model_class)(config)
    for variant in subject.variants:
        swap_attention(model, str(variant))
    if workload.phase == "inference":
        # Without requires_grad_ PyTorch's FLOP counter fails on weight normalisation under inference mode.
        model.to(getattr(torch, workload.dtype)).eval().requires_grad_(False)
    else:
        model.train()
    return LiveSubject(architecture=row, model=model, config=config.to_dict())


def count_parameters(workload: Workload) -> int:
    """Return the number of parameters without allocating them (shared ones once)."""
    config = make_config(workload)
    row = architecture_of(workload.subject)
    with torch.device("meta"):
        model = getattr(transformers, row.model_class)(config)
    return sum(parameter.numel() for parameter in model.parameters())
