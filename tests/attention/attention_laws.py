"""Laws that every attention of this folder keeps, tested on the function itself; a subclass names it."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tippingpoint.errors import InputError
from tippingpoint.profiling.flops import count_flops

Inputs = tuple[Tensor, Tensor, Tensor]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# One and two positions, fewer than landmarks, ranks and pools, primes, multiples and one more.
LENGTHS = (1, 2, 3, 7, 12, 13, 48, 49, 97)
BATCH, HEADS, HEAD_DIM = 3, 2, 8


def inputs(
    length: int, *, dtype: torch.dtype = torch.float64, value_dim: int = HEAD_DIM, seed: int = 0, batch: int = BATCH
) -> Inputs:
    """Draw query, key and value."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(batch, HEADS, length, dim, generator=generator, dtype=torch.float64).to(dtype)
        for dim in (HEAD_DIM, HEAD_DIM, value_dim)
    )
    return query, key, value


def paddings(length: int) -> dict[str, Tensor]:
    """Padding of a batch of three by where it is; each has a whole sequence, and one of few real tokens."""
    position = torch.arange(length)
    few = min(3, length)
    holes = torch.rand(BATCH, length, generator=torch.Generator().manual_seed(length)) < 0.6
    holes[0] = True
    holes[1, length // 2] = True
    holes[2] = position % 4 == 0
    right = position < torch.tensor([length, max(1, length * 2 // 3), few])[:, None]
    return {"right": right, "left": right.flip(1), "holes": holes}


def largest_score(query: Tensor, key: Tensor) -> float:
    """What the terms of a score add up to at most, whatever their signs."""
    return float((query.double().abs() @ key.double().abs().mT).max() * query.shape[-1] ** -0.5)


def average_error(query: Tensor, key: Tensor, value: Tensor, stages: int = 1) -> float:
    """How far two computations of an average of values, weighted by exponentials of scores, may be apart.

    In float32 or better a score of d products is off by at most d + 2 half-units, a weight by twice that and by
    the roundings of its N terms, the average by N more; two computations may err in opposite directions. In half
    precision products are added up in float32: scores, weights, averages and the output are rounded once each.
    """
    length, head_dim = query.shape[-2:]
    score, largest = largest_score(query, key), float(value.double().abs().max())
    epsilon = torch.finfo(query.dtype).eps
    if query.dtype in (torch.float32, torch.float64):
        return stages * epsilon * largest * (2 * (head_dim + 2) * score + 2 * (length + 3))
    return epsilon * largest * (1 + stages * (1 + score))


def gap(first: Tensor, second: Tensor, mask: Tensor | None = None) -> float:
    """Return the largest difference, at real tokens."""
    difference = (first.double() - second.double()).abs()
    if mask is not None:
        difference = difference.masked_fill(~mask[:, None, :, None], 0)
    return float(difference.max())


def gradients(attend: Callable[..., Tensor], tensors: Inputs, mask: Tensor | None, **options) -> list[Tensor]:
    """Return gradients of query, key and value for a loss that gives every real output a weight of its own."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    output = attend(*leaves, padding_mask=mask, **options)
    if mask is not None:
        output = output.masked_fill(~mask[:, None, :, None], 0)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return list(torch.autograd.grad((output * weights).sum(), leaves))


class Laws:
    """Laws of one attention function.

    Attributes:
        attend: The fast function.
        oracle: Its definition.
        options: Keyword arguments to try.
        closed_form: FLOPs of (positions, heads, head_dim, **options).
        shifts: Padding patterns under which a sequence means the same as alone.
        illegal: Keyword arguments and the error they must meet.
    """

    attend: ClassVar[Callable[..., Tensor]]
    oracle: ClassVar[Callable[..., Tensor]]
    options: ClassVar[tuple[dict[str, Any], ...]]
    closed_form: ClassVar[Callable[..., int]]
    shifts: ClassVar[tuple[str, ...]] = ("right", "left", "holes")
    illegal: ClassVar[tuple[tuple[dict[str, Any], str], ...]]

    def rounding(self, tensors: Inputs, mask: Tensor | None, **options) -> float:
        """How far two computations may be apart."""
        return average_error(*tensors)

    def arguments(self, options: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """Return what the functions are called with for an entry of `options`."""
        return options

    def cases(self, *, padded: bool, dtype: torch.dtype = torch.float64, lengths: tuple[int, ...] = LENGTHS):
        """Yield tensors, mask, keyword arguments and the allowed error."""
        for length in lengths:
            masks = list(paddings(length).values())
            for number, options in enumerate(self.options):
                tensors = inputs(length, dtype=dtype, seed=number)
                arguments = self.arguments(options, dtype)
                for mask in masks if padded else [None, *masks]:
                    yield tensors, mask, arguments, self.rounding(tensors, mask, **arguments)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_it_equals_its_oracle(self, dtype):
        for tensors, mask, options, error in self.cases(padded=False, dtype=dtype):
            ours = type(self).attend(*tensors, padding_mask=mask, **options)
            oracle = type(self).oracle(*tensors, padding_mask=mask, **options)
            assert ours.dtype == dtype
            assert ours.shape == tensors[2].shape
            assert ours.isfinite().all()
            assert gap(ours, oracle, mask) <= error, (tensors[0].shape, options)

    def test_its_gradients_equal_its_oracles(self):
        for tensors, mask, options, error in self.cases(padded=False, lengths=(1, 7, 12, 49)):
            # Each adds up that many terms, of at most one weight, value, query and key.
            terms = tensors[0].shape[2] * 2 * HEAD_DIM
            size = float(torch.stack([1 + tensor.abs().max() for tensor in tensors]).prod())
            ours = gradients(type(self).attend, tensors, mask, **options)
            oracle = gradients(type(self).oracle, tensors, mask, **options)
            for own, other in zip(ours, oracle, strict=True):
                assert own.isfinite().all()
                assert gap(own, other) <= terms * size * error

    def test_its_gradients_pass_gradcheck(self):
        mask = torch.tensor([[True] * 6 + [False], [False, True, False, True, True, True, True]])
        for options in self.options:
            leaves = [tensor[:2].requires_grad_() for tensor in inputs(7, value_dim=5)]
            arguments = self.arguments(options, torch.float64)
            for padding_mask in (None, mask):
                torch.autograd.gradcheck(
                    lambda *tensors, m=padding_mask, a=arguments: type(self).attend(*tensors, padding_mask=m, **a),
                    leaves,
                    fast_mode=True,
                )

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_what_stands_in_padding_changes_no_bit_of_a_real_token(self, dtype):
        for tensors, mask, options, _ in self.cases(padded=True, dtype=dtype, lengths=(7, 13, 48, 97)):
            real = mask[:, None, :, None]
            before = type(self).attend(*tensors, padding_mask=mask, **options)
            filled = [torch.where(real, tensor, 300.0) for tensor in tensors]
            after = type(self).attend(*filled, padding_mask=mask, **options)
            assert torch.equal(before * real, after.masked_fill(~real, 0))

    def test_padding_gets_and_gives_no_gradient(self):
        for tensors, mask, options, _ in self.cases(padded=True, lengths=(7, 13, 97)):
            query, key, value = (torch.where(mask[:, None, :, None], tensor, 300.0) for tensor in tensors)
            for grad in gradients(type(self).attend, (query, key, value), mask, **options):
                assert grad.isfinite().all()
                assert (grad.masked_fill(mask[:, None, :, None], 0) == 0).all()

    def test_a_padded_sequence_gets_what_it_gets_without_padding(self):
        for length in LENGTHS:
            for shift in self.shifts:
                mask = paddings(length)[shift]
                for options in self.options:
                    tensors = inputs(length)
                    arguments = self.arguments(options, torch.float64)
                    error = self.rounding(tensors, mask, **arguments)
                    padded = type(self).attend(*tensors, padding_mask=mask, **arguments)
                    for sample in range(BATCH):
                        cut = [tensor[sample : sample + 1, :, mask[sample]] for tensor in tensors]
                        alone = type(self).attend(*cut, **arguments)
                        assert gap(alone, padded[sample : sample + 1, :, mask[sample]]) <= error

    def test_each_sequence_of_a_batch_gets_what_it_gets_alone(self):
        for tensors, mask, options, error in self.cases(padded=False, lengths=(1, 7, 48, 97)):
            together = type(self).attend(*tensors, padding_mask=mask, **options)
            for sample in range(BATCH):
                one = slice(sample, sample + 1)
                own = None if mask is None else mask[one]
                alone = type(self).attend(*(tensor[one] for tensor in tensors), padding_mask=own, **options)
                assert gap(alone, together[one], own) <= error

    def test_a_sequence_without_a_real_token_is_finite_and_so_are_its_gradients(self):
        for length in (1, 7, 48):
            mask = torch.ones(BATCH, length, dtype=torch.bool)
            mask[1] = False
            for dtype in DTYPES:
                for options in self.options:
                    tensors, arguments = inputs(length, dtype=dtype), self.arguments(options, dtype)
                    assert type(self).attend(*tensors, padding_mask=mask, **arguments).isfinite().all()
                    for grad in gradients(type(self).attend, tensors, mask, **arguments):
                        assert grad.isfinite().all()

    def test_the_memory_layout_of_its_inputs_does_not_matter(self):
        for tensors, mask, options, error in self.cases(padded=False, lengths=(7, 48, 97)):
            contiguous = type(self).attend(*tensors, padding_mask=mask, **options)
            # As a model hands them over: [batch, length, heads, head_dim] with two axes exchanged.
            strided = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in tensors]
            assert gap(type(self).attend(*strided, padding_mask=mask, **options), contiguous, mask) <= error

    @pytest.mark.parametrize("value_dim", [1, 5, 11])
    def test_values_may_have_a_dimension_of_their_own(self, value_dim):
        for length in (1, 7, 49):
            mask = paddings(length)["holes"]
            for options in self.options:
                tensors, arguments = inputs(length, value_dim=value_dim), self.arguments(options, torch.float64)
                ours = type(self).attend(*tensors, padding_mask=mask, **arguments)
                oracle = type(self).oracle(*tensors, padding_mask=mask, **arguments)
                assert ours.shape == tensors[2].shape
                assert gap(ours, oracle, mask) <= self.rounding(tensors, mask, **arguments)

    def test_the_scale_is_one_over_the_root_of_the_head_dimension_unless_told_otherwise(self):
        query, key, value = inputs(13)
        for options in self.options:
            arguments = self.arguments(options, torch.float64)
            error = self.rounding((query, key, value), None, **arguments)
            default = type(self).attend(query, key, value, **arguments)
            assert gap(default, type(self).attend(query, key, value, scale=HEAD_DIM**-0.5, **arguments)) <= error
            other = type(self).attend(query, key, value, scale=0.1, **arguments)
            assert gap(other, type(self).oracle(query, key, value, scale=0.1, **arguments)) <= error

    def test_dropout_keeps_the_mean_and_none_is_deterministic(self):
        torch.manual_seed(0)
        query, key, _ = inputs(96, seed=1)
        ones = torch.ones_like(query)
        for options in self.options:
            arguments = self.arguments(options, torch.float64)
            whole = type(self).attend(query, key, ones, **arguments)
            assert torch.equal(whole, type(self).attend(query, key, ones, dropout=0.0, **arguments))
            leaves = [tensor.clone().requires_grad_() for tensor in (query, key, ones)]
            dropped = type(self).attend(*leaves, dropout=0.5, **arguments)
            difference = (dropped - whole)[..., 0].detach()
            spread = float(difference.std())
            assert spread > 0
            # Rows drop their weights independently of each other.
            assert abs(float(difference.mean())) <= 4 * spread / difference.numel() ** 0.5
            assert all(grad.isfinite().all() for grad in torch.autograd.grad(dropped.sum(), leaves))

    def test_its_closed_form_counts_the_products_that_run(self):
        for length in (4, 48, 96):
            tensors = inputs(length, dtype=torch.float32, batch=1)
            for options in self.options:
                arguments = self.arguments(options, torch.float32)
                counted, _ = count_flops(lambda t=tensors, a=arguments: type(self).attend(*t, **a))
                assert counted.total == type(self).closed_form(length, HEADS, HEAD_DIM, **options)

    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_it_compiles_as_one_graph(self, backend):
        tensors, mask = inputs(13), paddings(13)["holes"]
        for options in self.options[:2]:
            arguments = self.arguments(options, torch.float64)
            torch.compiler.reset()
            compiled = torch.compile(type(self).attend, fullgraph=True, backend=backend)
            for padding_mask in (None, mask):
                error = self.rounding(tensors, padding_mask, **arguments)
                plain = type(self).attend(*tensors, padding_mask=padding_mask, **arguments)
                assert gap(compiled(*tensors, padding_mask=padding_mask, **arguments), plain, padding_mask) <= error

    def test_illegal_options_are_refused_with_what_is_legal(self):
        for options, message in self.illegal:
            with pytest.raises(InputError, match=message):
                type(self).attend(*inputs(5), **options)

    def test_inputs_of_the_wrong_shape_are_refused(self):
        query, key, value = inputs(5)
        arguments = self.arguments(self.options[0], torch.float64)
        with pytest.raises(InputError, match="must agree in batch, heads and length, got"):
            type(self).attend(query, key[:, :1], value, **arguments)
        with pytest.raises(InputError, match=r"padding_mask must be bool \[batch, length\] = \[3, 5\]"):
            type(self).attend(query, key, value, padding_mask=torch.ones(3, 4, dtype=torch.bool), **arguments)


def full(tensors: Inputs, mask: Tensor | None = None) -> Tensor:
    """Return full attention."""
    return F.scaled_dot_product_attention(*tensors, attn_mask=None if mask is None else mask[:, None, None])
