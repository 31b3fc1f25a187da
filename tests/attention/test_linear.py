import math
from itertools import pairwise

import pytest
import torch
from attention_inputs import DTYPES, full, gap, inputs
from variant_cases import make_case, rounding

from tippingpoint.attention import linear, linear_attention
from tippingpoint.attention.linear import orthogonal_features, random_features
from tippingpoint.errors import InputError
from tippingpoint.models.catalog import VARIANTS

pytestmark = pytest.mark.usefixtures("one_thread")


def error(num_features: int, seed: int, monkeypatch) -> float:
    """Return the root mean square error of FAVOR+ to full attention."""
    monkeypatch.setattr(linear, "_SEED", seed)
    tensors = inputs(32, seed=7)
    tensors = (tensors[0] / 2, tensors[1] / 2, tensors[2])
    ours = linear_attention(*tensors, num_features=num_features)
    return float((ours - full(tensors)).square().mean().sqrt())


def test_the_error_of_favor_falls_as_one_over_the_root_of_its_features(monkeypatch):
    monkeypatch.setattr(linear, "_features", {})
    counts = (64, 256, 1024, 4096)
    errors = [math.sqrt(sum(error(count, seed, monkeypatch) ** 2 for seed in range(40)) / 40) for count in counts]
    for before, after in pairwise(errors):
        # Four times the features: half the error. A mean of 40 squares has an error of sqrt(2 / 40) at most.
        assert abs(before / after - 2) <= 2 * 2 * math.sqrt(2 / 40)
    assert errors[-1] < 0.02


def test_features_are_orthogonal_in_blocks_and_normally_distributed():
    features = orthogonal_features(4000, 8)
    assert features.shape == (4000, 8)
    block = features[:8] / features[:8].norm(dim=1, keepdim=True)
    assert gap((block @ block.T)[None], torch.eye(8)[None]) <= 8 * 8 * torch.finfo(torch.float64).eps
    # Means 0, variances 1, fourth moments 3; whose estimates vary by 1, 2 and 96 over the 32,000 numbers.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(features.pow(power).mean()) - moment) <= 4 * math.sqrt(variance / features.numel())


def test_features_estimate_exponentials_of_products_without_bias():
    x, y = torch.tensor([[0.3, -0.5, 0.2, 0.4], [0.1, 0.6, -0.3, 0.5]], dtype=torch.float64)
    features = orthogonal_features(200_000, 4)
    products = (features @ (x + y) - (x.square().sum() + y.square().sum()) / 2).exp()
    assert abs(float(products.mean() - (x @ y).exp())) <= 4 * float(products.std()) / math.sqrt(len(products))


def test_features_are_the_same_for_a_seed_and_others_for_another():
    assert torch.equal(orthogonal_features(20, 8, seed=3), orthogonal_features(20, 8, seed=3))
    assert not torch.equal(orthogonal_features(20, 8, seed=3), orthogonal_features(20, 8, seed=4))
    # The state of the global generator plays no part, and is left alone.
    before = torch.get_rng_state()
    orthogonal_features(20, 8)
    assert torch.equal(before, torch.get_rng_state())


def test_features_are_drawn_once_for_a_shape_and_type():
    device = torch.device("cpu")
    assert random_features(20, 8, torch.float32, device) is random_features(20, 8, torch.float32, device)
    assert random_features(20, 8, torch.float16, device).dtype == torch.float16
    assert random_features(21, 8, torch.float32, device).shape == (21, 8)


def test_features_drawn_in_inference_take_part_in_training(monkeypatch):
    monkeypatch.setattr(linear, "_features", {})
    tensors = inputs(7)
    with torch.inference_mode():
        linear_attention(*tensors)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    linear_attention(*leaves).sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature_map", linear.FEATURE_MAPS)
def test_large_inputs_neither_overflow_nor_vanish(feature_map, dtype):
    query, key, value = inputs(97, dtype=dtype)
    for size in (30, 1000):
        output = linear_attention(size * query, size * key, value, feature_map=feature_map)
        assert output.isfinite().all()
        # Averages of values stay between them; in half precision they are rounded twice.
        assert float(output.abs().max()) <= float(value.abs().max()) * (1 + 2 * torch.finfo(dtype).eps)


def test_long_sums_stay_finite_in_float16():
    query, key, value = (tensor.half() for tensor in inputs(97, dtype=torch.float32))
    ones = torch.ones_like(value)
    for feature_map in linear.FEATURE_MAPS:
        output = linear_attention(query.abs() * 50, key.abs() * 50, 500 * ones, feature_map=feature_map)
        assert gap(output, 500 * ones) <= 2 * 500 * torch.finfo(torch.float16).eps


def test_elu_weights_by_hand():
    # phi: elu(1) + 1 = 2, elu(0) + 1 = 1, elu(-1) + 1 = 1 / e.
    key = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64).view(1, 1, 3, 1)
    value = torch.tensor([3.0, 6.0, 9.0], dtype=torch.float64).view(1, 1, 3, 1)
    output = linear_attention(key, key, value, feature_map="elu")
    mean = (2 * 3 + 6 + 9 / math.e) / (3 + 1 / math.e)
    assert torch.allclose(output, torch.full_like(output, mean), rtol=8 * torch.finfo(torch.float64).eps)


def test_elu_is_smooth_where_its_halves_meet():
    zeros = torch.zeros(1, 1, 3, 2, dtype=torch.float64)
    leaves = [zeros.clone().requires_grad_(), zeros.clone().requires_grad_(), inputs(3)[2][:1, :1, :, :2]]
    torch.autograd.gradcheck(lambda *tensors: linear_attention(*tensors, feature_map="elu"), leaves)


def test_automatic_mixed_precision_changes_no_elu_sum():
    tensors = inputs(48, dtype=torch.float32)
    plain = linear_attention(*tensors, feature_map="elu")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear_attention(*tensors, feature_map="elu"), plain)


@pytest.mark.parametrize("feature_map", linear.FEATURE_MAPS)
def test_cutting_heads_into_parts_changes_nothing_but_rounding(feature_map, monkeypatch):
    case = make_case(VARIANTS["linear"], inputs(48), {"feature_map": feature_map, "num_features": 256})
    whole = case.attend()
    monkeypatch.setattr(linear, "_CACHE_BYTES", 1)
    assert gap(case.attend(), whole) <= rounding(case)


def test_by_default_it_is_favor_with_256_features():
    tensors = inputs(13)
    spelled_out = linear_attention(*tensors, feature_map="favor", num_features=256)
    assert torch.equal(linear_attention(*tensors), spelled_out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_map": "elf"}, "unknown feature map 'elf'; expected one of favor, elu. Did you mean 'elu'?"),
        ({"num_features": 0}, "num_features must be at least 1, got 0"),
        ({"scale": 0.0}, "scale must be positive: .* got 0.0"),
        ({"scale": -1.0}, "scale must be positive"),
    ],
)
def test_illegal_options_are_refused_with_what_is_legal(options, message):
    with pytest.raises(InputError, match=message):
        linear_attention(*inputs(5), **options)
