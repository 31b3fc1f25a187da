"""Measurements that nothing was measured for: planted costs, planted noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tippingpoint.measurement import BEST_BATCH, Environment, Failure, Flops, Measurement, Memory, Outcome, Sample
from tippingpoint.models.catalog import architecture_of
from tippingpoint.profiling.rounds import MIN_ROUNDS, Block, run_rounds
from tippingpoint.profiling.timing import calls_per_block
from tippingpoint.study.search import Known, Step, next_step
from tippingpoint.workload import Study, Subject, Workload

MIB = 2**20
ENVIRONMENT = Environment(
    device_name="CPU",
    cpu_model="Imaginary 9000",
    cores=4,
    threads=2,
    memory_bytes=2**34,
    platform="Linux x86_64",
    python="3.11.0",
    torch="2.13.0",
    transformers="5.23.0",
    tippingpoint="0.1.0",
)

Cost = Callable[[float], float]


def workload(subject: str | Subject, length: float, **fields: object) -> Workload:
    chosen: dict[str, object] = {"threads": 2, **fields}
    return Workload(subject, length, **chosen)  # type: ignore[arg-type]


def measurement(
    subject: str | Subject,
    length: float,
    seconds: float | Iterable[float],
    *,
    session: str = "s-0",
    peak_bytes: int | None = 100 * MIB,
    environment: Environment = ENVIRONMENT,
    batch_curve: tuple[tuple[int, float], ...] = (),
    **fields: object,
) -> Measurement:
    """A measurement whose rounds took `seconds` for each call; a single number stands for four equal rounds."""
    rounds = [seconds] * 4 if isinstance(seconds, int | float) else list(seconds)
    spec = workload(subject, length, **fields)
    architecture = architecture_of(spec.subject)
    return Measurement(
        workload=spec,
        environment=environment,
        session=session,
        positions=architecture.positions(length),
        executed_positions=architecture.executed_positions(length),
        parameters=1_000_000,
        attention="sdpa",
        warm_ups_s=((2 * float(rounds[0]), float(rounds[0])),),
        samples=tuple(Sample(number, 0, number * 0.1, 1, float(each)) for number, each in enumerate(rounds)),
        stop_reason="95 % interval within 2 %",
        memory=None
        if peak_bytes is None
        else Memory(peak_bytes=peak_bytes, weights_bytes=peak_bytes // 2, method="planted"),
        flops=Flops(total=10**9, by_operator=(("mm", 10**9),)),
        batch_curve=batch_curve,
    )


def failure(
    subject: str | Subject,
    length: float,
    *,
    kind: str = "out_of_memory",
    session: str = "s",
    message: str = "not enough memory",
    refused: bool = False,
    environment: Environment = ENVIRONMENT,
    **fields: object,
) -> Failure:
    """A failure; by default one of the pass that each subject runs alone."""
    spec = workload(subject, length, **fields)
    return Failure(
        workload=spec,
        environment=environment,
        session=session,
        kind=kind,
        message=message,
        positions=architecture_of(spec.subject).positions(length),
        refused=refused,
    )


def session_at(
    length: float,
    costs: Mapping[Subject, float],
    generator: np.random.Generator,
    *,
    rounds: int = 8,
    noise: float = 0.03,
    drift: float = 0.0,
    name: str | None = None,
    **fields: object,
) -> list[Outcome]:
    """One interleaved session: every subject once in each round, forth and back, on a machine that slows down.

    Args:
        length: In the native unit.
        costs: Seconds for each call that are planted, by subject.
        generator: Of noise and order.
        rounds: How many.
        noise: Standard deviation of the logarithm of a time.
        drift: Share by which the machine has slowed down at the end of the session.
        name: Of the session.
        fields: Of the workload.
    """
    seconds: dict[Subject, list[float]] = {subject: [] for subject in costs}
    order = list(costs)
    blocks, moment = rounds * len(costs), 0
    for number in range(rounds):
        if number % 2:
            order.reverse()
        else:
            generator.shuffle(order)  # type: ignore[arg-type]
        for subject in order:
            slower = 1 + drift * moment / blocks
            seconds[subject].append(costs[subject] * slower * math.exp(noise * generator.standard_normal()))
            moment += 1
    name = name or f"at {length:g}-0"
    return [measurement(subject, length, taken, session=name, **fields) for subject, taken in seconds.items()]  # type: ignore[arg-type]


@dataclass
class Noise:
    """How a simulated machine disturbs what is timed on it.

    Attributes:
        spread: Standard deviation of the logarithm of a block's time.
        tails: Degrees of freedom of its distribution (Student's t of this spread); infinite for a normal one.
        spikes: Share of blocks that take up to twice as long.
        processes: Standard deviation of what every fresh process has of its own, for all its life.
        drift: Standard deviation by which the whole machine's speed moves within ten seconds, for good.
    """

    spread: float = 0.02
    tails: float = math.inf
    spikes: float = 0.0
    processes: float = 0.0
    drift: float = 0.0

    def draw(self, generator: np.random.Generator) -> float:
        """Return one block's factor."""
        z = generator.standard_normal()
        if math.isfinite(self.tails):
            z = generator.standard_t(self.tails) / math.sqrt(self.tails / (self.tails - 2))
        spike = generator.random() if generator.random() < self.spikes else 0.0
        return math.exp(self.spread * z) * (1 + spike)


class Machine:
    """A simulated machine: planted curves become outcomes, and its clock goes on by what they cost.

    Sessions are timed by the engine's own rounds, on its clock.

    Args:
        study: What is measured on it, with subjects resolved.
        costs: Seconds for one sequence by subject, as a function of executed positions.
        needs: Bytes of peak memory by subject, as a function of executed positions.
        room: Bytes there are; what needs more runs out of memory.
        noise: Standard deviation of the logarithm of a time, or all of it.
        overhead_s: Seconds to start a process and build a model in it.
        best_batch: Throughput grows up to this batch size.
        outside_layers: Share of a cost that is not in the layers.
    """

    def __init__(
        self,
        study: Study,
        costs: Mapping[Subject, Cost],
        *,
        needs: Mapping[Subject, Cost] | None = None,
        room: float = math.inf,
        noise: float | Noise = 0.02,
        overhead_s: float = 0.75,
        best_batch: int = 4,
        outside_layers: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.study = study
        self.costs = costs
        self.needs = needs or {}
        self.room = room
        self.noise = noise if isinstance(noise, Noise) else Noise(noise)
        self.overhead_s = overhead_s
        self.best_batch = best_batch
        self.outside_layers = outside_layers
        self.generator = np.random.default_rng(seed)
        self.steps: list[Step] = []
        self.sessions: list[tuple[list[Outcome], float]] = []
        self.clock = 0.0
        self._speed = 1.0

    def cost(self, subject: Subject, length: float, phase: str, layers: int | None = None) -> float:
        row = architecture_of(subject)
        whole = (3.0 if phase == "training" else 1.0) * self.costs[subject](row.executed_positions(length))
        if layers is None:
            return whole
        depth = row.layers(self.study.size)
        assert depth is not None
        return whole * (self.outside_layers + (1 - self.outside_layers) * layers / depth)

    def need(self, subject: Subject, length: float, phase: str) -> float:
        factor = 2.0 if phase == "training" else 1.0
        needed = self.needs.get(subject, lambda n: 1000.0 * n + MIB)
        return factor * needed(architecture_of(subject).executed_positions(length))

    def wait(self, seconds: float) -> None:
        """Let time pass; the machine's speed wanders meanwhile."""
        self.clock += seconds
        if self.noise.drift:
            self._speed *= math.exp(self.noise.drift * math.sqrt(seconds / 10) * self.generator.standard_normal())

    def run(self, step: Step) -> tuple[list[Outcome], float]:
        """Measure one session; return its outcomes and the seconds it took."""
        root, began = f"{len(self.sessions):04d}", self.clock
        fields = {"phase": step.phase, "size": self.study.size, "threads": self.study.threads}
        fits = [s for s in step.subjects if self.need(s, step.length, step.phase) <= self.room]
        outcomes: list[Outcome] = [
            failure(subject, step.length, session=root, batch_size=self.study.batch_size, layers=layers, **fields)
            for subject in step.subjects
            for layers in step.layers
            if subject not in fits
        ]
        if step.purpose != "screening":
            for subject in fits:  # memory, and what really runs
                self.wait(self.overhead_s + 2 * self.cost(subject, step.length, step.phase) * self.study.batch_size)
        batches = [(f"{root}-0", self.study.batch_size)]
        if "throughput" in self.study.metrics and not step.brief:
            batches.append((f"{root}-0{BEST_BATCH}", self.best_batch))
        for name, size in batches if fits else ():
            timed = {
                (subject, layers): _TimedArm(
                    self,
                    # A batch of many costs a little less for each of its sequences.
                    self.cost(subject, step.length, step.phase, layers) * size * (0.9 + 0.1 / size),
                )
                for subject in fits
                for layers in step.layers
            }
            for (_, layers), arm in timed.items():
                # Its process, and a cold call; a shallow model is built in half of the time.
                self.wait(self.overhead_s * (1.0 if layers is None else 0.5) + arm.seconds)
                if not step.brief:
                    self.wait(max(arm.seconds, 0.5))
            names = {f"{subject} {layers}": key for key in timed for subject, layers in [key]}
            rounds = run_rounds(
                {name: (timed[key], calls_per_block(timed[key].seconds)) for name, key in names.items()},
                [f"{subject} {layers}" for subject, layers in timed if subject in self.study.baselines],
                target=step.target,
                budget_s=step.rounds_s,
                clock=lambda: self.clock,
                seed=len(self.sessions),
                fewest=2 if step.brief else MIN_ROUNDS,
            )
            for each, (subject, layers) in names.items():
                peak = int(self.need(subject, step.length, step.phase))
                found = measurement(
                    subject,
                    step.length,
                    [sample.per_call_s for sample in rounds.samples[each]],
                    session=name,
                    batch_size=size,
                    peak_bytes=peak if size == self.study.batch_size and layers is None else None,
                    layers=layers,
                    **fields,
                )
                outcomes.append(found)
        self.steps.append(step)
        self.sessions.append((outcomes, self.clock - began))
        return self.sessions[-1]

    @property
    def known(self) -> Known:
        """What a store would hold."""
        return known_of(self.sessions)

    @property
    def spent_s(self) -> float:
        return sum(seconds for _, seconds in self.sessions)

    def finish(self, *, most_steps: int = 200) -> Known:
        """Do what the coordinator does: ask for the next step and run it until there is none."""
        for _ in range(most_steps):
            step = next_step(self.study, self.known, self.study.budget_s - self.spent_s)
            if step is None:
                return self.known
            self.run(step)
        raise AssertionError(f"the search did not end within {most_steps} steps")


class _TimedArm:
    """A subject in a simulated process: as fast as planted, but for what the process has of its own."""

    def __init__(self, machine: Machine, seconds: float) -> None:
        self._machine = machine
        self.seconds = seconds * math.exp(machine.noise.processes * machine.generator.standard_normal())

    def time_block(self, calls: int) -> Block:
        machine = self._machine
        seconds = calls * self.seconds * machine._speed * machine.noise.draw(machine.generator)
        machine.wait(seconds)
        return Block(seconds)


def known_of(sessions: Sequence[tuple[list[Outcome], float]]) -> Known:
    """What a store would hold after these sessions."""
    outcomes = [outcome for found, _ in sessions for outcome in found]
    return Known(
        tuple(outcome for outcome in outcomes if outcome.workload.layers is None),
        tuple(outcome for outcome in outcomes if outcome.workload.layers is not None),
    )
