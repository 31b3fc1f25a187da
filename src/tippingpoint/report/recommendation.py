"""A recommendation as a document: Markdown for people, JSON for programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tippingpoint.analysis.constraint import show_value
from tippingpoint.analysis.recommend import Recommendation
from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.analysis.workload_cost import Estimate
from tippingpoint.errors import InputError
from tippingpoint.report.markdown import bullets, code, escaped, table
from tippingpoint.report.records import plain
from tippingpoint.units import format_bytes, format_length, format_percent

_ENDINGS = (".md", ".json")


def check_output(path: str | os.PathLike[str]) -> Path:
    """Return the file an answer is to become, if it can: to be asked before minutes of measuring.

    Raises:
        InputError: If its name ends neither in .md nor in .json, or its folder does not exist.
    """
    target = Path(path)
    if target.suffix.lower() not in _ENDINGS:
        raise InputError(f"an answer's file must end in {' or '.join(_ENDINGS)}, got {str(target)!r}")
    if not target.parent.is_dir():
        raise InputError(f"the folder {str(target.parent)!r} does not exist; create it, or choose another")
    return target


def write_recommendation(answer: Recommendation, path: Path) -> None:
    """Write an answer as Markdown or JSON, as the file's name ends.

    Raises:
        InputError: If it cannot be written there.
    """
    text = markdown(answer) if path.suffix.lower() == ".md" else json.dumps(plain(answer), indent=2) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def markdown(answer: Recommendation) -> str:
    """Return an answer as a Markdown document: what, why, what it costs, what it rests on, what would change it."""
    data = answer.data
    objective = answer.objective.replace("_", " ")
    asked = [
        f"data: {data.count:,} of {data.modality}, {format_length(data.minimum, data.unit)} to "
        f"{format_length(data.maximum, data.unit)}, median {format_length(data.median, data.unit)}",
        f"run {answer.batching.describe(data.unit)}, {answer.phase}, chosen by {objective}",
        *(f"must keep: {constraint}" for constraint in answer.constraints),
    ]
    sections = [
        f"# Use {code(answer.choice)}",
        escaped(answer.reason),
        "## What was asked",
        bullets(asked),
        "## What each would cost on this data",
        _costs(answer),
        *_evidence(answer),
        "## What would change the answer",
        bullets(answer.changes),
        "## What to know",
        bullets([*answer.notes, f"measured on {answer.environment}"]),
    ]
    return "\n\n".join(sections) + "\n"


def _costs(answer: Recommendation) -> str:
    head = (
        "candidate", "1,000 items", "latency p50", "p95", "p99", "peak memory", "padding", "remark",
    )  # fmt: skip
    rows = []
    for row in answer.candidates:
        cost = row.workload
        remark = row.excluded or ("**recommended**" if row.subject == answer.choice else "")
        if cost is None:
            rows.append([code(row.subject), *[""] * 6, escaped(remark)])
            continue
        latencies = (cost.per_1000_s, cost.latency_p50_s, cost.latency_p95_s, cost.latency_p99_s)
        times = [_with_interval(estimate, "latency") for estimate in latencies]
        memory = format_bytes(cost.peak_bytes.value) if cost.peak_bytes else ""
        rows.append([code(row.subject), *times, memory, format_percent(cost.padding.value), remark])
    return table(head, rows) + "\n\nIn brackets: 95 % intervals, from the measurements and from the data."


def _evidence(answer: Recommendation) -> list[str]:
    """Return what was measured of every variant against the baseline."""
    parts = ["## What it rests on"]
    for point in answer.tipping_points:
        parts.append(f"{code(point.variant)} against {code(point.baseline)}: {escaped(point.answer)}.")
        if point.points:
            parts.append(table(("length", "positions", "times better", "95 %", "rounds"), _observed(point)))
    return parts


def _observed(point: TippingPoint) -> list[list[str]]:
    from tippingpoint.models.catalog import architecture_of

    rows = []
    for seen in point.points:
        at = [format_length(seen.length, point.unit), f"{architecture_of(point.baseline).positions(seen.length):,}"]
        if seen.censored:
            rows.append([*at, f"{'baseline' if seen.censored > 0 else 'variant'} out of memory", "", ""])
            continue
        low, high = seen.interval
        rows.append([*at, f"{seen.ratio:.3g}", f"{low:.3g} to {high:.3g}", str(len(seen.log_ratios))])
    return rows


def _with_interval(estimate: Estimate, objective: str) -> str:
    value, low, high = (show_value(objective, each) for each in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"
