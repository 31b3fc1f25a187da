"""95 % intervals of a centre from few, noisy observations, of one process or of several.

blocks        resampled within each process: the bootstrap of the median from 8 of them on, Student's t below;
              wider where neighbours in time are alike, because then there are fewer of them than there seem
processes     the centres of processes taken as observations themselves, in the same way
              the wider of the two is the interval
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np

REPLICATES = 2000
# Below this many values the bootstrap of a median cannot leave the observed range often enough to hold
# 95 %: with n samples the widest interval it can give covers 1 - 2**(1 - n). Student's t takes over.
# Above it, replicates are still too narrow by sqrt((n - 1) / n) and by the normal quantile where Student's
# belongs, together 1 + 1.7 / (n - 1) to first order (the expanded percentile interval of Hesterberg,
# arXiv:1411.5279). Without that the 95 % interval of 8 samples holds the truth in 90 % of cases.
FEWEST_FOR_BOOTSTRAP = 8
_TOO_NARROW = 1.7
# With more values than this the median of a resample is drawn as what it is, an order statistic.
_MANY = 64
# Fewer values do not tell drift from noise.
_FEWEST_FOR_DRIFT = 6
_MOST_DRIFT = 0.95

Values = Sequence[float] | np.ndarray


def center(values: Values, processes: Sequence[int] = ()) -> float:
    """Return the median; of several processes, the mean of their medians.

    Args:
        values: Observations, on the scale on which they are roughly symmetric (logarithms of times).
        processes: For each value, which process it comes from; none means that all come from one.
    """
    return float(_centers(_by_process(np.asarray(values, dtype=float), processes)).mean())


def center_replicates(
    values: Values,
    processes: Sequence[int] = (),
    *,
    seed: int = 0,
    count: int = REPLICATES,
    same_places: bool = False,
) -> np.ndarray:
    """Return replicates of the centre of a sample, [count].

    From 8 values on, medians of resamples, spread a little wider around the median to make up for the small
    sample. With fewer, the median cannot be resampled honestly: draws from Student's t around the mean. A
    single value has no spread of its own and is returned as it is, which is right only for quantities without
    noise, such as peak memory.

    Values of a process stand in the order of time: where neighbours are alike, as latencies are on a machine that
    drifts, the spread grows accordingly. (Ratios of one round are hardly ever so: pairing takes the drift away.)

    With several processes that is done within each of them, and once more with their centres as the values;
    the wider of the two spreads counts. (Resampling processes and their blocks at once counts the noise of
    blocks twice, and two or three processes cannot be resampled at all: docs/measuring.md has the coverage.)

    Args:
        values: Observations, on the scale on which they are roughly symmetric (logarithms of times).
        processes: For each value, which process it comes from; none means that all come from one.
        seed: Of the generator, so that the same data always give the same interval.
        count: Number of replicates.
        same_places: Whether another sample of this size and seed is resampled at the same places, which keeps rounds
            paired; it takes longer for many values.

    Raises:
        ValueError: If there are no values.
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError("no values to resample")
    parts = _by_process(values, processes)
    chances = _chances(tuple(part.size for part in parts), seed, count, same_places)
    within = _within(parts, chances)
    if len(parts) == 1:
        return within
    return max(within, _replicates(_centers(parts), chances[-1]), key=_spread)


def difference_replicates(
    first: Values,
    second: Values,
    first_processes: Sequence[int] = (),
    second_processes: Sequence[int] = (),
    *,
    seeds: tuple[int, int] = (0, 1),
    count: int = REPLICATES,
) -> np.ndarray:
    """Return replicates of the centre of `second` minus that of `first`, two samples that nothing pairs, [count].

    The rule is that of `center_replicates`. Where both have several processes and one has few, the difference of
    the processes' centres follows Student's t with Welch's degrees of freedom (Biometrika 34, 1947): two
    intervals of their own, put together, would be far too wide.

    Args:
        first: Observations, on the scale on which they are roughly symmetric.
        second: The same of the other sample.
        first_processes: For each value of `first`, its process.
        second_processes: For each value of `second`, its process.
        seeds: Of the generators of both.
        count: Number of replicates.

    Raises:
        ValueError: If either has no values.
    """
    sides = [
        _by_process(np.asarray(values, dtype=float), processes)
        for values, processes in ((first, first_processes), (second, second_processes))
    ]
    counts = [len(parts) for parts in sides]
    if min(counts) < 2 or min(counts) >= FEWEST_FOR_BOOTSTRAP:
        return center_replicates(second, second_processes, seed=seeds[1], count=count) - center_replicates(
            first, first_processes, seed=seeds[0], count=count
        )
    generators = [np.random.default_rng(seed) for seed in seeds]
    old, new = (
        _within(parts, [_chance(part.size, generator, count) for part in parts])
        for parts, generator in zip(sides, generators, strict=True)
    )
    centers = [_centers(parts) for parts in sides]
    errors = [float(values.var(ddof=1)) / values.size for values in centers]
    if sum(errors) == 0:
        return new - old
    freedom = sum(errors) ** 2 / sum(error**2 / (n - 1) for error, n in zip(errors, counts, strict=True))
    middle = float(centers[1].mean() - centers[0].mean())
    between = middle + np.sqrt(sum(errors)) * generators[1].standard_t(freedom, size=count)
    return max(new - old, between, key=_spread)


def half_width(values: Values, processes: Sequence[int] = (), *, count: int = REPLICATES) -> float:
    """Return the half-width of the 95 % interval of the centre of `values`; infinite below two values."""
    if len(values) < 2:
        return float("inf")
    return _spread(center_replicates(values, processes, count=count)) / 2


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of replicates."""
    low, high = np.percentile(replicates, [2.5, 97.5])
    return float(low), float(high)


def student_quantile(probability: float, freedom: float) -> float:
    """Return a quantile of Student's t (Abramowitz and Stegun, 26.7.5), within 1 % from 8 degrees of freedom on.

    Args:
        probability: Below the quantile, from 0.0001 to 0.9999.
        freedom: Degrees of freedom.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def _by_process(values: np.ndarray, processes: Sequence[int]) -> list[np.ndarray]:
    if len(set(processes)) < 2:
        return [values]
    labels = np.asarray(processes)
    return [values[labels == process] for process in np.unique(labels)]


def _within(parts: Sequence[np.ndarray], chances: Sequence[np.ndarray]) -> np.ndarray:
    """Return replicates of the mean of the processes' centres, as if the processes were all there are."""
    return np.mean(
        [_replicates(part, chance, drift_factor(part)) for part, chance in zip(parts, chances, strict=False)], axis=0
    )


def drift_factor(values: np.ndarray) -> float:
    """Return by how much drift widens the interval of a mean: sqrt((1 + r) / (1 - r)) of a first-order process.

    r is the correlation of neighbours, with its bias in small samples (Kendall, Biometrika 41, 1954) taken off. One
    that independent values show too (below 1 / sqrt(n)) is taken for none.
    """
    apart = values - values.mean()
    total = float((apart * apart).sum())
    if values.size < _FEWEST_FOR_DRIFT or total == 0:
        return 1.0
    r = float((apart[1:] * apart[:-1]).sum()) / total
    if r <= 1 / math.sqrt(values.size):
        return 1.0
    r = min(r + (1 + 4 * r) / values.size, _MOST_DRIFT)
    # A sample that steps from one level to another holds no fewer than two independent values.
    return min(math.sqrt((1 + r) / (1 - r)), math.sqrt(values.size / 2))


def _centers(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([_median(np.sort(part)) for part in parts])


def _median(ordered: np.ndarray) -> float:
    """Return the median of values in order: that of NumPy, which takes several times as long for a few."""
    half = ordered.size // 2
    return (ordered[half - 1 + ordered.size % 2] + ordered[half]) / 2


# Most samples of a store have one of a few sizes.
@lru_cache(maxsize=32)
def _chances(sizes: tuple[int, ...], seed: int, count: int, same_places: bool) -> tuple[np.ndarray, ...]:
    """Return what chance decides about the processes of a sample, and about their centres where there are several."""
    generator = np.random.default_rng(seed)
    found = [_chance(size, generator, count, same_places) for size in sizes]
    if len(sizes) > 1:
        found.append(_chance(len(sizes), generator, count))
    for each in found:
        each.flags.writeable = False
    return tuple(found)


def _chance(size: int, generator: np.random.Generator, count: int, same_places: bool = False) -> np.ndarray:
    """Return what chance decides about a sample, whatever its values are.

    Returns:
        From 8 values on, places in resamples, [count, size], or of the order statistics that are their medians,
        [count, 2]; with fewer, how many standard errors the mean is off, [count].
    """
    if size == 1:
        return np.zeros(count)
    if size < FEWEST_FOR_BOOTSTRAP:
        return generator.standard_t(size - 1, size=count)
    if size > _MANY and not same_places:
        return _middle_places(size, generator, count)
    # In as few bytes as hold them, because they are kept.
    return generator.integers(size, size=(count, size)).astype(np.min_scalar_type(size))


def _replicates(values: np.ndarray, chance: np.ndarray, wider: float = 1.0) -> np.ndarray:
    """Return replicates of the centre of independent values, their spread made `wider`."""
    if values.size >= FEWEST_FOR_BOOTSTRAP:
        order = np.argsort(values)
        ordered = values[order]
        places = chance if chance.shape[1] == 2 else _middle_ranks(order, chance)
        medians = (ordered.take(places[:, 0]) + ordered.take(places[:, 1])) / 2
        middle = _median(ordered)
        wider *= 1 + _TOO_NARROW / (values.size - 1)
        return middle + wider * (medians - middle)
    if values.size == 1:
        return np.full(len(chance), values[0])
    error = values.std(ddof=1) / np.sqrt(values.size)
    return values.mean() + wider * error * chance


def _middle_ranks(order: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """Return between which sorted values the median of each resample lies, [resamples, 2].

    Ranks are sorted instead of values: small integers, which NumPy sorts by their digits.

    Args:
        order: Place of each value when they are sorted, [values].
        picks: Places of the values that each resample picks, [resamples, values].
    """
    ranks = np.empty(order.size, dtype=np.int16 if order.size < 2**15 else np.int64)
    ranks[order] = np.arange(order.size)
    half = order.size // 2
    return np.sort(ranks.take(picks), axis=1)[:, [half - 1 + order.size % 2, half]]


def _middle_places(size: int, generator: np.random.Generator, count: int) -> np.ndarray:
    """Return between which sorted values the medians of resamples lie, without making the resamples, [count, 2].

    A resample picks the places n U of sorted values, with n uniform U; its median is at the median of these, which is
    distributed as Beta (David and Nagaraja, Order Statistics, 2003, section 2.1). Of an even number the median lies
    between two order statistics; given the lower one, the upper one is the smallest of n / 2 uniform above it.
    """
    half = size // 2
    if size % 2:
        middle = (size * generator.beta(half + 1, half + 1, size=count)).astype(int)
        return np.stack([middle, middle], axis=1)
    lower = generator.beta(half, half + 1, size=count)
    upper = lower + (1 - lower) * generator.beta(1, half, size=count)
    # Rounding may bring the upper one to 1.
    return np.minimum((size * np.stack([lower, upper], axis=1)).astype(int), size - 1)


def _spread(replicates: np.ndarray) -> float:
    low, high = interval(replicates)
    return high - low
