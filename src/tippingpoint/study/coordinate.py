"""Many machines at once: which comparison goes where, and one writer for what comes back.

    a kind of place     slots of it are asked for as long as comparisons wait for one
    a slot that opens   gets the comparison that should take longest, with everything known of it
    a finished session  goes to the store at once; this process alone writes there
    a lost slot         gives its comparison back, and another slot goes on from the last finished session
    a bad machine       rests after its losses, twice as long after each, and is then tried with one comparison

How machines are found, held and let go is the cluster's own business; see `cluster`. Which comparison comes first is
the queue's; see `queue`.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tippingpoint.errors import AnswerError, InputError
from tippingpoint.measurement import Environment
from tippingpoint.store import Store, StoredSession
from tippingpoint.study.cluster import Cluster, Ended, Event, Finished, Found, Lost, Opened, Refused
from tippingpoint.study.comparisons import comparisons
from tippingpoint.study.ledger import bears_on, known_from, measured_in
from tippingpoint.study.queue import Comparison, Queue
from tippingpoint.study.run import Progress, StudyResult, answer, check_measured, merge_results, resolve_study
from tippingpoint.study.search import next_step
from tippingpoint.units import format_items, format_seconds
from tippingpoint.workload import Place, Study

logger = logging.getLogger(__name__)

# Slots of a kind that are asked for and not there yet: enough for a cluster to grow, not so many that it grows for
# work which will have been done by then.
_MOST_PENDING = 16
# A comparison that loses its slot on so many machines in a row, with no session finished in between, is given up; or
# so many times, where there are no others.
_MOST_MACHINES = 3
_MOST_LOSSES = 6
# What goes wrong time after time is left alone for 2, 4, 8 ... seconds, and for no longer than this.
_MOST_REST_S = 300.0
_TICK_S = 1.0
# After so long without a slot, say what the cluster has.
_SAY_S = 10.0


@dataclass(slots=True)
class _Slot:
    place: Place
    node: str
    comparison: Comparison | None = None


@dataclass(slots=True)
class _Rest:
    """How often in a row something went wrong, and until when it is left alone."""

    losses: int = 0
    until: float = -math.inf
    _lost_at: float = -math.inf

    def begin(self, now: float, *, lost: bool = False) -> None:
        """Leave it alone from now on, after another loss if one was had; what is lost with a machine is one loss."""
        if lost and now > self._lost_at + _TICK_S:
            self.losses, self._lost_at = self.losses + 1, now
        # The exponent is bounded, since a kind may fail a thousand times while others are measured.
        self.until = now + min(2.0 ** min(self.losses, 30), _MOST_REST_S)


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
        # Slots that are not open yet; of these, the ones that have a machine.
        self._asked: dict[int, Place] = {}
        self._found: set[int] = set()
        self._slots: dict[int, _Slot] = {}
        # Open slots with nothing to do, for now.
        self._idle: set[int] = set()
        # Of machines where comparisons were lost, and of kinds of which slots were lost before they were open.
        self._rests: dict[str | Place, _Rest] = {}
        # Why slots were lost before they were open, by kind; each reason is said once.
        self._reasons: dict[Place, dict[str, None]] = defaultdict(dict)

    def run(self) -> None:
        """Measure until nothing is left.

        Raises:
            StoreError: If results cannot be written.
            AnswerError: If no slot has been open for too long.
        """
        try:
            self._run()
        finally:
            for number in [*self._asked, *self._slots]:
                self._let_go(number)

    def _run(self) -> None:
        looked, idle_since, said = -math.inf, self._cluster.now(), False
        while self._left:
            if self._cluster.now() >= looked + _TICK_S:
                looked = self._cluster.now()
                self._ask_for_slots()
                for number in sorted(self._idle):
                    self._give_next(number)
            for event in self._cluster.events(_TICK_S):
                self._handle(event)
            if self._slots:
                idle_since, said = self._cluster.now(), False
                continue
            waited = self._cluster.now() - idle_since
            if self._found and waited > _SAY_S:
                if not said:
                    self._say(
                        f"waiting: others measure on {format_items(len(self._found), 'machine')} of the cluster"
                    )
                said = True
                continue
            if waited > _SAY_S and not said:
                self._say(f"waiting for {self._wanted()}; the cluster offers {self._cluster.offers()}")
                said = True
            if waited > self._wait_s:
                reasons = "; ".join(dict.fromkeys(reason for said in self._reasons.values() for reason in said))
                raise AnswerError(
                    f"the cluster had no {self._wanted()} free within {format_seconds(self._wait_s)}; it offers "
                    f"{self._cluster.offers()}{f' (what came was lost: {reasons})' if reasons else ''}. What was "
                    "measured before is kept, and the same command goes on"
                )

    def _wanted(self) -> str:
        return ", ".join(map(str, self._queue.waiting()))

    def _ask_for_slots(self) -> None:
        """Ask for as many slots as there is work for, and no longer for more."""
        waiting, now = self._queue.waiting(), self._cluster.now()
        asked: dict[Place, list[int]] = {place: [] for place in waiting}
        for number, place in self._asked.items():
            asked.setdefault(place, []).append(number)
        room = self._room()
        for place, numbers in asked.items():
            # Machines that are found and busy say nothing about how many more there may be.
            found = len(self._found.intersection(numbers))
            wanted = max(0, min(waiting.get(place, 0), _MOST_PENDING + found, room))
            numbers.sort(key=lambda number: number not in self._found)
            for number in numbers[wanted:]:
                self._let_go(number)
            rest = self._rests.get(place)
            if rest is None or rest.until <= now:
                for _ in range(wanted - len(numbers)):
                    self._asked[self._cluster.open(place)] = place

    def _room(self) -> int:
        """Return how many more measurements there may be at once."""
        most = sys.maxsize if self._most_slots is None else self._most_slots
        return most - len(self._slots) + len(self._idle)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Found | Opened):
            if event.slot in self._asked and isinstance(event, Opened):
                self._begin(event)
            elif event.slot in self._asked:
                self._found.add(event.slot)
            return
        if event.slot in self._asked and isinstance(event, Lost):
            self._lose_asked(event)
        if event.slot not in self._slots:
            return
        slot = self._slots[event.slot]
        comparison = slot.comparison
        match event:
            case Lost():
                self._let_go(event.slot)
                if comparison is not None:
                    self._rests.setdefault(slot.node, _Rest()).begin(self._cluster.now(), lost=True)
                    self._lose(comparison, slot.node, event.reason)
            case Finished():
                assert comparison is not None, "only what was given can be finished"
                self._rests.pop(slot.node, None)
                self._keep(comparison, event)
            case Ended() | Refused():
                assert comparison is not None, "only what was given can end"
                self._rests.pop(slot.node, None)
                if isinstance(event, Refused):
                    self._give_up(comparison, event.reason)
                else:
                    self._left -= 1
                self._give_next(event.slot)

    def _begin(self, event: Opened) -> None:
        place = self._asked[event.slot]
        self._rests.pop(place, None)
        if self._room() <= 0:
            self._let_go(event.slot)
            return
        del self._asked[event.slot]
        self._found.discard(event.slot)
        self._slots[event.slot] = _Slot(place, event.node)
        self._give_next(event.slot)

    def _lose_asked(self, event: Lost) -> None:
        place = self._asked[event.slot]
        self._rests.setdefault(place, _Rest()).begin(self._cluster.now(), lost=True)
        self._let_go(event.slot)
        if event.reason not in self._reasons[place]:
            self._reasons[place][event.reason] = None
            self._say(f"a machine for {place} was lost as it came: {event.reason}")

    def _let_go(self, number: int) -> None:
        """Close a slot, or no longer ask for it."""
        self._asked.pop(number, None)
        self._found.discard(number)
        self._slots.pop(number, None)
        self._idle.discard(number)
        self._cluster.close(number)

    def _give_next(self, number: int) -> None:
        slot, now = self._slots[number], self._cluster.now()
        slot.comparison = None
        if not self._queue.waits(slot.place):
            # Let go at once: somebody else, or nobody, may pay for the machine.
            self._let_go(number)
            return
        rest = self._rests.get(slot.node)
        self._idle.add(number)
        if (rest is None or rest.until <= now) and self._room() > 0:
            nodes = {other.node for other in self._slots.values() if other.place == slot.place}
            slot.comparison = self._queue.take(slot.place, slot.node, nodes)
        if slot.comparison is None:
            return
        self._idle.discard(number)
        if rest is not None:
            # One is enough to try it; the other slots of the machine wait for what becomes of it.
            rest.begin(now)
        self._cluster.give(number, slot.comparison.study, slot.comparison.sessions, self._label)

    def _keep(self, comparison: Comparison, event: Finished) -> None:
        key = comparison.key
        self._store.add(event.outcomes, study=key, seconds=event.seconds, label=self._label, place=event.place)
        comparison.sessions.append(
            StoredSession(key, self._label, "", event.seconds, event.outcomes, place=event.place)
        )
        comparison.lost_on.clear()
        for line in event.lines:
            self._say(f"{event.place}: {line}")

    def _lose(self, comparison: Comparison, node: str, reason: str) -> None:
        comparison.lost_on.append(node)
        comparison.avoided.add(node)
        times = len(comparison.lost_on)
        if times < _MOST_LOSSES and len(set(comparison.lost_on)) < _MOST_MACHINES:
            self._say(f"{node} was lost ({reason}); {_name(comparison.study)} goes on elsewhere")
            self._queue.put(comparison, comparison.remaining_s(self._label))
        else:
            self._give_up(comparison, f"lost {times} times in a row, last on {node} ({reason})")

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
    if len({part.key for part in parts}) < len(parts):
        raise InputError("two of the studies compare the same under one name; give them names of their own")
    _recall(parts, store.sessions(), label)
    total = sum(part.study.budget_s for part in parts)
    say(f"{format_items(len(parts), 'comparison')}, {format_seconds(total)} of measuring in all")
    # What has nothing left needs no machine, not even to say so.
    unfinished = [part for part in parts if not _is_finished(part, label)]
    Coordinator(unfinished, store, cluster, label=label, say=say, most_slots=most_slots, wait_s=wait_s).run()
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
    sessions = [session for session in sessions if label in ("", session.label)]
    by_key: dict[str, list[StoredSession]] = defaultdict(list)
    for session in sessions:
        by_key[session.study].append(session)
    for part in parts:
        # Of one that is searched apart these are all; there may be thousands of them.
        near = by_key[part.key] if part.study.apart else sessions
        part.sessions += [session for session in near if bears_on(part.study, session)]


def _is_finished(part: Comparison, label: str) -> bool:
    """Whether nothing is left of a comparison in the environment that it was measured in last."""
    environment = _last_environment(part)
    if environment is None:
        return False
    known = known_from(part.study, measured_in(part.sessions, environment))
    return bool(known.outcomes) and next_step(part.study, known, part.remaining_s(label)) is None


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
    own = [session for session in part.sessions if session.study == part.key] or part.sessions
    return own[-1].outcomes[-1].environment if own else None
