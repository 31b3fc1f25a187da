"""Slots of a Ray cluster: Ray finds, holds and loses the machines, each slot measures what it is given.

Ray's own accounting places a slot (an actor) on a node with the GPU, cores and resources that are asked for, starts
nodes where it autoscales, and takes the slot away when its node goes. Within a node, locks keep any two measurements
off one GPU and one socket; see `tippingpoint.profiling.exclusive`. Authentication is Ray's, and left as it is.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tippingpoint import __version__
from tippingpoint.errors import InputError, TippingPointError
from tippingpoint.profiling.device import now
from tippingpoint.profiling.hold import hold
from tippingpoint.store import Store, StoredSession
from tippingpoint.study.cluster import Ended, Event, Finished, Found, Lost, Opened, Refused
from tippingpoint.study.ledger import study_key
from tippingpoint.study.run import Machine, ThisMachine, search
from tippingpoint.workload import Place, Study

logger = logging.getLogger(__name__)

# A resource that Ray gives each node for the name of its accelerators.
_KIND_PREFIX = "accelerator_type:"
# Naming a kind takes no more of it than this; the GPU itself is taken as a whole.
_A_TRACE = 0.001


class Slot:
    """A device of one node, held for one measurement at a time; lives in a process of its own as a Ray actor.

    Args:
        place: What it holds.
        machine: What measures.
    """

    def __init__(self, place: Place, machine: Machine) -> None:
        self._place, self._machine = place, machine
        self._held = ExitStack()
        self._where = ""

    def found(self) -> tuple[str, str, str]:
        """Return the identifier of the node, and the versions of this package and of Python."""
        import ray

        return ray.get_runtime_context().get_node_id(), __version__, sys.version.split()[0]

    def opened(self) -> None:
        """Hold the place.

        Raises:
            InputError: If the node has no such place.
        """
        _forget_thread_settings()
        self._where = self._held.enter_context(hold(self._place))

    def measure(self, study: Study, sessions: Sequence[StoredSession], label: str) -> Iterator[tuple[Any, ...]]:
        """Measure a comparison session by session.

        Args:
            study: With subjects resolved.
            sessions: What is known of it.
            label: What the run is called.

        Yields:
            Outcomes, seconds, the device, and what there was to say, for each session.
        """
        lines: list[str] = []
        key = study_key(study)
        with Store(":memory:") as store:
            for known in sessions:
                store.add(known.outcomes, study=known.study, seconds=known.seconds, label=known.label)
            environment = self._machine.environment(study)
            for outcomes, seconds in search(study, store, environment, self._machine, label=label, say=lines.append):
                store.add(outcomes, study=key, seconds=seconds, label=label)
                yield tuple(outcomes), seconds, self._where, tuple(lines)
                lines.clear()


def _forget_thread_settings() -> None:
    """Undo Ray's own OMP_NUM_THREADS: how many threads compute is said by the study.

    It would make another environment of a machine, and its rows no longer comparable. What the node itself was
    started with is kept.
    """
    started_with = Path(f"/proc/{os.environ.get('RAY_RAYLET_PID', os.getppid())}/environ")
    try:
        kept = b"OMP_NUM_THREADS=" in started_with.read_bytes()
    except OSError:
        kept = False
    if not kept:
        os.environ.pop("OMP_NUM_THREADS", None)


@dataclass(slots=True)
class _Running:
    """A slot as the coordinator's side knows it: its actor, and what it is waited for."""

    actor: Any
    opening: Any = None
    stream: Any = None
    node: str = ""


class RayCluster:
    """The machines of a Ray cluster; see `tippingpoint.study.cluster.Cluster`.

    Use as a context manager, or call `shut_down`.

    Args:
        address: Of the cluster, such as "auto" or "node:6379"; None is the one that this process has joined, that
            this machine belongs to or that RAY_ADDRESS names, and where there is none a new one of this machine.
        machine: What measures on the nodes; for tests.

    Raises:
        InputError: If Ray is not installed, there is no cluster at the address, it does not let us in, or the address
            is that of a client.
    """

    def __init__(self, address: str | None = None, *, machine: Machine | None = None) -> None:
        if address and address.startswith("ray://"):
            raise InputError(
                f"{address} is for Ray's clients, which cannot follow what is measured; start this on a machine of "
                "the cluster with --address auto, or submit it as a Ray job"
            )
        # Ray would hide GPUs from what asks for none, and warn that a later version will not.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            # Ray's own types say less than they seem to.
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise InputError("running on Ray needs Ray; install it with `pip install 'tippingpoint[ray]'`") from error
        try:
            self._joined = not self._ray.is_initialized()
            if self._joined:
                self._ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **({} if address else {"include_dashboard": False}),
                )
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            said = " ".join(str(error).split())[:300]
            raise InputError(
                f"no Ray cluster could be joined at {address or 'this machine'}: {said}; "
                "is it up, and is its token here (RAY_AUTH_TOKEN, or the file ~/.ray/auth_token)?"
            ) from error
        self._machine = machine or ThisMachine()
        self._slots: dict[int, _Running] = {}
        self._opened = 0

    def open(self, place: Place) -> int:
        """Ask for a slot; see `Cluster`."""
        actor = self._ray.remote(Slot).options(**self._demand(place)).remote(place, self._machine)
        self._opened += 1
        self._slots[self._opened] = _Running(actor, opening=actor.found.remote())
        return self._opened

    def _demand(self, place: Place) -> dict[str, Any]:
        """Return what Ray must find for a slot."""
        resources = dict(place.resources)
        if place.device != "cpu" and place.kind != "cuda":
            resources[f"{_KIND_PREFIX}{self._spelled(place.kind)}"] = _A_TRACE
        return {
            "num_cpus": place.cores,
            "num_gpus": int(place.device != "cpu"),
            "resources": resources,
            # What is lost is known to the coordinator, and given to another slot.
            "max_restarts": 0,
            "max_task_retries": 0,
            # Slots of one machine may have to take turns, those of many need not.
            "scheduling_strategy": "SPREAD",
        }

    def _spelled(self, kind: str) -> str:
        """Return the name of a kind as the cluster has it, whatever the case; as it is, if there is none yet."""
        every = [name for node in self._nodes() for name in node["Resources"] if name.startswith(_KIND_PREFIX)]
        known = [name.removeprefix(_KIND_PREFIX) for name in every]
        return next((name for name in known if name.lower() == kind.lower()), kind)

    def give(self, slot: int, study: Study, sessions: Sequence[StoredSession], label: str) -> None:
        """Let a slot measure; see `Cluster`."""
        running = self._slots[slot]
        running.stream = running.actor.measure.options(num_returns="streaming").remote(study, list(sessions), label)

    def close(self, slot: int) -> None:
        """Let a slot go; see `Cluster`."""
        self._ray.kill(self._slots.pop(slot).actor)

    def now(self) -> float:
        """Return seconds; see `Cluster`."""
        return now()

    def events(self, timeout_s: float) -> list[Event]:
        """Return what has happened; see `Cluster`."""
        waited = {
            slot.opening if slot.stream is None else slot.stream: number
            for number, slot in self._slots.items()
            if slot.opening is not None or slot.stream is not None
        }
        if not waited:
            time.sleep(timeout_s)
            return []
        ready, _ = self._ray.wait(list(waited), num_returns=1, timeout=timeout_s, fetch_local=False)
        # Whatever else is there by now comes along.
        more = [other for other in waited if other not in ready]
        if ready and more:
            ready += self._ray.wait(more, num_returns=len(more), timeout=0, fetch_local=False)[0]
        return [self._event(waited[one]) for one in ready]

    def _event(self, number: int) -> Event:
        """Return what a slot has to tell, now that there is something."""
        slot, errors = self._slots[number], self._ray.exceptions
        try:
            if slot.stream is None:
                return self._event_of_opening(number, slot)
            try:
                reference = next(slot.stream)
            except StopIteration:
                slot.stream = None
                return Ended(number)
            outcomes, seconds, where, lines = self._ray.get(reference)
            return Finished(number, outcomes, seconds, f"{slot.node}/{where}", lines)
        except errors.RayTaskError as error:
            # Whatever it was, other comparisons may go on; where it came from is in the log.
            logger.debug("%s", error)
            cause, known = error.cause, isinstance(error.cause, TippingPointError)
            reason = " ".join(f"{'' if known else f'{type(cause).__name__}: '}{cause}".split())
            given, slot.stream = slot.stream is not None, None
            return Refused(number, reason) if given else Lost(number, f"{slot.node}: {reason}")
        except errors.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            # Of an actor that could not be made, the last line says why; the first one where.
            return Lost(number, lines[-1 if "creation task" in lines[0] else 0])

    def _event_of_opening(self, number: int, slot: _Running) -> Event:
        opening, slot.opening = slot.opening, None
        if slot.node:
            self._ray.get(opening)
            return Opened(number, slot.node)
        node, version, python = self._ray.get(opening)
        slot.node = next((_name(each) for each in self._ray.nodes() if each["NodeID"] == node), node)
        here = sys.version.split()[0]
        if (version, python) != (__version__, here):
            return Lost(
                number,
                f"{slot.node} has tippingpoint {version} and Python {python}, and this process {__version__} and "
                f"{here}; install the same on every node",
            )
        slot.opening = slot.actor.opened.remote()
        return Found(number)

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def offers(self) -> str:
        """Return in words what machines there are."""
        kinds = Counter(
            ", ".join(
                [f"{amount:g} {name}" for name, amount in sorted(node["Resources"].items()) if _is_telling(name)]
                or ["nothing"]
            )
            for node in self._nodes()
        )
        return "; ".join(f"{count} x ({what})" for what, count in kinds.items()) or "no machine"

    def shut_down(self) -> None:
        """Let every slot go, and leave the cluster."""
        try:
            for number in list(self._slots):
                self.close(number)
        finally:
            if self._joined:
                self._ray.shutdown()

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shut_down()


def _name(node: dict[str, Any]) -> str:
    """Return the name that a node was started with, or that of its host if it was given none."""
    given = node["NodeName"]
    return node["NodeManagerHostname"] if given == node["NodeManagerAddress"] else given


def _is_telling(resource: str) -> bool:
    return not resource.startswith(("node:", "object_store_memory", "memory"))
