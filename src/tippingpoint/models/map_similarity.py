"""How alike the attention maps of a model's layers are on real inputs, in bounded memory.

Maps are made for a few query positions of one sequence at a time, never of all positions and layers at once.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tippingpoint.errors import DataError, InputError, UnsupportedError
from tippingpoint.models.map_inputs import Layer, Seen, observed
from tippingpoint.models.map_overlaps import MapSimilarity
from tippingpoint.models.reuse_plan import (
    PLAIN_COST_RATIO,
    ReusePlan,
    check_num_maps,
    even_groups,
    propose_groups,
    relative_cost_ratio,
)
from tippingpoint.models.reuse_trials import Trials
from tippingpoint.models.sharing import sharing_attentions
from tippingpoint.models.swap import LIBRARY_NAME, LayerAttention, has_window

# Within how many positions of a query attention is added up.
DISTANCES = (0, 1, 2, 4, 8, 16)
ROWS = 256
MEMORY_MIB = 64
TRIAL_INPUTS = 16
_MOST_TRIALS = 32
_MIB = 2**20
# What the library's models call projections of queries and keys, what their scores need for relative positions, and
# one projection for queries, keys and values.
_QUERY_OR_KEY = re.compile(r"(.*_)?(q|k|query|key)(_.*)?")
_OF_POSITIONS = re.compile(r"linear_pos|(pos_)?bias_[uv]")
_FUSED = re.compile(r".*qkv.*", re.IGNORECASE)
# Projections of relative positions: their layers cost more than twice what one costs that is given its map.
_RELATIVE = ("linear_pos", "relative_k_proj")


def plan_reuse(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    num_maps: int,
    *,
    match_heads: bool = True,
    rows: int | None = ROWS,
    seed: int = 0,
    memory_mib: int = MEMORY_MIB,
    cost_ratio: float | None = None,
    trial_inputs: int = TRIAL_INPUTS,
) -> ReusePlan:
    """Choose which layers of a model may share one attention map, from real inputs.

    Layers are divided into `num_maps` contiguous groups. Dynamic programming proposes those in which the maps of
    layers are most like that of their group's first layer, each layer weighted by how much the model's output moves
    when it is given the map of the layer before. Then these, groups by overlap alone, even groups, and what moving
    layers at borders leads to are tried on a few inputs, and those that move the output least are the plan. How
    overlap is defined and what `rows`, `seed` and `memory_mib` do says `map_similarity`.

    Args:
        model: Any encoder of the Transformers library that uses its attention interface, as it was loaded.
        batches: What the model is called with, dictionary by dictionary; read once.
        num_maps: Number of maps that are computed; layers with a sliding window of their own are not counted.
        match_heads: Whether a reusing layer may be given the map's heads in another order: the one-to-one assignment
            with the largest overlap.
        rows: Most query positions that are examined in a sequence; None for all.
        seed: Of the choice of these positions.
        memory_mib: Memory for maps.
        cost_ratio: What a layer that computes its map costs, in layers that are given one. By default 2, and what
            Transformer-XL's relative positions make of it where the model has them.
        trial_inputs: How many sequences groups are tried on, the first ones; with 0 nothing is tried, and groups are
            those with the largest mean overlap. A trial holds a copy of the model.

    Returns:
        The plan, with what every other number of maps would give.

    Raises:
        InputError: If num_maps is not from 1 to the number of layers that can share, or a batch cannot be used.
        UnsupportedError: If the model's layers have no maps of their own to compare.
        DataError: If a map is not finite.
    """
    attentions = _sharing(model)
    check_num_maps(num_maps, sum(not has_window(attention) for attention in attentions))
    if type(trial_inputs) is not int or trial_inputs < 0:
        raise InputError(f"trial_inputs must be a whole number of at least 0, got {trial_inputs!r}")
    first: list[dict[str, Any]] = []
    sequences = _keeping(_sequences(batches), first, trial_inputs)
    similarity = map_similarity(model, sequences, rows=rows, seed=seed, memory_mib=memory_mib)
    if cost_ratio is None:
        relative = any(hasattr(attention, name) for attention in attentions for name in _RELATIVE)
        width = int(getattr(attentions[0].config, "hidden_size", 0))
        cost_ratio = relative_cost_ratio(similarity.positions, width) if relative else PLAIN_COST_RATIO
    groups, tried = None, ()
    if trial_inputs:
        with _evaluating(model):
            inputs = [{name: _moved(value, model) for name, value in each.items()} for each in first]
            trials = Trials(model, inputs, similarity, match_heads=match_heads)
            by_overlap = propose_groups(similarity, num_maps, match_heads=match_heads)
            similarity = replace(similarity, weights=trials.weights())
            weighted = propose_groups(similarity, num_maps, match_heads=match_heads)
            groups = trials.best([weighted, by_overlap, even_groups(similarity, num_maps)], _MOST_TRIALS)
        sharing = len(similarity.eligible) - num_maps
        of_as_many = [each for each in trials.losses.items() if sum(len(group) - 1 for group in each[0]) == sharing]
        tried = tuple(sorted(of_as_many, key=lambda each: each[1]))
    return ReusePlan.of(
        similarity, num_maps, match_heads=match_heads, cost_ratio=cost_ratio, groups=groups, tried=tried
    )


def _keeping(sequences: Iterator[dict[str, Any]], kept: list[dict[str, Any]], most: int) -> Iterator[dict[str, Any]]:
    """Yield sequences, and keep the first ones."""
    for sequence in sequences:
        if len(kept) < most:
            kept.append(sequence)
        yield sequence


def map_similarity(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    rows: int | None = ROWS,
    seed: int = 0,
    memory_mib: int = MEMORY_MIB,
) -> MapSimilarity:
    """Compare the attention maps of a model's layers, head by head, on real inputs.

    The overlap of two heads is the mean, over the real query positions examined, of sum_j min(p_j, q_j) of their rows
    of probabilities. Padding is no query, and has no weight as a key. At most `rows` positions of a sequence are
    examined, chosen at random (256 by default), so that long inputs stay affordable; every position examined counts
    once. The model runs one sequence at a time, in evaluation mode without gradients, and is left as it was.

    Args:
        model: Any encoder of the Transformers library that uses its attention interface, as it was loaded.
        batches: What the model is called with: dictionaries of tensors whose first dimension is the batch (and of
            values that are no tensors, which are handed over as they are). Read once. Tensors are moved to the
            model's device, floating ones to its dtype.
        rows: Most query positions that are examined in a sequence; None for all.
        seed: Of the choice of these positions; how inputs are divided into batches does not matter.
        memory_mib: Memory in MiB for maps and what stands beside them. Queries and keys of one sequence and the
            model's own forward pass come on top. Where layers add a bias for each pair of positions, rows of it are
            kept, and the model runs several times over a sequence if they would not fit.

    Raises:
        InputError: If there are no batches, or one cannot be used.
        UnsupportedError: If the model's layers have no maps of their own to compare.
        DataError: If a map is not finite.
    """
    _check_positive("rows", rows)
    _check_positive("memory_mib", memory_mib)
    attentions = _sharing(model)
    eligible = tuple(number for number, attention in enumerate(attentions) if not has_window(attention))
    chosen = {number: attentions[number] for number in eligible}
    sums: _Sums | None = None
    with _evaluating(model), torch.inference_mode():
        for number, inputs in enumerate(_sequences(batches)):
            moved = {name: _moved(value, model) for name, value in inputs.items()}
            start, total = 0, 1
            while start < total:
                seen = Seen(
                    name=f"{type(model).__name__}, input {number}",
                    numbers=eligible,
                    padding=moved.get("attention_mask"),
                    most=rows,
                    generator=_generator(seed, number),
                    start=start,
                    budget=memory_mib * _MIB // 2,
                )
                with observed(chosen, seen.see):
                    model(**moved)
                seen.check()
                sums = sums or _Sums(len(chosen), seen.heads)
                sums.add(seen, memory_mib * _MIB // 2, first=start == 0)
                start, total = start + len(seen.rows), seen.total
            assert sums is not None
            sums.check_finite(number)
    if sums is None:
        raise InputError("comparing attention maps needs at least one batch of inputs, got none")
    return sums.similarity(
        type(model).__name__, len(attentions), eligible, tuple(map(_map_parameters, chosen.values()))
    )


def _generator(seed: int, number: int) -> torch.Generator:
    """Return what draws the rows of one input: the same ones in every call with it."""
    return torch.Generator().manual_seed(random.Random(f"{seed}, {number}").getrandbits(32))


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")


def _sharing(model: PreTrainedModel) -> list[nn.Module]:
    """Return the attentions of a model that compute maps of their own, in the order of the layers."""
    attentions = sharing_attentions(model)
    for number, attention in enumerate(attentions):
        config: Any = attention.config
        slots = [module for module in attention.children() if isinstance(module, LayerAttention)]
        full = all(slot.variant.name in ("sdpa", "eager") for slot in slots)
        if config._attn_implementation == LIBRARY_NAME and not (slots and full):
            standing = slots[0].variant if slots else "another attention"
            raise UnsupportedError(
                f"layer {number} of {type(model).__name__} runs '{standing}' in place of its own attention; plan "
                "with the checkpoint that it was made from"
            )
    deep = getattr(model.config, "num_hidden_layers", None)
    if len(attentions) == 1 and isinstance(deep, int) and deep > 1:
        raise UnsupportedError(
            f"the {deep} layers of {type(model).__name__} are one attention module that runs several times, so none "
            "of them can be given another's map"
        )
    if all(map(has_window, attentions)):
        raise UnsupportedError(
            f"every layer of {type(model).__name__} attends within a window of its own, so none can share a map"
        )
    return attentions


def _map_parameters(attention: nn.Module) -> int:
    """Return the parameters of an attention that only its map needs."""
    count = 0
    for name, parameter in attention.named_parameters():
        part = name.partition(".")[0]
        if _QUERY_OR_KEY.fullmatch(part) or _OF_POSITIONS.fullmatch(part):
            count += parameter.numel()
        elif _FUSED.fullmatch(part):
            count += 2 * parameter.numel() // 3
    return count


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back into its own."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _sequences(batches: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the inputs of one sequence after the other, each as a batch of one."""
    if isinstance(batches, Mapping):
        raise InputError("batches must be an iterable of batches, and this is one batch; give [batch]")
    for number, batch in enumerate(batches):
        if not isinstance(batch, Mapping):
            raise InputError(
                f"a batch must be a dictionary of model inputs, such as {{'input_ids': tensor}}; batch {number} is a "
                f"{type(batch).__name__}"
            )
        sizes = {name: len(value) for name, value in batch.items() if isinstance(value, Tensor) and value.ndim > 0}
        if not sizes or min(sizes.values()) != max(sizes.values()) or not min(sizes.values()):
            raise InputError(
                f"the tensors of a batch must have the same first dimension, its number of sequences; those of batch "
                f"{number} have {sizes or 'none'}"
            )
        for place in range(min(sizes.values())):
            yield {name: value[place : place + 1] if name in sizes else value for name, value in batch.items()}


def _moved(value: Any, model: PreTrainedModel) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else None)


def rows_in_block(layers: int, heads: int, positions: int, itemsize: int, budget: int) -> int:
    """Return for how many query positions at a time maps of all layers are made.

    Held at the same time, for each row: a map of every layer; scores, a mask, probabilities and their copy of one
    layer; which keys are within each distance; overlaps of the heads of two layers.

    Args:
        layers: Number of layers.
        heads: Heads of a layer.
        positions: Of the sequence.
        itemsize: Bytes of a probability.
        budget: Bytes that there are.
    """
    row = positions * (heads * (layers + 4) + 2 * len(DISTANCES)) + 2 * heads * heads
    return max(1, budget // (row * itemsize))


class _Sums:
    """Sums over examined rows.

    Args:
        layers: Number of layers that are compared.
        heads: Heads of a layer.
    """

    def __init__(self, layers: int, heads: int) -> None:
        self._overlaps = torch.zeros(layers, layers, heads, heads, dtype=torch.float64)
        self._near = torch.zeros(layers, heads, len(DISTANCES), dtype=torch.float64)
        self._inputs = self._rows = self._positions = 0

    def add(self, seen: Seen, budget: int, *, first: bool) -> None:
        """Add what was seen in a call; `first` is the first call with a sequence."""
        layers = [layer for layer in seen.layers.values() if layer is not None]
        if seen.heads != self._near.shape[1]:
            raise UnsupportedError("the number of heads differs from input to input")
        itemsize = max(4, layers[0].query.element_size())
        block = rows_in_block(len(layers), seen.heads, seen.positions, itemsize, budget)
        for begin in range(0, len(seen.rows), block):
            self._add_block(layers, seen.rows[begin : begin + block], begin)
        self._rows += len(seen.rows)
        self._inputs += first
        self._positions += seen.real if first else 0

    def _add_block(self, layers: Sequence[Layer], rows: Tensor, begin: int) -> None:
        maps = [layer.maps(begin, begin + len(rows)) for layer in layers]
        keys = torch.arange(maps[0].shape[-1], device=rows.device)
        distance = (keys - rows[:, None]).abs()[..., None]
        within = (distance <= torch.tensor(DISTANCES, device=rows.device)).to(maps[0].dtype)
        for number, own in enumerate(maps):
            self._near[number] += (own @ within).sum(dim=0, dtype=torch.float64).cpu()
            for other in range(number + 1, len(maps)):
                # sum_j min(p_j, q_j) = 1 - sum_j |p_j - q_j| / 2 of probabilities, without a value for each j.
                apart = torch.cdist(own, maps[other], p=1).sum(dim=0, dtype=torch.float64)
                self._overlaps[number, other] += len(rows) - apart.cpu() / 2

    def check_finite(self, number: int) -> None:
        """See to it that nothing has become infinite or no number.

        Raises:
            DataError: If something has.
        """
        bad = (~self._near.isfinite()).any(dim=(1, 2)).nonzero()
        if len(bad):
            raise DataError(
                f"attention maps of input {number} are not finite (first in the comparable layer {int(bad[0])}); are "
                "the model's weights and its inputs?"
            )

    def similarity(
        self, model: str, layers: int, eligible: tuple[int, ...], map_parameters: tuple[int, ...]
    ) -> MapSimilarity:
        """Return the means."""
        # Rounding alone takes an overlap out of its range.
        overlaps = (self._overlaps / self._rows).clamp(0, 1).tolist()
        near = (self._near / self._rows).clamp(0, 1).tolist()
        return MapSimilarity(
            model=model,
            layers=layers,
            eligible=eligible,
            heads=self._near.shape[1],
            overlaps=tuple(_tuples(row[number + 1 :]) for number, row in enumerate(overlaps)),
            distances=DISTANCES,
            near=_tuples(near),
            inputs=self._inputs,
            rows=self._rows,
            positions=self._positions / self._inputs,
            map_parameters=map_parameters,
        )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
