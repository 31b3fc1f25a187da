"""Options that several verbs share, so that they mean the same everywhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tippingpoint.errors import InputError
from tippingpoint.models.catalog import architecture_of
from tippingpoint.workload import DTYPES, PHASES, Subject, check_affinity, check_choice

if TYPE_CHECKING:
    from tippingpoint.analysis.selection import Selection

BatchingPolicy = Annotated[
    str,
    typer.Option(
        "--batching",
        help="How you batch: one, fixed:8 (padded to the longest), bucketed:8 (of like length), budget:16k (tokens "
        "or seconds in a batch) or packed:4096 (laid end to end).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Size = Annotated[str, typer.Option(help="base (the published Base shapes), small or tiny (for quick looks).")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16 (CUDA).")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all usable cores by default.")]
Affinity = Annotated[
    str | None, typer.Option(help="Cores to pin measuring processes to, such as 0-3 or 0,2; not pinned by default.")
]
Padded = Annotated[
    bool,
    typer.Option("--padded", help="One sequence of a batch is a little shorter and padded, as in real batches."),
]
Compile = Annotated[bool, typer.Option("--compile", help="Run the model through torch.compile first.")]
Layers = Annotated[int | None, typer.Option(help="Depth of the model, where it is not that of its size.")]
Width = Annotated[int | None, typer.Option(help="Hidden size of the model, where it is not that of its size.")]
Repeats = Annotated[
    int, typer.Option(help="Fresh processes of each subject to time, one after the other; 3 for a published number.")
]
Target = Annotated[
    str, typer.Option(help="Stop timing when the 95 % interval is within this share of the value, above and below.")
]
Phase = Annotated[str, typer.Option(help="inference or training.")]
Label = Annotated[str, typer.Option(help="What to call this run, such as before; see compare.")]
Subjects = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SUBJECT",
        help="Only this subject, all of this architecture, or a quoted pattern such as 'bert@*'; may be repeated.",
    ),
]
# Filters of what a store holds.
OnlyPhases = Annotated[str | None, typer.Option(help="Comma-separated: inference, training.")]
OnlyDevice = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")]
OnlyDtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
OnlyBatchSize = Annotated[int | None, typer.Option(help="Sequences per call.")]
OnlyLabel = Annotated[str | None, typer.Option(help="What the run was called.")]
OnlyStudy = Annotated[str | None, typer.Option(help="Name of the study that asked, or profile.")]
OnlyEnvironment = Annotated[str | None, typer.Option(help="First digits of a fingerprint.")]
Budget = Annotated[str, typer.Option(help="Time to spend on measuring, such as 90s or 5m.")]
StorePath = Annotated[
    Path, typer.Option("--store", help="File that keeps every result; the same command goes on where it was.")
]


def selection(
    subjects: list[str] | None, phases: str | None, lengths: str | None, dtype: str | None, **filters: Any
) -> Selection:
    """Return the filters that options ask for.

    Args:
        subjects: Of `--subject`.
        phases: Comma-separated.
        lengths: SHORTEST:LONGEST.
        dtype: Of the workload.
        filters: Further fields of `Selection`, as they are.

    Raises:
        InputError: If one cannot be.
    """
    from tippingpoint.analysis.selection import Selection

    return Selection(
        subjects=tuple(subjects or ()),
        phases=names(phases, "phase", PHASES) if phases else (),
        lengths=length_range(lengths) if lengths else None,
        dtype=dtype and check_choice("dtype", dtype, DTYPES),
        **filters,
    )


# A range of more could not be written down.
_DIGITS_OF_A_CORE = 5


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


def ladder(text: str, subject: Subject) -> tuple[float, ...]:
    """Return the lengths of `128,512`, or those of `128:4096`: doubled from one end on, and the other end.

    Args:
        text: As it was given.
        subject: Whose lengths they are: what a range names is the nearest that its architecture takes.

    Raises:
        InputError: If it is neither, or the first end is beyond the second.
    """
    if ":" not in text:
        return numbers(text)
    low, high = length_range(text)
    if not 0 < low <= high < math.inf:
        raise InputError(f"lengths must be SHORTEST:LONGEST, such as 128:4096, got {text!r}")
    row = architecture_of(subject)
    steps = [low * 2**step for step in range(int(math.log2(high / low) + 1e-9) + 1)]
    # The last step becomes the other end where it is nearly there.
    beside = high > 1.25 * steps[-1] or len(steps) == 1
    steps = [*(steps if beside else steps[:-1]), high]
    return tuple(dict.fromkeys(row.nearest_legal(step) for step in steps))


def cores(text: str | None) -> tuple[int, ...] | None:
    """Return the cores of `0-3,8`, None for None.

    Raises:
        InputError: If a part is neither a number nor a range.
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [first, last] if dash else [first]
        legal = all(end.isdecimal() and len(end) <= _DIGITS_OF_A_CORE for end in ends)
        if not legal or (dash and int(last) < int(first)):
            raise InputError(f"cores must be numbers or ranges, such as 0-3,8, got {text!r}")
        found += range(int(first), int(last or first) + 1)
    return check_affinity(found)


def numbers(text: str) -> tuple[float, ...]:
    """Return the lengths of `128,512`.

    Raises:
        InputError: If one is no number.
    """
    return tuple(dict.fromkeys(number(part) for part in text.split(",")))


def counts(text: str) -> tuple[int, ...]:
    """Return the whole numbers of `1,8`.

    Raises:
        InputError: If one is no whole number of at least 1.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"batch sizes must be whole numbers of at least 1, such as 1,8, got {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


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
