"""Stores that a stranger changed by SQL: other tables, views, triggers, columns, and values of any kind."""

import sqlite3
import time
from contextlib import closing, suppress

from targets.store_files import read_all, scratch_store
from targets.store_records import _WHOLE

TOKENS = (
    *(b"sessions", b"outcomes", b"environments", b"breakdowns", b"Sessions", b"OUTCOMES", b"outcomes_by_session"),
    *(b"id", b"study", b"measured_at", b"seconds", b"label", b"place", b"digest", b"session", b"environment"),
    *(b"fingerprint", b"status", b"record", b"rowid", b" = ", b"NULL", b"''", b"x'ff'", b"9e999", b"-1", b"1 << 62"),
    *(b"UPDATE ", b" SET ", b"DELETE FROM ", b"INSERT INTO ", b" SELECT ", b" FROM ", b" WHERE ", b";", b"CAST("),
    *(b"DROP TABLE ", b"DROP INDEX ", b"ALTER TABLE ", b" RENAME TO ", b" DROP COLUMN ", b" ADD COLUMN "),
    *(b"CREATE TABLE ", b"CREATE VIEW ", b"CREATE UNIQUE INDEX ", b"CREATE TRIGGER ", b" AS ", b" WITHOUT ROWID"),
    *(b"PRAGMA user_version = ", b"PRAGMA application_id = ", b"PRAGMA writable_schema = ON;", b"sqlite_schema"),
    *(
        b"\n",
        b"BEGIN ",
        b"END",
        b"PRAGMA encoding = 'UTF-16';",
        b"PRAGMA journal_mode = WAL;",
        b"PRAGMA auto_vacuum = 2;",
        b"VACUUM;",
    ),
)
_LONGEST_S = 1.0
_REFUSED = (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)


def one_input(data: bytes) -> None:
    """Run what is there as SQL on a whole store, and then read it."""
    path = scratch_store(_WHOLE)
    with closing(sqlite3.connect(path)) as db:
        until = time.monotonic() + _LONGEST_S
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2**20)
        # What the stranger runs is bounded, and stays in this file; what reading it takes is what is looked at.
        db.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action in _REFUSED else sqlite3.SQLITE_OK)
        db.set_progress_handler(lambda: time.monotonic() > until, 10_000)
        # Line by line: one that is no SQL stops no other.
        for line in data.decode(errors="replace").replace("\0", "").splitlines():
            with suppress(sqlite3.Error, UnicodeError):
                db.executescript(line)
        with suppress(sqlite3.Error):
            db.commit()
    read_all(path)
