import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_maps import LENGTHS, crossing_at, lost, seen, tip
from tippingpoint.analysis.batch_map import WINNERS, BatchMap, Cell, batch_map
from tippingpoint.errors import InputError
from tippingpoint.models.catalog import architecture_of
from tippingpoint.report.records import plain
from tippingpoint.workload import Subject

LONGFORMER = Subject.parse("longformer")


def of_size(found: BatchMap, batch_size: int) -> list[Cell]:
    return [cell for cell in found.cells if cell.batch_size == batch_size]


def test_every_batch_size_has_its_tipping_point_and_its_positions_per_batch():
    found = batch_map([crossing_at(32, 740), crossing_at(1, 1960), crossing_at(8, 1200)])
    assert [row.batch_size for row in found.rows] == [1, 8, 32]
    assert [row.positions_per_batch for row in found.rows] == [1960, 8 * 1200, 32 * 740]
    low, high = found.rows[1].tipping_point.positions_interval or (0, 0)
    assert found.rows[1].positions_per_batch_interval == (8 * low, 8 * high)
    assert (found.baseline, found.variant, found.metric, found.unit) == (
        Subject.parse("bert"),
        Subject.parse("bert@local:window=128"),
        "latency",
        "tokens",
    )


def test_measured_cells_are_what_was_observed():
    points = [seen(128, 0.5), seen(512, 1.0), seen(2048, 2.0)]
    cells = {cell.length: cell for cell in batch_map([tip(4, points)]).cells if cell.measured}
    assert list(cells) == [128, 512, 2048]
    for point in points:
        cell = cells[point.length]
        assert (cell.low, cell.ratio, cell.high) == (point.interval[0], point.ratio, point.interval[1])
        assert cell.positions == point.length
    assert [cell.winner for cell in cells.values()] == ["baseline", "undecided", "variant"]


def test_between_two_lengths_the_ratio_follows_the_curve():
    cells = batch_map([tip(1, [seen(128, 0.5), seen(2048, 2.0)])]).cells
    assert len(cells) > 50
    for cell in cells:
        assert cell.ratio is not None
        assert cell.low is not None
        assert cell.high is not None
        assert cell.ratio == pytest.approx(math.sqrt(cell.length / 512), rel=0.02)
        assert cell.low < cell.ratio < cell.high
        certain = "variant" if cell.low > 1 else "baseline" if cell.high < 1 else "undecided"
        assert cell.winner == certain


def test_a_batch_size_says_nothing_beyond_its_own_lengths():
    long, short = tip(1, [seen(128, 0.5), seen(8192, 2)]), tip(8, [seen(300, 0.5), seen(700, 2)])
    found = batch_map([long, short])
    assert {cell.length for cell in of_size(found, 8)} < {cell.length for cell in of_size(found, 1)}
    assert min(cell.length for cell in of_size(found, 8)) == 300
    assert max(cell.length for cell in of_size(found, 8)) == 700
    # Lengths measured at one batch size are places on the map of the other.
    assert not next(cell for cell in of_size(found, 1) if cell.length == 300).measured


@pytest.mark.parametrize(
    ("baseline", "variant", "lengths"),
    [
        ("bert", "longformer", (100, 5000)),
        ("hubert", "hubert@local:window=50", (0.5, 30.0)),
        ("vit", "swinv2", (224, 512)),
        ("swinv2", "vit", (224, 512)),
    ],
)
def test_every_cell_lies_at_a_length_that_both_subjects_take(baseline, variant, lengths):
    first, second = Subject.parse(baseline), Subject.parse(variant)
    cells = batch_map([tip(2, [seen(each, 1.5) for each in lengths], baseline=first, variant=second)]).cells
    assert len(cells) > 5
    for cell in cells:
        assert architecture_of(first).check_length(cell.length)
        assert architecture_of(second).check_length(cell.length)
        assert cell.positions == architecture_of(first).positions(cell.length)


def test_where_memory_ran_out_is_known_and_the_edge_is_not():
    points = [seen(128, 0.5), seen(512, 1.5), lost(2048, +1), lost(8192, +1)]
    cells = batch_map([tip(1, points)]).cells
    assert not [cell for cell in cells if 512 < cell.length < 2048]
    out = [cell for cell in cells if cell.length >= 2048]
    assert len(out) > 10
    assert {(cell.out_of_memory, cell.winner, cell.ratio) for cell in out} == {("baseline", "variant", None)}
    assert [cell.length for cell in out if cell.measured] == [2048, 8192]


def test_a_variant_that_runs_out_of_memory_loses():
    (cell,) = batch_map([tip(1, [lost(512, -1)])]).cells
    assert (cell.out_of_memory, cell.winner, cell.measured) == ("variant", "baseline", True)


def test_a_batch_size_at_which_nothing_was_compared_is_kept():
    found = batch_map([tip(64, []), crossing_at(1, 1000)])
    assert [row.batch_size for row in found.rows] == [1, 64]
    assert of_size(found, 64) == []
    assert found.rows[1].positions_per_batch is None
    assert "Nothing certain" not in found.trend  # too little is known to speak of a trend
    assert batch_map([tip(64, [])]).cells == ()


sizes = st.lists(st.integers(1, 512), min_size=1, max_size=6, unique=True)
observation = st.one_of(
    st.builds(seen, st.integers(64, 9000), st.floats(0.1, 10), st.floats(0, 0.3)),
    st.builds(lost, st.integers(64, 9000), st.sampled_from([-1, 1])),
)
observations = st.lists(observation, max_size=6, unique_by=lambda point: point.length)


@given(st.data(), sizes)
def test_nothing_that_was_observed_is_lost(data, batch_sizes):
    points = {size: sorted(data.draw(observations), key=lambda each: each.length) for size in batch_sizes}
    found = batch_map([tip(size, points[size]) for size in batch_sizes])
    assert [row.batch_size for row in found.rows] == sorted(batch_sizes)
    measured = {(cell.batch_size, cell.length) for cell in found.cells if cell.measured}
    assert measured == {(size, point.length) for size in batch_sizes for point in points[size]}
    places = [(cell.batch_size, cell.length) for cell in found.cells]
    assert places == sorted(set(places))
    assert {cell.winner for cell in found.cells} <= set(WINNERS)
    for cell in found.cells:
        assert (cell.ratio is None) == (cell.out_of_memory is not None)
    json.dumps(plain(found), allow_nan=False)


def test_a_tipping_point_that_moves_is_said_to():
    trend = batch_map([crossing_at(1, 1960), crossing_at(8, 1300), crossing_at(32, 740)]).trend
    assert trend == (
        "The tipping point falls from 1,960 tokens at batch 1 to 740 tokens at batch 32. "
        "Counted in positions per batch it rises from 1,960 at batch 1 to 23,680 at batch 32."
    )


def test_a_tipping_point_that_is_a_matter_of_positions_per_batch_is_said_to_be():
    trend = batch_map([crossing_at(1, 2000), crossing_at(2, 1000), crossing_at(4, 500)]).trend
    assert trend.endswith("Counted in positions per batch it does not move measurably.")


def test_overlapping_intervals_are_no_movement():
    trend = batch_map([crossing_at(1, 1960, width=2), crossing_at(32, 740, width=2)]).trend
    assert trend == "The tipping point does not move measurably with the batch size."


def test_a_tipping_point_that_turns_round_is_said_to():
    trend = batch_map([crossing_at(1, 2000), crossing_at(8, 500), crossing_at(64, 4000)]).trend
    assert "rises from 2,000 tokens at batch 1 to 4,000 tokens at batch 64" in trend
    assert "falls from 2,000 tokens at batch 1 to 500 tokens at batch 8" in trend


def test_variants_that_always_or_never_win_are_part_of_the_trend():
    never = tip(1, [seen(length, 0.5) for length in LENGTHS], verdict="never")
    always = tip(32, [seen(length, 2) for length in LENGTHS], verdict="always")
    trend = batch_map([never, crossing_at(8, 1000), always]).trend
    assert trend.startswith(
        "The tipping point falls from more than 8,192 tokens at batch 1 to at most 128 tokens at batch 32."
    )


def test_a_verdict_reaches_no_farther_than_its_observations():
    # At the shortest length the two are within noise: the tipping point may lie between it and the next.
    always = tip(32, [seen(128, 1.0), seen(512, 2), seen(2048, 3)], verdict="always")
    assert "to at most 512 tokens at batch 32" in batch_map([crossing_at(1, 1960), always]).trend
    assert "does not move measurably" in batch_map([crossing_at(1, 400), always]).trend
    never = tip(32, [seen(128, 0.5), seen(512, 0.8), seen(2048, 1.0)], verdict="never")
    assert "to more than 512 tokens at batch 32" in batch_map([crossing_at(1, 200), never]).trend


def test_what_is_not_known_is_said():
    undecided = tip(64, [seen(512, 1.0)])
    assert batch_map([undecided]).trend == "The tipping point is known at no batch size."
    assert batch_map([undecided, crossing_at(1, 900)]).trend == "The tipping point is known at one batch size only."
    trend = batch_map([undecided, crossing_at(1, 900), crossing_at(8, 900)]).trend
    assert trend.endswith("with the batch size. Nothing certain is known at batch 64.")
    never = [tip(size, [seen(512, 0.5)], verdict="never") for size in (1, 8)]
    assert batch_map(never).trend == "No tipping point lies within the lengths measured at any batch size."


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"baseline": Subject.parse("bert@eager")}, "of one baseline, got bert and bert@eager"),
        ({"variant": LONGFORMER}, "of one variant, got bert@local:window=128 and longformer"),
        ({"metric": "peak_memory"}, "of one metric, got latency and peak_memory"),
        ({"phase": "training"}, "of one phase, got inference and training"),
        ({"device": "cuda"}, "of one device, got cpu and cuda"),
        ({"batch_size": 1}, "one tipping point for each batch size, got two for 1"),
    ],
)
def test_tipping_points_that_do_not_belong_together_are_refused(other, sentence):
    first = crossing_at(1, 1000)
    with pytest.raises(InputError, match=sentence):
        batch_map([first, replace(first, **{"batch_size": 8, **other})])


def test_throughput_has_no_map_over_batch_sizes():
    with pytest.raises(InputError, match="throughput is that of each subject's best batch size"):
        batch_map([tip(1, [], metric="throughput")])


def test_a_map_of_nothing_is_refused():
    with pytest.raises(InputError, match="needs the tipping point of one batch size at least, got none"):
        batch_map([])
