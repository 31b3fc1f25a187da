"""Attention to the first positions alone."""

import torch
from torch.nn import functional as F

from tippingpoint.models.architecture import AttentionVariant, Option


def prefix_attention(query, key, value, *, size, padding_mask=None, scale=None, dropout=0.0):
    """Attend to `size` positions; tensors are [batch, heads, length, head_dim], padding_mask is True where real."""
    seen = None if padding_mask is None else padding_mask[:, None, None, :size]
    return F.scaled_dot_product_attention(query, key[:, :, :size], value[:, :, :size], seen, dropout, scale=scale)


def oracle(query, key, value, *, size, padding_mask=None, scale=None):
    """Do the same with all scores: slow, and easy to believe."""
    seen = torch.arange(key.shape[2], device=key.device) < size
    seen = seen if padding_mask is None else seen & padding_mask[:, None, None]
    scores = query @ key.mT * (scale or query.shape[-1] ** -0.5)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num() @ value


PREFIX = AttentionVariant(
    name="prefix",
    title="the first positions alone",
    exact=True,
    paper="none",
    options={"size": Option(kind=int, minimum=1, default=64, meaning="positions that all others see")},
    function="prefix_attention:prefix_attention",
    oracle="prefix_attention:oracle",
    pairs=lambda length, *, size: length * min(length, size),
)
