"""What a cluster is to a study: slots that open, what they tell, and how they are asked.

A slot is a device of one machine, held for one measurement at a time. How machines are found, held and lost is a
cluster's own business; Ray's is in `launch_ray`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tippingpoint.measurement import Outcome
from tippingpoint.store import StoredSession
from tippingpoint.workload import Place, Study


@dataclass(frozen=True, slots=True)
class Found:
    """A slot has a machine, and waits until nobody else measures there; a cluster may leave this out."""

    slot: int


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


Event = Found | Opened | Finished | Ended | Refused | Lost


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
