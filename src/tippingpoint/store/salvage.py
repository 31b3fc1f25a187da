"""What can still be read of a damaged file: whole sessions, each known by its digest."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
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


def salvaged(path: Path) -> Salvaged:
    """Return texts of environments, sessions and breakdowns that can be read, and how many cannot, at least.

    The file is left alone; what is looked at is a copy.

    Raises:
        StoreError: If nothing can be read, or the file is of an earlier version, whose sessions have no digest by
            which whole ones could be told.
        sqlite3.Error: If it is no database at all.
        UnreadableError: If its tables are not those of a store.
    """
    with tempfile.TemporaryDirectory(prefix="tippingpoint-") as folder:
        copy = Path(folder) / "damaged.sqlite"
        shutil.copyfile(path, copy)
        journal = path.with_name(path.name + _JOURNAL)
        if journal.is_file():
            shutil.copyfile(journal, copy.with_name(copy.name + _JOURNAL))
        with closing(connect(copy, damaged=True)) as db:
            version = schema_version(db, path)
            if version != SCHEMA_VERSION:
                raise StoreError(
                    f"the store {path} is damaged and of an earlier version (its schema is {version}), whose "
                    "sessions do not tell whether they are whole: nothing can be salvaged"
                )
            return _read(db, range(1, copy.stat().st_size // _SMALLEST_ROW + 1))


def _read(db: sqlite3.Connection, numbers: range) -> Salvaged:
    environments: dict[str, tuple[Environment, str]] = {}
    for _, fingerprint, record in _rows(db, "environments", "fingerprint, record", numbers):
        try:
            environments[fingerprint] = load_environment(record, fingerprint), record
        except UnreadableError:
            continue
    rows: dict[Any, list[tuple[Any, ...]]] = {}
    for _, session, *row in _rows(db, "outcomes", "session, environment, status, record", numbers):
        rows.setdefault(session, []).append(tuple(row))
    sessions, last = [], max((number for number in rows if isinstance(number, int)), default=0)
    for number, *header in _rows(db, "sessions", HEADER, numbers):
        last = max(last, number)
        session = RawSession(number, tuple(header), tuple(rows.get(number, ())))
        try:
            session.decoded(environments)
        except UnreadableError:
            continue
        sessions.append(session)
    breakdowns, last_breakdown = [], 0
    for number, *row in _rows(db, "breakdowns", BREAKDOWN, numbers):
        last_breakdown = number
        try:
            decoded_breakdown(tuple(row), environments)
        except UnreadableError:
            continue
        breakdowns.append(tuple(row))
    # Numbers have no gaps.
    lost = last - len(sessions) + last_breakdown - len(breakdowns)
    return {key: text for key, (_, text) in environments.items()}, sessions, breakdowns, lost


def _rows(db: sqlite3.Connection, table: str, columns: str, numbers: range) -> Iterator[tuple[Any, ...]]:
    """Return the rows that can be read, each after its number, looked up one by one: one bad page hides no other."""
    for number in numbers:
        try:
            row = db.execute(f"SELECT rowid, {columns} FROM {table} WHERE rowid = ?", (number,)).fetchone()
        except sqlite3.Error:
            continue
        if row:
            yield row
