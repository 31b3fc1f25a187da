"""Full attention, fused and step by step: what the library runs, for layers beside others that run a variant."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend to every position by one fused call.

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, head_dim].
        mask: True where a query may look at a key; bool [batch, length] (padding) or [batch, 1, length, length], or
            what is added to the scores, of that shape.
        scale: Of the scores; 1/sqrt(head_dim) if None.
        dropout: Probability of dropping an attention weight.

    Returns:
        [batch, heads, length, head_dim].
    """
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=_broadcastable(mask), scale=scale, dropout_p=dropout
    )


def eager_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend to every position with the score matrix in memory; arguments as `fused_attention`."""
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    mask = _broadcastable(mask)
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
        )
    # In float32 at least, as the library does.
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    return F.dropout(weights, p=dropout) @ value


def with_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """Return a mask with what else is added to the scores in it.

    Args:
        mask: As `fused_attention` takes it.
        bias: What is added to the scores, broadcastable to [batch, heads, length, length]; or None.
    """
    mask = mask if bias is None else _broadcastable(mask)
    if mask is None or bias is None:
        return bias if mask is None else mask
    return bias.masked_fill(~mask, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


def _broadcastable(mask: Tensor | None) -> Tensor | None:
    return mask[:, None, None, :] if mask is not None and mask.ndim == 2 else mask
