"""Local attention by one fused call over gathered blocks: for GPUs without a compiler, many cores, half precision.

    keys     |--w--|== block ==|--w--|        each block of queries sees its own keys and `window` on each
    queries        |== block ==|              side; a mask cuts the corners to the exact band

Blocks are gathered as one strided view of the padded keys, so time and memory are linear in the length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tippingpoint.stages import stage

# Queries per block. A block of B queries reads B + 2 * window keys, so a small B wastes little arithmetic and
# a large one makes longer matrix products; 32 to 128 were within 20 % of one another on the CPUs tried.
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Block:
    """One block of queries, and where its keys stand.

    Attributes:
        number: Of the block.
        queries: Their positions.
        keys: Positions of the keys of its span that there are.
        columns: Where these stand among the global keys and the keys of a whole span.
        num_global: Global keys before them.
    """

    number: int
    queries: slice
    keys: slice
    columns: slice
    num_global: int

    def score(self, query: Tensor, key: Tensor, factor: float, out: Tensor) -> None:
        """Write products of queries and keys, [heads, length, head_dim], into [heads, rows, columns]."""
        rows = query[:, self.queries]
        for columns, keys in ((self.columns, self.keys), (slice(self.num_global), slice(self.num_global))):
            part = out[:, : rows.shape[1], columns]
            if part.shape[-1]:
                torch.baddbmm(part, rows, key[:, keys].transpose(1, 2), beta=0, alpha=factor, out=part)

    def weigh(self, weights: Tensor, value: Tensor, out: Tensor) -> None:
        """Write weighted values, [heads, length, value_dim], of weights [heads, rows, columns]."""
        rows = out[:, self.queries]
        weights = weights[:, : rows.shape[1]]
        torch.baddbmm(rows, weights[..., self.columns], value[:, self.keys], beta=0, out=rows)
        if self.num_global:
            rows.baddbmm_(weights[..., : self.num_global], value[:, : self.num_global])


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a sequence is cut into blocks of queries, and which keys each sees: global ones, then a span.

    Attributes:
        length: Positions.
        window: One-sided radius.
        num_global: Leading positions that every position sees.
        causal: Whether later positions are hidden.
    """

    length: int
    window: int
    num_global: int
    causal: bool

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.length // _BLOCK)

    @property
    def _ahead(self) -> int:
        return 0 if self.causal else self.window

    @property
    def _span(self) -> int:
        return _BLOCK + self.window + self._ahead

    @property
    def _extra(self) -> int:
        return self.count * _BLOCK - self.length

    def queries(self, query: Tensor) -> Tensor:
        """Cut [batch, heads, length, head_dim] into [batch * heads, blocks, rows, head_dim]."""
        padded = F.pad(query, (0, 0, 0, self._extra))
        return padded.reshape(query.shape[0] * query.shape[1], self.count, _BLOCK, query.shape[-1])

    def whole(self, output: Tensor, batch: int) -> Tensor:
        """Put [batch * heads, blocks, rows, value_dim] together again: [batch, heads, length, value_dim]."""
        return output.reshape(batch, -1, self.count * _BLOCK, output.shape[-1])[:, :, : self.length]

    def keys(self, key: Tensor) -> Tensor:
        """Return what each block sees of [batch, heads, length, dim]: [batch * heads, blocks, columns, dim]."""
        spans = _overlapping(key, self.window, self._ahead + self._extra, _BLOCK, self._span)
        if not self.num_global:
            return spans
        shared = (spans.shape[0], self.count, self.num_global)
        return torch.cat([_for_every_block(key[:, :, : self.num_global], shared), spans], dim=2)

    def allowed(self, padding_mask: Tensor | None, device: torch.device) -> Tensor:
        """Return which keys a query of each block sees, bool [batch or 1, 1, blocks, rows, columns]."""
        row = torch.arange(self.count * _BLOCK, device=device, dtype=torch.int32).view(self.count, _BLOCK, 1)
        column = (
            torch.arange(self.count, device=device, dtype=torch.int32).view(self.count, 1, 1) * _BLOCK - self.window
        )
        column = column + torch.arange(self._span, device=device, dtype=torch.int32)
        # Global columns are attached once, below, and not a second time inside the band.
        allowed = (row - column <= self.window) & (column - row <= self._ahead)
        allowed = allowed & (column >= self.num_global) & (column < self.length)
        own = (row == column) & (column >= self.num_global)
        if self.num_global:
            first = torch.arange(self.num_global, device=device)
            earlier = (first <= row) | (not self.causal)
            allowed = torch.cat([earlier, allowed], dim=-1)
            own = torch.cat([(first == row).expand(self.count, -1, -1), own], dim=-1)
        if padding_mask is None:
            return (allowed | own)[None, None]
        real = F.pad(padding_mask, (self.window, self._ahead + self._extra)).unfold(1, self._span, _BLOCK)
        real = real[:, :, None, :]
        if self.num_global:
            real_globals = padding_mask[:, None, None, : self.num_global].expand(-1, self.count, -1, -1)
            real = torch.cat([real_globals, real], dim=-1)
        return ((allowed & real) | own)[:, None]

    def each(self, batch: int) -> Iterator[tuple[int, Block]]:
        """Yield every block of every sequence."""
        for sequence in range(batch):
            for number in range(self.count):
                start = number * _BLOCK
                end = min(start + _BLOCK, self.length)
                before = start - self.window
                first, last = max(0, before), min(before + self._span, self.length)
                columns = slice(self.num_global + first - before, self.num_global + last - before)
                yield sequence, Block(number, slice(start, end), slice(first, last), columns, self.num_global)


def gathered_local_attention(
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
    """Attend locally, all blocks at once; rows of global positions see the band and the global positions only.

    Arguments and result as `tippingpoint.attention.local.local_attention`.
    """
    batch, heads, length, _ = query.shape
    blocks = Blocks(length, window, num_global, causal)
    with stage("mask of blocks"):
        mask = blocks.allowed(padding_mask, query.device)[:, 0]
        if padding_mask is not None:
            mask = mask.repeat_interleave(heads, dim=0)
    with stage("gathering of blocks"):
        queries, keys, values = blocks.queries(query), blocks.keys(key), blocks.keys(value)
    # The blocks take the place of heads in the fused call.
    output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale, dropout_p=dropout)
    with stage("gathering of blocks"):
        return blocks.whole(output, batch)


def _overlapping(tensor: Tensor, before: int, behind: int, block: int, span: int) -> Tensor:
    """View [batch, heads, length, head_dim] as overlapping blocks, [batch * heads, blocks, span, head_dim]."""
    padded = F.pad(tensor, (0, 0, before, behind))
    return padded.flatten(0, 1).unfold(1, span, block).transpose(-1, -2)


def _for_every_block(tensor: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Repeat the global positions for every block, [batch * heads, blocks, num_global, head_dim]."""
    rows, blocks, num_global = shape
    return tensor.reshape(rows, 1, num_global, -1).expand(-1, blocks, -1, -1)
