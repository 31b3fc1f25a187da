"""Tipping points by batch size: a table, and a map of length and batch size."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from tippingpoint.analysis.batch_map import BatchMap, BatchRow, Cell
from tippingpoint.errors import AnswerError
from tippingpoint.report.figures import DIVERGING, GREY, INK, LENGTHS, LIGHT, length_ticks, themed
from tippingpoint.report.tables import VERDICT_STYLES, interval_words, place_cells, plain_table, verdict_with_reach
from tippingpoint.units import format_length

if TYPE_CHECKING:
    import altair as alt

Record = dict[str, Any]
_WIDTH, _ROW_HEIGHT = 460, 36
# Characters that fit above the map and the column beside it.
_TITLE_WIDTH, _SUBTITLE_WIDTH = 72, 90
_TOOLTIP = ["batch_size:O", "length:Q", "positions:Q", "ratio:Q", "low:Q", "high:Q", "winner:N", "measured:N"]
# Lines of hatching over the whole width.
_HATCHES = 90
# The farthest ratio that colours tell apart: the smallest of these that holds what was seen, or the last one.
_REACHES = (1.25, 1.5, 2.0, 4.0, 8.0, 16.0)
_BETTER = {"variant": "variant better", "baseline": "baseline better", "undecided": "undecided (hatched)"}
_TIPPING_POINT = "tipping point"
# By what a mark says, in the order of the legend: its shape, two units wide.
_MARKS = {
    "variant better": "M-1,-.3H-.3V-1H.3V-.3H1V.3H.3V1H-.3V.3H-1Z",
    "baseline better": "M-1,-.3H1V.3H-1Z",
    "undecided (hatched)": "M0,-.65A.65,.65,0,1,1,0,.65A.65,.65,0,1,1,0,-.65Z",
    _TIPPING_POINT: "M0,-1.3L1,0L0,1.3L-1,0Z",
    "baseline out of memory": "M-1,.8L0,-1L1,.8Z",
    "variant out of memory": "M-1,-.8L0,1L1,-.8Z",
}


def batch_rows_table(found: BatchMap) -> Table:
    """Return the tipping point at each batch size, also in sequence positions, of one input and of a whole batch."""
    table = plain_table(
        _heading(found),
        "batch",
        "verdict",
        "from",
        "95 %",
        "positions",
        "positions per batch",
    )
    table.columns[0].justify, table.columns[1].justify = "right", "left"
    for row in found.rows:
        point = row.tipping_point
        style = VERDICT_STYLES.get(point.verdict, "")
        in_batch = "" if point.length is None else f"{row.positions_per_batch:,}"
        verdict = verdict_with_reach(point) if point.points else "nothing compared"
        table.add_row(str(row.batch_size), Text(verdict, style=style), *place_cells(point), in_batch)
    return table


def batch_map_chart(found: BatchMap) -> alt.LayerChart:
    """Draw a map: length across, batch size upwards, coloured by the ratio of the costs.

    Who is better at a measured length is a mark that needs no colour; between measured lengths hatching is where
    nobody certainly is. White is where nothing is known, grey where one ran out of memory. A diamond with a bar is a
    tipping point with its 95 % interval.

    Raises:
        AnswerError: If nothing could be compared at any batch size.
    """
    import altair as alt

    if not found.cells:
        raise AnswerError("no length could be compared at any batch size, so there is no map to draw")
    tiles, tips = _tiles(found), _tips(found.rows)
    low, high = _padded([edge for tile in tiles for edge in (tile["start"], tile["end"])])
    crossings = [tip for tip in tips if tip["length"]]
    marks = [tile for tile in tiles if tile["measured"]] + crossings
    sizes = [row.batch_size for row in reversed(found.rows)]
    rows = alt.Y("batch_size:O", title="batch size").scale(domain=sizes, paddingInner=0.14, paddingOuter=0.1)
    rows = rows.axis(format=",d", ticks=False, domain=False)

    def across(field: str) -> alt.X:
        axis = alt.Axis(values=length_ticks(low, high, found.unit), format=",~g", labelOverlap="greedy")
        scale = alt.Scale(type="log", domain=[low, high], nice=False)
        return alt.X(field, type="quantitative", title=LENGTHS[found.unit], axis=axis, scale=scale)

    def layer(values: Sequence[Record]) -> alt.Chart:
        return alt.Chart(alt.InlineData(values=list(values))).encode(y=rows)

    def rectangles(values: Sequence[Record], **look: Any) -> alt.Chart:
        # A line of its own colour around each one hides the seam between it and the next.
        drawn = layer(values).mark_rect(strokeWidth=0.7, **look)
        return drawn.encode(across("start"), x2="end", tooltip=_TOOLTIP)

    def bars(**look: Any) -> alt.Chart:
        return layer(crossings).mark_rule(**look).encode(across("low"), x2="high")

    def beside(chart: alt.Chart, **look: Any) -> alt.Chart:
        return chart.mark_text(align="left", fontSize=11, **look).encode(x=alt.value(_WIDTH + 10))

    own_color = alt.ExprRef("scale('color', datum.ratio)")
    # From the bottom of a row to its top.
    slant = {"y": rows.copy().bandPosition(0), "y2": alt.Y2("batch_size", bandPosition=1)}
    point = {"filled": True, "size": 75, "opacity": 1, "color": INK, "stroke": "white", "strokeWidth": 0.8}
    chart = alt.LayerChart(
        layer=[
            rectangles([tile for tile in tiles if tile["out_of_memory"]], color=LIGHT, stroke=LIGHT),
            rectangles([tile for tile in tiles if not tile["out_of_memory"]], stroke=own_color).encode(
                color=_ratio_color(found)
            ),
            layer(_hatching(tiles, low, high))
            .mark_rule(color=GREY, strokeWidth=0.6)
            .encode(across("start"), x2="end", **slant),
            layer(crossings)
            .mark_line(color=INK, strokeWidth=1.2, strokeDash=[4, 3])
            .encode(across("length"), detail="run:N", order="batch_size:Q"),
            bars(color="white", strokeWidth=5.5),
            bars(color=INK, strokeWidth=2.5),
            layer(marks)
            .mark_point(**point)
            .encode(
                across("length"), shape=_mark_shape(tiles + crossings), tooltip=["batch_size:O", "length:Q", "mark:N"]
            ),
            beside(layer(tips), color=INK).encode(text="label:N"),
            beside(alt.Chart(alt.InlineData(values=[{}])), color=GREY, baseline="bottom").encode(
                y=alt.value(-5), text=alt.value(f"{_TIPPING_POINT} (95 % interval)")
            ),
        ],
        title=_title(found),
        width=_WIDTH,
        height=alt.Step(_ROW_HEIGHT),
    )
    return themed(chart)


def _ratio_color(found: BatchMap) -> alt.Color:
    """Return colours of ratios on a logarithmic scale with 1 in its middle."""
    import altair as alt

    domain = _color_domain(found.cells)
    least, most = domain[0], domain[-1]
    # What is farther away has the colour of the end, and the legend says so.
    beyond = any(cell.ratio and not least <= cell.ratio <= most for cell in found.cells)
    sign = f"(datum.value == {least} ? '<' : datum.value == {most} ? '>' : '') + " if beyond else ""
    legend = alt.Legend(
        orient="bottom",
        direction="horizontal",
        gradientLength=210,
        gradientThickness=10,
        # Those between the ends and the middle would run into the ends' labels if these were longer.
        values=[least, 0.5, 1.0, 2.0, most] if most == 4 else [least, 1.0, most],
        labelExpr=f"{sign}format(datum.value, '.3~g') + 'x'",
    )
    return (
        alt.Color("ratio:Q", title=f"{found.metric.replace('_', ' ')}, baseline / variant", legend=legend)
        .scale(type="log", domain=domain, range=list(DIVERGING), clamp=True)
    )  # fmt: skip


def _mark_shape(records: Iterable[Record]) -> alt.Shape:
    """Return the shapes of marks; the legend has those that occur, hatching without a mark included."""
    import altair as alt

    there = {record["mark"] for record in records}
    shapes = {kind: shape for kind, shape in _MARKS.items() if kind in there}
    legend = alt.Legend(orient="bottom", columns=3, columnPadding=2, symbolOffset=12, symbolStrokeWidth=0)
    return alt.Shape("mark:N", title=None, legend=legend).scale(domain=list(shapes), range=list(shapes.values()))


def _title(found: BatchMap) -> alt.TitleParams:
    """Return what is shown, in one line where it fits, and how the tipping point moves."""
    import altair as alt

    lines = [_heading(found)]
    if len(lines[0]) > _TITLE_WIDTH:
        variant, against, rest = lines[0].partition(" against ")
        lines = [*_wrapped(variant), *_wrapped(against.lstrip() + rest)]
    trend = found.trend.partition(". ")[0].removesuffix(".")
    return alt.TitleParams(lines, subtitle=textwrap.wrap(trend, _SUBTITLE_WIDTH))


def _wrapped(text: str) -> list[str]:
    """Return lines that are broken at spaces and behind plus signs, of which a subject may have many."""
    lines = textwrap.wrap(text.replace("+", "\0 "), _TITLE_WIDTH)
    return [line.replace("\0 ", "+").replace("\0", "+") for line in lines]


def _heading(found: BatchMap) -> str:
    metric = found.metric.replace("_", " ")
    return f"{found.variant} against {found.baseline}: {metric}, {found.phase}, {found.device}"


def _tiles(found: BatchMap) -> list[Record]:
    """Return the cells with the lengths at which their rectangles begin and end, and the marks of measured ones."""
    lengths = sorted({cell.length for cell in found.cells})
    if len(lengths) > 1:
        middles = [math.sqrt(first * second) for first, second in itertools.pairwise(lengths)]
        begins, ends = [lengths[0], *middles], [*middles, lengths[-1]]
    else:
        begins, ends = [lengths[0] / 1.1], [lengths[0] * 1.1]
    place = {length: number for number, length in enumerate(lengths)}
    return [
        {
            "batch_size": cell.batch_size,
            "length": cell.length,
            "start": begins[place[cell.length]],
            "end": ends[place[cell.length]],
            "positions": cell.positions,
            "ratio": cell.ratio,
            "low": cell.low,
            "high": cell.high,
            "winner": cell.winner,
            "measured": cell.measured,
            "out_of_memory": cell.out_of_memory,
            "mark": f"{cell.out_of_memory} out of memory" if cell.out_of_memory else _BETTER[cell.winner],
        }
        for cell in found.cells
    ]


def _padded(lengths: Sequence[float]) -> tuple[float, float]:
    """Return both ends of an axis, with room for a mark beyond the shortest and the longest length."""
    low, high = min(lengths), max(lengths)
    room = (high / low) ** 0.025
    return low / room, high * room


def _color_domain(cells: Iterable[Cell]) -> list[float]:
    """Return one ratio for each colour: as far below 1 as above it, in equal steps of the logarithm."""
    most = max((abs(math.log(cell.ratio)) for cell in cells if cell.ratio), default=0.0)
    reach = next((each for each in _REACHES if math.log(each) >= most), _REACHES[-1])
    half = len(DIVERGING) // 2
    return [reach ** (step / half) for step in range(-half, half + 1)]


def _hatching(tiles: Iterable[Record], low: float, high: float) -> list[Record]:
    """Return slanted lines over undecided rectangles: the length at which each begins below and ends above."""
    step = math.log(high / low) / _HATCHES
    lines = []
    for (batch_size, undecided), run in itertools.groupby(
        tiles, key=lambda tile: (tile["batch_size"], tile["winner"] == "undecided")
    ):
        if not undecided:
            continue
        covered = list(run)
        start, end = (math.log(edge / low) / step for edge in (covered[0]["start"], covered[-1]["end"]))
        for number in range(math.ceil(start), math.floor(end)):
            left, right = (low * math.exp(each * step) for each in (number, number + 1))
            lines.append({"batch_size": batch_size, "start": left, "end": right})
    return lines


def _tips(rows: Iterable[BatchRow]) -> list[Record]:
    """Return the tipping points with the words beside them; `run` counts the runs of rows that have one."""
    records, run = [], 0
    for row in rows:
        point = row.tipping_point
        record: Record = {"batch_size": row.batch_size, "mark": _TIPPING_POINT, "length": point.length}
        if point.length is None or point.interval is None:
            run += 1
            label = verdict_with_reach(point) if point.points else "nothing compared"
            records.append({**record, "label": label})
            continue
        low, high = point.interval
        several = "last of several: " if point.verdict == "several crossings" else ""
        label = f"{several}{format_length(point.length, point.unit)} ({interval_words(point)})"
        records.append({**record, "low": low, "high": high, "run": run, "label": label})
    return records
