"""A report as one PDF to mail or to print: answers, figures in two columns, tables, and what they rest on."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.sax.saxutils import escape

from tippingpoint.report.document import Block, Bullets, Heading, Paragraph
from tippingpoint.report.grids import Grid
from tippingpoint.report.paper_figures import COLUMN_IN, Figure, broken
from tippingpoint.report.visible import visible

# In points; a sheet of A4 and one of letter paper have room for it.
_PAGE_WIDTH, _PAGE_HEIGHT, _MARGIN, _TOP = 595.0, 792.0, 54.0, 44.0
_WIDTH = _PAGE_WIDTH - 2 * _MARGIN
# Two rows of figures fit on a page.
_COLUMN = 0.92 * COLUMN_IN * 72
_INK, _GREY, _LIGHT = "#1a1a1a", "#5f5f5f", "#cfcfcf"
# Of a cell: a letter, the room around its text, and what is short.
_LETTER, _PADDING, _SHORT = 4.4, 11.0, 75.0


def pdf(title: str, blocks: Iterable[Block]) -> bytes:
    """Return blocks as a PDF; letters that its fonts lack are spelled out."""
    from reportlab.platypus import SimpleDocTemplate

    file = io.BytesIO()
    name = _letters(title)
    document = SimpleDocTemplate(
        file,
        pagesize=(_PAGE_WIDTH, _PAGE_HEIGHT),
        leftMargin=_MARGIN,
        rightMargin=_MARGIN,
        topMargin=_TOP,
        bottomMargin=_TOP,
        title=name,
        creator="tippingpoint",
        # The same report is the same file.
        invariant=1,
    )

    def foot(canvas: Any, _: Any) -> None:
        canvas.saveState()
        canvas.setFont("Helvetica", 8)
        canvas.setFillColor(_GREY)
        canvas.drawRightString(_PAGE_WIDTH - _MARGIN, _MARGIN / 2, f"{canvas.getPageNumber()}")
        canvas.restoreState()

    document.build(list(_flow(name, blocks)), onFirstPage=foot, onLaterPages=foot)
    return file.getvalue()


def _letters(text: str) -> str:
    """Return a text in the letters that every PDF reader has."""
    return visible(text).encode("cp1252", "backslashreplace").decode("cp1252")


def _styles() -> dict[str, Any]:
    from reportlab.lib.colors import HexColor
    from reportlab.lib.styles import ParagraphStyle

    ink = HexColor(_INK)
    body = ParagraphStyle("body", fontName="Helvetica", fontSize=9, leading=12, textColor=ink, spaceAfter=4)
    return {
        "body": body,
        "title": ParagraphStyle("title", body, fontName="Helvetica-Bold", fontSize=16, leading=20, spaceAfter=4),
        "heading": ParagraphStyle(
            "heading", body, fontName="Helvetica-Bold", fontSize=12, leading=15, spaceBefore=12, keepWithNext=1
        ),
        "caption": ParagraphStyle("caption", body, fontSize=7.5, leading=9.5),
        "name": ParagraphStyle("name", body, fontName="Helvetica-Bold", spaceBefore=8, keepWithNext=1),
        "left": ParagraphStyle("left", body, fontSize=7.5, leading=9.5, spaceAfter=0),
        "right": ParagraphStyle("right", body, fontSize=7.5, leading=9.5, spaceAfter=0, alignment=2),
    }


def _flow(title: str, blocks: Iterable[Block]) -> Iterator[Any]:
    from reportlab.platypus import ListFlowable
    from reportlab.platypus import Paragraph as Text

    styles = _styles()

    def text(words: str, style: str = "body") -> Any:
        return Text(escape(_letters(words)), styles[style])

    yield text(title, "title")
    waiting: list[Figure] = []
    for block in blocks:
        if isinstance(block, Figure):
            waiting.append(block)
            if len(waiting) == 2:
                yield _pair(waiting, styles)
                waiting = []
            continue
        if waiting:
            yield _pair(waiting, styles)
            waiting = []
        if isinstance(block, Heading):
            yield text(block.text, "heading")
        elif isinstance(block, Paragraph):
            yield text(block.text)
        elif isinstance(block, Bullets):
            items = [text(item) for item in block.items] or [text("none")]
            yield ListFlowable(items, bulletType="bullet", start="\u2022", leftIndent=12, bulletFontSize=7)
        else:
            yield text(block.title, "name")
            yield _table(block, styles)


def _pair(figures: Sequence[Figure], styles: dict[str, Any]) -> Any:
    """Return one or two figures beside each other, their captions below them."""
    from reportlab.lib.utils import ImageReader
    from reportlab.platypus import Image, Table
    from reportlab.platypus import Paragraph as Text

    cells = []
    for figure in figures:
        content = io.BytesIO(figure.png())
        width, height = ImageReader(content).getSize()
        image = Image(content, width=_COLUMN, height=_COLUMN * height / width)
        cells.append([image, Text(escape(_letters(figure.caption)), styles["caption"])])
    cells += [[]] * (2 - len(cells))
    look = [
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("RIGHTPADDING", (0, 0), (-1, -1), _WIDTH / 2 - _COLUMN),
    ]
    return Table([cells], colWidths=[_WIDTH / 2] * 2, style=look, spaceAfter=4)


def _table(grid: Grid, styles: dict[str, Any]) -> Any:
    from reportlab.platypus import Paragraph as Text
    from reportlab.platypus import Table

    widths = _widths(grid)

    def row(cells: Sequence[str], bold: bool) -> list[Any]:
        found = []
        for cell, number, width in zip(cells, grid.numbers, widths, strict=True):
            # A name is broken where its parts meet; a sentence has spaces for that.
            words = _letters(cell)
            words = words if " " in words else broken(words, int((width - _PADDING) / _LETTER))
            text = escape(words).replace("\n", "<br/>")
            found.append(Text(f"<b>{text}</b>" if bold else text, styles["right" if number else "left"]))
        return found

    rows = [row(grid.columns, True), *(row(cells, False) for cells in grid.rows)]
    look = [
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LEFTPADDING", (0, 0), (-1, -1), 3),
        ("RIGHTPADDING", (0, 0), (-1, -1), 3),
        ("TOPPADDING", (0, 0), (-1, -1), 1.5),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5),
        ("LINEBELOW", (0, 0), (-1, 0), 0.8, _INK),
        ("LINEBELOW", (0, 1), (-1, -1), 0.3, _LIGHT),
    ]
    return Table(rows, colWidths=widths, repeatRows=1, style=look, hAlign="LEFT", spaceAfter=6)


def _widths(grid: Grid) -> list[float]:
    """Return the widths of columns: short ones have what they need, long ones share what is left."""
    columns = zip(grid.columns, *grid.rows, strict=True)
    needed = [_LETTER * max(map(len, column)) + _PADDING for column in columns]
    short = sum(each for each in needed if each <= _SHORT)
    long = sum(each for each in needed if each > _SHORT)
    share = min(1.0, (_WIDTH - short) / long) if long else 1.0
    found = [each if each <= _SHORT else share * each for each in needed]
    # So many columns do not fit in any case: all get narrower, and their texts longer.
    return found if share > 0 and sum(found) <= _WIDTH + 1 else [_WIDTH * each / sum(needed) for each in needed]
