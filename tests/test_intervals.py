"""Intervals over several processes: coverage by simulation, with planted differences between processes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tippingpoint.intervals import (
    center,
    center_replicates,
    difference_replicates,
    half_width,
    interval,
    student_quantile,
)


def simulated(
    generator: np.random.Generator, processes: int, blocks: int, between: float
) -> tuple[np.ndarray, list[int]]:
    """Logarithms around 0: blocks vary by 5 %, and each process is off by a share `between` of a block's noise."""
    offsets = 0.05 * between * generator.standard_normal(processes)
    values = (offsets[:, None] + 0.05 * generator.standard_normal((processes, blocks))).ravel()
    return values, [number for number in range(processes) for _ in range(blocks)]


def covered(processes: int, blocks: int, between: float, *, pooled: bool = False, simulations: int = 300) -> float:
    """Return how often the 95 % interval holds the truth."""
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(simulations):
        values, labels = simulated(generator, processes, blocks, between)
        low, high = interval(center_replicates(values, [] if pooled else labels, count=800))
        hits += low <= 0 <= high
    return hits / simulations


# The wider of two spreads is never too narrow; where processes do not differ it is a little too wide.
@pytest.mark.parametrize("processes", [2, 3, 5, 10])
@pytest.mark.parametrize("between", [0.0, 0.5, 2.0])
def test_the_interval_holds_the_truth_whether_processes_differ_or_not(processes, between):
    assert covered(processes, 12, between) >= 0.92


def test_taking_all_blocks_for_independent_would_miss_the_truth_where_processes_differ():
    assert covered(5, 12, 2.0, pooled=True) < 0.88


def test_many_processes_give_95_percent():
    assert 0.92 <= covered(16, 6, 2.0) <= 0.98


def test_processes_that_agree_narrow_the_interval_and_one_that_differs_widens_it():
    generator = np.random.default_rng(3)
    widths = []
    for _ in range(20):
        values, labels = simulated(generator, 5, 20, 0.0)
        apart = values.copy()
        apart[:20] += 0.5
        widths.append((half_width(values[:20]), half_width(values, labels), half_width(apart, labels)))
    one, agreeing, differing = np.median(widths, axis=0)
    assert agreeing < 0.8 * one
    assert differing > 5 * agreeing


def test_the_centre_of_several_processes_is_the_mean_of_their_medians():
    values, labels = [1.0, 2.0, 9.0, 4.0, 6.0], [0, 0, 0, 1, 1]
    assert center(values, labels) == (2.0 + 5.0) / 2
    assert center(values) == 4.0
    assert center(values, [3] * 5) == 4.0


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_one_process_is_the_same_however_it_is_labelled(values):
    assert (center_replicates(values, [4] * len(values)) == center_replicates(values)).all()
    assert half_width(values, [4] * len(values)) == half_width(values)


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 3)), min_size=4, max_size=24), st.permutations(range(4)))
def test_names_of_processes_and_the_order_of_blocks_of_a_process_do_not_matter(blocks, names):
    values, labels = zip(*blocks, strict=True)
    renamed = [names[label] for label in labels]
    # The draws of one process may go to another, so only the centre is the same to the last bit.
    assert center(values, labels) == pytest.approx(center(values, renamed), abs=1e-12)
    assert math.isfinite(half_width(values, labels))


def difference_covered(processes: tuple[int, int], between: float, simulations: int = 400) -> tuple[float, float]:
    """Return how often the interval of a difference of 0 holds 0, and its median width."""
    generator = np.random.default_rng(11)
    hits, widths = 0, []
    for number in range(simulations):
        (first, a), (second, b) = (simulated(generator, count, 8, between) for count in processes)
        low, high = interval(difference_replicates(first, second, a, b, seeds=(number, number + 1), count=600))
        hits += low <= 0 <= high
        widths.append(high - low)
    return hits / simulations, float(np.median(widths))


@pytest.mark.parametrize("processes", [(2, 2), (3, 3), (3, 6), (10, 12)])
@pytest.mark.parametrize("between", [0.0, 2.0])
def test_the_difference_of_two_runs_holds_the_truth(processes, between):
    coverage, _ = difference_covered(processes, between)
    assert coverage >= 0.92


def test_the_difference_of_a_few_processes_is_narrower_than_two_intervals_put_together():
    coverage, width = difference_covered((3, 3), 2.0)
    generator = np.random.default_rng(11)
    apart = []
    for number in range(100):
        (first, a), (second, b) = (simulated(generator, 3, 8, 2.0) for _ in range(2))
        replicates = center_replicates(second, b, seed=number, count=600) - center_replicates(
            first, a, seed=number + 1, count=600
        )
        low, high = interval(replicates)
        apart.append(high - low)
    assert width < 0.85 * np.median(apart)
    assert 0.92 <= coverage <= 0.99


def test_a_difference_turns_its_sign_when_the_two_change_places():
    generator = np.random.default_rng(2)
    (first, a), (second, b) = simulated(generator, 3, 8, 1.0), simulated(generator, 4, 8, 1.0)
    forth = interval(difference_replicates(first, second + 1.0, a, b, count=20_000))
    back = interval(difference_replicates(second + 1.0, first, b, a, count=20_000))
    assert forth == pytest.approx((-back[1], -back[0]), abs=0.01)


def test_without_any_noise_the_difference_is_known():
    replicates = difference_replicates([1.0] * 8, [3.0] * 8, [0, 1] * 4, [0, 1] * 4)
    assert (replicates == 2.0).all()
    with pytest.raises(ValueError, match="no values to resample"):
        difference_replicates([], [1.0])


def drifting(generator: np.random.Generator, count: int, correlation: float) -> np.ndarray:
    """Values around 0 of which neighbours are alike."""
    noise = generator.standard_normal(count + 50)
    values = np.zeros(count + 50)
    for number in range(1, count + 50):
        values[number] = correlation * values[number - 1] + math.sqrt(1 - correlation**2) * noise[number]
    return values[50:]


def drift_covered(count: int, correlation: float) -> float:
    generator = np.random.default_rng(3)
    hits = 0
    for number in range(300):
        low, high = interval(center_replicates(drifting(generator, count, correlation), seed=number, count=400))
        hits += low <= 0 <= high
    return hits / 300


# Independent resampling would hold the truth in 70 to 79 % of cases at a correlation of 0.6.
@pytest.mark.parametrize(("count", "correlation", "least"), [(16, 0.6, 0.82), (30, 0.6, 0.92), (60, 0.6, 0.92)])
def test_drift_within_a_process_widens_its_interval(count, correlation, least):
    assert drift_covered(count, correlation) >= least


@pytest.mark.parametrize("count", [10, 30])
def test_values_that_do_not_drift_are_hardly_widened(count):
    assert 0.92 <= drift_covered(count, 0.0) <= 0.985


def test_pairs_of_drifting_latencies_are_as_good_as_independent():
    """What both arms share goes, and with it what makes neighbours alike."""
    generator = np.random.default_rng(8)
    drift = 0.1 * drifting(generator, 40, 0.9)
    first, second = (drift + 0.01 * generator.standard_normal(40) for _ in range(2))
    assert half_width(first - second) < half_width(first) / 5


def test_a_step_between_two_levels_gives_an_interval_about_as_wide_as_the_step():
    low, high = interval(center_replicates([0.16] * 7 + [0.0] * 7))
    assert low < 0
    assert high > 0.1
    assert high - low < 4 * 0.16


@pytest.mark.parametrize("processes", [1, 3, 9])
def test_the_same_values_have_the_same_replicates_whatever_was_asked_for_before(processes):
    generator = np.random.default_rng(12)
    values, labels = generator.standard_normal(12 * processes), [n % processes for n in range(12 * processes)]
    first = center_replicates(values, labels, seed=4)
    kept = first.copy()
    others = center_replicates(values[::-1], labels, seed=4)
    first += 1.0
    assert (center_replicates(values, labels, seed=4) == kept).all()
    assert not (others == kept).all()


@pytest.mark.parametrize("size", [8, 9, 60, 301])
def test_replicates_are_medians_of_resamples_spread_by_one_factor(size):
    values = np.random.default_rng(size).standard_normal(size)
    picks = np.random.default_rng(5).integers(size, size=(500, size))
    medians = np.median(values[picks], axis=1) - np.median(values)
    replicates = center_replicates(values, seed=5, count=500, same_places=True) - np.median(values)
    away = medians != 0
    factor = replicates[away] / medians[away]
    assert factor == pytest.approx(factor[0])
    assert 1 < factor[0] < 3
    assert (replicates[~away] == 0).all()


@pytest.mark.parametrize("size", [65, 66, 200, 501])
def test_medians_of_many_values_are_distributed_as_those_of_resamples(size):
    values = np.random.default_rng(size).standard_exponential(size)
    drawn, resampled = (
        center_replicates(values, seed=seed, count=20_000, same_places=same) for seed, same in ((1, False), (2, True))
    )
    # Shares of two samples of 20,000 differ by more than 0.0195 in one case of a thousand (Kolmogorov, Smirnov).
    steps = np.sort(np.concatenate([drawn, resampled]))
    shares = [np.searchsorted(np.sort(each), steps, side="right") / each.size for each in (drawn, resampled)]
    assert np.abs(shares[0] - shares[1]).max() < 0.0195


def test_samples_that_are_resampled_at_the_same_places_stay_paired():
    generator = np.random.default_rng(0)
    common = generator.standard_normal(200)
    first, second = common, common + 0.01 * generator.standard_normal(200)
    paired = [center_replicates(each, seed=3, same_places=True) for each in (first, second)]
    assert np.corrcoef(np.stack(paired))[0, 1] > 0.99
    # Independent noise stays independent: the places are shared, not the ranks.
    apart = [center_replicates(generator.standard_normal(200), seed=3, same_places=True) for _ in range(2)]
    assert abs(np.corrcoef(np.stack(apart))[0, 1]) < 0.2


# From printed tables.
@pytest.mark.parametrize(
    ("freedom", "probability", "expected"),
    [(8, 0.975, 2.306), (8, 0.9995, 5.041), (20, 0.025, -2.086), (20, 0.9995, 3.850), (1e9, 0.975, 1.960)],
)
def test_quantiles_of_students_t_are_those_of_tables(freedom, probability, expected):
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=0.01)
