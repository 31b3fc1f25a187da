"""Closed forms of what one sequence's self-attention asks for, between its projections. No torch at import time.

Matrix products only, at the real length, all heads of one layer together; a multiply-add is 2 FLOPs. What divides
weights by their sum is not counted, as in full attention (conventions: `flops.py`).
"""

from __future__ import annotations

from tippingpoint.models.flops import attend, linear


def nystrom_flops(positions: int, heads: int, head_dim: int, *, landmarks: int) -> int:
    """Return FLOPs of Nystrom attention: full attention where there are no more positions than landmarks."""
    if positions <= landmarks:
        return attend(positions * positions, heads * head_dim)
    # Queries on landmarks and landmarks on keys; the landmarks' kernel and what its inverse multiplies.
    outer = 2 * attend(positions * landmarks, head_dim)
    inner = attend(landmarks * landmarks, head_dim)
    inverse = 6 * 4 * linear(landmarks, landmarks, landmarks)
    return heads * (outer + inner + inverse)


def linear_flops(
    positions: int, heads: int, head_dim: int, *, feature_map: str = "favor", num_features: int = 256
) -> int:
    """Return FLOPs of linear attention: features of queries and keys, their sum with the values, its use."""
    if feature_map == "elu":
        return heads * 2 * linear(positions, head_dim, head_dim)
    return heads * 4 * linear(positions, head_dim, num_features)


def linformer_flops(positions: int, heads: int, head_dim: int, *, rank: int, max_length: int = 0) -> int:
    """Return FLOPs of Linformer attention: two projections along the sequence, and attention to `rank` keys.

    Projections are cut to the real length, so that `max_length` changes nothing.
    """
    return heads * (2 * linear(rank, positions, head_dim) + attend(positions * rank, head_dim))


def pooled_flops(positions: int, heads: int, head_dim: int, *, ratio: int) -> int:
    """Return FLOPs of attention to one key for `ratio` positions; what is left makes one more."""
    return attend(positions * -(-positions // ratio), heads * head_dim)


def heads_flops(positions: int, heads: int, head_dim: int, *, keep: float) -> int:
    """Return FLOPs of full attention in the heads that are kept."""
    return attend(positions * positions, max(1, round(keep * heads)) * head_dim)
