"""The tables of a report for a paper: LaTeX with booktabs, each with a caption and a label."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from tippingpoint.report.grids import Grid
from tippingpoint.report.visible import spelled, visible

# Longer tables go on on the next page.
_MOST_ROWS = 40
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    # Two in a row would be one long dash.
    "-": "-{}",
    "±": r"\ensuremath{\pm}",
    "\N{MULTIPLICATION SIGN}": r"\ensuremath{\times}",
    "µ": r"\ensuremath{\mu}",
}


def latex(title: str, grids: Iterable[Grid]) -> str:
    r"""Return tables as a file for `\input`; its first lines say what it needs."""
    lines = [
        f"% {visible(title)}",
        r"% needs \usepackage[T1]{fontenc}, \usepackage{textcomp}, \usepackage{booktabs} and \usepackage{longtable}",
    ]
    met = Counter[str]()
    for grid in grids:
        label = "tab:" + re.sub(r"[^a-z0-9]+", "-", grid.title.partition(":")[0].lower()).strip("-")
        met[label] += 1
        label = label if met[label] == 1 else f"{label}-{met[label]}"
        lines += ["", *(_long if len(grid.rows) > _MOST_ROWS else _float)(grid, label)]
    return "\n".join(lines) + "\n"


def _float(grid: Grid, label: str) -> Iterator[str]:
    yield from (r"\begin{table}[t]", r"\centering", r"\small", _caption(grid, label))
    yield f"\\begin{{tabular}}{{{_sides(grid)}}}"
    yield from (r"\toprule", _row(grid.columns), r"\midrule")
    yield from _body(grid)
    yield from (r"\bottomrule", r"\end{tabular}", r"\end{table}")


def _long(grid: Grid, label: str) -> Iterator[str]:
    yield from (r"\begingroup", r"\small", f"\\begin{{longtable}}{{{_sides(grid)}}}", _caption(grid, label) + r"\\")
    yield from (r"\toprule", _row(grid.columns), r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot")
    yield from _body(grid)
    yield from (r"\end{longtable}", r"\endgroup")


def _caption(grid: Grid, label: str) -> str:
    return f"\\caption{{{escaped(grid.title)}}}\\label{{{label}}}"


def _sides(grid: Grid) -> str:
    return "".join("r" if number else "l" for number in grid.numbers)


def _body(grid: Grid) -> Iterator[str]:
    for place, row in enumerate(grid.rows):
        yield _row(row)
        if place in grid.sections:
            yield r"\midrule"


def _row(cells: Iterable[str]) -> str:
    # Braces keep a cell that begins with [ from being read as an option of the row before it.
    return " & ".join(f"{{{escaped(cell)}}}" for cell in cells) + r" \\"


def escaped(text: str) -> str:
    """Return a text that LaTeX sets as it is; letters beyond those of Western Europe are spelled out."""
    return "".join(
        _SPECIAL.get(each) or (each if ord(each) < 256 else escaped(spelled(each))) for each in visible(text)
    )
