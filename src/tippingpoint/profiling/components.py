"""What each part of a call asks for, and what it takes: counted once, then timed, in passes of their own.

count    one call: FLOPs and bytes by part, and which part's tensors are alive when most is held
time     plain call | clocked call     clocked call | plain call     ...   until the budget is spent

A clocked call runs under a dispatch mode that reads the clock before and after each operator, below the modules and
without synchronising anything. What Python does between operators is seen too, and is made larger by watching: the
mode and the hooks read the clock themselves, in the caches as they are, and what they cannot see is measured on
operators that do next to nothing. On CUDA operators return before their kernels have run: there each one gets a range
of PyTorch's profiler, and its time is that of the kernels that it launched.
"""

from __future__ import annotations

import statistics
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tippingpoint.analysis.breakdown import Component, Parts
from tippingpoint.models.components import Patterns
from tippingpoint.profiling.attribution import WHOLE_LAYER, Attribution, Part, Spot
from tippingpoint.profiling.device import Device
from tippingpoint.profiling.flops import LeafOperators, Work, count_flops, count_work
from tippingpoint.profiling.traffic import storage_id

FEWEST_ROUNDS = 6
MOST_ROUNDS = 40
_RANGE = "tippingpoint:"
# What the cost of watching is measured on.
_TRIES = 7
# So many views tell what reading the clock costs.
_FEWEST_VIEWS = 8
_SMALL_LAYERS, _SMALL_WIDTH = 12, 4


@dataclass(frozen=True, slots=True)
class Held:
    """What was in memory when tensors held the most, in bytes: what the call itself made.

    Attributes:
        by_part: By the part that made it.
        gradients: Of parameters.
    """

    by_part: dict[Part, int]
    gradients: int


@dataclass(frozen=True, slots=True)
class Counted:
    """What one call asked for, by part.

    Attributes:
        work: FLOPs and bytes.
        held: At the peak.
    """

    work: dict[Part, Work]
    held: Held


@dataclass(frozen=True, slots=True)
class Clocked:
    """One call, timed operator by operator.

    Attributes:
        seconds: By part: of its operators, or of their kernels.
        operators: How many were timed, by part.
        whole_s: What the call took on the host's clock, watching included.
        entries: How often the mode was entered, operators that fell into others included.
        watching_s: Of it, what the mode, hooks and steps took, as they saw it themselves.
        inside_s: For each operator, what lies between the two readings of the clock beside its work; None where the
            call does not tell.
    """

    seconds: dict[Part, float]
    operators: dict[Part, int]
    whole_s: float
    entries: int
    watching_s: float
    inside_s: float | None


@dataclass(frozen=True, slots=True)
class WatchingCost:
    """What watching adds to a call, in seconds.

    Attributes:
        inside_s: For each operator, between the two readings of the clock, where the call itself does not tell.
        outside_s: For each entry of the mode, elsewhere, beyond what a call's own clocks see: the way into Python and
            back, and to the hooks.
        seen_s: For each entry of the mode, what a call's own clocks see.
    """

    inside_s: float
    outside_s: float
    seen_s: float


def count_parts(call: Callable[[], object], model: nn.Module, attribution: Attribution) -> Counted:
    """Count FLOPs and bytes of one call by part, and what is alive at the peak.

    Args:
        call: What to run, once.
        model: Whose parameters get gradients.
        attribution: In use for the model.
    """
    attribution.begin()
    storages = _Storages()
    _, _, work = count_work(call, attribution.spot, storages.made)
    by_part: dict[Part, Work] = {}
    for spot, each in work.items():
        total = by_part.setdefault(attribution.resolve(spot), Work())
        total.flops += each.flops
        unknown = total.bytes_accessed is None or each.bytes_accessed is None
        total.bytes_accessed = None if unknown else total.bytes_accessed + each.bytes_accessed  # type: ignore[operator]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return Counted(by_part, storages.at_peak(attribution, gradients))


class _Storages:
    """Follows what operators allocate until it is freed."""

    def __init__(self) -> None:
        # (number of the storage, bytes: positive when it is made, negative when it is freed)
        self._events: list[tuple[int, int]] = []
        self._spots: list[Spot] = []
        self._alive: dict[int | None, int] = {}

    def made(self, spot: Spot, result: Any, given: Any) -> None:
        """Note what an operator returned that it was not given."""
        known = {_place(value) for value in tree_leaves(given)}
        for tensor in tree_leaves(result):
            place = _place(tensor)
            if place is None or place in self._alive or place in known:
                continue
            storage = tensor.untyped_storage()
            number = len(self._spots)
            self._spots.append(spot)
            self._alive[place] = number
            size = storage.nbytes()
            self._events.append((number, size))
            weakref.finalize(storage, self._freed, place, number, size).atexit = False

    def _freed(self, place: int, number: int, size: int) -> None:
        if self._alive.get(place) == number:
            del self._alive[place]
        self._events.append((number, -size))

    def at_peak(self, attribution: Attribution, gradients: Iterable[Tensor]) -> Held:
        """Return what was alive when the sum was largest."""
        of_parameters = {self._alive.get(_place(gradient)) for gradient in gradients}
        total = most = last = 0
        events = list(self._events)
        for index, (_, size) in enumerate(events):
            total += size
            if total > most:
                most, last = total, index + 1
        alive: dict[int, int] = {}
        for number, size in events[:last]:
            if size > 0:
                alive[number] = size
            else:
                alive.pop(number, None)
        by_part: Counter[Part] = Counter()
        of_gradients = 0
        for number, size in alive.items():
            if number in of_parameters:
                of_gradients += size
            else:
                by_part[attribution.resolve(self._spots[number])] += size
        return Held(dict(by_part), of_gradients)


def _place(value: Any) -> int | None:
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return None
    return storage_id(value)


class _Clock(LeafOperators):
    """Reads the clock around every operator that reaches the backend."""

    def __init__(self, attribution: Attribution, now: Callable[[], float]) -> None:
        super().__init__()
        self.taken: list[tuple[Spot, float]] = []
        self.entries = 0
        # Seconds that the mode itself took so far.
        self.own_s = 0.0
        self.attribution = attribution
        self._now = now
        self._inner_s = 0.0
        self._views: list[float] = []

    def enter(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Go on, and note what the mode itself takes."""
        begin, inner = self._now(), self._inner_s
        self.entries += 1
        result = super().enter(func, args, kwargs)
        whole = self._now() - begin
        # What operators, and entries for those that an operator is made of, took within.
        self.own_s += whole - (self._inner_s - inner)
        self._inner_s = inner + whole
        return result

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator and note what it took."""
        spot = self.attribution.spot(func, args)
        start = self._now()
        result = func(*args, **kwargs)
        taken = self._now() - start
        self.taken.append((spot, taken))
        self._inner_s += taken
        if getattr(func, "is_view", False):
            self._views.append(taken)
        return result

    @property
    def inside_s(self) -> float | None:
        """Seconds between two readings of the clock around a view, which does no work; None with too few of them."""
        return statistics.median(self._views) if len(self._views) >= _FEWEST_VIEWS else None


class _Ranges(_Clock):
    """Gives every operator a range of PyTorch's profiler, by which its kernels are found."""

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator in a range of its own."""
        spot = self.attribution.spot(func, args)
        with torch.profiler.record_function(f"{_RANGE}{len(self.taken)}"):
            result = func(*args, **kwargs)
        self.taken.append((spot, 0.0))
        return result


def clock_call(call: Callable[[], None], device: Device, attribution: Attribution) -> Clocked:
    """Run a call once and time its operators.

    Args:
        call: What to run, once.
        device: Where it runs, and whose clock counts.
        attribution: In use for the model.
    """
    attribution.begin()
    hooks = attribution.own_s
    if device.name.startswith("cuda"):
        clock, whole = _clock_kernels(call, device, attribution)
    else:
        clock = _Clock(attribution, device.now)

        def watched_call() -> None:
            with clock:
                call()

        whole, _ = device.time_block(watched_call, 1)
    seconds: defaultdict[Part, float] = defaultdict(float)
    operators: Counter[Part] = Counter()
    for spot, taken in clock.taken:
        part = attribution.resolve(spot)
        seconds[part] += taken
        operators[part] += 1
    watching = clock.own_s + attribution.own_s - hooks
    return Clocked(dict(seconds), dict(operators), whole, clock.entries, watching, clock.inside_s)


def _clock_kernels(call: Callable[[], None], device: Device, attribution: Attribution) -> tuple[_Clock, float]:
    from torch.profiler import ProfilerActivity, profile

    clock = _Ranges(attribution, device.now)

    def watched_call() -> None:
        with clock:
            call()

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        whole, _ = device.time_block(watched_call, 1)
    kernels = kernel_seconds(seen.events() or ())
    clock.taken = [(spot, kernels.get(number, 0.0)) for number, (spot, _) in enumerate(clock.taken)]
    return clock, whole


def kernel_seconds(events: Iterable[Any]) -> dict[int, float]:
    """Return the seconds of the kernels that were launched in each numbered range.

    Args:
        events: Of PyTorch's profiler; kernels stand with the operators that launched them.
    """
    from torch.profiler import DeviceType

    def of(event: Any) -> float:
        # The profiler copies ranges to the device's own timeline, where they count as kernels.
        own = sum(kernel.duration for kernel in event.kernels if not kernel.name.startswith(_RANGE))
        return own + sum(of(child) for child in event.cpu_children)

    return {
        int(event.name.removeprefix(_RANGE)): of(event) / 1e6
        for event in events
        if event.name.startswith(_RANGE) and event.device_type == DeviceType.CPU
    }


def time_parts(
    call: Callable[[], None], device: Device, attribution: Attribution, *, budget_s: float, calls: int = 1
) -> tuple[list[float], list[Clocked]]:
    """Time plain calls beside clocked ones, in turns, until the budget is spent.

    Args:
        call: What to run, warmed up.
        device: Where it runs, and whose clock counts.
        attribution: For the model, not in use: hooks stand in the modules only while a call is clocked.
        budget_s: Seconds for all rounds; six are run in any case.
        calls: How many plain calls make a block.

    Returns:
        Seconds of a plain call and the clocked call beside it, for each round.
    """
    plain: list[float] = []
    clocked: list[Clocked] = []
    begin = device.now()

    def time_plain() -> None:
        host, _ = device.time_block(call, calls)
        plain.append(host / calls)

    def time_clocked() -> None:
        with attribution:
            clocked.append(clock_call(call, device, attribution))

    for number in range(MOST_ROUNDS):
        for step in (time_plain, time_clocked) if number % 2 == 0 else (time_clocked, time_plain):
            step()
        spent = device.now() - begin
        if number + 1 >= FEWEST_ROUNDS and number % 2 and spent + 2 * spent / (number + 1) > budget_s:
            break
    return plain, clocked


def measure_watching(device: Device, *, training: bool) -> WatchingCost:
    """Measure what watching costs, on operators that do next to nothing.

    Args:
        device: Whose clock counts; the operators run on the CPU, as the watching does.
        training: Whether there is a backward pass, whose operators are found in another way.
    """
    with torch.random.fork_rng():
        model = nn.Sequential(*(_SmallLayer() for _ in range(_SMALL_LAYERS)))
    inputs = torch.zeros(1, 2, _SMALL_WIDTH)

    def call() -> None:
        with torch.inference_mode(not training):
            output = model(inputs)
            if training:
                output.sum().backward()

    inside, outside, seen = [], [], []
    for _ in range(_TRIES):
        call()
        alone = _seconds(device, call)
        with Attribution(model, now=device.now) as attribution:
            attribution.begin()
            clock = _Clock(attribution, device.now)
            with clock:
                watched = _seconds(device, call)
        inside.append(clock.inside_s or 0.0)
        seen.append((clock.own_s + attribution.own_s) / clock.entries)
        added = watched - alone - inside[-1] * len(clock.taken)
        outside.append(added / clock.entries - seen[-1])
    return WatchingCost(*(max(0.0, statistics.median(each)) for each in (inside, outside, seen)))


class _SmallAttention(nn.Module):
    """As many operators and modules as an attention of a model, next to nothing in each."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out_proj = (nn.Linear(_SMALL_WIDTH, _SMALL_WIDTH) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        scores = self.query(hidden) @ self.key(hidden).transpose(1, 2)
        return self.out_proj(scores.softmax(-1) @ self.value(hidden))


class _SmallLayer(nn.Module):
    """A layer like those of models, of next to no width."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = _SmallAttention()
        self.norm1, self.norm2 = nn.LayerNorm(_SMALL_WIDTH), nn.LayerNorm(_SMALL_WIDTH)
        self.fc1, self.fc2 = nn.Linear(_SMALL_WIDTH, _SMALL_WIDTH), nn.Linear(_SMALL_WIDTH, _SMALL_WIDTH)
        self.activation = nn.GELU()

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.norm1(hidden + self.attention(hidden))
        return self.norm2(hidden + self.fc2(self.activation(self.fc1(hidden))))


def _seconds(device: Device, function: Callable[[], None]) -> float:
    start = device.now()
    function()
    return device.now() - start


def break_down(
    call: Callable[[], None],
    model: nn.Module,
    device: Device,
    patterns: Patterns | None,
    *,
    budget_s: float,
    calls: int = 1,
) -> Parts:
    """Return what each part of a call asks for and takes.

    Args:
        call: What to run, warmed up.
        model: What it runs, whose modules are the parts.
        device: Where it runs, and whose clock counts.
        patterns: A person's own names of modules.
        budget_s: Seconds for timing; six rounds are run in any case.
        calls: How many plain calls make a block.
    """
    attribution = Attribution(model, patterns, now=device.now, whole_layers=_has_whole_layers(call, model))
    with attribution:
        counted = count_parts(call, model, attribution)
    cost = measure_watching(device, training=any(parameter.requires_grad for parameter in model.parameters()))
    plain, clocked = time_parts(call, device, attribution, budget_s=budget_s, calls=calls)
    on_host = not device.name.startswith("cuda")
    seconds = [_corrected(each, cost) if on_host else each.seconds for each in clocked]
    between = [
        _between(each, cost) if on_host else max(0.0, alone - sum(each.seconds.values()))
        for each, alone in zip(clocked, plain, strict=True)
    ]
    parameters = attribution.parameters()
    order = {part: place for each in reversed(clocked) for place, part in enumerate(each.seconds)}
    known = dict.fromkeys([*sorted(order, key=lambda part: order[part]), *counted.work, *parameters])
    return Parts(
        components=tuple(
            Component(
                group=part.label.group,
                name=part.label.name,
                layer=part.layer,
                direction=part.direction,
                seconds=tuple(each.get(part, 0.0) for each in seconds),
                flops=counted.work[part].flops if part in counted.work else 0,
                bytes_accessed=counted.work[part].bytes_accessed if part in counted.work else 0,
                held_bytes=counted.held.by_part.get(part, 0),
                parameters=parameters.get(part, 0),
            )
            for part in known
        ),
        plain_s=tuple(plain),
        clocked_s=tuple(each.whole_s for each in clocked),
        between_s=tuple(between),
        gradients_bytes=counted.held.gradients,
    )


def _has_whole_layers(call: Callable[[], None], model: nn.Module) -> bool:
    """Whether a call runs layers as one operator each."""
    if not any(isinstance(module, nn.TransformerEncoderLayer) for module in model.modules()):
        return False
    return count_flops(call)[1][WHOLE_LAYER] > 0


def _between(clocked: Clocked, cost: WatchingCost) -> float:
    """Return the seconds of a call that passed between operators, less what watching took there."""
    # In the caches that a large model leaves behind everything takes longer than it did on small layers: what is not
    # seen as much as what is.
    slower = clocked.watching_s / (clocked.entries * cost.seen_s) if cost.seen_s else 1.0
    watching = clocked.watching_s + clocked.entries * cost.outside_s * max(1.0, slower)
    return max(0.0, clocked.whole_s - sum(clocked.seconds.values()) - watching)


def _corrected(clocked: Clocked, cost: WatchingCost) -> dict[Part, float]:
    """Return the seconds of each part, less what reading the clock took."""
    inside = cost.inside_s if clocked.inside_s is None else clocked.inside_s
    return {part: max(0.0, seconds - clocked.operators[part] * inside) for part, seconds in clocked.seconds.items()}


def write_trace(
    call: Callable[[], None], model: nn.Module, device: Device, patterns: Patterns | None, path: str
) -> None:
    """Write one call as a trace that Chrome and Perfetto open, with the parts as ranges around their operators.

    Args:
        call: What to run, warmed up.
        model: What it runs.
        device: Where.
        patterns: A person's own names of modules.
        path: File to write.
    """
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if device.name.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
    whole_layers = _has_whole_layers(call, model)
    with Attribution(model, patterns, ranges=True, whole_layers=whole_layers), profile(activities=activities) as seen:
        call()
        device.synchronize()
    seen.export_chrome_trace(path)
