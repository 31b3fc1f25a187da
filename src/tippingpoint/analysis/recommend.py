"""Which subject to use for a person's own lengths, with the evidence and the reason in plain words."""

from __future__ import annotations

import bisect
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tippingpoint.analysis.cost import CostCurve, cost_curve
from tippingpoint.analysis.tipping_point import TippingPoint, tipping_point
from tippingpoint.data import LengthData
from tippingpoint.errors import AnswerError, InputError
from tippingpoint.measurement import Environment, Failure, Outcome
from tippingpoint.units import (
    format_bytes,
    format_length,
    format_percent,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_duration,
)
from tippingpoint.workload import METRICS, Subject, check_choice

OBJECTIVES = METRICS
ITEMS = {"text": "documents", "speech": "recordings", "vision": "images"}
# A latency constraint is held at this percentile of the lengths; peak memory at the longest one.
_LATENCY_PERCENTILE = 95
_CONFIDENCE = 0.95
_CONSTRAINT = re.compile(r"\s*([a-z_]+)\s*(<=|>=)\s*(.+?)\s*")


@dataclass(frozen=True, slots=True)
class Constraint:
    """A bound that a subject must keep, such as `peak_memory<=4GiB`; SI units inside.

    Latency is held at the 95th percentile of the lengths, throughput over all of them (sequences per second),
    peak memory at the longest one.
    """

    metric: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Return the constraint written as `latency<=200ms`, `peak_memory<=4GiB` or `throughput>=5`.

        Raises:
            InputError: If the text does not follow the grammar.
        """
        expected = "expected latency<=DURATION, peak_memory<=SIZE or throughput>=SEQUENCES_PER_SECOND"
        match = _CONSTRAINT.fullmatch(text)
        if not match:
            raise InputError(f"cannot read the constraint {text!r}; {expected}")
        metric, sign, value = match.groups()
        check_choice("constraint", metric, METRICS)
        if sign != (">=" if metric == "throughput" else "<="):
            raise InputError(f"the constraint {text!r} bounds the wrong side; {expected}")
        return cls.of(metric, value)

    @classmethod
    def of(cls, metric: str, value: str | float) -> Constraint:
        """Return the constraint on `metric`, from "4GiB", "200ms" or a plain number."""
        check_choice("constraint", metric, METRICS)
        if metric == "peak_memory":
            return cls(metric, parse_bytes(value))
        if metric == "latency":
            return cls(metric, parse_duration(value))
        try:
            bound = float(value)
        except ValueError:
            bound = 0.0
        if not bound > 0:
            raise InputError(f"a throughput must be a positive number of sequences per second, got {value!r}")
        return cls(metric, bound)

    def __str__(self) -> str:
        if self.metric == "peak_memory":
            return f"peak memory at the longest <= {format_bytes(self.bound)}"
        if self.metric == "latency":
            return f"latency at the {_LATENCY_PERCENTILE}th percentile <= {format_seconds(self.bound)}"
        return f"throughput >= {format_rate(self.bound)} sequences/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What a subject would cost on the person's data.

    Attributes:
        subject: The subject.
        cost: Expected cost of an item by the objective: seconds (latency, throughput) or bytes (peak memory at
            the longest item).
        interval: Its 95 % interval.
        peak_bytes: Peak memory at the longest covered item.
        latency_95_s: Latency at the 95th percentile of lengths.
        excluded: Why it was left out, or None.
    """

    subject: Subject
    cost: float | None = None
    interval: tuple[float, float] | None = None
    peak_bytes: float | None = None
    latency_95_s: float | None = None
    excluded: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Recommendation:
    """Which subject to use for a person's lengths.

    Attributes:
        choice: The subject.
        baseline: The vanilla subject that the others were held against.
        objective: "latency", "throughput" or "peak_memory".
        phase: "inference" or "training".
        data: The lengths.
        covered: Share of the items no longer than what was measured; the answer speaks of them.
        reach: Longest length the answer speaks of.
        reason: Plain words.
        candidates: All of them, cheapest first.
        tipping_points: Of every variant against the first baseline, by the objective.
        environment: Where it was measured.
        constraints: What had to be kept.
        notes: What would change the answer, and what is doubtful.
    """

    choice: Subject
    baseline: Subject
    objective: str
    phase: str
    data: LengthData
    covered: float
    reach: float
    reason: str
    candidates: tuple[Candidate, ...]
    tipping_points: tuple[TippingPoint, ...]
    environment: Environment
    constraints: tuple[Constraint, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"use {self.choice}: {self.reason}"]
        for candidate in self.candidates:
            name = f"  {candidate.subject!s:<32}"
            if candidate.cost is None or candidate.interval is None:
                lines.append(f"{name} {candidate.excluded}")
                continue
            show = format_bytes if self.objective == "peak_memory" else format_seconds
            low, high = candidate.interval
            suffix = f"  left out: {candidate.excluded}" if candidate.excluded else ""
            lines.append(f"{name} {show(candidate.cost)}  (95 % {show(low)} to {show(high)}){suffix}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def recommend_from(
    data: LengthData,
    outcomes: Sequence[Outcome],
    environment: Environment,
    *,
    baselines: Sequence[Subject],
    variants: Sequence[Subject],
    objective: str = "latency",
    phase: str = "inference",
    batch_size: int = 1,
    constraints: Iterable[Constraint] = (),
) -> Recommendation:
    """Recommend a subject from measurements alone; nothing is measured and torch is not needed.

    Args:
        data: The person's lengths.
        outcomes: Measured in `environment`.
        environment: For the record.
        baselines: Vanilla subjects, options written out; the first one is the one to beat.
        variants: Efficient subjects, options written out.
        objective: "latency" (seconds for an item, one at a time), "throughput" (the same at the best batch
            size) or "peak_memory" (at the longest item).
        phase: "inference" or "training".
        batch_size: Of latency and peak memory.
        constraints: What the choice must keep.

    Raises:
        AnswerError: If no candidate was measured at any length, or none keeps the constraints.
    """
    check_choice("objective", objective, OBJECTIVES)
    constraints = tuple(constraints)
    subjects = list(dict.fromkeys([*baselines, *variants]))

    def curve(subject: Subject, metric: str) -> CostCurve | None:
        return cost_curve(outcomes, subject, metric=metric, phase=phase, batch_size=batch_size)

    curves = {subject: found for subject in subjects if (found := curve(subject, objective))}
    if not curves:
        raise AnswerError(
            f"no candidate has been measured ({', '.join(map(str, subjects))}); run `tippingpoint study` or give "
            "a --budget"
        )
    # The answer speaks of lengths that the best-covered candidates share; who ends earlier is left out.
    reach = max(found.reach for found in curves.values())
    covered = bisect.bisect_right(data.lengths, reach)
    if not covered:
        raise AnswerError(
            f"every item is longer than the longest measured length {format_length(reach, data.unit)}; the "
            f"shortest is {format_length(data.minimum, data.unit)}: measure longer, or cut with --max-length"
        )
    lengths, counts = np.asarray(data.lengths[:covered]), np.asarray(data.counts[:covered])
    weights = counts / counts.sum()
    position_95 = int(np.searchsorted(np.cumsum(weights), _LATENCY_PERCENTILE / 100 - 1e-12))

    rows: dict[Subject, Candidate] = {}
    costs: dict[Subject, np.ndarray] = {}
    for subject in subjects:
        found = curves.get(subject)
        if found is None:
            rows[subject] = Candidate(subject=subject, excluded=_why_missing(subject, outcomes))
            continue
        if found.reach < lengths[-1]:
            end = format_length(found.reach, data.unit)
            rows[subject] = Candidate(subject=subject, excluded=f"measured only up to {end}")
            continue
        at = found.at(lengths)
        costs[subject] = at[:, -1] if objective == "peak_memory" else at @ weights
        rate = curve(subject, "throughput")
        observed = {
            "latency": _center(curve(subject, "latency"), lengths[position_95]),
            "peak_memory": _center(curve(subject, "peak_memory"), lengths[-1]),
            "throughput": 1 / float(np.median(rate.at(lengths) @ weights)) if rate else None,
        }
        low, middle, high = np.percentile(costs[subject], [2.5, 50, 97.5])
        rows[subject] = Candidate(
            subject=subject,
            cost=float(middle),
            interval=(float(low), float(high)),
            peak_bytes=observed["peak_memory"],
            latency_95_s=observed["latency"],
            excluded=_broken(constraints, observed),
        )
    fit = [row for row in rows.values() if row.cost is not None and row.excluded is None]
    if not fit:
        reasons = "; ".join(f"{row.subject}: {row.excluded}" for row in rows.values())
        raise AnswerError(f"no candidate keeps the constraints: {reasons}")
    best = min(fit, key=lambda row: row.cost or 0.0)
    choice, close = _prefer_vanilla(best, fit, costs, baselines)
    points = tuple(
        tipping_point(
            outcomes,
            baselines[0],
            variant,
            metric=objective,
            phase=phase,
            batch_size=batch_size,
            device=outcomes[0].workload.device,
        )
        for variant in variants
    )
    share = data.share_at_most(reach)
    return Recommendation(
        choice=choice.subject,
        baseline=baselines[0],
        objective=objective,
        phase=phase,
        data=data,
        covered=share,
        reach=reach,
        reason=_reason(data, choice, close, rows[baselines[0]], objective, points),
        candidates=tuple(sorted(rows.values(), key=_order)),
        tipping_points=points,
        environment=environment,
        constraints=constraints,
        notes=_notes(data, share, reach, points),
    )


def _order(row: Candidate) -> tuple[bool, float]:
    return (row.cost is None, row.cost or 0.0)


def _center(curve: CostCurve | None, length: float) -> float | None:
    if curve is None or length > curve.reach:
        return None
    return float(np.median(curve.at([length])))


def _why_missing(subject: Subject, outcomes: Iterable[Outcome]) -> str:
    for outcome in outcomes:
        if isinstance(outcome, Failure) and outcome.workload.subject == subject:
            return f"{outcome.kind}: {outcome.message}"
    return "not measured"


def _broken(constraints: Iterable[Constraint], observed: Mapping[str, float | None]) -> str | None:
    """Return the first constraint that is not kept, with what was observed; None if all are."""
    for constraint in constraints:
        value = observed[constraint.metric]
        if value is None:
            return f"{constraint} could not be checked"
        kept = operator.ge if constraint.metric == "throughput" else operator.le
        if not kept(value, constraint.bound):
            shown = {"peak_memory": format_bytes, "latency": format_seconds}.get(constraint.metric, format_rate)
            return f"{constraint} is not kept ({shown(value)})"
    return None


def _prefer_vanilla(
    best: Candidate,
    fit: Sequence[Candidate],
    costs: Mapping[Subject, np.ndarray],
    baselines: Sequence[Subject],
) -> tuple[Candidate, Candidate | None]:
    """Return the choice, and the candidate it is within noise of.

    An approximation that is not certainly cheaper is not worth its risk: a baseline within noise wins.
    """
    for row in fit:
        if row.subject in baselines and row is not best and best.subject not in baselines:
            certain = float((costs[best.subject] < costs[row.subject]).mean())
            if certain < _CONFIDENCE:
                return row, best
    for row in fit:
        if row is not best and float((costs[best.subject] < costs[row.subject]).mean()) < _CONFIDENCE:
            return best, row
    return best, None


def _reason(
    data: LengthData,
    choice: Candidate,
    close: Candidate | None,
    baseline: Candidate,
    objective: str,
    points: Sequence[TippingPoint],
) -> str:
    items = ITEMS[data.modality]
    most = format_length(data.percentile(95), data.unit)
    best = {
        "latency": f"fastest on average ({format_seconds(choice.cost or 0)} for one)",
        "throughput": f"fastest in batches ({format_seconds(choice.cost or 0)} for one)",
        "peak_memory": f"smallest at the longest ({format_bytes(choice.cost or 0)})",
    }[objective]
    text = f"95 % of your {items} are at most {most}, and {choice.subject} is {best}"
    if close:
        text += f", within noise of {close.subject}"
    elif choice.subject != baseline.subject and baseline.cost and choice.cost:
        text += f", {baseline.cost / choice.cost:.2f} times better than {baseline.subject}"
    text += "."
    for point in points:
        if point.variant == choice.subject or not point.points:
            continue
        if point.length is not None:
            share = format_percent(1 - data.share_at_most(point.length))
            pays = format_length(float(f"{point.length:.2g}") if point.length >= 100 else point.length, data.unit)
            text += f" {point.variant} would pay from about {pays} on, which {share} of them exceed."
        elif point.verdict == "never":
            text += (
                f" {point.variant} does not pay up to {format_length(point.measured_range[1], data.unit)}, the "
                "longest measured."
            )
    return text


def _notes(data: LengthData, share: float, reach: float, points: Sequence[TippingPoint]) -> tuple[str, ...]:
    notes = []
    if share < 1:
        notes.append(
            f"{format_percent(1 - share)} of the items are longer than {format_length(reach, data.unit)}, the "
            "longest measured: the answer does not speak of them (a larger --budget measures longer, "
            "--max-length cuts)"
        )
    if data.estimated:
        notes.append("lengths are estimates; --tokenizer counts them")
    notes += data.notes()
    if data.skipped_count:
        notes.append(f"left out because it could not be read: {data.skipped_count:,} of the items")
    notes += [f"{point.variant}: {point.answer}" for point in points if point.verdict == "undecided"]
    notes.append("quality is not measured here: an approximation may cost accuracy")
    return tuple(notes)
