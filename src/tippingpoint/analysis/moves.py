"""Tipping points that moved between two runs: an answer is a range of lengths, and answers that are apart moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, TypeVar

from tippingpoint.analysis.tipping_point import TippingPoint, tipping_point
from tippingpoint.measurement import Outcome, is_best_batch
from tippingpoint.models.catalog import is_vanilla
from tippingpoint.workload import PHASES

_Value = TypeVar("_Value")

MOVES = ("moved up", "moved down", "same", "undecided")
# Below this many lengths there is no curve to cross.
_FEWEST_LENGTHS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What became of the tipping point of one pair.

    Attributes:
        verdict: "moved up" (the variant pays from longer inputs on), "moved down", "same", "undecided".
        old: The answer before.
        new: The answer after.
    """

    verdict: str
    old: TippingPoint
    new: TippingPoint

    def __str__(self) -> str:
        metric = self.new.metric.replace("_", " ")
        return f"{self.new.variant} against {self.new.baseline}, {self.new.phase} {metric}: {self.verdict}"


def moves(old: Iterable[Outcome], new: Iterable[Outcome], metrics: Iterable[str]) -> list[Move]:
    """Return the tipping points of every pair that was timed together at two or more lengths on both sides.

    Args:
        old: Outcomes of one environment.
        new: Outcomes of one environment.
        metrics: Which of "latency", "throughput", "peak_memory".
    """
    metrics = tuple(metrics)
    sides = [_by_setting(old), _by_setting(new)]
    found = []
    for setting in (setting for setting in sides[1] if setting in sides[0]):
        outcomes = [side[setting] for side in sides]
        subjects = _on_both(outcomes, lambda outcome: outcome.workload.subject)
        batch_sizes = _on_both(outcomes, lambda outcome: outcome.workload.batch_size)
        baselines, variants = ([s for s in subjects if is_vanilla(s) == vanilla] for vanilla in (True, False))
        for phase, metric, baseline, variant in product(PHASES, metrics, baselines, variants):
            # Throughput is at each one's best batch size, whatever it was.
            for batch_size in batch_sizes[:1] if metric == "throughput" else batch_sizes:
                before, after = (
                    tipping_point(
                        side,
                        baseline,
                        variant,
                        metric=metric,
                        phase=phase,
                        batch_size=batch_size,
                        device=setting.device,
                    )
                    for side in outcomes
                )
                if min(len(before.points), len(after.points)) >= _FEWEST_LENGTHS:
                    found.append(Move(verdict=moved(before, after), old=before, new=after))
    return found


def moved(old: TippingPoint, new: TippingPoint) -> str:
    """Return what became of a tipping point.

    It moved if the two answers are apart: their 95 % intervals do not overlap, or the variant never paid up to a
    length and now pays from there or from a shorter one on, or the other way round. It is the same if it pays at
    no length or at every length measured on both sides, or if each answer lies within the other's interval.
    """
    before, after = _range(old), _range(new)
    if before is None or after is None:
        return "undecided"
    if _above(after, before):
        return "moved up"
    if _above(before, after):
        return "moved down"
    if old.length is not None and new.length is not None:
        alike = after.low <= old.length <= after.high and before.low <= new.length <= before.high
        return "same" if alike else "undecided"
    return "same" if old.verdict == new.verdict else "undecided"


class _Range(NamedTuple):
    """Between which lengths a tipping point lies; `beyond` leaves the lower end itself out."""

    low: float
    high: float
    beyond: bool = False


def _range(point: TippingPoint) -> _Range | None:
    if point.interval is not None:
        return _Range(*point.interval)
    if point.verdict == "never":
        return _Range(point.measured_range[1], math.inf, beyond=True)
    return _Range(0.0, point.measured_range[0]) if point.verdict == "always" else None


def _above(one: _Range, other: _Range) -> bool:
    return one.low > other.high or (one.beyond and one.low == other.high)


class _Setting(NamedTuple):
    """What a tipping point speaks of beside its pair, phase and batch size."""

    device: str
    dtype: str
    shape: str
    compiled: bool
    padded: bool


def _by_setting(outcomes: Iterable[Outcome]) -> dict[_Setting, list[Outcome]]:
    found: dict[_Setting, list[Outcome]] = {}
    for outcome in outcomes:
        workload = outcome.workload
        setting = _Setting(workload.device, workload.dtype, workload.shape, workload.compiled, workload.padded)
        found.setdefault(setting, []).append(outcome)
    return found


def _on_both(sides: list[list[Outcome]], value: Callable[[Outcome], _Value]) -> list[_Value]:
    """Return the values that outcomes of both sides have, best batch sizes left out, in the order of the first."""
    before, after = (dict.fromkeys(value(o) for o in side if not is_best_batch(o)) for side in sides)
    return [found for found in before if found in after]
