"""Markdown that shows texts as they are, whatever stands in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SIGNS = "`*_|[]#~"


def escaped(text: object) -> str:
    """Return a text in one line that Markdown and the HTML within it leave alone."""
    found = str(text).replace("\\", "\\\\")
    for sign, entity in _ENTITIES.items():
        found = found.replace(sign, entity)
    for sign in _SIGNS:
        found = found.replace(sign, f"\\{sign}")
    return " ".join(found.split())


def code(text: object) -> str:
    """Return a name as code; backticks and bars, which no subject of the catalogue has, are left out."""
    return f"`{' '.join(str(text).replace('`', '').replace('|', '').split())}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    """Return a list of plain texts."""
    return "\n".join(f"- {escaped(line)}" for line in lines)
