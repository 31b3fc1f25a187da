"""What is special to blocks one after the other: a backward pass of its own."""

import pytest
import torch
from attention_inputs import inputs, paddings
from torch.utils.checkpoint import checkpoint
from variant_cases import make_case

from tippingpoint.attention import local_attention
from tippingpoint.models.catalog import VARIANTS

pytestmark = pytest.mark.usefixtures("one_thread")

# More than one block of 32 queries, and the last of them cut short.
LENGTH = 75
OPTIONS = (
    {},
    {"num_global": 2},
    {"causal": True},
    {"num_global": 3, "causal": True},
    {"num_global": 40},
    {"num_global": 40, "causal": True},
)
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def small_inputs(batch: int = 2, length: int = LENGTH) -> list[torch.Tensor]:
    query, key, value = inputs(length, batch=batch)
    return [tensor[..., :size].contiguous().requires_grad_() for tensor, size in ((query, 3), (key, 3), (value, 2))]


def streamed(*tensors, window=6, **options):
    return local_attention(*tensors, window=window, way="streamed", **options)


@every_option
@pytest.mark.parametrize("padding", [None, "right", "left", "holes"])
def test_the_backward_pass_passes_gradcheck(options, padding):
    mask = None if padding is None else paddings(LENGTH)[padding][1:]
    assert torch.autograd.gradcheck(
        lambda *tensors: streamed(*tensors, padding_mask=mask, scale=0.7, **options), small_inputs(), fast_mode=True
    )


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_every_entry_of_the_jacobian_is_right(options):
    mask = torch.tensor([[True] * 20 + [False] * 3 + [True] * 10 + [False] * 7])
    assert torch.autograd.gradcheck(
        lambda *tensors: streamed(*tensors, padding_mask=mask, **options), small_inputs(batch=1, length=40)
    )


@every_option
@pytest.mark.parametrize("padding", [None, "holes"])
def test_with_dropout_the_gradient_is_that_of_the_weights_that_were_dropped(options, padding):
    mask = None if padding is None else paddings(LENGTH)[padding][1:]

    def same_every_time(*tensors):
        torch.manual_seed(5)
        return streamed(*tensors, padding_mask=mask, dropout=0.4, **options)

    assert torch.autograd.gradcheck(same_every_time, small_inputs(), fast_mode=True)


def test_what_is_drawn_between_the_passes_changes_no_gradient():
    leaves = small_inputs()

    def gradient(between):
        torch.manual_seed(5)
        output = streamed(*leaves, dropout=0.4, num_global=2)
        torch.rand(between)
        return torch.autograd.grad(output.square().sum(), leaves)

    assert all(map(torch.equal, gradient(0), gradient(7)))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_under_checkpointing_the_gradients_are_the_same(dropout, use_reentrant):
    leaves = small_inputs()
    for options in OPTIONS:
        torch.manual_seed(5)
        plain = torch.autograd.grad(streamed(*leaves, dropout=dropout, **options).square().sum(), leaves)
        torch.manual_seed(5)
        output = checkpoint(
            lambda *tensors, given=options: streamed(*tensors, dropout=dropout, **given),
            *leaves,
            use_reentrant=use_reentrant,
        )
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf)
        output.square().sum().backward()
        found = [leaf.grad for leaf in leaves if leaf.grad is not None]
        assert all(torch.equal(own, grad) for own, grad in zip(found, plain, strict=True))


def test_a_second_derivative_is_refused():
    leaves = small_inputs()
    for number in range(3):
        grads = torch.autograd.grad(streamed(*leaves).square().sum(), leaves, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            grads[number].sum().backward()
        with pytest.raises(RuntimeError, match="not have been used in the graph"):
            torch.autograd.grad(grads[number].sum(), leaves)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_nothing_is_kept_for_the_backward_pass_but_inputs_and_output(dropout):
    leaves, mask = small_inputs(), paddings(LENGTH)["holes"][1:]
    kept: list[torch.Tensor] = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = streamed(*leaves, padding_mask=mask, dropout=dropout)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*leaves, mask, output)}
    assert {tensor.untyped_storage().data_ptr() for tensor in kept} == known
    node = output.grad_fn
    assert node is not None
    # What the node holds besides is the band, which is numbers.
    assert not any(isinstance(value, torch.Tensor) for value in vars(vars(node)["band"]).values())
    assert set(vars(node)) == {"band"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_automatic_mixed_precision_changes_no_bit(dtype):
    for options in OPTIONS:
        leaves = [tensor.detach().float().requires_grad_() for tensor in small_inputs()]
        plain = streamed(*leaves, **options)
        gradient = torch.linspace(-1, 1, plain.numel()).view_as(plain)
        expected = torch.autograd.grad(plain, leaves, gradient)
        with torch.autocast("cpu", dtype):
            mixed = streamed(*leaves, **options)
        assert mixed.dtype == torch.float32
        assert torch.equal(mixed, plain)
        assert all(map(torch.equal, torch.autograd.grad(mixed, leaves, gradient), expected))


def test_the_inputs_are_left_as_they_were():
    mask = paddings(LENGTH)["holes"]
    case = make_case(VARIANTS["local"], inputs(LENGTH), {"window": 6, "num_global": 2}, mask=mask)
    before = [tensor.clone() for tensor in case.tensors]
    leaves = [tensor.requires_grad_() for tensor in case.tensors]
    output = case.attend(way="streamed")
    kept = output.detach().clone()
    gradient = torch.ones_like(output)
    first = torch.autograd.grad(output, leaves, gradient, retain_graph=True)
    second = torch.autograd.grad(output, leaves, gradient)
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, case.tensors, before))
    assert torch.equal(output, kept)
    assert (gradient == 1).all()
