"""`tippingpoint lengths`: how long a person's own inputs are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tippingpoint.cli.options import Json

if TYPE_CHECKING:
    from tippingpoint.data import LengthData, Progress

Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH...",
        help="Files, folders, saved datasets or quoted glob patterns; or one length file (see lengths --output).",
    ),
]
Modality = Annotated[
    str | None, typer.Option(help="text, speech or vision; text by default, and a length file says its own.")
]
Column = Annotated[
    str | None,
    typer.Option(
        help="Column of .jsonl, .csv, .parquet and .arrow files: text, audio, images, lists of token ids, or "
        "numbers, which are lengths already ('text', 'audio' or 'image' by default)."
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="Folder, tokenizer.json or hub id; without one, token counts are estimates and say so."),
]
MaxLength = Annotated[
    float | None, typer.Option(help="Cut longer inputs to this length, as truncation would (native unit).")
]
Plain = Annotated[bool, typer.Option("--plain", help="The files hold lengths, one number a line.")]
SampleSize = Annotated[
    str | None, typer.Option("--sample", help="Read at most so many items, such as 200k, 5% or all; 1M by default.")
]
Jobs = Annotated[int | None, typer.Option(help="Processes to read with; one for each usable core by default.")]

# Unreadable items that are named; of the others the number is said.
_MOST_NAMED = 10
_SECONDS_BETWEEN_LINES = 10.0


def command(
    paths: Paths,
    modality: Modality = None,
    column: Column = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    plain: Plain = False,
    sample: SampleSize = None,
    jobs: Jobs = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write the lengths to this .json file, which holds no text and no names and can be shared."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show how long your own texts, recordings or images are, and keep that in a small file.

    Example: tippingpoint lengths README.md docs --modality text
    """
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.data import write_lengths
    from tippingpoint.errors import InputError
    from tippingpoint.report.tables import lengths_table, percentiles_line

    if output is not None and output.suffix.lower() != ".json":
        raise InputError(f"a length file ends in .json, got {str(output)!r}; verbs know it by that")
    data = read(paths, modality, column, tokenizer, max_length, plain, sample, jobs)
    if output is not None:
        write_lengths(data, output)
        progress(f"wrote {output}: lengths and counts, no text and no names")
    if json:
        show_json(data)
        return
    show(lengths_table(data), percentiles_line(data))


def read(
    paths: list[str],
    modality: str | None = None,
    column: str | None = None,
    tokenizer: str | None = None,
    max_length: float | None = None,
    plain: bool = False,
    sample: str | None = None,
    jobs: int | None = None,
) -> LengthData:
    """Read lengths as the options say, cut them if asked, and name on stderr what could not be used.

    Raises:
        InputError: As `read_lengths`.
        DataError: As `read_lengths`.
    """
    from tippingpoint.cli.output import progress
    from tippingpoint.data import length_file_of, read_lengths
    from tippingpoint.data.sampling import DEFAULT_SAMPLE

    if modality is None and (plain or length_file_of(paths) is None):
        modality = "text"
    progress(f"reading the lengths of {', '.join(paths)}")
    with _shown() as show_progress:
        data = read_lengths(
            [Path(path) for path in paths],
            modality,
            column=column,
            tokenizer=tokenizer,
            plain=plain,
            sample=DEFAULT_SAMPLE if sample is None else sample,
            jobs=jobs,
            progress=show_progress,
        )
    for skipped in data.skipped[:_MOST_NAMED]:
        progress(f"warning: left out {skipped}")
    if data.skipped_count > (named := min(len(data.skipped), _MOST_NAMED)):
        progress(f"warning: left out {data.skipped_count - named:,} {'more' if named else 'items'}")
    return data if max_length is None else data.truncated(max_length)


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    """Show how far the reading is: a bar on a terminal, else a line now and then; nothing if it is done at once."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(now: Progress) -> None:
            bar.update(task, description=_describe(now), total=now.total, completed=now.items)

        yield show


def _lines() -> Callable[[Progress], None]:
    from tippingpoint.cli.output import progress
    from tippingpoint.profiling.device import now

    last = now()

    def show(so_far: Progress) -> None:
        nonlocal last
        if so_far.total is None and now() - last >= _SECONDS_BETWEEN_LINES:
            progress(f"  {_describe(so_far)} so far")
            last = now()

    return show


def _describe(now: Progress) -> str:
    from tippingpoint.units import format_bytes, format_items

    return format_items(now.items, "item") + (f", {format_bytes(now.bytes)} read" if now.bytes else "")
