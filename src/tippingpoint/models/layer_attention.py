"""What one layer of a model runs in place of its own attention, and the maps that layers hand to one another.

A map goes from layer to layer in a frame: one for each forward pass of an encoder, on a stack for each thread, so
that nested calls, other models and replicas in threads have their own. A hook begins it and another ends it, also
after an exception. Gradient checkpointing runs layers again when the pass is over; their frame comes back with them.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tippingpoint.attention.full import eager_attention, fused_attention, with_bias
from tippingpoint.attention.reuse import DenseMap, Projections, Shared, choose_mode, share
from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models.catalog import VARIANTS
from tippingpoint.stages import REUSE as REUSE_STAGE
from tippingpoint.stages import stage
from tippingpoint.workload import OptionValue, Variant

# The library's own, for layers beside others that run a variant.
_LIBRARY_FUNCTIONS: dict[str, Callable[..., Tensor]] = {"sdpa": fused_attention, "eager": eager_attention}
_FULL = "sdpa"


def load_function(path: str) -> Callable[..., Any]:
    """Return the function that a catalogue row names as "module:function".

    Raises:
        InputError: If there is no such thing.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"a row of the catalogue names {path!r}, which cannot be imported: {error}") from error


class LayerAttention(nn.Module):
    """What one layer of a swapped model runs in place of its own attention.

    A module, so that what a variant learns is in the model's parameters and state, and is copied with it.

    Args:
        variant: With every option written out, without the layers it is put into.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        self._options: dict[str, OptionValue] = dict(variant.options)
        self._function: Callable[..., Tensor] | None = None
        row = VARIANTS[variant.name]
        if row.module is not None:
            self.learned = load_function(row.module)(**self._options)
        elif row.function is not None:
            self._function = load_function(row.function)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        scale: float | None,
        dropout: float,
    ) -> Tensor:
        """Attend, [batch, heads, length, head_dim].

        Args:
            query: [batch, heads, length, head_dim].
            key: [batch, heads, length, head_dim].
            value: [batch, heads, length, head_dim].
            mask: Padding, bool [batch, length]; or what the model itself makes, to be added to the scores.
            bias: What else the model adds to its scores.
            scale: Of the products of queries and keys.
            dropout: Probability of dropping an attention weight.

        Raises:
            UnsupportedError: If the model says more than which tokens are padding, and the variant has no scores.
        """
        if self.variant.name in _LIBRARY_FUNCTIONS:
            function = _LIBRARY_FUNCTIONS[self.variant.name]
            return function(query, key, value, mask=with_bias(mask, bias), scale=scale, dropout=dropout)
        self._check_padding_only(mask, bias)
        options: dict[str, Any] = {"padding_mask": mask, "scale": scale, "dropout": dropout}
        if self._function is None:
            return self.learned(query, key, value, **options)
        return self._function(query, key, value, **options, **self._options)

    def _check_padding_only(self, mask: Tensor | None, bias: Tensor | None) -> None:
        for added in (bias, mask):
            if added is not None and (added is bias or added.ndim != 2):
                raise UnsupportedError(
                    f"'{self.variant}' takes padding only, and the model adds a mask or position bias of shape "
                    f"{list(added.shape)} to its scores"
                )

    def extra_repr(self) -> str:
        """Return the variant as a subject writes it."""
        return str(self.variant)


class ComputingAttention(LayerAttention):
    """The first layer of a group: it computes the map, and hands it to the others.

    Args:
        variant: Its attention, whose map can be kept.
        layer: Its number.
        mode: "map", "recompute" or "auto".
        map_dtype: What the map is kept in; the model's dtype by default.
        users: How many layers take it over.
    """

    def __init__(self, variant: Variant, layer: int, mode: str, map_dtype: torch.dtype | None, users: int) -> None:
        super().__init__(variant)
        self.layer = layer
        self.mode = mode
        self.map_dtype = map_dtype
        self.users = users
        # The mode that the last call ran: of "auto", what was chosen for its length.
        self.ran = ""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        scale: float | None,
        dropout: float,
    ) -> Tensor:
        """Attend as the layer itself would, and leave the map in the frame; arguments as `LayerAttention`."""
        frame = _frame(self)
        local: dict[str, Any] = {} if self.variant.name == _FULL else self._options
        if local:
            self._check_padding_only(mask, bias)
        self.ran = self.mode
        if self.mode == "auto":
            self.ran = choose_mode(
                query, value, users=self.users, bias=mask if bias is None else bias, map_dtype=self.map_dtype, **local
            )
        output, frame.shared[self.layer] = share(
            query,
            key,
            value,
            self.ran,
            mask=mask,
            bias=bias,
            scale=scale,
            dropout=dropout,
            map_dtype=self.map_dtype,
            memory=frame.memory,
            **local,
        )
        frame.memory = None
        return output


def map_dtype_of(variant: Variant) -> torch.dtype | None:
    """Return what a variant `reuse` keeps maps in; None for the model's own dtype."""
    return torch.bfloat16 if dict(variant.options).get("maps") == "bfloat16" else None


class ReusingAttention(LayerAttention):
    """A layer that takes the map of another: no queries, no keys, no scores.

    Args:
        variant: `reuse:of=LAYER`, with the mode and the dtype of the map.
        heads: For each of its heads, the head of the other layer whose map it takes; the same ones by default.
        last: Whether nobody needs the map after it.
    """

    def __init__(self, variant: Variant, heads: Sequence[int] | None, *, last: bool) -> None:
        super().__init__(variant)
        self.of = int(dict(variant.options)["of"])
        self.last = last
        self.heads = None if heads is None else tuple(heads)
        if heads is not None:
            taken = torch.tensor(self.heads, dtype=torch.long)
            self.register_buffer("_taken", taken, persistent=False)
            self.register_buffer("_order", taken.argsort(), persistent=False)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        scale: float | None,
        dropout: float,
    ) -> Tensor:
        """Weigh the values by the other layer's map; the other arguments are not looked at."""
        frame = _frame(self)
        if self.of not in frame.shared:
            raise UnsupportedError(
                f"a layer takes its attention map from layer {self.of}, which was not run before it; call the "
                "encoder as a whole"
            )
        shared = frame.shared[self.of]
        # Where the map is computed again, what attends has steps of its own.
        with nullcontext() if isinstance(shared, Projections) else stage(REUSE_STAGE):
            if self.heads is not None:
                value = value.index_select(1, self.get_buffer("_order"))
            output = shared.attend(value, dropout=dropout)
            if self.heads is not None:
                output = output.index_select(1, self.get_buffer("_taken"))
        # With gradients the map is kept by the graph in any case, and layers may be run again.
        if self.last and not torch.is_grad_enabled():
            del frame.shared[self.of]
            frame.memory = shared.weights if isinstance(shared, DenseMap) else None
        return output


class _Frame:
    """What the layers of one forward pass hand to one another.

    Attributes:
        owner: The encoder.
        shared: By the number of the layer that computed it.
        memory: Of a map that nobody needs any more.
    """

    def __init__(self, owner: nn.Module) -> None:
        self.owner = owner
        self.shared: dict[int, Shared] = {}
        self.memory: Tensor | None = None


class _Frames(threading.local):
    """The frames of a thread; the last is that of the innermost call."""

    def __init__(self) -> None:
        self.stack: list[_Frame] = []


_FRAMES = _Frames()


def _frame(layer: LayerAttention) -> _Frame:
    if not _FRAMES.stack:
        raise UnsupportedError(
            f"a layer that shares attention maps ('{layer.variant}') was called outside of its encoder; call the "
            "encoder as a whole"
        )
    return _FRAMES.stack[-1]


def begin_frame(encoder: nn.Module, inputs: Any) -> None:
    """Begin a forward pass whose layers share maps; a forward pre-hook of the encoder.

    Raises:
        UnsupportedError: If layers are dropped at random in training, with the maps of their groups.
    """
    if encoder.training:
        config = getattr(encoder, "config", None)
        for holder, name in ((encoder, "layerdrop"), (config, "layerdrop"), (config, "encoder_layerdrop")):
            if getattr(holder, name, 0):
                raise UnsupportedError(
                    f"{type(encoder).__name__} drops whole layers in training ({name}={getattr(holder, name)}), and "
                    f"with one the map of its group; set {name} to 0, in the model and in its configuration"
                )
        if torch.is_grad_enabled():
            _remember_frames(encoder)
    _FRAMES.stack.append(_Frame(encoder))


def end_frame(encoder: nn.Module, inputs: Any, output: Any) -> None:
    """End a forward pass, also one that failed; a forward hook of the encoder."""
    if _FRAMES.stack and _FRAMES.stack[-1].owner is encoder:
        _FRAMES.stack.pop()


def _remember_frames(encoder: nn.Module) -> None:
    """Let gradient checkpointing bring the frame back when it runs a layer again."""
    for module in encoder.modules():
        if getattr(module, "gradient_checkpointing", False):
            checkpoint: Any = getattr(module, "_gradient_checkpointing_func", None)
            if checkpoint is not None and not isinstance(checkpoint, _WithFrame):
                module._gradient_checkpointing_func = _WithFrame(checkpoint)  # pyright: ignore[reportArgumentType]


class _WithFrame:
    """A checkpointing function that remembers the frame of the pass in which it was called.

    Args:
        checkpoint: The library's.
    """

    def __init__(self, checkpoint: Callable[..., Any]) -> None:
        self.checkpoint = checkpoint

    def __call__(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Run a function now, and again in the backward pass, in the same frame."""
        if not _FRAMES.stack:
            return self.checkpoint(function, *inputs)
        frame, recorded = _FRAMES.stack[-1], torch.is_grad_enabled()

        def run(*given: Any) -> Any:
            if recorded and not torch.is_grad_enabled():
                raise UnsupportedError(
                    "gradient checkpointing with use_reentrant=True cuts the gradient of shared attention maps; "
                    "switch it on with use_reentrant=False"
                )
            _FRAMES.stack.append(frame)
            try:
                return function(*given)
            finally:
                _FRAMES.stack.pop()

        return self.checkpoint(run, *inputs)
