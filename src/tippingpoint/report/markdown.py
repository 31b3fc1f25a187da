"""A report as Markdown, as GitHub and its relatives read it: texts are escaped, so that none of them is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tippingpoint.report.document import Block, Bullets, Heading, Paragraph
from tippingpoint.report.grids import Grid
from tippingpoint.report.paper_figures import Figure
from tippingpoint.report.visible import visible

_MARKUP = re.compile(r"([\\`*{}\[\]|~#$!]|(?<!\w)_|_(?!\w))")
# What begins a list or a rule where it begins a line.
_FIRST = re.compile(r"^[-+=]|(?<=\d)[.)](?=\s)")
# What becomes a link by itself.
_LINKS = re.compile(r"(?i)(http|www|(?<!\w)@)(?=s?:|\.|\w)")
# Parts it, and shows nothing.
_NOTHING = "<!---->"


def markdown(title: str, blocks: Iterable[Block], folder: str = "") -> str:
    """Return blocks as one text.

    Args:
        title: Of the whole.
        blocks: In their order.
        folder: Where the figures' files lie, seen from the text; they are SVG.
    """
    parts = [f"# {escaped(title)}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {escaped(block.text)}")
        elif isinstance(block, Paragraph):
            parts.append(_line(block.text))
        elif isinstance(block, Bullets):
            parts.append("\n".join(f"- {_line(item)}" for item in block.items) or "None.")
        elif isinstance(block, Figure):
            # Names of figures hold nothing that a link could misread.
            parts.append(f"![{block.name}]({folder}{block.name}.svg)\n\n{_line(block.caption)}")
        else:
            parts.append(f"**{escaped(block.title)}**\n\n{table(block)}")
    return "\n\n".join(parts) + "\n"


def table(grid: Grid) -> str:
    """Return a table; numbers stand to the right."""
    sides = ["---:" if number else "---" for number in grid.numbers]
    lines = [grid.columns, *grid.rows]
    head, *rows = ("| " + " | ".join(map(escaped, line)) + " |" for line in lines)
    return "\n".join([head, f"| {' | '.join(sides)} |", *rows])


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is, within a line."""
    found = _MARKUP.sub(r"\\\1", visible(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINKS.sub(rf"\1{_NOTHING}", found)


def _line(text: str) -> str:
    """Return a text that Markdown shows as it is, at the beginning of a line."""
    return _FIRST.sub(r"\\\g<0>", escaped(text))
