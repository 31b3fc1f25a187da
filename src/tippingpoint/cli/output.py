"""Where output goes: data to stdout, progress to stderr."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType

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
        console.print(renderable, soft_wrap=isinstance(renderable, str), markup=False)


def show_json(record: Any) -> None:
    """Print a record to stdout as JSON."""
    from tippingpoint.report.records import plain

    sys.stdout.write(json.dumps(plain(record), indent=2, allow_nan=False) + "\n")


def show_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that have the same keys to stdout as CSV; what is not there is empty."""
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def progress(line: str) -> None:
    """Print one line to stderr; nothing is redrawn while something is timed."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
