"""Several stores as one, what is saved of a damaged one, and what a store gives to other programs."""

import csv
import io
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from breakdowns import encoder
from synthetic import ENVIRONMENT, failure, measurement
from tippingpoint.errors import InputError, StoreError
from tippingpoint.measurement import Measurement
from tippingpoint.report.row_files import ROW_FORMATS, write_rows
from tippingpoint.store import (
    SCHEMA_VERSION,
    TABLES,
    Store,
    StoredSession,
    merge_stores,
    store,
    vacuum_store,
)

STORES = Path(__file__).parent / "stores"
PAGE = 4096


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the clock by which sessions are written, in minutes."""
    told = [0]

    class Clock:
        @staticmethod
        def now(zone: Any) -> datetime:
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=told[0])

    monkeypatch.setattr(store, "datetime", Clock)
    return lambda minute: told.__setitem__(0, minute)


def add(path: Path, name: str) -> None:
    with Store(path) as opened:
        opened.add(
            [measurement("bert", 128, [0.01] * 50, session=name), failure("vit", 224, session=name)],
            study=name,
            seconds=2.5,
            label="kept",
            place="node/cpu",
        )


def sessions_of(path: Path) -> list[StoredSession]:
    with Store(path, create=False) as opened:
        return opened.sessions()


def studies_in(path: Path) -> list[str]:
    return [session.study for session in sessions_of(path)]


def integrity(path: Path) -> str:
    database = sqlite3.connect(path)
    try:
        return database.execute("PRAGMA integrity_check").fetchone()[0]
    finally:
        database.close()


# Merging


def test_what_two_copies_have_in_common_is_kept_once_and_all_is_in_the_order_of_time(tmp_path, at):
    one, two, both = (tmp_path / f"{name}.sqlite" for name in ("one", "two", "both"))
    for minute, name in enumerate(("first", "second")):
        at(minute)
        add(one, name)
    shutil.copy(one, two)
    for minute, (path, name) in enumerate([(one, "third"), (two, "fourth"), (one, "fifth")]):
        at(10 + minute)
        add(path, name)
    before = one.read_bytes(), two.read_bytes()
    merged = merge_stores([two, one], both)
    assert studies_in(both) == ["first", "second", "third", "fourth", "fifth"]
    assert (merged.sessions, merged.outcomes, merged.duplicates, merged.lost) == (5, 10, 2, 0)
    assert {session.study: session for session in sessions_of(both)} == {
        session.study: session for path in (one, two) for session in sessions_of(path)
    }
    assert (one.read_bytes(), two.read_bytes()) == before
    assert integrity(both) == "ok"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.sqlite", "one.sqlite", "two.sqlite"]


def test_what_one_file_holds_twice_was_written_twice_and_stays(tmp_path, at):
    one, two, both = (tmp_path / f"{name}.sqlite" for name in ("one", "two", "both"))
    for _ in range(3):
        add(one, "again")
    add(two, "again")
    assert merge_stores([two, one], both).duplicates == 1
    assert studies_in(both) == ["again"] * 3


def test_a_clock_that_was_set_back_leaves_the_order_within_its_file(tmp_path, at):
    one, two, both = (tmp_path / f"{name}.sqlite" for name in ("one", "two", "both"))
    for minute, name in [(10, "a"), (-500, "b"), (20, "c")]:
        at(minute)
        add(one, name)
    for minute, name in [(5, "x"), (15, "y"), (25, "z")]:
        at(minute)
        add(two, name)
    merge_stores([one, two], both)
    assert studies_in(both) == ["x", "a", "b", "y", "c", "z"]


@settings(max_examples=12, deadline=None)
@given(held=st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=3))
def test_merging_loses_nothing_and_merging_again_adds_nothing(tmp_path_factory, held):
    folder = tmp_path_factory.mktemp("merging")
    paths = [folder / f"{number}.sqlite" for number in range(len(held))]
    for path, names in zip(paths, held, strict=True):
        Store(path).close()
        for name in names:
            add(path, str(name))
    # The clock stands still to the second, or sessions differ by it as well.
    contents = [Counter((s.study, s.measured_at) for s in sessions_of(path)) for path in paths]
    merged = merge_stores(paths, folder / "merged.sqlite")
    union: Counter[tuple[str, str]] = Counter()
    for each in contents:
        union |= each
    assert Counter((s.study, s.measured_at) for s in sessions_of(merged.path)) == union
    assert merged.sessions + merged.duplicates == sum(map(len, held))
    again = merge_stores([merged.path, *paths], folder / "again.sqlite")
    assert sessions_of(again.path) == sessions_of(merged.path)


def test_stores_of_all_versions_are_merged_without_being_changed(tmp_path):
    kept = {path: path.read_bytes() for path in STORES.glob("*.sqlite")}
    merged = merge_stores(sorted(kept), tmp_path / "all.sqlite")
    assert (merged.sessions, merged.outcomes, merged.breakdowns) == (8, 16, 3)
    assert {path: path.read_bytes() for path in STORES.glob("*.sqlite")} == kept
    with Store(merged.path) as opened:
        assert opened.breakdowns() == [encoder(), encoder("bert@local:window=4", 1024, training=True)]
        assert len(opened.outcomes()) == 16
    database = sqlite3.connect(merged.path)
    assert database.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
    database.close()


def test_a_merged_store_goes_on_like_any_other(tmp_path):
    add(tmp_path / "one.sqlite", "first")
    merged = merge_stores([tmp_path / "one.sqlite"], tmp_path / "both.sqlite")
    add(merged.path, "second")
    assert studies_in(merged.path) == ["first", "second"]


def test_a_store_that_is_being_written_is_merged_as_it_was(tmp_path):
    one = tmp_path / "one.sqlite"
    add(one, "first")
    writer = sqlite3.connect(one, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO sessions (study, measured_at, seconds) VALUES ('half', '', 1)")
    merge_stores([one], tmp_path / "both.sqlite")
    writer.execute("ROLLBACK")
    writer.close()
    assert studies_in(tmp_path / "both.sqlite") == ["first"]


def test_a_file_that_exists_is_never_replaced(tmp_path):
    one, two = tmp_path / "one.sqlite", tmp_path / "two.sqlite"
    add(one, "first")
    add(two, "second")
    for output in (one, two):
        before = output.read_bytes()
        with pytest.raises(InputError, match="exists already; name a new file"):
            merge_stores([one, two], output)
        assert output.read_bytes() == before


def test_a_file_that_another_process_makes_meanwhile_is_never_replaced(tmp_path, monkeypatch):
    from tippingpoint.store import merge

    one, new = tmp_path / "one.sqlite", tmp_path / "new.sqlite"
    add(one, "first")
    write = merge._write

    def write_while_another_does(*arguments: Any) -> Any:
        new.write_text("mine")
        return write(*arguments)

    monkeypatch.setattr(merge, "_write", write_while_another_does)
    with pytest.raises(InputError, match="was made by another process meanwhile"):
        merge_stores([one], new)
    assert new.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.sqlite", "one.sqlite"]


def test_what_a_killed_process_left_behind_is_never_taken_for_a_draft(tmp_path):
    """In containers every process has the same number."""
    import os

    one, new = tmp_path / "one.sqlite", tmp_path / "new.sqlite"
    add(one, "first")
    shutil.copy(one, tmp_path / f".new.sqlite.{os.getpid()}")
    merge_stores([one], new)
    assert studies_in(new) == ["first"]


def test_a_folder_that_goes_away_meanwhile_is_one_sentence(tmp_path, monkeypatch):
    from tippingpoint.store import merge

    one, folder = tmp_path / "one.sqlite", tmp_path / "folder"
    add(one, "first")
    folder.mkdir()
    read = merge._read
    monkeypatch.setattr(merge, "_read", lambda *given: (folder.rmdir(), read(*given))[1])
    with pytest.raises(InputError, match=r"new.sqlite' cannot be written: No such file"):
        merge_stores([one], folder / "new.sqlite")


@pytest.mark.parametrize(
    ("names", "output", "expected"),
    [
        (["nowhere.sqlite"], "new.sqlite", "there is no store"),
        (["."], "new.sqlite", "there is no store"),
        (["diary.sqlite"], "new.sqlite", "not an SQLite file"),
        (["one.sqlite"], "nowhere/new.sqlite", r"the folder .*nowhere' does not exist"),
        ([], "new.sqlite", "name at least one store"),
    ],
)
def test_what_cannot_be_merged_is_one_sentence_and_leaves_no_file(tmp_path, names, output, expected):
    add(tmp_path / "one.sqlite", "first")
    (tmp_path / "diary.sqlite").write_text("a diary, not a database; " * 100)
    before = sorted(tmp_path.iterdir())
    with pytest.raises((StoreError, InputError), match=expected):
        merge_stores([tmp_path / name for name in names], tmp_path / output)
    assert sorted(tmp_path.iterdir()) == before


# Salvaging


def filled(path: Path, count: int = 12) -> list[str]:
    names = [f"study {number:02d}" for number in range(count)]
    for name in names:
        add(path, name)
    with Store(path) as opened:
        opened.add_breakdowns([encoder(), failure("bert", 512)])
    return names


def test_a_damaged_store_is_merged_only_where_that_is_asked_for(tmp_path):
    one = tmp_path / "one.sqlite"
    filled(one)
    one.write_bytes(one.read_bytes()[: 12 * PAGE])
    with pytest.raises(StoreError, match=r"it is damaged; keep it, and save what can still be read with"):
        merge_stores([one], tmp_path / "new.sqlite")
    assert not (tmp_path / "new.sqlite").exists()


def test_of_a_store_cut_at_any_page_whole_sessions_are_saved_and_the_others_counted(tmp_path):
    one, cut = tmp_path / "one.sqlite", tmp_path / "cut.sqlite"
    names = filled(one)
    whole, original = one.read_bytes(), {session.study: session for session in sessions_of(one)}
    most = 0
    for pages in range(2, len(whole) // PAGE):
        cut.write_bytes(whole[: pages * PAGE])
        output = tmp_path / f"{pages}.sqlite"
        merged = merge_stores([cut], output, salvage=True)
        found = sessions_of(output)
        assert all(original[session.study] == session for session in found)
        assert [session.study for session in found] == sorted(session.study for session in found)
        assert len(found) == merged.sessions <= len(names)
        assert merged.lost or pages > 2
        most = max(most, len(found))
    assert most == len(names)


def test_one_bad_page_costs_only_the_sessions_on_it(tmp_path):
    one, bad = tmp_path / "one.sqlite", tmp_path / "bad.sqlite"
    names = filled(one)
    whole = one.read_bytes()
    saved = []
    for page in range(1, len(whole) // PAGE, 2):
        bad.write_bytes(whole[: page * PAGE] + b"\xff" * PAGE + whole[(page + 1) * PAGE :])
        output = tmp_path / f"{page}.sqlite"
        merged = merge_stores([bad], output, salvage=True)
        assert set(studies_in(output)) <= set(names)
        saved.append(merged.sessions)
    # Some pages hold the tables' roots, which lead to everything.
    assert sorted(saved)[len(saved) // 2] >= len(names) - 2


def test_salvaging_changes_nothing_in_the_damaged_file_and_takes_whole_ones_as_they_are(tmp_path):
    one, two = tmp_path / "one.sqlite", tmp_path / "two.sqlite"
    filled(one)
    add(two, "whole")
    one.write_bytes(one.read_bytes()[: -3 * PAGE])
    before = one.read_bytes()
    merged = merge_stores([one, two], tmp_path / "new.sqlite", salvage=True)
    assert one.read_bytes() == before
    assert "whole" in studies_in(merged.path)
    assert merged.lost > 0


def test_of_a_damaged_store_of_an_earlier_version_nothing_can_be_told_to_be_whole(tmp_path):
    old = tmp_path / "old.sqlite"
    old.write_bytes((STORES / "schema_2.sqlite").read_bytes()[: -4 * PAGE])
    with pytest.raises(StoreError, match="is damaged and of an earlier version"):
        merge_stores([old], tmp_path / "new.sqlite", salvage=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old.sqlite"]


def test_of_a_file_without_its_first_page_nothing_can_be_salvaged(tmp_path):
    one = tmp_path / "one.sqlite"
    filled(one)
    content = one.read_bytes()
    one.write_bytes(content[:100] + bytes(PAGE - 100) + content[PAGE:])
    with pytest.raises(StoreError, match="nothing can be salvaged from"):
        merge_stores([one], tmp_path / "new.sqlite", salvage=True)
    assert [path.name for path in tmp_path.iterdir()] == ["one.sqlite"]


def test_what_is_no_database_cannot_be_salvaged(tmp_path):
    diary = tmp_path / "diary.sqlite"
    diary.write_text("a diary, not a database; " * 100)
    with pytest.raises(StoreError, match="not an SQLite file"):
        merge_stores([diary], tmp_path / "new.sqlite", salvage=True)


def test_a_number_that_damage_made_large_is_no_lost_session_and_neither_is_one_that_a_person_took_out(tmp_path):
    one = tmp_path / "one.sqlite"
    filled(one)
    database = sqlite3.connect(one)
    database.execute("UPDATE outcomes SET session = ? WHERE session = 12", (2**50,))
    database.execute("DELETE FROM outcomes WHERE session = 2")
    database.execute("DELETE FROM sessions WHERE id = 2")
    database.commit()
    database.close()
    merged = merge_stores([one], tmp_path / "new.sqlite", salvage=True)
    assert (merged.sessions, merged.breakdowns, merged.lost) == (10, 2, 1)


def test_of_a_large_file_only_so_many_rows_are_looked_up_as_there_are(tmp_path):
    from tippingpoint.store.file import connect
    from tippingpoint.store.salvage import salvaged

    one = tmp_path / "one.sqlite"
    filled(one, 3)
    looked_up: list[str] = []

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        database = connect(*arguments, **options)
        database.set_trace_callback(looked_up.append)
        return database

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tippingpoint.store.salvage.connect", traced)
        _, sessions, breakdowns, lost = salvaged(one, one)
    assert (len(sessions), len(breakdowns), lost) == (3, 2, 0)
    # One environment, six outcomes, three sessions, two breakdowns.
    assert len([statement for statement in looked_up if "WHERE rowid" in statement]) == 12


def with_a_journal(path: Path) -> bytes:
    """Make what a crash in the middle of writing leaves; return the journal."""
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA cache_size = 2")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE outcomes SET record = record || hex(zeroblob(9000))")
    journal = path.with_name(f"{path.name}-journal")
    pages, left = path.read_bytes(), journal.read_bytes()
    writer.execute("ROLLBACK")
    writer.close()
    path.write_bytes(pages)
    journal.write_bytes(left)
    return left


@pytest.mark.parametrize("damaged", [False, True])
def test_salvaging_opens_neither_a_file_nor_the_journal_beside_it(tmp_path, damaged):
    one = tmp_path / "one.sqlite"
    names = filled(one, 4)
    journal = with_a_journal(one)
    if damaged:
        # Its pages before the write are lost.
        one.with_name("one.sqlite-journal").write_bytes(journal[: len(journal) // 2])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    merged = merge_stores([one], tmp_path / "new.sqlite", salvage=True)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.sqlite", "one.sqlite", "one.sqlite-journal"]
    assert damaged or studies_in(merged.path) == names


# Vacuuming


def test_vacuuming_frees_pages_and_environments_and_throws_no_result_away(tmp_path):
    path = tmp_path / "one.sqlite"
    filled(path)
    before = sessions_of(path)
    database = sqlite3.connect(path)
    database.execute("INSERT INTO environments VALUES ('unused', '{}')")
    database.execute("CREATE TABLE large (content BLOB)")
    database.execute("INSERT INTO large VALUES (zeroblob(500000))")
    database.execute("DROP TABLE large")
    database.execute("DELETE FROM environments")
    database.commit()
    database.close()
    add(path, "last")
    with Store(path) as opened:
        opened._db.execute(
            "INSERT INTO environments SELECT 'f00', replace(record, '2.13.0', '0') FROM environments LIMIT 1"
        )
    fingerprint = _fix_fingerprint(path)
    done = vacuum_store(path)
    assert done.bytes_after < done.bytes_before - 400_000
    assert done.bytes_after == path.stat().st_size
    assert (done.environments, done.sessions) == (1, 13)
    with Store(path) as opened:
        assert opened.sessions()[:12] == before
        assert len(opened.every_breakdown()) == 2
        assert fingerprint not in opened.environments()
    assert integrity(path) == "ok"
    assert vacuum_store(path).environments == 0


def _fix_fingerprint(path: Path) -> str:
    """Give the environment that nothing refers to the fingerprint that it has."""
    from tippingpoint.store.records import load_environment

    database = sqlite3.connect(path)
    (record,) = database.execute("SELECT record FROM environments WHERE fingerprint = 'f00'").fetchone()
    fingerprint = load_environment(record).fingerprint
    database.execute("UPDATE environments SET fingerprint = ? WHERE fingerprint = 'f00'", (fingerprint,))
    database.commit()
    database.close()
    return fingerprint


def test_a_damaged_store_is_not_vacuumed(tmp_path):
    path = tmp_path / "one.sqlite"
    filled(path)
    database = sqlite3.connect(path)
    (root,) = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'outcomes_by_session'").fetchone()
    database.close()
    content = bytearray(path.read_bytes())
    # An entry of the index, which no reading of results needs to be right.
    content[root * PAGE - 20 : root * PAGE] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="it is damaged"):
        vacuum_store(path)
    assert path.read_bytes() == bytes(content)


def test_a_store_that_another_process_holds_is_not_vacuumed_and_that_is_said(tmp_path, monkeypatch):
    from tippingpoint.store import vacuum

    path = tmp_path / "one.sqlite"
    add(path, "first")
    monkeypatch.setattr(vacuum, "_PATIENCE_S", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another process has been using it for too long"):
        vacuum_store(path)
    other.close()
    assert vacuum_store(path).sessions == 1


# Rows for other programs


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    path = tmp_path / "varied.sqlite"
    with Store(path) as opened:
        opened.add([measurement("bert", 128, [0.01, 0.02, 0.03]), failure("vit", 224, message="=cmd()")], label="a")
        opened.add_breakdowns([encoder(training=True), failure("bert", 512)], label="b")
    return path


@pytest.mark.parametrize("table", TABLES)
def test_rows_of_a_table_have_the_same_keys_and_only_plain_scalars(varied, table):
    with Store(varied) as opened:
        rows = list(opened.rows(table))
    assert rows
    assert all(list(row) == list(rows[0]) for row in rows)
    assert {type(value) for row in rows for value in row.values()} <= {str, int, float, bool, type(None)}


def test_rows_of_samples_are_the_blocks_and_those_of_breakdowns_add_up(varied):
    with Store(varied) as opened:
        samples, parts = list(opened.rows("samples")), list(opened.rows("breakdowns"))
        measured, (broken_down,) = opened.outcomes()[0], opened.breakdowns()
        assert [row["environment"] for row in opened.rows("environments")] == [ENVIRONMENT.fingerprint]
    assert isinstance(measured, Measurement)
    assert [row["per_call_s"] for row in samples] == measured.per_call_s.tolist()
    fine = [row for row in parts if row["status"] == "ok"]
    assert sum(row["seconds"] for row in fine) + fine[0]["between_operators_s"] == pytest.approx(
        broken_down.explained_s
    )
    assert sum(row["flops"] for row in fine) == broken_down.flops
    assert [(row["status"], row["seconds"]) for row in parts if row not in fine] == [("out_of_memory", None)]


def test_a_table_that_is_none_is_refused_with_those_there_are(varied):
    with Store(varied) as opened, pytest.raises(InputError, match=r"unknown table 'sample'.*Did you mean 'samples'"):
        opened.rows("sample")


def read_back(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text())))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_file(file).read_all().to_pylist()


@pytest.mark.parametrize("format", ROW_FORMATS)
@pytest.mark.parametrize("table", TABLES)
def test_rows_come_back_from_a_file_as_they_were(varied, table, format):
    path = varied.with_name(f"rows.{format}")
    with Store(varied) as opened:
        rows = list(opened.rows(table))
    assert write_rows(iter(rows), format, path) == len(rows)
    found = read_back(path)
    if format == "csv":
        # All is text there, and a text is no formula.
        texts = [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
        assert found == [{key: f"'{v}" if v.startswith("=") else v for key, v in row.items()} for row in texts]
        return
    assert found == rows
    if format == "parquet":
        assert not [field.name for field in parquet.read_schema(path) if pa.types.is_null(field.type)]


def test_rows_are_written_a_batch_at_a_time(varied, monkeypatch):
    from tippingpoint.report import row_files

    monkeypatch.setattr(row_files, "_BATCH", 2)
    with Store(varied) as opened:
        rows = list(opened.rows("samples"))
    for format in ("parquet", "arrow"):
        path = varied.with_name(f"rows.{format}")
        assert write_rows(iter(rows), format, path) == 3
        assert read_back(path) == rows


def test_a_file_of_rows_stays_what_it_was_if_reading_breaks(varied):
    path = varied.with_name("rows.csv")
    path.write_text("before")

    def breaking() -> Any:
        yield {"a": 1}
        raise StoreError("damaged")

    with pytest.raises(StoreError):
        write_rows(breaking(), "csv", path)
    assert path.read_text() == "before"
    assert sorted(each.name for each in path.parent.iterdir()) == ["rows.csv", "varied.sqlite"]
