"""What sharing maps does to a model's output, tried on real inputs.

Overlaps say how alike maps are and not what a difference matters: of a trained model some layers bear another's map
well and others, often the last one, do not. So groups are tried, on copies of the model.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from tippingpoint.errors import DataError, UnsupportedError
from tippingpoint.models.groups import Groups
from tippingpoint.models.map_overlaps import MapSimilarity, assign_heads
from tippingpoint.models.sharing import reuse_attention

# No layer counts for less than this share of the mean one: what one trial cannot tell from nothing is not nothing.
_LEAST_WEIGHT = 0.05


class Trials:
    """Tries groups of layers that share maps, each once.

    Args:
        model: In evaluation mode; it is copied, and left as it is.
        inputs: What it is called with, one sequence each.
        similarity: Of its maps, which heads are matched by.
        match_heads: Whether a reusing layer is given the map's heads in the order that fits best.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Any]],
        similarity: MapSimilarity,
        *,
        match_heads: bool,
    ) -> None:
        self._model = model
        self._inputs = inputs
        self._similarity = similarity
        self._match_heads = match_heads
        self._before = list(self._outputs(model))
        self.losses: dict[Groups, float] = {}

    def loss(self, groups: Groups) -> float:
        """Return how far the output moves: 1 less its cosine to that of the model as it is.

        The output is the first tensor that the model returns, such as its last hidden state. The cosine is taken at
        each real position, and its mean is over positions and inputs.

        Raises:
            DataError: If it is not finite.
        """
        shared = tuple(group for group in groups if len(group) > 1)
        if shared not in self.losses:
            heads = {}
            if self._match_heads:
                of = self._similarity.heads_of
                heads = {layer: assign_heads(of(group[0], layer))[0] for group in shared for layer in group[1:]}
            changed = reuse_attention(copy.deepcopy(self._model), shared, mode="recompute", heads=heads)
            pairs = zip(self._outputs(changed), self._before, strict=True)
            cosines = [float(F.cosine_similarity(after, before, dim=-1).mean()) for after, before in pairs]
            loss = 1 - sum(cosines) / len(cosines)
            if loss != loss:
                raise DataError("the model's output is not finite; are its weights and inputs?")
            self.losses[shared] = loss
        return self.losses[shared]

    def weights(self) -> tuple[float, ...]:
        """Return how much a difference of its map matters in each layer, 1 in the mean; of the first, 1.

        Each layer in turn is given the map of the one before it: the loss over what the two maps do not have in
        common.
        """
        similarity = self._similarity
        pairs = similarity.matched if self._match_heads else similarity.unmatched
        found = []
        for place, (before, layer) in enumerate(itertools.pairwise(similarity.eligible)):
            found.append(self.loss(((before, layer),)) / max(1e-6, 1 - pairs[place, place + 1]))
        mean = sum(found) / len(found) if found else 0.0
        return (1.0, *(max(_LEAST_WEIGHT, weight / mean) if mean > 0 else 1.0 for weight in found))

    def best(self, proposals: Sequence[Groups], most: int) -> Groups:
        """Return the groups with the least loss: the best of some, and what moving layers at their borders leads to.

        Args:
            proposals: Groups of all layers that can share, in order, the same number in each.
            most: Trials to make at most, beyond the proposals.
        """
        best = min(proposals, key=self.loss)
        tried = 0
        while tried < most:
            near = [groups for groups in _neighbours(best) if groups not in proposals][: most - tried]
            tried += len(near)
            better = min(near, key=self.loss, default=best)
            if self.loss(better) >= self.loss(best):
                break
            best = better
        return best

    def _outputs(self, model: PreTrainedModel) -> Iterator[Tensor]:
        """Yield the output at each real position of each input, [positions, width]."""
        for inputs in self._inputs:
            with torch.inference_mode():
                given: Any = model(**inputs)
            values = given.values() if isinstance(given, Mapping) else given
            output = next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)
            if output is None:
                raise UnsupportedError(f"{type(model).__name__} gives back nothing that sharing maps could change")
            rows = output[0].float().flatten(0, -2) if output.ndim > 2 else output.float()
            mask = inputs.get("attention_mask")
            yield rows[mask[0].bool()] if isinstance(mask, Tensor) and mask.shape == (1, len(rows)) else rows


def _neighbours(groups: Groups) -> Iterator[Groups]:
    """Yield the groups in which one layer at a border goes over to the group beside it."""
    for place, (first, second) in enumerate(itertools.pairwise(groups)):
        if len(first) > 1:
            yield (*groups[:place], first[:-1], (first[-1], *second), *groups[place + 2 :])
        if len(second) > 1:
            yield (*groups[:place], (*first, second[0]), second[1:], *groups[place + 2 :])
