"""Which items of a stream are read: all, a number of them, or a share, in one pass and the same ones each time.

Every item has a key, a pseudorandom number made of its place in the stream. The items with the n smallest keys are n
items drawn without replacement, each set of n being as likely as any other (bottom-k sampling). The n-th smallest key
so far is known at any time, so an item above it is passed over before anything is spent on it; of N items about
n (1 + ln(N / n)) are read. A share of the items are those with keys up to that share of all keys.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from tippingpoint.errors import InputError
from tippingpoint.units import parse_fraction, parse_length

# Up to so many items are read where the caller does not say: every share is then within 0.14 percentage points.
DEFAULT_SAMPLE = 1_000_000
_KEYS = 2**64
# SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014): a bijection of 64-bit
# numbers, so that no two items have one key.
_GAMMA = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
# Keys are looked through for the n smallest when there are so many more.
_SLACK = 1.25
_LEAST_SLACK = 4096


def parse_sample(sample: str | float | None) -> int | float | None:
    """Return a number of items, a share between 0 and 1, or None for all of "all", "5%", "200k" and plain numbers.

    Raises:
        InputError: If it is none of these, or not positive.
    """
    text = str(sample).strip().lower()
    if sample is None or text == "all":
        return None
    if text.endswith("%") or (isinstance(sample, float) and sample < 1):
        return parse_fraction(text)
    try:
        number = parse_length(text)
    except InputError as error:
        raise InputError(f"a sample must be a number of items, a share such as 5%, or all, got {sample!r}") from error
    if number != int(number):
        raise InputError(f"a sample must be a whole number of items, a share such as 5%, or all, got {sample!r}")
    return int(number)


def keys_of(first: int, count: int, seed: int) -> np.ndarray:
    """Return the keys of items `first` to `first + count - 1`, uint64."""
    mixed = (np.arange(count, dtype=np.uint64) + np.uint64((first + 1) % _KEYS)) * np.uint64(_GAMMA)
    mixed += np.uint64(seed * 0x2545F4914F6CDD1D % _KEYS)
    for shift, factor in _ROUNDS:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed


class Sample:
    """Decides for one item after the other whether it is read.

    Args:
        wanted: A number of items, a share, or None for all.
        seed: Another one draws other items.

    Attributes:
        most: The number of items wanted, if it is one.
        seen: How many items were asked about.
    """

    def __init__(self, wanted: int | float | None, seed: int = 0) -> None:
        self.most = wanted if isinstance(wanted, int) else None
        self.seen = 0
        self._seed = seed
        self._all = wanted is None
        self._limit = _KEYS - 1
        if isinstance(wanted, float):
            self._limit = int(Fraction(str(wanted)) * _KEYS) - 1
        self._smallest = np.empty(0, np.uint64)

    @property
    def is_part(self) -> bool:
        """Whether there are items that do not belong to the sample."""
        return not self._all and (self.most is None or self.seen > self.most)

    def choose(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which of the next `count` items to read, by their number from 0, and the keys of those."""
        keys = keys_of(self.seen, count, self._seed)
        self.seen += count
        if self._all:
            return np.arange(count), keys
        chosen = np.flatnonzero(keys <= np.uint64(self._limit))
        keys = keys[chosen]
        if self.most is not None:
            self._smallest = np.concatenate([self._smallest, keys])
            if len(self._smallest) > max(_SLACK * self.most, self.most + _LEAST_SLACK):
                self._smallest = np.partition(self._smallest, self.most - 1)[: self.most]
                self._limit = int(self._smallest.max())
        return chosen, keys
