import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthetic import MIB, failure, measurement
from tippingpoint.analysis.comparison import MEMORY_TOLERANCE
from tippingpoint.analysis.cost import CostCurve, cost_curve, of_batches
from tippingpoint.measurement import BEST_BATCH, Outcome
from tippingpoint.models.catalog import architecture_of
from tippingpoint.workload import Subject

BERT = Subject.parse("bert")
LONGFORMER = Subject.parse("longformer")
HUBERT = Subject.parse("hubert")
VIT = Subject.parse("vit")


def latency(outcomes: Sequence[Outcome], subject: Subject = BERT) -> CostCurve:
    curve = cost_curve(outcomes, subject, metric="latency", phase="inference")
    assert curve is not None
    return curve


def power_law(subject: Subject, lengths: Sequence[float], factor: float, power: float) -> CostCurve:
    """A curve whose cost is `factor` times the executed positions to a power, without noise."""
    executed = architecture_of(subject).executed_positions
    return latency([measurement(subject, n, factor * executed(n) ** power) for n in lengths], subject)


@given(
    factor=st.floats(1e-7, 1e-2),
    power=st.floats(0, 3),
    lengths=st.lists(st.integers(1, 10_000), min_size=2, max_size=6, unique=True),
    share=st.floats(0, 1),
)
def test_a_power_law_is_interpolated_exactly(factor, power, lengths, share):
    low, high = min(lengths), max(lengths)
    wanted = round(low + share * (high - low))
    curve = power_law(BERT, lengths, factor, power)
    assert curve.at([wanted]) == pytest.approx(factor * wanted**power, rel=1e-9)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_power_law_in_positions_is_exact_where_positions_are_not_proportional_to_lengths(power):
    # hubert: frames of seconds; vit: patches and one more of a side in pixels
    for subject, measured, wanted in ((HUBERT, [1.0, 10.0], 3.21), (VIT, [64, 512], 224)):
        curve = power_law(subject, measured, 1e-4, power)
        assert curve.at([wanted]) == pytest.approx(1e-4 * architecture_of(subject).positions(wanted) ** power)


def test_measured_lengths_come_back_as_they_were_measured():
    curve = latency([measurement("bert", 128, 0.01), measurement("bert", 300, 0.5), measurement("bert", 700, 0.2)])
    assert curve.at([128, 300, 700])[0] == pytest.approx([0.01, 0.5, 0.2])


@given(lengths=st.lists(st.integers(128, 4096), min_size=1, max_size=20))
def test_between_two_lengths_the_cost_lies_between_theirs(lengths):
    curve = latency([measurement("bert", 128, 0.01), measurement("bert", 4096, 0.7)])
    costs = curve.at(lengths)
    assert np.all((costs >= 0.01 * (1 - 1e-12)) & (costs <= 0.7 * (1 + 1e-12)))


@pytest.mark.parametrize("beyond", [4097, 8192, math.inf])
def test_nothing_is_extrapolated(beyond):
    curve = latency([measurement("bert", 128, 0.01), measurement("bert", 4096, 0.7)])
    assert curve.reach == 4096
    with pytest.raises(ValueError, match="is beyond the longest measured length 4096"):
        curve.at([200, beyond])


def test_below_the_shortest_length_the_cost_of_the_shortest_is_taken():
    curve = latency([measurement("bert", 128, 0.01), measurement("bert", 4096, 0.7)])
    assert curve.at([1, 64, 127])[0] == pytest.approx([0.01] * 3)


def test_a_single_length_speaks_of_what_is_not_longer():
    curve = latency([measurement("bert", 512, 0.02)])
    assert curve.at([100, 512])[0] == pytest.approx([0.02, 0.02])


def test_a_model_that_pads_pays_for_the_positions_it_executes():
    curve = power_law(LONGFORMER, [512, 1024, 4096], 1e-5, 1.0)
    costs = curve.at([500, 512, 513, 1000, 1024, 1025, 1600, 3000])[0]
    assert costs == pytest.approx([512e-5, 512e-5, 1024e-5, 1024e-5, 1024e-5, 1536e-5, 2048e-5, 3072e-5])


def test_two_lengths_that_are_padded_to_the_same_are_one_step_of_the_staircase():
    curve = power_law(LONGFORMER, [400, 500, 900], 1e-5, 1.0)
    assert curve.at([300, 450, 600])[0] == pytest.approx([512e-5, 512e-5, 1024e-5])


def test_a_subject_that_was_never_measured_has_no_curve():
    outcomes = [measurement("longformer", 512, 0.1), failure("bert", 512)]
    assert cost_curve(outcomes, BERT, metric="latency", phase="inference") is None


def test_a_failure_is_no_cost():
    outcomes = [measurement("bert", 512, 0.1), failure("bert", 1024)]
    assert latency(outcomes).reach == 512


def test_other_phases_and_batch_sizes_do_not_count():
    outcomes = [
        measurement("bert", 512, 0.1),
        measurement("bert", 512, 9.0, batch_size=8),
        measurement("bert", 512, 9.0, phase="training"),
        measurement("bert", 512, 9.0, session="s-0" + BEST_BATCH),
    ]
    assert latency(outcomes).at([512])[0] == pytest.approx([0.1])


def test_throughput_costs_seconds_for_each_sequence_at_the_best_batch():
    outcomes = [
        measurement("bert", 256, 0.1),
        measurement("bert", 512, 0.2),
        measurement("bert", 512, 0.8, batch_size=16, session="s-0" + BEST_BATCH, peak_bytes=None),
    ]
    curve = cost_curve(outcomes, BERT, metric="throughput", phase="inference")
    assert curve is not None
    # no larger batch paid at 256
    assert curve.at([256, 512])[0] == pytest.approx([0.1, 0.05])


def test_peak_memory_is_the_latest_reading_within_its_tolerance():
    outcomes = [
        measurement("bert", 512, 0.1, peak_bytes=100 * MIB, session="a-0"),
        measurement("bert", 512, 0.1, peak_bytes=200 * MIB, session="b-0"),
    ]
    curve = cost_curve(outcomes, BERT, metric="peak_memory", phase="inference")
    assert curve is not None
    low, middle, high = np.percentile(curve.at([512]), [2.5, 50, 97.5])
    assert middle == pytest.approx(200 * MIB, rel=2e-3)
    assert math.log(high / low) / 2 == pytest.approx(MEMORY_TOLERANCE, rel=0.2)


def test_measurements_without_memory_have_no_memory_curve():
    outcomes = [measurement("bert", 512, 0.1, peak_bytes=None)]
    assert cost_curve(outcomes, BERT, metric="peak_memory", phase="inference") is None


def test_replicates_spread_as_the_samples_do():
    generator = np.random.default_rng(0)
    seconds = 0.1 * np.exp(0.1 * generator.standard_normal(60))
    wide = latency([measurement("bert", 512, seconds)]).at([512])
    narrow = latency([measurement("bert", 512, 0.1)]).at([512])
    assert np.std(narrow) == pytest.approx(0, abs=1e-15)
    assert np.median(wide) == pytest.approx(0.1, rel=0.05)
    # the spread of a median of 60 values: 1.25 / sqrt(60) of theirs
    assert np.std(np.log(wide)) == pytest.approx(0.1 * 1.25 / math.sqrt(60), rel=0.4)


def test_batches_with_padding_are_priced_by_such_batches_and_others_by_others():
    plain = [measurement(BERT, 128, 1.0, batch_size=size) for size in (1, 8)]
    padded = measurement(BERT, 128, 1.1, batch_size=8, padded=True)
    assert of_batches([*plain, padded], padded=True) == ((plain[0], padded), True)
    assert of_batches([*plain, padded], padded=False) == (tuple(plain), True)
    # Better than nothing, and it is said.
    assert of_batches(plain, padded=True) == (tuple(plain), False)
    assert of_batches(plain[:1], padded=True) == (tuple(plain[:1]), True)
