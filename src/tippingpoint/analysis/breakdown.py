"""Where the time, the memory and the arithmetic of one call go: frozen records, and what follows from them.

The parts of a call, the time between its operators and what is left unexplained add up to the time of a plain call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tippingpoint.intervals import center_replicates, interval
from tippingpoint.machine import Environment, Peaks
from tippingpoint.measurement import Memory
from tippingpoint.models.components import AROUND, ATTENTION, OPTIMIZER
from tippingpoint.units import format_percent, format_seconds
from tippingpoint.workload import Workload

FORWARD, BACKWARD = "forward", "backward"
DIRECTIONS = (FORWARD, BACKWARD, OPTIMIZER)
# Parts, the time between operators and the whole agree, if they differ by no more.
CLOSED = 0.03
# Below so many positions a call is mostly what happens between its operators.
FEWEST_POSITIONS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A part of a call.

    Attributes:
        group: The larger part it belongs to, such as "attention".
        name: Its own name, such as "QKV projections"; that of the group where it is the whole of it.
        layer: Number of the layer, from 0; None outside of layers.
        direction: "forward", "backward" or "optimizer".
        seconds: Of its operators (on CUDA of their kernels), in each clocked call.
        flops: Executed floating-point operations.
        bytes_accessed: Inputs and outputs of its operators; None where one does not tell.
        held_bytes: Of the tensors that it made, those alive when the call held the most.
        parameters: How many it has, shared ones once; counted with its forward pass.
    """

    group: str
    name: str
    layer: int | None
    direction: str
    seconds: tuple[float, ...]
    flops: int = 0
    bytes_accessed: int | None = 0
    held_bytes: int = 0
    parameters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a worker tells of the parts of a call; attributes as of `Breakdown`."""

    components: tuple[Component, ...]
    plain_s: tuple[float, ...]
    clocked_s: tuple[float, ...]
    between_s: tuple[float, ...]
    gradients_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Parts that are shown as one, added up.

    Attributes:
        group: As of `Component`.
        name: As of `Component`; empty where the parts are a whole group.
        layer: As of `Component`; None where layers are added up.
        seconds: By direction.
        flops: Of all directions.
        bytes_accessed: Of all directions; None where one operator does not tell.
        held_bytes: Of all directions.
        parameters: Of all of them.
    """

    group: str
    name: str = ""
    layer: int | None = None
    seconds: dict[str, float]
    flops: int
    bytes_accessed: int | None
    held_bytes: int
    parameters: int

    @property
    def total_s(self) -> float:
        """Seconds of all directions."""
        return sum(self.seconds.values())


@dataclass(frozen=True, kw_only=True, repr=False)
class Breakdown:
    """Where one call of a workload spends its time, memory and arithmetic.

    Attributes:
        workload: What was called.
        environment: Where.
        positions: Sequence positions of one input.
        executed_positions: Positions after the model's own padding.
        parameters: Number of parameters, shared ones once.
        attention: The path that really ran, as observed in one call.
        components: By layer and direction, in the order in which they ran.
        plain_s: Seconds of a plain call, in each round; nothing watched it.
        clocked_s: Seconds of the clocked call beside it, watching included.
        between_s: Of each clocked call, what passed between its operators, less what watching took; on CUDA, of the
            plain call, what the device waited for the host.
        gradients_bytes: Of parameters, alive at the peak.
        memory: Peak memory from a process of its own, where it was asked for.
        peaks: How fast this machine was seen to be with the workload's threads and dtype.
        notes: What the reader of the numbers should know.
    """

    workload: Workload
    environment: Environment
    positions: int
    executed_positions: int
    parameters: int
    attention: str
    components: tuple[Component, ...]
    plain_s: tuple[float, ...]
    clocked_s: tuple[float, ...]
    between_s: tuple[float, ...]
    gradients_bytes: int = 0
    memory: Memory | None = None
    peaks: Peaks | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def _closures(self) -> np.ndarray:
        """Of each round: components and the time between operators over the plain call, [rounds]."""
        explained = np.sum([each.seconds for each in self.components], axis=0) + np.array(self.between_s)
        return explained / np.array(self.plain_s)

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """The rounds whose means are shown: the middle half, by what their parts add up to."""
        order = np.argsort(self._closures, kind="stable")
        outside = len(order) // 4
        return tuple(sorted(int(place) for place in order[outside : len(order) - outside]))

    def typical_s(self, values: Iterable[float]) -> float:
        """Return seconds of a typical call, from those of each round.

        Shares of the plain call beside it are averaged, so that drift of the machine cancels; and averages add up.
        """
        shares = np.array(list(values)) / np.array(self.plain_s)
        return float(shares[list(self.kept)].mean()) * self.whole_s

    @cached_property
    def whole_s(self) -> float:
        """Seconds of a plain call: their median."""
        return float(np.median(self.plain_s))

    @cached_property
    def between_operators_s(self) -> float:
        """Seconds of a call that pass between operators: Python, the library's code, dispatching."""
        return self.typical_s(self.between_s)

    @cached_property
    def explained_s(self) -> float:
        """Seconds of all components and between operators."""
        return sum(self.typical_s(each.seconds) for each in self.components) + self.between_operators_s

    @property
    def unexplained_s(self) -> float:
        """What a plain call takes beyond that; negative where it takes less."""
        return self.whole_s - self.explained_s

    @property
    def closure(self) -> float:
        """Components and the time between operators, over the time of a plain call."""
        return self.explained_s / self.whole_s

    @cached_property
    def closure_interval(self) -> tuple[float, float]:
        """95 % interval of the closure, from the ratios of rounds."""
        low, high = interval(center_replicates(np.log(self._closures)))
        return float(np.exp(low)), float(np.exp(high))

    @property
    def overhead(self) -> float:
        """What watching added to a clocked call, over a plain one."""
        return self.typical_s(self.clocked_s) / self.whole_s - 1

    @property
    def between_name(self) -> str:
        """What the time between operators is called."""
        return "between operators" if self.workload.device == "cpu" else "device waits for the host"

    def rows(self, *, by_layer: bool = False) -> list[Row]:
        """Return components, their directions (and layers) added up, in the order in which they ran."""
        return self._added(lambda each: (each.group, each.name, each.layer if by_layer else None))

    def groups(self, *, by_layer: bool = False) -> list[Row]:
        """Return groups of components, in the order in which they ran."""
        return self._added(lambda each: (each.group, "", each.layer if by_layer else None))

    def _added(self, key: Callable[[Component], tuple[str, str, int | None]]) -> list[Row]:
        found: dict[tuple[str, str, int | None], list[Component]] = {}
        for each in self.components:
            found.setdefault(key(each), []).append(each)
        return [self._row(place, parts) for place, parts in found.items()]

    def _row(self, place: tuple[str, str, int | None], parts: list[Component]) -> Row:
        group, name, layer = place
        seconds = dict.fromkeys(self.directions, 0.0)
        for each in parts:
            seconds[each.direction] += self.typical_s(each.seconds)
        accessed = [each.bytes_accessed for each in parts]
        return Row(
            group=group,
            name=name,
            layer=layer,
            seconds=seconds,
            flops=sum(each.flops for each in parts),
            bytes_accessed=None if None in accessed else sum(size or 0 for size in accessed),
            held_bytes=sum(each.held_bytes for each in parts),
            parameters=sum(each.parameters for each in parts),
        )

    @cached_property
    def directions(self) -> tuple[str, ...]:
        """The directions that there are: "forward" alone in inference."""
        there = {each.direction for each in self.components}
        return tuple(direction for direction in DIRECTIONS if direction in there)

    @property
    def flops(self) -> int:
        """Executed floating-point operations of all components."""
        return sum(each.flops for each in self.components)

    def attention_s(self, *, projections: bool = False) -> float:
        """Return the seconds of self-attention.

        Args:
            projections: Whether those of queries, keys, values and the output count too, which most variants leave as
                they are.
        """
        return sum(
            self.typical_s(each.seconds)
            for each in self.components
            if each.group == ATTENTION and (projections or each.name not in AROUND)
        )

    def most_speed_up(self, *, projections: bool = False) -> float:
        """Return the speed-up if attention took no time: more no variant can give at this length (Amdahl's law).

        Args:
            projections: Whether projections would take none either.
        """
        return self.whole_s / max(self.whole_s - self.attention_s(projections=projections), 1e-12)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is doubtful about this breakdown, and what to do next."""
        found = []
        if abs(self.closure - 1) > CLOSED:
            low, high = self.closure_interval
            reason = (
                "short inputs are mostly what happens between operators"
                if self.executed_positions < FEWEST_POSITIONS
                else "rerun when the machine is quiet, or with a larger --budget"
            )
            found.append(
                f"the parts add up to {self.closure:.3f} of the whole (95 % {low:.3f} to {high:.3f}): {reason}"
            )
        if self.between_operators_s > 0.2 * self.whole_s:
            share = format_percent(self.between_operators_s / self.whole_s)
            what = "passes between operators" if self.workload.device == "cpu" else "the device waits for the host"
            found.append(
                f"{share} of the time {what}: torch.compile or larger batches would help more than another attention"
            )
        spread = float(np.std(self.plain_s) / np.mean(self.plain_s))
        if spread > 0.1:
            found.append(
                f"plain calls differ by {format_percent(spread)} (standard deviation): something else uses the "
                "machine"
            )
        return tuple(found)

    def __str__(self) -> str:
        lines = [str(self.workload), f"  whole call  {format_seconds(self.whole_s)}"]
        for row in sorted(self.groups(), key=lambda row: -row.total_s):
            share = format_percent(row.total_s / self.whole_s)
            lines.append(f"  {row.group:<22} {format_seconds(row.total_s):>9}  {share}")
        lines += [
            f"  {self.between_name:<22} {format_seconds(self.between_operators_s):>9}",
            f"  adds up to {self.closure:.3f} of the whole; watching added {format_percent(self.overhead)}",
            f"  if attention were free: {self.most_speed_up():.2f} times as fast",
            *(f"  warning      {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)

    # What a person sees who types its name; the components would bury everything else.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        from tippingpoint.report.notebook import as_html

        return as_html(self)
