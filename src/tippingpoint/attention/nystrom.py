"""Nystrom attention through landmarks (Nystromformer, arXiv:2102.03902).

    softmax(Q K^T) V  ~  softmax(Q K~^T)  pinv(softmax(Q~ K~^T))  softmax(Q~ K^T) V
       [n, n]  [n, d]       [n, m]               [m, m]              [m, n]  [n, d]

Q~ and K~ are the landmarks: means of m segments of consecutive real tokens. Read from the right, everything but
the pseudo-inverse is two fused attentions (landmarks look at all keys; queries look at landmarks), so that no
[n, m] matrix is ever written. Per head: 8 n m d multiplications and additions for the outer products, and
4 m^2 d + 48 m^3 for what is between them. Memory grows with n d.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tippingpoint.attention.validation import attendable, check_attention_inputs
from tippingpoint.errors import InputError
from tippingpoint.stages import stage

# As in the paper: enough for the pseudo-inverse of the kernels that it met.
PINV_STEPS = 6


def nystrom_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    landmarks: int,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Approximate full attention through landmarks; exact for sequences of no more real tokens than landmarks.

    Tensors are [batch, heads, length, head_dim]; time and memory are O(length * landmarks).

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, value_dim].
        landmarks: Segments of every sequence: the real token of rank r of n is in segment r * landmarks // n.
        padding_mask: bool [batch, length], True for real tokens, in any pattern. Rows of padding positions are
            finite but mean nothing.
        scale: Of the scores; 1/sqrt(head_dim) by default.
        dropout: Probability of dropping the weight that a query gives to a landmark; as in training.

    Returns:
        Attended values, [batch, heads, length, value_dim], in the query's dtype.

    Raises:
        InputError: If landmarks < 1, or shapes disagree.

    Reference: Nystromformer, arXiv:2102.03902, equations 11 and 14. There is no learned convolution over the
    values, which the paper adds to the output. The paper's code starts the pseudo-inverse from a maximum over the
    whole batch; here it is each head's own, so that sequences do not depend on their neighbours in the batch.
    """
    check_attention_inputs(query, key, value, padding_mask)
    if landmarks < 1:
        raise InputError(f"landmarks must be at least 1, got {landmarks}; the paper uses 64")
    real = None if padding_mask is None else attendable(padding_mask)
    seen = None if real is None else real[:, None, None, :]
    length = query.shape[2]
    if length <= landmarks:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale, dropout_p=dropout)

    with stage("landmarks"):
        if real is None and length % landmarks == 0:
            segments = None
            query_marks, key_marks = (tensor.unflatten(2, (landmarks, -1)).mean(dim=3) for tensor in (query, key))
        else:
            segments = _segments(real, length, landmarks, query.device)
            query_marks, key_marks = segments.means(query), segments.means(key)

    summary = F.scaled_dot_product_attention(query_marks, key, value, attn_mask=seen, scale=scale)
    with stage("pseudo-inverse"):
        values = _inverted(query_marks, key_marks, summary, scale)
    used = None
    if segments is not None and real is not None:
        # Each token of a short sequence has a segment of its own: looking at those is attending exactly.
        with stage("landmarks"):
            values = torch.where(segments.short, segments.means(value), values)
        used = segments.used
    return F.scaled_dot_product_attention(query, key_marks, values, attn_mask=used, scale=scale, dropout_p=dropout)


def _inverted(query_marks: Tensor, key_marks: Tensor, summary: Tensor, scale: float | None) -> Tensor:
    """Multiply what the landmarks saw by the pseudo-inverse of their kernel, in float32 or better."""
    precise = torch.promote_types(summary.dtype, torch.float32)
    factor = query_marks.shape[-1] ** -0.5 if scale is None else scale
    # Automatic mixed precision would run these products in half: the inverse multiplies their rounding.
    with torch.autocast(summary.device.type, enabled=False):
        queries, keys, values = (tensor.flatten(0, 1).to(precise) for tensor in (query_marks, key_marks, summary))
        kernel = torch.bmm(queries * factor, keys.mT).softmax(dim=-1)
        inverted = torch.bmm(_pseudo_inverse(kernel), values)
    return inverted.view_as(summary).to(summary.dtype)


def _pseudo_inverse(kernel: Tensor) -> Tensor:
    """Approximate the pseudo-inverse of row-stochastic matrices, [rows, m, m] (equation 11).

    Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4, with each bracket multiplied out so that a step is four
    fused products and nothing else.
    """
    # Each row sums to 1, so this is A^T / (|A|_1 |A|_inf), from which the iteration converges.
    inverse = kernel.mT / kernel.sum(dim=-2).amax(dim=-1)[:, None, None]
    for _ in range(PINV_STEPS):
        product = torch.bmm(kernel, inverse)
        bracket = torch.baddbmm(product, product, product, beta=7, alpha=-1)
        bracket = torch.baddbmm(product, product, bracket, beta=15, alpha=-1)
        inverse = torch.baddbmm(inverse, inverse, bracket, beta=13 / 4, alpha=-1 / 4)
    return inverse


class _Segments(NamedTuple):
    """Which positions make up each landmark.

    Attributes:
        positions: [batch or 1, landmarks, longest segment].
        share: What each counts for in the mean: 1 / size of the segment, or 0; same shape.
        short: Sequences of no more real tokens than landmarks, bool [batch or 1, 1, 1, 1].
        used: Segments that hold a token, bool [batch or 1, 1, 1, landmarks].
    """

    positions: Tensor
    share: Tensor
    short: Tensor
    used: Tensor

    def means(self, tensor: Tensor) -> Tensor:
        """Average [batch, heads, length, dim] to [batch, heads, landmarks, dim]."""
        batch, heads, length, dim = tensor.shape
        _, landmarks, longest = self.positions.shape
        # Rows of all heads side by side, as models hold them: a view there, and one copy of rows below.
        rows = tensor.transpose(1, 2).reshape(batch * length, heads * dim)
        start = length * torch.arange(batch, device=tensor.device)[:, None, None]
        members = rows.index_select(0, (start + self.positions).flatten())
        share = self.share.to(tensor.dtype).expand(batch, -1, -1).reshape(batch * landmarks, 1, longest)
        means = torch.bmm(share, members.view(batch * landmarks, longest, heads * dim))
        return means.view(batch, landmarks, heads, dim).transpose(1, 2)


def _segments(real: Tensor | None, length: int, landmarks: int, device: torch.device) -> _Segments:
    if real is None:
        count = torch.full((1, 1), length, device=device)
        position_of_rank = torch.arange(length, device=device)[None]
    else:
        count = real.sum(dim=1, keepdim=True)
        position_of_rank = torch.argsort(real.logical_not(), dim=1, stable=True)
    # r * landmarks // n == j exactly for the ranks from ceil(j n / landmarks) to ceil((j + 1) n / landmarks) - 1.
    edge = (count * torch.arange(landmarks + 1, device=device) + landmarks - 1) // landmarks
    rank = edge[:, :-1, None] + torch.arange(-(-length // landmarks), device=device)
    inside = rank < edge[:, 1:, None]
    # What lies outside counts for nothing, and is taken from a real token: padding may hold anything.
    positions = position_of_rank.gather(1, torch.where(inside, rank, 0).flatten(1)).view_as(rank)
    size = edge.diff(dim=1)
    return _Segments(
        positions=positions,
        share=inside.double() / size.clamp(min=1)[..., None],
        short=(count <= landmarks)[:, :, None, None],
        used=(size > 0)[:, None, None, :],
    )
