"""A variant held against a baseline, length by length: the observations that tipping points rest on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tippingpoint.intervals import REPLICATES, center_replicates, interval
from tippingpoint.measurement import (
    BEST_BATCH,
    Failure,
    Measurement,
    Outcome,
    is_best_batch,
    paired_log_ratios,
    session_root,
)
from tippingpoint.workload import Subject

# Peak memory is read once; known allocations are measured within this share (tests/profiling).
MEMORY_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class ComparisonPoint:
    """What was seen at one length.

    Attributes:
        length: In the native unit.
        log_ratios: log(cost of baseline / cost of variant), one for each round; positive where the variant is
            better. A single value for what has no noise (peak memory).
        processes: For each round, which pair of processes ran it.
        tolerance: Half-width of the 95 % interval of a single value, on the scale of the logarithm.
        censored: +1 if only the baseline ran out of memory (the variant wins), -1 if only the variant did,
            0 otherwise.
    """

    length: float
    log_ratios: tuple[float, ...] = ()
    processes: tuple[int, ...] = ()
    tolerance: float = 0.0
    censored: int = 0

    def replicates(self) -> np.ndarray:
        """Return bootstrap replicates of the log-ratio, [count]; infinite where memory ran out."""
        if self.censored:
            return np.full(REPLICATES, self.censored * math.inf)
        return _replicates(self.log_ratios, self.processes, self.tolerance)

    @property
    def center(self) -> float:
        """Median of the log-ratio."""
        return float(np.median(self.replicates()))

    @property
    def spread(self) -> float:
        """Standard deviation of a normal distribution whose 95 % interval is as wide as that of the log-ratio."""
        low, high = interval(self.replicates())
        return (high - low) / (2 * 1.96)

    @property
    def ratio(self) -> float:
        """How many times better the variant is: median of baseline cost over variant cost."""
        return math.exp(self.center)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the ratio."""
        if self.censored:
            return math.exp(self.censored * math.inf), math.exp(self.censored * math.inf)
        return _interval(self.log_ratios, self.processes, self.tolerance)

    @property
    def sign(self) -> int:
        """+1 or -1 where the 95 % interval says who is better, 0 where it does not."""
        low, high = self.interval
        return 1 if low > 1 else -1 if high < 1 else 0


# A search asks for the same points again after every session.
@lru_cache(maxsize=4096)
def _replicates(log_ratios: tuple[float, ...], processes: tuple[int, ...], tolerance: float) -> np.ndarray:
    values = center_replicates(log_ratios, processes)
    if tolerance:
        values = values + tolerance / 1.96 * np.random.default_rng(0).standard_normal(values.size)
    values.flags.writeable = False
    return values


# Who is better at a point, a report asks several times.
@lru_cache(maxsize=4096)
def _interval(log_ratios: tuple[float, ...], processes: tuple[int, ...], tolerance: float) -> tuple[float, float]:
    low, high = np.percentile(_replicates(log_ratios, processes, tolerance), [2.5, 97.5], method="nearest")
    return math.exp(low), math.exp(high)


def comparison_points(
    outcomes: Iterable[Outcome],
    baseline: Subject,
    variant: Subject,
    *,
    metric: str,
    phase: str,
    batch_size: int | None = 1,
) -> list[ComparisonPoint]:
    """Return what is known of a pair at each length, shortest first.

    Only outcomes of one interleaved session are paired. Lengths at which either failed for another reason than
    memory, or both ran out of it, say nothing and are left out.

    Args:
        outcomes: Of one environment.
        baseline: The subject to beat.
        variant: The subject that may be better.
        metric: "latency", "throughput" or "peak_memory".
        phase: "inference" or "training".
        batch_size: Of latency and peak memory; None takes every length at the batch size it was measured with.
            Throughput is at each one's best batch size.
    """
    groups: dict[tuple[float, str], dict[Subject, Outcome]] = {}
    lost: dict[tuple[float, str], dict[Subject, Outcome]] = {}
    for outcome in outcomes:
        workload = outcome.workload
        if workload.phase != phase or workload.subject not in (baseline, variant):
            continue
        if isinstance(outcome, Failure) and is_best_batch(outcome):
            continue  # it failed in trying a larger batch, and stands where it was measured
        at = (workload.length, outcome.session)
        if outcome.session == session_root(outcome.session):
            # It failed in the pass that each subject runs alone, before any group was timed.
            lost.setdefault(at, {})[workload.subject] = outcome
        elif metric == "throughput" or (batch_size in (None, workload.batch_size) and not is_best_batch(outcome)):
            groups.setdefault(at, {})[workload.subject] = outcome
    found: dict[float, dict[str, ComparisonPoint]] = {}
    for (length, session), arms in groups.items():
        arms = {**lost.get((length, session_root(session)), {}), **arms}
        point = _point(length, arms.get(baseline), arms.get(variant), metric)
        if point:
            found.setdefault(length, {})[session] = point
    points = []
    for _, by_session in sorted(found.items()):
        chosen = list(by_session.values())
        if metric == "throughput":
            at_best = [p for session, p in by_session.items() if session.endswith(BEST_BATCH)]
            chosen = at_best or chosen
        points.append(_pooled(chosen))
    return points


def _pooled(points: list[ComparisonPoint]) -> ComparisonPoint:
    """Put several sessions at one length together; a length that once ran out of memory is censored."""
    censored = next((point for point in points if point.censored), None)
    if censored:
        return censored
    if len(points[0].log_ratios) == 1:
        return points[-1]
    return ComparisonPoint(
        points[0].length,
        tuple(value for point in points for value in point.log_ratios),
        label_processes(point.processes for point in points),
    )


def label_processes(sessions: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Return the process of every value of several sessions, end to end; every session has processes of its own."""
    labels = [(number, process) for number, processes in enumerate(sessions) for process in processes]
    order = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return tuple(order[label] for label in labels)


def _point(length: float, baseline: Outcome | None, variant: Outcome | None, metric: str) -> ComparisonPoint | None:
    out = [isinstance(arm, Failure) and arm.kind == "out_of_memory" for arm in (baseline, variant)]
    if isinstance(baseline, Measurement) and isinstance(variant, Measurement):
        if metric != "peak_memory":
            ratios, processes = paired_log_ratios(baseline, variant)
            return ComparisonPoint(length, tuple(ratios.tolist()), processes)
        if baseline.memory and variant.memory:
            ratio = math.log(baseline.memory.peak_bytes / variant.memory.peak_bytes)
            return ComparisonPoint(length, (ratio,), tolerance=MEMORY_TOLERANCE)
        return None
    if out[0] and isinstance(variant, Measurement):
        return ComparisonPoint(length, censored=1)
    if out[1] and isinstance(baseline, Measurement):
        return ComparisonPoint(length, censored=-1)
    return None
