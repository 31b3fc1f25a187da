"""Where output goes: data to stdout, progress to stderr.

Names come from files of strangers too. Nothing of them steers a terminal: what it would obey is spelled out, here and
nowhere else.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment

from tippingpoint.report.visible import as_cell, visible_lines

# Wide enough for every table where the output is not a terminal that says how wide it is.
_WIDTH = 140


def show(*renderables: RenderableType) -> None:
    """Print tables and text to stdout."""
    # What the terminal's encoding lacks is replaced, so that output never fails for want of a character.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    for renderable in renderables:
        # A sentence is left to the terminal to wrap, so that a pipe gets it as one line.
        if isinstance(renderable, str):
            console.print(visible_lines(renderable), soft_wrap=True, markup=False)
        else:
            console.print(_Visible(renderable), markup=False)


@dataclass(frozen=True, slots=True)
class _Visible:
    """A table or text of which all can be seen."""

    shown: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.shown, options):
            yield segment if segment.control else Segment(visible_lines(segment.text), segment.style)


def show_json(record: Any) -> None:
    """Print a record to stdout as JSON."""
    from tippingpoint.report.records import plain

    sys.stdout.write(json.dumps(plain(record), indent=2, allow_nan=False) + "\n")


def show_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that have the same keys to stdout as CSV without formulas; what is not there is empty."""
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: as_cell(value) for key, value in row.items()} for row in rows)


def progress(line: str) -> None:
    """Print one line to stderr; nothing is redrawn while something is timed."""
    sys.stderr.write(visible_lines(line) + "\n")
    sys.stderr.flush()
