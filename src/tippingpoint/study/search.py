"""Which lengths are worth measuring next: a pure function of the study and of what is known already.

    grow      shortest length, then twice as long while that is cheap, then four times, until every pair has
              tipped or the budget would not last
    refine    between two lengths where a pair changes sign, the middle on the logarithmic scale, widest
              bracket first, until brackets are as narrow as the study's precision

A killed study goes on where it was, because the next step follows from the store alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tippingpoint.analysis.comparison import ComparisonPoint, comparison_points
from tippingpoint.measurement import Failure, Measurement, Outcome, is_best_batch
from tippingpoint.models.catalog import architecture_of
from tippingpoint.workload import Study, Subject

# A longer step is cheap if it is expected to take less than this share of the study's budget.
_CHEAP = 1 / 15
# Costs grow with positions to this power at most; between linear and quadratic on real encoders.
_GROWTH = 1.6
# What a subject costs in a session whatever the length: two processes, two models built, one warm-up.
_FIXED_S = 2.0
# Refining must still be affordable after the grid has grown.
_GROW_SHARE = 0.65


@dataclass(frozen=True, slots=True)
class Step:
    """One session to measure: these subjects at this length in this phase.

    `expected_s` is what it should take, None where nothing is known yet; `max_batch_size` bounds the search
    for each subject's best batch size.
    """

    phase: str
    length: float
    subjects: tuple[Subject, ...]
    expected_s: float | None
    largest_batches: tuple[int | None, ...]
    purpose: str


@dataclass(frozen=True, slots=True)
class Known:
    """What a store holds for a study: outcomes, and what each (phase, length) cost in seconds."""

    outcomes: tuple[Outcome, ...]
    seconds: Mapping[tuple[str, float], float]


def next_step(study: Study, known: Known, remaining_s: float) -> Step | None:
    """Return the session that is most worth measuring, or None when there is nothing left to do.

    Args:
        study: With subjects resolved.
        known: What was measured.
        remaining_s: Seconds of budget left for the phase at hand and those after it.
    """
    for number, phase in enumerate(study.phases):
        share = remaining_s / (len(study.phases) - number)
        step = _grow(study, phase, known, share) or _refine(study, phase, known, share)
        if step:
            return step
    return None


def _grow(study: Study, phase: str, known: Known, budget_s: float) -> Step | None:
    done = _measured_lengths(study, phase, known)
    low, high = study.lengths
    longest = max(done, default=None)
    if longest is None:
        length = _legal(study, low)
    else:
        if longest >= _legal(study, high) or _all_settled(study, phase, known):
            return None
        twice = _legal(study, min(high, 2 * longest))
        cheap = (_expected(study, phase, twice, study.subjects, known) or 0) < _CHEAP * study.budget_s
        length = twice if cheap else _legal(study, min(high, 4 * longest))
        affordable = _GROW_SHARE * budget_s
        # A length that is too dear may still leave room for a shorter one.
        while length > longest and (_expected(study, phase, length, study.subjects, known) or 0) > affordable:
            shorter = _legal(study, length / math.sqrt(2))
            if shorter >= length or shorter < 1.4 * longest:
                return None
            length = shorter
        if length <= longest:
            return None
    alive = _alive(study, phase, known)
    if len(alive) < 1 or not any(subject in study.baselines for subject in alive):
        return None
    return _step(study, phase, length, alive, known, "growing")


def _refine(study: Study, phase: str, known: Known, budget_s: float) -> Step | None:
    candidates = []
    for baseline, variant in pairs(study):
        for metric in study.metrics:
            points = _points(study, phase, known, baseline, variant, metric)
            bracket = _bracket(points)
            if not bracket:
                continue
            low, high = bracket
            middle = _legal(study, math.sqrt(low * high))
            if high / low <= 1 + study.precision or not low < middle < high:
                continue
            if _was_tried(study, phase, middle, (baseline, variant), known):
                continue
            # Memory is measured wherever latency is, and alone is seldom worth a session of its own.
            weight = 0.5 if metric == "peak_memory" else 1.0
            candidates.append((weight * math.log(high / low), middle, baseline, variant))
    for _, middle, baseline, variant in sorted(candidates, key=lambda c: -c[0]):
        subjects = (baseline, variant)
        expected = _expected(study, phase, middle, subjects, known)
        if expected is not None and expected > budget_s:
            continue
        return _step(study, phase, middle, subjects, known, "refining")
    return None


def pairs(study: Study) -> list[tuple[Subject, Subject]]:
    """Return every (baseline, variant) of a study."""
    return [(baseline, variant) for baseline in study.baselines for variant in study.variants]


def _step(study: Study, phase: str, length: float, subjects: tuple[Subject, ...], known: Known, purpose: str) -> Step:
    expected = _expected(study, phase, length, subjects, known)
    batches = tuple(_largest_useful_batch(subject, phase, length, known) for subject in subjects)
    return Step(phase, length, subjects, expected, batches, purpose)


def _legal(study: Study, length: float) -> float:
    """Return the nearest length that every subject of the study takes."""
    rules = [architecture_of(subject) for subject in study.subjects]
    if rules[0].unit == "seconds":
        return max(rule.nearest_legal(length) for rule in rules)
    multiple = math.lcm(*(rule.lengths.multiple_of for rule in rules))
    shortest = max(rule.lengths.minimum for rule in rules)
    smallest = math.ceil(shortest / multiple) * multiple
    return max(smallest, round(length / multiple) * multiple)


def _of_phase(phase: str, known: Known) -> Iterable[Outcome]:
    return (outcome for outcome in known.outcomes if outcome.workload.phase == phase)


def _measured_lengths(study: Study, phase: str, known: Known) -> set[float]:
    """Return lengths at which a baseline or a variant was tried."""
    return {outcome.workload.length for outcome in _of_phase(phase, known)}


def _was_tried(study: Study, phase: str, length: float, subjects: Sequence[Subject], known: Known) -> bool:
    """Whether all subjects have been run at a length, with whatever outcome; they are not run there again."""
    tried = {o.workload.subject for o in _of_phase(phase, known) if o.workload.length == length}
    return tried.issuperset(subjects)


def _alive(study: Study, phase: str, known: Known) -> tuple[Subject, ...]:
    """Return the subjects that have not failed yet: what ran out of memory is not tried at a longer length."""
    failed = {
        outcome.workload.subject
        for outcome in _of_phase(phase, known)
        if isinstance(outcome, Failure) and outcome.workload.batch_size == study.batch_size
    }
    return tuple(subject for subject in study.subjects if subject not in failed)


def _points(
    study: Study, phase: str, known: Known, baseline: Subject, variant: Subject, metric: str
) -> list[ComparisonPoint]:
    return comparison_points(
        known.outcomes, baseline, variant, metric=metric, phase=phase, batch_size=study.batch_size
    )


def _all_settled(study: Study, phase: str, known: Known) -> bool:
    """Whether every pair has been better with certainty at the two longest lengths, for every metric."""
    for baseline, variant in pairs(study):
        for metric in study.metrics:
            points = _points(study, phase, known, baseline, variant, metric)
            if len(points) < 2 or any(point.sign < 1 for point in points[-2:]):
                return False
    return True


def _bracket(points: Sequence[ComparisonPoint]) -> tuple[float, float] | None:
    """Return the two neighbouring lengths between which the variant comes out ahead for the last time."""
    for left, right in zip(reversed(points[:-1]), reversed(points[1:]), strict=True):
        if left.ratio <= 1 < right.ratio:
            return left.length, right.length
    return None


def _expected(study: Study, phase: str, length: float, subjects: Sequence[Subject], known: Known) -> float | None:
    """Return seconds a step should take, from the nearest length that was measured in this phase.

    With nothing known of training, three times inference.
    """
    factor = 1.0
    costs = {at: seconds for (kind, at), seconds in known.seconds.items() if kind == phase}
    if not costs and phase == "training":
        factor = 3.0
        costs = {at: seconds for (kind, at), seconds in known.seconds.items() if kind == "inference"}
    if not costs:
        return None
    positions = architecture_of(study.baselines[0]).positions
    nearest = min(costs, key=lambda at: abs(math.log(at / length)))
    growth = (positions(length) / positions(nearest)) ** (_GROWTH if length > nearest else 1.0)
    fixed = min(_FIXED_S * len(study.subjects), 0.8 * costs[nearest])
    whole = fixed + factor * (costs[nearest] - fixed) * growth
    return whole * len(subjects) / len(study.subjects)


def _largest_useful_batch(subject: Subject, phase: str, length: float, known: Known) -> int | None:
    """Return the best batch size at the longest shorter length: beyond it batches pay less, never more."""
    best = {
        outcome.workload.length: outcome.workload.batch_size
        for outcome in _of_phase(phase, known)
        if isinstance(outcome, Measurement)
        and outcome.workload.subject == subject
        and outcome.workload.length < length
        and (outcome.batch_curve or is_best_batch(outcome))
    }
    return best[max(best)] if best else None
