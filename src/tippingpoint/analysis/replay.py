"""What a person's real batches took, beside what measurements at single lengths predict for the same batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tippingpoint.analysis.batching import Batches, Batching
from tippingpoint.analysis.workload_cost import Estimate, at_percentiles
from tippingpoint.data import LengthData
from tippingpoint.machine import Environment
from tippingpoint.measurement import Failure, Sample
from tippingpoint.workload import Subject

# Resamples of the batches.
_REPLICATES = 2000
# Share of the cores' time that others may take before it is said.
_MUCH_TAKEN = 0.05


@dataclass(frozen=True, slots=True)
class ReplayBatch:
    """A batch to run.

    Attributes:
        length: At which it runs, in the native unit.
        lengths: Of its sequences; shorter ones are padded.
        items: How many items it holds: as many as sequences, or more where they are packed. None for an anchor: a
            full batch at a length that was measured, which tells whether the machine is as fast as it was then.
    """

    length: float
    lengths: tuple[float, ...]
    items: int

    @property
    def padded(self) -> bool:
        """Whether a sequence is shorter than the batch."""
        return min(self.lengths) < self.length


def batches_to_run(batches: Batches) -> list[ReplayBatch]:
    """Return batches one by one."""
    return [
        # Packed items are one sequence, which nothing pads.
        ReplayBatch(float(length), tuple(own.tolist()) if len(own) == sequences else (float(length),), len(own))
        for own, sequences, length in zip(batches.parts(), batches.sequences, batches.lengths, strict=True)
    ]


def seconds_per_item(seconds: np.ndarray, items: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the mean over items, with the interval of batches drawn again, whole.

    Args:
        seconds: That each batch took, [batches].
        items: That it held, [batches].
        seed: Of the generator.
    """
    totals = _resampled(np.stack([seconds, items]), seed)
    return Estimate.of(np.concatenate([[seconds.sum() / items.sum()], totals[0] / totals[1]]))


def _resampled(values: np.ndarray, seed: int) -> np.ndarray:
    """Return sums over batches that were drawn again, [rows, replicates].

    Args:
        values: [rows, batches].
        seed: Of the generator.
    """
    count = values.shape[1]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_REPLICATES)
    return values @ drawn.T


@dataclass(frozen=True, eq=False, kw_only=True)
class Replayed:
    """One subject's part of a replay.

    Attributes:
        subject: Options written out.
        batches: Those that it ran, in order.
        samples: What each of them took.
        anchors: What full batches at a measured length took in between.
        peak_bytes: Most memory that the most demanding batches of the epoch took; None if that failed.
        memory_method: How it was read.
        attention: What really ran in them.
        notes: What the reader of its numbers should know.
        failure: Why it ran no further, or not at all.
        prices: What each batch is predicted to take in seconds, from single lengths, [replicates, batches]; None
            where nothing was measured. Batches longer than what was measured have no price and stand in no column.
        priced: Which of the batches have a price, [batches]; None where none has.
        anchor_price: What an anchor is predicted to take in seconds: what that length did take; None without one.
        predicted_peak: Predicted for the same batches as `peak_bytes`.
    """

    subject: Subject
    batches: tuple[ReplayBatch, ...] = ()
    samples: tuple[Sample, ...] = ()
    anchors: tuple[Sample, ...] = ()
    peak_bytes: int | None = None
    memory_method: str = ""
    attention: str = ""
    notes: tuple[str, ...] = ()
    failure: Failure | None = None
    prices: np.ndarray | None = field(default=None, repr=False)
    priced: np.ndarray | None = field(default=None, repr=False)
    anchor_price: float | None = None
    predicted_peak: Estimate | None = None

    @cached_property
    def seconds(self) -> np.ndarray:
        """Seconds that each batch took, [batches]."""
        return np.array([sample.per_call_s for sample in self.samples])

    @cached_property
    def items(self) -> np.ndarray:
        """Items that each batch held, [batches]."""
        return np.array([batch.items for batch in self.batches])

    @property
    def per_1000_s(self) -> Estimate | None:
        """Seconds that 1,000 items took, with the interval that other batches of the same data would give."""
        return seconds_per_item(1000 * self.seconds, self.items) if self.samples else None

    def latency_s(self, percent: float) -> float | None:
        """Return the latency that a percentage of the items does not exceed: each waits for its whole batch."""
        return _percentile(self.seconds, self.items, percent) if self.samples else None

    @property
    def predicted_per_1000_s(self) -> Estimate | None:
        """Predicted for the same batches, with the interval of the measurements; None if one has no price."""
        if self.prices is None or self.priced is None or not self.priced.all():
            return None
        draws = 1000 * self.prices.sum(axis=1) / self.items.sum()
        return Estimate.of(np.concatenate([[np.median(draws)], draws]))

    def predicted_latency_s(self, percent: float) -> float | None:
        """Return what `latency_s` is predicted to be; None if a batch has no price."""
        if self.prices is None or self.priced is None or not self.priced.all():
            return None
        return _percentile(np.median(self.prices, axis=0), self.items, percent)

    @cached_property
    def difference(self) -> Estimate | None:
        """Predicted over observed, less 1, on batches that have a price; the interval is of both together.

        Batches are drawn again with what was predicted for them, so that their lengths do not add to it. A machine
        that has become faster or slower between the measurements and the replay is in the difference, and not in its
        interval.
        """
        if self.prices is None or self.priced is None:
            return None
        predicted, observed = np.median(self.prices, axis=0), self.seconds[self.priced]
        sums = _resampled(np.stack([predicted, observed]), 0)
        errors = self.prices.sum(axis=1) / predicted.sum()
        errors = np.random.default_rng(1).choice(errors, size=_REPLICATES)
        value = predicted.sum() / observed.sum()
        return Estimate.of(np.concatenate([[value], sums[0] / sums[1] * errors]) - 1)

    @property
    def typical_difference(self) -> float | None:
        """The same of a batch in the middle, batches weighed by what they are predicted to cost.

        Measurements at single lengths are medians, and a sum is no median: where others take time now and then, real
        batches take longer on the whole and not in the middle.
        """
        if self.prices is None or self.priced is None:
            return None
        predicted = np.median(self.prices, axis=0)
        return _percentile(predicted / self.seconds[self.priced], predicted, 50) - 1

    @property
    def slowdown(self) -> float | None:
        """How many times as long an anchor took as when its length was measured: the machine, not the prediction."""
        if not self.anchors or self.anchor_price is None:
            return None
        return float(np.median([sample.per_call_s for sample in self.anchors])) / self.anchor_price

    @property
    def difference_as_fast(self) -> float | None:
        """The difference of a batch in the middle if the machine had stayed as fast as it was then."""
        if self.typical_difference is None or self.slowdown is None:
            return None
        return (1 + self.typical_difference) * self.slowdown - 1

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the numbers may not be trusted."""
        found = [sample.conditions for sample in self.samples if sample.conditions is not None]
        cores = sum(each.cores_s or 0 for each in found)
        taken = sum((each.others_s or 0) + (each.steal_s or 0) for each in found)
        lines = []
        if cores and taken > _MUCH_TAKEN * cores:
            lines.append(f"others took {100 * taken / cores:.0f} % of the cores' time: rerun on a quiet machine")
        throttled = sum(bool(each.throttled) for each in found)
        if throttled:
            lines.append(
                f"the device was slowed by heat, power or a quota during {throttled} of {len(found)} batches"
            )
        return tuple(lines)


def _percentile(values: np.ndarray, weights: np.ndarray, percent: float) -> float:
    """Return the smallest value that a percentage of the weight does not exceed."""
    return float(at_percentiles(values[None], weights, (percent,))[0, 0])


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Replay:
    """A person's real batches, run for several subjects, each batch for all of them in turn.

    Attributes:
        data: The lengths.
        batching: How items are batched.
        phase: "inference" or "training".
        device: "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" or "float16".
        size: "base", "small" or "tiny".
        environment: Where it ran.
        epoch_batches: How many batches the data make.
        padded: Share of the sequences of all these batches, in the native unit, that is padding.
        stop_reason: Why no more batches were run.
        subjects: In the order in which they were asked for.
        notes: What the reader should know about all of them.
    """

    data: LengthData
    batching: Batching
    phase: str
    device: str
    dtype: str
    size: str
    environment: Environment
    epoch_batches: int
    padded: float
    stop_reason: str
    subjects: tuple[Replayed, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"replay of {self.data.count:,} items, {self.batching.describe(self.data.unit)}: {self.stop_reason}"]
        for each in self.subjects:
            observed, predicted, off = each.per_1000_s, each.predicted_per_1000_s, each.difference
            said = f"{observed.value:.4g} s per 1,000 items" if observed else ""
            if each.failure:
                said += f"{'; then ' if said else ''}{each.failure.kind.replace('_', ' ')}"
            if off:
                total = f"{predicted.value:.4g} s" if predicted else "in part"
                said += f", predicted {total} ({100 * off.value:+.1f} %)"
            lines.append(f"  {each.subject!s:<32} {said}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from tippingpoint.report.notebook import as_html

        return as_html(self)


def most_demanding(batches: Sequence[ReplayBatch]) -> list[ReplayBatch]:
    """Return the batches that could need most memory, shortest first: the longest, and those that hold most.

    What a batch needs grows with its length, with length times sequences (activations), and where scores are kept,
    with length squared times sequences.
    """
    largest = {
        max(batches, key=lambda batch: (batch.length, len(batch.lengths))),
        max(batches, key=lambda batch: (len(batch.lengths) * batch.length, batch.length)),
        max(batches, key=lambda batch: (len(batch.lengths) * batch.length**2, batch.length)),
    }
    return sorted(largest, key=lambda batch: batch.length)
