"""What a subject costs on a person's own lengths: measured points, interpolated, never extrapolated."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tippingpoint.analysis.comparison import MEMORY_TOLERANCE, label_processes
from tippingpoint.intervals import FEWEST_FOR_BOOTSTRAP, center_replicates
from tippingpoint.measurement import Measurement, Outcome, is_best_batch
from tippingpoint.models.catalog import architecture_of
from tippingpoint.workload import Subject

# Replicates of a cost curve; enough for a 95 % interval, few enough for a million items.
_REPLICATES = 400


@dataclass(frozen=True)
class CostCurve:
    """Cost of one subject against length.

    Between two measured lengths the logarithm of the cost is interpolated against the logarithm of the
    positions the subject really executes, so a model that pads pays for its padding. Below the shortest length
    the cost of the shortest is taken; above the longest nothing is said.

    Attributes:
        subject: Whose cost.
        lengths: Measured lengths in the native unit, growing, [points].
        log_costs: Replicates of the logarithm of the cost, [replicates, points].
    """

    subject: Subject
    lengths: tuple[float, ...]
    log_costs: np.ndarray

    @cached_property
    def _log_positions(self) -> np.ndarray:
        executed = architecture_of(self.subject).executed_positions
        return np.log([executed(length) for length in self.lengths])

    @property
    def reach(self) -> float:
        """Longest length the curve says anything about."""
        return self.lengths[-1]

    def at(self, lengths: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return replicates of the cost, [replicates, lengths].

        Raises:
            ValueError: If a length is beyond the longest measured one.
        """
        if max(lengths) > self.reach:
            raise ValueError(f"{max(lengths):g} is beyond the longest measured length {self.reach:g}")
        architecture = architecture_of(self.subject)
        shortest = self.lengths[0]
        x = np.log([architecture.executed_positions(max(length, shortest)) for length in lengths])
        known, column = np.unique(self._log_positions, return_index=True)
        costs = self.log_costs[:, column]
        right = np.clip(np.searchsorted(known, x), 1, max(1, len(known) - 1))
        if len(known) == 1:
            return np.exp(np.repeat(costs, len(x), axis=1))
        left = right - 1
        share = np.clip((x - known[left]) / (known[right] - known[left]), 0.0, 1.0)
        return np.exp(costs[:, left] * (1 - share) + costs[:, right] * share)


def cost_curve(
    outcomes: Iterable[Outcome],
    subject: Subject,
    *,
    metric: str,
    phase: str,
    batch_size: Callable[[float], int] = lambda length: 1,
) -> CostCurve | None:
    """Return a subject's cost curve, or None if it was never measured.

    Costs are seconds per sequence, and bytes of the whole batch for "peak_memory".

    Args:
        outcomes: Of one environment.
        subject: Options written out.
        metric: "latency", "throughput" or "peak_memory".
        phase: "inference" or "training".
        batch_size: Length to the sequences per call of latency and peak memory; throughput is at the best batch size.
    """
    at_batch: dict[float, list[Measurement]] = {}
    at_best: dict[float, list[Measurement]] = {}
    for outcome in outcomes:
        workload = outcome.workload
        if not isinstance(outcome, Measurement) or (workload.subject, workload.phase) != (subject, phase):
            continue
        if is_best_batch(outcome):
            at_best.setdefault(workload.length, []).append(outcome)
        elif workload.batch_size == batch_size(workload.length):
            at_batch.setdefault(workload.length, []).append(outcome)
    chosen = {**at_batch, **at_best} if metric == "throughput" else at_batch
    columns = []
    for length, found in sorted(chosen.items()):
        if metric == "peak_memory":
            found = [measurement for measurement in found if measurement.memory]
        if found:
            columns.append((length, _log_cost_replicates(found, metric)))
    if not columns:
        return None
    return CostCurve(subject, tuple(length for length, _ in columns), np.stack([c for _, c in columns], axis=1))


def of_batches(outcomes: Iterable[Outcome], padded: bool) -> tuple[tuple[Outcome, ...], bool]:
    """Return the outcomes that price a person's batches, and whether they are what was asked for.

    Args:
        outcomes: Of any workloads.
        padded: Whether batches of several sequences hold padding.

    Returns:
        Outcomes whose batches of several sequences hold padding, or do not; where nothing was measured with padding,
        those without, and False.
    """
    outcomes = tuple(outcomes)
    fitting = tuple(o for o in outcomes if o.workload.padded == (padded and o.workload.batch_size > 1))
    if padded and not any(outcome.workload.padded for outcome in outcomes):
        return outcomes, all(outcome.workload.batch_size == 1 for outcome in outcomes)
    return fitting, True


def _log_cost_replicates(found: Sequence[Measurement], metric: str) -> np.ndarray:
    """Return replicates of the logarithm of the cost at one length, [replicates].

    Rounds of one length are resampled alike for every subject, which keeps them paired. An error that is drawn,
    because there are few rounds or a single reading, must be the subject's own.
    """
    subject, length = found[-1].workload.subject, float(found[-1].workload.length)
    if metric == "peak_memory":
        # A measurement that was made again at this length replaces the earlier one.
        memory = found[-1].memory
        assert memory is not None, "measurements without memory were left out"
        noise = np.random.default_rng(_seed(subject, length)).standard_normal(_REPLICATES)
        return np.log(memory.peak_bytes) + MEMORY_TOLERANCE / 1.96 * noise
    seconds = np.concatenate([measurement.per_call_s / measurement.workload.batch_size for measurement in found])
    processes = label_processes(measurement.processes for measurement in found)
    paired = seconds.size >= FEWEST_FOR_BOOTSTRAP and len(set(processes)) == 1
    seed = _seed(length) if paired else _seed(subject, length)
    return center_replicates(np.log(seconds), processes, seed=seed, count=_REPLICATES, same_places=paired)


def _seed(*parts: object) -> int:
    return zlib.crc32(" ".join(map(str, parts)).encode())
