"""Batches of items of unlike lengths, as the Transformers library's tokenizers and feature extractors hand them over.

text     shorter items end in padding tokens, and a mask [batch, length] tells real ones; tokenizers give it for
         every batch, padded or not (the library drops a mask of ones where fused attention runs)
speech   shorter items end in zeros; a mask counts samples or frames, whichever the model takes, except for models
         that normalise over time with their padding, for which the library's feature extractors give none
vision   images of a batch have one size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tippingpoint.models.architecture import Architecture


def nearly_full(row: Architecture, length: float, count: int) -> tuple[float, ...]:
    """Return lengths of a batch of which one item is a little shorter than the others, and so is padded.

    Args:
        row: The architecture.
        length: Of the others, in the native unit.
        count: How many items, two at least.
    """
    shorter = max(1, length - 1) if row.unit == "tokens" else 0.95 * length
    return (length,) * (count - 1) + (shorter,)


def padded_inputs(
    row: Architecture, config: Mapping[str, Any], lengths: Sequence[float], length: float, generator: Any
) -> dict[str, Any]:
    """Return the tensors of a batch whose items have lengths of their own.

    Args:
        row: The architecture.
        config: Of a model that was built for this length or a longer one.
        lengths: Of each item, in the native unit; none longer than `length`.
        length: At which the batch runs, one that the architecture takes.
        generator: Of the values, a torch generator.
    """
    import torch

    batch = row.inputs(config, len(lengths), length, generator)
    if row.modality == "vision":
        return batch
    name = next(iter(batch))
    values = batch[name]
    ends = {each: _steps(row, config, each, generator) for each in set(lengths)}
    real = torch.arange(values.shape[1]) < torch.tensor([[ends[each]] for each in lengths])
    filler = config.get("pad_token_id") or 0 if row.modality == "text" else 0
    batch[name] = values.masked_fill(~real.reshape(*real.shape, *[1] * (values.ndim - 2)), filler)
    if not row.unmasked:
        batch["attention_mask"] = row.mask(real)
    return batch


def _steps(row: Architecture, config: Mapping[str, Any], length: float, generator: Any) -> int:
    """Return where an item ends on the input's second axis: tokens, samples or frames."""
    if row.modality == "text":
        return int(length)
    # An item too short for the architecture is padded as others are.
    alone = row.inputs(config, 1, max(length, row.lengths.minimum), generator)
    return next(iter(alone.values())).shape[1]
