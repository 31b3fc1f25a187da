import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakdowns import encoder
from synthetic import ENVIRONMENT, failure, measurement
from tippingpoint.errors import AnswerError, StoreError, TippingPointError
from tippingpoint.machine import Conditions
from tippingpoint.measurement import FAILURE_KINDS, Environment, Failure, Flops, Measurement, Memory, Outcome, Sample
from tippingpoint.store import SCHEMA_VERSION, Store, open_store
from tippingpoint.workload import PHASES, SIZES, Subject, Variant, Workload

TESTS = Path(__file__).parent
SESSION = [
    measurement("bert", 128, 0.01, session="a-0"),
    failure("bert@eager", 128, session="a"),
    measurement("longformer", 128, [0.02, 0.021, 0.019], session="a-0"),
]

words = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
values = (
    st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(-1e6, 1e6)
    | words.filter(lambda word: word not in ("true", "false"))
)
variants = st.builds(
    lambda name, options: Variant(name, tuple(options.items())),
    words,
    st.dictionaries(words, values, max_size=3),
)
subjects = st.builds(
    lambda architecture, chosen: Subject(architecture, tuple(chosen)),
    words | st.just("./a/checkpoint") | st.just("package.module:callable"),
    st.lists(variants, max_size=2, unique_by=lambda variant: variant.name),
)
positive = st.floats(1e-9, 1e9)
counts = st.integers(0, 2**63 - 1)
names = st.text(max_size=20)
workloads = st.builds(
    Workload,
    subjects,
    st.integers(1, 10**7) | positive,
    batch_size=st.integers(1, 512),
    phase=st.sampled_from(PHASES),
    device=st.sampled_from(["cpu", "cuda", "cuda:3"]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    threads=st.none() | st.integers(1, 512),
    size=st.sampled_from(SIZES),
)
environments = st.builds(
    Environment,
    device_name=names,
    cpu_model=names,
    cores=st.integers(1, 512),
    threads=st.integers(1, 512),
    memory_bytes=counts,
    platform=names,
    python=names,
    torch=names,
    transformers=names,
    tippingpoint=names,
    cpu_capability=names,
    driver=names,
)
samples = st.builds(
    Sample, st.integers(0, 400), st.integers(0, 9), positive, st.integers(1, 100), positive, st.none() | positive
)
pairs = st.lists(st.tuples(names, counts), max_size=3).map(tuple)
measurements = st.builds(
    Measurement,
    workload=workloads,
    environment=environments,
    session=names,
    positions=counts,
    executed_positions=counts,
    parameters=counts,
    attention=names,
    warm_ups_s=st.lists(st.lists(positive, min_size=1, max_size=3).map(tuple), min_size=1, max_size=2).map(tuple),
    samples=st.lists(samples, min_size=1, max_size=4).map(tuple),
    stop_reason=names,
    memory=st.none() | st.builds(Memory, peak_bytes=counts, weights_bytes=counts, method=names),
    flops=st.none() | st.builds(Flops, total=counts, by_operator=pairs, uncounted=pairs),
    batch_curve=st.lists(st.tuples(st.integers(1, 512), positive), max_size=3).map(tuple),
    notes=st.lists(names, max_size=2).map(tuple),
)
failures = st.builds(
    Failure,
    workload=workloads,
    environment=environments,
    session=names,
    kind=st.sampled_from(FAILURE_KINDS),
    message=names,
    positions=counts,
    refused=st.booleans(),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


@pytest.fixture
def filled(path: Path) -> Path:
    """A store that holds one session."""
    with Store(path) as store:
        store.add(SESSION, study="first", seconds=1.5)
    return path


@pytest.fixture
def connect_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make every connection from now on run some statements first, or take other arguments."""
    original = sqlite3.connect

    def change(*statements: str, uri: str = "", timeout: float | None = None) -> None:
        def connect(database: str, **arguments: Any) -> sqlite3.Connection:
            if timeout is not None:
                arguments["timeout"] = timeout
            opened = original(uri.format(database) if uri else database, uri=bool(uri), **arguments)
            for statement in statements:
                opened.execute(statement)
            return opened

        monkeypatch.setattr(sqlite3, "connect", connect)

    return change


def lazily(outcomes: Iterator[Outcome]) -> Sequence[Outcome]:
    """Outcomes that come into being one after the other while a session is written."""
    return cast(Sequence[Outcome], outcomes)


def integrity(path: Path) -> str:
    database = sqlite3.connect(path)
    try:
        return database.execute("PRAGMA integrity_check").fetchone()[0]
    finally:
        database.close()


def complaint(action: Callable[[], object]) -> str:
    """Run what must fail and return its message: one sentence on one line."""
    with pytest.raises(StoreError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert "Error" not in message
    return message


@settings(max_examples=60, deadline=None)
@given(sessions=st.lists(st.lists(measurements | failures, min_size=1, max_size=3), max_size=3))
def test_what_is_added_comes_back_as_it_was(sessions):
    with Store(":memory:") as store:
        for outcomes in sessions:
            store.add(outcomes, study="any", seconds=2.5)
        assert [list(session.outcomes) for session in store.sessions()] == sessions
        assert store.outcomes() == [outcome for outcomes in sessions for outcome in outcomes]
        assert all((session.study, session.seconds) == ("any", 2.5) for session in store.sessions())


def test_results_are_there_after_reopening(filled):
    with Store(filled) as store:
        (session,) = store.sessions()
    assert (session.study, session.seconds, list(session.outcomes)) == ("first", 1.5, SESSION)
    assert session.measured_at.endswith("+00:00")


def test_raw_samples_are_kept(filled):
    with Store(filled) as store:
        kept = store.outcomes()[2]
    assert isinstance(kept, Measurement)
    assert kept.per_call_s.tolist() == [0.02, 0.021, 0.019]
    assert isinstance(kept.samples[0], Sample)
    assert isinstance(kept.workload, Workload)
    assert isinstance(kept.workload.subject, Subject)


def test_an_error_in_the_middle_of_a_session_leaves_the_file_as_it_was(filled):
    before = filled.read_bytes()

    def outcomes() -> Iterator[Outcome]:
        yield from SESSION
        raise RuntimeError("measuring broke")

    with Store(filled) as store:
        with pytest.raises(RuntimeError, match="measuring broke"):
            store.add(lazily(outcomes()))
        assert filled.read_bytes() == before
        store.add(SESSION)
    with Store(filled) as store:
        assert [list(session.outcomes) for session in store.sessions()] == [SESSION, SESSION]


def test_an_interrupt_in_the_middle_of_a_session_writes_nothing(filled):
    before = filled.read_bytes()

    def outcomes() -> Iterator[Outcome]:
        yield SESSION[0]
        raise KeyboardInterrupt

    with Store(filled) as store, pytest.raises(KeyboardInterrupt):
        store.add(lazily(outcomes()))
    assert filled.read_bytes() == before


def test_a_file_that_is_no_sqlite_file_is_refused_and_left_alone(path):
    path.write_text("a diary, not a database; " * 100)
    assert "it is not an SQLite file; name another file" in complaint(lambda: Store(path))
    assert path.read_text().startswith("a diary")


def test_an_sqlite_file_of_another_program_is_refused_and_left_alone(path):
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE recipes (name TEXT)")
    database.close()
    before = path.read_bytes()
    assert "is an SQLite file of another program" in complaint(lambda: Store(path))
    assert path.read_bytes() == before


def test_an_empty_sqlite_file_that_another_program_has_marked_is_refused(path):
    database = sqlite3.connect(path)
    database.execute("PRAGMA application_id = 77")
    database.execute("PRAGMA user_version = 3")
    database.close()
    assert "is an SQLite file of another program" in complaint(lambda: Store(path))


def test_an_empty_file_becomes_a_store(path):
    path.touch()
    with Store(path) as store:
        store.add(SESSION)
        assert len(store.outcomes()) == 3


def test_a_store_of_a_newer_version_is_refused_with_the_way_out(filled):
    database = sqlite3.connect(filled)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    message = complaint(lambda: Store(filled))
    assert f"its schema is {SCHEMA_VERSION + 1}, this version reads up to {SCHEMA_VERSION}" in message
    assert "pip install --upgrade tippingpoint" in message


def test_a_missing_folder_is_named(tmp_path):
    message = complaint(lambda: Store(tmp_path / "nowhere" / "results.sqlite"))
    assert f"the folder {tmp_path / 'nowhere'} of the store results.sqlite does not exist" in message
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    assert "check that it is a file" in complaint(lambda: Store(tmp_path))


def test_a_missing_store_is_not_made_where_one_must_exist(path):
    assert "there is no store" in complaint(lambda: Store(path, create=False))
    assert not path.exists()


def test_a_store_that_must_exist_opens_when_it_does(filled):
    with Store(filled, create=False) as store:
        assert len(store.outcomes()) == 3


def test_a_file_that_cannot_be_written_can_still_be_read(filled, connect_with):
    connect_with(uri="file:{}?mode=ro")
    with Store(filled) as store:
        assert "it cannot be written to; check the permissions" in complaint(lambda: store.add(SESSION))
        assert store.outcomes() == SESSION


def test_a_full_disk_loses_only_the_session_that_did_not_fit(filled, connect_with):
    pages = filled.stat().st_size // 4096
    connect_with(f"PRAGMA max_page_count = {pages + 4}")
    large = [measurement("bert", length, [0.01] * 400) for length in range(100, 120)]
    with Store(filled) as store:
        message = complaint(lambda: store.add(large))
        assert "the disk is full; make room and run the same command again" in message
        assert "what was measured before is kept" in message
        assert store.outcomes() == SESSION
        store.add(SESSION[:1])
    assert integrity(filled) == "ok"
    with Store(filled) as store:
        assert store.outcomes() == [*SESSION, SESSION[0]]


def test_a_full_disk_at_the_start_is_one_clear_error(path, connect_with):
    connect_with("PRAGMA max_page_count = 2")
    assert "could not be opened: the disk is full" in complaint(lambda: Store(path))


def test_a_damaged_store_is_one_clear_error(filled):
    content = bytearray(filled.read_bytes())
    content[100:] = b"\xff" * (len(content) - 100)
    filled.write_bytes(content)
    assert "it is damaged; keep it, and save what can still be read" in complaint(lambda: Store(filled))


def test_a_truncated_store_is_one_clear_error(filled):
    filled.write_bytes(filled.read_bytes()[:4096])

    def read() -> None:
        with Store(filled) as store:
            store.outcomes()

    assert "it is damaged; keep it, and save what can still be read" in complaint(read)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE outcomes SET record = '{\"workload\":' WHERE id = 1",
        "UPDATE outcomes SET record = '{\"workload\": 3}' WHERE id = 1",
        "UPDATE outcomes SET record = 'null' WHERE id = 1",
        "UPDATE outcomes SET environment = 'none such' WHERE id = 1",
        "UPDATE environments SET record = '{\"cores\": 2}'",
        "UPDATE environments SET record = 'null'",
    ],
)
def test_a_record_that_cannot_be_read_is_one_clear_error(filled, damage):
    database = sqlite3.connect(filled)
    database.execute(damage)
    database.commit()
    database.close()
    with Store(filled) as store:
        assert "it is damaged; keep it, and save what can still be read" in complaint(store.outcomes)


def test_a_store_that_another_process_keeps_locked_is_one_clear_error(filled, connect_with):
    other = sqlite3.connect(filled, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    connect_with(timeout=0.05)
    try:
        assert "another process has been using it" in complaint(lambda: Store(filled))
    finally:
        other.close()


def test_a_session_that_cannot_be_committed_is_taken_back_and_the_next_one_is_written(filled, connect_with):
    reader = sqlite3.connect(filled, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM sessions").fetchall()
    connect_with(timeout=0.05)
    with Store(filled) as store:
        assert "another process has been using it" in complaint(lambda: store.add(SESSION, study="lost"))
        reader.close()
        store.add(SESSION, study="kept")
        assert [session.study for session in store.sessions()] == ["first", "kept"]


def test_every_error_of_the_store_is_one_of_the_package_with_exit_code_1(path):
    path.write_text("no database " * 100)
    with pytest.raises(TippingPointError) as caught:
        Store(path)
    assert caught.value.exit_code == 1


def test_a_reader_sees_whole_sessions_while_another_is_being_written(filled):
    seen = []

    def read(statement: str = "INSERT INTO outcomes") -> None:
        if statement.startswith("INSERT INTO outcomes"):
            with Store(filled) as reader:
                seen.append(len(reader.outcomes()))

    with Store(filled) as writer:
        writer._db.set_trace_callback(read)
        writer.add(SESSION)
        writer._db.set_trace_callback(None)
        read()
    assert seen == [3, 3, 3, 6]


def test_two_writers_wait_for_each_other_and_lose_nothing(path):
    Store(path).close()
    problems: list[BaseException] = []

    def write(study: str) -> None:
        try:
            with Store(path) as store:
                for _ in range(8):
                    store.add(SESSION, study=study)
        except BaseException as problem:  # noqa: BLE001 (it is looked at below, in the test's own thread)
            problems.append(problem)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    with Store(path) as store:
        assert sorted(session.study for session in store.sessions()) == ["one"] * 8 + ["two"] * 8
        assert all(list(session.outcomes) == SESSION for session in store.sessions())


@pytest.mark.parametrize("older", [False, True], ids=["a new file", "a file of an older version"])
def test_a_file_may_be_opened_by_several_at_the_moment_it_is_made(tmp_path, older):
    def open_together(path: Path, start: threading.Barrier) -> None:
        try:
            start.wait()
            Store(path).close()
        except BaseException as problem:  # noqa: BLE001 (it is looked at below, in the test's own thread)
            problems.append(problem)

    problems: list[BaseException] = []
    for number in range(30):
        path = tmp_path / f"{number}.sqlite"
        if older:
            shutil.copy(SCHEMA_1, path)
        start = threading.Barrier(4)
        threads = [threading.Thread(target=open_together, args=(path, start)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems


_WRITER = """
import os, signal, sys
from synthetic import measurement
from tippingpoint.store import Store

path, kill_itself = sys.argv[1], sys.argv[2] == "itself"
outcomes = [measurement("bert", 128 + number, [0.01] * 400) for number in range(40)]
inserted = []

def die(statement):
    inserted.extend([statement] * statement.startswith("INSERT INTO outcomes"))
    if len(inserted) == 30:
        os.kill(os.getpid(), signal.SIGKILL)

with Store(path) as store:
    store._db.execute("PRAGMA cache_size = 10")  # pages reach the disk before the transaction's end
    if kill_itself:
        store._db.set_trace_callback(die)
    while True:
        store.add(outcomes)
        print("written", flush=True)
"""


def start_writer(path: Path, killed_by: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), killed_by], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_a_writer_killed_in_the_middle_of_a_session_leaves_an_intact_store_without_it(filled):
    with start_writer(filled, "itself") as writer:
        assert writer.wait(60) == -signal.SIGKILL
    # The journal of the unfinished transaction is what the next reader rolls back with.
    assert filled.with_name(filled.name + "-journal").exists()
    with Store(filled) as store:
        assert store.outcomes() == SESSION
        store.add(SESSION)
    assert integrity(filled) == "ok"


def test_a_writer_killed_at_any_moment_leaves_only_whole_sessions(path):
    with start_writer(path, "the test") as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        copies = []
        # A copy of file and journal at any moment is what a crash of the machine would leave.
        for moment in range(6):
            time.sleep(0.01 + 0.013 * moment)
            writer.send_signal(signal.SIGSTOP)
            os.waitpid(writer.pid, os.WUNTRACED)
            copy = path.parent / f"{moment}.sqlite"
            shutil.copy(path, copy)
            journal = path.with_name(path.name + "-journal")
            if journal.exists():
                shutil.copy(journal, copy.with_name(copy.name + "-journal"))
            copies.append(copy)
            writer.send_signal(signal.SIGCONT)
        writer.kill()
    for left in [*copies, path]:
        with Store(left) as store:
            whole = [len(session.outcomes) for session in store.sessions()]
        assert whole
        assert set(whole) == {40}
        assert integrity(left) == "ok"


def test_rows_have_the_same_keys_and_only_plain_scalars(filled):
    with Store(filled) as store:
        store.add([measurement("vit", 224, 0.1, peak_bytes=None), failure("vit", 448, kind="crashed")])
        rows = store.measurements()
    assert [row["status"] for row in rows] == ["ok", "out_of_memory", "ok", "ok", "crashed"]
    assert all(list(row) == list(rows[0]) for row in rows)
    assert {type(value) for row in rows for value in row.values()} <= {str, int, float, bool, type(None)}


def test_rows_make_a_table_of_one_type_for_each_column(filled):
    with Store(filled) as store:
        rows = store.measurements()
    table = pyarrow.Table.from_pylist(rows)
    assert table.num_rows == 3
    assert table.column("latency_s").type == pyarrow.float64()
    assert table.column("latency_s").to_pylist() == [0.01, None, 0.02]
    assert table.column("length").type == pyarrow.float64()
    assert table.column("peak_bytes").type == pyarrow.int64()


def test_a_row_says_what_its_measurement_says(filled):
    with Store(filled) as store:
        row, lost, _ = store.measurements()
    one = SESSION[0]
    assert isinstance(one, Measurement)
    assert (row["subject"], row["length"], row["positions"]) == ("bert", 128, 128)
    assert (row["latency_s"], row["sequences_per_s"]) == (one.latency_s, one.sequences_per_s)
    assert (row["latency_low_s"], row["latency_high_s"]) == one.latency_interval_s
    assert (row["study"], row["environment"]) == ("first", ENVIRONMENT.fingerprint)
    assert (lost["status"], lost["message"], lost["latency_s"]) == ("out_of_memory", "not enough memory", None)


def test_an_environment_is_stored_once(filled):
    with Store(filled) as store:
        store.add(SESSION)
        store.add([measurement("bert", 64, 0.01, environment=replace(ENVIRONMENT, threads=1))])
    database = sqlite3.connect(filled)
    try:
        assert database.execute("SELECT count(*) FROM environments").fetchone()[0] == 2
    finally:
        database.close()


def test_outcomes_of_another_environment_are_told_apart(filled):
    other = replace(ENVIRONMENT, torch="2.12.0")
    elsewhere = [measurement("bert", 64, 0.02, environment=other)]
    with Store(filled) as store:
        store.add(elsewhere)
        assert store.outcomes(environment=other.fingerprint) == elsewhere
        assert store.outcomes(environment=ENVIRONMENT.fingerprint) == SESSION
        assert store.outcomes(environment="none such") == []


def test_the_environment_that_was_measured_in_last_comes_last(path):
    first, second = (replace(ENVIRONMENT, threads=threads) for threads in (1, 2))
    with Store(path) as store:
        for environment in (first, second, first):
            store.add([measurement("bert", 64, 0.01, environment=environment)])
        assert list(store.environments().values()) == [second, first]
        assert store.latest_environment() == first


def test_a_store_without_results_has_no_latest_environment(path):
    with Store(path) as store, pytest.raises(AnswerError, match=r"is empty, and measuring was not allowed"):
        store.latest_environment()


def test_a_store_in_memory_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store(":memory:") as store:
        store.add(SESSION)
        assert store.outcomes() == SESSION
    assert list(tmp_path.iterdir()) == []


def test_only_a_store_that_was_opened_here_is_closed_here(filled):
    with open_store(filled, create=False) as opened:
        assert opened.outcomes() == SESSION
    with pytest.raises(StoreError):
        opened.outcomes()
    with Store(filled) as store:
        with open_store(store) as given:
            assert given is store
        assert store.outcomes() == SESSION


def test_without_a_file_results_are_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_store(None) as store:
        store.add(SESSION)
        assert store.outcomes() == SESSION
    assert list(tmp_path.iterdir()) == []


def test_a_store_says_what_it_holds(filled):
    with Store(filled) as store:
        assert repr(store) == (
            f"Store({str(filled)!r}: 2 measurements and 1 failures of bert, bert@eager, longformer)"
        )
    with Store(":memory:") as store:
        assert "no subject yet" in repr(store)
    assert "could not be read" in repr(store)


SCHEMA_1, SCHEMA_2, SCHEMA_3 = (TESTS / f"stores/schema_{version}.sqlite" for version in (1, 2, 3))


@pytest.fixture
def of_schema_1(path: Path) -> Path:
    """A copy of a store that the first schema's own code wrote."""
    shutil.copy(SCHEMA_1, path)
    return path


def test_a_store_of_the_first_schema_is_read_with_everything_in_it(of_schema_1):
    database = sqlite3.connect(SCHEMA_1)
    try:
        assert database.execute("PRAGMA user_version").fetchone()[0] == 1
        kept = [json.loads(text) for (text,) in database.execute("SELECT record FROM outcomes ORDER BY id")]
    finally:
        database.close()
    with Store(of_schema_1) as store:
        found = store.outcomes()
        assert [session.label for session in store.sessions()] == ["", ""]
    assert len(found) == len(kept) == 6
    for outcome, record in zip(found, kept, strict=True):
        assert isinstance(outcome, Measurement)
        assert str(outcome.workload.subject) == record["workload"]["subject"]
        assert outcome.warm_ups_s == (tuple(record["warm_up_s"]),)
        assert [sample.seconds for sample in outcome.samples] == [sample["seconds"] for sample in record["samples"]]
        assert set(outcome.processes) == {0}
        assert not outcome.workload.compiled
        assert outcome.latency_s > 0


def test_a_migrated_store_finds_its_environments_by_the_fingerprints_of_today(of_schema_1):
    with Store(of_schema_1) as store:
        ((fingerprint, environment),) = store.environments().items()
        assert environment.fingerprint == fingerprint
        assert len(store.outcomes(environment=fingerprint)) == 6
        # What is measured in the same environment today joins the old results, and adds no environment.
        store.add([measurement("bert", 64, 0.01, environment=environment)])
        assert len(store.outcomes(environment=fingerprint)) == 7
        assert len(store.environments()) == 1


def test_a_store_is_migrated_once_and_is_whole_afterwards(of_schema_1):
    with Store(of_schema_1) as store:
        first = store.outcomes()
    with Store(of_schema_1) as store:
        assert store.outcomes() == first
    assert integrity(of_schema_1) == "ok"
    database = sqlite3.connect(of_schema_1)
    try:
        assert database.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
    finally:
        database.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(of_schema_1):
    database = sqlite3.connect(of_schema_1)
    try:
        database.execute("UPDATE outcomes SET record = '{broken' WHERE id = 6")
        database.commit()
    finally:
        database.close()
    before = of_schema_1.read_bytes()
    with pytest.raises(StoreError, match="damaged"):
        Store(of_schema_1)
    assert of_schema_1.read_bytes() == before


def test_a_label_names_a_run(path):
    with Store(path) as store:
        store.add(SESSION, label="before")
        store.add(SESSION)
        assert [session.label for session in store.sessions()] == ["before", ""]
        assert {row["label"] for row in store.measurements()} == {"before", ""}


def test_samples_keep_their_process_their_conditions_and_whether_they_were_repeated(path):
    one = measurement("bert", 64, 0.01)
    conditions = Conditions(load=1.5, others_s=0.01, steal_s=0.0, clock_hz=3e9, temperature_c=70.0, throttled=True)
    samples = tuple(replace(s, process=n, conditions=conditions, repeated=n == 1) for n, s in enumerate(one.samples))
    kept = replace(one, samples=samples)
    with Store(path) as store:
        store.add([kept])
        assert store.outcomes() == [kept]


def test_a_store_of_the_second_schema_keeps_what_it_held_and_takes_breakdowns(path):
    database = sqlite3.connect(SCHEMA_2)
    try:
        assert database.execute("PRAGMA user_version").fetchone()[0] == 2
        kept = [json.loads(text) for (text,) in database.execute("SELECT record FROM outcomes ORDER BY id")]
    finally:
        database.close()
    shutil.copy(SCHEMA_2, path)
    with Store(path) as store:
        found = store.outcomes()
        assert [session.label for session in store.sessions()] == ["kept", "kept", ""]
        assert store.breakdowns() == []
        store.add_breakdowns([encoder()])
        assert store.outcomes() == found
    assert len(found) == len(kept) == 5
    for outcome, record in zip(found, kept, strict=True):
        assert (str(outcome.workload.subject), outcome.session) == (record["workload"]["subject"], record["session"])
        if isinstance(outcome, Measurement):
            assert [sample.seconds for sample in outcome.samples] == [each["seconds"] for each in record["samples"]]
    assert isinstance(found[-1], Failure)
    with Store(path) as store:
        assert store.breakdowns() == [encoder()]
    assert integrity(path) == "ok"


def test_a_store_of_the_third_schema_keeps_what_it_held_and_takes_places(path):
    database = sqlite3.connect(SCHEMA_3)
    try:
        assert database.execute("PRAGMA user_version").fetchone()[0] == 3
        kept = [json.loads(text) for (text,) in database.execute("SELECT record FROM outcomes ORDER BY id")]
        broken_down = [text for (text,) in database.execute("SELECT record FROM breakdowns ORDER BY id")]
    finally:
        database.close()
    shutil.copy(SCHEMA_3, path)
    with Store(path) as store:
        found = store.outcomes()
        assert [(session.label, session.place) for session in store.sessions()] == [("kept", "")] * 2 + [("", "")]
        assert [str(outcome.workload.subject) for outcome in found] == [r["workload"]["subject"] for r in kept]
        assert store.breakdowns() == [encoder(), encoder("bert@local:window=4", 1024, training=True)]
        assert len(broken_down) == 3
        store.add(SESSION, place="node-17/cuda:3")
        assert store.outcomes() == [*found, *SESSION]
    assert integrity(path) == "ok"


def test_a_place_is_kept_with_its_session_and_in_every_row(path):
    with Store(path) as store:
        store.add(SESSION)
        store.add(SESSION, place="node-17/cuda:3")
    with Store(path) as store:
        assert [session.place for session in store.sessions()] == ["", "node-17/cuda:3"]
        assert [row["place"] for row in store.measurements()] == [""] * 3 + ["node-17/cuda:3"] * 3


@pytest.mark.parametrize("older", [SCHEMA_1, SCHEMA_2, SCHEMA_3])
def test_a_migrated_file_has_the_tables_of_a_new_one(path, older):
    def tables(file: Path) -> dict[str, list[tuple[str, str]]]:
        database = sqlite3.connect(file)
        try:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            return {
                name: database.execute(f"SELECT name, type FROM pragma_table_info('{name}')").fetchall()
                for name in names
            }
        finally:
            database.close()

    new = path.with_name("new.sqlite")
    shutil.copy(older, path)
    for file in (path, new):
        Store(file).close()
    assert tables(path) == tables(new)
    assert "breakdowns" in tables(new)


def test_breakdowns_come_back_as_they_were(path):
    memory = Memory(peak_bytes=10**9, weights_bytes=10**8, method="resident")
    added = [
        encoder(),
        encoder("bert@local:window=4", 1024, training=True, notes=("a <note>",), memory=memory),
        encoder("hubert", 2.5, batch_size=4),
    ]
    with Store(path) as store:
        store.add_breakdowns(added, label="before")
        assert store.outcomes() == []
    with Store(path) as store:
        assert store.breakdowns() == added
        for found, given in zip(store.breakdowns(), added, strict=True):
            assert found.rows(by_layer=True) == given.rows(by_layer=True)
            assert str(found) == str(given)


def test_the_latest_breakdown_of_a_workload_wins_unless_environment_or_label_differ(path):
    elsewhere = replace(ENVIRONMENT, torch="2.12.0")
    first, second = encoder(), encoder(scale=2.0)
    assert first.workload == second.workload
    with Store(path) as store:
        store.add_breakdowns([first, encoder(length=1024)])
        store.add_breakdowns([encoder(environment=elsewhere)])
        store.add_breakdowns([second])
        store.add_breakdowns([first], label="after")
        assert store.breakdowns() == [encoder(length=1024), encoder(environment=elsewhere), second, first]
        assert store.breakdowns(environment=elsewhere.fingerprint) == [encoder(environment=elsewhere)]
        assert store.breakdowns(label="after") == [first]
        assert store.breakdowns(environment="none such") == []


def test_a_breakdown_that_failed_later_hides_none(path):
    with Store(path) as store:
        store.add_breakdowns([encoder(), failure("bert", 512)])
        assert store.breakdowns() == [encoder()]
    database = sqlite3.connect(path)
    try:
        statuses = [status for (status,) in database.execute("SELECT status FROM breakdowns")]
    finally:
        database.close()
    assert statuses == ["ok", "out_of_memory"]


def test_an_error_among_breakdowns_writes_none_of_them(path):
    def found() -> Iterator[Any]:
        yield encoder()
        raise RuntimeError("measuring broke")

    with Store(path) as store:
        with pytest.raises(RuntimeError, match="measuring broke"):
            store.add_breakdowns(cast(Any, found()))
        assert store.breakdowns() == []


def test_a_breakdown_that_cannot_be_read_is_one_clear_error(path):
    with Store(path) as store:
        store.add_breakdowns([encoder()])
        store._db.execute("UPDATE breakdowns SET record = '{\"components\": 3}'")
        assert "it is damaged; keep it, and save what can still be read" in complaint(store.breakdowns)
        assert store.outcomes() == []


def test_a_store_says_how_many_breakdowns_it_holds(path):
    with Store(path) as store:
        store.add_breakdowns([encoder()])
        assert repr(store).endswith("of no subject yet, and 1 breakdown)")
