"""Sliding-window attention with optional global positions (Longformer, arXiv:2004.05150), and the way it takes.

One definition and four ways to compute it; which one runs is chosen here, from the device, the dtype and the lengths,
or by the caller, and can be asked for.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from tippingpoint.attention.local_gathered import gathered_local_attention
from tippingpoint.attention.local_streamed import streamed_local_attention
from tippingpoint.attention.validation import check_attention_inputs
from tippingpoint.errors import InputError

WAYS = {
    "band": "full fused attention under a band mask",
    "streamed": "blocks one after the other",
    "gathered": "all blocks in one fused call",
    "flex": "FlexAttention",
}

# With no more than this many positions beyond the window, the arithmetic saved is less than what blocks cost.
_BEYOND = 128
# The streamed way is parallel over the heads of one sequence; more threads than most models have heads starve.
_MANY_THREADS = 12
_STREAMED_DTYPES = (torch.float32, torch.float64)
_FLEX_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    dropout: float = 0.0,
    way: str | None = None,
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
        causal: Whether a position sees itself and earlier ones only.
        padding_mask: bool [batch, length], True for real tokens. Rows of padding positions are finite but
            mean nothing.
        scale: Of the scores; 1/sqrt(head_dim) by default.
        dropout: Probability of dropping an attention weight; as in training.
        way: How to compute it, one of `WAYS`; by default the one that `choose_way` names.

    Returns:
        Attended values, [batch, heads, length, head_dim], in the query's dtype.

    Raises:
        InputError: If window < 1, num_global is not in 0..length, shapes disagree, or the way is unknown or cannot
            take these inputs.

    Reference: Longformer, arXiv:2004.05150, section 3. Unlike the paper, global positions share the query,
    key and value projections.
    """
    check_attention_inputs(query, key, value, padding_mask)
    length = query.shape[2]
    if window < 1:
        raise InputError(f"window must be at least 1, got {window}")
    if not 0 <= num_global <= length:
        raise InputError(f"num_global must be between 0 and the length {length}, got {num_global}")
    if way is None:
        head_dim = min(query.shape[-1], value.shape[-1])
        device = query.device.type
        way = choose_way(length, device, query.dtype, window=window, head_dim=head_dim, dropout=dropout)
    else:
        _check_way(way, query, key, value, dropout)
    options = {"padding_mask": padding_mask, "scale": scale, "dropout": dropout}
    if way == "band":
        mask = None
        if padding_mask is not None or length > window + 1 or causal:
            # A cache has no place in a graph.
            make = _band_mask if torch.compiler.is_compiling() else _shared_band_mask
            mask = make(length, window, num_global, causal, str(query.device))
        if mask is not None and padding_mask is not None:
            own = torch.eye(length, dtype=torch.bool, device=query.device)
            mask = (mask & padding_mask[:, None, None, :]) | own
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, dropout_p=dropout)
    options |= {"window": min(window, length), "num_global": num_global, "causal": causal}
    if way == "flex":
        # Imported where it is used: it takes a second, and most machines that run this have no GPU.
        from tippingpoint.attention.local_flex import flex_local_attention

        return flex_local_attention(query, key, value, **options)
    output = (streamed_local_attention if way == "streamed" else gathered_local_attention)(
        query, key, value, **options
    )
    if num_global and not causal:
        everywhere = None if padding_mask is None else _rows_of_globals(padding_mask, num_global)
        # The streamed way keeps its precision under automatic mixed precision; so do these rows of its output.
        with torch.autocast(query.device.type, enabled=False) if way == "streamed" else nullcontext():
            rows = F.scaled_dot_product_attention(
                query[:, :, :num_global], key, value, attn_mask=everywhere, scale=scale, dropout_p=dropout
            )
        output = torch.cat([rows, output[:, :, num_global:]], dim=2)
    return output


def choose_way(
    length: int,
    device: str,
    dtype: torch.dtype = torch.float32,
    *,
    window: int,
    head_dim: int = 64,
    dropout: float = 0.0,
) -> str:
    """Return the fastest of the `WAYS` for inputs of this kind, as measured (benchmarks/attention.py).

    Args:
        length: Positions.
        device: Type of the device, such as "cpu" or "cuda".
        dtype: Of query, key and value.
        window: One-sided radius.
        head_dim: Dimensions of a head.
        dropout: Probability of dropping an attention weight.
    """
    if device == "cuda" and dtype in _FLEX_DTYPES and head_dim >= 16 and not dropout:
        return "flex" if length > 2 * window else "band"
    if length <= 2 * window + _BEYOND:
        return "band"
    if torch.compiler.is_compiling() or device != "cpu" or dtype not in _STREAMED_DTYPES:
        return "gathered"
    return "streamed" if torch.get_num_threads() <= _MANY_THREADS else "gathered"


def describe_way(
    length: int,
    device: str,
    dtype: str,
    *,
    window: int,
    head_dim: int = 64,
    dropout: float = 0.0,
    **options: object,
) -> str:
    """Return the chosen way in words; arguments as those of `choose_way`, the dtype by its name."""
    way = choose_way(length, device, getattr(torch, dtype), window=window, head_dim=head_dim, dropout=dropout)
    return WAYS[way]


def _check_way(way: str, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> None:
    if way not in WAYS:
        raise InputError(f"way must be one of {', '.join(WAYS)}, got {way!r}")
    if way == "streamed" and (query.device.type != "cpu" or query.dtype not in _STREAMED_DTYPES):
        raise InputError(
            f"the streamed way takes float32 and float64 on the CPU, got {query.dtype} on {query.device}"
        )
    if way == "flex" and dropout:
        raise InputError(f"FlexAttention has no dropout; choose the gathered way, or dropout 0 instead of {dropout}")
    if way == "flex" and query.device.type == "cpu" and any(t.requires_grad for t in (query, key, value)):
        raise InputError("FlexAttention has no backward pass on the CPU; choose the streamed or the gathered way")


def _band_mask(length: int, window: int, num_global: int, causal: bool, device: str) -> Tensor:
    """Return where unpadded inputs may look, [length, length]."""
    position = torch.arange(length, device=device)
    row, column = position[:, None], position[None, :]
    allowed = ((row - column).abs() <= window) | (row < num_global) | (column < num_global)
    return allowed & (column <= row) if causal else allowed


@functools.lru_cache(maxsize=8)
def _shared_band_mask(length: int, window: int, num_global: int, causal: bool, device: str) -> Tensor:
    """Return the mask that layers share: to make it is a fifth of a call."""
    with torch.inference_mode(False):  # it may be used in training later
        return _band_mask(length, window, num_global, causal, device)


def _rows_of_globals(padding_mask: Tensor, num_global: int) -> Tensor:
    """Where global rows may look, [batch, 1, num_global, length]: every real position, and themselves."""
    position = torch.arange(padding_mask.shape[1], device=padding_mask.device)
    return padding_mask[:, None, None, :] | (position[:num_global, None] == position[None, :])
