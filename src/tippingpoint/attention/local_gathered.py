"""Local attention by one fused call over gathered blocks: for GPUs without a compiler, many cores, half precision.

    keys     |--w--|== block ==|--w--|        each block of queries sees its own keys and `window` on each
    queries        |== block ==|              side; a mask cuts the corners to the exact band

Blocks are gathered as one strided view of the padded keys, so time and memory are linear in the length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Queries per block. A block of B queries reads B + 2 * window keys, so a small B wastes little arithmetic and
# a large one makes longer matrix products; 32 to 128 were within 20 % of one another on the CPUs tried.
_BLOCK = 64


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
    batch, heads, length, head_dim = query.shape
    block = _BLOCK
    ahead = 0 if causal else window
    blocks = -(-length // block)
    span = block + window + ahead
    extra = blocks * block - length

    # [batch * heads, blocks, rows, head_dim]: the blocks take the place of heads in the fused call.
    queries = F.pad(query, (0, 0, 0, extra)).reshape(batch * heads, blocks, block, head_dim)
    keys = _overlapping(key, window, ahead + extra, block, span)
    values = _overlapping(value, window, ahead + extra, block, span)

    device = query.device
    row = torch.arange(blocks * block, device=device).view(blocks, block, 1)
    column = torch.arange(blocks, device=device).view(blocks, 1, 1) * block - window
    column = column + torch.arange(span, device=device)
    # [blocks, block, span]; global columns are attached once, below, and not a second time inside the band
    allowed = (row - column <= window) & (column - row <= ahead) & (column >= num_global) & (column < length)
    own = (row == column) & (column >= num_global)
    if num_global:
        shared = (batch * heads, blocks, num_global)
        keys = torch.cat([_for_every_block(key[:, :, :num_global], shared), keys], dim=2)
        values = torch.cat([_for_every_block(value[:, :, :num_global], shared), values], dim=2)
        first = torch.arange(num_global, device=device)
        earlier = (first <= row) | (not causal)
        allowed = torch.cat([earlier, allowed], dim=-1)
        own = torch.cat([(first == row).expand(blocks, -1, -1), own], dim=-1)
    if padding_mask is None:
        mask = (allowed | own)[None]
    else:
        real = F.pad(padding_mask, (window, ahead + extra)).unfold(1, span, block)[:, :, None, :]
        if num_global:
            real_globals = padding_mask[:, None, None, :num_global].expand(-1, blocks, -1, -1)
            real = torch.cat([real_globals, real], dim=-1)
        mask = (allowed & real) | own
        mask = mask.repeat_interleave(heads, dim=0)
    output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale, dropout_p=dropout)
    return output.reshape(batch, heads, blocks * block, value.shape[-1])[:, :, :length]


def _overlapping(tensor: Tensor, before: int, behind: int, block: int, span: int) -> Tensor:
    """View [batch, heads, length, head_dim] as overlapping blocks, [batch * heads, blocks, span, head_dim]."""
    padded = F.pad(tensor, (0, 0, before, behind))
    return padded.flatten(0, 1).unfold(1, span, block).transpose(-1, -2)


def _for_every_block(tensor: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Repeat the global positions for every block, [batch * heads, blocks, num_global, head_dim]."""
    rows, blocks, num_global = shape
    return tensor.reshape(rows, 1, num_global, -1).expand(-1, blocks, -1, -1)
