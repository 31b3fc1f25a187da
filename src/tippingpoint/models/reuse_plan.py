"""Which layers may share one attention map: groups chosen for a number of maps, and what they would give.

Attention map reuse is arXiv:2301.12444 and its parent, "Understanding the Role of Self Attention for Efficient Speech
Recognition" (ICLR 2022). The similarity, the matching of heads and the choice of groups are ours. Nothing here needs
PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tippingpoint.errors import DataError, InputError
from tippingpoint.models.groups import Groups
from tippingpoint.models.map_overlaps import MapSimilarity, assign_heads
from tippingpoint.units import format_items, format_percent

# The file says what it is, so that another JSON file is not taken for a plan. History of versions: 1, the first.
_FORMAT, _VERSION = "tippingpoint reuse plan", 1
# What a layer that computes its map costs, in layers that are given one: 4 T d^2 + 2 T^2 d over half of both.
PLAIN_COST_RATIO = 2.0


def relative_cost_ratio(positions: float, width: int) -> float:
    """Return what a layer with Transformer-XL's relative positions costs, in layers that are given its map.

    Beside the 4 T d^2 + 2 T^2 d multiply-adds of any layer, one that computes its map projects 2T - 1 relative
    positions (2 T d^2) and multiplies queries by them (2 T^2 d); one that is given it does 2 T d^2 + T^2 d.

    Args:
        positions: T.
        width: d.
    """
    return (6 * width + 4 * positions) / (2 * width + positions)


def group_layers(similarity: np.ndarray) -> Groups:
    """Divide layers into contiguous groups, for each number of groups, by dynamic programming.

    Maximises the sum over layers of the similarity to the first layer of their group. Of equally good divisions, one
    with longer groups at the front is taken.

    Args:
        similarity: [layers, layers]; only pairs of an earlier and a later layer are read, and a layer is 1 to itself.

    Returns:
        For 1, 2, ... groups: the place where each group begins.
    """
    count = len(similarity)
    # worth[i, j]: of a group that begins at i and ends before j.
    worth = np.zeros((count, count + 1))
    for begin in range(count):
        worth[begin, begin + 1 :] = np.cumsum([1.0, *similarity[begin, begin + 1 :]])
    best = [worth[0, end] for end in range(count + 1)]
    begins: list[tuple[int, ...]] = [(0,)] * (count + 1)
    found = [begins[count]]
    for groups in range(2, count + 1):
        now = [-np.inf] * (count + 1)
        divided: list[tuple[int, ...]] = [()] * (count + 1)
        for end in range(groups, count + 1):
            now[end], last = max((best[begin] + worth[begin, end], begin) for begin in range(groups - 1, end))
            divided[end] = (*begins[last], last)
        best, begins = now, divided
        found.append(begins[count])
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseChoice:
    """What one number of maps would give.

    Attributes:
        num_maps: Number of maps that are computed, those of layers with a window of their own apart.
        groups: Layers that share a map; the first one computes it.
        matched: Mean similarity of a layer's map to the one it is given, heads matched; a computing layer has 1.
        unmatched: The same with head h given head h's.
        cost_share: Predicted share of the arithmetic of self-attention that is left.
        parameters_saved: Parameters of projections that are no longer needed.
    """

    num_maps: int
    groups: Groups
    matched: float
    unmatched: float
    cost_share: float
    parameters_saved: int


@dataclass(frozen=True, kw_only=True)
class ReusePlan:
    """Which layers of a model share one attention map.

    Attributes:
        groups: Numbers of the layers that share a map, groups by their first layer, which computes it; every layer is
            in one. Layers with a sliding window of their own stay alone, and a group may reach across them.
        match_heads: Whether a reusing layer may be given the map's heads in another order.
        head_matches: For each reusing layer the source head of each of its heads; empty without head matching.
        cost_ratio: What a computing layer costs, in reusing ones.
        similarity: What the plan was made from.
        tried: Groups of as many maps that were tried, those of one layer left out, with how far the model's output
            moved (1 less its cosine), the least first; none if nothing was tried.
    """

    groups: Groups
    match_heads: bool
    head_matches: Mapping[int, tuple[int, ...]]
    cost_ratio: float
    similarity: MapSimilarity
    tried: tuple[tuple[Groups, float], ...] = ()

    def __post_init__(self) -> None:
        shared = self._shared
        alone = [(layer,) for layer in range(self.similarity.layers) if layer not in self.similarity.eligible]
        listed = [layer for group in shared for layer in group]
        if listed != list(self.similarity.eligible) or sorted([*shared, *alone]) != list(self.groups):
            apart = f" and leave layers {[layer for (layer,) in alone]} alone" if alone else ""
            raise InputError(
                f"groups must hold each of layers 0 to {self.similarity.layers - 1} once and in order{apart}, got "
                f"{[list(group) for group in self.groups]}"
            )
        reusing = [layer for group in shared for layer in group[1:]] if self.match_heads else []
        if sorted(self.head_matches) != reusing:
            raise InputError(f"heads must be matched for the layers {reusing}, got {sorted(self.head_matches)}")
        heads = list(range(self.similarity.heads))
        for layer, match in self.head_matches.items():
            if sorted(match) != heads:
                raise InputError(
                    f"layer {layer} must be given each of heads 0 to {heads[-1]} once, got {list(match)}"
                )
        if not 1 <= self.cost_ratio < np.inf:
            raise InputError(
                "the cost of a layer that computes its map, in layers that are given one, must be at least 1, got "
                f"{self.cost_ratio!r}"
            )

    @classmethod
    def of(
        cls,
        similarity: MapSimilarity,
        num_maps: int,
        *,
        match_heads: bool = True,
        cost_ratio: float = PLAIN_COST_RATIO,
        groups: Groups | None = None,
        tried: tuple[tuple[Groups, float], ...] = (),
    ) -> ReusePlan:
        """Choose the groups for a number of maps.

        Args:
            similarity: Of the layers' maps.
            num_maps: Number of maps that are computed, those of layers with a window of their own not counted.
            match_heads: Whether a reusing layer may be given the map's heads in another order.
            cost_ratio: What a computing layer costs, in reusing ones.
            groups: Chosen already, by trials; of the layers that can share.
            tried: What the trials gave.

        Raises:
            InputError: If num_maps is not from 1 to the number of layers that can share.
        """
        check_num_maps(num_maps, len(similarity.eligible))
        if groups is None:
            groups = propose_groups(similarity, num_maps, match_heads=match_heads)
        groups = _with_windowed(groups, similarity)
        matches = {
            layer: assign_heads(similarity.heads_of(group[0], layer))[0]
            for group in groups
            for layer in group[1:]
            if match_heads
        }
        return cls(
            groups=groups,
            match_heads=match_heads,
            head_matches=matches,
            cost_ratio=cost_ratio,
            similarity=similarity,
            tried=tried,
        )

    def with_num_maps(self, num_maps: int) -> ReusePlan:
        """Return the plan for another number of maps, by the weighted overlap alone: nothing is tried.

        Raises:
            InputError: If it is not from 1 to the number of layers that can share.
        """
        return ReusePlan.of(self.similarity, num_maps, match_heads=self.match_heads, cost_ratio=self.cost_ratio)

    @property
    def num_maps(self) -> int:
        """Number of maps that are computed, those of layers with a window of their own not counted."""
        return len(self._shared)

    @property
    def choice(self) -> ReuseChoice:
        """What this plan gives."""
        return self._choice(self.groups)

    @cached_property
    def choices(self) -> tuple[ReuseChoice, ...]:
        """What each number of maps would give, from 1 on."""
        numbers = range(1, len(self.similarity.eligible) + 1)
        found = [propose_groups(self.similarity, number, match_heads=self.match_heads) for number in numbers]
        found = [_with_windowed(groups, self.similarity) for groups in found]
        return tuple(
            self._choice(self.groups if n == self.num_maps else g) for n, g in zip(numbers, found, strict=True)
        )

    @property
    def _shared(self) -> list[tuple[int, ...]]:
        """The groups without the layers that have a window of their own."""
        return [group for group in self.groups if group and set(group).issubset(self.similarity.eligible)]

    def _choice(self, groups: Groups) -> ReuseChoice:
        eligible = self.similarity.eligible
        place = {layer: number for number, layer in enumerate(eligible)}
        shared = [group for group in groups if group[0] in place]
        pairs = [(place[group[0]], place[layer]) for group in shared for layer in group]
        first, second = zip(*pairs, strict=True)
        reusing = [b for a, b in pairs if a != b]
        # Reusing layers cost 1 each, and computing ones cost_ratio.
        cost = (len(shared) * self.cost_ratio + len(reusing)) / (len(eligible) * self.cost_ratio)
        return ReuseChoice(
            num_maps=len(shared),
            groups=groups,
            matched=float(self.similarity.matched[first, second].mean()),
            unmatched=float(self.similarity.unmatched[first, second].mean()),
            cost_share=cost,
            parameters_saved=sum(self.similarity.map_parameters[b] for b in reusing),
        )

    def __str__(self) -> str:
        choice = self.choice
        return (
            f"{choice.num_maps} maps for {format_items(self.similarity.layers, 'layer')}: "
            f"{format_groups(choice.groups)}; similarity {choice.matched:.2f} with heads matched, "
            f"{choice.unmatched:.2f} without; {format_percent(choice.cost_share)} of the arithmetic of self-attention"
        )

    def to_json(self) -> str:
        """Return the plan and what it was made from as JSON, which `from_json` reads."""
        record = {
            "format": _FORMAT,
            "version": _VERSION,
            "groups": self.groups,
            "match_heads": self.match_heads,
            "head_matches": {str(layer): match for layer, match in self.head_matches.items()},
            "cost_ratio": self.cost_ratio,
            "similarity": asdict(self.similarity),
            "tried": self.tried,
        }
        return json.dumps(record, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ReusePlan:
        """Return the plan that `to_json` wrote; its groups and matches may have been changed since.

        Raises:
            DataError: If it is no such plan.
        """
        try:
            record = json.loads(text)
            if not isinstance(record, dict) or record.get("format") != _FORMAT:
                raise DataError(f"a plan for reuse is JSON with the format {_FORMAT!r}, and this is none")
            if record.get("version") != _VERSION:
                raise DataError(
                    f"the plan is of version {record.get('version')!r}, and this tippingpoint reads version "
                    f"{_VERSION}; make the plan again"
                )
            similarity = record["similarity"]
            return cls(
                groups=tuple(tuple(int(layer) for layer in group) for group in record["groups"]),
                match_heads=bool(record["match_heads"]),
                head_matches={
                    int(layer): tuple(int(head) for head in match) for layer, match in record["head_matches"].items()
                },
                cost_ratio=float(record["cost_ratio"]),
                similarity=MapSimilarity(**{name: _frozen(value) for name, value in similarity.items()}),
                tried=_frozen(record.get("tried", [])),
            )
        except KeyError as error:
            raise DataError(f"the plan lacks {error}; make it again with tippingpoint reuse plan") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"this is no plan for reuse: {error}") from error


def check_num_maps(num_maps: int, most: int) -> None:
    """See to it that a number of maps is one.

    Raises:
        InputError: If it is not from 1 to `most`.
    """
    if type(num_maps) is not int or not 1 <= num_maps <= most:
        raise InputError(
            f"num_maps must be a whole number from 1 to {most}, the number of layers that can share, got {num_maps!r}"
        )


def format_groups(groups: Groups) -> str:
    """Return groups as the variant `reuse` takes them: "0_1-2_3-5".

    A group that reaches across layers with a window of their own is written "0-6/3", and with all its numbers where
    they are not evenly spaced.
    """
    return "_".join(_format_group(group) for group in groups)


def _format_group(group: Sequence[int]) -> str:
    if len(group) == 1:
        return str(group[0])
    step = group[1] - group[0]
    if list(group) != list(range(group[0], group[-1] + 1, step)):
        return ",".join(map(str, group))
    return f"{group[0]}-{group[-1]}" + (f"/{step}" if step > 1 else "")


def propose_groups(similarity: MapSimilarity, num_maps: int, *, match_heads: bool) -> Groups:
    """Return the best groups, by the weighted overlap, of the layers that can share.

    Args:
        similarity: Of the layers' maps.
        num_maps: Number of groups.
        match_heads: Whether heads are matched.
    """
    begins = group_layers(similarity.worth(match_heads=match_heads))[num_maps - 1]
    ends = [*begins[1:], len(similarity.eligible)]
    return tuple(similarity.eligible[begin:end] for begin, end in zip(begins, ends, strict=True))


def even_groups(similarity: MapSimilarity, num_maps: int) -> Groups:
    """Return groups of the layers that can share that are as even as possible, larger ones first."""
    count = len(similarity.eligible)
    ends = np.cumsum([count // num_maps + (number < count % num_maps) for number in range(num_maps)])
    return tuple(similarity.eligible[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True))


def _with_windowed(groups: Groups, similarity: MapSimilarity) -> Groups:
    """Return groups of all layers: those with a window of their own stand alone."""
    alone = [(layer,) for layer in range(similarity.layers) if layer not in similarity.eligible]
    return tuple(sorted([*groups, *alone]))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
