"""Nodes that should be alike and are not: one is throttled, has another driver, slower memory, a neighbour.

A node is what stands before the last slash of a session's place, a device what stands behind it. Held against each
other are nodes of one kind, in what several of them measured; see `factors` for how. What shallow models were looked
at for counts too, with a noise of its own: those lengths are the same for every pair, while the models themselves are
measured where each pair tips. Devices of one node come first, and one that is off does not speak for its node.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from tippingpoint.analysis.factors import Deviation, Fit, Reading, deviations, fits
from tippingpoint.machine import Conditions, Environment
from tippingpoint.measurement import Measurement, is_best_batch, is_look
from tippingpoint.report.environments import unlike_fields
from tippingpoint.units import format_items, format_percent
from tippingpoint.workload import Subject, Workload

if TYPE_CHECKING:
    from tippingpoint.store import StoredSession

# Chance that a study whose machines are all alike tells of one that is not.
_CHANCE = 0.05
# Less than this matters to nobody.
LEAST = 0.03
# What a machine did is told where its share of blocks or time is larger than the others' by this ...
_MORE = 0.05
# ... or its clock is off by this share.
_CLOCK = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """A node, or a device of one, that is certainly slower or faster than others of its kind.

    Attributes:
        node: Its name.
        device: Which one of the node, held against the node's others; empty for the node as a whole.
        kind: What it and the others are, in words.
        others: Those it was held against: nodes, or devices of the node.
        factor: Its time over the median of theirs.
        interval: Of the factor; 95 % for all nodes and devices that were looked at together.
        sessions: In which it did what others did too.
        workloads: That it and others measured.
        differences: Field of the environment, its value, theirs; what none of the others has.
        signs: What the machine did while blocks were timed, where that is unlike.
    """

    node: str
    device: str
    kind: str
    others: tuple[str, ...]
    factor: float
    interval: tuple[float, float]
    sessions: int
    workloads: int
    differences: tuple[tuple[str, str, str], ...] = ()
    signs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Node, and device where it is one."""
        return f"{self.node}/{self.device}" if self.device else self.node

    def __str__(self) -> str:
        slower = self.factor > 1
        ends = self.interval if slower else (1 / self.interval[1], 1 / self.interval[0])
        times = f"{max(self.factor, 1 / self.factor):.2f} times {'slower' if slower else 'faster'}"
        noun, where = ("device", " of that node") if self.device else ("node", "")
        others = format_items(len(self.others), f"other {noun}") + where
        if len(self.others) == 1:
            others = f"{self.others[0]}, the only other {noun}{where}"
        if slower:
            advice = "look at its clocks, cooling and neighbours, or leave it out"
        else:
            advice = "look at the clocks, cooling and neighbours of all of them"
        return "; ".join(
            [
                f"{self.name} is {times} ({ends[0]:.2f} to {ends[1]:.2f}) than {others} with {self.kind}, in "
                f"{format_items(self.sessions, 'session')} of {format_items(self.workloads, 'workload')}",
                *(f"its {name} is {its} and theirs {theirs}" for name, its, theirs in self.differences),
                *self.signs,
                advice,
            ]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a subject took in one timed group of a session: at one length; of shallow models, at all their depths.

    Attributes:
        node: Where.
        device: Where on the node; empty if it is not told.
        group: Session of the store, and the name of the group in it.
        kind: Of the machine: nodes of one kind should be alike.
        work: What others did too.
        measurements: Of each depth.
    """

    node: str
    device: str
    group: tuple[int, str]
    kind: Hashable
    work: Hashable
    measurements: tuple[Measurement, ...]

    @property
    def environment(self) -> Environment:
        return self.measurements[-1].environment

    @property
    def workloads(self) -> list[Workload]:
        return [measurement.workload for measurement in self.measurements]

    def reading(self, machine: str) -> Reading:
        """Return the mean of the logarithms, as what a machine took."""
        log_s = sum(math.log(measurement.latency_s) for measurement in self.measurements) / len(self.measurements)
        return Reading(self.work, machine, log_s, is_look(self.measurements[0]))


def disagreements(sessions: Iterable[StoredSession]) -> tuple[Disagreement, ...]:
    """Return the nodes, and devices of nodes, that disagree with others of their kind beyond noise.

    A node is as it was measured last: what it measured with another driver or other versions does not count. What was
    measured on this machine, which has no name, is left out.

    Args:
        sessions: Of a store, oldest first; all of them or some.

    Returns:
        For each kind, devices first, the one that is furthest off before the others. If all machines are alike, there
        is one in less than 5 % of studies.
    """
    kinds = [_as_last(seen) for seen in _by(lambda each: each.kind, _seen(sessions)).values()]
    by_device = [(its, fit) for seen in kinds for its in _by(_node, seen).values() for fit in _fits(its, _device)]
    verdicts = sum(fit.verdicts for _, fit in by_device)
    verdicts += sum(fit.verdicts for seen in kinds for fit in _fits(seen, _node))
    found = [_told(its, one, _device) for its, fit in by_device for one in _deviations(fit, verdicts)]
    off = {(one.node, one.device) for one in found}
    for seen in kinds:
        sound = [each for each in seen if (each.node, each.device) not in off]
        found += [_told(sound, one, _node) for fit in _fits(sound, _node) for one in _deviations(fit, verdicts)]
    return tuple(found)


def _node(seen: _Seen) -> str:
    return seen.node


def _device(seen: _Seen) -> str:
    return seen.device


def _work(seen: _Seen) -> Hashable:
    return seen.work


def _by(name: Callable[[_Seen], Hashable], seen: Iterable[_Seen]) -> dict[Hashable, list[_Seen]]:
    found: dict[Hashable, list[_Seen]] = defaultdict(list)
    for each in seen:
        found[name(each)].append(each)
    return found


def _seen(sessions: Iterable[StoredSession]) -> Iterator[_Seen]:
    """Yield what every subject took in every timed group that was measured on a node with a name."""
    for number, session in enumerate(sessions):
        if not session.place:
            continue
        node, slash, device = session.place.rpartition("/")
        groups: dict[tuple[str, Subject, Environment], list[Measurement]] = defaultdict(list)
        for outcome in session.outcomes:
            if isinstance(outcome, Measurement) and outcome.counted:
                groups[outcome.session, outcome.workload.subject, outcome.environment].append(outcome)
        for (name, _, environment), measurements in groups.items():
            of_model = environment.cpu_model if environment.device_name == "CPU" else ""
            yield _Seen(
                node=node if slash else device,
                device=device if slash else "",
                group=(number, name),
                kind=(environment.device_name, of_model, environment.cores, environment.threads),
                work=(frozenset(each.workload for each in measurements), is_best_batch(measurements[0])),
                measurements=tuple(measurements),
            )


def _as_last(seen: Sequence[_Seen]) -> list[_Seen]:
    """Return what each node measured in the environment that it had last."""
    last = {each.node: each.environment for each in seen}
    return [each for each in seen if each.environment == last[each.node]]


def _fits(seen: Sequence[_Seen], name: Callable[[_Seen], str]) -> list[Fit]:
    return fits(each.reading(name(each)) for each in _spoken(seen, name))


def _spoken(seen: Sequence[_Seen], name: Callable[[_Seen], str]) -> list[_Seen]:
    """Return the one of each timed group that most machines measured: a group is disturbed as a whole."""
    often = {work: (len({name(each) for each in its}), len(its)) for work, its in _by(_work, seen).items()}
    groups = _by(lambda each: each.group, seen).values()
    chosen = [max(group, key=lambda each: often[each.work]) for group in groups]
    return [each for each in chosen if often[each.work][0] > 1]


def _deviations(fit: Fit, verdicts: int) -> Iterable[Deviation]:
    return deviations(fit, _CHANCE / verdicts, math.log1p(LEAST))


def _told(seen: Sequence[_Seen], found: Deviation, name: Callable[[_Seen], str]) -> Disagreement:
    """Return what is known of a machine that is off."""
    spoken = _spoken(seen, name)
    its = [each for each in spoken if name(each) == found.machine]
    theirs = [each for each in spoken if name(each) in found.others]
    low, high = (found.log_factor + sign * found.half_width for sign in (-1, 1))
    return Disagreement(
        node=its[0].node,
        device=its[0].device if name is _device else "",
        kind=_kind(its[-1].environment),
        others=found.others,
        factor=math.exp(found.log_factor),
        interval=(math.exp(low), math.exp(high)),
        sessions=len({session for each in its for session, _ in [each.group]}),
        workloads=len({workload for each in its for workload in each.workloads}),
        differences=tuple(_differences(its[-1].environment, theirs)),
        signs=tuple(_signs(its, theirs)),
    )


def _kind(environment: Environment) -> str:
    if environment.device_name != "CPU":
        return environment.device_name
    return f"{format_items(environment.threads, 'thread')} on {environment.cpu_model}"


def _differences(its: Environment, theirs: Iterable[_Seen]) -> Iterable[tuple[str, str, str]]:
    """Yield in what an environment is unlike all others."""
    others = dict.fromkeys(each.environment for each in theirs)
    for name, (own, *values) in unlike_fields([its, *others]):
        if own not in values:
            yield name.replace("_", " "), own, " or ".join(dict.fromkeys(values))


def _signs(its: Sequence[_Seen], theirs: Sequence[_Seen]) -> Iterable[str]:
    """Yield what a machine did while blocks were timed, where others did otherwise."""
    own, others = (_conditions(seen) for seen in (its, theirs))
    for share, what in (
        (_throttled, "of its blocks ran throttled"),
        (_taken("others_s"), "of its cores' time went to other processes"),
        (_taken("steal_s"), "of its cores' time went to other virtual machines"),
    ):
        here, there = share(own), share(others)
        if here is not None and here > (there or 0.0) + _MORE:
            theirs_too = "" if there is None else f" ({format_percent(there) if there else 'none'} of theirs)"
            yield f"{format_percent(here)} {what}{theirs_too}"
    clocks = [float(np.median([each.clock_hz for each in side if each.clock_hz] or [0.0])) for side in (own, others)]
    if all(clocks) and abs(math.log(clocks[0] / clocks[1])) > math.log1p(_CLOCK):
        yield f"its clock was at {clocks[0] / 1e9:.2f} GHz and theirs at {clocks[1] / 1e9:.2f} GHz"


def _conditions(seen: Iterable[_Seen]) -> list[Conditions]:
    measurements = chain.from_iterable(each.measurements for each in seen)
    return [sample.conditions for each in measurements for sample in each.samples if sample.conditions]


def _throttled(conditions: Sequence[Conditions]) -> float | None:
    known = [each.throttled for each in conditions if each.throttled is not None]
    return sum(known) / len(known) if known else None


def _taken(field: str) -> Callable[[Sequence[Conditions]], float | None]:
    def share(conditions: Sequence[Conditions]) -> float | None:
        known = [(getattr(each, field), each.cores_s) for each in conditions if getattr(each, field) is not None]
        time = sum(cores_s or 0.0 for _, cores_s in known)
        return sum(taken for taken, _ in known) / time if time else None

    return share
