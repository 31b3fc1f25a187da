import pytest
import torch
from attention_inputs import DTYPES, HEADS, average_error, full, gap, gradients, inputs

from tippingpoint.attention import kept_heads_attention
from tippingpoint.attention.heads import num_kept
from tippingpoint.errors import InputError
from tippingpoint.models.attention_flops import heads_flops

pytestmark = pytest.mark.usefixtures("one_thread")


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
    for grad in gradients(lambda *tensors: kept_heads_attention(*tensors, keep=0.5), inputs(7), None):
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


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, float("nan")])
def test_a_share_of_no_head_or_of_more_than_all_is_refused(keep):
    with pytest.raises(InputError, match=rf"keep must be above 0 and at most 1 \(every head\), got {keep}"):
        kept_heads_attention(*inputs(5), keep=keep)


def test_the_smallest_share_keeps_the_first_head():
    tensors = inputs(5)
    assert torch.equal(kept_heads_attention(*tensors, keep=1e-6), kept_heads_attention(*tensors, keep=1 / HEADS))
