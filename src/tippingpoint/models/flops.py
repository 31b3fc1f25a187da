"""Algorithmic FLOPs: the closed forms that architectures are made of. No torch at import time.

They count what a published definition asks for at the real length: no padding, no block that is computed and thrown
away, no score that is computed twice to save memory. A multiply-add is 2 FLOPs; element-wise work, softmax and
normalisation are not counted. Factors have names: `rows` are all positions of all sequences of a batch, `width` is
the hidden size (all heads side by side), `pairs` are the (query, key) pairs that one head scores.

What self-attention asks for is given to an architecture's closed form as a function, because a variant may stand in
some of its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tippingpoint.models.shape import Shape

# (positions, heads, dimensions of a head, numbers of the layers) to FLOPs of one sequence in these layers
AttentionFlops = Callable[[int, int, int, Sequence[int]], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardFlops:
    """FLOPs of one forward pass of a batch, by the gradients that training needs of them.

    Attributes:
        inner: Products of two operands that both need a gradient, each as costly as the product.
        first: Products of a weight with what came in (pixels, a waveform), which needs no gradient.
        unreached: Products that the loss of a training step does not depend on (a pooler): no gradient at all.
    """

    inner: int
    first: int = 0
    unreached: int = 0

    def __add__(self, other: ForwardFlops) -> ForwardFlops:
        """Return the FLOPs of both."""
        return ForwardFlops(
            inner=self.inner + other.inner,
            first=self.first + other.first,
            unreached=self.unreached + other.unreached,
        )

    def __mul__(self, times: int) -> ForwardFlops:
        """Return the FLOPs of several times this."""
        return ForwardFlops(inner=times * self.inner, first=times * self.first, unreached=times * self.unreached)

    def of_phase(self, phase: str) -> int:
        """Return FLOPs of one call of a phase ("inference" or "training")."""
        if phase == "training":
            return 3 * self.inner + 2 * self.first + self.unreached
        return self.inner + self.first + self.unreached


def linear(rows: int, width_in: int, width_out: int) -> int:
    """Return FLOPs of a linear layer."""
    return 2 * rows * width_in * width_out


def attend(pairs: int, width: int) -> int:
    """Return FLOPs of scores and of weighted values, all heads together."""
    return 2 * linear(pairs, width, 1)


def encoder_linears(rows: int, width: int, wide: int) -> int:
    """Return FLOPs of a layer's projections (query, key, value, output) and feed-forward part."""
    return 4 * linear(rows, width, width) + 2 * linear(rows, width, wide)


def encoder(shape: Shape, batch_size: int, positions: int, attention: AttentionFlops) -> int:
    """Return FLOPs of all layers of an encoder like the first Transformer's (arXiv:1706.03762)."""
    linears = shape.layers * encoder_linears(batch_size * positions, shape.width, shape.wide)
    return linears + batch_size * attention(positions, shape.heads, shape.head_dim, range(shape.layers))


def pooler(batch_size: int, width: int) -> int:
    """Return FLOPs of the linear layer on the first position."""
    return linear(batch_size, width, width)


def local_pairs(positions: int, *, window: int, num_global: int = 0, causal: bool = False) -> int:
    """Position i sees j if |i - j| <= window, or if either is one of the first `num_global`; each pair once.

    With `causal`, only where j <= i: half of what is off the diagonal, since the pairs are symmetric.
    """
    if causal:
        return (local_pairs(positions, window=window, num_global=num_global) + positions) // 2
    # What is not global is a shorter sequence with a band of its own; the rest are whole rows and columns.
    others = positions - min(num_global, positions)
    reach = min(window, others - 1)
    # Each of `others` sees `reach` on either side, less the triangles that stick out at both ends.
    band = others * (2 * reach + 1) - reach * (reach + 1)
    return positions * positions - others * others + band
