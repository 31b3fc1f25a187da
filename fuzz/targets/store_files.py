"""Stores: SQLite files of a stranger, byte by byte."""

import sqlite3
from collections import deque
from contextlib import suppress
from pathlib import Path

from targets.scratch import path_of, written
from tippingpoint.errors import TippingPointError
from tippingpoint.store import TABLES, Store, merge_stores

TOKENS = (
    b"SQLite format 3\x00",
    b"tipp",
    b"CREATE TABLE ",
    b"CREATE TRIGGER ",
    b"CREATE VIEW ",
    b"\xff\xff\xff\xff",
    b"ok",
    b"{",
    b"null",
)


def one_input(data: bytes) -> None:
    """Open a store and read all of it, and save what can be read of it."""
    read_all(scratch_store(data))


def scratch_store(data: bytes) -> Path:
    """Return a file that holds some bytes, with none of what SQLite keeps beside."""
    for end in ("-journal", "-wal", "-shm"):
        path_of(f".sqlite{end}").unlink(missing_ok=True)
    return written(data, ".sqlite")


def read_all(path: Path) -> None:
    """Do with a store what commands do."""
    saved = path_of(".saved.sqlite")
    saved.unlink(missing_ok=True)
    with suppress(TippingPointError):
        merge_stores([path], saved, salvage=True)
    with suppress(TippingPointError), Store(path, create=False) as store:
        repr(store)
        store.breakdowns()
        for table in TABLES:
            deque(store.rows(table), maxlen=0)


def plant(path: str, record: str) -> None:
    """Put a record in the place of the first outcome, as a stranger would who knows how a store is made."""
    from tippingpoint.store.records import session_digest

    db = sqlite3.connect(path)
    try:
        (number, session) = db.execute("SELECT id, session FROM outcomes ORDER BY id").fetchone()
        db.execute("UPDATE outcomes SET record = ? WHERE id = ?", (record, number))
        rows = db.execute(
            "SELECT environment, status, record FROM outcomes WHERE session = ? ORDER BY id", (session,)
        ).fetchall()
        moment, seconds, place = db.execute(
            "SELECT measured_at, seconds, place FROM sessions WHERE id = ?", (session,)
        ).fetchone()
        db.execute(
            "UPDATE sessions SET digest = ? WHERE id = ?", (session_digest(moment, seconds, place, rows), session)
        )
        db.commit()
    finally:
        db.close()
