"""What all image encoders share: inputs and patches. Lengths are the side of a square in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tippingpoint.models.flops import linear

# Layers dropped at random change from step to step; every training step shall do the same work.
DETERMINISTIC = {"drop_path_rate": 0.0}


def image(config: Mapping[str, Any], batch_size: int, length: float, generator: Any) -> dict[str, Any]:
    """Noise of unit variance, as normalised pixels would have."""
    import torch

    side = int(length)
    return {"pixel_values": torch.randn(batch_size, config["num_channels"], side, side, generator=generator)}


def patches_flops(config: Mapping[str, Any], batch_size: int, length: float, width: int) -> int:
    """Return FLOPs of the product of patches that do not overlap with their embedding."""
    patch = config["patch_size"]
    return linear(batch_size * (int(length) // patch) ** 2, config["num_channels"] * patch * patch, width)
