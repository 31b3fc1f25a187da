"""Checks that every attention function shares."""

from __future__ import annotations

import torch
from torch import Tensor

from tippingpoint.errors import InputError


def check_attention_inputs(query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None) -> None:
    """Check shapes and types of self-attention inputs.

    Raises:
        InputError: Unless query, key and value are [batch, heads, length, head_dim] of one shape (value may
            have another head_dim) and padding_mask is None or bool [batch, length].
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4:
            raise InputError(f"{name} must be [batch, heads, length, head_dim], got shape {tuple(tensor.shape)}")
    if query.shape != key.shape or key.shape[:3] != value.shape[:3]:
        raise InputError(
            "query, key and value of self-attention must agree in batch, heads and length, got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    if query.shape[2] == 0:
        raise InputError("attention needs at least one position, got length 0")
    if padding_mask is not None:
        expected = (query.shape[0], query.shape[2])
        if padding_mask.dtype != torch.bool or tuple(padding_mask.shape) != expected:
            raise InputError(
                f"padding_mask must be bool [batch, length] = {list(expected)} with True for real tokens, got "
                f"{str(padding_mask.dtype).removeprefix('torch.')} {list(padding_mask.shape)}"
            )


def attendable(padding_mask: Tensor) -> Tensor:
    """Return where keys may be looked at, bool [batch, length].

    Real tokens; and everything where a sequence has none at all, so that its rows, which mean nothing, stay
    finite.
    """
    return padding_mask | ~padding_mask.any(dim=1, keepdim=True)
