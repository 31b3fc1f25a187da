"""Attention on a GPU: every variant against its oracle, and compiled FlexAttention."""

import pytest
import torch
from attention_inputs import DTYPES, gap, gradients, inputs, paddings
from variant_cases import (
    ROWS,
    Case,
    few_options,
    gradient_rounding,
    local_gradients_are_near,
    make_case,
    rounding,
)

from tippingpoint.attention import local_attention, reference
from tippingpoint.attention.local import choose_way
from tippingpoint.attention.reuse import choose_mode, share
from tippingpoint.errors import InputError
from tippingpoint.models.catalog import VARIANTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LOCAL = VARIANTS["local"]
every_variant = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def on_cuda(case: Case) -> Case:
    """Return the same case on the GPU."""
    mask = None if case.padding_mask is None else case.padding_mask.cuda()
    module = None if case.module is None else case.module.cuda()
    return case.map(torch.Tensor.cuda)._replace(padding_mask=mask, module=module)


def local_case(length: int, dtype: torch.dtype, options: dict, padding: str | None) -> Case:
    """Return local attention of heads that FlexAttention takes."""
    generator = torch.Generator().manual_seed(length)
    query, key, value = (
        torch.randn(3, 2, length, size, generator=generator, dtype=torch.float64).to(dtype) for size in (32, 32, 64)
    )
    mask = None if padding is None else paddings(length)[padding]
    return make_case(LOCAL, (query, key, value), options, mask=mask)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_variant
def test_every_variant_equals_its_oracle(row, dtype):
    for length in (1, 7, 64, 131, 211):
        for options in few_options(row):
            for mask in (None, *paddings(length).values()):
                clipped = {**options, **({"num_global": min(options["num_global"], length)} if row is LOCAL else {})}
                case = make_case(row, inputs(length, dtype=dtype, value_dim=16), clipped, mask=mask)
                error, case = rounding(case), on_cuda(case)
                output = case.attend()
                assert output.device.type == "cuda"
                assert output.dtype == dtype
                assert output.isfinite().all()
                assert gap(output, case.oracle(), case.padding_mask) <= error


@every_variant
def test_every_variants_gradients_equal_its_oracles(row):
    for options in few_options(row):
        for mask in (None, *paddings(131).values()):
            case = make_case(row, inputs(131), options, mask=mask)
            tolerance, case = gradient_rounding(case), on_cuda(case)
            shared = case.value[:, :, 0].numel() + case.key[:, :, 0].numel()
            for number, (own, other) in enumerate(zip(case.gradients(), case.gradients(case.oracle), strict=True)):
                assert own.isfinite().all()
                assert gap(own[None, None], other[None, None]) <= (tolerance if number < 3 else shared * tolerance)


@pytest.mark.parametrize("padding", [None, "right", "holes"])
@pytest.mark.parametrize("window", [3, 100, 128, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_flex_attention_equals_the_oracle_forward_and_backward(dtype, window, padding):
    for length in (1, 127, 128, 300, 1000):
        for options in ({}, {"num_global": 2}, {"causal": True}, {"num_global": 130, "causal": True}):
            options = {**options, "num_global": min(options.get("num_global", 0), length), "window": window}
            case = local_case(length, dtype, options, padding)
            error, there = rounding(case), on_cuda(case)
            output = there.attend(way="flex")
            assert output.dtype == dtype
            assert output.isfinite().all()
            assert gap(output, there.oracle(), there.padding_mask) <= error
            ours = there.gradients(lambda *tensors, case=there: case.attend(*tensors, way="flex"))
            assert all(own.isfinite().all() for own in ours)
            assert local_gradients_are_near(case, [own.cpu() for own in ours])


@pytest.mark.parametrize("way", ["band", "gathered"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_other_ways_equal_the_oracle(dtype, way):
    for length in (1, 127, 300):
        for options in ({"window": 3}, {"window": 70, "num_global": 1}, {"window": 70, "causal": True}):
            for padding in (None, "holes"):
                case = local_case(length, dtype, options, padding)
                error, case = rounding(case), on_cuda(case)
                assert gap(case.attend(way=way), case.oracle(), case.padding_mask) <= error


def test_flex_attention_is_what_runs_where_it_can_and_dropout_takes_another_way():
    case = on_cuda(local_case(1000, torch.float32, {"window": 50}, None))
    assert choose_way(1000, "cuda", torch.float32, window=50, head_dim=32) == "flex"
    assert torch.equal(case.attend(), case.attend(way="flex"))
    torch.manual_seed(0)
    dropped = case.attend(dropout=0.5)
    torch.manual_seed(0)
    assert torch.equal(dropped, case.attend(dropout=0.5, way="gathered"))


def test_the_streamed_way_is_refused():
    case = on_cuda(local_case(300, torch.float32, {"window": 50}, None))
    with pytest.raises(InputError, match=r"the streamed way takes float32 and float64 on the CPU, got .* on cuda"):
        case.attend(way="streamed")


@pytest.mark.parametrize("way", ["flex", "gathered"])
def test_memory_grows_with_the_length_and_not_with_its_square(way):
    def peak(length: int) -> int:
        case = on_cuda(local_case(length, torch.bfloat16, {"window": 64}, None))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients(lambda *tensors: local_attention(*tensors, window=64, way=way), case.tensors, None)
        return torch.cuda.max_memory_allocated() - before

    peak(4096)
    short, long = peak(4096), peak(16384)
    assert long <= 4.5 * short
    # The definition's float32 scores of all heads alone.
    assert long < 16384**2 * 6 * 4 / 4


def test_the_oracles_mask_is_where_its_inputs_are():
    mask = torch.ones(2, 9, dtype=torch.bool, device="cuda")
    assert reference.local_mask(9, 2, 1, mask).device.type == "cuda"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["map", "recompute"])
@pytest.mark.parametrize("local", [{}, {"window": 5}, {"window": 5, "num_global": 3}, {"window": 5, "causal": True}])
def test_shared_maps_equal_those_of_the_cpu(local, mode, dtype):
    query, key, value = inputs(131, dtype=dtype)
    other = value.flip(2)
    padding = paddings(131)["right"]
    _, here = share(query.double(), key.double(), value.double(), "recompute", mask=padding, **local)
    output, there = share(query.cuda(), key.cuda(), value.cuda(), mode, mask=padding.cuda(), **local)
    wanted = here.attend(other.double())
    error = (there.attend(other.cuda()).cpu().double() - wanted).abs() * padding[:, None, :, None]
    assert output.device.type == "cuda"
    assert error.max() <= 16 * torch.finfo(dtype).eps * wanted.abs().max()


def test_a_mode_is_chosen_on_the_device():
    query, _, value = (tensor.cuda().float() for tensor in inputs(64))
    assert choose_mode(query, value, users=2) in ("map", "recompute")
