"""The file below a store: how it is opened and locked, and SQLite's errors as sentences.

A rollback journal, and not a write-ahead log: the latter needs memory that all users of a file share, which network
file systems do not have. A commit is on the disk, the end of its journal included, before `add` returns.
"""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from tippingpoint.errors import StoreError

# How long another process is waited for, in seconds.
PATIENCE_S = 30.0
# Of one text, in bytes. The largest that are written have some hundred thousand.
_LONGEST_TEXT = 2**26
_SETTINGS = (
    # A journal that came back after a power cut would take a finished session back.
    "PRAGMA synchronous = EXTRA",
    # The file may be a stranger's: its schema runs nothing, and its pages are looked at before they are used.
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
)

DAMAGED = "it is damaged; keep it, and save what can still be read with `tippingpoint merge {} -o NEW --salvage`"
_UNWRITABLE = "it cannot be written to; check the permissions of the file and of its folder"
_HINTS = {
    "not a database": "it is not an SQLite file; name another file",
    "malformed": DAMAGED,
    "no such table": DAMAGED,
    "no such column": DAMAGED,
    "could not decode": DAMAGED,
    "too big": DAMAGED,
    "disk is full": "the disk is full; make room and run the same command again, what was measured before is kept",
    "disk i/o error": "the disk or the share it is on failed; what was measured before is kept, run the same command "
    "again where there is room and the disk works",
    "readonly": _UNWRITABLE,
    "read-only": _UNWRITABLE,
    "locked": "another process has been using it for too long; try again when that is done",
    "unable to open": "check that it is a file, and that it and its folder may be written to",
}


class DamagedError(StoreError):
    """A store's file is not whole; parts of it may be salvaged."""


class UnreadableError(Exception):
    """What a file holds is not what any version of a store wrote."""


def connect(
    path: str | PathLike[str], *, patience_s: float = PATIENCE_S, damaged: bool = False
) -> sqlite3.Connection:
    """Open a file; transactions are begun by hand.

    Args:
        path: The file; ":memory:" for none, and "" for one that is gone when it is closed.
        patience_s: How long another process is waited for.
        damaged: Whether to open a file that is shorter than its first page says.
    """
    db = sqlite3.connect(str(path), timeout=patience_s, isolation_level=None)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_TEXT)
    try:
        for setting in (*["PRAGMA writable_schema = ON"] * damaged, *_SETTINGS):
            db.execute(setting)
    except BaseException:
        db.close()
        raise
    return db


def check_exists(path: Path) -> None:
    """See that there is a file, and something in it, before it is opened: SQLite makes both into a new database.

    Raises:
        StoreError: If not.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise StoreError(f"there is no store {path}; measure something first, or name another file") from error
    if not size:
        raise empty(path)


def empty(path: str | PathLike[str]) -> StoreError:
    """Return what is said of a file that holds not even the tables of a store."""
    return StoreError(f"the store {path} is empty; measure something first, or name another file")


@contextmanager
def explained(path: str | PathLike[str], doing: str) -> Iterator[None]:
    """Turn SQLite's errors into one sentence that says what to do.

    Raises:
        StoreError: In place of them.
    """
    try:
        yield
    except sqlite3.Error as error:
        message = str(error).lower()
        hint = next((text for key, text in _HINTS.items() if key in message), str(error))
        if hint is DAMAGED:
            raise _damaged(path, doing) from error
        raise StoreError(f"the store {path} could not be {doing}: {hint}") from error
    except (UnreadableError, UnicodeDecodeError) as error:
        # The latter: SQLite's own message holds bytes of the file, and they are no text.
        raise _damaged(path, doing) from error


def _damaged(path: str | PathLike[str], doing: str) -> DamagedError:
    return DamagedError(f"the store {path} could not be {doing}: {DAMAGED.format(shlex.quote(str(path)))}")


@contextmanager
def transaction(db: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """Do several things, all of them or none; "DEFERRED" to read one state of the file."""
    db.execute(f"BEGIN {kind}")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # A commit that fails, because of a reader or a full disk, leaves the transaction open.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
