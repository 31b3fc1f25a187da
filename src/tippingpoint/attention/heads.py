"""Attention of some heads only (head pruning; Michel et al., arXiv:1905.10650).

Per kept head: 4 n^2 d multiplications and additions, as in full attention; fused, memory grows with n d. What
the projections of pruned heads would save is not this function's to save.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tippingpoint.attention.validation import attendable, check_attention_inputs
from tippingpoint.errors import InputError


def kept_heads_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    keep: float,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Let only the first heads attend, exactly; the output of the others is zero.

    Tensors are [batch, heads, length, head_dim]; time is O(kept heads * length^2).

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, value_dim].
        keep: Share of the heads that attend, above 0 and at most 1 (full attention): the first
            max(1, round(keep * heads)).
        padding_mask: bool [batch, length], True for real tokens. Rows of padding positions are finite but mean
            nothing.
        scale: Of the scores; 1/sqrt(head_dim) by default.
        dropout: Probability of dropping an attention weight; as in training.

    Returns:
        Attended values, [batch, heads, length, value_dim], in the query's dtype.

    Raises:
        InputError: If keep is not in (0, 1], or shapes disagree.

    Reference: arXiv:1905.10650, section 2.3. The paper prunes the heads that matter least to a trained model;
    which these are does not change what it costs, and a model whose heads are sorted so gets the paper's output.
    """
    check_attention_inputs(query, key, value, padding_mask)
    heads = query.shape[1]
    kept = num_kept(heads, keep)
    mask = None if padding_mask is None else attendable(padding_mask)[:, None, None, :]
    output = F.scaled_dot_product_attention(
        query[:, :kept], key[:, :kept], value[:, :kept], attn_mask=mask, scale=scale, dropout_p=dropout
    )
    return output if kept == heads else F.pad(output, (0, 0, 0, 0, 0, heads - kept))


def num_kept(heads: int, keep: float) -> int:
    """Return how many of the heads attend.

    Raises:
        InputError: If keep is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise InputError(f"keep must be above 0 and at most 1 (every head), got {keep}")
    return max(1, round(keep * heads))
