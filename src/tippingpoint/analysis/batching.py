"""How a person batches items of unlike lengths, and what each batch then runs as.

one          every item alone, at its own length
fixed:8      8 items as they come, padded to the longest of them
bucketed:8   the same after sorting by length within windows of 50 batches, which is what `group_by_length` of the
             Transformers library does
budget:16384 as many items, sorted as above, as fit: items times the longest of them stay within the budget
packed:4096  items laid end to end (best fit, longest first) into sequences of at most that length; attention runs
             over the whole sequence, as in "concatenate and chunk": no mask keeps its items apart

Items come in random order. Sizes of a budget and of a pack are in the native unit: tokens, or seconds of audio.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tippingpoint.errors import InputError
from tippingpoint.units import parse_length
from tippingpoint.workload import check_choice

KINDS = ("one", "fixed", "bucketed", "budget", "packed")
# Batches in a window that is sorted by length: `LengthGroupedSampler` of the Transformers library takes as many.
WINDOW = 50
_GRAMMAR = "one, fixed:ITEMS, bucketed:ITEMS, budget:LENGTH or packed:LENGTH, such as fixed:8"


@dataclass(frozen=True, eq=False)
class Batches:
    """What became of some items: batch after batch.

    Attributes:
        items: Length of every item in the native unit, those of one batch next to each other, [items].
        counts: How many items each batch holds, [batches].
        sequences: How many sequences each batch has: as many as items, or one where they are packed, [batches].
        lengths: Length at which each batch runs, in the native unit, [batches].
    """

    items: np.ndarray
    counts: np.ndarray
    sequences: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.counts)

    def parts(self) -> list[np.ndarray]:
        """Return the lengths of each batch's items, [items of that batch] each."""
        return np.split(self.items, np.cumsum(self.counts)[:-1])

    @property
    def padding(self) -> float:
        """Share of what runs, in the native unit, that is padding: 0 to 1."""
        return 1 - float(self.items.sum() / (self.sequences * self.lengths).sum())


def together(parts: Sequence[Batches]) -> Batches:
    """Return the batches of several runs over some items, one after the other."""
    fields = zip(*((part.items, part.counts, part.sequences, part.lengths) for part in parts), strict=True)
    return Batches(*map(np.concatenate, fields))


@dataclass(frozen=True, slots=True)
class Batching:
    """A policy of making batches.

    Args:
        kind: "one", "fixed", "bucketed", "budget" or "packed".
        size: Items of a batch ("fixed", "bucketed"), or the most that a batch ("budget") or a sequence ("packed")
            may hold in the native unit; nothing for "one".

    Raises:
        InputError: If kind and size do not go together.
    """

    kind: str = "one"
    size: float | None = None

    def __post_init__(self) -> None:
        check_choice("batching", self.kind, KINDS)
        if self.kind == "one":
            if self.size is not None:
                raise InputError(f"batching one by one has no size, got {self.size:g}; expected {_GRAMMAR}")
        elif self.size is None:
            raise InputError(f"batching {self.kind!r} needs a size; expected {_GRAMMAR}")
        elif not 0 < self.size < math.inf:
            raise InputError(f"the size of {self.kind!r} must be positive, got {self.size:g}")
        elif self._by_items and (self.size < 1 or self.size != int(self.size)):
            raise InputError(f"a batch holds a whole number of items, at least 1, got {self.size:g}")

    @classmethod
    def parse(cls, text: str | Batching) -> Batching:
        """Return the policy written as `one`, `fixed:8`, `bucketed:8`, `budget:16k` or `packed:4096`.

        Raises:
            InputError: If the text does not follow the grammar.
        """
        if isinstance(text, Batching):
            return text
        kind, colon, size = text.strip().partition(":")
        if kind not in KINDS or (colon and not size):
            raise InputError(f"cannot read the batching {text!r}; expected {_GRAMMAR}")
        return cls(kind, parse_length(size) if colon else None)

    @property
    def _by_items(self) -> bool:
        return self.kind in ("fixed", "bucketed")

    def pads(self, modality: str) -> bool:
        """Whether its batches of several items hold padding; images of a batch are resized instead."""
        return self.kind in ("fixed", "bucketed", "budget") and modality != "vision"

    def check_modality(self, modality: str) -> None:
        """Refuse what cannot be: images are neither laid end to end nor counted by the length of their sides.

        Raises:
            InputError: If the policy is not one for the modality.
        """
        if modality == "vision" and self.kind in ("budget", "packed"):
            raise InputError(f"batching {self} is for text and speech; images take one, fixed:N or bucketed:N")

    def sequences(self, length: float) -> int:
        """Return how many sequences a full batch has that runs at a length (native unit)."""
        if self._by_items:
            return int(self.size or 1)
        if self.kind == "budget":
            return max(1, int((self.size or 0) // length))
        return 1

    def form(self, lengths: np.ndarray, generator: np.random.Generator) -> Batches:
        """Return the batches of items, in an order that the generator draws.

        An item that is longer than the size of a budget or of a pack runs alone.

        Args:
            lengths: One per item, in the native unit, [items]; at least one.
            generator: Of the order.
        """
        lengths = generator.permutation(np.asarray(lengths, dtype=float))
        if self.kind == "one":
            single = np.ones(len(lengths), dtype=int)
            return Batches(lengths, single, single, lengths)
        if self.kind == "packed":
            return _packed(lengths, float(self.size or 0), generator)
        if self.kind in ("bucketed", "budget"):
            lengths = self._sorted_in_windows(lengths)
        if self.kind == "budget":
            counts = _within_budget(lengths, float(self.size or 0))
        else:
            size = int(self.size or 1)
            whole, rest = divmod(len(lengths), size)
            counts = np.array([size] * whole + [rest] * (rest > 0))
        begins = np.cumsum(counts) - counts
        return _shuffled(Batches(lengths, counts, counts, np.maximum.reduceat(lengths, begins)), generator)

    def _sorted_in_windows(self, lengths: np.ndarray) -> np.ndarray:
        """Return lengths sorted, longest first, within windows of 50 batches."""
        size = float(self.size or 1)
        in_a_batch = size if self._by_items else max(1.0, size / float(lengths.mean()))
        window = max(1, int(WINDOW * in_a_batch))
        parts = [np.sort(lengths[start : start + window])[::-1] for start in range(0, len(lengths), window)]
        return np.concatenate(parts)

    def __str__(self) -> str:
        return self.kind if self.size is None else f"{self.kind}:{self.size:g}"

    def describe(self, unit: str) -> str:
        """Return the policy in words.

        Args:
            unit: "tokens", "seconds" or "pixels".
        """
        size = 0 if self.size is None else self.size
        return {
            "one": "one by one",
            "fixed": f"in batches of {size:,.0f}, padded to the longest",
            "bucketed": f"in batches of {size:,.0f} of like length",
            "budget": f"in batches of like length that hold at most {size:,g} {unit}, padding included",
            "packed": f"laid end to end in sequences of at most {size:,g} {unit}",
        }[self.kind]


def _within_budget(lengths: np.ndarray, budget: float) -> np.ndarray:
    """Return how many items each batch takes, in their order, while items times the longest stay within a budget."""
    counts, count, longest = [], 0, 0.0
    for length in lengths.tolist():
        longest = max(longest, length)
        if count and (count + 1) * longest > budget:
            counts.append(count)
            count, longest = 0, length
        count += 1
    return np.array([*counts, count])


def _packed(lengths: np.ndarray, most: float, generator: np.random.Generator) -> Batches:
    """Lay items end to end, longest first, each where the least room is left in which it fits."""
    # Room that is left and the number of the pack, by growing room.
    rooms: list[tuple[float, int]] = []
    packs: list[list[float]] = []
    for length in np.sort(lengths)[::-1].tolist():
        place = bisect.bisect_left(rooms, (length, -1))
        if place < len(rooms):
            room, number = rooms.pop(place)
            packs[number].append(length)
        else:
            room, number = most, len(packs)
            packs.append([length])
        if room > length:
            bisect.insort(rooms, (room - length, number))
    counts = np.array([len(pack) for pack in packs])
    totals = np.array([sum(pack) for pack in packs])
    items = np.array([length for pack in packs for length in pack])
    return _shuffled(Batches(items, counts, np.ones_like(counts), totals), generator)


def _shuffled(batches: Batches, generator: np.random.Generator) -> Batches:
    """Return the batches in random order, their items with them."""
    order = generator.permutation(len(batches))
    counts = batches.counts[order]
    # For each item, where it stands now: the begin of its batch, and its place in it.
    begins = (np.cumsum(batches.counts) - batches.counts)[order]
    places = np.arange(len(batches.items)) - np.repeat(np.cumsum(counts) - counts, counts)
    items = batches.items[np.repeat(begins, counts) + places]
    return Batches(items, counts, batches.sequences[order], batches.lengths[order])
