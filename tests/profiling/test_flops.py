"""FLOPs against closed forms derived by hand; a multiply-add is 2."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tippingpoint.measurement import Flops
from tippingpoint.models.build import build
from tippingpoint.models.catalog import ARCHITECTURES
from tippingpoint.profiling.flops import count_flops
from tippingpoint.workload import Workload

pytestmark = pytest.mark.usefixtures("one_thread")

FUSED = "_scaled_dot_product_flash_attention_for_cpu"
batches = st.integers(1, 3)


def counted(subject: str, length: float, batch: int, phase: str = "inference") -> tuple[Flops, Counter[str], dict]:
    workload = Workload(subject, length, batch_size=batch, phase=phase, size="tiny")
    live = build(workload)
    flops, operators = count_flops(live.call(workload))
    assert flops.total == sum(count for _, count in flops.by_operator)
    assert flops.uncounted == ()
    return flops, operators, live.config


def linear(rows: int, width_in: int, width_out: int) -> int:
    return 2 * rows * width_in * width_out


def layer_linears(rows: int, config: dict[str, Any]) -> int:
    """Four projections and the feed-forward part."""
    width, wide = config["hidden_size"], config["intermediate_size"]
    return 4 * linear(rows, width, width) + linear(rows, width, wide) + linear(rows, wide, width)


def full_attention(batch: int, length: int, width: int) -> int:
    """Scores and weighted values, all heads together."""
    return 2 * (2 * batch * length * length * width)


def local_attention(batch: int, length: int, width: int, window: int, num_global: int) -> int:
    """What is executed: blocks of 64 queries see 64 + 2 window keys and the global ones; globals see everything."""
    if length <= 64 + 2 * window:
        return full_attention(batch, length, width)
    rows = -(-length // 64) * 64
    return 2 * 2 * batch * width * (rows * (64 + 2 * window + num_global) + num_global * length)


@pytest.mark.parametrize("attention", ["", "@sdpa", "@eager"])
@given(batch=batches, length=st.integers(1, 70))
@settings(max_examples=12)
def test_bert_inference_is_its_linears_its_attention_and_its_pooler(attention, batch, length):
    flops, _, config = counted(f"bert{attention}", length, batch)
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    linears = layers * layer_linears(batch * length, config) + linear(batch, width, width)
    attending = layers * full_attention(batch, length, width)
    operator = "bmm" if attention == "@eager" else FUSED
    assert dict(flops.by_operator) == {"addmm": linears, operator: attending}


@pytest.mark.parametrize("attention", ["", "@eager", "@local:window=5"])
@given(batch=batches, length=st.integers(1, 110))
@settings(max_examples=10)
def test_bert_training_costs_three_forward_passes_less_the_poolers_two(attention, batch, length):
    """Each linear and each product of attention has two gradients as costly as itself; embeddings have none.

    Dropout of attention weights rules the fused kernel out on the CPU, so nothing is computed twice. The loss does
    not reach the pooler, whose forward pass runs all the same.
    """
    inference, _, config = counted(f"bert{attention}", length, batch)
    training, operators, _ = counted(f"bert{attention}", length, batch, "training")
    pooler = linear(batch, config["hidden_size"], config["hidden_size"])
    assert training.total == 3 * inference.total - 2 * pooler
    assert operators["embedding_dense_backward"] == 3
    assert FUSED not in operators


@given(batch=batches, length=st.integers(1, 300), window=st.integers(1, 40), num_global=st.integers(0, 4))
@settings(max_examples=15)
def test_bert_with_local_attention_executes_whole_blocks(batch, length, window, num_global):
    num_global = min(num_global, length)
    subject = f"bert@local:window={window},num_global={num_global}"
    flops, _, config = counted(subject, length, batch)
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    assert dict(flops.by_operator) == {
        "addmm": layers * layer_linears(batch * length, config) + linear(batch, width, width),
        FUSED: layers * local_attention(batch, length, width, window, num_global),
    }


def test_local_attention_grows_linearly_and_full_attention_quadratically():
    local, full = (
        [dict(counted(s, n, 1)[0].by_operator)[FUSED] for n in (640, 1280)] for s in ("bert@local:window=16", "bert")
    )
    assert local[1] == 2 * local[0]
    assert full[1] == 4 * full[0]


@given(batch=batches, side=st.integers(1, 6))
@settings(max_examples=10)
def test_vit_is_its_patches_its_layers_and_its_pooler(batch, side):
    flops, _, config = counted("vit", 16 * side, batch)
    width, layers, positions = config["hidden_size"], config["num_hidden_layers"], side * side + 1
    expected = {
        "convolution": linear(batch * side * side, 3 * 16 * 16, width),
        "addmm": layers * layer_linears(batch * positions, config) + linear(batch, width, width),
        FUSED: layers * full_attention(batch, positions, width),
    }
    assert dict(flops.by_operator) == expected


@given(batch=batches, side=st.integers(1, 6))
@settings(max_examples=10)
def test_vit_training_computes_the_scores_again_in_fused_attention_and_no_gradient_of_pixels(batch, side):
    inference = dict(counted("vit", 16 * side, batch)[0].by_operator)
    training, _, config = counted("vit", 16 * side, batch, "training")
    pooler = linear(batch, config["hidden_size"], config["hidden_size"])
    # Scores again, and gradients of scores, values, queries and keys: five products to the forward pass's two.
    assert dict(training.by_operator) == {
        **inference,
        f"{FUSED}_backward": 5 * inference[FUSED] // 2,
        "mm": 2 * (inference["addmm"] - pooler),
        "convolution_backward": inference["convolution"],
    }


def hubert_convolutions(batch: int, samples: int, config: dict[str, Any]) -> int:
    total, length, channels = 0, samples, 1
    for width, kernel, stride in zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"], strict=True):
        length = (length - kernel) // stride + 1
        total += linear(batch * length, channels * kernel, width)
        channels = width
    width, taps = config["hidden_size"], config["num_conv_pos_embeddings"]
    in_group = width // config["num_conv_pos_embedding_groups"]
    # An even kernel padded by its half gives one frame more, which is cut off afterwards.
    return total + linear(batch * (length + 1), in_group * taps, width)


@pytest.mark.parametrize("subject", ["hubert", "hubert@local:window=7"])
@given(batch=batches, samples=st.integers(400, 6_000))
@settings(max_examples=10)
def test_hubert_is_its_convolutions_its_projection_and_its_layers(subject, batch, samples):
    flops, _, config = counted(subject, samples / 16_000, batch)
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    frames = ARCHITECTURES["hubert"].positions(samples / 16_000)
    rows = batch * frames
    assert dict(flops.by_operator) == {
        "convolution": hubert_convolutions(batch, samples, config),
        "addmm": linear(rows, config["conv_dim"][-1], width) + layers * layer_linears(rows, config),
        FUSED: layers * full_attention(batch, frames, width),
    }


@given(batch=batches, samples=st.integers(400, 6_000))
@settings(max_examples=8)
def test_hubert_training_costs_three_forward_passes_grouped_convolution_included(batch, samples):
    inference, _, _ = counted("hubert", samples / 16_000, batch)
    training, _, _ = counted("hubert", samples / 16_000, batch, "training")
    # The library asks for the gradient of the waveform too.
    assert training.total == 3 * inference.total


@given(batch=batches, length=st.integers(65, 400))
@settings(max_examples=8)
def test_nystromformer_is_linear_in_its_padded_length(batch, length):
    flops, _, config = counted("nystromformer", length, batch)
    width, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    padded, marks = -(-length // 64) * 64, 64
    rows = batch * padded
    # Both softmax factors, the second factor times the values, the first times the inverse, and their product.
    long = 3 * linear(rows, width, marks) + linear(rows, marks, width) + linear(rows * heads, marks, marks)
    # Between landmarks: their scores, and six steps of four products towards the inverse.
    short = linear(batch * marks, width, marks) + 6 * 4 * linear(batch * heads * marks, marks, marks)
    assert dict(flops.by_operator) == {
        "addmm": layers * layer_linears(rows, config),
        "bmm": layers * (long + short),
        # One filter of 65 taps for each head, along the length.
        "convolution": layers * linear(rows * width, 65, 1),
    }


@given(batch=st.integers(1, 2), length=st.integers(1, 1100))
@settings(max_examples=5)
def test_longformer_is_a_staircase_of_512_positions(batch, length):
    flops, _, config = counted("longformer", length, batch)
    width, wide, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    padded, radius = -(-length // 512) * 512, 256
    rows = batch * padded
    # Overlapping chunks of 512 queries by 512 keys, of which a half is thrown away; then 256 rows by 768 values.
    scores = linear(batch * (padded // radius - 1) * 2 * radius, width, 2 * radius)
    values = linear(rows, 3 * radius, width)
    linears = 4 * linear(rows, width, width) + linear(rows, width, wide) + linear(rows, wide, width)
    assert flops.total == layers * (linears + scores + values) + linear(batch, width, width)


@given(batch=st.integers(1, 2), sides=st.sampled_from([32, 64, 96, 160]))
@settings(max_examples=6)
def test_swinv2_is_its_stages_with_the_windows_each_pads_to(batch, sides):
    flops, _, config = counted("swinv2", sides, batch)
    width, side = config["embed_dim"], sides // 4
    total = linear(batch * side * side, 3 * 4 * 4, width)
    stages = list(zip(config["depths"], config["num_heads"], strict=True))
    for stage, (depth, heads) in enumerate(stages):
        window = min(8, side)
        padded, area, rows = batch * (-(-side // window) * window) ** 2, window * window, batch * side * side
        attention = 4 * linear(padded, width, width) + 2 * linear(padded, area, width)
        # Position biases come from two coordinates of each offset within the window, through 512 units.
        offsets = (2 * window - 1) ** 2
        bias = linear(offsets, 2, 512) + linear(offsets, 512, heads)
        total += depth * (attention + bias + 2 * linear(rows, width, 4 * width))
        if stage < len(stages) - 1:
            side, width = side // 2, 2 * width
            total += linear(batch * side * side, 2 * width, width)
    assert flops.total == total


@given(
    batch=batches,
    groups=st.integers(1, 4),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 2),
    length=st.integers(4, 9),
    first=st.booleans(),
)
@settings(max_examples=30)
def test_the_gradients_of_a_grouped_convolution_cost_a_forward_pass_each(
    batch, groups, per_group, kernel, stride, length, first
):
    inward, outward = (groups * size for size in per_group)
    inputs = torch.randn(batch, inward, length, requires_grad=not first)
    weight = torch.randn(outward, per_group[0], kernel, requires_grad=True)

    def call() -> None:
        F.conv1d(inputs, weight, stride=stride, groups=groups).sum().backward()

    out = (length - kernel) // stride + 1
    forward = linear(batch * out, per_group[0] * kernel, outward)
    counts = dict(count_flops(call)[0].by_operator)
    assert counts == {"convolution": forward, "convolution_backward": forward * (1 if first else 2)}


@given(
    batch=batches,
    heads=st.integers(1, 3),
    length=st.integers(1, 40),
    head_dim=st.sampled_from([1, 7, 16]),
    masked=st.booleans(),
)
@settings(max_examples=20)
def test_fused_attention_on_the_cpu_is_counted_forward_and_backward(batch, heads, length, head_dim, masked):
    query, key, value = (torch.randn(batch, heads, length, head_dim, requires_grad=True) for _ in range(3))
    mask = torch.ones(length, length, dtype=torch.bool) if masked else None

    def attend() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    forward = full_attention(batch, length, heads * head_dim)
    with torch.no_grad():
        assert dict(count_flops(lambda: [attend(), None][1])[0].by_operator) == {FUSED: forward}
    counts = dict(count_flops(lambda: attend().sum().backward())[0].by_operator)
    assert counts == {FUSED: forward, f"{FUSED}_backward": 5 * forward // 2}


SQUARE, CUBE = torch.randn(7, 7), torch.randn(3, 5, 7)


@pytest.mark.parametrize(
    ("call", "operator"),
    [
        (lambda: torch.fft.rfft(CUBE), "_fft_r2c"),
        (lambda: torch.mv(SQUARE, SQUARE[0]), "mv"),
        (lambda: torch.addmv(SQUARE[0], SQUARE, SQUARE[1]), "addmv"),
        (lambda: torch.addbmm(SQUARE[:5], CUBE, SQUARE.expand(3, 7, 7)), "addbmm"),
        (lambda: F.bilinear(CUBE, CUBE, torch.ones(2, 7, 7)), "_trilinear"),
        (lambda: torch.cdist(CUBE, CUBE), "_cdist_forward"),
        (lambda: torch.linalg.inv(SQUARE), None),
        (lambda: torch.linalg.pinv(SQUARE), None),
        (lambda: torch.ops.aten._int_mm(*(torch.ones(32, 32, dtype=torch.int8),) * 2), "_int_mm"),
        (lambda: torch.nn.LSTM(7, 7)(CUBE), None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_costly_operator_without_a_formula_is_listed_by_name(call, operator):
    with torch.inference_mode():
        flops, operators = count_flops(call)
    names = dict(flops.uncounted)
    assert names
    if operator is not None:
        assert names == {operator: operators[operator]}


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.interpolate(CUBE[None], scale_factor=2, mode="bilinear"),
        lambda: F.gelu(CUBE).softmax(-1) + F.layer_norm(CUBE, (7,)),
        lambda: torch.linalg.vector_norm(CUBE),
        lambda: CUBE.transpose(0, 1).contiguous().sum(),
    ],
)
def test_element_wise_operators_are_neither_counted_nor_listed(call):
    flops, operators = count_flops(call)
    assert flops == Flops(total=0, by_operator=())
    assert operators


@pytest.mark.parametrize(
    ("call", "total"),
    [
        (lambda: SQUARE @ SQUARE, linear(7, 7, 7)),
        (lambda: torch.einsum("bij,jk->bik", CUBE, SQUARE), linear(15, 7, 7)),
        (lambda: torch.baddbmm(CUBE, CUBE, SQUARE.expand(3, 7, 7)), linear(15, 7, 7)),
        (lambda: F.linear(CUBE, SQUARE, SQUARE[0]), linear(15, 7, 7)),
        (lambda: F.conv_transpose1d(CUBE, torch.ones(5, 2, 3)), linear(3 * 7 * 5, 3, 2)),
    ],
)
def test_products_are_counted_whatever_they_are_called(call, total):
    assert count_flops(call)[0].total == total


def test_a_call_is_run_exactly_once():
    calls = []
    count_flops(lambda: calls.append(1))
    assert calls == [1]
