"""Headline answers: the sentences that a reader came for, most important first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tippingpoint.analysis.recommend import ITEMS
from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.data import LengthData
from tippingpoint.report.tables import interval_words
from tippingpoint.units import format_length, format_percent
from tippingpoint.workload import METRICS

if TYPE_CHECKING:
    from tippingpoint.report.contents import Comparison

_VERDICT_ORDER = ("crosses", "several crossings", "always", "never", "undecided")
_MOST_ANSWERS = 8
# Of the pairs of one comparison; the rest is in the table.
_MOST_PAIRS = 3
_SAYS = {
    "latency": ("is faster than", "is not faster than"),
    "throughput": ("has a higher throughput than", "has no higher throughput than"),
    "peak_memory": ("needs less memory than", "does not need less memory than"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sentence a reader came for.

    Attributes:
        text: "nystromformer is faster than bert from 868 tokens on (95 % 843 to 897)".
        where: The setting in words.
        data: How much of the person's data lies beyond, where lengths were given.
        point: What it rests on; None for an answer about several subjects.
    """

    text: str
    where: str
    data: str = ""
    point: TippingPoint | None = None


def sentence(point: TippingPoint) -> str:
    """Return the verdict of a tipping point with both names in it."""
    better, not_better = _SAYS[point.metric]
    low, high = (format_length(length, point.unit) for length in point.measured_range)
    alone = f"at {low}, the only length measured" if low == high else ""
    if point.verdict == "always":
        return (
            f"{point.variant} {better} {point.baseline} {alone or f'at every length measured (from {low} to {high})'}"
        )
    if point.verdict == "never":
        reach = alone or f"up to {high} (measured from {low} to {high})"
        return f"{point.variant} {not_better} {point.baseline} {reach}"
    if point.length is None or point.interval is None:
        reach = alone or f"measured from {low} to {high}"
        return f"whether {point.variant} {better} {point.baseline} is undecided ({reach})"
    several = "; it crosses several times" if point.verdict == "several crossings" else ""
    return (
        f"{point.variant} {better} {point.baseline} from {format_length(point.length, point.unit)} on "
        f"(95 % {interval_words(point)}){several}"
    )


def longer_share(point: TippingPoint, lengths: LengthData | None) -> float | None:
    """Return the share of the person's items that are longer than a tipping point; None where nothing says it."""
    if lengths is None or lengths.unit != point.unit or point.length is None:
        return None
    return 1 - lengths.share_at_most(point.length)


def answers(comparisons: Sequence[Comparison], lengths: LengthData | None) -> tuple[Answer, ...]:
    """Return the first answers of every comparison in turn: of latency and of what tips first; then who wins most."""
    by_comparison = [[*_of_pairs(each, lengths)[:_MOST_PAIRS], *_overall(each)] for each in comparisons]
    return tuple(answer for answers in by_comparison for answer in answers)[:_MOST_ANSWERS]


def _overall(comparison: Comparison) -> list[Answer]:
    """Return who is the fastest at most lengths, where several variants compete."""
    if len(comparison.contest.variants) < 2 or not comparison.fastest:
        return []
    count = len(comparison.fastest)
    (subject, won), *_ = Counter(best.subject for best in comparison.fastest).most_common(1)
    low, high = (format_length(comparison.fastest[end].length, comparison.setting.unit) for end in (0, -1))
    where = f"at {won} of {count} lengths ({low} to {high})" if count > 1 else f"at {low}, the only length of all"
    text = f"Of {len(comparison.contest.subjects)} subjects, {subject} is the fastest {where}"
    return [Answer(text=text, where=str(comparison.setting))]


def _of_pairs(comparison: Comparison, lengths: LengthData | None) -> list[Answer]:
    # Fused attention, the first baseline, is what a user would run.
    first = comparison.contest.baselines[0]
    points = [point for point in comparison.tipping_points if point.baseline == first]
    points.sort(key=lambda point: (METRICS.index(point.metric), _VERDICT_ORDER.index(point.verdict)))
    return [
        Answer(text=sentence(point), where=str(comparison.setting), data=data_words(point, lengths), point=point)
        for point in points
    ]


def data_words(point: TippingPoint, lengths: LengthData | None) -> str:
    """Return how much of the person's data is longer than a tipping point; empty where nothing says it."""
    share = longer_share(point, lengths)
    if share is None or lengths is None or point.interval is None:
        return ""
    least, most = (1 - lengths.share_at_most(end) for end in reversed(point.interval))
    between = "" if least == most else f" (95 % {format_percent(least)} to {format_percent(most)})"
    return f"{format_percent(share)} of your {lengths.count:,} {ITEMS[lengths.modality]} are longer{between}"
