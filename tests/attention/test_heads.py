import pytest
import torch
from attention_laws import DTYPES, HEADS, Laws, average_error, full, gap, gradients, inputs

from tippingpoint.attention import kept_heads_attention, reference
from tippingpoint.attention.heads import num_kept
from tippingpoint.models.attention_flops import heads_flops

pytestmark = pytest.mark.usefixtures("one_thread")


class TestKeptHeads(Laws):
    attend = staticmethod(kept_heads_attention)
    oracle = staticmethod(reference.kept_heads_attention)
    closed_form = staticmethod(heads_flops)
    options = (
        {"keep": 0.5},
        {"keep": 1.0},
        {"keep": 1e-6},
    )
    illegal = (
        ({"keep": 0}, r"keep must be above 0 and at most 1 \(every head\), got 0"),
        ({"keep": 1.5}, r"keep must be above 0 and at most 1 \(every head\), got 1.5"),
        ({"keep": float("nan")}, "keep must be above 0"),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keeping_every_head_is_full_attention(dtype):
    tensors = inputs(49, dtype=dtype)
    assert gap(kept_heads_attention(*tensors, keep=1), full(tensors)) <= average_error(*tensors)


def test_pruned_heads_give_zero_and_kept_heads_what_they_gave():
    tensors = inputs(49)
    output = kept_heads_attention(*tensors, keep=1 / HEADS)
    assert gap(output[:, :1], full(tensors)[:, :1]) <= average_error(*tensors)
    assert (output[:, 1:] == 0).all()


def test_pruned_heads_get_no_gradient():
    for grad in gradients(kept_heads_attention, inputs(7), None, keep=0.5):
        assert (grad[:, 0] != 0).any()
        assert (grad[:, 1:] == 0).all()


@pytest.mark.parametrize(
    ("heads", "keep", "kept"), [(12, 0.5, 6), (12, 0.25, 3), (12, 1, 12), (12, 0.01, 1), (12, 0.7, 8), (1, 0.3, 1)]
)
def test_the_share_is_rounded_to_heads_and_never_to_none(heads, keep, kept):
    assert num_kept(heads, keep) == kept
    assert heads_flops(10, heads, 4, keep=keep) == kept * 4 * 10 * 10 * 4


def test_the_output_does_not_depend_on_pruned_heads():
    tensors = inputs(13)
    before = kept_heads_attention(*tensors, keep=0.5)
    for tensor in tensors:
        tensor[:, 1:] = torch.nan
    assert torch.equal(before, kept_heads_attention(*tensors, keep=0.5))
