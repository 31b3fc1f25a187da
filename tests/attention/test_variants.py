"""Laws that every self-attention of the catalogue keeps; a new row is tested without a line here."""

import re
from typing import Any

import pytest
import torch
from attention_inputs import BATCH, DTYPES, HEAD_DIM, HEADS, gap, inputs, paddings
from hypothesis import given, settings
from hypothesis import strategies as st
from variant_cases import (
    ROWS,
    anywhere,
    cases,
    few_options,
    gradient_rounding,
    make_case,
    rounding,
    tails,
)

from tippingpoint.errors import InputError
from tippingpoint.models.layer_attention import load_function
from tippingpoint.profiling.flops import count_flops

pytestmark = pytest.mark.usefixtures("one_thread")

every_variant = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# Variants that look at real tokens in their order, and not at where they stand.
PLACELESS = ("heads", "linear", "nystrom")
# Variants that run the products of their closed form and no more; others may fill up whole blocks.
NOTHING_ADDED = ("heads", "linear", "linformer", "nystrom", "pooled")


@every_dtype
@every_variant
@given(data=st.data())
@settings(max_examples=100)
def test_it_equals_its_dense_oracle_and_takes_no_more_than_its_output_twice(row, dtype, data):
    case = data.draw(cases(row, dtype=dtype))
    output = case.attend()
    assert output.dtype == dtype
    assert output.shape == case.value.shape
    assert output.isfinite().all()
    assert gap(output, case.oracle(), case.padding_mask) <= rounding(case)
    assert output.untyped_storage().nbytes() <= 2 * output.nbytes


@every_variant
@given(data=st.data())
@settings(max_examples=50)
def test_its_gradients_equal_its_oracles(row, data):
    case = data.draw(cases(row))
    tolerance = gradient_rounding(case)
    # A learned weight has as many terms as there are sequences, heads and dimensions.
    shared = case.value[:, :, 0].numel() + case.key[:, :, 0].numel()
    for number, (own, other) in enumerate(zip(case.gradients(), case.gradients(case.oracle), strict=True)):
        assert own.isfinite().all()
        assert gap(own[None, None], other[None, None]) <= (tolerance if number < 3 else shared * tolerance)


@every_dtype
@every_variant
@given(data=st.data())
@settings(max_examples=20)
def test_gradients_are_finite_with_any_padding(row, dtype, data):
    case = data.draw(cases(row, padded=True, dtype=dtype))
    for grad in case.gradients():
        assert grad.dtype == dtype
        assert grad.isfinite().all()


@every_variant
def test_its_gradients_pass_gradcheck(row):
    mask = torch.tensor([[True] * 6 + [False], [False, True, False, True, True, True, True], [False] * 7])
    for options in few_options(row):
        for padding_mask in (None, mask):
            case = make_case(row, inputs(7, value_dim=5), options, mask=padding_mask)
            leaves = [tensor.requires_grad_() for tensor in case.tensors]
            torch.autograd.gradcheck(case.attend, leaves, fast_mode=True)


@every_variant
@given(data=st.data())
@settings(max_examples=50)
def test_each_sample_of_a_batch_gets_what_it_would_get_alone(row, data):
    case = data.draw(cases(row))
    together = case.attend()
    for sample in range(case.query.shape[0]):
        one = slice(sample, sample + 1)
        mask = None if case.padding_mask is None else case.padding_mask[one]
        alone = case.map(lambda tensor, one=one: tensor[one])._replace(padding_mask=mask).attend()
        assert gap(alone, together[one], mask) <= rounding(case)


@every_dtype
@every_variant
@given(data=st.data())
@settings(max_examples=30)
def test_what_stands_in_padding_changes_no_bit_of_a_real_token(row, dtype, data):
    case = data.draw(cases(row, padded=True, dtype=dtype))
    filled = case.map(lambda tensor: torch.where(case.real, tensor, 300.0).to(dtype))
    assert torch.equal(case.attend() * case.real, filled.attend().masked_fill(~case.real, 0))


@every_variant
@given(data=st.data())
@settings(max_examples=50)
def test_padding_gets_and_gives_no_gradient(row, data):
    case = data.draw(cases(row, padded=True))
    filled = case.map(lambda tensor: torch.where(case.real, tensor, 300.0))
    for number, (grad, before) in enumerate(zip(filled.gradients(), case.gradients(), strict=True)):
        if number < 3:
            assert (grad.masked_fill(case.real, 0) == 0).all()
        assert torch.equal(grad, before)


@every_variant
@given(data=st.data())
@settings(max_examples=50)
def test_a_padded_sequence_gets_what_it_would_get_without_padding(row, data):
    case = data.draw(cases(row, anywhere if row.name in PLACELESS else tails, padded=True))
    padded = case.attend()
    for sample, real in enumerate(case.real[:, 0, :, 0]):
        # An option may be legal for the longer input only, such as a number of positions.
        if real.any() and all(value <= real.sum() for value in case.options.values() if type(value) is int):
            cut = case.map(lambda tensor, sample=sample, real=real: tensor[sample : sample + 1, :, real])
            alone = cut._replace(padding_mask=None).attend()
            assert gap(alone, padded[sample : sample + 1, :, real]) <= rounding(case)


@every_variant
@given(data=st.data())
@settings(max_examples=30)
def test_the_memory_layout_of_its_inputs_does_not_matter(row, data):
    case = data.draw(cases(row))
    # As a model hands them over: [batch, length, heads, head_dim] with two axes exchanged.
    strided = case.map(lambda tensor: tensor.transpose(1, 2).contiguous().transpose(1, 2))
    assert gap(strided.attend(), case.attend(), case.padding_mask) <= rounding(case)


@every_variant
def test_the_scale_is_one_over_the_root_of_the_head_dimension_unless_told_otherwise(row):
    for options in few_options(row):
        case = make_case(row, inputs(13), options)
        assert gap(case.attend(), case._replace(scale=HEAD_DIM**-0.5).attend()) <= rounding(case)


@every_variant
def test_dropout_keeps_the_mean_of_the_output_and_none_is_deterministic(row):
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 4, 150, 8).unbind(0)
    for options in few_options(row):
        case = make_case(row, (query, key, torch.ones_like(query)), options)
        whole = case.attend()
        assert torch.equal(whole, case.attend(dropout=0.0))
        leaves = [tensor.clone().requires_grad_() for tensor in case.tensors]
        dropped = case.attend(*leaves, dropout=0.5)
        difference = (dropped - whole)[..., 0].detach()
        spread = float(difference.std())
        assert spread > 0
        # Rows drop their weights independently of each other.
        assert abs(float(difference.mean())) <= 4 * spread / difference.numel() ** 0.5
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(dropped.sum(), leaves))


@every_variant
def test_it_runs_the_products_of_its_closed_form(row):
    for length in (3, 48, 96, 300):
        for options in few_options(row):
            case = make_case(row, inputs(length, dtype=torch.float32, batch=1), options)
            counted, _ = count_flops(case.attend)
            if row.flops is not None:
                asked = row.flops(length, HEADS, HEAD_DIM, **options)
            else:
                pairs = length * length if row.pairs is None else row.pairs(length, **options)
                asked = 4 * pairs * HEADS * HEAD_DIM
            assert counted.total == asked or (row.name not in NOTHING_ADDED and counted.total > asked)


@every_variant
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_as_one_graph(row, backend):
    for options in few_options(row):
        torch.compiler.reset()
        case = make_case(row, inputs(13), options)
        compiled = torch.compile(case.function, fullgraph=True, backend=backend)
        for mask in (None, paddings(13)["holes"]):
            masked = case._replace(padding_mask=mask)
            assert gap(compiled(*case.tensors, padding_mask=mask), masked.attend(), mask) <= rounding(masked)


@every_variant
def test_an_illegal_option_is_refused_by_name(row):
    tensors = inputs(9)
    legal = next(few_options(row))
    for name, option in row.options.items():
        illegal: list[Any] = {bool: [], str: ["-"]}.get(option.kind, [option.minimum - 1])
        if option.maximum is not None:
            illegal.append(option.maximum + 1)
        for value in illegal:
            message = f"{name.replace('_', '[ _]')} .*{re.escape(str(value))}"
            with pytest.raises(InputError, match=message):
                make_case(row, tensors, {**legal, name: value}).attend()


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
    query, key, value = map(torch.randn, shapes)
    case = make_case(row, (query, key, value), next(few_options(row)), mask=mask, longest=9)
    for attend in (case.attend, case.oracle):
        with pytest.raises(InputError, match=message):
            attend()


def test_every_variant_but_the_librarys_own_is_tested():
    assert {row.name for row in ROWS} >= {"local", "linformer", *PLACELESS, *NOTHING_ADDED}
    assert all(row.oracle and load_function(row.oracle) for row in ROWS)
    assert inputs(3)[0].shape[0] == BATCH
