"""FlexAttention as a way of local attention: which blocks it visits, and what it gives without being compiled."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_inputs import DTYPES, gap, inputs, paddings
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention
from variant_cases import make_case, rounding

from tippingpoint.attention import local_attention, local_flex, reference
from tippingpoint.attention.local_flex import BLOCK, block_mask
from tippingpoint.errors import InputError
from tippingpoint.models.catalog import VARIANTS

pytestmark = pytest.mark.usefixtures("one_thread", "uncompiled")

LOCAL = VARIANTS["local"]
# What compiles it, each time anew, before `uncompiled` stands in its place.
_COMPILED = local_flex._compiled.__wrapped__
# Around one, two and four blocks.
LENGTHS = (1, 7, 127, 128, 129, 255, 256, 300, 511, 513)
WINDOWS = (1, 5, 64, 126, 127, 128, 129, 200, 255, 256, 600)
GLOBALS = (0, 0, 1, 5, 127, 128, 129, 256, 600)


@pytest.fixture(scope="module")
def uncompiled() -> Iterator[None]:
    """Let FlexAttention run step by step: it can do without a compiler, slowly and without a backward pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        patch.setattr(local_flex, "_compiled", lambda: flex_attention.flex_attention)
        yield


def listed(count: Tensor, numbers: Tensor) -> Tensor:
    """Return which blocks are listed, bool [rows, columns]; each once."""
    rows = [row[:number].tolist() for row, number in zip(numbers[0, 0], count[0, 0], strict=True)]
    assert all(len(set(row)) == len(row) for row in rows)
    return torch.tensor([[column in row for column in range(numbers.shape[-1])] for row in rows])


def in_blocks(mask: Tensor) -> Tensor:
    """Return [rows, columns, pairs] of a mask, filled up with what is hidden."""
    length = mask.shape[0]
    blocks = -(-length // BLOCK)
    extra = blocks * BLOCK - length
    return F.pad(mask, (0, extra, 0, extra)).view(blocks, BLOCK, blocks, BLOCK).transpose(1, 2).flatten(2)


@given(
    length=st.sampled_from(LENGTHS),
    window=st.sampled_from(WINDOWS),
    num_global=st.sampled_from(GLOBALS),
    causal=st.booleans(),
    seed=st.none() | st.integers(0, 9),
)
@settings(max_examples=300)
def test_the_blocks_that_are_visited_are_those_with_a_visible_pair(length, window, num_global, causal, seed):
    num_global = min(num_global, length)
    padding = None
    if seed is not None:
        padding = torch.rand(2, length, generator=torch.Generator().manual_seed(seed)) < 0.7
    made = block_mask(length, window, num_global, causal, torch.device("cpu"), padding)
    assert made.full_kv_num_blocks is not None
    assert made.full_kv_indices is not None
    partial = listed(made.kv_num_blocks, made.kv_indices)
    full = listed(made.full_kv_num_blocks, made.full_kv_indices)
    assert not (partial & full).any()

    band = in_blocks(reference.local_mask(length, window, num_global, None, causal)[0, 0])
    assert torch.equal(partial | full, band.any(dim=-1))
    if padding is not None:
        assert not full.any()
    else:
        assert not (full & ~band.all(dim=-1)).any()
        # Where the last global position stands inside of a block, two rules together may show every pair.
        cut = torch.arange(len(band)) == (num_global // BLOCK if num_global % BLOCK else -1)
        assert torch.equal(full | cut | cut[:, None], band.all(dim=-1) | cut | cut[:, None])

    # What the kernel shows: full blocks as they are, and of partial ones what the mask of pairs says.
    position = torch.arange(length)
    for sample in range(1 if padding is None else 2):
        pairs = made.mask_mod(torch.tensor(sample), torch.tensor(0), position[:, None], position[None, :])
        shown = full[..., None] | (partial[..., None] & in_blocks(pairs))
        dense = reference.local_mask(length, window, num_global, padding, causal)[sample, 0]
        assert torch.equal(shown & in_blocks(torch.ones_like(dense)), in_blocks(dense))

    # The backward pass goes by keys.
    assert made.q_num_blocks is not None
    assert made.q_indices is not None
    assert made.full_q_num_blocks is not None
    assert made.full_q_indices is not None
    assert torch.equal(listed(made.q_num_blocks, made.q_indices), partial.T)
    assert torch.equal(listed(made.full_q_num_blocks, made.full_q_indices), full.T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 7, 128, 200, 300])
def test_uncompiled_it_equals_the_oracle(length, dtype):
    for window in (1, 50, 128, 140):
        for options in ({}, {"num_global": 2}, {"causal": True}, {"num_global": 129, "causal": True}):
            options = {**options, "num_global": min(options.get("num_global", 0), length), "window": window}
            for mask in (None, paddings(length)["right"], paddings(length)["holes"]):
                tensors = inputs(length, dtype=dtype, value_dim=5, seed=window)
                case = make_case(LOCAL, tensors, options, mask=mask, scale=0.3 if window == 50 else None)
                output = case.attend(way="flex")
                assert output.dtype == dtype
                assert output.isfinite().all()
                assert gap(output, case.oracle(), mask) <= rounding(case)


def test_a_layout_of_a_model_is_taken_as_it_is():
    query, key, value = (tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in inputs(200))
    case = make_case(LOCAL, (query, key, value), {"window": 20}, mask=paddings(200)["left"])
    assert gap(case.attend(way="flex"), case.oracle(), case.padding_mask) <= rounding(case)


def test_layers_share_the_mask_of_unpadded_inputs_and_inference_leaves_it_fit_for_training():
    local_flex._unpadded_mask.cache_clear()
    with torch.inference_mode():
        local_attention(*inputs(200), window=20, way="flex")
        local_attention(*inputs(200), window=20, way="flex")
    assert local_flex._unpadded_mask.cache_info().misses == 1
    assert not local_flex._unpadded_mask(200, 20, 0, False, "cpu").kv_indices.is_inference()


def test_training_on_the_cpu_is_refused_and_inference_is_not():
    tensors = inputs(9)
    tensors[2].requires_grad_()
    with pytest.raises(InputError, match="FlexAttention has no backward pass on the CPU; choose the streamed or"):
        local_attention(*tensors, window=2, way="flex")
    with torch.no_grad():
        assert local_attention(*(tensor + 0 for tensor in tensors), window=2, way="flex").isfinite().all()


def test_one_process_takes_more_kinds_of_inputs_than_the_library_compiles_by_default(monkeypatch):
    torch.compiler.reset()
    compile_, made = torch.compile, []

    def by_the_eager_backend(function, **options):
        assert options == {"fullgraph": True}
        made.append(function)
        return compile_(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", by_the_eager_backend)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    attend = _COMPILED()
    monkeypatch.setattr(local_flex, "_compiled", lambda: attend)
    before = torch._dynamo.config.recompile_limit
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for causal in (False, True):
            for mask in (None, paddings(130)["holes"]):
                case = make_case(LOCAL, inputs(130, dtype=dtype), {"window": 5, "causal": causal}, mask=mask)
                assert gap(case.attend(way="flex"), case.oracle(), mask) <= rounding(case)
    assert len(made) == 1
    assert before < 12
    assert torch._dynamo.config.recompile_limit == before


@pytest.mark.parametrize("length", [100, 300])
def test_it_is_part_of_a_graph(length):
    several: tuple[dict[str, Any], ...] = ({}, {"num_global": 2}, {"causal": True})
    for options in several:
        torch.compiler.reset()
        compiled = torch.compile(local_attention, fullgraph=True, backend="eager")
        for mask in (None, paddings(length)["holes"]):
            case = make_case(LOCAL, inputs(length), {"window": 5, **options}, mask=mask)
            output = compiled(*case.tensors, window=5, padding_mask=mask, way="flex", **options)
            assert gap(output, case.oracle(), mask) <= rounding(case)
