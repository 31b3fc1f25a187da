"""What of a data set could not be used, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

# So many are kept by name; of the others only how many there are for each kind of reason.
MOST_NAMED = 1000

_DETAIL = re.compile(r":.*| (?:at|after) (?:byte|row) .*", re.DOTALL)
_QUOTED = re.compile(r"'.*'", re.DOTALL)


# Millions of records can be skipped for one reason.
@lru_cache(4096)
def _kind_of(reason: str) -> str:
    return _DETAIL.sub("", _QUOTED.sub("(name)", reason))


@dataclass(frozen=True, slots=True)
class Skipped:
    """One file, folder or record that could not be used.

    Args:
        path: The file, or `file:line` (in Parquet and Arrow `file:row`, from 1) for one record of it.
        reason: Why, in a few words.
    """

    path: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without what only this item says: no place in it, no error of a library, no name."""
        return _kind_of(self.reason)

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


def name_first(skipped: tuple[Skipped, ...], limit: int = 3, count: int | None = None) -> str:
    """Return the first few of what was skipped with their reasons, and how many more there are.

    Args:
        skipped: At least one.
        limit: At most so many are named.
        count: How many there are, if more than are given here.
    """
    rest = (len(skipped) if count is None else count) - min(len(skipped), limit)
    return ", ".join(str(item) for item in skipped[:limit]) + (f" and {rest:,} more" if rest else "")
