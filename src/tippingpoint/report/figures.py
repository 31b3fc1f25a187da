"""What all figures share: one look, axes of lengths, and how a chart becomes a file.

Altair is imported inside the functions that need it, so that a command that draws nothing does not wait for it.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from tippingpoint.errors import InputError

if TYPE_CHECKING:
    import altair as alt

    # One with axes of its own, or several beside each other.
    AnyChart = TypeVar("AnyChart", alt.LayerChart, alt.HConcatChart)

FORMATS = ("svg", "png", "pdf", "html", "json")
# For print.
_DOTS_PER_INCH = 300

INK, GREY, LIGHT = "#1a1a1a", "#5f5f5f", "#cfcfcf"
# From "the baseline is better" through "no difference" to "the variant is better": orange and blue stay apart for
# every kind of colour vision.
DIVERGING = ("#c25a00", "#ea9a4a", "#fad7ae", "#f7f7f7", "#c0dcf0", "#69a8d8", "#1668ad")
LENGTHS = {"tokens": "input length (tokens)", "seconds": "audio length (seconds)", "pixels": "image side (pixels)"}
# Steps of a logarithmic axis of ratios, from fine to coarse.
_RATIO_TICKS = (
    (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2),
    (0.25, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 4),
    tuple(2.0**power for power in range(-10, 11)),
)
_MOST_TICKS = 9
_TEXT = {"labelFontSize": 11, "labelColor": INK, "titleFontWeight": "normal", "titleColor": INK}
THEME: dict[str, Any] = {
    # The renderer brings the first one along, so a figure looks the same wherever it was drawn; Arial is as wide.
    "font": "Liberation Sans, Arial, Helvetica, sans-serif",
    "background": "white",
    "padding": 8,
    "view": {"stroke": GREY, "strokeWidth": 0.8},
    "title": {
        "anchor": "start",
        "frame": "group",
        "offset": 14,
        "fontSize": 14,
        "lineHeight": 17,
        "color": INK,
        "subtitleFontSize": 12,
        "subtitleLineHeight": 15,
        "subtitlePadding": 5,
        "subtitleColor": GREY,
    },
    "axis": {
        **_TEXT,
        "titleFontSize": 12,
        "titlePadding": 8,
        "domainColor": GREY,
        "tickColor": GREY,
        "grid": False,
    },
    "legend": {**_TEXT, "titleFontSize": 11, "titleLimit": 0, "labelLimit": 0},
}


def themed(chart: AnyChart) -> AnyChart:
    """Return a chart in the look that all figures share."""
    return chart.configure(**THEME)


def length_ticks(low: float, high: float, unit: str) -> list[float]:
    """Return round lengths from `low` to `high` for a logarithmic axis: three at least where there are so many.

    Args:
        low: Beginning of the axis, in the native unit.
        high: Its end.
        unit: One of "tokens", "seconds", "pixels".
    """
    if unit == "seconds":
        base, ladders = 10.0, ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
    else:
        base, ladders = 2.0, ((1,), (1, 1.25, 1.5, 1.75))
    powers = range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)) + 1)
    found: list[float] = []
    for ladder in ladders:
        scaled = (step * base**power for power in powers for step in ladder)
        found = [length for length in scaled if low <= length <= high]
        if len(found) >= 3:
            break
    return found


def log_ends(values: Sequence[float], room: float = 0.03) -> tuple[float, float]:
    """Return both ends of a logarithmic axis, with room beyond the least and the most."""
    low, high = min(values), max(values)
    more = max((high / low) ** room, 1.02)
    return low / more, high * more


def ratio_ticks(low: float, high: float) -> list[float]:
    """Return round ratios within an axis, 1 among them."""
    found: list[float] = []
    for ladder in _RATIO_TICKS:
        found = [tick for tick in ladder if low <= tick <= high]
        reaches = ladder[0] <= low * 1.3 and high <= ladder[-1] * 1.3
        if reaches and len(found) <= _MOST_TICKS:
            break
    return found


def save(chart: alt.LayerChart | alt.HConcatChart, path: str | os.PathLike[str]) -> None:
    """Write a figure as its file's name ends: .svg, .png (300 dots per inch), .pdf, .html (works offline) or .json.

    The file becomes what it should be at once, or stays what it was.

    Raises:
        InputError: If the name ends otherwise, or the file cannot be written there.
    """
    target = check_path(path)
    write_whole(_rendered(chart, target.suffix.lower().removeprefix(".")), target)


def write_whole(content: bytes, path: str | os.PathLike[str]) -> None:
    """Write a file, which becomes what it should be at once, or stays what it was.

    Raises:
        InputError: If it cannot be written there.
    """
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to write, which becomes what it should be when all is written, or stays what it was.

    Raises:
        InputError: If it cannot be written there.
    """
    target = Path(path)
    try:
        with tempfile.TemporaryDirectory(prefix=".tippingpoint-", dir=target.parent) as folder:
            draft = Path(folder) / "draft"
            with draft.open("wb") as file:
                yield file
            draft.replace(target)
    except OSError as error:
        raise InputError(f"{str(target)!r} cannot be written: {error.strerror}") from error


def check_path(path: str | os.PathLike[str]) -> Path:
    """Return the file a figure is to become, if it can: to be asked before minutes of measuring.

    Raises:
        InputError: If its name ends as no figure's does, or its folder does not exist.
    """
    target = Path(path)
    if target.suffix.lower().removeprefix(".") not in FORMATS:
        endings = ", ".join(f".{each}" for each in FORMATS)
        raise InputError(f"a figure's file must end in one of {endings}, got {str(target)!r}")
    check_folder(target)
    return target


def check_folder(path: Path) -> None:
    """Refuse a file whose folder does not exist.

    Raises:
        InputError: If it does not.
    """
    if not path.parent.is_dir():
        raise InputError(f"the folder {str(path.parent)!r} does not exist; create it, or choose another")


def _rendered(chart: alt.LayerChart | alt.HConcatChart, kind: str) -> bytes:
    if kind == "html":
        return chart.to_html(inline=True).encode()
    file = io.BytesIO() if kind in ("png", "pdf") else io.StringIO()
    chart.save(file, format=kind, **({"ppi": _DOTS_PER_INCH} if kind == "png" else {}))  # type: ignore[arg-type]
    content = file.getvalue()
    return content if isinstance(content, bytes) else content.encode()
