"""The figures of a page: each kind is one specification with holes, and what fills them for a comparison.

A page may hold hundreds of settings, so that a whole specification for each would not do. A hole is a text that
begins with `$`; the page's script puts data there, and never looks for holes within data. Names of subjects and
all else that comes from a store are data: no expression and no field's name is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.data import LengthData
from tippingpoint.models.catalog import architecture_of
from tippingpoint.report.contents import Comparison
from tippingpoint.report.curves import Curve
from tippingpoint.report.figures import GREY, INK, LENGTHS, LIGHT, length_ticks, log_ends, themed
from tippingpoint.report.speed_up import BAR, COLORS, SHAPES
from tippingpoint.units import format_length
from tippingpoint.workload import Subject

if TYPE_CHECKING:
    import altair as alt

Record = dict[str, Any]

# Of a metric: title of the axis, what its values are multiplied by there, and how a label is written.
AXES: dict[str, tuple[str, float, str]] = {
    "latency": ("latency of a batch", 1.0, "format(datum.value, '~s') + 's'"),
    "throughput": ("sequences per second", 1.0, "format(datum.value, ',~r')"),
    "peak_memory": ("peak memory (MiB)", 2.0**-20, "format(datum.value, ',~r')"),
    "flops": ("executed FLOPs of a call", 1.0, "format(datum.value, '~s')"),
}
_LADDERS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(step / 10 for step in range(10, 100, 2)))
_FEWEST_TICKS = 3
# So many digits are told: a pixel is less than one in the third.
_DIGITS = 4
# Tipping points that get a name in the figure; the table has all of them.
_MOST_NAMED = 6
# Names of tipping points stand below each other, so far apart as a share of the height.
_LINE = 0.055
# A longer name ends in dots.
_NAME_PIXELS = 340
# Beyond this share of the axis a name stands to the left of its mark.
_LEFT = 0.62
_BINS = 24
_HEIGHT = 400
# The person's histogram takes this share of the height.
_LOW = 0.22
# Stays as it is in the dark: it lies on cells that stay light.
ON_CELL = "#1a1a1b"
_CELL_COLORS = ("#7fb8dc", "#a9cfe8", "#cfe3f1", "#eef1f3", "#fbe3cd")
_MOST_BEHIND = 8.0


def looks(comparisons: Sequence[Comparison]) -> dict[Subject, tuple[str, str]]:
    """Return the colour and the shape of every subject, the same all over a page; baselines are black and grey."""
    contests = [each.contest for each in comparisons]
    vanilla = dict.fromkeys(subject for each in contests for subject in each.baselines)
    found = {subject: ((INK, "circle") if number == 0 else (GREY, BAR)) for number, subject in enumerate(vanilla)}
    subjects = dict.fromkeys(subject for each in contests for subject in each.subjects)
    variants = [subject for subject in subjects if subject not in found]
    # The first shape is the first baseline's.
    shapes = SHAPES[1:]
    for number, subject in enumerate(variants):
        found[subject] = (COLORS[number % len(COLORS)], shapes[number % len(shapes)])
    return found


def cost_figure() -> Record:
    """Return the figure that answers the question: cost against length, the person's lengths and tipping points."""
    import altair as alt

    legend = alt.Legend(title=None, orient="bottom", symbolSize=70, symbolOpacity=1, rowPadding=4)
    color = alt.Color("subject:N", legend=legend).scale(domain=["$subjects"], range=["$colors"])
    shape = alt.Shape("subject:N", legend=legend).scale(domain=["$subjects"], range=["$shapes"])
    chart = alt.LayerChart(
        layer=[_histogram(), _positions(), _tips(color, shape), _curves(color, shape)],
        width="container",
        height=_HEIGHT,
    )
    return _specification(chart.resolve_scale(y="independent"))


def _lengths(field: str = "length") -> alt.X:
    """Return the axis that all layers share; each says it whole, since they would be merged otherwise."""
    import altair as alt

    x = alt.X(f"{field}:Q", title="$x_title").scale(type="log", domain=["$from", "$to"], nice=False)
    return x.axis(values=["$x_ticks"], format=",~g", labelOverlap="greedy")


def _named(name: str) -> alt.InlineData:
    """Return data that the page puts in."""
    import altair as alt

    return alt.InlineData(values=[f"${name}"])  # type: ignore[list-item]


def _curves(color: alt.Color, shape: alt.Shape) -> alt.LayerChart:
    import altair as alt

    y = alt.Y("value:Q", title="$y_title").scale(type="log", domain=["$least", "$most"], nice=False)
    y = y.axis(values=["$y_ticks"], labelExpr="$y_label", grid=True, gridColor=LIGHT, gridOpacity=0.6)
    base = alt.Chart(_named("curves"))
    ends = alt.Chart(_named("ends"))
    return alt.LayerChart(
        layer=[
            base.mark_area(opacity=0.16, clip=True).encode(_lengths(), alt.Y("low:Q"), alt.Y2("high"), color=color),
            base.mark_rule(strokeWidth=1, opacity=0.55, clip=True).encode(
                _lengths(), alt.Y("low:Q"), alt.Y2("high"), color=color
            ),
            base.mark_line(strokeWidth=1.8, clip=True).encode(_lengths(), y, color=color),
            base.mark_point(filled=True, size=46, opacity=1).encode(
                _lengths(),
                y,
                color=color,
                shape=shape,
                tooltip=["subject:N", "length:Q", "value:Q", "low:Q", "high:Q"],
            ),
            ends.mark_point(shape="cross", angle=45, filled=True, size=80, opacity=1).encode(
                _lengths(), alt.Y("value:Q"), color=color, tooltip=["subject:N", "length:Q", "failure:N"]
            ),
            ends.mark_text(dy=-11, fontSize=10, color=INK).encode(_lengths(), alt.Y("value:Q"), text="failure:N"),
        ]
    )


def _histogram() -> alt.LayerChart:
    import altair as alt

    y = alt.Y("items:Q", axis=None).scale(domain=[0, "$tallest"], nice=False)
    bars = alt.Chart(_named("histogram")).mark_rect(
        color=GREY, opacity=0.28, clip=True, stroke="white", strokeWidth=0.7
    )
    bars = bars.encode(_lengths(), alt.X2("end"), y, alt.Y2("zero"), tooltip=["length:Q", "end:Q", "items:Q"])
    word = alt.Chart(_named("histogram_word")).mark_text(align="left", baseline="bottom", dx=4, dy=-4, fontSize=10)
    return alt.LayerChart(
        layer=[
            bars,
            word.encode(_lengths(), alt.Y("items:Q", axis=None), text="word:N", color=alt.value(GREY)),
        ]
    )


def _positions() -> alt.LayerChart:
    """Draw the second axis of lengths, above: marks, because its labels follow from no expression of a length."""
    import altair as alt

    base = alt.Chart(_named("positions"))
    top = alt.Y("top:Q", axis=None).scale(domain=[0, 1])
    return alt.LayerChart(
        layer=[
            base.mark_tick(orient="vertical", size=5, thickness=1, color=GREY, yOffset=-3).encode(_lengths(), top),
            base.mark_text(dy=-11, fontSize=11, color=INK).encode(_lengths(), top, text="positions:N"),
            alt.Chart(_named("positions_title"))
            .mark_text(dy=-29, fontSize=12, color=INK)
            .encode(_lengths(), top, text="title:N"),
        ]
    )


def _tips(color: alt.Color, shape: alt.Shape) -> alt.LayerChart:
    import altair as alt

    base = alt.Chart(_named("tips"))
    y = alt.Y("place:Q", axis=None).scale(domain=[0, 1])
    right = base.transform_filter("datum.side === 'right'").mark_text(
        align="left", dx=9, fontSize=11, limit=_NAME_PIXELS
    )
    left = base.transform_filter("datum.side === 'left'").mark_text(
        align="right", dx=-9, fontSize=11, limit=_NAME_PIXELS
    )
    texts = [words.encode(_lengths(), y, text="word:N", color=alt.value(INK)) for words in (right, left)]
    return alt.LayerChart(
        layer=[
            base.mark_rect(opacity=0.13, clip=True).encode(
                _lengths("low"), alt.X2("high"), alt.Y("bottom:Q", axis=None), alt.Y2("place"), color=color
            ),
            base.mark_rule(strokeWidth=1.3, strokeDash=[5, 3]).encode(
                _lengths(), alt.Y("bottom:Q", axis=None), alt.Y2("place"), color=color
            ),
            base.mark_point(filled=True, size=70, opacity=1).encode(
                _lengths(), y, color=color, shape=shape, tooltip=["subject:N", "length:Q", "low:Q", "high:Q"]
            ),
            *texts,
        ]
    )


def winner_figure() -> Record:
    """Return the winner map: lengths by subjects (or batch sizes), coloured by how far behind the best each is."""
    import altair as alt

    x, y = _cells_axes()
    base = alt.Chart(_named("cells"))
    scale = alt.Scale(type="log", domain=[1, _MOST_BEHIND], range=list(_CELL_COLORS), clamp=True)
    legend = alt.Legend(
        title="cost over the best", orient="bottom", gradientLength=160, values=[1, 2, 4, 8], format="~g"
    )
    cells = base.mark_rect(stroke="white", strokeWidth=1.5).encode(
        x, y, color=alt.Color("behind:Q", scale=scale, legend=legend), tooltip=["row:N", "column:N", "says:N"]
    )
    # A failure has no colour to lie on.
    layers = [
        base.transform_filter(kept).mark_text(fontSize=12).encode(x, y, text="mark:N", color=alt.value(color))
        for kept, color in (("datum.behind !== null", ON_CELL), ("datum.behind === null", INK))
    ]
    return _specification(_rows([cells, *layers]))


def batch_figure() -> Record:
    """Return who is the best by length and batch size: a colour and a shape for each subject."""
    import altair as alt

    x, y = _cells_axes("batch size")
    base = alt.Chart(_named("cells"))
    legend = alt.Legend(title=None, orient="bottom", labelLimit=0, symbolSize=70, symbolOpacity=1)
    color = alt.Color("subject:N", legend=legend).scale(domain=["$subjects"], range=["$colors"])
    shape = alt.Shape("subject:N", legend=legend).scale(domain=["$subjects"], range=["$shapes"])
    cells = base.mark_rect(stroke="white", strokeWidth=1.5, opacity=0.25).encode(x, y, color=color)
    marks = base.mark_point(filled=True, size=80, opacity=1).encode(
        x, y, color=color, shape=shape, tooltip=["subject:N", "row:N", "column:N", "level:N"]
    )
    words = base.mark_text(dx=14, fontSize=12).encode(x, y, text="mark:N", color=alt.value(INK))
    return _specification(_rows([cells, marks, words]))


def _cells_axes(title: str | None = None) -> tuple[alt.X, alt.Y]:
    """Return the axes of a map of cells: lengths, and rows that stand under a title."""
    import altair as alt

    x = alt.X("column:N", sort=["$columns_sort"], title="$x_title")
    y = alt.Y("row:N", sort=["$rows_sort"], title=title)
    return (
        x.axis(labelAngle=0, labelOverlap="greedy", orient="bottom"),
        y.axis(ticks=False, domain=False, labelPadding=6),
    )


def _rows(layers: list[Any]) -> alt.LayerChart:
    """Return layers as wide as there is room; the page makes them as high as their rows need."""
    import altair as alt

    return alt.LayerChart(layer=layers, width="container", height=_HEIGHT)


def _specification(chart: Any) -> Record:
    return themed(chart).to_dict()


def rounded(value: float) -> float:
    """Return a number with the digits that are told."""
    return float(f"{value:.{_DIGITS}g}")


def value_ticks(low: float, high: float) -> list[float]:
    """Return round values for a logarithmic axis: whole decades, and as many steps between them as it takes."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for ladder in _LADDERS:
        found = [rounded(step * 10.0**power) for power in powers for step in ladder]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= _FEWEST_TICKS:
            return found
    # So close to each other that even these are far apart.
    return sorted({rounded(low + (high - low) * share) for share in (0.1, 0.5, 0.9)})


def cost_axes(comparison: Comparison, lengths: LengthData | None) -> Record:
    """Return what fills the holes of the cost figure for every metric of a comparison: lengths above and below."""
    baseline, unit = comparison.contest.baselines[0], comparison.setting.unit
    low, high = log_ends([point.length for curve in comparison.curves for point in curve.points], room=0.04)
    row = architecture_of(baseline)
    ticks = length_ticks(low, high, unit)
    # Tokens are positions already.
    above = [(tick, row.positions(tick)) for tick in ticks if row.lengths.minimum <= tick]
    alike = all(tick == positions for tick, positions in above)
    title = LENGTHS[unit] + (", which is as many sequence positions" if alike and above else "")
    mine = lengths if lengths and lengths.unit == unit else None
    return {
        "x_title": title,
        "from": rounded(low),
        "to": rounded(high),
        "x_ticks": ticks,
        "positions": [] if alike else [{"length": tick, "top": 1, "positions": f"{n:,}"} for tick, n in above],
        "positions_title": []
        if alike
        else [{"length": math.sqrt(low * high), "top": 1, "title": f"sequence positions of {baseline}"}],
        **_histogram_fill(mine, low, high),
    }


def _histogram_fill(lengths: LengthData | None, low: float, high: float) -> Record:
    bins = lengths.histogram(_BINS) if lengths else []
    seen = [(max(start, low), min(end, high), count) for start, end, count in bins if start < high and end > low]
    # Of a single length there is one bin without a width.
    seen = [(start, end if end > start else start * 1.02, count) for start, end, count in seen]
    most = max((count for _, _, count in seen), default=1)
    word = [{"length": seen[0][0], "items": seen[0][2], "word": "your data"}] if seen else []
    return {
        "histogram": [
            {"length": rounded(start), "end": rounded(end), "items": count, "zero": 0} for start, end, count in seen
        ],
        "histogram_word": word,
        "tallest": most / _LOW,
    }


def metric_axes(metric: str, curves: Sequence[Curve], tips: int) -> Record:
    """Return what fills the holes of the vertical axis, for the curves of one metric, with room for marks above."""
    title, factor, label = AXES[metric]
    values = [factor * point.value for curve in curves for point in curve.points]
    low, high = log_ends(values, room=0.06)
    high *= (high / low) ** (1.4 * _LINE * min(tips, _MOST_NAMED))
    return {
        "y_title": title,
        "factor": factor,
        "y_label": label,
        "least": low,
        "most": high,
        "y_ticks": value_ticks(low, high),
    }


def tip_records(points: Sequence[TippingPoint], axes: Record) -> list[Record]:
    """Return the marks of tipping points: those of the first few have a name beside them."""
    placed = sorted((point for point in points if point.length is not None), key=lambda point: point.length or 0)
    records = []
    width = math.log(axes["to"] / axes["from"])
    for number, point in enumerate(placed):
        if point.length is None or point.interval is None:
            continue
        where = math.log(point.length / axes["from"]) / width
        named = number < _MOST_NAMED
        records.append(
            {
                "subject": str(point.variant),
                "length": rounded(point.length),
                "low": rounded(max(point.interval[0], axes["from"])),
                "high": rounded(min(point.interval[1], axes["to"])),
                "place": 0.965 - _LINE * min(number, _MOST_NAMED),
                "bottom": 0,
                "side": "left" if where > _LEFT else "right",
                "word": f"{format_length(point.length, point.unit)}, {point.variant}" if named else "",
                "short": format_length(point.length, point.unit) if named else "",
            }
        )
    return records
