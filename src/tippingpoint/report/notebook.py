"""What a notebook shows of a record: the tables of the terminal as HTML, and a figure where one answers the question.

Records call `as_html` from their `_repr_html_`. Figures are SVG in an image of their own: that works without
JavaScript, keeps names that two figures give to their parts apart, and passes the filters of notebooks that are not
trusted, which drop SVG that stands among HTML. The image is white in every theme; tables take colours and fonts of
the page they stand in.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from tippingpoint.analysis.batch_map import BatchMap
from tippingpoint.analysis.breakdown import Breakdown
from tippingpoint.analysis.changes import say_overall
from tippingpoint.analysis.compare import Comparison
from tippingpoint.analysis.prediction import Prediction
from tippingpoint.analysis.recommend import Recommendation
from tippingpoint.analysis.replay import Replay
from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.data import LengthData
from tippingpoint.errors import InputError, StoreError
from tippingpoint.measurement import Failure, Measurement
from tippingpoint.models.catalog import architecture_of
from tippingpoint.report.batch_map import batch_map_chart, batch_rows_table
from tippingpoint.report.breakdown import breakdown_lines, breakdown_table
from tippingpoint.report.compare import changes_tables, moves_table, sides_lines
from tippingpoint.report.grids import Grid, grid_of
from tippingpoint.report.predict import prediction_tables
from tippingpoint.report.record_charts import candidates_chart, lengths_chart, parts_chart, tipping_point_chart
from tippingpoint.report.replay import remarks, replay_tables
from tippingpoint.report.tables import candidates_table, lengths_table, percentiles_line
from tippingpoint.report.visible import all_visible, visible
from tippingpoint.store import Store
from tippingpoint.units import format_items, format_length

if TYPE_CHECKING:
    import altair as alt

_TABLE = "border-collapse:collapse;margin:0.4em 0;font-size:inherit"
_CAPTION = "text-align:left;font-weight:bold;color:inherit;caption-side:top;white-space:normal"
_CELL = "padding:0.15em 0.9em 0.15em 0;border:0;vertical-align:top"
_LINE = "border-bottom:1px solid currentColor"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is shown of a record.

    Attributes:
        lead: The answer in a sentence; empty where a table says it all.
        grids: Tables.
        notes: What to know beside them.
        chart: Draws the figure; None where there is none.
        alt: What the figure says, for those who do not see it.
    """

    lead: str = ""
    grids: tuple[Grid, ...] = ()
    notes: tuple[str, ...] = ()
    chart: Callable[[], alt.LayerChart | alt.HConcatChart] | None = None
    alt: str = ""


def as_html(record: object) -> str:
    """Return a record as HTML for a notebook: no script, everything that came from outside escaped.

    A figure that cannot be drawn is replaced by the reason; tables stand in any case.

    Raises:
        TypeError: If there is no view of such records.
    """
    for kind, view_of in _VIEWS.items():
        if isinstance(record, kind):
            return html(view_of(record))
    raise TypeError(f"there is no view of {type(record).__name__}")


def html(view: View) -> str:
    """Return a view as HTML."""
    lead = f"<p>{_escaped(view.lead)}</p>" if view.lead else ""
    notes = "".join(f"<li>{_escaped(note)}</li>" for note in view.notes)
    figure = _figure(view.chart, view.alt) if view.chart else ""
    tables = "".join(f'<div style="overflow-x:auto">{table_html(grid)}</div>' for grid in view.grids)
    return f"<div>{lead}{figure}{tables}{f'<ul>{notes}</ul>' if notes else ''}</div>"


def table_html(grid: Grid) -> str:
    """Return a table with a caption and with headers of its columns and rows."""
    head = "".join(
        f'<th scope="col" style="{_CELL};{_side(number)};{_LINE}">{_escaped(name)}</th>'
        for name, number in zip(grid.columns, grid.numbers, strict=True)
    )
    body = "".join(f"<tr>{''.join(_cells(grid, row, place))}</tr>" for place, row in enumerate(grid.rows))
    return (
        f'<table style="{_TABLE}"><caption style="{_CAPTION}">{_escaped(grid.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cells(grid: Grid, row: Sequence[str], place: int) -> Iterable[str]:
    line = f";{_LINE}" if place in grid.sections else ""
    weight = "bold" if place in grid.strong else "normal"
    for column, (text, number) in enumerate(zip(row, grid.numbers, strict=True)):
        words = text.lstrip(" ")
        # Of a tree, leaves stand further in.
        inset = f";padding-left:{0.6 * (len(text) - len(words)):.1f}em" if words != text else ""
        tag, scope = ("td", "") if column else ("th", ' scope="row"')
        style = f"{_CELL};{_side(number)};font-weight:{weight}{inset}{line}"
        yield f'<{tag}{scope} style="{style}">{_escaped(words)}</{tag}>'


def _escaped(text: str) -> str:
    return escape(visible(text))


def _side(number: bool) -> str:
    return "text-align:right;white-space:nowrap" if number else "text-align:left"


def _figure(chart: Callable[[], Any], says: str) -> str:
    """Return a figure as an image, or why there is none."""
    try:
        svg = svg_of(chart())
    except Exception as error:  # noqa: BLE001 (a record is shown, whatever becomes of its figure; the reason is told)
        return f"<p><em>no figure: {_escaped(str(error) or type(error).__name__)}</em></p>"
    data, said = base64.b64encode(svg.encode()).decode(), _escaped(says)
    return (
        f'<p><img role="img" alt="{said}" aria-label="{said}" style="max-width:100%;background:white" '
        f'src="data:image/svg+xml;base64,{data}"></p>'
    )


def svg_of(chart: Any) -> str:
    """Return a figure as SVG, drawn without a browser."""
    import vl_convert

    return vl_convert.vegalite_to_svg(all_visible(chart.to_dict()))


def _measurement(found: Measurement) -> View:
    return View(grids=(_facts(str(found.workload), found.facts),))


def _failure(found: Failure) -> View:
    facts = [("failed", found.kind.replace("_", " ")), ("because", found.message)]
    return View(grids=(_facts(str(found.workload), facts),))


def _facts(title: str, facts: Iterable[tuple[str, str]]) -> Grid:
    return Grid(title=title, columns=("what", "is"), numbers=(False, False), rows=tuple(facts))


def _tipping_point(point: TippingPoint) -> View:
    lead, *_ = str(point).split("\n")
    rows = []
    for each in point.points:
        low, high = each.interval
        rounds = f"{len(each.log_ratios):,}"
        seen = (f"{each.ratio:.3g}x", f"{low:.3g} to {high:.3g}", rounds)
        lost = (f"{'baseline' if each.censored > 0 else 'variant'} out of memory", "", rounds)
        rows.append((format_length(each.length, point.unit), *(lost if each.censored else seen)))
    grid = Grid(
        title=f"{point.variant} against {point.baseline}, {point.metric.replace('_', ' ')}, {point.phase}",
        columns=("length", "baseline / variant", "95 %", "rounds"),
        numbers=(True, True, True, True),
        rows=tuple(rows),
    )
    return View(
        lead=lead,
        grids=(grid,) if rows else (),
        notes=point.notes,
        chart=(lambda: tipping_point_chart(point)) if rows else None,
        alt=f"Cost of {point.baseline} over cost of {point.variant} against length: {point.answer}",
    )


def _batch_map(found: BatchMap) -> View:
    return View(
        lead=found.trend,
        grids=(grid_of(batch_rows_table(found)),),
        chart=lambda: batch_map_chart(found),
        alt=f"Map of length and batch size for {found.variant} against {found.baseline}: {found.trend}",
    )


def _recommendation(answer: Recommendation) -> View:
    return View(
        lead=f"use {answer.choice}: {answer.reason}",
        grids=(grid_of(candidates_table(answer)),),
        notes=(*(f"would change it: {change}" for change in answer.changes), *answer.notes),
        chart=lambda: candidates_chart(answer),
        alt=f"Cost of every candidate with its interval: {answer.choice} is recommended",
    )


def _replay(found: Replay) -> View:
    return View(grids=tuple(map(grid_of, replay_tables(found))), notes=tuple(remarks(found)))


def _breakdown(found: Breakdown) -> View:
    largest = max(found.groups(), key=lambda row: row.total_s).group
    return View(
        grids=(grid_of(breakdown_table(found)),),
        notes=tuple(breakdown_lines([found])),
        chart=lambda: parts_chart(found),
        alt=f"Time of the parts of {found.workload.subject}: the largest is {largest}",
    )


def _lengths(data: LengthData) -> View:
    lead, *notes = percentiles_line(data).split("\n")
    skipped = [f"left out: {data.describe_skipped()}"] if data.skipped_count else []
    return View(
        lead=lead,
        grids=(grid_of(lengths_table(data)),),
        notes=(*notes, *skipped),
        chart=lambda: lengths_chart(data),
        alt=f"Histogram of the lengths of {format_items(data.count, 'item')}; {lead}",
    )


def _comparison(answer: Comparison) -> View:
    tables = [*changes_tables(answer), *([moves_table(answer.tipping_points)] if answer.tipping_points else [])]
    overall = [f"{one.metric.replace('_', ' ')}: {say_overall(one)}" for one in answer.overall]
    return View(
        lead="; ".join(overall),
        grids=tuple(map(grid_of, tables)),
        notes=(*sides_lines(answer), *answer.warnings, *answer.notes),
    )


def _prediction(found: Prediction) -> View:
    return View(
        grids=tuple(map(grid_of, prediction_tables(found))),
        notes=(*(point.answer for point in found.tipping_points), *found.notes),
    )


def _store(store: Store) -> View:
    try:
        outcomes, breakdowns = store.outcomes(), store.breakdowns()
    except StoreError as error:
        return View(lead=str(error))
    there: dict[tuple[str, str], list[Measurement | Failure]] = {}
    for outcome in outcomes:
        there.setdefault((str(outcome.workload.subject), outcome.workload.phase), []).append(outcome)
    rows = []
    for (subject, phase), found in there.items():
        lengths = [outcome.workload.length for outcome in found]
        failed = sum(isinstance(outcome, Failure) for outcome in found)
        reach = " to ".join(dict.fromkeys(_length(end, found[0]) for end in (min(lengths), max(lengths))))
        rows.append((subject, phase, reach, f"{len(found) - failed:,}", f"{failed:,}"))
    grid = Grid(
        title=f"{store.path}",
        columns=("subject", "phase", "lengths", "measurements", "failures"),
        numbers=(False, False, False, True, True),
        rows=tuple(rows),
    )
    notes = [f"environment {key}: {environment}" for key, environment in store.environments().items()]
    if breakdowns:
        subjects = ", ".join(dict.fromkeys(str(each.workload.subject) for each in breakdowns))
        notes.append(f"{format_items(len(breakdowns), 'breakdown')} of {subjects}")
    return View(grids=(grid,), notes=tuple(notes))


def _length(length: float, outcome: Measurement | Failure) -> str:
    """Return a length with its unit, which only those know who have the architecture installed."""
    try:
        return format_length(length, architecture_of(outcome.workload.subject).unit)
    except InputError:
        return f"{length:g}"


# What is shown of each type.
_VIEWS: dict[type, Callable[[Any], View]] = {
    Measurement: _measurement,
    Failure: _failure,
    TippingPoint: _tipping_point,
    BatchMap: _batch_map,
    Recommendation: _recommendation,
    Replay: _replay,
    Breakdown: _breakdown,
    LengthData: _lengths,
    Comparison: _comparison,
    Prediction: _prediction,
    Store: _store,
}
