"""`tippingpoint lengths`: how long a person's own inputs are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tippingpoint.cli.options import Json

if TYPE_CHECKING:
    from tippingpoint.data import LengthData

Paths = Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders or quoted glob patterns.")]
Modality = Annotated[str, typer.Option(help="text, speech or vision.")]
Column = Annotated[
    str | None, typer.Option(help="Text column of .jsonl, .csv and .parquet files ('text' by default).")
]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="Folder, tokenizer.json or hub id; without one, token counts are estimates and say so."),
]
MaxLength = Annotated[
    float | None, typer.Option(help="Cut longer inputs to this length, as truncation would (native unit).")
]


def command(
    paths: Paths,
    modality: Modality = "text",
    column: Column = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    json: Json = False,
) -> None:
    """Show how long your own texts, recordings or images are.

    Example: tippingpoint lengths README.md docs --modality text
    """
    from tippingpoint.cli.output import show, show_json
    from tippingpoint.report.tables import lengths_table, percentiles_line

    data = read(paths, modality, column, tokenizer, max_length)
    if json:
        show_json(data)
        return
    show(lengths_table(data), percentiles_line(data))


def read(
    paths: list[str], modality: str, column: str | None, tokenizer: str | None, max_length: float | None
) -> LengthData:
    """Read lengths, cut them if asked, and name on stderr what could not be used."""
    from tippingpoint.cli.output import progress
    from tippingpoint.data import read_lengths

    progress(f"reading the lengths of {', '.join(paths)}")
    data = read_lengths([Path(path) for path in paths], modality, column=column, tokenizer=tokenizer)
    for skipped in data.skipped[:10]:
        progress(f"warning: left out {skipped}")
    if data.skipped_count > 10:
        progress(f"warning: left out {data.skipped_count - 10:,} more")
    return data if max_length is None else data.truncated(max_length)
