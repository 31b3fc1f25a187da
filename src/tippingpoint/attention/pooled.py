"""Attention to pooled keys and values (PVT, arXiv:2102.12122; Funnel-Transformer, arXiv:2006.03236).

Keys and values are averaged over `ratio` consecutive positions; every query looks at every average. Per head:
4 n ceil(n / ratio) d multiplications and additions, so still quadratic, `ratio` times cheaper; fused, memory
grows with n d.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tippingpoint.attention.validation import attendable, check_attention_inputs
from tippingpoint.errors import InputError
from tippingpoint.stages import stage


def pooled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    ratio: int,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend to averages of `ratio` consecutive keys and values; a ratio of 1 is full attention.

    Tensors are [batch, heads, length, head_dim]; time is O(length^2 / ratio).

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, value_dim].
        ratio: Positions to a pool: pool j holds positions j * ratio to (j + 1) * ratio - 1, the last one what is
            left.
        padding_mask: bool [batch, length], True for real tokens. A pool is the mean over its real positions; one
            without any gets no weight. Rows of padding positions are finite but mean nothing.
        scale: Of the scores; 1/sqrt(head_dim) by default.
        dropout: Probability of dropping an attention weight; as in training.

    Returns:
        Attended values, [batch, heads, length, value_dim], in the query's dtype.

    Raises:
        InputError: If ratio < 1, or shapes disagree.

    Reference: spatial-reduction attention of PVT, arXiv:2102.12122, section 3.3, with a mean where it has a
    learned projection, as in Funnel-Transformer, arXiv:2006.03236, section 2.2. Queries are not pooled.
    """
    check_attention_inputs(query, key, value, padding_mask)
    if ratio < 1:
        raise InputError(f"ratio must be at least 1, got {ratio}; 1 is full attention")
    length = key.shape[2]
    seen = None if padding_mask is None else attendable(padding_mask)
    if ratio > 1:
        with stage("pooling"):
            if seen is None and length % ratio:
                whole = length - length % ratio
                key, value = (_means_and_rest(tensor, whole, ratio) for tensor in (key, value))
            elif seen is None:
                key, value = (_means(tensor, ratio) for tensor in (key, value))
            else:
                members = F.pad(seen, (0, -length % ratio)).unflatten(1, (-1, ratio))
                key, value = (_masked_means(tensor, members) for tensor in (key, value))
                seen = members.any(dim=2)
    mask = None if seen is None else seen[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, dropout_p=dropout)


def _means(tensor: Tensor, ratio: int) -> Tensor:
    return tensor.unflatten(2, (-1, ratio)).mean(dim=3)


def _means_and_rest(tensor: Tensor, whole: int, ratio: int) -> Tensor:
    rest = tensor[:, :, whole:].mean(dim=2, keepdim=True)
    return rest if whole == 0 else torch.cat([_means(tensor[:, :, :whole], ratio), rest], dim=2)


def _masked_means(tensor: Tensor, members: Tensor) -> Tensor:
    """Average over the real ones of each pool; `members` is bool [batch, pools, ratio]."""
    pools, ratio = members.shape[1:]
    padded = F.pad(tensor, (0, 0, 0, pools * ratio - tensor.shape[2])).unflatten(2, (pools, ratio))
    kept = padded.masked_fill(~members[:, None, :, :, None], 0)
    count = members.sum(dim=2).clamp(min=1)[:, None, :, None]
    # Sums in half precision would lose what the mean keeps.
    precise = torch.promote_types(tensor.dtype, torch.float32)
    return (kept.sum(dim=3, dtype=precise) / count).to(tensor.dtype)
