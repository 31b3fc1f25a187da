"""The figures of a report for paper: one column wide, in letters that can be read at that size.

They are the page's own figures: the same specifications, filled here instead of in a browser.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from typing import Any

from tippingpoint.analysis.breakdown import Breakdown
from tippingpoint.analysis.winners import Best
from tippingpoint.models.catalog import architecture_of
from tippingpoint.report.contents import Comparison, Contents, by_batch
from tippingpoint.report.figures import LENGTHS
from tippingpoint.report.page_data import BETTER, batch_fill, breakdown_message, comparison_fill, named
from tippingpoint.report.page_figures import batch_figure, cost_figure, looks, winner_figure
from tippingpoint.report.record_charts import lengths_chart, parts_chart
from tippingpoint.report.visible import all_visible
from tippingpoint.units import format_length

Record = dict[str, Any]

# A column of the usual two, in inches.
COLUMN_IN = 3.3
# Figures are drawn so wide, in pixels, and shrunk to a column: letters of 11 pixels become 7.3 points.
_DRAWN = 360
_DOTS_PER_IN = 300
# What the renderer takes a unit of an SVG for.
_POINTS_PER_IN = 72
_HEIGHT = 210
# About the width of a letter and of all else in a legend, in pixels.
_LETTER, _SYMBOL = 6.5, 40
_LEGEND_LETTERS, _AXIS_LETTERS = 44, 22
# Of lines of text, and of rows of a map over batch sizes.
_LINE, _BATCH_ROW = 13, 30
# Of a file's name.
_MOST_LETTERS = 100


@dataclass(frozen=True)
class Figure:
    """A figure for paper.

    Attributes:
        name: Of its files, without an ending.
        caption: What is seen.
        specification: As Vega-Lite takes it.
    """

    name: str
    caption: str
    specification: Record

    def svg(self) -> str:
        """Return it as SVG, in the size of a column."""
        return self._sized(1, "in")

    def pdf(self) -> bytes:
        """Return it as PDF, in the size of a column."""
        import vl_convert

        return vl_convert.svg_to_pdf(self._sized(_POINTS_PER_IN))

    def png(self) -> bytes:
        """Return it as PNG, 300 dots per inch of a column's width."""
        import vl_convert

        return vl_convert.svg_to_png(self._sized(_POINTS_PER_IN), ppi=_DOTS_PER_IN)

    @cached_property
    def _drawn(self) -> str:
        import vl_convert

        return vl_convert.vegalite_to_svg(self.specification)

    def _sized(self, per_in: float, unit: str = "") -> str:
        """Return the drawing in another size on paper; its own coordinates stay."""

        def size(found: re.Match[str]) -> str:
            return f'{found[1]}="{per_in * COLUMN_IN * float(found[2]) / _DRAWN:.5g}{unit}"'

        return re.sub(r'(?<= )(width|height)="([0-9.]+)"', size, self._drawn, count=2)


def figures(contents: Contents) -> list[Figure]:
    """Return every figure of a report: costs and winners by setting, batch sizes, breakdowns, a person's lengths."""
    drawn = [*_of_comparisons(contents), *_of_batches(contents), *_of_breakdowns(contents.breakdowns)]
    if contents.lengths:
        lengths = contents.lengths
        drawn.append(
            Figure("lengths", f"How long your items are. {lengths}", _to_column(lengths_chart(lengths).to_dict()))
        )
    met = Counter[str]()
    found = []
    for figure in drawn:
        met[figure.name] += 1
        name = figure.name if met[figure.name] == 1 else f"{figure.name}-{met[figure.name]}"
        found.append(Figure(name, figure.caption, figure.specification))
    return found


def _of_comparisons(contents: Contents) -> Iterator[Figure]:
    shown = looks(contents.comparisons)
    for comparison in contents.comparisons:
        holes = all_visible(comparison_fill(comparison, shown, contents.lengths))
        setting = comparison.setting
        own = (comparison.contest.baselines[0], setting.phase, f"batch{setting.batch_size}")
        for metric, cost in holes["costs"].items():
            said = [cost["message"].rstrip(". ")]
            said += ["Bands are 95 % intervals"] if metric != "flops" else []
            said += ["Dashed lines are tipping points, their intervals shaded"] if cost["tips"] else []
            said += ["Crosses are where one failed"] if cost["ends"] else []
            said += ["The histogram is that of your data"] if holes["axes"]["histogram"] else []
            caption = ". ".join([*said, f"Setting: {setting}."])
            yield Figure(_name(named(metric), *own), _sentence(caption), _cost(comparison, holes, metric))
        for metric, cells in holes["winners"].items():
            best = comparison.fastest if metric == "latency" else comparison.smallest
            caption = (
                f"Which subject is the {BETTER[metric]}: {_stretches(best, setting.unit)}. Filled circles are the "
                f"best, open ones level with it. Setting: {setting}."
            )
            yield Figure(_name("best", named(metric), *own), _sentence(caption), _winners(cells, holes["x_title"]))


def _stretches(found: Sequence[Best], unit: str) -> str:
    """Return who is the best from which length to which."""
    said = []
    for subject, run in groupby(found, key=lambda best: best.subject):
        ends = [format_length(best.length, unit) for best in run]
        said.append(f"{subject} " + (f"from {ends[0]} to {ends[-1]}" if len(ends) > 1 else f"at {ends[0]}"))
    return ", ".join(said)


def _cost(comparison: Comparison, holes: Record, metric: str) -> Record:
    cost, subjects = holes["costs"][metric], [broken(each, _LEGEND_LETTERS) for each in holes["subjects"]]
    factor, unit = cost["axes"]["factor"], comparison.setting.unit
    curves = [
        {
            "subject": subjects[place],
            "length": length,
            "value": factor * value,
            "low": factor * low,
            "high": factor * high,
        }
        for place, length, _, value, low, high, _ in cost["rows"]
    ]
    there = {record["subject"] for record in curves}
    kept = [place for place, subject in enumerate(subjects) if subject in there]
    looks_of = {name: [holes[name][place] for place in kept] for name in ("colors", "shapes")}
    # Colour and shape say whose they are; there is no room for words beside the curves.
    tips = [
        {**_broken_subject(tip), "word": tip["word"] and format_length(tip["length"], unit)} for tip in cost["tips"]
    ]
    ends = [{**_broken_subject(end), "failure": ""} for end in cost["ends"]]
    names = [subjects[place] for place in kept]
    filled = {
        **holes["axes"],
        **cost["axes"],
        **looks_of,
        "subjects": names,
        "curves": curves,
        "ends": ends,
        "tips": tips,
    }
    filled["x_title"] = LENGTHS[unit]
    return _to_column(filled_in(_specification(cost_figure), filled), names=names, height=_HEIGHT)


def _broken_subject(record: Record) -> Record:
    return {**record, "subject": broken(record["subject"], _LEGEND_LETTERS)}


def _winners(cells: Record, x_title: str) -> Record:
    lines = {row: broken(row, _AXIS_LETTERS).split("\n") for row in cells["rows"]}
    most = max(map(len, lines.values()))
    # The renderer puts the first line of a label where its middle belongs.
    names = {row: "\n".join([""] * ((most - len(found)) // 2) + found) for row, found in lines.items()}
    told = [{**cell, "row": names[cell["row"]]} for cell in cells["cells"]]
    filled = {
        "cells": told,
        "columns_sort": cells["columns"],
        "rows_sort": [names[row] for row in cells["rows"]],
        "x_title": x_title,
    }
    found = _to_column(filled_in(_specification(winner_figure), filled), height=len(names) * (_LINE * most + 8))
    found["config"]["axisY"] = {"labelOffset": -_LINE * (most - 1) / 2}
    return found


def _of_batches(contents: Contents) -> Iterator[Figure]:
    shown = looks(contents.comparisons)
    for group in by_batch(contents.comparisons):
        fill = all_visible(batch_fill(group, shown))
        if fill:
            names = [broken(each, _LEGEND_LETTERS) for each in fill["subjects"]]
            filled = {**fill, "columns_sort": fill["columns"], "rows_sort": fill["rows"], "subjects": names}
            filled["cells"] = [_broken_subject(cell) for cell in fill["cells"]]
            first = group[0]
            name = _name("best-by-batch", first.contest.baselines[0], first.setting.phase)
            caption = f"{fill['message']}. A small circle says that another one is level with it."
            height = _BATCH_ROW * len(fill["rows"])
            specification = _to_column(filled_in(_specification(batch_figure), filled), names=names, height=height)
            yield Figure(name, _sentence(caption), specification)


def _of_breakdowns(breakdowns: Iterable[Breakdown]) -> Iterator[Figure]:
    for each in breakdowns:
        workload = each.workload
        at = f"{workload.length:g} {architecture_of(workload.subject).unit}"
        caption = f"{breakdown_message([each])}. Each part begins where the one above it ends. Setting: {workload}."
        name = _name("parts", workload.subject, at, workload.phase)
        yield Figure(name, _sentence(caption), _to_column(all_visible(parts_chart(each).to_dict())))


@cache
def _specification(kind: Callable[[], Record]) -> Record:
    """Return a specification with its holes; it takes longer to make than to fill."""
    return kind()


def filled_in(part: Any, holes: Mapping[str, Any]) -> Any:
    """Return a specification with its holes filled, as the page's script fills them.

    A hole is a text that begins with `$`, or a list of one alone; what is put in is not looked into.
    """
    if isinstance(part, str):
        return holes[part[1:]] if part.startswith("$") else part
    if isinstance(part, list):
        if len(part) == 1 and isinstance(part[0], str) and part[0].startswith("$"):
            value = holes[part[0][1:]]
            return value if isinstance(value, list) else [value]
        return [filled_in(each, holes) for each in part]
    if isinstance(part, dict):
        return {key: filled_in(value, holes) for key, value in part.items()}
    return part


def broken(name: str, letters: int) -> str:
    """Return a name in several lines where it has more letters than fit, broken at what joins its parts."""
    if len(name) <= letters:
        return name
    lines = [""]
    for part in re.split(r"(?=[@+])|(?<=[:,])", name):
        if lines[-1] and len(lines[-1] + part) > letters:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _to_column(specification: Record, *, names: Sequence[str] = (), height: int | None = None) -> Record:
    """Return a figure that takes up the width of a column: axes, legends and all."""
    config: Record = {
        **specification["config"],
        "autosize": {"type": "fit-x", "contains": "padding"},
        # The last label of an axis reaches beyond it.
        "padding": {"left": 2, "right": 9, "top": 4, "bottom": 2},
        "lineBreak": "\n",
    }
    if names:
        letters = max(len(line) for name in names for line in name.split("\n"))
        columns = max(1, int(_DRAWN // (letters * _LETTER + _SYMBOL)))
        config["legend"] = {**config["legend"], "columns": columns}
    size: Record = {"width": _DRAWN} if height is None else {"width": _DRAWN, "height": height}
    # A caption says what a title would.
    return {key: value for key, value in specification.items() if key != "title"} | size | {"config": config}


def _name(*parts: object) -> str:
    """Return the name of a file: what a path, a shell or LaTeX could misread becomes a dash."""
    return re.sub(r"[^A-Za-z0-9]+", "-", "-".join(map(str, parts))).strip("-")[:_MOST_LETTERS].strip("-") or "figure"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
