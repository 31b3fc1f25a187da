"""What fills the figures of a page, and the tables of the same numbers: plain data, the names in it as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tippingpoint.analysis.breakdown import Breakdown
from tippingpoint.analysis.winners import Best
from tippingpoint.data import LengthData
from tippingpoint.models.catalog import architecture_of
from tippingpoint.report.answers import sentence
from tippingpoint.report.contents import Comparison, Contents
from tippingpoint.report.curves import CurvePoint
from tippingpoint.report.figures import LENGTHS
from tippingpoint.report.grids import Grid
from tippingpoint.report.page_figures import cost_axes, metric_axes, rounded, tip_records
from tippingpoint.report.speed_up import factor_words
from tippingpoint.units import (
    format_bytes,
    format_count,
    format_half_width,
    format_items,
    format_length,
    format_percent,
    format_rate,
    format_seconds,
)
from tippingpoint.workload import Subject

Record = dict[str, Any]
Looks = Mapping[Subject, tuple[str, str]]

TELL: dict[str, Callable[[float], str]] = {
    "latency": format_seconds,
    "throughput": lambda rate: f"{format_rate(rate)}/s",
    "peak_memory": format_bytes,
    "flops": format_count,
}
BETTER = {"latency": "fastest", "peak_memory": "smallest"}
# Cells of a winner map have words in them, if there are no more columns.
_MOST_WITH_WORDS = 9
# Of a message that a screen reader says for a figure.
_MOST_SENTENCES = 6
_BEST, _LEVEL, _FAILED = "●", "○", "✕"


def named(metric: str) -> str:
    """Return a metric as people write it."""
    return "FLOPs" if metric == "flops" else metric.replace("_", " ")


def comparison_fill(comparison: Comparison, looks: Looks, lengths: LengthData | None) -> Record:
    """Return what fills the cost figure and the winner map of a comparison."""
    shown = comparison.contest.subjects
    axes = cost_axes(comparison, lengths)
    return {
        "axes": axes,
        **_legend(shown, looks),
        "costs": {metric: _cost_fill(comparison, metric, axes) for metric in comparison.metrics},
        "winners": {
            metric: winner_cells(comparison, metric)
            for metric in BETTER
            if (comparison.fastest if metric == "latency" else comparison.smallest)
        },
        "x_title": LENGTHS[comparison.setting.unit],
    }


def _legend(subjects: Sequence[Subject], looks: Looks) -> Record:
    """Return names, colours and shapes of subjects."""
    colors, shapes = zip(*(looks[subject] for subject in subjects), strict=True)
    return {"subjects": [str(subject) for subject in subjects], "colors": list(colors), "shapes": list(shapes)}


def _cost_fill(comparison: Comparison, metric: str, axes: Record) -> Record:
    curves = [curve for curve in comparison.curves if curve.metric == metric]
    first = comparison.contest.baselines[0]
    points = [p for p in comparison.tipping_points if p.metric == metric and p.baseline == first]
    place = {subject: number for number, subject in enumerate(comparison.contest.subjects)}
    told = metric_axes(metric, curves, sum(point.length is not None for point in points))
    unit = comparison.setting.unit
    said = [sentence(point) for point in points]
    more = f"; {len(said) - _MOST_SENTENCES} more in the table" if len(said) > _MOST_SENTENCES else ""
    return {
        "axes": told,
        "rows": [
            [
                place[curve.subject],
                point.length,
                point.positions,
                *(rounded(value) for value in (point.value, point.low, point.high)),
                point.batch_size,
            ]
            for curve in curves
            for point in curve.points
        ],
        "ends": [
            {
                "subject": str(end.subject),
                "length": end.length,
                "value": told["most"] / 1.12,
                "failure": end.kind.replace("_", " "),
            }
            for end in comparison.ends
            if axes["from"] <= end.length <= axes["to"]
        ],
        "tips": tip_records(points, axes),
        "message": f"{named(metric)} against length in {unit}, both on logarithmic axes. "
        f"{'; '.join(said[:_MOST_SENTENCES])}{more}",
    }


def winner_cells(comparison: Comparison, metric: str) -> Record:
    """Return the cells of a winner map: a subject at a length, and how far behind the best one it is."""
    race, unit = comparison.race, comparison.setting.unit
    found: Sequence[Best] = comparison.fastest if metric == "latency" else comparison.smallest
    columns = [_number(best.length) for best in found]
    cells = []
    for best in found:
        there = race.measured[best.length]
        costs = {subject: _cost(there[subject], metric) for subject in there}
        least = costs[best.subject]
        for subject in race.contest.subjects:
            cell: Record = {"row": str(subject), "column": _number(best.length)}
            if subject in costs:
                ratio = costs[subject] / least
                mark = _BEST if subject == best.subject else _LEVEL if subject in best.level else ""
                words = mark or (f"{ratio:.2g}x" if len(columns) <= _MOST_WITH_WORDS else "")
                says = f"{TELL[metric](costs[subject])}, {ratio:.2f} times the best"
                cells.append({**cell, "behind": rounded(ratio), "mark": words, "says": says})
            else:
                kind = race.failures(best.length)[subject].kind.replace("_", " ")
                cells.append({**cell, "behind": None, "mark": _FAILED, "says": kind})
    rows = [str(subject) for subject in race.contest.subjects]
    wins = [f"{best.subject} at {format_length(best.length, unit)}" for best in found]
    return {
        "rows": rows,
        "columns": columns,
        "cells": cells,
        "message": f"Which subject is the {BETTER[metric]} at each length: {', '.join(wins)}",
    }


def _cost(measurement: Any, metric: str) -> float:
    return measurement.latency_s if metric == "latency" else float(measurement.memory.peak_bytes)


def _number(length: float) -> str:
    return f"{length:,.6g}"


def batch_fill(group: Sequence[Comparison], looks: Looks) -> Record | None:
    """Return the map of the fastest subject by length and batch size; None without several batch sizes.

    Args:
        group: Comparisons of one contest in settings that differ by their batch size alone.
        looks: Colours and shapes.
    """
    group = sorted((each for each in group if each.fastest), key=lambda each: each.setting.batch_size)
    if len(group) < 2:
        return None
    unit = group[0].setting.unit
    lengths = sorted({best.length for each in group for best in each.fastest})
    winners = tuple(dict.fromkeys(best.subject for each in group for best in each.fastest))
    cells = [
        {
            "row": str(each.setting.batch_size),
            "column": _number(best.length),
            "subject": str(best.subject),
            "level": ", ".join(map(str, best.level)),
            "mark": _LEVEL if best.level else "",
        }
        for each in group
        for best in each.fastest
    ]
    return {
        "rows": [str(each.setting.batch_size) for each in reversed(group)],
        "columns": [_number(length) for length in lengths],
        "cells": cells,
        **_legend(winners, looks),
        "x_title": LENGTHS[unit],
        "message": "The fastest subject by length and batch size: "
        + "; ".join(f"batch {c['row']}, {c['column']}: {c['subject']}" for c in cells),
    }


def batch_table(fill: Record) -> Grid:
    """Return the map over batch sizes in words."""
    said = {
        (cell["row"], cell["column"]): cell["subject"] + (" ○" if cell["level"] else "") for cell in fill["cells"]
    }
    rows = [(row, *(said.get((row, column), "") for column in fill["columns"])) for row in reversed(fill["rows"])]
    head = (f"batch size, by {fill['x_title']}", *fill["columns"])
    return Grid.of(
        "The fastest subject by batch size and length (○: another one is level with it)", head, tuple(rows)
    )


def cost_table(comparison: Comparison, metric: str) -> Grid:
    """Return the numbers of a cost figure: lengths by subjects, each with its 95 % interval."""
    unit = comparison.setting.unit
    curves = [curve for curve in comparison.curves if curve.metric == metric]
    found: dict[float, dict[Subject, CurvePoint]] = {}
    for curve in curves:
        for point in curve.points:
            found.setdefault(point.length, {})[curve.subject] = point
    failed = {(end.subject, end.length): end.kind.replace("_", " ") for end in comparison.ends}
    for _, length in failed:
        found.setdefault(length, {})
    rows = [
        (
            format_length(length, unit),
            *(
                _told(found[length][curve.subject], metric)
                if curve.subject in found[length]
                else failed.get((curve.subject, length), "")
                for curve in curves
            ),
        )
        for length in sorted(found)
    ]
    head = ("length", *(str(curve.subject) for curve in curves))
    return Grid.of(f"{named(metric)[0].upper()}{named(metric)[1:]} by length", head, tuple(rows))


def _told(point: CurvePoint, metric: str) -> str:
    text = TELL[metric](point.value)
    if metric == "flops":
        return text
    width = format_half_width((point.high - point.low) / 2 / point.value).replace("+-", "±")
    at = f", batch {point.batch_size}" if metric == "throughput" else ""
    return f"{text} {width}{at}"


def winner_table(comparison: Comparison) -> Grid:
    """Return who is the fastest and the smallest at each length, and who is level with them."""
    unit = comparison.setting.unit
    smallest = {best.length: best for best in comparison.smallest}
    rows = []
    for best in comparison.fastest:
        other = smallest.get(best.length)
        cells = [str(best.subject), ", ".join(map(str, best.level))]
        cells += [str(other.subject), ", ".join(map(str, other.level))] if other else ["", ""]
        rows.append((format_length(best.length, unit), *cells))
    head = ("length", "fastest", "level with it", "smallest", "level with it")
    return Grid.of("Who is best at each length at which all were tried", head, tuple(rows))


def speed_up_table(comparison: Comparison, baseline: Subject) -> Grid:
    """Return how many times as fast as a baseline every other subject is, by length, with 95 % intervals."""
    unit = comparison.setting.unit
    found = [each for each in comparison.speed_ups if each.baseline == baseline]
    by_length: dict[float, dict[Subject, str]] = {}
    for each in found:
        for point in each.points:
            low, high = point.interval
            text = f"{factor_words(point.ratio)} ({factor_words(low)} to {factor_words(high)})"
            if point.censored:
                text = f"{baseline if point.censored > 0 else each.subject} ran out of memory"
            by_length.setdefault(point.length, {})[each.subject] = text
    rows = [
        (format_length(length, unit), *(there.get(each.subject, "") for each in found))
        for length, there in sorted(by_length.items())
    ]
    return Grid.of(f"Times as fast as {baseline}", ("length", *(str(each.subject) for each in found)), tuple(rows))


def breakdown_table(found: Sequence[Breakdown]) -> Grid:
    """Return the seconds and the shares of every part of calls of one setting."""
    parts = list(dict.fromkeys((row.group, row.name) for each in found for row in each.rows()))
    told = [{(row.group, row.name): row.total_s for row in each.rows()} for each in found]
    rows = [
        (
            name if group == name else f"{group}: {name}",
            *(
                f"{format_seconds(there[group, name])}, {format_percent(there[group, name] / each.whole_s)}"
                if (group, name) in there
                else ""
                for each, there in zip(found, told, strict=True)
            ),
        )
        for group, name in parts
    ]
    rows.append((found[0].between_name, *(format_seconds(each.between_operators_s) for each in found)))
    rows.append(("whole call", *(format_seconds(each.whole_s) for each in found)))
    rows.append(("if attention were free, times as fast", *(f"{each.most_speed_up():.2f}" for each in found)))
    head = ("part", *(_call(each) for each in found))
    return Grid.of("Where the time of a call goes", head, tuple(rows))


def breakdown_rows(found: Iterable[Breakdown]) -> list[list[Any]]:
    """Return one row for each part of each call: subject, length, group, part, seconds, share of the call."""
    return [
        [str(each.workload.subject), each.workload.length, row.group, row.name, rounded(row.total_s), share]
        for each in found
        for row in each.rows()
        for share in (rounded(row.total_s / each.whole_s),)
    ]


def breakdown_message(found: Sequence[Breakdown]) -> str:
    """Return what the figure of breakdowns says."""
    said = [
        f"{_call(each)}: {format_seconds(each.whole_s)}, {format_percent(each.attention_s() / each.whole_s)} of it "
        "attention between its projections"
        for each in found
    ]
    return f"Where the time of a call goes. {'; '.join(said)}"


def _call(found: Breakdown) -> str:
    workload = found.workload
    return f"{workload.subject} at {format_length(workload.length, architecture_of(workload.subject).unit)}"


def facts_line(contents: Contents) -> str:
    """Return what a report rests on, in a line."""
    first, last = (moment[:16].replace("T", " ") for moment in contents.measured_at)
    when = first if first == last else f"{first} to {last}"
    return (
        f"{format_items(contents.measurements, 'measurement')} and {format_items(contents.failures, 'failure')} in "
        f"{format_items(contents.sessions, 'session')}, {when} UTC"
    )
