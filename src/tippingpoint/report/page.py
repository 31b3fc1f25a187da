"""One HTML file that holds a whole report and needs nothing else: no network, no other file.

A stranger's store is not trusted. Every text of it passes Jinja2's escaping or stands in JSON whose angle brackets
are escaped; it becomes the content of an element or a value in a figure's data, never code. A policy in the page
forbids every request, and every script and style but its own, which it names by their hashes; expressions of figures
are interpreted, so that the page needs no `eval`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from tippingpoint import __version__
from tippingpoint.analysis.breakdown import Breakdown
from tippingpoint.analysis.recommend import ITEMS
from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.report import page_data
from tippingpoint.report.answers import longer_share
from tippingpoint.report.breakdown import breakdown_chart
from tippingpoint.report.contents import Comparison, Contents, Setting, by_batch
from tippingpoint.report.environments import unlike_fields
from tippingpoint.report.page_figures import batch_figure, cost_figure, looks, winner_figure
from tippingpoint.report.tables import place_cells, verdict_with_reach
from tippingpoint.report.visible import all_visible, visible
from tippingpoint.units import format_length, format_percent

Record = dict[str, Any]

# What a JSON text may not hold where a browser reads HTML; all of it has another spelling in JSON.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_BREAKS = re.compile(r"(?<=[:,/])|(?=[@+])")
# So many figures of breakdowns stand beside each other.
_MOST_BROKEN_DOWN = 3


def page(contents: Contents) -> str:
    """Return a report as one HTML page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tippingpoint.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_seen,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline_json": inline_json, "breakable": _breakable}
    script, style, bundle = _template("page.js"), _template("page.css"), _bundle()
    return environment.get_template("page.html").render(
        contents=contents,
        **_view(contents),
        bundle=bundle,
        script=script,
        style=style,
        policy=_policy([bundle, script], style),
        version=__version__,
        facts=page_data.facts_line(contents),
    )


def inline_json(value: Any) -> Any:
    """Return JSON that can stand in a script element of HTML, whatever its texts are."""
    from markupsafe import Markup

    text = json.dumps(all_visible(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, spelling in _UNSAFE.items():
        text = text.replace(character, spelling)
    return Markup(text)


def _breakable(text: str) -> Any:
    """Return a text, escaped, that may go on in the next line behind the marks of a subject's name."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in _BREAKS.split(visible(text)))


def _seen(value: Any) -> Any:
    """Return what an expression of the template gave; of a text that is not the page's own all can be seen."""
    return visible(value) if type(value) is str else value


@cache
def _bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed with all that they need, as one script."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _template(name: str) -> str:
    return files("tippingpoint.report").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str], style: str) -> str:
    """Return the page's own rules: nothing is fetched, and only these scripts and this style count."""
    hashes = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _view(contents: Contents) -> Record:
    """Return what the template shows, and the data of the figures."""
    comparisons = contents.comparisons
    shown = looks(comparisons)
    facets = _facets(comparisons, contents)
    batches: list[Record] = []
    batch_of: dict[int, int] = {}
    for group in by_batch(comparisons):
        if fill := page_data.batch_fill(group, shown):
            batch_of |= {id(each): len(batches) for each in group}
            batches.append(fill)
    broken_down = _by_call(contents.breakdowns)
    return {
        "facets": facets,
        "blocks": [_block(each, facets, number) for number, each in enumerate(comparisons)],
        "tips": _tips_table(contents, facets),
        "batch_tables": [page_data.batch_table(fill) for fill in batches],
        "breakdowns": [
            {
                "title": str(Setting.of(group[0].workload, group[0].environment)),
                "table": page_data.breakdown_table(group),
            }
            for group in broken_down
        ],
        "environments": _environments(contents),
        "person": _person(contents),
        "data": {
            "figures": {"cost": cost_figure(), "winner": winner_figure(), "batch": batch_figure()},
            "comparisons": [
                {
                    **page_data.comparison_fill(each, shown, contents.lengths),
                    "facets": [facet["values"][number] for facet in facets],
                    "where": str(each.setting),
                    "baseline": str(each.contest.baselines[0]),
                    "batch": batch_of.get(id(each), -1),
                }
                for number, each in enumerate(comparisons)
            ],
            "batches": batches,
            "breakdowns": [
                {
                    "specification": breakdown_chart(group).to_dict(),
                    "message": page_data.breakdown_message(group),
                    "rows": page_data.breakdown_rows(group),
                }
                for group in broken_down
            ],
        },
    }


def _facets(comparisons: Sequence[Comparison], contents: Contents) -> list[Record]:
    """Return what tells comparisons apart: a name, the value of each comparison, and the choices."""
    told = [_features(each, contents) for each in comparisons]
    found = []
    for name in told[0]:
        values = [features[name] for features in told]
        choices = list(dict.fromkeys(values))
        if len(choices) > 1:
            found.append({"name": name, "values": values, "choices": choices})
    return found


def _features(comparison: Comparison, contents: Contents) -> dict[str, str]:
    setting, workload = comparison.setting, comparison.setting.workload
    environment = contents.environments[setting.environment]
    machine = environment.cpu_model if workload.device == "cpu" else environment.device_name
    return {
        "phase": setting.phase,
        "batch size": str(setting.batch_size),
        "modality": setting.modality,
        "run": setting.label or "(no label)",
        "machine": f"{machine} ({setting.environment[:6]})",
        "device": workload.device,
        "dtype": workload.dtype,
        "model": workload.shape,
        "threads": str(workload.threads),
        "compiled": "compiled" if workload.compiled else "not compiled",
        "batches": "padded" if workload.padded else "of one length",
        "cores": ",".join(map(str, workload.affinity or ())) or "any",
        "against": ", ".join(map(str, comparison.contest.baselines)),
    }


def _said(name: str, value: str) -> str:
    """Return the value of a facet with its name, where it would not be understood alone."""
    return f"{name} {value}" if name in ("batch size", "run", "threads", "cores", "against") else value


def _block(comparison: Comparison, facets: Sequence[Record], number: int) -> Record:
    """Return the tables of one comparison."""
    return {
        "name": ", ".join(_said(facet["name"], facet["values"][number]) for facet in facets),
        "where": str(comparison.setting),
        "baseline": str(comparison.contest.baselines[0]),
        "costs": [(metric, page_data.cost_table(comparison, metric)) for metric in comparison.metrics],
        "winners": page_data.winner_table(comparison),
        "speed_ups": [
            page_data.speed_up_table(comparison, baseline)
            for baseline in comparison.contest.baselines
            if any(each.baseline == baseline for each in comparison.speed_ups)
        ],
        "ends": comparison.ends,
        "unit": comparison.setting.unit,
        "ends_told": [
            f"{end.subject} at {format_length(end.length, comparison.setting.unit)}: "
            f"{end.kind.replace('_', ' ')}, {end.message}"
            for end in comparison.ends
        ],
    }


def _tips_table(contents: Contents, facets: Sequence[Record]) -> Record:
    """Return the table of tipping points: for each cell its text and what it is sorted by."""
    lengths = contents.lengths
    person = () if lengths is None else (f"{ITEMS[lengths.modality]} longer",)
    names = [facet["name"] for facet in facets]
    head = (*names, "metric", "variant", "against", "verdict", "from", "95 % interval", "positions", *person)
    rows = []
    for number, comparison in enumerate(contents.comparisons):
        where = [facet["values"][number] for facet in facets]
        for point in comparison.tipping_points:
            rows.append({"block": number, "verdict": point.verdict, "cells": _tip_cells(point, where, contents)})
    kinds = {
        "from": "number from",
        "variant": "name",
        "against": "name",
        "run": "name",
        "machine": "name",
        "model": "name",
    }
    kinds |= dict.fromkeys(("95 % interval", "positions", "batch size", *person), "number")
    notes = dict.fromkeys(note for each in contents.comparisons for p in each.tipping_points for note in p.notes)
    return {
        "head": [
            (name, kinds.get(name, "word") + (" facet" if place < len(names) else ""))
            for place, name in enumerate(head)
        ],
        "rows": rows,
        "notes": list(notes),
    }


def _tip_cells(point: TippingPoint, where: Sequence[str], contents: Contents) -> list[tuple[str, str | float]]:
    share = longer_share(point, contents.lengths)
    cells: list[tuple[str, str | float]] = [(value, value) for value in where]
    cells += [
        (text, text)
        for text in (
            point.metric.replace("_", " "),
            str(point.variant),
            str(point.baseline),
            verdict_with_reach(point),
        )
    ]
    values = (point.length, point.interval and point.interval[0], point.positions)
    cells += [(text, value or "") for text, value in zip(place_cells(point), values, strict=True)]
    if contents.lengths is not None:
        cells.append(("", "") if share is None else (format_percent(share), share))
    return cells


def _by_call(breakdowns: Sequence[Breakdown]) -> list[list[Breakdown]]:
    """Return breakdowns whose calls differ by subject and length alone, so many in each as can be drawn."""
    found: dict[Setting, list[Breakdown]] = {}
    for each in breakdowns:
        found.setdefault(Setting.of(each.workload, each.environment), []).append(each)
    groups = []
    for group in found.values():
        subjects = list(dict.fromkeys(each.workload.subject for each in group))
        for start in range(0, len(subjects), _MOST_BROKEN_DOWN):
            chosen = subjects[start : start + _MOST_BROKEN_DOWN]
            groups.append([each for each in group if each.workload.subject in chosen])
    return groups


def _environments(contents: Contents) -> Record:
    environments = contents.environments
    unlike = unlike_fields(list(environments.values())) if len(environments) > 1 else []
    return {
        "told": [(fingerprint, str(environment)) for fingerprint, environment in environments.items()],
        "unlike": [(name.replace("_", " "), values) for name, values in unlike],
    }


def _person(contents: Contents) -> str:
    """Return what the person's own data are, in words; empty without them."""
    lengths = contents.lengths
    if lengths is None:
        return ""
    median, longest = (format_length(value, lengths.unit) for value in (lengths.median, lengths.maximum))
    return f"your {lengths.count:,} {ITEMS[lengths.modality]} (median {median}, longest {longest})"
