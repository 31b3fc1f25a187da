"""The length from which a variant stays better than a baseline, with an interval and a verdict.

What is known of y = log(cost of baseline / cost of variant) at every length is a set of draws of a smooth curve
(`curve.RatioCurve`). Where a draw comes up through zero for the last time, a tipping point lies; the draws together
give median, interval and verdict. They hold the noise of the measurements and what is not known between two
lengths. Where a subject ran out of memory the curve ends: the edge lies anywhere between the longest length that
fitted and the shortest that did not.

A subject that pads pays for whole steps: where it is ahead at the end of a step it may be behind one position
further on. The draws are looked at on both sides of every step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tippingpoint.analysis.comparison import ComparisonPoint, comparison_points
from tippingpoint.analysis.curve import RatioCurve
from tippingpoint.measurement import Outcome
from tippingpoint.models.architecture import Architecture
from tippingpoint.models.catalog import architecture_of
from tippingpoint.units import format_length, format_percent, format_seconds
from tippingpoint.workload import Subject

VERDICTS = ("crosses", "always", "never", "several crossings", "undecided")
# A verdict holds if this share of the draws agrees.
_CONFIDENCE = 0.95
# Lengths at which a curve is looked at: 1.5 % apart over six octaves, and straight between them.
_GRID = 280


@dataclass(frozen=True, kw_only=True, repr=False)
class TippingPoint:
    """From which length on a variant stays better than a baseline.

    Attributes:
        baseline: The subject to beat.
        variant: The subject that may be better.
        metric: "latency", "throughput" or "peak_memory".
        phase: "inference" or "training".
        batch_size: Of latency and peak memory; throughput is at each one's best batch size.
        device: Where.
        unit: Native unit of lengths.
        verdict: "crosses", "always", "never" (up to the longest measured), "several crossings", "undecided".
        length: The tipping point in the native unit, where there is one.
        interval: Its 95 % interval in the native unit.
        positions: The same in sequence positions of the baseline.
        positions_interval: The same in sequence positions of the baseline.
        points: The observations it rests on.
        notes: What the reader should know.
        sessions: How many sessions measured the pair.
        seconds: What they took, and looks with shallow models; other pairs may have shared them. None if it is not
            known.
        needed_s: About how much longer measuring would take to decide it, to reach the precision asked for, or (where
            it has not tipped) to look at a longer length; None where nothing is missing, or no time would be enough.
        batch_budget: How much a batch holds in the native unit, where it has no fixed size; see `Study`.
    """

    baseline: Subject
    variant: Subject
    metric: str
    phase: str
    batch_size: int
    device: str
    unit: str
    verdict: str
    length: float | None
    interval: tuple[float, float] | None
    positions: int | None
    positions_interval: tuple[int, int] | None
    points: tuple[ComparisonPoint, ...]
    notes: tuple[str, ...] = ()
    sessions: int = 0
    seconds: float | None = None
    needed_s: float | None = None
    batch_budget: float | None = None

    def ratios(self, lengths: Sequence[float]) -> np.ndarray:
        """Return how many times better the variant is at lengths: low end, median, high end, [3, lengths].

        It is what a smooth curve through the observations says (`curve.RatioCurve`); infinite, or zero, where one
        side ran out of memory.

        Raises:
            ValueError: If a length lies outside the measured range, where nothing is said.
        """
        low, high = self.measured_range
        if min(lengths) < low or max(lengths) > high:
            raise ValueError(f"lengths must lie between {low:g} and {high:g}, the measured range")
        return ratio_curve(self.points, self.baseline, self.variant).at(lengths)

    @property
    def measured_range(self) -> tuple[float, float]:
        """Shortest and longest length that was measured."""
        return self.points[0].length, self.points[-1].length

    @property
    def answer(self) -> str:
        """The verdict as a sentence."""
        better = {"latency": "faster", "throughput": "faster", "peak_memory": "smaller"}[self.metric]
        if not self.points:
            return f"undecided: no length gave a comparison of {self.variant} with {self.baseline}"
        low, high = (format_length(length, self.unit) for length in self.measured_range)
        reach = f"from {low} to {high}" if low != high else f"at {low}, the only length measured"
        if self.verdict == "always":
            return f"{self.variant} is {better} at every length measured ({reach})"
        if self.verdict == "never":
            return f"{self.variant} is not {better} up to {high} (measured {reach})"
        if self.length is None or self.interval is None:
            more = "" if self.needed_s is None else f"; about {format_seconds(self.needed_s)} more would decide it"
            return f"undecided between {self.variant} and {self.baseline} ({reach}){more}"
        point = format_length(self.length, self.unit)
        ends = " to ".join(format_length(end, self.unit) for end in self.interval)
        several = "; it crosses several times" if self.verdict == "several crossings" else ""
        return f"{self.variant} is {better} from {point} on (95 % {ends}){several}"

    def __str__(self) -> str:
        batch = self.batch_size if self.batch_budget is None else f"of {self.batch_budget:g} {self.unit}"
        at = "" if self.metric == "throughput" else f", batch {batch}"
        lines = [f"{self.metric.replace('_', ' ')}, {self.phase}{at}, {self.device}: {self.answer}"]
        for point in self.points:
            low, high = point.interval
            seen = (
                f"{point.ratio:.3g}x  (95 % {low:.3g} to {high:.3g})"
                if not point.censored
                else f"{'baseline' if point.censored > 0 else 'variant'} runs out of memory"
            )
            lines.append(f"  {format_length(point.length, self.unit):>16}  {seen}")
        if self.seconds is not None:
            rounds = sum(len(point.log_ratios) for point in self.points)
            lines.append(
                f"  rests on {self.sessions} session{'s'[: self.sessions != 1]} with {rounds} rounds; measuring took "
                f"{format_seconds(self.seconds)}"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from tippingpoint.report.notebook import as_html

        return as_html(self)


def tipping_point(
    outcomes: Iterable[Outcome],
    baseline: Subject,
    variant: Subject,
    *,
    metric: str,
    phase: str,
    batch_size: int = 1,
    batch_budget: float | None = None,
    device: str = "cpu",
) -> TippingPoint:
    """Return the tipping point of a pair from what was measured.

    Args:
        outcomes: Of one environment; only those of the pair, phase and batch policy count.
        baseline: The subject to beat, options written out.
        variant: The subject that may be better, options written out.
        metric: "latency", "throughput" or "peak_memory".
        phase: "inference" or "training".
        batch_size: See `TippingPoint`.
        batch_budget: See `TippingPoint`; the outcomes then have no other batch sizes than it asks for.
        device: For the record.
    """
    architecture = architecture_of(baseline)
    size = batch_size if batch_budget is None else None
    points = comparison_points(outcomes, baseline, variant, metric=metric, phase=phase, batch_size=size)
    found = locate_pair(points, baseline, variant)
    notes = list(found.notes)
    if found.length is not None and _is_staircase(baseline, variant):
        notes.append("one of the two pads to a multiple: just beyond each step it is worse than just before")
    positions = interval = None
    if found.length is not None and found.interval is not None:
        # Tokens and pixels come whole: a crossing between two of them is rounded as it is printed.
        place, low, high = (
            length if architecture.unit == "seconds" else round(length) for length in (found.length, *found.interval)
        )
        positions = architecture.positions(place)
        interval = (architecture.positions(low), architecture.positions(high))
    return TippingPoint(
        baseline=baseline,
        variant=variant,
        metric=metric,
        phase=phase,
        batch_size=batch_size,
        batch_budget=batch_budget,
        device=device,
        unit=architecture.unit,
        verdict=found.verdict,
        length=found.length,
        interval=found.interval,
        positions=positions,
        positions_interval=interval,
        points=tuple(points),
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class Located:
    """Verdict and place of a tipping point, without the names."""

    verdict: str
    length: float | None = None
    interval: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


def ratio_curve(points: Sequence[ComparisonPoint], baseline: Subject, variant: Subject) -> RatioCurve:
    """Return what the observations of a pair tell of its log-ratio at every length."""
    ours, theirs = architecture_of(variant), architecture_of(baseline)
    return RatioCurve(tuple(points), theirs.executed_positions, ours.executed_positions)


def locate_pair(points: Sequence[ComparisonPoint], baseline: Subject, variant: Subject) -> Located:
    """Find the tipping point of a pair among its observations, knowing where its subjects pad; see `locate`."""
    if not points:
        return locate(RatioCurve(()), ())
    low, high = points[0].length, points[-1].length
    return locate(ratio_curve(points, baseline, variant), grid(low, high, baseline, variant))


def _is_staircase(*subjects: Subject) -> bool:
    return any(architecture_of(subject).lengths.executed for subject in subjects)


def grid(low: float, high: float, baseline: Subject, variant: Subject) -> tuple[float, ...]:
    """Return lengths at which to look at a curve: evenly spaced on the logarithmic scale, and both sides of steps."""
    return _grid(float(low), float(high), baseline.architecture, variant.architecture)


@cache
def _grid(low: float, high: float, *architectures: str) -> tuple[float, ...]:
    lengths = set(even_grid(low, high))
    for row in (architecture_of(Subject(name)) for name in architectures):
        if row.lengths.executed is None:
            continue
        end = low
        for length in sorted(lengths):
            # Of steps that lie closer than the grid, one for each of its places is enough.
            if end < length:
                end = _end_of_step(row, length)
                lengths |= {edge for edge in (end, end + row.lengths.multiple_of) if edge < high}
    return tuple(sorted(lengths))


def _end_of_step(row: Architecture, length: float) -> float:
    """Return the longest length for which an architecture executes no more positions than for this one."""
    executed, step = row.executed_positions(length), row.lengths.multiple_of
    inside = math.floor(length / step)
    beyond = inside + 1
    while row.executed_positions(beyond * step) <= executed:
        inside, beyond = beyond, 2 * beyond
    while beyond - inside > 1:
        middle = (inside + beyond) // 2
        if row.executed_positions(middle * step) <= executed:
            inside = middle
        else:
            beyond = middle
    return float(inside * step)


def even_grid(low: float, high: float) -> tuple[float, ...]:
    """Return lengths evenly spaced on the logarithmic scale, both ends among them."""
    return (low, *np.geomspace(low, high, _GRID)[1:-1].tolist(), high) if low < high else (low,)


def locate(curve: RatioCurve, lengths: Sequence[float]) -> Located:
    """Find the tipping point on a curve.

    Args:
        curve: What is known.
        lengths: Where to look at it, growing, from the shortest to the longest observation.
    """
    points = curve.points
    if not points:
        return Located("undecided", notes=("no length gave a comparison",))
    draws = curve.draws(lengths)
    share_always = float((draws > 0).all(axis=1).mean())
    share_ends_better = float((draws[:, -1] > 0).mean())
    confident = [sign for sign in (point.sign for point in points) if sign]
    changes = sum(first != second for first, second in itertools.pairwise(confident))

    if share_ends_better <= 1 - _CONFIDENCE:
        note = ()
        if 1 in confident:
            last = max(point.length for point in points if point.sign > 0)
            note = (f"it is better at {last:g}, and not at longer lengths",)
        return Located("never", notes=note)
    if share_ends_better < _CONFIDENCE:
        share = format_percent(share_ends_better)
        note = f"at the longest length the variant is better with probability {share}: measure longer or more"
        return Located("undecided", notes=(note,))
    if share_always >= _CONFIDENCE:
        return Located("always")
    low, middle, high = np.exp(np.percentile(last_crossings(lengths, draws), [2.5, 50, 97.5]))
    notes = ()
    if share_always > 1 - _CONFIDENCE:
        notes = ("at the shortest length the two are within noise",)
        if share_always > 0.5:
            return Located("always", notes=notes)
    verdict = "several crossings" if changes >= 2 else "crosses"
    return Located(verdict, float(middle), (float(low), float(high)), notes)


def last_crossings(lengths: Sequence[float], draws: np.ndarray) -> np.ndarray:
    """Return the log length at which each draw comes up through zero for the last time, [draws].

    A draw that is never below zero crosses no later than the shortest length, one that ends below zero no earlier
    than the longest.

    Args:
        lengths: Growing.
        draws: Of the log-ratio, [draws, lengths].
    """
    logs = np.log(lengths)
    behind = draws <= 0
    last = np.where(behind.any(axis=1), logs.size - 1 - behind[:, ::-1].argmax(axis=1), -1)
    crossings = np.where(last < 0, logs[0], logs[-1])
    rows = np.flatnonzero((last >= 0) & (last < logs.size - 1))
    left = last[rows]
    y0, y1 = draws[rows, left], draws[rows, left + 1]
    finite = np.isfinite(y0) & np.isfinite(y1)
    share = np.where(finite, -y0, 0.5) / np.where(finite, y1 - y0, 1.0)
    crossings[rows] = logs[left] + share * (logs[left + 1] - logs[left])
    return crossings
