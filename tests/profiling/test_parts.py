"""What parts hold, and what they take on a clock that the tests script: operators take as long as they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

from tippingpoint.analysis.breakdown import Parts
from tippingpoint.models.build import build
from tippingpoint.models.components import Label, parse_patterns
from tippingpoint.profiling.attribution import Attribution, Part
from tippingpoint.profiling.components import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    Held,
    break_down,
    clock_call,
    count_parts,
    kernel_seconds,
    measure_watching,
    time_parts,
)
from tippingpoint.profiling.device import CpuDevice
from tippingpoint.stages import stage
from tippingpoint.workload import Workload

pytestmark = pytest.mark.usefixtures("one_thread")

FLOAT = 4


# ---- memory


class Exponential(nn.Module):
    """Keeps what it returns for its backward pass, and not what it was given."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.exp()


class Views(nn.Module):
    """Nothing of this takes memory."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.t()[1:].relu_().unsqueeze(0).expand(3, -1, -1).detach()


def chain(*modules: nn.Module) -> tuple[nn.Module, dict[str, Label]]:
    """Modules one after the other, each a part that is called by its place."""
    return nn.Sequential(*modules), {str(place): Label("part", str(place)) for place in range(len(modules))}


def held(model: nn.Module, patterns: dict[str, Label], call: Callable[[], object]) -> Held:
    with Attribution(model, patterns) as attribution:
        return count_parts(call, model, attribution).held


def by_place(found: Held) -> dict[tuple[str, str], int]:
    """Bytes of the model's parts; what is not one of them is a few scalars at most."""
    elsewhere = [size for part, size in found.by_part.items() if part.label.group != "part"]
    assert sum(elsewhere) <= 4 * FLOAT
    return {
        (part.label.name, part.direction): size for part, size in found.by_part.items() if part.label.group == "part"
    }


def inference(model: nn.Module, *inputs: Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode():
            model(*inputs)

    return call


def test_at_the_peak_an_input_and_an_output_of_an_operator_are_held():
    model, patterns = chain(nn.Linear(256, 512), nn.ReLU())
    found = held(model, patterns, inference(model, torch.zeros(4, 256)))
    assert by_place(found) == {("0", "forward"): 4 * 512 * FLOAT, ("1", "forward"): 4 * 512 * FLOAT}
    assert found.gradients == 0


def test_what_is_freed_before_the_peak_is_not_held_at_it():
    model, patterns = chain(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1000), nn.Linear(1000, 8))
    found = held(model, patterns, inference(model, torch.zeros(10, 8)))
    # The largest and what it was made of; what comes out at the end is smaller.
    assert by_place(found) == {("1", "forward"): 10 * 64 * FLOAT, ("2", "forward"): 10 * 1000 * FLOAT}


def test_what_was_there_before_the_call_is_not_the_calls():
    model, patterns = chain(nn.ReLU())
    assert by_place(held(model, patterns, inference(model, torch.zeros(10, 10)))) == {("0", "forward"): 100 * FLOAT}
    in_place, patterns = chain(nn.ReLU(inplace=True))
    assert held(in_place, patterns, inference(in_place, torch.zeros(10, 10))).by_part == {}


def test_views_hold_nothing_of_their_own():
    model, patterns = chain(Exponential(), Views())
    found = held(model, patterns, inference(model, torch.zeros(10, 10)))
    assert by_place(found) == {("0", "forward"): 100 * FLOAT}


def test_a_tensor_that_a_caller_keeps_is_held_to_the_end():
    model, patterns = chain(Exponential(), Exponential())
    kept = []

    def call() -> None:
        with torch.inference_mode():
            for size in (10, 20, 30):
                kept.append(model(torch.zeros(size)))

    # Made outside of the model: what it was given.
    with Attribution(model, patterns) as attribution:
        found = count_parts(call, model, attribution).held
    sizes = {str(part.label): size for part, size in found.by_part.items()}
    assert sizes["part: 1"] == (10 + 20 + 30) * FLOAT
    assert sizes["part: 0"] == 30 * FLOAT
    assert sizes["outside of the model"] == 30 * FLOAT


def test_in_training_what_is_kept_for_the_backward_pass_is_held_by_who_made_it():
    """The peak is in the backward pass of the exponential: its output, the gradient that comes, the one that goes."""
    model, patterns = chain(nn.Linear(4, 4), Exponential(), nn.Linear(4, 4))
    inputs = torch.zeros(1000, 4)
    found = held(model, patterns, lambda: model(inputs).sum().backward())
    assert by_place(found) == {
        ("1", "forward"): 16_000,
        ("2", "backward"): 16_000,
        ("1", "backward"): 16_000,
    }
    # Of the last layer; the first has none yet.
    assert found.gradients == (16 + 4) * FLOAT


def test_gradients_of_parameters_are_counted_apart():
    model, patterns = chain(nn.Linear(300, 200), nn.Linear(200, 100))
    inputs = torch.zeros(1, 300)
    found = held(model, patterns, lambda: model(inputs).sum().backward())
    assert found.gradients == (300 * 200 + 200 + 200 * 100 + 100) * FLOAT
    assert sum(found.by_part.values()) < 1000 * FLOAT


def test_deeper_models_hold_more_in_training_and_not_in_inference():
    def bytes_held(depth: int, training: bool) -> int:
        model, patterns = chain(*(Exponential() for _ in range(depth)))
        inputs = torch.zeros(1000, requires_grad=training)

        def call() -> None:
            with torch.inference_mode(not training):
                output = model(inputs)
                if training:
                    output.sum().backward()
                    inputs.grad = None

        return sum(size for size in held(model, patterns, call).by_part.values() if size >= 1000)

    assert [bytes_held(depth, False) for depth in (2, 4, 8)] == [8000, 8000, 8000]
    # Every output, and two gradients at a time.
    assert [bytes_held(depth, True) for depth in (2, 4, 8)] == [4000 * (depth + 2) for depth in (2, 4, 8)]


def test_a_model_of_the_library_holds_its_scores_when_attention_runs_step_by_step():
    def scores(subject: str) -> int:
        workload = Workload(subject, 200, size="tiny")
        live = build(workload)
        with Attribution(live.model) as attribution:
            found = count_parts(live.call(workload), live.model, attribution).held
        return sum(size for part, size in found.by_part.items() if part.label.name in ("QK^T", "mask and softmax"))

    # The scores of two heads, and their softmax.
    assert scores("bert@eager") >= 2 * 2 * 200 * 200 * FLOAT
    assert scores("bert") == 0


# ---- time


class Scripted:
    """The CPU, whose clock only stands still: what happens moves it.

    Args:
        reading_s: Seconds that it takes to read the clock.
    """

    name = "cpu"
    memory_method = "scripted"
    least_warm_up_s = 0.0

    def __init__(self, reading_s: float = 0.0) -> None:
        self.clock = 0.0
        self.reading_s = reading_s
        self.said: list[str] = []

    def now(self) -> float:
        self.clock += self.reading_s
        return self.clock

    def synchronize(self) -> None:
        self.said.append("synchronised")

    def time_block(self, call: Callable[[], None], calls: int) -> tuple[float, None]:
        self.said.append(f"block of {calls}")
        start = self.clock
        for _ in range(calls):
            call()
        return self.clock - start, None

    def used_bytes(self) -> int:
        return 0

    def reset_peak(self) -> None:
        pass

    def peak_bytes(self) -> int:
        return 0

    def reserved_bytes(self) -> None:
        pass

    def trim(self) -> None:
        pass

    def keep(self) -> None:
        pass

    def available_bytes(self) -> int:
        return 2**40


class Ticking(TorchDispatchMode):
    """Lets every operator take its time on a scripted clock.

    Args:
        device: Whose clock.
        seconds: By the name of the operator; others take none.
    """

    def __init__(self, device: Scripted, seconds: Mapping[str, float]) -> None:
        super().__init__()
        self._device = device
        self._seconds = seconds
        self.ran: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        self.ran[name] += 1
        self._device.clock += self._seconds.get(name, 0.0)
        return func(*args, **(kwargs or {}))


class Slow(nn.Module):
    """Takes half a second outside of operators, too."""

    def __init__(self, device: Scripted) -> None:
        super().__init__()
        self._device = device

    def forward(self, hidden: Tensor) -> Tensor:
        self._device.clock += 0.5
        return hidden.exp()


SECONDS = {"addmm": 3.0, "exp": 2.0, "mm": 4.0, "sum": 0.25, "mul": 1.0, "_softmax": 1.5}


@contextmanager
def scripted(seconds: Mapping[str, float] = SECONDS, reading_s: float = 0.0) -> Iterator[tuple[Scripted, Ticking]]:
    device = Scripted(reading_s)
    with Ticking(device, seconds) as ticking:
        yield device, ticking


def times(found: Mapping[Part, float]) -> dict[tuple[str, str], float]:
    return {(part.label.name, part.direction): seconds for part, seconds in found.items() if seconds}


def test_the_time_of_an_operator_goes_to_its_part_and_the_rest_lies_between():
    with scripted() as (device, _):
        model, patterns = chain(nn.Linear(4, 4), Slow(device), nn.Linear(4, 4))
        inputs = torch.zeros(2, 4)

        def call() -> None:
            with torch.no_grad():
                model(inputs)

        with Attribution(model, patterns) as attribution:
            found = clock_call(call, device, attribution)
    assert times(found.seconds) == {("0", "forward"): 3.0, ("1", "forward"): 2.0, ("2", "forward"): 3.0}
    assert found.whole_s == 8.5
    # A transposed weight and a product; nothing fell apart into others.
    assert [(part.label.name, count) for part, count in found.operators.items()] == [("0", 2), ("1", 1), ("2", 2)]
    assert found.entries == 5


def test_under_inference_mode_operators_fall_into_what_reaches_the_backend():
    with scripted() as (device, ticking):
        model, patterns = chain(nn.Linear(4, 4), Exponential())
        inputs = torch.zeros(2, 4)
        with Attribution(model, patterns) as attribution:
            found = clock_call(inference(model, inputs), device, attribution)
    assert times(found.seconds) == {("0", "forward"): 3.0, ("1", "forward"): 2.0}
    assert "linear" not in ticking.ran
    assert found.entries == sum(found.operators.values()) + 1


def test_operators_of_the_backward_pass_are_timed_where_they_belong():
    with scripted() as (device, _):
        model, patterns = chain(nn.Linear(4, 4), Exponential(), nn.Linear(4, 4))
        inputs = torch.ones(2, 4)

        def call() -> None:
            loss = model(inputs)
            with stage("loss"):
                loss = loss.sum()
            loss.backward()

        with Attribution(model, patterns) as attribution:
            found = clock_call(call, device, attribution)
    # Two products and a sum over rows for the bias; the first layer's input needs no gradient.
    assert times(found.seconds) == {
        ("0", "forward"): 3.0,
        ("1", "forward"): 2.0,
        ("2", "forward"): 3.0,
        ("loss", "forward"): 0.25,
        ("2", "backward"): 8.25,
        ("1", "backward"): 1.0,
        ("0", "backward"): 4.25,
    }
    assert found.whole_s == sum(found.seconds.values())


class Attending(nn.Module):
    """Attention with something to do between all of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out_proj = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = self.query(hidden) * 0.5, self.key(hidden), self.value(hidden)
        weights = (query @ key.mT + 1).softmax(dim=-1).exp()
        return self.out_proj((weights @ value).clone())


def test_what_is_done_to_scores_is_the_softmaxs_and_what_is_done_elsewhere_is_not():
    seconds = {"addmm": 3.0, "bmm": 4.0, "mul": 1.0, "add": 0.5, "_softmax": 1.5, "exp": 2.0, "clone": 0.25}
    with scripted(seconds) as (device, _):
        model, inputs = nn.Sequential(Attending()), torch.zeros(1, 3, 4)

        def call() -> None:
            with torch.no_grad():
                model(inputs)

        with Attribution(model, parse_patterns({"0": "attention"})) as attribution:
            found = clock_call(call, device, attribution)
    assert times(found.seconds) == {
        ("QKV projections", "forward"): 9.0,
        ("QK^T", "forward"): 4.0,
        ("mask and softmax", "forward"): 0.5 + 1.5 + 2.0,
        ("AV", "forward"): 4.0,
        ("output projection", "forward"): 3.0,
        # Scaled queries, and a copy of what comes out.
        ("positions, copies and reshaping", "forward"): 1.0 + 0.25,
    }


def test_nothing_waits_for_the_device_within_a_clocked_call():
    with scripted() as (device, _):
        model, patterns = chain(nn.Linear(4, 4), Slow(device))
        inputs = torch.zeros(2, 4, requires_grad=True)

        def call() -> None:
            device.said.append("call begins")
            model(inputs).sum().backward()
            device.said.append("call ends")

        with Attribution(model, patterns) as attribution:
            clock_call(call, device, attribution)
    assert device.said == ["block of 1", "call begins", "call ends"]


@pytest.mark.parametrize(
    ("subject", "phase"),
    [
        ("bert", "inference"),
        ("bert", "training"),
        ("bert@eager", "inference"),
        ("vit@nystrom:landmarks=4", "training"),
        ("hubert", "inference"),
        ("longformer", "inference"),
        ("swinv2", "training"),
    ],
)
def test_what_is_timed_are_the_parts_that_are_counted(subject, phase):
    length = {"hubert": 0.1, "vit": 64, "swinv2": 64}.get(subject.partition("@")[0], 40)
    workload = Workload(subject, length, phase=phase, size="tiny")
    live = build(workload)
    call = live.call(workload)
    call()
    with Attribution(live.model) as attribution:
        counted = count_parts(call, live.model, attribution)
        clocked = clock_call(call, CpuDevice(), attribution)
    assert set(clocked.seconds) == set(counted.work)
    assert all(seconds > 0 for seconds in clocked.seconds.values())
    assert sum(clocked.seconds.values()) < clocked.whole_s


def rounds(budget_s: float, seconds: float, calls: int = 1) -> tuple[list[str], list[float], list[float]]:
    """Which calls ran, and what was taken down, of calls that take so long, watched or not."""
    with scripted({"exp": seconds}) as (device, _):
        model, patterns = chain(Exponential())
        ran: list[str] = []
        inputs = torch.zeros(1)

        def call() -> None:
            ran.append("clocked" if model[0]._forward_pre_hooks else "plain")  # type: ignore[index]
            with torch.no_grad():
                model(inputs)

        plain, clocked = time_parts(call, device, Attribution(model, patterns), budget_s=budget_s, calls=calls)
    return ran, plain, [each.whole_s for each in clocked]


def test_plain_and_clocked_calls_take_turns_and_neither_is_always_first():
    ran, plain, clocked = rounds(budget_s=0.0, seconds=1.0)
    assert ran == ["plain", "clocked", "clocked", "plain"] * 3
    assert plain == clocked == [1.0] * 6
    assert FEWEST_ROUNDS == 6


def test_a_block_of_short_calls_is_as_many_plain_ones():
    ran, plain, _ = rounds(budget_s=0.0, seconds=1.0, calls=3)
    assert ran[:8] == ["plain"] * 3 + ["clocked"] * 2 + ["plain"] * 3
    assert plain == [1.0] * 6


@pytest.mark.parametrize("budget_s", [13.0, 20.0, 33.0])
def test_rounds_end_in_pairs_within_the_budget(budget_s):
    _, plain, clocked = rounds(budget_s, seconds=1.0)
    assert len(plain) == len(clocked)
    assert len(plain) % 2 == 0
    # A round takes two seconds, and two more would not have fitted in.
    assert 2 * len(plain) <= budget_s < 2 * len(plain) + 4


def test_there_are_no_more_rounds_than_anybody_needs():
    assert len(rounds(budget_s=1e9, seconds=1.0)[1]) == MOST_ROUNDS


@pytest.mark.parametrize("training", [False, True])
def test_watching_costs_what_reading_the_clock_was_made_to_cost(training):
    """Four readings for each operator: one within its time, two that the mode sees itself, one that nobody sees."""
    cost = measure_watching(Scripted(reading_s=0.001), training=training)
    assert cost.inside_s == pytest.approx(0.001, rel=0.01)
    # Hooks read the clock twice, and see one of the readings. An operator that is made of others sees theirs.
    assert (0.001 if training else 0.0005) <= cost.outside_s < (0.0015 if training else 0.001)
    assert 0.002 < cost.seen_s < (0.0025 if training else 0.003)
    assert 0.003 < cost.outside_s + cost.seen_s < 0.0035


def test_watching_that_costs_nothing_is_found_to():
    cost = measure_watching(Scripted(), training=True)
    assert (cost.inside_s, cost.outside_s, cost.seen_s) == (0.0, 0.0, 0.0)


def test_measuring_what_watching_costs_leaves_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    measure_watching(Scripted(), training=False)
    assert torch.equal(torch.rand(3), expected)


def whole(parts: Parts, number: int) -> float:
    return sum(each.seconds[number] for each in parts.components) + parts.between_s[number]


def broken_down(reading_s: float) -> tuple[Parts, list[str]]:
    """A model of three parts with half a second of Python, in training; and what happened on its device."""
    with scripted(reading_s=reading_s) as (device, _):
        model, patterns = chain(nn.Linear(4, 4), Slow(device), nn.Linear(4, 4))
        inputs = torch.ones(2, 4)

        def call() -> None:
            for parameter in model.parameters():
                parameter.grad = None
            model(inputs).sum().backward()

        return break_down(call, model, device, patterns, budget_s=0.0), device.said


def test_parts_and_the_time_between_add_up_to_a_plain_call():
    parts, said = broken_down(reading_s=0.0)
    assert len(parts.plain_s) == len(parts.clocked_s) == len(parts.between_s) == 6
    # Forward 8, backward 13.5 and 0.25 for the loss; half a second of Python.
    assert parts.plain_s == parts.clocked_s == (22.25,) * 6
    assert parts.between_s == (0.5,) * 6
    assert [whole(parts, number) for number in range(6)] == [22.25] * 6
    assert set(said) == {"block of 1"}


def test_what_reading_the_clock_takes_is_taken_off_again():
    parts, _ = broken_down(reading_s=0.01)
    exact, _ = broken_down(reading_s=0.0)
    assert parts.plain_s == pytest.approx(exact.plain_s)
    assert min(parts.clocked_s) > max(parts.plain_s) + 0.1
    for ours, theirs in zip(parts.components, exact.components, strict=True):
        assert (ours.group, ours.name, ours.direction) == (theirs.group, theirs.name, theirs.direction)
        assert ours.seconds == pytest.approx(theirs.seconds, abs=0.001)
    assert parts.between_s == pytest.approx(exact.between_s, abs=0.05)
    assert [whole(parts, number) for number in range(6)] == pytest.approx(parts.plain_s, rel=0.002)


def test_each_part_has_all_that_is_known_of_it():
    parts, _ = broken_down(reading_s=0.0)
    found = {(each.name, each.direction): each for each in parts.components if each.group == "part"}
    first = found["0", "forward"]
    # Two rows: a product of 4 by 4; input, weight, bias and output.
    assert (first.flops, first.bytes_accessed, first.parameters) == (64, FLOAT * (8 + 16 + 4 + 8), 20)
    assert (found["0", "backward"].flops, found["0", "backward"].parameters) == (64, 0)
    assert found["2", "backward"].flops == 128
    assert (found["1", "forward"].flops, found["1", "forward"].parameters) == (0, 0)
    assert first.seconds == (3.0,) * 6
    assert [each.name for each in parts.components if each.group == "part" and each.direction == "forward"] == [
        "0",
        "1",
        "2",
    ]
    assert all(each.layer is None for each in parts.components)
    assert parts.gradients_bytes == 40 * FLOAT


def test_a_part_that_never_runs_is_there_with_its_parameters():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 5)

        def forward(self, hidden: Tensor) -> Tensor:
            return self.used(hidden)

    with scripted() as (device, _):
        model, inputs = Idle(), torch.zeros(2, 4)
        patterns = parse_patterns({"used": "a/used", "unused": "a/unused"})
        parts = break_down(inference(model, inputs), model, device, patterns, budget_s=0.0)
    unused = next(each for each in parts.components if each.name == "unused")
    assert (unused.parameters, unused.flops, unused.seconds) == (25, 0, (0.0,) * 6)
    assert sum(each.parameters for each in parts.components) == 45


def library_encoder(training: bool, seconds: Mapping[str, float]) -> Parts:
    """Two layers of PyTorch's own broken down, on a clock on which only these operators take time."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training).requires_grad_(training)
    inputs = torch.ones(1, 4, 8)

    def call() -> None:
        with torch.inference_mode(not training):
            output = model(inputs)
            if training:
                output.sum().backward()

    with scripted(seconds) as (device, _):
        return break_down(call, model, device, None, budget_s=0.0)


def test_layers_that_run_as_one_operator_do_so_while_they_are_watched():
    parts = library_encoder(False, {"_transformer_encoder_layer_fwd": 3.0, "addmm": 100.0})
    assert parts.plain_s == parts.clocked_s == (6.0,) * 6
    (layers,) = [each for each in parts.components if max(each.seconds) > 0]
    assert (layers.group, layers.name, layers.seconds) == ("other", "layers that are one operator", (6.0,) * 6)
    # Weights are where they are, whatever runs them: of four projections, and two matrices with a norm each.
    names = {(each.name, each.layer): each.parameters for each in parts.components if each.parameters}
    assert names["up", 0] == names["up", 1] == 8 * 16 + 16
    assert sum(names.values()) == 2 * (4 * (64 + 8) + 8 * 16 + 16 + 16 * 8 + 8 + 4 * 8)


def test_the_same_layers_are_told_apart_in_training():
    parts = library_encoder(True, {"addmm": 1.0})
    assert parts.plain_s == parts.clocked_s
    times = {(each.name, each.layer): each.seconds[0] for each in parts.components if each.direction == "forward"}
    for layer in (0, 1):
        assert times["QKV projections", layer] == times["output projection", layer] == 1.0
        assert times["up", layer] == times["down", layer] == 1.0


# ---- kernels of a GPU, as PyTorch's profiler tells of them


def event(name: str, *kernels_us: float, children: tuple[Any, ...] = (), on_device: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        device_type=DeviceType.CUDA if on_device else DeviceType.CPU,
        kernels=[SimpleNamespace(name="a kernel", duration=duration) for duration in kernels_us],
        cpu_children=list(children),
    )


def test_kernels_count_for_the_range_that_launched_them_however_deep():
    deep = event("aten::mm", 5.0, children=(event("cudaLaunchKernel", 2.0),))
    events = [
        event("tippingpoint:0", children=(event("aten::linear", children=(deep, event("aten::add", 1.0))),)),
        deep,
        event("tippingpoint:1", 3.0, children=(event("aten::exp", 4.0),)),
        event("tippingpoint:12"),
        event("aten::exp", 100.0),
    ]
    assert kernel_seconds(events) == pytest.approx({0: 8e-6, 1: 7e-6, 12: 0.0})


def test_the_copies_of_ranges_on_the_devices_own_timeline_are_not_counted():
    inner = event("aten::mm", 5.0)
    copied = event("tippingpoint:0", children=(inner,))
    copied.kernels = [SimpleNamespace(name="tippingpoint:0", duration=70.0)]
    events = [copied, event("tippingpoint:0", 50.0, on_device=True), event("tippingpoint:1", 60.0, on_device=True)]
    assert kernel_seconds(events) == pytest.approx({0: 5e-6})


def test_without_events_no_range_is_known():
    assert kernel_seconds([]) == {}
