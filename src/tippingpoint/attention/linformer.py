"""Linformer attention: keys and values projected along the sequence (arXiv:2006.04768).

    softmax(Q (E K)^T) (F V)        E, F: learned, [rank, length]

Per head: 4 n rank d multiplications and additions for the projections and 4 n rank d for the attention; fused,
memory grows with n d.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tippingpoint.attention.validation import check_attention_inputs
from tippingpoint.errors import InputError
from tippingpoint.stages import stage


def linformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_projection: Tensor,
    value_projection: Tensor,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend to `rank` learned mixtures of the keys and values.

    Tensors are [batch, heads, length, head_dim]; time and memory are O(length * rank).

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, value_dim].
        key_projection: [rank, max_length]; its first `length` columns are used, by every head.
        value_projection: [rank, max_length]; likewise.
        padding_mask: bool [batch, length], True for real tokens; keys and values of the others count as zero.
            Mixtures belong to positions, so a sequence means the same only where it begins at the same position.
        scale: Of the scores; 1/sqrt(head_dim) by default.
        dropout: Probability of dropping an attention weight; as in training.

    Returns:
        Attended values, [batch, heads, length, value_dim], in the query's dtype.

    Raises:
        InputError: If the input is longer than max_length, or shapes disagree.

    Reference: Linformer, arXiv:2006.04768, equation 7, with projections that heads share (headwise sharing).
    """
    check_attention_inputs(query, key, value, padding_mask)
    length = key.shape[2]
    if key_projection.ndim != 2 or key_projection.shape != value_projection.shape:
        raise InputError(
            "key_projection and value_projection must both be [rank, max_length], got shapes "
            f"{tuple(key_projection.shape)} and {tuple(value_projection.shape)}"
        )
    if length > key_projection.shape[1]:
        raise InputError(
            f"linformer was built for at most {key_projection.shape[1]} positions, got {length}: its projections are "
            "learned for each position and cannot grow; shorten the input or build it with a larger max_length"
        )
    with stage("projection along the sequence"):
        keys = _mixtures(key, key_projection, padding_mask)
        values = _mixtures(value, value_projection, padding_mask)
    return F.scaled_dot_product_attention(query, keys, values, scale=scale, dropout_p=dropout)


def _mixtures(tensor: Tensor, projection: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Project [batch, heads, length, dim] along the sequence to [batch, heads, rank, dim]."""
    batch, heads, length, dim = tensor.shape
    weights = projection[:, :length].to(tensor.dtype)
    if padding_mask is not None:
        # Fewer numbers than the keys have, and the same products.
        weights = weights * padding_mask[:, None]
    # All heads side by side, as models hold them: one product for each sequence, and nothing is copied there.
    rows = tensor.transpose(1, 2).reshape(batch, length, heads * dim)
    return torch.matmul(weights, rows).unflatten(2, (heads, dim)).transpose(1, 2)


class LinformerAttention(nn.Module):
    """Linformer attention with its learned projections.

    Both are initialised as in the paper's code: uniform after Xavier with gain 1/sqrt(2), so of variance
    1 / (rank + max_length), which keeps projected keys of rank << length about as large as the keys.

    Args:
        rank: Keys that remain of any length.
        max_length: Longest input.

    Raises:
        InputError: If rank or max_length is less than 1, or rank > max_length.
    """

    def __init__(self, *, rank: int, max_length: int) -> None:
        super().__init__()
        if not 1 <= rank <= max_length:
            raise InputError(f"rank must be between 1 and max_length {max_length}, got {rank}")
        self.key_projection = nn.Parameter(torch.empty(rank, max_length))
        self.value_projection = nn.Parameter(torch.empty(rank, max_length))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new projections."""
        for projection in (self.key_projection, self.value_projection):
            nn.init.xavier_uniform_(projection, gain=1 / math.sqrt(2))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        padding_mask: Tensor | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """Attend; arguments as for `linformer_attention`."""
        return linformer_attention(
            query,
            key,
            value,
            key_projection=self.key_projection,
            value_projection=self.value_projection,
            padding_mask=padding_mask,
            scale=scale,
            dropout=dropout,
        )

    def extra_repr(self) -> str:
        """Return what `repr` shows between the brackets."""
        rank, max_length = self.key_projection.shape
        return f"rank={rank}, max_length={max_length}"
