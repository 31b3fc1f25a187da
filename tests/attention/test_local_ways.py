"""Each way of local attention computes the same, where it can, and the chosen one is what the inputs ask for."""

from typing import Any

import pytest
import torch
from attention_inputs import DTYPES, LargestTensor, gap, inputs, loss_weights, paddings
from hypothesis import given, settings
from hypothesis import strategies as st
from variant_cases import cases, gradient_rounding, local_gradients_are_near, make_case, rounding

from tippingpoint.attention import local, local_attention, reference
from tippingpoint.attention.local import WAYS, choose_way, describe_way
from tippingpoint.errors import InputError
from tippingpoint.models.catalog import VARIANTS

pytestmark = pytest.mark.usefixtures("one_thread")

LOCAL = VARIANTS["local"]
ON_CPU = ("band", "streamed", "gathered")
every_way = pytest.mark.parametrize("way", ON_CPU)
every_way_and_dtype = pytest.mark.parametrize(
    ("way", "dtype"),
    [(way, dtype) for way in ON_CPU for dtype in DTYPES if way != "streamed" or dtype.itemsize >= 4],
    ids=str,
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"num_global": 2},
    {"causal": True},
    {"num_global": 3, "causal": True},
)


@every_way_and_dtype
@given(data=st.data())
@settings(max_examples=150)
def test_every_way_equals_the_oracle(way, dtype, data):
    case = data.draw(cases(LOCAL, dtype=dtype))
    output = case.attend(way=way)
    assert output.dtype == dtype
    assert output.shape == case.value.shape
    assert output.isfinite().all()
    assert gap(output, case.oracle(), case.padding_mask) <= rounding(case)


@every_way
@pytest.mark.parametrize("window", [63, 64, 65, 128, 200])
def test_every_way_equals_the_oracle_with_wide_windows_and_many_globals(way, window):
    for options in (*OPTIONS, {"num_global": 130}, {"num_global": 130, "causal": True}):
        for mask in (None, *paddings(331).values()):
            case = make_case(LOCAL, inputs(331, dtype=torch.float32), {"window": window, **options}, mask=mask)
            assert gap(case.attend(way=way), case.oracle(), mask) <= rounding(case)


@every_way_and_dtype
@given(data=st.data())
@settings(max_examples=50)
def test_every_ways_gradients_equal_the_oracles(way, dtype, data):
    case = data.draw(cases(LOCAL, dtype=dtype))
    ours = case.gradients(lambda *tensors: case.attend(*tensors, way=way))
    assert all(own.isfinite().all() for own in ours)
    assert local_gradients_are_near(case, ours)


@every_way
def test_gradients_reach_tensors_in_the_layout_of_a_model_and_gradients_may_be_expanded(way):
    mask = paddings(97)["holes"]
    for options in OPTIONS:
        case = make_case(LOCAL, inputs(97, value_dim=5), {"window": 7, **options}, mask=mask)
        models = [tensor.transpose(1, 2).contiguous().requires_grad_() for tensor in case.tensors]
        found = torch.autograd.grad(case.attend(*(leaf.transpose(1, 2) for leaf in models), way=way).sum(), models)
        leaves = [tensor.clone().requires_grad_() for tensor in case.tensors]
        expected = torch.autograd.grad(case.oracle(*leaves).sum(), leaves)
        for own, other in zip(found, expected, strict=True):
            assert gap(own.transpose(1, 2), other) <= gradient_rounding(case)


@every_way
def test_a_tensor_that_learns_nothing_gets_no_gradient(way):
    case = make_case(LOCAL, inputs(97), {"window": 7, "num_global": 2})
    query, key, value = case.tensors
    value = value.clone().requires_grad_()
    (found,) = torch.autograd.grad(case.attend(query, key, value, way=way).sum(), [value])
    (expected,) = torch.autograd.grad(case.oracle(query, key, value).sum(), [value])
    assert gap(found, expected) <= gradient_rounding(case)
    assert query.grad is None


@every_way
def test_what_was_used_in_inference_takes_part_in_training(way):
    local._shared_band_mask.cache_clear()
    tensors = inputs(97)
    with torch.inference_mode():
        local_attention(*tensors, window=7, way=way)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    local_attention(*leaves, window=7, way=way).sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)


@every_way
def test_dropout_drops_the_share_it_is_told_and_keeps_the_mean(way):
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 4, 300, 8).unbind(0)
    # Each position's value is a dimension of its own: the output is the weights, [query, key].
    value = torch.eye(300).expand(2, 4, 300, 300)
    for options in OPTIONS:
        weights = local_attention(query, key, value, window=20, way=way, **options)
        torch.manual_seed(1)
        dropped = local_attention(query, key, value, window=20, way=way, dropout=0.25, **options)
        seen = weights > 0
        assert (dropped[~seen] == 0).all()
        kept = dropped[seen] > 0
        # Of n independent weights each is kept with probability 3/4.
        assert abs(float(kept.double().mean()) - 0.75) <= 4 * (0.75 * 0.25 / kept.numel()) ** 0.5
        # One that is kept is divided by that, once; and scores may be added up otherwise.
        error = (2 * (8 + 2) * 8 + 2 * 300 + 2) * torch.finfo(torch.float32).eps
        assert ((dropped[seen] * 0.75 - weights[seen]).abs()[kept] <= error * weights[seen][kept]).all()
        torch.manual_seed(1)
        assert torch.equal(dropped, local_attention(query, key, value, window=20, way=way, dropout=0.25, **options))
        assert not torch.equal(
            dropped, local_attention(query, key, value, window=20, way=way, dropout=0.25, **options)
        )


def largest_tensor(length: int, *, training: bool, attend=local_attention, **options) -> int:
    leaves = [tensor.requires_grad_(training) for tensor in torch.randn(3, 1, 2, length, 4).unbind(0)]
    mask = torch.arange(length)[None] % 5 > 0
    with LargestTensor() as largest:
        output = attend(*leaves, window=16, padding_mask=mask, **options)
        if training:
            output.square().sum().backward()
    return largest.numel


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("way", ["streamed", "gathered"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_memory_grows_with_the_length_and_not_with_its_square(options, way, training):
    short, long = (largest_tensor(length, training=training, way=way, **options) for length in (1024, 4096))
    assert long <= 4.1 * short


def test_the_memory_of_the_definition_grows_with_the_square():
    # The measure can tell.
    for attend, options in ((reference.local_attention, {}), (local_attention, {"way": "band"})):
        short, long = (largest_tensor(length, training=True, attend=attend, **options) for length in (256, 1024))
        assert long == 16 * short


FAST, DOUBLE, HALF, HALF_16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("length", "device", "dtype", "options", "threads", "way"),
    [
        (1000, "cpu", FAST, {}, 1, "streamed"),
        (1000, "cpu", DOUBLE, {}, 12, "streamed"),
        (1000, "cpu", FAST, {"dropout": 0.1}, 12, "streamed"),
        (1000, "cpu", FAST, {"head_dim": 4}, 12, "streamed"),
        (1000, "cpu", FAST, {}, 13, "gathered"),
        (1000, "cpu", HALF, {}, 1, "gathered"),
        (1000, "cpu", HALF_16, {}, 1, "gathered"),
        # No more than 128 positions beyond the window.
        (100 + 128, "cpu", FAST, {}, 1, "band"),
        (100 + 129, "cpu", FAST, {}, 1, "streamed"),
        (100 + 128, "cpu", HALF, {}, 99, "band"),
        (1, "cpu", FAST, {}, 1, "band"),
        (1000, "cuda", FAST, {}, 1, "flex"),
        (1000, "cuda", HALF, {}, 99, "flex"),
        (1000, "cuda", HALF_16, {"head_dim": 16}, 1, "flex"),
        (101, "cuda", FAST, {}, 1, "flex"),
        (100, "cuda", FAST, {}, 1, "band"),
        # What FlexAttention lacks: dropout, double precision, small heads.
        (1000, "cuda", FAST, {"dropout": 0.1}, 1, "gathered"),
        (1000, "cuda", DOUBLE, {}, 1, "gathered"),
        (1000, "cuda", FAST, {"head_dim": 15}, 1, "gathered"),
        (228, "cuda", HALF, {"dropout": 0.1}, 1, "band"),
        (1000, "mps", FAST, {}, 1, "gathered"),
    ],
)
def test_the_way_is_chosen_by_device_precision_length_and_threads(
    length, device, dtype, options, threads, way, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert choose_way(length, device, dtype, window=50, **options) == way
    name = str(dtype).removeprefix("torch.")
    assert describe_way(length, device, name, window=50, num_global=2, causal=True, **options) == WAYS[way]


def test_a_given_way_is_not_chosen_again(monkeypatch):
    def choose_nothing(*args: Any, **options: Any) -> str:
        raise AssertionError("the way was given")

    tensors = [torch.randn(1, 2, 300, 8) for _ in range(3)]
    monkeypatch.setattr(local, "choose_way", choose_nothing)
    for way in ON_CPU:
        local_attention(*tensors, window=5, way=way)
    with pytest.raises(AssertionError, match="the way was given"):
        local_attention(*tensors, window=5)


def test_blocks_are_not_streamed_inside_of_a_graph(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert choose_way(1000, "cpu", window=50) == "gathered"
    assert choose_way(200, "cpu", window=50) == "band"
    assert choose_way(1000, "cuda", window=50) == "flex"


@pytest.mark.parametrize(
    ("length", "dtype", "threads", "way"),
    [(97, FAST, 1, "band"), (300, FAST, 1, "streamed"), (300, FAST, 64, "gathered"), (300, HALF, 1, "gathered")],
)
def test_the_chosen_way_is_the_one_that_runs(length, dtype, threads, way, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tensors = inputs(length, dtype=dtype)
    chosen = local_attention(*tensors, window=7, num_global=1)
    assert torch.equal(chosen, local_attention(*tensors, window=7, num_global=1, way=way))
    others = [other for other in ON_CPU if other != way and (other != "streamed" or dtype == FAST)]
    # Ways round differently, so that equality to the last bit tells them apart.
    assert not any(
        torch.equal(chosen, local_attention(*tensors, window=7, num_global=1, way=other)) for other in others
    )


@pytest.mark.parametrize(
    ("way", "dtype", "options", "message"),
    [
        ("blocks", FAST, {}, "way must be one of band, streamed, gathered, flex, got 'blocks'"),
        ("streamed", HALF, {}, "the streamed way takes float32 and float64 on the CPU, got torch.bfloat16 on cpu"),
        ("streamed", HALF_16, {}, "the streamed way takes float32 and float64"),
        ("flex", FAST, {"dropout": 0.1}, "FlexAttention has no dropout; choose the gathered way, or dropout 0"),
    ],
)
def test_a_way_that_cannot_take_the_inputs_says_so(way, dtype, options, message):
    with pytest.raises(InputError, match=message):
        local_attention(*inputs(9, dtype=dtype), window=2, way=way, **options)


def test_the_streamed_way_is_for_the_cpu():
    tensors = [tensor.to("meta") for tensor in inputs(9, dtype=FAST)]
    with pytest.raises(InputError, match=r"on the CPU, got torch\.float32 on meta"):
        local_attention(*tensors, window=2, way="streamed")


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("length", [100, 300])
def test_it_compiles_as_one_graph_long_and_short(length, backend):
    mask = paddings(length)["holes"]
    for options in OPTIONS:
        torch.compiler.reset()
        compiled = torch.compile(local_attention, fullgraph=True, backend=backend)
        for padding_mask in (None, mask):
            case = make_case(LOCAL, inputs(length), {"window": 5, **options}, mask=padding_mask)
            leaves = [tensor.clone().requires_grad_() for tensor in case.tensors]
            output = compiled(*leaves, window=5, padding_mask=padding_mask, **options)
            assert gap(output, case.oracle(), padding_mask) <= rounding(case)
            if padding_mask is None:
                expected = case.gradients(case.oracle)
                found = torch.autograd.grad((output * loss_weights(output)).sum(), leaves)
                assert all(gap(a, b) <= gradient_rounding(case) for a, b in zip(found, expected, strict=True))
