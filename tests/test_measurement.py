import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import TypeAdapter

from tippingpoint.intervals import center_replicates, half_width
from tippingpoint.machine import Conditions, Peaks
from tippingpoint.measurement import (
    FAILURE_KINDS,
    Energy,
    Environment,
    Failure,
    Flops,
    Measurement,
    Memory,
    Outcome,
    Sample,
    is_best_batch,
    paired_log_ratios,
    session_root,
)
from tippingpoint.workload import Workload

ENVIRONMENT = Environment(
    device_name="CPU",
    cpu_model="Imaginary 9000",
    cores=8,
    threads=4,
    memory_bytes=2**34,
    platform="Linux x86_64",
    python="3.11.9",
    torch="2.13.0",
    transformers="5.23.0",
    tippingpoint="0.1.0",
)


def measured(seconds, *, session="s-0", workload=None, calls=1, **fields) -> Measurement:
    """Put blocks that took `seconds` per call into a measurement, one round each."""
    samples = (Sample(n, 0, float(n), calls, calls * float(s)) for n, s in enumerate(seconds))
    legal = {
        "workload": workload or Workload("bert", 512),
        "environment": ENVIRONMENT,
        "session": session,
        "positions": 512,
        "executed_positions": 512,
        "parameters": 109_482_240,
        "attention": "sdpa",
        "warm_ups_s": ((1.0, 0.5),),
        "samples": tuple(samples),
        "stop_reason": "95 % interval within 2 %",
    }
    return Measurement(**{**legal, **fields})


def normal(generator: np.random.Generator, count: int) -> np.ndarray:
    return 0.1 * generator.standard_normal(count)


def student(generator: np.random.Generator, count: int) -> np.ndarray:
    return 0.1 * generator.standard_t(3, count)


def interrupted(generator: np.random.Generator, count: int) -> np.ndarray:
    """Differences of two arms of which one block in ten is held up by much more than the usual noise."""
    held_up = generator.random((2, count)) < 0.1
    ours, theirs = np.where(
        held_up, abs(generator.standard_normal((2, count))), 0.05 * generator.standard_normal((2, count))
    )
    return ours - theirs


def covered(noise, count: int, simulations: int = 400) -> float:
    """Return how often the 95 % interval of noise around 0 holds 0."""
    generator = np.random.default_rng(2023)
    hits = 0
    for _ in range(simulations):
        low, high = np.percentile(center_replicates(noise(generator, count)), [2.5, 97.5])
        hits += low <= 0 <= high
    return hits / simulations


# Over 1,000 simulations each, coverage was 0.944 to 0.979 for these and n = 4 to 32. The share of 400 has a
# standard error of 0.011, so that three of them around 0.95 leave the band below.
@pytest.mark.parametrize("noise", [normal, student, interrupted])
@pytest.mark.parametrize("count", [4, 8, 16])
def test_the_95_percent_interval_of_a_centre_holds_the_truth_95_percent_of_the_time(noise, count):
    assert 0.917 <= covered(noise, count) <= 0.99


def test_half_width_shrinks_with_the_square_root_of_the_number_of_samples():
    generator = np.random.default_rng(1)
    widths = {n: np.median([half_width(normal(generator, n)) for _ in range(40)]) for n in (16, 64, 256)}
    # The half-width of a median of n normal values is 1.96 * sqrt(pi / 2 / n) standard deviations.
    for n, width in widths.items():
        assert width == pytest.approx(0.1 * 1.96 * math.sqrt(math.pi / 2 / n), rel=0.2)


def test_of_a_single_value_nothing_is_known_about_its_noise():
    assert half_width([3.0]) == math.inf
    assert half_width([]) == math.inf
    assert (center_replicates([3.0]) == 3).all()
    with pytest.raises(ValueError, match="no values to resample"):
        center_replicates([])


finite = st.floats(-10, 10, allow_subnormal=False)


@given(hnp.arrays(float, st.integers(1, 24), elements=finite), st.integers(-3, 3), st.integers(-4, 4))
def test_the_interval_of_a_centre_moves_and_stretches_with_the_values(values, shift, power):
    scale = 2.0**power
    quantiles = np.percentile(center_replicates(values), [2.5, 50, 97.5])
    moved = np.percentile(center_replicates(scale * values + shift), [2.5, 50, 97.5])
    # Each shifted value is off by half a unit of the largest; a mean of 24 adds up as many, and Student's t of
    # two values stretches a standard deviation by up to 9.
    tolerance = 80 * np.finfo(float).eps * (10 * scale + abs(shift))
    np.testing.assert_allclose(moved, scale * quantiles + shift, rtol=0, atol=tolerance)


def test_the_same_values_always_give_the_same_interval():
    values = normal(np.random.default_rng(0), 20)
    assert (center_replicates(values) == center_replicates(values)).all()
    assert (center_replicates(values, seed=1) != center_replicates(values)).any()
    assert half_width(values) == half_width(values.tolist())
    assert center_replicates(values, count=7).shape == (7,)


seconds = st.floats(1e-4, 10)
pairs = st.lists(st.tuples(seconds, seconds, st.floats(0.1, 10)), min_size=1, max_size=12)


@given(pairs)
def test_drift_that_both_arms_share_cancels_in_the_paired_ratios(pairs):
    baseline, variant, drift = np.array(pairs).T
    still = paired_log_ratios(measured(baseline), measured(variant))[0]
    drifting = paired_log_ratios(measured(baseline * drift), measured(variant * drift))[0]
    # Each ratio is off by the rounding of two products, two quotients and a logarithm.
    np.testing.assert_allclose(drifting, still, rtol=0, atol=8 * np.finfo(float).eps * 15)


@settings(max_examples=40)
@given(pairs, st.floats(1e-3, 1e3))
def test_scaling_all_times_changes_no_ratio_and_scales_every_latency(pairs, k):
    baseline, variant, _ = np.array(pairs).T
    ratios = paired_log_ratios(measured(baseline), measured(variant))[0]
    scaled = paired_log_ratios(measured(k * baseline), measured(k * variant))[0]
    np.testing.assert_allclose(scaled, ratios, rtol=0, atol=8 * np.finfo(float).eps * 15)
    assert measured(k * baseline).latency_s == pytest.approx(k * measured(baseline).latency_s)
    assert measured(k * baseline).latency_interval_s == pytest.approx(
        [k * bound for bound in measured(baseline).latency_interval_s]
    )


def test_the_ratio_is_positive_where_the_variant_is_faster_and_changes_sign_when_arms_change_places():
    slow, fast = measured([2.0, 2.0]), measured([1.0, 0.5])
    assert paired_log_ratios(slow, fast)[0].tolist() == [math.log(2), math.log(4)]
    assert paired_log_ratios(fast, slow)[0].tolist() == [-math.log(2), -math.log(4)]


def test_rounds_pair_by_their_number_and_those_of_one_arm_alone_are_left_out():
    baseline = measured([1.0, 2.0, 4.0])
    variant = measured([1.0, 1.0, 1.0])
    shorter = dataclasses.replace(variant, samples=variant.samples[:0:-1])
    assert paired_log_ratios(baseline, shorter)[0].tolist() == [math.log(2), math.log(4)]


def test_at_unlike_batch_sizes_the_ratio_is_that_of_the_throughputs():
    one = measured([1.0], workload=Workload("bert", 512))
    four = measured([2.0], workload=Workload("bert@local", 512, batch_size=4))
    assert paired_log_ratios(one, four)[0].tolist() == [math.log(2)]
    assert four.sequences_per_s / one.sequences_per_s == 2


def test_what_was_not_measured_side_by_side_cannot_be_paired():
    with pytest.raises(ValueError, match="measurements of different sessions cannot be paired"):
        paired_log_ratios(measured([1.0], session="a-0"), measured([1.0], session="b-0"))
    late = dataclasses.replace(measured([1.0]), samples=(Sample(7, 0, 0.0, 1, 1.0),))
    with pytest.raises(ValueError, match="the two measurements share no round"):
        paired_log_ratios(measured([1.0]), late)


def test_statistics_are_derived_from_raw_samples():
    measurement = measured([0.1, 0.3, 0.2, 0.5], calls=5, workload=Workload("bert", 512, batch_size=3))
    assert measurement.latency_s == pytest.approx(0.25)
    assert measurement.first_call_s == 1.0
    assert measurement.sequences_per_s == pytest.approx(12)
    assert measurement.positions_per_s == pytest.approx(12 * 512)
    assert measurement.spread == pytest.approx((0.35 - 0.175) / 0.25)
    low, high = measurement.latency_interval_s
    assert low < measurement.latency_s < high


def test_peak_memory_of_a_call_is_what_it_needs_beyond_the_weights():
    assert Memory(peak_bytes=700, weights_bytes=500, method="counted").activations_bytes == 200
    assert Memory(peak_bytes=499, weights_bytes=500, method="counted").activations_bytes == 0


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Environment)])
def test_the_fingerprint_changes_with_every_field_of_the_environment(field):
    value = getattr(ENVIRONMENT, field)
    changed = (
        value + 1 if isinstance(value, int) else (*value, ("x", "y")) if isinstance(value, tuple) else value + "x"
    )
    other = dataclasses.replace(ENVIRONMENT, **{field: changed})
    assert other.fingerprint != ENVIRONMENT.fingerprint
    assert dataclasses.replace(other, **{field: value}).fingerprint == ENVIRONMENT.fingerprint
    assert len(ENVIRONMENT.fingerprint) == 12


steady = (1.0, 1.001, 0.999, 1.0, 1.001, 0.999, 1.0, 1.0)


def on_device(share: float) -> Measurement:
    """A measurement whose device computed for a share of the host's time."""
    host = measured(steady)
    samples = (dataclasses.replace(sample, device_seconds=share * sample.seconds) for sample in host.samples)
    return dataclasses.replace(host, samples=tuple(samples))


def test_a_sound_measurement_carries_no_warning():
    flops = Flops(total=10, by_operator=(("mm", 10),))
    assert measured(steady, flops=flops).warnings == ()
    assert measured(steady, executed_positions=563).warnings == ()
    assert measured(steady).host_over_device is None
    assert on_device(0.9).warnings == ()


@pytest.mark.parametrize(
    ("measurement", "warning"),
    [
        (measured(steady[:3]), "only 3 timed blocks: give it a larger --budget"),
        (measured([1.0, 1.0, 1.0, 1.3]), "the 95 % interval of the latency is +-"),
        (measured([0.9] * 20 + [1.0] * 20 + [1.1] * 20), "interquartile range is 20 % of the median"),
        (on_device(0.5), "launch-bound: the host took 2.00 times as long as the device computed"),
        (measured(steady, executed_positions=1024), "the model pads 512 positions to 1,024 and pays for them"),
        (
            measured(steady, flops=Flops(total=1, by_operator=(), uncounted=(("_fft_r2c", 2), ("mv", 1)))),
            "FLOPs leave out operators without a formula: _fft_r2c, mv",
        ),
    ],
)
def test_each_doubt_about_a_measurement_is_one_warning_that_shows_when_it_is_printed(measurement, warning):
    (found,) = measurement.warnings
    assert found.startswith(warning)
    assert found in str(measurement)


texts = st.text(max_size=20)
counts = st.integers(0, 2**50)
times = st.floats(1e-9, 1e6)
samples = st.builds(Sample, counts, counts, times, st.integers(1, 10**6), times, st.none() | times)
named_counts = st.lists(st.tuples(texts, counts), max_size=3).map(tuple)
environments = st.builds(Environment)
measurements = st.builds(
    Measurement,
    workload=st.builds(Workload, st.sampled_from(["bert", "hubert@local:window=50"]), st.floats(0.1, 1e5)),
    environment=environments,
    session=texts,
    positions=counts,
    executed_positions=counts,
    parameters=counts,
    attention=texts,
    warm_ups_s=st.just(()),
    samples=st.lists(samples, max_size=4).map(tuple),
    stop_reason=texts,
    memory=st.none() | st.builds(Memory, peak_bytes=counts, weights_bytes=counts, method=texts),
    flops=st.none() | st.builds(Flops, total=counts, by_operator=named_counts, uncounted=named_counts),
    batch_curve=st.lists(st.tuples(st.integers(1, 512), times), max_size=3).map(tuple),
    notes=st.lists(texts, max_size=2).map(tuple),
)
failures = st.builds(
    Failure,
    workload=st.builds(Workload, st.just("vit"), st.integers(16, 4096)),
    environment=environments,
    session=texts,
    kind=st.sampled_from(FAILURE_KINDS),
    message=texts,
    positions=counts,
    refused=st.booleans(),
)


@given(measurements | failures)
def test_an_outcome_survives_json_in_every_field(outcome):
    adapter = TypeAdapter(type(outcome))
    text = adapter.dump_json(outcome)
    again = adapter.validate_json(text)
    assert again == outcome
    assert adapter.dump_json(again) == text
    assert TypeAdapter(Outcome).validate_json(text) == outcome


def test_the_two_kinds_of_outcome_know_the_pass_they_belong_to():
    failure = Failure(
        workload=Workload("bert", 512),
        environment=ENVIRONMENT,
        session="abc-0-batch",
        kind="out_of_memory",
        message="too much",
        positions=512,
    )
    assert is_best_batch(failure)
    assert not is_best_batch(measured([1.0], session="abc-0"))
    assert str(failure) == f"{failure.workload}\n  out_of_memory  too much"


@pytest.mark.parametrize("session", ["abc", "abc-0", "abc-0-batch", "abc-look"])
def test_whatever_was_measured_in_one_session_has_one_root(session):
    assert session_root(session) == "abc"


def test_a_measurement_in_a_notebook_is_escaped():
    assert "a &lt;b&gt;" in measured(steady, attention="a <b>")._repr_html_()


def with_conditions(**fields: object) -> Measurement:
    """A steady measurement during which the machine did something."""
    samples = (
        dataclasses.replace(sample, conditions=Conditions(**fields))  # type: ignore[arg-type]
        for sample in measured(steady).samples
    )
    return dataclasses.replace(measured(steady), samples=tuple(samples))


@pytest.mark.parametrize(
    ("measurement", "warning"),
    [
        (with_conditions(throttled=True), "8 of 8 blocks ran while the device was throttled"),
        (with_conditions(others_s=0.2, cores_s=1.0), "other processes took 20 % of the cores' time"),
        (with_conditions(steal_s=0.1, cores_s=1.0), "other virtual machines took 10 % of the cores' time"),
        (measured([1.0, 1.001] * 20 + [1.5] * 6), "6 of 46 blocks lie far beyond Tukey's fences (they count)"),
    ],
)
def test_what_the_machine_did_meanwhile_is_a_warning(measurement, warning):
    (found,) = measurement.warnings
    assert found.startswith(warning)


def test_a_quiet_machine_and_one_that_tells_nothing_are_no_warning():
    assert with_conditions(load=0.1, others_s=0.01, steal_s=0.0, cores_s=8.0, throttled=False).warnings == ()
    assert with_conditions().warnings == ()


def test_outliers_are_labelled_and_count():
    measurement = measured([1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 2.0])
    assert [sample.seconds for sample in measurement.outliers] == [2.0]
    assert len(measurement.per_call_s) == 8


def test_a_block_that_was_run_again_counts_nowhere_and_is_kept():
    steadily = measured(steady)
    first = dataclasses.replace(steadily.samples[0], seconds=9.0, repeated=True)
    again = dataclasses.replace(steadily, samples=(first, *steadily.samples))
    assert again.latency_s == steadily.latency_s
    assert again.latency_interval_s == steadily.latency_interval_s
    assert paired_log_ratios(again, steadily)[0].tolist() == [0.0] * 8
    assert again.samples[0].seconds == 9.0


def test_parts_of_memory_add_up_to_the_peak():
    memory = Memory(
        peak_bytes=1000,
        weights_bytes=300,
        inputs_bytes=110,
        gradients_bytes=300,
        optimizer_bytes=250,
        method="counted",
    )
    assert memory.activations_bytes == 40
    text = str(measured(steady, memory=memory))
    for part in ("weights 300 B", "inputs 110 B", "activations 40.0 B", "gradients 300 B", "optimizer 250 B"):
        assert part in text


def test_energy_is_gross_and_above_idle_or_none_with_its_reason():
    energy = Energy(joules_per_call=4.0, source="counter", idle_watts=10.0, window_s=5.0, calls=25)
    assert energy.net_joules_per_call == pytest.approx(2.0)
    nothing = Energy(joules_per_call=None, source="no counter: none here")
    assert nothing.net_joules_per_call is None
    assert "energy       none (no counter: none here)" in str(measured(steady, energy=nothing))


def test_speed_is_held_against_what_the_machine_can_do():
    flops = Flops(total=30, by_operator=(("mm", 30),), bytes_accessed=50)
    one = measured([1.0] * 8, flops=flops, peaks=Peaks(flops_per_s=60.0, bytes_per_s=200.0))
    assert one.flops_per_s == 30
    assert one.share_of_peak == 0.5
    assert one.share_of_bandwidth == 0.25
    assert measured([1.0] * 8, flops=flops).share_of_peak is None
    assert measured([1.0] * 8).share_of_bandwidth is None
