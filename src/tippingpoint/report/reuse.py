"""A plan for attention map reuse: tables for a terminal, and a figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tippingpoint.models.reuse_plan import ReusePlan, format_groups
from tippingpoint.report.figures import DIVERGING, GREY, INK, LIGHT, themed
from tippingpoint.report.tables import plain_table
from tippingpoint.units import format_count, format_items, format_percent

if TYPE_CHECKING:
    import altair as alt

Record = dict[str, Any]
# Of each of the two parts of the figure, in pixels.
_SIDE = 300
# So many layers at most have their numbers in the cells of the map, and their points labelled one by one.
_WITH_NUMBERS = 12
_PAPER = "#f7f7f7"
_BLUE, _ORANGE = DIVERGING[-1], DIVERGING[0]
_MATCHED, _AS_THEY_ARE = "heads matched", "head by head"


CHOICES_NOTE = (
    "mean similarity of a layer's map to the one it would use (1 where it computes its own), with heads matched and "
    "head by head; other numbers of maps follow from overlaps and weights, without trials"
)
TRIALS_NOTE = "how far the model's output moves when these layers share maps: 1 less its cosine to what it was"
_TRIED_SHOWN = 5
SIMILARITY_NOTE = "mean overlap of two layers' maps: above the diagonal with heads matched, below head by head"
DIAGONALITY_NOTE = "share of a layer's attention within so many positions of the query"


def choices_table(plan: ReusePlan) -> Table:
    """Return what each number of maps would give, and which of them the plan is."""
    table = plain_table(
        "Numbers of maps", "maps", "groups (the first layer computes)", _MATCHED, _AS_THEY_ARE, "arithmetic left"
    )
    saves = any(choice.parameters_saved for choice in plan.choices)
    for name in ("parameters saved",) * saves + ("",):
        table.add_column(name, justify="right", no_wrap=True)
    table.columns[0].justify, table.columns[1].justify = "right", "left"
    table.columns[1].no_wrap = False
    for choice in plan.choices:
        own = choice.num_maps == plan.num_maps
        shown = plan.choice if own else choice
        saved = (format_count(shown.parameters_saved),) * saves
        table.add_row(
            str(shown.num_maps),
            format_groups(shown.groups),
            f"{shown.matched:.3f}",
            f"{shown.unmatched:.3f}",
            format_percent(shown.cost_share),
            *saved,
            "this plan" if own else "",
            style="bold green" if own else "",
        )
    return table


def similarity_table(plan: ReusePlan) -> Table:
    """Return the overlap of the maps of each two layers: above the diagonal with heads matched, below as they are."""
    similarity = plan.similarity
    table = plain_table(
        "Overlap of attention maps",
        "layer",
        *map(str, similarity.eligible),
    )
    table.columns[0].justify = "right"
    for a, layer in enumerate(similarity.eligible):
        cells = [
            "" if a == b else f"{(similarity.matched if b > a else similarity.unmatched)[a, b]:.2f}"
            for b in range(len(similarity.eligible))
        ]
        table.add_row(str(layer), *cells)
    return table


def trials_table(plan: ReusePlan) -> Table:
    """Return the groups that were tried, the best first."""
    table = plain_table("Groups that were tried", "groups of several layers", "output moves by")
    table.columns[0].justify = "left"
    for groups, loss in plan.tried[:_TRIED_SHOWN]:
        table.add_row(format_groups(groups) or "none", f"{loss:.3f}")
    if len(plan.tried) > _TRIED_SHOWN:
        table.add_row(f"and {len(plan.tried) - _TRIED_SHOWN} more, up to", f"{plan.tried[-1][1]:.3f}")
    return table


def weights_line(plan: ReusePlan) -> str:
    """Return how much a difference of its map matters in each layer that was tried."""
    similarity = plan.similarity
    pairs = list(zip(similarity.eligible, similarity.weights, strict=True))[1:]
    return "what a difference of its map matters, 1 in the mean: " + ", ".join(
        f"layer {layer} {weight:.2f}" for layer, weight in pairs
    )


def diagonality_table(plan: ReusePlan) -> Table:
    """Return the share of each layer's attention within some distances of the query."""
    similarity = plan.similarity
    table = plain_table(
        "Diagonality",
        "layer",
        *map(str, similarity.distances),
    )
    table.columns[0].justify = "right"
    for layer, shares in zip(similarity.eligible, similarity.diagonality, strict=True):
        table.add_row(str(layer), *(format_percent(share) for share in shares))
    return table


def basis_line(plan: ReusePlan) -> str:
    """Return what a plan rests on."""
    similarity = plan.similarity
    windowed = similarity.layers - len(similarity.eligible)
    apart = f"; {format_items(windowed, 'layer')} with a window of their own stay as they are" if windowed else ""
    size = f"{format_items(similarity.layers, 'layer')} with {format_items(similarity.heads, 'head')}"
    return (
        f"{similarity.model}: {size}; {format_items(similarity.inputs, 'input')} of {similarity.positions:,.0f} "
        f"positions on average, {similarity.rows:,} of their positions examined{apart}"
    )


def plan_record(plan: ReusePlan) -> Record:
    """Return a plan for `--json`: what it gives, every other choice, and similarities by layer."""
    similarity = plan.similarity
    return {
        "groups": plan.groups,
        "head_matches": plan.head_matches,
        "choice": plan.choice,
        "choices": plan.choices,
        "cost_ratio": plan.cost_ratio,
        "model": similarity.model,
        "layers": similarity.layers,
        "eligible": similarity.eligible,
        "heads": similarity.heads,
        "inputs": similarity.inputs,
        "rows": similarity.rows,
        "positions": similarity.positions,
        "matched": similarity.matched.tolist(),
        "unmatched": similarity.unmatched.tolist(),
        "distances": similarity.distances,
        "diagonality": similarity.diagonality.tolist(),
        "weights": similarity.weights,
        "tried": [{"groups": groups, "loss": loss} for groups, loss in plan.tried],
    }


def plan_chart(plan: ReusePlan) -> alt.HConcatChart:
    """Draw a plan: overlaps of layers with the groups around them, beside similarity against cost.

    Above the diagonal of the map heads are matched, below they are as they are; frames are the groups that share a
    map. In the curve each point is a number of maps, the chosen one filled.
    """
    import altair as alt

    similarity = plan.similarity
    title = alt.TitleParams(
        f"{similarity.model}: which layers may share an attention map",
        subtitle=[
            f"{format_items(similarity.inputs, 'input')}, {similarity.rows:,} positions examined; "
            f"{format_items(plan.num_maps, 'map')}: {format_groups(plan.groups)}"
        ],
        anchor="start",
    )
    both = alt.hconcat(_heat_map(plan), _curve(plan), spacing=40, title=title)
    return themed(both.resolve_scale(color="independent", shape="independent"))


def _heat_map(plan: ReusePlan) -> alt.LayerChart:
    import altair as alt

    layers, cells = plan.similarity.eligible, _cells(plan)
    count = len(layers)
    low, high = _reach([cell["overlap"] for cell in cells])
    step = 1 if count <= _WITH_NUMBERS else 2 if count <= 2 * _WITH_NUMBERS else 4
    names = f"[{','.join(map(str, layers))}][datum.value]"
    axis = alt.Axis(
        values=list(range(0, count, step)), labelExpr=names, ticks=False, domain=False, labelAngle=0, labelPadding=6
    )
    ends = alt.Scale(domain=[-0.5, count - 0.5], nice=False, zero=False)
    turned = alt.Scale(domain=[count - 0.5, -0.5], nice=False, zero=False)

    def across(field: str) -> alt.X:
        return alt.X(field, type="quantitative", title="layer", scale=ends, axis=axis)

    def down(field: str) -> alt.Y:
        return alt.Y(field, type="quantitative", title="layer", scale=turned, axis=axis)

    color = alt.Color(
        "overlap:Q",
        title="overlap of attention maps",
        scale=alt.Scale(domain=[low, high], range=[_PAPER, _BLUE]),
        legend=alt.Legend(
            orient="bottom",
            direction="horizontal",
            gradientLength=180,
            gradientThickness=10,
            values=[low, (low + high) / 2, high],
            format=".2f",
        ),
    )
    base = alt.Chart(alt.InlineData(values=cells))
    rectangles = base.mark_rect(stroke="white", strokeWidth=0.6).encode(
        across("left"),
        down("top"),
        x2="right",
        y2="bottom",
        color=color,
        tooltip=["first:O", "second:O", "overlap:Q", "heads:N"],
    )
    parts: list[alt.Chart] = [rectangles]
    if count <= _WITH_NUMBERS:
        parts.append(
            base.mark_text(fontSize=10 if count <= 8 else 8).encode(
                across("column"),
                down("row"),
                text=alt.Text("overlap:Q", format=".2f"),
                color=alt.condition(f"datum.overlap > {(low + 2 * high) / 3}", alt.value("white"), alt.value(INK)),
            )
        )
    own = [{"left": n - 0.5, "right": n + 0.5} for n in range(count)]
    diagonal = alt.Chart(alt.InlineData(values=own)).mark_rect(color=LIGHT, stroke="white", strokeWidth=0.6)
    parts.append(diagonal.encode(across("left"), down("left"), x2="right", y2="right"))
    frames = alt.Chart(alt.InlineData(values=_frames(plan)))
    parts.append(
        frames.mark_rect(filled=False, stroke=INK, strokeWidth=1.8).encode(
            across("left"), down("left"), x2="right", y2="right"
        )
    )
    heading = _heading(f"{_MATCHED} above the diagonal, {_AS_THEY_ARE} below")
    return alt.LayerChart(layer=parts, width=_SIDE, height=_SIDE, title=heading)


def _curve(plan: ReusePlan) -> alt.LayerChart:
    import altair as alt

    records = _points(plan)
    least = min(record["similarity"] for record in records)
    low = math.floor(10 * least - 0.2) / 10
    begin = math.floor(10 * min(record["cost"] for record in records) - 0.3) / 10
    scale = alt.Scale(domain=[low, 1.05], nice=False, zero=False)
    vertical = alt.Y("similarity:Q", title="mean similarity of the map a layer uses to its own", scale=scale)
    horizontal = alt.X(
        "cost:Q",
        title="arithmetic of self-attention left",
        scale=alt.Scale(domain=[begin, 1.03], nice=False, zero=False),
        axis=alt.Axis(format=".0%", tickCount=6),
    )
    legend = alt.Legend(orient="bottom", symbolStrokeWidth=1.6, symbolSize=70)
    looks = {_MATCHED: ("circle", _BLUE, [1, 0]), _AS_THEY_ARE: ("square", _ORANGE, [4, 3])}
    marks, paints, dashes = zip(*looks.values(), strict=True)
    color = alt.Color("heads:N", title=None, legend=legend).scale(domain=list(looks), range=paints)
    shape = alt.Shape("heads:N", title=None, legend=legend).scale(domain=list(looks), range=marks)
    tooltip = ["num_maps:O", "groups:N", "similarity:Q", "cost:Q", "heads:N"]

    def drawn(kind: str, *, chosen_only: bool = False) -> alt.Chart:
        own = [each for each in records if each["heads"] == kind and (each["chosen"] or not chosen_only)]
        return alt.Chart(alt.InlineData(values=own)).encode(horizontal, vertical, tooltip=tooltip)

    lines = [
        drawn(kind).mark_line(color=paint, strokeDash=dash, strokeWidth=1.6).encode(order="num_maps:Q")
        for kind, paint, dash in zip(looks, paints, dashes, strict=True)
    ]
    points = alt.Chart(alt.InlineData(values=records)).mark_point(size=55, strokeWidth=1.6, opacity=1, fill="white")
    points = points.encode(horizontal, vertical, color=color, shape=shape, tooltip=tooltip)
    chosen = [
        drawn(kind, chosen_only=True).mark_point(size=55, filled=True, opacity=1, shape=mark, color=paint)
        for kind, mark, paint in zip(looks, marks, paints, strict=True)
    ]
    labelled = alt.Chart(alt.InlineData(values=[record for record in records if record["label"]]))
    names = labelled.mark_text(align="right", baseline="bottom", dx=-6, dy=-3, fontSize=11, color=INK).encode(
        horizontal, vertical, text="label:N"
    )
    heading = _heading("numbers: maps that are computed")
    return alt.LayerChart(layer=[*lines, points, *chosen, names], width=_SIDE, height=_SIDE, title=heading)


def _heading(text: str) -> alt.TitleParams:
    import altair as alt

    return alt.TitleParams(text, fontSize=12, fontWeight="normal", color=GREY, offset=8)


def _cells(plan: ReusePlan) -> list[Record]:
    similarity = plan.similarity
    found = []
    for row, first in enumerate(similarity.eligible):
        for column, second in enumerate(similarity.eligible):
            if row != column:
                pairs = similarity.matched if column > row else similarity.unmatched
                found.append(
                    {
                        "first": first,
                        "second": second,
                        "row": row,
                        "column": column,
                        "left": column - 0.5,
                        "right": column + 0.5,
                        "top": row - 0.5,
                        "bottom": row + 0.5,
                        "overlap": float(pairs[row, column]),
                        "heads": _MATCHED if column > row else _AS_THEY_ARE,
                    }
                )
    return found


def _frames(plan: ReusePlan) -> list[Record]:
    place = {layer: number for number, layer in enumerate(plan.similarity.eligible)}
    return [
        {"left": place[group[0]] - 0.5, "right": place[group[-1]] + 0.5} for group in plan.groups if group[0] in place
    ]


def _points(plan: ReusePlan) -> list[Record]:
    count = len(plan.choices)
    step = math.ceil(count / _WITH_NUMBERS)
    records = []
    for choice in plan.choices:
        chosen = choice.num_maps == plan.num_maps
        shown = plan.choice if chosen else choice
        named = (
            chosen
            or choice.num_maps in (1, count)
            or (choice.num_maps % step == 0 and count - choice.num_maps >= step)
        )
        for heads, value in ((_MATCHED, shown.matched), (_AS_THEY_ARE, shown.unmatched)):
            records.append(
                {
                    "num_maps": shown.num_maps,
                    "groups": format_groups(shown.groups),
                    "similarity": value,
                    "cost": shown.cost_share,
                    "heads": heads,
                    "chosen": chosen,
                    "label": str(shown.num_maps) if named and heads == _MATCHED else "",
                }
            )
    return records


def _reach(values: list[float]) -> tuple[float, float]:
    """Return round ends of the colours; the whole range where there is one layer only."""
    if not values:
        return 0.0, 1.0
    low, high = math.floor(20 * min(values)) / 20, math.ceil(20 * max(values)) / 20
    return (low, high) if high > low else (max(0.0, low - 0.05), min(1.0, low + 0.05))
