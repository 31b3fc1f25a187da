"""Tipping points of one pair as a function of the batch size, and the map of length and batch size behind them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tippingpoint.analysis.comparison import ComparisonPoint
from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.errors import InputError
from tippingpoint.models.catalog import architecture_of
from tippingpoint.units import format_length
from tippingpoint.workload import Subject

WINNERS = ("variant", "baseline", "undecided")
# What all tipping points of a map have in common.
_COMMON = ("baseline", "variant", "metric", "phase", "device", "unit")
# Lengths at which a map is looked at: 4 % apart over six octaves.
_GRID = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is known of one length at one batch size.

    Attributes:
        batch_size: Sequences per call.
        length: In the native unit.
        positions: The same in sequence positions of the baseline.
        ratio: Cost of the baseline over cost of the variant; None where memory ran out.
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        winner: "variant", "baseline" or "undecided": who is better according to the interval.
        measured: Whether it was measured; otherwise it lies between two lengths that were.
        out_of_memory: "baseline" or "variant" where that one alone ran out of memory, so that the other one wins.
    """

    batch_size: int
    length: float
    positions: int
    ratio: float | None
    low: float | None
    high: float | None
    winner: str
    measured: bool
    out_of_memory: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """The tipping point at one batch size.

    Attributes:
        batch_size: Sequences per call.
        tipping_point: Verdict, length, interval and the observations it rests on, if there are any.
        positions_per_batch: Batch size times the tipping point in sequence positions of the baseline.
        positions_per_batch_interval: Its 95 % interval.
    """

    batch_size: int
    tipping_point: TippingPoint
    positions_per_batch: int | None
    positions_per_batch_interval: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class BatchMap:
    """A variant held against a baseline by length and batch size.

    Attributes:
        baseline: The subject to beat.
        variant: The subject that may be better.
        metric: "latency" or "peak_memory".
        phase: "inference" or "training".
        device: Where.
        unit: Native unit of lengths.
        rows: One for each batch size, smallest first; a batch size at which nothing could be compared is among them.
        cells: By batch size, then length. Lengths of which nothing is known have none: those beyond the measured
            range of a batch size, and those between one that fitted into memory and one that did not.
        trend: How the tipping point moves with the batch size, in a sentence or two.
    """

    baseline: Subject
    variant: Subject
    metric: str
    phase: str
    device: str
    unit: str
    rows: tuple[BatchRow, ...]
    cells: tuple[Cell, ...]
    trend: str

    def _repr_html_(self) -> str:
        from tippingpoint.report.notebook import as_html

        return as_html(self)


def batch_map(tipping_points: Iterable[TippingPoint]) -> BatchMap:
    """Put the tipping points of one pair at several batch sizes together.

    Args:
        tipping_points: Of the same pair, metric, phase and device, one for each batch size, in any order; each may
            rest on lengths of its own.

    Raises:
        InputError: If there are none, if they are not of the same pair, metric, phase and device, if two are of the
            same batch size, or if the metric is throughput.
    """
    points = sorted(tipping_points, key=lambda point: point.batch_size)
    if not points:
        raise InputError("a map over batch sizes needs the tipping point of one batch size at least, got none")
    common = {name: _the_same(name, points) for name in _COMMON}
    if common["metric"] == "throughput":
        raise InputError(
            "throughput is that of each subject's best batch size, so it has no map over batch sizes; "
            "expected latency or peak_memory"
        )
    for first, second in itertools.pairwise(points):
        if first.batch_size == second.batch_size:
            raise InputError(f"a map needs one tipping point for each batch size, got two for {first.batch_size}")
    lengths = _grid([seen.length for point in points for seen in point.points], points[0])
    return BatchMap(
        **common,
        rows=tuple(_row(point) for point in points),
        cells=tuple(cell for point in points for cell in _cells(point, lengths)),
        trend=_trend(points),
    )


def _the_same(name: str, points: Sequence[TippingPoint]) -> Any:
    values = list(dict.fromkeys(getattr(point, name) for point in points))
    if len(values) > 1:
        raise InputError(
            f"a map over batch sizes is of one {name}, got {' and '.join(map(str, values))}; make a map of each"
        )
    return values[0]


def _row(point: TippingPoint) -> BatchRow:
    size, positions, ends = point.batch_size, point.positions, point.positions_interval
    return BatchRow(
        batch_size=size,
        tipping_point=point,
        positions_per_batch=None if positions is None else size * positions,
        positions_per_batch_interval=None if ends is None else (size * ends[0], size * ends[1]),
    )


def _grid(measured: Iterable[float], pair: TippingPoint) -> tuple[float, ...]:
    """Return the lengths of a map: those measured, and between them legal ones, even on the logarithmic scale."""
    lengths = set(measured)
    if len(lengths) < 2:
        return tuple(lengths)
    seen = np.log(sorted(lengths))
    places, step = np.linspace(seen[0], seen[-1], _GRID, retstep=True)
    rows = [architecture_of(subject) for subject in (pair.baseline, pair.variant)]
    for length in np.exp(places).tolist():
        for row in rows:
            length = row.nearest_legal(length)
        # Two subjects may have no legal length in common here.
        legal = all(row.nearest_legal(length) == length for row in rows)
        # A length as close as this to a measured one has nothing to add.
        apart = np.abs(seen - math.log(length)).min() > step / 2
        if legal and apart and seen[0] < math.log(length) < seen[-1]:
            lengths.add(length)
    return tuple(sorted(lengths))


def _cells(point: TippingPoint, lengths: Sequence[float]) -> list[Cell]:
    """Return the cells of one batch size, shortest first."""
    cells = [_measured_cell(point, seen) for seen in point.points]
    measured = {seen.length for seen in point.points}
    for censored, run in itertools.groupby(point.points, key=lambda seen: seen.censored):
        seen = list(run)
        inside = [each for each in lengths if seen[0].length < each < seen[-1].length and each not in measured]
        if censored:
            cells += [_out_of_memory(point, length, censored, measured=False) for length in inside]
        elif inside:
            for length, (low, ratio, high) in zip(inside, point.ratios(inside).T.tolist(), strict=True):
                cells.append(_cell(point, length, (low, ratio, high), (low > 1) - (high < 1), measured=False))
    return sorted(cells, key=lambda cell: cell.length)


def _measured_cell(point: TippingPoint, seen: ComparisonPoint) -> Cell:
    if seen.censored:
        return _out_of_memory(point, seen.length, seen.censored, measured=True)
    low, high = seen.interval
    return _cell(point, seen.length, (low, seen.ratio, high), seen.sign, measured=True)


def _out_of_memory(point: TippingPoint, length: float, censored: int, *, measured: bool) -> Cell:
    loser = "baseline" if censored > 0 else "variant"
    return _cell(point, length, (None, None, None), censored, measured=measured, out_of_memory=loser)


def _cell(
    point: TippingPoint,
    length: float,
    ratio: tuple[float | None, float | None, float | None],
    sign: int,
    *,
    measured: bool,
    out_of_memory: str | None = None,
) -> Cell:
    return Cell(
        batch_size=point.batch_size,
        length=length,
        positions=architecture_of(point.baseline).positions(length),
        ratio=ratio[1],
        low=ratio[0],
        high=ratio[2],
        winner={1: "variant", -1: "baseline", 0: "undecided"}[sign],
        measured=measured,
        out_of_memory=out_of_memory,
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tipping point lies for certain, in words and as an interval; what it is counted in is the caller's."""

    batch_size: int
    low: float
    high: float
    words: str


def _trend(points: Sequence[TippingPoint]) -> str:
    """Return how the tipping point moves with the batch size, and where nothing is known of it."""
    places = [place for place in map(_place, points) if place]
    if len(places) < 2:
        known = "at one batch size only" if places else "at no batch size"
        return f"The tipping point is known {known}."
    moved = _movement(places)
    if moved is None and all(point.length is None for point in points):
        sentences = ["No tipping point lies within the lengths measured at any batch size."]
    elif moved is None:
        sentences = ["The tipping point does not move measurably with the batch size."]
    else:
        sentences = [f"The tipping point {moved}."]
        # Were it a matter of positions per batch alone, these would stay where they are.
        batches = [place for place in map(_place_per_batch, points) if place]
        if len(batches) > 1:
            counted = _movement(batches) or "does not move measurably"
            sentences.append(f"Counted in positions per batch it {counted}.")
    unknown = {point.batch_size for point in points} - {place.batch_size for place in places}
    if unknown:
        sentences.append(f"Nothing certain is known at batch {', '.join(map(str, sorted(unknown)))}.")
    return " ".join(sentences)


def _movement(places: Sequence[_Place]) -> str | None:
    """Return how places move, None where they do not; only intervals that do not overlap are a movement."""
    apart = [(a, b) for a, b in itertools.combinations(places, 2) if a.high < b.low or b.high < a.low]
    # The widest span of batch sizes in each direction.
    apart.sort(key=lambda pair: pair[1].batch_size / pair[0].batch_size, reverse=True)
    movements: dict[str, str] = {}
    for first, second in apart:
        verb = "falls" if second.high < first.low else "rises"
        ends = f"from {first.words} at batch {first.batch_size} to {second.words} at batch {second.batch_size}"
        movements.setdefault(verb, f"{verb} {ends}")
    return " and ".join(movements.values()) or None


def _place(point: TippingPoint) -> _Place | None:
    """Return where the tipping point certainly lies; None where nothing is certain.

    A variant that is better at every length measured may tip below the shortest one, one that is not may tip beyond
    the longest; both reach only as far as the intervals of the observations.
    """
    if point.length is not None and point.interval is not None:
        return _Place(point.batch_size, *point.interval, format_length(point.length, point.unit))
    signs = [seen.sign for seen in point.points]
    if point.verdict == "always" and signs and signs[-1] > 0:
        better = len(list(itertools.takewhile(lambda sign: sign > 0, reversed(signs))))
        end = point.points[-better].length
        return _Place(point.batch_size, 0.0, end, f"at most {format_length(end, point.unit)}")
    if point.verdict == "never" and -1 in signs:
        start = point.points[len(signs) - 1 - signs[::-1].index(-1)].length
        return _Place(point.batch_size, start, math.inf, f"more than {format_length(start, point.unit)}")
    return None


def _place_per_batch(point: TippingPoint) -> _Place | None:
    row = _row(point)
    if row.positions_per_batch is None or row.positions_per_batch_interval is None:
        return None
    return _Place(row.batch_size, *row.positions_per_batch_interval, f"{row.positions_per_batch:,}")
