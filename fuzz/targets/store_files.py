"""Stores: SQLite files of a stranger, byte by byte."""

import sqlite3
from contextlib import suppress

from targets.scratch import path_of, written
from tippingpoint.errors import TippingPointError
from tippingpoint.store import Store

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
    """Open a store and read all of it."""
    for end in ("-journal", "-wal", "-shm"):
        path_of(f".sqlite{end}").unlink(missing_ok=True)
    with suppress(TippingPointError), Store(written(data, ".sqlite"), create=False) as store:
        repr(store)
        store.measurements()
        store.breakdowns()


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
