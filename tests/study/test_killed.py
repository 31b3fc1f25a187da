"""A study whose processes are killed at any moment ends with what an undisturbed one has, and nothing twice."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import yaml

from processes import children_of, descendants_of, needs_proc, wait_until
from synthetic import ENVIRONMENT, Machine
from tippingpoint.machine import Environment
from tippingpoint.measurement import Failure, Outcome
from tippingpoint.store import Store, StoredSession
from tippingpoint.study.run import pair_study, resolve_study, run_study
from tippingpoint.study.search import Known, Step
from tippingpoint.workload import Study, Subject

KILLS = 100
BASELINE, VARIANT = Subject.parse("bert"), Subject.parse("bert@local:window=128")


class Replayed:
    """A machine whose every session follows from what was known before it: noise, names and the clock included.

    So a study that is killed and goes on takes the same steps as one that is not.
    """

    def alone(self, study: Study, progress: Callable[[str], None]) -> AbstractContextManager[None]:
        return nullcontext()

    def environment(self, study: Study) -> Environment:
        return ENVIRONMENT

    def measure(
        self, study: Study, step: Step, known: Known, remaining_s: float, progress: object
    ) -> tuple[Sequence[Outcome], float]:
        count = len(known.outcomes) + len(known.screened)
        costs = {BASELINE: lambda n: 1e-4 * n + 1e-7 * n * n, VARIANT: lambda n: 2e-4 * n}
        machine = Machine(study, costs, noise=0.02, seed=count)
        machine.sessions = [([], 0.0)] * count
        return machine.run(step)


def planted_study() -> Study:
    fields = {"metrics": ("latency",), "phases": ("inference",), "threads": 2, "precision": 0.1, "target": 0.05}
    return resolve_study(pair_study(BASELINE, VARIANT, lengths=(128, 4096), budget_s=300, **fields))


def content(path: Path) -> list[tuple[str, float, tuple[Outcome, ...]]]:
    """Everything in a store but the time at which it was written."""
    with Store(path) as store:
        return [(session.study, session.seconds, session.outcomes) for session in store.sessions()]


def integrity(path: Path) -> str:
    database = sqlite3.connect(path)
    try:
        return database.execute("PRAGMA integrity_check").fetchone()[0]
    finally:
        database.close()


def coordinate(path: Path, told: int) -> None:
    """Run the study in this process; write a byte whenever a session begins."""
    with Store(path) as store:
        run_study(planted_study(), store, machine=Replayed(), progress=lambda line: tell(told))


def tell(told: int) -> None:
    os.write(told, b".")


def start(path: Path) -> tuple[int, int]:
    """Run the study in a fork of this warm process; return its id, and where it tells that a session begins."""
    read, told = os.pipe()
    pid = os.fork()
    if pid:
        os.close(told)
        return pid, read
    code = 1
    try:
        os.close(read)
        coordinate(path, told)
        code = 0
    finally:
        os._exit(code)


def kill(pid: int, told: int, path: Path, chance: random.Random) -> bool:
    """Kill a study at some moment, unless it is done before; return whether it was killed.

    A third of the moments are anywhere, a third within what happens when a session begins, and a third while a
    session is being written, which takes much less time than the rest.
    """
    kind, journal = chance.randrange(3), path.with_name(path.name + "-journal")
    if kind == 0:
        wait_until(lambda: is_over(pid), seconds=chance.uniform(0, 0.4))
    else:
        for _ in range(chance.randint(2, 3)):
            os.read(told, 1)
        if kind == 2:
            while not journal.exists() and not is_over(pid):
                pass
        for _ in range(chance.randrange(200)):
            journal.exists()
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def is_over(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def test_a_study_killed_at_a_hundred_moments_ends_with_what_an_undisturbed_one_has(tmp_path):
    undisturbed = tmp_path / "undisturbed.sqlite"
    pid, told = start(undisturbed)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(told)
    expected = content(undisturbed)
    assert len(expected) > 5

    chance = random.Random(0)
    kills = studies = journals = 0
    while kills < KILLS:
        studies += 1
        path = tmp_path / f"{studies}.sqlite"
        done = False
        while not done:
            pid, told = start(path)
            if kills < KILLS:
                done = not kill(pid, told, path, chance)
                kills += not done
            else:
                done = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
                assert done
            os.close(told)
            journals += path.with_name(path.name + "-journal").exists()
            found = content(path) if path.exists() else []
            assert found == expected[: len(found)]
        assert content(path) == expected
        assert integrity(path) == "ok"
        with Store(path) as store:
            names = Counter((outcome.session, outcome.workload) for outcome in store.outcomes())
        assert set(names.values()) == {1}
    assert kills == KILLS
    # Some kills came in the middle of writing.
    assert journals > 0


# Real workers


_COMMAND = "from tippingpoint.cli import run\nrun()"
SUBJECTS = {"bert", "bert@eager", "longformer"}
LENGTHS = {32, 128}


def start_study(folder: Path) -> subprocess.Popen[str]:
    """Start a study of tiny models that takes some ten seconds."""
    fields = {
        "name": "killed",
        "modality": "text",
        "baselines": ["bert", "bert@eager"],
        "variants": ["longformer"],
        "lengths": sorted(LENGTHS),
        "metrics": ["latency"],
        "phases": ["inference"],
        "size": "tiny",
        "threads": 1,
        "target": "50%",
        "precision": "99%",
        "budget": "60s",
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(fields))
    words = ["study", "study.yaml", "--store", "results.sqlite"]
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )


def sessions_in(folder: Path) -> list[StoredSession]:
    path = folder / "results.sqlite"
    if not path.exists():
        return []
    with Store(path) as store:
        return store.sessions()


def workers_of(pid: int) -> list[int]:
    """The processes that measure: the last ones of the chain of processes that each was started by."""
    below = [process for server in children_of(pid) for process in descendants_of(server)]
    return [process for process in below if not children_of(process)]


def problems(sessions: Sequence[StoredSession]) -> list[str]:
    """What is wrong with what a finished study holds: undisturbed, it measures each workload in one session."""
    outcomes = [outcome for session in sessions for outcome in session.outcomes if outcome.workload.layers is None]
    failed = {key_of(outcome) for outcome in outcomes if isinstance(outcome, Failure)}
    times = Counter(key_of(outcome) for outcome in outcomes if not isinstance(outcome, Failure))
    expected = {(subject, float(length), "inference", 1) for subject in SUBJECTS for length in LENGTHS}
    # What failed is not tried again, and not at longer inputs.
    excused = {key for key in expected for (subject, length, *_) in failed if key[0] == subject and key[1] >= length}
    missing = sorted(expected - times.keys() - excused)
    twice = sorted(key for key, count in times.items() if count > 1)
    return [f"{key} is missing" for key in missing] + [f"{key} was measured more than once" for key in twice]


def key_of(outcome: Outcome) -> tuple[str, float, str, int]:
    workload = outcome.workload
    return str(workload.subject), workload.length, workload.phase, workload.batch_size


def finish(folder: Path) -> None:
    """Run the study to its end, and see what it has."""
    before = sessions_in(folder)
    assert before
    with start_study(folder) as again:
        _, complaints = again.communicate(timeout=120)
    assert again.returncode == 0, complaints
    after = sessions_in(folder)
    assert after[: len(before)] == before
    # A session of which a worker was killed was measured once more, so that no failure is left either.
    assert not [outcome for session in after for outcome in session.outcomes if isinstance(outcome, Failure)]
    assert problems(after) == []
    assert integrity(folder / "results.sqlite") == "ok"


def death_of(victims: str, folder: Path, process: subprocess.Popen[str]) -> list[int]:
    """Kill processes of a study in the middle of its second session; return which."""
    assert wait_until(lambda: len(sessions_in(folder)) >= 1 or process.poll() is not None, seconds=90)
    assert wait_until(lambda: bool(workers_of(process.pid)) or process.poll() is not None, seconds=60)
    killed = []
    chosen = workers_of(process.pid)[:1]
    if victims == "the coordinator and its workers":
        chosen = [process.pid, *descendants_of(process.pid)]
    for pid in chosen:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it had just ended
        killed.append(pid)
    return killed


@needs_proc
@pytest.mark.parametrize("victims", ["a worker", "the coordinator and its workers"])
def test_a_study_of_real_models_is_finished_after_the_death_of(tmp_path, victims):
    with start_study(tmp_path) as process:
        try:
            assert death_of(victims, tmp_path, process)
            _, complaints = process.communicate(timeout=120)
        finally:
            process.kill()
    assert "Traceback" not in complaints
    assert process.returncode in (0, -signal.SIGKILL), complaints
    finish(tmp_path)
