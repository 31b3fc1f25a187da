"""Where a call's time, memory and arithmetic go: tables, and figures of components against length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from tippingpoint.analysis.breakdown import Breakdown, Row
from tippingpoint.errors import AnswerError
from tippingpoint.measurement import Failure
from tippingpoint.models.catalog import architecture_of
from tippingpoint.models.components import (
    ATTENTION,
    CONVOLUTION,
    GROUPS,
    HEAD,
    INPUT,
    LOSS,
    NORMS,
    OPTIMIZER,
    OTHER,
    OUTPUT_PROJECTION,
    PROJECTIONS,
    RESAMPLING,
)
from tippingpoint.report.figures import GREY, INK, LENGTHS, LIGHT, save, themed
from tippingpoint.report.tables import plain_table
from tippingpoint.stages import FUSED, SCORES, SOFTMAX, WEIGHTED
from tippingpoint.units import (
    format_bytes,
    format_count,
    format_half_width,
    format_length,
    format_percent,
    format_seconds,
)
from tippingpoint.workload import Workload

if TYPE_CHECKING:
    import altair as alt

METRICS = ("latency", "flops", "memory", "parameters")
_UNEXPLAINED = "unexplained"
_SMALL_PARTS = "smaller parts"
# A part below this share at every length and in every subject is not worth a colour.
_SMALL = 0.01
_WIDTH, _HEIGHT = 250, 170
# With more columns beside each other, times stand alone.
_MOST_WITH_SHARE = 5
# A name that is longer is written in several lines.
_MOST_IN_A_LINE = 14

Record = dict[str, Any]
# A split of fused attention: of its time, by the shares of the same attention step by step.
Split = Sequence[tuple[str, float]]


def breakdown_tables(
    found: Sequence[Breakdown],
    metrics: Sequence[str],
    *,
    by_layer: bool = False,
    splits: Mapping[Workload, Split] | None = None,
) -> list[Table]:
    """Return what a terminal shows.

    Of each subject all lengths beside each other, and the last of them in detail; then subjects beside each other at
    the longest length that several have.

    Args:
        found: Broken down.
        metrics: Which columns, out of `METRICS`.
        by_layer: Whether to show each layer on its own.
        splits: Of fused attention, where it was asked for.
    """
    tables = []
    for subject, phase in dict.fromkeys((each.workload.subject, each.workload.phase) for each in found):
        mine = [each for each in found if (each.workload.subject, each.workload.phase) == (subject, phase)]
        if len(mine) > 1 and "latency" in metrics:
            tables.append(lengths_table(mine))
        last = mine[-1]
        tables.append(breakdown_table(last, metrics, by_layer=by_layer, split=(splits or {}).get(last.workload, ())))
        if "memory" in metrics:
            tables.append(memory_table(last))
    longest: dict[tuple[float, str], list[Breakdown]] = {}
    for each in found:
        longest.setdefault((each.workload.length, each.workload.phase), []).append(each)
    for phase in dict.fromkeys(each.workload.phase for each in found):
        shared = [place for place, there in longest.items() if place[1] == phase and len(there) > 1]
        if shared and "latency" in metrics:
            tables.append(subjects_table(longest[max(shared)]))
    return tables


def breakdown_lines(outcomes: Sequence[Breakdown | Failure]) -> list[str]:
    """Return what to know beside the tables: closure, bounds, what ran, warnings and failures; each line once."""
    found = [each for each in outcomes if isinstance(each, Breakdown)]
    # Of several calls, tables say it.
    lines = [
        *(map(closure_line, found) if len(found) == 1 else ()),
        *(map(what_if_line, found) if len(found) == 1 else ()),
        *(f"{each.workload.subject}: attention ran as {each.attention}" for each in found),
        *(f"{each.workload.subject}: {note}" for each in found for note in each.notes),
        *(
            f"warning: {each.workload.subject} at {format_length(each.workload.length, _unit(each))}: {warning}"
            for each in found
            for warning in each.warnings
        ),
        *(f"failed: {each.workload}: {each.message}" for each in outcomes if isinstance(each, Failure)),
    ]
    return list(dict.fromkeys(lines))


def breakdown_table(
    found: Breakdown, metrics: Sequence[str] = ("latency", "flops"), *, by_layer: bool = False, split: Split = ()
) -> Table:
    """Return the parts of a call as a tree of two levels, what is between and beside them, and the whole.

    Args:
        found: What to show.
        metrics: Which columns, out of `METRICS`.
        by_layer: Whether to show each layer on its own.
        split: What fused attention would be made of, step by step; see `split_fused`.
    """
    directions = found.directions
    timed = "latency" in metrics
    columns = ["part"]
    if timed:
        columns += list(directions) if len(directions) > 1 else []
        columns += ["time", "share"]
    if "flops" in metrics:
        columns += ["FLOPs", "of peak", "bytes", "of bandwidth"]
    if "memory" in metrics:
        columns += ["held at peak"]
    if "parameters" in metrics:
        columns += ["parameters"]
    table = plain_table(_title(found), *columns)

    def cells(row: Row) -> list[str]:
        text = []
        if timed:
            text += [_time(row.seconds.get(each, 0.0)) for each in directions] if len(directions) > 1 else []
            text += [_time(row.total_s), format_percent(row.total_s / found.whole_s)]
        if "flops" in metrics:
            text += _rates(row, found)
        if "memory" in metrics:
            text += [format_bytes(row.held_bytes) if row.held_bytes else ""]
        if "parameters" in metrics:
            text += [format_count(row.parameters) if row.parameters else ""]
        return text

    rows = found.rows(by_layer=by_layer)
    for group in found.groups(by_layer=by_layer):
        parts = [row for row in rows if (row.group, row.layer) == (group.group, group.layer)]
        layer = "" if group.layer is None else f"layer {group.layer}, "
        table.add_row(Text(f"{layer}{group.group}", style="bold"), *cells(group))
        if len(parts) == 1 and parts[0].name == group.group:
            continue
        for row in parts:
            table.add_row(f"  {row.name}", *cells(row))
            if row.name == FUSED and timed and not by_layer:
                for name, seconds in split:
                    blank = [""] * len(directions) if len(directions) > 1 else []
                    share = format_percent(seconds / found.whole_s)
                    table.add_row(Text(f"    {name} (as in unfused)", style="dim"), *blank, _time(seconds), share)
    blank = [""] * (len(directions) if timed and len(directions) > 1 else 0)
    if timed:
        for name, seconds in (
            (found.between_name, found.between_operators_s),
            (_UNEXPLAINED, found.unexplained_s),
        ):
            table.add_row(name, *blank, _time(seconds), format_percent(seconds / found.whole_s))
    table.add_section()
    table.add_row(Text("whole call", style="bold"), *_whole(found, metrics, len(blank)))
    return table


def _whole(found: Breakdown, metrics: Sequence[str], blank: int) -> list[str]:
    text = []
    if "latency" in metrics:
        text += [*[""] * blank, _time(found.whole_s), "100 %"]
    if "flops" in metrics:
        sizes = [each.bytes_accessed for each in found.components]
        row = Row(
            group="",
            seconds={"forward": found.whole_s},
            flops=found.flops,
            bytes_accessed=None if None in sizes else sum(size or 0 for size in sizes),
            held_bytes=0,
            parameters=0,
        )
        text += _rates(row, found)
    if "memory" in metrics:
        text += [format_bytes(sum(each.held_bytes for each in found.components))]
    if "parameters" in metrics:
        text += [format_count(found.parameters)]
    return text


def _time(seconds: float) -> str:
    return f"-{format_seconds(-seconds)}" if seconds < 0 else format_seconds(seconds) if seconds else "0"


def _rates(row: Row, found: Breakdown) -> list[str]:
    """Return FLOPs and bytes, and what share of the machine's own rates they reach."""
    per_s = 1 / row.total_s if row.total_s > 0 else None
    flops = format_count(row.flops) if row.flops else ""
    accessed = "" if not row.bytes_accessed else format_bytes(row.bytes_accessed)
    of_peak = of_bandwidth = ""
    if per_s is not None and found.peaks is not None:
        of_peak = format_percent(row.flops * per_s / found.peaks.flops_per_s) if row.flops else ""
        if row.bytes_accessed:
            of_bandwidth = format_percent(row.bytes_accessed * per_s / found.peaks.bytes_per_s)
    return [flops, of_peak, accessed, of_bandwidth]


def memory_table(found: Breakdown) -> Table:
    """Return what is in memory when a call holds the most, and who made it.

    Tensors are followed in a call of their own; the peak itself was read in a process of its own, and what it has
    beyond them is what operators take for themselves and what allocators keep.
    """
    at = format_length(found.workload.length, _unit(found))
    title = f"At the peak of memory: {found.workload.subject} at {at}, {found.workload.phase}"
    table = plain_table(title, "what", "bytes", "share")
    memory = found.memory
    if memory is None:
        return table
    held = [(_named(row), row.held_bytes) for row in found.rows() if row.held_bytes]
    rows = [
        ("weights", memory.weights_bytes),
        ("inputs", memory.inputs_bytes),
        ("optimizer state", memory.optimizer_bytes),
        ("gradients of parameters", found.gradients_bytes),
        *((f"made by {name}", size) for name, size in held),
    ]
    rows.append(("workspace of operators, and the rest", memory.peak_bytes - sum(size for _, size in rows)))
    for name, size in rows:
        if size:
            sign = "-" if size < 0 else ""
            table.add_row(name, f"{sign}{format_bytes(abs(size))}", format_percent(size / memory.peak_bytes))
    table.add_section()
    table.add_row(Text("peak", style="bold"), format_bytes(memory.peak_bytes), "100 %")
    return table


def _named(row: Row) -> str:
    return row.name if row.name == row.group else f"{row.group}: {row.name}"


def lengths_table(found: Sequence[Breakdown]) -> Table:
    """Return the parts of one subject's calls, a column for each length: time and share."""
    columns = [format_length(each.workload.length, _unit(each)) for each in found]
    return _side_by_side(f"{found[0].workload.subject}: {_setting(found[0])}", columns, found)


def subjects_table(found: Sequence[Breakdown]) -> Table:
    """Return the parts of calls at one length, a column for each subject: time and share."""
    at = format_length(found[0].workload.length, _unit(found[0]))
    # A line for the architecture, one for each variant and one for each option: names are longer than numbers.
    columns = ["\n".join(_in_lines(str(each.workload.subject))) for each in found]
    table = _side_by_side(f"Side by side at {at}: {_setting(found[0])}", columns, found)
    table.add_row("speed-up over the first", *(f"{found[0].whole_s / each.whole_s:.2f}x" for each in found))
    return table


def _side_by_side(title: str, columns: Sequence[str], found: Sequence[Breakdown]) -> Table:
    table = plain_table(title, "part", *columns)
    tables = [{(row.group, row.name): row for row in each.rows()} for each in found]
    groups = [{row.group: row for row in each.groups()} for each in found]

    def cells(rows: Iterable[Row | None]) -> list[str]:
        return [
            "" if row is None else _with_share(row.total_s, each.whole_s, len(found))
            for row, each in zip(rows, found, strict=True)
        ]

    for group in dict.fromkeys(name for each in groups for name in each):
        table.add_row(Text(group, style="bold"), *cells(each.get(group) for each in groups))
        names = dict.fromkeys(name for each in tables for place, name in each if place == group)
        for name in names if list(names) != [group] else ():
            table.add_row(f"  {name}", *cells(each.get((group, name)) for each in tables))
    for name, beside in (
        (found[0].between_name, [each.between_operators_s for each in found]),
        (_UNEXPLAINED, [each.unexplained_s for each in found]),
    ):
        shown = zip(beside, found, strict=True)
        table.add_row(name, *(_with_share(seconds, each.whole_s, len(found)) for seconds, each in shown))
    table.add_section()
    table.add_row(Text("whole call", style="bold"), *(_time(each.whole_s) for each in found))
    table.add_row("adds up to", *(f"{each.closure:.3f}" for each in found))
    intervals = [each.closure_interval for each in found]
    table.add_row("  give or take", *(format_half_width((high - low) / 2) for low, high in intervals))
    table.add_row("watching added", *(format_percent(each.overhead) for each in found))
    table.add_row("if attention were free", *(f"{each.most_speed_up():.2f}x" for each in found))
    table.add_row("  and its projections too", *(f"{each.most_speed_up(projections=True):.2f}x" for each in found))
    return table


def _in_lines(subject: str) -> list[str]:
    """Return a subject in several lines: the architecture, each variant, each option."""
    named = subject.replace(",mode=auto", "")
    if len(named) <= _MOST_IN_A_LINE:
        return [named]
    return re.sub(r"(?=[@+])|[:,](?=[a-z_]+=)", "\n", named).split("\n")


def _with_share(seconds: float, whole: float, columns: int) -> str:
    share = f" {format_percent(seconds / whole):>6}" if columns <= _MOST_WITH_SHARE else ""
    return f"{_time(seconds)}{share}"


def what_if_line(found: Breakdown) -> str:
    """Return the bound on every attention variant's speed-up at a length, in words."""
    return (
        f"if attention were free, {found.workload.subject} at {format_length(found.workload.length, _unit(found))} "
        f"would be {found.most_speed_up():.2f} times as fast, and {found.most_speed_up(projections=True):.2f} times "
        "if its projections were free too: no attention variant can give more here"
    )


def closure_line(found: Breakdown) -> str:
    """Return in words how well the parts add up, and what watching cost."""
    low, high = found.closure_interval
    return (
        f"{found.workload.subject} at {format_length(found.workload.length, _unit(found))}: parts add up to "
        f"{found.closure:.3f} of a plain call (95 % {low:.3f} to {high:.3f}, {len(found.plain_s)} rounds); watching "
        f"added {format_percent(found.overhead)} to a call"
    )


def split_fused(fused: Breakdown, unfused: Breakdown) -> Split:
    """Return how the time of fused attention would be shared out, if its steps had the shares that they have unfused.

    An estimate: fused attention does not run these steps one after another.

    Args:
        fused: With a part "fused attention".
        unfused: The same subject with attention step by step, at the same length.
    """
    seconds = {row.name: row.total_s for row in unfused.rows() if row.group == ATTENTION}
    steps = {name: seconds.get(name, 0.0) for name in (SCORES, SOFTMAX, WEIGHTED)}
    whole = sum(row.total_s for row in fused.rows() if row.name == FUSED)
    total = sum(steps.values())
    if not total or not whole:
        return ()
    return tuple((name, whole * each / total) for name, each in steps.items())


def _unit(found: Breakdown) -> str:
    return architecture_of(found.workload.subject).unit


def _setting(found: Breakdown) -> str:
    return f"{found.workload.phase}, {_where(found)}"


def _where(found: Breakdown) -> str:
    workload = found.workload
    threads = "" if workload.threads is None or workload.device != "cpu" else f", {workload.threads} threads"
    return f"{workload.device} {workload.dtype}{threads}, {workload.shape}, batch {workload.batch_size}"


def _title(found: Breakdown) -> str:
    workload = found.workload
    return f"{workload.subject} at {format_length(workload.length, _unit(found))}: {_setting(found)}"


# Attention in blue (what approximations add in purple), the feed-forward part in green, all else apart.
_COLORS = {
    PROJECTIONS: "#c6dbef",
    OUTPUT_PROJECTION: "#9ecae1",
    SCORES: "#6baed6",
    SOFTMAX: "#2171b5",
    WEIGHTED: "#08519c",
    FUSED: "#08306b",
    "up": "#a1d99b",
    "activation": "#006d2c",
    "down": "#41ab5d",
    NORMS: "#fdae6b",
    CONVOLUTION: "#d94801",
    RESAMPLING: "#fee391",
    HEAD: "#636363",
    LOSS: "#252525",
    OPTIMIZER: "#a63603",
    _SMALL_PARTS: "#e7e7e7",
    "between operators": "#f7f7f7",
    "device waits for the host": "#f7f7f7",
}
_OWN_STEPS = ("#807dba", "#cc79a7", "#54278f", "#bcbddc", "#dd1c77", "#9e9ac8")
_INPUTS = ("#969696", "#bdbdbd", "#737373", "#d9d9d9")
_OTHERS = ("#8c6d31", "#bd9e39", "#e7ba52")


def breakdown_chart(found: Sequence[Breakdown]) -> alt.HConcatChart:
    """Draw parts against length: time, share, and the speed-up if attention were free; a column for each subject.

    Raises:
        AnswerError: If there is nothing to draw.
    """
    import altair as alt

    if not found:
        raise AnswerError("nothing was broken down, so there is nothing to draw")
    records, names = _records(found)
    unit = _unit(found[0])
    lengths = sorted({each.workload.length for each in found})
    labels = [format_length(length, unit).split(" ")[0] for length in lengths]
    colors = _colors(names)
    order = [name for name, _ in names]
    color = alt.Color("part:N", legend=alt.Legend(title=None, orient="right", symbolType="square", rowPadding=2))
    color = color.scale(domain=order[::-1], range=colors[::-1])
    longest = max(
        sum(r["seconds"] for r in records if r["subject"] == s and r["length"] == at)
        for s in {r["subject"] for r in records}
        for at in labels
    )
    factor, time_unit = (1, "s") if longest >= 1 else (1e3, "ms")
    columns = []
    subjects = list(dict.fromkeys(str(each.workload.subject) for each in found))
    for number, subject in enumerate(subjects):
        there = [{**record, "time": factor * record["seconds"]} for record in records if record["subject"] == subject]
        x = alt.X("length:N", sort=labels, title=None).scale(domain=labels, paddingInner=0.15, paddingOuter=0.15)
        bars = alt.Chart(alt.InlineData(values=there), width=_WIDTH, height=_HEIGHT).mark_bar(
            stroke=GREY, strokeWidth=0.3
        )
        stack = alt.Order("place:Q")
        tip = ["part:N", "length:N", alt.Tooltip("time:Q", format=".3g"), alt.Tooltip("share:Q", format=".1%")]
        first = number == 0
        absolute = bars.encode(
            x.axis(labelAngle=0),
            alt.Y("time:Q", title=f"time ({time_unit})" if first else None)
            .scale(domain=[0, 1.05 * factor * longest], nice=False)
            .axis(grid=True, gridColor=LIGHT, tickCount=5),
            color,
            stack,
            tooltip=tip,
        ).properties(title=alt.TitleParams(_in_lines(subject), fontSize=12, lineHeight=14, anchor="middle", offset=6))
        share = bars.encode(
            x.axis(labelAngle=0),
            alt.Y("share:Q", title="share of the call" if first else None, stack="zero")
            .scale(domain=[0, 1.001], clamp=True)
            .axis(format="%", tickCount=5),
            color,
            stack,
            tooltip=tip,
        )
        columns.append(alt.VConcatChart(vconcat=[absolute, share, _bound(found, subject, labels, first)], spacing=12))
    title = alt.TitleParams(
        f"Where the time goes in {found[0].workload.phase}",
        subtitle=[_where(found[0])],
    )
    return themed(alt.HConcatChart(hconcat=columns, spacing=18, title=title))


def _bound(found: Sequence[Breakdown], subject: str, labels: Sequence[str], first: bool) -> Any:
    """Draw the speed-up if attention were free, and if its projections were too."""
    import altair as alt

    kinds = ("if attention were free", "and its projections too")
    rows = [
        {
            "length": format_length(each.workload.length, _unit(each)).split(" ")[0],
            "speed-up": each.most_speed_up(projections=projections),
            "kind": kinds[projections],
        }
        for each in found
        if str(each.workload.subject) == subject
        for projections in (False, True)
    ]
    most = max(each.most_speed_up(projections=True) for each in found)
    x = alt.X("length:N", sort=list(labels), title=LENGTHS[_unit(found[0])], bandPosition=0.5)
    x = x.scale(type="band", domain=list(labels), paddingInner=0.15, paddingOuter=0.15)
    y = alt.Y("speed-up:Q", title="speed-up at most" if first else None)
    y = y.scale(domain=[1, 1.08 * most], nice=False).axis(
        grid=True, gridColor=LIGHT, tickCount=4, labelExpr="datum.label + 'x'"
    )
    dash = alt.StrokeDash("kind:N", legend=alt.Legend(title=None, orient="right", symbolType="stroke")).scale(
        domain=list(kinds), range=[[1, 0], [4, 3]]
    )
    return (
        alt.Chart(alt.InlineData(values=rows), width=_WIDTH, height=110)
        .mark_line(color=INK, point=alt.OverlayMarkDef(color=INK, size=28))
        .encode(
            x.axis(labelAngle=0), y, dash, tooltip=["kind:N", "length:N", alt.Tooltip("speed-up:Q", format=".2f")]
        )
    )


def _records(found: Sequence[Breakdown]) -> tuple[list[Record], list[tuple[str, str]]]:
    """Return a record for each part of each call, and (name, group) of the parts in the order of the stack."""
    shares: dict[tuple[str, str], float] = {}
    for each in found:
        for row in each.rows():
            place = row.group, row.name
            shares[place] = max(shares.get(place, 0.0), row.total_s / each.whole_s)
    shown = [place for place, share in shares.items() if share >= _SMALL]
    shown.sort(key=lambda place: _place(place[0]))
    # Parts of unlike groups may share a name, such as activation; then the group tells them apart.
    twice = {name for _, name in shown if sum(other == name for _, other in shown) > 1}
    names = {place: _named_in_figure(*place, place[1] in twice) for place in shown}
    order = [(name, group) for (group, _), name in names.items()]
    order += [(_SMALL_PARTS, ""), (found[0].between_name, "")]
    places = {name: place for place, (name, _) in enumerate(order)}
    records = []
    for each in found:
        seconds = dict.fromkeys((name for name, _ in order), 0.0)
        for row in each.rows():
            seconds[names.get((row.group, row.name), _SMALL_PARTS)] += row.total_s
        seconds[each.between_name] += each.between_operators_s
        records += [
            {
                "subject": str(each.workload.subject),
                "length": format_length(each.workload.length, _unit(each)).split(" ")[0],
                "part": name,
                "place": places[name],
                "seconds": value,
                "share": value / each.whole_s,
            }
            for name, value in seconds.items()
            if value > 0
        ]
    used = {record["part"] for record in records}
    return records, [(name, group) for name, group in order if name in used]


def _place(group: str) -> int:
    """Return where a group stands in a stack."""
    return GROUPS.index(group if group in GROUPS else OTHER)


def _named_in_figure(group: str, name: str, twice: bool) -> str:
    if name in ("up", "activation", "down") or twice:
        return f"{group}: {name}" if name != group else name
    return name


def _colors(names: Sequence[tuple[str, str]]) -> list[str]:
    met: dict[str, int] = {}
    found = []
    for name, group in names:
        plain = name.removeprefix(f"{group}: ")
        if plain in _COLORS:
            found.append(_COLORS[plain])
            continue
        palette = {ATTENTION: _OWN_STEPS, INPUT: _INPUTS}.get(group, _OTHERS)
        found.append(palette[met.get(group, 0) % len(palette)])
        met[group] = met.get(group, 0) + 1
    return found


def layers_chart(found: Sequence[Breakdown]) -> alt.HConcatChart:
    """Draw the time of each part by layer, as a strip for each subject at its longest length.

    Raises:
        AnswerError: If no model has layers.
    """
    import altair as alt

    longest: dict[str, Breakdown] = {}
    for each in sorted(found, key=lambda each: each.workload.length):
        longest[str(each.workload.subject)] = each
    records = [
        {
            "subject": subject,
            "layer": row.layer,
            "part": _named(row),
            "group": row.group,
            "milliseconds": 1e3 * row.total_s,
        }
        for subject, each in longest.items()
        for row in each.rows(by_layer=True)
        if row.layer is not None and row.total_s > 0
    ]
    if not records:
        raise AnswerError("no layers were found in the model, so there is nothing to draw by layer")
    groups = {record["part"]: _place(record["group"]) for record in records}
    parts = sorted(groups, key=lambda part: groups[part])
    most = max(record["milliseconds"] for record in records)
    panels = []
    for subject, each in longest.items():
        there = [record for record in records if record["subject"] == subject]
        layers = sorted({record["layer"] for record in there})
        at = format_length(each.workload.length, _unit(each))
        panels.append(
            alt.Chart(alt.InlineData(values=there), width=max(120, 22 * len(layers)), height=22 * len(parts))
            .mark_rect(stroke="white", strokeWidth=1)
            .encode(
                alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
                alt.Y("part:N", sort=parts, title=None, scale=alt.Scale(domain=parts)).axis(
                    labels=not panels, ticks=not panels, labelLimit=0
                ),
                alt.Color("milliseconds:Q", legend=alt.Legend(title="ms per call")).scale(
                    scheme="blues", domain=[0, most]
                ),
                tooltip=["part:N", "layer:O", alt.Tooltip("milliseconds:Q", format=".3g")],
            )
            .properties(
                title=alt.TitleParams(
                    [*_in_lines(subject), at], fontSize=11, lineHeight=13, anchor="middle", offset=6
                )
            )
        )
    workload = found[0].workload
    title = alt.TitleParams(
        f"Time by layer in {workload.phase}",
        subtitle=[f"{workload.device} {workload.dtype}, {workload.shape}, batch {workload.batch_size}"],
    )
    return themed(alt.HConcatChart(hconcat=panels, spacing=14, title=title))


def draw(found: Sequence[Breakdown], path: Path, *, by_layer: bool = False) -> None:
    """Draw breakdowns into a file, as its name ends.

    Raises:
        InputError: If it cannot be written.
        AnswerError: If there is nothing to draw.
    """
    save(layers_chart(found) if by_layer else breakdown_chart(found), path)
