import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tippingpoint.attention import local_attention, reference
from tippingpoint.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

FUNCTIONS = [local_attention, reference.local_attention]
both = pytest.mark.parametrize("attend", FUNCTIONS, ids=["fast", "oracle"])


def column(*numbers: float) -> Tensor:
    """One sample, one head, one number for each position."""
    return torch.tensor(numbers, dtype=torch.float64).view(1, 1, -1, 1)


def close(found: Tensor, *numbers: float) -> bool:
    # Sums of at most four numbers below 16, each rounded once in both computations.
    return torch.allclose(found, column(*numbers), rtol=0, atol=8 * 16 * torch.finfo(torch.float64).eps)


@both
def test_equal_scores_average_the_values_in_the_window(attend):
    zeros, values = column(0, 0, 0, 0), column(3, 6, 9, 12)
    assert close(attend(zeros, zeros, values, window=1), (3 + 6) / 2, (3 + 6 + 9) / 3, (6 + 9 + 12) / 3, (9 + 12) / 2)


@both
def test_weights_are_exponentials_of_scores_in_the_window(attend):
    # Scores are q k: the keys 0, 1, 2 weigh 1, e, e^2 for the query 1, and equally for the query 0.
    query, key, value = column(1, 0, 1), column(0, 1, 2), column(0, 1, 0)
    e = math.e
    assert close(attend(query, key, value, window=1), e / (1 + e), 1 / 3, e / (e + e**2))
    assert close(attend(query, key, value, window=2), e / (1 + e + e**2), 1 / 3, e / (1 + e + e**2))


@both
def test_scores_are_scaled_by_the_root_of_the_head_dimension_unless_told_otherwise(attend):
    query = torch.tensor([[[[1.0, 1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0, 0.0]]]], dtype=torch.float64).transpose(1, 2)
    # Its score with itself is 4, halved by 1 / sqrt(4).
    value = column(1, 0)
    half = math.e**2 / (1 + math.e**2)
    assert close(attend(query, query, value, window=1), half, 1 / 2)
    whole = math.e**4 / (1 + math.e**4)
    assert close(attend(query, query, value, window=1, scale=1.0), whole, 1 / 2)


@both
def test_a_global_position_sees_and_is_seen_by_every_position(attend):
    zeros, values = column(0, 0, 0, 0), column(12, 0, 4, 8)
    found = attend(zeros, zeros, values, window=1, num_global=1)
    # Position 2 sees its neighbours 1 and 3, itself and the global 0; position 3 sees 2, itself and 0.
    assert close(found, (12 + 0 + 4 + 8) / 4, (12 + 0 + 4) / 3, (12 + 0 + 4 + 8) / 4, (12 + 4 + 8) / 3)


@both
def test_padding_takes_no_weight(attend):
    zeros, values = column(0, 0, 0, 0), column(3, 5, 7, 1000)
    real = torch.tensor([[True, True, True, False]])
    found = attend(zeros, zeros, values, window=1, padding_mask=real)
    assert close(found[:, :, :3], (3 + 5) / 2, (3 + 5 + 7) / 3, (5 + 7) / 2)
    assert found.isfinite().all()


@both
def test_one_position_attends_to_itself(attend):
    assert close(attend(column(5), column(-3), column(7), window=9), 7)


@given(
    length=st.integers(1, 150),
    beyond=st.integers(0, 3),
    num_global=st.integers(0, 2),
    seed=st.integers(0, 9),
)
def test_a_window_that_covers_the_sequence_is_full_attention(length, beyond, num_global, seed):
    torch.manual_seed(seed)
    query, key, value = torch.randn(3, 2, 3, length, 5, dtype=torch.float64)
    window = max(1, length - 1 + beyond)
    ours = local_attention(query, key, value, window=window, num_global=min(num_global, length))
    full = F.scaled_dot_product_attention(query, key, value)
    # The same averages of values, added up in whatever order.
    assert torch.allclose(ours, full, rtol=0, atol=length * torch.finfo(torch.float64).eps * float(value.abs().max()))


@given(length=st.sampled_from([150, 193, 211]), window=st.integers(1, 8), num_global=st.integers(0, 3))
def test_nothing_outside_the_window_moves_an_output(length, window, num_global):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, length, 5)
    before = local_attention(query, key, value, window=window, num_global=num_global)
    changed = 100
    for tensor in (query, key, value):
        tensor[:, :, changed] += 3
    after = local_attention(query, key, value, window=window, num_global=num_global)
    moved = (before != after).any(dim=-1).any(dim=1)[0].nonzero().flatten().tolist()
    near = range(changed - window, changed + window + 1)
    assert set(moved) <= {*range(num_global), *near}
    assert {*range(num_global), *near} <= set(moved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": -3}, "window must be at least 1, got -3"),
        ({"window": 1, "num_global": -1}, "num_global must be between 0 and the length 9, got -1"),
        ({"window": 1, "num_global": 10}, "num_global must be between 0 and the length 9, got 10"),
    ],
)
def test_illegal_options_are_refused_with_the_legal_range(options, message):
    with pytest.raises(InputError, match=message):
        local_attention(*torch.randn(3, 1, 2, 9, 4), **options)
