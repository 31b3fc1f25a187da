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
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tippingpoint.analysis.comparison import ComparisonPoint, comparison_points
from tippingpoint.analysis.curve import RatioCurve
from tippingpoint.analysis.tipping_point import grid, locate_pair, ratio_curve
from tippingpoint.measurement import Failure, Measurement, Outcome, is_best_batch, session_root
from tippingpoint.models.catalog import architecture_of
from tippingpoint.profiling.rounds import MIN_ROUNDS
from tippingpoint.study.doubts import Doubt, look_at
from tippingpoint.workload import Study, Subject

# Depths of the models that are only looked at; two of them, because what is not in the layers is not free.
SCREENING_LAYERS = (2, 4)
# Look at a model this deep or deeper with shallow ones; below, they would save nothing.
_DEEP = 8
# How far the log-ratio of shallow models may be off, half the width of an interval of 95 %.
_SCREENING_TOLERANCE = 0.12
# ... and how far that of single sequences tells about the best batch sizes.
_BATCH_TOLERANCE = 0.4

# A longer step is cheap if it is expected to take less than this share of the study's budget.
_CHEAP = 1 / 15
# Latency grows with a power of positions between these; the first one where a single length is known.
_USUAL_GROWTH = 1.3
_GROWTH_BOUNDS = (1.0, 2.0)
# Where there is something to refine, that must still be affordable after the grid has grown.
_GROW_SHARE = 0.65
# Beyond what has tipped, a look at a longer length may take so much of the budget.
_GLANCE = 1 / 50
# So much of what is left of the budget may go to a look at a longer length, while a pair has not tipped.
_LOOK_SHARE = 0.25
# Inference may take this much of the budget while training waits.
_FIRST_PHASE_SHARE = 0.6
# Seconds a process costs whatever the length: it is started, and builds the model; half of a short warm-up.
_BUILD_S = 1.25
_SHALLOW_BUILD_S = 0.5
# A training step, where only inference is known: backward takes twice the forward pass, and the optimizer.
_TRAINING_FACTOR = 5.0
# Timed rounds of one session may take this share of the budget, between these bounds in seconds ...
_ROUNDS_SHARE = 0.04
_ROUNDS_BOUNDS_S = (2.0, 30.0)
# ... more near a tipping point: beside building and warming up, few rounds are a waste ...
_REFINING_ROUNDS = 2.5
# ... and hardly any where time is only looked at.
_BRIEF_ROUNDS_S = 1.0

# Beside a tipping point, this far away in the log-ratio the sign is certain and the curve still straight ...
_CLEAR = 0.12
# ... within these factors of the length.
_BESIDE = (1.2, 1.7)
# Further away (in e-folds of the length) than this, what is seen says little about the tipping point.
_NEAR = 1.1
# Where another measurement may tell most, as shares of the reach of the doubt, and as factors of the length.
_INSIDE = (-1.2, -0.6, 0.0, 0.6, 1.2)
_APART = (0.1, 0.2, 0.3, 0.45, 0.65, 0.8, 1.25, 1.6)
# Far from the tipping point the sign is all that counts.
_COARSE_TARGET = 0.08
# Near it, fresh processes differ by 1 % or so: beyond this, another session tells more than further rounds of one.
_FINE_TARGET = 0.03
# The ratio must be known this much better than the length divided by the slope: several lengths share the work.
_SHARED = 0.8
# Sessions for one tipping point within its interval; what they cannot tell, more of them will not either.
_MOST_REFINEMENTS = 12
# ... nor where a variant may just be behind for a while.
_MOST_IN_DIP = 2
# Looks are this far apart at first (less what rounding to legal lengths takes away); in between there is one more
# where a variant loses this much against the baseline, and is not far ahead anyway.
_DOUBLED = 1.8
_LOSES, _FAR = 0.03, 0.4
# A verdict is sure if so many draws agree.
_SURE = 0.95
# A log-ratio so many of its standard deviations from zero is decided; one closer than this will not be in any time
# that somebody would wait.
_DECIDED, _TELLING = 1.96, 0.3
# A length that was measured already is replaced by a neighbour not further away than this.
_NEIGHBOUR = 0.02
_MOST_NEIGHBOURS = 6


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
        rounds_s: What timed rounds may take.
        brief: Whether time is only looked at, because memory or a first impression is all that is asked for.
    """

    phase: str
    length: float
    subjects: tuple[Subject, ...]
    expected_s: float | None
    largest_batches: tuple[int | None, ...]
    purpose: str
    target: float
    rounds_s: float = 30.0
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


def needed_s(study: Study, known: Known, phase: str, pair: tuple[Subject, Subject], metric: str) -> float | None:
    """Return about how many seconds would decide a pair, or narrow its tipping point to the study's precision.

    Where a pair has not tipped, that is what the next longer length would take.

    Noise falls with the square root of the time that is spent on it.

    Args:
        study: With subjects resolved.
        known: What was measured.
        phase: "inference" or "training".
        pair: Baseline and variant.
        metric: "latency", "throughput" or "peak_memory".

    Returns:
        Seconds; None where nothing is missing, or no time would be enough.
    """
    return _Search(study, phase, known).needed_s(pair, metric)


def screened_range(study: Study, known: Known, phase: str) -> tuple[float, float] | None:
    """Return the lengths from which to which shallow models were looked at, None if they were not."""
    lengths = [o.workload.length for o in known.screened if o.workload.phase == phase and isinstance(o, Measurement)]
    return (min(lengths), max(lengths)) if lengths and can_screen(study) else None


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
    """A length that a pair wants to be measured at, and how well; `or_shorter` if a shorter one would do."""

    length: float
    subjects: tuple[Subject, ...]
    target: float
    urgency: float
    purpose: str
    or_shorter: bool = False


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
        step = self._affordable(budget_s)
        if step is None and not self.outcomes:
            # Looks alone answer nothing.
            return self._session(self.low, self.study.subjects, "growing")
        return step

    def _affordable(self, budget_s: float) -> Step | None:
        if self.screens:
            look = self._screen(budget_s)
            if look and (look.expected_s or 0.0) <= self._worth_a_look(budget_s):
                return look
            return self._refine(budget_s) or (None if self._settled else self._grow(budget_s))
        grow = self._grow(budget_s)
        return (None if self._settled else grow) or self._refine(budget_s) or grow

    # Looking far and wide

    def _worth_a_look(self, budget_s: float) -> float:
        """Return seconds that a look at the next length may take: more while a pair has not tipped."""
        if self._settled:
            return _GLANCE * self.study.budget_s
        return max(_CHEAP * self.study.budget_s, _LOOK_SHARE * budget_s)

    def _screen(self, budget_s: float) -> Step | None:
        """Return a look with shallow models: where the ratio does not grow as it should, else at twice the length."""
        seen = {outcome.workload.length for outcome in self.screened}
        length = self.low
        if seen:
            length = self._where_it_falls(sorted(seen)) or self._legal(min(self.high, 2 * max(seen)))
        if length in seen or any(isinstance(outcome, Failure) for outcome in self.screened):
            return None
        expected = self.costs.screening_s(length, self.study.subjects)
        if expected is not None and expected > budget_s:
            return None
        return self._session(length, self.study.subjects, "screening")

    def _where_it_falls(self, seen: Sequence[float]) -> float | None:
        """Return the middle of two lengths between which a variant that is no longer behind loses ground.

        What is asymptotically cheaper gains on the baseline all along; where it does not, it may fall behind again.
        """
        for (left, right), pair in itertools.product(itertools.pairwise(seen), pairs(self.study)):
            ratios = [self.costs.screened_log_ratio(pair, length) for length in (left, right)]
            middle = self._legal(math.sqrt(left * right))
            if right / left < _DOUBLED or None in ratios or middle in seen:
                continue
            before, after = ratios
            if before > -_SCREENING_TOLERANCE / 2 and abs(after) < _FAR and after - before < -_LOSES:  # type: ignore[operator]
                return middle
        return None

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
        # Who asks what all lengths cost has more use for the longest than for a second look at a tipping point.
        affordable = budget_s * (_GROW_SHARE if self._wishes and not study.whole_range else 1.0)
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
        failed = {failure.workload.subject for failure in self._failures}
        return tuple(subject for subject in self.study.subjects if subject not in failed)

    @cached_property
    def _failures(self) -> list[Failure]:
        """Return the failures that are not those of trying a larger batch."""
        return [
            outcome
            for outcome in self.outcomes
            if isinstance(outcome, Failure)
            and outcome.workload.batch_size == self.study.batch_size_at(outcome.workload.length)
        ]

    @cached_property
    def _settled(self) -> bool:
        """Whether every pair was certainly better at the two longest lengths, shallow models included."""
        for pair, metric in itertools.product(pairs(self.study), self.study.metrics):
            points = self._plan(pair, metric)
            if len(points) < 2 or any(point.sign < 1 for point in points[-2:]):
                return False
        return True

    # Measuring where it counts

    def _refine(self, budget_s: float) -> Step | None:
        tried = {length for length, _ in self._sessions}
        for wish in sorted(self._wishes, key=lambda wish: -wish.urgency):
            # Pairs that want the same length share a session, and its baseline.
            together = {s for other in self._wishes if other.length == wish.length for s in other.subjects}
            for subjects in (tuple(s for s in self.study.subjects if s in together), wish.subjects):
                length = wish.length
                while (self.costs.session_s(length, subjects, refining=True) or 0.0) > budget_s:
                    length = self._legal(length / math.sqrt(2))
                    if not wish.or_shorter or length in tried or length <= self.low:
                        break
                else:
                    return self._session(length, subjects, wish.purpose, wish.target)
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
        plan = self._plan(pair, metric)
        if not plan:
            return None
        points = self._points(pair, metric)
        measured = [point.length for point in points]
        first, last = plan[0].length, plan[-1].length
        view = look_at(ratio_curve(plan, *pair), grid(first, last, *pair))
        doubt = view.doubt

        def wish(near: float, target: float, urgency: float, purpose: str = "checking") -> _Wish | None:
            length = self._untried(near, pair)
            if length is None:
                return None
            return _Wish(length, pair, target, urgency, "memory" if metric == "peak_memory" else purpose)

        if view.at_end < 0.5:
            # It does not tip: the longest length there is says so.
            unsure = last not in measured or view.at_end > 1 - _SURE
            found = wish(last, _COARSE_TARGET, 1.0) if unsure else None
            return found and replace(found, or_shorter=True)
        if view.always >= _SURE or doubt is None:
            return wish(first, _COARSE_TARGET, 1.0) if first not in measured else None
        if doubt.is_dip and self._refinements(doubt.deepest, pair, _NEIGHBOUR) < _MOST_IN_DIP:
            return wish(doubt.deepest, self._target(doubt), 1.0)
        side = self._other_side(points, doubt, (first, last))
        if side is not None:
            return wish(side, self._target(doubt), 1.0)
        located = locate_pair(points, *pair)
        if located.interval is None:
            return wish(last if view.at_end < _SURE else doubt.length, self._target(doubt), 0.9)
        width = math.log(located.interval[1] / located.interval[0])
        if width <= 2 * math.log1p(self.study.precision):
            return None
        # From here on shallow models have no say.
        curve = ratio_curve(points, *pair)
        doubt = look_at(curve, grid(measured[0], measured[-1], *pair)).doubt
        if doubt is None or self._refinements(doubt.length, pair, _NEAR) >= _MOST_REFINEMENTS:
            return None
        place = doubt.deepest if doubt.is_dip else self._most_telling(curve, doubt, pair)
        return wish(place, self._target(doubt), width, "refining")

    def _target(self, doubt: Doubt) -> float:
        """Return how well the log-ratio must be known for a tipping point of the study's precision."""
        wanted = _SHARED * doubt.slope * math.log1p(self.study.precision)
        return max(self.study.target, _FINE_TARGET, min(_COARSE_TARGET, wanted))

    def _other_side(self, points: list[ComparisonPoint], doubt: Doubt, ends: tuple[float, float]) -> float | None:
        """Return a length where a sign is expected that was not seen near a tipping point yet."""
        measured = [point.length for point in points]
        apart = min(max(_CLEAR / doubt.slope, math.log(_BESIDE[0])), math.log(_BESIDE[1]))
        for side in (-1, 1):
            there = [point for point in points if 0 < side * math.log(point.length / doubt.length) < _NEAR]
            if any(point.sign == side for point in there):
                continue
            # Where it was looked for and not found, it lies further out.
            out = max([0.0, *(side * math.log(point.length / doubt.length) for point in there)]) + apart
            while True:
                place = self._legal(min(max(doubt.length * math.exp(side * out), ends[0]), ends[1]))
                if place not in measured:
                    return place
                if place in ends:
                    break
                out += apart
        return None

    def _most_telling(self, curve: RatioCurve, doubt: Doubt, pair: tuple[Subject, Subject]) -> float:
        """Return the length where another session should narrow the interval most for its time.

        What a measurement tells about a curve does not depend on what it will say.
        """
        factors = [*(math.exp(share * doubt.reach) for share in _INSIDE), *_APART]
        places = {self._legal(doubt.length * factor) for factor in factors}
        noise = self._target(doubt) / 1.96
        now = curve.spread_after(doubt.length, doubt.length, math.inf)
        gains = {
            (now**2 - curve.spread_after(doubt.length, place, noise) ** 2)
            / (self.costs.session_s(place, pair, refining=True) or 1.0): place
            for place in places
            if self._untried(place, pair)
        }
        return gains[max(gains)] if gains else doubt.length

    def _refinements(self, length: float, pair: tuple[Subject, Subject], apart: float) -> int:
        """Return in how many sessions a pair has been around a length, within e-folds of it."""
        return sum(abs(math.log(other / length)) < apart for other in self._lengths(pair))

    def needed_s(self, pair: tuple[Subject, Subject], metric: str) -> float | None:
        """Return about how many seconds would decide a pair; see the function of this name."""
        points = self._points(pair, metric)
        if not points:
            return self.costs.session_s(self.low, pair, refining=True)
        last = points[-1]
        located = locate_pair(points, *pair)
        if located.interval is not None and located.length is not None:
            width = math.log(located.interval[1] / located.interval[0])
            wanted = 2 * math.log1p(self.study.precision)
            if width <= wanted or self._untried(located.length, pair) is None:
                return None
            sessions = max(2, self._refinements(located.length, pair, _NEAR))
            more = sessions * ((width / wanted) ** 2 - 1)
            return self._repeated_s(located.length, pair, more)
        if last.censored or located.verdict == "always":
            return None
        if located.verdict == "never":
            longer = self._legal(min(self.high, 2 * last.length))
            return self.costs.session_s(longer, pair, refining=True) if longer > last.length else None
        ways = []
        if last.length < self.high:
            longer = self._legal(min(self.high, 2 * last.length))
            ways.append(self.costs.session_s(longer, pair, refining=True))
        distance = abs(last.center) / last.spread if last.spread else math.inf
        if distance > _TELLING:
            ways.append(self._repeated_s(last.length, pair, (_DECIDED / distance) ** 2 - 1))
        return min((way for way in ways if way is not None), default=None)

    def _repeated_s(self, length: float, pair: tuple[Subject, Subject], sessions: float) -> float | None:
        each = self.costs.session_s(length, pair, refining=True)
        return None if each is None else max(1, math.ceil(sessions)) * each

    # What is known

    def _points(self, pair: tuple[Subject, Subject], metric: str) -> list[ComparisonPoint]:
        return comparison_points(self.outcomes, *pair, metric=metric, phase=self.phase, batch_size=None)

    def _plan(self, pair: tuple[Subject, Subject], metric: str) -> list[ComparisonPoint]:
        """Return what is known of a pair, with what shallow models tell where nothing else does."""
        points = self._points(pair, metric)
        if metric == "peak_memory":
            return points
        tolerance = _SCREENING_TOLERANCE if metric == "latency" else _BATCH_TOLERANCE
        there = {point.length for point in points}
        for length in {outcome.workload.length for outcome in self.screened} - there:
            ratio = self.costs.screened_log_ratio(pair, length)
            if ratio is not None:
                points.append(ComparisonPoint(length, (ratio,), tolerance=tolerance))
        return sorted(points, key=lambda point: point.length)

    @cached_property
    def _sessions(self) -> dict[tuple[float, str], set[Subject]]:
        """The subjects of every session by its length and name, with whatever outcome."""
        sessions: dict[tuple[float, str], set[Subject]] = {}
        for outcome in self.outcomes:
            at = (outcome.workload.length, session_root(outcome.session))
            sessions.setdefault(at, set()).add(outcome.workload.subject)
        return sessions

    def _lengths(self, pair: tuple[Subject, Subject]) -> list[float]:
        """Return the length of every session that a pair has been in together."""
        return [length for (length, _), subjects in self._sessions.items() if subjects.issuperset(pair)]

    def _untried(self, length: float, pair: tuple[Subject, Subject]) -> float | None:
        """Return a legal length close by at which a pair has not been measured, None if there is none.

        Two sessions at one length tell no more than two at neighbouring lengths, and less if that one is peculiar.
        """
        length = self._legal(min(max(length, self.low), self.high))
        tried = self._lengths(pair)
        # What ran out of memory is not tried at a longer length.
        lost = min((o.workload.length for o in self._failures if o.workload.subject in pair), default=math.inf)
        step = architecture_of(pair[0]).unit == "seconds" and length * _NEIGHBOUR / _MOST_NEIGHBOURS
        for number in range(2 * _MOST_NEIGHBOURS + 1):
            away = (number + 1) // 2 * (1 if number % 2 else -1)
            near = self._legal(length + away * (step or self._multiple))
            close = number == 0 or abs(math.log(near / length)) < _NEIGHBOUR
            if close and self.low <= near <= self.high and near < lost and near not in tried:
                return near
        return None

    def _session(
        self, length: float, subjects: tuple[Subject, ...], purpose: str, target: float | None = None
    ) -> Step:
        coarse = self.study.target if self.study.whole_range else max(self.study.target, _COARSE_TARGET)
        expected = (
            self.costs.screening_s(length, subjects)
            if purpose == "screening"
            else self.costs.session_s(length, subjects, refining=purpose != "growing")
        )
        batches = tuple(self._largest_useful_batch(subject, length) for subject in subjects)
        brief = purpose in ("screening", "memory") or not _times(self.study)
        rounds_s = _BRIEF_ROUNDS_S if brief else self.costs.rounds_s(purpose != "growing")
        return Step(self.phase, length, subjects, expected, batches, purpose, target or coarse, rounds_s, brief)

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
        shortest = max(rule.lengths.minimum for rule in rules)
        smallest = math.ceil(shortest / self._multiple) * self._multiple
        return max(smallest, round(length / self._multiple) * self._multiple)

    @cached_property
    def _multiple(self) -> int:
        return math.lcm(*(architecture_of(subject).lengths.multiple_of for subject in self.study.subjects))


class _Costs:
    """What a session should take, from measured latencies."""

    def __init__(self, study: Study, phase: str, known: Known) -> None:
        self.study = study
        self.phase = phase
        self.known = known
        self._screened: dict[Subject, dict[float, float]] = {}

    def rounds_s(self, refining: bool) -> float:
        """Return seconds that timed rounds may take."""
        low, high = _ROUNDS_BOUNDS_S
        return (_REFINING_ROUNDS if refining else 1.0) * min(high, max(low, _ROUNDS_SHARE * self.study.budget_s))

    def session_s(self, length: float, subjects: Sequence[Subject], *, refining: bool = False) -> float | None:
        """Return seconds a session should take; None where nothing is known."""
        together = self._together(length, subjects)
        if together is None:
            return None
        study = self.study
        # memory (training: two steps) and inspection; then in each process, building, a cold call and warm-up
        alone = (2 if self.phase == "inference" else 3) * together
        process = _BUILD_S * len(subjects) + 2 * together
        rounds = max(study.repeats * MIN_ROUNDS * together, min(self.rounds_s(refining), 30 * together))
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

    def screened_log_ratio(self, pair: tuple[Subject, Subject], length: float) -> float | None:
        """Return the log-ratio that shallow models tell of, None where they tell nothing."""
        baseline, variant = (self.screened_s(subject).get(length) for subject in pair)
        return math.log(baseline / variant) if baseline and variant else None

    def screened_s(self, subject: Subject) -> dict[float, float]:
        """Return what shallow models tell of a subject's latency at its own depth, by length.

        The cost of a stack is linear in its depth. What a layer adds, as a share of the deeper of the two models, is
        taken from a straight line through the shares at all lengths: of two noisy numbers at one length, the
        difference is noisier still.
        """
        if subject not in self._screened:
            self._screened[subject] = self._extrapolated(subject)
        return self._screened[subject]

    def _extrapolated(self, subject: Subject) -> dict[float, float]:
        seen: dict[float, dict[int | None, float]] = {}
        for outcome in self.known.screened:
            workload = outcome.workload
            if isinstance(outcome, Measurement) and (workload.phase, workload.subject) == (self.phase, subject):
                # Of a few blocks the shortest is the one that nothing else disturbed.
                seen.setdefault(workload.length, {})[workload.layers] = float(outcome.per_call_s.min())
        low, high = SCREENING_LAYERS
        both = {length: times for length, times in sorted(seen.items()) if set(SCREENING_LAYERS) <= times.keys()}
        depth = architecture_of(subject).layers(self.study.size)
        if depth is None or not both:
            return {}
        shares = [(1 - times[low] / times[high]) / (high - low) for times in both.values()]
        logs = np.log(list(both))
        line = np.poly1d(np.polyfit(logs, shares, 1 if len(both) > 3 else 0))
        # A layer takes no more than its part of the model, and hardly less than half of it.
        layer = np.clip(line(logs), 0.5 / high, 1 / high)
        return {
            length: times[high] * (1 + (depth - high) * share)
            for (length, times), share in zip(both.items(), layer.tolist(), strict=True)
        }

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
            found |= self.screened_s(subject)
        for outcome in self.known.outcomes:
            workload = outcome.workload
            own = self.study.batch_size_at(workload.length)
            mine = (workload.subject, workload.phase, workload.batch_size) == (subject, phase, own)
            if isinstance(outcome, Measurement) and mine:
                found[workload.length] = outcome.latency_s
        return found
