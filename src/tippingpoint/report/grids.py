"""Tables as plain texts: what a terminal shows, for formats that are no terminal.

Every table of a report is built once, for the terminal; notebooks and files show the same cells.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table without its looks.

    Attributes:
        title: What it shows.
        columns: Names, in one line each.
        numbers: Of each column, whether it holds numbers and stands to the right.
        rows: Texts, as many as there are columns; empty where there is nothing to say.
        sections: Places of rows that a line is drawn below.
        strong: Places of rows that stand out, such as the one that is recommended.
    """

    title: str
    columns: tuple[str, ...]
    numbers: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    sections: frozenset[int] = frozenset()
    strong: frozenset[int] = frozenset()

    @classmethod
    def of(cls, title: str, columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> Grid:
        """Return a table of numbers, of which the first column names the rows."""
        return cls(title=title, columns=columns, numbers=(True,) * len(columns), rows=rows)


def grid_of(table: Table) -> Grid:
    """Return what a terminal's table says; columns without a name are drawings, and left out."""
    columns = [column for column in table.columns if _text(column.header)]
    cells = [list(column.cells) for column in columns]
    return Grid(
        title=_text(table.title),
        columns=tuple(_text(column.header) for column in columns),
        numbers=tuple(column.justify == "right" for column in columns),
        rows=tuple(tuple(map(_text, row)) for row in zip(*cells, strict=True)),
        sections=frozenset(place for place, row in enumerate(table.rows[:-1]) if row.end_section),
        strong=frozenset(place for place, cell in enumerate(cells[0] if cells else ()) if _is_bold(cell)),
    )


def _is_bold(cell: RenderableType) -> bool:
    return isinstance(cell, Text) and "bold" in str(cell.style)


def _text(cell: RenderableType | None) -> str:
    """Return a cell's words; a name in several lines becomes one again."""
    words = cell.plain if isinstance(cell, Text) else str(cell or "")
    return words.replace("\n", " ")
