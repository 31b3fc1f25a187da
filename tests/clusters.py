"""Studies of simulated clusters: what each node would have written into the store, and nothing was measured for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from synthetic import ENVIRONMENT, Noise, measurement
from tippingpoint.measurement import LOOK, Conditions, Environment, Measurement
from tippingpoint.store import StoredSession

DOUBLINGS = (128, 256, 512, 1024, 2048, 4096, 8192)
MOMENT = "2026-01-02T03:04:05+00:00"


@dataclass
class Cluster:
    """Nodes that measure comparisons, each with a baseline and variants of its own.

    Of every session the baseline alone is simulated: variants are measured on one node, and tell nothing of others.

    Args:
        nodes: How many.
        comparisons: On each node, one after the other.
        deep: Whether models are looked at with fewer layers at every doubling, and measured at lengths that only
            their own pair asks for; or measured at every doubling.
        sessions: That measure in a comparison.
        noise: Of blocks and processes.
        wanders: Standard deviation by which each node's speed goes up and down, for itself.
        within_s: In about so many seconds it forgets how fast it was.
        rough: Standard deviation of what a look has beyond that, being cold.
        devices: Of each node; it takes them in turns.
        slow: Factors of the time of some nodes or devices, by name.
    """

    nodes: int = 4
    comparisons: int = 3
    deep: bool = True
    sessions: int = 7
    noise: Noise = field(default_factory=lambda: Noise(spread=0.03, tails=3.0, spikes=0.05, processes=0.015))
    wanders: float = 0.01
    within_s: float = 300.0
    rough: float = 0.03
    devices: tuple[str, ...] = ("cuda:0",)
    slow: Mapping[str, float] = field(default_factory=dict)

    def study(self, seed: int) -> list[StoredSession]:
        """Return what a study leaves in the store, in the order in which it is written."""
        generator = np.random.default_rng(seed)
        found: list[tuple[float, StoredSession]] = []
        for number in range(self.nodes):
            node = _Node(self, f"node-{number}", generator)
            for comparison in range(self.comparisons):
                node.run(f"{number}.{comparison}", self.devices[comparison % len(self.devices)])
            found += node.written
        return [session for _, session in sorted(found, key=lambda each: each[0])]


class _Node:
    def __init__(self, cluster: Cluster, name: str, generator: np.random.Generator) -> None:
        self.cluster, self.name, self.generator = cluster, name, generator
        self.clock = 0.0
        self.speed = cluster.wanders * generator.standard_normal()
        self.written: list[tuple[float, StoredSession]] = []

    def run(self, name: str, device: str) -> None:
        """Measure one comparison."""
        cluster = self.cluster
        lengths = [float(length) for length in DOUBLINGS[: cluster.sessions]]
        if cluster.deep:
            for place, length in enumerate(DOUBLINGS):
                took = [self.timed(length, f"{name}.{place}{LOOK}", device, layers) for layers in (2, 4)]
                self.write(took, device, seconds=6.0)
            low, high = math.log(DOUBLINGS[0]), math.log(DOUBLINGS[-1])
            lengths = [float(round(math.exp(self.generator.uniform(low, high)))) for _ in range(cluster.sessions)]
        for place, length in enumerate(lengths):
            self.write([self.timed(length, f"{name}.{place}-0", device)], device, seconds=25.0)

    def timed(self, length: float, session: str, device: str, layers: int | None = None) -> Measurement:
        cluster, generator = self.cluster, self.generator
        planted = 1e-3 * (20 + length * (1 + length / 2000)) * (1.0 if layers is None else layers / 12)
        slow = cluster.slow.get(self.name, 1.0) * cluster.slow.get(f"{self.name}/{device}", 1.0)
        own = self.speed + cluster.noise.processes * generator.standard_normal()
        own += 0.0 if layers is None else cluster.rough * generator.standard_normal()
        rounds = 8 if layers is None else 2
        took = [planted * slow * math.exp(own) * cluster.noise.draw(generator) for _ in range(rounds)]
        return measurement("bert", length, took, session=session, environment=GPU, device="cuda", layers=layers)

    def write(self, took: list[Measurement], device: str, *, seconds: float) -> None:
        self.clock += seconds
        kept = math.exp(-seconds / self.cluster.within_s)
        self.speed *= kept
        self.speed += self.cluster.wanders * math.sqrt(1 - kept**2) * self.generator.standard_normal()
        self.written.append((self.clock, stored(took, f"{self.name}/{device}", seconds)))


GPU = replace(ENVIRONMENT, device_name="NVIDIA H100 80GB", driver="550.90")


def stored(took: list[Measurement], place: str, seconds: float = 10.0) -> StoredSession:
    return StoredSession("study 1", "", MOMENT, seconds, tuple(took), place)


def changed(sessions: list[StoredSession], node: str, environment: Environment) -> list[StoredSession]:
    """Return sessions as if a node had had another environment all along."""
    return [
        replace(session, outcomes=tuple(replace(each, environment=environment) for each in session.outcomes))
        if session.place.startswith(f"{node}/")
        else session
        for session in sessions
    ]


def under(sessions: list[StoredSession], node: str, conditions: Conditions) -> list[StoredSession]:
    """Return sessions as if all blocks of a node had been timed under some conditions."""
    return [
        replace(
            session,
            outcomes=tuple(
                replace(each, samples=tuple(replace(sample, conditions=conditions) for sample in each.samples))
                for each in session.outcomes
                if isinstance(each, Measurement)
            ),
        )
        if session.place.startswith(f"{node}/")
        else session
        for session in sessions
    ]
