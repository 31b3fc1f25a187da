import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthetic import ENVIRONMENT, measurement
from tippingpoint.errors import InputError
from tippingpoint.store import StoredSession
from tippingpoint.study.comparisons import comparisons
from tippingpoint.study.coordinate import _recall
from tippingpoint.study.ledger import bears_on, study_key
from tippingpoint.study.queue import Comparison
from tippingpoint.study.run import check_place, resolve_study
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


def test_places_that_are_unlike_have_keys_that_are_unlike():
    places = [
        Place(kind="H100"),
        Place(kind="H100", share_socket=True),
        Place(kind="H100", cores=8),
        Place(kind="cuda"),
        Place(kind="H100", resources=(("quiet", 1.0),)),
    ]
    keys = {study_key(part) for part in comparisons(make_study(places=tuple(places)))}
    assert len(keys) == len(places)
    assert study_key(make_study(places=(Place(kind="h100"),))) == study_key(make_study(places=(places[0],)))


def test_what_is_named_twice_is_compared_once():
    twice = make_study(variants=1, phases=("inference", "inference"), apart=True)
    twice = twice.replace(variants=(Subject.parse("bert@local"), Subject.parse("bert@local:window=128")))
    resolved = resolve_study(twice)
    assert [str(subject) for subject in resolved.variants] == ["bert@local:window=128"]
    assert len(comparisons(resolved)) == 1


@pytest.mark.parametrize(
    ("kind", "name", "fits"),
    [
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("h100", "NVIDIA H100 80GB HBM3", True),
        ("RTX-A6000", "NVIDIA RTX A6000", True),
        ("GeForce-RTX-5090", "NVIDIA GeForce RTX 5090", True),
        ("cuda", "Tesla T4", True),
        ("A100", "NVIDIA A10", False),
        ("A10", "NVIDIA A100-SXM4-80GB", False),
        ("H100", "NVIDIA H200", False),
    ],
)
def test_a_gpu_is_of_a_kind_if_its_name_has_the_words(kind, name, fits):
    study = make_study(places=(Place(kind=kind),))
    environment = replace(ENVIRONMENT, device_name=name)
    if fits:
        check_place(study, environment)
    else:
        with pytest.raises(InputError, match=f"asks for {kind.upper()}, and the GPU here is {name}"):
            check_place(study, environment)


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
