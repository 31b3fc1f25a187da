"""Plans for reuse: groups and heads against brute force, planted sharing, files."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

import tippingpoint
from tippingpoint.errors import DataError, InputError
from tippingpoint.models.map_overlaps import MapSimilarity, assign_heads
from tippingpoint.models.reuse_plan import ReusePlan, format_groups, group_layers, relative_cost_ratio

WINDOWED = (0, 2, 3, 5)


def similarity_of(overlaps: np.ndarray, eligible: tuple[int, ...] | None = None, layers: int | None = None):
    """Return a record of overlaps [layers, layers, heads, heads], of which the upper triangle is read."""
    count, _, heads, _ = overlaps.shape
    return MapSimilarity(
        model="BertModel",
        layers=layers or count,
        eligible=eligible or tuple(range(count)),
        heads=heads,
        overlaps=tuple(
            tuple(tuple(map(tuple, overlaps[a, b].tolist())) for b in range(a + 1, count)) for a in range(count)
        ),
        distances=(0, 1),
        near=((((0.25, 0.5),) * heads),) * count,
        inputs=3,
        rows=70,
        positions=64.5,
        map_parameters=tuple(100 + number for number in range(count)),
    )


def random_overlaps(layers: int, heads: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(layers, layers, heads, heads))


def planted(groups: list[list[int]], heads: int = 4, seed: int = 0) -> tuple[np.ndarray, dict[int, tuple[int, ...]]]:
    """Return overlaps in which layers of a group have the same maps, their heads in another order."""
    generator = np.random.default_rng(seed)
    count = sum(map(len, groups))
    overlaps = generator.uniform(0, 0.4, size=(count, count, heads, heads))
    orders = {}
    for group in groups:
        for layer in group:
            orders[layer] = generator.permutation(heads)
        for a, b in itertools.combinations(group, 2):
            for h, g in itertools.product(range(heads), repeat=2):
                overlaps[a, b, h, g] = 0.9 if orders[a][h] == orders[b][g] else overlaps[a, b, h, g]
    matches = {
        layer: tuple(list(orders[group[0]]).index(kind) for kind in orders[layer])
        for group in groups
        for layer in group[1:]
    }
    return overlaps, matches


def partitions(count: int, groups: int):
    for cuts in itertools.combinations(range(1, count), groups - 1):
        yield (0, *cuts)


def worth(pairs: np.ndarray, begins: tuple[int, ...]) -> float:
    ends = [*begins[1:], len(pairs)]
    return sum(
        1.0 if layer == begin else pairs[begin, layer]
        for begin, end in zip(begins, ends, strict=True)
        for layer in range(begin, end)
    )


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (2, 1), (5, 2), (7, 3), (8, 4)])
def test_no_other_contiguous_groups_are_better(count, seed):
    pairs = np.random.default_rng(seed).uniform(size=(count, count))
    found = group_layers(pairs)
    assert [len(begins) for begins in found] == list(range(1, count + 1))
    for number, begins in enumerate(found, 1):
        assert begins in list(partitions(count, number))
        best = max(worth(pairs, others) for others in partitions(count, number))
        assert worth(pairs, begins) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize(("heads", "seed"), [(1, 0), (2, 1), (5, 2), (6, 3)])
def test_no_other_matching_of_heads_is_better(heads, seed):
    overlaps = np.random.default_rng(seed).uniform(size=(heads, heads))
    match, mean = assign_heads(overlaps)
    assert sorted(match) == list(range(heads))
    own = sum(overlaps[source, head] for head, source in enumerate(match)) / heads
    others = (
        sum(overlaps[source, head] for head, source in enumerate(order)) / heads
        for order in itertools.permutations(range(heads))
    )
    assert mean == pytest.approx(own) == pytest.approx(max(others))


def test_planted_groups_and_orders_of_heads_are_recovered():
    overlaps, matches = planted([[0], [1, 2], [3, 4, 5]])
    plan = ReusePlan.of(similarity_of(overlaps), 3)
    assert plan.groups == ((0,), (1, 2), (3, 4, 5))
    assert plan.head_matches == matches
    assert plan.choice.matched == pytest.approx((3 + 3 * 0.9) / 6)
    assert plan.choice.unmatched < plan.choice.matched


def test_without_matching_heads_the_groups_are_those_of_equal_heads():
    overlaps = np.full((4, 4, 2, 2), 0.1)
    overlaps[0, 1] = [[0.0, 1.0], [1.0, 0.0]]  # alike, with heads exchanged
    overlaps[2, 3] = [[0.6, 0.0], [0.0, 0.6]]
    overlaps[1, 2] = [[0.2, 0.0], [0.0, 0.2]]
    with_matching, without = (
        ReusePlan.of(similarity_of(overlaps), 3, match_heads=match_heads) for match_heads in (True, False)
    )
    assert (with_matching.groups, with_matching.head_matches) == (((0, 1), (2,), (3,)), {1: (1, 0)})
    assert (without.groups, without.head_matches) == (((0,), (1,), (2, 3)), {})


def test_every_number_of_maps_can_be_had_from_one_plan():
    plan = ReusePlan.of(similarity_of(random_overlaps(5)), 2)
    assert [choice.num_maps for choice in plan.choices] == [1, 2, 3, 4, 5]
    assert plan.choices[1] == plan.choice
    for choice in plan.choices:
        other = plan.with_num_maps(choice.num_maps)
        assert other.num_maps == choice.num_maps
        assert other.choice == choice
        assert other.with_num_maps(2) == plan
    assert all(later.matched >= earlier.matched for earlier, later in itertools.pairwise(plan.choices))
    assert plan.choices[-1].matched == plan.choices[-1].unmatched == plan.choices[-1].cost_share == 1
    assert plan.choices[-1].parameters_saved == 0


def test_cost_is_half_for_each_reusing_layer_and_less_with_relative_positions():
    similarity = similarity_of(random_overlaps(6))
    plan = ReusePlan.of(similarity, 2)
    assert plan.choice.cost_share == pytest.approx((2 + 4 / 2) / 6)
    reusing = [layer for group in plan.groups for layer in group[1:]]
    assert plan.choice.parameters_saved == sum(100 + layer for layer in reusing)
    assert ReusePlan.of(similarity, 1, cost_ratio=4.0).choice.cost_share == pytest.approx((1 + 5 / 4) / 6)
    # From 3 where projections cost all to 4 where products of positions do.
    assert relative_cost_ratio(1, 10**9) == pytest.approx(3)
    assert relative_cost_ratio(10**9, 1) == pytest.approx(4)


def test_layers_with_a_window_of_their_own_stay_alone():
    overlaps, matches = planted([[0, 1], [2, 3]])
    plan = ReusePlan.of(similarity_of(overlaps, WINDOWED, layers=6), 2)
    assert plan.groups == ((0, 2), (1,), (3, 5), (4,))
    assert plan.head_matches == {2: matches[1], 5: matches[3]}
    assert plan.num_maps == 2
    assert plan.choice.cost_share == pytest.approx(0.75)
    assert ReusePlan.from_json(plan.to_json()) == plan


def test_groups_are_written_as_the_variant_takes_them():
    assert format_groups(((0,), (1, 2), (3, 4, 5))) == "0_1-2_3-5"
    assert format_groups(((0, 3, 6), (1,))) == "0-6/3_1"
    assert format_groups(((0, 1, 3), (2,))) == "0,1,3_2"
    text = str(ReusePlan.of(similarity_of(planted([[0], [1, 2], [3, 4, 5]])[0]), 3))
    assert text.startswith("3 maps for 6 layers: 0_1-2_3-5; similarity 0.95 with heads matched, ")
    assert text.endswith("; 75 % of the arithmetic of self-attention")


@pytest.mark.parametrize("num_maps", [0, 5, -1, 2.0, True, None])
def test_a_number_of_maps_that_cannot_be_is_refused(num_maps):
    with pytest.raises(InputError, match=r"num_maps must be a whole number from 1 to 4, .* got"):
        ReusePlan.of(similarity_of(random_overlaps(4)), num_maps)
    with pytest.raises(InputError, match="from 1 to 4"):
        ReusePlan.of(similarity_of(random_overlaps(4)), 2).with_num_maps(num_maps)


@pytest.mark.parametrize("match_heads", [True, False])
def test_a_plan_survives_its_file(match_heads):
    plan = tippingpoint.ReusePlan.of(similarity_of(random_overlaps(5)), 2, match_heads=match_heads, cost_ratio=3.5)
    again = ReusePlan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert again.choices == plan.choices


def test_groups_that_a_person_changed_in_the_file_are_taken():
    plan = ReusePlan.of(similarity_of(random_overlaps(4)), 2, match_heads=False)
    record = json.loads(plan.to_json())
    record["groups"] = [[0], [1], [2, 3]]
    changed = ReusePlan.from_json(json.dumps(record))
    assert (changed.groups, changed.num_maps) == (((0,), (1,), (2, 3)), 3)


def spoiled(**changes) -> str:
    record = json.loads(ReusePlan.of(similarity_of(random_overlaps(4)), 2).to_json())
    for path, value in changes.items():
        part = record
        *outer, last = path.split("__")
        for name in outer:
            part = part[name]
        if value is None:
            del part[last]
        else:
            part[last] = value
    return json.dumps(record)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "this is no plan for reuse"),
        ("[]", "JSON with the format 'tippingpoint reuse plan'"),
        (spoiled(format="other"), "JSON with the format"),
        (spoiled(version=2), "of version 2, and this tippingpoint reads version 1; make the plan again"),
        (spoiled(groups=None), "the plan lacks 'groups'"),
        (spoiled(groups=[[0, 1], [3, 2]]), "each of layers 0 to 3 once and in order"),
        (spoiled(groups=[[0, 1], [2]]), "each of layers 0 to 3 once and in order"),
        (spoiled(groups=[[0, 1], [2, 3], []]), "each of layers 0 to 3 once and in order"),
        (spoiled(groups=[["a"]]), "this is no plan for reuse"),
        (spoiled(groups=[[0], [1], [2], [3]]), "heads must be matched for the layers"),
        (spoiled(head_matches=[]), "this is no plan for reuse"),
        (spoiled(cost_ratio=0.5), "must be at least 1, got 0.5"),
        (spoiled(similarity__heads=4), "a value for each two heads"),
        (spoiled(similarity__overlaps=[[]]), "a value for each two heads"),
        (spoiled(similarity__eligible=[0, 1, 2, 9]), "ascending numbers below 4"),
        (spoiled(similarity__near=[[[2.0, 0.5]] * 3] * 4), "numbers from 0 to 1"),
        (spoiled(similarity__rows=None), "this is no plan for reuse"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(text, complaint):
    with pytest.raises(DataError, match=complaint):
        ReusePlan.from_json(text)


def test_heads_that_are_given_twice_are_refused():
    plan = ReusePlan.of(similarity_of(planted([[0, 1]])[0]), 1)
    with pytest.raises(InputError, match=r"layer 1 must be given each of heads 0 to 3 once, got \[0, 0, 1, 2\]"):
        replace(plan, head_matches={1: (0, 0, 1, 2)})
