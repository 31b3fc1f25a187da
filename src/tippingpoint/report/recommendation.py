"""A recommendation as a document: Markdown for people, JSON for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from tippingpoint.analysis.recommend import Recommendation
from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.errors import InputError
from tippingpoint.models.catalog import architecture_of
from tippingpoint.report.document import Block, Bullets, Heading, Paragraph
from tippingpoint.report.figures import check_folder, write_whole
from tippingpoint.report.grids import Grid, grid_of
from tippingpoint.report.markdown import markdown
from tippingpoint.report.records import plain
from tippingpoint.report.tables import candidates_table
from tippingpoint.units import format_length

_ENDINGS = (".md", ".json")


def check_output(path: str | os.PathLike[str]) -> Path:
    """Return the file an answer is to become, if it can: to be asked before minutes of measuring.

    Raises:
        InputError: If its name ends neither in .md nor in .json, or its folder does not exist.
    """
    target = Path(path)
    if target.suffix.lower() not in _ENDINGS:
        raise InputError(f"an answer's file must end in {' or '.join(_ENDINGS)}, got {str(target)!r}")
    check_folder(target)
    return target


def write_recommendation(answer: Recommendation, path: Path) -> None:
    """Write an answer as Markdown or JSON, as the file's name ends.

    The file becomes what it should be at once, or stays what it was.

    Raises:
        InputError: If it cannot be written there.
    """
    if path.suffix.lower() == ".md":
        text = markdown(f"Use {answer.choice}", blocks(answer))
    else:
        text = json.dumps(plain(answer), indent=2) + "\n"
    write_whole(text.encode(), path)


def blocks(answer: Recommendation) -> Iterator[Block]:
    """Yield an answer: what, why, what it costs, what it rests on, what would change it."""
    data = answer.data
    ends = " to ".join(format_length(end, data.unit) for end in (data.minimum, data.maximum))
    yield Paragraph(answer.reason)
    yield Heading("What was asked")
    yield Bullets(
        (
            f"{data.count:,} {data.modality} items of {ends}, median {format_length(data.median, data.unit)}",
            f"{answer.phase}, {answer.batching.describe(data.unit)}, chosen by {answer.objective.replace('_', ' ')}",
            *(f"must keep: {constraint}" for constraint in answer.constraints),
        )
    )
    yield Heading("What each would cost on this data")
    yield grid_of(candidates_table(answer))
    yield Paragraph("95 % intervals hold what the measurements and the data, as a sample, leave open.")
    yield Heading("What it rests on")
    for point in answer.tipping_points:
        yield Paragraph(f"{point.variant} against {point.baseline}: {point.answer}.")
        if point.points:
            yield _observed(point)
    yield Heading("What would change the answer")
    yield Bullets(answer.changes)
    yield Heading("What to know")
    yield Bullets((*answer.notes, f"measured on {answer.environment}"))


def _observed(point: TippingPoint) -> Grid:
    positions = architecture_of(point.baseline).positions
    rows = []
    for seen in point.points:
        at = (format_length(seen.length, point.unit), f"{positions(seen.length):,}")
        if seen.censored:
            rows.append((*at, f"{'baseline' if seen.censored > 0 else 'variant'} out of memory", "", ""))
            continue
        low, high = seen.interval
        rows.append((*at, f"{seen.ratio:.3g}", f"{low:.3g} to {high:.3g}", str(len(seen.log_ratios))))
    return Grid(
        title=f"{point.metric.replace('_', ' ')}: how many times better {point.variant} is",
        columns=("length", "positions", "times better", "95 %", "rounds"),
        numbers=(True,) * 5,
        rows=tuple(rows),
    )
