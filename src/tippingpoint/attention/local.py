"""Sliding-window attention with optional global positions (Longformer, arXiv:2004.05150).

    keys     |--w--|== block ==|--w--|        each block of queries sees its own keys and `window` on each
    queries        |== block ==|              side; a mask cuts the corners to the exact band

Blocks are gathered as one strided view of the padded keys, and one fused attention call does them all, so
time and memory are linear in the length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tippingpoint.attention.validation import check_attention_inputs
from tippingpoint.errors import InputError

# Queries per block. A block of B queries reads B + 2 * window keys, so a small B wastes little arithmetic and
# a large one makes longer matrix products; 32 to 128 were within 20 % of one another on the CPUs tried.
_BLOCK = 64


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int,
    num_global: int = 0,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend to keys at most `window` positions away, exactly.

    Tensors are [batch, heads, length, head_dim]; time and memory are O(length * window).

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, head_dim].
        window: One-sided radius in positions; position i sees j with |i - j| <= window (Longformer's
            `attention_window=512` is `window=256`).
        num_global: Leading positions that see, and are seen by, every position.
        padding_mask: bool [batch, length], True for real tokens. Rows of padding positions are finite but
            mean nothing.
        scale: Of the scores; 1/sqrt(head_dim) by default.
        dropout: Probability of dropping an attention weight; as in training.

    Returns:
        Attended values, [batch, heads, length, head_dim], in the query's dtype.

    Raises:
        InputError: If window < 1, num_global is not in 0..length, or shapes disagree.

    Reference: Longformer, arXiv:2004.05150, section 3. Unlike the paper, global positions share the query,
    key and value projections.
    """
    check_attention_inputs(query, key, value, padding_mask)
    length = query.shape[2]
    if window < 1:
        raise InputError(f"window must be at least 1, got {window}")
    if not 0 <= num_global <= length:
        raise InputError(f"num_global must be between 0 and the length {length}, got {num_global}")

    options = {"scale": scale, "dropout_p": dropout}
    block = _BLOCK
    if length <= block + 2 * window:
        # One block would see every key: the dense band costs the same and needs no gathering.
        mask = None
        if padding_mask is not None or length > window + 1:
            mask = _dense_mask(length, window, num_global, padding_mask, query.device)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)

    output = _blockwise(query, key, value, window, block, num_global, padding_mask, options)
    if num_global:
        everywhere = None if padding_mask is None else _rows_of_globals(padding_mask, num_global)
        rows = F.scaled_dot_product_attention(query[:, :, :num_global], key, value, attn_mask=everywhere, **options)
        output = torch.cat([rows, output[:, :, num_global:]], dim=2)
    return output


def _dense_mask(
    length: int, window: int, num_global: int, padding_mask: Tensor | None, device: torch.device
) -> Tensor:
    position = torch.arange(length, device=device)
    row, column = position[:, None], position[None, :]
    allowed = ((row - column).abs() <= window) | (row < num_global) | (column < num_global)
    if padding_mask is None:
        return allowed
    return (allowed & padding_mask[:, None, None, :]) | (row == column)


def _rows_of_globals(padding_mask: Tensor, num_global: int) -> Tensor:
    """Where global rows may look, [batch, 1, num_global, length]: every real position, and themselves."""
    position = torch.arange(padding_mask.shape[1], device=padding_mask.device)
    return padding_mask[:, None, None, :] | (position[:num_global, None] == position[None, :])


def _blockwise(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    block: int,
    num_global: int,
    padding_mask: Tensor | None,
    options: dict,
) -> Tensor:
    batch, heads, length, head_dim = query.shape
    blocks = -(-length // block)
    span = block + 2 * window
    extra = blocks * block - length

    # [batch * heads, blocks, rows, head_dim]: the blocks take the place of heads in the fused call.
    queries = F.pad(query, (0, 0, 0, extra)).reshape(batch * heads, blocks, block, head_dim)
    keys = _overlapping(key, window, extra, block, span)
    values = _overlapping(value, window, extra, block, span)

    device = query.device
    row = torch.arange(blocks * block, device=device).view(blocks, block, 1)
    column = torch.arange(blocks, device=device).view(blocks, 1, 1) * block - window
    column = column + torch.arange(span, device=device)
    # [blocks, block, span]; global columns are attached once, below, and not a second time inside the band
    allowed = ((row - column).abs() <= window) & (column >= num_global) & (column < length)
    own = row == column
    if num_global:
        shared = (batch * heads, blocks, num_global)
        keys = torch.cat([_for_every_block(key[:, :, :num_global], shared), keys], dim=2)
        values = torch.cat([_for_every_block(value[:, :, :num_global], shared), values], dim=2)
        allowed = F.pad(allowed, (num_global, 0), value=True)
        own = F.pad(own, (num_global, 0))
    if padding_mask is None:
        mask = (allowed | own)[None]
    else:
        real = F.pad(padding_mask, (window, window + extra)).unfold(1, span, block)[:, :, None, :]
        if num_global:
            real_globals = padding_mask[:, None, None, :num_global].expand(-1, blocks, -1, -1)
            real = torch.cat([real_globals, real], dim=-1)
        mask = (allowed & real) | own
        mask = mask.repeat_interleave(heads, dim=0)
    output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, **options)
    return output.reshape(batch, heads, blocks * block, value.shape[-1])[:, :, :length]


def _overlapping(tensor: Tensor, window: int, extra: int, block: int, span: int) -> Tensor:
    """View [batch, heads, length, head_dim] as overlapping blocks, [batch * heads, blocks, span, head_dim]."""
    padded = F.pad(tensor, (0, 0, window, window + extra))
    return padded.flatten(0, 1).unfold(1, span, block).transpose(-1, -2)


def _for_every_block(tensor: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Repeat the global positions for every block, [batch * heads, blocks, num_global, head_dim]."""
    rows, blocks, num_global = shape
    return tensor.reshape(rows, 1, num_global, -1).expand(-1, blocks, -1, -1)
