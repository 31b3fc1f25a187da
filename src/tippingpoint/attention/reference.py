"""Dense masked oracle of every variant: readable, quadratic, and the definition the fast ones are tested against.

Each oracle takes the same arguments as the fast function of its name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tippingpoint.attention.linear import random_features
from tippingpoint.attention.validation import attendable, check_attention_inputs
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


def full_attention(
    query: Tensor, key: Tensor, value: Tensor, *, padding_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attend to every real position; arguments as `tippingpoint.attention.full.fused_attention`."""
    check_attention_inputs(query, key, value, padding_mask)
    length = query.shape[2]
    real = torch.ones(1, length, dtype=torch.bool, device=query.device) if padding_mask is None else padding_mask
    return masked_attention(query, key, value, attendable(real)[:, None, None, :], scale=scale)


def local_mask(
    length: int, window: int, num_global: int, padding_mask: Tensor | None, causal: bool = False
) -> Tensor:
    """Return where local attention may look, bool [batch or 1, 1, length, length].

    Position i sees j if |i - j| <= window, or if either is one of the first `num_global` positions, and j is
    real, and with `causal` no later than i. Every position sees itself, so that padding rows, whose values mean
    nothing, stay finite.
    """
    device = None if padding_mask is None else padding_mask.device
    position = torch.arange(length, device=device)
    row, column = position[:, None], position[None, :]
    allowed = ((row - column).abs() <= window) | (row < num_global) | (column < num_global)
    if causal:
        allowed = allowed & (column <= row)
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
    causal: bool = False,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Define local attention (Longformer, arXiv:2004.05150, section 3) by its dense mask."""
    check_attention_inputs(query, key, value, padding_mask)
    if window < 1 or not 0 <= num_global <= query.shape[2]:
        raise InputError(f"illegal window {window} or num_global {num_global} for length {query.shape[2]}")
    allowed = local_mask(query.shape[2], window, num_global, padding_mask, causal).to(query.device)
    return masked_attention(query, key, value, allowed, scale=scale)


def _of_each_sequence(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding_mask: Tensor | None,
    precise: torch.dtype,
) -> Tensor:
    """Apply `attend` to the real tokens of each sequence, [heads, real tokens, dim]; padding gets zeros."""
    outputs = []
    for sample in range(query.shape[0]):
        inputs = [tensor[sample].to(precise) for tensor in (query, key, value)]
        output = torch.zeros_like(inputs[2])
        real = torch.ones(query.shape[2], dtype=torch.bool) if padding_mask is None else padding_mask[sample]
        positions = real.nonzero().flatten().to(query.device)
        if len(positions):
            attended = attend(*(tensor[:, positions] for tensor in inputs))
            output = output.index_copy(1, positions, attended)
        outputs.append(output)
    return torch.stack(outputs).to(query.dtype)


def nystrom_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    landmarks: int,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Define Nystrom attention (Nystromformer, arXiv:2102.03902): three softmaxes, the middle one inverted."""
    check_attention_inputs(query, key, value, padding_mask)
    if landmarks < 1:
        raise InputError(f"landmarks must be at least 1, got {landmarks}")
    factor = query.shape[-1] ** -0.5 if scale is None else scale

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        count = query.shape[1]
        if count <= landmarks:
            return (query @ key.mT * factor).softmax(dim=-1) @ value
        members = _segment_members(count, landmarks).to(query)
        query_marks, key_marks = (members @ tensor / members.sum(dim=1, keepdim=True) for tensor in (query, key))
        first = (query @ key_marks.mT * factor).softmax(dim=-1)
        middle = (query_marks @ key_marks.mT * factor).softmax(dim=-1)
        last = (query_marks @ key.mT * factor).softmax(dim=-1)
        return first @ iterative_inverse(middle) @ last @ value

    return _of_each_sequence(attend, query, key, value, padding_mask, _precise(query))


def _segment_members(count: int, landmarks: int) -> Tensor:
    """Return which of `count` tokens are in each segment: token r in segment r * landmarks // count."""
    segment = torch.arange(count) * landmarks // count
    return segment[None, :] == torch.arange(landmarks)[:, None]


def iterative_inverse(matrix: Tensor, steps: int = 6) -> Tensor:
    """Approximate the pseudo-inverse of each matrix of a stack (arXiv:2102.03902, equation 11)."""
    identity = torch.eye(matrix.shape[-1]).to(matrix)
    norms = torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(matrix, float("inf"))
    inverse = matrix.mT / norms[..., None, None]
    for _ in range(steps):
        product = matrix @ inverse
        inverse = inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product))) / 4
    return inverse


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    feature_map: str = "favor",
    num_features: int = 256,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Define linear attention by its weights, phi(q) phi(k) over their sum, in float64.

    FAVOR+ (Performer, arXiv:2009.14794) has phi_f(x) = exp(w_f x - |x|^2 / 2) of x * sqrt(scale); elu
    (arXiv:2006.16236) has phi(x) = elu(x) + 1.
    """
    check_attention_inputs(query, key, value, padding_mask)
    if feature_map not in ("favor", "elu") or num_features < 1:
        raise InputError(f"illegal feature_map {feature_map!r} or num_features {num_features}")
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    features = random_features(num_features, query.shape[-1], query.dtype, query.device).double()

    def phi(tensor: Tensor) -> Tensor:
        if feature_map == "elu":
            return torch.where(tensor > 0, tensor + 1, tensor.clamp(max=0).exp())
        scaled = tensor * factor**0.5
        return (scaled @ features.T - scaled.square().sum(dim=-1, keepdim=True) / 2).exp()

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = phi(query) @ phi(key).mT
        return weights / weights.sum(dim=-1, keepdim=True) @ value

    return _of_each_sequence(attend, query, key, value, padding_mask, torch.float64)


def linformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_projection: Tensor,
    value_projection: Tensor,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Define Linformer attention (arXiv:2006.04768, equation 7); padding counts as zero."""
    check_attention_inputs(query, key, value, padding_mask)
    precise, length = _precise(query), query.shape[2]
    if length > key_projection.shape[1]:
        raise InputError(f"at most {key_projection.shape[1]} positions, got {length}")
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if padding_mask is not None:
        key, value = (tensor.masked_fill(~padding_mask[:, None, :, None], 0) for tensor in (key, value))
    # The projections are used in the inputs' precision.
    keys = key_projection[:, :length].to(query.dtype).to(precise) @ key.to(precise)
    values = value_projection[:, :length].to(query.dtype).to(precise) @ value.to(precise)
    return ((query.to(precise) @ keys.mT * factor).softmax(dim=-1) @ values).to(query.dtype)


def pooled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    ratio: int,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Define pooled attention: `ratio` consecutive keys and values are one, the mean of the real ones."""
    check_attention_inputs(query, key, value, padding_mask)
    if ratio < 1:
        raise InputError(f"ratio must be at least 1, got {ratio}")
    precise, length = _precise(query), query.shape[2]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    pool = torch.arange(length, device=query.device) // ratio
    members = pool[None, :] == torch.arange(int(pool[-1]) + 1, device=query.device)[:, None]
    real = torch.ones_like(members[:1]) if padding_mask is None else padding_mask
    members = (members & real[:, None])[:, None]
    mean = members.to(precise) / members.sum(dim=-1, keepdim=True).clamp(min=1)
    # A sequence without a real token may look anywhere: its rows mean nothing.
    allowed = members.any(dim=-1) | ~members.flatten(2).any(dim=-1, keepdim=True)
    scores = query.to(precise) @ (mean @ key.to(precise)).mT * factor
    weights = scores.masked_fill(~allowed[:, :, None], float("-inf")).softmax(dim=-1)
    return (weights @ (mean @ value.to(precise))).to(query.dtype)


def kept_heads_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    keep: float,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Define head pruning (arXiv:1905.10650): full attention, times 1 for the first heads and 0 for the others."""
    check_attention_inputs(query, key, value, padding_mask)
    heads = query.shape[1]
    if not 0 < keep <= 1:
        raise InputError(f"keep must be above 0 and at most 1, got {keep}")
    own = torch.eye(query.shape[2], dtype=torch.bool, device=query.device)
    allowed = torch.ones_like(own) if padding_mask is None else padding_mask[:, None, None, :] | own
    gate = torch.arange(heads, device=query.device) < max(1, round(keep * heads))
    return masked_attention(query, key, value, allowed, scale=scale) * gate[:, None, None]


def _precise(tensor: Tensor) -> torch.dtype:
    """Return float32, or better if the tensor is."""
    return torch.promote_types(tensor.dtype, torch.float32)
