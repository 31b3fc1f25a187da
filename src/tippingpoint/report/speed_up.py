"""Speed-ups against length: a table, a figure, and where each subject wins."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tippingpoint.analysis.comparison import ComparisonPoint
from tippingpoint.analysis.winners import Best, Race, SpeedUp, races, stretches
from tippingpoint.errors import AnswerError
from tippingpoint.measurement import Outcome
from tippingpoint.models.catalog import architecture_of
from tippingpoint.report.figures import GREY, INK, LENGTHS, LIGHT, length_ticks, log_ends, ratio_ticks, save, themed
from tippingpoint.report.tables import plain_table
from tippingpoint.store import StoredSession
from tippingpoint.units import format_bytes, format_count, format_items, format_length
from tippingpoint.workload import Subject

if TYPE_CHECKING:
    import altair as alt

Record = dict[str, Any]
_WIDTH, _HEIGHT = 310, 250
# Apart for every kind of colour vision (Okabe and Ito, 2008), without the yellow that white paper swallows; as their
# number and that of the shapes have no divisor in common, 56 subjects look unlike.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f3c8d")
SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "triangle-down",
    "cross",
    "triangle-right",
    "triangle-left",
)
# Of baselines.
BAR = "M-1,-.25H1V.25H-1Z"
# The axis of ratios reaches so far beyond them; longer intervals are cut off.
_MOST_BEYOND = 2.0


def setting_line(race: Race) -> str:
    """Return the setting of a race in words."""
    workload = race.workload
    threads = "" if workload.threads is None or workload.device != "cpu" else f", {workload.threads} threads"
    batch = race.batch_size if race.batch_budget is None else f"of {race.batch_budget:g} {_unit(race)}"
    return f"{workload.device} {workload.dtype}{threads}, {workload.shape}{workload.manner}, batch {batch}"


def speed_up_table(race: Race) -> Table:
    """Return the speed-up of every subject over each baseline by length, with memory, parameters and FLOPs beside.

    A speed-up is the baseline's latency over the subject's, from paired rounds; its 95 % interval stands behind it.
    """
    baselines, unit = race.contest.baselines, _unit(race)
    over = [f"over {baseline}" for baseline in baselines]
    columns = (unit, "subject", *over, "memory", "parameters", "FLOPs", "by definition")
    table = plain_table(f"Speed-up with its 95 % interval ({race.phase})", *columns, left=2)
    table.columns[0].justify, table.columns[0].no_wrap = "right", True
    points = _by_place(race.speed_ups())
    for length in race.lengths:
        there = race.measured[length]
        if table.rows:
            table.add_section()
        at = format_length(length, unit).split(" ")[0]
        failed = race.failures(length)
        for subject in race.contest.subjects:
            name = _label(subject, race)
            if subject in failed:
                table.add_row(at, name, Text(failed[subject].kind.replace("_", " "), style="red"))
            if subject not in there:
                continue
            measurement = there[subject]
            flops = measurement.flops
            table.add_row(
                at,
                name,
                *(_ratio(points.get((baseline, subject, length))) for baseline in baselines),
                format_bytes(measurement.memory.peak_bytes) if measurement.memory else "",
                format_count(measurement.parameters),
                format_count(flops.total) if flops else "",
                format_count(flops.algorithmic) if flops and flops.algorithmic else "",
            )
    return table


def _label(subject: Subject, race: Race) -> str:
    """Return a subject as a table writes it: what is said of all, and modes that are the default, are left out."""
    text = str(subject).replace(",mode=auto", "")
    alike = len({each.architecture for each in race.contest.subjects}) == 1
    return text.partition("@")[2] if alike and subject not in race.contest.baselines else text


def _by_place(found: Iterable[SpeedUp]) -> dict[tuple[Subject, Subject, float], ComparisonPoint]:
    return {(each.baseline, each.subject, point.length): point for each in found for point in each.points}


def _ratio(point: ComparisonPoint | None) -> str:
    """Return a ratio and its interval in words; nothing where one of a pair ran out of memory."""
    if point is None or point.censored:
        return ""
    low, high = point.interval
    return f"{factor_words(point.ratio)}x  {factor_words(low)} to {factor_words(high)}"


def factor_words(value: float) -> str:
    """Return a ratio as text: "0.87", "12.3"."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.3g}"


def winners_table(race: Race) -> Table:
    """Return at which lengths each subject is the fastest and the smallest, of those at which all were measured."""
    faster, smaller = race.best("latency"), race.best("peak_memory")
    lengths = [each.length for each in faster]
    unit = _unit(race)
    reach = "at no length were all of them measured"
    if lengths:
        reach = f"{format_items(len(lengths), 'length')}, {_stretches(lengths, lengths, unit)}"
    table = plain_table(
        f"Where each wins ({race.phase}; {reach})",
        "subject",
        "fastest",
        "level with the fastest",
        "smallest",
        "level with the smallest",
        left=5,
    )
    for subject in race.contest.subjects:
        cells = [cell for found in (faster, smaller) for cell in _won(subject, found, unit)]
        table.add_row(Text(_label(subject, race), style="bold green" if cells[0] else ""), *cells)
    return table


def _won(subject: Subject, found: Sequence[Best], unit: str) -> tuple[str, str]:
    """Return the lengths at which a subject is the best, and those at which it is not certainly worse, in words."""
    lengths = [each.length for each in found]
    won = [each.length for each in found if each.subject == subject]
    level = [each.length for each in found if subject in each.level]
    return _stretches(lengths, won, unit), _stretches(lengths, level, unit)


def races_by_label(sessions: Iterable[StoredSession]) -> list[tuple[str, Race]]:
    """Return every race that a store's sessions hold, with the label of its run, which keeps runs apart."""
    labels: dict[str, list[Outcome]] = {}
    for session in sessions:
        labels.setdefault(session.label, []).extend(session.outcomes)
    return [(label, race) for label, outcomes in labels.items() for race in races(outcomes)]


def race_tables(found: Iterable[tuple[str, Race]]) -> list[RenderableType]:
    """Return the two tables of every race under its environment and setting."""
    tables: list[RenderableType] = []
    for label, race in found:
        environment = race.seen[0].environment
        named = f", label {label}" if label else ""
        tables += ["", f"Environment {environment.fingerprint}: {environment}", f"{setting_line(race)}{named}", ""]
        tables += [speed_up_table(race), "", winners_table(race)]
    return tables or ["nothing here was measured together with a vanilla subject, so there are no speed-ups"]


def _stretches(lengths: Sequence[float], chosen: Sequence[float], unit: str) -> str:
    parts = []
    for low, high in stretches(lengths, chosen):
        first, last = (format_length(end, unit).split(" ")[0] for end in (low, high))
        parts.append(first if low == high else f"{first} to {last}")
    return f"{', '.join(parts)} {format_length(1, unit).split(' ')[1]}" if parts else ""


def race_record(race: Race) -> Record:
    """Return speed-ups, and who wins where, as plain data."""
    return {
        "phase": race.phase,
        "setting": setting_line(race),
        "baselines": list(map(str, race.contest.baselines)),
        "speed_ups": [
            {
                "baseline": str(each.baseline),
                "subject": str(each.subject),
                "points": [
                    {"length": point.length, "ratio": point.ratio, "interval": list(point.interval)}
                    if not point.censored
                    else {"length": point.length, "ratio": None, "interval": None, "censored": point.censored}
                    for point in each.points
                ],
            }
            for each in race.speed_ups()
        ],
        "best": {
            metric: [
                {"length": each.length, "subject": str(each.subject), "level": list(map(str, each.level))}
                for each in race.best(metric)
            ]
            for metric in ("latency", "peak_memory")
        },
    }


def draw(found: Sequence[Race], metrics: Sequence[str], path: Path) -> list[Path]:
    """Draw every race and metric into a file, and return the files: where there are several, their names say of what.

    Args:
        found: What to draw; those without a comparison are left out.
        metrics: Any of "latency" and "peak_memory".
        path: The file, or what the files' names begin with.

    Raises:
        InputError: If a file cannot be written.
        AnswerError: If nothing could be compared.
    """
    wanted = [
        (race, metric)
        for race in found
        for metric in metrics
        if any(not point.censored for each in race.speed_ups(metric) for point in each.points)
    ]
    if not wanted:
        raise AnswerError("no length could be compared, so there are no speed-ups to draw")
    names = [_file_names(race, metric) for race, metric in wanted]
    # Only what tells one from another is in the names.
    telling = [place for place, parts in enumerate(zip(*names, strict=True)) if len(set(parts)) > 1]
    files, met = [], Counter[str]()
    for (race, metric), parts in zip(wanted, names, strict=True):
        stem = "-".join([path.stem, *(parts[place] for place in telling)])
        met[stem] += 1
        files.append(path.with_stem(stem if met[stem] == 1 else f"{stem}-{met[stem]}"))
        save(speed_up_chart(race, metric), files[-1])
    return files


def _file_names(race: Race, metric: str) -> tuple[str, ...]:
    workload = race.workload
    return (
        race.contest.baselines[0].architecture.replace("/", "_"),
        workload.device.replace(":", ""),
        workload.dtype,
        workload.size,
        f"batch{race.batch_size}",
        race.phase,
        metric,
    )


def speed_up_chart(race: Race, metric: str = "latency") -> alt.HConcatChart:
    """Draw speed-ups (or how many times less memory) against length: panels for baselines, lines for subjects.

    Both axes are logarithmic, the line at 1 is "no difference", bars are 95 % intervals. Where one of a pair ran out
    of memory there is no ratio; the subtitle says where that was.

    Raises:
        AnswerError: If nothing could be compared.
    """
    import altair as alt

    found = race.speed_ups(metric)
    records = [record for each in found for record in _records(each, race)]
    if not records:
        raise AnswerError("no length could be compared, so there are no speed-ups to draw")
    unit = _unit(race)
    names, colors, shapes = _looks(race, records)
    low, high = log_ends([record["length"] for record in records])
    least, most = _reach(records)
    x = alt.X("length:Q", title=LENGTHS[unit]).scale(type="log", domain=[low, high], nice=False)
    x = x.axis(values=length_ticks(low, high, unit), format=",~g", labelOverlap="greedy")
    legend = alt.Legend(title=None, orient="right", symbolSize=60, symbolStrokeWidth=1.5, rowPadding=4)
    color = alt.Color("subject:N", legend=legend).scale(domain=names, range=colors)
    shape = alt.Shape("subject:N", legend=legend).scale(domain=names, range=shapes)
    panels = []
    for baseline in race.contest.baselines:
        there = [record for record in records if record["baseline"] == _label(baseline, race)]
        if not there:
            continue
        y = alt.Y("ratio:Q", title=None if panels else _axis_title(metric))
        y = y.scale(type="log", domain=[least, most], nice=False)
        y = y.axis(values=ratio_ticks(least, most), format="~g", gridColor=LIGHT, labelExpr="datum.label + 'x'")
        data = alt.InlineData(values=there)
        base = alt.Chart(data)
        level = alt.Chart(alt.InlineData(values=[{"one": 1}])).mark_rule(color=INK, strokeWidth=0.9)
        layers = [
            level.encode(y=alt.Y("one:Q")),
            base.mark_rule(strokeWidth=1.4, clip=True).encode(x, alt.Y("low:Q"), y2="high", color=color),
            base.mark_line(strokeWidth=1.6).encode(x, y, color=color),
            base.mark_point(filled=True, size=48, opacity=1).encode(
                x, y, color=color, shape=shape, tooltip=["subject:N", "length:Q", "ratio:Q", "low:Q", "high:Q"]
            ),
        ]
        title = alt.TitleParams(f"over {_label(baseline, race)}", fontSize=12, anchor="middle", offset=6)
        panels.append(alt.LayerChart(layer=layers, width=_WIDTH, height=_HEIGHT, title=title))
    chart = alt.HConcatChart(hconcat=panels, spacing=22, title=_title(race, found, metric))
    return themed(chart)


def _looks(race: Race, records: Sequence[Record]) -> tuple[list[str], list[str], list[str]]:
    """Return names in the order of the legend, their colours and their shapes.

    The order is that of the lines at their right end, baselines last.
    """
    shown = {record["subject"] for record in records}
    variants = [name for name in (_label(each, race) for each in race.contest.variants) if name in shown]
    looks = {
        name: (COLORS[number % len(COLORS)], SHAPES[number % len(SHAPES)]) for number, name in enumerate(variants)
    }
    ends = {record["subject"]: record["ratio"] for record in sorted(records, key=lambda record: record["length"])}
    names = sorted(variants, key=lambda name: -ends[name])
    names += [name for name in (_label(each, race) for each in race.contest.baselines) if name in shown]
    found = [looks.get(name, (GREY, BAR)) for name in names]
    return names, [color for color, _ in found], [shape for _, shape in found]


def _records(found: SpeedUp, race: Race) -> list[Record]:
    return [
        {
            "baseline": _label(found.baseline, race),
            "subject": _label(found.subject, race),
            "length": point.length,
            "ratio": point.ratio,
            "low": point.interval[0],
            "high": point.interval[1],
        }
        for point in found.points
        if not point.censored
    ]


def _axis_title(metric: str) -> str:
    return {"latency": "speed-up (baseline / variant)", "peak_memory": "peak memory, baseline / variant"}[metric]


def _title(race: Race, found: Sequence[SpeedUp], metric: str) -> alt.TitleParams:
    import altair as alt

    what = {"latency": "Speed-up", "peak_memory": "Peak memory saved"}[metric]
    unit = _unit(race)
    lost: dict[Subject, float] = {}
    for each in found:
        for point in each.points:
            if point.censored:
                who = each.baseline if point.censored > 0 else each.subject
                lost[who] = min(point.length, lost.get(who, math.inf))
    out = [f"{_label(who, race)} ran out of memory at {format_length(length, unit)}" for who, length in lost.items()]
    named = ", ".join(dict.fromkeys(subject.architecture for subject in race.contest.subjects))
    return alt.TitleParams(
        f"{what} in {race.phase}: {named}", subtitle=[f"{setting_line(race)}; bars are 95 % intervals", *out]
    )


def _unit(race: Race) -> str:
    return architecture_of(race.contest.baselines[0]).unit


def _reach(records: Sequence[Record]) -> tuple[float, float]:
    """Return both ends of an axis of ratios, 1 and the intervals included, unless these are useless."""
    ratios = [1.0, *(record["ratio"] for record in records)]
    low = max(min(1.0, *(record["low"] for record in records)), min(ratios) / _MOST_BEYOND)
    high = min(max(1.0, *(record["high"] for record in records)), max(ratios) * _MOST_BEYOND)
    return log_ends([low, high], room=0.04)
