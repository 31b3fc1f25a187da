import pytest
import torch
from attention_inputs import DTYPES, LENGTHS, average_error, full, gap, inputs, paddings

from tippingpoint.attention import pooled_attention
from tippingpoint.errors import InputError
from tippingpoint.models.attention_flops import pooled_flops

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_ratio_of_one_is_full_attention(dtype):
    for length in LENGTHS:
        tensors = inputs(length, dtype=dtype)
        assert gap(pooled_attention(*tensors, ratio=1), full(tensors)) <= average_error(*tensors)
        mask = paddings(length)["holes"]
        ours = pooled_attention(*tensors, ratio=1, padding_mask=mask)
        assert gap(ours, full(tensors, mask), mask) <= average_error(*tensors)


def test_a_ratio_of_the_length_gives_everyone_the_mean_of_the_real_values():
    query, key, value = inputs(12)
    mask = paddings(12)["holes"]
    output = pooled_attention(query, key, value, ratio=12, padding_mask=mask)
    for sample in range(len(mask)):
        mean = value[sample][:, mask[sample]].mean(dim=1, keepdim=True)
        assert gap(output[sample], mean.expand_as(output[sample])) <= average_error(query, key, value)


def test_equal_scores_average_the_pools():
    zeros = torch.zeros(1, 1, 5, 1, dtype=torch.float64)
    values = torch.tensor([2.0, 4.0, 9.0, 100.0, 30.0], dtype=torch.float64).view(1, 1, 5, 1)
    mask = torch.tensor([[True, True, True, False, True]])
    # Pools {2, 4}, {9} and the last, which is one position short, {30}.
    output = pooled_attention(zeros, zeros, values, ratio=2, padding_mask=mask)
    assert torch.allclose(output, torch.full_like(output, (3 + 9 + 30) / 3), rtol=4 * torch.finfo(output.dtype).eps)


def test_keys_and_values_that_are_equal_within_pools_lose_nothing():
    query, key, value = inputs(48)
    key, value = (tensor[:, :, ::4].repeat_interleave(4, dim=2) for tensor in (key, value))
    ours = pooled_attention(query, key, value, ratio=4)
    assert gap(ours, full((query, key, value))) <= 2 * average_error(query, key, value)


def test_padding_in_front_by_whole_pools_changes_nothing():
    query, key, value = inputs(24)
    mask = torch.arange(24).expand(len(query), -1) >= 8
    padded = pooled_attention(query, key, value, ratio=4, padding_mask=mask)[:, :, 8:]
    alone = pooled_attention(*(tensor[:, :, 8:] for tensor in (query, key, value)), ratio=4)
    assert gap(padded, alone) <= average_error(query, key, value, stages=2)


def test_its_closed_form_counts_the_last_pool_that_is_cut_short():
    assert pooled_flops(97, 2, 8, ratio=4) == 2 * 4 * 97 * 25 * 8


@pytest.mark.parametrize("ratio", [0, -2])
def test_a_ratio_below_one_is_refused(ratio):
    with pytest.raises(InputError, match=f"ratio must be at least 1, got {ratio}; 1 is full attention"):
        pooled_attention(*inputs(5), ratio=ratio)


def test_pools_of_large_numbers_stay_finite_in_float16():
    query, key, value = inputs(48, dtype=torch.float16)
    large = torch.full_like(value, 30000)
    output = pooled_attention(query, key, large, ratio=7, padding_mask=paddings(48)["holes"])
    assert gap(output, large) <= average_error(query, key, large, stages=2)
