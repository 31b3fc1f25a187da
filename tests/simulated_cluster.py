"""A cluster that is not there: machines that come, fail and go on a simulated clock, the same for the same seed."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from synthetic import measurement
from tippingpoint.errors import InputError, TippingPointError
from tippingpoint.measurement import Outcome
from tippingpoint.store import StoredSession
from tippingpoint.study.cluster import Ended, Event, Finished, Found, Lost, Opened, Refused
from tippingpoint.study.launch_ray import Slot
from tippingpoint.study.ledger import study_key
from tippingpoint.study.run import Machine
from tippingpoint.workload import Place, Study

# Outcomes, seconds, device and lines of a session, as the slots of a real cluster have them; one of infinitely many
# seconds is never finished, as its slot is lost.
Session = tuple[tuple[Outcome, ...], float, str, tuple[str, ...]]
# What a node measures of a comparison of which sessions are known; a TippingPointError refuses it.
Work = Callable[[Study, Sequence[StoredSession], str, str], Iterator[Session]]

# Later than this, something goes on for ever.
_HORIZON_S = 3e6


@dataclass(frozen=True)
class Nodes:
    """Machines of one kind.

    Attributes:
        place: What each of their slots is.
        count: How many; how many at most, where they start when they are asked for.
        slots: Of each node.
        start_s: Seconds until a node that is asked for is there; None for nodes that always are.
        idle_s: Seconds without a slot after which such a node goes.
    """

    place: Place
    count: int
    slots: int = 4
    start_s: float | None = None
    idle_s: float = 120.0


@dataclass(frozen=True)
class Trouble:
    """What goes wrong, and how often; times between two of a kind are exponential.

    Attributes:
        slot_s: Seconds of measuring for each slot that is lost.
        node_s: Seconds for which a node stays.
        back_s: Mean seconds until a lost node is back.
        killing: Nodes that kill whatever they are given.
        stillborn: Nodes whose slots are lost before they are open.
    """

    slot_s: float = math.inf
    node_s: float = math.inf
    back_s: float = 600.0
    killing: frozenset[str] = frozenset()
    stillborn: frozenset[str] = frozenset()


@dataclass(eq=False)
class _Node:
    name: str
    kind: Nodes
    free: int = 0
    up: bool = False
    starting: bool = False
    # Of its lives and of its times without a slot, so that what was foreseen in an earlier one does not happen.
    life: int = 0
    idle: int = 0


@dataclass(eq=False)
class _Slot:
    number: int
    place: Place
    node: _Node | None = None
    open: bool = False
    gone: bool = False
    study: str = ""
    work: Iterator[Session] | None = None


@dataclass
class SimulatedCluster:
    """Simulated machines; see `tippingpoint.study.cluster.Cluster`.

    Attributes:
        nodes: What there is, named after kind and number, such as "H100-3".
        work: What they measure, and how long it takes.
        trouble: What goes wrong.
        seed: Of everything that is random.
        opening_s: Bounds of the seconds until a slot on a node that is there is open.
        starting_s: Bounds of the seconds between being given a comparison and its first session.
        worked: Seconds of finished sessions of each comparison, by its study's key.
        counts: How often what happened.
        most_busy: Most comparisons that were measured at once.
    """

    nodes: Sequence[Nodes]
    work: Work
    trouble: Trouble = field(default_factory=Trouble)
    seed: int = 0
    opening_s: tuple[float, float] = (5.0, 20.0)
    starting_s: tuple[float, float] = (2.0, 6.0)
    worked: dict[str, tuple[Place, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    most_busy: int = 0

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)
        self._clock = 0.0
        self._number = itertools.count()
        self._coming: list[tuple[float, int, _Slot | None, Callable[[], list[Event]]]] = []
        self._slots: dict[int, _Slot] = {}
        self._asked: dict[Place, deque[_Slot]] = {nodes.place: deque() for nodes in self.nodes}
        self._capacity: dict[Place, list[tuple[float, int]]] = {nodes.place: [] for nodes in self.nodes}
        self._all: dict[Place, list[_Node]] = {}
        for kind in self.nodes:
            group = self._all.setdefault(kind.place, [])
            group += [_Node(f"{kind.place.kind}-{len(group) + n}", kind) for n in range(kind.count)]
            for node in group[-kind.count :]:
                if kind.start_s is None:
                    self._come_up(node)

    # What the coordinator asks for

    def open(self, place: Place) -> int:
        slot = _Slot(next(self._number), place)
        self._slots[slot.number] = slot
        self._count("asked")
        if place in self._asked:
            self._asked[place].append(slot)
            self._place(place)
        return slot.number

    def give(self, slot: int, study: Study, sessions: Sequence[StoredSession], label: str) -> None:
        given = self._slots[slot]
        assert given.node is not None
        assert given.open, "it must be there"
        assert given.work is None, "a slot measures one comparison at a time"
        assert study.place == given.place, "a comparison goes to its kind of place"
        given.study, given.work = study_key(study), self.work(study, list(sessions), label, given.node.name)
        self._count("given")
        self.most_busy = max(self.most_busy, self.busy)
        if given.node.name in self.trouble.killing:
            self._after(self._between((1.0, 10.0)), lambda: self._lose(given, "killed"), given)
        else:
            self._after(self._between(self.starting_s), lambda: self._go_on(given), given)

    def close(self, slot: int) -> None:
        closed = self._slots.pop(slot)
        if not closed.gone:
            self._let_go(closed)

    def events(self, timeout_s: float) -> list[Event]:
        until, found = self._clock + timeout_s, []
        # What happens at the same moment comes together.
        while self._coming and self._coming[0][0] <= (self._clock if found else until):
            self._clock, _, slot, happen = heapq.heappop(self._coming)
            if slot is None or not slot.gone:
                found += happen()
        self._clock = self._clock if found else until
        assert self._clock < _HORIZON_S, "it goes on for ever"
        return found

    def now(self) -> float:
        return self._clock

    def offers(self) -> str:
        up = [f"{sum(node.up for node in nodes)} x {place}" for place, nodes in self._all.items()]
        return "; ".join(up) or "no machine"

    # What a test asks for

    @property
    def slots(self) -> int:
        """How many slots were asked for and not closed."""
        return len(self._slots)

    @property
    def busy(self) -> int:
        return sum(slot.work is not None for slot in self._slots.values())

    def bounds_s(self) -> dict[Place, float]:
        """Return for each kind of place the seconds below which no schedule could have done the work.

        The work is that of the sessions that were kept: what was lost on the way counts as not needed. It takes at
        least until the slots of the nodes that were there (nodes that kill everything are not; nodes that start when
        they are asked for all are from the first moment on at which one may be) have had as many seconds together;
        and as long as the longest comparison, whose sessions follow each other.
        """
        found = {}
        for place, steps in self._capacity.items():
            work = [seconds for where, seconds in self.worked.values() if where == place]
            if work:
                first = min(moment for moment, _ in steps)
                found[place] = max(_moment_of(sum(work), steps), first + max(work))
        return found

    # What happens

    def _after(self, seconds: float, happen: Callable[[], list[Event]], slot: _Slot | None = None) -> None:
        if math.isfinite(seconds):
            heapq.heappush(self._coming, (self._clock + seconds, next(self._number), slot, happen))

    def _between(self, bounds: tuple[float, float]) -> float:
        return float(self._generator.uniform(*bounds))

    def _until_next(self, mean_s: float) -> float:
        return float(self._generator.exponential(mean_s)) if math.isfinite(mean_s) else math.inf

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def _come_up(self, node: _Node) -> list[Event]:
        node.up, node.starting, node.free = True, False, node.kind.slots
        node.life += 1
        life = node.life
        self._after(self._until_next(self.trouble.node_s), lambda: self._fail(node) if node.life == life else [])
        steps = self._capacity[node.kind.place]
        if node.name not in self.trouble.killing | self.trouble.stillborn:
            if node.kind.start_s is None:
                steps.append((self._clock, node.kind.slots))
            elif not steps:
                steps.append((node.kind.start_s, node.kind.count * node.kind.slots))
        self._rest(node)
        self._place(node.kind.place)
        return []

    def _go_down(self, node: _Node) -> None:
        node.up, node.free = False, 0
        node.life += 1
        if node.kind.start_s is None and node.name not in self.trouble.killing | self.trouble.stillborn:
            self._capacity[node.kind.place].append((self._clock, -node.kind.slots))

    def _fail(self, node: _Node) -> list[Event]:
        """Lose a node with all that is on it; it comes back, or another one in its place when it is asked for."""
        self._count("nodes lost")
        on_it = [slot for slot in self._slots.values() if slot.node is node and not slot.gone]
        self._go_down(node)
        if node.kind.start_s is None:
            self._after(self._until_next(self.trouble.back_s), lambda: self._come_up(node))
        return [event for slot in on_it for event in self._lose(slot, "the node is gone")]

    def _rest(self, node: _Node) -> None:
        """Let a node that was started because it was asked for go, if nothing is on it for long."""
        node.idle += 1
        idle, life = node.idle, node.life
        if node.kind.start_s is not None and node.free == node.kind.slots:

            def leave() -> list[Event]:
                if (node.idle, node.life) == (idle, life) and node.free == node.kind.slots:
                    self._count("nodes gone")
                    self._go_down(node)
                return []

            self._after(node.kind.idle_s, leave)

    def _place(self, place: Place) -> None:
        """Find nodes for slots that are asked for; start some where there are none."""
        asked = self._asked[place]
        while asked and (with_room := [node for node in self._all[place] if node.free]):
            node = with_room[int(self._generator.integers(len(with_room)))]
            slot = asked.popleft()
            slot.node, node.free, node.idle = node, node.free - 1, node.idle + 1
            self._after(0.0, lambda slot=slot: [Found(slot.number)], slot)
            self._after(self._between(self.opening_s), lambda slot=slot: self._open(slot), slot)
        expected = sum(node.kind.slots for node in self._all[place] if node.starting)
        for node in self._all[place]:
            if expected < len(asked) and not node.up and not node.starting and node.kind.start_s is not None:
                node.starting, expected = True, expected + node.kind.slots
                self._count("nodes started")
                self._after(node.kind.start_s, lambda node=node: self._come_up(node))

    def _open(self, slot: _Slot) -> list[Event]:
        assert slot.node is not None
        if slot.node.name in self.trouble.stillborn:
            return self._lose(slot, "it does not start")
        slot.open = True
        self._count("opened")
        return [Opened(slot.number, slot.node.name)]

    def _go_on(self, slot: _Slot) -> list[Event]:
        """Begin the next session of a slot's comparison."""
        assert slot.work is not None
        try:
            outcomes, seconds, where, lines = next(slot.work)
        except StopIteration:
            slot.work = None
            return [Ended(slot.number)]
        except TippingPointError as error:
            slot.work = None
            return [Refused(slot.number, str(error))]
        # Nothing takes for ever: it is lost, soon.
        lost_after = self._until_next(self.trouble.slot_s if math.isfinite(seconds) else 10.0)
        if lost_after < seconds:
            self._after(lost_after, lambda: self._lose(slot, "the worker was killed"), slot)
            return []

        def finish() -> list[Event]:
            assert slot.node is not None
            before = self.worked.get(slot.study, (slot.place, 0.0))[1]
            self.worked[slot.study] = (slot.place, before + seconds)
            finished = Finished(slot.number, outcomes, seconds, f"{slot.node.name}/{where}", lines)
            return [finished, *self._go_on(slot)]

        self._after(seconds, finish, slot)
        return []

    def _lose(self, slot: _Slot, reason: str) -> list[Event]:
        self._count("lost" if slot.work is not None else "lost without work")
        self._let_go(slot)
        return [Lost(slot.number, reason)]

    def _let_go(self, slot: _Slot) -> None:
        slot.gone, slot.work = True, None
        if slot.node is None:
            if slot.place in self._asked:
                self._asked[slot.place].remove(slot)
        elif slot.node.up:
            slot.node.free += 1
            self._rest(slot.node)
            self._place(slot.place)


def _moment_of(work_s: float, steps: Sequence[tuple[float, int]]) -> float:
    """Return when slots that come and go have had so many seconds together."""
    now, slots = 0.0, 0
    for moment, more in sorted(steps):
        if slots * (moment - now) >= work_s:
            break
        work_s -= slots * (moment - now)
        now, slots = moment, slots + more
    return now + work_s / slots


def planned(plans: Mapping[str, Sequence[float]]) -> Work:
    """Return work that takes planned seconds, session by session, whatever is measured; what has no plan is refused.

    Args:
        plans: Seconds of each session, by the study's key.
    """

    def work(study: Study, sessions: Sequence[StoredSession], label: str, node: str) -> Iterator[Session]:
        key = study_key(study)
        if key not in plans:
            raise InputError("it does not fit")
        done = sum(session.study == key for session in sessions)
        fields = {"device": study.device, "threads": study.threads, "phase": study.phases[0], "size": study.size}
        for number, seconds in enumerate(plans[key][done:], start=done):
            outcomes = tuple(
                measurement(subject, 128 + number, 0.01, session=f"{number}-0", **fields)  # type: ignore[arg-type]
                for subject in study.subjects
            )
            yield outcomes, seconds, "cuda:0", ()

    return work


def searched(machine_of: Callable[[str], Machine]) -> Work:
    """Return work that is a real search, in a slot of a real cluster, on what a node has to measure with."""

    def work(study: Study, sessions: Sequence[StoredSession], label: str, node: str) -> Iterator[Session]:
        assert study.place is not None
        return Slot(study.place, machine_of(node)).measure(study, sessions, label)  # type: ignore[return-value]

    return work
