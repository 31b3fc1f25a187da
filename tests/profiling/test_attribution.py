"""Which part an operator belongs to: architectures of the catalogue, variants, and models made by hand.

FLOPs are compared with closed forms derived by hand; a multiply-add is 2.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tippingpoint.measurement import Flops
from tippingpoint.models.build import build
from tippingpoint.models.catalog import ARCHITECTURES
from tippingpoint.models.components import Label, parse_patterns
from tippingpoint.models.shape import Shape
from tippingpoint.profiling.attribution import (
    OUTSIDE,
    OWN_PARAMETERS,
    WHOLE_LAYER,
    Attribution,
    Part,
    name_modules,
)
from tippingpoint.profiling.components import clock_call, count_parts
from tippingpoint.profiling.device import CpuDevice
from tippingpoint.profiling.flops import count_flops
from tippingpoint.stages import stage
from tippingpoint.workload import Workload

pytestmark = pytest.mark.usefixtures("one_thread")

FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
# Two forward passes' worth each; what needs no gradient of its input has one.
LINEARS = {
    "attention: QKV projections",
    "attention: output projection",
    "feed-forward: up",
    "feed-forward: down",
}


class Count(NamedTuple):
    """What a call of a workload asked for, by part and as a whole."""

    flops: dict[Part, int]
    bytes_accessed: dict[Part, int | None]
    plain: Flops
    parameters: dict[Part, int]
    of_model: int
    of_root: int
    shape: Shape
    rows: int

    def of(self, label: str, direction: str = FORWARD, layer: int | str | None = "all") -> int:
        """FLOPs of parts of that name."""
        return sum(
            flops
            for part, flops in self.flops.items()
            if str(part.label) == label and part.direction == direction and layer in ("all", part.layer)
        )

    def steps(self, layer: int | str | None = "all", direction: str = FORWARD) -> set[str]:
        """Names of what runs in attention."""
        return {
            part.label.name
            for part in self.bytes_accessed
            if part.label.group == "attention" and part.direction == direction and layer in ("all", part.layer)
        }


def linear(rows: int, width_in: int, width_out: int) -> int:
    return 2 * rows * width_in * width_out


@functools.cache
def counted(subject: str, length: float, phase: str = "inference", batch: int = 1, dtype: str = "float32") -> Count:
    workload = Workload(subject, length, batch_size=batch, phase=phase, dtype=dtype, size="tiny")
    live = build(workload)
    call = live.call(workload)
    # The first step of training makes the optimizer's state; a mode may be chosen.
    call()
    plain, _ = count_flops(call)
    with Attribution(live.model) as attribution:
        found = count_parts(call, live.model, attribution)
    row = ARCHITECTURES[workload.subject.architecture]
    return Count(
        flops={part: work.flops for part, work in found.work.items()},
        bytes_accessed={part: work.bytes_accessed for part, work in found.work.items()},
        plain=plain,
        parameters=attribution.parameters(),
        of_model=live.parameters,
        of_root=sum(parameter.numel() for parameter in live.model.parameters(recurse=False)),
        shape=row.shape(live.config),
        rows=batch * row.executed_positions(length),
    )


def short(name: str) -> float:
    """A length of some forty positions, or the shortest of the architecture."""
    row = ARCHITECTURES[name]
    return row.nearest_legal({"tokens": 70, "seconds": 0.5, "pixels": 64}[row.unit])


def assert_nothing_is_lost(found: Count) -> None:
    assert sum(found.flops.values()) == found.plain.total
    sizes = list(found.bytes_accessed.values())
    total = None if None in sizes else sum(size or 0 for size in sizes)
    assert total == found.plain.bytes_accessed
    elsewhere = {part: flops for part, flops in found.flops.items() if part.label.group == "other" and flops}
    assert elsewhere == {}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parts_of_an_architecture_add_up_and_all_arithmetic_has_a_name(name):
    found = counted(name, short(name))
    assert_nothing_is_lost(found)
    assert sum(found.parameters.values()) == found.of_model
    # Some models have a vector of their own that nothing uses: what stands for a masked frame.
    assert sum(count for part, count in found.parameters.items() if part.label.group == "other") == found.of_root
    assert {part.direction for part in found.flops} == {FORWARD}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_have_their_numbers_and_equal_ones_do_equal_work(name):
    found = counted(name, short(name))
    by_layer: dict[int, Counter[str]] = {number: Counter() for number in range(found.shape.layers)}
    for part, flops in found.flops.items():
        if part.layer is not None:
            by_layer[part.layer][str(part.label)] += flops
    for layer in by_layer.values():
        assert layer["feed-forward: up"] > 0
        assert layer["feed-forward: down"] > 0
    if ARCHITECTURES[name].stages is None:
        assert all(layer == by_layer[0] for layer in by_layer.values())
    outside = {str(part.label) for part, flops in found.flops.items() if part.layer is None and flops}
    # Nothing of a layer is left outside of layers.
    assert {label.partition(":")[0] for label in outside} <= {"input", "head", "down- and upsampling"}


VANILLA = [name for name, row in ARCHITECTURES.items() if row.efficient_attention is None]
# Gated feed-forward parts have two matrices up; Conformers have two feed-forward parts.
UP = {"modernbert": 2, "wav2vec2-conformer": 2, "wav2vec2-bert": 2, "parakeet_encoder": 2}
DOWN = {"wav2vec2-conformer": 2, "wav2vec2-bert": 2, "parakeet_encoder": 2}


@pytest.mark.parametrize("name", VANILLA)
def test_linear_layers_of_vanilla_encoders_are_their_closed_forms(name):
    found = counted(name, short(name), batch=2)
    shape, rows = found.shape, found.rows
    assert found.of("attention: QKV projections") == shape.layers * 3 * linear(rows, shape.width, shape.width)
    assert found.of("attention: output projection") == shape.layers * linear(rows, shape.width, shape.width)
    up = shape.layers * linear(rows, shape.width, shape.wide)
    assert found.of("feed-forward: up") == UP.get(name, 1) * up
    assert found.of("feed-forward: down") == DOWN.get(name, 1) * up


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [
        ("bert", "head", lambda shape: linear(2, shape.width, shape.width)),
        ("vit", "input: patch embedding", lambda shape: linear(2 * 16, 3 * 16 * 16, shape.width)),
        ("vit", "head", lambda shape: linear(2, shape.width, shape.width)),
        # 24 frames of 32 channels
        ("hubert", "input: feature projection", lambda shape: linear(2 * 24, 32, shape.width)),
        # 16 groups of 16 taps, and one frame more that is cut off
        (
            "hubert",
            "input: positional convolution",
            lambda shape: linear(2 * 25, 16 * shape.width // 16, shape.width),
        ),
        ("fnet", "attention: QKV projections", lambda shape: 0),
    ],
)
def test_what_stands_around_the_layers_is_its_closed_form(name, label, expected):
    found = counted(name, short(name), batch=2)
    assert found.of(label) == expected(found.shape)


def parameters_of(width: int, wide: int) -> dict[str, int]:
    """Of a plain layer, biases included."""
    return {
        "attention: QKV projections": 3 * (width * width + width),
        "attention: output projection": width * width + width,
        "feed-forward: up": width * wide + wide,
        "feed-forward: down": wide * width + width,
        "norms and residuals": 2 * 2 * width,
    }


@pytest.mark.parametrize("name", ["bert", "hubert", "vit", "bart"])
def test_parameters_of_a_layer_are_those_of_its_matrices_and_norms(name):
    found = counted(name, short(name))
    layer = {str(part.label): count for part, count in found.parameters.items() if part.layer == 1}
    assert layer == parameters_of(found.shape.width, found.shape.wide)


@pytest.mark.parametrize("name", ["bert", "hubert", "vit"])
def test_full_attention_step_by_step_is_three_parts(name):
    found = counted(f"{name}@eager", short(name), batch=2)
    assert_nothing_is_lost(found)
    shape, rows = found.shape, found.rows
    pairs = rows * rows // 2
    for layer in range(shape.layers):
        assert {"QK^T", "mask and softmax", "AV"} <= found.steps(layer)
        assert found.of("attention: QK^T", layer=layer) == linear(pairs, shape.width, 1)
        assert found.of("attention: AV", layer=layer) == linear(pairs, shape.width, 1)
        assert found.of("attention: mask and softmax", layer=layer) == 0
    assert not {"fused attention", "products of queries, keys and values"} & found.steps()
    # The softmax reads and writes the scores of every head at least.
    moved = sum(size or 0 for part, size in found.bytes_accessed.items() if part.label.name == "mask and softmax")
    assert moved >= shape.layers * 2 * 4 * shape.heads * pairs


@pytest.mark.parametrize("name", ["bert", "hubert", "vit", "modernbert"])
def test_fused_attention_is_one_part(name):
    found = counted(name, short(name), batch=2)
    assert "fused attention" in found.steps(0)
    assert not {"QK^T", "mask and softmax", "AV", "products of queries, keys and values"} & found.steps()
    pairs = found.rows * found.rows // 2
    assert found.of("attention: fused attention") == found.shape.layers * 2 * linear(pairs, found.shape.width, 1)


def assert_backward_is_twice(found: Count, labels: set[str]) -> None:
    for layer in range(found.shape.layers):
        for label in labels:
            assert found.of(label, BACKWARD, layer) == 2 * found.of(label, layer=layer) > 0, (label, layer)


TRAINED = ["bert", "modernbert", "t5", "hubert", "vit", "wav2vec2-conformer", "longformer", "nystromformer", "swinv2"]


@pytest.mark.parametrize("name", TRAINED)
def test_training_adds_up_and_each_linear_part_costs_twice_as_much_backward(name):
    found = counted(name, short(name), "training")
    assert_nothing_is_lost(found)
    assert_backward_is_twice(found, LINEARS)
    assert sum(found.parameters.values()) == found.of_model


@pytest.mark.parametrize("name", ["reformer", "big_bird", "led", "funnel", "yoso", "fnet", "longt5", "beit", "hiera"])
def test_training_of_other_attentions_adds_up(name):
    assert_nothing_is_lost(counted(name, short(name), "training"))


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_a_training_step_has_a_loss_and_an_optimizer(name):
    found = counted(name, short(name), "training")
    loss = Label("loss", "loss")
    assert {Part(loss, None, FORWARD), Part(loss, None, BACKWARD)} <= set(found.bytes_accessed)
    step = found.bytes_accessed[Part(Label("optimizer", "optimizer"), None, OPTIMIZER)]
    assert step is not None
    # AdamW reads weights, gradients and two moments, and writes all but the gradients.
    assert step > 6 * 4 * found.of_model
    assert {part.label.group for part in found.bytes_accessed if part.direction == OPTIMIZER} == {"optimizer"}
    assert found.of("optimizer", OPTIMIZER) == 0


def test_the_loss_does_not_reach_the_pooler():
    found = counted("bert", 70, "training")
    assert found.of("head") > 0
    assert found.of("head", BACKWARD) == 0


def test_steps_of_attention_cost_twice_as_much_backward():
    found = counted("bert@eager", 70, "training")
    assert_nothing_is_lost(found)
    assert_backward_is_twice(found, {"attention: QK^T", "attention: AV", *LINEARS})
    assert "mask and softmax" in found.steps(0, BACKWARD)


def test_fused_attention_scores_again_backward():
    """Scores again, and gradients of scores, values, queries and keys: five products to the forward pass's two."""
    found = counted("vit", 64, "training")
    label = "attention: fused attention"
    assert 2 * found.of(label, BACKWARD) == 5 * found.of(label) > 0
    assert not {"QK^T", "AV"} & found.steps(direction=BACKWARD)


# Names that a variant adds in the layers that have it, and names that it takes away from them.
FULL = {"QK^T", "AV", "mask and softmax"}
VARIANTS = {
    "local:window=3": (300, FULL, {"fused attention"}),
    "local:window=100": (70, {"fused attention"}, FULL),
    "nystrom:landmarks=8": (70, {"landmarks", "pseudo-inverse", "fused attention"}, FULL),
    "linear:num_features=16": (70, {"features of keys", "sums of values", "fused attention"}, FULL),
    "linear:feature_map=elu": (
        70,
        {"features of keys", "features of queries", "sums of values", "products with queries"},
        {*FULL, "fused attention"},
    ),
    "linformer:rank=8": (70, {"projection along the sequence", "fused attention"}, FULL),
    "pooled:ratio=3": (70, {"pooling", "fused attention"}, FULL),
    "heads:keep=0.5": (70, {"fused attention"}, FULL),
    "reuse:mode=recompute": (70, {"fused attention"}, {*FULL, "map reuse"}),
}


@pytest.mark.parametrize("phase", ["inference", "training"])
@pytest.mark.parametrize("name", ["bert", "vit"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variants_own_steps_appear_and_add_up(variant, name, phase):
    length, there, gone = VARIANTS[variant]
    subject = f"{name}@{variant}"
    found = counted(subject, length if name == "bert" else {70: 144, 300: 288}[length], phase)
    assert_nothing_is_lost(found)
    # On the CPU nothing is fused with dropout of attention weights, or with a mask that needs a gradient.
    fuses = phase == "inference" or (name == "vit" and variant != "linear:num_features=16")
    for layer in range(found.shape.layers):
        assert there - (set() if fuses else {"fused attention"}) <= found.steps(layer)
        if fuses:
            assert not gone & found.steps(layer)
    # Of two attentions in one, the fused one and the other, nobody can tell which products are whose.
    several = variant.startswith("nystrom") and not fuses
    assert ("products of queries, keys and values" in found.steps()) == several
    assert found.of("attention: QKV projections") >= found.of("attention: output projection") > 0
    if phase == "training":
        assert_backward_is_twice(found, LINEARS)


def test_local_attention_by_blocks_computes_blocks_forward_and_backward():
    """Blocks of 64 positions and one of 34, each with three more on either side as far as there are any."""
    found = counted("vit@local:window=3", 272, "training")
    positions, width = found.rows, found.shape.width
    assert positions == 290
    blocks = [(start, min(start + 64, positions)) for start in range(0, positions, 64)]
    seen = sum((end - start) * (min(end + 3, positions) - max(start - 3, 0)) for start, end in blocks)
    product = linear(seen, width, 1)
    for layer in range(found.shape.layers):
        assert found.of("attention: QK^T", layer=layer) == found.of("attention: AV", layer=layer) == product
        # Scores are computed again, and two gradients come from each product.
        assert found.of("attention: QK^T", BACKWARD, layer) == 3 * product
        assert found.of("attention: AV", BACKWARD, layer) == 2 * product


def test_steps_of_local_attention_in_half_precision_are_gathered_blocks():
    found = counted("bert@local:window=3", 300, dtype="bfloat16")
    assert_nothing_is_lost(found)
    assert {"mask of blocks", "gathering of blocks", "fused attention"} <= found.steps(0)


def test_what_a_variant_learns_is_attentions_own():
    found = counted("bert@linformer:rank=8", 70)
    own = {part.layer: count for part, count in found.parameters.items() if part.label.name == OWN_PARAMETERS}
    assert own == {0: 2 * 8 * 70, 1: 2 * 8 * 70}
    assert found.of("attention: projection along the sequence") == 2 * 2 * linear(8, 70, found.shape.width)


@pytest.mark.parametrize("phase", ["inference", "training"])
@pytest.mark.parametrize(
    "subject", ["bert@reuse:mode=map", "bert@local:window=3+reuse:mode=map", "vit@reuse:mode=map"]
)
def test_a_layer_that_reuses_a_map_has_no_scores(subject, phase):
    found = counted(subject, 272 if subject.startswith("vit") else 300, phase)
    assert_nothing_is_lost(found)
    shape, rows = found.shape, found.rows
    assert found.steps(0) >= FULL
    assert "map reuse" not in found.steps(0)
    assert "map reuse" in found.steps(1)
    assert not {*FULL, "fused attention"} & found.steps(1)
    # Neither queries nor keys are projected.
    projection = linear(rows, shape.width, shape.width)
    assert found.of("attention: QKV projections", layer=0) == 3 * projection
    assert found.of("attention: QKV projections", layer=1) == projection
    weighted = found.of("attention: AV", layer=0)
    assert found.of("attention: map reuse", layer=1) == weighted > 0
    if "local" not in subject:
        assert weighted == linear(rows * rows, shape.width, 1)
    if phase == "training":
        assert_backward_is_twice(found, LINEARS)
        assert found.of("attention: map reuse", BACKWARD, 1) == 2 * weighted


def test_steps_of_attentions_of_the_library_are_told_by_their_methods():
    assert "pseudo-inverse" in counted("nystromformer", 70).steps(0)
    longformer = counted("longformer", 70)
    assert longformer.steps(0) >= FULL
    # Overlapping chunks: 512 positions make one of 512 by 512 for scores, and 768 keys for each row of values.
    shape, rows = longformer.shape, longformer.rows
    assert longformer.of("attention: QK^T") == shape.layers * linear(rows * 512, shape.width, 1)
    assert longformer.of("attention: AV") == shape.layers * linear(rows * 768, shape.width, 1)


# ---- models made by hand

WIDTH, HEADS, LENGTH, BATCH = 8, 2, 6, 3
ROWS = BATCH * LENGTH
PROJECTION = linear(ROWS, WIDTH, WIDTH)
SCORES = linear(BATCH * LENGTH * LENGTH, WIDTH, 1)


class Mixer(nn.Module):
    """A layer with attention of PyTorch's own and a module whose name says nothing."""

    def __init__(self, need_weights: bool = True) -> None:
        super().__init__()
        self.mixing = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.need_weights = need_weights

    def forward(self, hidden: Tensor) -> Tensor:
        mixed, _ = self.mixing(hidden, hidden, hidden, need_weights=self.need_weights)
        return hidden + self.fc2(F.relu(self.fc1(hidden + mixed)))


class Gate(nn.Module):
    """A class that no rule knows: arithmetic of its own, and in a module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((WIDTH, WIDTH), 0.1))
        self.dropout = nn.Dropout(0.0)
        self.inner = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(self.dropout(hidden @ self.weight))


class Stack(nn.Module):
    """Blocks in a list, one after the other."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def stack(*kinds: Callable[[], nn.Module]) -> Stack:
    torch.manual_seed(0)
    return Stack(*(kind() for kind in kinds))


def noise(requires_grad: bool = False) -> Tensor:
    hidden = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    return hidden.requires_grad_(requires_grad)


def flops_of(
    model: nn.Module, call: Callable[[], object], patterns: dict[str, str] | None = None
) -> dict[tuple[str, int | None, str], int]:
    """FLOPs by label, layer and direction, of parts that have some."""
    with Attribution(model, parse_patterns(patterns) if patterns else None) as attribution:
        found = count_parts(call, model, attribution)
    return {
        (str(part.label), part.layer, part.direction): work.flops for part, work in found.work.items() if work.flops
    }


def forward_of(model: nn.Module, patterns: dict[str, str] | None = None) -> dict[tuple[str, int | None], int]:
    """FLOPs by label and layer in inference."""
    hidden = noise()

    def call() -> None:
        with torch.inference_mode():
            model(hidden)

    model.eval().requires_grad_(False)
    return {(label, layer): flops for (label, layer, _), flops in flops_of(model, call, patterns).items()}


def step_of(model: nn.Module, patterns: dict[str, str] | None = None) -> dict[tuple[str, int | None, str], int]:
    """FLOPs by label, layer and direction in training; the input needs a gradient too."""
    hidden = noise(requires_grad=True)
    return flops_of(model.train(), lambda: model(hidden).square().mean().backward(), patterns)


def test_attention_of_pytorch_is_told_apart_step_by_step():
    model = stack(Mixer, Mixer)
    found = step_of(model)
    expected = {
        "attention: QKV projections": 3 * PROJECTION,
        "attention: QK^T": SCORES,
        "attention: AV": SCORES,
        "attention: output projection": PROJECTION,
        "feed-forward: up": 2 * PROJECTION,
        "feed-forward: down": 2 * PROJECTION,
    }
    both = {(label, layer, FORWARD): flops for label, flops in expected.items() for layer in (0, 1)}
    both |= {(label, layer, BACKWARD): 2 * flops for label, flops in expected.items() for layer in (0, 1)}
    assert found == both


def test_the_projection_behind_fused_attention_of_pytorch_is_that_of_the_output():
    model = stack(lambda: Mixer(need_weights=False))
    found = step_of(model)
    expected = {
        "attention: QKV projections": 3 * PROJECTION,
        "attention: fused attention": 2 * SCORES,
        "attention: output projection": PROJECTION,
    }
    forward = {label: flops for (label, _, direction), flops in found.items() if direction == FORWARD}
    assert {label: forward[label] for label in forward if label.startswith("attention")} == expected
    assert found["attention: output projection", 0, BACKWARD] == 2 * PROJECTION
    assert found["attention: fused attention", 0, BACKWARD] == 5 * SCORES


def test_attention_of_pytorch_keeps_its_names_under_automatic_mixed_precision():
    """Its weights are cast to the lower precision, in tensors of their own."""
    model, hidden = stack(Mixer).train(), noise(requires_grad=True)

    def call() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(hidden).float().square().mean()
        loss.backward()

    assert flops_of(model, call) == step_of(stack(Mixer))


def test_attention_of_pytorch_is_one_operator_in_inference():
    model = stack(Mixer).eval().requires_grad_(False)
    hidden = noise()

    def call() -> None:
        with torch.inference_mode():
            model(hidden)

    with Attribution(model) as attribution:
        found = count_parts(call, model, attribution)
    names = {part.label.name for part in found.work if part.label.group == "attention"}
    assert "fused attention" in names
    assert not {"QK^T", "QKV projections", "output projection"} & names
    # Nobody knows a formula for it, and it is said so elsewhere.
    assert dict(count_flops(call)[0].uncounted) == {"_native_multi_head_attention": 1}


def test_parameters_inside_attention_of_pytorch_are_found():
    model = stack(Mixer)
    found = {(str(part.label), part.layer): count for part, count in Attribution(model).parameters().items()}
    assert found["attention: output projection", 0] == WIDTH * WIDTH + WIDTH
    assert found[f"attention: {OWN_PARAMETERS}", 0] == 3 * (WIDTH * WIDTH + WIDTH)
    assert sum(found.values()) == sum(parameter.numel() for parameter in model.parameters())


def test_parameters_that_two_modules_share_are_counted_once():
    first, second = Gate(), Gate()
    second.inner.weight = first.inner.weight
    model = Stack(first, second)
    assert sum(Attribution(model).parameters().values()) == 3 * WIDTH * WIDTH


def test_a_module_that_no_rule_knows_is_listed_under_its_class():
    model = stack(Mixer, Gate)
    found = forward_of(model)
    assert found["Gate", None] == PROJECTION
    assert found["Linear", None] == PROJECTION
    labels = {str(part.label): part.label.group for part in Attribution(model).parameters()}
    assert labels["Gate"] == labels["Linear"] == "other"


def test_what_runs_outside_of_the_model_is_said_to():
    model, hidden = stack(Gate), noise()
    found = flops_of(model, lambda: model(hidden) @ torch.ones(WIDTH, 1))
    assert found[str(OUTSIDE), None, FORWARD] == linear(ROWS, WIDTH, 1)


class Named(nn.Module):
    """Attention written out, and what a person would have names for."""

    def __init__(self, wide: int = 2 * WIDTH) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.hidden, self.norm, self.last = nn.Linear(WIDTH, wide), nn.LayerNorm(wide), nn.Linear(wide, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = self.first(hidden), self.second(hidden), self.third(hidden)
        mixed = (query @ key.mT).softmax(-1) @ value
        return self.last(self.norm(self.hidden(mixed)))


class Outer(nn.Module):
    """Holds a module whose layers have names that rules know."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = Named()
        self.block = nn.Sequential()
        self.block.add_module("fc1", nn.Linear(WIDTH, WIDTH))
        self.block.add_module("norm", nn.LayerNorm(WIDTH))
        self.block.add_module("inner", nn.Sequential(nn.Linear(WIDTH, WIDTH)))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.block(self.mixer(hidden))


def test_a_module_that_is_named_attention_has_its_operators_told_apart():
    found = forward_of(stack(Outer), {"blocks.*.mixer": "attention", "blocks.*.block": "feed-forward/mine"})
    assert found["attention: QK^T", 0] == found["attention: AV", 0] == SCORES
    assert found["attention: QKV projections", 0] == 3 * PROJECTION
    # Up and down: behind the softmax it is all the output's.
    assert found["attention: output projection", 0] == 4 * PROJECTION


def test_a_module_goes_with_what_is_named_around_it():
    found = forward_of(stack(Outer), {"blocks.*.mixer": "mixing/all", "blocks.*.block": "feed-forward/mine"})
    assert found["feed-forward: mine", None] == 2 * PROJECTION
    assert found == {("mixing: all", None): 7 * PROJECTION + 2 * SCORES, ("feed-forward: mine", None): 2 * PROJECTION}


def test_everything_inside_a_named_module_goes_with_it_whatever_rules_would_call_it():
    model = stack(Outer)
    names = name_modules(model, parse_patterns({"blocks.*.block": "mine/all"}))
    block = model.get_submodule("blocks.0.block")
    assert {str(names[module][0]) for module in block.modules()} == {"mine: all"}


def test_the_first_name_that_fits_a_module_counts():
    found = forward_of(stack(Gate, Named, Gate), {"blocks.1.first": "one", "blocks.1.*": "two", "blocks.*": "three"})
    assert found == {
        ("one", None): PROJECTION,
        ("two", None): 6 * PROJECTION,
        ("three", None): 4 * PROJECTION + 2 * SCORES,
    }


def test_a_name_for_a_list_of_modules_names_each_of_them():
    """The list itself is never called."""
    found = forward_of(stack(Named, Gate), {"blocks": "mine/all"})
    assert found == {("mine: all", None): 9 * PROJECTION + 2 * SCORES}


class OneByOne(nn.Module):
    """Calls what it holds in a list of its own, which it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("feature_extractor", nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)))

    def forward(self, hidden: Tensor) -> Tensor:
        for module in self.get_submodule("feature_extractor").children():
            hidden = module(hidden)
        return hidden


def test_modules_of_a_sequence_that_are_called_one_by_one_have_its_name():
    assert forward_of(stack(OneByOne)) == {("input: convolutional front end", None): 2 * PROJECTION}


class Shortcut(nn.Module):
    """Calls a module of a module that is itself never called."""

    def __init__(self) -> None:
        super().__init__()
        self.pooler = nn.Module()
        self.pooler.add_module("inner", nn.Linear(WIDTH, WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.get_submodule("pooler.inner")(hidden)


def test_a_module_that_is_called_from_elsewhere_has_its_name_all_the_same():
    assert forward_of(stack(Shortcut)) == {("head", None): PROJECTION}


def test_layers_that_hold_attention_are_numbered_and_others_are_not():
    model = stack(Gate, Mixer, Gate, Mixer)
    numbers = {path: name_modules(model)[module][1] for path, module in model.named_modules()}
    assert [numbers[f"blocks.{place}"] for place in range(4)] == [None, 0, None, 1]
    assert numbers["blocks.1.mixing.out_proj"] == 0
    assert numbers["blocks.3.fc1"] == 1
    assert numbers[""] is None


class Stepwise(nn.Module):
    """An attention that names steps of its own, one inside the other."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        query = self.query(hidden)
        with stage("landmarks"):
            marks = query.mT @ query
            with stage("inverse"):
                marks = (marks @ marks).tanh()
            marks = (marks @ marks).tanh()
        return query @ marks


def test_steps_that_stand_in_each_other_have_each_their_own():
    found = step_of(stack(Stepwise), {"blocks.0": "attention"})
    small = linear(BATCH * WIDTH, WIDTH, WIDTH)
    forward = {label: flops for (label, _, direction), flops in found.items() if direction == FORWARD}
    assert forward == {
        "attention: QKV projections": PROJECTION,
        "attention: landmarks": PROJECTION + small,
        "attention: inverse": small,
        # Without a softmax nobody can tell what this is.
        "attention: products of queries, keys and values": PROJECTION,
    }
    backward = {label: flops for (label, _, direction), flops in found.items() if direction == BACKWARD}
    assert backward == {label: 2 * flops for label, flops in forward.items()}


class Chunked(nn.Module):
    """Attends in two halves, each with a softmax of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.out_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        query = self.query(hidden)
        halves = [(half @ query.mT).softmax(-1) @ query for half in query.chunk(2, dim=1)]
        return self.out_proj(torch.cat(halves, dim=1))


def test_products_of_several_softmaxes_are_not_guessed_at():
    found = forward_of(stack(Chunked), {"blocks.0": "attention"})
    assert found == {
        ("attention: QKV projections", 0): PROJECTION,
        ("attention: products of queries, keys and values", 0): 2 * SCORES,
        ("attention: output projection", 0): PROJECTION,
    }


# Fails: without a batch the products of queries and keys are those of two matrices, as projections are.
def test_attention_on_one_sequence_without_a_batch_is_told_apart():
    model, hidden = stack(Named).eval().requires_grad_(False), noise()[0]
    found = flops_of(model, lambda: model(hidden), {"blocks.0": "attention"})
    names = {label: flops for (label, _, _), flops in found.items()}
    assert names["attention: QKV projections"] == 3 * PROJECTION // BATCH
    assert names["attention: QK^T"] == names["attention: AV"] == SCORES // BATCH


class Twice(nn.Module):
    """Runs one layer two times, as ALBERT does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Mixer()])

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers[0](self.layers[0](hidden))


def test_a_layer_that_runs_twice_counts_twice_under_the_same_names():
    once, twice = step_of(stack(Mixer)), step_of(stack(Twice))
    assert twice == {key: 2 * flops for key, flops in once.items()}
    assert Attribution(stack(Twice)).parameters() == Attribution(stack(Mixer)).parameters()


class Checkpointed(nn.Module):
    """Runs its block again in the backward pass, to save memory."""

    def __init__(self, block: nn.Module, use_reentrant: bool = False) -> None:
        super().__init__()
        self.block = block
        self.use_reentrant = use_reentrant

    def forward(self, hidden: Tensor) -> Tensor:
        output = checkpoint(self.block, hidden, use_reentrant=self.use_reentrant)
        assert isinstance(output, Tensor)
        return output


def test_a_forward_pass_that_runs_again_in_the_backward_pass_belongs_to_it():
    """The last product of a block is not run again: nothing that the backward pass needs comes out of it."""
    found = step_of(stack(lambda: Checkpointed(Named()), Gate))
    assert found["Linear", None, FORWARD] == 8 * PROJECTION
    assert sum(flops for (_, _, way), flops in found.items() if way == FORWARD) == 9 * PROJECTION + 2 * SCORES
    plain = step_of(stack(Named, Gate))
    again = {key: flops - plain[key] for key, flops in found.items() if key[2] == BACKWARD and flops != plain[key]}
    assert sum(again.values()) == 5 * PROJECTION + 2 * SCORES
    # What comes behind it in the backward pass, the other block's, is that block's alone.
    assert found["Gate", None, BACKWARD] == plain["Gate", None, BACKWARD] == 2 * PROJECTION


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_parts_that_run_again_keep_their_names(use_reentrant):
    """Two blocks that are both run again, and what stands before them, which is not."""
    model = stack(Gate, lambda: Checkpointed(Mixer(), use_reentrant), lambda: Checkpointed(Mixer(), use_reentrant))
    plain = step_of(stack(Gate, Mixer, Mixer))
    found = step_of(model)
    assert {key: flops for key, flops in found.items() if key[2] == FORWARD} == {
        key: flops for key, flops in plain.items() if key[2] == FORWARD
    }
    for layer in (0, 1):
        for label in ("attention: QKV projections", "attention: QK^T", "attention: AV", "feed-forward: up"):
            once = plain[label, layer, FORWARD]
            assert found[label, layer, BACKWARD] == 3 * once, (label, layer)
    assert found["Gate", None, BACKWARD] == plain["Gate", None, BACKWARD]
    assert found["Linear", None, BACKWARD] == plain["Linear", None, BACKWARD]


class Failing(nn.Module):
    """Fails as often as it is told to, inside a step."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        with stage("landmarks"):
            hidden = self.inner(hidden)
            if self.failures:
                self.failures -= 1
                raise RuntimeError("as it was told")
        return hidden


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_a_call_that_failed_leaves_nothing_behind():
    model, hidden = stack(Gate, lambda: Failing(1), Mixer), noise(requires_grad=True)

    def call() -> None:
        model(hidden).sum().backward()

    expected = step_of(stack(Gate, lambda: Failing(0), Mixer))
    attribution = Attribution(model)
    with pytest.raises(RuntimeError, match="as it was told"), attribution:
        count_parts(call, model, attribution)
    assert hooks_of(model) == 0
    for parameter in model.parameters():
        parameter.grad = None
    with attribution:
        found = count_parts(call, model, attribution)
    assert {
        (str(part.label), part.layer, part.direction): work.flops for part, work in found.work.items() if work.flops
    } == expected


def test_a_failure_that_the_model_itself_survives_moves_nothing():
    class Trying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.risky, self.safe, self.last = Failing(10), Gate(), nn.Linear(WIDTH, WIDTH)

        def forward(self, hidden: Tensor) -> Tensor:
            try:
                hidden = self.risky(hidden)
            except RuntimeError:
                hidden = self.safe(hidden)
            return self.last(hidden) @ torch.ones(WIDTH, 1)

    found = forward_of(stack(Trying))
    # The last product is the block's own.
    assert found["Trying", None] == linear(ROWS, WIDTH, 1)
    assert found["Gate", None] == PROJECTION


def test_hooks_are_there_while_it_is_used_and_gone_afterwards():
    model = stack(Mixer, Gate)
    attribution = Attribution(model)
    assert hooks_of(model) == 0
    with attribution:
        assert hooks_of(model) > 0
    assert hooks_of(model) == 0


def test_methods_of_the_library_are_as_they_were_afterwards():
    live = build(Workload("nystromformer", 70, size="tiny"))
    before = {module: dict(vars(module)) for module in live.model.modules()}
    with Attribution(live.model):
        changed = [name for module in live.model.modules() for name in vars(module) if name not in before[module]]
        assert changed == ["iterative_inv"] * 2
    assert all(set(vars(module)) == set(before[module]) for module in live.model.modules())


@contextmanager
def operators_seen() -> Iterator[list[str]]:
    """Names of the operators that run."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    with Seen():
        yield names


def library_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)


KINDS = [Mixer, Gate, Named, Stepwise, library_layer, lambda: Checkpointed(Mixer())]


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("kind", KINDS, ids=["mixer", "gate", "named", "steps", "library", "checkpointed"])
def test_a_watched_call_runs_what_an_unwatched_one_runs(kind, training):
    model = stack(kind, kind).train(training).requires_grad_(training)
    hidden = noise(requires_grad=training)

    def run() -> tuple[list[str], list[Tensor]]:
        with torch.inference_mode(not training), operators_seen() as names:
            output = model(hidden)
            if not training:
                return names, [output]
            output.square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        for parameter in (hidden, *model.parameters()):
            parameter.grad = None
        return names, [output.detach(), *gradients]

    expected, values = run()
    # Layers of PyTorch's own run as one operator in inference, unless there are hooks in them.
    with Attribution(model, whole_layers=WHOLE_LAYER in expected[0]):
        names, watched = run()
    assert names == expected
    assert len(values) == len(watched)
    assert all(torch.equal(first, second) for first, second in zip(values, watched, strict=True))


@pytest.mark.parametrize(
    "subject", ["bert", "bert@eager", "hubert", "vit@nystrom:landmarks=8", "longformer", "reformer"]
)
def test_what_a_model_returns_is_the_same_to_the_bit_while_it_is_counted_or_timed(subject):
    workload = Workload(subject, short(subject.partition("@")[0]), size="tiny")
    live = build(workload)
    call, outputs = live.call(workload), []
    live.model.register_forward_hook(lambda module, inputs, output: outputs.append(output[0].clone()))
    call()
    with Attribution(live.model) as attribution:
        count_parts(call, live.model, attribution)
        clock_call(call, CpuDevice(), attribution)
    call()
    assert len(outputs) == 4
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_two_calls_under_one_watch_are_counted_alike():
    model, hidden = stack(Mixer, Stepwise), noise(requires_grad=True)

    def call() -> None:
        model(hidden).sum().backward()

    with Attribution(model) as attribution:
        first, second = (count_parts(call, model, attribution).work for _ in range(2))
    assert {part: work.flops for part, work in first.items()} == {part: work.flops for part, work in second.items()}


def test_ranges_of_the_profiler_have_the_names_of_parts_with_their_layer():
    from torch.profiler import ProfilerActivity, profile

    model, hidden = stack(Mixer, Stepwise), noise()
    with Attribution(model, ranges=True), profile(activities=[ProfilerActivity.CPU]) as seen:
        model(hidden)
    names = {event.name for event in seen.events() or ()}
    assert {"layer 0, attention", "layer 0, feed-forward: up", "landmarks", "inverse"} <= names
