"""Which comparison goes next: a queue for each kind of place."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from tippingpoint.store import StoredSession
from tippingpoint.study.ledger import seconds_spent, study_key
from tippingpoint.workload import Place, Study


@dataclass(slots=True, eq=False)
class Comparison:
    """A search on its way through the cluster.

    Attributes:
        study: With subjects resolved; it says what kind of place is asked for.
        whole: Number of the study that it is a part of.
        sessions: Everything known that bears on it, oldest first.
        lost_on: Machines of slots that were lost in a row, with no session finished in between.
        avoided: Every machine where a slot was lost.
        trouble: Why it was given up; empty if it was not.
        key: Of the study; see `study_key`.
    """

    study: Study
    whole: int
    sessions: list[StoredSession] = field(default_factory=list)
    lost_on: list[str] = field(default_factory=list)
    avoided: set[str] = field(default_factory=set)
    trouble: str = ""
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = study_key(self.study)

    @property
    def place(self) -> Place:
        """What it asks for."""
        assert self.study.place is not None, "checked when the study was taken"
        return self.study.place

    def remaining_s(self, label: str) -> float:
        """Return what is left of its budget."""
        return self.study.budget_s - seconds_spent(self.study, self.sessions, label)


class Queue:
    """Comparisons that wait, by kind of place: what was lost first, then the one with most left of its budget.

    That leaves the short ones for the end, when slots run out of work one after the other: no slot is idle for
    longer than the last comparison of another takes (list scheduling, longest first; Graham, SIAM Journal on Applied
    Mathematics 17, 1969). What was lost was under way already, and of those that take longer than anybody thought,
    most are.
    """

    def __init__(self) -> None:
        self._waiting: dict[Place, list[tuple[bool, float, int, Comparison]]] = defaultdict(list)
        self._order = itertools.count()

    def put(self, comparison: Comparison, remaining_s: float) -> None:
        """Let a comparison wait."""
        entry = (not comparison.lost_on, -remaining_s, next(self._order), comparison)
        heapq.heappush(self._waiting[comparison.place], entry)

    def take(self, place: Place, node: str, nodes: Collection[str]) -> Comparison | None:
        """Return what a slot should do next, None if nothing waits that it should do.

        Args:
            place: What the slot is.
            node: Its machine. What was lost there waits for another one, as long as there is one where it was not.
            nodes: Every machine with such slots.
        """
        waiting, passed, chosen = self._waiting[place], [], None
        while waiting and chosen is None:
            entry = heapq.heappop(waiting)
            avoided = entry[-1].avoided
            if node in avoided and not avoided.issuperset(nodes):
                passed.append(entry)
            else:
                chosen = entry[-1]
        for entry in passed:
            heapq.heappush(waiting, entry)
        return chosen

    def waits(self, place: Place) -> bool:
        """Whether a comparison waits for a kind of place."""
        return bool(self._waiting[place])

    def waiting(self) -> dict[Place, int]:
        """Return how many comparisons wait for each kind of place."""
        return {place: len(entries) for place, entries in self._waiting.items() if entries}
