"""Measure workloads side by side: memory and path of each one alone, then latency of all in paired rounds.

for each workload   fork | build | peak memory | path, oracle, FLOPs | exit
then together       fork | build | warm up |  A . B  B . A  ...  | exit     (parent asleep on a socket)
                    again, in fresh processes, as often as `repeats` says
throughput          batch doubled until it no longer pays | the same at the best batch
energy              one workload at a time, in windows of seconds
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tippingpoint.errors import InputError, TippingPointError
from tippingpoint.machine import Environment, Peaks
from tippingpoint.measurement import BEST_BATCH, LOOK, Energy, Failure, Measurement, Memory, Outcome, Sample
from tippingpoint.models.catalog import architecture_of, check_subject
from tippingpoint.profiling.answers import Inspection
from tippingpoint.profiling.conditions import Watch
from tippingpoint.profiling.device import available_memory, now, settle
from tippingpoint.profiling.exclusive import exclusively
from tippingpoint.profiling.hardware import usable_cores
from tippingpoint.profiling.memory import SAFE_SHARE, KnownPoints, activation_bytes
from tippingpoint.profiling.process import WorkerError, WorkerProcess
from tippingpoint.profiling.rounds import MIN_ROUNDS, Block, Rounds, run_rounds
from tippingpoint.profiling.timing import WarmUp, calls_per_block
from tippingpoint.workload import Workload

logger = logging.getLogger(__name__)

MAX_BATCH_SIZE = 256
# A doubled batch must give at least this much more throughput to be worth it.
BATCH_GAIN = 0.05
# One call of the largest batch may take this share of the time for all timed rounds.
_BATCH_CALL_SHARE = 0.1
# Parts of a length at which memory is measured before the whole is refused.
_PROBE_SHARES = (64, 32)
_BRIEF_ROUNDS = 2
# How fast the machine is: by fingerprint of the environment, device and dtype.
_PEAKS: dict[tuple[str, str, str], Peaks] = {}

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to try.

    Attributes:
        target: Half-width of the 95 % interval to reach, as a share.
        budget_s: Seconds for the timed rounds of one session, all its processes together; at least four rounds
            are run in each.
        timeout_s: Seconds after which a single answer of a worker is given up.
        repeats: How many processes of each subject are timed, one after the other.
        energy: Whether to read energy counters, which takes 10 s and more for each workload.
        brief: Time two rounds after two calls, and no more: where time is not what is asked for.
    """

    target: float = 0.02
    budget_s: float = 30.0
    timeout_s: float = 600.0
    repeats: int = 1
    energy: bool = False
    brief: bool = False


@dataclass(frozen=True, slots=True)
class Alone:
    """What a workload's own process told."""

    environment: Environment
    parameters: int
    memory: Memory
    inspection: Inspection
    peaks: Peaks


class Arm:
    """A workload on its way through a session, and its worker while it has one.

    A question that fails records a `Failure` for the workload as it stands and re-raises.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.architecture = architecture_of(workload.subject)
        shallow = "" if workload.layers is None else f" ({workload.layers} layers)"
        self.name = f"{workload.subject}{shallow}"
        self.batch_size = workload.batch_size
        self.alone: Alone | None = None
        self.outcomes: list[Outcome] = []
        self.batch_curve: dict[int, float] = {}
        self.largest_batch = MAX_BATCH_SIZE
        self.worker: WorkerProcess | None = None
        self.watch: Watch | None = None
        self.cache: str | None = None

    @property
    def positions(self) -> int:
        """Sequence positions of one input."""
        return self.architecture.positions(self.workload.length)

    @contextmanager
    def process(self, effort: Effort) -> Iterator[WorkerProcess]:
        """Live in a fresh process for a while."""
        assert self.workload.threads is not None, "threads were resolved"
        try:
            started = WorkerProcess(
                self.workload.device,
                self.workload.threads,
                affinity=self.workload.affinity,
                timeout_s=effort.timeout_s,
            )
        except WorkerError as error:
            raise TippingPointError(f"a measuring process could not start: {error}") from error
        with started as worker:
            self.worker = worker
            # CUDA and the driver may number GPUs in different orders. If it dies of that, so does the next question.
            uuid = ""
            if self.workload.device != "cpu":
                with contextlib.suppress(WorkerError):
                    uuid = worker.ask("device_uuid")
            self.watch = Watch(self.workload.device, worker.pid, uuid=uuid)
            try:
                yield worker
            finally:
                self.watch.close()
                self.worker = self.watch = None

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
    return workload.replace(subject=subject, threads=workload.threads or default_threads(workload.affinity))


def default_threads(affinity: tuple[int, ...] | None) -> int:
    """Return how many threads compute where nothing else is said: one for each core that may be used."""
    return len(affinity) if affinity else usable_cores()


def alone_on_machine(arms: Sequence[Arm], progress: Progress) -> AbstractContextManager[None]:
    """Have the device and the cores of a session's arms to oneself; see `exclusively`.

    Raises:
        InputError: If the arms are not all on one device.
    """
    devices = {arm.workload.device: None for arm in arms}
    if len(devices) > 1:
        raise InputError(f"a session measures on one device, got {' and '.join(devices)}; measure them one by one")
    pinned = [arm.workload.affinity for arm in arms]
    cores = None if None in pinned else {core for some in pinned for core in some or ()}
    return exclusively(next(iter(devices), "cpu"), cores, progress=progress)


def profile(
    workload: Workload,
    *,
    target: float = 0.02,
    budget_s: float = 30.0,
    repeats: int = 1,
    energy: bool = False,
    timeout_s: float = 600.0,
    progress: Progress | None = None,
) -> Measurement | Failure:
    """Measure one workload: latency, peak memory, FLOPs, parameters, and the path that really ran.

    Args:
        workload: What to measure.
        target: Stop when the half-width of the latency's 95 % interval is below this share of it.
        budget_s: Seconds of timed rounds at most (four rounds are run in any case).
        repeats: Fresh processes to time, one after the other.
        energy: Whether to read energy counters too (10 s and more).
        timeout_s: Give a single step up after this many seconds.
        progress: Called with one line at a time.

    Returns:
        A `Measurement`; or a `Failure` if the workload runs out of memory, crashes, takes too long or is
        unsupported.

    Raises:
        InputError: If the workload itself is not legal.
    """
    effort = Effort(target=target, budget_s=budget_s, timeout_s=timeout_s, repeats=repeats, energy=energy)
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
    arms = [Arm(resolve_workload(workload)) for workload in workloads]
    twice = {arm.name for arm in arms if sum(other.name == arm.name for other in arms) > 1}
    if twice:
        raise InputError(f"each subject can stand once in a session, {', '.join(sorted(twice))} stands twice")
    for arm, limit in zip(arms, largest_batches or [None] * len(arms), strict=True):
        arm.largest_batch = limit or MAX_BATCH_SIZE
    with alone_on_machine(arms, say), _compiler_cache(arms) as cache:
        for arm, points in zip(arms, known or [()] * len(arms), strict=True):
            say(f"{arm.name}: peak memory, FLOPs and what really runs")
            arm.cache = cache
            with contextlib.suppress(WorkerError):
                arm.alone = measure_alone(arm, points, effort, session)
        compared = {arm.name for arm in arms[:baselines]}
        for number, group in enumerate(_groups_that_fit([arm for arm in arms if arm.alone], compared)):
            timing = _Timing(group, compared, effort, f"{session}-{number}", say)
            timing.latency(find_batches=largest_batches is not None)
            if largest_batches is not None:
                timing.throughput()
        if effort.energy:
            for arm in arms:
                _measure_energy(arm, effort, say)
    return [arm.outcomes[0] for arm in arms] + [late for arm in arms for late in arm.outcomes[1:]]


def screen(
    workloads: Sequence[Workload],
    *,
    effort: Effort | None = None,
    known: Sequence[KnownPoints] | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Look at workloads roughly, all of them side by side: two rounds, no path check, no memory, no FLOPs.

    For deciding what to measure; not for numbers that anybody reports.

    Args:
        workloads: What to look at, mostly models of few layers.
        effort: Its time budget and timeouts.
        known: For each workload, the memory that shorter lengths of its subject needed.
        progress: Called with one line at a time.

    Returns:
        One outcome for each workload, in order.

    Raises:
        InputError: If a workload itself is not legal.
    """
    effort = replace(effort or Effort(), brief=True, repeats=1)
    say = progress or (lambda line: logger.info("%s", line))
    session = uuid.uuid4().hex[:12] + LOOK
    arms = [Arm(resolve_workload(workload)) for workload in workloads]
    with alone_on_machine(arms, say), ExitStack() as stack:
        environments: dict[str, tuple[Environment, int]] = {}
        for arm, points in zip(arms, known or [()] * len(arms), strict=True):
            worker = stack.enter_context(arm.process(effort))
            with contextlib.suppress(WorkerError):
                environments[arm.name] = worker.environment, arm.ask(session, "build", arm.workload, points, None)
        taken = _Taken(session)
        say(f"a look at {_list(arms)}")
        built = [arm for arm in arms if arm.name in environments]
        for arm in _Timing(built, set(), effort, session, say).rounds(built, taken, 0):
            environment, parameters = environments[arm.name]
            arm.outcomes.append(
                Measurement(
                    workload=arm.workload,
                    environment=environment,
                    session=session,
                    positions=arm.positions,
                    executed_positions=arm.architecture.executed_positions(arm.workload.length),
                    parameters=parameters,
                    attention="not looked at",
                    warm_ups_s=tuple(warm_up.per_call_s for warm_up in taken.warm_ups[arm.name]),
                    samples=taken.samples[arm.name],
                    stop_reason="; ".join(taken.stop_reasons),
                    notes=("a rough look, for deciding what to measure",),
                )
            )
    return [arm.outcomes[0] for arm in arms]


def measure_alone(arm: Arm, known: KnownPoints, effort: Effort, session: str) -> Alone:
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
        shorter = Arm(arm.workload.replace(length=arm.architecture.nearest_legal(arm.workload.length / share)))
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
        points.append(memory_point(shorter, alone))
    return _inspect(arm, points, effort, session)


def memory_point(arm: Arm, alone: Alone) -> tuple[int, int]:
    """Return positions and activations of a workload whose memory was measured."""
    return arm.positions, activation_bytes(arm.workload, alone.memory, alone.parameters)


def _inspect(arm: Arm, known: KnownPoints, effort: Effort, session: str) -> Alone:
    with arm.process(effort) as worker:
        parameters = arm.ask(session, "build", arm.workload, known, arm.cache)
        memory = arm.ask(session, "measure_memory")
        inspection = arm.ask(session, "inspect")
        # Once for each environment and dtype: the machine does not get faster.
        key = (worker.environment.fingerprint, arm.workload.device, arm.workload.dtype)
        if key not in _PEAKS:
            _PEAKS[key] = arm.ask(session, "peaks", arm.workload.dtype)
        return Alone(worker.environment, parameters, memory, inspection, _PEAKS[key])


def _groups_that_fit(arms: list[Arm], baselines: set[str]) -> Iterator[list[Arm]]:
    """Split arms into groups that can be alive together: all of them, or pairs with a baseline, or one by one.

    Only groups that hold a baseline give paired ratios; what fits nowhere else is measured alone.
    """
    if not arms:
        return
    # On CUDA an arm that does not fit beside the others fails on its own; the host's memory must be guarded.
    room = SAFE_SHARE * available_memory() if arms[0].workload.device == "cpu" else float("inf")

    def fits(group: list[Arm]) -> bool:
        return sum(arm.alone.memory.peak_bytes for arm in group if arm.alone) <= room

    anchors = [arm for arm in arms if arm.name in baselines]
    others = [arm for arm in arms if arm.name not in baselines]
    if fits(arms):
        yield arms
    elif anchors and all(fits([*anchors, other]) for other in others):
        yield from ([*anchors, other] for other in others)
    else:
        yield from ([arm] for arm in arms)


class _Timing:
    """A group of arms timed in rounds: in as many processes as the effort says, then again at the best batch.

    Args:
        arms: Alive together.
        baselines: Names of those that the others are held against.
        effort: When to stop.
        session: Name of the session, the group included.
        say: Takes a line of progress.
    """

    def __init__(self, arms: list[Arm], baselines: set[str], effort: Effort, session: str, say: Progress) -> None:
        self.arms = arms
        self.baselines = baselines
        self.effort = effort
        self.session = session
        self.say = say
        for arm in arms:
            # A baseline may have been in an earlier group, and left it at another batch size.
            arm.workload = arm.workload.replace(batch_size=arm.batch_size)

    def latency(self, *, find_batches: bool) -> None:
        """Time all arms at the batch size that was asked for; look for the best one in the last processes."""
        taken = _Taken(self.session)
        for process in range(self.effort.repeats):
            with self._alive(self.session) as alive:
                self.say(f"latency of {_list(alive)}{self._ordinal(process)}")
                self.arms = self.rounds(alive, taken, process)
                if process < self.effort.repeats - 1:
                    continue
                self._record(taken)
                if find_batches:
                    self._find_batches()

    def throughput(self) -> None:
        """Time all arms again, each at its best batch size, unless that is the one they were timed at."""
        if all(arm.workload.batch_size == arm.batch_size for arm in self.arms):
            return
        session = self.session + BEST_BATCH
        taken = _Taken(session)
        for process in range(self.effort.repeats):
            with self._alive(session) as alive:
                named = ", ".join(f"{arm.name} (batch {arm.workload.batch_size})" for arm in alive)
                self.say(f"throughput of {named}{self._ordinal(process)}")
                self.arms = self.rounds(alive, taken, process)
        self._record(taken)

    def _ordinal(self, process: int) -> str:
        return f" (process {process + 1} of {self.effort.repeats})" if self.effort.repeats > 1 else ""

    @contextmanager
    def _alive(self, session: str) -> Iterator[list[Arm]]:
        """Build every arm in a fresh process; those that fail record themselves and are left out."""
        with ExitStack() as stack:
            alive = []
            for arm in self.arms:
                assert arm.alone is not None
                stack.enter_context(arm.process(self.effort))
                with contextlib.suppress(WorkerError):
                    arm.ask(session, "build", arm.workload, (memory_point(arm, arm.alone),), arm.cache)
                    alive.append(arm)
            yield alive

    def rounds(self, arms: list[Arm], taken: _Taken, process: int) -> list[Arm]:
        """Warm arms up and run paired rounds; return the arms that came through.

        An arm that fails on the way records itself and is dropped, and the rounds start again without it.
        """
        while arms:
            failures = {arm.name: len(arm.outcomes) for arm in arms}
            turns: list[str] = []
            try:
                warm = {arm.name: arm.ask(taken.session, "warm_up", self.effort.brief) for arm in arms}
                if taken.begin is None:
                    taken.begin = now()
                rounds = run_rounds(
                    {arm.name: (_Timed(arm, taken.session, turns), warm[arm.name][1]) for arm in arms},
                    sorted(self.baselines),
                    target=self.effort.target,
                    budget_s=self.effort.budget_s / self.effort.repeats,
                    clock=now,
                    process=process,
                    origin=taken.begin,
                    fewest=_BRIEF_ROUNDS if self.effort.brief else MIN_ROUNDS,
                )
            except WorkerError:
                arms = [arm for arm in arms if len(arm.outcomes) == failures[arm.name]]
                continue
            for arm in arms:
                taken.add(arm.name, warm[arm.name][0], rounds)
            break
        return arms

    def _record(self, taken: _Taken) -> None:
        for arm in self.arms:
            arm.outcomes.append(_measurement(arm, taken))

    def _find_batches(self) -> None:
        for arm in list(self.arms):
            self.say(f"{arm.name}: best batch size")
            try:
                _set_best_batch_size(arm, self.session + BEST_BATCH, _BATCH_CALL_SHARE * self.effort.budget_s)
            except WorkerError:
                self.arms.remove(arm)


class _Taken:
    """What the processes of one session have given so far, by arm."""

    def __init__(self, session: str) -> None:
        self.session = session
        # The clock when the first block began.
        self.begin: float | None = None
        self.warm_ups: dict[str, list[WarmUp]] = {}
        self.samples: dict[str, tuple[Sample, ...]] = {}
        self.stop_reasons: list[str] = []

    def add(self, name: str, warm_up: WarmUp, rounds: Rounds) -> None:
        self.warm_ups.setdefault(name, []).append(warm_up)
        self.samples[name] = self.samples.get(name, ()) + rounds.samples[name]
        if rounds.stop_reason not in self.stop_reasons:
            self.stop_reasons.append(rounds.stop_reason)


def _list(arms: Sequence[Arm]) -> str:
    return ", ".join(arm.name for arm in arms)


@dataclass(frozen=True, slots=True)
class _Timed:
    """An arm as the rounds see it; `turns` holds the names of those that had a block, in order."""

    arm: Arm
    session: str
    turns: list[str]

    def time_block(self, calls: int) -> Block:
        watch = self.arm.watch
        assert watch is not None, "the arm lives in a process"
        if self.turns and self.turns[-1] != self.arm.name:
            settle()
        self.turns.append(self.arm.name)
        watch.begin()
        seconds, device_seconds = self.arm.ask(self.session, "time_block", calls)
        return Block(seconds, device_seconds, watch.end())


def _measurement(arm: Arm, taken: _Taken) -> Measurement:
    """Put together what an arm's processes told; memory and FLOPs belong to the first batch size only."""
    alone = arm.alone
    assert alone is not None
    # A baseline that stands in several groups has its memory beside each of the others.
    own = not taken.session.endswith(BEST_BATCH)
    warm_ups = taken.warm_ups[arm.name]
    notes = alone.inspection.notes
    if not all(warm_up.settled for warm_up in warm_ups):
        notes += ("timing began before calls had settled (the warm-up reached its cap)",)
    return Measurement(
        workload=arm.workload,
        environment=alone.environment,
        session=taken.session,
        positions=arm.positions,
        executed_positions=arm.architecture.executed_positions(arm.workload.length),
        parameters=alone.parameters,
        attention=alone.inspection.attention,
        warm_ups_s=tuple(warm_up.per_call_s for warm_up in warm_ups),
        samples=taken.samples[arm.name],
        stop_reason="; ".join(taken.stop_reasons),
        memory=alone.memory if own else None,
        flops=alone.inspection.flops if own else None,
        batch_curve=tuple(sorted(arm.batch_curve.items())),
        notes=notes,
        peaks=alone.peaks,
        compile_s=alone.inspection.compile_s,
    )


def _measure_energy(arm: Arm, effort: Effort, say: Progress) -> None:
    """Read energy counters over one arm alone; its latency stands even if that fails."""
    if not isinstance(arm.outcomes[0], Measurement) or arm.alone is None:
        return
    say(f"{arm.name}: energy")
    workload = arm.outcomes[0].workload
    with arm.process(effort) as worker:
        try:
            worker.ask("build", workload, (memory_point(arm, arm.alone),), arm.cache)
            worker.ask("warm_up")
            energy = worker.ask("measure_energy")
        except WorkerError as error:
            energy = Energy(joules_per_call=None, source=f"failed: {error}")
    arm.outcomes[0] = replace(arm.outcomes[0], energy=energy)


@contextmanager
def _compiler_cache(arms: Sequence[Arm]) -> Iterator[str | None]:
    """Make an empty folder for compiled code, so that compiling is timed from nothing, and once for each subject."""
    if not any(arm.workload.compiled for arm in arms):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="tippingpoint-") as folder:
        yield folder


def _set_best_batch_size(arm: Arm, session: str, longest_call_s: float) -> None:
    """Double an arm's batch while that gives at least 5 % more throughput and fits; leave it at the best.

    A batch that would take longer than `longest_call_s` is not tried: the budget is for the comparison.
    """
    assert arm.alone is not None
    base = arm.batch_size
    measured = arm.outcomes[0]
    assert isinstance(measured, Measurement)
    arm.batch_curve[base] = measured.sequences_per_s
    best = base
    per_sequence = memory_point(arm, arm.alone)[1] / base
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
