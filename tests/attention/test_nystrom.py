import pytest
import torch
from attention_inputs import DTYPES, LENGTHS, average_error, full, gap, inputs, largest_score, paddings

from tippingpoint.attention import nystrom_attention, reference
from tippingpoint.attention.nystrom import _pseudo_inverse
from tippingpoint.errors import InputError
from tippingpoint.models.attention_flops import nystrom_flops

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_many_landmarks_as_tokens_are_full_attention(dtype):
    for length in LENGTHS:
        tensors = inputs(length, dtype=dtype)
        for landmarks in (length, length + 5):
            ours = nystrom_attention(*tensors, landmarks=landmarks)
            assert gap(ours, full(tensors)) <= average_error(*tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", ["right", "left", "holes"])
def test_a_sequence_of_few_real_tokens_gets_full_attention_beside_longer_ones(pattern, dtype):
    tensors, mask = inputs(49, dtype=dtype), paddings(49)[pattern]
    few = mask.sum(dim=1) <= 14
    assert few.any()
    assert not few.all()
    ours = nystrom_attention(*tensors, landmarks=14, padding_mask=mask)
    exact = full(tensors, mask)
    assert gap(ours[few], exact[few], mask[few]) <= average_error(*tensors)
    assert gap(ours[~few], exact[~few], mask[~few]) > 0.01


def test_the_error_falls_as_landmarks_grow():
    # Slowly varying tokens, which means of segments can stand for.
    generator = torch.Generator().manual_seed(0)
    walks = torch.randn(3, 4, 4, 512, 16, generator=generator, dtype=torch.float64).cumsum(dim=3) / 512**0.5
    tensors = (walks[0], walks[1], walks[2])
    exact = full(tensors)
    errors = [
        float((nystrom_attention(*tensors, landmarks=landmarks) - exact).square().mean().sqrt())
        for landmarks in (4, 16, 64, 256, 512)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= average_error(*tensors)


def test_tokens_that_are_equal_within_segments_are_attended_as_their_landmarks():
    # Then softmax(Q K~^T) is full attention with every weight gathered by segment, and the pseudo-inverse cancels.
    query, key, value = inputs(48)
    query, key = (tensor[:, :, ::12].repeat_interleave(12, dim=2) * 2 for tensor in (query, key))
    ours = nystrom_attention(query, key, value, landmarks=4)
    kernel = (query[:, :, ::12] @ key[:, :, ::12].mT * query.shape[-1] ** -0.5).softmax(dim=-1)
    left = kernel @ reference.iterative_inverse(kernel) - torch.eye(4, dtype=torch.float64)
    # What six steps leave of the inverse is all that may differ.
    remainder = float(left.abs().sum(dim=-1).max()) * float(value.abs().max())
    assert gap(ours, full((query, key, value))) <= remainder + average_error(query, key, value)


def test_the_pseudo_inverse_is_the_papers_and_near_the_true_one():
    generator = torch.Generator().manual_seed(0)
    kernel = (torch.randn(5, 9, 9, generator=generator, dtype=torch.float64) + 4 * torch.eye(9)).softmax(dim=-1)
    ours = _pseudo_inverse(kernel)
    epsilon = torch.finfo(torch.float64).eps
    size = float(ours.abs().sum(dim=-1).max())
    assert gap(ours[None], reference.iterative_inverse(kernel)[None]) <= 6 * 4 * 9 * epsilon * size * (1 + size)
    # The iteration is of third order: once near, it is exact.
    assert gap(ours[None], torch.linalg.pinv(kernel)[None]) <= 1e-6 * size


def test_segments_are_of_ranks_of_real_tokens_and_not_of_positions():
    # Two landmarks of four real tokens: {1, 3} and {5, 11}, wherever padding stands.
    value = torch.tensor([1.0, 3.0, 5.0, 11.0], dtype=torch.float64)
    mask = torch.tensor([[False, True, False, True, True, False, True]])
    spread = torch.zeros(1, 1, 7, 1, dtype=torch.float64)
    spread[0, 0, mask[0], 0] = value
    ours = nystrom_attention(spread, spread, spread, landmarks=2, padding_mask=mask, scale=0.1)
    marks = torch.tensor([[2.0], [8.0]], dtype=torch.float64)
    column = value[:, None]
    first, middle, last = (
        (left @ right.mT * 0.1).softmax(dim=-1) for left, right in ((column, marks), (marks, marks), (marks, column))
    )
    expected = first @ reference.iterative_inverse(middle) @ last @ column
    assert torch.allclose(ours[0, 0, mask[0]], expected, rtol=1e-10)


def test_automatic_mixed_precision_leaves_the_inverse_in_float32():
    query, key, value = inputs(48, dtype=torch.bfloat16)
    plain = nystrom_attention(query, key, value, landmarks=12)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nystrom_attention(query, key, value, landmarks=12), plain)


def test_large_scores_stay_finite_in_float16():
    query, key, value = inputs(97, dtype=torch.float16)
    assert largest_score(20 * query, 20 * key) > 1000
    assert nystrom_attention(20 * query, 20 * key, 100 * value, landmarks=12).isfinite().all()


def test_its_closed_form_by_hand():
    # 6 positions, 2 landmarks, heads of 3: products of [6, 3] with [3, 2] and of [6, 2] with [2, 3], twice each.
    outer = 4 * 2 * 6 * 3 * 2
    kernel, product = 2 * 2 * 3 * 2, 2 * 2 * 2 * 3
    assert nystrom_flops(6, 1, 3, landmarks=2) == outer + kernel + product + 6 * 4 * 2 * 2**3


@pytest.mark.parametrize("landmarks", [0, -1])
def test_no_landmarks_are_refused(landmarks):
    with pytest.raises(InputError, match=f"landmarks must be at least 1, got {landmarks}; the paper uses 64"):
        nystrom_attention(*inputs(5), landmarks=landmarks)
