"""What became of one workload between two runs: the ratio of its cost with an interval, and a verdict.

The two sides were timed apart, so nothing pairs their blocks: each side's centre is resampled on its own, and the
interval of the ratio holds the noise of both.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from tippingpoint.analysis.comparison import MEMORY_TOLERANCE, label_processes
from tippingpoint.analysis.sides import Side
from tippingpoint.intervals import REPLICATES, center, difference_replicates, interval
from tippingpoint.measurement import Failure, Measurement
from tippingpoint.models.catalog import architecture_of
from tippingpoint.units import format_count, format_items, format_length, format_percent
from tippingpoint.workload import Workload

# By metric: what a smaller and what a larger cost is called.
WORDS = {
    "latency": ("faster", "slower"),
    "throughput": ("faster", "slower"),
    "peak_memory": ("smaller", "larger"),
}
FAILING = ("now fails", "no longer fails", "fails in both")
CHANGES = ("faster", "slower", "smaller", "larger", "same", "undecided", *FAILING)
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of one workload.

    Attributes:
        workload: As it was on the new side.
        metric: "latency", "throughput" or "peak_memory"; None where one side could not be measured at all.
        verdict: One of `CHANGES`.
        old: Seconds per call (latency), seconds per sequence (throughput) or bytes (peak memory).
        new: The same on the new side.
        ratio: New over old.
        interval: Its 95 % interval; None where a single block says nothing about noise.
        batch_sizes: Old and new; they may differ for throughput alone.
        processes: How many timed processes stand behind the old and the new number.
        unlike: What shows that the two sides did not do the same work.
        failed: Kind of failure on the old and on the new side; None where it was measured.
    """

    workload: Workload
    metric: str | None
    verdict: str
    old: float | None = None
    new: float | None = None
    ratio: float | None = None
    interval: Interval | None = None
    batch_sizes: tuple[int, int]
    processes: tuple[int, int] = (0, 0)
    unlike: tuple[str, ...] = ()
    failed: tuple[str | None, str | None] = (None, None)

    def __str__(self) -> str:
        metric = f" {self.metric.replace('_', ' ')}" if self.metric else ""
        return f"{describe(self.workload)}{metric}: {self.verdict}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overall:
    """All workloads of one metric together.

    Attributes:
        metric: "latency", "throughput" or "peak_memory".
        workloads: How many ratios it is the geometric mean of.
        ratio: New over old.
        interval: Its 95 % interval.
        verdict: As for a workload.
    """

    metric: str
    workloads: int
    ratio: float
    interval: Interval
    verdict: str


def describe(workload: Workload) -> str:
    """Return a workload in a few words, its length with its unit."""
    length = format_length(workload.length, architecture_of(workload.subject).unit)
    return f"{workload.subject} at {length}, {workload.phase}, batch {workload.batch_size}"


def say_ratio(change: Change) -> str:
    """Return the ratio of a change with its interval, or nothing."""
    if change.ratio is None:
        return ""
    ends = f" (95 % {change.interval[0]:.3f} to {change.interval[1]:.3f})" if change.interval else ""
    return f", {change.ratio:.3f}{ends}"


def say_overall(one: Overall) -> str:
    """Return a geometric mean as a sentence."""
    cost = "bytes" if one.metric == "peak_memory" else "time"
    low, high = one.interval
    return (
        f"new over old {cost} {one.ratio:.3f} (95 % {low:.3f} to {high:.3f}): {one.verdict}, geometric mean of "
        f"{format_items(one.workloads, 'workload')}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """New over old cost of one workload.

    Attributes:
        metric: See `Change`.
        old: The latest measurement of the old side.
        new: The latest measurement of the new side.
        costs: Old and new, of all measurements of a side together; seconds or bytes.
        replicates: Of the ratio's logarithm, [replicates]; None where a single block shows no noise.
        processes: How many timed processes stand behind the old and the new cost.
    """

    metric: str
    old: Measurement
    new: Measurement
    costs: tuple[float, float]
    replicates: np.ndarray | None
    processes: tuple[int, int]

    @property
    def log(self) -> float:
        """Logarithm of the ratio."""
        return math.log(self.costs[1] / self.costs[0])

    def change(self, threshold: float) -> Change:
        """Return the verdict, with what shows that the two sides did not do the same work."""
        ends = None if self.replicates is None else _exp(interval(self.replicates))
        return Change(
            workload=self.new.workload,
            metric=self.metric,
            verdict="undecided" if ends is None else _verdict(self.metric, ends, threshold),
            old=self.costs[0],
            new=self.costs[1],
            ratio=math.exp(self.log),
            interval=ends,
            batch_sizes=(self.old.workload.batch_size, self.new.workload.batch_size),
            processes=self.processes,
            unlike=tuple(_unlike(self.old, self.new)),
        )


def time_ratio(metric: str, old: Sequence[Measurement], new: Sequence[Measurement]) -> Ratio:
    """Return the ratio of the time of two sides: per call for latency, per sequence for throughput.

    Replicates of what was timed in one session come from one seed. So rounds of several subjects are resampled
    alike, and what disturbed all of them at once does not average out in a geometric mean.
    """
    old_logs, new_logs = _log_seconds(metric, old), _log_seconds(metric, new)
    old_processes, new_processes = (label_processes(m.processes for m in found) for found in (old, new))
    old_seed, new_seed = (zlib.crc32(" ".join(sorted({m.session for m in found})).encode()) for found in (old, new))
    # The two sides are independent, even where a store is held against itself.
    new_seed += new_seed == old_seed
    replicates = difference_replicates(old_logs, new_logs, old_processes, new_processes, seeds=(old_seed, new_seed))
    return Ratio(
        metric=metric,
        old=old[-1],
        new=new[-1],
        costs=(_seconds(metric, old), _seconds(metric, new)),
        replicates=None if min(old_logs.size, new_logs.size) < 2 else replicates,
        processes=(len(set(old_processes)), len(set(new_processes))),
    )


def _seconds(metric: str, found: Sequence[Measurement]) -> float:
    """Return the seconds of all measurements together: as a measurement tells it, where there is only one."""
    if len(found) == 1:
        return found[0].latency_s / _sequences(metric, found[0])
    return math.exp(center(_log_seconds(metric, found), label_processes(m.processes for m in found)))


def _log_seconds(metric: str, found: Sequence[Measurement]) -> np.ndarray:
    """Return the logarithms of seconds per call, or per sequence for throughput, of all blocks, [blocks]."""
    return np.log(np.concatenate([m.per_call_s / _sequences(metric, m) for m in found]))


def _sequences(metric: str, measurement: Measurement) -> int:
    return measurement.workload.batch_size if metric == "throughput" else 1


def memory_ratio(metric: str, old: Sequence[Measurement], new: Sequence[Measurement]) -> Ratio:
    """Return the ratio of peak memory. It is read once: the latest reading counts, within its declared tolerance.

    The tolerance is that of the method, so it is the same in all workloads and does not average out.
    """
    old_memory, new_memory = old[-1].memory, new[-1].memory
    assert old_memory is not None, "measurements without memory were left out"
    assert new_memory is not None, "measurements without memory were left out"
    costs = float(old_memory.peak_bytes), float(new_memory.peak_bytes)
    return Ratio(
        metric=metric,
        old=old[-1],
        new=new[-1],
        costs=costs,
        replicates=math.log(costs[1] / costs[0]) + _tolerance(),
        processes=(1, 1),
    )


@cache
def _tolerance() -> np.ndarray:
    """Return a normal distribution whose 95 % interval is the tolerance of memory, as quantiles, [replicates]."""
    normal = NormalDist(0.0, MEMORY_TOLERANCE / NormalDist().inv_cdf(0.975))
    return np.array([normal.inv_cdf((number + 0.5) / REPLICATES) for number in range(REPLICATES)])


def _exp(ends: Interval) -> Interval:
    return math.exp(ends[0]), math.exp(ends[1])


def _verdict(metric: str, ends: Interval, threshold: float) -> str:
    """Return the verdict on a ratio; the band is symmetric for ratios, so that swapping the sides flips it."""
    low, high = ends
    less, more = WORDS[metric]
    if low > 1 + threshold:
        return more
    if high < 1 / (1 + threshold):
        return less
    return "same" if 1 / (1 + threshold) <= low and high <= 1 + threshold else "undecided"


def overall(ratios: Iterable[Ratio], threshold: float) -> list[Overall]:
    """Return the geometric mean of a metric's ratios, or nothing where none has an interval."""
    known = [ratio for ratio in ratios if ratio.replicates is not None]
    if not known:
        return []
    metric = known[0].metric
    replicates = np.mean([ratio.replicates for ratio in known if ratio.replicates is not None], axis=0)
    ends = _exp(interval(replicates))
    return [
        Overall(
            metric=metric,
            workloads=len(known),
            ratio=math.exp(float(np.mean([ratio.log for ratio in known]))),
            interval=ends,
            verdict=_verdict(metric, ends, threshold),
        )
    ]


def failures(before: Side, after: Side) -> Iterable[Change]:
    """Yield the workloads that one side or both could not measure at all."""
    for key, new in after.outcomes_of.items():
        sides = [before.outcomes_of.get(key, []), new]
        failed = [None if any(isinstance(o, Measurement) for o in side) else side[-1] for side in sides if side]
        kinds = [one.kind if isinstance(one, Failure) else None for one in failed]
        if len(kinds) == 2 and any(kinds):
            yield Change(
                workload=new[-1].workload,
                metric=None,
                verdict="fails in both" if all(kinds) else "now fails" if kinds[1] else "no longer fails",
                batch_sizes=(key.batch_size, key.batch_size),
                failed=(kinds[0], kinds[1]),
            )


def _unlike(old: Measurement, new: Measurement) -> Iterable[str]:
    """Yield what shows that two measurements of a workload did not do the same work."""
    if old.attention != new.attention:
        yield f"attention {old.attention} -> {new.attention}"
    if old.parameters != new.parameters:
        yield f"parameters {old.parameters:,} -> {new.parameters:,}"
    if old.executed_positions != new.executed_positions:
        yield f"executed positions {old.executed_positions:,} -> {new.executed_positions:,}"
    if old.flops and new.flops and old.flops.total != new.flops.total:
        share = format_percent(new.flops.total / old.flops.total - 1)
        yield f"FLOPs {format_count(old.flops.total)} -> {format_count(new.flops.total)} ({share})"
