"""The length from which a variant stays better than a baseline, with an interval and a verdict.

At each measured length there are replicates of y = log(cost of baseline / cost of variant). In each replicate
the sign changes of y against log length are found; where y comes up through zero for the last time, a tipping
point lies. The interval holds the noise of the measurements and what is not known between two lengths: the
crossing is placed by a straight line or by a parabola through either neighbour, at random, and anywhere
between them where a subject pads to a multiple (its cost is a staircase) or ran out of memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tippingpoint.analysis.comparison import ComparisonPoint, comparison_points
from tippingpoint.measurement import Outcome
from tippingpoint.models.catalog import architecture_of
from tippingpoint.units import format_length, format_percent
from tippingpoint.workload import Subject

VERDICTS = ("crosses", "always", "never", "several crossings", "undecided")
# A verdict holds if this share of the replicates agrees.
_CONFIDENCE = 0.95


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
            return f"undecided between {self.variant} and {self.baseline} ({reach})"
        point = format_length(self.length, self.unit)
        ends = " to ".join(format_length(end, self.unit) for end in self.interval)
        several = "; it crosses several times" if self.verdict == "several crossings" else ""
        return f"{self.variant} is {better} from {point} on (95 % {ends}){several}"

    def __str__(self) -> str:
        at = "" if self.metric == "throughput" else f", batch {self.batch_size}"
        lines = [f"{self.metric.replace('_', ' ')}, {self.phase}{at}, {self.device}: {self.answer}"]
        for point in self.points:
            low, high = point.interval
            seen = (
                f"{point.ratio:.3g}x  (95 % {low:.3g} to {high:.3g})"
                if not point.censored
                else f"{'baseline' if point.censored > 0 else 'variant'} runs out of memory"
            )
            lines.append(f"  {format_length(point.length, self.unit):>16}  {seen}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def tipping_point(
    outcomes: Iterable[Outcome],
    baseline: Subject,
    variant: Subject,
    *,
    metric: str,
    phase: str,
    batch_size: int = 1,
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
        device: For the record.
    """
    architecture = architecture_of(baseline)
    points = comparison_points(outcomes, baseline, variant, metric=metric, phase=phase, batch_size=batch_size)
    staircase = any(architecture_of(subject).lengths.executed for subject in (baseline, variant))
    found = locate(points, staircase=staircase)
    notes = list(found.notes)
    if staircase and found.length is not None:
        notes.append("one of the two pads to a multiple, so the crossing may lie anywhere between two lengths")
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


def locate(points: Sequence[ComparisonPoint], *, staircase: bool = False, seed: int = 0) -> Located:
    """Find the tipping point among observations.

    Args:
        points: At growing lengths.
        staircase: Whether cost may jump anywhere between two lengths.
        seed: Of the generator that places crossings between two lengths.
    """
    if not points:
        return Located("undecided", notes=("no length gave a comparison",))
    replicates = np.stack([point.replicates() for point in points], axis=1)
    # Points have unlike noise, and their replicates come from the same seed: shuffling makes them independent.
    generator = np.random.default_rng(seed)
    replicates = generator.permuted(replicates, axis=0)
    better = replicates > 0
    share_always = float(better.all(axis=1).mean())
    share_ends_better = float(better[:, -1].mean())
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
    logs = np.log([point.length for point in points])
    crossings = np.array([_last_crossing(logs, row, staircase, generator) for row in replicates])
    low, middle, high = np.exp(np.percentile(crossings, [2.5, 50, 97.5]))
    notes = ()
    if share_always > 1 - _CONFIDENCE:
        notes = ("at the shortest length the two are within noise",)
        if share_always > 0.5:
            return Located("always", notes=notes)
    verdict = "several crossings" if changes >= 2 else "crosses"
    return Located(verdict, float(middle), (float(low), float(high)), notes)


def _last_crossing(logs: np.ndarray, values: np.ndarray, staircase: bool, generator: np.random.Generator) -> float:
    """Return the log length at which one replicate comes up through zero for the last time.

    A replicate that is never below zero crosses no later than the shortest length.
    """
    below = np.flatnonzero(values <= 0)
    if below.size == 0:
        return float(logs[0])
    left = int(below[-1])
    if left == len(logs) - 1:
        return float(logs[-1])
    right = left + 1
    start, end = logs[left], logs[right]
    if staircase or not (np.isfinite(values[left]) and np.isfinite(values[right])):
        return float(generator.uniform(start, end))
    straight = start - values[left] * (end - start) / (values[right] - values[left])
    neighbours = [k for k in (left - 1, right + 1) if 0 <= k < len(logs) and np.isfinite(values[k])]
    choice = int(generator.integers(len(neighbours) + 1))
    if choice == len(neighbours):
        return float(straight)
    three = [left, right, neighbours[choice]]
    return _parabola_root(logs[three], values[three], start, end, straight)


def _parabola_root(x: np.ndarray, y: np.ndarray, start: float, end: float, otherwise: float) -> float:
    """Return the root between `start` and `end` of the parabola through three points.

    There is one because the values at both ends have opposite signs; `otherwise` is for a flat parabola.
    """
    slope = (y[1] - y[0]) / (x[1] - x[0])
    bend = ((y[2] - y[1]) / (x[2] - x[1]) - slope) / (x[2] - x[0])
    # y[0] + slope t + bend t (t - h) with t = x - x[0], h = x[1] - x[0]
    linear = slope - bend * (x[1] - x[0])
    root = linear**2 - 4 * bend * y[0]
    if abs(bend) < 1e-12 or root < 0:
        return float(otherwise)
    for sign in (1, -1):
        candidate = x[0] + (-linear + sign * math.sqrt(root)) / (2 * bend)
        if start <= candidate <= end:
            return float(candidate)
    return float(otherwise)
