"""A store's file looked over, and made as small as what it holds."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from tippingpoint.store.file import UnreadableError, explained, transaction
from tippingpoint.store.store import Store

# A study that is running holds the file for milliseconds at a time.
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Vacuumed:
    """What was done to a file.

    Attributes:
        path: The file.
        bytes_before: Its size.
        bytes_after: Its size now.
        environments: Environments that nothing referred to, and that are gone.
        sessions: How many it holds, as before; every one of them was read.
    """

    path: Path
    bytes_before: int
    bytes_after: int
    environments: int
    sessions: int


def vacuum_store(path: str | PathLike[str]) -> Vacuumed:
    """Check that a store is whole, and remove free pages and environments that nothing refers to.

    No result is thrown away. If it is interrupted, the file is as it was.

    Args:
        path: The store.

    Returns:
        What was done.

    Raises:
        StoreError: If it is no store, damaged, or in use by another process.
    """
    file = Path(path)
    before = file.stat().st_size if file.is_file() else 0
    with closing(Store(file, create=False, patience_s=_PATIENCE_S)) as store, explained(file, "vacuumed"):
        if store._db.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
            raise UnreadableError
        sessions = sum(1 for _ in store.each_session())
        for _ in store.each_breakdown():
            pass
        with transaction(store._db):
            removed = store._db.execute(
                "DELETE FROM environments WHERE fingerprint NOT IN "
                "(SELECT environment FROM outcomes UNION SELECT environment FROM breakdowns)"
            ).rowcount
        store._db.execute("VACUUM")
    return Vacuumed(
        path=file,
        bytes_before=before,
        bytes_after=file.stat().st_size,
        environments=removed,
        sessions=sessions,
    )
