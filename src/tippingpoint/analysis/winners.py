"""Who wins where: speed-ups over baselines, and the fastest and the smallest of several subjects by length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tippingpoint.analysis.comparison import MEMORY_TOLERANCE, ComparisonPoint, comparison_points
from tippingpoint.measurement import Failure, Measurement, Outcome, is_best_batch, is_look
from tippingpoint.models.catalog import architecture_of, is_vanilla
from tippingpoint.workload import Subject, Workload


@dataclass(frozen=True, slots=True)
class Contest:
    """Subjects that are held against the same baselines, and against each other.

    Attributes:
        baselines: Vanilla subjects.
        variants: The others.
    """

    baselines: tuple[Subject, ...]
    variants: tuple[Subject, ...]

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Baselines, then variants."""
        return self.baselines + self.variants


@dataclass(frozen=True, slots=True)
class SpeedUp:
    """How many times less a subject costs than a baseline.

    Attributes:
        baseline: The subject to beat.
        subject: The other one, which may be a baseline itself.
        metric: "latency" or "peak_memory".
        points: At each length, shortest first.
    """

    baseline: Subject
    subject: Subject
    metric: str
    points: tuple[ComparisonPoint, ...]


@dataclass(frozen=True, slots=True)
class Best:
    """Who costs least at one length.

    Attributes:
        length: In the native unit.
        subject: The one that costs least.
        level: Others that are not certainly costlier: the 95 % interval of the ratio holds 1.
    """

    length: float
    subject: Subject
    level: tuple[Subject, ...] = ()


def contests(subjects: Iterable[Subject]) -> tuple[Contest, ...]:
    """Return which of some subjects compete: with the vanilla ones of their architecture, or with all of these.

    Args:
        subjects: Of one modality; vanilla ones are baselines, fused attention before `eager`.
    """
    found = tuple(dict.fromkeys(subjects))
    vanilla = sorted((subject for subject in found if is_vanilla(subject)), key=_is_eager)
    held: dict[tuple[Subject, ...], list[Subject]] = {}
    for subject in found:
        if subject not in vanilla:
            own = [baseline for baseline in vanilla if baseline.architecture == subject.architecture]
            held.setdefault(tuple(own or vanilla), []).append(subject)
    return tuple(Contest(baselines, tuple(variants)) for baselines, variants in held.items() if baselines)


def _is_eager(subject: Subject) -> bool:
    return any(variant.name == "eager" for variant in subject.variants)


@dataclass(frozen=True, kw_only=True)
class Race:
    """A contest as it was measured: one phase, one setting, one environment.

    Attributes:
        contest: Who competes.
        outcomes: What was measured of them, and other things.
        phase: "inference" or "training".
        batch_size: Sequences per call.
        batch_budget: How much a call holds in the native unit instead, where it has no fixed size; see `Study`. The
            outcomes then have no other batch sizes than it asks for.
    """

    contest: Contest
    outcomes: tuple[Outcome, ...]
    phase: str
    batch_size: int = 1
    batch_budget: float | None = None

    @property
    def _size(self) -> int | None:
        """Sequences per call; None where every length has its own."""
        return self.batch_size if self.batch_budget is None else None

    @cached_property
    def seen(self) -> tuple[Outcome, ...]:
        """Outcomes of the contest's subjects, in its phase and at its batch size."""
        return tuple(
            outcome
            for outcome in self.outcomes
            if outcome.workload.subject in self.contest.subjects
            and outcome.workload.phase == self.phase
            and self._size in (None, outcome.workload.batch_size)
            and not (is_best_batch(outcome) or is_look(outcome))
        )

    @cached_property
    def _seen_at(self) -> dict[float, list[Outcome]]:
        found: dict[float, list[Outcome]] = {}
        for outcome in self.seen:
            found.setdefault(outcome.workload.length, []).append(outcome)
        return found

    @cached_property
    def measured(self) -> dict[float, dict[Subject, Measurement]]:
        """The latest measurement of every subject at each length, shortest first."""
        found: dict[float, dict[Subject, Measurement]] = {}
        for outcome in self.seen:
            if isinstance(outcome, Measurement):
                found.setdefault(outcome.workload.length, {})[outcome.workload.subject] = outcome
        return dict(sorted(found.items()))

    @property
    def workload(self) -> Workload:
        """One of its workloads: they differ in subject and length alone."""
        return self.seen[0].workload

    @cached_property
    def lengths(self) -> tuple[float, ...]:
        """Lengths at which every subject was tried; without any, all at which several were measured.

        What failed at a length, or ran out of memory at a shorter one, was tried there. A search that measures one
        pair more closely is not of interest to the others.
        """
        every = set(self.contest.subjects)
        common = [length for length, there in self.measured.items() if every <= {*there, *self.failures(length)}]
        return tuple(common or (length for length, there in self.measured.items() if len(there) > 1))

    def speed_ups(self, metric: str = "latency") -> tuple[SpeedUp, ...]:
        """Return what every other subject gains over each baseline at the race's lengths; see `SpeedUp`."""
        found = []
        seen = [outcome for outcome in self.seen if outcome.workload.length in self.lengths]
        for baseline in self.contest.baselines:
            for subject in self.contest.subjects:
                points = comparison_points(
                    seen, baseline, subject, metric=metric, phase=self.phase, batch_size=self._size
                )
                if subject != baseline and points:
                    found.append(SpeedUp(baseline, subject, metric, tuple(points)))
        return tuple(found)

    def best(self, metric: str = "latency") -> tuple[Best, ...]:
        """Return who costs least at each length at which every subject was tried; what failed does not compete."""
        found = []
        for length in self.lengths:
            there = self.measured[length]
            costs = {subject: _cost(measurement, metric) for subject, measurement in there.items()}
            known = {subject: cost for subject, cost in costs.items() if cost is not None}
            tried = {*known, *self.failures(length)}
            if len(known) < len(costs) or not tried.issuperset(self.contest.subjects):
                continue
            best = min(known, key=known.__getitem__)
            level = (other for other in known if other != best and not self._is_ahead(best, other, length, metric))
            found.append(Best(length, best, tuple(level)))
        return tuple(found)

    def failures(self, length: float) -> dict[Subject, Failure]:
        """Return who failed at a length and was not measured there, or ran out of memory at a shorter one."""
        return {
            outcome.workload.subject: outcome
            for outcome in self.seen
            if isinstance(outcome, Failure)
            and outcome.workload.subject not in self.measured.get(length, ())
            and (
                outcome.workload.length == length
                or (outcome.workload.length < length and outcome.kind == "out_of_memory")
            )
        }

    def _is_ahead(self, best: Subject, other: Subject, length: float, metric: str) -> bool:
        """Whether the one certainly costs less than the other."""
        here = self.measured[length]
        if metric == "peak_memory":
            less, more = (_cost(here[subject], metric) or math.nan for subject in (best, other))
            return math.log(more / less) > MEMORY_TOLERANCE
        points = comparison_points(
            self._seen_at[length], other, best, metric=metric, phase=self.phase, batch_size=self._size
        )
        if points:
            return points[0].sign > 0
        # They did not fit into memory together, and nothing pairs their blocks.
        return here[best].latency_interval_s[1] < here[other].latency_interval_s[0]


def races_of(
    outcomes: Iterable[Outcome],
    contest: Contest,
    phases: Iterable[str],
    batch_size: int,
    batch_budget: float | None = None,
) -> tuple[Race, ...]:
    """Return a study's contest in each of its phases, where anything could be compared.

    Args:
        outcomes: Of the study: one setting and one environment.
        contest: Its baselines and variants.
        phases: Its phases.
        batch_size: Sequences per call.
        batch_budget: See `Race`.
    """
    outcomes = tuple(outcomes)
    sizes = {"batch_size": batch_size, "batch_budget": batch_budget}
    found = (Race(contest=contest, outcomes=outcomes, phase=phase, **sizes) for phase in phases)
    return tuple(race for race in found if race.speed_ups())


def races(outcomes: Iterable[Outcome]) -> tuple[Race, ...]:
    """Return every contest that some outcomes hold: by environment, modality and setting, in the order they were met.

    Args:
        outcomes: Of any environment.
    """
    settings: dict[Any, list[Outcome]] = {}
    for outcome in outcomes:
        workload = outcome.workload
        modality = architecture_of(workload.subject).modality
        setting = workload.replace(subject=modality, length=1)
        settings.setdefault((outcome.environment.fingerprint, setting), []).append(outcome)
    found = []
    for (_, setting), group in settings.items():
        for contest in contests(outcome.workload.subject for outcome in group):
            race = Race(contest=contest, outcomes=tuple(group), phase=setting.phase, batch_size=setting.batch_size)
            if race.speed_ups():
                found.append(race)
    return tuple(found)


def _cost(measurement: Measurement, metric: str) -> float | None:
    if metric == "latency":
        return measurement.latency_s
    return measurement.memory.peak_bytes if measurement.memory else None


def stretches(lengths: Sequence[float], chosen: Iterable[float]) -> tuple[tuple[float, float], ...]:
    """Return from where to where chosen lengths follow one another.

    Args:
        lengths: All there are, growing.
        chosen: Some of them.
    """
    wanted, found, last = set(chosen), [], False
    for length in lengths:
        if length in wanted:
            found = [*found[:-1], (found[-1][0], length)] if last else [*found, (length, length)]
        last = length in wanted
    return tuple(found)
