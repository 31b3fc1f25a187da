import pytest
import torch
from attention_laws import DTYPES, LENGTHS, Laws, average_error, full, gap, inputs, paddings

from tippingpoint.attention import LinformerAttention, linformer_attention, reference
from tippingpoint.errors import InputError
from tippingpoint.models.attention_flops import linformer_flops

pytestmark = pytest.mark.usefixtures("one_thread")

MAX_LENGTH = 100


def projections(rank: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    drawn = torch.randn(2, rank, MAX_LENGTH, generator=generator, dtype=torch.float64) / MAX_LENGTH**0.5
    key_projection, value_projection = drawn.to(dtype).unbind(0)
    return {"key_projection": key_projection, "value_projection": value_projection}


class TestLinformer(Laws):
    attend = staticmethod(linformer_attention)
    oracle = staticmethod(reference.linformer_attention)
    closed_form = staticmethod(linformer_flops)
    options = (
        {"rank": 5, "max_length": MAX_LENGTH},
        {"rank": 17, "max_length": MAX_LENGTH},
    )
    # Projections are of positions.
    shifts = ("right",)
    illegal = (
        (
            {"key_projection": torch.ones(3, 4), "value_projection": torch.ones(3, 4)},
            "built for at most 4 positions, got 5: .* shorten the input or build it with a larger max_length",
        ),
        (
            {"key_projection": torch.ones(3, 9), "value_projection": torch.ones(4, 9)},
            r"must both be \[rank, max_length\], got shapes \(3, 9\) and \(4, 9\)",
        ),
        ({"key_projection": torch.ones(9), "value_projection": torch.ones(9)}, r"must both be \[rank, max_length\]"),
    )

    def arguments(self, options, dtype):
        return projections(options["rank"], dtype)

    def rounding(self, tensors, mask, **options):
        query, key, value = tensors
        length = query.shape[2]
        # What the terms of a mixture add up to, whatever their signs; each of N terms is rounded.
        weights = [options[name][:, :length].abs() for name in ("key_projection", "value_projection")]
        keys, values = (weight @ tensor.abs() for weight, tensor in zip(weights, (key, value), strict=True))
        terms = length if query.dtype in (torch.float32, torch.float64) else 1
        return (1 + terms) * average_error(query, keys, values, stages=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_identity_projections_of_full_rank_are_full_attention(dtype):
    for length in LENGTHS:
        tensors = inputs(length, dtype=dtype)
        identity = torch.eye(length, dtype=dtype)
        ours = linformer_attention(*tensors, key_projection=identity, value_projection=identity)
        assert gap(ours, full(tensors)) <= average_error(*tensors)


def test_the_module_gives_what_the_function_gives():
    torch.manual_seed(0)
    module = LinformerAttention(rank=6, max_length=50)
    tensors, mask = inputs(13, dtype=torch.float32), paddings(13)["right"]
    ours = module(*tensors, padding_mask=mask, scale=0.3, dropout=0.0)
    function = linformer_attention(
        *tensors,
        key_projection=module.key_projection,
        value_projection=module.value_projection,
        padding_mask=mask,
        scale=0.3,
    )
    assert torch.equal(ours, function)
    assert repr(module) == "LinformerAttention(rank=6, max_length=50)"
    assert set(module.state_dict()) == {"key_projection", "value_projection"}


def test_both_projections_learn():
    torch.manual_seed(0)
    module = LinformerAttention(rank=6, max_length=50)
    mask = paddings(13)["right"]
    module(*inputs(13, dtype=torch.float32), padding_mask=mask).square().sum().backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert (parameter.grad[:, :13] != 0).all()
        assert (parameter.grad[:, 13:] == 0).all()


def test_parameters_are_initialised_as_in_the_papers_code():
    torch.manual_seed(0)
    module = LinformerAttention(rank=60, max_length=240)
    for parameter in module.parameters():
        # Uniform of variance 1 / (rank + max_length): its bound is sqrt(3) standard deviations.
        assert float(parameter.abs().max().detach()) <= (3 / 300) ** 0.5
        variance = float(parameter.var().detach())
        assert abs(variance * 300 - 1) <= 4 / parameter.numel() ** 0.5
    assert not torch.equal(module.key_projection, module.value_projection)


@pytest.mark.parametrize(("rank", "max_length"), [(0, 10), (-1, 10), (11, 10)])
def test_an_illegal_rank_is_refused(rank, max_length):
    with pytest.raises(InputError, match=f"rank must be between 1 and max_length {max_length}, got {rank}"):
        LinformerAttention(rank=rank, max_length=max_length)
