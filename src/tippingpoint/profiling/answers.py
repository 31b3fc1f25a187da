"""What a worker may answer: for each question the type, and the records that answers are made of.

A subject lives in the worker and may write into its socket, by mistake or not. The parent reads no other record than
these, and believes no answer that is not of the type its question asks for, down to the fields.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from tippingpoint.analysis.breakdown import Parts
from tippingpoint.machine import Environment, Peaks
from tippingpoint.measurement import Energy, Flops, Memory
from tippingpoint.profiling.timing import WarmUp


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one call did: FLOPs, the attention path that really ran, and what to note.

    `compile_s` is what the first call of a compiled subject took, with nothing compiled before.
    """

    flops: Flops
    attention: str
    notes: tuple[str, ...]
    compile_s: float | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """An exception of a worker, as it travels to the parent.

    `refused` is None for what was tried; otherwise "measured", or "bound" where shorter inputs may refute it.
    """

    kind: str
    message: str
    trace: str
    refused: str | None = None


# By question: "starting" is the first message, the others are methods of `Worker`.
ANSWERS: dict[str, Any] = {
    "starting": Environment,
    "build": int,
    "measure_memory": Memory,
    "inspect": Inspection,
    "break_down": Parts,
    "trace": None,
    "set_batch_size": None,
    "warm_up": tuple[WarmUp, int],
    "time_block": tuple[float, float | None],
    "feed": None,
    "time_batch": tuple[int, float, float | None],
    "measure_peak": tuple[int, str],
    "memory_facts": tuple[str, int],
    "available_bytes": int,
    "device_uuid": str,
    "peaks": Peaks,
    "energy_source": str,
    "measure_energy": Energy,
}


def fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of a type, and so are its parts.

    Args:
        value: As it came.
        wanted: None, a class, a union, a tuple of given parts or of any number, or a record of such.
    """
    if wanted is None:
        return value is None
    parts = get_args(wanted)
    if get_origin(wanted) in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if get_origin(wanted) is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(fits(each, parts[0]) for each in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if not is_dataclass(wanted):
        return isinstance(value, (int, float) if wanted is float else wanted)
    # One that was not made by its constructor may lack a field.
    return type(value) is wanted and all(
        hasattr(value, name) and fits(getattr(value, name), kind) for name, kind in get_type_hints(wanted).items()
    )


def _records(kinds: Iterable[Any]) -> Iterator[type]:
    """Yield the classes of records in some types, and in those of their fields."""
    for kind in kinds:
        yield from _records(get_args(kind))
        if is_dataclass(kind) and isinstance(kind, type):
            yield kind
            yield from _records(get_type_hints(kind).values())


# By module and name, as pickle tells them.
RECORDS: dict[tuple[str, str], type] = {
    (record.__module__, record.__qualname__): record for record in _records([*ANSWERS.values(), Problem])
}
