"""FLOPs against closed forms derived by hand; a multiply-add is 2.

The closed forms of the package are not used here, except where the two are compared.
"""

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.swinv2.modeling_swinv2 import Swinv2Layer, Swinv2Stage

from tippingpoint.attention.reference import local_mask
from tippingpoint.measurement import Flops
from tippingpoint.models.build import build, make_config
from tippingpoint.models.catalog import ARCHITECTURES, algorithmic_flops
from tippingpoint.profiling.flops import FORMULAS, count_flops
from tippingpoint.profiling.worker import Worker
from tippingpoint.workload import Subject, Workload

pytestmark = pytest.mark.usefixtures("one_thread")

FUSED = "_scaled_dot_product_flash_attention_for_cpu"
batches = st.integers(1, 3)


def counted(
    subject: str, length: float, batch: int, phase: str = "inference", dtype: str = "float32"
) -> tuple[Flops, Counter[str], dict]:
    workload = Workload(subject, length, batch_size=batch, phase=phase, dtype=dtype, size="tiny")
    live = build(workload)
    flops, operators = count_flops(live.call(workload))
    assert flops.total == sum(count for _, count in flops.by_operator)
    assert flops.uncounted == ()
    assert flops.bytes_accessed
    flops = dataclasses.replace(flops, algorithmic=algorithmic_flops(workload, live.config))
    return flops, operators, live.config


def algorithmic(flops: Flops) -> int:
    assert flops.algorithmic is not None
    return flops.algorithmic


def linear(rows: int, width_in: int, width_out: int) -> int:
    return 2 * rows * width_in * width_out


def layer_linears(rows: int, config: dict[str, Any]) -> int:
    """Four projections and the feed-forward part."""
    width, wide = config["hidden_size"], config["intermediate_size"]
    return 4 * linear(rows, width, width) + linear(rows, width, wide) + linear(rows, wide, width)


def full_attention(batch: int, length: int, width: int) -> int:
    """Scores and weighted values, all heads together."""
    return 2 * (2 * batch * length * length * width)


def local_attention(batch: int, length: int, width: int, window: int, num_global: int) -> dict[str, int]:
    """What is executed, by operator: every pair of a short input, else blocks of 64 queries.

    A block sees the window around all of it, as far as there is something, and the global positions, which see
    everything in a call of their own.
    """
    if length <= 128 + 2 * window:
        return {FUSED: full_attention(batch, length, width)}
    pairs = 0
    for start in range(0, length, 64):
        end = min(start + 64, length)
        seen = min(end + window, length) - max(start - window, num_global)
        pairs += (end - start) * (num_global + seen)
    product = 2 * batch * width
    if not num_global:
        return {"baddbmm": 2 * product * pairs}
    # Values of global positions are added in place.
    added = product * length * num_global
    return {"baddbmm": 2 * product * pairs - added, "baddbmm_": added, FUSED: 2 * added}


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
    assert flops.algorithmic == flops.total


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
    assert algorithmic(training) == 3 * algorithmic(inference) - 2 * pooler
    if "local" not in attention:
        assert training.algorithmic == training.total
    assert operators["embedding_dense_backward"] == 3
    assert FUSED not in operators


@given(batch=batches, length=st.integers(1, 300), window=st.integers(1, 40), num_global=st.integers(0, 4))
@settings(max_examples=15)
def test_bert_with_local_attention_executes_whole_blocks(batch, length, window, num_global):
    num_global = min(num_global, length)
    subject = f"bert@local:window={window},num_global={num_global}"
    flops, _, config = counted(subject, length, batch)
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    executed = {name: layers * n for name, n in local_attention(batch, length, width, window, num_global).items()}
    linears = layers * layer_linears(batch * length, config) + linear(batch, width, width)
    assert dict(flops.by_operator) == {"addmm": linears, **executed}
    # Beside it, what the definition asks for: the pairs that the dense oracle's mask allows.
    seen = int(local_mask(length, window, num_global, None).sum())
    attending = layers * 2 * linear(batch * seen, width, 1)
    assert flops.total - algorithmic(flops) == sum(executed.values()) - attending
    assert algorithmic(flops) <= flops.total


def test_local_attention_grows_linearly_and_full_attention_quadratically():
    lengths = (640, 1280, 1920)
    local = [dict(counted("bert@local:window=16", n, 1)[0].by_operator)["baddbmm"] for n in lengths]
    assert local[2] - local[1] == local[1] - local[0]
    full = [dict(counted("bert", n, 1)[0].by_operator)[FUSED] for n in lengths]
    assert full == [full[0], 4 * full[0], 9 * full[0]]


@pytest.mark.parametrize("attention", ["", "@eager"])
@given(batch=batches, side=st.integers(1, 6))
@settings(max_examples=8)
def test_vit_is_its_patches_its_layers_and_its_pooler(attention, batch, side):
    flops, _, config = counted(f"vit{attention}", 16 * side, batch)
    width, layers, positions = config["hidden_size"], config["num_hidden_layers"], side * side + 1
    expected = {
        "convolution": linear(batch * side * side, 3 * 16 * 16, width),
        "addmm": layers * layer_linears(batch * positions, config) + linear(batch, width, width),
        "bmm" if attention else FUSED: layers * full_attention(batch, positions, width),
    }
    assert dict(flops.by_operator) == expected
    assert flops.algorithmic == flops.total


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
    # The algorithm keeps its scores.
    assert training.total - algorithmic(training) == inference[FUSED] // 2


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


def frame_to_spare(batch: int, config: dict[str, Any]) -> int:
    """What the convolution of positions computes and cuts off: one frame of each sequence."""
    in_group = config["hidden_size"] // config["num_conv_pos_embedding_groups"]
    return linear(batch, in_group * config["num_conv_pos_embeddings"], config["hidden_size"])


@pytest.mark.parametrize("subject", ["hubert", "hubert@eager", "hubert@local:window=7"])
@given(batch=batches, samples=st.integers(400, 6_000))
@settings(max_examples=8)
def test_hubert_is_its_convolutions_its_projection_and_its_layers(subject, batch, samples):
    flops, _, config = counted(subject, samples / 16_000, batch)
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    frames = ARCHITECTURES["hubert"].positions(samples / 16_000)
    rows = batch * frames
    assert dict(flops.by_operator) == {
        "convolution": hubert_convolutions(batch, samples, config),
        "addmm": linear(rows, config["conv_dim"][-1], width) + layers * layer_linears(rows, config),
        "bmm" if "eager" in subject else FUSED: layers * full_attention(batch, frames, width),
    }
    # At these lengths local attention runs the dense band; the definition leaves the corners out.
    seen = int(local_mask(frames, 7, 0, None).sum()) if "local" in subject else frames**2
    corners = layers * 2 * linear(batch * (frames**2 - seen), width, 1)
    assert flops.total - algorithmic(flops) == frame_to_spare(batch, config) + corners


@given(batch=batches, samples=st.integers(400, 6_000))
@settings(max_examples=8)
def test_hubert_training_costs_three_forward_passes_grouped_convolution_included(batch, samples):
    inference, _, config = counted("hubert", samples / 16_000, batch)
    training, _, _ = counted("hubert", samples / 16_000, batch, "training")
    assert training.total == 3 * inference.total
    # The library asks for the gradient of the waveform too, which nobody needs.
    first = linear(batch * ((samples - 10) // 5 + 1), 10, config["conv_dim"][0])
    assert algorithmic(training) == 3 * algorithmic(inference) - first
    assert training.total - algorithmic(training) == 3 * frame_to_spare(batch, config) + first


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
    # All but the arithmetic between landmarks is for each position, and the algorithm does it for real ones alone.
    per_row = (flops.total - layers * short) // rows
    assert algorithmic(flops) == batch * length * per_row + layers * short


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
    # The algorithm: as many positions as there are, and for each the 513 (fewer at the ends) that it sees.
    seen = sum(min(i + radius, length - 1) - max(i - radius, 0) + 1 for i in range(length))
    real = layers * (linears // padded * length + 2 * linear(batch * seen, width, 1)) + linear(batch, width, width)
    assert flops.algorithmic == real < flops.total


def test_long_inputs_show_what_the_chunks_of_the_longformer_cost():
    """Each position is scored against 1,024 and weighted over 768 values where its window has 513."""
    (short, _, config), (long, _, _) = counted("longformer", 2048, 1), counted("longformer", 4096, 1)
    linears = config["num_hidden_layers"] * layer_linears(2048, config)
    executed = long.total - short.total - linears
    asked = algorithmic(long) - algorithmic(short) - linears
    assert executed / asked == (1024 + 768) / (2 * 513)


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
    # Only where a coarse stage pads its grid (12 x 12 and 20 x 20 here) is more executed than asked for.
    assert (flops.algorithmic == flops.total) == (sides in (32, 64))
    assert algorithmic(flops) <= flops.total
    training, _, _ = counted("swinv2", sides, batch, "training")
    assert training.total - algorithmic(training) == 3 * (flops.total - algorithmic(flops))


def windows_of(layer: Swinv2Layer, side: int) -> Tensor:
    """Window of each position of a grid, [side * side]: cut as the library cuts its padded and rolled grid."""
    padded = -(-side // layer.window_size) * layer.window_size
    rolled = torch.arange(padded)
    along = torch.empty_like(rolled)
    # A window that wraps around has two parts, which do not see each other.
    wraps = (rolled + layer.shift_size >= padded).long()
    along[(rolled + layer.shift_size) % padded] = 2 * (rolled // layer.window_size) + wraps
    return (2 * padded * along[:side, None] + along[:side]).flatten()


@pytest.mark.parametrize("length", [32, 64, 96, 160])
def test_shifted_windows_are_asked_for_what_they_see(length, monkeypatch):
    sizes = {"tiny": {**ARCHITECTURES["swinv2"].sizes["tiny"], "depths": (2, 2)}}
    row = dataclasses.replace(ARCHITECTURES["swinv2"], sizes=sizes)
    monkeypatch.setattr("tippingpoint.models.catalog.ARCHITECTURES", {"swinv2": row})
    workload = Workload("swinv2", length, size="tiny")
    live = build(workload)
    width, side = live.config["embed_dim"], length // 4
    expected = linear(side * side, 3 * 4 * 4, width)
    for stage in (module for module in live.model.modules() if isinstance(module, Swinv2Stage)):
        for layer in stage.blocks:
            assert isinstance(layer, Swinv2Layer)
            window = windows_of(layer, side)
            pairs = int((window[:, None] == window[None, :]).sum())
            if layer.shift_size and side % layer.window_size == 0:
                assert pairs == int((layer.get_attn_mask(side, side, torch.float32) == 0).sum())
            offsets, heads = (2 * layer.window_size - 1) ** 2, layer.attention.self.num_attention_heads
            expected += 4 * linear(side * side, width, width) + 2 * linear(side * side, width, 4 * width)
            expected += 2 * linear(pairs, width, 1) + linear(offsets, 2, 512) + linear(offsets, 512, heads)
        if stage.downsample is not None:
            side, width = side // 2, 2 * width
            expected += linear(side * side, 2 * width, width)
    flops, _ = count_flops(live.call(workload))
    assert algorithmic_flops(workload, live.config) == expected
    # One window for the whole grid is not shifted.
    assert (expected < flops.total) == (length > 32)


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
    assert (flops.total, flops.by_operator, flops.uncounted) == (0, (), ())
    assert flops.bytes_accessed
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


LOWER = [
    (row, phase)
    for row in ARCHITECTURES.values()
    for phase in ("inference", "training")
    if not row.why_float32(phase)
]


@pytest.mark.parametrize(("row", "phase"), LOWER, ids=[f"{row.name}-{phase}" for row, phase in LOWER])
def test_bfloat16_counts_what_float32_counts(row, phase):
    subject = f"{row.name}@local:window=3,num_global=2" if row.takes_variants else row.name
    length = row.nearest_legal(0.1 if row.unit == "seconds" else 70)
    exact, _, _ = counted(subject, length, 2, phase)
    lower, _, _ = counted(subject, length, 2, phase, "bfloat16")
    assert (lower.total, lower.algorithmic) == (exact.total, exact.algorithmic)
    assert lower.by_operator == exact.by_operator


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_under_autocast_counts_what_float32_counts(dtype):
    """Workloads take float16 on CUDA only; the step is written out here."""
    workload = Workload("vit@local:window=3,num_global=2", 64, batch_size=2, phase="training", size="tiny")
    live = build(workload)
    batch = live.inputs(workload)

    def step(enabled: bool) -> None:
        with torch.autocast("cpu", dtype, enabled=enabled):
            hidden = live.model(**batch).last_hidden_state
        hidden.float().square().mean().backward()

    assert count_flops(lambda: step(True))[0].by_operator == count_flops(lambda: step(False))[0].by_operator


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fused_attention_in_a_lower_precision_moves_half_the_bytes_and_counts_the_same(dtype):
    def count(kind: torch.dtype) -> Flops:
        query, key, value = (torch.randn(2, 3, 40, 8, dtype=kind, requires_grad=True) for _ in range(3))
        return count_flops(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())[0]

    exact, lower = count(torch.float32), count(getattr(torch, dtype))
    assert lower.by_operator == exact.by_operator
    assert lower.bytes_accessed is not None
    assert exact.bytes_accessed is not None
    # Log-sum-exp of each row stays in float32; it is written once and read once.
    stays = 2 * 4 * 2 * 3 * 40
    assert exact.bytes_accessed - stays == 2 * (lower.bytes_accessed - stays)


def fused_operators() -> list[str]:
    """Every operator of this build that is attention as a whole; the composite is taken apart where it runs."""
    names = {name.removeprefix("aten::").partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    return sorted(
        name
        for name in names
        if "scaled_dot_product" in name
        and "attention" in name
        and name not in ("scaled_dot_product_attention", "_scaled_dot_product_attention_math")
    )


@pytest.mark.parametrize("name", fused_operators())
def test_every_fused_attention_of_every_device_has_a_formula(name):
    registry = FlopCounterMode(display=False, custom_mapping=FORMULAS).flop_registry
    query, key, value, grad = (
        torch.empty(2, 3, length, width, device="meta") for length, width in ((5, 7), (11, 7), (11, 4), (5, 4))
    )
    backward = name.endswith("_backward")
    given = (grad, query, key, value) if backward else (query, key, value)
    # Scores and weighted values; scores again, gradients of queries and keys (7 wide), of values and weights (4).
    widths = 3 * 7 + 2 * 4 if backward else 7 + 4
    assert registry[getattr(torch.ops.aten, name)](*given, out_val=None) == linear(2 * 3 * 5, 11, widths)


def test_the_kernels_of_cuda_are_among_them():
    kernels = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
    expected = {f"_scaled_dot_product_{kernel}{way}" for kernel in kernels for way in ("", "_backward")}
    assert expected <= set(fused_operators())


@pytest.mark.parametrize("phase", ["inference", "training"])
def test_a_worker_gives_executed_and_algorithmic_flops_and_bytes_side_by_side(phase):
    worker = Worker("cpu", 1)
    worker.build(Workload("bert@local:window=8", 200, batch_size=2, phase=phase, size="tiny"))
    flops = worker.inspect().flops
    assert flops.algorithmic is not None
    assert flops.bytes_accessed is not None
    assert 0 < flops.algorithmic < flops.total
    # At least every weight is read.
    assert flops.bytes_accessed > 4 * (worker.subject.parameters - 1000 * 64 - 512 * 64)


SHARED = {"bert": 50, "modernbert": 50, "hubert": 0.5, "vit": 64, "wav2vec2-conformer": 0.5, "parakeet_encoder": 0.8}


@pytest.mark.parametrize("phase", ["inference", "training"])
@pytest.mark.parametrize("name", SHARED)
def test_what_layers_save_that_share_a_map_is_neither_asked_for_nor_executed(name, phase):
    length, batch = SHARED[name], 2
    # Of four layers of ModernBERT the first and the last have no window.
    workload = Workload(name, length, batch_size=batch, phase=phase, size="tiny", layers=4)
    plain, shared = (
        dataclasses.replace(workload, subject=Subject.parse(f"{name}@{v}")) for v in ("eager", "reuse:mode=map")
    )
    asked: list[int] = []
    executed: list[int] = []
    for each in (plain, shared):
        live = build(each)
        flops, _ = count_flops(live.call(each))
        asked.append(algorithmic_flops(each, live.config) or 0)
        executed.append(flops.total)
    row, config = ARCHITECTURES[name], make_config(workload).to_dict()
    shape, positions = row.shape(config), row.positions(length)
    saved = 1 if name == "modernbert" else 2
    products = 3 if phase == "training" else 1
    rows = batch * positions
    layer = 2 * linear(rows, shape.width, shape.width) + linear(rows * positions, shape.width, 1)
    distances = beyond = 0
    if row.scores is not None:
        scores = linear(rows * positions, shape.width, 1)
        encodings = linear(2 * positions - 1, shape.width, shape.width) * (2 if phase == "training" else 1)
        distances = products * scores + encodings
        # The library also scores distances beyond the ends, and Parakeet projects encodings for each sequence.
        beyond = products * linear(rows * (positions - 1), shape.width, 1)
        beyond += (batch - 1) * encodings if name == "parakeet_encoder" else 0
    assert asked[0] - asked[1] == saved * (products * layer + distances)
    # The two windowed layers of ModernBERT run fused beside others, whose backward pass scores again.
    again = 2 * linear(rows * positions, shape.width, 1) if name == "modernbert" and phase == "training" else 0
    assert executed[0] - executed[1] == saved * (products * layer + distances + beyond) - again
