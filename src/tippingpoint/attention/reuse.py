"""Attention maps that later layers use again (attention map reuse, arXiv:2301.12444, section 3).

    first layer of a group    map = softmax(scale Q K^T + bias)     output = map V
    every other layer         the same map                          output = map V of its own

What is shared is one of three things, each with `attend(value)`:

    DenseMap      the map, [batch, heads, length, length]
    BandMap       the map of local attention, [batch, heads, blocks, rows, keys of a block]
    Projections   queries and keys: the map is computed again, by fused attention, and never stands in memory

Without gradients a map is written once, in place, block by block: scores, mask, softmax and the product with the
values are done while a block is in the cache. With gradients it is made of plain operators, so that every use of
it sends its gradient back.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tippingpoint.attention.full import fused_attention, with_bias
from tippingpoint.attention.local import local_attention
from tippingpoint.attention.local_gathered import Blocks
from tippingpoint.attention.validation import attendable, check_attention_inputs
from tippingpoint.stages import SCORES, SOFTMAX, WEIGHTED, stage

MODES = ("map", "recompute", "auto")
# A block of scores is as large as this: still in the last level of the cache when softmax and values come, and long
# enough for products at full speed. Of 0.25 to 32 MiB, 8 and more were the fastest at 4,096 positions.
_BLOCK_BYTES = 8 * 2**20
# Types that scores are computed in as they are; others are computed in float32, where that can be done by blocks.
_EXACT = (torch.float32, torch.float64)
# How often modes are timed against each other at most, and for about how long after the first time.
_MOST_ROUNDS, _CHOOSING_S = 8, 0.5


class Shared(Protocol):
    """What the first layer of a group hands to the others."""

    @property
    def nbytes(self) -> int:
        """Bytes that stay in memory until the last layer of the group."""
        ...

    def attend(self, value: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return weighted values, [batch, heads, length, value_dim], of values of that shape.

        Args:
            value: [batch, heads, length, value_dim].
            dropout: Probability of dropping an attention weight: each layer drops its own.
        """
        ...


@dataclass(frozen=True, slots=True)
class DenseMap:
    """A map of full attention.

    Attributes:
        weights: [batch, heads, length, length]; rows sum to one, nothing is dropped.
    """

    weights: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the map."""
        return self.weights.nbytes

    def attend(self, value: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return weighted values; see `Shared`."""
        weights = F.dropout(self.weights, dropout) if dropout else self.weights
        if weights.dtype == value.dtype or not _by_blocks(weights, value) or _multiplies(weights.dtype):
            return (weights @ value.to(weights.dtype)).to(value.dtype)
        # Without units for the map's type products of it are slow: blocks of it are widened in the cache.
        output = _output(value)
        for place in _places(value, value.dtype):
            torch.mm(weights[place].to(value.dtype), value[place[:2]], out=output[place])
        return output


@dataclass(frozen=True, slots=True)
class BandMap:
    """A map of local attention: memory is O(length * window).

    Attributes:
        weights: [batch, heads, blocks, rows of a block, global keys and keys of the block's span].
        rows_of_globals: [batch, heads, num_global, length]; None without global positions.
        blocks: Which keys each block sees.
    """

    weights: Tensor
    rows_of_globals: Tensor | None
    blocks: Blocks

    @property
    def nbytes(self) -> int:
        """Bytes of the map."""
        return self.weights.nbytes + (0 if self.rows_of_globals is None else self.rows_of_globals.nbytes)

    def attend(self, value: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return weighted values; see `Shared`."""
        weights = F.dropout(self.weights, dropout) if dropout else self.weights
        if _by_blocks(weights, value) and weights.dtype == value.dtype:
            output = _output(value)
            for sequence, block in self.blocks.each(value.shape[0]):
                block.weigh(weights[sequence, :, block.number], value[sequence], output[sequence])
        else:
            output = weights.flatten(0, 1) @ self.blocks.keys(value.to(weights.dtype))
            output = self.blocks.whole(output, value.shape[0]).to(value.dtype)
        if self.rows_of_globals is None:
            return output
        rows = F.dropout(self.rows_of_globals, dropout) if dropout else self.rows_of_globals
        first = (rows @ value.to(rows.dtype)).to(value.dtype)
        return torch.cat([first, output[:, :, first.shape[2] :]], dim=2)


@dataclass(frozen=True, slots=True)
class Projections:
    """Queries and keys of a group's first layer: memory is O(length), and every layer computes the map again.

    Attributes:
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        mask: Of full attention, as `dense_map` takes it, with the bias in it; or the padding of local attention.
        scale: Of the scores.
        window: One-sided radius of local attention; None where attention is full.
        num_global: Leading positions that every position sees.
        causal: Whether later positions are hidden.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float | None
    window: int | None = None
    num_global: int = 0
    causal: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the queries and keys."""
        return self.query.nbytes + self.key.nbytes

    def attend(self, value: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return weighted values; see `Shared`."""
        if self.window is None:
            return fused_attention(self.query, self.key, value, mask=self.mask, scale=self.scale, dropout=dropout)
        return local_attention(
            self.query,
            self.key,
            value,
            window=self.window,
            num_global=self.num_global,
            causal=self.causal,
            padding_mask=self.mask,
            scale=self.scale,
            dropout=dropout,
        )


def dense_map(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    map_dtype: torch.dtype | None = None,
    memory: Tensor | None = None,
) -> tuple[Tensor, DenseMap]:
    """Attend to every position, and keep the map.

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, value_dim].
        mask: True where a query may look at a key: bool [batch, length] (padding) or broadcastable to
            [batch, heads, length, length]; or what is added to the scores, of that shape.
        bias: What is added to the scores, broadcastable to [batch, heads, length, length].
        scale: Of the products of queries and keys; 1/sqrt(head_dim) by default.
        dropout: Probability of dropping an attention weight from this layer's output. The map keeps all.
        map_dtype: What the map is kept in, such as bfloat16; by default the query's dtype.
        memory: A map that nobody needs any more and that may be written over. To take fresh memory from the system
            costs as much as half of the arithmetic.

    Returns:
        Attended values, [batch, heads, length, value_dim], in the query's dtype; and the map.

    Raises:
        InputError: If shapes disagree.

    Reference: arXiv:2301.12444, section 3.
    """
    check_attention_inputs(query, key, value, mask if mask is not None and mask.ndim == 2 else None)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    allowed, added = _split(mask, bias)
    map_dtype = map_dtype or query.dtype
    if not dropout and _by_blocks(query, key, value, *(() if added is None else (added,))):
        shape = (*query.shape[:3], key.shape[2])
        if memory is None or memory.shape != shape or memory.dtype != map_dtype:
            memory = query.new_empty(shape, dtype=map_dtype)
        return _dense_by_blocks(query, key, value, allowed, added, factor, memory), DenseMap(memory)
    weights = _softmax(query * factor @ key.transpose(-1, -2), allowed, added)
    used = F.dropout(weights, dropout) if dropout else weights
    return used @ value, DenseMap(weights.to(map_dtype))


def band_map(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int,
    num_global: int = 0,
    causal: bool = False,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    map_dtype: torch.dtype | None = None,
) -> tuple[Tensor, BandMap]:
    """Attend locally, and keep the map in O(length * window) memory.

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, value_dim].
        window: One-sided radius in positions.
        num_global: Leading positions that see, and are seen by, every position.
        causal: Whether a position sees itself and earlier ones only.
        padding_mask: bool [batch, length], True for real tokens.
        scale: Of the scores; 1/sqrt(head_dim) by default.
        dropout: Probability of dropping an attention weight from this layer's output. The map keeps all.
        map_dtype: What the map is kept in; by default the query's dtype.

    Returns:
        Attended values, [batch, heads, length, value_dim], in the query's dtype; and the map.

    Raises:
        InputError: If shapes disagree.

    Reference: arXiv:2301.12444, section 3; Longformer, arXiv:2004.05150, section 3.
    """
    check_attention_inputs(query, key, value, padding_mask)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    blocks = Blocks(length=query.shape[2], window=min(window, query.shape[2]), num_global=num_global, causal=causal)
    map_dtype = map_dtype or query.dtype
    allowed = blocks.allowed(padding_mask, query.device)
    rows_of_globals = None
    if num_global and not causal:
        mask = None if padding_mask is None else attendable(padding_mask)[:, None, None, :]
        first = query[:, :, :num_global] * factor @ key.transpose(-1, -2)
        rows_of_globals = _softmax(first, mask, None).to(map_dtype)
    if not dropout and _by_blocks(query, key, value) and map_dtype == query.dtype and query.dtype in _EXACT:
        weights = _band_by_blocks(query, key, allowed, blocks, factor)
    else:
        scores = blocks.queries(query * factor) @ blocks.keys(key).transpose(-1, -2)
        weights = _softmax(scores.unflatten(0, query.shape[:2]), allowed, None).to(map_dtype)
    shared = BandMap(weights, rows_of_globals, blocks)
    with stage(WEIGHTED):
        return shared.attend(value, dropout=dropout), shared


def _softmax(scores: Tensor, allowed: Tensor | None, added: Tensor | None) -> Tensor:
    """Return weights, in the dtype of the scores; computed in place unless a graph is wanted."""
    scores = scores if added is None else scores + added
    lowest = torch.finfo(scores.dtype).min
    if _wants_graph(scores):
        scores = scores if allowed is None else scores.masked_fill(~allowed, lowest)
        return scores.softmax(dim=-1).to(scores.dtype)
    if allowed is not None:
        scores.masked_fill_(~allowed, lowest)
    return torch.softmax(scores, dim=-1, out=scores)


def _dense_by_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    added: Tensor | None,
    factor: float,
    weights: Tensor,
) -> Tensor:
    """Write a map, each block once, and return what it gives; arguments as `dense_map`."""
    allowed, added = (None if tensor is None else tensor.expand(weights.shape) for tensor in (allowed, added))
    # Scores of half precision are computed in float32, as fused attention does.
    precise = query.dtype if query.dtype in _EXACT else torch.float32
    output = _output(value)
    query, key = query.to(precise), key.to(precise)
    used = weights.dtype if _multiplies(weights.dtype) else precise
    value = value.to(used)
    lowest = torch.finfo(precise).min
    scratch = (
        None if weights.dtype == precise else torch.empty_like(weights[next(_places(value, precise))], dtype=precise)
    )
    for place in _places(value, precise):
        head = place[:2]
        block = weights[place] if scratch is None else scratch[: weights[place].shape[0]]
        with stage(SCORES):
            start, beta = (block, 0) if added is None else (added[place].to(precise), 1)
            torch.addmm(start, query[place], key[head].t(), beta=beta, alpha=factor, out=block)
        with stage(SOFTMAX):
            if allowed is not None:
                block.masked_fill_(~allowed[place], lowest)
            torch.softmax(block, dim=-1, out=block)
            if scratch is not None:
                weights[place].copy_(block)
        with stage(WEIGHTED):
            output[place].copy_((weights[place] if weights.dtype == used else block) @ value[head])
    return output


def _band_by_blocks(query: Tensor, key: Tensor, allowed: Tensor, blocks: Blocks, factor: float) -> Tensor:
    """Return the weights of a map of local attention, each block written once."""
    batch, heads = query.shape[:2]
    # Rows of the last block beyond the length, which nobody reads, and corners beyond the ends hold zeros.
    weights = query.new_zeros(batch, heads, *allowed.shape[-3:])
    hidden = ~allowed.expand(batch, *allowed.shape[1:])[:, 0]
    for sequence, block in blocks.each(batch):
        scores = weights[sequence, :, block.number]
        with stage(SCORES):
            block.score(query[sequence], key[sequence], factor, scores)
        with stage(SOFTMAX):
            scores.masked_fill_(hidden[sequence, block.number], torch.finfo(scores.dtype).min)
            torch.softmax(scores, dim=-1, out=scores)
    return weights


def _split(mask: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return where scores count (None: everywhere) and what is added to them (None: nothing)."""
    if mask is None or mask.dtype == torch.bool:
        return (attendable(mask)[:, None, None, :] if mask is not None and mask.ndim == 2 else mask), bias
    return None, mask if bias is None else mask + bias


def _wants_graph(*tensors: Tensor) -> bool:
    """Whether operations must be recorded, for gradients, for a compiler or for automatic mixed precision."""
    wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    mixed = torch.is_autocast_enabled(tensors[0].device.type)
    return wants_gradient or mixed or torch.compiler.is_compiling()


def _by_blocks(*tensors: Tensor) -> bool:
    """Whether to go through blocks: on the CPU, where a cache is to be used and kernels are cheap to start."""
    return tensors[0].device.type == "cpu" and not _wants_graph(*tensors)


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies matrices of a type by units of its own."""
    return dtype in _EXACT or (
        dtype == torch.bfloat16 and any(_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    )


@functools.cache
def _capabilities() -> Mapping[str, object]:
    return torch.cpu.get_capabilities()


def _places(value: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, int, slice]]:
    """Yield each block of a map as (sequence, head, rows)."""
    batch, heads, length, _ = value.shape
    rows = max(16, _BLOCK_BYTES // (length * dtype.itemsize))
    for sequence in range(batch):
        for head in range(heads):
            for start in range(0, length, rows):
                yield sequence, head, slice(start, start + rows)


def _output(value: Tensor) -> Tensor:
    """Return memory for attended values, laid out as a model wants them: [batch, length, heads, value_dim]."""
    batch, heads, length, width = value.shape
    return value.new_empty(batch, length, heads, width).transpose(1, 2)


def share(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mode: str,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    map_dtype: torch.dtype | None = None,
    memory: Tensor | None = None,
    **local: Any,
) -> tuple[Tensor, Shared]:
    """Attend as the first layer of a group, and return what the others take over.

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, value_dim].
        mode: "map" or "recompute".
        mask: As `dense_map` takes it; with local attention, padding.
        bias: As `dense_map` takes it.
        scale: Of the products of queries and keys; 1/sqrt(head_dim) by default.
        dropout: Probability of dropping an attention weight from this layer's output.
        map_dtype: What a map is kept in; by default the query's dtype.
        memory: As `dense_map` takes it.
        local: window, num_global and causal of local attention; none where attention is full.

    Returns:
        Attended values, [batch, heads, length, value_dim]; and what is shared.
    """
    if mode == "recompute":
        check_attention_inputs(query, key, value, mask if mask is not None and mask.ndim == 2 else None)
        if mask is not None and mask.ndim == 2 and not local:
            mask = attendable(mask)
        shared = Projections(query, key, with_bias(mask, bias), scale, **local)
        return shared.attend(value, dropout=dropout), shared
    options: dict[str, Any] = {"scale": scale, "dropout": dropout, "map_dtype": map_dtype}
    if local:
        return band_map(query, key, value, padding_mask=mask, **options, **local)
    return dense_map(query, key, value, mask=mask, bias=bias, memory=memory, **options)


def choose_mode(
    query: Tensor,
    value: Tensor,
    *,
    users: int,
    bias: Tensor | None = None,
    map_dtype: torch.dtype | None = None,
    window: int | None = None,
    num_global: int = 0,
    causal: bool = False,
) -> str:
    """Return the faster mode for inputs of this kind on this device, "map" or "recompute", as measured here.

    Measured once in a process for each octave of lengths, on one sequence of random numbers: it takes as long as a
    few calls of the group. Under `torch.compile` it breaks the graph.

    Args:
        query: [batch, heads, length, head_dim].
        value: [batch, heads, length, value_dim].
        users: How many layers take the map over.
        bias: What is added to the scores; or padding, which costs nothing.
        map_dtype: What the map is kept in.
        window: One-sided radius of local attention; None where attention is full.
        num_global: Leading positions that every position sees.
        causal: Whether later positions are hidden.
    """
    length = 2 ** int(math.log2(query.shape[2]))
    # A compiler cannot look into clocks.
    measure: Any = torch.compiler.disable(_measure_mode)
    return measure(
        _Case(
            device=str(query.device),
            dtype=query.dtype,
            shape=(1, query.shape[1], length, query.shape[-1]),
            value_dim=value.shape[-1],
            users=users,
            training=torch.is_grad_enabled() and value.requires_grad,
            biased=bias is not None and bias.ndim == 4,
            map_dtype=map_dtype,
            band=None if window is None else (window, min(num_global, length), causal),
            threads=torch.get_num_threads(),
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """What the choice of a mode depends on."""

    device: str
    dtype: torch.dtype
    shape: tuple[int, int, int, int]
    value_dim: int
    users: int
    training: bool
    biased: bool
    map_dtype: torch.dtype | None
    band: tuple[int, int, bool] | None
    threads: int


@functools.cache
def _measure_mode(case: _Case) -> str:
    # Importing it takes a moment, and only this needs it.
    from torch.utils.benchmark import Timer

    with torch.inference_mode(False), torch.set_grad_enabled(case.training), torch.random.fork_rng():
        call = _GroupOfLayers(case)
        timers = {
            mode: Timer("call(mode)", globals={"call": call, "mode": mode}, num_threads=case.threads)
            for mode in ("map", "recompute")
        }
        # In turns, and the least of each: whatever disturbs makes it longer.
        seconds = {mode: timer.timeit(1).mean for mode, timer in timers.items()}
        for _ in range(min(_MOST_ROUNDS, int(_CHOOSING_S / sum(seconds.values())))):
            seconds = {mode: min(seconds[mode], timer.timeit(1).mean) for mode, timer in timers.items()}
    return min(seconds, key=lambda mode: seconds[mode])


class _GroupOfLayers:
    """What one group of layers does between its projections, on random numbers."""

    def __init__(self, case: _Case) -> None:
        def random(width: int) -> Tensor:
            batch, heads, length, _ = case.shape
            tensor = torch.randn(batch, length, heads, width, device=case.device, dtype=case.dtype)
            return tensor.requires_grad_(case.training).transpose(1, 2)

        self._case = case
        self._query, self._key, self._value = random(case.shape[3]), random(case.shape[3]), random(case.value_dim)
        self._bias = None
        if case.biased:
            self._bias = torch.randn((*case.shape[:3], case.shape[2]), device=case.device, dtype=case.dtype)

    def __call__(self, mode: str) -> None:
        value, case = self._value, self._case
        local: dict[str, Any] = {}
        if case.band is not None:
            local = dict(zip(("window", "num_global", "causal"), case.band, strict=True))
        total, shared = share(self._query, self._key, value, mode, bias=self._bias, map_dtype=case.map_dtype, **local)
        for _ in range(case.users):
            total = total + shared.attend(value)
        if case.training:
            total.sum().backward()
