"""Tipping points at several batch sizes that nothing was measured for."""

import math
from collections.abc import Sequence

from tippingpoint.analysis.comparison import ComparisonPoint
from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.models.catalog import architecture_of
from tippingpoint.workload import Subject

BERT = Subject.parse("bert")
LOCAL = Subject.parse("bert@local:window=128")
LENGTHS = (128, 512, 2048, 8192)


def seen(length: float, ratio: float, noise: float = 0.01) -> ComparisonPoint:
    """An observation of eight rounds."""
    return ComparisonPoint(length, tuple(math.log(ratio) + noise * (-1) ** number for number in range(8)))


def lost(length: float, censored: int) -> ComparisonPoint:
    return ComparisonPoint(length, censored=censored)


def tip(
    batch_size: int,
    points: Sequence[ComparisonPoint],
    place: tuple[float, float, float] | None = None,
    verdict: str = "undecided",
    *,
    baseline: Subject = BERT,
    variant: Subject = LOCAL,
    metric: str = "latency",
    phase: str = "inference",
    device: str = "cpu",
) -> TippingPoint:
    """A tipping point as it was found: (low, middle, high) is a crossing."""
    row = architecture_of(baseline)
    low, middle, high = place or (None, None, None)
    return TippingPoint(
        baseline=baseline,
        variant=variant,
        batch_size=batch_size,
        unit=row.unit,
        verdict="crosses" if place else verdict,
        length=middle,
        interval=None if low is None or high is None else (low, high),
        positions=None if middle is None else row.positions(middle),
        positions_interval=None if low is None or high is None else (row.positions(low), row.positions(high)),
        points=tuple(points),
        metric=metric,
        phase=phase,
        device=device,
    )


def crossing_at(batch_size: int, length: float, width: float = 1.05) -> TippingPoint:
    """A variant that gains in proportion to the square root of the length."""
    points = [seen(each, math.sqrt(each / length)) for each in LENGTHS]
    return tip(batch_size, points, (length / width, length, length * width))
