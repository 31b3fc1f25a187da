"""Local attention on the CPU: blocks of queries one after the other, each against views of the keys that it sees.

    keys     ...|--w--|== block ==|--w--|...      scores of one block: [heads, block, block + 2 * window]
    queries           |== block ==|               corners outside of the band are two triangles

Nothing is gathered or padded: scores of one block at a time stand in a buffer that stays in the cache, and matrix
products read query, key and value where they are, in the layout [batch, length, heads, head_dim] of a model. The
backward pass computes weights again instead of keeping them, so that memory is linear in the length in training too,
as in FlashAttention (arXiv:2205.14135, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tippingpoint.stages import SCORES, SOFTMAX, WEIGHTED, stage

_NEVER = float("-inf")
# Queries of a block. Few waste little at the corners, many make efficient products; 64 was fastest at every window
# tried (16 to 256), forward and backward.
_BLOCK = 64


@dataclass(frozen=True)
class Band:
    """Which keys a query sees: those at most `window` away, and the first `num_global`.

    Attributes:
        length: Positions.
        window: One-sided radius.
        num_global: Leading positions that every position sees.
        causal: Whether later positions are hidden.
        scale: Of the scores.
        dropout: Probability of dropping a weight.
        seed: Of what is dropped.
    """

    length: int
    window: int
    num_global: int
    causal: bool
    scale: float
    dropout: float
    seed: int


@dataclass(frozen=True)
class _Block:
    """One block of queries of one sequence, and what it sees: global keys, then a range of others.

    Attributes:
        queries: Their positions.
        keys: Positions of the keys in its band that are not global.
        real: Whether these and the global keys are real, [keys], or None where all are.
    """

    queries: slice
    keys: slice
    real: Tensor | None


class StreamedLocalAttention(torch.autograd.Function):
    """Local attention of [batch, heads, length, head_dim] tensors on the CPU, in float32 or float64."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None, band: Band
    ) -> Tensor:
        """Return attended values, laid out as [batch, length, heads, head_dim] in memory."""
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        buffers = _Buffers(query, band)
        for sequence, block in _blocks(band, padding_mask, batch):
            weights = buffers.weights(query[sequence], key[sequence], block)
            if band.dropout:
                with stage(SOFTMAX):
                    weights.mul_(buffers.kept(weights.shape))
            with stage(WEIGHTED):
                _weighted_values(weights, value[sequence], block, band, output[sequence, :, block.queries])
        ctx.save_for_backward(query, key, value, padding_mask, output)
        ctx.band = band
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Any
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        query, key, value, padding_mask, output = ctx.saved_tensors
        band: Band = ctx.band
        gradient = gradients[0]
        of_query, of_key, of_value = (torch.zeros_like(tensor) for tensor in (query, key, value))
        with stage(SOFTMAX):
            # What each row's weights give back in total (arXiv:2205.14135, appendix B.2).
            returned = (gradient * output).sum(dim=-1, keepdim=True)
        buffers = _Buffers(query, band)
        for sequence, block in _blocks(band, padding_mask, query.shape[0]):
            rows = block.queries
            coming = gradient[sequence, :, rows]
            weights = buffers.weights(query[sequence], key[sequence], block)
            with stage(WEIGHTED):
                of_weights = buffers.products(coming, value[sequence], block)
            kept = weights
            with stage(SOFTMAX):
                if band.dropout:
                    dropped = buffers.kept(weights.shape)
                    kept = weights * dropped
                    of_weights.mul_(dropped)
            with stage(WEIGHTED):
                _add_outer(of_value[sequence], kept, coming, block, band)
            with stage(SOFTMAX):
                of_scores = of_weights.sub_(returned[sequence, :, rows]).mul_(weights)
            with stage(SCORES):
                _weighted_values(of_scores, key[sequence], block, band, of_query[sequence, :, rows], band.scale)
                _add_outer(of_key[sequence], of_scores, query[sequence, :, rows], block, band, band.scale)
        return of_query, of_key, of_value, None, None


def _blocks(band: Band, padding_mask: Tensor | None, batch: int) -> Iterator[tuple[int, _Block]]:
    for sequence in range(batch):
        real = None if padding_mask is None else padding_mask[sequence]
        for start in range(0, band.length, _BLOCK):
            end = min(start + _BLOCK, band.length)
            first = max(start - band.window, band.num_global)
            last = max(end if band.causal else min(end + band.window, band.length), band.num_global)
            seen = None
            if real is not None:
                seen = torch.cat([real[: band.num_global], real[first:last]])
                seen = None if bool(seen.all()) else seen
            yield sequence, _Block(slice(start, end), slice(first, last), seen)


class _Buffers:
    """Memory that all blocks share, and the products that are written into it.

    Args:
        like: A tensor of the dtype, [batch, heads, length, head_dim].
        band: Which keys a query sees.
    """

    def __init__(self, like: Tensor, band: Band) -> None:
        self._band = band
        self._heads = like.shape[1]
        widest = band.num_global + _BLOCK + 2 * band.window
        self._memory = [like.new_empty(self._heads * _BLOCK * widest) for _ in range(2)]
        self._triangles: dict[tuple[int, int, int, bool], Tensor] = {}
        self._random = torch.Generator().manual_seed(band.seed)

    def weights(self, query: Tensor, key: Tensor, block: _Block) -> Tensor:
        """Return a block's weights, [heads, rows, global and band keys]."""
        band = self._band
        with stage(SCORES):
            scores = self._product(0, query[:, block.queries], key, block, band.scale)
        with stage(SOFTMAX):
            return self._softmax(scores, block)

    def _softmax(self, scores: Tensor, block: _Block) -> Tensor:
        """Return weights in the place of the scores, with what the band leaves out hidden."""
        band = self._band
        start, end = block.queries.start, block.queries.stop
        first = block.keys.start
        # The position itself, one key further in each row: even padding sees it, to stay finite.
        own = scores.diagonal(band.num_global + start - first, dim1=1, dim2=2)
        kept = None if block.real is None else own.clone()
        if block.real is not None:
            scores.masked_fill_(~block.real, _NEVER)
        near = scores[..., band.num_global :]
        # Row r is position start + r, column c of the band is position first + c.
        self._hide(near[..., : max(0, end - 1 - band.window - first)], start - band.window - first - 1, upper=False)
        after = start - first + 1 + (0 if band.causal else band.window)
        self._hide(near[..., max(0, after) :], min(0, after), upper=True)
        if band.causal:
            self._hide(scores[..., start + 1 : band.num_global], 0, upper=True)
        if kept is not None:
            own.copy_(kept)
        return torch.softmax(scores, dim=-1, out=scores)

    def _hide(self, corner: Tensor, diagonal: int, *, upper: bool) -> None:
        """Hide scores [heads, rows, columns] on and above (`upper`), or on and below, a diagonal; in place."""
        rows, columns = corner.shape[1:]
        if columns == 0:
            return
        place = (rows, columns, diagonal, upper)
        if place not in self._triangles:
            ones = torch.ones(rows, columns, dtype=torch.bool)
            self._triangles[place] = ones.triu(diagonal) if upper else ones.tril(diagonal)
        corner.masked_fill_(self._triangles[place], _NEVER)

    def products(self, gradient: Tensor, value: Tensor, block: _Block) -> Tensor:
        """Return the gradients of a block's weights, [heads, rows, global and band keys]."""
        return self._product(1, gradient, value, block, 1.0)

    def kept(self, shape: torch.Size) -> Tensor:
        """Return the factors of weights that dropout leaves, in the order of the blocks."""
        share = 1 - self._band.dropout
        return torch.empty(shape, dtype=self._memory[0].dtype).bernoulli_(share, generator=self._random).div_(share)

    def _product(self, place: int, rows: Tensor, columns: Tensor, block: _Block, scale: float) -> Tensor:
        num_global = self._band.num_global
        width = num_global + block.keys.stop - block.keys.start
        count = rows.shape[1]
        product = self._memory[place][: self._heads * count * width].view(self._heads, count, width)
        for part, keys in (
            (product[..., num_global:], block.keys),
            (product[..., :num_global], slice(0, num_global)),
        ):
            if part.shape[-1]:
                torch.baddbmm(part, rows, columns[:, keys].transpose(1, 2), beta=0, alpha=scale, out=part)
        return product


def _weighted_values(
    weights: Tensor, values: Tensor, block: _Block, band: Band, out: Tensor, factor: float = 1.0
) -> None:
    """Write weights times values times a factor into `out`, [heads, rows, head_dim]."""
    shared = band.num_global
    torch.baddbmm(out, weights[..., shared:], values[:, block.keys], beta=0, alpha=factor, out=out)
    if shared:
        out.baddbmm_(weights[..., :shared], values[:, :shared], alpha=factor)


def _add_outer(total: Tensor, weights: Tensor, rows: Tensor, block: _Block, band: Band, factor: float = 1.0) -> None:
    """Add what a block gives to each of its keys, [heads, length, head_dim], in place."""
    shared = band.num_global
    total[:, block.keys].baddbmm_(weights[..., shared:].transpose(1, 2), rows, alpha=factor)
    if shared:
        total[:, :shared].baddbmm_(weights[..., :shared].transpose(1, 2), rows, alpha=factor)


def streamed_local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int,
    num_global: int,
    causal: bool,
    padding_mask: Tensor | None,
    scale: float | None,
    dropout: float,
) -> Tensor:
    """Attend locally, block by block; rows of global positions see the band and the global positions only.

    Arguments and result as `tippingpoint.attention.local.local_attention`; CPU tensors in float32 or float64.
    """
    band = Band(
        length=query.shape[2],
        window=min(window, query.shape[2]),
        num_global=num_global,
        causal=causal,
        scale=1 / math.sqrt(query.shape[-1]) if scale is None else scale,
        dropout=dropout,
        seed=int(torch.randint(2**62, ())) if dropout else 0,
    )
    with torch.autocast("cpu", enabled=False):
        output: Any = StreamedLocalAttention.apply(query, key, value, padding_mask, band)
    return output
