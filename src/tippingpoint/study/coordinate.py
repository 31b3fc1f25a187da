"""Many machines at once: which comparison goes where, and one writer for what comes back.

    a kind of place     slots of it are asked for as long as comparisons wait for one
    a slot that opens   gets the comparison that should take longest, with everything known of it
    a finished session  goes to the store at once; this process alone writes there
    a lost slot         gives its comparison back, and another slot goes on from the last finished session

How machines are found, held and let go is the cluster's own business; see `Cluster`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tippingpoint.errors import AnswerError, InputError
from tippingpoint.measurement import Environment, Outcome
from tippingpoint.store import Store, StoredSession
from tippingpoint.study.comparisons import comparisons
from tippingpoint.study.ledger import bears_on, seconds_spent, study_key
from tippingpoint.study.run import Progress, StudyResult, answer, check_measured, merge_results, resolve_study
from tippingpoint.units import format_items, format_seconds
from tippingpoint.workload import Place, Study, Subject

logger = logging.getLogger(__name__)

# Slots of a kind that are asked for and not there yet: enough for a cluster to grow, not so many that it grows for
# work which will have been done by then.
_MOST_PENDING = 16
# A comparison that loses its slot so many times in a row, with no session finished in between, is given up.
_MOST_LOSSES = 3
_TICK_S = 1.0
# After so long without a slot, say what the cluster has.
_SAY_S = 10.0


@dataclass(frozen=True, slots=True)
class Opened:
    """A slot is there; `node` names the machine."""

    slot: int
    node: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A session is finished; `place` names machine and device, `lines` is what there was to say about it."""

    slot: int
    outcomes: tuple[Outcome, ...]
    seconds: float
    place: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing is left of the slot's comparison."""

    slot: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The slot's comparison cannot be measured; the slot itself is well."""

    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The slot is gone, and what it was measuring with it."""

    slot: int
    reason: str


Event = Opened | Finished | Ended | Refused | Lost


class Cluster(Protocol):
    """Machines that measure; a slot is a device of one of them, held for one measurement at a time."""

    def open(self, place: Place) -> int:
        """Ask for a slot of a kind; return its number at once. `Opened` follows, perhaps much later."""
        ...

    def give(self, slot: int, study: Study, sessions: Sequence[StoredSession], label: str) -> None:
        """Let an open slot measure a comparison; `Finished` follow, and then `Ended`, `Refused` or `Lost`."""
        ...

    def close(self, slot: int) -> None:
        """Let a slot go, or no longer ask for it; no event of it follows."""
        ...

    def events(self, timeout_s: float) -> Sequence[Event]:
        """Return what has happened; wait for it, but not longer than a timeout."""
        ...

    def now(self) -> float:
        """Return seconds on the clock that timeouts are of."""
        ...

    def offers(self) -> str:
        """Return in words what machines there are."""
        ...


@dataclass(slots=True, eq=False)
class Comparison:
    """A search on its way through the cluster.

    Attributes:
        study: With subjects resolved; it says what kind of place is asked for.
        whole: Number of the study that it is a part of.
        sessions: Everything known that bears on it, oldest first.
        losses: Slots lost in a row, with no session finished in between.
        avoided: Machines where that happened.
        trouble: Why it was given up; empty if it was not.
    """

    study: Study
    whole: int
    sessions: list[StoredSession] = field(default_factory=list)
    losses: int = 0
    avoided: set[str] = field(default_factory=set)
    trouble: str = ""

    @property
    def place(self) -> Place:
        """What it asks for."""
        assert self.study.place is not None, "checked when the study was taken"
        return self.study.place

    def remaining_s(self, label: str) -> float:
        """Return what is left of its budget."""
        return self.study.budget_s - seconds_spent(self.study, self.sessions, label)


class Queue:
    """Comparisons that wait, by kind of place: the one with most left of its budget first.

    That leaves the short ones for the end, when slots run out of work one after the other: no slot is idle for
    longer than the last comparison of another takes (list scheduling, longest first; Graham, SIAM Journal on Applied
    Mathematics 17, 1969).
    """

    def __init__(self) -> None:
        self._waiting: dict[Place, list[tuple[float, int, Comparison]]] = defaultdict(list)
        self._order = itertools.count()

    def put(self, comparison: Comparison, remaining_s: float) -> None:
        """Let a comparison wait."""
        heapq.heappush(self._waiting[comparison.place], (-remaining_s, next(self._order), comparison))

    def take(self, place: Place, node: str) -> Comparison | None:
        """Return what a slot should do next; rather not what has just been lost on the same machine."""
        waiting, passed = self._waiting[place], []
        while waiting and node in waiting[0][-1].avoided:
            passed.append(heapq.heappop(waiting))
        chosen = heapq.heappop(waiting) if waiting else passed.pop(0) if passed else None
        for entry in passed:
            heapq.heappush(waiting, entry)
        return chosen and chosen[-1]

    def waiting(self) -> dict[Place, int]:
        """Return how many comparisons wait for each kind of place."""
        return {place: len(entries) for place, entries in self._waiting.items() if entries}


@dataclass(slots=True)
class _Slot:
    place: Place
    node: str | None = None
    comparison: Comparison | None = None


class Coordinator:
    """Hands comparisons to slots and writes what comes back; see the top of this module.

    Args:
        comparisons: What to measure, with what is known of each.
        store: Where sessions go.
        cluster: What measures.
        label: What to call this run.
        say: Called with one line at a time.
        most_slots: No more measurements at once than this.
        wait_s: How long nothing may be open before it is given up.
    """

    def __init__(
        self,
        comparisons: Sequence[Comparison],
        store: Store,
        cluster: Cluster,
        *,
        label: str = "",
        say: Progress,
        most_slots: int | None = None,
        wait_s: float = 600.0,
    ) -> None:
        self._store, self._cluster, self._label, self._say = store, cluster, label, say
        self._most_slots, self._wait_s = most_slots, wait_s
        self._left = len(comparisons)
        self._queue = Queue()
        for comparison in comparisons:
            self._queue.put(comparison, comparison.remaining_s(label))
        self._slots: dict[int, _Slot] = {}
        self._stillborn = 0

    def run(self) -> None:
        """Measure until nothing is left.

        Raises:
            StoreError: If results cannot be written.
            AnswerError: If no slot has been open for too long.
        """
        idle_since, said = self._cluster.now(), False
        while self._left:
            self._ask_for_slots()
            for event in self._cluster.events(_TICK_S):
                if event.slot in self._slots:
                    self._handle(event)
            if any(slot.node is not None for slot in self._slots.values()):
                idle_since, said = self._cluster.now(), False
                continue
            waited = self._cluster.now() - idle_since
            if waited > _SAY_S and not said:
                wanted = ", ".join(map(str, self._queue.waiting()))
                self._say(f"waiting for {wanted}; the cluster offers {self._cluster.offers()}")
                said = True
            if waited > self._wait_s:
                wanted = ", ".join(map(str, self._queue.waiting()))
                raise AnswerError(
                    f"the cluster had no {wanted} free within {format_seconds(self._wait_s)}; it offers "
                    f"{self._cluster.offers()}. What was measured before is kept, and the same command goes on"
                )

    def _ask_for_slots(self) -> None:
        pending: dict[Place, int] = defaultdict(int)
        for slot in self._slots.values():
            pending[slot.place] += slot.node is None
        for place, waiting in self._queue.waiting().items():
            more = min(waiting, _MOST_PENDING) - pending[place]
            if self._most_slots is not None:
                more = min(more, self._most_slots - len(self._slots))
            for _ in range(more):
                self._slots[self._cluster.open(place)] = _Slot(place)

    def _handle(self, event: Event) -> None:
        slot = self._slots[event.slot]
        comparison = slot.comparison
        match event:
            case Opened():
                slot.node, self._stillborn = event.node, 0
                self._give_next(event.slot)
            case Lost():
                del self._slots[event.slot]
                self._cluster.close(event.slot)
                if comparison is not None:
                    self._lose(comparison, slot.node or "", event.reason)
                elif (stillborn := self._stillborn + 1) < _MOST_PENDING:
                    self._stillborn = stillborn
                else:
                    raise AnswerError(f"{stillborn} times in a row a machine was lost as it came: {event.reason}")
            case Finished():
                assert comparison is not None, "only what was given can be finished"
                self._keep(comparison, event)
            case Ended() | Refused():
                assert comparison is not None, "only what was given can end"
                if isinstance(event, Refused):
                    self._give_up(comparison, event.reason)
                else:
                    self._left -= 1
                self._give_next(event.slot)

    def _give_next(self, number: int) -> None:
        slot = self._slots[number]
        assert slot.node is not None, "it is open"
        slot.comparison = self._queue.take(slot.place, slot.node)
        if slot.comparison is None:
            # Let go at once: somebody else, or nobody, may pay for the machine.
            del self._slots[number]
            self._cluster.close(number)
        else:
            self._cluster.give(number, slot.comparison.study, slot.comparison.sessions, self._label)

    def _keep(self, comparison: Comparison, event: Finished) -> None:
        key = study_key(comparison.study)
        self._store.add(event.outcomes, study=key, seconds=event.seconds, label=self._label, place=event.place)
        comparison.sessions.append(
            StoredSession(key, self._label, "", event.seconds, event.outcomes, place=event.place)
        )
        comparison.losses = 0
        for line in event.lines:
            self._say(f"{event.place}: {line}")

    def _lose(self, comparison: Comparison, node: str, reason: str) -> None:
        comparison.losses += 1
        comparison.avoided.add(node)
        if comparison.losses < _MOST_LOSSES:
            self._say(f"{node} was lost ({reason}); {_name(comparison.study)} goes on elsewhere")
            self._queue.put(comparison, comparison.remaining_s(self._label))
        else:
            self._give_up(comparison, f"lost {_MOST_LOSSES} times in a row, last on {node} ({reason})")

    def _give_up(self, comparison: Comparison, reason: str) -> None:
        comparison.trouble = reason
        self._left -= 1
        self._say(f"{_name(comparison.study)} is given up: {reason}")


def _name(study: Study) -> str:
    return f"{' '.join(map(str, study.subjects))}, {', '.join(study.phases)}, on {study.place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterResult:
    """What studies found on a cluster.

    Attributes:
        results: For each study, in each environment that one of its comparisons was measured in.
        missing: The comparisons that were given up, and why.
    """

    results: tuple[StudyResult, ...]
    missing: tuple[str, ...]


def run_on_cluster(
    studies: Sequence[Study],
    store: Store,
    cluster: Cluster,
    *,
    label: str = "",
    progress: Progress | None = None,
    most_slots: int | None = None,
    wait_s: float = 600.0,
) -> ClusterResult:
    """Measure studies on many machines, or go on with what was interrupted.

    Args:
        studies: What to compare; each says on what kind of place.
        store: Where sessions go as they are made, and where earlier ones are found.
        cluster: What measures.
        label: What to call this run; see `run_study`.
        progress: Called with one line at a time.
        most_slots: No more measurements at once than this.
        wait_s: How long to wait for a first machine.

    Returns:
        What was found, by study and environment, and what is missing.

    Raises:
        InputError: If a study is not legal, or says no kind of place.
        StoreError: If results cannot be written.
        AnswerError: If no machine came, or nothing could be measured.
    """
    say = progress or (lambda line: logger.info("%s", line))
    studies = [resolve_study(study) for study in studies]
    for study in studies:
        if not study.places:
            raise InputError(
                "on a cluster a study must say what to measure on, such as `device: {kind: H100}` or "
                "`device: {kind: cpu, cores: 8}`"
            )
    parts = [Comparison(part, number) for number, study in enumerate(studies) for part in comparisons(study)]
    _recall(parts, store.sessions(), label)
    total = sum(part.study.budget_s for part in parts)
    say(f"{format_items(len(parts), 'comparison')}, {format_seconds(total)} of measuring in all")
    Coordinator(parts, store, cluster, label=label, say=say, most_slots=most_slots, wait_s=wait_s).run()
    results = tuple(
        result
        for number, study in enumerate(studies)
        for result in _answers(study, [part for part in parts if part.whole == number])
    )
    missing = tuple(f"{_name(part.study)}: {part.trouble}" for part in parts if part.trouble)
    if missing and not results:
        raise AnswerError(f"nothing could be measured: {'; '.join(dict.fromkeys(missing))}")
    check_measured([outcome for result in results for outcome in result.outcomes])
    return ClusterResult(results=results, missing=missing)


def _recall(parts: Sequence[Comparison], sessions: Iterable[StoredSession], label: str) -> None:
    """Give every comparison the sessions of a store that bear on it."""
    by_subject: dict[Subject, list[Comparison]] = defaultdict(list)
    for part in parts:
        by_subject[part.study.variants[0]].append(part)
        if not part.study.apart:
            for subject in part.study.subjects:
                if part not in by_subject[subject]:
                    by_subject[subject].append(part)
    for session in sessions:
        subjects = dict.fromkeys(outcome.workload.subject for outcome in session.outcomes)
        near = dict.fromkeys(part for subject in subjects for part in by_subject.get(subject, ()))
        for part in near:
            if label in ("", session.label) and bears_on(part.study, session):
                part.sessions.append(session)


def _answers(study: Study, parts: Sequence[Comparison]) -> list[StudyResult]:
    """Return what comparisons of a study found, those of one environment together."""
    found: dict[str, list[StudyResult]] = defaultdict(list)
    for part in parts:
        environment = _last_environment(part)
        if environment is not None:
            found[environment.fingerprint].append(answer(part.study, part.sessions, environment))
    return [merge_results(study, results) for results in found.values()]


def _last_environment(part: Comparison) -> Environment | None:
    """Return where a comparison was measured last, for that is where it was finished."""
    key = study_key(part.study)
    own = [session for session in part.sessions if session.study == key] or part.sessions
    return own[-1].outcomes[-1].environment if own else None
