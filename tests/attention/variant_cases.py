"""Inputs of any variant of the catalogue, drawn from what its row says, and how far it may be from its oracle."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from attention_inputs import Inputs, average_error, gradients, loss_weights, weighting_error
from hypothesis import strategies as st
from torch import Tensor, nn

from tippingpoint.attention import reference
from tippingpoint.attention.linear import random_features
from tippingpoint.models.architecture import AttentionVariant, Option
from tippingpoint.models.catalog import VARIANTS
from tippingpoint.models.layer_attention import load_function
from tippingpoint.models.swap import with_max_length
from tippingpoint.workload import Variant

ROWS = [row for row in VARIANTS.values() if row.library_name is None and not row.shares_maps]

# Around the sizes at which blocks and windows begin and end, and between them.
LENGTHS = (1, 2, 3, 7, 31, 63, 64, 65, 67, 71, 127, 128, 129, 131, 193, 211)


class Case(NamedTuple):
    """Inputs of a variant.

    Attributes:
        row: The variant.
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, value_dim].
        padding_mask: bool [batch, length], or None.
        options: Of the variant.
        scale: Of the scores.
        module: What has learned weights of its own; None where the variant is a function.
    """

    row: AttentionVariant
    query: Tensor
    key: Tensor
    value: Tensor
    padding_mask: Tensor | None
    options: dict[str, Any]
    scale: float | None = None
    module: nn.Module | None = None

    @property
    def tensors(self) -> Inputs:
        """Query, key and value."""
        return self.query, self.key, self.value

    @property
    def real(self) -> Tensor:
        """Where outputs mean something, bool [batch, 1, length, 1]."""
        batch, _, length, _ = self.query.shape
        mask = torch.ones(batch, length, dtype=torch.bool) if self.padding_mask is None else self.padding_mask
        return mask[:, None, :, None]

    @property
    def learned(self) -> dict[str, Tensor]:
        """Learned weights by name: the oracle takes them as arguments."""
        return {} if self.module is None else dict(self.module.named_parameters())

    @property
    def function(self) -> Callable[..., Tensor]:
        """What takes query, key, value, padding_mask, scale and dropout."""
        return self.module or functools.partial(load_function(self.row.function or ""), **self.options)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Case":
        """Change query, key and value."""
        return self._replace(query=change(self.query), key=change(self.key), value=change(self.value))

    def attend(self, *tensors: Tensor, **others: Any) -> Tensor:
        """Call the variant, with other tensors if they are given."""
        arguments = {"padding_mask": self.padding_mask, "scale": self.scale, **others}
        return self.function(*(tensors or self.tensors), **arguments)

    def oracle(self, *tensors: Tensor) -> Tensor:
        """Call its definition, with other tensors if they are given."""
        arguments = self.options if self.module is None else self.learned
        function = load_function(self.row.oracle or "")
        return function(*(tensors or self.tensors), padding_mask=self.padding_mask, scale=self.scale, **arguments)

    def gradients(self, attend: Callable[..., Tensor] | None = None) -> list[Tensor]:
        """Return gradients of query, key, value and learned weights."""
        return gradients(attend or self.attend, self.tensors, self.padding_mask, list(self.learned.values()))


def make_case(
    row: AttentionVariant,
    tensors: Inputs,
    options: dict[str, Any],
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    longest: int | None = None,
    seed: int = 0,
) -> Case:
    """Return a case; learned weights, for inputs of the `longest` length, are drawn with the seed."""
    longest = tensors[0].shape[2] if longest is None else longest
    options = dict(with_max_length(Variant(row.name, tuple(options.items())), longest).options)
    module = None
    if row.module is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = load_function(row.module)(**options).to(tensors[0])
    return Case(row, *tensors, mask, options, scale, module)


def values_of(option: Option, length: int) -> st.SearchStrategy[Any]:
    """Draw legal values of an option: of a whole number small ones and those up to the length."""
    if option.kind is bool:
        return st.booleans()
    if option.kind is str:
        return st.sampled_from(option.choices)
    if option.kind is float:
        high = option.maximum if option.maximum is not None else option.minimum + length
        return st.sampled_from([option.minimum, high]) | st.floats(option.minimum, high)
    low = math.ceil(option.minimum)
    high = max(low, length if option.maximum is None else min(length, math.floor(option.maximum)))
    return st.integers(low, min(low + 6, high)) | st.integers(low, high)


def drawn_options(row: AttentionVariant) -> dict[str, Option]:
    """Return the options whose values are anybody's choice: the longest input is what it is."""
    return {name: option for name, option in row.options.items() if name != "max_length"}


def few_options(row: AttentionVariant) -> Iterator[dict[str, Any]]:
    """Yield one set of small values, and one more for each other choice of an option."""
    some = {
        name: max(3, math.ceil(option.minimum)) if option.kind is int else option.default_for("text")
        for name, option in drawn_options(row).items()
    }
    yield some
    for name, option in drawn_options(row).items():
        choices = (True, False) if option.kind is bool else option.choices
        yield from (some | {name: choice} for choice in choices if choice != some[name])


def tails(batch: int, length: int) -> st.SearchStrategy[Tensor]:
    """Draw a number of leading real positions for each sample; some samples have none at all."""
    numbers = st.lists(st.integers(0, length) | st.sampled_from([0, length]), min_size=batch, max_size=batch)
    return numbers.map(lambda real: torch.arange(length) < torch.tensor(real)[:, None])


def anywhere(batch: int, length: int) -> st.SearchStrategy[Tensor]:
    """Draw padding at the end, at the beginning, or scattered."""
    seeds = st.integers(0, 99).map(lambda seed: torch.Generator().manual_seed(seed))
    scattered = seeds.map(lambda generator: torch.rand(batch, length, generator=generator) < 0.7)
    return tails(batch, length) | tails(batch, length).map(lambda mask: mask.flip(1)) | scattered


@st.composite
def cases(draw, row: AttentionVariant, padding=anywhere, *, padded=False, dtype=torch.float64) -> Case:
    length = draw(st.sampled_from(LENGTHS))
    batch, heads = draw(st.sampled_from([(1, 1), (2, 3), (3, 2)]))
    head_dim, value_dim = draw(st.sampled_from([(1, 1), (5, 5), (5, 2), (8, 8), (8, 11)]))
    seed = draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(batch, heads, length, size, generator=generator, dtype=torch.float64).to(dtype)
        for size in (head_dim, head_dim, value_dim)
    )
    options = {name: draw(values_of(option, length)) for name, option in drawn_options(row).items()}
    return make_case(
        row,
        (query, key, value),
        options,
        mask=draw(padding(batch, length) if padded else padding(batch, length) | st.none()),
        scale=draw(st.sampled_from([None, 0.3])),
        longest=draw(st.sampled_from([length, LENGTHS[-1]])),
        seed=seed,
    )


def rounding(case: Case) -> float:
    """How far two computations of a case may be apart.

    What nothing is known of but that it approximates keeps half of its digits, as what iterates does.
    """
    if case.row.exact:
        return average_error(*case.tensors, scale=case.scale)
    if case.row.name in _APPROXIMATIONS:
        return _APPROXIMATIONS[case.row.name](case)
    return torch.finfo(case.query.dtype).eps ** 0.5 * float(case.value.double().abs().max())


def gradient_rounding(case: Case) -> float:
    """How far two computations of a gradient of query, key or value may be apart.

    A gradient adds up N (d + d_v) terms of at most one weight, one value, one query and one key.
    """
    terms = case.query.shape[2] * (case.query.shape[3] + case.value.shape[3])
    size = float(torch.stack([1 + tensor.double().abs().max() for tensor in case.tensors]).prod())
    return terms * size * (4 * torch.finfo(case.query.dtype).eps if case.row.exact else rounding(case))


def local_gradients_are_near(case: Case, ours: list[Tensor]) -> bool:
    """Whether each number of the gradients of local attention is within the rounding of its own terms.

    Weights, what they give back, and scores are as many stages, each off by no more than an average of the values
    relative to them.
    """
    length = case.query.shape[2]
    mask = reference.local_mask(length, padding_mask=case.padding_mask, **case.options)
    query, key, value = (tensor.double() for tensor in case.tensors)
    scores = (query @ key.mT * _factor(case)).masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)
    coming = loss_weights(case.value).double().abs() * case.real
    of_weights = coming @ value.abs().mT + (coming * (weights @ value.abs())).sum(dim=-1, keepdim=True)
    of_scores = weights * of_weights * _factor(case)
    sizes = (of_scores @ key.abs(), of_scores.mT @ query.abs(), weights.mT @ coming)
    share = 3 * rounding(case) / float(value.abs().max())
    return all(
        bool(((own.double() - other.double()).abs() <= share * size).all())
        for own, other, size in zip(ours, case.gradients(case.oracle), sizes, strict=True)
    )


def _heads(case: Case) -> float:
    return average_error(*case.tensors, scale=case.scale)


def _pooled(case: Case) -> float:
    # Keys are rounded once more, as means of the keys, and so are values.
    return average_error(*case.tensors, scale=case.scale, stages=2)


def _linformer(case: Case) -> float:
    length = case.query.shape[2]
    # What the terms of a mixture add up to, whatever their signs; each of N terms is rounded.
    weights = [weight.detach()[:, :length].double().abs() for weight in case.learned.values()]
    keys, values = (
        weight @ tensor.double().abs() for weight, tensor in zip(weights, (case.key, case.value), strict=True)
    )
    precise = case.query.dtype in (torch.float32, torch.float64)
    # A mixture is to the keys what an average is: there are `rank` of them.
    error = weighting_error(
        case.query.dtype,
        terms=max(length, keys.shape[2]),
        products=case.query.shape[3],
        score=float((case.query.double().abs() @ keys.mT).max()) * _factor(case),
        largest=float(values.max()),
        stages=2,
    )
    return (1 + (length if precise else 1)) * error


def _linear(case: Case) -> float:
    query, key, value = case.tensors
    length, head_dim = query.shape[2:]
    largest = float(value.double().abs().max())
    if case.options["feature_map"] == "elu":
        # Ratios of sums of positive numbers: no score is rounded.
        return weighting_error(query.dtype, terms=length, products=head_dim, score=0, largest=largest, stages=2)
    # Features are to keys, and queries to features, what queries are to keys in full attention; the exponent of a
    # key has its square besides, and that of a query the logarithm of a sum.
    num_features = case.options["num_features"]
    features = random_features(num_features, head_dim, query.dtype, query.device).double().abs()
    both = torch.cat([query, key]).double().abs() * _factor(case) ** 0.5
    score = float((both @ features.mT).max()) + float(both.square().sum(dim=-1).max()) / 2 + math.log(length)
    terms = max(num_features, length)
    return weighting_error(query.dtype, terms=terms, products=head_dim, score=score, largest=largest, stages=3)


def _nystrom(case: Case) -> float:
    # An inverse Z of A passes an error E of A on as Z E Z, and one of what it multiplies as Z times it. The three
    # softmaxes are three averages.
    norm = _inverse_norm(case, case.options["landmarks"])
    return average_error(*case.tensors, scale=case.scale, stages=3) * norm * (1 + norm)


def _inverse_norm(case: Case, landmarks: int) -> float:
    """Return the largest sum of a row of sizes in the landmarks' pseudo-inverses; 1 where attention is exact."""
    largest = 1.0
    for sample, real in enumerate(case.real[:, 0, :, 0].expand(len(case.query), -1)):
        count = int(real.sum())
        if count > landmarks:
            segment = torch.arange(count) * landmarks // count
            queries, keys = (
                torch.stack(
                    [t[sample][:, real].double()[:, segment == j].mean(dim=1) for j in range(landmarks)], dim=1
                )
                for t in (case.query, case.key)
            )
            inverse = reference.iterative_inverse((queries @ keys.mT * _factor(case)).softmax(dim=-1))
            largest = max(largest, float(inverse.abs().sum(dim=-1).max()))
    return largest


def _factor(case: Case) -> float:
    return case.query.shape[-1] ** -0.5 if case.scale is None else case.scale


# Approximations whose error is known.
_APPROXIMATIONS: dict[str, Callable[[Case], float]] = {
    "heads": _heads,
    "linear": _linear,
    "linformer": _linformer,
    "nystrom": _nystrom,
    "pooled": _pooled,
}
