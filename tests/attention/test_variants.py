"""Laws that every self-attention of the catalogue keeps; a new row is tested without a line here."""

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tippingpoint.errors import InputError
from tippingpoint.models.architecture import AttentionVariant
from tippingpoint.models.catalog import VARIANTS
from tippingpoint.models.swap import load_function

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [row for row in VARIANTS.values() if row.function]
every_variant = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)

# Around the sizes at which blocks and windows begin and end, and between them.
LENGTHS = (1, 2, 3, 7, 31, 63, 64, 65, 67, 71, 127, 128, 129, 131, 193, 211)


class Case(NamedTuple):
    """Self-attention inputs, which positions are real, and options of the variant."""

    query: Tensor
    key: Tensor
    value: Tensor
    padding_mask: Tensor | None
    options: dict[str, Any]

    @property
    def real(self) -> Tensor:
        """Where outputs mean something, bool [batch, 1, length, 1]."""
        batch, _, length, _ = self.query.shape
        mask = torch.ones(batch, length, dtype=torch.bool) if self.padding_mask is None else self.padding_mask
        return mask[:, None, :, None]

    @property
    def largest_score(self) -> float:
        """What the terms of a score add up to at most, whatever their signs."""
        scale = self.options["scale"] or self.query.shape[-1] ** -0.5
        return float(scale * (self.query.double().abs() @ self.key.double().abs().mT).max())

    def map(self, change) -> "Case":
        """Change query, key and value."""
        return self._replace(query=change(self.query), key=change(self.key), value=change(self.value))

    def run(self, path: str | None) -> Tensor:
        """Call a function that a row of the catalogue names."""
        assert path is not None
        return load_function(path)(self.query, self.key, self.value, padding_mask=self.padding_mask, **self.options)


def option_values(row: AttentionVariant, length: int) -> st.SearchStrategy[dict[str, Any]]:
    """Draw small and large legal values of each whole-number option, and the scale; defaults of the others."""
    drawn: dict[str, st.SearchStrategy] = {"scale": st.sampled_from([None, 0.3])}
    for name, option in row.options.items():
        low = int(option.minimum)
        high = max(low, length)
        small = st.integers(low, min(low + 6, high))
        drawn[name] = small | st.integers(low, high) if option.kind is int else st.just(option.default["text"])
    return st.fixed_dictionaries(drawn)


def tails(batch: int, length: int) -> st.SearchStrategy[Tensor]:
    """Draw a number of leading real positions for each sample; some samples have none at all."""
    numbers = st.lists(st.integers(0, length) | st.sampled_from([0, length]), min_size=batch, max_size=batch)
    return numbers.map(lambda real: torch.arange(length) < torch.tensor(real)[:, None])


def paddings(batch: int, length: int) -> st.SearchStrategy[Tensor]:
    """Draw padding at the end, at the beginning, or anywhere."""
    seeds = st.integers(0, 99).map(lambda seed: torch.Generator().manual_seed(seed))
    scattered = seeds.map(lambda generator: torch.rand(batch, length, generator=generator) < 0.7)
    return tails(batch, length) | tails(batch, length).map(lambda mask: mask.flip(1)) | scattered


@st.composite
def cases(draw, row: AttentionVariant, padding=paddings, *, padded=False, dtype=torch.float64) -> Case:
    length = draw(st.sampled_from(LENGTHS))
    batch, heads = draw(st.sampled_from([(1, 1), (2, 3), (3, 2)]))
    head_dim, value_dim = draw(st.sampled_from([(1, 1), (5, 5), (5, 2), (8, 8)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    query, key, value = (
        torch.randn(batch, heads, length, size, generator=generator, dtype=torch.float64).to(dtype)
        for size in (head_dim, head_dim, value_dim)
    )
    padding_mask = draw(padding(batch, length) if padded else padding(batch, length) | st.none())
    return Case(query, key, value, padding_mask, draw(option_values(row, length)))


def rounding(row: AttentionVariant, case: Case) -> float:
    """Return how far two computations of the same attention may be apart.

    Of an exact variant the output is an average of values. A score of d products is off by at most d + 2
    half-units of the largest sum of their sizes, a weight by twice that and by the roundings of N terms, an
    average of N values by N more; two computations may err in opposite directions. Approximations iterate:
    they keep half of the digits.
    """
    length, head_dim = case.query.shape[-2:]
    epsilon = torch.finfo(case.query.dtype).eps
    largest = float(case.value.abs().max())
    if not row.exact:
        return epsilon**0.5 * largest
    return epsilon * largest * (2 * (head_dim + 2) * case.largest_score + 2 * (length + 3))


def gradients(case: Case, path: str | None) -> list[Tensor]:
    """Return gradients of query, key and value for a loss that sees every real output with a weight of its own."""
    leaves = case.map(lambda tensor: tensor.clone().requires_grad_())
    output = leaves.run(path)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights * case.real).sum().backward()
    found = [leaf.grad for leaf in leaves[:3]]
    return [grad for grad in found if grad is not None]


def gap(first: Tensor, second: Tensor, where: Tensor | bool = True) -> float:
    """Return the largest difference, where it counts."""
    return float(((first.double() - second.double()) * where).abs().max())


@every_variant
@given(data=st.data())
@settings(max_examples=800)
def test_it_equals_its_dense_oracle(row, data):
    case = data.draw(cases(row))
    ours, oracle = case.run(row.function), case.run(row.oracle)
    assert ours.isfinite().all()
    assert gap(ours, oracle, case.real) <= rounding(row, case)


@every_variant
@given(data=st.data())
@settings(max_examples=80)
def test_its_gradients_equal_its_oracles(row, data):
    case = data.draw(cases(row))
    ours, oracle = gradients(case, row.function), gradients(case, row.oracle)
    # A gradient adds up to N (d + d_v) terms of at most one weight, one value, one query and one key.
    terms = case.query.shape[2] * (case.query.shape[3] + case.value.shape[3])
    size = torch.stack([1 + tensor.abs().max() for tensor in case[:3]]).prod()
    tolerance = 4 * terms * torch.finfo(torch.float64).eps * float(size) if row.exact else rounding(row, case)
    for own, other in zip(ours, oracle, strict=True):
        assert own.isfinite().all()
        assert gap(own, other) <= tolerance


@every_variant
@given(data=st.data())
@settings(max_examples=80)
def test_each_sample_of_a_batch_gets_what_it_would_get_alone(row, data):
    case = data.draw(cases(row))
    together = case.run(row.function)
    for sample in range(case.query.shape[0]):
        one = slice(sample, sample + 1)
        mask = None if case.padding_mask is None else case.padding_mask[one]
        alone = case.map(lambda tensor, one=one: tensor[one])._replace(padding_mask=mask).run(row.function)
        assert gap(alone, together[one], case.real[one]) <= rounding(row, case)


@every_variant
@given(data=st.data())
@settings(max_examples=80)
def test_what_stands_in_padding_never_reaches_a_real_token(row, data):
    case = data.draw(cases(row, padded=True))
    filled = case.map(lambda tensor: torch.where(case.real, tensor, 1e3))
    assert gap(filled.run(row.function), case.run(row.function), case.real) <= rounding(row, case)
    for grad in gradients(case, row.function)[1:]:
        assert (grad[~case.real.expand_as(grad)] == 0).all()


@every_variant
@given(data=st.data())
@settings(max_examples=80)
def test_a_padded_sequence_gets_what_it_would_get_without_padding(row, data):
    case = data.draw(cases(row, tails, padded=True))
    assert case.padding_mask is not None
    padded = case.run(row.function)
    for sample, real in enumerate(case.padding_mask.sum(dim=1).tolist()):
        if real and all(value <= real for value in case.options.values() if isinstance(value, int)):
            cut = case.map(lambda tensor, sample=sample, real=real: tensor[sample : sample + 1, :, :real])
            alone = cut._replace(padding_mask=None).run(row.function)
            assert gap(alone, padded[sample : sample + 1, :, :real]) <= rounding(row, case)


@every_variant
@given(data=st.data())
@settings(max_examples=80)
def test_in_bfloat16_it_is_within_the_rounding_of_scores_and_weights(row, data):
    case = data.draw(cases(row, dtype=torch.bfloat16))
    ours = case.run(row.function)
    precise = case.map(torch.Tensor.double).run(row.oracle)
    # Scores, weights and the output are each rounded once: half a unit of each.
    bound = torch.finfo(torch.bfloat16).eps * float(case.value.abs().max()) * (1 + case.largest_score)
    assert ours.dtype == torch.bfloat16
    assert ours.isfinite().all()
    assert gap(ours, precise, case.real) <= (bound if row.exact else 2 * bound)


@every_variant
@given(data=st.data())
@settings(max_examples=80)
def test_the_output_has_the_shape_of_the_values_and_holds_no_more_than_its_own_memory_twice(row, data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    case = data.draw(cases(row, dtype=dtype))
    output = case.run(row.function)
    assert output.shape == case.value.shape
    assert output.dtype == dtype
    assert output.untyped_storage().nbytes() <= 2 * output.nbytes


@every_variant
@given(data=st.data())
@settings(max_examples=50)
def test_the_memory_layout_of_its_inputs_does_not_matter(row, data):
    case = data.draw(cases(row))
    # As a model hands them over: [batch, length, heads, head_dim] with two axes exchanged.
    strided = case.map(lambda tensor: tensor.transpose(1, 2).contiguous().transpose(1, 2))
    assert gap(strided.run(row.function), case.run(row.function), case.real) <= rounding(row, case)


@every_variant
def test_dropout_keeps_the_mean_of_the_output(row):
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 4, 150, 8).unbind(0)
    options = {name: max(3, int(option.minimum)) for name, option in row.options.items() if option.kind is int}
    output = load_function(row.function)(query, key, torch.ones_like(query), dropout=0.5, **options)
    rows = output[..., 0].flatten()
    assert rows.std() > 0.05
    # Rows drop their weights independently of each other.
    assert abs(rows.mean() - 1) <= 4 * rows.std() / len(rows) ** 0.5


@every_variant
def test_an_option_below_its_minimum_is_refused_by_name(row):
    inputs = torch.randn(3, 1, 2, 9, 4)
    legal = {name: option.default["text"] for name, option in row.options.items()}
    for name, option in row.options.items():
        if option.kind is int:
            illegal = int(option.minimum) - 1
            with pytest.raises(InputError, match=f"{name} must be .*, got {illegal}"):
                load_function(row.function)(*inputs, **{**legal, name: illegal})


@every_variant
@pytest.mark.parametrize(
    ("shapes", "mask", "message"),
    [
        (
            ((2, 9, 4), (2, 3, 9, 4), (2, 3, 9, 4)),
            None,
            r"query must be \[batch, heads, length, head_dim\], got shape",
        ),
        (
            ((2, 3, 9, 4), (2, 3, 9, 4), (3, 9, 4)),
            None,
            r"value must be \[batch, heads, length, head_dim\], got shape",
        ),
        (((2, 3, 9, 4), (2, 3, 7, 4), (2, 3, 7, 4)), None, "must agree in batch, heads and length, got"),
        (((2, 3, 9, 4), (2, 3, 9, 4), (2, 1, 9, 4)), None, "must agree in batch, heads and length, got"),
        (((2, 3, 0, 4), (2, 3, 0, 4), (2, 3, 0, 4)), None, "attention needs at least one position, got length 0"),
        (
            ((2, 3, 9, 4),) * 3,
            torch.ones(2, 9),
            r"padding_mask must be bool \[batch, length\] = \[2, 9\] with True for real tokens, got float32 \[2, 9\]",
        ),
        (((2, 3, 9, 4),) * 3, torch.ones(9, 9, dtype=torch.bool), r"= \[2, 9\] .* got bool \[9, 9\]"),
    ],
)
def test_inputs_of_the_wrong_shape_are_refused_with_what_was_expected(row, shapes, mask, message):
    options = {name: option.default["text"] for name, option in row.options.items()}
    for path in (row.function, row.oracle):
        with pytest.raises(InputError, match=message):
            load_function(path)(*map(torch.randn, shapes), padding_mask=mask, **options)
