"""A report as files for other programs and for paper: Markdown, CSV, LaTeX, Parquet, PDF, a folder of figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tippingpoint import __version__
from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.errors import InputError
from tippingpoint.report.answers import longer_share
from tippingpoint.report.contents import Comparison, Contents
from tippingpoint.report.document import Bullets, Heading, Paragraph, document
from tippingpoint.report.figures import check_folder, write_whole
from tippingpoint.report.grids import Grid
from tippingpoint.report.row_files import Row, as_csv, as_parquet
from tippingpoint.workload import check_choice

# Figures in a PDF; the folder has all.
_MOST_FIGURES = 24


def export(contents: Contents, format: str, path: Path, *, rows: Sequence[Row]) -> list[Path]:
    """Write a report in another format than a page; return the files.

    Every file becomes what it should be at once, or stays what it was.

    Args:
        contents: What the report says.
        format: One of `FORMATS`. "csv" and "parquet" write two files: all measurements, and the tipping points.
        path: The file, or the folder.
        rows: Flat rows of all outcomes, as `StoredSession.rows` has them.

    Raises:
        InputError: If the format is unknown, or something cannot be written there.
    """
    check_choice("format", format, FORMATS)
    check_folder(path)
    if format != "folder" and path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; name a file in it")
    files = []
    for target, content in _WRITERS[format](contents, path, rows):
        write_whole(content, target)
        files.append(target)
    return files


Files = Iterator[tuple[Path, bytes]]


def _markdown(contents: Contents, path: Path, _: Sequence[Row]) -> Files:
    from tippingpoint.report.markdown import markdown

    yield path, markdown(contents.title, document(contents)).encode()


def _latex(contents: Contents, path: Path, _: Sequence[Row]) -> Files:
    from tippingpoint.report.latex import latex

    grids = [block for block in document(contents) if isinstance(block, Grid)]
    yield path, latex(contents.title, grids).encode()


def _pdf(contents: Contents, path: Path, _: Sequence[Row]) -> Files:
    from tippingpoint.report.paper_figures import figures
    from tippingpoint.report.pdf import pdf

    # What is counted is in the tables.
    drawn = [figure for figure in figures(contents) if not figure.name.startswith("FLOPs")]
    yield path, pdf(contents.title, document(contents, drawn[:_MOST_FIGURES], left_out=len(drawn[_MOST_FIGURES:])))


def _folder(contents: Contents, path: Path, _: Sequence[Row]) -> Files:
    from tippingpoint.report.markdown import markdown
    from tippingpoint.report.paper_figures import COLUMN_IN, figures

    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {str(path)!r} cannot be made: {error.strerror}") from error
    drawn = figures(contents)
    for figure in drawn:
        yield path / f"{figure.name}.svg", figure.svg().encode()
        yield path / f"{figure.name}.pdf", figure.pdf()
        yield path / f"{figure.name}.png", figure.png()
    about = (
        f"Each figure is {COLUMN_IN:g} inches wide, a column of a paper, as .svg, .pdf and .png (300 dots per inch)."
    )
    blocks = [Paragraph(about), Heading("Answers"), Bullets(tuple(each.text for each in contents.answers))]
    yield path / "index.md", markdown(contents.title, [*blocks, Heading("Figures"), *drawn]).encode()


def _csv(contents: Contents, path: Path, rows: Sequence[Row]) -> Files:
    yield path, as_csv(rows)
    yield _beside(path), as_csv(tipping_point_rows(contents))


def _parquet(contents: Contents, path: Path, rows: Sequence[Row]) -> Files:
    environments = {key: asdict(each) for key, each in contents.environments.items()}
    told = {"tippingpoint.version": __version__, "tippingpoint.environments": json.dumps(environments)}
    yield path, as_parquet(rows, told)
    yield _beside(path), as_parquet(tipping_point_rows(contents), told)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-tipping-points{path.suffix}")


def tipping_point_rows(contents: Contents) -> list[dict[str, Any]]:
    """Return one flat row for each tipping point; what there is not is None. Lengths are in the native unit."""
    return [
        _tip_row(comparison, point, contents)
        for comparison in contents.comparisons
        for point in comparison.tipping_points
    ]


def _tip_row(comparison: Comparison, point: TippingPoint, contents: Contents) -> dict[str, Any]:
    setting = comparison.setting
    low, high = point.interval or (None, None)
    positions_low, positions_high = point.positions_interval or (None, None)
    return {
        "variant": str(point.variant),
        "baseline": str(point.baseline),
        "metric": point.metric,
        "phase": point.phase,
        "verdict": point.verdict,
        "length": point.length,
        "length_low": low,
        "length_high": high,
        "unit": point.unit,
        "positions": point.positions,
        "positions_low": positions_low,
        "positions_high": positions_high,
        "measured_from": float(point.measured_range[0]),
        "measured_to": float(point.measured_range[1]),
        "longer_share": longer_share(point, contents.lengths),
        "sessions": point.sessions,
        "modality": setting.modality,
        "batch_size": setting.batch_size,
        **setting.workload.columns,
        "label": setting.label,
        "environment": setting.environment,
    }


_WRITERS: dict[str, Callable[[Contents, Path, Sequence[Row]], Files]] = {
    "md": _markdown,
    "csv": _csv,
    "latex": _latex,
    "parquet": _parquet,
    "pdf": _pdf,
    "folder": _folder,
}
FORMATS = tuple(_WRITERS)
