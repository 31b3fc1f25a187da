from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tippingpoint.analysis.batching import Batching
from tippingpoint.analysis.replay import ReplayBatch, Replayed, batches_to_run, most_demanding, seconds_per_item
from tippingpoint.machine import Conditions
from tippingpoint.measurement import Sample
from tippingpoint.workload import Subject

LENGTHS = st.lists(st.integers(1, 2000), min_size=1, max_size=60)


def batch(length: float, count: int = 1) -> ReplayBatch:
    return ReplayBatch(length, (length,) * count, count)


def replayed(seconds: np.ndarray, counts: np.ndarray, prices: np.ndarray | None = None, **fields) -> Replayed:
    """Batches that took `seconds`, with what was predicted for them, [replicates, batches]."""
    samples = tuple(
        Sample(round=n, order=0, started_s=float(n), calls=1, seconds=float(s)) for n, s in enumerate(seconds)
    )
    return Replayed(
        subject=Subject("bert"),
        batches=tuple(batch(100, int(count)) for count in counts),
        samples=samples,
        prices=prices,
        priced=None if prices is None else np.ones(len(seconds), dtype=bool),
        **fields,
    )


@pytest.mark.parametrize("policy", ["one", "fixed:4", "bucketed:4", "budget:3000"])
@given(lengths=LENGTHS)
def test_each_sequence_of_a_batch_has_its_own_length_and_none_is_longer(policy, lengths):
    formed = Batching.parse(policy).form(np.array(lengths), np.random.default_rng(0))
    batches = batches_to_run(formed)
    assert sorted(length for each in batches for length in each.lengths) == sorted(lengths)
    assert all(max(each.lengths) == each.length and len(each.lengths) == each.items for each in batches)
    assert any(each.padded for each in batches) == (formed.padding > 1e-12)


@given(lengths=LENGTHS)
def test_what_is_packed_is_one_sequence_that_nothing_pads(lengths):
    batches = batches_to_run(Batching.parse("packed:2000").form(np.array(lengths), np.random.default_rng(0)))
    assert sum(each.items for each in batches) == len(lengths)
    assert all(each.lengths == (each.length,) and not each.padded for each in batches)


@given(batches=st.lists(st.builds(batch, st.integers(1, 2000), st.integers(1, 64)), min_size=1, max_size=40))
def test_the_most_demanding_batches_hold_the_most_of_all(batches):
    found = most_demanding(batches)
    assert 1 <= len(found) <= 3
    for need in (
        lambda each: each.length,
        lambda each: each.length * len(each.lengths),
        lambda each: each.length**2 * len(each.lengths),
    ):
        assert max(map(need, found)) == max(map(need, batches))
    assert found[-1].length == max(each.length for each in batches)


def test_a_mean_over_items_weighs_batches_by_what_they_hold():
    found = seconds_per_item(np.array([1.0, 8.0]), np.array([1, 4]))
    assert found.value == pytest.approx(9 / 5)
    assert 1.0 <= found.low < found.value < found.high <= 2.0


def test_its_interval_holds_the_truth_as_often_as_it_says():
    generator, inside = np.random.default_rng(0), 0
    for _ in range(200):
        counts = generator.integers(1, 9, size=60)
        seconds = counts * generator.gamma(4, 0.25, size=60)
        found = seconds_per_item(seconds, counts)
        inside += found.low <= 1.0 <= found.high
    assert 0.88 <= inside / 200 <= 0.99


def test_every_item_has_the_latency_of_its_batch():
    found = replayed(np.array([3.0, 1.0, 2.0]), np.array([1, 5, 4]))
    assert [found.latency_s(percent) for percent in (10, 50, 51, 90, 91, 99)] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]


@given(ratio=st.floats(0.2, 5.0), scale=st.floats(1e-3, 1e3))
def test_a_planted_difference_is_recovered_whatever_the_lengths(ratio, scale):
    generator = np.random.default_rng(0)
    prices = scale * generator.gamma(1, 1, size=50)
    found = replayed(prices / ratio, np.ones(50), np.tile(prices, (400, 1))).difference
    assert found is not None
    # Costs of items differ tenfold, and yet nothing is in doubt: each batch has its own prediction.
    assert (found.value, found.low, found.high) == pytest.approx((ratio - 1,) * 3, abs=1e-9)


def test_noise_of_batches_and_doubt_about_prices_are_both_in_the_interval_of_a_difference():
    generator = np.random.default_rng(0)
    prices = np.ones(100)
    noisy = np.exp(0.2 * generator.standard_normal(100))
    doubtful = np.exp(0.05 * generator.standard_normal(400))[:, None] * prices
    widths = []
    for seconds, drawn in ((noisy, np.tile(prices, (400, 1))), (prices, doubtful), (noisy, doubtful)):
        found = replayed(seconds, np.ones(100), drawn).difference
        assert found is not None
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[2] == pytest.approx(np.hypot(widths[0], widths[1]), rel=0.15)


def test_a_batch_in_the_middle_is_not_moved_by_a_few_that_were_disturbed():
    seconds = np.ones(101)
    seconds[:10] = 20.0
    found = replayed(seconds, np.ones(101), np.full((400, 101), 1.1))
    assert found.difference is not None
    assert found.difference.value < -0.5
    assert found.typical_difference == pytest.approx(0.1)


def test_batches_without_a_price_are_left_out_of_the_comparison_and_of_nothing_else():
    priced = np.array([True, False, True])
    found = replace(replayed(np.array([1.0, 50.0, 1.0]), np.ones(3)), prices=np.full((400, 2), 2.0), priced=priced)
    assert found.per_1000_s is not None
    assert found.difference is not None
    assert found.per_1000_s.value == pytest.approx(1000 * 52 / 3)
    assert found.difference.value == pytest.approx(1.0)
    # What is predicted for some would be taken for all.
    assert found.predicted_per_1000_s is found.predicted_latency_s(50) is None


def test_nothing_observed_or_predicted_is_none_and_never_a_number():
    never = Replayed(subject=Subject("bert"))
    assert never.per_1000_s is None
    assert never.latency_s(50) is None
    unpriced = replayed(np.ones(3), np.ones(3))
    assert unpriced.difference is None
    assert unpriced.typical_difference is None
    assert unpriced.predicted_per_1000_s is None
    assert unpriced.predicted_latency_s(50) is None


def test_a_busy_or_slowed_machine_is_named():
    found = replayed(np.ones(2), np.ones(2))
    assert found.warnings == ()
    busy = Conditions(others_s=0.5, steal_s=0.1, cores_s=2.0, throttled=True)
    samples = (replace(found.samples[0], conditions=busy), replace(found.samples[1], conditions=Conditions()))
    taken, slowed = replace(found, samples=samples).warnings
    assert taken == "others took 30 % of the cores' time: rerun on a quiet machine"
    assert slowed.endswith("during 1 of 2 batches")
