"""Lengths as they come from readers, merged in memory that does not grow with the number of items."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from tippingpoint.data.item_lengths import Lengths
from tippingpoint.data.skipped import MOST_NAMED, Skipped


class Found(NamedTuple):
    """What a tally holds in the end: distinct lengths, their counts, and what was skipped, named and counted."""

    lengths: tuple[float, ...]
    counts: tuple[int, ...]
    skipped: tuple[Skipped, ...]
    reasons: tuple[tuple[str, int], ...]


class _Named(NamedTuple):
    """Something skipped, with its place in the data: in whatever order results come, the same ones are named."""

    number: int
    key: int
    item: Skipped


def _place(named: _Named) -> tuple[int, int]:
    return named.number, named.key


class Tally:
    """Counts lengths, of all items or of those with the smallest keys; the order in which they come does not matter.

    Args:
        most: Only so many items are kept, those with the smallest keys; None keeps all.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._kinds: dict[str, int] = {}
        self._counts: Counter[float] = Counter()
        self._besides: Counter[str] = Counter()
        self._named: list[_Named] = []
        self._keys: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        self._kept = 0

    def add(self, keys: np.ndarray, numbers: np.ndarray, found: Lengths) -> None:
        """Count some items.

        Args:
            keys: Of the items, uint64.
            numbers: Their places in the data.
            found: Their lengths.
        """
        # Numbers of kinds are those of the batch there, and those of all batches here.
        codes = [self._kinds.setdefault(kind, len(self._kinds)) for kind in found.kinds]
        values = found.lengths.copy()
        skipped = values < 0
        values[skipped] = -1 - np.array(codes, float)[(-1 - values[skipped]).astype(int)]
        for index, item in found.named:
            self._name(int(numbers[index]), int(keys[index]), item)
        if self._most is None:
            self._count(values)
            return
        self._keys.append(keys)
        self._values.append(values)
        self._kept += len(values)
        if self._kept > 2 * self._most + 100_000:
            self._cut()

    def note(self, number: int, item: Skipped) -> None:
        """Count something skipped that is no item: a folder, or a file as a whole, met before item `number`."""
        self._besides[item.kind] += 1
        self._name(number, -1, item)

    def found(self) -> Found:
        """Return what was counted."""
        largest = None
        if self._most is not None and self._keys:
            largest = self._cut()
            self._count(self._values.pop())
            self._keys.clear()
        kinds = {-1.0 - number: kind for kind, number in self._kinds.items()}
        reasons = self._besides + Counter({kinds[v]: n for v, n in self._counts.items() if v < 0})
        lengths = sorted(value for value in self._counts if value >= 0)
        named = [each for each in self._named if largest is None or each.key <= largest]
        named.sort(key=_place)
        return Found(
            lengths=tuple(lengths),
            counts=tuple(self._counts[length] for length in lengths),
            skipped=tuple(each.item for each in named[:MOST_NAMED]),
            reasons=tuple(sorted(reasons.items())),
        )

    def _count(self, values: np.ndarray) -> None:
        distinct, counts = np.unique(values, return_counts=True)
        for value, count in zip(distinct.tolist(), counts.tolist(), strict=True):
            self._counts[value] += count

    def _cut(self) -> int:
        """Keep the items with the smallest keys; return the largest of these."""
        assert self._most is not None
        keys, values = np.concatenate(self._keys), np.concatenate(self._values)
        if len(keys) > self._most:
            chosen = np.argpartition(keys, self._most - 1)[: self._most]
            keys, values = keys[chosen], values[chosen]
        self._keys, self._values, self._kept = [keys], [values], len(keys)
        return int(keys.max(initial=0))

    def _name(self, number: int, key: int, item: Skipped) -> None:
        self._named.append(_Named(number, key, item))
        if len(self._named) >= 4 * MOST_NAMED:
            self._named.sort(key=_place)
            del self._named[MOST_NAMED:]
