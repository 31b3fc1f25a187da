"""What a store holds: a header, and tables of outcomes; unlike environments are never put into one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tippingpoint.analysis.breakdown import Breakdown
from tippingpoint.analysis.changes import describe
from tippingpoint.analysis.nodes import disagreements
from tippingpoint.machine import Environment
from tippingpoint.measurement import Failure, Measurement, Outcome, is_best_batch
from tippingpoint.models.catalog import architecture_of
from tippingpoint.report.environments import differences_lines
from tippingpoint.report.records import outcome_record, plain
from tippingpoint.report.tables import plain_table, positions_text
from tippingpoint.store import StoredSession
from tippingpoint.units import (
    format_bytes,
    format_half_width,
    format_items,
    format_length,
    format_percent,
    format_seconds,
)


def header_lines(name: str, held: Sequence[StoredSession], shown: Sequence[StoredSession]) -> list[str]:
    """Return what a store holds and how much is shown, what is unlike in its environments, and nodes that disagree.

    Args:
        name: Of the store.
        held: All of its sessions.
        shown: Those with the outcomes that are shown.
    """
    outcomes = [outcome for session in held for outcome in session.outcomes]
    failures = sum(isinstance(outcome, Failure) for outcome in outcomes)
    count = sum(len(session.outcomes) for session in shown)
    when = " to ".join(dict.fromkeys(_moment(session.measured_at) for session in (held[0], held[-1])))
    lines = [
        f"{name}: {format_items(len(held), 'session')}, {format_items(len(outcomes) - failures, 'measurement')}, "
        f"{format_items(failures, 'failure')}, {when} UTC"
    ]
    if count < len(outcomes):
        lines.append(f"{count} of {len(outcomes)} outcomes shown")
    environments = environments_of(shown)
    if len(environments) > 1:
        lines.append(f"{len(environments)} environments, never put together; they differ in")
        lines += [f"  {line}" for line in differences_lines(environments)]
    return [*lines, *(f"note: {each}" for each in disagreements(shown))]


def breakdowns_line(name: str, breakdowns: Sequence[Breakdown]) -> str:
    """Return how many breakdowns a store holds, and of what."""
    subjects = dict.fromkeys(str(each.workload.subject) for each in breakdowns)
    return f"{name}: {format_items(len(breakdowns), 'breakdown')} of {', '.join(subjects)}"


def environments_of(sessions: Iterable[StoredSession]) -> dict[str, Environment]:
    """Return the environments of outcomes by fingerprint, in the order they were first met."""
    found = [outcome.environment for session in sessions for outcome in session.outcomes]
    return {environment.fingerprint: environment for environment in found}


class _Row(NamedTuple):
    session: StoredSession
    outcome: Outcome


def outcome_tables(sessions: Iterable[StoredSession]) -> list[RenderableType]:
    """Return a heading for each environment, and under it a table for each modality, phase, setting and label."""
    rows = [_Row(session, outcome) for session in sessions for outcome in session.outcomes]
    found: list[RenderableType] = []
    for fingerprint, environment in environments_of(row.session for row in rows).items():
        found += ["", f"Environment {fingerprint}: {environment}"]
        titled: dict[str, list[_Row]] = {}
        for row in rows:
            if row.outcome.environment.fingerprint == fingerprint:
                titled.setdefault(_title(row), []).append(row)
        for title, group in titled.items():
            found += ["", _table(title, group)]
    return found


def _title(row: _Row) -> str:
    workload = row.outcome.workload
    threads = "" if workload.threads is None else f", {workload.threads} threads"
    pinned = "" if workload.affinity is None else f" on cores {','.join(map(str, workload.affinity))}"
    label = f", label {row.session.label}" if row.session.label else ""
    modality = architecture_of(workload.subject).modality
    setting = f"{workload.device} {workload.dtype}{threads}{pinned}, {workload.shape}{workload.manner}"
    return f"{modality}, {workload.phase}, {setting}{label}"


def _table(title: str, rows: list[_Row]) -> Table:
    columns = dict(_COLUMNS)
    if all(positions_text(row.outcome) == f"{row.outcome.workload.length:,.0f}" for row in rows):
        del columns["positions"]
    table = plain_table(title, *columns)
    for column in table.columns[-2:]:
        column.justify = "left"
    for row in sorted(rows, key=lambda row: (row.outcome.workload.length, str(row.outcome.workload.subject))):
        table.add_row(*(tell(row) for tell in columns.values()))
    return table


def _length(row: _Row) -> str:
    workload = row.outcome.workload
    return format_length(workload.length, architecture_of(workload.subject).unit)


def _batch(row: _Row) -> str:
    size = row.outcome.workload.batch_size
    return f"{size} best" if is_best_batch(row.outcome) else str(size)


def _status(row: _Row) -> Text:
    if isinstance(row.outcome, Failure):
        return Text(row.outcome.kind.replace("_", " "), style="red")
    count = len(row.outcome.warnings)
    return Text(format_items(count, "warning"), style="yellow") if count else Text("ok")


def _of(tell: Callable[[Measurement], str]) -> Callable[[_Row], str]:
    """Return what tells something of a measurement, and nothing of a failure."""
    return lambda row: tell(row.outcome) if isinstance(row.outcome, Measurement) else ""


_COLUMNS: dict[str, Callable[[_Row], str | Text]] = {
    "subject": lambda row: str(row.outcome.workload.subject),
    "length": _length,
    "positions": lambda row: positions_text(row.outcome),
    "batch": _batch,
    "latency": _of(lambda m: format_seconds(m.latency_s)),
    "95 %": _of(lambda m: format_half_width(m.half_width)),
    "spread": _of(lambda m: format_percent(m.spread)),
    "blocks": _of(lambda m: f"{len(m.counted)} x {m.process_count}"),
    "cold": _of(lambda m: format_seconds(m.first_call_s)),
    "peak": _of(lambda m: format_bytes(m.memory.peak_bytes) if m.memory else ""),
    "status": _status,
    "measured": lambda row: _moment(row.session.measured_at)[5:],
}


def warning_lines(sessions: Iterable[StoredSession]) -> list[str]:
    """Return every warning of the measurements, with what it is about."""
    return [
        f"{describe(outcome.workload)}: {warning}"
        for session in sessions
        for outcome in session.outcomes
        if isinstance(outcome, Measurement)
        for warning in outcome.warnings
    ]


def detail_blocks(sessions: Iterable[StoredSession]) -> list[str]:
    """Return the full text of each outcome, and when and for what it was measured."""
    blocks = []
    for session in sessions:
        label = f", label {session.label}" if session.label else ""
        run = f"{_moment(session.measured_at)} UTC, study {session.study or '(none)'}{label}"
        for outcome in session.outcomes:
            where = f"session {outcome.session}, environment {outcome.environment.fingerprint}"
            blocks.append(f"{outcome}\n  measured     {run}, {where}")
    return blocks


def stored_record(name: str, sessions: Sequence[StoredSession], breakdowns: int) -> dict[str, Any]:
    """Return outcomes with the run they belong to, and how many breakdowns there are beside them, for JSON."""
    return {
        "store": name,
        "environments": {key: plain(environment) for key, environment in environments_of(sessions).items()},
        "outcomes": [
            {
                **outcome_record(outcome),
                "environment": outcome.environment.fingerprint,
                "study": session.study,
                "label": session.label,
                "measured_at": session.measured_at,
            }
            for session in sessions
            for outcome in session.outcomes
        ],
        "breakdowns": breakdowns,
    }


def _moment(text: str) -> str:
    """Return the minute of a time as a store writes it."""
    return text[:16].replace("T", " ")
