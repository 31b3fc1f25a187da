"""Predict what a workload needs before it is tried, so that nothing kills the user's desktop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tippingpoint.measurement import Memory
from tippingpoint.models.architecture import Architecture
from tippingpoint.workload import Workload

# Never plan to use the last tenth of what is free: other programs grow too.
SAFE_SHARE = 0.9
_MARGIN = 1.15
# What libraries take on the first call, whatever its size: threads' buffers, reordered weights, optimizer scratch.
_OVERHEAD_BYTES = 64 * 2**20
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

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
    layer = size * positions * (24 * shape.width + 6 * shape.wide) + 4 * 6 * shape.heads * positions * keys
    front_end = size * front_ends * architecture.front_end_values(workload.length)
    return _OVERHEAD_BYTES + workload.batch_size * (layers_alive * layer + front_end)


def least_call_bytes(workload: Workload, architecture: Architecture, config: Mapping[str, Any]) -> int:
    """Return bytes that no call can do without, in closed form: with eager attention, scores and their softmax.

    Short inputs can mislead about them: the C library keeps small blocks that were freed and gives large ones back.

    Args:
        workload: What to run.
        architecture: Its row of the catalogue.
        config: Its configuration.
    """
    if all(variant.name != "eager" for variant in workload.subject.variants):
        return 0
    scores = architecture.shape(config).heads * architecture.executed_positions(workload.length) ** 2
    return workload.batch_size * 2 * scores * _BYTES[workload.dtype]


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
