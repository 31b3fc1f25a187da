"""Run a person's real batches: memory and path of each subject alone, then every batch for all subjects in turn.

for each subject    fork | build for the longest | peak of the most demanding batches | path, oracle | exit
then together       fork | build | largest batch once | warm up |  batch 1: A B   batch 2: B A   batch 3: ...  | exit
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from tippingpoint.analysis.replay import ReplayBatch, Replayed, seconds_per_item
from tippingpoint.errors import InputError
from tippingpoint.machine import Environment
from tippingpoint.measurement import Failure, Sample
from tippingpoint.profiling.device import available_memory, now, settle
from tippingpoint.profiling.memory import SAFE_SHARE, KnownPoints
from tippingpoint.profiling.process import WorkerError
from tippingpoint.profiling.session import (
    Arm,
    Effort,
    alone_on_machine,
    measure_alone,
    memory_point,
    resolve_workload,
)
from tippingpoint.units import format_percent, format_seconds
from tippingpoint.workload import Workload

# Batches are run until the mean is known so well, ...
TARGET = 0.02
# ... but not before so many, whose spread could be luck; and not fewer than this whatever they take.
MIN_BATCHES = 20
_FEWEST = 2

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ReplayRun:
    """What running batches gave: each subject's part, where, and why it ended."""

    subjects: tuple[Replayed, ...]
    environment: Environment
    stop_reason: str


class _Arm(Arm):
    """A subject on its way through a replay."""

    def __init__(self, workload: Workload, known: KnownPoints) -> None:
        super().__init__(workload)
        self.known = known
        self.found = Replayed(subject=workload.subject)
        self.environment: Environment | None = None
        self.samples: list[Sample] = []

    def result(self, batches: Sequence[ReplayBatch]) -> Replayed:
        failure = next((outcome for outcome in self.outcomes if isinstance(outcome, Failure)), None)
        ran = list(zip(batches, self.samples, strict=False))
        return replace(
            self.found,
            batches=tuple(batch for batch, _ in ran if batch.items),
            samples=tuple(sample for batch, sample in ran if batch.items),
            anchors=tuple(sample for batch, sample in ran if not batch.items),
            failure=failure,
        )


def run_batches(
    workloads: Sequence[Workload],
    batches: Sequence[ReplayBatch],
    largest: Sequence[ReplayBatch],
    *,
    known: Sequence[KnownPoints] | None = None,
    target: float = TARGET,
    budget_s: float = 90.0,
    timeout_s: float = 600.0,
    seed: int = 0,
    progress: Progress,
) -> ReplayRun:
    """Run batches for several subjects, the same batch for each in turn, in an order that is turned round each time.

    Args:
        workloads: One for each subject, of the length and the batch size of the longest batch.
        batches: In random order: the first of them are a sample of all; with anchors among them, or without.
        largest: What peak memory is measured on.
        known: For each workload, the memory that shorter lengths of its subject needed.
        target: Half-width of the 95 % interval of the mean seconds per item to reach for every subject.
        budget_s: Seconds of running batches; two are run whatever they take.
        timeout_s: Give a single batch up after this many seconds.
        seed: Of the inputs.
        progress: Called with one line at a time.

    Raises:
        InputError: If a workload is not legal, or a subject stands twice.
    """
    session, effort = uuid.uuid4().hex[:12], Effort(timeout_s=timeout_s)
    arms = [
        _Arm(resolve_workload(workload), points)
        for workload, points in zip(workloads, known or [()] * len(workloads), strict=True)
    ]
    twice = {arm.name for arm in arms if sum(other.name == arm.name for other in arms) > 1}
    if twice:
        raise InputError(f"each subject can stand once in a replay, {', '.join(sorted(twice))} stands twice")
    with alone_on_machine(arms, progress):
        for arm in arms:
            progress(f"{arm.name}: peak memory of the largest batches, and what really runs")
            with contextlib.suppress(WorkerError):
                _alone(arm, largest, effort, session)
        timing = _Timing(batches, target, budget_s, seed, effort, session, progress)
        reasons = [timing.run(group, largest[-1]) for group in _groups([arm for arm in arms if not arm.outcomes])]
    # A process tells where it runs as it comes up, whatever happens to its subject afterwards.
    environment = next(arm.environment for arm in arms if arm.environment)
    reason = "; ".join(dict.fromkeys(reasons)) or "no subject could run"
    return ReplayRun(tuple(arm.result(batches) for arm in arms), environment, reason)


def _alone(arm: _Arm, largest: Sequence[ReplayBatch], effort: Effort, session: str) -> None:
    """Measure peak memory on the largest batches, and see what runs, in a process of the subject's own."""
    try:
        _inspect(arm, largest, effort, session)
    except WorkerError as error:
        if error.refused != "bound":
            raise
        # A bound in closed form may refuse what fits; shorter inputs tell.
        arm.outcomes.clear()
        arm.known = (memory_point(arm, measure_alone(arm, (), effort, session)),)
        _inspect(arm, largest, effort, session)


def _inspect(arm: _Arm, largest: Sequence[ReplayBatch], effort: Effort, session: str) -> None:
    with arm.process(effort) as worker:
        arm.environment = worker.environment
        arm.ask(session, "build", arm.workload, arm.known, None)
        sizes = tuple((batch.length, batch.lengths) for batch in largest)
        peak, method = arm.ask(session, "measure_peak", sizes)
        inspection = arm.ask(session, "inspect")
        arm.found = replace(
            arm.found,
            peak_bytes=peak,
            memory_method=method,
            attention=inspection.attention,
            notes=inspection.notes,
        )


def _groups(arms: list[_Arm]) -> Iterable[list[_Arm]]:
    """Yield the subjects together if they fit into memory beside each other, one by one otherwise."""
    if not arms:
        return
    room = SAFE_SHARE * available_memory() if arms[0].workload.device == "cpu" else float("inf")
    if sum(arm.found.peak_bytes or 0 for arm in arms) <= room:
        yield arms
    else:
        yield from ([arm] for arm in arms)


@dataclass(frozen=True, slots=True)
class _Timing:
    """Batches to time, and when to stop."""

    batches: Sequence[ReplayBatch]
    target: float
    budget_s: float
    seed: int
    effort: Effort
    session: str
    say: Progress

    def run(self, arms: list[_Arm], largest: ReplayBatch) -> str:
        """Time batches for subjects that are alive together; return why that ended."""
        with ExitStack() as stack:
            for arm in list(arms):
                stack.enter_context(arm.process(self.effort))
                try:
                    self._warm(arm, largest)
                except WorkerError:
                    arms.remove(arm)
            self.say(f"batches of {', '.join(arm.name for arm in arms)}")
            begin = now()
            count = 0
            for number, batch in enumerate(self.batches):
                for place, arm in enumerate(arms[:: -1 if number % 2 else 1]):
                    try:
                        self._time(arm, batch, number, place, begin)
                    except WorkerError:
                        arms.remove(arm)
                if not arms:
                    return "no subject could go on"
                count += bool(batch.items)
                elapsed = now() - begin
                if number == len(self.batches) - 1 or not batch.items:
                    continue
                if count >= MIN_BATCHES and all(self._is_narrow(arm) for arm in arms):
                    return f"95 % interval within {format_percent(self.target)} after {count} batches"
                if count >= _FEWEST and elapsed + elapsed / count > self.budget_s:
                    return f"time budget of {format_seconds(self.budget_s)} after {count} batches"
            return "all batches were run"

    def _warm(self, arm: _Arm, largest: ReplayBatch) -> None:
        """Run the largest batch once, so that memory has been touched, and one in the middle until it has settled."""
        arm.ask(self.session, "build", arm.workload, arm.known, None)
        arm.ask(self.session, "feed", largest.length, largest.lengths)
        arm.ask(self.session, "warm_up", True)
        middle = sorted(self.batches, key=lambda batch: batch.length * len(batch.lengths))[len(self.batches) // 2]
        arm.ask(self.session, "feed", middle.length, middle.lengths)
        arm.ask(self.session, "warm_up")

    def _time(self, arm: _Arm, batch: ReplayBatch, number: int, place: int, begin: float) -> None:
        assert arm.watch is not None, "the subject lives in a process"
        settle()
        started = now() - begin
        arm.watch.begin()
        calls, seconds, device_seconds = arm.ask(
            self.session, "time_batch", batch.length, batch.lengths, self.seed + number
        )
        arm.samples.append(
            Sample(
                round=number,
                order=place,
                started_s=started,
                calls=calls,
                seconds=seconds,
                device_seconds=device_seconds,
                conditions=arm.watch.end(),
            )
        )

    def _is_narrow(self, arm: _Arm) -> bool:
        seconds = np.array([sample.per_call_s for sample in arm.samples])
        items = np.array([batch.items for batch in self.batches[: len(seconds)]])
        found = seconds_per_item(seconds[items > 0], items[items > 0])
        return found.high - found.low <= 2 * self.target * found.value
