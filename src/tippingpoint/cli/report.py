"""`tippingpoint report`: what a store holds, as a page or a file to open, print and hand on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.lengths import Column, MaxLength, Modality, Tokenizer
from tippingpoint.cli.options import (
    Json,
    OnlyBatchSize,
    OnlyDevice,
    OnlyDtype,
    OnlyEnvironment,
    OnlyLabel,
    OnlyPhases,
    OnlyStudy,
    Subjects,
    selection,
)

# What a file's name says of its format.
_SUFFIXES = {
    ".html": "html",
    ".htm": "html",
    ".md": "md",
    ".csv": "csv",
    ".tex": "latex",
    ".parquet": "parquet",
    ".pdf": "pdf",
}


def command(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="File of results.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("report.html"),
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="html, md, csv, latex, parquet, pdf or folder; by default as the file's name ends."
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Of the report.")] = "",
    data: Annotated[
        list[str] | None,
        typer.Option("--lengths", metavar="PATH", help="Your own files, folders or patterns; may be repeated."),
    ] = None,
    modality: Modality = "text",
    column: Column = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    subject: Subjects = None,
    phase: OnlyPhases = None,
    range_: Annotated[
        str | None, typer.Option("--range", help="SHORTEST:LONGEST length to report, in the native unit.")
    ] = None,
    device: OnlyDevice = None,
    dtype: OnlyDtype = None,
    batch_size: OnlyBatchSize = None,
    label: OnlyLabel = None,
    study: OnlyStudy = None,
    environment: OnlyEnvironment = None,
    json: Json = False,
) -> None:
    """Write a report: answers first, then tipping points, costs against length, winners, breakdowns and warnings.

    The page is one file that works offline. With --lengths, your own data stand under the curves, and every tipping
    point is told with the share of your items beyond it. Filters may be combined, as in show.

    Example: tippingpoint report before.sqlite -o report.html
    """
    from tippingpoint.cli.lengths import read
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.errors import InputError
    from tippingpoint.report.contents import contents
    from tippingpoint.report.figures import write_whole
    from tippingpoint.store import Store
    from tippingpoint.units import format_bytes, format_items

    format = _format(output, format_)
    filters = selection(
        subject,
        phase,
        range_,
        dtype,
        device=device,
        batch_size=batch_size,
        label=label,
        study=study,
        environment=environment,
    )
    with Store(store, create=False) as opened:
        held, broken_down = opened.sessions(), opened.breakdowns(label=label)
    sessions = filters.of(held, str(store))
    lengths = read(data, modality, column, tokenizer, max_length) if data else None
    outcomes = [outcome for session in sessions for outcome in session.outcomes]
    progress(f"reporting {format_items(len(outcomes), 'outcome')}")
    # Filters are for outcomes; a breakdown goes with those of the same subject, phase and environment.
    shown = {(o.workload.subject, o.workload.phase, o.environment.fingerprint) for o in outcomes}
    breakdowns = [
        b for b in broken_down if (b.workload.subject, b.workload.phase, b.environment.fingerprint) in shown
    ]
    found = contents(sessions, store=str(store), title=title, breakdowns=breakdowns, lengths=lengths)
    modalities = {comparison.setting.modality for comparison in found.comparisons}
    if lengths and lengths.modality not in modalities:
        there = " and ".join(sorted(modalities))
        raise InputError(
            f"your lengths are of {lengths.modality}, and {store} compares {there}; say --modality {there}"
        )
    if format == "html":
        from tippingpoint.report.page import page

        write_whole(page(found).encode(), output)
        files = [output]
    else:
        from tippingpoint.report.export import export

        files = export(found, format, output, rows=[row for session in sessions for row in session.rows()])
    if json:
        points = [point for comparison in found.comparisons for point in comparison.tipping_points]
        said = {"answers": found.answers, "tipping_points": points, "missing": found.missing}
        show_json({"title": found.title, "files": list(map(str, files)), **said})
        return
    for file in files:
        show(f"{file}: {format_bytes(file.stat().st_size)}")


def _format(output: Path, asked: str | None) -> str:
    """Return the format to write, which a file's name tells where it was not asked for.

    Raises:
        InputError: If neither says it, or the file cannot be written there.
    """
    from tippingpoint.errors import InputError
    from tippingpoint.report.export import FORMATS
    from tippingpoint.report.figures import check_folder
    from tippingpoint.workload import check_choice

    if asked is None and output.suffix.lower() not in _SUFFIXES:
        endings = ", ".join(_SUFFIXES)
        raise InputError(f"a report's file must end in one of {endings}, got {str(output)!r}; or say --format")
    found = check_choice("format", asked, ("html", *FORMATS)) if asked else _SUFFIXES[output.suffix.lower()]
    check_folder(output)
    if output.is_dir() and found != "folder":
        raise InputError(f"{str(output)!r} is a folder; name a file in it, such as {str(output / 'report.html')!r}")
    return found
