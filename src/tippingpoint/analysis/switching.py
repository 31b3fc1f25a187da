"""Two models at once: one for items up to a length, another above it; the best length, and what it gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tippingpoint.analysis.batching import Batching
from tippingpoint.analysis.cost import CostCurve
from tippingpoint.analysis.workload_cost import Estimate, centered, certainly_less, draws, epochs
from tippingpoint.errors import InputError
from tippingpoint.workload import Subject

# Lengths to switch at that are tried: as many quantiles of the items.
_THRESHOLDS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A policy of two models, each for the items it is cheaper for.

    Attributes:
        short: Subject for items up to `length`.
        long: Subject for longer ones.
        length: Where to switch, in the native unit.
        share: Share of the items that are longer.
        single: The best single subject it is held against.
        cost_s: Mean seconds of an item, as the objective has it.
        gain: Share of the single subject's cost that it saves.
        certain: Whether the 95 % interval of the gain is above zero.
    """

    short: Subject
    long: Subject
    length: float
    share: float
    single: Subject
    cost_s: Estimate
    gain: Estimate
    certain: bool


def check_switch(objective: str) -> None:
    """Refuse to weigh two models by what does not add up over the items.

    Raises:
        InputError: If the objective is neither latency nor throughput.
    """
    if objective not in ("latency", "throughput"):
        raise InputError(f"two models can be weighed by latency or throughput, got the objective {objective!r}")


def best_switch(
    items: Sequence[np.ndarray],
    batching: Batching,
    curves: Mapping[Subject, CostCurve],
    singles: Mapping[Subject, np.ndarray],
    objective: str,
) -> Switch | None:
    """Return the best policy of two models; None where no length to switch at beats a single one.

    Items of both parts are batched apart. Where it is best to switch is looked for on the items as they are; the gain
    and its interval are those of resamples of the same items, priced by the same replicates on both sides.

    Args:
        items: As `workload_cost.resamples` returns them.
        batching: The policy of making batches.
        curves: Seconds for one sequence in a full batch, of every subject that may be used.
        singles: Draws of what each costs alone, by the objective.
        objective: "latency" (mean of the items) or "throughput".
    """
    if len(curves) < 2:
        return None
    single = min(singles, key=lambda subject: float(singles[subject][0]))
    name = "latency" if objective == "latency" else "per_item"
    whole = items[0]
    thresholds = np.unique(np.quantile(whole, np.linspace(0, 1, _THRESHOLDS + 2)[1:-1], method="lower"))
    best: tuple[float, float, Subject, Subject] | None = None
    for threshold in thresholds[thresholds < whole.max()].tolist():
        parts = [_part(items[:1], threshold, long, batching, curves, name) for long in (False, True)]
        (short, low), (long, high) = (min(part.items(), key=lambda row: float(row[1][0])) for part in parts)
        cost = float(low[0] + high[0])
        if short != long and (best is None or cost < best[0]):
            best = cost, threshold, short, long
    if best is None or best[0] >= singles[single][0]:
        return None
    _, threshold, short, long = best
    both = _part(items, threshold, False, batching, {short: curves[short]}, name)[short]
    both = both + _part(items, threshold, True, batching, {long: curves[long]}, name)[long]
    # As what each costs alone is: shares and costs of the parts vary together, and the middle of their products is
    # not the product of their middles.
    both = centered(both)
    gain = Estimate.of(1 - both / singles[single])
    return Switch(
        short=short,
        long=long,
        length=threshold,
        share=float((whole > threshold).mean()),
        single=single,
        cost_s=Estimate.of(both),
        gain=gain,
        certain=certainly_less(both, singles[single]),
    )


def _part(
    items: Sequence[np.ndarray],
    threshold: float,
    longer: bool,
    batching: Batching,
    curves: Mapping[Subject, CostCurve],
    name: str,
) -> dict[Subject, np.ndarray]:
    """Return what the items on one side of a threshold add to the mean cost of all, [draws], by subject."""
    sides = [(lengths > threshold) == longer for lengths in items]
    # A resample may have nothing on one side: any item stands in, and counts nothing.
    kept = [lengths[side] if side.any() else lengths[:1] for lengths, side in zip(items, sides, strict=True)]
    found = epochs(kept, batching)
    shares = [float(side.mean()) for side in sides]
    added = {}
    for subject, curve in curves.items():
        cost = draws(found, curve, None)[name]
        each = [1] + [len(part) for part in np.array_split(cost[1:], max(1, len(found) - 1))]
        added[subject] = cost * np.repeat(shares, each[: len(shares)])
    return added
