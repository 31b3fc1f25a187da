"""Measure workloads side by side: memory and path of each one alone, then latency of all in paired rounds.

for each workload   fork | build | peak memory | path, oracle, FLOPs | exit
then together       fork | build | warm up |  A . B  B . A  ...  | exit     (parent asleep on a socket)
throughput          batch doubled until it no longer pays | paired rounds at the best batch
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tippingpoint.errors import InputError, TippingPointError
from tippingpoint.measurement import BEST_BATCH, Environment, Failure, Measurement, Memory, Outcome, Sample
from tippingpoint.models.catalog import architecture_of, check_subject
from tippingpoint.profiling.device import available_memory, now, settle
from tippingpoint.profiling.environment import usable_cores
from tippingpoint.profiling.memory import SAFE_SHARE, KnownPoints, activation_bytes
from tippingpoint.profiling.process import WorkerError, WorkerProcess
from tippingpoint.profiling.rounds import run_rounds
from tippingpoint.profiling.timing import WarmUp, calls_per_block
from tippingpoint.profiling.worker import Inspection
from tippingpoint.workload import Workload

logger = logging.getLogger(__name__)

MAX_BATCH_SIZE = 256
# A doubled batch must give at least this much more throughput to be worth it.
BATCH_GAIN = 0.05
# One call of the largest batch may take this share of the time for all timed rounds.
_BATCH_CALL_SHARE = 0.1
# Parts of a length at which memory is measured before the whole is refused.
_PROBE_SHARES = (64, 32)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to try.

    Attributes:
        target: Half-width of the 95 % interval to reach, as a share.
        budget_s: Seconds for the timed rounds of one session; at least four rounds are run.
        timeout_s: Seconds after which a single answer of a worker is given up.
    """

    target: float = 0.02
    budget_s: float = 30.0
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class _Alone:
    """What a workload's own process told."""

    environment: Environment
    parameters: int
    memory: Memory
    inspection: Inspection


class _Arm:
    """A workload on its way through a session, and its worker while it has one.

    A question that fails records a `Failure` for the workload as it stands and re-raises.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.architecture = architecture_of(workload.subject)
        self.name = str(workload.subject)
        self.batch_size = workload.batch_size
        self.alone: _Alone | None = None
        self.outcomes: list[Outcome] = []
        self.batch_curve: dict[int, float] = {}
        self.largest_batch = MAX_BATCH_SIZE
        self.worker: WorkerProcess | None = None

    @property
    def positions(self) -> int:
        return self.architecture.positions(self.workload.length)

    @contextmanager
    def process(self, effort: Effort) -> Iterator[WorkerProcess]:
        """Live in a fresh process for a while."""
        assert self.workload.threads is not None, "threads were resolved"
        try:
            started = WorkerProcess(self.workload.device, self.workload.threads, timeout_s=effort.timeout_s)
        except WorkerError as error:
            raise TippingPointError(f"a measuring process could not start: {error}") from error
        with started as worker:
            self.worker = worker
            try:
                yield worker
            finally:
                self.worker = None

    def ask(self, session: str, method: str, *arguments: Any) -> Any:
        """Ask the worker; record the failure if there is one."""
        assert self.worker is not None
        try:
            return self.worker.ask(method, *arguments)
        except WorkerError as error:
            self.fail(session, self.worker.environment, error)
            self.worker.close()
            raise

    def fail(self, session: str, environment: Environment, error: WorkerError) -> None:
        """Record that the workload could not be measured."""
        logger.debug("%s: %s", self.workload, error.trace or error)
        self.outcomes.append(
            Failure(
                workload=self.workload,
                environment=environment,
                session=session,
                kind=error.kind,
                message=str(error),
                positions=self.positions,
                refused=error.refused is not None,
            )
        )


def resolve_workload(workload: Workload) -> Workload:
    """Return the workload with options written out, threads resolved and its length checked.

    Raises:
        InputError: If the catalogue knows it cannot be.
    """
    subject = check_subject(workload.subject)
    architecture_of(subject).check_length(workload.length)
    return workload.replace(subject=subject, threads=workload.threads or usable_cores())


def profile(
    workload: Workload,
    *,
    target: float = 0.02,
    budget_s: float = 30.0,
    timeout_s: float = 600.0,
    progress: Progress | None = None,
) -> Measurement | Failure:
    """Measure one workload: latency, peak memory, FLOPs, parameters, and the path that really ran.

    Args:
        workload: What to measure.
        target: Stop when the half-width of the latency's 95 % interval is below this share of it.
        budget_s: Seconds of timed rounds at most (four rounds are run in any case).
        timeout_s: Give a single step up after this many seconds.
        progress: Called with one line at a time.

    Returns:
        A `Measurement`; or a `Failure` if the workload runs out of memory, crashes, takes too long or is
        unsupported.

    Raises:
        InputError: If the workload itself is not legal.
    """
    effort = Effort(target=target, budget_s=budget_s, timeout_s=timeout_s)
    return measure_together([workload], effort=effort, progress=progress)[0]


def measure_together(
    workloads: Sequence[Workload],
    *,
    baselines: int = 1,
    effort: Effort | None = None,
    largest_batches: Sequence[int | None] | None = None,
    known: Sequence[KnownPoints] | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Measure workloads in one interleaved session.

    Args:
        workloads: What to measure; the first `baselines` of them are what the others are held against.
        baselines: How many of the workloads are baselines.
        effort: When to stop.
        largest_batches: For each workload, the largest batch size to try (None: 256) in looking for the one
            with the best throughput; None does not look.
        known: For each workload, the memory that shorter lengths of its subject needed.
        progress: Called with one line at a time.

    Returns:
        One outcome for each workload, in order, and after them those at other batch sizes.

    Raises:
        InputError: If a workload itself is not legal, or a subject stands twice.
    """
    effort = effort or Effort()
    say = progress or (lambda line: logger.info("%s", line))
    session = uuid.uuid4().hex[:12]
    arms = [_Arm(resolve_workload(workload)) for workload in workloads]
    twice = {arm.name for arm in arms if sum(other.name == arm.name for other in arms) > 1}
    if twice:
        raise InputError(f"each subject can stand once in a session, {', '.join(sorted(twice))} stands twice")
    for arm, limit in zip(arms, largest_batches or [None] * len(arms), strict=True):
        arm.largest_batch = limit or MAX_BATCH_SIZE
    for arm, points in zip(arms, known or [()] * len(arms), strict=True):
        say(f"{arm.name}: peak memory, FLOPs and what really runs")
        with contextlib.suppress(WorkerError):
            arm.alone = _measure_alone(arm, points, effort, session)
    compared = {arm.name for arm in arms[:baselines]}
    for number, group in enumerate(_groups_that_fit([arm for arm in arms if arm.alone], compared)):
        _measure_group(group, compared, effort, f"{session}-{number}", say, throughput=largest_batches is not None)
    return [arm.outcomes[0] for arm in arms] + [late for arm in arms for late in arm.outcomes[1:]]


def _measure_alone(arm: _Arm, known: KnownPoints, effort: Effort, session: str) -> _Alone:
    """Measure memory and path in a process of the workload's own, unless it cannot fit.

    A bound in closed form may refuse what would fit; before it is believed, shorter inputs are measured.
    """
    try:
        return _inspect(arm, known, effort, session)
    except WorkerError as error:
        if error.refused != "bound":
            raise
    arm.outcomes.clear()
    points: list[tuple[int, int]] = []
    for share in _PROBE_SHARES:
        shorter = _Arm(arm.workload.replace(length=arm.architecture.nearest_legal(arm.workload.length / share)))
        try:
            alone = _inspect(shorter, points, effort, session)
        except WorkerError as error:
            # What does not fit at a small part of the length does not fit at the whole of it.
            message = f"{error} (already for a length of {shorter.workload.length:g})"
            arm.outcomes += [
                replace(lost, workload=arm.workload, positions=arm.positions, message=message)
                for lost in shorter.outcomes
                if isinstance(lost, Failure)
            ]
            raise error
        points.append(_memory_point(shorter, alone))
    return _inspect(arm, points, effort, session)


def _memory_point(arm: _Arm, alone: _Alone) -> tuple[int, int]:
    return arm.positions, activation_bytes(arm.workload, alone.memory, alone.parameters)


def _inspect(arm: _Arm, known: KnownPoints, effort: Effort, session: str) -> _Alone:
    with arm.process(effort) as worker:
        parameters = arm.ask(session, "build", arm.workload, known)
        memory = arm.ask(session, "measure_memory")
        return _Alone(worker.environment, parameters, memory, arm.ask(session, "inspect"))


def _groups_that_fit(arms: list[_Arm], baselines: set[str]) -> Iterator[list[_Arm]]:
    """Split arms into groups that can be alive together: all of them, or pairs with a baseline, or one by one.

    Only groups that hold a baseline give paired ratios; what fits nowhere else is measured alone.
    """
    if not arms:
        return
    # On CUDA an arm that does not fit beside the others fails on its own; the host's memory must be guarded.
    room = SAFE_SHARE * available_memory() if arms[0].workload.device == "cpu" else float("inf")

    def fits(group: list[_Arm]) -> bool:
        return sum(arm.alone.memory.peak_bytes for arm in group if arm.alone) <= room

    anchors = [arm for arm in arms if arm.name in baselines]
    others = [arm for arm in arms if arm.name not in baselines]
    if fits(arms):
        yield arms
    elif anchors and all(fits([*anchors, other]) for other in others):
        yield from ([*anchors, other] for other in others)
    else:
        yield from ([arm] for arm in arms)


def _measure_group(
    arms: list[_Arm], baselines: set[str], effort: Effort, session: str, say: Progress, *, throughput: bool
) -> None:
    """Time arms that are alive together, then look for their best batch sizes."""
    with ExitStack() as stack:
        alive = []
        for arm in arms:
            assert arm.alone is not None
            # A baseline may have been in an earlier group, and left it at another batch size.
            arm.workload = arm.workload.replace(batch_size=arm.batch_size)
            stack.enter_context(arm.process(effort))
            with contextlib.suppress(WorkerError):
                arm.ask(session, "build", arm.workload, (_memory_point(arm, arm.alone),))
                alive.append(arm)
        say(f"latency of {', '.join(arm.name for arm in alive)}")
        alive = _time(alive, baselines, effort, session)
        if not throughput:
            return
        session += BEST_BATCH
        for arm in list(alive):
            say(f"{arm.name}: best batch size")
            with contextlib.suppress(WorkerError):
                _set_best_batch_size(arm, session, _BATCH_CALL_SHARE * effort.budget_s)
                continue
            alive.remove(arm)
        if any(arm.workload.batch_size != arm.batch_size for arm in alive):
            say(f"throughput of {', '.join(f'{arm.name} (batch {arm.workload.batch_size})' for arm in alive)}")
            _time(alive, baselines, effort, session)


def _time(arms: list[_Arm], baselines: set[str], effort: Effort, session: str) -> list[_Arm]:
    """Warm arms up, run paired rounds and record them; return the arms that came through.

    An arm that fails on the way records itself and is dropped, and the rounds start again without it.
    """
    while arms:
        failures = {arm.name: len(arm.outcomes) for arm in arms}
        try:
            warm = {arm.name: arm.ask(session, "warm_up") for arm in arms}
            rounds = run_rounds(
                {arm.name: (_Timed(arm, session), warm[arm.name][1]) for arm in arms},
                sorted(baselines),
                target=effort.target,
                budget_s=effort.budget_s,
                clock=now,
            )
        except WorkerError:
            arms = [arm for arm in arms if len(arm.outcomes) == failures[arm.name]]
            continue
        for arm in arms:
            record, _ = warm[arm.name]
            arm.outcomes.append(_measurement(arm, session, record, rounds.samples[arm.name], rounds.stop_reason))
        break
    return arms


@dataclass(frozen=True, slots=True)
class _Timed:
    """An arm as the rounds see it."""

    arm: _Arm
    session: str

    def time_block(self, calls: int) -> tuple[float, float | None]:
        settle()
        return self.arm.ask(self.session, "time_block", calls)


def _measurement(
    arm: _Arm, session: str, warm_up: WarmUp, samples: tuple[Sample, ...], stop_reason: str
) -> Measurement:
    """Put together what an arm's processes told; memory and FLOPs belong to the first batch size only."""
    alone = arm.alone
    assert alone is not None
    # A baseline that stands in several groups has its memory beside each of the others.
    own = not session.endswith(BEST_BATCH)
    notes = alone.inspection.notes
    if not warm_up.settled:
        notes += ("timing began before calls had settled (the warm-up reached its cap)",)
    return Measurement(
        workload=arm.workload,
        environment=alone.environment,
        session=session,
        positions=arm.positions,
        executed_positions=arm.architecture.executed_positions(arm.workload.length),
        parameters=alone.parameters,
        attention=alone.inspection.attention,
        warm_ups_s=(warm_up.per_call_s,),
        samples=samples,
        stop_reason=stop_reason,
        memory=alone.memory if own else None,
        flops=alone.inspection.flops if own else None,
        batch_curve=tuple(sorted(arm.batch_curve.items())),
        notes=notes,
    )


def _set_best_batch_size(arm: _Arm, session: str, longest_call_s: float) -> None:
    """Double an arm's batch while that gives at least 5 % more throughput and fits; leave it at the best.

    A batch that would take longer than `longest_call_s` is not tried: the budget is for the comparison.
    """
    assert arm.alone is not None
    base = arm.batch_size
    measured = arm.outcomes[0]
    assert isinstance(measured, Measurement)
    arm.batch_curve[base] = measured.sequences_per_s
    best = base
    per_sequence = _memory_point(arm, arm.alone)[1] / base
    while best * 2 <= arm.largest_batch:
        size = best * 2
        if size / arm.batch_curve[best] > longest_call_s:
            break
        if size * per_sequence > SAFE_SHARE * arm.ask(session, "available_bytes"):
            break
        arm.workload = arm.workload.replace(batch_size=size)
        arm.ask(session, "set_batch_size", size)
        first, _ = arm.ask(session, "time_block", 1)
        calls = calls_per_block(first)
        blocks = [arm.ask(session, "time_block", calls)[0] / calls for _ in range(3 if first < 1 else 1)]
        arm.batch_curve[size] = size / statistics.median(blocks)
        if arm.batch_curve[size] < (1 + BATCH_GAIN) * arm.batch_curve[best]:
            break
        best = size
    arm.workload = arm.workload.replace(batch_size=best)
    arm.ask(session, "set_batch_size", best)
    arm.outcomes[0] = replace(measured, batch_curve=tuple(sorted(arm.batch_curve.items())))
