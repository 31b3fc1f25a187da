from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planted import PlantedMachine
from simulated_cluster import Nodes, Session, SimulatedCluster, Trouble, planned, searched
from synthetic import ENVIRONMENT
from tippingpoint.errors import AnswerError, InputError
from tippingpoint.measurement import Environment, Measurement, Outcome
from tippingpoint.store import Store, StoredSession
from tippingpoint.study.cluster import Event, Lost
from tippingpoint.study.comparisons import comparisons
from tippingpoint.study.coordinate import ClusterResult, Coordinator, run_on_cluster
from tippingpoint.study.ledger import study_key
from tippingpoint.study.queue import Comparison
from tippingpoint.study.run import Progress, resolve_study, run_study
from tippingpoint.study.search import Known, Step
from tippingpoint.workload import Place, Study, Subject

BIG, SMALL, CPU = Place(kind="H100"), Place(kind="T4"), Place(kind="cpu", cores=2)


def study_of(count: int, *places: Place, **changes) -> Study:
    """A study of so many comparisons on each place."""
    fields = {
        "name": "many",
        "modality": "text",
        "baselines": (Subject("bert"),),
        "variants": tuple(Subject.parse(f"bert@local:window={n + 1}") for n in range(count)),
        "lengths": (64, 4096),
        "metrics": ("latency",),
        "phases": ("inference",),
        "size": "tiny",
        "places": places or (BIG,),
        "apart": True,
        "budget_s": 60.0 * count * max(1, len(places)),
    }
    return resolve_study(Study(**{**fields, **changes}))


def plans_of(study: Study, seed: int = 0, sessions: int = 5) -> dict[str, tuple[float, ...]]:
    generator = np.random.default_rng(seed)
    return {
        study_key(part): tuple(generator.lognormal(2, 0.8, generator.integers(1, sessions + 1)).tolist())
        for part in comparisons(study)
    }


@dataclass
class Kept:
    """A store that remembers what it was given, and stops after so many sessions."""

    sessions: list[StoredSession]
    most: float = float("inf")

    def add(
        self, outcomes: Sequence[Outcome], *, study: str = "", seconds: float = 0.0, label: str = "", place: str = ""
    ) -> None:
        if len(self.sessions) >= self.most:
            raise KeyboardInterrupt
        self.sessions.append(StoredSession(study, label, "", seconds, tuple(outcomes), place))

    @property
    def seconds(self) -> dict[str, list[float]]:
        """Seconds of the sessions of each comparison, as they came."""
        found: dict[str, list[float]] = {}
        for session in self.sessions:
            found.setdefault(session.study, []).append(session.seconds)
        return found


def coordinate(
    study: Study,
    cluster: SimulatedCluster,
    *,
    before: Sequence[StoredSession] = (),
    **how,
) -> tuple[list[Comparison], Kept]:
    """Measure a study's comparisons; return them, and what was kept."""
    kept = Kept(list(before))
    waiting = [Comparison(part, 0) for part in comparisons(study)]
    for comparison in waiting:
        comparison.sessions += [session for session in before if session.study == comparison.key]
    Coordinator(waiting, kept, cluster, say=how.pop("say", lambda line: None), **how).run()  # type: ignore[arg-type]
    return waiting, kept


troubles = st.builds(
    Trouble,
    slot_s=st.sampled_from([float("inf"), 2000.0, 100.0, 20.0]),
    node_s=st.sampled_from([float("inf"), 2000.0, 200.0]),
    back_s=st.sampled_from([10.0, 200.0]),
    killing=st.sampled_from([frozenset(), frozenset(["H100-1"])]),
    stillborn=st.sampled_from([frozenset(), frozenset(["H100-2"])]),
)
kinds = st.sampled_from(
    [
        (Nodes(BIG, 3, 2), Nodes(SMALL, 2, 1)),
        (Nodes(BIG, 4, 1), Nodes(SMALL, 3, 2, start_s=100.0)),
        (Nodes(BIG, 3, 4, start_s=50.0, idle_s=5.0), Nodes(SMALL, 1, 1)),
    ]
)


# Whatever goes wrong


@given(kinds, troubles, st.integers(1, 20), st.integers(0, 10_000))
def test_every_comparison_is_measured_whole_and_once_or_named_as_missing(nodes, trouble, count, seed):
    study = study_of(count, BIG, SMALL)
    plans = plans_of(study, seed)
    refused = sorted(plans)[0]
    cluster = SimulatedCluster(
        nodes, planned({key: plan for key, plan in plans.items() if key != refused}), trouble=trouble, seed=seed
    )
    parts, kept = coordinate(study, cluster, wait_s=1e6)
    for part in parts:
        seconds = tuple(kept.seconds.get(part.key, ()))
        if part.trouble:
            # What was finished before is kept, in order, and nothing twice.
            assert seconds == (() if part.key == refused else plans[part.key][: len(seconds)])
            assert ("does not fit" in part.trouble) == (part.key == refused) or "lost 3 times" in part.trouble
        else:
            assert seconds == plans[part.key]
    assert cluster.slots == 0
    # The slots of a cluster that says nothing of it are checked by itself: see `SimulatedCluster.give`.
    assert cluster.most_busy <= sum(kind.count * kind.slots for kind in nodes)


@given(troubles, st.integers(1, 12), st.integers(1, 4), st.integers(0, 10_000))
def test_no_more_is_measured_at_once_than_was_asked_for(trouble, count, most, seed):
    study = study_of(count, BIG, SMALL)
    cluster = SimulatedCluster(
        [Nodes(BIG, 3, 2), Nodes(SMALL, 3, 2)], planned(plans_of(study, seed)), trouble=trouble, seed=seed
    )
    parts, _ = coordinate(study, cluster, most_slots=most, wait_s=1e6)
    assert cluster.most_busy <= most
    assert all(part.trouble or part.sessions for part in parts)


@settings(max_examples=30)
@given(troubles, st.integers(1, 8), st.integers(0, 10_000), st.data())
def test_a_coordinator_that_is_stopped_and_started_again_ends_with_what_an_undisturbed_one_has(
    trouble, count, seed, data
):
    study = study_of(count, BIG, SMALL)
    work = planned(plans_of(study, seed))
    nodes = [Nodes(BIG, 3, 2), Nodes(SMALL, 2, 1)]
    _, undisturbed = coordinate(study, SimulatedCluster(nodes, work))
    # Nothing is given up: the machines are the same, and the worst that they do is to lose a slot.
    trouble = replace(trouble, slot_s=float("inf"), killing=frozenset(), stillborn=frozenset())
    kept, seed = Kept([]), itertools.count(seed)
    for _ in range(3):
        stop = data.draw(st.integers(len(kept.sessions), len(undisturbed.sessions) - 1))
        stopped = Kept(list(kept.sessions), stop)
        waiting = [Comparison(part, 0) for part in comparisons(study)]
        for comparison in waiting:
            comparison.sessions += [session for session in kept.sessions if session.study == comparison.key]
        cluster = SimulatedCluster(nodes, work, trouble=trouble, seed=next(seed))
        with pytest.raises(KeyboardInterrupt):
            Coordinator(waiting, stopped, cluster, say=lambda line: None, wait_s=1e6).run()  # type: ignore[arg-type]
        kept = stopped
    _, kept = coordinate(study, SimulatedCluster(nodes, work, seed=next(seed)), before=kept.sessions)
    assert kept.seconds == undisturbed.seconds


def test_the_last_is_done_hardly_later_than_it_could_be():
    study = study_of(250, BIG, SMALL)
    trouble = Trouble(slot_s=8000.0, node_s=15_000.0, back_s=300.0, killing=frozenset(["H100-1"]))
    nodes = [Nodes(BIG, 5, 2), Nodes(SMALL, 4, 2, start_s=60.0)]
    generator = np.random.default_rng(1)
    plans = {
        study_key(part): tuple(generator.lognormal(3, 0.8, generator.integers(3, 20)).tolist())
        for part in comparisons(study)
    }
    cluster = SimulatedCluster(nodes, planned(plans), trouble=trouble)
    parts, kept = coordinate(study, cluster)
    assert not any(part.trouble for part in parts)
    assert cluster.counts["lost"] > 20
    assert cluster.counts["nodes lost"] > 3
    bounds = cluster.bounds_s()
    assert bounds.keys() == {BIG, SMALL}
    assert max(bounds.values()) <= cluster.now() <= 1.15 * max(bounds.values())
    assert sum(map(sum, kept.seconds.values())) == pytest.approx(sum(map(sum, plans.values())))


# Slots


@dataclass
class Watched(SimulatedCluster):
    """A cluster that writes down what is given to which node, and what is lost there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.given: list[tuple[str, str, int]] = []
        self.lost: list[str] = []

    def give(self, slot: int, study: Study, sessions: Sequence[StoredSession], label: str) -> None:
        node = self._slots[slot].node
        assert node is not None
        self.given.append((study_key(study), node.name, len(sessions)))
        super().give(slot, study, sessions, label)


class LosesOne(Watched):
    """Loses the slot of the first comparison after some of its sessions, so many times."""

    def __init__(self, nodes: Sequence[Nodes], plans: dict[str, tuple[float, ...]], after: Sequence[int]) -> None:
        first, plain, left = next(iter(plans)), planned(plans), list(after)

        def work(study: Study, sessions: Sequence[StoredSession], label: str, node: str) -> Iterator[Session]:
            steps = plain(study, sessions, label, node)
            if left and study_key(study) == first:
                # A session that is never finished follows.
                steps = itertools.chain(itertools.islice(steps, left.pop(0)), [((), float("inf"), "", ())])
            return iter(steps)

        super().__init__(nodes, work)


ONE = study_of(1)
FIVE = {study_key(part): (1.0, 2.0, 3.0, 4.0, 5.0) for part in comparisons(ONE)}


def test_what_was_lost_goes_on_from_its_last_session_on_another_machine():
    study = study_of(3)
    plans = FIVE | {study_key(part): (300.0, 1.0) for part in comparisons(study)[1:]}
    cluster = LosesOne([Nodes(BIG, 2, 1)], plans, after=[2, 1])
    _, kept = coordinate(study, cluster)
    lost = [(node, known) for key, node, known in cluster.given if key in FIVE]
    assert [known for _, known in lost] == [0, 2, 3]
    # It waits for the other one, which is at work, while its own has nothing else to do.
    assert lost[0][0] != lost[1][0]
    assert kept.seconds[next(iter(FIVE))] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_what_was_lost_goes_on_on_the_same_machine_if_there_is_no_other():
    cluster = LosesOne([Nodes(BIG, 1, 1)], FIVE, after=[2, 1])
    _, kept = coordinate(ONE, cluster)
    assert len(kept.sessions) == 5


@pytest.mark.parametrize(("machines", "times"), [(4, "[3-6]"), (1, "6")])
def test_losses_in_a_row_without_a_session_are_given_up_and_named(machines, times):
    said: list[str] = []
    cluster = LosesOne([Nodes(BIG, machines, 1)], FIVE, after=[2, *[0] * 9])
    (part,), kept = coordinate(ONE, cluster, say=said.append)
    # The first loss came after two sessions, and yet is the first of them.
    assert len(kept.sessions) == 2
    assert re.fullmatch(rf"lost {times} times in a row, last on H100-\d \(the worker was killed\)", part.trouble), (
        part.trouble
    )
    assert len(part.lost_on) == 6 or len(set(part.lost_on)) == 3
    assert said[-1].startswith("bert bert@local:window=1, inference, on H100 is given up: lost ")


def test_losses_with_sessions_in_between_are_not_given_up():
    cluster = LosesOne([Nodes(BIG, 2, 1)], FIVE, after=[0, 1, 1, 1, 1])
    (part,), kept = coordinate(ONE, cluster)
    assert part.trouble == ""
    assert len(kept.sessions) == 5


def test_one_bad_machine_costs_no_comparison():
    study = study_of(60)
    trouble = Trouble(killing=frozenset(["H100-0"]))
    cluster = Watched([Nodes(BIG, 2, 2)], planned(plans_of(study, sessions=40)), trouble=trouble)
    parts, _ = coordinate(study, cluster)
    assert not any(part.trouble for part in parts)
    there = Counter(key for key, node, _ in cluster.given if node == "H100-0")
    # Each is given to it once at most, and ever fewer are; nearly all would be, if it did not rest.
    assert set(there.values()) == {1}
    assert len(there) < 40


@pytest.mark.parametrize("bad", ["H100-0", "H100-1"])
def test_one_bad_machine_costs_no_comparison_either_if_one_may_be_measured_at_once(bad):
    study = study_of(60)
    cluster = Watched(
        [Nodes(BIG, 2, 2)], planned(plans_of(study, sessions=40)), trouble=Trouble(killing=frozenset([bad]))
    )
    parts, _ = coordinate(study, cluster, most_slots=1)
    assert not any(part.trouble for part in parts)
    assert cluster.most_busy == 1


def test_every_slot_is_let_go_whatever_happens():
    study = study_of(6)
    cluster = SimulatedCluster([Nodes(BIG, 2, 2)], planned(plans_of(study)))
    kept = Kept([], most=2)
    waiting = [Comparison(part, 0) for part in comparisons(study)]
    with pytest.raises(KeyboardInterrupt):
        Coordinator(waiting, kept, cluster, say=lambda line: None).run()  # type: ignore[arg-type]
    assert cluster.slots == 0


def test_a_cluster_on_which_nothing_but_bad_machines_is_comes_to_an_end():
    study = study_of(6)
    trouble = Trouble(killing=frozenset(["H100-0", "H100-1"]))
    parts, kept = coordinate(study, SimulatedCluster([Nodes(BIG, 2, 2)], planned(plans_of(study)), trouble=trouble))
    assert kept.sessions == []
    assert all("lost 6 times in a row" in part.trouble for part in parts)


def test_machines_that_are_lost_as_they_come_are_no_endless_loop():
    trouble = Trouble(stillborn=frozenset(["H100-0", "H100-1"]))
    cluster = SimulatedCluster([Nodes(BIG, 2, 4)], planned(plans_of(study_of(50))), trouble=trouble)
    said: list[str] = []
    with pytest.raises(AnswerError, match=r"\(what came was lost: it does not start\)"):
        coordinate(study_of(50), cluster, wait_s=3600.0, say=said.append)
    # Ever more seldom, and said once.
    assert cluster.counts["asked"] < 400
    assert sum("was lost as it came" in line for line in said) == 1
    # A kind may fail for as long as others are measured.
    with pytest.raises(AnswerError):
        coordinate(study_of(50), cluster, wait_s=1e5)


def test_a_machine_whose_slots_never_open_does_not_stop_the_others():
    study = study_of(40)
    plans = plans_of(study, sessions=30)
    trouble = Trouble(stillborn=frozenset(["H100-0"]))
    cluster = SimulatedCluster([Nodes(BIG, 2, 4)], planned(plans), trouble=trouble)
    parts, _ = coordinate(study, cluster)
    assert not any(part.trouble for part in parts)
    # It is asked again, but ever more seldom.
    assert 16 < cluster.counts["asked"] < 200


def test_a_slot_with_nothing_left_to_do_is_closed_at_once_and_machines_that_were_started_go():
    study = study_of(6)
    keys = [study_key(part) for part in comparisons(study)]
    plans = dict.fromkeys(keys, (10.0,)) | {keys[0]: (10.0,) * 100}
    nodes = [Nodes(BIG, 6, 1, start_s=30.0, idle_s=20.0)]
    cluster = SimulatedCluster(nodes, planned(plans))
    coordinate(study, cluster)
    assert cluster.counts["nodes started"] == 6
    # All but the one that is still at work.
    assert cluster.counts["nodes gone"] == 5


def test_slots_are_no_longer_asked_for_when_nothing_waits():
    # Six wait, one machine takes them one by one, and the five others that were asked for never come.
    study = study_of(6)
    cluster = SimulatedCluster([Nodes(BIG, 1, 1)], planned(dict.fromkeys(plans_of(study), (5.0,))))
    most: list[int] = []
    close = cluster.close

    def closing(slot: int) -> None:
        close(slot)
        most.append(cluster.slots)

    cluster.close = closing  # type: ignore[method-assign]
    coordinate(study, cluster)
    assert cluster.counts["asked"] == 6
    assert most == [5, 4, 3, 2, 1, 0]


def test_a_kind_that_is_not_there_does_not_keep_another_from_the_slots_that_are_allowed():
    study = study_of(4, SMALL, BIG)
    cluster = SimulatedCluster([Nodes(BIG, 1, 2)], planned(plans_of(study)))
    with pytest.raises(AnswerError, match=r"the cluster had no T4 free within 20.0 s"):
        coordinate(study, cluster, most_slots=2, wait_s=20.0)
    assert len(cluster.worked) == 4


def test_waiting_is_said_soon_and_given_up_with_what_the_cluster_offers():
    said: list[str] = []
    cluster = SimulatedCluster([Nodes(SMALL, 2, 1)], planned({}))
    with pytest.raises(AnswerError) as raised:
        coordinate(study_of(3), cluster, say=said.append, wait_s=60.0)
    assert said == ["waiting for H100; the cluster offers 2 x T4"]
    assert str(raised.value) == (
        "the cluster had no H100 free within 60.0 s; it offers 2 x T4. What was measured before is kept, and the "
        "same command goes on"
    )
    assert 60.0 < cluster.now() < 63.0


def test_a_cluster_that_grows_late_is_waited_for():
    study = study_of(3)
    cluster = SimulatedCluster([Nodes(BIG, 2, 1, start_s=500.0)], planned(plans_of(study)))
    parts, _ = coordinate(study, cluster)
    assert all(part.sessions for part in parts)


def test_the_comparison_that_may_take_longest_comes_first():
    studies = [study_of(2, budget_s=2 * seconds, name=f"{seconds:g}") for seconds in (10.0, 300.0, 100.0)]
    parts = [Comparison(part, 0) for study in studies for part in comparisons(study)]
    plans = {part.key: (1.0,) for part in parts}
    cluster = Watched([Nodes(BIG, 1, 1)], planned(plans))
    Coordinator(parts, Kept([]), cluster, say=lambda line: None).run()  # type: ignore[arg-type]
    assert [key.split()[0] for key, _, _ in cluster.given] == ["300", "300", "100", "100", "10", "10"]


def test_what_was_lost_goes_on_before_anything_else_begins():
    study = study_of(3)
    others = [study_key(part) for part in comparisons(study)[1:]]
    cluster = LosesOne([Nodes(BIG, 1, 1)], FIVE | dict.fromkeys(others, (1.0,)), after=[4])
    coordinate(study, cluster)
    assert [key for key, _, _ in cluster.given] == [*FIVE, *FIVE, *others]


def test_events_of_slots_that_were_let_go_mean_nothing():
    class Late(SimulatedCluster):
        def events(self, timeout_s: float) -> list[Event]:
            return [*super().events(timeout_s), Lost(10_000, "long gone")]

    study = study_of(2)
    parts, _ = coordinate(study, Late([Nodes(BIG, 1, 1)], planned(plans_of(study))))
    assert not any(part.trouble for part in parts)


# What comes of it


def searched_study(**changes) -> Study:
    variants = (Subject("longformer"), Subject("nystromformer"))
    return study_of(
        2, CPU, **{"variants": variants, "phases": ("inference", "training"), "budget_s": 400.0, **changes}
    )


def rows(sessions: Iterable[StoredSession]) -> set[tuple[object, ...]]:
    """What was measured, whenever and wherever."""
    found = [
        (outcome.workload, type(outcome).__name__, getattr(outcome, "samples", ()), session.study)
        for session in sessions
        for outcome in session.outcomes
    ]
    assert len(set(found)) == len(found)
    return set(found)


@dataclass(frozen=True)
class Elsewhere(PlantedMachine):
    """A machine with another environment."""

    torch: str = ENVIRONMENT.torch

    def environment(self, study: Study) -> Environment:
        return replace(ENVIRONMENT, torch=self.torch)

    def measure(
        self, study: Study, step: Step, known: Known, remaining_s: float, progress: Progress
    ) -> tuple[Sequence[Outcome], float]:
        outcomes, seconds = super().measure(study, step, known, remaining_s, progress)
        return [replace(outcome, environment=self.environment(study)) for outcome in outcomes], seconds


QUIET = Trouble()


def on_cluster(
    study: Study,
    store: Store,
    *,
    machine: Callable[[str], PlantedMachine] = lambda node: PlantedMachine(),
    nodes: Sequence[Nodes] = (Nodes(CPU, 3, 1),),
    trouble: Trouble = QUIET,
    seed: int = 0,
    **how,
) -> ClusterResult:
    cluster = SimulatedCluster(nodes, searched(machine), trouble=trouble, seed=seed)
    return run_on_cluster([study], store, cluster, **how)


def test_what_is_finished_needs_no_machine():
    study = searched_study(budget_s=60.0)
    with Store(":memory:") as store:
        first = on_cluster(study, store)
        again = run_on_cluster([study], store, SimulatedCluster([], searched(lambda node: PlantedMachine())))
        assert again.results == first.results


def test_studies_that_compare_the_same_are_refused():
    study = searched_study()
    with Store(":memory:") as store, pytest.raises(InputError, match="give them names of their own"):
        run_on_cluster([study, study], store, SimulatedCluster([], searched(lambda node: PlantedMachine())))


def test_one_machine_and_many_give_the_same_rows_and_the_same_answers():
    study = searched_study(budget_s=200.0)
    with Store(":memory:") as here, Store(":memory:") as there:
        alone = run_study(study, here, machine=PlantedMachine())
        found = on_cluster(study, there, trouble=Trouble(slot_s=60.0, node_s=300.0, back_s=30.0))
        assert rows(here.sessions()) == rows(there.sessions())
        # They come in another order, but for those of one comparison.
        for part in comparisons(alone.study):
            key = study_key(part)
            in_order = [[s.outcomes for s in store.sessions() if s.study == key] for store in (here, there)]
            assert in_order[0] == in_order[1]
    (result,) = found.results
    assert found.missing == ()
    assert result.tipping_points == alone.tipping_points
    assert result.seconds == pytest.approx(alone.seconds)
    assert result.complete == alone.complete


def test_the_store_holds_places_labels_and_keys_of_exactly_what_was_finished():
    study = searched_study(phases=("inference",), budget_s=100.0)
    with Store(":memory:") as store:
        on_cluster(study, store, label="first")
        sessions = store.sessions()
        assert {session.label for session in sessions} == {"first"}
        assert {session.study for session in sessions} == {study_key(part) for part in comparisons(study)}
        assert {session.place for session in sessions} <= {"cpu-0/", "cpu-1/", "cpu-2/"}
        # Nothing is left to measure, and nothing is measured again; under another label everything is.
        on_cluster(study, store, label="first", seed=1)
        assert len(store.sessions()) == len(sessions)
        on_cluster(study, store, label="second", seed=2)
        assert Counter(session.label for session in store.sessions()) == {
            "first": len(sessions),
            "second": len(sessions),
        }


class Stops(Store):
    """A store whose process is killed after so many sessions."""

    most = 0

    def add(
        self, outcomes: Sequence[Outcome], *, study: str = "", seconds: float = 0.0, label: str = "", place: str = ""
    ) -> None:
        if len(self.sessions()) >= self.most:
            raise KeyboardInterrupt
        super().add(outcomes, study=study, seconds=seconds, label=label, place=place)


def test_searches_that_are_stopped_after_any_session_end_with_the_rows_of_undisturbed_ones():
    study = searched_study(phases=("inference",), budget_s=100.0)
    with Store(":memory:") as store:
        undisturbed = on_cluster(study, store)
        wanted, count = rows(store.sessions()), len(store.sessions())
    with Stops(":memory:") as store:
        assert isinstance(store, Stops)
        # The same store each time, stopped at every second session.
        for store.most in range(0, count, 2):
            with pytest.raises(KeyboardInterrupt):
                on_cluster(study, store, seed=store.most)
            assert len(store.sessions()) == store.most
        store.most = count
        found = on_cluster(study, store, seed=count)
        assert rows(store.sessions()) == wanted
    assert found.results[0].tipping_points == undisturbed.results[0].tipping_points


def test_results_of_different_environments_are_kept_apart():
    study = searched_study()
    with Store(":memory:") as store:
        found = on_cluster(study, store, machine=lambda node: Elsewhere(torch=node))
        environments = {outcome.environment.torch for outcome in store.outcomes()}
    assert len(environments) > 1
    assert {result.environment.torch for result in found.results} == environments
    for result in found.results:
        assert {outcome.environment for outcome in result.outcomes} == {result.environment}
    points = [(p.phase, p.variant) for result in found.results for p in result.tipping_points]
    assert len(points) == len(set(points)) == 4


def test_a_study_without_a_place_is_refused():
    study = searched_study().replace(places=(), threads=1)
    with (
        Store(":memory:") as store,
        pytest.raises(InputError, match="a study must say what to measure on"),
    ):
        on_cluster(study, store)


class Refuses(PlantedMachine):
    """Cannot measure one variant, or any."""

    def environment(self, study: Study) -> Environment:
        if Subject("longformer") in study.variants or study.name == "nothing":
            raise InputError("it is not installed here")
        return super().environment(study)


def test_what_is_missing_is_named_and_the_rest_is_answered():
    said: list[str] = []
    with Store(":memory:") as store:
        found = on_cluster(searched_study(), store, machine=lambda node: Refuses(), progress=said.append)
    assert found.missing == (
        "bert longformer, inference, on 2 CPU cores: it is not installed here",
        "bert longformer, training, on 2 CPU cores: it is not installed here",
    )
    assert {str(point.variant) for result in found.results for point in result.tipping_points} == {"nystromformer"}
    assert all(isinstance(outcome, Measurement) for result in found.results for outcome in result.outcomes)
    assert said[0] == "4 comparisons, 6 m 40 s of measuring in all"
    assert sum("is given up: it is not installed here" in line for line in said) == 2


def test_nothing_measured_of_several_is_no_answer():
    study = searched_study(name="nothing")
    with (
        Store(":memory:") as store,
        pytest.raises(AnswerError, match="nothing could be measured: bert longformer, inference, on 2 CPU cores:"),
    ):
        on_cluster(study, store, machine=lambda node: Refuses())


def test_what_a_slot_has_to_say_comes_with_its_place():
    said: list[str] = []
    with Store(":memory:") as store:
        on_cluster(searched_study(phases=("inference",), budget_s=60.0), store, progress=said.append)
    first = next(line for line in said if "bert, longformer" in line)
    assert first.partition("/: ")[0] in ("cpu-0", "cpu-1", "cpu-2")
    assert first.partition("/: ")[2].startswith("[0 s of 30.0 s] inference at 64 tokens (growing): bert, longformer")
