"""What of a data set could not be used, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

# So many are kept by name; of the others only how many there are for each kind of reason.
MOST_NAMED = 1000

_DETAIL = re.compile(r":.*| (?:at|after) (?:byte|row) .*", re.DOTALL)
_QUOTED = re.compile(r"'.*'", re.DOTALL)


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
        return _DETAIL.sub("", _QUOTED.sub("the column", self.reason))

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


@dataclass(slots=True)
class SkippedItems:
    """What was skipped so far, in memory that does not grow with it.

    Attributes:
        named: The first ones.
        reasons: How many there are of each kind of reason.
    """

    named: list[Skipped] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, items: Iterable[Skipped]) -> None:
        """Note what could not be used."""
        for item in items:
            self.reasons[item.kind] += 1
            if len(self.named) < MOST_NAMED:
                self.named.append(item)

    @property
    def count(self) -> int:
        """How many there are."""
        return self.reasons.total()


def name_first(skipped: tuple[Skipped, ...], limit: int = 3, count: int | None = None) -> str:
    """Return the first few of what was skipped with their reasons, and how many more there are.

    Args:
        skipped: At least one.
        limit: At most so many are named.
        count: How many there are, if more than are given here.
    """
    rest = (len(skipped) if count is None else count) - min(len(skipped), limit)
    return ", ".join(str(item) for item in skipped[:limit]) + (f" and {rest:,} more" if rest else "")
