"""The log-ratio of two costs against length, as a smooth curve that is known only so well.

    y(N) = f(log n_baseline(N)) - f'(log n_variant(N))        n: the positions a model executes, its padding included

Each logarithm of a cost is a smooth function of the logarithm of executed positions: a straight line, because costs
are close to powers, and a Gaussian process for what bends it (Rasmussen and Williams, Gaussian Processes for Machine
Learning, 2006, chapter 2; the line is their section 2.7). Written in executed positions the staircase of a model
that pads needs nothing of its own: between two steps its cost stays, and the baseline's goes on growing.

How much a curve bends, and how far single lengths lie off it (sizes that suit a cache or a kernel), is not known
beforehand: several answers are tried, and each has its say in proportion to its evidence (section 5.4.1). What is
reported are draws of the whole curve; intervals of anything that follows from it are percentiles over the draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tippingpoint.analysis.comparison import ComparisonPoint
from tippingpoint.intervals import REPLICATES

# The prior of the slope of log cost against log positions: from 0 (weights alone) to 2 (scores alone).
_SLOPE, _SLOPE_SPREAD = 1.0, 0.5
# Of the level: nothing is known.
_LEVEL_SPREAD = 3.0
# How far a cost bends away from its straight line; over which distance (in e-folds of positions) it does so, and how
# likely that is: a kernel that is slow around some length makes a short bend, which is rare. Every combination is
# tried.
_BENDS = (0.05, 0.15, 0.5)
_DISTANCES = {0.4: 0.1, 1.0: 0.45, 2.0: 0.45}
# How far a single length lies off the curve, and how likely that is: fresh processes differ by about 1 %
# (benchmarks/repeatability.py).
_OFF = {0.003: 0.3, 0.01: 0.55, 0.02: 0.12, 0.04: 0.03}
# Nodes that carry the Gaussian process lie so far apart, as a share of the distance over which it bends.
_NODES_APART = 0.7
_JITTER = 1e-9

Positions = Callable[[float], float]


@dataclass(frozen=True, eq=False)
class RatioCurve:
    """What is known of the log-ratio at every length.

    Attributes:
        points: Observations at growing lengths; where memory ran out the curve ends.
        baseline: Length to the positions that the baseline executes.
        variant: Length to the positions that the variant executes.
        seed: Of the draws.
    """

    points: tuple[ComparisonPoint, ...]
    baseline: Positions = float
    variant: Positions = float
    seed: int = 0

    @cached_property
    def _seen(self) -> list[ComparisonPoint]:
        return [point for point in self.points if not point.censored]

    def draws(self, lengths: Sequence[float]) -> np.ndarray:
        """Return draws of the log-ratio at lengths, [draws, lengths]; whole curves, row by row.

        It is infinite where memory runs out: the edge lies anywhere between the last length before and the first one
        at which it did.

        Raises:
            ValueError: If there is no observation.
        """
        if not self.points:
            raise ValueError("no observation")
        found = self._smooth(lengths) if self._seen else np.zeros((REPLICATES, len(lengths)))
        generator = np.random.default_rng(self.seed)
        for censored, group in itertools.groupby(enumerate(self.points), key=lambda item: item[1].censored):
            if not censored:
                continue
            numbers = [number for number, _ in group]
            begin = self._edge(numbers[0] - 1, numbers[0], generator)
            end = self._edge(numbers[-1], numbers[-1] + 1, generator)
            found[(np.array(lengths) >= begin) & (np.array(lengths) <= end)] = censored * math.inf
        return found

    def at(self, lengths: Sequence[float]) -> np.ndarray:
        """Return 95 % interval and median of the ratio at lengths: low, median, high, [3, lengths]."""
        low, middle, high = np.percentile(self.draws(lengths), [2.5, 50, 97.5], axis=0, method="nearest")
        return np.exp([low, middle, high])

    def spread_after(self, length: float, place: float, noise: float) -> float:
        """Return the standard deviation of the log-ratio at a length if it were measured at a place as well.

        It does not depend on what would be seen there.

        Args:
            length: Whose log-ratio is of interest.
            place: Where another measurement would be made.
            noise: Standard deviation of its rounds' median; infinite for no measurement.
        """
        likeliest = max(self._fits, key=lambda fit: fit.evidence)
        (here, across), (_, there) = likeliest.covariance(self._logs((length, place)))
        return math.sqrt(max(0.0, here - across**2 / (there + likeliest.off**2 + noise**2)))

    def _smooth(self, lengths: Sequence[float]) -> np.ndarray:
        """Return draws of the curve as if memory never ran out, [draws, lengths]."""
        generator = np.random.default_rng(self.seed)
        evidence = np.array([fit.evidence for fit in self._fits])
        shares = np.exp(evidence - evidence.max())
        counts = generator.multinomial(REPLICATES, shares / shares.sum())
        logs = self._logs(lengths)
        parts = [fit.draws(logs, count, generator) for fit, count in zip(self._fits, counts, strict=True) if count]
        return np.concatenate(parts)

    def _edge(self, before: int, after: int, generator: np.random.Generator) -> np.ndarray:
        """Return draws of a length between two neighbouring points, [draws, 1]; beyond all without a neighbour."""
        if before < 0:
            return np.zeros((REPLICATES, 1))
        if after == len(self.points):
            return np.full((REPLICATES, 1), math.inf)
        low, high = (math.log(self.points[number].length) for number in (before, after))
        # The points themselves stay what they were seen to be.
        inside = generator.uniform(low, high, size=(REPLICATES, 1))
        return np.exp(np.clip(inside, np.nextafter(low, high), np.nextafter(high, low)))

    @cached_property
    def _fits(self) -> list[_Fit]:
        values = np.array([point.center for point in self._seen])
        spread = np.array([point.spread for point in self._seen])
        logs = self._logs([point.length for point in self._seen])
        fits = []
        for bend, (distance, rare) in itertools.product(_BENDS, _DISTANCES.items()):
            basis = _Basis(logs, bend, distance)
            for off, likely in _OFF.items():
                fits.append(_Fit(basis, logs, values, spread, off, math.log(rare * likely)))
        return fits

    def _logs(self, lengths: Sequence[float]) -> np.ndarray:
        """Return logarithms of the positions that baseline and variant execute, [2, lengths]."""
        return np.log([[positions(length) for length in lengths] for positions in (self.baseline, self.variant)])


class _Basis:
    """Features whose random weights (standard normal) make the prior of the log-ratio.

    The Gaussian process lives on a few nodes (its values between them follow from theirs to within 0.1 % of its
    size), so that a fit is a small linear regression.
    """

    def __init__(self, logs: np.ndarray, bend: float, distance: float) -> None:
        self.bend = bend
        self.distance = distance
        # Fits that differ by their noise alone ask for the same features one after the other.
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        low, high = float(logs.min()), float(logs.max())
        self.middle = (low + high) / 2
        count = 3 + math.ceil((high - low) / (_NODES_APART * distance))
        self.nodes = np.linspace(low - distance, high + distance, count)
        self.factor = np.linalg.cholesky(self._kernel(self.nodes) + _JITTER * np.eye(count))

    def _kernel(self, x: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * ((x[:, None] - self.nodes) / self.distance) ** 2)

    def _one(self, x: np.ndarray) -> np.ndarray:
        line = _SLOPE_SPREAD * (x - self.middle)[:, None]
        return np.hstack([line, self.bend * np.linalg.solve(self.factor, self._kernel(x).T).T])

    def features(self, logs: np.ndarray) -> np.ndarray:
        """Return features of the log-ratio, [lengths, features]."""
        if self._last is None or self._last[0] is not logs:
            level = np.full((logs.shape[1], 1), _LEVEL_SPREAD)
            self._last = logs, np.hstack([level, self._one(logs[0]), -self._one(logs[1])])
        return self._last[1]


class _Fit:
    """Weights of a basis given the observations: a linear regression with a known prior and known noise.

    Args:
        basis: Of the log-ratio.
        logs: Logarithms of executed positions of baseline and variant at the observations, [2, observations].
        values: Observed log-ratios, [observations].
        spread: Standard deviations of what their rounds tell, [observations].
        off: How far a single length lies off the curve, a standard deviation as well.
        likely: Logarithm of the prior probability of `off` and the basis.
    """

    def __init__(
        self, basis: _Basis, logs: np.ndarray, values: np.ndarray, spread: np.ndarray, off: float, likely: float
    ) -> None:
        self._basis = basis
        self.off = off
        noise = np.hypot(spread, off)
        features = basis.features(logs) / noise[:, None]
        residual = (values - _expected(logs)) / noise
        precision = np.eye(features.shape[1]) + features.T @ features
        self._factor = np.linalg.cholesky(precision)
        projected = np.linalg.solve(self._factor, features.T @ residual)
        self._weights = np.linalg.solve(self._factor.T, projected)
        # The logarithm of the probability of the observations, less what is the same for every fit.
        logarithm = np.log(np.diag(self._factor)).sum() + np.log(noise).sum()
        self.evidence = likely + float(-0.5 * (residual @ residual - projected @ projected) - logarithm)

    def draws(self, logs: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        """Return draws of the log-ratio where the executed positions are these, [count, lengths]."""
        noise = generator.standard_normal((len(self._weights), count))
        weights = self._weights[:, None] + np.linalg.solve(self._factor.T, noise)
        return _expected(logs) + (self._basis.features(logs) @ weights).T

    def covariance(self, logs: np.ndarray) -> np.ndarray:
        """Return the covariance of the log-ratio where the executed positions are these, [lengths, lengths]."""
        features = np.linalg.solve(self._factor, self._basis.features(logs).T)
        return features.T @ features


def _expected(logs: np.ndarray) -> np.ndarray:
    """Return the log-ratio before anything was observed, [lengths]."""
    baseline, variant = logs
    return _SLOPE * (baseline - variant)
