import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthetic import ENVIRONMENT, MIB, failure, measurement, session_at
from tippingpoint.analysis.winners import Contest, Race, SpeedUp, contests, races, races_of, stretches
from tippingpoint.measurement import BEST_BATCH, LOOK, Outcome
from tippingpoint.workload import Subject

BERT, EAGER, LOCAL, REUSE = (
    Subject.parse(text) for text in ("bert", "bert@eager", "bert@local:window=128", "bert@reuse:group=3,mode=auto")
)
CONTEST = Contest((BERT, EAGER), (LOCAL, REUSE))
# Seconds that are planted, by subject, at 128, 512 and 2,048 tokens: reuse is ahead at first, local at the end.
COSTS = {BERT: (1.0, 4.0, 24.0), EAGER: (1.2, 6.0, 60.0), LOCAL: (1.3, 3.9, 12.0), REUSE: (0.8, 3.2, 20.0)}
LENGTHS = (128, 512, 2048)


def outcomes_at(*lengths: int, noise: float = 0.01) -> list[Outcome]:
    generator = np.random.default_rng(1)
    found: list[Outcome] = []
    for length in lengths:
        place = LENGTHS.index(length)
        costs = {subject: costs[place] for subject, costs in COSTS.items()}
        found += session_at(length, costs, generator, noise=noise)
    return found


def race(outcomes: list[Outcome], contest: Contest = CONTEST) -> Race:
    return Race(contest=contest, outcomes=tuple(outcomes), phase="inference")


def speed_up(found: Race, baseline: Subject, subject: Subject, metric: str = "latency") -> SpeedUp:
    (one,) = [each for each in found.speed_ups(metric) if (each.baseline, each.subject) == (baseline, subject)]
    return one


def test_speed_ups_are_those_that_were_planted_against_every_baseline():
    found = race(outcomes_at(*LENGTHS))
    pairs = [(each.baseline, each.subject) for each in found.speed_ups()]
    assert pairs == [
        (BERT, EAGER),
        (BERT, LOCAL),
        (BERT, REUSE),
        (EAGER, BERT),
        (EAGER, LOCAL),
        (EAGER, REUSE),
    ]
    for each in found.speed_ups():
        assert [point.length for point in each.points] == list(LENGTHS)
        for place, point in enumerate(each.points):
            planted = COSTS[each.baseline][place] / COSTS[each.subject][place]
            assert point.ratio == pytest.approx(planted, rel=0.03)
            assert point.interval[0] <= point.ratio <= point.interval[1]


def test_the_fastest_is_the_one_that_was_planted_at_each_length():
    assert [(best.length, best.subject, best.level) for best in race(outcomes_at(*LENGTHS)).best()] == [
        (128, REUSE, ()),
        (512, REUSE, ()),
        (2048, LOCAL, ()),
    ]


def test_who_is_not_certainly_slower_is_level():
    same: list[Outcome] = [
        measurement(BERT, 128, [1.0, 1.1, 0.9, 1.05, 0.95, 1.0]),
        measurement(EAGER, 128, [2.0] * 6),
        measurement(LOCAL, 128, [0.95, 1.1, 1.0, 1.0, 0.9, 1.02]),
        measurement(REUSE, 128, [1.5] * 6),
    ]
    (best,) = race(same).best()
    assert {best.subject, *best.level} == {BERT, LOCAL}


def test_the_smallest_is_known_within_what_reading_memory_is_worth():
    sizes = {BERT: 200, EAGER: 300, LOCAL: 101, REUSE: 100}
    outcomes: list[Outcome] = [
        measurement(subject, 128, 1.0, peak_bytes=size * MIB) for subject, size in sizes.items()
    ]
    (best,) = race(outcomes).best("peak_memory")
    assert (best.subject, best.level) == (REUSE, (LOCAL,))
    assert speed_up(race(outcomes), BERT, REUSE, "peak_memory").points[0].ratio == pytest.approx(2, rel=0.01)


def test_where_memory_was_not_read_nobody_is_the_smallest():
    outcomes: list[Outcome] = [measurement(subject, 128, 1.0, peak_bytes=None) for subject in COSTS]
    assert race(outcomes).best("peak_memory") == ()
    assert race(outcomes).best()


def test_a_length_that_only_some_were_measured_at_is_left_out():
    alone = session_at(600, {BERT: 5.0, LOCAL: 1.0}, np.random.default_rng(0))
    found = race([*outcomes_at(128, 512), *alone])
    assert found.lengths == (128, 512)
    assert [best.length for best in found.best()] == [128, 512]
    assert [point.length for point in speed_up(found, BERT, LOCAL).points] == [128, 512]


def test_where_no_length_has_all_of_them_speed_ups_are_known_and_winners_are_not():
    outcomes = [
        *session_at(128, {BERT: 2.0, LOCAL: 1.0}, np.random.default_rng(0)),
        *session_at(512, {BERT: 2.0, REUSE: 1.0}, np.random.default_rng(0)),
    ]
    assert race(outcomes).lengths == (128, 512)
    assert race(outcomes).best() == ()
    assert [point.length for point in speed_up(race(outcomes), BERT, REUSE).points] == [512]


def test_what_ran_out_of_memory_does_not_compete_there_and_at_longer_lengths():
    lost: list[Outcome] = [failure(LOCAL, 512, session="at 512")]
    rest = [outcome for outcome in outcomes_at(*LENGTHS) if outcome.workload.subject != LOCAL]
    first = [outcome for outcome in outcomes_at(128) if outcome.workload.subject == LOCAL]
    found = race([*rest, *first, *lost])
    assert [(best.length, best.subject) for best in found.best()] == [(128, REUSE), (512, REUSE), (2048, REUSE)]
    assert set(found.failures(2048)) == {LOCAL}
    assert found.failures(128) == {}
    points = speed_up(found, BERT, LOCAL).points
    assert [point.censored for point in points] == [0, -1]


def test_the_only_one_that_fits_wins():
    lost: list[Outcome] = [failure(subject, 2048, session="at 2048") for subject in (BERT, EAGER, LOCAL)]
    found = race([*outcomes_at(128), *lost, measurement(REUSE, 2048, 1.0, session="at 2048-0")])
    assert [(best.length, best.subject) for best in found.best()] == [(128, REUSE), (2048, REUSE)]


def test_those_that_were_not_timed_together_are_held_against_each_other_by_their_own_intervals():
    outcomes: list[Outcome] = [
        measurement(BERT, 128, [2.0, 2.01, 1.99, 2.0], session="s-0"),
        measurement(EAGER, 128, [3.0, 3.01, 2.99, 3.0], session="s-0"),
        measurement(LOCAL, 128, [1.0, 1.01, 0.99, 1.0], session="s-0"),
        measurement(REUSE, 128, [1.0, 1.03, 0.98, 1.02], session="s-1"),
    ]
    (best,) = race(outcomes).best()
    assert (best.subject, best.level) == (LOCAL, (REUSE,))
    outcomes[-1] = measurement(REUSE, 128, [1.5, 1.51, 1.49, 1.5], session="s-1")
    (best,) = race(outcomes).best()
    assert (best.subject, best.level) == (LOCAL, ())


def test_other_batches_phases_and_looks_do_not_count():
    others: list[Outcome] = [
        measurement(LOCAL, 128, 0.001, phase="training"),
        measurement(LOCAL, 128, 0.001, batch_size=8),
        measurement(LOCAL, 128, 0.001, session="s-0" + BEST_BATCH),
        measurement(LOCAL, 128, 0.001, session="s" + LOOK),
    ]
    found = race([*others, *outcomes_at(128)])
    assert [best.subject for best in found.best()] == [REUSE]
    assert len(found.seen) == 4


def test_a_study_has_a_race_in_each_phase_that_was_measured():
    training = session_at(128, {BERT: 2.0, LOCAL: 1.0}, np.random.default_rng(0), phase="training")
    phases = ("inference", "training")
    assert [found.phase for found in races_of([*outcomes_at(128), *training], CONTEST, phases, 1)] == [*phases]
    assert [found.phase for found in races_of(training, CONTEST, phases, 1)] == ["training"]
    assert races_of([], CONTEST, phases, 1) == ()


def test_subjects_compete_with_the_vanilla_ones_of_their_architecture_or_with_all():
    names = ["bert@local", "longformer", "roberta@reuse", "bert@eager", "bert", "roberta", "nystromformer"]
    found = contests(map(Subject.parse, names))
    assert [(list(map(str, each.baselines)), list(map(str, each.variants))) for each in found] == [
        (["bert", "bert@eager"], ["bert@local"]),
        (["bert", "roberta", "bert@eager"], ["longformer", "nystromformer"]),
        (["roberta"], ["roberta@reuse"]),
    ]
    assert contests([LOCAL, REUSE]) == ()
    assert contests([BERT, EAGER]) == ()


def test_unlike_settings_and_environments_do_not_race():
    generator = np.random.default_rng(0)
    costs = {BERT: 2.0, LOCAL: 1.0}
    hubert = {Subject.parse("hubert"): 2.0, Subject.parse("hubert@local:window=50"): 1.0}
    outcomes = [
        *session_at(128, costs, generator),
        *session_at(128, costs, generator, threads=4),
        *session_at(2.0, hubert, generator),
        *session_at(512, costs, generator),
        measurement(BERT, 2048, 1.0, size="tiny"),
        measurement(LOCAL, 2048, 1.0, size="small"),
    ]
    assert [(each.workload.threads, each.lengths) for each in races(outcomes)] == [
        (2, (128, 512)),
        (4, (128,)),
        (2, (2.0,)),
    ]
    assert races(outcomes)[0].seen[0].environment == ENVIRONMENT


@given(st.lists(st.booleans(), max_size=12))
def test_stretches_cover_what_was_chosen_and_nothing_else(chosen):
    lengths = [2.0**place for place in range(len(chosen))]
    wanted = [length for length, taken in zip(lengths, chosen, strict=True) if taken]
    found = stretches(lengths, wanted)
    assert [length for length in lengths if any(low <= length <= high for low, high in found)] == wanted
    # No two of them could be one.
    gaps = [(first[1], second[0]) for first, second in itertools.pairwise(found)]
    assert all(any(low < length < high for length in lengths) for low, high in gaps)


def test_where_a_batch_holds_as_many_as_fit_every_length_has_its_own_batch_size():
    outcomes: list[Outcome] = [
        measurement(subject, length, [seconds] * 9, session=f"{length}-0", batch_size=4096 // length)
        for length in LENGTHS
        for subject, seconds in ((BERT, length), (LOCAL, 500))
    ]
    contest = Contest((BERT,), (LOCAL,))
    (found,) = races_of(outcomes, contest, ["inference"], 1, batch_budget=4096)
    assert found.lengths == LENGTHS
    ratios = [point.ratio for point in speed_up(found, BERT, LOCAL).points]
    assert ratios == pytest.approx([length / 500 for length in LENGTHS])
    assert [best.subject for best in found.best()] == [BERT, LOCAL, LOCAL]
    assert races_of(outcomes, contest, ["inference"], 1) == ()
