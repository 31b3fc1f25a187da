"""Tables of what became of workloads between two runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from tippingpoint.analysis.changes import Change
from tippingpoint.analysis.compare import ComparedSide, Comparison
from tippingpoint.analysis.moves import Move
from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.models.catalog import architecture_of
from tippingpoint.report.environments import unlike_fields
from tippingpoint.report.tables import interval_words, plain_table, verdict_with_reach
from tippingpoint.units import format_bytes, format_items, format_length, format_percent, format_seconds
from tippingpoint.workload import METRICS, Workload

_TITLES = {
    "latency": "Latency (time per batch)",
    "throughput": "Throughput (time per sequence, each at its best batch size)",
    "peak_memory": "Peak memory",
}
_STYLES = {
    **dict.fromkeys(("faster", "smaller", "no longer fails"), "green"),
    **dict.fromkeys(("slower", "larger", "now fails", "moved up", "moved down"), "red"),
    "undecided": "yellow",
}


def sides_lines(answer: Comparison) -> list[str]:
    """Return what the two sides are, and what is unlike in their environments."""
    lines = [f"{what}  {_side_line(side)}" for what, side in (("old", answer.old), ("new", answer.new))]
    rows = unlike_fields([answer.old.environment, answer.new.environment])
    if not rows:
        return [*lines, "The environments are alike."]
    width = max(len(name) for name, _ in rows)
    return [
        *lines,
        "The environments differ:",
        *(f"  {name:<{width}}  {' -> '.join(values)}" for name, values in rows),
    ]


def _side_line(side: ComparedSide) -> str:
    parts = [format_items(side.measurements, "measurement")]
    parts += [format_items(side.failures, "failure")] if side.failures else []
    parts += [f"{format_items(len(side.alone), 'workload')} only here"] if side.alone else []
    return f"{side.name}: {', '.join(parts)}, environment {side.environment.fingerprint} ({side.environment})"


def changes_tables(answer: Comparison) -> list[Table]:
    """Return a table for each metric that both sides have, and one of what failed."""
    setting = _setting_column([change.workload for change in answer.changes])
    tables = []
    for metric in METRICS:
        found = [change for change in answer.changes if change.metric == metric]
        if found:
            tables.append(
                _changes_table(f"{_TITLES[metric]}; same within {format_percent(answer.threshold)}", found, setting)
            )
    failed = [change for change in answer.changes if change.metric is None]
    return [*tables, _failures_table(failed, setting)] if failed else tables


def _changes_table(title: str, changes: Sequence[Change], setting: bool) -> Table:
    columns = ["subject", "phase", *(["setting"] if setting else [])]
    timed = changes[0].metric != "peak_memory"
    numbers = ["length", "batch", "old", "new", "new/old", "95 %", *(["processes"] if timed else []), "verdict"]
    table = plain_table(title, *columns, *numbers, left=len(columns))
    table.columns[-1].justify = "left"
    for change in sorted(changes, key=_order):
        show = format_seconds if timed else format_bytes
        same_batch = change.batch_sizes[0] == change.batch_sizes[1]
        verdict = Text(change.verdict, style=_STYLES.get(change.verdict, ""))
        if change.unlike:
            verdict.append(" (other work)", style="red")
        table.add_row(
            *_names(change.workload, setting),
            _length(change.workload),
            str(change.batch_sizes[1]) if same_batch else "{} -> {}".format(*change.batch_sizes),
            "" if change.old is None else show(change.old),
            "" if change.new is None else show(change.new),
            "" if change.ratio is None else f"{change.ratio:.3f}",
            "" if change.interval is None else "{:.3f} to {:.3f}".format(*change.interval),
            *(["{}, {}".format(*change.processes)] if timed else []),
            verdict,
        )
    return table


def _failures_table(changes: Iterable[Change], setting: bool) -> Table:
    columns = ["subject", "phase", *(["setting"] if setting else [])]
    table = plain_table("Failures", *columns, "length", "batch", "old", "new", "verdict", left=len(columns))
    for column in table.columns[-3:]:
        column.justify = "left"
    for change in sorted(changes, key=_order):
        kinds = [(kind or "measured").replace("_", " ") for kind in change.failed]
        verdict = Text(change.verdict, style=_STYLES.get(change.verdict, ""))
        names = _names(change.workload, setting)
        table.add_row(*names, _length(change.workload), str(change.batch_sizes[1]), *kinds, verdict)
    return table


def moves_table(moves: Sequence[Move]) -> Table:
    """Return the tipping points of both sides, one row for each pair, metric and phase."""
    batches = len({move.new.batch_size for move in moves if move.new.metric != "throughput"}) > 1
    columns = ["phase", "metric", *(["batch"] if batches else []), "variant", "against", "old", "new", "verdict"]
    table = plain_table("Tipping points", *columns, left=len(columns))
    for move in moves:
        batch = "best" if move.new.metric == "throughput" else str(move.new.batch_size)
        table.add_row(
            move.new.phase,
            move.new.metric.replace("_", " "),
            *([batch] if batches else []),
            str(move.new.variant),
            str(move.new.baseline),
            _place(move.old),
            _place(move.new),
            Text(move.verdict, style=_STYLES.get(move.verdict, "")),
        )
    return table


def _place(point: TippingPoint) -> str:
    if point.length is None or point.interval is None:
        return verdict_with_reach(point)
    several = "several, last " if point.verdict == "several crossings" else ""
    return f"{several}{format_length(point.length, point.unit)} ({interval_words(point)})"


def _order(change: Change) -> tuple[str, str, float, int]:
    workload = change.workload
    return workload.phase, str(workload.subject), workload.length, workload.batch_size


def _names(workload: Workload, setting: bool) -> list[str]:
    return [str(workload.subject), workload.phase, *([_setting(workload)] if setting else [])]


def _length(workload: Workload) -> str:
    return format_length(workload.length, architecture_of(workload.subject).unit)


def _setting(workload: Workload) -> str:
    return f"{workload.device} {workload.dtype} {workload.shape}{workload.manner}"


def _setting_column(workloads: Iterable[Workload]) -> bool:
    """Whether rows must tell device, dtype and size, because they are not the same in all."""
    return len({_setting(workload) for workload in workloads}) > 1
