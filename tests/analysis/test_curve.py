import math

import numpy as np
import pytest

from tippingpoint.analysis.comparison import ComparisonPoint
from tippingpoint.analysis.curve import RatioCurve
from tippingpoint.analysis.tipping_point import grid
from tippingpoint.models.catalog import architecture_of
from tippingpoint.workload import Subject

BERT, LONGFORMER = Subject.parse("bert"), Subject.parse("longformer")
LENGTHS = (128, 256, 512, 1024, 2048, 4096)


def point(length: float, log_ratio: float, spread: float = 0.01, rounds: int = 12, seed: int = 0) -> ComparisonPoint:
    """Rounds whose median is about `log_ratio`, with this standard error."""
    noise = np.random.default_rng([seed, int(length)]).standard_normal(rounds)
    noise -= np.median(noise)
    return ComparisonPoint(length, tuple(log_ratio + spread * math.sqrt(rounds) * noise))


def test_the_curve_goes_through_what_was_seen_and_is_less_certain_in_between():
    curve = RatioCurve(tuple(point(length, 0.2 * math.log(length / 700)) for length in (128, 512, 4096)))
    spread = curve.draws((512, 1448)).std(axis=0)
    assert np.median(curve.draws([512])) == pytest.approx(0.2 * math.log(512 / 700), abs=0.03)
    assert spread[1] > 1.3 * spread[0]


def test_neighbours_tell_about_one_another():
    alone = RatioCurve((point(128, -0.3), point(1000, 0.0, seed=1), point(4096, 0.4)))
    among = RatioCurve((point(128, -0.3), *(point(960 + 20 * n, 0.0, seed=n) for n in range(5)), point(4096, 0.4)))
    assert among.draws([1000]).std() < 0.75 * alone.draws([1000]).std()


def test_95_of_100_intervals_hold_smooth_truths_between_the_observations():
    held = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        share, dearer = generator.uniform(500, 5000), generator.uniform(1.1, 2.5)

        def truth(length: float, share: float = share, dearer: float = dearer) -> float:
            return math.log((1 + length / share) / dearer)

        own = 0.01 * generator.standard_normal(len(LENGTHS))
        points = tuple(
            ComparisonPoint(length, tuple(truth(length) + off + 0.04 * generator.standard_normal(10)))
            for length, off in zip(LENGTHS, own, strict=True)
        )
        low, _, high = np.log(RatioCurve(points, seed=seed).at([180, 700, 3000]))
        held += [bool(a <= truth(n) <= b) for n, a, b in zip((180, 700, 3000), low, high, strict=True)]
    assert 0.92 <= np.mean(held) <= 0.995


def test_a_padding_variant_is_a_staircase_without_being_told_so():
    executed = architecture_of(LONGFORMER).executed_positions

    def truth(length: float) -> float:
        return math.log(length * (1 + length / 1000) / (1.4 * executed(length)))

    points = tuple(point(length, truth(length), 0.003) for length in (256, 700, 1024, 1900, 2048, 3000, 4000))
    curve = RatioCurve(points, architecture_of(BERT).executed_positions, executed)
    ends = np.median(curve.draws((1536, 1537)), axis=0)
    assert ends[0] - ends[1] > 0.15
    assert ends == pytest.approx([truth(1536), truth(1537)], abs=0.06)


def test_both_sides_of_every_step_are_looked_at():
    lengths = grid(128, 4096, BERT, LONGFORMER)
    assert lengths[0] == 128
    assert lengths[-1] == 4096
    assert list(lengths) == sorted(set(lengths))
    for edge in range(512, 4096, 512):
        assert {edge, edge + 1} <= set(lengths)


def test_beyond_a_length_that_ran_out_of_memory_the_ratio_is_infinite_and_before_it_is_not():
    points = (
        point(128, -0.2),
        point(512, -0.1),
        ComparisonPoint(2048, censored=1),
        ComparisonPoint(4096, censored=1),
    )
    draws = RatioCurve(points).draws((256, 512, 1024, 2048, 4096))
    assert np.isfinite(draws[:, :2]).all()
    assert np.isposinf(draws[:, 3:]).all()
    # In between the edge may lie anywhere on the logarithmic scale.
    assert np.isposinf(draws[:, 2]).mean() == pytest.approx(0.5, abs=0.05)


def test_an_observation_nearby_narrows_more_than_one_far_away_and_one_that_is_exact_more_than_a_noisy_one():
    curve = RatioCurve((point(128, -0.4), point(4096, 0.4)))
    before = curve.spread_after(800, 800, math.inf)
    near, far, noisy = (curve.spread_after(800, *how) for how in ((780, 0.01), (200, 0.01), (780, 0.1)))
    assert near < far < before
    assert near < noisy < before


def test_the_expected_spread_is_what_comes_true():
    points = (point(128, -0.4), point(4096, 0.4))
    expected = RatioCurve(points).spread_after(800, 800, 0.01)
    after = RatioCurve((points[0], point(800, 0.05, 0.01), points[1])).draws([800]).std()
    # The likeliest smoothness alone is taken beforehand; all of them count afterwards.
    assert after == pytest.approx(expected, rel=0.6)


def test_the_same_observations_give_the_same_draws():
    points = (point(128, -0.4), point(4096, 0.4))
    assert (RatioCurve(points).draws(LENGTHS) == RatioCurve(points).draws(LENGTHS)).all()
    assert (RatioCurve(points, seed=1).draws(LENGTHS) != RatioCurve(points).draws(LENGTHS)).any()


def test_nothing_follows_from_nothing():
    with pytest.raises(ValueError, match="no observation"):
        RatioCurve(()).draws([128])
