"""What a report says, for every format: the answers, and what they rest on, from what a store holds.

Nothing is computed here that has a place of its own: races and winners come from `analysis.winners`, tipping points
from `analysis.tipping_point`, pooled costs from `analysis.cost`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tippingpoint.analysis.breakdown import Breakdown
from tippingpoint.analysis.changes import describe
from tippingpoint.analysis.nodes import Disagreement, disagreements
from tippingpoint.analysis.tipping_point import TippingPoint, tipping_point
from tippingpoint.analysis.winners import Best, Contest, Race, contests
from tippingpoint.data import LengthData
from tippingpoint.errors import AnswerError, InputError
from tippingpoint.machine import Environment
from tippingpoint.measurement import Failure, Measurement, Outcome, is_best_batch, is_look, session_root
from tippingpoint.models.catalog import architecture_of
from tippingpoint.report.answers import Answer, answers
from tippingpoint.report.curves import CURVE_METRICS, Curve, End, SpeedUpCurve, curve_of, ends_of, ratios_of
from tippingpoint.report.missing import Missing, missing_of_pair, missing_partner, unknown_here
from tippingpoint.store import StoredSession
from tippingpoint.units import UNITS
from tippingpoint.workload import METRICS, PHASES, Subject, Workload

# Why there is no comparison at all is told with so many reasons.
_MOST_REASONS = 4
# Of a warning that many measurements have.
_EXAMPLES = 5
_NUMBERS = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What outcomes must have in common to be held against each other.

    Attributes:
        environment: Fingerprint.
        label: Of the run; empty by default.
        modality: "text", "speech" or "vision".
        workload: All that its workloads share; its subject and its length mean nothing.
    """

    environment: str
    label: str
    modality: str
    workload: Workload

    @classmethod
    def of(cls, workload: Workload, environment: Environment, label: str = "") -> Setting:
        """Return the setting of something that was measured."""
        modality = architecture_of(workload.subject).modality
        shared = workload.replace(subject=modality, length=1)
        return cls(environment=environment.fingerprint, label=label, modality=modality, workload=shared)

    @property
    def any_batch(self) -> Setting:
        """What settings share that differ by their batch size alone."""
        return replace(self, workload=self.workload.any_batch)

    @property
    def phase(self) -> str:
        """Inference or training."""
        return self.workload.phase

    @property
    def batch_size(self) -> int:
        """Sequences per call; throughput is at each subject's best batch size all the same."""
        return self.workload.batch_size

    @property
    def unit(self) -> str:
        """Native unit of lengths."""
        return UNITS[self.modality]

    def __str__(self) -> str:
        workload = self.workload
        threads = "" if workload.threads is None or workload.device != "cpu" else f", {workload.threads} threads"
        pinned = "" if workload.affinity is None else f" on cores {','.join(map(str, workload.affinity))}"
        label = f", label {self.label}" if self.label else ""
        where = f"{workload.device} {workload.dtype}{threads}{pinned}, {workload.shape}{workload.manner}"
        return f"{self.modality}, {self.phase}, batch {self.batch_size}, {where}{label}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A contest as it was measured in one setting, and all that follows from it.

    Attributes:
        setting: Where.
        race: Who competes, and the outcomes; those at best batch sizes are among them where throughput is told.
        tipping_points: Of every baseline, variant and metric that were compared at one length at least.
        curves: Of every subject and metric that were measured.
        ends: Failures, by subject and kind.
        speed_ups: Of latency, over each baseline.
        fastest: Who has the least latency, at each length at which all were tried.
        smallest: The same of peak memory.
    """

    setting: Setting
    race: Race
    tipping_points: tuple[TippingPoint, ...]
    curves: tuple[Curve, ...]
    ends: tuple[End, ...]
    speed_ups: tuple[SpeedUpCurve, ...]
    fastest: tuple[Best, ...]
    smallest: tuple[Best, ...]

    @property
    def contest(self) -> Contest:
        """Baselines and variants."""
        return self.race.contest

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that there are curves of."""
        there = {curve.metric for curve in self.curves}
        return tuple(metric for metric in CURVE_METRICS if metric in there)


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """What was doubtful about several measurements.

    Attributes:
        text: The warning, as the first of them has it.
        count: How many have it, each with numbers of its own.
        examples: The first few: the workload in words, and its own text.
    """

    text: str
    count: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a report says.

    Attributes:
        title: Of the report.
        source: Name of the store's file.
        measured_at: Of the first and of the last session, as the store writes them.
        sessions: How many there are.
        measurements: How many there are.
        failures: How many there are.
        environments: By fingerprint, in the order they were first met.
        comparisons: Most important first: inference before training, small batches before large ones.
        answers: Most important first.
        warnings: What most measurements have first.
        missing: What could not be answered, and what would fill it.
        breakdowns: Where the time of calls goes.
        lengths: The person's own, where they were given.
        disagreements: Of nodes that should be alike.
    """

    title: str
    source: str
    measured_at: tuple[str, str]
    sessions: int
    measurements: int
    failures: int
    environments: dict[str, Environment]
    comparisons: tuple[Comparison, ...]
    answers: tuple[Answer, ...]
    warnings: tuple[Warned, ...]
    missing: tuple[Missing, ...]
    breakdowns: tuple[Breakdown, ...] = ()
    lengths: LengthData | None = None
    disagreements: tuple[Disagreement, ...] = ()


def contents(
    sessions: Sequence[StoredSession],
    *,
    store: str,
    title: str = "",
    breakdowns: Iterable[Breakdown] = (),
    lengths: LengthData | None = None,
) -> Contents:
    """Return what a report of stored sessions says.

    Args:
        sessions: Of a store, oldest first; all of them or some.
        store: Path of the store, for commands that measure what is missing.
        title: Of the report; one that says where by default.
        breakdowns: Kept beside the outcomes.
        lengths: The person's own.

    Raises:
        AnswerError: If there is not one comparison, saying what is missing and the command that would measure it.
    """
    sessions = list(sessions)
    known, unknown = _apart(sessions)
    missing: list[Missing] = [unknown_here(unknown)] if unknown else []
    found: list[Comparison] = []
    for setting, outcomes in _by_setting(known).items():
        subjects = tuple(dict.fromkeys(o.workload.subject for o in outcomes if not is_best_batch(o)))
        held = contests(subjects)
        if not held:
            missing.append(missing_partner(outcomes, setting.workload, store, setting.label))
        for contest in held:
            race = Race(contest=contest, outcomes=outcomes, phase=setting.phase, batch_size=setting.batch_size)
            compared, lacking = _compare(setting, race, store)
            found += [compared] if compared else []
            missing += lacking
    found.sort(key=lambda each: _importance(each.setting, lengths))
    if not found:
        reasons = [str(each) for each in missing] or ["there are no results yet; measure something first"]
        raise AnswerError(f"{store} holds no complete comparison: {'; '.join(reasons[:_MOST_REASONS])}")
    outcomes = [outcome for session in sessions for outcome in session.outcomes]
    failed = sum(isinstance(outcome, Failure) for outcome in outcomes)
    environments = {o.environment.fingerprint: o.environment for o in outcomes}
    return Contents(
        title=title or f"Tipping points on {', '.join(dict.fromkeys(map(_machine, environments.values())))}",
        source=re.split(r"[/\\]", store)[-1],
        measured_at=(sessions[0].measured_at, sessions[-1].measured_at),
        sessions=len(sessions),
        measurements=len(outcomes) - failed,
        failures=failed,
        environments=environments,
        comparisons=tuple(found),
        answers=answers(found, lengths),
        warnings=_warnings(outcome for _, outcome in known),
        missing=tuple(missing),
        breakdowns=tuple(breakdowns),
        lengths=lengths,
        disagreements=disagreements(sessions),
    )


def by_batch(comparisons: Iterable[Comparison]) -> list[list[Comparison]]:
    """Return comparisons of one contest whose settings differ by their batch size alone."""
    found: dict[tuple[Setting, Contest], list[Comparison]] = {}
    for each in comparisons:
        found.setdefault((each.setting.any_batch, each.contest), []).append(each)
    return list(found.values())


def _machine(environment: Environment) -> str:
    return environment.cpu_model if environment.device_name == "CPU" else environment.device_name


def _apart(sessions: Iterable[StoredSession]) -> tuple[list[tuple[str, Outcome]], list[Subject]]:
    """Return outcomes with their labels, and subjects of architectures that are not known here.

    A stranger's store may hold those of a plugin that is not installed. Looks with shallow models are left out.
    """
    known: list[tuple[str, Outcome]] = []
    unknown: dict[Subject, bool] = {}
    for session in sessions:
        for outcome in session.outcomes:
            subject = outcome.workload.subject
            if subject not in unknown:
                unknown[subject] = not _is_known(subject)
            if not (unknown[subject] or is_look(outcome)):
                known.append((session.label, outcome))
    return known, [subject for subject, is_unknown in unknown.items() if is_unknown]


def _is_known(subject: Subject) -> bool:
    try:
        architecture_of(subject)
    except InputError:
        return False
    return True


def _by_setting(labelled: Iterable[tuple[str, Outcome]]) -> dict[Setting, tuple[Outcome, ...]]:
    """Return outcomes by setting; those at best batch sizes are with the smallest batch size of their session."""
    plain: dict[Setting, list[Outcome]] = {}
    at_best: list[tuple[Setting, Outcome]] = []
    for label, outcome in labelled:
        setting = Setting.of(outcome.workload, outcome.environment, label)
        if is_best_batch(outcome):
            at_best.append((setting, outcome))
        else:
            plain.setdefault(setting, []).append(outcome)
    smallest: dict[Setting, Setting] = {}
    for setting in sorted(plain, key=lambda each: each.batch_size):
        smallest.setdefault(setting.any_batch, setting)
    for setting, outcome in at_best:
        home = smallest.get(setting.any_batch)
        if home:
            plain[home].append(outcome)
    return {setting: tuple(outcomes) for setting, outcomes in plain.items()}


def _importance(setting: Setting, lengths: LengthData | None) -> tuple[object, ...]:
    asked = lengths is None or lengths.modality == setting.modality
    return (not asked, PHASES.index(setting.phase), setting.batch_size)


def _compare(setting: Setting, race: Race, store: str) -> tuple[Comparison | None, list[Missing]]:
    """Return what a contest tells in a setting, None if no pair met; and what is missing in it."""
    metrics = [metric for metric in METRICS if _was_measured(race, metric)]
    points, lacking = [], []
    together: dict[str, set[Subject]] = {}
    for outcome in race.seen:
        together.setdefault(session_root(outcome.session), set()).add(outcome.workload.subject)
    for baseline in race.contest.baselines:
        for variant in race.contest.variants:
            sessions = sum({baseline, variant} <= there for there in together.values())
            found = [replace(point, sessions=sessions) for point in _tipping_points(race, baseline, variant, metrics)]
            points += [point for point in found if point.points]
            gap = missing_of_pair(race, baseline, variant, found, store, setting.label)
            lacking += [gap] if gap else []
    if not points:
        return None, lacking
    compared = Comparison(
        setting=setting,
        race=race,
        tipping_points=tuple(points),
        curves=tuple(
            curve
            for subject in race.contest.subjects
            for metric in (*metrics, "flops")
            if (curve := curve_of(race, subject, metric))
        ),
        ends=ends_of(race),
        speed_ups=tuple(map(ratios_of, race.speed_ups("latency"))),
        fastest=race.best("latency"),
        smallest=race.best("peak_memory"),
    )
    return compared, lacking


def _was_measured(race: Race, metric: str) -> bool:
    if metric == "throughput":
        # Where larger batches were tried and did not pay, the measurement itself is at the best one.
        return any(is_best_batch(o) or (isinstance(o, Measurement) and o.batch_curve) for o in race.outcomes)
    if metric == "peak_memory":
        return any(isinstance(outcome, Measurement) and outcome.memory for outcome in race.seen)
    return True


def _tipping_points(race: Race, baseline: Subject, variant: Subject, metrics: Sequence[str]) -> list[TippingPoint]:
    # Sought out once for all metrics: a setting may hold thousands of others.
    outcomes = [outcome for outcome in race.outcomes if outcome.workload.subject in (baseline, variant)]
    return [
        tipping_point(
            outcomes,
            baseline,
            variant,
            metric=metric,
            phase=race.phase,
            batch_size=race.batch_size,
            device=race.workload.device,
        )
        for metric in metrics
    ]


def _warnings(outcomes: Iterable[Outcome]) -> tuple[Warned, ...]:
    found: dict[str, list[tuple[str, str]]] = {}
    for outcome in outcomes:
        if isinstance(outcome, Measurement):
            for warning in outcome.warnings:
                found.setdefault(_NUMBERS.sub("#", warning), []).append((describe(outcome.workload), warning))
    groups = sorted(found.values(), key=len, reverse=True)
    return tuple(Warned(text=group[0][1], count=len(group), examples=tuple(group[:_EXAMPLES])) for group in groups)
