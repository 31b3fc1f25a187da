"""Attention maps that layers share, against a loop over samples and heads."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tippingpoint.attention import reuse
from tippingpoint.attention.reference import local_mask
from tippingpoint.attention.reuse import band_map, choose_mode, dense_map, share
from tippingpoint.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH, HEADS, LENGTH, WIDTH = 2, 3, 70, 8
PADDED = torch.arange(LENGTH) < torch.tensor([[LENGTH], [41]])

LOCAL: dict[str, dict[str, Any]] = {
    "full": {},
    "local": {"window": 5, "num_global": 0, "causal": False},
    "causal": {"window": 5, "num_global": 0, "causal": True},
    "global": {"window": 5, "num_global": 3, "causal": False},
    "causal and global": {"window": 5, "num_global": 3, "causal": True},
    "wide": {"window": 200, "num_global": 0, "causal": False},
}
every_attention = pytest.mark.parametrize("local", LOCAL.values(), ids=LOCAL)
every_mode = pytest.mark.parametrize("mode", ["map", "recompute"])
padded_or_not = pytest.mark.parametrize("padding", [None, PADDED], ids=["no padding", "padding"])


def tensors(dtype: torch.dtype = torch.float64, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, LENGTH, HEADS, WIDTH)
    # As a model has them: heads are next to one another in memory.
    made = (torch.randn(shape, generator=generator, dtype=torch.float64).transpose(1, 2) for _ in range(count))
    return [tensor.to(dtype) for tensor in made]


def by_loops(query: Tensor, key: Tensor, values: Tensor, allowed: Tensor, bias: Tensor | None = None) -> Tensor:
    """Weigh values by the map of queries and keys: each sample, each head, each position for itself."""
    output = torch.zeros_like(values)
    batch, heads, length, width = query.shape
    for sample, head, row in itertools.product(range(batch), range(heads), range(length)):
        scores = torch.stack([query[sample, head, row].dot(other) for other in key[sample, head]]) / math.sqrt(width)
        if bias is not None:
            scores = scores + bias[sample, head, row]
        seen = allowed[sample if len(allowed) > 1 else 0, 0, row]
        weights = torch.zeros(length, dtype=query.dtype)
        weights[seen] = scores[seen].softmax(dim=0)
        output[sample, head, row] = sum(
            (weight * value for weight, value in zip(weights, values[sample, head], strict=True)),
            torch.zeros(width, dtype=query.dtype),
        )
    return output


def allowed_by(local: dict, padding: Tensor | None) -> Tensor:
    if local:
        return local_mask(LENGTH, local["window"], local["num_global"], padding, local["causal"])
    real = torch.ones(1, LENGTH, dtype=torch.bool) if padding is None else padding
    return real[:, None, None, :].expand(-1, -1, LENGTH, -1)


def real(tensor: Tensor, padding: Tensor | None) -> Tensor:
    """Rows of padding mean nothing."""
    return tensor if padding is None else tensor * padding[:, None, :, None]


@every_mode
@every_attention
@padded_or_not
@pytest.mark.parametrize("graph", [False, True], ids=["no graph", "graph"])
def test_both_layers_of_a_group_equal_a_loop_over_samples_and_heads(mode, local, padding, graph):
    query, key, value, other = tensors()
    query.requires_grad_(graph)
    output, shared = share(query, key, value, mode, mask=padding, **local)
    allowed = allowed_by(local, padding)
    for values, given in ((value, output), (other, shared.attend(other))):
        wanted = by_loops(query.detach(), key, values, allowed)
        assert real((given - wanted).abs(), padding).max() < 1e-12


@every_mode
@pytest.mark.parametrize("graph", [False, True], ids=["no graph", "graph"])
def test_a_bias_and_a_mask_of_the_models_own_stand_in_the_map(mode, graph):
    query, key, value, other = tensors()
    bias = torch.randn(BATCH, HEADS, LENGTH, LENGTH, dtype=torch.float64).requires_grad_(graph)
    allowed = PADDED[:, None, None, :].expand(-1, 1, LENGTH, -1)
    for mask in (PADDED, allowed, torch.where(allowed, 0.0, float("-1e30")).double()):
        _, shared = share(query, key, value, mode, mask=mask, bias=bias)
        wanted = by_loops(query, key, other, allowed, bias.detach())
        assert real((shared.attend(other) - wanted).abs(), PADDED).max() < 1e-12


@every_mode
@every_attention
def test_gradients_of_a_group_are_those_of_its_definition(mode, local):
    def group(query: Tensor, key: Tensor, value: Tensor, other: Tensor) -> Tensor:
        output, shared = share(query, key, value, mode, mask=PADDED, **local)
        return real(output, PADDED).square().sum() + real(shared.attend(other), PADDED).sin().sum()

    def definition(query: Tensor, key: Tensor, value: Tensor, other: Tensor) -> Tensor:
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH)
        weights = scores.masked_fill(~allowed_by(local, PADDED), float("-inf")).softmax(dim=-1)
        return real(weights @ value, PADDED).square().sum() + real(weights @ other, PADDED).sin().sum()

    made = [tensor.requires_grad_() for tensor in tensors()]
    query, key, value, other = made
    ours = torch.autograd.grad(group(query, key, value, other), made)
    wanted = torch.autograd.grad(definition(query, key, value, other), made)
    assert all((one - two).abs().max() < 1e-11 for one, two in zip(ours, wanted, strict=True))


@every_attention
@pytest.mark.parametrize(
    ("dtype", "map_dtype", "roundings"),
    [(torch.float32, torch.bfloat16, 4), (torch.bfloat16, None, 8), (torch.float16, None, 8)],
)
def test_lower_precision_costs_a_few_roundings(local, dtype, map_dtype, roundings):
    query, key, value, other = (tensor.to(dtype) for tensor in tensors())
    with torch.inference_mode():
        output, shared = share(query, key, value, "map", mask=PADDED, map_dtype=map_dtype, **local)
        given = shared.attend(other)
    assert output.dtype == given.dtype == dtype
    epsilon = torch.finfo(map_dtype or dtype).eps
    for values, mine in ((value, output), (other, given)):
        wanted = by_loops(query.double(), key.double(), values.double(), allowed_by(local, PADDED))
        error = real((mine.double() - wanted).abs(), PADDED).max()
        assert error < roundings * epsilon * float(wanted.abs().max())


def test_maps_without_units_for_bfloat16_are_widened_block_by_block(monkeypatch):
    query, key, value, other = tensors(torch.float32)
    monkeypatch.setattr(reuse, "_multiplies", lambda dtype: dtype == torch.float32)
    with torch.inference_mode():
        output, shared = dense_map(query, key, value, map_dtype=torch.bfloat16)
        assert torch.equal(output, dense_map(query, key, value)[0])
        exact = by_loops(query.double(), key.double(), other.double(), allowed_by({}, None))
        # Only the map is rounded, not the values.
        assert (shared.attend(other) - exact).abs().max() < torch.finfo(torch.bfloat16).eps / 2 * exact.abs().max()


def test_blocks_of_any_size_give_the_same_map(monkeypatch):
    query, key, value, _ = tensors()
    with torch.inference_mode():
        whole = dense_map(query, key, value, mask=PADDED)
        monkeypatch.setattr(reuse, "_BLOCK_BYTES", 1)
        blocks = dense_map(query, key, value, mask=PADDED)
    assert (whole[0] - blocks[0]).abs().max() < 1e-13
    assert (whole[1].weights - blocks[1].weights).abs().max() < 1e-13


def test_rows_of_a_map_sum_to_one_and_padding_has_no_weight():
    query, key, value, _ = tensors()
    weights = dense_map(query, key, value, mask=PADDED)[1].weights
    assert (weights.sum(dim=-1) - 1).abs().max() < 1e-13
    assert not weights[1, :, :, ~PADDED[1]].any()


def test_a_sequence_of_padding_alone_stays_finite():
    query, key, value, other = tensors()
    padding = PADDED.clone()
    padding[1] = False
    for mode, local in itertools.product(("map", "recompute"), LOCAL.values()):
        output, shared = share(query, key, value, mode, mask=padding, **local)
        assert output.isfinite().all()
        assert shared.attend(other).isfinite().all()


def test_each_layer_drops_its_own_weights_and_none_twice():
    torch.manual_seed(0)
    query, key, _, _ = tensors()
    ones = torch.ones(BATCH, HEADS, LENGTH, 1, dtype=torch.float64)
    for local in ({}, LOCAL["local"], LOCAL["global"]):
        output, shared = share(query, key, ones, "map", dropout=0.5, **local)
        second = shared.attend(ones, dropout=0.5)
        # The map keeps every weight; what is left of a row's after dropout is its own in each layer.
        assert (shared.attend(ones) - 1).abs().max() < 1e-12
        assert not torch.equal(output, second)
        for dropped in (output, second):
            assert abs(float(dropped.mean()) - 1) < 0.1
        # Twice dropped would be twice as far from one.
        assert float(second.var()) == pytest.approx(float(output.var()), rel=0.5)


def test_memory_of_a_map_is_written_over_and_only_if_it_fits():
    query, key, value, _ = tensors()
    with torch.inference_mode():
        old = dense_map(key, query, value)[1].weights
        _, shared = dense_map(query, key, value, memory=old)
        assert shared.weights.data_ptr() == old.data_ptr()
        other = torch.empty(1, HEADS, LENGTH, LENGTH, dtype=torch.float64)
        _, apart = dense_map(query, key, value, memory=other)
        assert apart.weights.data_ptr() != other.data_ptr()
        assert torch.equal(apart.weights, shared.weights)


def test_bytes_are_those_of_what_stays():
    query, key, value, _ = tensors(torch.float32)
    assert share(query, key, value, "map")[1].nbytes == BATCH * HEADS * LENGTH * LENGTH * 4
    assert share(query, key, value, "map", map_dtype=torch.bfloat16)[1].nbytes == BATCH * HEADS * LENGTH * LENGTH * 2
    assert share(query, key, value, "recompute")[1].nbytes == 2 * BATCH * HEADS * LENGTH * WIDTH * 4
    # Blocks of 64 queries, each with a span of 64 and the window on both sides.
    band = BATCH * HEADS * 2 * 64 * (64 + 10 + 3) + BATCH * HEADS * 3 * LENGTH
    assert share(query, key, value, "map", **LOCAL["global"])[1].nbytes == band * 4


@every_attention
def test_any_length_down_to_one(local):
    for length in (1, 2, 63, 64, 65, 129):
        query, key, value, other = (torch.randn(1, 2, length, 4, dtype=torch.float64) for _ in range(4))
        given: dict[str, Any] = dict(local, num_global=min(local["num_global"], length)) if local else {}
        _, kept = share(query, key, value, "map", **given)
        _, again = share(query, key, value, "recompute", **given)
        assert (kept.attend(other) - again.attend(other)).abs().max() < 1e-12


def test_samples_of_a_batch_do_not_see_one_another():
    query, key, value, other = tensors()
    for local in LOCAL.values():
        _, together = share(query, key, value, "map", **local)
        for sample in range(BATCH):
            one = slice(sample, sample + 1)
            _, alone = share(query[one], key[one], value[one], "map", **local)
            mine = alone.attend(other[one])
            assert (mine[0] - together.attend(other)[sample]).abs().max() < 1e-13


def test_shapes_that_do_not_fit_are_refused():
    query, key, value, _ = tensors()
    with pytest.raises(InputError, match="must agree in batch"):
        dense_map(query, key[:, :, 1:], value)
    with pytest.raises(InputError, match="padding_mask must be bool"):
        band_map(query, key, value, window=3, padding_mask=PADDED[:, 1:])


def test_a_mode_is_chosen_by_measuring_once_for_each_octave(monkeypatch):
    seen = []

    def measure(case: object) -> str:
        seen.append(case)
        return "map"

    monkeypatch.setattr(reuse, "_measure_mode", measure)
    query, _, value, _ = tensors()
    assert choose_mode(query, value, users=2) == "map"
    assert seen[0].shape == (1, HEADS, 64, WIDTH)
    choose_mode(query[:, :, :65], value, users=2)
    assert seen[0] == seen[1]
    choose_mode(query, value, users=1)
    choose_mode(query, value, users=2, window=4)
    choose_mode(query, value, users=2, bias=PADDED)
    choose_mode(query, value, users=2, bias=torch.zeros(1, 1, LENGTH, LENGTH))
    assert len(set(seen)) == 4


def test_what_is_measured_is_the_faster(monkeypatch):
    times = {"map": 2.0, "recompute": 1.0}

    class Timer:
        def __init__(self, statement: str, globals: dict, num_threads: int) -> None:
            globals["call"](globals["mode"])
            self.mean = times[globals["mode"]]

        def timeit(self, number: int) -> "Timer":
            return self

    monkeypatch.setattr("torch.utils.benchmark.Timer", Timer)
    query, _, value, _ = tensors()
    for local, fastest in itertools.product(({}, LOCAL["global"]), ("map", "recompute")):
        reuse._measure_mode.cache_clear()
        times |= {"map": 1.0, "recompute": 1.0, fastest: 0.5}
        for tensor in (value, value.clone().requires_grad_()):
            bias = None if local else torch.zeros(1, 1, LENGTH, LENGTH)
            assert choose_mode(query, tensor, users=2, bias=bias, **local) == fastest
    reuse._measure_mode.cache_clear()
