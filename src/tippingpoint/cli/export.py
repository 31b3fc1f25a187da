"""`tippingpoint export`: what a store holds, as a table for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.options import Json


def command(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="File of results.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The file to write: .csv, .jsonl, .parquet or .arrow."),
    ],
    table: Annotated[
        str,
        typer.Option(
            help="outcomes (a row for each measurement and failure), samples (for each timed block), environments, "
            "or breakdowns (for each component of a call)."
        ),
    ] = "outcomes",
    json: Json = False,
) -> None:
    """Write all that a store holds as one flat table for other programs, in SI units: raw results, and no answers.

    For tipping points in a file, and for parts of a store, see report; to look at a few rows, see show --csv.

    Example: tippingpoint export before.sqlite -o rows.parquet
    """
    from itertools import chain, islice

    from tippingpoint.cli.output import show, show_json
    from tippingpoint.errors import AnswerError, InputError
    from tippingpoint.report.row_files import ROW_FORMATS, write_rows
    from tippingpoint.store import TABLES, Store
    from tippingpoint.units import format_bytes, format_items
    from tippingpoint.workload import check_choice

    check_choice("table", table, TABLES)
    format_ = output.suffix.lower().removeprefix(".")
    if format_ not in ROW_FORMATS:
        endings = ", ".join(f".{each}" for each in ROW_FORMATS)
        raise InputError(f"an exported file must end in one of {endings}, got {str(output)!r}")
    if output.exists() and output.samefile(store):
        raise InputError(f"{str(output)!r} is the store itself; name another file")
    with Store(store, create=False) as opened:
        rows = opened.rows(table)
        first = list(islice(rows, 1))
        if not first:
            raise AnswerError(f"the store {store} holds no {table}")
        count = write_rows(chain(first, rows), format_, output)
    if json:
        show_json({"file": str(output), "table": table, "rows": count, "bytes": output.stat().st_size})
        return
    show(f"{output}: {format_items(count, 'row')} of {table}, {format_bytes(output.stat().st_size)}")
