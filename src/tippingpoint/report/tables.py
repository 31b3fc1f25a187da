"""Tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from tippingpoint.analysis.constraint import show_value
from tippingpoint.analysis.recommend import ITEMS, Recommendation
from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.analysis.workload_cost import WorkloadCost
from tippingpoint.data import LengthData
from tippingpoint.measurement import Failure, Measurement, Outcome, is_best_batch
from tippingpoint.models.catalog import architecture_of
from tippingpoint.units import (
    format_bytes,
    format_count,
    format_half_width,
    format_length,
    format_percent,
    format_rate,
    format_seconds,
)
from tippingpoint.workload import Subject

if TYPE_CHECKING:
    # It takes pydantic and YAML along, which most tables do without.
    from tippingpoint.analysis.prediction import CostEstimate

# Colours of verdicts; the others have none.
VERDICT_STYLES = {"crosses": "green", "always": "green", "undecided": "yellow"}
_BAR_WIDTH = 30
_PERCENTILES = (5, 25, 50, 75, 95, 99)


def plain_table(title: str, *columns: str, left: int = 1) -> Table:
    """Return a table whose first `left` columns are text and the others numbers."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for number, column in enumerate(columns):
        # What is too wide goes on in the next line; a name that was cut would be none.
        text = number < left
        table.add_column(column, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    return table


def positions_text(call: Outcome | CostEstimate) -> str:
    """Return an input's positions, and what the model padded them to where it did: "600 -> 640"."""
    if isinstance(call, Failure) or call.executed_positions == call.positions:
        return f"{call.positions:,}"
    return f"{call.positions:,} -> {call.executed_positions:,}"


def lengths_table(data: LengthData) -> Table:
    """Return the distribution of a data set's lengths, as a histogram with the share up to each bin's end."""
    table = plain_table(
        f"Lengths of {data.count:,} {ITEMS[data.modality]}", "from", "to", "items", "up to here", "", left=0
    )
    bins = data.histogram()
    most = max(count for _, _, count in bins)
    total = 0
    for low, high, count in bins:
        total += count
        bar = "█" * round(_BAR_WIDTH * count / most) or ("▏" if count else "")
        table.add_row(
            format_length(low, data.unit),
            format_length(high, data.unit),
            f"{count:,}",
            format_percent(total / data.count),
            Text(bar, style="cyan"),
        )
    table.columns[-1].justify = "left"
    return table


def percentiles_line(data: LengthData) -> str:
    """Return the percentiles of a data set's lengths in one line, and how they were had in another."""
    found = zip(_PERCENTILES, data.percentiles(*_PERCENTILES), strict=True)
    parts = [f"{percent} % {format_length(length, data.unit)}" for percent, length in found]
    longest = format_length(data.maximum, data.unit)
    lines = [f"at most: {', '.join(parts)}; longest {longest}", *data.notes(), f"lengths are {data.method}"]
    return "\n".join(lines)


def measurements_table(outcomes: Iterable[Outcome], subjects: Sequence[Subject], phase: str) -> Table:
    """Return latency, throughput and peak memory of every subject by length, failures included."""
    table = plain_table(
        f"Measured ({phase})",
        "length",
        "subject",
        "positions",
        "latency",
        "95 %",
        "throughput",
        "at batch",
        "peak memory",
        "FLOPs",
        left=2,
    )
    latest: dict[tuple[float, Subject, bool], Outcome] = {}
    for outcome in outcomes:
        workload = outcome.workload
        if workload.phase == phase:
            latest[workload.length, workload.subject, is_best_batch(outcome)] = outcome
    lengths = sorted({length for length, _, _ in latest})
    for length in lengths:
        for subject in subjects:
            first = latest.get((length, subject, False))
            if first is None:
                continue
            unit = architecture_of(subject).unit
            shown = format_length(length, unit)
            if isinstance(first, Failure):
                table.add_row(shown, str(subject), positions_text(first), Text(first.kind.replace("_", " "), "red"))
                continue
            best = latest.get((length, subject, True), first)
            best = best if isinstance(best, Measurement) else first
            table.add_row(
                shown,
                str(subject),
                positions_text(first),
                format_seconds(first.latency_s),
                format_half_width(first.half_width),
                f"{format_rate(best.sequences_per_s)}/s",
                str(best.workload.batch_size),
                format_bytes(first.memory.peak_bytes) if first.memory else "",
                format_count(first.flops.total) if first.flops else "",
            )
        if length != lengths[-1]:
            table.add_section()
    return table


def tipping_points_table(points: Iterable[TippingPoint]) -> Table:
    """Return verdicts with intervals, one row for each pair, metric and phase."""
    table = plain_table(
        "Tipping points",
        "phase",
        "metric",
        "variant",
        "against",
        "verdict",
        "from",
        "95 %",
        "positions",
        left=5,
    )
    for point in points:
        style = VERDICT_STYLES.get(point.verdict, "")
        table.add_row(
            point.phase,
            point.metric.replace("_", " "),
            str(point.variant),
            str(point.baseline),
            Text(verdict_with_reach(point), style=style),
            *place_cells(point),
        )
    return table


def interval_words(point: TippingPoint) -> str:
    """Return the interval of a tipping point as "843 to 897"; empty where there is none."""
    return " to ".join(format_length(end, point.unit).split(" ")[0] for end in point.interval or ())


def place_cells(point: TippingPoint) -> tuple[str, str, str]:
    """Return where a tipping point is, its interval and its sequence positions; empty where there is none."""
    if point.length is None or point.interval is None:
        return "", "", ""
    return format_length(point.length, point.unit), interval_words(point), f"{point.positions:,}"


def verdict_with_reach(point: TippingPoint) -> str:
    """Return the verdict of a tipping point, and how far it reaches where no crossing says so."""
    if point.verdict in ("never", "undecided") and point.points:
        return f"{point.verdict} (up to {format_length(point.measured_range[1], point.unit)})"
    if point.verdict == "always" and point.points:
        return f"always (from {format_length(point.measured_range[0], point.unit)})"
    return point.verdict


def notes(points: Sequence[TippingPoint]) -> list[str]:
    """Return the notes of tipping points: once what several say, and with its pair what only one says."""
    said = Counter(note for point in points for note in point.notes)
    lines = [note for note, count in said.items() if count > 1]
    for point in points:
        pair = f"{point.variant} against {point.baseline}, {point.phase} {point.metric.replace('_', ' ')}"
        lines += [f"{pair}: {note}" for note in point.notes if said[note] == 1]
    return lines


def candidates_table(answer: Recommendation) -> Table:
    """Return what each candidate would cost on the person's data, as it is batched."""
    by = {"latency": "mean latency", "throughput": "time of one"}.get(
        answer.objective, answer.objective.replace("_", " ")
    )
    batched = answer.batching.kind not in ("one", "packed")
    columns = ["candidate", by, "95 %", "1,000 take", "p50", "p95", "p99", "peak memory"]
    table = plain_table(
        f"On your data, {answer.batching.describe(answer.data.unit)}",
        *columns,
        *["padding"] * batched,
        "remark",
    )
    table.columns[-1].justify = "left"
    table.columns[-1].no_wrap = False
    for row in answer.candidates:
        name = Text(str(row.subject), style="bold green" if row.subject == answer.choice else "")
        remark = row.excluded or ("recommended" if row.subject == answer.choice else "")
        cells = [""] * (len(table.columns) - 2)
        if row.cost is not None and row.interval is not None:
            value, *ends = (show_value(answer.objective, value) for value in (row.cost, *row.interval))
            cells[:2] = value, " to ".join(ends)
        if row.workload:
            cells[2:] = _workload_cells(row.workload)[: len(cells) - 2]
        table.add_row(name, *cells, remark)
    return table


def _workload_cells(cost: WorkloadCost) -> list[str]:
    """Return seconds of 1,000 items, percentiles of latency, peak memory and padding."""
    latencies = (cost.latency_p50_s, cost.latency_p95_s, cost.latency_p99_s)
    return [
        format_seconds(cost.per_1000_s.value),
        *(format_seconds(latency.value) for latency in latencies),
        format_bytes(cost.peak_bytes.value) if cost.peak_bytes else "",
        format_percent(cost.padding.value),
    ]
