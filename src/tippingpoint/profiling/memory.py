"""Predict what a workload needs before it is tried, so that nothing kills the user's desktop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tippingpoint.measurement import Memory
from tippingpoint.models.architecture import Architecture
from tippingpoint.models.catalog import check_subject, standing
from tippingpoint.models.groups import REUSE
from tippingpoint.workload import Subject, Variant, Workload

# Never plan to use the last tenth of what is free: other programs grow too.
SAFE_SHARE = 0.9
_MARGIN = 1.15
# What libraries take on the first call, whatever its size: threads' buffers, reordered weights, optimizer scratch.
_OVERHEAD_BYTES = 64 * 2**20
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Rows of a block of local attention's map (`attention.local_gathered`): each sees the keys of all of them.
_BLOCK = 64

# (positions of one sequence, bytes of activations: see `activation_bytes`), at the workload's batch size
KnownPoints = Sequence[tuple[int, int]]


def weight_bytes(workload: Workload, parameters: int) -> int:
    """Return bytes of weights and, in training, of gradients and the two moments of AdamW."""
    if workload.phase == "training":
        return parameters * 4 * 4
    return parameters * _BYTES[workload.dtype]


def activation_bytes(workload: Workload, memory: Memory, parameters: int) -> int:
    """Return the part of a measured peak that grows with the length: without weights, gradients and moments."""
    return max(0, memory.peak_bytes - weight_bytes(workload, parameters))


def bound_call_bytes(workload: Workload, architecture: Architecture, config: Mapping[str, Any]) -> int:
    """Return a generous bound on a call's activations, in closed form, as if attention were unfused.

    Args:
        workload: What to run.
        architecture: Its row of the catalogue.
        config: Its configuration.
    """
    positions = architecture.executed_positions(workload.length)
    shape = architecture.shape(config)
    # Only hierarchies of images say what bounds it: windows of one dimension are gathered in overlapping copies.
    keys = min(positions, architecture.keys_seen(config, positions)) if architecture.keys_seen else positions
    training = workload.phase == "training"
    # Training in a lower precision keeps both precisions of much, and softmax is computed in float32 in any case.
    size = 4 if training else _BYTES[workload.dtype]
    layers_alive, front_ends = (shape.layers, 12) if training else (1, 3)
    shared = _shared_maps(workload, architecture, config)
    # A short input has blocks that see more keys than there are.
    keys = max([keys, *(each.columns for each in shared)])
    layer = size * positions * (24 * shape.width + 6 * shape.wide) + 4 * 6 * shape.heads * positions * keys
    front_end = size * front_ends * architecture.front_end_values(workload.length)
    # In training every layer's share of the bound holds a map; else, of maps that are kept at once, one layer's does.
    kept = 0 if training else max(0, _kept_at_once(shared) - shape.heads * positions * keys)
    return _OVERHEAD_BYTES + workload.batch_size * (layers_alive * layer + front_end + 4 * kept)


def least_call_bytes(workload: Workload, architecture: Architecture, config: Mapping[str, Any]) -> int:
    """Return bytes that no call can do without, in closed form.

    With eager attention these are scores and their softmax; where layers share maps and keep them, the maps: in
    inference those that are alive at once, in training all, since their gradients need them. Of a mode that is chosen
    by measuring nothing is certain. Short inputs can mislead about either: the C library keeps small blocks that were
    freed and gives large ones back.

    Args:
        workload: What to run.
        architecture: Its row of the catalogue.
        config: Its configuration.
    """
    least = 0
    if any(variant.name == "eager" for variant in workload.subject.variants):
        scores = architecture.shape(config).heads * architecture.executed_positions(workload.length) ** 2
        least = 2 * scores * _BYTES[workload.dtype]
    kept = [each for each in _shared_maps(workload, architecture, config) if each.mode == "map"]
    if kept:
        alive = sum(each.values for each in kept) if workload.phase == "training" else _kept_at_once(kept)
        least = max(least, alive * min(_BYTES[workload.dtype], *(each.bytes_each for each in kept)))
    return workload.batch_size * least


def chooses_mode(subject: Subject) -> bool:
    """Whether a subject's first call measures which way of sharing maps is faster, which takes memory of its own."""
    return any(variant.name == REUSE and dict(variant.options).get("mode") == "auto" for variant in subject.variants)


@dataclass(frozen=True, slots=True)
class _SharedMap:
    """The map of a group of layers.

    Attributes:
        first: The layer that computes it.
        last: The last one that takes it over.
        mode: "map", "recompute" or "auto".
        values: Of one sequence, all heads together.
        columns: Keys of a row of it.
        bytes_each: Of a value.
    """

    first: int
    last: int
    mode: str
    values: int
    columns: int
    bytes_each: int


def _shared_maps(workload: Workload, architecture: Architecture, config: Mapping[str, Any]) -> list[_SharedMap]:
    """Return the maps that layers of a workload's subject may keep for one another; none if projections are."""
    if all(variant.name != REUSE for variant in workload.subject.variants):
        return []
    shape, positions = architecture.shape(config), architecture.executed_positions(workload.length)
    able: set[int] = set()

    def attention(positions: int, heads: int, head_dim: int, layers: Sequence[int]) -> int:
        able.update(layers)
        return 0

    # Its closed form says which layers take a variant: not those that have a window of their own.
    if architecture.flops is not None:
        architecture.flops(config, 1, workload.length, attention)
    there = standing(check_subject(workload.subject), sorted(able) or range(shape.layers), shape.layers)
    users: dict[int, list[int]] = {}
    for layer, variant in enumerate(there):
        if variant.name == REUSE:
            users.setdefault(int(dict(variant.options)["of"]), []).append(layer)
    found = []
    for first, layers in users.items():
        options: dict[str, Any] = dict(there[layers[0]].options)
        columns = _columns(there[first], positions)
        half = options.get("maps") == "bfloat16"
        found.append(
            _SharedMap(
                first=first,
                last=max(layers),
                mode=options["mode"],
                values=shape.heads * positions * columns,
                columns=columns,
                bytes_each=2 if half else _BYTES[workload.dtype],
            )
        )
    return [each for each in found if each.mode != "recompute"]


def _columns(variant: Variant, positions: int) -> int:
    """Return the keys of a row of a layer's map: all of them, or those that a block of local attention sees."""
    options: dict[str, Any] = dict(variant.options)
    if "window" not in options:
        return positions
    window = min(options["window"], positions)
    return _BLOCK + (1 if options.get("causal") else 2) * window + options.get("num_global", 0)


def _kept_at_once(maps: Iterable[_SharedMap]) -> int:
    """Return the most values that maps hold at once, when each is let go after the last layer that takes it over."""
    maps = list(maps)
    return max((sum(each.values for each in maps if each.first <= at.first <= each.last) for at in maps), default=0)


def predict_call_bytes(known: KnownPoints, positions: int) -> int | None:
    """Return what a call is expected to need at a length, from other lengths; None without any.

    Two points fix a N + c N^2 (neither below zero), the growth of every attention here; a single one is taken
    as quadratic. A margin of 15 % is added. Up to the longest known length, that one's need is returned.

    Args:
        known: Measured points, in any order.
        positions: Sequence positions to predict for.
    """
    points = sorted({positions: need for positions, need in known if need > 0}.items())
    if not points:
        return None
    last, need = points[-1]
    if positions <= last:
        return int(_MARGIN * need)
    linear, quadratic = 0.0, need / last**2
    if len(points) > 1:
        before, needed = points[-2]
        quadratic = max(0.0, (need / last - needed / before) / (last - before))
        linear = max(0.0, need / last - quadratic * last)
    return int(_MARGIN * (linear * positions + quadratic * positions**2))
