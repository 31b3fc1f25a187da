"""Which subject to use for a person's own items, as they batch them: the choice, and what it rests on."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tippingpoint.analysis.batching import Batching
from tippingpoint.analysis.constraint import OBJECTIVES, Constraint, first_broken, measured_metric, show_value
from tippingpoint.analysis.cost import CostCurve, cost_curve, of_batches
from tippingpoint.analysis.reasons import ITEMS, Answer, changes, notes, reason
from tippingpoint.analysis.switching import Switch, best_switch, check_switch
from tippingpoint.analysis.tipping_point import TippingPoint, tipping_point
from tippingpoint.analysis.workload_cost import (
    Epoch,
    Estimate,
    WorkloadCost,
    certainly_less,
    draws,
    epochs,
    resamples,
    workload_cost,
)
from tippingpoint.data import LengthData
from tippingpoint.errors import AnswerError
from tippingpoint.measurement import Environment, Failure, Measurement, Outcome, is_best_batch
from tippingpoint.units import format_length
from tippingpoint.workload import Subject, check_choice

__all__ = ["ITEMS", "OBJECTIVES", "Candidate", "Constraint", "Recommendation", "recommend_from"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What a subject would cost on the person's data.

    Attributes:
        subject: The subject.
        cost: Expected cost by the objective: seconds of an item (latency, throughput) or bytes (peak memory).
        interval: Its 95 % interval.
        workload: Everything the data cost with it.
        excluded: Why it was left out, or None.
    """

    subject: Subject
    cost: float | None = None
    interval: tuple[float, float] | None = None
    workload: WorkloadCost | None = None
    excluded: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Recommendation:
    """Which subject to use for a person's items.

    Attributes:
        choice: The subject.
        baseline: The vanilla subject that the others were held against.
        objective: What it was chosen by: "latency" (mean of the items), "latency_p50", "latency_p95", "latency_p99",
            "throughput" or "peak_memory".
        phase: "inference" or "training".
        batching: How the items are batched.
        data: The lengths.
        covered: Share of the items no longer than what was measured; the answer speaks of them.
        reach: Longest length the answer speaks of.
        reason: Plain words.
        candidates: All of them, cheapest first.
        switch: The best policy of two models, where one was asked for and gains anything.
        tipping_points: Of every variant against the first baseline, by what was measured for the objective.
        environment: Where it was measured.
        constraints: What had to be kept.
        changes: What would change the answer.
        notes: What is doubtful.
    """

    choice: Subject
    baseline: Subject
    objective: str
    phase: str
    batching: Batching
    data: LengthData
    covered: float
    reach: float
    reason: str
    candidates: tuple[Candidate, ...]
    tipping_points: tuple[TippingPoint, ...]
    environment: Environment
    switch: Switch | None = None
    constraints: tuple[Constraint, ...] = ()
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"use {self.choice}: {self.reason}"]
        for candidate in self.candidates:
            name = f"  {candidate.subject!s:<32}"
            if candidate.cost is None or candidate.interval is None:
                lines.append(f"{name} {candidate.excluded}")
                continue
            value, low, high = (show_value(self.objective, v) for v in (candidate.cost, *candidate.interval))
            suffix = f"  left out: {candidate.excluded}" if candidate.excluded else ""
            lines.append(f"{name} {value}  (95 % {low} to {high}){suffix}")
        lines += [f"  would change it: {change}" for change in self.changes]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from tippingpoint.report.notebook import as_html

        return as_html(self)


@dataclass(frozen=True)
class _Curves:
    """Measured costs of one subject: seconds of a sequence, the same at its best batch sizes, bytes of a batch."""

    seconds: CostCurve
    at_best: CostCurve | None
    memory: CostCurve | None


def recommend_from(
    data: LengthData,
    outcomes: Sequence[Outcome],
    environment: Environment,
    *,
    baselines: Sequence[Subject],
    variants: Sequence[Subject],
    objective: str = "latency",
    phase: str = "inference",
    batching: Batching | str = "one",
    constraints: Iterable[Constraint] = (),
    switch: bool = False,
    also: Sequence[Outcome] = (),
) -> Recommendation:
    """Recommend a subject from measurements alone; nothing is measured and torch is not needed.

    Args:
        data: The person's lengths.
        outcomes: Measured in `environment`.
        environment: For the record.
        baselines: Vanilla subjects, options written out; the first one is the one to beat.
        variants: Efficient subjects, options written out.
        objective: "latency" (mean of the items), "latency_p50", "latency_p95", "latency_p99", "throughput" (seconds
            that an item takes; one by one, at the best batch size of each length) or "peak_memory" (of the batch that
            needs most).
        phase: "inference" or "training".
        batching: How the items are batched; its batch sizes must have been measured.
        constraints: What the choice must keep.
        switch: Whether to look for a policy of two models as well.
        also: The same measured in batches of other sizes, to say whether another batching would change the answer.

    Raises:
        InputError: If the batching is not one for the data's modality, or a switch is asked for by another objective
            than latency or throughput.
        AnswerError: If no candidate was measured at any length, or none keeps the constraints.
    """
    check_choice("objective", objective, OBJECTIVES)
    batching = Batching.parse(batching)
    batching.check_modality(data.modality)
    if switch:
        check_switch(objective)
    outcomes, masked = of_batches(outcomes, batching.pads(data.modality))
    constraints = tuple(constraints)
    subjects = list(dict.fromkeys([*baselines, *variants]))
    curves = {subject: found for subject in subjects if (found := _curves(outcomes, subject, phase, batching))}
    if not curves:
        raise AnswerError(
            f"no candidate has been measured {batching.describe(data.unit)} ({', '.join(map(str, subjects))}); run "
            "`tippingpoint study`, or give a --budget"
        )
    # The answer speaks of lengths that the best-covered candidates share; who ends earlier is left out.
    reach = max(found.seconds.reach for found in curves.values())
    if not bisect.bisect_right(data.lengths, reach):
        raise AnswerError(
            f"every item is longer than the longest measured length {format_length(reach, data.unit)}; the "
            f"shortest is {format_length(data.minimum, data.unit)}: measure longer, or cut with --max-length"
        )
    items = resamples(data, reach)
    formed = epochs(items, batching)
    longest = max(float(epoch.lengths.max()) for epoch in formed)
    if longest > reach:
        raise AnswerError(
            f"batching {batching} makes sequences of {format_length(longest, data.unit)}, longer than the longest "
            f"measured {format_length(reach, data.unit)}: measure longer (a larger --budget), or pack less"
        )
    costs = _costs(formed, curves)
    rows: dict[Subject, Candidate] = {}
    for subject in subjects:
        if subject in costs:
            broken = first_broken(constraints, costs[subject])
            rows[subject] = _candidate(subject, costs[subject], objective, formed[0].padded, broken)
        else:
            why = _why_missing(subject, outcomes, curves.get(subject), data.unit)
            rows[subject] = Candidate(subject=subject, excluded=why)
    fit = [row for row in rows.values() if row.cost is not None and row.excluded is None]
    if not fit:
        reasons = "; ".join(f"{row.subject}: {row.excluded}" for row in rows.values())
        raise AnswerError(f"no candidate keeps the constraints: {reasons}")
    best = min(fit, key=lambda row: row.cost or 0.0)
    by_objective = {row.subject: costs[row.subject][objective] for row in fit}
    choice, close = _prefer_vanilla(best, fit, by_objective, baselines)
    points = tuple(
        tipping_point(
            outcomes,
            baselines[0],
            variant,
            metric=measured_metric(objective),
            phase=phase,
            batch_size=batching.sequences(reach),
            batch_budget=batching.size if batching.kind == "budget" else None,
            device=outcomes[0].workload.device,
        )
        for variant in variants
    )
    two = None
    if switch:
        one = objective == "throughput" and batching.kind == "one"
        priced = {row.subject: curves[row.subject] for row in fit}
        two = best_switch(
            items,
            batching,
            {subject: (one and found.at_best) or found.seconds for subject, found in priced.items()},
            by_objective,
            objective,
        )
    answer = Answer(
        data=data,
        batching=batching,
        objective=objective,
        choice=choice.subject,
        close=close.subject if close else None,
        baseline=baselines[0],
        costs=costs,
        fit=tuple(row.subject for row in fit),
        points=points,
        constraints=constraints,
        covered=data.share_at_most(reach),
        reach=reach,
        masked=masked,
        asked_for_switch=switch,
        switch=two,
        elsewhere=tuple(_elsewhere(items, also, subjects, phase, batching, objective, choice.subject, data.modality)),
    )
    return Recommendation(
        choice=choice.subject,
        baseline=baselines[0],
        objective=objective,
        phase=phase,
        batching=batching,
        data=data,
        covered=answer.covered,
        reach=reach,
        reason=reason(answer),
        candidates=tuple(sorted(rows.values(), key=_order)),
        switch=two,
        tipping_points=points,
        environment=environment,
        constraints=constraints,
        changes=changes(answer),
        notes=notes(answer),
    )


def _curves(outcomes: Sequence[Outcome], subject: Subject, phase: str, batching: Batching) -> _Curves | None:
    def curve(metric: str) -> CostCurve | None:
        return cost_curve(outcomes, subject, metric=metric, phase=phase, batch_size=batching.sequences)

    seconds = curve("latency")
    if seconds is None:
        return None
    return _Curves(seconds, curve("throughput") if batching.kind == "one" else None, curve("peak_memory"))


def _costs(formed: Sequence[Epoch], curves: Mapping[Subject, _Curves]) -> dict[Subject, dict[str, np.ndarray]]:
    """Return draws of what every subject costs that was measured as far as the batches reach."""
    longest = max(float(epoch.lengths.max()) for epoch in formed)
    costs = {}
    for subject, found in curves.items():
        if found.seconds.reach < longest:
            continue
        memory = found.memory if found.memory and found.memory.reach >= longest else None
        costs[subject] = draws(formed, found.seconds, memory)
        costs[subject]["throughput"] = costs[subject]["per_item"]
        if found.at_best and found.at_best.reach >= longest:
            costs[subject]["throughput"] = draws(formed, found.at_best, None)["per_item"]
    return costs


def _elsewhere(
    items: Sequence[np.ndarray],
    outcomes: Sequence[Outcome],
    subjects: Sequence[Subject],
    phase: str,
    batching: Batching,
    objective: str,
    choice: Subject,
    modality: str,
) -> Iterator[tuple[Batching, Subject]]:
    """Yield other ways of batching that were measured, with who is certainly better there, or the choice."""
    sizes = {o.workload.batch_size for o in outcomes if isinstance(o, Measurement) and not is_best_batch(o)}
    for size in sorted(sizes):
        other = Batching("bucketed", size) if size > 1 else Batching()
        if other == batching:
            continue
        known, _ = of_batches(outcomes, other.pads(modality))
        curves = {subject: found for subject in subjects if (found := _curves(known, subject, phase, other))}
        priced = _costs(epochs(items, other), curves)
        costs = {subject: found[objective] for subject, found in priced.items() if objective in found}
        if choice in costs and len(costs) > 1:
            best = min(costs, key=lambda subject: float(costs[subject][0]))
            yield other, best if certainly_less(costs[best], costs[choice]) else choice


def _candidate(
    subject: Subject, found: Mapping[str, np.ndarray], objective: str, padded: float, excluded: str | None
) -> Candidate:
    cost = workload_cost(found, padded)
    if objective not in found:
        return Candidate(subject=subject, workload=cost, excluded="peak memory was not measured")
    by_objective = Estimate.of(found[objective])
    return Candidate(
        subject=subject,
        cost=by_objective.value,
        interval=by_objective.interval,
        workload=cost,
        excluded=excluded,
    )


def _order(row: Candidate) -> tuple[bool, float]:
    return (row.cost is None, row.cost or 0.0)


def _why_missing(subject: Subject, outcomes: Iterable[Outcome], found: _Curves | None, unit: str) -> str:
    if found is not None:
        return f"measured only up to {format_length(found.seconds.reach, unit)}"
    for outcome in outcomes:
        if isinstance(outcome, Failure) and outcome.workload.subject == subject:
            return f"{outcome.kind}: {outcome.message}"
    return "not measured"


def _prefer_vanilla(
    best: Candidate,
    fit: Sequence[Candidate],
    costs: Mapping[Subject, np.ndarray],
    baselines: Sequence[Subject],
) -> tuple[Candidate, Candidate | None]:
    """Return the choice, and the candidate it is within noise of.

    An approximation that is not certainly cheaper is not worth its risk: a baseline within noise wins.
    """

    def certain(row: Candidate) -> bool:
        return certainly_less(costs[best.subject], costs[row.subject])

    for row in fit:
        if row.subject in baselines and row is not best and best.subject not in baselines and not certain(row):
            return row, best
    for row in fit:
        if row is not best and not certain(row):
            return best, row
    return best, None
