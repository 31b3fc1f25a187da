"""A report in the order in which it is read, as plain blocks: what Markdown, LaTeX and PDF write down.

Texts stand here as they are. Each format escapes what means something to it, and begins with `visible`: what a name
hides (control characters, marks that turn the direction of writing, halves of characters) is spelled out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tippingpoint.analysis.recommend import ITEMS
from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.data import LengthData
from tippingpoint.report.answers import longer_share
from tippingpoint.report.contents import Comparison, Contents
from tippingpoint.report.grids import Grid
from tippingpoint.report.page_data import facts_line, speed_up_table
from tippingpoint.report.paper_figures import Figure
from tippingpoint.report.tables import place_cells, verdict_with_reach
from tippingpoint.units import format_items, format_percent

# Of what most measurements have, the first so many are told.
_MOST_WARNINGS = 20


@dataclass(frozen=True, slots=True)
class Heading:
    """The name of what follows."""

    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A text."""

    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """Several texts, each in lines of its own."""

    items: tuple[str, ...]


Block = Heading | Paragraph | Bullets | Grid | Figure


def document(contents: Contents, figures: Sequence[Figure] = (), *, left_out: int = 0) -> Iterator[Block]:
    """Yield a report's blocks.

    Args:
        contents: What the report says.
        figures: Those to show; they stand behind the answers.
        left_out: How many more there are.
    """
    yield Paragraph(facts_line(contents))
    yield Heading("Answers")
    yield Bullets(tuple(_answer_lines(contents)))
    if contents.lengths:
        yield Paragraph(str(contents.lengths).replace("\n", "; "))
    yield from figures
    if left_out:
        yield Paragraph(f"{format_items(left_out, 'more figure')}: `tippingpoint report --format folder` writes all")
    yield Heading("Tipping points")
    for comparison in contents.comparisons:
        yield _tipping_points(comparison, contents.lengths)
    notes = dict.fromkeys(note for each in contents.comparisons for p in each.tipping_points for note in p.notes)
    if notes:
        yield Bullets(tuple(notes))
    speed_ups = [grid for comparison in contents.comparisons for grid in _speed_ups(comparison)]
    if speed_ups:
        yield Heading("Speed-ups")
        yield from speed_ups
    yield from _rest(contents)


def _answer_lines(contents: Contents) -> Iterator[str]:
    for answer in contents.answers:
        data = f"; {answer.data}" if answer.data else ""
        yield f"{answer.text}{data} ({answer.where})"


def _tipping_points(comparison: Comparison, lengths: LengthData | None) -> Grid:
    """Return the tipping points of a comparison, with the share of a person's items beyond each."""
    person = (f"{ITEMS[lengths.modality]} longer",) if lengths else ()
    rows = []
    for point in comparison.tipping_points:
        share = longer_share(point, lengths)
        mine = ["" if share is None else format_percent(share)] if person else []
        rows.append((*_tip_cells(point), *mine))
    return Grid(
        title=f"Tipping points: {comparison.setting}",
        columns=("metric", "variant", "against", "verdict", "from", "95 %", "positions", *person),
        numbers=(*[False] * 4, *[True] * (3 + len(person))),
        rows=tuple(rows),
    )


def _tip_cells(point: TippingPoint) -> list[str]:
    names = [point.metric.replace("_", " "), str(point.variant), str(point.baseline)]
    return [*names, verdict_with_reach(point), *place_cells(point)]


def _speed_ups(comparison: Comparison) -> Iterator[Grid]:
    for baseline in comparison.contest.baselines:
        if any(each.baseline == baseline for each in comparison.speed_ups):
            table = speed_up_table(comparison, baseline)
            yield replace(table, title=f"{table.title}: {comparison.setting}")


def _rest(contents: Contents) -> Iterator[Block]:
    """Yield what the answers rest on, and what they lack."""
    if contents.missing:
        yield Heading("What is missing")
        yield Bullets(tuple(str(each) for each in contents.missing))
    yield Heading("Environments" if len(contents.environments) > 1 else "Environment")
    yield Bullets(tuple(f"{key}: {each}" for key, each in contents.environments.items()))
    if contents.disagreements:
        yield Paragraph("Nodes that should be alike and are not:")
        yield Bullets(tuple(map(str, contents.disagreements)))
    if contents.warnings:
        yield Heading("Warnings")
        yield Bullets(tuple(_warning_lines(contents)))


def _warning_lines(contents: Contents) -> Iterable[str]:
    for warned in contents.warnings[:_MOST_WARNINGS]:
        where, text = warned.examples[0]
        more = f" (and {format_items(warned.count - 1, 'measurement')} like it)" if warned.count > 1 else ""
        yield f"{where}: {text}{more}"
    left = len(contents.warnings) - _MOST_WARNINGS
    if left > 0:
        yield f"{format_items(left, 'other kind')} of warnings; `tippingpoint show --warnings` has all"
