import math
from collections.abc import Callable

import pytest

from tippingpoint.analysis.comparison import ComparisonPoint
from tippingpoint.analysis.curve import RatioCurve
from tippingpoint.analysis.tipping_point import even_grid
from tippingpoint.study.doubts import View, look_at

LENGTHS = tuple(128 * 2**number for number in range(7))


def view(curve: Callable[[float], float], tolerance: float = 0.05, lengths: tuple[float, ...] = LENGTHS) -> View:
    points = tuple(ComparisonPoint(length, (curve(length),), tolerance=tolerance) for length in lengths)
    return look_at(RatioCurve(points), even_grid(lengths[0], lengths[-1]))


def test_a_crossing_is_a_doubt_around_it():
    found = view(lambda length: 0.4 * math.log(length / 1000))
    assert found.doubt is not None
    assert not found.doubt.is_dip
    assert found.doubt.length == pytest.approx(1000, rel=0.1)
    assert found.doubt.slope == pytest.approx(0.4, rel=0.3)
    assert found.at_end > 0.99
    assert found.always < 0.01


def test_the_noisier_the_observations_the_further_it_reaches():
    reaches = [
        doubt.reach
        for tolerance in (0.02, 0.1)
        if (doubt := view(lambda length: 0.4 * math.log(length / 1000), tolerance).doubt)
    ]
    assert reaches[1] > 2 * reaches[0]


@pytest.mark.parametrize(("log_ratio", "at_end", "always"), [(0.3, 1.0, 1.0), (-0.3, 0.0, 0.0)])
def test_where_one_side_is_always_ahead_there_is_no_doubt(log_ratio, at_end, always):
    found = view(lambda length: log_ratio)
    assert (found.at_end, found.always) == (at_end, always)
    assert found.doubt is None


def test_a_dip_is_told_from_a_crossing():
    found = view(lambda length: 0.25 if length != 1024 else 0.0)
    assert found.doubt is not None
    assert found.doubt.is_dip
    assert 724 <= found.doubt.deepest <= 1448


def test_of_two_doubts_the_one_at_the_longer_lengths_decides_first():
    def up_down_up(length: float) -> float:
        return -0.35 * math.cos(2 * math.pi * math.log2(length / 128) / 4.5)

    lengths = tuple(128 * 2 ** (number / 2) for number in range(15))
    found = view(up_down_up, lengths=lengths)
    truth = max(length for length in even_grid(lengths[0], lengths[-1]) if up_down_up(length) <= 0)
    assert found.doubt is not None
    assert found.doubt.length == pytest.approx(truth, rel=0.15)
