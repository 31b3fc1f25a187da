"""Records of a breakdown: what follows from planted times adds up, and says what is doubtful."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakdowns import MS, component, encoder, of
from tippingpoint.analysis.breakdown import CLOSED, Breakdown, Component

seconds = st.floats(1e-6, 10.0)


def rounds_of(closures: Sequence[float], plain: Sequence[float]) -> Breakdown:
    """Parts that add up to such shares of the plain calls: two thirds in a part, the rest between operators."""
    explained = [share * seconds for share, seconds in zip(closures, plain, strict=True)]
    part = component("attention", "AV", [2 / 3 * seconds for seconds in explained])
    return of([part], plain_s=plain, between_s=[seconds / 3 for seconds in explained])


@pytest.mark.parametrize(
    ("closures", "kept"),
    [
        # The middle half: of eight without two on either side ...
        ([0.5, 0.1, 0.8, 0.3, 0.2, 0.7, 0.4, 0.6], (0, 3, 6, 7)),
        # ... of six and of seven without one.
        ([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], (1, 2, 3, 4)),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], (1, 2, 3, 4, 5)),
    ],
)
def test_the_middle_half_of_the_rounds_is_kept_by_what_parts_add_up_to(closures, kept):
    assert rounds_of(closures, [1.0] * len(closures)).kept == kept
    # It is shares that are compared, whatever the calls of a round took.
    assert rounds_of(closures, [2.0**number for number in range(len(closures))]).kept == kept


def test_what_happens_in_other_rounds_moves_no_number():
    calm = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    disturbed = [90.0, 0.5, *calm[2:]]
    parts = [component("attention", "AV", [20.0, 0.1, *[0.5] * 6])]
    found = of(parts, plain_s=disturbed, clocked_s=[99.0, 0.6, *[1.5] * 6], between_s=[7.0, 0.0, *[0.25] * 6])
    assert not {0, 1} & set(found.kept)
    assert (found.whole_s, found.between_operators_s) == (1.0, 0.25)
    assert (found.explained_s, found.unexplained_s, found.closure) == (0.75, 0.25, 0.75)
    assert found.overhead == 0.5
    assert found.attention_s() == 0.5
    assert found.rows()[0].total_s == 0.5


def test_a_part_takes_its_mean_share_of_the_median_call():
    shares = [0.1, 0.8, 0.3, 0.4, 0.5, 0.6, 0.7, 0.2]
    plain = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 100.0]
    found = rounds_of(shares, plain)
    assert found.whole_s == 4.5
    # Of the rounds that are kept: 0.3 to 0.6.
    assert found.closure == pytest.approx(0.45)
    assert found.rows()[0].total_s == pytest.approx(0.3 * 4.5)
    assert found.between_operators_s == pytest.approx(0.15 * 4.5)
    assert found.unexplained_s == pytest.approx(0.55 * 4.5)


def test_a_machine_that_slows_down_moves_no_share():
    steady, drifting = (rounds_of([0.9] * 8, plain) for plain in ([1.0] * 8, list(np.linspace(1.0, 3.0, 8))))
    assert drifting.closure == pytest.approx(steady.closure) == pytest.approx(0.9)
    assert drifting.attention_s() / drifting.whole_s == pytest.approx(0.6)


def test_a_planted_breakdown_reads_as_it_was_planted():
    found = encoder()
    assert found.whole_s == pytest.approx(118 * MS)
    assert found.explained_s == pytest.approx(116 * MS)
    assert found.unexplained_s == pytest.approx(2 * MS)
    assert found.closure == pytest.approx(116 / 118)
    assert found.overhead == pytest.approx(0.1)
    assert found.attention_s() == pytest.approx(40 * MS)
    assert found.attention_s(projections=True) == pytest.approx(70 * MS)
    assert found.flops == 2 * (3000 + 1000 + 1000 + 4000 + 4000) + 10
    assert found.warnings == ()


def test_what_was_explained_twice_is_negative():
    found = of([component("attention", "AV", 1.5)], plain_s=[1.0] * 8)
    assert found.unexplained_s == -0.5
    assert found.closure == 1.5


@st.composite
def breakdowns(draw: st.DrawFn) -> Breakdown:
    count = draw(st.integers(6, 12))
    times = st.lists(seconds, min_size=count, max_size=count)
    places = st.tuples(
        st.sampled_from([("attention", "AV"), ("attention", "QK^T"), ("attention", "output projection"), ("a", "a")]),
        st.sampled_from([None, 0, 1]),
        st.sampled_from(["forward", "backward", "optimizer"]),
    )
    numbers = st.integers(0, 10**9)
    parts = [
        component(
            group,
            name,
            draw(times),
            layer=number,
            direction=direction,
            flops=draw(numbers),
            bytes_accessed=draw(numbers),
            held_bytes=draw(numbers),
            parameters=draw(numbers),
        )
        for (group, name), number, direction in draw(st.lists(places, min_size=1, max_size=8, unique=True))
    ]
    return of(parts, plain_s=draw(times), clocked_s=draw(times), between_s=draw(times))


@given(breakdowns())
@settings(max_examples=40)
def test_parts_the_time_between_and_what_is_left_add_up_to_the_whole(found):
    for rows in (found.rows(), found.rows(by_layer=True), found.groups(), found.groups(by_layer=True)):
        total = sum(row.total_s for row in rows)
        assert math.isclose(total + found.between_operators_s + found.unexplained_s, found.whole_s, rel_tol=1e-9)
        assert math.isclose(total + found.between_operators_s, found.explained_s, rel_tol=1e-9)
        assert sum(row.flops for row in rows) == found.flops
        for field in ("bytes_accessed", "held_bytes", "parameters"):
            assert sum(getattr(row, field) for row in rows) == sum(getattr(each, field) for each in found.components)
    assert math.isclose(found.closure, found.explained_s / found.whole_s, rel_tol=1e-12)


@given(breakdowns())
@settings(max_examples=20)
def test_each_row_stands_for_its_parts_alone(found):
    for row in found.rows(by_layer=True):
        mine = [
            each
            for each in found.components
            if (each.group, each.name, each.layer) == (row.group, row.name, row.layer)
        ]
        for direction, value in row.seconds.items():
            there = [each.seconds for each in mine if each.direction == direction]
            shares = [sum(times[place] for times in there) / found.plain_s[place] for place in found.kept]
            assert math.isclose(value, np.mean(shares) * found.whole_s, rel_tol=1e-9, abs_tol=1e-15)
        assert row.flops == sum(each.flops for each in mine)
    assert [row.layer for row in found.rows()] == [None] * len(found.rows())


def test_rows_stand_in_the_order_in_which_they_ran_with_layers_added_up():
    rows = encoder().rows()
    assert [(row.group, row.name) for row in rows] == [
        ("input", "embedding"),
        ("attention", "QKV projections"),
        ("attention", "fused attention"),
        ("attention", "output projection"),
        ("feed-forward", "up"),
        ("feed-forward", "activation"),
        ("feed-forward", "down"),
        ("norms and residuals", "norms and residuals"),
        ("head", "head"),
    ]
    assert rows[2].total_s == pytest.approx(40 * MS)
    by_layer = [(row.name, row.layer) for row in encoder().rows(by_layer=True)]
    assert by_layer[:2] == [("embedding", None), ("QKV projections", 0)]
    assert ("QKV projections", 1) in by_layer
    assert len(by_layer) == 2 + 2 * 7


def test_groups_stand_in_the_order_in_which_they_ran():
    found = encoder()
    groups = [(row.group, row.name, row.layer) for row in found.groups()]
    assert groups == [
        (name, "", None) for name in ("input", "attention", "feed-forward", "norms and residuals", "head")
    ]
    times = {(row.group, row.layer): row.total_s for row in found.groups(by_layer=True)}
    assert times["attention", 0] == times["attention", 1] == pytest.approx(35 * MS)
    assert times["feed-forward", 1] == pytest.approx(18 * MS)


def test_rows_have_the_directions_that_there_are():
    assert encoder().directions == ("forward",)
    assert encoder().rows()[0].seconds == {"forward": pytest.approx(1 * MS)}
    training = encoder(training=True)
    assert training.directions == ("forward", "backward", "optimizer")
    (up,) = [row for row in training.rows() if row.name == "up"]
    assert up.seconds == {"forward": pytest.approx(16 * MS), "backward": pytest.approx(32 * MS), "optimizer": 0.0}
    assert up.total_s == pytest.approx(48 * MS)
    (step,) = [row for row in training.rows() if row.group == "optimizer"]
    assert step.seconds == {"forward": 0.0, "backward": 0.0, "optimizer": pytest.approx(4 * MS)}


def test_bytes_are_unknown_where_one_operator_does_not_tell():
    parts: list[Component] = [
        component("attention", "AV", 1.0, layer=0, bytes_accessed=None),
        component("attention", "AV", 1.0, layer=1, bytes_accessed=7),
        component("attention", "QK^T", 1.0, bytes_accessed=5),
    ]
    found = of(parts, plain_s=[3.0] * 8)
    assert [row.bytes_accessed for row in found.rows()] == [None, 5]
    assert [row.bytes_accessed for row in found.rows(by_layer=True)] == [None, 7, 5]
    assert [row.bytes_accessed for row in found.groups()] == [None]


def test_without_attention_a_call_would_take_what_is_left_of_it():
    found = encoder()
    assert found.most_speed_up() == pytest.approx(118 / (118 - 40))
    assert found.most_speed_up(projections=True) == pytest.approx(118 / (118 - 70))


def test_steps_that_a_variant_adds_count_as_attention_and_projections_do_not():
    parts = [
        component("attention", name, 1.0)
        for name in ("landmarks", "pseudo-inverse", "QKV projections", "output projection")
    ]
    # Work of a like name elsewhere is not attention's.
    parts += [component("feed-forward", "AV", 1.0), component("head", "output projection", 4.0)]
    found = of(parts, plain_s=[10.0] * 8)
    assert (found.attention_s(), found.attention_s(projections=True)) == (2.0, 4.0)
    assert found.most_speed_up() == 10 / 8


def test_backward_passes_of_attention_count_too():
    training = encoder(training=True)
    assert training.attention_s() == pytest.approx(3 * 40 * MS)
    assert training.whole_s == pytest.approx((118 + 216 + 7) * MS)
    assert training.most_speed_up() == pytest.approx(341 / (341 - 120))


def test_a_model_that_is_all_attention_has_a_bound_that_is_a_number():
    found = of([component("attention", "AV", 1.0)], plain_s=[1.0] * 8)
    assert math.isfinite(found.most_speed_up())
    assert found.most_speed_up() > 1e6


def test_a_model_without_attention_gains_nothing():
    assert of([component("head", "head", 1.0)], plain_s=[1.0] * 8).most_speed_up() == 1.0


@pytest.mark.parametrize("explained", [0.955, 1.06])
def test_parts_that_do_not_add_up_are_warned_of_with_what_to_do(explained):
    long = of([component("head", "head", explained)], plain_s=[1.0] * 8, length=1024)
    (warning,) = long.warnings
    assert warning == (
        f"the parts add up to {explained:.3f} of the whole (95 % {explained:.3f} to {explained:.3f}): rerun when the "
        "machine is quiet, or with a larger --budget"
    )
    (warning,) = of([component("head", "head", explained)], plain_s=[1.0] * 8, length=64).warnings
    assert warning.endswith("short inputs are mostly what happens between operators")


@pytest.mark.parametrize("explained", [1 - 0.9 * CLOSED, 1.0, 1 + 0.9 * CLOSED])
def test_parts_that_nearly_add_up_are_not(explained):
    assert of([component("head", "head", explained)], plain_s=[1.0] * 8).warnings == ()


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cpu", "30 % of the time passes between operators"),
        ("cuda", "30 % of the time the device waits for the host"),
    ],
)
def test_much_time_between_operators_is_no_business_of_attention(device, words):
    fields = {"device": device}
    found = of([component("head", "head", 0.7)], plain_s=[1.0] * 8, between_s=[0.3] * 8, **fields)
    (warning,) = found.warnings
    assert warning == f"{words}: torch.compile or larger batches would help more than another attention"
    assert of([component("head", "head", 0.85)], plain_s=[1.0] * 8, between_s=[0.15] * 8, **fields).warnings == ()
    assert found.between_name == ("between operators" if device == "cpu" else "device waits for the host")


def test_plain_calls_that_differ_are_warned_of():
    plain = [1.0, 1.3] * 4
    (warning,) = of([component("head", "head", plain)], plain_s=plain).warnings
    # A standard deviation of 0.15 around a mean of 1.15.
    assert warning == "plain calls differ by 13 % (standard deviation): something else uses the machine"


@pytest.mark.parametrize("ratio", [0.9, 0.97, 1.0, 1.1])
def test_the_interval_of_the_closure_holds_what_was_planted(ratio):
    generator = np.random.default_rng(1)
    plain = np.exp(0.05 * generator.standard_normal(40))
    explained = ratio * plain * np.exp(0.02 * generator.standard_normal(40))
    parts = [component("attention", "AV", list(0.6 * explained)), component("head", "head", list(0.3 * explained))]
    # What the clocked calls took as a whole says nothing of it.
    found = of(parts, plain_s=list(plain), clocked_s=list(2 * plain[::-1]), between_s=list(0.1 * explained))
    low, high = found.closure_interval
    assert low < ratio < high
    # Forty ratios that differ by 2 % tell it within a percent or so.
    assert high / low < 1.03
    slower = of([component("head", "head", list(70 * explained))], plain_s=list(70 * plain))
    assert slower.closure_interval == pytest.approx((low, high))


def test_a_drift_that_both_calls_share_does_not_widen_the_interval():
    drift = np.linspace(1.0, 3.0, 12)
    found = of([component("head", "head", list(0.98 * drift))], plain_s=list(drift))
    assert found.closure_interval == pytest.approx((0.98, 0.98))


def test_a_breakdown_is_shown_by_its_groups_the_largest_first():
    lines = str(encoder(subject="bert@local", threads=2)).splitlines()
    assert lines[0] == "bert@local at length 512, batch 1, inference, cpu float32, 2 threads"
    assert lines[1] == "  whole call  118 ms"
    assert [line[2:24].strip() for line in lines[2:8]] == [
        "attention",
        "feed-forward",
        # Both take 2 ms: the first to run is the first.
        "norms and residuals",
        "head",
        "input",
        "between operators",
    ]
    assert lines[2].split()[-4:] == ["70.0", "ms", "59", "%"]
    assert "  adds up to 0.983 of the whole; watching added 10 %" in lines
    assert lines[-1] == "  if attention were free: 1.51 times as fast"
    assert repr(encoder()) == str(encoder())
    noisy = of([component("head", "head", 0.8)], plain_s=[1.0] * 8)
    assert str(noisy).splitlines()[-1].startswith("  warning      the parts add up to 0.800 of the whole")
