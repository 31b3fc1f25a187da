import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from processes import descendants_of, is_alive, needs_proc, wait_until
from synthetic import failure
from tippingpoint.analysis.recommend import Recommendation
from tippingpoint.analysis.tipping_point import VERDICTS, TippingPoint
from tippingpoint.data import LengthData
from tippingpoint.errors import AnswerError, InputError, StoreError
from tippingpoint.measurement import Failure, Measurement
from tippingpoint.store import Store, StoredSession
from tippingpoint.study import run as run_module
from tippingpoint.study.ledger import study_key
from tippingpoint.study.presets import PRESETS
from tippingpoint.study.recommend import recommend
from tippingpoint.study.run import (
    StudyResult,
    ThisMachine,
    find_tipping_point,
    pair_study,
    resolve_study,
    run_study,
)
from tippingpoint.study.search import Known, Step, next_step
from tippingpoint.workload import METRICS, PHASES, Study, Subject

PAIRS = {
    "text": ("bert", "longformer", (48, 96)),
    "speech": ("hubert", "hubert@local:window=5", (0.2, 0.4)),
    "vision": ("vit", "swinv2", (64, 128)),
}


def tiny_study(modality: str = "text", **changes) -> Study:
    """Two lengths, one thread, and intervals as wide as they come."""
    baseline, variant, lengths = PAIRS[modality]
    fields = {"phases": ("inference",), "metrics": ("latency",), "size": "tiny", "threads": 1, "target": 0.5}
    return pair_study(baseline, variant, **{"lengths": lengths, "precision": 0.99, **fields, **changes})


def what_ran(session: StoredSession) -> tuple[str, float, frozenset[Subject]]:
    workload = session.outcomes[0].workload
    return workload.phase, workload.length, frozenset(outcome.workload.subject for outcome in session.outcomes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path, StudyResult]:
    """A text study with nothing left to do, in a store."""
    path = tmp_path_factory.mktemp("complete") / "results.sqlite"
    study = tiny_study()
    with Store(path) as store:
        return study, path, run_study(study, store)


# Both phases and all metrics of each modality would take a minute; between them they take their turns.
@pytest.mark.parametrize(
    ("modality", "phases", "metrics"),
    [
        ("text", ("inference",), METRICS),
        ("speech", PHASES, ("latency", "peak_memory")),
        ("vision", ("training",), ("latency",)),
    ],
)
def test_a_study_gives_outcomes_and_verdicts_for_every_phase_and_metric(modality, phases, metrics, path):
    study = tiny_study(modality, phases=phases, metrics=metrics, budget_s=0.1)
    lines: list[str] = []
    with Store(path) as store:
        result = run_study(study, store, progress=lines.append)
        assert store.outcomes() == list(result.outcomes)
        sessions = store.sessions()
    assert {session.study for session in sessions} == {study_key(result.study)}
    assert result.seconds == sum(session.seconds for session in sessions) > 0
    # The budget is over at once, and every phase has its shortest length all the same.
    assert [what_ran(session)[:2] for session in sessions] == [(phase, study.lengths[0]) for phase in phases]
    for phase in phases:
        for subject in study.subjects:
            found = [o for o in result.outcomes if (o.workload.subject, o.workload.phase) == (subject, phase)]
            assert isinstance(found[0], Measurement), found[0]
            assert found[0].memory
            assert bool(found[0].batch_curve) == ("throughput" in metrics)
    assert [(point.phase, point.metric) for point in result.tipping_points] == [
        (p, m) for p in phases for m in metrics
    ]
    for point in result.tipping_points:
        assert point.verdict in VERDICTS
        assert point.measured_range == (study.lengths[0], study.lengths[0])
    assert not result.complete
    assert any(line.startswith("[") and "growing" in line for line in lines)


def test_a_study_with_nothing_left_to_do_is_complete(complete):
    study, _, result = complete
    assert result.complete
    assert {outcome.workload.length for outcome in result.outcomes} >= {48, 96}
    assert result.tipping_points[0].measured_range == study.lengths


def test_a_complete_study_measures_nothing_again(complete):
    study, path, result = complete
    before = path.read_bytes()
    with Store(path) as store:
        again = run_study(study, store)
    assert path.read_bytes() == before
    assert again.outcomes == result.outcomes
    assert again.tipping_points == result.tipping_points


def test_another_study_uses_what_is_in_the_store(complete):
    study, path, result = complete
    with Store(path) as store:
        before = len(store.sessions())
        point = find_tipping_point(
            "bert",
            "longformer",
            lengths=study.lengths,
            size="tiny",
            threads=1,
            precision=0.99,
            store=store,
        )
        assert len(store.sessions()) == before
    assert point.points == result.tipping_points[0].points


def test_a_larger_range_goes_on_with_what_is_in_the_store(complete, path):
    study, finished, _ = complete
    path.write_bytes(finished.read_bytes())
    with Store(path) as store:
        before = store.sessions()
        result = run_study(study.replace(lengths=(48, 192)), store)
        after = store.sessions()
    assert after[: len(before)] == before
    assert 192 in {outcome.workload.length for outcome in result.outcomes}
    assert all(what_ran(session)[1] > 96 for session in after[len(before) :])


def test_outcomes_of_another_environment_do_not_count(complete):
    _, path, result = complete
    with Store(path) as store:
        elsewhere = [
            replace(outcome, environment=replace(outcome.environment, torch="1.0")) for outcome in store.outcomes()
        ]
    with Store(":memory:") as store:
        store.add(elsewhere, study=study_key(result.study), seconds=0.0)
        again = run_study(tiny_study(budget_s=0.1), store)
        assert len(store.sessions()) == 2
    assert not {outcome.environment for outcome in again.outcomes} & {o.environment for o in elsewhere}


def test_subjects_of_which_nothing_fits_have_no_answer_and_say_why(path):
    study = tiny_study(lengths=(20_000_000, 40_000_000))
    with (
        Store(path) as store,
        pytest.raises(AnswerError, match=r"nothing could be measured: .*refused before trying"),
    ):
        run_study(study, store)
    # The failures are rows like any other, and are not tried again.
    with Store(path) as store:
        assert [type(outcome) for outcome in store.outcomes()] == [Failure, Failure]
        before = len(store.sessions())
        with pytest.raises(AnswerError, match="nothing could be measured"):
            run_study(study, store)
        assert len(store.sessions()) == before


def test_an_illegal_study_is_refused_before_any_process_is_started(monkeypatch):
    def start(*arguments: object, **options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("tippingpoint.study.run.WorkerProcess", start)
    study = tiny_study().replace(modality="speech")
    with Store(":memory:") as store, pytest.raises(InputError, match="the study says modality 'speech'"):
        run_study(study, store)


def test_a_store_that_cannot_be_written_stops_the_study_with_one_clear_error(complete, monkeypatch):
    def full(*arguments: object, **options: object) -> None:
        raise StoreError("the disk is full")

    with Store(":memory:") as store:
        monkeypatch.setattr(store, "add", full)
        with pytest.raises(StoreError, match="the disk is full"):
            run_study(tiny_study(budget_s=0.1), store)


def test_a_tipping_point_is_found_without_a_store_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    point = find_tipping_point(
        "vit", "vit@local:window=4", metric="peak_memory", lengths=(64, 128), size="tiny", threads=1, budget_s=0.1
    )
    assert isinstance(point, TippingPoint)
    assert (str(point.variant), point.metric, point.unit) == ("vit@local:window=4", "peak_memory", "pixels")
    assert point.verdict in VERDICTS
    assert str(point)
    assert list(tmp_path.iterdir()) == []


def test_a_tipping_point_may_leave_its_measurements_in_a_file(path):
    find_tipping_point(
        "bert", "bert@local:window=4", lengths=(16, 32), size="tiny", threads=1, budget_s=0.1, store=path
    )
    with Store(path, create=False) as store:
        assert {str(outcome.workload.subject) for outcome in store.outcomes()} == {"bert", "bert@local:window=4"}


def test_a_recommendation_measures_what_it_needs_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = recommend(
        [40, 50, 60, 70],
        candidates=["bert", "bert@local:window=4"],
        constraints={"peak_memory": "100GiB", "latency": "1h"},
        size="tiny",
        threads=1,
        budget_s=10,
    )
    assert isinstance(answer, Recommendation)
    assert {str(candidate.subject) for candidate in answer.candidates} == {"bert", "bert@local:window=4"}
    assert answer.choice in {candidate.subject for candidate in answer.candidates}
    assert answer.data.method == "given by the caller"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("batching", "sizes"),
    [("one", {1}), ("bucketed:3", {3}), ("budget:150", {2, 3, 4, 5, 6, 7}), ("packed:80", {1})],
)
def test_a_recommendation_measures_batches_as_they_are_made(path, batching, sizes):
    answer = recommend(
        [20, 30, 40, 50, 60, 70] * 20,
        candidates=["bert", "bert@local:window=4"],
        batching=batching,
        objective="throughput",
        switch=True,
        size="tiny",
        threads=1,
        # It ends of itself after a few seconds; a machine that has more to do still reaches the longest pack.
        budget_s=60 if batching.startswith("packed") else 3,
        store=path,
    )
    with Store(path) as store:
        measured = [o.workload for o in store.outcomes() if isinstance(o, Measurement)]
    if batching == "one":  # throughput is looked for at larger batches too
        assert 1 in {workload.batch_size for workload in measured}
    else:
        assert {workload.batch_size for workload in measured} <= sizes
    batched = batching.startswith(("bucketed", "budget"))
    assert all(workload.padded == (batched and workload.batch_size > 1) for workload in measured)
    if batching.startswith("budget"):
        assert all(workload.batch_size == max(1, int(150 // workload.length)) for workload in measured)
    assert str(answer.batching) == batching
    costs = [candidate.workload for candidate in answer.candidates if candidate.workload]
    assert costs
    assert all(cost.per_1000_s.low <= cost.per_1000_s.value <= cost.per_1000_s.high for cost in costs)
    assert all(cost.peak_bytes for cost in costs)


def test_a_recommendation_may_come_from_the_store_alone(complete):
    study, path, _ = complete
    before = path.read_bytes()
    answer = recommend(
        [48, 60, 96], candidates=["bert", "longformer"], size="tiny", store=path, measure=False, threads=study.threads
    )
    assert path.read_bytes() == before
    assert answer.covered == 1
    assert answer.environment.threads == 1


def test_a_recommendation_from_an_empty_store_without_measuring_is_no_answer(path):
    Store(path).close()
    with pytest.raises(AnswerError, match="is empty, and measuring was not allowed"):
        recommend([100], modality="text", store=path, measure=False)


def test_a_recommendation_from_a_missing_store_without_measuring_is_one_clear_error(path):
    with pytest.raises(StoreError, match="there is no store"):
        recommend([100], modality="text", store=path, measure=False)
    assert not path.exists()


SPEECH = LengthData.of([1.0], modality="speech")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"lengths": [100]}, "plain lengths need a modality or candidates that tell it"),
        ({"lengths": [], "modality": "text"}, "lengths need at least one value"),
        ({"lengths": [-3], "modality": "text"}, "a length must be positive"),
        ({"lengths": [100], "modality": "music"}, "unknown modality 'music'"),
        (
            {"lengths": SPEECH, "candidates": ["bert", "longformer"]},
            "the lengths are of speech, and the candidates of",
        ),
        ({"lengths": [100], "candidates": ["bert", "vit"]}, "subjects of different modalities cannot be compared"),
        ({"lengths": [100], "candidates": ["bert", "bert@eager"]}, "are all vanilla; add an efficient one"),
        ({"lengths": [100], "candidates": ["bret"]}, "unknown architecture 'bret'"),
        ({"lengths": [100], "modality": "text", "objective": "speed"}, "unknown objective 'speed'"),
        ({"lengths": [100], "modality": "text", "constraints": {"energy": 3}}, "unknown constraint 'energy'"),
        ({"lengths": [100], "modality": "text", "phase": "sleeping"}, "unknown phase 'sleeping'"),
        ({"lengths": [100], "modality": "text", "size": "huge"}, "unknown size 'huge'"),
        ({"lengths": [100], "modality": "text", "device": "tpu"}, "unknown device 'tpu'"),
        ({"lengths": [100], "modality": "text", "batching": "fixed"}, "batching 'fixed' needs a size"),
        ({"lengths": [224], "modality": "vision", "batching": "packed:512"}, "images take one, fixed:N"),
        (
            {"lengths": [100], "modality": "text", "objective": "peak_memory", "switch": True},
            "two models can be weighed by latency or throughput, got the objective 'peak_memory'",
        ),
    ],
)
def test_what_recommend_cannot_use_is_said_before_anything_is_measured(monkeypatch, arguments, expected):
    def start(*arguments: object, **options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("tippingpoint.study.run.WorkerProcess", start)
    with pytest.raises(InputError, match=expected):
        recommend(**arguments)


@pytest.mark.parametrize("name", PRESETS)
def test_the_name_under_which_time_is_counted_tells_studies_apart(name):
    study = PRESETS[name]
    key = study_key(study)
    assert key.startswith(f"{name} ")
    # A larger budget or a finer precision goes on with the same study.
    for same in ({"budget_s": 9.0}, {"precision": 0.5}, {"target": 0.1}, {"metrics": ("latency",)}):
        assert study_key(study.replace(**same)) == key
    for other in ({"size": "tiny"}, {"phases": ("training",)}, {"threads": 7}, {"batch_size": 2}, {"device": "cuda"}):
        assert study_key(study.replace(**other)) != key


# Interruptions, in a process of its own


# A shell may have told its background processes, and so this one, to ignore the keyboard.
_COMMAND = """
import signal
from tippingpoint.cli import run
signal.signal(signal.SIGINT, signal.default_int_handler)
run()
"""


def start_study(folder: Path) -> subprocess.Popen[str]:
    """Start a study that takes some ten seconds."""
    file = folder / "study.yaml"
    fields = {
        "name": "interrupted",
        "modality": "text",
        "baselines": ["bert", "bert@eager"],
        "variants": ["longformer"],
        "lengths": [32, 128],
        "metrics": ["latency"],
        "phases": ["inference"],
        "size": "tiny",
        "threads": 1,
        "target": "50%",
        "precision": "99%",
        "budget": "60s",
    }
    file.write_text(yaml.safe_dump(fields))
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, "study", str(file), "--store", str(folder / "results.sqlite")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )


def sessions_in(path: Path) -> list[StoredSession]:
    if not path.exists():
        return []
    with Store(path) as store:
        return store.sessions()


def interrupt(folder: Path, stop: Callable[[subprocess.Popen[str]], None]) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a study, stop it once it has a session, and return the process and those it had started."""
    process = start_study(folder)
    path = folder / "results.sqlite"
    try:
        assert wait_until(lambda: len(sessions_in(path)) >= 1, seconds=90), process.poll()
        # Workers of the next session are alive when the end comes.
        assert wait_until(lambda: len(descendants_of(process.pid)) >= 2, seconds=30)
        started = descendants_of(process.pid)
        assert process.poll() is None, "the study was over before it could be interrupted"
    except BaseException:
        process.kill()
        process.communicate()
        raise
    stop(process)
    return process, started


@needs_proc
def test_a_study_that_is_killed_goes_on_where_it_was_and_leaves_no_process_behind(tmp_path):
    process, started = interrupt(tmp_path, lambda running: running.kill())
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert wait_until(lambda: not any(map(is_alive, started)), seconds=10)

    before = sessions_in(tmp_path / "results.sqlite")
    assert before
    assert all(len(what_ran(session)[2]) == 3 for session in before)
    again = start_study(tmp_path)
    output, complaints = again.communicate(timeout=120)
    assert again.returncode == 0, complaints
    after = sessions_in(tmp_path / "results.sqlite")
    assert after[: len(before)] == before
    assert len(after) > len(before)
    ran = [what_ran(session) for session in after]
    assert {32, 128} <= {length for _, length, _ in ran}
    # What was measured before is not measured again: a busy machine may want more of a length, but of both first.
    if {length for _, length, _ in ran[: len(before)]} != {32, 128}:
        assert ran[len(before)] not in ran[: len(before)]
    assert "Tipping points" in output
    assert "the budget of" not in output


@needs_proc
def test_an_interrupt_from_the_keyboard_is_one_line_and_keeps_what_was_measured(tmp_path):
    process, started = interrupt(tmp_path, lambda running: os.kill(running.pid, signal.SIGINT))
    output, complaints = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output == ""
    assert "Traceback" not in complaints
    assert complaints.splitlines()[-1] == "error: interrupted; what was measured before is kept in the store"
    assert wait_until(lambda: not any(map(is_alive, started)), seconds=10)
    assert sessions_in(tmp_path / "results.sqlite")


def test_a_session_whose_worker_somebody_killed_is_measured_again(path, monkeypatch):
    def lost(workload, kind):
        return failure(workload.subject, workload.length, kind=kind, session="s")

    asked: list[Step] = []

    def measure(study, step, known, remaining_s, progress):
        asked.append(step)
        kind = "killed" if len(asked) == 1 else "crashed"
        return [lost(study.workload(subject, step.length, step.phase), kind) for subject in step.subjects]

    monkeypatch.setattr(run_module, "_measure", measure)
    study, lines = resolve_study(tiny_study(threads=2)), list[str]()
    step = next_step(study, Known(), study.budget_s)
    assert step is not None
    outcomes, _ = ThisMachine().measure(study, step, Known(), 1.0, lines.append)
    assert asked == [step, step]
    assert {getattr(outcome, "kind", None) for outcome in outcomes} == {"crashed"}
    assert lines == ["a measuring process was killed; the session is measured again"]
