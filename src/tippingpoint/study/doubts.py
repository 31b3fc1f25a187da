"""Where the sign of a log-ratio is uncertain, and whether that matters for the tipping point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tippingpoint.analysis.curve import RatioCurve
from tippingpoint.analysis.tipping_point import last_crossings

# A sign is certain if this share of the draws agrees, and a tipping point does not lie where fewer than the rest do.
_CERTAIN = 0.95
# The slope at a tipping point is taken over this factor of the length to either side; it is never taken for less.
_SLOPE_OVER = 1.5
_LEAST_SLOPE = 0.05


@dataclass(frozen=True, slots=True)
class Doubt:
    """A stretch of lengths where a curve may come up through zero for the last time.

    Attributes:
        length: Where it most likely does, if it does so here.
        reach: How far from there it may be, in logarithms: half of a 95 % interval.
        is_dip: The variant is ahead on both sides, and may be behind in between.
        deepest: The length at which it is most likely behind.
        slope: Of the log-ratio against the logarithm of the length, around `length`.
    """

    length: float
    reach: float
    is_dip: bool
    deepest: float
    slope: float


@dataclass(frozen=True, slots=True)
class View:
    """What a curve says of who is ahead, from the shortest to the longest length of a grid.

    Attributes:
        always: Probability that the variant is ahead at every length.
        at_end: Probability that it is ahead at the longest length.
        doubt: The one at the longest lengths, if there is any: what it hides decides whether shorter ones matter.
    """

    always: float
    at_end: float
    doubt: Doubt | None


def look_at(curve: RatioCurve, lengths: Sequence[float]) -> View:
    """Return what a curve says.

    Args:
        curve: With at least one observation.
        lengths: Growing.
    """
    draws = curve.draws(lengths)
    ahead = draws > 0
    return View(float(ahead.all(axis=1).mean()), float(ahead[:, -1].mean()), _last_doubt(lengths, draws))


def _last_doubt(lengths: Sequence[float], draws: np.ndarray) -> Doubt | None:
    share = (draws > 0).mean(axis=0)
    crossings = last_crossings(lengths, draws)
    logs = np.log(lengths)
    # A change from certainly behind to certainly ahead between two neighbours is a stretch of its own.
    state = np.where(share >= _CERTAIN, 1, np.where(share <= 1 - _CERTAIN, -1, 0))
    stretches: list[tuple[int, int]] = []
    for value, group in itertools.groupby(range(len(state)), key=lambda number: state[number]):
        numbers = list(group)
        if value == 0:
            stretches.append((max(0, numbers[0] - 1), min(len(state) - 1, numbers[-1] + 1)))
    stretches += [(left, left + 1) for left in range(len(state) - 1) if state[left] == -1 and state[left + 1] == 1]
    for left, right in sorted(stretches, reverse=True):
        here = crossings[(crossings >= logs[left] - 1e-9) & (crossings <= logs[right] + 1e-9)]
        if len(here) < (1 - _CERTAIN) * len(crossings):
            continue
        low, middle, high = np.percentile(here, [2.5, 50, 97.5])
        return Doubt(
            length=math.exp(middle),
            reach=float(high - low) / 2,
            is_dip=bool(state[left] == 1 and state[right] == 1),
            deepest=lengths[left + int(share[left : right + 1].argmin())],
            slope=_slope(logs, draws, middle),
        )
    return None


def _slope(logs: np.ndarray, draws: np.ndarray, place: float) -> float:
    near = np.abs(logs - place) < math.log(_SLOPE_OVER)
    median, logs = np.median(draws[:, near], axis=0), logs[near]
    finite = np.isfinite(median)
    if finite.sum() < 2:
        return 1.0
    return max(_LEAST_SLOPE, float(np.polyfit(logs[finite], median[finite], 1)[0]))
