"""Which lengths are worth measuring next: a pure function of the study and of what is known already.

    grow      shortest length, then twice as long while that is cheap, then four times, up to the longest; once
              every pair has tipped, only after refining
    refine    between neighbouring lengths where a pair's tipping point may lie (its 95 % interval), the middle on
              the logarithmic scale, widest gap first, until gaps are as narrow as the study's precision

A killed study goes on where it was, because the next step follows from the store alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tippingpoint.analysis.comparison import ComparisonPoint, comparison_points
from tippingpoint.analysis.tipping_point import locate_pair
from tippingpoint.measurement import Failure, Measurement, Outcome, is_best_batch
from tippingpoint.models.catalog import architecture_of
from tippingpoint.profiling.rounds import MIN_ROUNDS
from tippingpoint.workload import Study, Subject

# A longer step is cheap if it is expected to take less than this share of the study's budget.
_CHEAP = 1 / 15
# Latency grows with a power of positions between these; the first one where a single length is known.
_USUAL_GROWTH = 1.3
_GROWTH_BOUNDS = (1.15, 2.0)
# Where there is something to refine, that must still be affordable after the grid has grown.
_GROW_SHARE = 0.65
# Inference may take this much of the budget while training waits.
_FIRST_PHASE_SHARE = 0.6
# Seconds a process costs whatever the length: it is started, and builds the model; half of a short warm-up.
_BUILD_S = 1.25
# A training step, where only inference is known: backward takes twice the forward pass, and the optimizer.
_TRAINING_FACTOR = 5.0
# Timed rounds of one session may take this share of the budget, between these bounds in seconds.
_ROUNDS_SHARE = 0.04
_ROUNDS_BOUNDS_S = (2.0, 30.0)


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
    """What a store holds for a study."""

    outcomes: tuple[Outcome, ...] = ()


def next_step(study: Study, known: Known, remaining_s: float) -> Step | None:
    """Return the session that is most worth measuring, or None when nothing is left that can be afforded.

    The first session of a phase is returned whatever remains, so that every phase has an answer.

    Args:
        study: With subjects resolved.
        known: What was measured.
        remaining_s: Seconds of budget left.
    """
    reserved = (1 - _FIRST_PHASE_SHARE) * study.budget_s if len(study.phases) > 1 else 0.0
    allowances = [remaining_s - reserved, *[remaining_s] * (len(study.phases) - 1)]
    # What is left when no phase can use its own share goes to whichever can still use it.
    for shares in (allowances, [remaining_s] * len(study.phases)):
        for phase, allowance in zip(study.phases, shares, strict=True):
            settled = _all_settled(study, phase, known)
            grow = _grow(study, phase, known, allowance)
            step = (None if settled else grow) or _refine(study, phase, known, allowance) or grow
            if step:
                return step
    return None


def rounds_budget_s(study: Study) -> float:
    """Return the seconds that the timed rounds of one session may take."""
    low, high = _ROUNDS_BOUNDS_S
    return min(high, max(low, _ROUNDS_SHARE * study.budget_s))


def _grow(study: Study, phase: str, known: Known, budget_s: float) -> Step | None:
    done = _measured_lengths(study, phase, known)
    low, high = study.lengths
    longest = max(done, default=None)
    if longest is None:
        length = _legal(study, low)
    elif budget_s <= 0:
        return None
    else:
        if longest >= _legal(study, high):
            return None
        twice = _legal(study, min(high, 2 * longest))
        cheap = (_expected(study, phase, twice, study.subjects, known) or 0) < _CHEAP * study.budget_s
        length = twice if cheap else _legal(study, min(high, 4 * longest))
        affordable = budget_s * (_GROW_SHARE if _brackets(study, phase, known, _times(study)) else 1.0)
        # A length that is too dear may still leave room for a shorter one.
        while length > longest and (_expected(study, phase, length, study.subjects, known) or 0) > affordable:
            shorter = _legal(study, length / math.sqrt(2))
            if shorter >= length or shorter < 1.4 * longest:
                return None
            length = shorter
        if length <= longest:
            return None
    alive = _alive(study, phase, known)
    # A longer length says nothing new once every baseline or every variant has failed.
    if not set(alive) & set(study.baselines) or not set(alive) & set(study.variants):
        return None
    return _step(study, phase, length, alive, known, "growing")


def _refine(study: Study, phase: str, known: Known, budget_s: float) -> Step | None:
    # Memory is measured wherever time is; a session for its sake alone comes last.
    for metrics in (_times(study), study.metrics):
        brackets = sorted(_brackets(study, phase, known, metrics), key=lambda bracket: -bracket[0])
        for _, middle, pair in brackets:
            # Pairs that want the same length share a session, and its baseline.
            together = {subject for _, length, other in brackets if length == middle for subject in other}
            for subjects in (tuple(subject for subject in study.subjects if subject in together), pair):
                if (_expected(study, phase, middle, subjects, known) or 0.0) <= budget_s:
                    return _step(study, phase, middle, subjects, known, "refining")
    return None


def _times(study: Study) -> tuple[str, ...]:
    return tuple(metric for metric in study.metrics if metric != "peak_memory")


def _brackets(
    study: Study, phase: str, known: Known, metrics: Sequence[str]
) -> list[tuple[float, float, tuple[Subject, Subject]]]:
    """Return what can be refined: logarithmic width of a bracket, the length in its middle, and the pair."""
    found = []
    for pair in pairs(study):
        for metric in metrics:
            points = _points(study, phase, known, *pair, metric)
            for low, high in _gaps(points, _uncertain_range(points, *pair, metric)):
                middle = _legal(study, math.sqrt(low * high))
                if high / low <= 1 + study.precision or not low < middle < high:
                    continue
                if not _were_tried(phase, middle, pair, known):
                    found.append((math.log(high / low), middle, pair))
    return found


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


def _were_tried(phase: str, length: float, pair: tuple[Subject, Subject], known: Known) -> bool:
    """Whether a pair has been in one session at a length, with whatever outcome; it is not run there again."""
    sessions: dict[str, set[Subject]] = {}
    for outcome in _of_phase(phase, known):
        if outcome.workload.length == length:
            sessions.setdefault(outcome.session.partition("-")[0], set()).add(outcome.workload.subject)
    return any(subjects.issuperset(pair) for subjects in sessions.values())


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


def _uncertain_range(
    points: Sequence[ComparisonPoint], baseline: Subject, variant: Subject, metric: str
) -> tuple[float, float] | None:
    """Return where the tipping point may lie: its interval, or the two lengths between which the median crosses."""
    located = locate_pair(points, baseline, variant, metric)
    if located.interval:
        return located.interval
    for left, right in itertools.pairwise(reversed(points)):
        if right.ratio <= 1 < left.ratio:
            return right.length, left.length
    return None


def _gaps(points: Sequence[ComparisonPoint], where: tuple[float, float] | None) -> list[tuple[float, float]]:
    """Return neighbouring measured lengths that have some of a range between them."""
    if where is None:
        return []
    lengths = [point.length for point in points]
    return [(low, high) for low, high in itertools.pairwise(lengths) if low < where[1] and high > where[0]]


def _expected(study: Study, phase: str, length: float, subjects: Sequence[Subject], known: Known) -> float | None:
    """Return seconds a step should take, from measured latencies; None where nothing is known."""
    calls = [_predict_latency(study, phase, length, subject, known) for subject in subjects]
    latencies = [latency for latency in calls if latency is not None]
    if not latencies:
        return None
    # A subject that is not known yet costs as much as the others do on average.
    together = sum(latencies) / len(latencies) * len(subjects)
    # memory (training: two steps) and inspection; then in each process, building, a cold call and warm-up
    alone = (2 if phase == "inference" else 3) * together
    process = _BUILD_S * len(subjects) + 2 * together
    rounds = max(study.repeats * MIN_ROUNDS * together, min(rounds_budget_s(study), 50 * together))
    timed = study.repeats * process + rounds
    if "throughput" in study.metrics and any(
        _largest_useful_batch(subject, phase, length, known) != study.batch_size for subject in subjects
    ):
        timed = 2 * timed + 3 * together
    return _BUILD_S * len(subjects) + alone + timed


def _predict_latency(study: Study, phase: str, length: float, subject: Subject, known: Known) -> float | None:
    """Return a subject's expected seconds for one call, from its nearest measured length."""
    seen = {
        kind: {
            outcome.workload.length: outcome.latency_s
            for outcome in _of_phase(kind, known)
            if isinstance(outcome, Measurement)
            and outcome.workload.subject == subject
            and outcome.workload.batch_size == study.batch_size
        }
        for kind in dict.fromkeys((phase, *study.phases))
    }
    factor = 1.0
    latencies = seen[phase]
    if not latencies and phase == "training":
        factor, latencies = _TRAINING_FACTOR, seen.get("inference", {})
    if not latencies:
        return None
    positions = architecture_of(subject).executed_positions
    nearest, *others = sorted(latencies, key=lambda at: abs(math.log(at / length)))
    power = _USUAL_GROWTH
    apart = [at for at in others if positions(at) != positions(nearest)]
    if apart:
        span = math.log(positions(apart[0]) / positions(nearest))
        low, high = _GROWTH_BOUNDS
        power = min(high, max(low, math.log(latencies[apart[0]] / latencies[nearest]) / span))
    return factor * latencies[nearest] * (positions(length) / positions(nearest)) ** power


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
