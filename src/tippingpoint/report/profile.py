"""What `tippingpoint profile` prints: one row for each workload, and what to know about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from tippingpoint.measurement import BEST_BATCH, Failure, Measurement, Outcome, is_best_batch
from tippingpoint.models.catalog import architecture_of
from tippingpoint.report.tables import plain_table, positions_text
from tippingpoint.units import (
    format_bytes,
    format_count,
    format_half_width,
    format_length,
    format_percent,
    format_rate,
    format_seconds,
)

_Cell = Callable[[Measurement], str]


def _blocks(measurement: Measurement) -> str:
    count = len(measurement.counted)
    return f"{count}" if measurement.process_count == 1 else f"{count} in {measurement.process_count}"


def _share(share: float | None) -> str:
    return "" if share is None else format_percent(share)


def _joules(joules: float | None) -> str:
    return "none" if joules is None else f"{joules:.3g} J"


_COLUMNS: dict[str, tuple[tuple[str, _Cell], ...]] = {
    "latency": (
        ("latency", lambda m: format_seconds(m.latency_s)),
        ("95 %", lambda m: format_half_width(m.half_width)),
        ("spread", lambda m: format_percent(m.spread)),
        ("blocks", _blocks),
        ("first call", lambda m: format_seconds(m.first_call_s)),
    ),
    "throughput": (
        ("throughput", lambda m: f"{format_rate(m.sequences_per_s)}/s"),
        ("at batch", lambda m: str(m.workload.batch_size)),
    ),
    "peak_memory": (
        ("peak memory", lambda m: format_bytes(m.memory.peak_bytes) if m.memory else ""),
        ("activations", lambda m: format_bytes(m.memory.activations_bytes) if m.memory else ""),
    ),
    "flops": (
        ("FLOPs", lambda m: format_count(m.flops.total) if m.flops else ""),
        ("FLOP/s", lambda m: format_count(m.flops_per_s) if m.flops_per_s else ""),
        ("of peak", lambda m: _share(m.share_of_peak)),
        ("of bandwidth", lambda m: _share(m.share_of_bandwidth)),
    ),
    "energy": (
        ("energy", lambda m: _joules(m.energy.joules_per_call) if m.energy else ""),
        ("above idle", lambda m: _joules(m.energy.net_joules_per_call) if m.energy else ""),
    ),
}


# One table would be too wide for a terminal: what it takes, and what it does.
_TABLES = (("latency", "throughput", "energy"), ("peak_memory", "flops"))


def profile_tables(outcomes: Iterable[Outcome], metrics: Sequence[str]) -> list[Table]:
    """Return the tables of each phase, failures included.

    Args:
        outcomes: Of one `profile`.
        metrics: Which columns to show, out of `PROFILE_METRICS`.
    """
    outcomes = list(outcomes)
    at_best: dict[object, Outcome] = {_key(outcome): outcome for outcome in outcomes if is_best_batch(outcome)}
    asked = [outcome for outcome in outcomes if not is_best_batch(outcome)]
    tables = []
    for phase in dict.fromkeys(outcome.workload.phase for outcome in asked):
        of_phase = [outcome for outcome in asked if outcome.workload.phase == phase]
        for group in _TABLES:
            shown = [metric for metric in group if metric in metrics]
            if shown:
                tables.append(_table(of_phase, at_best, shown))
    return tables


def _table(outcomes: Sequence[Outcome], at_best: Mapping[object, Outcome], metrics: Sequence[str]) -> Table:
    first = outcomes[0].workload
    table = plain_table(
        f"{first.phase}, {first.device} {first.dtype}, {first.shape}{first.manner}",
        "length",
        "subject",
        "positions",
        "batch",
        *(title for metric in metrics for title, _ in _COLUMNS[metric]),
        left=2,
    )
    for outcome in outcomes:
        workload = outcome.workload
        row: list[str | Text] = [
            format_length(workload.length, architecture_of(workload.subject).unit),
            str(workload.subject),
            positions_text(outcome),
            str(workload.batch_size),
        ]
        if isinstance(outcome, Failure):
            row.append(Text(outcome.kind.replace("_", " "), "red"))
        else:
            best = at_best.get(_key(outcome), outcome)
            for metric in metrics:
                source = best if metric == "throughput" and isinstance(best, Measurement) else outcome
                row += [cell(source) for _, cell in _COLUMNS[metric]]
        table.add_row(*row)
    return table


def _key(outcome: Outcome) -> tuple[str, object]:
    """Identify a workload whatever its batch size, within the session of one batch size asked for."""
    return outcome.session.removesuffix(BEST_BATCH), outcome.workload.subject


def remarks(outcomes: Iterable[Outcome]) -> list[str]:
    """Return what to know about measurements: failures, notes, warnings, what really ran; each line once."""
    lines: dict[str, None] = {}
    for outcome in outcomes:
        workload = outcome.workload
        unit = architecture_of(workload.subject).unit
        where = f"{workload.subject} at {format_length(workload.length, unit)}"
        where += f", batch {workload.batch_size}" if workload.batch_size > 1 else ""
        where += f", {workload.phase}" if workload.phase != "inference" else ""
        if isinstance(outcome, Failure):
            lines[f"failed: {where}: {outcome.message}"] = None
            continue
        lines[f"{workload.subject}: attention ran as {outcome.attention}"] = None
        for note in outcome.notes:
            lines[f"{workload.subject}: {note}"] = None
        if outcome.energy and outcome.energy.joules_per_call is None:
            lines[f"no energy: {outcome.energy.source}"] = None
        if outcome.compile_s:
            lines[f"{where}: compiling took {format_seconds(outcome.compile_s)}, first run included"] = None
        for warning in outcome.warnings:
            lines[f"warning: {where}: {warning}"] = None
    return list(lines)
