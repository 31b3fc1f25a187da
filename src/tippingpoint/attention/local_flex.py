"""Local attention on a GPU: PyTorch's FlexAttention with the band as its mask of blocks.

FlexAttention compiles a fused kernel that visits only the blocks of keys that hold a visible one. Which these are is
worked out here from the band's two edges: the library's own way looks at every pair of positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

# Positions of a block; the library's kernels are made for this size.
BLOCK = 128

# Graphs of one process: dtype, head_dim, padding, causality, training, and lengths and windows once fixed and once
# symbolic make a few dozen. PyTorch stops at 8.
_GRAPHS = 256


def flex_local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int,
    num_global: int,
    causal: bool,
    padding_mask: Tensor | None,
    scale: float | None,
    dropout: float,
) -> Tensor:
    """Attend locally by one compiled kernel, global positions' own rows included.

    Arguments and result as `tippingpoint.attention.local.local_attention`, without dropout, which the kernel lacks.
    """
    assert not dropout, "the choice of a way sees to it"
    compiling = torch.compiler.is_compiling()
    if padding_mask is None and not compiling:
        mask = _unpadded_mask(query.shape[2], window, num_global, causal, str(query.device))
    else:
        mask = block_mask(query.shape[2], window, num_global, causal, query.device, padding_mask)
    attend = flex_attention if compiling else _compiled()
    return attend(query, key, value, block_mask=mask, scale=scale)


@functools.cache
def _compiled() -> Callable[..., Any]:
    # With fullgraph, running out of recompilations is an error; without, it would be dense attention, silently.
    compiled = torch.compile(flex_attention, fullgraph=True)

    def attend(*args: Any, **options: Any) -> Any:
        # Set by hand: the library's own context manager takes 40 microseconds, as long as a short attention.
        config: Any = torch._dynamo.config
        before = config.recompile_limit
        config.recompile_limit = max(before, _GRAPHS)
        try:
            return compiled(*args, **options)
        finally:
            config.recompile_limit = before

    return attend


@functools.lru_cache(maxsize=8)
def _unpadded_mask(length: int, window: int, num_global: int, causal: bool, device: str) -> BlockMask:
    """Return the mask of unpadded inputs: all layers of a model share it."""
    with torch.inference_mode(False):  # it may be used in training later
        return block_mask(length, window, num_global, causal, torch.device(device), None)


def block_mask(
    length: int, window: int, num_global: int, causal: bool, device: torch.device, padding_mask: Tensor | None
) -> BlockMask:
    """Return the blocks of keys that each block of queries visits, and what is hidden within them.

    Args:
        length: Positions.
        window: One-sided radius.
        num_global: Leading positions that see, and are seen by, every position.
        causal: Whether later positions are hidden.
        device: Where it is used.
        padding_mask: bool [batch, length], True for real tokens, or None.
    """

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (query - key <= window) & (key - query <= window)
        allowed = near | (query < num_global) | (key < num_global)
        if causal:
            allowed = allowed & (key <= query)
        if padding_mask is None:
            return allowed
        return (allowed & padding_mask[batch, key]) | (query == key)

    first = torch.arange(0, length, BLOCK, device=device)
    last = (first + BLOCK - 1).clamp(max=length - 1)
    # Of each pair of blocks, the least and the greatest distance of a query behind a key.
    least, greatest = first[:, None] - last[None, :], last[:, None] - first[None, :]
    near = (least <= window) & (greatest >= -window)
    shared = (first[:, None] < num_global) | (first[None, :] < num_global)
    visited = near | shared
    # Blocks without a hidden pair need no mask at all.
    whole = ((greatest <= window) & (least >= -window)) | (last[:, None] < num_global) | (last[None, :] < num_global)
    if causal:
        visited &= greatest >= 0
        whole &= least >= 0
    if padding_mask is not None:
        whole = torch.zeros_like(whole)
    # The end of the sequence is cut within its last block.
    full_size = last - first == BLOCK - 1
    whole &= full_size[:, None] & full_size[None, :]
    partial, full = _ordered(visited & ~whole), _ordered(whole)
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(length, length))


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks each row visits, [1, 1, rows], and their numbers first, [1, 1, rows, columns]."""
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]
