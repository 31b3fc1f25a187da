"""What a store holds after crashes, power cuts, full disks, taken permissions, set clocks and strangers' hands."""

import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakdowns import encoder
from synthetic import ENVIRONMENT, failure, measurement
from tippingpoint.errors import StoreError
from tippingpoint.measurement import Energy, Sample
from tippingpoint.store import Store, StoredSession, store
from tippingpoint.store.file import connect
from tippingpoint.store.reading import RawSession

TESTS = Path(__file__).parent
PAGE = 4096
SESSION = [measurement("bert", 128, [0.01] * 60, session="a-0"), failure("longformer", 128, session="a")]
BREAKDOWNS = [encoder(), failure("bert", 512)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


def fill(path: Path, sessions: int = 5) -> list[str]:
    """Write sessions that differ; return their studies, in order."""
    with Store(path) as filled:
        for number in range(sessions):
            found = [measurement("bert", 128 + number, [0.01] * 60, session=f"{number}-0"), *SESSION]
            filled.add(found, study=f"study {number}", seconds=1.0 + number / 7, place="node-1/cpu")
        filled.add_breakdowns(BREAKDOWNS)
    return [f"study {number}" for number in range(sessions)]


def studies_in(path: Path) -> list[str]:
    """Read everything, as a person would; whole sessions only."""
    with Store(path, create=False) as opened:
        sessions = opened.sessions()
        opened.every_breakdown()
    assert all(len(session.outcomes) == 3 for session in sessions)
    return [session.study for session in sessions]


def survives(path: Path, written: list[str]) -> bool:
    """Whether a file can be read; if so it holds everything that was written, and otherwise it says what to do."""
    complaint = complaint_of(lambda: studies_in(path))
    if complaint:
        hints = (f"tippingpoint merge {path} -o NEW --salvage", "not an SQLite file", "is empty")
        assert any(hint in complaint for hint in hints)
        return False
    assert studies_in(path) == written
    with Store(path) as opened:
        assert [each.found for each in opened.every_breakdown()] == BREAKDOWNS
    return True


def complaint_of(action: Callable[[], object]) -> str:
    """Run something; return the one line that it complains with, if it does."""
    try:
        action()
    except StoreError as error:
        line = str(error)
    else:
        return ""
    assert "\n" not in line
    return line


def integrity(path: Path) -> str:
    database = sqlite3.connect(path)
    try:
        return database.execute("PRAGMA integrity_check").fetchone()[0]
    finally:
        database.close()


def in_a_child(action: Callable[[], None]) -> int:
    """Run something in a forked process; return how it ended: 0, 1 for an exception, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# Power cuts


def test_a_file_cut_at_any_page_is_damaged_and_says_so(path):
    written = fill(path)
    whole = path.read_bytes()
    cut = path.with_name("cut.sqlite")
    assert len(whole) // PAGE > 10
    for size in range(0, len(whole), PAGE):
        cut.write_bytes(whole[:size])
        assert not survives(cut, written), size
        assert cut.stat().st_size == size
    cut.write_bytes(whole)
    assert survives(cut, written)


@pytest.mark.parametrize("size", [512, 4096])
def test_a_file_whose_tail_became_zeros_is_damaged_or_whole(path, size):
    written = fill(path)
    whole = path.read_bytes()
    zeroed = path.with_name("zeroed.sqlite")
    for begin in range(size, len(whole), size):
        zeroed.write_bytes(whole[:begin] + bytes(len(whole) - begin))
        survives(zeroed, written)


def test_a_sector_that_became_zeros_anywhere_is_damage_or_holds_nothing(path):
    written = fill(path)
    whole = path.read_bytes()
    zeroed = path.with_name("zeroed.sqlite")
    read = []
    for begin in range(0, len(whole), 512):
        zeroed.write_bytes(whole[:begin] + bytes(512) + whole[begin + 512 :])
        if survives(zeroed, written):
            read.append(begin)
            # What could be read is everything.
            assert studies_in(zeroed) == written
    assert len(read) < len(whole) // 512 / 2


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_byte_changed_anywhere_never_changes_what_was_measured(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.sqlite"
        shutil.copy(_whole_store(), path)
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        if complaint_of(lambda: studies_in(path)):
            return
        with Store(path) as changed, Store(_whole_store()) as whole:
            assert [_without_names(session) for session in changed.sessions()] == [
                _without_names(session) for session in whole.sessions()
            ]
            assert [_without_names(each) for each in changed.every_breakdown()] == [
                _without_names(each) for each in whole.every_breakdown()
            ]


def _without_names(stored: Any) -> Any:
    """Leave out what a person may change."""
    names = {"study": "", "label": ""} if isinstance(stored, StoredSession) else {"label": ""}
    return replace(stored, **names)


_KEPT: list[Path] = []


def _whole_store() -> Path:
    """A store that is written once, for tests that change copies of it."""
    if not _KEPT:
        _KEPT.append(Path(tempfile.mkdtemp()) / "whole.sqlite")
        fill(_KEPT[0], 3)
    return _KEPT[0]


def half_written(path: Path) -> Path:
    """Make what a power cut in the middle of a commit leaves: pages of a session in the file, and the journal."""
    database = connect(path)
    database.execute("PRAGMA cache_size = 5")
    database.execute("BEGIN IMMEDIATE")
    number = database.execute(
        "INSERT INTO sessions (study, measured_at, seconds, digest) VALUES ('half', '2026-01-01T00:00:00', 1, 'x')"
    ).lastrowid
    (environment,) = database.execute("SELECT fingerprint FROM environments").fetchone()
    for _ in range(20):
        database.execute(
            "INSERT INTO outcomes (session, environment, status, record) VALUES (?, ?, 'ok', ?)",
            (number, environment, "{" + "x" * 9000 + "}"),
        )
    left = path.with_name("left.sqlite")
    journal = path.with_name(path.name + "-journal")
    shutil.copy(path, left)
    shutil.copy(journal, left.with_name(left.name + "-journal"))
    database.execute("ROLLBACK")
    database.close()
    assert left.read_bytes() != path.read_bytes()
    return left


def test_a_session_that_a_power_cut_left_half_written_is_taken_back_on_opening(path):
    written = fill(path)
    left = half_written(path)
    assert studies_in(left) == written
    assert integrity(left) == "ok"
    assert not left.with_name(left.name + "-journal").exists()


def test_a_journal_that_a_person_deleted_is_damage_and_the_sessions_before_it_can_be_saved(path):
    from tippingpoint.store import merge_stores

    written = fill(path)
    left = half_written(path)
    left.with_name(left.name + "-journal").unlink()
    assert not survives(left, written)
    saved = merge_stores([left], path.with_name("saved.sqlite"), salvage=True)
    assert studies_in(saved.path) == written
    assert integrity(saved.path) == "ok"


def test_a_cut_journal_takes_back_what_it_can_and_never_gives_wrong_results(path):
    written = fill(path)
    left = half_written(path)
    journal = left.with_name(left.name + "-journal")
    whole, pages = journal.read_bytes(), left.read_bytes()
    for size in range(0, len(whole), 700):
        left.write_bytes(pages)
        journal.write_bytes(whole[:size])
        survives(left, written)
        journal.unlink(missing_ok=True)


def test_a_session_of_which_an_outcome_is_missing_is_never_taken_for_a_whole_one(path):
    fill(path)
    for number in (1, 2, 3):
        damaged = path.with_name(f"{number}.sqlite")
        shutil.copy(path, damaged)
        database = sqlite3.connect(damaged)
        database.execute("DELETE FROM outcomes WHERE id = ?", (number,))
        database.commit()
        database.close()
        with Store(damaged) as opened, pytest.raises(StoreError, match="it is damaged"):
            opened.sessions()


@pytest.mark.parametrize("nothing", ["no bytes", "no tables"])
def test_a_file_with_nothing_in_it_is_none_to_read_from_and_stays_as_it_is(path, nothing):
    path.touch()
    if nothing == "no tables":
        database = sqlite3.connect(path)
        database.execute("CREATE TABLE gone (a)")
        database.execute("DROP TABLE gone")
        database.close()
    journal = path.with_name(path.name + "-journal")
    journal.write_bytes(b"" if nothing == "no tables" else b"what was there before")
    before = path.read_bytes(), journal.read_bytes()
    from tippingpoint.store import merge_stores, vacuum_store

    for action in (
        lambda: Store(path, create=False),
        lambda: vacuum_store(path),
        lambda: merge_stores([path], path.with_name("new.sqlite"), salvage=True),
    ):
        assert "is empty; measure something first" in complaint_of(action)
    assert (path.read_bytes(), journal.read_bytes()) == before
    assert not path.with_name("new.sqlite").exists()


# Kills


_WRITER = """
import sys
from synthetic import measurement
from tippingpoint.store import Store

with Store(sys.argv[1]) as store:
    store._db.execute("PRAGMA cache_size = 10")  # pages reach the disk before the transaction's end
    found = [measurement("bert", 128 + number, [0.01] * 60) for number in range(3)]
    for number in range(int(sys.argv[2]) if len(sys.argv) > 2 else 10**9):
        store.add(found, study=f"{sys.argv[-1]} {number}")
        print(number, flush=True)
"""


def start_writer(path: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_what_was_added_before_a_kill_is_there_and_the_rest_whole_or_absent(path):
    Store(path).close()

    def write() -> None:
        with Store(path) as opened:
            for number in range(10**9):
                opened.add([replace(SESSION[0], session=f"{number}"), *SESSION], study=f"study {number}")
                told.write(f"{number}\n".encode())

    for kill in range(25):
        before = len(studies_in(path))
        read, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            with open(write_end, "wb", buffering=0) as told:
                write()
            os._exit(0)
        os.close(write_end)
        with open(read, "rb", buffering=0) as lines:
            # Some sessions, and then any moment within the next one.
            heard = lines.read(2 + kill % 5)
            deadline = kill * 37 % 500
            for _ in range(deadline):
                path.exists()
            os.kill(pid, signal.SIGKILL)
            heard += lines.read(10**6) or b""
        os.waitpid(pid, 0)
        told_of = heard.count(b"\n")
        found = studies_in(path)[before:]
        assert found == [f"study {number}" for number in range(len(found))]
        assert told_of <= len(found) <= told_of + 1
        assert integrity(path) == "ok"


def test_two_processes_that_write_at_once_lose_nothing_and_write_nothing_twice(path):
    Store(path).close()
    with start_writer(path, "20", "one") as one, start_writer(path, "20", "two") as two:
        assert (one.wait(60), two.wait(60)) == (0, 0)
    found = studies_in(path)
    for name in ("one", "two"):
        assert [study for study in found if study.startswith(name)] == [f"{name} {number}" for number in range(20)]
    assert len(found) == 40
    assert integrity(path) == "ok"


def test_readers_see_whole_sessions_and_never_fewer_while_a_writer_comes_through(path):
    Store(path).close()
    with start_writer(path, "30", "w") as writer:
        seen = [0]
        with Store(path) as reader:
            while writer.poll() is None:
                sessions = reader.sessions()
                assert all(len(session.outcomes) == 3 for session in sessions)
                seen.append(len(sessions))
            seen.append(len(reader.sessions()))
    # The writer was never kept waiting so long that it gave up.
    assert writer.returncode == 0
    assert seen == sorted(seen)
    assert seen[-1] == 30


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of sessions that are read from now on."""
    numbers: list[int] = []
    whole = RawSession.decoded
    monkeypatch.setattr(RawSession, "decoded", lambda raw, known: numbers.append(raw.number) or whole(raw, known))
    return numbers


def test_of_what_another_process_writes_only_what_is_new_is_read(path, monkeypatch):
    fill(path, 6)
    with Store(path) as reader, Store(path) as writer:
        numbers = decoded(monkeypatch)
        assert len(reader.sessions()) == 6
        for step in range(3):
            numbers.clear()
            writer.add(SESSION, study=f"step {step}")
            assert reader.sessions()[-1].study == f"step {step}"
            assert numbers == [7 + step]
        numbers.clear()
        writer._db.execute("UPDATE sessions SET label = 'other' WHERE id = 2")
        assert [session.label for session in reader.sessions()] == ["", "other", *[""] * 7]
        assert numbers == [2]
        writer._db.execute("DELETE FROM outcomes WHERE session = 3")
        writer._db.execute("DELETE FROM sessions WHERE id = 3")
        with Store(path) as fresh:
            assert reader.sessions() == fresh.sessions()
        assert len(reader.sessions()) == 8


def test_a_large_store_is_read_in_parts_between_which_others_write(path, monkeypatch):
    monkeypatch.setattr(store, "_AT_A_TIME", 2)
    written = fill(path)
    with Store(path) as reader, Store(path, patience_s=0) as writer:
        found = []
        for session in reader.each_session():
            found.append(session)
            writer.add(SESSION, study="meanwhile")
        rows = reader.rows("samples")
        writer.add_breakdowns([encoder()])
        assert len(list(rows)) == 5 * 120 + 5 * 60
        for table in ("outcomes", "environments", "breakdowns"):
            assert list(reader.rows(table))
        assert len(list(reader.each_breakdown())) == 3
        # What is read so is not kept.
        assert not reader._read
        # It is the store as it was when the reading began.
        assert [session.study for session in found] == written
        assert found == reader.sessions()[:5]
        assert len(reader.sessions()) == 10


# Disks


def test_a_write_beyond_the_space_there_is_loses_only_its_session(path):
    written = fill(path)

    def write() -> None:
        size = path.stat().st_size + 2 * PAGE
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Store(path) as opened, pytest.raises(StoreError, match="what was measured before is kept"):
            opened.add([measurement("bert", 64, [0.01] * 4000)], study="too large")

    assert in_a_child(write) == 0
    assert studies_in(path) == written
    assert integrity(path) == "ok"


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder of somebody without rights, who this process is meanwhile: root's rights would let it do anything."""
    folder = Path(tempfile.mkdtemp())
    uid = os.geteuid()
    if uid == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if uid == 0:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_file_that_may_not_be_written_is_read_and_refuses_to_be_written(nobody):
    path = nobody / "results.sqlite"
    written = fill(path)
    path.chmod(0o444)
    assert studies_in(path) == written
    with Store(path) as opened, pytest.raises(StoreError, match="it cannot be written to; check the permissions"):
        opened.add(SESSION)


def test_a_file_in_a_folder_that_may_not_be_written_is_read_and_refuses_to_be_written(nobody):
    path = nobody / "results.sqlite"
    written = fill(path)
    nobody.chmod(0o555)
    assert studies_in(path) == written
    with Store(path) as opened, pytest.raises(StoreError, match=r"folder"):
        opened.add(SESSION)
    with pytest.raises(StoreError, match="it and its folder may be written to"):
        Store(nobody / "new.sqlite")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_store_of_an_earlier_version_that_may_not_be_written_is_read_all_the_same(nobody, version):
    path = nobody / "old.sqlite"
    path.write_bytes(_OLD[version])
    path.chmod(0o444)
    with Store(path) as opened:
        assert len(opened.outcomes()) == {1: 6, 2: 5, 3: 5}[version]
        with pytest.raises(StoreError, match="it cannot be written to"):
            opened.add(SESSION)
        assert len(opened.outcomes()) == {1: 6, 2: 5, 3: 5}[version]
    assert path.read_bytes() == _OLD[version]


_OLD = {version: (TESTS / f"stores/schema_{version}.sqlite").read_bytes() for version in (1, 2, 3)}


# Clocks


def test_a_clock_that_is_set_back_neither_reorders_nor_loses_a_session(path, monkeypatch):
    moments = [datetime(year, 1, 1, tzinfo=UTC) for year in (2026, 1970, 9999, 2025)]

    class Clock:
        @staticmethod
        def now(zone: Any) -> datetime:
            return moments[len(told)]

    told: list[str] = []
    monkeypatch.setattr(store, "datetime", Clock)
    with Store(path) as opened:
        for moment in moments:
            opened.add(SESSION, study=str(moment.year))
            told.append(str(moment.year))
            if len(told) == len(moments):
                break
    with Store(path) as opened:
        assert [session.study for session in opened.sessions()] == ["2026", "1970", "9999", "2025"]
        assert [session.measured_at[:4] for session in opened.sessions()] == ["2026", "1970", "9999", "2025"]
        assert opened.latest_environment() == ENVIRONMENT


# Strangers' files


def tampered(path: Path, *statements: str) -> Path:
    fill(path, 2)
    database = sqlite3.connect(path)
    database.execute("DELETE FROM breakdowns WHERE status <> 'ok'")
    database.executescript(";".join(statements))
    database.close()
    return path


def edited(path: Path, change: Callable[[dict[str, Any]], object], table: str = "outcomes") -> Path:
    """Change the first record of a store, and its digest with it, as somebody would who means harm."""
    from tippingpoint.store.records import breakdown_digest, session_digest

    tampered(path)
    database = sqlite3.connect(path)
    key = "fingerprint" if table == "environments" else "id"
    number, text = database.execute(f"SELECT {key}, record FROM {table} ORDER BY {key} LIMIT 1").fetchone()
    record = json.loads(text)
    change(record)
    database.execute(f"UPDATE {table} SET record = ? WHERE {key} = ?", (json.dumps(record), number))
    rows = database.execute(
        "SELECT environment, status, record FROM outcomes WHERE session = 1 ORDER BY id"
    ).fetchall()
    ((moment, seconds, place),) = database.execute(
        "SELECT measured_at, seconds, place FROM sessions WHERE id = 1"
    ).fetchall()
    database.execute("UPDATE sessions SET digest = ? WHERE id = 1", (session_digest(moment, seconds, place, rows),))
    (row,) = database.execute("SELECT measured_at, environment, status, record FROM breakdowns").fetchall()
    database.execute("UPDATE breakdowns SET digest = ?", (breakdown_digest(*row),))
    database.commit()
    database.close()
    return path


def assert_damaged(path: Path) -> None:
    with pytest.raises(StoreError, match=r"it is damaged; keep it"):
        _read_all(path)


def _read_all(path: Path) -> None:
    with Store(path) as opened:
        opened.measurements()
        opened.every_breakdown()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sessions SET seconds = 'long'",
        "UPDATE sessions SET seconds = -1",
        "UPDATE sessions SET seconds = 9e999",
        "UPDATE sessions SET measured_at = 'yesterday'",
        "UPDATE sessions SET study = x'ff'",
        "UPDATE sessions SET label = CAST(x'ff' AS TEXT)",
        "UPDATE sessions SET digest = ''",
        "UPDATE sessions SET seconds = seconds + 1",
        "UPDATE sessions SET measured_at = '2026-01-01T00:00:00+00:00'",
        "UPDATE sessions SET place = 'elsewhere'",
        "UPDATE breakdowns SET measured_at = '2026-01-01T00:00:00+00:00'",
        "UPDATE breakdowns SET record = replace(record, '0.', '1.')",
        "UPDATE outcomes SET status = 'fine'",
        "UPDATE outcomes SET session = 99 WHERE id = 1",
        "UPDATE outcomes SET session = 'one' WHERE id = 1",
        "UPDATE outcomes SET record = CAST(record AS BLOB)",
        "UPDATE outcomes SET record = printf('%70000000d', 1) WHERE id = 1",
        "UPDATE environments SET fingerprint = 'another'",
        "UPDATE breakdowns SET measured_at = 5",
        "UPDATE breakdowns SET record = '{}'",
        "DROP TABLE outcomes",
        "DROP TABLE breakdowns; CREATE VIEW breakdowns AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 "
        "FROM n) SELECT i AS id, '' AS environment, '' AS label, '' AS measured_at, '' AS status,'' AS record FROM n",
        "DROP TABLE breakdowns; CREATE VIEW Breakdowns AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 "
        "FROM n) SELECT i AS id, '' AS environment, '' AS label, '' AS measured_at, '' AS status,'' AS record FROM n",
        "CREATE TRIGGER t AFTER INSERT ON sessions BEGIN DELETE FROM outcomes; END",
        "ALTER TABLE sessions RENAME TO s; ALTER TABLE s RENAME TO Sessions; "
        "CREATE TRIGGER t AFTER INSERT ON Sessions BEGIN DELETE FROM outcomes; END",
        "ALTER TABLE sessions DROP COLUMN place; ALTER TABLE sessions ADD COLUMN place TEXT AS (hex(zeroblob(9)))",
        "PRAGMA user_version = -3",
    ],
)
def test_a_table_that_no_store_has_is_one_clear_error(path, statement):
    assert_damaged(tampered(path, statement))


def _sample(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda record: record["samples"][0].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        _sample(seconds=float("nan")),
        _sample(seconds=float("inf")),
        _sample(seconds=0),
        _sample(seconds=-1.0),
        _sample(seconds=1e300),
        _sample(seconds="0.1"),
        _sample(calls=0),
        _sample(calls=2**80),
        _sample(calls=1.5),
        _sample(calls="3"),
        _sample(device_seconds=-1.0),
        lambda record: record.update(samples=[]),
        lambda record: record.update(warm_ups_s=[]),
        lambda record: record.update(warm_ups_s=[[]]),
        lambda record: [sample.update(repeated=True) for sample in record["samples"]],
        lambda record: record.update(positions=-1),
        lambda record: record.update(parameters=10**400),
        lambda record: record["workload"].update(length=-1),
        lambda record: record["workload"].update(length=10**400),
        lambda record: record["workload"].update(batch_size=0),
        lambda record: record["workload"].update(subject="bert@"),
        lambda record: record["workload"].update(subject=["bert"]),
        lambda record: record["workload"].update(device="/dev/sda"),
        lambda record: record["memory"].update(peak_bytes="many"),
        lambda record: record.update(energy={"joules_per_call": 1.0, "source": "", "calls": 0}),
        lambda record: record.update(peaks={"flops_per_s": 0.0, "bytes_per_s": 1.0}),
        lambda record: record.update(batch_curve=[[0, 1.0]]),
        lambda record: record.update(notes="a note"),
        lambda record: record.pop("attention"),
        lambda record: record.clear(),
    ],
)
def test_a_measurement_that_cannot_be_is_one_clear_error(path, change):
    assert_damaged(edited(path, change))


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(plain_s=[]),
        lambda record: record.update(plain_s=[0.0]),
        lambda record: record.update(between_s=[]),
        lambda record: record.update(components=[]),
        lambda record: record["components"][0].update(seconds=[]),
        lambda record: record["components"][0].update(direction="sideways"),
        lambda record: record["components"][0].update(layer=-1),
        lambda record: record["components"][0].update(flops=float("nan")),
    ],
)
def test_a_breakdown_that_cannot_be_is_one_clear_error(path, change):
    assert_damaged(edited(path, change, "breakdowns"))


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(cores=-1),
        lambda record: record.update(threads="2"),
        lambda record: record.update(torch="9.9.9"),
        lambda record: record.pop("platform"),
    ],
)
def test_an_environment_that_is_not_the_one_of_its_fingerprint_is_one_clear_error(path, change):
    assert_damaged(edited(path, change, "environments"))


def test_brackets_without_end_are_one_clear_error(path):
    tampered(path, f"UPDATE outcomes SET record = '{{\"workload\":{'[' * 100_000}}}' WHERE id = 1")
    assert_damaged(path)


def test_a_subject_of_a_strangers_store_is_a_name_and_nothing_is_imported(path, tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    edited(path, lambda record: record["workload"].update(subject="stranger:model"))
    with Store(path) as opened:
        assert opened.measurements()[0]["subject"] == "stranger:model"
    assert "stranger" not in sys.modules


def test_a_view_that_a_person_added_does_no_harm(path):
    tampered(path, "CREATE VIEW mine AS SELECT study, count(*) AS sessions FROM sessions GROUP BY study")
    with Store(path) as opened:
        assert len(opened.sessions()) == 2


@pytest.mark.parametrize(
    "broken",
    [
        {"samples": (Sample(0, 0, 0.0, 1, float("nan")),)},
        {"energy": Energy(joules_per_call=float("inf"), source="a counter", calls=1)},
        {"parameters": -1},
    ],
)
def test_a_number_that_is_none_is_never_written_since_nobody_could_read_the_file_then(path, broken):
    with Store(path) as opened:
        opened.add(SESSION)
        with pytest.raises(StoreError, match=r"what was measured of bert .* cannot be stored"):
            opened.add([measurement("vit", 224, 0.1), replace(SESSION[0], **broken)])
        assert opened.outcomes() == SESSION


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_time_that_a_session_cannot_take_is_never_written(path, seconds):
    with Store(path) as opened:
        with pytest.raises(StoreError, match=r"a session of .* seconds cannot be stored"):
            opened.add(SESSION, seconds=seconds)
        opened.add(SESSION, seconds=-0.0)
    with Store(path) as opened:
        assert [session.seconds for session in opened.sessions()] == [0.0]


def test_names_that_a_person_gave_may_be_changed(path):
    tampered(path, "UPDATE sessions SET study = 'a', label = 'b'", "UPDATE breakdowns SET label = 'c'")
    with Store(path) as opened:
        assert {(session.study, session.label) for session in opened.sessions()} == {("a", "b")}
        assert {each.label for each in opened.every_breakdown()} == {"c"}


def test_results_are_put_into_words_before_the_file_is_locked(path, monkeypatch):
    """Whoever else writes is kept waiting for the disk alone."""
    Store(path).close()
    dump = store.dump

    def dump_while_another_writes(each: Any) -> tuple[str, str]:
        other = sqlite3.connect(path, timeout=0, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        other.close()
        return dump(each)

    monkeypatch.setattr(store, "dump", dump_while_another_writes)
    with Store(path) as opened:
        opened.add(SESSION)
        opened.add_breakdowns([encoder()])
        assert len(opened.outcomes()) == 2
