"""Several stores as one: everything that each holds, and what two hold in common once."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from tippingpoint.errors import InputError, StoreError
from tippingpoint.store.file import DamagedError, check_exists, connect, explained, transaction
from tippingpoint.store.reading import (
    BREAKDOWN,
    HEADER,
    RawSession,
    breakdown_numbers,
    decoded_breakdown,
    read_breakdowns,
    read_environments,
    read_sessions,
)
from tippingpoint.store.salvage import copied, salvaged
from tippingpoint.store.schema import bring_up_to_date, copy_up_to_date

_Item = TypeVar("_Item")
# Where the time stands in the header of a session, and in the row of a breakdown.
_MOMENT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What became one store.

    Attributes:
        path: The new file.
        sessions: How many it holds.
        outcomes: Measurements and failures in them.
        breakdowns: How many it holds, failed ones included.
        environments: How many it holds.
        duplicates: Sessions and breakdowns that several of the files held, and that are kept once.
        lost: Sessions and breakdowns, at least, that could not be read in damaged files.
    """

    path: Path
    sessions: int
    outcomes: int
    breakdowns: int
    environments: int
    duplicates: int
    lost: int


def merge_stores(
    paths: Sequence[str | PathLike[str]], output: str | PathLike[str], *, salvage: bool = False
) -> Merged:
    """Write everything that some stores hold into a new one; they stay as they are, whatever happens.

    But for the journal of a write that was cut off: that write is taken back, as whenever a store is opened. With
    `salvage` only copies are opened, and not even that happens.

    Those of earlier versions are brought up to date on the way. Sessions are ordered by their time, and those of one
    store stay in their order, whatever its machine's clock did. The same session in two files (one was copied from
    the other, and both went on) is known by everything in it, and kept once.

    Args:
        paths: The stores; one is enough.
        output: The new file.
        salvage: Whether of a damaged file what can be read is taken, whole sessions only.

    Returns:
        What the new file holds.

    Raises:
        InputError: If the new file exists already, or its folder does not.
        StoreError: If a store cannot be read, or is damaged and nothing was to be salvaged; no file is made.
    """
    target = Path(output)
    if target.exists():
        raise InputError(f"{str(target)!r} exists already; name a new file, which may be put in its place afterwards")
    if not target.parent.is_dir():
        raise InputError(f"the folder {str(target.parent)!r} does not exist; create it, or choose another")
    if not paths:
        raise InputError("name at least one store to merge")
    held = [_read(Path(path), salvage) for path in paths]
    try:
        with tempfile.TemporaryDirectory(prefix=".tippingpoint-", dir=target.parent) as folder:
            draft = Path(folder) / "draft"
            merged = _write(held, draft, target)
            _move(draft, target)
    except OSError as error:
        raise InputError(f"{str(target)!r} cannot be written: {error.strerror}") from error
    return merged


@dataclass(frozen=True, slots=True)
class _Held:
    """What one file holds, all of it looked at: texts of environments, sessions and breakdowns; and what is lost."""

    environments: dict[str, str]
    sessions: list[RawSession]
    breakdowns: list[tuple[Any, ...]]
    lost: int = 0


def _read(path: Path, salvage: bool) -> _Held:
    if not path.is_file():
        raise StoreError(f"there is no store {path}; name another file")
    check_exists(path)
    if not salvage:
        return _up_to_date(path, path)
    with copied(path) as copy:
        try:
            return _up_to_date(copy, path)
        except DamagedError:
            pass
        try:
            with explained(path, "salvaged"):
                return _Held(*salvaged(copy, path))
        except DamagedError as error:
            raise StoreError(
                f"nothing can be salvaged from {path}: the page that leads to all others is lost"
            ) from error


def _up_to_date(file: Path, path: Path) -> _Held:
    """Return what a file holds, which is called `path` in what is said of it."""
    with explained(path, "merged"), closing(connect(file)) as db, closing(copy_up_to_date(db, path)) as copy:
        return _whole(copy)


def _whole(db: sqlite3.Connection) -> _Held:
    environments, sessions, breakdowns = (
        read_environments(db),
        read_sessions(db),
        read_breakdowns(db, breakdown_numbers(db)),
    )
    for session in sessions:
        session.decoded(environments)
    for row in breakdowns:
        decoded_breakdown(row, environments)
    return _Held({key: text for key, (_, text) in environments.items()}, sessions, breakdowns)


def _write(held: Sequence[_Held], draft: Path, target: Path) -> Merged:
    """Write a new file, all of it in one transaction."""
    sessions, again = _once([each.sessions for each in held], lambda session: session.header)
    breakdowns, once_more = _once([each.breakdowns for each in held], lambda row: row)
    with explained(target, "written"), closing(connect(draft)) as db:
        bring_up_to_date(db, target)
        with transaction(db):
            for each in held:
                db.executemany("INSERT OR IGNORE INTO environments VALUES (?, ?)", each.environments.items())
            into_sessions = f"INSERT INTO sessions ({HEADER}) VALUES ({_marks(HEADER)})"
            for session in sessions:
                number = db.execute(into_sessions, session.header).lastrowid
                db.executemany(
                    "INSERT INTO outcomes (session, environment, status, record) VALUES (?, ?, ?, ?)",
                    [(number, *row) for row in session.rows],
                )
            db.executemany(
                f"INSERT INTO breakdowns ({BREAKDOWN}) VALUES ({_marks(BREAKDOWN)})",
                breakdowns,
            )
    return Merged(
        path=target,
        sessions=len(sessions),
        outcomes=sum(len(session.rows) for session in sessions),
        breakdowns=len(breakdowns),
        environments=len({key for each in held for key in each.environments}),
        duplicates=again + once_more,
        lost=sum(each.lost for each in held),
    )


def _marks(columns: str) -> str:
    return ", ".join("?" * (columns.count(",") + 1))


def _once(
    held: Sequence[Sequence[_Item]], identity: Callable[[_Item], tuple[Hashable, ...]]
) -> tuple[list[_Item], int]:
    """Return what several files hold, each thing once and in the order of time, and how many more copies there are.

    What one file holds twice was written twice, and stays.
    """
    kept: Counter[tuple[Hashable, ...]] = Counter()
    rows, again = [], 0
    for number, items in enumerate(held):
        seen: Counter[tuple[Hashable, ...]] = Counter()
        latest = datetime.min.replace(tzinfo=UTC)
        for place, item in enumerate(items):
            key = identity(item)
            # A clock that was set back does not change the order in which one file was written.
            latest = max(latest, _moment(str(key[_MOMENT])))
            seen[key] += 1
            if seen[key] <= kept[key]:
                again += 1
                continue
            kept[key] = seen[key]
            rows.append((latest, number, place, item))
    rows.sort(key=lambda row: row[:3])
    return [item for *_, item in rows], again


def _moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _move(draft: Path, target: Path) -> None:
    """Give a file its name, unless one of that name was made meanwhile."""
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL))
    except FileExistsError as error:
        raise InputError(f"{str(target)!r} was made by another process meanwhile; name a new file") from error
    try:
        draft.replace(target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
