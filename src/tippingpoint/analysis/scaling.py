"""How cost grows with length, depth and width: work is counted, rates are fitted, time is work times rates.

work    floating-point operations and bytes of each component of one call. At lengths beyond windows and landmarks
        each operator's are a + b N + c N^2 in executed positions N, and their sum is linear in depth; they are
        counted at a few lengths and depths (no clock is read) and followed from there. Of an operator's bytes,
        those beyond twice the last cache's size spill: they cross the memory bus, and their share grows with N.
rates   seconds for each operation of a matrix component, for each byte of element-wise work within the cache, for
        each byte that spills, and for each layer whatever its size. They begin at what this machine can do at
        best, and measured times pull them away from there: what the times cannot tell apart stays in the proportion
        of the peaks.
interval from times that were held out, see `ScalingModel`.

Outside the measured lengths the result is called "extrapolated", always.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tippingpoint.errors import AnswerError
from tippingpoint.machine import Environment, Peaks
from tippingpoint.measurement import Flops, Measurement
from tippingpoint.units import parse_bytes

# What operators are sorted into; all but the last multiply matrices.
WORK = ("convolution", "linear", "attention", "element-wise")
# What time is made of: operations of the first three, bytes of the fourth within the cache, bytes of all that spill,
# and time for each layer whatever its size.
COMPONENTS = (*WORK, "memory", "overhead")

# By the beginning of an operator's name, underscores aside; what is not here is element-wise.
_OPERATORS = (
    ("linear", ("mm", "addmm", "linear", "mv", "addmv", "scaled_mm")),
    ("attention", ("bmm", "baddbmm", "scaled_dot_product", "flash_attention", "efficient_attention")),
    ("convolution", ("convolution", "mkldnn_convolution", "cudnn_convolution", "conv1d", "conv2d")),
)
# Seconds that a layer may take whatever its size, to begin with: some tens of operators, ten microseconds each.
_LAYER_S = 3e-4
# A rate that is off by a factor e costs as much as times that are off by this share.
_TRUST = 0.06
# Times at the longest length count this many times as much as at half of it: rates change where a working set
# leaves a cache, and what is extrapolated begins at the longest.
_GROWTH_OF_WEIGHT = 4.0
_STEPS = 60
# Counts that a polynomial meets this well are exact; those that it misses by less than the second follow it.
_EXACT = 1e-9
_CLOSE = 0.005
# Rates may change by this share in a doubling without showing in the doublings before: no spread is smaller.
_LEAST_SPREAD = 0.03
# Two readings of the same peak differ by this much, so that no interval of it is narrower.
_MEMORY_NOISE = 0.02
_T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


@dataclass(frozen=True, slots=True)
class Polynomial:
    """a + b N + c N^2, never negative."""

    a: float
    b: float = 0.0
    c: float = 0.0

    def __call__(self, positions: float) -> float:
        """Return the value at N = `positions`."""
        return max(0.0, self.a + self.b * positions + self.c * positions * positions)

    @property
    def is_linear(self) -> bool:
        """Whether no part of it grows with the square."""
        return abs(self.c) <= _EXACT * max(abs(self.b), abs(self.a))

    @classmethod
    def through(cls, positions: Sequence[float], values: Sequence[float], *, degree: int = 2) -> Polynomial:
        """Return the polynomial that counts follow.

        Where four counts or more lie on a quadratic exactly, that is it. Otherwise (blocks that are half full,
        readings of memory) the lowest degree that misses none by more than 0.5 % is taken: a quadratic through
        noise would be nothing but noise at a thousand times the length.

        Args:
            positions: Distinct, at least one.
            values: One for each.
            degree: The highest to try.
        """
        x, y = np.asarray(positions, dtype=float), np.asarray(values, dtype=float)
        scale = float(x.max())
        powers = np.vander(x / scale, 3, increasing=True)
        fits = []
        for terms in range(1, min(degree + 1, x.size) + 1):
            # Relative residuals, so that short inputs count as much as long ones.
            weights = 1 / np.maximum(np.abs(y), 1e-300)
            found, *_ = np.linalg.lstsq(powers[:, :terms] * weights[:, None], y * weights, rcond=None)
            missed = float(np.max(np.abs(powers[:, :terms] @ found - y) * weights, initial=0.0))
            fits.append((missed, found))
        exact = next((found for missed, found in fits if missed < _EXACT), None)
        if exact is None or (exact.size == x.size and x.size > 1):
            # Work that ends up falling with the length would be noise, too.
            growing = [(missed, found) for missed, found in fits if found.size == 1 or found[-1] >= 0]
            exact = next((found for missed, found in growing if missed < _CLOSE), growing[-1][1])
        a, b, c = (*exact, 0.0, 0.0)[:3]
        return cls(float(a), float(b) / scale, float(c) / scale**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What one call takes at one length and depth, counted and not timed.

    Attributes:
        positions: Executed positions of one sequence.
        layers: Depth; None where the architecture is no plain stack.
        flops: By kind of work, [work].
        bytes: Read and written by the operators of each kind, [work].
        spilled: Of these, what the cache cannot serve, [work].
        peak_bytes: Peak memory; None where it was not read.
    """

    positions: int
    layers: int | None
    flops: tuple[float, ...]
    bytes: tuple[float, ...]
    spilled: tuple[float, ...]
    peak_bytes: float | None = None

    @property
    def work(self) -> np.ndarray:
        """What rates are multiplied with, [components]."""
        within = self.bytes[3] - self.spilled[3]
        return np.array([*self.flops[:3], within, sum(self.spilled), float(self.layers or 1)])

    def roofline_s(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Return the seconds of a machine that computes and copies at its peaks.

        Each kind of work takes its operations at the rate of matrix products or its bytes at the rate of copying,
        whichever is longer.
        """
        return sum(max(f / flops_per_s, b / bytes_per_s) for f, b in zip(self.flops, self.bytes, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedCall:
    """What one call was seen to do at one length and depth: where counts come from.

    Attributes:
        positions: Executed positions of one sequence.
        layers: Depth; None where the architecture is no plain stack.
        flops: What the call's operators did.
        peak_bytes: Peak memory; None where it was not read.
    """

    positions: int
    layers: int | None
    flops: Flops
    peak_bytes: float | None = None

    @classmethod
    def of(cls, measurement: Measurement, layers: int | None) -> CountedCall | None:
        """Return what a measurement saw; None where its record does not tell what operators accessed."""
        if measurement.flops is None or not measurement.flops.bytes_by_call:
            return None
        peak = measurement.memory.peak_bytes if measurement.memory else None
        return cls(positions=measurement.executed_positions, layers=layers, flops=measurement.flops, peak_bytes=peak)

    def count(self, cache_bytes: float) -> Count:
        """Return the work, given the size of the last cache."""
        flops, accessed, spilled = _nothing(), _nothing(), _nothing()
        for operator, number in self.flops.by_operator:
            flops[kind_of(operator)] += number
        for operator, sizes in self.sizes.items():
            accessed[kind_of(operator)] += float(sizes.sum())
            spilled[kind_of(operator)] += _spilled(sizes, cache_bytes)
        return Count(
            positions=self.positions,
            layers=self.layers,
            flops=tuple(flops.values()),
            bytes=tuple(accessed.values()),
            spilled=tuple(spilled.values()),
            peak_bytes=self.peak_bytes,
        )

    @property
    def sizes(self) -> dict[str, np.ndarray]:
        """Bytes that each call of an operator accesses, ascending, by operator."""
        found: dict[str, list[float]] = {}
        for operator, size, calls in sorted(self.flops.bytes_by_call):
            found.setdefault(operator, []).extend([float(size)] * calls)
        return {operator: np.array(sizes) for operator, sizes in found.items()}


def _spilled(accessed: np.ndarray, cache_bytes: float, times: np.ndarray | float = 1.0) -> float:
    """Return bytes that cross the memory bus: what calls access beyond twice the cache.

    Half of it is mostly read and half written; what is read was written just before and is found in the cache if it
    fits there.
    """
    return float((np.maximum(0.0, accessed - 2 * cache_bytes) * times).sum())


def _nothing() -> dict[str, float]:
    """Return a sum to begin with for each kind of work."""
    return dict.fromkeys(WORK, 0.0)


def kind_of(operator: str) -> str:
    """Return the kind of work that an operator does, one of `WORK`."""
    for kind, beginnings in _OPERATORS:
        if operator.lstrip("_").startswith(beginnings):
            return kind
    return "element-wise"


@dataclass(frozen=True)
class Extent:
    """The work of a subject at any length and depth, from calls at a few.

    Where two calls of an operator are alike at one length and not at another, the one that accesses more is taken to
    be the same one at every length.

    Args:
        calls: At one depth, or at two; at each of them best at four lengths or more.
        cache_bytes: Size of the last cache.

    Raises:
        AnswerError: If there is none.
    """

    calls: tuple[CountedCall, ...]
    cache_bytes: float

    def __post_init__(self) -> None:
        if not self.calls:
            raise AnswerError("no work was counted, so there is nothing to extrapolate")

    @cached_property
    def _depths(self) -> tuple[tuple[int | None, _AtDepth], ...]:
        """The shallowest and the deepest."""
        depths = sorted({call.layers for call in self.calls}, key=lambda depth: depth or 0)
        return tuple(
            (depth, _AtDepth([call for call in self.calls if call.layers == depth], self.cache_bytes))
            for depth in dict.fromkeys((depths[0], depths[-1]))
        )

    def at(self, positions: int, layers: int | None) -> Count:
        """Return the work of one call.

        Args:
            positions: Executed positions.
            layers: Depth; ignored where calls were counted at one depth only.
        """
        (low, below), (high, above) = self._depths[0], self._depths[-1]
        first, second = below.at(positions), above.at(positions)
        reach = (layers - low) / (high - low) if layers and low and high and high != low else 0.0

        def between(one: float, other: float) -> float:
            return max(0.0, one + reach * (other - one))

        def each(one: Sequence[float], other: Sequence[float]) -> tuple[float, ...]:
            return tuple(between(*pair) for pair in zip(one, other, strict=True))

        known = first.peak_bytes is not None and second.peak_bytes is not None
        return Count(
            positions=positions,
            layers=layers,
            flops=each(first.flops, second.flops),
            bytes=each(first.bytes, second.bytes),
            spilled=each(first.spilled, second.spilled),
            peak_bytes=between(first.peak_bytes or 0.0, second.peak_bytes or 0.0) if known else None,
        )


class _AtDepth:
    """The same at one depth: a polynomial for the operations of each kind, and one for the bytes of each call."""

    def __init__(self, counted: Sequence[CountedCall], cache_bytes: float) -> None:
        at = {call.positions: call for call in counted}
        ordered = [at[positions] for positions in sorted(at)]
        counts = [call.count(cache_bytes) for call in ordered]
        self._layers, self._cache_bytes = ordered[0].layers, cache_bytes
        places = sorted(at)
        self._flops = [Polynomial.through(places, [count.flops[kind] for count in counts]) for kind in range(4)]
        sizes = [call.sizes for call in ordered]
        self._calls = {
            operator: _alike(places, [each.get(operator, np.zeros(0)) for each in sizes])
            for operator in sorted(set().union(*sizes))
        }
        peaks = [count.peak_bytes for count in counts if count.peak_bytes is not None]
        # What is never read or written cannot be held: readings of memory are noisy, and counts are not.
        grows = any(not calls.total.is_linear for alike in self._calls.values() for calls in alike)
        self._peak = Polynomial.through(places, peaks, degree=2 if grows else 1) if len(peaks) == len(at) else None

    def at(self, positions: int) -> Count:
        accessed, spilled = _nothing(), _nothing()
        for operator, alike in self._calls.items():
            for calls in alike:
                total, times = calls.total(positions), calls.times(positions)
                accessed[kind_of(operator)] += total
                if times:
                    spilled[kind_of(operator)] += _spilled(np.array([total / times]), self._cache_bytes, times)
        return Count(
            positions=positions,
            layers=self._layers,
            flops=tuple(polynomial(positions) for polynomial in self._flops),
            bytes=tuple(accessed.values()),
            spilled=tuple(spilled.values()),
            peak_bytes=None if self._peak is None else self._peak(positions),
        )


@dataclass(frozen=True, slots=True)
class _Calls:
    """Calls of an operator that access the same number of bytes.

    Attributes:
        total: Bytes of all of them, at a length.
        times: How many they are, at a length.
    """

    total: Polynomial
    times: Polynomial


def _alike(places: Sequence[int], sizes: Sequence[np.ndarray]) -> list[_Calls]:
    """Return an operator's calls, those that are alike together.

    Calls are alike if they access the same number of bytes at every length. Where their number changes with the
    length (blocks one after the other), all of them are taken for alike.
    """
    counts = [each.size for each in sizes]
    if len(set(counts)) > 1:
        totals = [float(each.sum()) for each in sizes]
        return [_Calls(Polynomial.through(places, totals), Polynomial.through(places, counts))]
    columns, times = np.unique(np.array(sizes).T, axis=0, return_counts=True)
    return [
        _Calls(Polynomial.through(places, column * number), Polynomial(float(number)))
        for column, number in zip(columns, times, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A measured length that a fit on shorter ones had to predict.

    Attributes:
        positions: Executed positions that were predicted.
        fitted_to: The longest of those that were fitted.
        predicted: Seconds.
        measured: Seconds.
    """

    positions: int
    fitted_to: int
    predicted: float
    measured: float

    @property
    def log_error(self) -> float:
        """Logarithm of predicted over measured."""
        return math.log(self.predicted / self.measured)

    @property
    def error(self) -> float:
        """Share by which the prediction was off."""
        return abs(self.predicted / self.measured - 1)

    @property
    def doublings(self) -> float:
        """How far it was extrapolated, in doublings."""
        return math.log2(self.positions / self.fitted_to)


@dataclass(frozen=True, kw_only=True)
class ScalingModel:
    """Rates of one subject on one machine.

    The interval comes from hold-out alone. Of n measured lengths, fits on the shortest 3, 4 ... n - 1 predict each
    longer one (of two or three lengths: a fit on all but the longest). An error in the logarithm, divided by one
    plus the doublings between the longest fitted and the predicted length, is an error for each doubling; `spread`
    is the root of their mean square, and no less than what the fit on all lengths misses, nor than 3 %. The 95 %
    interval at a distance of D doublings is the estimate times and over exp(t (1 + D) spread), where t is Student's
    quantile for as many degrees of freedom as there were fits. D counts doublings of length outside the measured
    ones, and of depth and width away from the measured ones. Nothing is known of a cache, a kernel or a memory that
    changes beyond the measured lengths.

    Attributes:
        rates: Seconds for each unit of work, [components]; see `Count.work`.
        held_out: What hold-out found, the nearest first.
        spread: Error in the logarithm of seconds for each doubling.
        fits: How many fits hold-out made.
        measured: Executed positions and seconds that were fitted, shortest first.
        memory_spread: The same as `spread`, of peak memory.
    """

    rates: tuple[float, ...]
    held_out: tuple[HeldOut, ...]
    spread: float
    fits: int
    measured: tuple[tuple[int, float], ...]
    memory_spread: float = _MEMORY_NOISE

    @property
    def longest(self) -> int:
        """The longest measured length, in executed positions."""
        return self.measured[-1][0]

    @property
    def median_error(self) -> float:
        """Median of the hold-out errors, as a share."""
        return float(np.median([one.error for one in self.held_out]))

    def seconds(self, count: Count) -> float:
        """Return the seconds that work takes."""
        return float(np.dot(count.work, self.rates))

    def shares(self, count: Count) -> dict[str, float]:
        """Return the share of each component in the seconds; those without any are left out."""
        parts = count.work * np.array(self.rates)
        return {name: float(part / parts.sum()) for name, part in zip(COMPONENTS, parts, strict=True) if part > 0}

    def log_half_width(self, positions: int, other_doublings: float = 0.0) -> float:
        """Return half the 95 % interval of the seconds' logarithm.

        Args:
            positions: Executed positions that are predicted.
            other_doublings: How far depth and width are from the measured ones, in doublings.
        """
        return _quantile(self.fits) * self.spread * (1 + self._doublings(positions) + other_doublings)

    def memory_log_half_width(self, positions: int, other_doublings: float = 0.0) -> float:
        """Return half the 95 % interval of the peak memory's logarithm; see `log_half_width`."""
        distance = self._doublings(positions) + other_doublings
        return _quantile(len(self.measured)) * self.memory_spread * (1 + distance)

    def _doublings(self, positions: int) -> float:
        """Return how far a length is outside the measured ones, on either side."""
        shortest, longest = self.measured[0][0], self.measured[-1][0]
        return max(0.0, math.log2(positions / longest), math.log2(shortest / positions))


def _quantile(freedom: int) -> float:
    """Return Student's 97.5 % quantile; from ten degrees of freedom on, that of ten, which is a little wide."""
    return _T_975[min(freedom, len(_T_975)) - 1]


def fit_scaling(counts: Sequence[Count], seconds: Sequence[float], peaks: Peaks) -> ScalingModel:
    """Fit rates to measured times, and hold out.

    Args:
        counts: Work of each measured length, at one depth.
        seconds: Median latency of each.
        peaks: Of the machine: where the rates begin.

    Raises:
        AnswerError: If there are fewer than two distinct lengths.
    """
    at: dict[int, list[tuple[Count, float]]] = {}
    for count, latency in zip(counts, seconds, strict=True):
        at.setdefault(count.positions, []).append((count, latency))
    places = sorted(at)
    if len(places) < 2:
        raise AnswerError(
            f"rates need at least two measured lengths of different cost, and there {_are(len(places))}: measure "
            "more lengths"
        )
    held_out: list[HeldOut] = []
    fewest = min(3, len(places) - 1)
    for known in range(fewest, len(places)):
        rates = fit_rates([pair for place in places[:known] for pair in at[place]], peaks)
        held_out += [
            HeldOut(place, places[known - 1], float(np.dot(count.work, rates)), latency)
            for place in places[known:]
            for count, latency in at[place]
        ]
    everything = [pair for place in places for pair in at[place]]
    rates = fit_rates(everything, peaks)
    residuals = [math.log(np.dot(count.work, rates) / latency) for count, latency in everything]
    errors = [one.log_error / (1 + one.doublings) for one in held_out]
    spread = max(_rms(errors), _rms(residuals), _LEAST_SPREAD)
    return ScalingModel(
        rates=tuple(float(rate) for rate in rates),
        held_out=tuple(sorted(held_out, key=lambda one: one.doublings)),
        spread=spread,
        fits=len(places) - fewest,
        measured=tuple((place, float(np.median([latency for _, latency in at[place]]))) for place in places),
    )


def cache_bytes(environment: Environment, device: str) -> float:
    """Return the size of the last cache; 0 where it is not known, so that everything spills.

    Args:
        environment: Of the measurements.
        device: "cpu", or else: the environment tells the processor's caches alone.
    """
    last = environment.caches.rpartition(",")[2].split(maxsplit=1)  # "L3 32 MiB"
    return float(parse_bytes(last[1])) if device == "cpu" and len(last) == 2 else 0.0


def memory_spread(model: ScalingModel, extent: Extent, counts: Sequence[Count]) -> ScalingModel:
    """Return the model with what the extrapolated peak memory misses at the measured lengths.

    Args:
        model: Of the subject.
        extent: Its work, at the measured depth too.
        counts: Of the measured lengths, with their measured peaks.
    """
    errors = [
        math.log(predicted / count.peak_bytes)
        for count in counts
        if count.peak_bytes and (predicted := extent.at(count.positions, count.layers).peak_bytes)
    ]
    return replace(model, memory_spread=max(_MEMORY_NOISE / 1.96, _rms(errors))) if errors else model


def _are(number: int) -> str:
    return "is one" if number == 1 else f"are {number}"


def _rms(values: Iterable[float]) -> float:
    return math.sqrt(np.mean(np.square(list(values))))


def fit_rates(observed: Sequence[tuple[Count, float]], peaks: Peaks) -> np.ndarray:
    """Return seconds for each unit of work, [components].

    Minimises squared residuals of the logarithm of seconds, those of long inputs weighted more, plus a small
    penalty on how far the logarithm of each rate over the machine's own is from their mean: least squares with a
    log-normal prior about a common factor, solved by Gauss-Newton steps with damping. Rates are positive by
    construction.

    Args:
        observed: Work and seconds, at least one pair.
        peaks: Of the machine.
    """
    work = np.array([count.work for count, _ in observed])
    latencies = np.array([latency for _, latency in observed])
    positions = np.array([count.positions for count, _ in observed], dtype=float)
    weights = (positions / positions.max()) ** math.log2(_GROWTH_OF_WEIGHT)
    at_best = np.array([*[1 / peaks.flops_per_s] * 3, *[1 / peaks.bytes_per_s] * 2, _LAYER_S])
    base, count = work * at_best, len(COMPONENTS)
    prior = _TRUST**2 * (np.eye(count) - 1 / count)

    def objective(theta: np.ndarray) -> float:
        residuals = np.log(base @ np.exp(theta) / latencies)
        return float(np.sum(weights * residuals**2) + theta @ prior @ theta)

    # One factor for all to begin with: the machine as a whole is slower than its peaks.
    theta = np.full(count, np.average(np.log(latencies / base.sum(axis=1)), weights=weights))
    damping, best = 1e-3, objective(theta)
    for _ in range(_STEPS):
        parts = base * np.exp(theta)
        residuals = np.log(parts.sum(axis=1) / latencies)
        slope = parts / parts.sum(axis=1, keepdims=True)
        normal = slope.T @ (weights[:, None] * slope) + prior
        gradient = slope.T @ (weights * residuals) + prior @ theta
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -gradient)
        tried = objective(theta + np.clip(step, -2, 2))
        if tried < best:
            theta, damping = theta + np.clip(step, -2, 2), damping / 5
            if best - tried < 1e-12 * best:
                break
            best = tried
        else:
            damping *= 5
    return at_best * np.exp(theta)


def last_crossing(
    lengths: Sequence[float], log_ratios: Sequence[float], half_widths: Sequence[float]
) -> tuple[float | None, tuple[float | None, float | None]]:
    """Return from which length on a variant's predicted cost stays below a baseline's, and the 95 % interval.

    Args:
        lengths: Ascending; the last one is the horizon.
        log_ratios: Logarithm of the baseline's cost over the variant's at each of them.
        half_widths: Half of its 95 % interval at each of them.

    Returns:
        The length, and the two ends of its interval; None is "not up to the horizon".
    """
    ratios, widths = np.asarray(log_ratios, dtype=float), np.asarray(half_widths, dtype=float)

    def stays_above(values: np.ndarray) -> float | None:
        below = np.flatnonzero(values <= 0)
        if below.size == 0:
            return lengths[0]
        last = int(below[-1])
        return None if last == len(lengths) - 1 else lengths[last + 1]

    return stays_above(ratios), (stays_above(ratios + widths), stays_above(ratios - widths))
