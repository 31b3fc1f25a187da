"""Which part of a model an operator belongs to, while a call runs.

forward     the innermost named module it runs in; inside an attention, the step that the attention names, or what
            the operator does: a product before the softmax is QK^T, one after it is AV
backward    the part whose forward pass left the gradient's node behind
elsewhere   the stage that the call names: loss, optimizer

Nothing here waits for a device or looks at values, so a call runs as it would.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tippingpoint.analysis.breakdown import BACKWARD, FORWARD
from tippingpoint.models.components import (
    ATTENTION,
    ATTENTION_ITSELF,
    FEED_FORWARD,
    LOSS,
    OPTIMIZER,
    OTHER,
    OUTPUT_PROJECTION,
    PROJECTIONS,
    RESIDUALS,
    Label,
    Patterns,
    chosen_label,
    is_part,
    label_of,
)
from tippingpoint.profiling.traffic import storage_id
from tippingpoint.stages import FUSED, SCORES, SOFTMAX, WEIGHTED, watched

# Products of an attention that has no softmax, or several: which is which cannot be told from outside.
PRODUCTS = "products of queries, keys and values"
COPIES = "positions, copies and reshaping"
# What an attention learns beside its projections.
OWN_PARAMETERS = "parameters of its own"
SUMS = Label(OTHER, "sums of gradients")
OUTSIDE = Label(OTHER, "outside of the model")

# PyTorch runs a whole `nn.TransformerEncoderLayer` as one operator, where it can.
WHOLE_LAYER = "_transformer_encoder_layer_fwd"
_FUSED = re.compile(r"scaled_dot_product|(flash|efficient|flex)_attention|native_multi_head_attention|fmha")
_SOFTMAX = re.compile(r"softmax")
_PRODUCT = re.compile(r"^(mm|bmm|addmm_?|addmv_?|mv|baddbmm_?|dot|matmul|linear)$|mkldnn_linear|_linear_pointwise")
# Steps of attentions of the library, by class and method.
_LIBRARY_STEPS: dict[tuple[str, str], str] = {
    ("NystromformerSelfAttention", "iterative_inv"): "pseudo-inverse",
    ("LongformerSelfAttention", "_sliding_chunks_query_key_matmul"): SCORES,
    ("LongformerSelfAttention", "_sliding_chunks_matmul_attn_probs_value"): WEIGHTED,
    ("LEDEncoderSelfAttention", "_sliding_chunks_query_key_matmul"): SCORES,
    ("LEDEncoderSelfAttention", "_sliding_chunks_matmul_attn_probs_value"): WEIGHTED,
}


class Part(NamedTuple):
    """A part of a call.

    Attributes:
        label: What it is called.
        layer: Number of the layer, from 0; None outside of layers.
        direction: "forward", "backward" or "optimizer".
    """

    label: Label
    layer: int | None
    direction: str


class Spot(NamedTuple):
    """Where one operator ran; what it is called inside an attention is known when the attention is over.

    Attributes:
        part: Which part it belongs to, as far as modules tell.
        call: Number of the attention's call; 0 where the part is final.
        kind: What the operator does there: "product", "softmax" or "other".
        softmaxes: How many ran before it in the call.
        products: How many ran before it in the call.
    """

    part: Part
    call: int = 0
    kind: str = ""
    softmaxes: int = 0
    products: int = 0


class _Frame(NamedTuple):
    """A module that is running: what it is called, its layer, and the attention's call that it belongs to."""

    label: Label
    layer: int | None
    call: int


class Attribution:
    """Tells, for each operator that runs, which part of a model it belongs to.

    Use as a context manager around calls of the model; `spot` is to be asked once for each operator, in order.

    Args:
        model: Whose modules have names.
        patterns: A person's own names; see `tippingpoint.models.components.parse_patterns`.
        ranges: Whether parts are ranges of PyTorch's profiler too.
        now: A clock by which `own_s` counts what hooks and steps take themselves.
        whole_layers: Whether `nn.TransformerEncoderLayer` runs as one operator, as it may in inference; with a hook
            anywhere in it, it would not.
    """

    def __init__(
        self,
        model: nn.Module,
        patterns: Patterns | None = None,
        *,
        ranges: bool = False,
        now: Callable[[], float] | None = None,
        whole_layers: bool = False,
    ) -> None:
        self._model = model
        self._patterns = patterns
        self._labels = name_modules(model, patterns)
        if whole_layers:
            layers = [module for module in model.modules() if isinstance(module, nn.TransformerEncoderLayer)]
            closed = {inner for layer in layers for inner in layer.modules()}
            self._labels = {module: label for module, label in self._labels.items() if module not in closed}
        self._weights = {storage_id(parameter) for parameter in model.parameters()}
        self._now = now or _no_clock
        # Seconds that hooks and steps took so far.
        self.own_s = 0.0
        self._casts: set[frozenset[int]] = set()
        self._hooks = ExitStack()
        self._ranges: list[Any] | None = [] if ranges else None
        self._frames: list[_Frame] = []
        self._steps: list[str] = []
        self._calls = 0
        self._seen: dict[int, Counter[str]] = {}
        self._nodes: dict[int, Spot] = {}

    def __enter__(self) -> Attribution:
        for module, (label, layer) in self._labels.items():
            parent = self._parents.get(module)
            # What is called by a module of the same part needs no hooks; a list of modules calls nothing.
            if parent is None or self._labels[parent] != (label, layer) or not _has_forward(parent):
                self._watch(module, label, layer)
        self._hooks.enter_context(watched(self._step))
        self._hooks.enter_context(_library_steps(self._labels, self._step))
        return self

    def __exit__(self, *args: object) -> None:
        self._hooks.close()
        self._frames.clear()
        self._steps.clear()

    @functools.cached_property
    def _parents(self) -> dict[nn.Module, nn.Module]:
        return {child: module for module in self._labels for child in module.children() if child in self._labels}

    def parameters(self) -> dict[Part, int]:
        """Return how many parameters each part has, shared ones once."""
        found: Counter[Part] = Counter()
        seen: set[nn.Parameter] = set()
        for module, (label, layer) in name_modules(self._model, self._patterns).items():
            for parameter in module.parameters(recurse=False):
                if parameter not in seen:
                    seen.add(parameter)
                    own = Label(ATTENTION, OWN_PARAMETERS) if label == ATTENTION_ITSELF else label
                    found[Part(own, layer, FORWARD)] += parameter.numel()
        return dict(found)

    def begin(self) -> None:
        """Begin another call: what the last one left for its backward pass is forgotten."""
        self._nodes.clear()

    def _watch(self, module: nn.Module, label: Label, layer: int | None) -> None:
        def enter(module: nn.Module, inputs: Any) -> None:
            begin = self._now()
            call = 0
            if label == ATTENTION_ITSELF:
                call = self._frames[-1].call if self._frames else 0
                if not call:
                    self._calls += 1
                    call = self._calls
                    self._seen[call] = Counter()
            self._frames.append(_Frame(label, layer, call))
            if self._ranges is not None:
                self._ranges.append(torch.profiler.record_function(_written(label, layer)))
                self._ranges[-1].__enter__()
            self.own_s += self._now() - begin

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            begin = self._now()
            self._frames.pop()
            if self._ranges is not None:
                self._ranges.pop().__exit__(None, None, None)
            self.own_s += self._now() - begin

        # First of all hooks in, last out: what other hooks do belongs to the module.
        self._hooks.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
        # Also where a forward pass ends by an exception: checkpointing stops what it runs again that way.
        self._hooks.callback(module.register_forward_hook(leave, always_call=True).remove)

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        self._steps.append(name)
        try:
            with nullcontext() if self._ranges is None else torch.profiler.record_function(name):
                yield
        finally:
            self._steps.pop()

    def spot(self, operator: Any, args: Iterable[Any] = ()) -> Spot:
        """Return where an operator runs that is about to run.

        Args:
            operator: An overload of PyTorch's dispatcher.
            args: What it is called with.
        """
        if torch._C._current_graph_task_id() != -1 and not self._frames:
            return self._backward_spot()
        spot = self._forward_spot(operator, args)
        # The node of an operator is made before the operator runs, so the first one to run is its own. (Inside a
        # function with a backward pass of its own gradients are off, and its node is there all the same.)
        number = torch.autograd._get_sequence_nr() - 1  # pyright: ignore[reportPrivateImportUsage]
        self._nodes.setdefault(number, spot)
        return spot

    def _forward_spot(self, operator: Any, args: Iterable[Any]) -> Spot:
        frame = self._frames[-1] if self._frames else None
        # Layers that run again in the backward pass, to save memory, belong to it.
        direction = FORWARD if torch._C._current_graph_task_id() == -1 else BACKWARD
        name = _name(operator)
        if name == "_to_copy":
            self._casts.update(_sides(arg) for arg in args if self._is_weight(arg))
        if name == WHOLE_LAYER:
            return Spot(Part(Label(OTHER, "layers that are one operator"), None, direction))
        if self._steps:
            return Spot(_part_of_step(self._steps[-1], frame, direction))
        if frame is None:
            return Spot(Part(OUTSIDE, None, direction))
        part = Part(frame.label, frame.layer, direction)
        if not frame.call:
            return Spot(part)
        seen = self._seen[frame.call]
        if _FUSED.search(name):
            seen["softmax"] += 1
            return Spot(part._replace(label=Label(ATTENTION, FUSED)))
        kind = _kind(name)
        if kind == "product" and any(self._is_weight(arg) or self._is_cast(arg) for arg in args):
            # Some models project inside their attention's own code.
            name = OUTPUT_PROJECTION if seen["softmax"] else PROJECTIONS
            return Spot(part._replace(label=Label(ATTENTION, name)))
        spot = Spot(part, frame.call, kind, seen["softmax"], seen["product"])
        seen[kind] += 1
        return spot

    def _backward_spot(self) -> Spot:
        node = torch._C._current_autograd_node()
        source = None if node is None else self._nodes.get(node._sequence_nr())
        if source is None:
            # Gradients that come from several sides are added outside of any node.
            return Spot(Part(SUMS, None, BACKWARD))
        part = source.part._replace(direction=BACKWARD)
        if self._steps:
            frame = _Frame(part.label, part.layer, 1) if part.label.group == ATTENTION else None
            return Spot(_part_of_step(self._steps[-1], frame, BACKWARD))
        return source._replace(part=part)

    def _is_weight(self, value: Any) -> bool:
        return isinstance(value, Tensor) and storage_id(value) in self._weights

    def _is_cast(self, value: Any) -> bool:
        """Whether a matrix may be what mixed precision made of a weight: one of that shape, or its transpose."""
        return isinstance(value, Tensor) and value.ndim == 2 and _sides(value) in self._casts

    def resolve(self, spot: Spot) -> Part:
        """Return the part that a spot belongs to; to be asked when its call is over."""
        if not spot.call:
            return spot.part
        return spot.part._replace(label=Label(ATTENTION, self._name_inside(spot)))

    def _name_inside(self, spot: Spot) -> str:
        seen = self._seen[spot.call]
        if spot.kind == "softmax":
            return SOFTMAX
        if seen["softmax"] != 1:
            return PRODUCTS if spot.kind == "product" else COPIES
        if spot.kind == "product":
            return WEIGHTED if spot.softmaxes else SCORES
        # Between the first product and the one behind the softmax, what is done is done to the scores.
        return SOFTMAX if spot.products > 0 and self._is_before_last(spot, seen) else COPIES

    def _is_before_last(self, spot: Spot, seen: Counter[str]) -> bool:
        return not spot.softmaxes or spot.products < seen["product"]


def _written(label: Label, layer: int | None) -> str:
    return str(label) if layer is None else f"layer {layer}, {label}"


def _part_of_step(name: str, frame: _Frame | None, direction: str) -> Part:
    if name == OPTIMIZER:
        return Part(Label(OPTIMIZER, OPTIMIZER), None, OPTIMIZER)
    if name == LOSS or frame is None:
        return Part(Label(name, name), None, direction)
    group = ATTENTION if frame.call else frame.label.group
    return Part(Label(group, name), frame.layer, direction)


def _sides(tensor: Tensor) -> frozenset[int]:
    return frozenset(tensor.shape)


def _no_clock() -> float:
    return 0.0


def _name(operator: Any) -> str:
    schema = getattr(operator, "_schema", None)
    return str(operator) if schema is None else schema.name.partition("::")[2]


def _has_forward(module: nn.Module) -> bool:
    """Whether a module calls what stands in it: lists of modules do not, nor do those that are used as lists."""
    is_list = isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential))
    return not is_list and getattr(type(module).forward, "__name__", "") != "_forward_unimplemented"


@functools.cache
def _kind(name: str) -> str:
    if _SOFTMAX.search(name):
        return "softmax"
    return "product" if _PRODUCT.search(name) else "other"


def name_modules(model: nn.Module, patterns: Patterns | None = None) -> dict[nn.Module, tuple[Label, int | None]]:
    """Return what every module of a model is called, and the number of its layer.

    Args:
        model: Any module.
        patterns: A person's own names, which come first.
    """
    named = dict(model.named_modules())
    found: dict[str, Label | None] = {}
    # What a person calls a part is called so with everything in it; but an attention is told apart.
    chosen: dict[str, Label | None] = {}
    attentions: set[str] = set()
    for path, module in named.items():
        parent = path.rpartition(".")[0]
        own, above = chosen_label(path, patterns or {}), chosen.get(parent) if path else None
        chosen[path] = own or above
        inside = bool(path) and parent in attentions
        if own is None and above in (None, ATTENTION_ITSELF):
            leaf = next(module.children(), None) is None
            own = label_of(path, type(module).__name__, inside=inside, leaf=leaf)
        found[path] = own or above
        if inside or found[path] == ATTENTION_ITSELF:
            attentions.add(path)
    layers = _layers(named, found)
    labels: dict[str, tuple[Label, int | None]] = {}
    for path, module in named.items():
        parent = path.rpartition(".")[0]
        above = labels.get(parent) if path else None
        number = layers.get(path, above[1] if above else None)
        label = found[path] or (RESIDUALS if path in layers else None)
        kind = type(module).__name__
        if label is None and above is not None:
            # A layer is called after what its own code does, and that says nothing of what stands in it.
            inherits = above[0].group != OTHER and parent not in layers
            label = _by_width(module, above[0]) if inherits or not is_part(kind) else None
        labels[path] = label or Label(OTHER, kind), number
    return {module: labels[path] for path, module in named.items()}


def _by_width(module: nn.Module, above: Label) -> Label:
    """Return what a module without a name is called in a part; linear layers of a feed-forward go up or down."""
    if above.group == FEED_FORWARD and isinstance(module, nn.Linear):
        return Label(FEED_FORWARD, "up" if module.out_features > module.in_features else "down")
    return above


def _layers(named: dict[str, nn.Module], labels: dict[str, Label | None]) -> dict[str, int]:
    """Return the modules that are layers, by number: those of a list that hold an attention and what is behind it."""
    fed = [path for path, label in labels.items() if label is not None and label.group == FEED_FORWARD]
    found: dict[str, None] = {}
    for path, label in labels.items():
        if label != ATTENTION_ITSELF:
            continue
        above = [path[: match.start()] for match in re.finditer(r"\.", path)] + [path]
        items = [
            place
            for place in above
            if isinstance(named.get(place.rpartition(".")[0]), (nn.ModuleList, nn.Sequential))
        ]
        whole = [place for place in items if any(each.startswith(f"{place}.") for each in fed)]
        if items:
            found[(whole or items)[-1]] = None
    return {path: number for number, path in enumerate(path for path in named if path in found)}


@contextmanager
def _library_steps(
    modules: Iterable[nn.Module], step: Callable[[str], AbstractContextManager[None]]
) -> Iterator[None]:
    """Tell steps of attentions whose code is the library's: a method is a step."""
    changed: list[tuple[nn.Module, str]] = []
    try:
        for module in modules:
            for (kind, method), name in _LIBRARY_STEPS.items():
                if type(module).__name__ == kind:
                    setattr(module, method, _in_step(getattr(module, method), name, step))
                    changed.append((module, method))
        yield
    finally:
        for module, method in changed:
            delattr(module, method)


def _in_step(function: Callable[..., Any], name: str, step: Callable[[str], AbstractContextManager[None]]) -> Any:
    @functools.wraps(function)
    def within(*args: Any, **kwargs: Any) -> Any:
        with step(name):
            return function(*args, **kwargs)

    return within
