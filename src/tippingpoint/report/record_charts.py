"""Figures of single records: a tipping point, the parts of a call, a data set's lengths, candidates for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tippingpoint.analysis.breakdown import Breakdown
from tippingpoint.analysis.recommend import ITEMS, Recommendation
from tippingpoint.analysis.tipping_point import TippingPoint, grid
from tippingpoint.data import LengthData
from tippingpoint.errors import AnswerError
from tippingpoint.models.catalog import architecture_of
from tippingpoint.report.figures import (
    DIVERGING,
    GREY,
    INK,
    LENGTHS,
    LIGHT,
    length_ticks,
    log_ends,
    ratio_ticks,
    themed,
)
from tippingpoint.report.grids import grid_of
from tippingpoint.report.tables import candidates_table
from tippingpoint.units import format_length, format_percent

if TYPE_CHECKING:
    import altair as alt

Record = dict[str, Any]
_WIDTH, _HEIGHT, _ROW_HEIGHT = 420, 210, 22
_BLUE, _ORANGE = DIVERGING[-1], DIVERGING[0]
# Ratios further off than this are cut, so that the rest stays readable.
_MOST_RATIO = 64.0
_MOST_NAMED = 60
_GRID_LINES: Any = {"grid": True, "gridColor": LIGHT}


def tipping_point_chart(point: TippingPoint) -> alt.LayerChart:
    """Draw how many times better the variant is against length: what was seen, the curve through it, the crossing.

    Both axes are logarithmic; bars and band are 95 % intervals, the line at 1 is "no difference". The dashed line
    is the tipping point, its interval is shaded.

    Raises:
        AnswerError: If no length gave a ratio.
    """
    import altair as alt

    seen = [each for each in point.points if not each.censored]
    if not seen:
        raise AnswerError("no length gave a ratio, so there is nothing to draw")
    curve = _curve_records(point, [each.length for each in seen])
    dots = [{"length": p.length, "ratio": p.ratio, "low": p.interval[0], "high": p.interval[1]} for p in seen]
    low, high = log_ends([each.length for each in point.points])
    least, most = _ratio_ends([*dots, *curve])
    x = alt.X("length:Q", title=LENGTHS[point.unit]).scale(type="log", domain=[low, high], nice=False)
    x = x.axis(values=length_ticks(low, high, point.unit), format=",~g", labelOverlap="greedy")
    title = {"peak_memory": "peak memory, baseline / variant"}.get(point.metric, "speed-up (baseline / variant)")
    y = alt.Y("ratio:Q", title=title).scale(type="log", domain=[least, most], nice=False, clamp=True)
    y = y.axis(values=ratio_ticks(least, most), format="~g", **_GRID_LINES, labelExpr="datum.label + 'x'")

    def layer(values: Sequence[Record]) -> alt.Chart:
        return alt.Chart(alt.InlineData(values=list(values)))

    place: list[Record] = []
    if point.interval is not None:
        place.append({"length": point.length, "low": point.interval[0], "high": point.interval[1]})
    layers = [
        layer(place).mark_rect(color=_BLUE, opacity=0.15, clip=True).encode(x=alt.X("low:Q"), x2="high"),
        layer([{"one": 1}]).mark_rule(color=INK, strokeWidth=0.9).encode(y="one:Q"),
        layer(curve).mark_area(color=GREY, opacity=0.25, clip=True).encode(x, alt.Y("low:Q"), y2="high"),
        layer(curve).mark_line(color=INK, strokeWidth=1.6, clip=True).encode(x, y),
        layer(place).mark_rule(color=_BLUE, strokeWidth=1.6, strokeDash=[5, 3]).encode(x),
        layer(dots).mark_rule(color=INK, strokeWidth=1.4, clip=True).encode(x, alt.Y("low:Q"), y2="high"),
        layer(dots).mark_point(color=INK, filled=True, size=45, opacity=1).encode(x, y),
    ]
    lost = [
        f"{point.baseline if each.censored > 0 else point.variant} runs out of memory at "
        f"{format_length(each.length, point.unit)}"
        for each in point.points
        if each.censored
    ]
    heading = alt.TitleParams(f"{point.variant} against {point.baseline}", subtitle=lost[:1], limit=_WIDTH + 80)
    return themed(alt.LayerChart(layer=layers, width=_WIDTH, height=_HEIGHT, title=heading))


def _curve_records(point: TippingPoint, seen: Sequence[float]) -> list[Record]:
    """Return the smooth curve between the lengths that gave a ratio; none where there is only one."""
    if min(seen) == max(seen):
        return []
    lengths = grid(min(seen), max(seen), point.baseline, point.variant)
    rows = zip(lengths, *point.ratios(lengths).tolist(), strict=True)
    return [
        {"length": length, "low": low, "ratio": middle, "high": high}
        for length, low, middle, high in rows
        if low > 0 and np.isfinite(high)
    ]


def _ratio_ends(records: Sequence[Record]) -> tuple[float, float]:
    ends = [each[end] for each in records for end in ("low", "high")]
    # A single useless interval would leave no room for the others.
    middles = [each["ratio"] for each in records]
    low = max(min(1.0, *ends), min(1.0, *middles) / 2, 1 / _MOST_RATIO)
    high = min(max(1.0, *ends), max(1.0, *middles) * 2, _MOST_RATIO)
    return log_ends([low, high], room=0.05)


def parts_chart(found: Breakdown) -> alt.LayerChart:
    """Draw the parts of a call below each other, each beginning where the one before it ended."""
    import altair as alt

    rows = [(row.name if row.name == row.group else f"{row.group}: {row.name}", row.total_s) for row in found.rows()]
    rows += [(found.between_name, found.between_operators_s), ("unexplained", found.unexplained_s)]
    factor, unit = _time_unit(found.whole_s)
    records, end = [], 0.0
    for name, seconds in rows:
        begin, end = end, end + factor * seconds
        records.append({"part": name, "begin": begin, "end": end, "share": format_percent(seconds / found.whole_s)})
    # What lies to the right of the longest bar is the room of its label.
    most = max(max(each["begin"], each["end"]) for each in records)
    x = alt.X("begin:Q", title=f"time ({unit})").scale(domain=[0, 1.22 * most], nice=False)
    y = alt.Y("part:N", sort=[name for name, _ in rows], title=None).axis(labelLimit=0, ticks=False, domain=False)
    base = alt.Chart(alt.InlineData(values=records)).encode(y=y)
    attention = [each for each in records if each["part"].startswith("attention")]
    layers = [
        base.mark_bar(color=GREY, clip=True).encode(x.axis(**_GRID_LINES, tickCount=5), x2="end"),
        alt.Chart(alt.InlineData(values=attention)).mark_bar(color=_BLUE).encode(x, x2="end", y=y),
        base.transform_calculate(right="max(datum.begin, datum.end)")
        .mark_text(align="left", dx=4, fontSize=11, color=INK)
        .encode(x=alt.X("right:Q"), text="share:N"),
    ]
    at = format_length(found.workload.length, architecture_of(found.workload.subject).unit)
    title = alt.TitleParams(
        f"{found.workload.subject} at {at}, {found.workload.phase}", subtitle="attention in blue", limit=_WIDTH + 200
    )
    return themed(alt.LayerChart(layer=layers, width=_WIDTH, height=_ROW_HEIGHT * len(rows), title=title))


def lengths_chart(data: LengthData) -> alt.LayerChart:
    """Draw a histogram of the lengths of a data set, with its median and 95th percentile."""
    import altair as alt

    bins = data.histogram(24)
    low, high = bins[0][0], bins[-1][1]
    # Items of a single length still have a bar.
    low, high = (low, high) if low < high else (low / 1.1, high * 1.1)
    wide = high > 4 * low
    records = [
        {"from": max(start, low) if start < end else low, "to": end if start < end else high, "items": count}
        for start, end, count in bins
    ]
    marks = [
        {"length": length, "word": f"{word} {format_length(length, data.unit)}"}
        for word, length in (("median", data.median), ("95 %", data.percentile(95)))
    ]
    x = alt.X("from:Q", title=LENGTHS[data.unit])
    x = x.scale(type="log" if wide else "linear", domain=[low, high], nice=False)
    ticks = length_ticks(low, high, data.unit)
    x = x.axis(format=",~g", values=ticks) if wide else x.axis(format=",~g", tickCount=6)
    y = alt.Y("zero:Q", title=ITEMS[data.modality]).axis(**_GRID_LINES, tickCount=5, format="~s")
    bars = alt.Chart(alt.InlineData(values=[{**each, "zero": 0} for each in records]))
    rules = alt.Chart(alt.InlineData(values=marks))
    layers = [
        bars.mark_rect(color=_BLUE, opacity=0.75, stroke="white", strokeWidth=0.6).encode(x, y, x2="to", y2="items"),
        rules.mark_rule(color=INK, strokeDash=[5, 3]).encode(alt.X("length:Q")),
    ]
    says = "dashed: " + ", ".join(mark["word"] for mark in marks)
    title = alt.TitleParams(f"Lengths of {data.count:,} {ITEMS[data.modality]}", subtitle=says)
    return themed(alt.LayerChart(layer=layers, width=_WIDTH, height=_HEIGHT, title=title))


def candidates_chart(answer: Recommendation) -> alt.LayerChart:
    """Draw what each candidate costs on the data, with its 95 % interval; the recommended one in blue.

    Raises:
        AnswerError: If no candidate has a cost.
    """
    import altair as alt

    there = [each for each in answer.candidates if each.cost is not None and each.interval is not None]
    if not there:
        raise AnswerError("no candidate has a cost, so there is nothing to draw")
    most = max(each.interval[1] for each in there if each.interval)
    memory = answer.objective == "peak_memory"
    factor, unit = (2.0**-20, "MiB") if memory else _time_unit(most)
    # As the table calls it.
    what = grid_of(candidates_table(answer)).columns[1]
    kinds = {"recommended": _BLUE, "candidate": INK, "left out": _ORANGE}
    records = [
        {
            "subject": str(each.subject),
            "cost": factor * each.cost,
            "low": factor * each.interval[0],
            "high": factor * each.interval[1],
            "kind": "recommended" if each.subject == answer.choice else "left out" if each.excluded else "candidate",
        }
        for each in there[:_MOST_NAMED]
        if each.cost is not None and each.interval is not None
    ]
    order = [record["subject"] for record in records]
    y = alt.Y("subject:N", sort=order, title=None).axis(labelLimit=0, **_GRID_LINES, domain=False)
    x = alt.X("cost:Q", title=f"{what} ({unit})").scale(domain=[0, 1.05 * factor * most], nice=False)
    shown = [kind for kind in kinds if any(record["kind"] == kind for record in records)]
    legend = alt.Legend(title=None, orient="bottom") if len(shown) > 1 else None
    color = alt.Color("kind:N", legend=legend).scale(domain=shown, range=[kinds[kind] for kind in shown])
    # Told apart without colour as well.
    shapes = {"recommended": "diamond", "candidate": "circle", "left out": "cross"}
    shape = alt.Shape("kind:N", legend=legend).scale(domain=shown, range=[shapes[kind] for kind in shown])
    base = alt.Chart(alt.InlineData(values=records)).encode(y=y)
    layers = [
        base.mark_rule(strokeWidth=2).encode(alt.X("low:Q"), x2="high", color=color),
        base.mark_point(filled=True, size=75, opacity=1).encode(x, color=color, shape=shape),
    ]
    title = alt.TitleParams(
        f"On your {answer.data.count:,} {ITEMS[answer.data.modality]}",
        subtitle=f"{answer.batching.describe(answer.data.unit)}; 95 % intervals",
    )
    return themed(alt.LayerChart(layer=layers, width=_WIDTH, height=alt.Step(_ROW_HEIGHT + 4), title=title))


def _time_unit(seconds: float) -> tuple[float, str]:
    """Return the unit that suits a time, and what seconds are multiplied by in it."""
    return next((each for each in ((1.0, "s"), (1e3, "ms")) if seconds * each[0] >= 1), (1e6, "us"))
