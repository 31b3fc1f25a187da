"""Planted machines: known rates are recovered, hold-out intervals hold the truth, counts are followed exactly."""

import math
from dataclasses import replace

import numpy as np
import pytest

from synthetic import ENVIRONMENT, measurement
from tippingpoint.analysis.scaling import (
    COMPONENTS,
    Count,
    CountedCall,
    Extent,
    HeldOut,
    Polynomial,
    cache_bytes,
    fit_rates,
    fit_scaling,
    kind_of,
    last_crossing,
    memory_spread,
)
from tippingpoint.errors import AnswerError
from tippingpoint.machine import Peaks
from tippingpoint.measurement import Flops

PEAKS = Peaks(flops_per_s=2e11, bytes_per_s=2e10)
# Seconds for an operation of a convolution, a linear layer and attention, for a byte within the cache and one that
# spills, and for a layer.
RATES = np.array([1 / 1e11, 1 / 1.5e11, 1 / 0.8e11, 1 / 3e10, 1 / 1e10, 5e-4])
LENGTHS = (128, 256, 384, 512, 768, 1024)
CACHE = 2e6


def call(positions: int, layers: int = 12, *, eager: bool = False, peak_bytes: float | None = None) -> CountedCall:
    """What a call of a small encoder would be seen to do, with a score matrix in memory or without."""
    scores = layers * 4 * 512 * positions**2
    accesses = [("gelu", 8 * positions * 2048, layers), ("add", 12 * positions * 512, 2 * layers)]
    accesses += [("addmm", 4 * (positions * 1024 + 512 * 512), 6 * layers)]
    if eager:
        accesses += [("_softmax", 2 * 4 * 8 * positions**2, layers), ("bmm", 4 * 8 * positions**2, 2 * layers)]
    flops = (("addmm", layers * 24 * 512 * 512 * positions), ("bmm" if eager else "_scaled_dot_product_x", scores))
    return CountedCall(
        positions=positions,
        layers=layers,
        flops=Flops(total=sum(n for _, n in flops), by_operator=flops, bytes_by_call=tuple(accesses)),
        peak_bytes=peak_bytes,
    )


def seconds(count: Count, rates: np.ndarray = RATES) -> float:
    return float(np.dot(count.work, rates))


def counts(lengths=LENGTHS, **options) -> list[Count]:
    return [call(n, **options).count(CACHE) for n in lengths]


def test_a_polynomial_through_exact_counts_is_exact_at_a_thousand_times_the_length():
    polynomial = Polynomial.through([512, 768, 1024, 1280], [7 + 3 * n + 2 * n * n for n in (512, 768, 1024, 1280)])
    assert polynomial(10**6) == pytest.approx(7 + 3e6 + 2e12, rel=1e-9)


def test_a_small_quadratic_part_of_exact_counts_is_not_lost():
    """A mask of one byte for each pair is nothing at 1,000 positions, and most of it all at a million."""
    polynomial = Polynomial.through([1024, 1536, 2048, 2560], [1e6 * n + n * n for n in (1024, 1536, 2048, 2560)])
    assert polynomial(10**6) == pytest.approx(2e12, rel=1e-6)


def test_noise_on_linear_counts_does_not_become_a_square():
    values = [1000 * n * noise for n, noise in zip((512, 768, 1024, 1280), (1, 1.003, 1, 0.998), strict=True)]
    polynomial = Polynomial.through([512, 768, 1024, 1280], values)
    assert polynomial.is_linear
    assert polynomial(10**6) == pytest.approx(1e9, rel=0.02)


def test_noise_never_makes_work_fall_with_the_length():
    polynomial = Polynomial.through([512, 768, 1024, 1280], [512.0, 768.0, 1024.0, 1200.0])
    assert polynomial(10**6) > polynomial(1280)


def test_a_polynomial_of_few_values_has_a_low_degree_and_is_never_negative():
    assert Polynomial.through([100], [5.0])(1000) == 5
    assert Polynomial.through([100, 200], [5.0, 10.0])(1000) == pytest.approx(50)
    assert Polynomial(-5.0, 1.0)(2) == 0


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("addmm", "linear"),
        ("mm", "linear"),
        ("bmm", "attention"),
        ("baddbmm", "attention"),
        ("_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("_scaled_dot_product_efficient_attention", "attention"),
        ("convolution_backward", "convolution"),
        ("_softmax", "element-wise"),
        ("native_layer_norm", "element-wise"),
        ("mul", "element-wise"),
    ],
)
def test_operators_are_sorted_into_kinds_of_work(operator, kind):
    assert kind_of(operator) == kind


def test_bytes_beyond_the_cache_spill():
    count = call(1024, eager=True).count(CACHE)
    softmax = 2 * 4 * 8 * 1024**2
    assert count.work[3] == pytest.approx(12 * 4 * 2 * CACHE)
    assert count.spilled[3] == pytest.approx(12 * (softmax + 8 * 1024 * 2048 + 2 * 12 * 1024 * 512 - 4 * 2 * CACHE))
    assert call(1024, eager=True).count(0).work[3] == 0


@pytest.mark.parametrize("eager", [False, True])
def test_work_is_followed_exactly_to_other_lengths_and_depths(eager):
    seen = tuple(call(n, depth, eager=eager) for depth in (2, 4) for n in (512, 768, 1024, 1280))
    extent = Extent(seen, CACHE)
    for positions, layers in ((4096, 12), (10**6, 48), (640, 3)):
        expected, found = call(positions, layers, eager=eager).count(CACHE), extent.at(positions, layers)
        assert found.work == pytest.approx(expected.work, rel=1e-9)
        assert found.bytes == pytest.approx(expected.bytes, rel=1e-9)


def test_work_at_one_depth_is_followed_in_length_alone():
    extent = Extent(tuple(call(n, 12) for n in (512, 768, 1024, 1280)), CACHE)
    assert extent.at(4096, 12).work == pytest.approx(call(4096, 12).count(CACHE).work, rel=1e-9)


def test_memory_is_followed_no_further_than_what_is_accessed_allows():
    """Readings of memory are noisy: without a square in the bytes there is none in the peak."""

    def seen(eager):
        return tuple(
            call(n, d, eager=eager, peak_bytes=1e8 + d * 1e7 + 4e3 * n + eager * 64 * n * n + 2e6 * (n == 768))
            for d in (2, 4)
            for n in (512, 768, 1024, 1280)
        )  # fmt: skip

    linear, square = (Extent(seen(eager), CACHE).at(10**6, 12).peak_bytes for eager in (False, True))
    assert linear == pytest.approx(4.22e9, rel=0.2)
    assert square == pytest.approx(64e12, rel=0.3)


def test_an_unequal_number_of_calls_is_followed_by_their_mean():
    """An implementation that loops over blocks calls an operator more often at longer inputs."""
    seen = tuple(
        CountedCall(
            positions=n,
            layers=None,
            flops=Flops(total=n, by_operator=(("mm", n),), bytes_by_call=(("add", 1000, n // 256),)),
        )
        for n in (512, 768, 1024, 1280)
    )
    assert Extent(seen, 0).at(2048, None).bytes[3] > 0


def test_no_counts_are_an_error():
    with pytest.raises(AnswerError, match="no work was counted"):
        Extent((), CACHE)


@pytest.mark.parametrize("eager", [False, True])
def test_planted_times_are_predicted_at_longer_inputs(eager):
    known = counts(eager=eager)
    model = fit_scaling(known, [seconds(count) for count in known], PEAKS)
    for positions in (2048, 4096):
        count = call(positions, eager=eager).count(CACHE)
        assert model.seconds(count) == pytest.approx(seconds(count), rel=0.05)
        assert abs(math.log(model.seconds(count) / seconds(count))) <= model.log_half_width(positions)


def test_rates_that_are_the_machines_own_are_recovered_exactly():
    own = np.array([1 / 2e11] * 3 + [1 / 2e10] * 2 + [3e-4])
    known = counts(eager=True)
    found = fit_rates([(count, seconds(count, own)) for count in known], PEAKS)
    assert found == pytest.approx(own, rel=1e-4)


def test_a_slower_machine_is_slower_in_everything():
    own = np.array([1 / 2e11] * 3 + [1 / 2e10] * 2 + [3e-4])
    known = counts(eager=True)
    found = fit_rates([(count, 3 * seconds(count, own)) for count in known], PEAKS)
    assert np.dot(call(8192, eager=True).count(CACHE).work, found) == pytest.approx(
        3 * seconds(call(8192, eager=True).count(CACHE), own), rel=0.02
    )


def test_shares_sum_to_one_and_leave_out_what_is_not_there():
    known = counts()
    model = fit_scaling(known, [seconds(count) for count in known], PEAKS)
    shares = model.shares(known[-1])
    assert sum(shares.values()) == pytest.approx(1)
    assert "convolution" not in shares
    assert set(shares) < set(COMPONENTS)


def test_each_longer_length_is_held_out_by_each_shorter_fit():
    known = counts((128, 256, 512, 1024, 2048))
    model = fit_scaling(known, [seconds(count) for count in known], PEAKS)
    assert {(one.fitted_to, one.positions) for one in model.held_out} == {(512, 1024), (512, 2048), (1024, 2048)}
    assert model.fits == 2
    assert model.longest == 2048
    assert model.held_out[0].doublings == 1


def test_intervals_grow_with_the_distance():
    known = counts()
    model = fit_scaling(known, [1.03 ** (-1) ** i * seconds(count) for i, count in enumerate(known)], PEAKS)
    near, far = model.log_half_width(2048), model.log_half_width(4096)
    assert 0 < model.log_half_width(512) == model.log_half_width(1024) < near < far
    assert far - near == pytest.approx(near - model.log_half_width(1024))
    assert model.log_half_width(2048, 1.0) == pytest.approx(far)
    assert model.log_half_width(64) == pytest.approx(near)
    assert model.memory_log_half_width(4096) > model.memory_log_half_width(1024) > 0


@pytest.mark.parametrize("target", [2048, 4096, 65536])
@pytest.mark.parametrize(("lengths", "noise"), [(LENGTHS, 0.02), (LENGTHS, 0.05), ((128, 256, 384, 512, 640), 0.03)])
def test_the_interval_from_hold_out_holds_the_truth(lengths, noise, target):
    """At least 95 % nominal: simulated machines with rates of their own, and noise on every time."""
    generator = np.random.default_rng(0)
    held, times = 0, 60
    known = counts(lengths, eager=True)
    count = call(target, eager=True).count(CACHE)
    for _ in range(times):
        rates = RATES * np.exp(generator.normal(0, 0.3, RATES.size))
        observed = [seconds(one, rates) * math.exp(generator.normal(0, noise)) for one in known]
        model = fit_scaling(known, observed, PEAKS)
        error = math.log(model.seconds(count) / seconds(count, rates))
        held += abs(error) <= model.log_half_width(target)
    assert held / times >= 0.95


def test_lengths_that_cost_the_same_are_one():
    once = call(512).count(CACHE)
    with pytest.raises(AnswerError, match="at least two measured lengths of different cost, and there is one"):
        fit_scaling([once, once], [1.0, 1.1], PEAKS)
    model = fit_scaling([once, once, call(1024).count(CACHE)], [1.0, 1.1, 2.4], PEAKS)
    assert model.measured == ((512, pytest.approx(1.05)), (1024, 2.4))
    assert model.fits == 1


def test_what_was_held_out_knows_its_error():
    one = HeldOut(positions=4096, fitted_to=1024, predicted=1.1, measured=1.0)
    assert one.error == pytest.approx(0.1)
    assert one.doublings == 2
    assert one.log_error == pytest.approx(math.log(1.1))


def test_the_interval_of_memory_comes_from_the_measured_peaks():
    seen = tuple(call(n, d, peak_bytes=1e8 + 1e7 * d + 4000 * n) for d in (2, 4) for n in (512, 768, 1024, 1280))
    extent = Extent(seen, CACHE)
    known = counts()
    model = fit_scaling(known, [seconds(count) for count in known], PEAKS)
    right, wrong = (
        memory_spread(model, extent, [replace(c, peak_bytes=f * (2.2e8 + 4000 * c.positions)) for c in known])
        for f in (1.0, 1.3)
    )
    assert right.memory_spread == pytest.approx(0.02 / 1.96)
    assert wrong.memory_spread == pytest.approx(math.log(1.3), rel=0.01)
    assert memory_spread(model, extent, known) is model


def test_the_roofline_takes_the_longer_of_operations_and_bytes():
    count = Count(positions=1, layers=1, flops=(0, 100.0, 10.0, 0), bytes=(0, 10.0, 30.0, 5.0), spilled=(0,) * 4)
    assert count.roofline_s(10.0, 1.0) == pytest.approx(10 + 30 + 5)


def test_a_measurement_without_accesses_tells_no_work():
    assert CountedCall.of(measurement("bert", 128, 1.0), 12) is None
    told = replace(
        measurement("bert", 128, 1.0), flops=Flops(total=5, by_operator=(("mm", 5),), bytes_by_call=(("mm", 3, 2),))
    )
    found = CountedCall.of(told, 12)
    assert found is not None
    assert found.count(0).flops == (0, 5, 0, 0)
    assert found.count(0).bytes == (0, 6, 0, 0)
    assert found.peak_bytes == 100 * 2**20


@pytest.mark.parametrize(
    ("caches", "device", "size"),
    [
        ("L1d 48 KiB, L2 2 MiB, L3 32 MiB", "cpu", 32 * 2**20),
        ("L2 512 KiB", "cpu", 2**19),
        ("", "cpu", 0),
        ("L1d 48 KiB, L3 32 MiB", "cuda", 0),
    ],
)
def test_the_last_cache_is_read_from_the_environment(caches, device, size):
    assert cache_bytes(replace(ENVIRONMENT, caches=caches), device) == size


@pytest.mark.parametrize(
    ("ratios", "width", "length", "interval"),
    [
        ([-1, -0.5, 0.5, 1], 0.1, 3, (3, 3)),
        ([-1, -0.5, 0.5, 1], 0.7, 3, (2, 4)),
        ([-1, -0.5, 0.5, 1], 2.0, 3, (1, None)),
        ([-1, 1, -1, 1], 0.1, 4, (4, 4)),
        ([1, 1, 1, 1], 0.1, 1, (1, 1)),
        ([1, 1, 1, -1], 0.1, None, (None, None)),
    ],
)
def test_a_variant_wins_from_where_it_stays_cheaper(ratios, width, length, interval):
    assert last_crossing([1, 2, 3, 4], ratios, [width] * 4) == (length, interval)
