"""Options that several verbs share, so that they mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.errors import InputError
from tippingpoint.workload import check_choice

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Size = Annotated[str, typer.Option(help="base (the published Base shapes), small or tiny (for quick looks).")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16 (CUDA).")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all usable cores by default.")]
Phase = Annotated[str, typer.Option(help="inference or training.")]
Budget = Annotated[str, typer.Option(help="Time to spend on measuring, such as 90s or 5m.")]
StorePath = Annotated[
    Path, typer.Option("--store", help="File that keeps every result; the same command goes on where it was.")
]


def names(text: str, what: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in a comma-separated list.

    Raises:
        InputError: If one is unknown, or there is none.
    """
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise InputError(f"expected at least one {what} out of {', '.join(choices)}, got {text!r}")
    return tuple(check_choice(what, name, choices) for name in found)


def length_range(text: str) -> tuple[float, float]:
    """Return the two ends of `128:8192`.

    Raises:
        InputError: If it is not two numbers with a colon.
    """
    low, colon, high = text.partition(":")
    if not colon:
        raise InputError(f"lengths must be SHORTEST:LONGEST, such as 128:8192, got {text!r}")
    return number(low), number(high)


def number(text: str) -> float:
    """Return a length.

    Raises:
        InputError: If it is no number.
    """
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"a length must be a number, got {text!r}") from None
    return int(value) if value.is_integer() else value
