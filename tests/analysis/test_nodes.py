"""Nodes that are alike are left in peace; one that is not is told, with what is known of it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from clusters import GPU, Cluster, changed, stored, under
from synthetic import ENVIRONMENT, Noise, measurement
from tippingpoint.analysis.factors import Reading, fits
from tippingpoint.analysis.nodes import Disagreement, disagreements
from tippingpoint.machine import Conditions, Environment
from tippingpoint.measurement import BEST_BATCH
from tippingpoint.store import StoredSession

QUIET = Noise(spread=0.005, processes=0.01)
LENGTHS = (128, 256, 512, 1024)


def told(sessions: Iterable[StoredSession]) -> dict[str, Disagreement]:
    return {one.name: one for one in disagreements(sessions)}


def planted(
    factors: dict[str, float],
    *,
    times: int = 3,
    environments: dict[str, Environment] | None = None,
    lengths: Sequence[int] = LENGTHS,
    session: str = "s-0",
    seed: int = 0,
) -> list[StoredSession]:
    """Sessions of places that take a factor longer each, with noise of 1 %."""
    generator = np.random.default_rng(seed)
    return [
        stored(
            [
                measurement(
                    "bert",
                    length,
                    1e-3 * length * factor * math.exp(0.01 * generator.standard_normal()),
                    session=session,
                    environment=(environments or {}).get(place, GPU),
                    device="cuda",
                )
            ],
            place,
        )
        for _ in range(times)
        for length in lengths
        for place, factor in factors.items()
    ]


# The rates are measured, with many more studies, by benchmarks/node_disagreement.py.
@pytest.mark.parametrize("cluster", [Cluster(), Cluster(deep=False, comparisons=2), Cluster(nodes=8, noise=QUIET)])
def test_of_alike_nodes_hardly_any_study_tells(cluster: Cluster):
    assert sum(bool(told(cluster.study(seed))) for seed in range(40)) <= 2


def test_a_node_that_is_ten_percent_slower_is_found_with_a_dozen_sessions():
    cluster = Cluster(deep=False, sessions=6, comparisons=2, slow={"node-2": 1.1})
    found = [told(cluster.study(seed)) for seed in range(40)]
    assert sum(each.keys() == {"node-2"} for each in found) >= 38


def test_the_interval_holds_the_factor():
    cluster = Cluster(deep=False, wanders=0.0, slow={"node-2": 1.2})
    intervals = [told(cluster.study(seed))["node-2"].interval for seed in range(60)]
    assert sum(low <= 1.2 <= high for low, high in intervals) >= 57


def test_looks_with_shallow_models_are_evidence_where_nothing_else_is_shared():
    cluster = Cluster(noise=QUIET, rough=0.02, comparisons=2, slow={"node-0": 1.1})
    found = [told(cluster.study(seed)) for seed in range(20)]
    assert sum(each.keys() == {"node-0"} for each in found) >= 19


def test_rough_looks_do_not_drown_what_was_measured_well():
    sessions = Cluster(noise=QUIET, rough=0.3, comparisons=2).study(0)
    well = planted({f"node-{number}/cuda:0": 1.06 if number == 1 else 1.0 for number in range(4)})
    assert told(sessions + well).keys() == {"node-1"}


def test_the_sentence_says_who_how_much_and_what_is_unlike():
    sessions = planted({"node-1/cuda:0": 1.0, "node-2/cuda:0": 1.0, "node-3/cuda:0": 1.0, "node-17/cuda:0": 1.18})
    sessions = changed(sessions, "node-17", replace(GPU, driver="550.54"))
    sessions = under(sessions, "node-17", Conditions(throttled=True, clock_hz=1.2e9))
    sessions = under(sessions, "node-3", Conditions(throttled=False, clock_hz=1.7e9))
    (found,) = disagreements(sessions)
    low, high = found.interval
    assert 1.1 < low < 1.18 < high < 1.25
    assert str(found) == (
        f"node-17 is {found.factor:.2f} times slower ({low:.2f} to {high:.2f}) than 3 other nodes with "
        "NVIDIA H100 80GB, in 12 sessions of 4 workloads; its driver is 550.54 and theirs 550.90; 100 % of its "
        "blocks ran throttled (none of theirs); its clock was at 1.20 GHz and theirs at 1.70 GHz; look at its "
        "clocks, cooling and neighbours, or leave it out"
    )


def test_what_a_sound_node_has_too_explains_nothing():
    sessions = planted({"a/0": 1.3, "b/0": 1.0, "c/0": 1.0})
    for node in ("a", "b"):
        sessions = changed(sessions, node, replace(GPU, driver="550.54"))
    assert told(sessions)["a"].differences == ()


def test_a_node_with_a_neighbour_is_told_whose_time_it_lost():
    sessions = planted({"a/0": 1.3, "b/0": 1.0, "c/0": 1.0})
    for node, steal_s in (("a", 1.0), ("b", 0.1), ("c", 0.1)):
        sessions = under(sessions, node, Conditions(steal_s=steal_s, cores_s=4.0))
    assert told(sessions)["a"].signs == ("25 % of its cores' time went to other virtual machines (2.5 % of theirs)",)


def test_a_node_that_is_faster_is_told_as_well():
    (found,) = disagreements(planted({"a/0": 0.8, "b/0": 1.0, "c/0": 1.0}))
    assert str(found).startswith("a is 1.25 times faster (1.2")
    assert found.interval[0] < found.factor < found.interval[1] < 1


def test_one_that_is_off_does_not_make_the_others_look_off():
    assert told(planted({"a/0": 1.3, "b/0": 1.0, "c/0": 1.0})).keys() == {"a"}
    assert told(planted({"a/0": 1.3, "b/0": 1.0, "c/0": 1.0, "d/0": 1.3, "e/0": 1.0})).keys() == {"a", "d"}


def test_of_two_nodes_the_slower_one_is_told():
    (found,) = disagreements(planted({"a/0": 1.0, "b/0": 1.2}))
    assert (found.node, found.others) == ("b", ("a",))
    assert "than a, the only other node with NVIDIA H100 80GB" in str(found)


def test_less_than_the_floor_is_not_told_however_certain():
    assert not told(planted({"a/0": 1.02, "b/0": 1.0, "c/0": 1.0}, times=20))


def test_a_device_is_told_apart_from_its_node():
    places = {f"{node}/cuda:{number}": 1.0 for node in "ab" for number in range(4)} | {"a/cuda:3": 1.3}
    (found,) = disagreements(planted(places))
    assert (found.node, found.device, len(found.others)) == ("a", "cuda:3", 3)
    assert str(found).startswith("a/cuda:3 is 1.3")
    assert "than 3 other devices of that node with NVIDIA H100 80GB" in str(found)


def test_a_node_whose_devices_are_all_slow_is_told_as_a_node():
    places = {f"{node}/cuda:{number}": 1.2 if node == "b" else 1.0 for node in "abc" for number in range(4)}
    assert told(planted(places)).keys() == {"b"}


@pytest.mark.parametrize(
    "other",
    [
        replace(GPU, device_name="NVIDIA A100"),
        replace(GPU, cores=64),
        replace(GPU, threads=16),
    ],
)
def test_nodes_of_another_kind_may_be_slower(other: Environment):
    places = {"a/0": 1.0, "b/0": 1.0, "c/0": 2.0, "d/0": 2.0}
    assert not told(planted(places, environments={"c/0": other, "d/0": other}))


def test_the_model_of_the_cpu_tells_kinds_apart_only_where_it_computes():
    places = {"a/0": 1.0, "b/0": 1.0, "c/0": 2.0}
    other = replace(ENVIRONMENT, cpu_model="Imaginary 100")
    on_cpu = {"a/0": ENVIRONMENT, "b/0": ENVIRONMENT, "c/0": other}
    assert not told(planted(places, environments=on_cpu))
    (found,) = disagreements(planted(places, environments={"c/0": replace(GPU, cpu_model="Imaginary 100")}))
    assert found.differences == (("cpu model", "Imaginary 100", "Imaginary 9000"),)


def test_what_only_one_node_measured_says_nothing():
    apart = [
        session
        for number, (place, factor) in enumerate({"a/0": 1.0, "b/0": 1.0, "c/0": 2.0}.items())
        for session in planted({place: factor}, lengths=[200 + number, 300 + number, 400 + number])
    ]
    assert not told(apart)


def test_best_batches_are_not_held_against_what_everybody_measures_at_that_size():
    plain = planted({"a/0": 1.0, "b/0": 1.0})
    best = planted({"c/0": 2.0}, session=f"s-0{BEST_BATCH}")
    assert not told(plain + best)


def test_few_sessions_are_a_moment_and_no_evidence():
    assert not told([*planted({"a/0": 1.0, "b/0": 1.0, "c/0": 1.0}), *planted({"d/0": 2.0}, times=1)[:3]])


def test_this_machine_has_no_name_and_no_part():
    assert not told(planted({"": 2.0, "b/0": 1.0, "c/0": 1.0}))


def test_a_node_is_as_it_was_measured_last():
    before = planted({"a/0": 2.0, "b/0": 1.0, "c/0": 1.0})
    mended = replace(GPU, driver="551")
    after = planted({"a/0": 1.0}, environments={"a/0": mended}, seed=1)
    assert told(before).keys() == {"a"}
    assert not told(before + after)


def test_a_place_without_a_device_is_a_node():
    assert told(planted({"a": 1.3, "b": 1.0, "c": 1.0})).keys() == {"a"}


def test_one_disturbed_session_accuses_nobody():
    sessions = planted({"a/0": 1.0, "b/0": 1.0, "c/0": 1.0})
    spoilt = planted({"a/0": 4.0}, times=1)[:1]
    assert not told(sessions + spoilt)


def test_no_session_tells_nothing():
    assert disagreements([]) == ()


def test_how_long_a_work_takes_does_not_matter():
    generator = np.random.default_rng(0)
    readings = [
        Reading(work, machine, 0.01 * generator.standard_normal())
        for work in range(6)
        for machine in "abc"
        for _ in range(2)
    ]
    (fit,) = fits(readings)
    (shifted,) = fits([replace(each, log_s=each.log_s + float(each.work)) for each in readings])  # type: ignore[arg-type]
    assert np.allclose(fit.log_factors, shifted.log_factors)
    assert np.allclose(fit.covariance, shifted.covariance)


def test_machines_without_common_work_are_fitted_apart():
    readings = [
        Reading(f"{pair} {number % 6}", machine, 0.01 * (number % 5))
        for pair in ("ab", "cd")
        for machine in pair
        for number in range(18)
    ]
    assert [fit.machines for fit in fits(readings)] == [("a", "b"), ("c", "d")]


def test_nodes_that_all_differ_a_little_have_none_that_stands_out():
    """Chips of one kind differ: that is known, and says nothing of one of them."""
    spread = {f"node-{number}/0": 1 + 0.02 * (number - 4) for number in range(9)}
    assert not told(planted(spread, times=10))
    assert told(planted(spread | {"node-9/0": 1.4}, times=10)).keys() == {"node-9"}
