"""What a person's own items cost, batched as they batch them: expected time, latency of an item, memory, padding.

items -> resample -> batches (`batching`) -> length and sequences of each -> price of each (`cost.CostCurve`)

Two things are not known exactly: the prices, because they are measured, and the items, which are a sample of what is
still to come. Both are drawn: items are resampled and put into batches again, and each time priced by replicates of
the measured curve (a bootstrap of both at once). The value that is reported prices the items as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tippingpoint.analysis.batching import Batching, together
from tippingpoint.analysis.cost import CostCurve
from tippingpoint.data import LengthData

# Resamples of the items; each is priced by an equal share of the replicates of a curve.
_RESAMPLES = 40
# Larger data are thinned to so many items.
_MOST_ITEMS = 50_000
# Fewer items are put into batches this often, each time in another order: one order of a few is chance.
_FEW_ITEMS = 2_000
_ORDERS = 20
# Where items have more lengths than this, prices are looked up at so many steps of equal ratio: less than 0.2 % each.
_MOST_PRICES = 4_000
PERCENTILES = (50, 95, 99)
# A cost is certainly less than another if it is so in this share of the replicates.
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: np.ndarray) -> Estimate:
        """Return the estimate that draws tell: the first one is the value itself."""
        low, high = np.percentile(draws[1:], [2.5, 97.5])
        return cls(float(draws[0]), float(low), float(high))

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends of the 95 % interval."""
        return self.low, self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadCost:
    """What one subject costs on a person's items.

    An item's latency is that of its batch: it has its result when the batch has. Waiting for a batch to fill does not
    count.

    Attributes:
        per_1000_s: Seconds that 1,000 items take.
        latency_s: Mean latency of an item.
        latency_p50_s: Latency that half of the items do not exceed.
        latency_p95_s: The same for 95 % of the items.
        latency_p99_s: The same for 99 % of the items.
        peak_bytes: Peak memory of the batch that needs most; None where memory was not measured. Its interval is of
            the measurement alone: a longer item may always come.
        median_bytes: Peak memory of a batch in the middle.
        padding: Share of what is computed that is padding: what the batches cost beyond their items, each at its own
            length in an equally full batch.
        padded: Share of the sequence, in the native unit, that is padding.
    """

    per_1000_s: Estimate
    latency_s: Estimate
    latency_p50_s: Estimate
    latency_p95_s: Estimate
    latency_p99_s: Estimate
    peak_bytes: Estimate | None
    median_bytes: Estimate | None
    padding: Estimate
    padded: float


@dataclass(frozen=True, eq=False)
class Epoch:
    """Items put into batches once; alike batches stand together as a kind.

    Attributes:
        lengths: At which each kind of batch runs, in the native unit, [kinds].
        sequences: How many sequences it has, [kinds].
        items: How many items it holds, [kinds].
        batches: How many such batches there are, [kinds].
        own: Lengths that items have themselves, growing, [lengths].
        own_counts: How many items have each, [lengths].
        padded: Share of the sequences, in the native unit, that is padding.
    """

    lengths: np.ndarray
    sequences: np.ndarray
    items: np.ndarray
    batches: np.ndarray
    own: np.ndarray
    own_counts: np.ndarray
    padded: float


def resamples(data: LengthData, reach: float, *, count: int = _RESAMPLES, seed: int = 0) -> list[np.ndarray]:
    """Return the lengths of the items as they are, and after them resamples of these, each [items].

    Args:
        data: The person's lengths.
        reach: Longest length that counts; longer items are left out.
        count: How many resamples.
        seed: Of the generator, so that every subject is priced on the same items.

    Raises:
        ValueError: If no item is within reach.
    """
    lengths, counts = np.array(data.lengths), np.array(data.counts)
    lengths, counts = lengths[lengths <= reach], counts[lengths <= reach]
    if not lengths.size:
        raise ValueError(f"no item is as short as {reach:g}")
    generator = np.random.default_rng(seed)
    total = int(counts.sum())
    shares = counts / total
    drawn = min(total, _MOST_ITEMS)
    # The data as they are, thinned evenly where they are many.
    ranks = (np.arange(drawn) + 0.5) / drawn * total
    found = [lengths[np.searchsorted(np.cumsum(counts), ranks, side="right").clip(max=len(lengths) - 1)]]
    return found + [np.repeat(lengths, generator.multinomial(drawn, shares)) for _ in range(count)]


def epochs(items: Sequence[np.ndarray], batching: Batching, *, seed: int = 0) -> list[Epoch]:
    """Return what a policy makes of items, and of their resamples.

    Args:
        items: As `resamples` returns them.
        batching: The policy.
        seed: Of the generators of the order.
    """
    return [_epoch(lengths, batching, np.random.default_rng([seed, number])) for number, lengths in enumerate(items)]


def _epoch(items: np.ndarray, batching: Batching, generator: np.random.Generator) -> Epoch:
    orders = _ORDERS if len(items) < _FEW_ITEMS and batching.kind != "one" else 1
    batches = together([batching.form(items, generator) for _ in range(orders)])
    lengths, length = np.unique(_stepped(batches.lengths), return_inverse=True)
    # Length, sequences and items of a batch as one whole number, because rows are slow to compare.
    most = int(batches.counts.max()) + 1
    kinds, count = np.unique((length * most + batches.sequences) * most + batches.counts, return_counts=True)
    own, own_counts = np.unique(_stepped(batches.items), return_counts=True)
    length, sequences, inside = kinds // most**2, kinds // most % most, kinds % most
    return Epoch(lengths[length], sequences, inside, count, own, own_counts, batches.padding)


def _stepped(lengths: np.ndarray) -> np.ndarray:
    """Return lengths; where they are too many to price each, rounded to steps of equal ratio between both ends."""
    if len(np.unique(lengths)) <= _MOST_PRICES:
        return lengths
    low, high = np.log(lengths.min()), np.log(lengths.max())
    step = (high - low) / _MOST_PRICES
    return np.clip(np.exp(low + step * np.round((np.log(lengths) - low) / step)), lengths.min(), lengths.max())


class Prices:
    """Replicates of what a batch costs at any of some lengths, looked up instead of interpolated again.

    Args:
        curve: Seconds for one sequence in a full batch, or bytes of a full batch.
        found: Epochs that will be priced.
    """

    def __init__(self, curve: CostCurve, found: Sequence[Epoch]) -> None:
        self._lengths = np.unique(np.concatenate([part for epoch in found for part in (epoch.lengths, epoch.own)]))
        self._replicates = curve.at(self._lengths)
        self._middle = np.median(self._replicates, axis=0, keepdims=True)

    def at(self, lengths: np.ndarray, number: int, of: int) -> np.ndarray:
        """Return the price at lengths, [replicates that belong to one epoch, lengths].

        Args:
            lengths: Some of those of the epochs.
            number: Of the epoch; 0 is the items as they are, which the median prices.
            of: How many epochs there are; the others share the replicates.
        """
        rows = self._replicates[number - 1 :: of - 1] if number else self._middle
        return rows[:, np.searchsorted(self._lengths, lengths)]


def draws(found: Sequence[Epoch], seconds: CostCurve, memory: CostCurve | None) -> dict[str, np.ndarray]:
    """Return every number of a `WorkloadCost` as draws: the value itself first, then replicates.

    Draws of several subjects on the same epochs belong together one by one, so they can be compared.

    Args:
        found: Of the items as they are, and of resamples.
        seconds: Seconds for one sequence in a full batch.
        memory: Bytes of a full batch.
    """
    prices = Prices(seconds, found)
    bytes_of = Prices(memory, found) if memory else None
    parts = [_times(epoch, prices, number, len(found)) for number, epoch in enumerate(found)]
    if bytes_of:
        for number, part in enumerate(parts):
            # The longest item that came is the longest there is: resampled, it would now and then be missing.
            sizes = bytes_of.at(found[0].lengths, number, len(found))
            part["peak_memory"] = sizes.max(axis=1)
            part["median_memory"] = at_percentiles(sizes, found[0].batches, (50,))[:, 0]
    return {name: centered(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def centered(values: np.ndarray) -> np.ndarray:
    """Return draws whose replicates lie around the value.

    Resampled items come twice and more often, and what sorts items by length pads those less: without this the
    interval would lie too low.
    """
    if len(values) > 1:
        values[1:] = np.maximum(0.0, values[1:] + values[0] - np.median(values[1:]))
    return values


def _times(epoch: Epoch, prices: Prices, number: int, of: int) -> dict[str, np.ndarray]:
    seconds = prices.at(epoch.lengths, number, of) * epoch.sequences
    items = epoch.items * epoch.batches
    total = seconds @ epoch.batches
    own = prices.at(epoch.own, number, of) @ epoch.own_counts
    packed = bool((epoch.sequences < epoch.items).any())
    found = {
        "per_item": total / items.sum(),
        "latency": seconds @ items / items.sum(),
        # Nothing is padded where items lie end to end, although a longer sequence costs more.
        "padding": np.zeros_like(total) if packed else np.maximum(0.0, 1 - own / total),
    }
    shares = at_percentiles(seconds, items, PERCENTILES)
    return found | {f"latency_p{percent}": shares[:, column] for column, percent in enumerate(PERCENTILES)}


def at_percentiles(values: np.ndarray, weights: np.ndarray, percents: Sequence[float]) -> np.ndarray:
    """Return the smallest value that a percentage of the weight does not exceed, [replicates, percents].

    Args:
        values: [replicates, kinds].
        weights: [kinds].
        percents: 0 to 100.
    """
    order = np.argsort(values, axis=1)
    reached = np.cumsum(weights[order], axis=1)
    # Sums of whole numbers are exact; a share of them is not.
    wanted = (np.array(percents) / 100 - 1e-9) * weights.sum()
    column = (reached[:, :, None] < wanted).sum(axis=1)
    return np.take_along_axis(np.take_along_axis(values, order, axis=1), column, axis=1)


def certainly_less(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether one cost is less than another beyond doubt.

    Args:
        first: Draws of a cost, the value itself first.
        second: Draws of the other cost, on the same epochs.
    """
    return float((first[1:] < second[1:]).mean()) >= _CONFIDENCE


def workload_cost(found: Mapping[str, np.ndarray], padded: float) -> WorkloadCost:
    """Return the cost that draws tell.

    Args:
        found: What `draws` returned.
        padded: Share of the sequences that is padding.
    """
    memory = {name: Estimate.of(found[name]) for name in ("peak_memory", "median_memory") if name in found}
    return WorkloadCost(
        per_1000_s=Estimate.of(1000 * found["per_item"]),
        latency_s=Estimate.of(found["latency"]),
        latency_p50_s=Estimate.of(found["latency_p50"]),
        latency_p95_s=Estimate.of(found["latency_p95"]),
        latency_p99_s=Estimate.of(found["latency_p99"]),
        peak_bytes=memory.get("peak_memory"),
        median_bytes=memory.get("median_memory"),
        padding=Estimate.of(found["padding"]),
        padded=padded,
    )
