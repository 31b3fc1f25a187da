"""How an input becomes another one: bytes at random, words of a target's grammar, leaves of a JSON document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

_LARGEST = 4096
_NUMBERS = (0, 1, -1, 2**31, 2**53, 2**63, -(2**63), 10**30, 1e308, -1e308, 5e-324, 0.5, float("nan"), float("inf"))
_LEAVES = (
    *_NUMBERS,
    None,
    True,
    False,
    "",
    "x",
    "\x1b[31m",
    "=1+1",
    "\u202e",
    "os:system",
    "../../etc/passwd",
    [],
    {},
)


def mutated(data: bytes, random: Random, tokens: Sequence[bytes], others: Sequence[bytes], *, is_json: bool) -> bytes:
    """Return a changed copy.

    Args:
        data: What is changed.
        random: Decides how.
        tokens: Words that mean something to what reads it.
        others: Inputs of which parts may be taken.
        is_json: Whether half of the copies stay JSON.
    """
    if is_json and random.random() < 0.6:
        try:
            return _with_other_leaf(data, random)
        except (ValueError, RecursionError):
            pass
    for _ in range(1 + int(random.expovariate(0.7))):
        data = _step(data, random, tokens, others)
    return data if is_json or len(data) < _LARGEST else data[: max(_LARGEST, random.randrange(len(data)))]


def _step(data: bytes, random: Random, tokens: Sequence[bytes], others: Sequence[bytes]) -> bytes:
    place = random.randrange(len(data) + 1)
    length = min(len(data) - place, int(random.expovariate(0.1)) + 1)
    kind = random.randrange(7)
    if kind == 0 and data:  # a bit
        place = min(place, len(data) - 1)
        return data[:place] + bytes([data[place] ^ (1 << random.randrange(8))]) + data[place + 1 :]
    if kind == 1:  # other bytes
        return data[:place] + random.randbytes(length) + data[place + length :]
    if kind == 2:  # fewer
        return data[:place] + data[place + length :]
    if kind == 3:  # the same again
        return data[:place] + data[place : place + length] * random.randrange(2, 6) + data[place + length :]
    if kind == 4 and tokens:
        return data[:place] + random.choice(tokens) + data[place + random.choice((0, length)) :]
    if kind == 5 and others:  # part of another
        other = random.choice(others)
        start = random.randrange(len(other) + 1)
        return data[:place] + other[start : start + random.randrange(1, 200)] + data[place:]
    size = random.choice((1, 2, 4, 8))
    number = random.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), random.randrange(2 ** (8 * size))))
    return data[:place] + number.to_bytes(size, random.choice(("little", "big"))) + data[place + size :]


def _with_other_leaf(data: bytes, random: Random) -> bytes:
    document = json.loads(data)
    places = list(_places(document))
    if not places:
        raise ValueError("nothing to change")
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        holder, key = random.choice(places)
        kind = random.randrange(8)
        if kind == 0 and isinstance(holder, dict):
            holder.pop(key, None)
        elif kind == 1 and isinstance(holder, list) and key < len(holder):
            holder.append(holder[key])
        elif isinstance(holder, dict) or key < len(holder):
            number = isinstance(holder.get(key) if isinstance(holder, dict) else holder[key], (int, float))
            holder[key] = random.choice(_NUMBERS if number and kind < 6 else _LEAVES)
    return json.dumps(document).encode()


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        for key, each in value.items():
            yield value, key
            yield from _places(each)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield value, index
            yield from _places(each)
