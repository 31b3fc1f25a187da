"""Which lengths are worth measuring next: a pure function of the study and of what is known already.

    look      every doubling of the shortest length, as far as it is cheap: with models of 2 and 4 layers, since the
              cost of a stack is linear in its depth; with the models themselves where they are no deeper
    measure   the models themselves, where a tipping point seems to lie: on both sides of it, then where its interval
              says it may be, until that is as narrow as the study's precision
    grow      longer lengths, as long as a pair has not tipped and the budget lasts

What shallow models tell chooses lengths and enters no number that is reported. A killed study goes on where it was,
because the next step follows from the store alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tippingpoint.analysis.comparison import ComparisonPoint, comparison_points
from tippingpoint.analysis.tipping_point import Located, grid, last_crossings, locate_pair, ratio_curve
from tippingpoint.measurement import Failure, Measurement, Outcome, is_best_batch
from tippingpoint.models.catalog import architecture_of
from tippingpoint.profiling.rounds import MIN_ROUNDS
from tippingpoint.workload import Study, Subject

# Depths of the models that are only looked at; two of them, because what is not in the layers is not free.
SCREENING_LAYERS = (2, 4)
# Look at a model this deep or deeper with shallow ones; below, they would save nothing.
_DEEP = 8
# How far the log-ratio of shallow models may be off, half the width of an interval of 95 %.
_SCREENING_TOLERANCE = 0.15
# ... and how far that of single sequences tells about the best batch sizes.
_BATCH_TOLERANCE = 0.4

# A longer step is cheap if it is expected to take less than this share of the study's budget.
_CHEAP = 1 / 15
# Latency grows with a power of positions between these; the first one where a single length is known.
_USUAL_GROWTH = 1.3
_GROWTH_BOUNDS = (1.0, 2.0)
# Where there is something to refine, that must still be affordable after the grid has grown.
_GROW_SHARE = 0.65
# Inference may take this much of the budget while training waits.
_FIRST_PHASE_SHARE = 0.6
# Seconds a process costs whatever the length: it is started, and builds the model; half of a short warm-up.
_BUILD_S = 1.25
_SHALLOW_BUILD_S = 0.5
# A training step, where only inference is known: backward takes twice the forward pass, and the optimizer.
_TRAINING_FACTOR = 5.0
# Timed rounds of one session may take this share of the budget, between these bounds in seconds.
_ROUNDS_SHARE = 0.04
_ROUNDS_BOUNDS_S = (2.0, 30.0)

# ... of a look with shallow models, and of a session for memory alone.
SCREENING_ROUNDS_S = 1.0

# Beside a tipping point, this far away in the log-ratio the sign is certain and the curve still straight ...
_CLEAR = 0.08
# ... within these factors of the length.
_BESIDE = (1.15, 1.5)
# Far from the tipping point the sign is all that counts.
_COARSE_TARGET = 0.05
# The ratio must be known this much better than the length divided by the slope: several lengths share the work.
_SHARED = 0.8
# Sessions for one tipping point within its interval; what they cannot tell, more of them will not either.
_MOST_REFINEMENTS = 12
# Sessions at one length.
_MOST_AT_LENGTH = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One session to measure: these subjects at this length in this phase.

    Attributes:
        phase: "inference" or "training".
        length: In the native unit.
        subjects: Measured together.
        expected_s: What it should take; None where nothing is known yet.
        largest_batches: Bound of the search for each subject's best batch size.
        purpose: "screening", "growing", "refining", "checking" or "memory".
        target: Half-width of the 95 % interval of the log-ratio at which timing may end.
        brief: Whether time is only looked at, because memory or a first impression is all that is asked for.
    """

    phase: str
    length: float
    subjects: tuple[Subject, ...]
    expected_s: float | None
    largest_batches: tuple[int | None, ...]
    purpose: str
    target: float
    brief: bool = False

    @property
    def layers(self) -> tuple[int | None, ...]:
        """Depths to measure, None for the models as they are."""
        return SCREENING_LAYERS if self.purpose == "screening" else (None,)


@dataclass(frozen=True, slots=True)
class Known:
    """What a store holds for a study; `screened` are outcomes of shallow models."""

    outcomes: tuple[Outcome, ...] = ()
    screened: tuple[Outcome, ...] = ()


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
    searches = [_Search(study, phase, known) for phase in study.phases]
    # What is left when no phase can use its own share goes to whichever can still use it.
    for shares in (allowances, [remaining_s] * len(study.phases)):
        for search, allowance in zip(searches, shares, strict=True):
            step = search.next_step(allowance)
            if step:
                return step
    return None


def rounds_budget_s(study: Study) -> float:
    """Return the seconds that the timed rounds of one session may take."""
    low, high = _ROUNDS_BOUNDS_S
    return min(high, max(low, _ROUNDS_SHARE * study.budget_s))


def pairs(study: Study) -> list[tuple[Subject, Subject]]:
    """Return every (baseline, variant) of a study."""
    return [(baseline, variant) for baseline in study.baselines for variant in study.variants]


def can_screen(study: Study) -> bool:
    """Whether shallow models can tell where to measure: every subject is a deep, plain stack, and time counts."""
    if not study.screening or study.whole_range or study.compiled or not _times(study):
        return False
    depths = [architecture_of(subject).layers(study.size) for subject in study.subjects]
    return all(depth is not None and depth >= _DEEP for depth in depths)


def _times(study: Study) -> tuple[str, ...]:
    return tuple(metric for metric in study.metrics if metric != "peak_memory")


@dataclass(frozen=True, slots=True)
class _Wish:
    """A length that a pair wants to be measured at, and how well."""

    length: float
    subjects: tuple[Subject, ...]
    target: float
    urgency: float
    purpose: str


class _Search:
    """The search in one phase.

    Args:
        study: With subjects resolved.
        phase: "inference" or "training".
        known: What was measured, in every phase.
    """

    def __init__(self, study: Study, phase: str, known: Known) -> None:
        self.study = study
        self.phase = phase
        self.costs = _Costs(study, phase, known)
        self.outcomes = [outcome for outcome in known.outcomes if outcome.workload.phase == phase]
        self.screens = can_screen(study)
        self.screened = [outcome for outcome in known.screened if self.screens and outcome.workload.phase == phase]
        low, high = study.lengths
        self.low, self.high = self._legal(low), self._legal(high)

    def next_step(self, budget_s: float) -> Step | None:
        """Return the step that is most worth its time, None if none can be afforded."""
        if not self.outcomes and not self.screened:
            return self._session(self.low, self.study.subjects, "screening" if self.screens else "growing")
        if self.screens:
            look = self._screen(budget_s)
            cheap = look and (look.expected_s or 0.0) <= _CHEAP * self.study.budget_s
            if look and cheap:
                return look
            return self._refine(budget_s) or (None if self._settled else self._grow(budget_s))
        grow = self._grow(budget_s)
        return (None if self._settled else grow) or self._refine(budget_s) or grow

    # Looking far and wide

    def _screen(self, budget_s: float) -> Step | None:
        """Return a look with shallow models at the next length of the ladder."""
        seen = {outcome.workload.length for outcome in self.screened}
        length = self._legal(min(self.high, 2 * max(seen))) if seen else self.low
        if length in seen or any(isinstance(outcome, Failure) for outcome in self.screened):
            return None
        expected = self.costs.screening_s(length, self.study.subjects)
        if expected is not None and expected > budget_s:
            return None
        return self._session(length, self.study.subjects, "screening")

    def _grow(self, budget_s: float) -> Step | None:
        """Return a longer length than any that was measured, as long as it is worth it."""
        study = self.study
        alive = self._alive
        # A longer length says nothing new once every baseline or every variant has failed.
        if budget_s <= 0 or not set(alive) & set(study.baselines) or not set(alive) & set(study.variants):
            return None
        longest = max((outcome.workload.length for outcome in self.outcomes), default=None)
        if longest is None:
            return self._session(self.low, alive, "growing")
        if longest >= self.high:
            return None
        twice = self._legal(min(self.high, 2 * longest))
        cheap = (self.costs.session_s(twice, study.subjects) or 0.0) < _CHEAP * study.budget_s
        length = twice if cheap else self._legal(min(self.high, 4 * longest))
        affordable = budget_s * (_GROW_SHARE if self._wishes else 1.0)
        # A length that is too dear may still leave room for a shorter one.
        while length > longest and (self.costs.session_s(length, alive) or 0.0) > affordable:
            shorter = self._legal(length / math.sqrt(2))
            if shorter >= length or shorter < 1.4 * longest:
                return None
            length = shorter
        return self._session(length, alive, "growing") if length > longest else None

    @property
    def _alive(self) -> tuple[Subject, ...]:
        """The subjects that have not failed yet: what ran out of memory is not tried at a longer length."""
        failed = {
            outcome.workload.subject
            for outcome in self.outcomes
            if isinstance(outcome, Failure) and outcome.workload.batch_size == self.study.batch_size
        }
        return tuple(subject for subject in self.study.subjects if subject not in failed)

    @property
    def _settled(self) -> bool:
        """Whether every pair was certainly better at the two longest lengths, shallow models included."""
        for pair, metric in itertools.product(pairs(self.study), self.study.metrics):
            points = self._plan(pair, metric)
            if len(points) < 2 or any(point.sign < 1 for point in points[-2:]):
                return False
        return True

    # Measuring where it counts

    def _refine(self, budget_s: float) -> Step | None:
        for wish in sorted(self._wishes, key=lambda wish: -wish.urgency):
            # Pairs that want the same length share a session, and its baseline.
            together = {s for other in self._wishes if other.length == wish.length for s in other.subjects}
            for subjects in (tuple(s for s in self.study.subjects if s in together), wish.subjects):
                if (self.costs.session_s(wish.length, subjects) or 0.0) <= budget_s:
                    return self._session(wish.length, subjects, wish.purpose, wish.target)
        return None

    @cached_property
    def _wishes(self) -> list[_Wish]:
        found = []
        for pair in pairs(self.study):
            for metric in self.study.metrics:
                wish = self._wish(pair, metric)
                if wish:
                    found.append(wish)
        # Memory is measured wherever time is; a session for its sake alone comes last.
        timed = [wish for wish in found if wish.purpose != "memory"]
        return timed or found

    def _wish(self, pair: tuple[Subject, Subject], metric: str) -> _Wish | None:
        """Return where the answer of a pair is least certain, None where it is certain enough."""
        points = self._points(pair, metric)
        plan = self._plan(pair, metric)
        if not plan:
            return None
        lengths = grid(plan[0].length, plan[-1].length, *pair)
        draws = ratio_curve(plan, *pair).draws(lengths)
        middle = math.exp(np.median(last_crossings(lengths, draws)))
        slope = _slope(lengths, draws, middle)
        ends_better = float((draws[:, -1] > 0).mean())
        always = float((draws > 0).all(axis=1).mean())
        located = locate_pair(points, *pair)
        precision = math.log1p(self.study.precision)
        fine = max(self.study.target, min(_COARSE_TARGET, _SHARED * slope * precision))

        def wish(length: float, target: float, urgency: float) -> _Wish | None:
            length = self._legal(min(max(length, self.low), self.high))
            purpose = "memory" if metric == "peak_memory" else "refining" if located.interval else "checking"
            if self._times_at(length, pair) >= _MOST_AT_LENGTH:
                return None
            return _Wish(length, pair, target, urgency, purpose)

        measured = [point.length for point in points]
        if ends_better < 0.5:
            # It does not tip: the longest length there is says so.
            if plan[-1].length in measured or not self.screens:
                return None
            return wish(plan[-1].length, _COARSE_TARGET, 1.0)
        if always > 0.5:
            return None if self.low in measured else wish(self.low, _COARSE_TARGET, 1.0)
        beside = min(max(math.exp(_CLEAR / slope), _BESIDE[0]), _BESIDE[1])
        # Evidence on both sides comes first; what lies far away says little about the tipping point.
        for side, place in ((-1, middle / beside), (1, middle * beside)):
            there = [point for point in points if point.sign == side and side * (point.length - middle) > 0]
            tried = [length for length in measured if abs(math.log(length / place)) < 0.5 * math.log(beside)]
            if not any(abs(math.log(p.length / middle)) < 2 * math.log(_BESIDE[1]) for p in there) and not tried:
                return wish(place, fine, 1.0)
        if located.interval is None:
            return wish(middle, fine, 0.8)
        width = math.log(located.interval[1] / located.interval[0])
        if width <= 2 * precision or self._refinements(located, pair) >= _MOST_REFINEMENTS:
            return None
        return wish(self._best_place(points, pair, located, fine), fine, width)

    def _best_place(
        self, points: list[ComparisonPoint], pair: tuple[Subject, Subject], located: Located, target: float
    ) -> float:
        """Return the length, out of the interval and a little beyond, after which the interval should be narrowest.

        What a measurement there would tell about the curve does not depend on what it will say.
        """
        assert located.length is not None
        assert located.interval is not None
        low, high = located.interval
        reach = 0.5 * math.log(high / low)
        places = {self._legal(located.length * math.exp(share * reach)) for share in (-1.2, -0.6, 0.0, 0.6, 1.2)}
        curve = ratio_curve(points, *pair)
        now = curve.spread_after(located.length, located.length, math.inf)
        gains = {
            (now**2 - curve.spread_after(located.length, place, target / 1.96) ** 2)
            / (self.costs.session_s(place, pair) or 1.0): place
            for place in places
            if self._times_at(place, pair) < _MOST_AT_LENGTH
        }
        return gains[max(gains)] if gains else located.length

    def _refinements(self, located: Located, pair: tuple[Subject, Subject]) -> int:
        assert located.interval is not None
        low, high = located.interval
        return sum(self._times_at(length, pair) for length in self._lengths(pair) if low <= length <= high)

    # What is known

    def _points(self, pair: tuple[Subject, Subject], metric: str) -> list[ComparisonPoint]:
        return comparison_points(
            self.outcomes, *pair, metric=metric, phase=self.phase, batch_size=self.study.batch_size
        )

    def _plan(self, pair: tuple[Subject, Subject], metric: str) -> list[ComparisonPoint]:
        """Return what is known of a pair, with what shallow models tell where nothing else does."""
        points = self._points(pair, metric)
        if metric == "peak_memory":
            return points
        tolerance = _SCREENING_TOLERANCE if metric == "latency" else _BATCH_TOLERANCE
        there = {point.length for point in points}
        for length in {outcome.workload.length for outcome in self.screened} - there:
            baseline, variant = (self.costs.screened_s(subject, length) for subject in pair)
            if baseline and variant:
                points.append(ComparisonPoint(length, (math.log(baseline / variant),), tolerance=tolerance))
        return sorted(points, key=lambda point: point.length)

    def _lengths(self, pair: tuple[Subject, Subject]) -> set[float]:
        return {outcome.workload.length for outcome in self.outcomes if outcome.workload.subject in pair}

    def _times_at(self, length: float, pair: tuple[Subject, Subject]) -> int:
        """Return in how many sessions a pair has been at a length, with whatever outcome."""
        sessions: dict[str, set[Subject]] = {}
        for outcome in self.outcomes:
            if outcome.workload.length == length:
                sessions.setdefault(outcome.session.partition("-")[0], set()).add(outcome.workload.subject)
        return sum(subjects.issuperset(pair) for subjects in sessions.values())

    def _session(
        self, length: float, subjects: tuple[Subject, ...], purpose: str, target: float | None = None
    ) -> Step:
        coarse = self.study.target if self.study.whole_range else max(self.study.target, _COARSE_TARGET)
        expected = (
            self.costs.screening_s(length, subjects)
            if purpose == "screening"
            else self.costs.session_s(length, subjects)
        )
        batches = tuple(self._largest_useful_batch(subject, length) for subject in subjects)
        brief = purpose in ("screening", "memory") or not _times(self.study)
        return Step(self.phase, length, subjects, expected, batches, purpose, target or coarse, brief)

    def _largest_useful_batch(self, subject: Subject, length: float) -> int | None:
        """Return the best batch size at the longest shorter length: beyond it batches pay less, never more."""
        best = {
            outcome.workload.length: outcome.workload.batch_size
            for outcome in self.outcomes
            if isinstance(outcome, Measurement)
            and outcome.workload.subject == subject
            and outcome.workload.length < length
            and (outcome.batch_curve or is_best_batch(outcome))
        }
        return best[max(best)] if best else None

    def _legal(self, length: float) -> float:
        """Return the nearest length that every subject of the study takes."""
        rules = [architecture_of(subject) for subject in self.study.subjects]
        if rules[0].unit == "seconds":
            return max(rule.nearest_legal(length) for rule in rules)
        multiple = math.lcm(*(rule.lengths.multiple_of for rule in rules))
        shortest = max(rule.lengths.minimum for rule in rules)
        smallest = math.ceil(shortest / multiple) * multiple
        return max(smallest, round(length / multiple) * multiple)


def _slope(lengths: Sequence[float], draws: np.ndarray, place: float) -> float:
    """Return how fast the median log-ratio grows with the log of the length around a place; at least a little."""
    logs = np.log(lengths)
    near = np.abs(logs - math.log(place)) < math.log(_BESIDE[1])
    median, logs = np.median(draws[:, near], axis=0), logs[near]
    finite = np.isfinite(median)
    if finite.sum() < 2:
        return 1.0
    return max(0.05, float(np.polyfit(logs[finite], median[finite], 1)[0]))


class _Costs:
    """What a session should take, from measured latencies."""

    def __init__(self, study: Study, phase: str, known: Known) -> None:
        self.study = study
        self.phase = phase
        self.known = known

    def session_s(self, length: float, subjects: Sequence[Subject]) -> float | None:
        """Return seconds a session should take; None where nothing is known."""
        together = self._together(length, subjects)
        if together is None:
            return None
        study = self.study
        # memory (training: two steps) and inspection; then in each process, building, a cold call and warm-up
        alone = (2 if self.phase == "inference" else 3) * together
        process = _BUILD_S * len(subjects) + 2 * together
        rounds = max(study.repeats * MIN_ROUNDS * together, min(rounds_budget_s(study), 50 * together))
        timed = study.repeats * process + rounds
        if "throughput" in study.metrics:
            timed = 2 * timed + 3 * together
        return _BUILD_S * len(subjects) + alone + timed

    def screening_s(self, length: float, subjects: Sequence[Subject]) -> float | None:
        """Return seconds a look with shallow models should take; None where nothing is known."""
        together = self._together(length, subjects)
        if together is None:
            return None
        shallow = 0.0
        for subject in subjects:
            depth = architecture_of(subject).layers(self.study.size) or 1
            shallow += sum(SCREENING_LAYERS) / depth / len(subjects)
        return 4 * shallow * together + _SHALLOW_BUILD_S * len(subjects) * len(SCREENING_LAYERS)

    def screened_s(self, subject: Subject, length: float) -> float | None:
        """Return what shallow models tell of a subject's latency at its own depth."""
        seen = {
            outcome.workload.layers: outcome.latency_s
            for outcome in self.known.screened
            if isinstance(outcome, Measurement)
            and (outcome.workload.phase, outcome.workload.subject, outcome.workload.length)
            == (self.phase, subject, length)
        }
        depth = architecture_of(subject).layers(self.study.size)
        if depth is None or not set(SCREENING_LAYERS) <= seen.keys():
            return None
        low, high = SCREENING_LAYERS
        layer = (seen[high] - seen[low]) / (high - low)
        # Noise may hide what two layers more take; they never take less than their share of all.
        layer = max(layer, 0.5 * seen[high] / high)
        return seen[high] + (depth - high) * layer

    def _together(self, length: float, subjects: Sequence[Subject]) -> float | None:
        calls = [self._latency(subject, length) for subject in subjects]
        latencies = [latency for latency in calls if latency is not None]
        if not latencies:
            return None
        # A subject that is not known yet costs as much as the others do on average.
        return sum(latencies) / len(latencies) * len(subjects)

    def _latency(self, subject: Subject, length: float) -> float | None:
        """Return a subject's expected seconds for one call, from its nearest measured length."""
        factor, latencies = 1.0, self._latencies(subject, self.phase)
        if not latencies and self.phase == "training":
            factor, latencies = _TRAINING_FACTOR, self._latencies(subject, "inference")
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

    def _latencies(self, subject: Subject, phase: str) -> dict[float, float]:
        found = {}
        if phase == self.phase:
            for outcome in self.known.screened:
                if outcome.workload.subject == subject and outcome.workload.phase == phase:
                    estimate = self.screened_s(subject, outcome.workload.length)
                    if estimate:
                        found[outcome.workload.length] = estimate
        for outcome in self.known.outcomes:
            workload = outcome.workload
            mine = (workload.subject, workload.phase, workload.batch_size) == (subject, phase, self.study.batch_size)
            if isinstance(outcome, Measurement) and mine:
                found[workload.length] = outcome.latency_s
        return found
