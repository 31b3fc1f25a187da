from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tippingpoint.analysis.batching import Batching
from tippingpoint.analysis.cost import CostCurve
from tippingpoint.analysis.switching import best_switch
from tippingpoint.analysis.workload_cost import Estimate, WorkloadCost, draws, epochs, resamples, workload_cost
from tippingpoint.data import LengthData
from tippingpoint.workload import Subject

BERT, LOCAL = Subject.parse("bert"), Subject.parse("bert@local:window=128")
GRID = np.unique(np.round(np.geomspace(1, 8192, 60)))


def curve(
    cost: Callable[[np.ndarray], np.ndarray], noise: float = 0.0, seed: int = 0, subject: Subject = BERT
) -> CostCurve:
    """Seconds, or bytes, measured at many lengths; with noise every replicate is off by a factor of its own."""
    off = noise * np.random.default_rng(seed).standard_normal((400, 1))
    return CostCurve(subject, tuple(GRID), np.log(cost(GRID)) + off)


def linear(n: np.ndarray) -> np.ndarray:
    return 1e-3 * n


def text(lengths: Sequence[float] | np.ndarray) -> LengthData:
    return LengthData.of(np.asarray(lengths), modality="text")


def cost_of(data: LengthData, policy: str = "one", seconds: CostCurve | None = None, **options) -> WorkloadCost:
    found = epochs(resamples(data, 8192), Batching.parse(policy))
    return workload_cost(draws(found, seconds or curve(linear), options.get("memory")), found[0].padded)


def lognormal(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(5, 0.8, count).round().clip(1, 4000)


def test_one_by_one_the_items_cost_what_each_costs():
    lengths = [100.0, 300.0, 500.0] * 700
    found = cost_of(text(lengths))
    assert found.per_1000_s.value == pytest.approx(300.0)
    assert found.latency_s.value == pytest.approx(0.3)
    assert found.latency_p50_s.value == pytest.approx(0.3)
    assert found.latency_p95_s.value == found.latency_p99_s.value == pytest.approx(0.5)
    assert (found.padding.value, found.padded) == (0, 0)
    assert found.peak_bytes is None


def test_percentiles_are_those_of_the_items():
    lengths = np.arange(1, 2001)
    found = cost_of(text(lengths))
    for percent, estimate in ((50, found.latency_p50_s), (95, found.latency_p95_s), (99, found.latency_p99_s)):
        assert estimate.value == pytest.approx(1e-3 * np.percentile(lengths, percent, method="inverted_cdf"))


def test_an_item_waits_for_its_batch():
    # All alike: four items take four times as long as one, and each of them has it when all have.
    found = cost_of(text([200.0] * 4000), "fixed:4")
    assert found.latency_p50_s.value == pytest.approx(4 * 0.2)
    assert found.per_1000_s.value == pytest.approx(200.0)


def test_padding_is_what_batches_cost_beyond_their_items():
    # With a cost that grows in proportion, the share of time is the share of positions.
    found = cost_of(text(lognormal(3000)), "fixed:8")
    assert found.padding.value == pytest.approx(found.padded, rel=1e-6)
    assert 0.5 < found.padded < 0.8
    # The longer sequences of quadratic attention cost more than in proportion, and so does padding.
    quadratic = cost_of(text(lognormal(3000)), "fixed:8", curve(lambda n: 1e-6 * n**2))
    assert quadratic.padding.value > found.padding.value


def test_what_is_packed_is_not_padded():
    found = cost_of(text(lognormal(3000)), "packed:4096")
    assert (found.padding.value, found.padding.high) == (0, 0)
    # In proportion to length, packing changes nothing but latency.
    alone = cost_of(text(lognormal(3000)))
    assert found.per_1000_s.value == pytest.approx(alone.per_1000_s.value, rel=1e-6)
    assert found.latency_p50_s.value > 5 * alone.latency_p50_s.value


@pytest.mark.parametrize("policy", ["one", "fixed:8", "bucketed:8", "budget:4000", "packed:4096"])
def test_a_machine_that_is_twice_as_slow_doubles_every_time_and_no_share(policy):
    data = text(lognormal(2500))
    one, two = cost_of(data, policy), cost_of(data, policy, curve(lambda n: 2 * linear(n)))
    for name in ("per_1000_s", "latency_s", "latency_p50_s", "latency_p99_s"):
        assert getattr(two, name).value == pytest.approx(2 * getattr(one, name).value)
        assert getattr(two, name).high == pytest.approx(2 * getattr(one, name).high)
    assert two.padding.value == pytest.approx(one.padding.value)


def test_like_lengths_together_cost_less_than_batches_as_they_come():
    data = text(lognormal(3000))
    fixed, bucketed, alone = (cost_of(data, policy).per_1000_s.value for policy in ("fixed:8", "bucketed:8", "one"))
    assert fixed > 2 * bucketed > 2 * alone > 0


def test_peak_memory_is_that_of_the_longest_batch_and_a_middle_one_stands_beside_it():
    memory = curve(lambda n: 1e6 * n)
    found = cost_of(text([100.0] * 2000 + [4000.0]), memory=memory)
    assert found.peak_bytes is not None
    assert found.median_bytes is not None
    assert found.peak_bytes.value == pytest.approx(4e9, rel=1e-6)
    # A resample without the longest item does not make the peak smaller.
    assert found.peak_bytes.low == pytest.approx(4e9, rel=1e-6)
    assert found.median_bytes.value == pytest.approx(1e8, rel=1e-6)


@pytest.mark.parametrize("policy", ["one", "fixed:8", "bucketed:8"])
def test_the_interval_holds_the_truth_about_a_sample_of_items(policy):
    truth = cost_of(text(lognormal(50_000, seed=99)), policy).per_1000_s.value
    held = 0
    for seed in range(40):
        interval = cost_of(text(lognormal(400, seed)), policy).per_1000_s.interval
        held += interval[0] <= truth <= interval[1]
    # 38 expected of 40; fewer than 33 in one seed of three hundred.
    assert held >= 33


def test_an_interval_holds_the_noise_of_measurement_too():
    quiet, noisy = (cost_of(text([200.0] * 3000), seconds=curve(linear, noise)) for noise in (0.0, 0.05))
    assert quiet.per_1000_s.interval == pytest.approx((200, 200))
    low, high = noisy.per_1000_s.interval
    assert low == pytest.approx(200 * np.exp(-1.96 * 0.05), rel=0.03)
    assert high == pytest.approx(200 * np.exp(1.96 * 0.05), rel=0.03)


def test_many_lengths_are_priced_in_steps_that_do_not_matter():
    durations = np.random.default_rng(0).uniform(1, 4000, 30_000)
    assert cost_of(text(durations)).per_1000_s.value == pytest.approx(durations.mean(), rel=1e-3)


def test_more_items_than_are_looked_at_are_thinned_evenly():
    lengths = np.random.default_rng(0).permutation(np.arange(1, 4001)).repeat(50)
    found = resamples(text(lengths), 8192, count=0)[0]
    assert len(found) == 50_000
    assert found.mean() == pytest.approx(lengths.mean(), rel=1e-3)


def test_items_beyond_reach_are_left_out_and_none_within_it_is_an_error():
    assert resamples(text([100, 9000]), 8192, count=0)[0].max() == 100
    with pytest.raises(ValueError, match="no item is as short as 50"):
        resamples(text([100, 9000]), 50)


# Two models


def quadratic(n: np.ndarray) -> np.ndarray:
    return 1e-3 * n * n / 1000


def switch_of(lengths: np.ndarray, policy: str = "one", noise: float = 0.0, long: Callable = linear):
    curves = {BERT: curve(quadratic, noise), LOCAL: curve(long, noise, 1, LOCAL)}
    items = resamples(text(lengths), 8192)
    found = epochs(items, Batching.parse(policy))
    singles = {subject: draws(found, prices, None)["latency"] for subject, prices in curves.items()}
    return best_switch(items, Batching.parse(policy), curves, singles, "latency")


def test_two_models_are_switched_where_their_costs_cross():
    lengths = np.random.default_rng(0).integers(1, 4000, 20_000)
    found = switch_of(lengths)
    assert found is not None
    assert (found.short, found.long) == (BERT, LOCAL)
    assert found.length == pytest.approx(1000, rel=0.1)
    assert found.single == LOCAL
    best = np.minimum(quadratic(lengths), linear(lengths)).mean()
    assert found.cost_s.value == pytest.approx(best, rel=0.01)
    assert found.gain.value == pytest.approx(1 - best / linear(lengths).mean(), rel=0.1)
    assert found.gain.low < found.gain.value < found.gain.high
    assert found.share == pytest.approx(0.75, abs=0.03)
    assert found.certain


@pytest.mark.parametrize("seed", range(4))
def test_the_gain_of_two_models_lies_within_its_interval_for_few_items_with_a_long_tail(seed):
    # A resample with more of the long items has dearer ones, too.
    lengths = np.random.default_rng(seed).lognormal(6.8, 1.2, 250).clip(20, 60_000).astype(int)
    found = switch_of(lengths, noise=0.02, long=lambda n: 0.4 * n + 4e-4 * n**2)
    if found is not None:
        assert found.gain.low <= found.gain.value <= found.gain.high
        assert found.cost_s.low <= found.cost_s.value <= found.cost_s.high


def test_in_batches_each_part_is_batched_apart():
    lengths = lognormal(20_000).clip(1, 4000)
    found = switch_of(lengths * 5 % 4000 + 1, "bucketed:8")
    assert found is not None
    assert found.length == pytest.approx(1000, rel=0.25)


def test_no_two_models_where_one_is_best_everywhere():
    assert switch_of(np.arange(1, 900)) is None
    assert switch_of(np.arange(1200, 4000)) is None


def test_a_gain_within_noise_is_not_certain():
    # A few items on the other side gain a little, less than what is known of either model.
    lengths = np.array([900] * 200 + [1100] * 200)
    found = switch_of(lengths, noise=0.2, long=lambda n: 1e-3 * n + 0 * n)
    assert found is None or not found.certain


def test_an_estimate_is_its_first_draw_with_the_interval_of_the_others():
    assert Estimate.of(np.array([3.0, *np.linspace(0, 10, 1001)])).interval == pytest.approx((0.25, 9.75))
