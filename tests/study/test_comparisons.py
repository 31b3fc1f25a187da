import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthetic import measurement
from tippingpoint.store import StoredSession
from tippingpoint.study.comparisons import comparisons
from tippingpoint.study.coordinate import _recall
from tippingpoint.study.ledger import bears_on, study_key
from tippingpoint.study.queue import Comparison
from tippingpoint.study.search import pairs
from tippingpoint.workload import PHASES, Place, Study, Subject

NAMES = ("bert", "bert@eager", "longformer", "nystromformer", "bert@local:window=8")
SUBJECTS = [Subject.parse(name) for name in NAMES]
PLACES = (Place(kind="H100"), Place(kind="A100"), Place(kind="cpu", cores=8))


def make_study(baselines: int = 1, variants: int = 2, **changes) -> Study:
    fields = {
        "name": "parts",
        "modality": "text",
        "baselines": tuple(SUBJECTS[:baselines]),
        "variants": tuple(SUBJECTS[2 : 2 + variants]),
        "lengths": (64, 1024),
    }
    return Study(**{**fields, **changes})


def cells(study: Study) -> list[tuple[object, ...]]:
    """Everything that is compared, on each kind of place."""
    return list(itertools.product(study.places or [None], study.phases, pairs(study)))


def session(*subjects: Subject, study: str = "some") -> StoredSession:
    outcomes = tuple(measurement(subject, 128, 0.01) for subject in subjects)
    return StoredSession(study, "", "", 1.0, outcomes)


@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.sampled_from([PHASES, PHASES[:1]]),
    st.integers(0, 3),
    st.booleans(),
)
def test_parts_cover_a_study_once_and_share_its_budget(baselines, variants, phases, places, apart):
    study = make_study(baselines, variants, phases=phases, places=PLACES[:places], apart=apart)
    parts = comparisons(study)
    covered = Counter(cell for part in parts for cell in cells(part))
    assert covered == Counter(cells(study))
    assert set(covered.values()) == {1}
    assert sum(part.budget_s for part in parts) == pytest.approx(study.budget_s)
    assert len({part.budget_s for part in parts}) == 1
    assert len({study_key(part) for part in parts}) == len(parts)
    for part in parts:
        assert len(part.places) <= 1
        if apart:
            assert (len(part.baselines), len(part.variants), len(part.phases)) == (1, 1, 1)
        # A part has no parts.
        assert comparisons(part) == (part,)


def test_a_study_that_names_nothing_new_is_its_only_part_and_keeps_its_key():
    study = make_study()
    assert comparisons(study) == (study,)
    assert study_key(study.replace(apart=True)) != study_key(study)
    assert study_key(study.replace(places=PLACES[:1])) != study_key(study)


def test_a_place_settles_the_device_and_the_threads_of_its_part():
    parts = comparisons(make_study(places=PLACES))
    assert [(part.place, part.device, part.threads) for part in parts] == [
        (PLACES[0], "cuda", 4),
        (PLACES[1], "cuda", 4),
        (PLACES[2], "cpu", 8),
    ]


def test_pairs_that_are_searched_apart_know_only_what_was_measured_for_them():
    bert, longformer = SUBJECTS[0], SUBJECTS[2]
    part, other = comparisons(make_study(apart=True, phases=PHASES[:1]))
    assert part.subjects == (bert, longformer)
    assert bears_on(part, session(bert, longformer, study=study_key(part)))
    assert not bears_on(part, session(bert, longformer, study=study_key(other)))
    assert not bears_on(part, session(bert, longformer))
    together = make_study()
    assert bears_on(together, session(bert))
    assert not bears_on(together, session(SUBJECTS[4]))


@given(
    st.booleans(),
    st.integers(1, 2),
    st.lists(st.tuples(st.sets(st.sampled_from(SUBJECTS), min_size=1), st.integers(0, 30)), max_size=8),
)
def test_every_part_is_given_what_bears_on_it_and_nothing_else(apart, baselines, measured):
    parts = [Comparison(part, 0) for part in comparisons(make_study(baselines, apart=apart, places=PLACES))]
    sessions = [
        session(*sorted(subjects, key=str), study=parts[number % len(parts)].key) for subjects, number in measured
    ]
    _recall(parts, sessions, "")
    for part in parts:
        assert part.sessions == [each for each in sessions if bears_on(part.study, each)]
