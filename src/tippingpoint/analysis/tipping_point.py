"""The length from which a variant stays better than a baseline, with an interval and a verdict.

At each measured length there are replicates of y = log(cost of baseline / cost of variant). In each replicate
the sign changes of y against log length are found; where y comes up through zero for the last time, a tipping
point lies. The interval holds the noise of the measurements and what is not known between two lengths: the
crossing is placed by a straight line or by a parabola through either neighbour, at random, and anywhere
between them where a subject pads to a multiple (its cost is a staircase) or ran out of memory.

A subject that pads pays for whole steps: where it is ahead at the end of a step it may be behind one position
further on. It counts as better from a length on only if it stays ahead when the next step begins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tippingpoint.analysis.comparison import ComparisonPoint, comparison_points
from tippingpoint.measurement import Outcome
from tippingpoint.models.catalog import ARCHITECTURES, architecture_of
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
    found = locate_pair(points, baseline, variant, metric)
    notes = list(found.notes)
    if found.length is not None and _is_staircase(baseline, variant):
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


def locate_pair(points: Sequence[ComparisonPoint], baseline: Subject, variant: Subject, metric: str) -> Located:
    """Find the tipping point of a pair among its observations, knowing where its subjects pad; see `locate`."""
    drops = step_drops(points, baseline, variant, metric)
    return locate(points, staircase=_is_staircase(baseline, variant), drops=drops)


def _is_staircase(*subjects: Subject) -> bool:
    return any(architecture_of(subject).lengths.executed for subject in subjects)


def step_drops(
    points: Iterable[ComparisonPoint], baseline: Subject, variant: Subject, metric: str
) -> tuple[float, ...]:
    """Return how far the log-ratio may fall, at most, between each point and the next step of the variant.

    0 where the variant does not pad. A cost is taken to grow in proportion to the executed positions at most,
    and a baseline's time in proportion to its positions at least; its memory may not grow at all.

    Args:
        points: At growing lengths.
        baseline: The subject to beat.
        variant: The subject that may be better.
        metric: "latency", "throughput" or "peak_memory".
    """
    if architecture_of(variant).lengths.executed is None:
        return tuple(0.0 for _ in points)
    grows = metric != "peak_memory"
    return tuple(_step_drop(point.length, baseline.architecture, variant.architecture, grows) for point in points)


@cache
def _step_drop(length: float, baseline: str, variant: str, baseline_grows: bool) -> float:
    ours, theirs = ARCHITECTURES[variant], ARCHITECTURES[baseline]
    executed = ours.executed_positions(length)
    beyond = length
    while ours.executed_positions(beyond) <= executed:
        beyond += ours.lengths.multiple_of
    gained = math.log(theirs.positions(beyond) / theirs.positions(length)) if baseline_grows else 0.0
    return min(0.0, gained - math.log(ours.executed_positions(beyond) / executed))


def locate(
    points: Sequence[ComparisonPoint], *, staircase: bool = False, drops: Sequence[float] = (), seed: int = 0
) -> Located:
    """Find the tipping point among observations.

    Args:
        points: At growing lengths.
        staircase: Whether cost may jump anywhere between two lengths.
        drops: For each point, how far the log-ratio may fall before the next one: see `step_drops`.
        seed: Of the generator that places crossings between two lengths.
    """
    if not points:
        return Located("undecided", notes=("no length gave a comparison",))
    replicates = np.stack([point.replicates() for point in points], axis=1)
    # Points have unlike noise, and their replicates come from the same seed: shuffling makes them independent.
    generator = np.random.default_rng(seed)
    replicates = generator.permuted(replicates, axis=0)
    # Beyond the longest length nothing is said.
    falls = np.array([*drops[:-1], 0.0]) if drops else np.zeros(len(points))
    share_always = float((replicates + falls > 0).all(axis=1).mean())
    share_ends_better = float((replicates[:, -1] > 0).mean())
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
    crossings = _last_crossings(logs, replicates, falls, staircase, generator)
    low, middle, high = np.exp(np.percentile(crossings, [2.5, 50, 97.5]))
    notes = ()
    if share_always > 1 - _CONFIDENCE:
        notes = ("at the shortest length the two are within noise",)
        if share_always > 0.5:
            return Located("always", notes=notes)
    verdict = "several crossings" if changes >= 2 else "crosses"
    return Located(verdict, float(middle), (float(low), float(high)), notes)


def _last_crossings(
    logs: np.ndarray, values: np.ndarray, falls: np.ndarray, staircase: bool, generator: np.random.Generator
) -> np.ndarray:
    """Return the log length at which each replicate comes up through zero for the last time, [replicates].

    A replicate that is never below zero crosses no later than the shortest length.

    Args:
        logs: Logarithms of the lengths, [points].
        values: Replicates of the log-ratio, [replicates, points].
        falls: How far it may fall right after each point, [points].
        staircase: Whether it may jump anywhere between two lengths.
        generator: Places crossings between two lengths.
    """
    last = len(logs) - 1
    behind, unsafe = _last_true(values <= 0), _last_true(values + falls <= 0)
    crossings = np.where(unsafe < 0, logs[0], logs[-1])
    rows = np.flatnonzero((unsafe >= 0) & (unsafe < last))
    left, right = np.maximum(behind[rows], 0), unsafe[rows] + 1
    crossings[rows] = generator.uniform(logs[left], logs[right])
    finite = np.isfinite(values[rows, left]) & np.isfinite(values[rows, right])
    if not staircase:
        smooth = finite & (right == left + 1)
        crossings[rows[smooth]] = _interpolated(logs, values[rows[smooth]], left[smooth], generator)
    return crossings


def _last_true(flags: np.ndarray) -> np.ndarray:
    """Return the last column that is true in each row, -1 where none is."""
    return np.where(flags.any(axis=1), flags.shape[1] - 1 - flags[:, ::-1].argmax(axis=1), -1)


def _interpolated(
    logs: np.ndarray, values: np.ndarray, left: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Return where each replicate crosses zero between `left` and the next length, [replicates].

    By a straight line or by a parabola through either neighbour, at random among those there are.
    """
    rows = np.arange(len(values))
    x0, x1, y0, y1 = logs[left], logs[left + 1], values[rows, left], values[rows, left + 1]
    straight = x0 - y0 * (x1 - x0) / (y1 - y0)
    neighbours = np.stack([left - 1, left + 2])
    there = (neighbours >= 0) & (neighbours < len(logs))
    neighbours = np.where(there, neighbours, left)
    there &= np.isfinite(values[rows, neighbours])
    # A choice among 1, 2 or 3: below the number of neighbours it is one of them, else the straight line.
    choice = generator.integers(there.sum(axis=0) + 1)
    second = (choice == 1) | ~there[0]
    chosen = np.where(second, neighbours[1], neighbours[0])
    curved = choice < there.sum(axis=0)
    x2 = np.where(curved, logs[chosen], x1 + 1.0)
    y2 = np.where(curved, values[rows, chosen], y1)
    return np.where(curved, _parabola_root(x0, x1, x2, y0, y1, y2, straight), straight)


def _parabola_root(
    x0: np.ndarray,
    x1: np.ndarray,
    x2: np.ndarray,
    y0: np.ndarray,
    y1: np.ndarray,
    y2: np.ndarray,
    straight: np.ndarray,
) -> np.ndarray:
    """Return the root between x0 and x1 of each parabola through three points.

    There is one because the values at both ends have opposite signs; `straight` is for a flat parabola.
    """
    slope = (y1 - y0) / (x1 - x0)
    bend = ((y2 - y1) / (x2 - x1) - slope) / (x2 - x0)
    # y0 + slope t + bend t (t - h) with t = x - x0, h = x1 - x0
    linear = slope - bend * (x1 - x0)
    square = linear**2 - 4 * bend * y0
    flat = (np.abs(bend) < 1e-12) | (square < 0)
    bend, square = np.where(flat, 1.0, bend), np.where(flat, 0.0, square)
    found = straight
    for sign in (-1, 1):
        root = x0 + (-linear + sign * np.sqrt(square)) / (2 * bend)
        found = np.where(~flat & (x0 <= root) & (root <= x1), root, found)
    return found
