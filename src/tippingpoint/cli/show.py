"""`tippingpoint show`: what a store holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tippingpoint.store import StoredSession


def command(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="File of results.")],
    subject: Subjects = None,
    phase: OnlyPhases = None,
    lengths: Annotated[str | None, typer.Option(help="SHORTEST:LONGEST length, in the native unit.")] = None,
    device: OnlyDevice = None,
    dtype: OnlyDtype = None,
    batch_size: OnlyBatchSize = None,
    status: Annotated[
        str | None, typer.Option(help="ok, failed, or a kind: out_of_memory, timeout, crashed, killed, unsupported.")
    ] = None,
    label: OnlyLabel = None,
    study: OnlyStudy = None,
    environment: OnlyEnvironment = None,
    warnings: Annotated[bool, typer.Option("--warnings", help="Only what has warnings, and the warnings.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Also everything known of each measurement.")] = False,
    speed_ups: Annotated[
        bool,
        typer.Option("--speed-ups", help="Instead: speed-ups over vanilla subjects by length, and where each wins."),
    ] = False,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw the speed-ups against length into this file: .svg, .png, .pdf or .html."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print one flat row for each outcome, in SI units.")] = False,
    json: Json = False,
) -> None:
    """List what a store holds: every measurement and failure, by environment.

    Filters may be combined; where nothing matches, what there is instead is named. In the table, 95 % is the
    half-width of the latency's interval, spread the interquartile range over the median, blocks how many were
    timed x in how many processes, cold the very first call, peak the peak memory.

    With --speed-ups, what ran in one environment and one setting is held against its vanilla subjects.

    Example: tippingpoint show before.sqlite --subject bert --phase inference
    """
    from tippingpoint.analysis.selection import STATUSES
    from tippingpoint.cli.output import show, show_csv, show_json
    from tippingpoint.errors import AnswerError, InputError
    from tippingpoint.report.figures import check_path
    from tippingpoint.report.speed_up import race_record, race_tables, races_by_label
    from tippingpoint.report.stored import (
        breakdowns_line,
        detail_blocks,
        header_lines,
        outcome_tables,
        stored_record,
        warning_lines,
    )
    from tippingpoint.store import Store
    from tippingpoint.workload import check_choice

    if csv and (json or speed_ups):
        raise InputError(f"--csv and {'--json' if json else '--speed-ups'} exclude each other")
    if figure:
        check_path(figure)
    filters = selection(
        subject,
        phase,
        lengths,
        dtype,
        device=device,
        batch_size=batch_size,
        label=label,
        study=study,
        environment=environment,
        status=status and check_choice("status", status, STATUSES),
        doubtful=warnings,
    )
    with Store(store, create=False) as opened:
        held, breakdowns = opened.sessions(), opened.breakdowns()
    parts = [breakdowns_line(str(store), breakdowns)] if breakdowns else []
    if parts and not held:
        raise AnswerError(f"{parts[0]}, and no measurements; measure something first")
    chosen = filters.of(held, str(store))
    if figure:
        _draw_speed_ups(chosen, figure)
    if speed_ups:
        found = races_by_label(chosen)
        if json:
            show_json([race_record(race) for _, race in found])
        else:
            show(*race_tables(found))
        return
    if json:
        show_json(stored_record(str(store), chosen, len(breakdowns)))
        return
    if csv:
        show_csv([row for session in chosen for row in session.rows()])
        return
    show(*header_lines(str(store), held, chosen), *parts, *outcome_tables(chosen))
    if warnings:
        show("", *(f"warning: {line}" for line in warning_lines(chosen)))
    if details:
        for block in detail_blocks(chosen):
            show("", block)


def _draw_speed_ups(sessions: Sequence[StoredSession], figure: Path) -> None:
    """Draw the speed-ups that stored sessions hold, and say into which files."""
    from tippingpoint.cli.output import progress
    from tippingpoint.report.speed_up import draw, races_by_label

    for file in draw([race for _, race in races_by_label(sessions)], ("latency", "peak_memory"), figure):
        progress(f"drew {file}")
