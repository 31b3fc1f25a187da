"""What can still be read of a damaged file: whole sessions, each known by its digest."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Set
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from tippingpoint.errors import StoreError
from tippingpoint.machine import Environment
from tippingpoint.store.file import UnreadableError, connect
from tippingpoint.store.reading import BREAKDOWN, HEADER, RawSession, decoded_breakdown
from tippingpoint.store.records import load_environment
from tippingpoint.store.schema import SCHEMA_VERSION, schema_version

# No outcome takes fewer bytes, with all that belongs to it: so many rows there can be at most.
_SMALLEST_ROW = 128
_JOURNAL = "-journal"

Salvaged = tuple[dict[str, str], list[RawSession], list[tuple[Any, ...]], int]


@contextmanager
def copied(path: Path) -> Iterator[Path]:
    """Give a copy of a store, and of its journal: opening the file itself could change it."""
    with tempfile.TemporaryDirectory(prefix="tippingpoint-") as folder:
        copy = Path(folder) / "copy.sqlite"
        try:
            shutil.copyfile(path, copy)
            # After the file, if somebody is writing it: the journal then has all that the copy needs to be put right.
            with suppress(FileNotFoundError):
                shutil.copyfile(path.with_name(path.name + _JOURNAL), copy.with_name(copy.name + _JOURNAL))
        except OSError as error:
            raise StoreError(f"the store {path} could not be copied: {error.strerror}") from error
        yield copy


def salvaged(copy: Path, path: Path) -> Salvaged:
    """Return texts of environments, sessions and breakdowns that can be read, and how many cannot, at least.

    Args:
        copy: What is looked at, and may be changed.
        path: What it is called in what is said of it.

    Raises:
        StoreError: If nothing can be read, or the file is of an earlier version, whose sessions have no digest by
            which whole ones could be told.
        sqlite3.Error: If it is no database at all.
        UnreadableError: If its tables are not those of a store.
    """
    with closing(connect(copy, damaged=True)) as db:
        version = schema_version(db, path)
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"the store {path} is damaged and of an earlier version (its schema is {version}), whose "
                "sessions do not tell whether they are whole: nothing can be salvaged"
            )
        return _read(db, copy.stat().st_size // _SMALLEST_ROW)


def _read(db: sqlite3.Connection, most: int) -> Salvaged:
    """Return what a file holds that has `most` rows in a table at most."""
    environments: dict[str, tuple[Environment, str]] = {}
    for fingerprint, record in filter(None, _rows(db, "environments", "fingerprint, record", most).values()):
        with suppress(UnreadableError):
            environments[fingerprint] = load_environment(record, fingerprint), record
    rows: dict[Any, list[tuple[Any, ...]]] = {}
    for session, *row in filter(None, _rows(db, "outcomes", "session, environment, status, record", most).values()):
        rows.setdefault(session, []).append(tuple(row))
    headers = _rows(db, "sessions", HEADER, most)
    sessions = []
    for number, header in headers.items():
        if header:
            with suppress(UnreadableError):
                session = RawSession(number, header, tuple(rows.get(number, ())))
                session.decoded(environments)
                sessions.append(session)
    found = _rows(db, "breakdowns", BREAKDOWN, most)
    breakdowns = []
    for row in filter(None, found.values()):
        with suppress(UnreadableError):
            decoded_breakdown(row, environments)
            breakdowns.append(row)
    told = {number for number in rows if isinstance(number, int) and 0 < number <= most}
    lost = _count(headers, told) - len(sessions) + _count(found, set()) - len(breakdowns)
    return {key: text for key, (_, text) in environments.items()}, sessions, breakdowns, lost


def _rows(db: sqlite3.Connection, table: str, columns: str, most: int) -> dict[int, tuple[Any, ...] | None]:
    """Return rows by their numbers, and None for what cannot be read, or is beyond the end.

    They are looked up one by one, so that one bad page hides no other.
    """
    try:
        last = db.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0
    except sqlite3.Error:
        last = most
    rows: dict[int, tuple[Any, ...] | None] = {}
    for number in range(1, min(most, last) + 1):
        try:
            row = db.execute(f"SELECT {columns} FROM {table} WHERE rowid = ?", (number,)).fetchone()
        except sqlite3.Error:
            rows[number] = None
            continue
        # A number that is not there was taken out by a person.
        if row:
            rows[number] = row
    return rows


def _count(rows: Mapping[int, tuple[Any, ...] | None], told: Set[int]) -> int:
    """Return how many there were at least: those that are known of, and those before them that cannot be read."""
    known = {number for number, row in rows.items() if row} | told
    return len(known | {number for number in rows if number <= max(known, default=0)})
