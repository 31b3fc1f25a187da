"""How alike the attention maps of a model's layers are: overlaps by head, and heads matched to each other.

Nothing here needs PyTorch; `map_similarity` observes a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tippingpoint.errors import DataError

# An overlap is a mean of sums of probabilities, so it may pass 1 by rounding.
_ROUNDING = 1e-3


@dataclass(frozen=True, kw_only=True)
class MapSimilarity:
    """How alike the attention maps of a model's layers are, on real inputs.

    The overlap of two rows of probabilities is sum_j min(p_j, q_j), which is 1 less their total variation distance;
    of two heads, its mean over the rows examined. Layers with a sliding window of their own are in `layers` and in
    nothing else.

    Attributes:
        model: Class of the model.
        layers: Number of layers of its encoder.
        eligible: Numbers of the layers that were compared, in ascending order.
        heads: Number of heads of a layer.
        overlaps: `overlaps[a][b - a - 1][h][g]` is the overlap of head h of layer `eligible[a]` with head g of layer
            `eligible[b]`, for b > a.
        distances: Distances in positions that `near` is for.
        near: `near[a][h][i]` is the share of its attention that head h of layer `eligible[a]` gives to positions at
            most `distances[i]` away.
        inputs: Number of inputs.
        rows: Number of query positions that were examined, over all inputs.
        positions: Mean length of the inputs in sequence positions, without padding.
        map_parameters: Parameters of each layer in `eligible` that only its map needs: of queries, keys and relative
            positions.
        weights: How much a difference of its map matters in each layer in `eligible`, 1 in the mean, as tried; none
            if nothing was tried.
    """

    model: str
    layers: int
    eligible: tuple[int, ...]
    heads: int
    overlaps: tuple[tuple[tuple[tuple[float, ...], ...], ...], ...]
    distances: tuple[int, ...]
    near: tuple[tuple[tuple[float, ...], ...], ...]
    inputs: int
    rows: int
    positions: float
    map_parameters: tuple[int, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.eligible)
        if not count or list(self.eligible) != sorted(set(self.eligible).intersection(range(self.layers))):
            raise DataError(
                f"eligible layers must be ascending numbers below {self.layers}, got {list(self.eligible)}"
            )
        shapes = [(len(self.overlaps), count), (len(self.near), count), (len(self.map_parameters), count)]
        shapes += [(len(row), count - number - 1) for number, row in enumerate(self.overlaps)]
        blocks = [block for row in self.overlaps for block in row]
        shapes += [(len(block), self.heads) for block in [*blocks, *self.near]]
        shapes += [(len(line), self.heads) for block in blocks for line in block]
        shapes += [(len(line), len(self.distances)) for block in self.near for line in block]
        if any(found != wanted for found, wanted in shapes):
            raise DataError(
                f"overlaps of {count} layers with {self.heads} heads must hold a value for each two heads of each "
                "two layers, and these do not"
            )
        if len(self.weights) not in (0, count) or not all(0 < weight < np.inf for weight in self.weights):
            raise DataError(f"weights must be {count} positive numbers, one for each layer, or none at all")
        values = [value for block in [*blocks, *self.near] for line in block for value in line]
        if not all(-_ROUNDING <= value <= 1 + _ROUNDING for value in values):
            raise DataError("overlaps and shares of attention must be numbers from 0 to 1, and one is not")

    def heads_of(self, first: int, second: int) -> np.ndarray:
        """Return the overlaps of the heads of two layers, [heads of first, heads of second].

        Args:
            first: Number of a layer in `eligible`.
            second: Number of a later one.
        """
        a, b = self.eligible.index(first), self.eligible.index(second)
        return np.asarray(self.overlaps[a][b - a - 1])

    @cached_property
    def unmatched(self) -> np.ndarray:
        """Similarity of each pair of layers, head h with head h: [eligible, eligible], 1 on the diagonal."""
        return self._pairs(lambda block: float(np.trace(block)) / self.heads)

    @cached_property
    def matched(self) -> np.ndarray:
        """Similarity of each pair of layers under the best matching of heads, as `unmatched`."""
        return self._pairs(lambda block: assign_heads(block)[1])

    def worth(self, *, match_heads: bool) -> np.ndarray:
        """Return what groups are chosen by: 1 less what two maps do not share, weighted by what it matters.

        Args:
            match_heads: Whether heads are matched.

        Returns:
            [eligible, eligible]; row a, column b for layer b that is given the map of layer a.
        """
        pairs = self.matched if match_heads else self.unmatched
        return 1 - np.asarray(self.weights or [1.0] * len(self.eligible)) * (1 - pairs)

    def _pairs(self, of: Callable[[np.ndarray], float]) -> np.ndarray:
        count = len(self.eligible)
        found = np.eye(count)
        for a in range(count):
            for b in range(a + 1, count):
                found[a, b] = found[b, a] = of(np.asarray(self.overlaps[a][b - a - 1]))
        return found

    @cached_property
    def diagonality(self) -> np.ndarray:
        """Share of attention within each distance, mean over heads: [eligible, distances]."""
        return np.asarray(self.near).mean(axis=1)


def assign_heads(overlaps: np.ndarray) -> tuple[tuple[int, ...], float]:
    """Match each head of one layer to another head of a second one so that their mean overlap is the largest.

    Args:
        overlaps: [heads of the layer that computes the map, heads of the layer that reuses it].

    Returns:
        The source head of each head of the reusing layer, and the mean overlap.
    """
    # Imported here: it takes a while, and most commands match no heads.
    from scipy.optimize import linear_sum_assignment

    reusing, source = linear_sum_assignment(overlaps.T, maximize=True)
    return tuple(int(head) for head in source), float(overlaps.T[reusing, source].mean())
