"""Measurements that nothing was measured for: planted costs, planted noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from tippingpoint.measurement import BEST_BATCH, Environment, Failure, Flops, Measurement, Memory, Outcome, Sample
from tippingpoint.models.catalog import architecture_of
from tippingpoint.study.search import Known, Step, next_step, rounds_budget_s
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


class Machine:
    """A simulated machine: planted curves become outcomes, and its clock goes on by what they cost.

    Args:
        study: What is measured on it, with subjects resolved.
        costs: Seconds for one sequence by subject, as a function of executed positions.
        needs: Bytes of peak memory by subject, as a function of executed positions.
        room: Bytes there are; what needs more runs out of memory.
        noise: Standard deviation of the logarithm of a time.
        overhead_s: Seconds for a session whatever its length, for each subject.
        best_batch: Throughput grows up to this batch size.
    """

    def __init__(
        self,
        study: Study,
        costs: Mapping[Subject, Cost],
        *,
        needs: Mapping[Subject, Cost] | None = None,
        room: float = math.inf,
        noise: float = 0.02,
        overhead_s: float = 1.5,
        best_batch: int = 4,
        seed: int = 0,
    ) -> None:
        self.study = study
        self.costs = costs
        self.needs = needs or {}
        self.room = room
        self.noise = noise
        self.overhead_s = overhead_s
        self.best_batch = best_batch
        self.generator = np.random.default_rng(seed)
        self.steps: list[Step] = []
        self.sessions: list[tuple[list[Outcome], float]] = []

    def cost(self, subject: Subject, length: float, phase: str) -> float:
        factor = 3.0 if phase == "training" else 1.0
        return factor * self.costs[subject](architecture_of(subject).executed_positions(length))

    def need(self, subject: Subject, length: float, phase: str) -> float:
        factor = 2.0 if phase == "training" else 1.0
        needed = self.needs.get(subject, lambda n: 1000.0 * n + MIB)
        return factor * needed(architecture_of(subject).executed_positions(length))

    def run(self, step: Step) -> tuple[list[Outcome], float]:
        """Measure one session; return its outcomes and the seconds it took."""
        root = f"{len(self.sessions):04d}"
        fields = {"phase": step.phase, "size": self.study.size, "threads": self.study.threads}
        fits = [s for s in step.subjects if self.need(s, step.length, step.phase) <= self.room]
        outcomes: list[Outcome] = [
            failure(subject, step.length, session=root, batch_size=self.study.batch_size, **fields)
            for subject in step.subjects
            if subject not in fits
        ]
        batches = [(f"{root}-0", self.study.batch_size)]
        if "throughput" in self.study.metrics:
            batches.append((f"{root}-0{BEST_BATCH}", self.best_batch))
        seconds = self.overhead_s * len(step.subjects)
        for name, size in batches:
            # A batch of many costs a little less for each of its sequences.
            costs = {s: self.cost(s, step.length, step.phase) * size * (0.9 + 0.1 / size) for s in fits}
            found = session_at(
                step.length, costs, self.generator, noise=self.noise, name=name, batch_size=size, **fields
            ) if costs else []  # fmt: skip
            for one in found:
                assert isinstance(one, Measurement)
                peak = int(self.need(one.workload.subject, step.length, step.phase))
                outcomes.append(
                    measurement(
                        one.workload.subject,
                        step.length,
                        one.per_call_s,
                        session=name,
                        batch_size=size,
                        peak_bytes=peak if size == self.study.batch_size else None,
                        **fields,
                    )
                )
            together = sum(costs.values())
            # cold call, warm-up and memory; then at least four rounds, and more while they take no time
            seconds += 4 * together + max(4 * together, min(rounds_budget_s(self.study), 50 * together))
        self.steps.append(step)
        self.sessions.append((outcomes, seconds))
        return outcomes, seconds

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


def known_of(sessions: Sequence[tuple[list[Outcome], float]]) -> Known:
    """What a store would hold after these sessions."""
    return Known(tuple(outcome for outcomes, _ in sessions for outcome in outcomes))
