import pytest
import torch
from attention_inputs import DTYPES, LENGTHS, average_error, full, gap, inputs, paddings

from tippingpoint.attention import LinformerAttention, linformer_attention
from tippingpoint.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            ((3, 4), (3, 4)),
            "built for at most 4 positions, got 5: .* shorten the input or build it with a larger max_length",
        ),
        (((3, 9), (4, 9)), r"must both be \[rank, max_length\], got shapes \(3, 9\) and \(4, 9\)"),
        (((9,), (9,)), r"must both be \[rank, max_length\]"),
    ],
)
def test_projections_that_do_not_fit_are_refused(shapes, message):
    key_projection, value_projection = map(torch.ones, shapes)
    with pytest.raises(InputError, match=message):
        linformer_attention(*inputs(5), key_projection=key_projection, value_projection=value_projection)
