"""Dense masked oracle of every variant: readable, quadratic, and the definition the fast ones are tested against.

Each oracle takes the same arguments as the fast function of its name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tippingpoint.attention.validation import check_attention_inputs
from tippingpoint.errors import InputError


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, *, scale: float | None = None
) -> Tensor:
    """Attend where `allowed` is True, in float32 or better.

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, head_dim].
        allowed: bool, broadcastable to [batch, heads, length, length]; every row must allow something.
        scale: Of the scores; 1/sqrt(head_dim) by default.

    Returns:
        [batch, heads, length, head_dim] in the query's dtype.
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query.to(precise) @ key.to(precise).transpose(-1, -2) * factor
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    return (weights @ value.to(precise)).to(query.dtype)


def local_mask(length: int, window: int, num_global: int, padding_mask: Tensor | None) -> Tensor:
    """Return where local attention may look, bool [batch or 1, 1, length, length].

    Position i sees j if |i - j| <= window, or if either is one of the first `num_global` positions, and j is
    real. Every position sees itself, so that padding rows, whose values mean nothing, stay finite.
    """
    device = None if padding_mask is None else padding_mask.device
    position = torch.arange(length, device=device)
    row, column = position[:, None], position[None, :]
    allowed = ((row - column).abs() <= window) | (row < num_global) | (column < num_global)
    allowed = allowed[None, None]
    if padding_mask is not None:
        allowed = allowed & padding_mask[:, None, None, :]
    return allowed | (row == column)


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int,
    num_global: int = 0,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Define local attention (Longformer, arXiv:2004.05150, section 3) by its dense mask."""
    check_attention_inputs(query, key, value, padding_mask)
    if window < 1 or not 0 <= num_global <= query.shape[2]:
        raise InputError(f"illegal window {window} or num_global {num_global} for length {query.shape[2]}")
    allowed = local_mask(query.shape[2], window, num_global, padding_mask).to(query.device)
    return masked_attention(query, key, value, allowed, scale=scale)
