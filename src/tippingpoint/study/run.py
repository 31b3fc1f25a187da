"""The coordinator: decides, measures, stores, and does it again until the budget ends or nothing is left.

Everything it knows is in the store, so a study that was killed goes on by being started again.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Protocol

from tippingpoint.analysis.tipping_point import TippingPoint, tipping_point
from tippingpoint.errors import AnswerError, InputError
from tippingpoint.measurement import Environment, Failure, Measurement, Outcome, session_root
from tippingpoint.models.catalog import architecture_of, check_subject, modality_of
from tippingpoint.profiling.device import now
from tippingpoint.profiling.exclusive import exclusively
from tippingpoint.profiling.process import WorkerProcess
from tippingpoint.profiling.session import Effort, default_threads, measure_together, screen
from tippingpoint.store import Store, StoredSession, open_store
from tippingpoint.study.comparisons import comparisons
from tippingpoint.study.ledger import known_from, measured_in, memory_points, seconds_spent, sessions_of, study_key
from tippingpoint.study.search import (
    SCREENING_LAYERS,
    Known,
    Step,
    needed_s,
    next_step,
    pairs,
    screened_range,
)
from tippingpoint.units import format_length, format_percent, format_seconds
from tippingpoint.workload import Study, Subject

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

# A single answer of a worker is waited for twice the remaining budget, between these bounds (seconds).
_TIMEOUT_BOUNDS_S = (120.0, 3600.0)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StudyResult:
    """What a study found.

    Attributes:
        study: With subjects and threads resolved.
        environment: Where it was measured.
        outcomes: Every measurement and failure that belongs to it.
        tipping_points: For each phase, metric, baseline and variant.
        seconds: Wall time of measuring, earlier runs on the same store included.
        complete: Whether nothing was left to measure; False if the budget ended first.
    """

    study: Study
    environment: Environment
    outcomes: tuple[Outcome, ...]
    tipping_points: tuple[TippingPoint, ...]
    seconds: float
    complete: bool

    def __str__(self) -> str:
        measured = sum(isinstance(outcome, Measurement) for outcome in self.outcomes)
        lines = [
            f"study {self.study.name}: {measured} measurements, {len(self.outcomes) - measured} failures, "
            f"{format_seconds(self.seconds)} on {self.environment}"
        ]
        lines += [f"  {point.phase} {point.metric}: {point.answer}" for point in self.tipping_points]
        return "\n".join(lines)

    __repr__ = __str__


def resolve_study(study: Study) -> Study:
    """Return the study with every subject checked and written out, and threads resolved.

    Raises:
        InputError: If a subject, its modality or the range of lengths is not legal.
    """
    subjects = {subject: check_subject(subject) for subject in study.subjects}

    def once(names: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(names))

    modality = modality_of(tuple(subjects.values()))
    if modality != study.modality:
        raise InputError(f"the study says modality {study.modality!r}, and its subjects are of {modality}")
    _, high = study.lengths
    for subject in subjects.values():
        rule = architecture_of(subject)
        if high < rule.lengths.minimum:
            rule.check_length(high)
    return study.replace(
        baselines=once(subjects[subject] for subject in study.baselines),
        variants=once(subjects[subject] for subject in study.variants),
        phases=once(study.phases),
        metrics=once(study.metrics),
        # Where the study asks for places, they say how many.
        threads=study.threads
        or (study.place.cores if study.place else None if study.places else default_threads(study.affinity)),
    )


class Machine(Protocol):
    """What measures the steps of a search."""

    def alone(self, study: Study, progress: Progress) -> AbstractContextManager[None]:
        """Have what a study is measured on to oneself; wait until it is free."""
        ...

    def environment(self, study: Study) -> Environment:
        """Return where a study would be measured.

        Raises:
            InputError: If it is not where the study asks to be measured.
        """
        ...

    def measure(
        self, study: Study, step: Step, known: Known, remaining_s: float, progress: Progress
    ) -> tuple[Sequence[Outcome], float]:
        """Measure one session; return its outcomes and the seconds it took."""
        ...


class ThisMachine:
    """The machine at hand; see `Machine`.

    Args:
        progress: Told when somebody else is measuring here.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress

    def alone(self, study: Study, progress: Progress) -> AbstractContextManager[None]:
        """Have the device and its sockets to oneself; see `exclusively`."""
        shared = study.place is not None and study.place.share_socket
        return exclusively(study.device, study.affinity, share_socket=shared, progress=progress)

    def environment(self, study: Study) -> Environment:
        """Return the environment of a worker of the study."""
        assert study.threads is not None, "threads were resolved"
        with (
            # Starting the first worker is work that others would feel.
            self.alone(study, self._progress or logger.info),
            WorkerProcess(
                study.device, study.threads, affinity=study.affinity, timeout_s=_TIMEOUT_BOUNDS_S[0]
            ) as worker,
        ):
            environment = worker.environment
        check_place(study, environment)
        return environment

    def measure(
        self, study: Study, step: Step, known: Known, remaining_s: float, progress: Progress
    ) -> tuple[Sequence[Outcome], float]:
        """Measure one session in workers of their own."""
        begin = now()
        outcomes = _measure(study, step, known, remaining_s, progress)
        if any(isinstance(outcome, Failure) and outcome.kind == "killed" for outcome in outcomes):
            # Whoever did that may not do it again; if it is the subject's own doing, it will.
            progress("a measuring process was killed; the session is measured again")
            outcomes = _measure(study, step, known, remaining_s, progress)
        return outcomes, now() - begin


def check_place(study: Study, environment: Environment) -> None:
    """Refuse a machine that is not of the kind that a study asks for.

    Raises:
        InputError: If it is not.
    """
    place = study.place
    if place is None:
        return
    assert place.cores is not None, "a place knows its cores"
    if environment.cores < place.cores:
        raise InputError(
            f"the study asks for {place.cores} CPU cores, and {environment.cores} may be used here; name fewer in "
            "`device`, or run it with `--on ray` where there are more"
        )
    words, named = _words(environment.device_name), _words(place.kind)
    if place.device != "cpu" and place.kind != "cuda" and not named <= words:
        raise InputError(
            f"the study asks for {place.kind}, and the GPU here is {environment.device_name}; name that in `device`, "
            f"or run it with `--on ray` on a cluster that has {place.kind}"
        )


def _words(name: str) -> set[str]:
    """Return the words of a GPU's name: "NVIDIA A100-SXM4-80GB" is an A100."""
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def run_study(
    study: Study, store: Store, *, label: str = "", progress: Progress | None = None, machine: Machine | None = None
) -> StudyResult:
    """Measure a study within its budget, or go on with one that was interrupted.

    Args:
        study: What to compare.
        store: Where outcomes go as they are made, and where earlier ones are found.
        label: What to call this run, such as "before". Only outcomes and time of runs with the same label count
            then, so that a study can be measured again in one store.
        progress: Called with one line at a time.
        machine: What measures; the one at hand by default.

    Returns:
        Everything known at the end.

    Raises:
        InputError: If the study is not legal, or asks for another kind of machine.
        StoreError: If results cannot be written.
        AnswerError: If not a single workload could be measured.
    """
    say = progress or (lambda line: logger.info("%s", line))
    machine = machine or ThisMachine(say)
    study = resolve_study(study)
    say("starting the measuring process")
    parts = comparisons(study)
    # What it depends on is mostly the same for all of them.
    unlike = {(part.device, part.threads, part.affinity, part.place): part for part in parts}
    environment, *others = [machine.environment(part) for part in unlike.values()]
    if any(other.fingerprint != environment.fingerprint for other in others):
        raise InputError("the study asks for several kinds of place at once; run it with `--on ray`")
    for part in parts:
        for outcomes, seconds in search(part, store, environment, machine, label=label, say=say):
            store.add(outcomes, study=study_key(part), seconds=seconds, label=label)
    result = collect(study, store, environment, label)
    check_measured(result.outcomes)
    return result


def check_measured(outcomes: Sequence[Outcome]) -> None:
    """Refuse an answer that would rest on nothing.

    Raises:
        AnswerError: If no outcome is a measurement.
    """
    if not any(isinstance(outcome, Measurement) for outcome in outcomes):
        reasons = "; ".join(sorted({str(outcome).replace("\n ", ":") for outcome in outcomes}))
        raise AnswerError(f"nothing could be measured: {reasons or 'no length was legal'}")


def search(
    study: Study, store: Store, environment: Environment, machine: Machine, *, label: str = "", say: Progress
) -> Iterator[tuple[Sequence[Outcome], float]]:
    """Measure one session after the other until the budget ends or nothing is left.

    Args:
        study: With subjects resolved.
        store: What is known; whoever asks for the next session has put this one there.
        environment: Where it is measured.
        machine: What measures.
        label: What to call this run.
        say: Called with one line at a time.

    Yields:
        The outcomes of a session, and the seconds it took.
    """
    while True:
        # Decided, measured and stored in one turn: of two that run the same study at once, each sees what the other
        # has done. Waiting for the turn is no part of the budget.
        with machine.alone(study, say):
            everywhere = sessions_of(study, store, label=label)
            spent = seconds_spent(study, everywhere)
            known = known_from(study, measured_in(everywhere, environment))
            remaining = study.budget_s - spent
            step = next_step(study, known, remaining)
            if step is None:
                return
            say(_announce(study, step, spent))
            yield machine.measure(study, step, known, remaining, lambda line: say(f"    {line}"))


def _measure(
    study: Study, step: Step, known: Known, remaining_s: float, progress: Callable[[str], None]
) -> list[Outcome]:
    effort = Effort(
        target=step.target,
        budget_s=step.rounds_s,
        repeats=1 if step.brief else study.repeats,
        timeout_s=min(_TIMEOUT_BOUNDS_S[1], max(_TIMEOUT_BOUNDS_S[0], 2 * remaining_s)),
        brief=step.brief,
    )
    workloads = [
        study.workload(subject, step.length, step.phase).replace(layers=layers)
        for subject in step.subjects
        for layers in step.layers
    ]
    if step.purpose == "screening":
        # What a shallow model holds at once does not grow with its depth, but for training.
        points = [memory_points(study, workload.subject, step.phase, known) for workload in workloads]
        return screen(workloads, effort=effort, known=points, progress=progress)
    return measure_together(
        workloads,
        baselines=sum(subject in study.baselines for subject in step.subjects),
        effort=effort,
        largest_batches=step.largest_batches if "throughput" in study.metrics and not step.brief else None,
        known=[memory_points(study, subject, step.phase, known) for subject in step.subjects],
        progress=progress,
    )


def collect(study: Study, store: Store, environment: Environment, label: str = "") -> StudyResult:
    """Return what a store knows of a study, without measuring anything.

    Args:
        study: With subjects resolved.
        store: Where its outcomes are.
        environment: Only outcomes from there count.
        label: Only outcomes of runs with it count, if it is not empty.
    """
    found = [answer(part, sessions_of(part, store, label=label), environment) for part in comparisons(study)]
    return merge_results(study, found)


def merge_results(study: Study, found: Sequence[StudyResult]) -> StudyResult:
    """Return as one what the parts of a study found in one environment."""
    return replace(
        found[0],
        study=study,
        outcomes=tuple(dict.fromkeys(outcome for result in found for outcome in result.outcomes)),
        tipping_points=tuple(point for result in found for point in result.tipping_points),
        seconds=sum(result.seconds for result in found),
        complete=all(result.complete for result in found),
    )


def answer(study: Study, sessions: Sequence[StoredSession], environment: Environment) -> StudyResult:
    """Return what sessions tell of a study.

    Args:
        study: One that is searched as a whole, with subjects resolved.
        sessions: Those that bear on it, wherever they were measured.
        environment: Only outcomes from there count.
    """
    here = measured_in(sessions, environment)
    known = known_from(study, here)
    points = tuple(
        _with_evidence(
            tipping_point(
                known.outcomes,
                baseline,
                variant,
                metric=metric,
                phase=phase,
                batch_size=study.batch_size,
                batch_budget=study.batch_budget,
                device=study.device,
            ),
            study,
            known,
            sessions,
        )
        for phase in study.phases
        for metric in study.metrics
        for baseline, variant in pairs(study)
    )
    return StudyResult(
        study=study,
        environment=environment,
        outcomes=known.outcomes,
        tipping_points=points,
        seconds=seconds_spent(study, sessions),
        complete=next_step(study, known, math.inf) is None,
    )


def _with_evidence(
    point: TippingPoint, study: Study, known: Known, sessions: Sequence[StoredSession]
) -> TippingPoint:
    """Return a tipping point with what it rests on, what that took, and what is missing."""
    pair = (point.baseline, point.variant)
    measured, looked = (_roots(outcomes, point.phase) for outcomes in (known.outcomes, known.screened))
    count, seconds = 0, 0.0
    for session in sessions:
        roots = {session_root(outcome.session) for outcome in session.outcomes}
        subjects = {o.workload.subject for o in session.outcomes if session_root(o.session) in measured | looked}
        if subjects.issuperset(pair):
            seconds += session.seconds
            count += not measured.isdisjoint(roots)
    notes = list(point.notes)
    seen = screened_range(study, known, point.phase)
    if seen and point.metric != "peak_memory" and point.points:
        low, high = (format_length(length, point.unit) for length in seen)
        depths = " and ".join(map(str, SCREENING_LAYERS))
        notes.append(
            f"where to measure was chosen by models of {depths} layers, from {low} to {high}; no number is theirs"
        )
    needed = needed_s(study, known, point.phase, pair, point.metric)
    if needed is not None and point.interval is not None:
        notes.append(
            f"its interval is wider than the +-{format_percent(study.precision)} asked for; about "
            f"{format_seconds(needed)} more would narrow it to that"
        )
    if needed is not None and point.verdict == "never":
        notes.append(f"a longer input would take about {format_seconds(needed)} more")
    return replace(point, sessions=count, seconds=seconds, needed_s=needed, notes=tuple(notes))


def _roots(outcomes: Sequence[Outcome], phase: str) -> set[str]:
    return {session_root(outcome.session) for outcome in outcomes if outcome.workload.phase == phase}


def run_batches(
    study: Study,
    store: Store,
    batch_sizes: Sequence[int],
    *,
    label: str = "",
    progress: Callable[[str], None] | None = None,
) -> list[StudyResult]:
    """Measure a study at several batch sizes, within its budget for all of them together.

    Args:
        study: What to compare.
        store: Where outcomes go; see `run_study`.
        batch_sizes: Sequences per call, each once.
        label: What to call this run.
        progress: Called with one line at a time.

    Returns:
        A result for each batch size, smallest first. What one leaves of its share of the budget goes to the next.

    Raises:
        InputError: If the study or a batch size is not legal.
        StoreError: If results cannot be written.
        AnswerError: If nothing could be measured at a batch size.
    """
    sizes = sorted(set(batch_sizes))
    results: list[StudyResult] = []
    for number, size in enumerate(sizes):
        left = study.budget_s - sum(result.seconds for result in results)
        share = study.replace(batch_size=size, budget_s=max(1.0, left / (len(sizes) - number)))
        if progress and len(sizes) > 1:
            progress(f"batch size {size}")
        results.append(run_study(share, store, label=label, progress=progress))
    return results


def find_tipping_point(
    baseline: str | Subject,
    variant: str | Subject,
    *,
    metric: str = "latency",
    phase: str = "inference",
    lengths: tuple[float, float],
    batch_size: int = 1,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    size: str = "base",
    compiled: bool = False,
    affinity: tuple[int, ...] | None = None,
    budget_s: float = 300.0,
    precision: float = 0.1,
    target: float = 0.02,
    repeats: int = 1,
    screening: bool = True,
    store: Store | str | PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> TippingPoint:
    """Find the length from which a variant stays better than a baseline, by measuring.

    Args:
        baseline: The subject to beat, such as "bert".
        variant: The subject that may be better, such as "bert@local:window=128".
        metric: "latency", "throughput" or "peak_memory".
        phase: "inference" or "training".
        lengths: Shortest and longest length to consider, in the native unit.
        batch_size: Of latency and peak memory; throughput is taken at each one's best batch size.
        device: "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" or "float16".
        threads: CPU threads; all usable cores by default.
        size: "base", "small" or "tiny".
        compiled: Whether models go through `torch.compile` first.
        affinity: Cores to pin measuring processes to.
        budget_s: Seconds of measuring.
        precision: The search ends when the 95 % interval reaches no further than this share of the length to either
            side.
        target: Timing at a length ends when the 95 % interval's half-width is below this share.
        repeats: Fresh processes of each subject to time at each length.
        screening: Whether models of 2 and 4 layers may tell where to measure; no number is theirs.
        store: Where results are kept and found again; None keeps nothing.
        progress: Called with one line at a time.

    Returns:
        Verdict, length and interval, the observations they rest on, what they cost and what is missing.

    Raises:
        InputError: If an argument is not legal.
        AnswerError: If nothing could be measured.
    """
    study = pair_study(
        baseline,
        variant,
        lengths=lengths,
        metrics=(metric,),
        phases=(phase,),
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        threads=threads,
        size=size,
        compiled=compiled,
        affinity=affinity,
        budget_s=budget_s,
        precision=precision,
        target=target,
        repeats=repeats,
        screening=screening,
    )
    with open_store(store) as opened:
        return run_study(study, opened, progress=progress).tipping_points[0]


def pair_study(
    baseline: str | Subject, variant: str | Subject, *, lengths: tuple[float, float], **options: Any
) -> Study:
    """Return the study that holds one variant against one baseline.

    Args:
        baseline: The subject to beat.
        variant: The subject that may be better.
        lengths: Shortest and longest length to consider.
        options: Further fields of `Study`.

    Raises:
        InputError: If a subject is not legal, or the two are of different modalities.
    """
    pair = (check_subject(Subject.parse(baseline)), check_subject(Subject.parse(variant)))
    return Study(
        name="find",
        modality=modality_of(pair),
        baselines=pair[:1],
        variants=pair[1:],
        lengths=lengths,
        **options,
    )


def _announce(study: Study, step: Step, spent_s: float) -> str:
    unit = architecture_of(study.baselines[0]).unit
    expected = f", about {format_seconds(step.expected_s)}" if step.expected_s else ""
    return (
        f"[{format_seconds(spent_s)} of {format_seconds(study.budget_s)}] {step.phase} at "
        f"{format_length(step.length, unit)} ({step.purpose}{expected}): "
        f"{', '.join(map(str, step.subjects))}"
    )
