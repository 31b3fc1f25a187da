"""How much slower than its like a machine is, from work that several of them did, each at times of its own.

    reading     logarithm of the seconds that a machine took for some work; one for each session, whose blocks share
                its processes and what the machine did meanwhile
    model       reading = the work's + the machine's + noise; least squares over all machines at once, in which what
                is far off counts less
    noise       what is left: blocks, fresh processes and wandering speeds alike. It is that of all machines together,
                and where one is noisier than that, its own; wider where sessions in a row are alike
    verdict     on a machine against the median of the others, and against what these differ by among themselves

The machine that is furthest off is told and taken out, and the rest are looked at again: it drags medians along.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from tippingpoint.intervals import drift_factor, student_quantile

# A machine needs so many readings of work that others did too; fewer are a moment of it.
FEWEST_READINGS = 4
# Noise is known from so many readings more than there are unknowns, or nothing is said.
_FEWEST_FREE = 8.0
# Nothing is timed better than this, however alike a few readings are (standard deviation of a logarithm).
_FINEST = 1e-3
# Noise gives weights, and weights noise; after so many rounds neither changes any more by what matters.
_ROUNDS = 4
# A reading this many standard deviations off counts less, the further the less (Huber, Annals of Mathematical
# Statistics 35, 1964): once in a while something else runs, and a block takes twice as long.
_FAR = 1.5
_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Reading:
    """What a machine took for some work in one session.

    Attributes:
        work: What all machines took that did the same; rough and careful timings are not the same work.
        machine: Its name.
        log_s: Logarithm of the seconds.
        rough: Whether it was timed in passing; such readings have a noise of their own.
    """

    work: Hashable
    machine: str
    log_s: float
    rough: bool = False


@dataclass(frozen=True, slots=True)
class Fit:
    """Machines that did work in common, directly or by way of others.

    Attributes:
        machines: Their names.
        log_factors: For each, the logarithm of its time over that of a common scale, [machines].
        covariance: Of these, noise included, [machines, machines].
        freedom: Degrees of freedom of the noise.
    """

    machines: tuple[str, ...]
    log_factors: np.ndarray
    covariance: np.ndarray
    freedom: float

    @property
    def verdicts(self) -> int:
        """How many verdicts there are to be wrong: one on each machine, and one on two."""
        return len(self.machines) if len(self.machines) > 2 else 1


@dataclass(frozen=True, slots=True)
class Deviation:
    """A machine that is certainly off.

    Attributes:
        machine: Which.
        others: Those that it was held against.
        log_factor: Logarithm of its time over the median of theirs.
        half_width: Of the interval of that.
    """

    machine: str
    others: tuple[str, ...]
    log_factor: float
    half_width: float


def fits(readings: Iterable[Reading]) -> list[Fit]:
    """Return a fit for each set of machines that can be held against each other.

    Args:
        readings: In the order of time.
    """
    groups = _connected(_shared(list(readings)))
    return [found for group in groups if (found := _fit(group)) is not None]


def deviations(fit: Fit, chance: float, least: float) -> Iterator[Deviation]:
    """Yield the machines that are certainly off, the worst one first.

    Args:
        fit: Of all of them.
        chance: That a machine which is like the others is told: for 5 % in all, 0.05 over the number of all verdicts
            (Bonferroni).
        least: The whole interval of a logarithm must be further off than this.
    """
    values, vectors = np.linalg.eigh(fit.covariance)
    noise = np.random.default_rng(0).standard_normal((_DRAWS, values.size))
    draws = (noise * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    quantile = student_quantile(1 - chance / 2, fit.freedom)
    left = list(range(len(fit.machines)))
    while len(left) > 1:
        found = []
        for machine in left:
            others = [other for other in left if other != machine]
            theirs = fit.log_factors[others]
            apart = float(fit.log_factors[machine] - np.median(theirs))
            error = float(np.std(draws[:, machine] - np.median(draws[:, others], axis=1)))
            error = math.hypot(error, _spread(theirs, fit.covariance[others, others]))
            if abs(apart) - quantile * error > least:
                # Of two machines either may be the one that is off; the slower one is told.
                found.append(((round(abs(apart), 9), apart), machine, others, quantile * error))
        if not found:
            return
        (_, apart), machine, others, half_width = max(found, key=lambda each: each[0])
        yield Deviation(fit.machines[machine], tuple(fit.machines[other] for other in others), apart, half_width)
        left.remove(machine)


def _spread(log_factors: np.ndarray, variances: np.ndarray) -> float:
    """Return by how much machines differ that pass for alike, beyond the noise of their factors.

    Chips of one kind do, and machines whose speed wanders for longer than they are looked at. The median of the
    distances from the median is that of a normal distribution's middle half; one that is off has no say in it.
    """
    middle = float(np.median(np.abs(log_factors - np.median(log_factors)))) / NormalDist().inv_cdf(0.75)
    return math.sqrt(max(0.0, middle**2 - float(variances.mean())))


def _shared(readings: list[Reading]) -> list[Reading]:
    """Return readings of work that several machines did, of machines that have enough of them."""
    while True:
        who: dict[Hashable, set[str]] = defaultdict(set)
        for reading in readings:
            who[reading.work].add(reading.machine)
        kept = [reading for reading in readings if len(who[reading.work]) > 1]
        counts = Counter(reading.machine for reading in kept)
        kept = [reading for reading in kept if counts[reading.machine] >= FEWEST_READINGS]
        if len(kept) == len(readings):
            return kept
        readings = kept


def _connected(readings: Sequence[Reading]) -> list[list[Reading]]:
    """Return readings apart whose machines have no work in common, not even by way of others."""
    who: dict[Hashable, set[str]] = defaultdict(set)
    for reading in readings:
        who[reading.work].add(reading.machine)
    groups: list[set[str]] = []
    for machines in {frozenset(machines) for machines in who.values()}:
        touched = [group for group in groups if group & machines]
        groups = [group for group in groups if not group & machines] + [set(machines).union(*touched)]
    return [[reading for reading in readings if reading.machine in group] for group in sorted(groups, key=min)]


def _fit(readings: Sequence[Reading]) -> Fit | None:
    """Return the machines' factors; None where there is too little to tell how large the noise is."""
    machines = sorted({reading.machine for reading in readings})
    number = {machine: place for place, machine in enumerate(machines)}
    works = {work: place for place, work in enumerate(dict.fromkeys(reading.work for reading in readings))}
    which = np.array([number[reading.machine] for reading in readings])
    what = np.array([works[reading.work] for reading in readings])
    values = np.array([reading.log_s for reading in readings])
    rough = np.array([reading.rough for reading in readings])
    if len(readings) - len(works) - len(machines) + 1 < _FEWEST_FREE:
        return None
    variance, trust = np.ones(values.size), np.ones(values.size)
    for _ in range(_ROUNDS):
        *_, residuals, leverage = _solve(values, which, what, trust / variance)
        variance = _variance(np.sqrt(trust) * residuals, 1 - leverage, rough, which)
        trust = 1 / np.maximum(1.0, np.abs(residuals) / (_FAR * np.sqrt(variance)))
    factors, covariance, residuals, leverage = _solve(values, which, what, trust / variance)
    in_time = np.argsort(which, kind="stable")
    drift = drift_factor((np.sqrt(trust / variance) * residuals)[in_time])
    return Fit(tuple(machines), factors, drift**2 * covariance, float((1 - leverage).sum()))


def _solve(
    values: np.ndarray, which: np.ndarray, what: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Solve for the machines, with every work's own level taken out.

    Returns:
        Factors of machines, [machines]; their covariance, if weights are one over variances, [machines, machines];
        residuals and leverages, [readings]. Factors have a common level that means nothing.
    """
    together = np.zeros((what.max() + 1, which.max() + 1))
    np.add.at(together, (what, which), weights)
    shares = together / together.sum(axis=1, keepdims=True)
    levels = np.bincount(what, weights * values) / together.sum(axis=1)
    normal = np.diag(together.sum(axis=0)) - together.T @ shares
    covariance = np.linalg.pinv(normal, hermitian=True)
    factors = covariance @ (np.bincount(which, weights * values) - together.T @ levels)
    residuals = values - levels[what] - factors[which] + (shares @ factors)[what]
    spread = shares @ covariance
    own = covariance[which, which] - 2 * spread[what, which] + (spread * shares).sum(axis=1)[what]
    return factors, covariance, residuals, weights * (1 / together.sum(axis=1)[what] + own)


def _variance(residuals: np.ndarray, free: np.ndarray, rough: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Return the variance of every reading: that of its kind, larger where its machine is noisier than the others."""
    found = np.empty(residuals.size)
    for kind in (True, False):
        of_kind = rough == kind
        # What is known of few readings is no better than of all.
        chosen = of_kind if free[of_kind].sum() > 1 else np.ones_like(of_kind)
        found[of_kind] = max(_FINEST**2, (residuals[chosen] ** 2).sum() / free[chosen].sum())
    own = np.bincount(which, residuals**2 / found) / np.maximum(np.bincount(which, free), 1e-9)
    return found * np.maximum(1.0, own)[which]
