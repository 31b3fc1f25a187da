"""The tables of a store, and how those of earlier versions are brought up to date.

Schema history
    1   sessions, environments, outcomes
    2   sessions have a label; a measurement has warm-ups of several processes; fingerprints leave defaults out
    3   breakdowns
    4   sessions have a place; sessions and breakdowns have a digest
"""

from __future__ import annotations

import json
import sqlite3
from os import PathLike

from tippingpoint.errors import StoreError
from tippingpoint.store.file import UnreadableError, connect, empty, transaction
from tippingpoint.store.records import breakdown_digest, load_environment, session_digest

SCHEMA_VERSION = 4
# "tipp": tells our files from other programs' SQLite files
_APPLICATION_ID = 0x74697070

_BREAKDOWNS = """
CREATE TABLE breakdowns (
    id INTEGER PRIMARY KEY,
    environment TEXT NOT NULL REFERENCES environments(fingerprint),
    label TEXT NOT NULL,
    measured_at TEXT NOT NULL,
    status TEXT NOT NULL,
    record TEXT NOT NULL
);
"""
_WITH_DIGEST = "ALTER TABLE breakdowns ADD COLUMN digest TEXT NOT NULL DEFAULT '';"
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    study TEXT NOT NULL,
    measured_at TEXT NOT NULL,
    seconds REAL NOT NULL,
    label TEXT NOT NULL DEFAULT '',
    place TEXT NOT NULL DEFAULT '',
    digest TEXT NOT NULL DEFAULT ''
);
CREATE TABLE environments (
    fingerprint TEXT PRIMARY KEY,
    record TEXT NOT NULL
);
CREATE TABLE outcomes (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL REFERENCES sessions(id),
    environment TEXT NOT NULL REFERENCES environments(fingerprint),
    status TEXT NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX outcomes_by_session ON outcomes(session);
{_BREAKDOWNS}
{_WITH_DIGEST}
"""
TABLES = ("sessions", "environments", "outcomes", "breakdowns")


def bring_up_to_date(db: sqlite3.Connection, path: str | PathLike[str], *, create: bool = True) -> None:
    """Make the tables of a new file, and bring those of an older version up to date, all at once or not at all.

    Args:
        db: The open file.
        path: What it is called.
        create: False refuses to make tables where there are none.

    Raises:
        StoreError: If it is no store, or comes from a newer version.
        UnreadableError: If its tables are not those of a store.
    """
    with transaction(db, "DEFERRED"):
        version = schema_version(db, path)
    if version == SCHEMA_VERSION:
        return
    if version == 0 and not create:
        raise empty(path)
    with transaction(db):
        # Two processes may open a file at the same moment: whoever comes second finds it done.
        version = schema_version(db, path)
        if version == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
        for step in range(version or SCHEMA_VERSION, SCHEMA_VERSION):
            try:
                _MIGRATIONS[step](db)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise UnreadableError from error
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def copy_up_to_date(db: sqlite3.Connection, path: str | PathLike[str]) -> sqlite3.Connection:
    """Return a copy of an open file as it is now, brought up to date and gone when it is closed.

    Raises:
        StoreError: If it is no store, or comes from a newer version.
        UnreadableError: If its tables are not those of a store.
    """
    copy = connect("")
    try:
        db.backup(copy)
        bring_up_to_date(copy, path, create=False)
    except BaseException:
        copy.close()
        raise
    return copy


def schema_version(db: sqlite3.Connection, path: str | PathLike[str]) -> int:
    """Return the version of a file's schema, 0 for a new file; ask within a transaction.

    Raises:
        StoreError: If it is no store, or comes from a newer version.
        UnreadableError: If its tables are not those of a store.
    """
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables == 0 and version == 0:
        return 0
    if application != _APPLICATION_ID:
        raise StoreError(f"{path} is an SQLite file of another program, not a store of results")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer version of tippingpoint (its schema is {version}, this "
            f"version reads up to {SCHEMA_VERSION}); upgrade with `pip install --upgrade tippingpoint`"
        )
    if version < 1:
        raise UnreadableError
    _check_tables(db)
    return version


def _check_tables(db: sqlite3.Connection) -> None:
    """See that reading and writing run nothing: a stranger's file may have views, triggers and computed columns."""
    found = db.execute("SELECT type, name, tbl_name, rootpage FROM sqlite_schema").fetchall()
    for kind, name, table, page in found:
        # SQLite takes `Sessions` for `sessions`.
        if str(table).lower() in TABLES and (kind not in ("table", "index") or not page):
            raise UnreadableError(f"{name} is a {kind}")
    hidden = "SELECT count(*) FROM pragma_table_xinfo(?) WHERE hidden <> 0"
    if any(db.execute(hidden, (table,)).fetchone()[0] for table in TABLES):
        raise UnreadableError("a column is computed")


def _to_schema_2(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE sessions ADD COLUMN label TEXT NOT NULL DEFAULT ''")
    for number, text in db.execute("SELECT id, record FROM outcomes WHERE status = 'ok'").fetchall():
        record = json.loads(text)
        record["warm_ups_s"] = [record.pop("warm_up_s")]
        db.execute("UPDATE outcomes SET record = ? WHERE id = ?", (json.dumps(record), number))
    for old, text in db.execute("SELECT fingerprint, record FROM environments").fetchall():
        new = load_environment(text).fingerprint
        db.execute("INSERT OR IGNORE INTO environments VALUES (?, ?)", (new, text))
        db.execute("UPDATE outcomes SET environment = ? WHERE environment = ?", (new, old))
        if new != old:
            db.execute("DELETE FROM environments WHERE fingerprint = ?", (old,))


def _to_schema_3(db: sqlite3.Connection) -> None:
    db.execute(_BREAKDOWNS)


def _to_schema_4(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE sessions ADD COLUMN place TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE sessions ADD COLUMN digest TEXT NOT NULL DEFAULT ''")
    for number, measured_at, seconds in db.execute("SELECT id, measured_at, seconds FROM sessions").fetchall():
        rows = db.execute("SELECT environment, status, record FROM outcomes WHERE session = ? ORDER BY id", (number,))
        digest = session_digest(measured_at, seconds, "", rows.fetchall())
        db.execute("UPDATE sessions SET digest = ? WHERE id = ?", (digest, number))
    db.execute(_WITH_DIGEST)
    for number, *row in db.execute("SELECT id, measured_at, environment, status, record FROM breakdowns").fetchall():
        db.execute("UPDATE breakdowns SET digest = ? WHERE id = ?", (breakdown_digest(*row), number))


# By the version they start from.
_MIGRATIONS = {1: _to_schema_2, 2: _to_schema_3, 3: _to_schema_4}
