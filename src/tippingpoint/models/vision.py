"""Image encoders: configurations, inputs and length arithmetic. Lengths are the side of a square in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tippingpoint.models.architecture import Architecture, Lengths

_VIT_PATCH = 16
_SWIN_PATCH = 4
_SWIN_WINDOW = 8


def _image(config: Mapping[str, Any], batch_size: int, length: float, generator: Any) -> dict[str, Any]:
    """Noise of unit variance, as normalised pixels would have."""
    import torch

    side = int(length)
    return {"pixel_values": torch.randn(batch_size, config["num_channels"], side, side, generator=generator)}


def _swin_positions_padded(length: float) -> int:
    """Positions of the first stage once its side is a multiple of the window."""
    side = int(length) // _SWIN_PATCH
    window = min(side, _SWIN_WINDOW)
    return (-(-side // window) * window) ** 2


VIT = Architecture(
    name="vit",
    title="ViT",
    modality="vision",
    paper="arXiv:2010.11929",
    config_class="ViTConfig",
    model_class="ViTModel",
    sizes={
        "base": {},
        "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
        "tiny": {
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 2,
            "intermediate_size": 128,
        },
    },
    fit=lambda config, length: {"image_size": int(length)},
    limit=lambda config: config["image_size"],
    inputs=_image,
    lengths=Lengths(
        positions=lambda length: (int(length) // _VIT_PATCH) ** 2 + 1,
        minimum=_VIT_PATCH,
        multiple_of=_VIT_PATCH,
        reason="its patches are 16 pixels wide",
    ),
)

SWINV2 = Architecture(
    name="swinv2",
    title="Swin V2",
    modality="vision",
    paper="arXiv:2111.09883",
    config_class="Swinv2Config",
    model_class="Swinv2Model",
    # The library's default configuration is Swin V2 Tiny; these are the published Base and Tiny.
    sizes={
        "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "window_size": 8},
        "small": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 8},
        "tiny": {"embed_dim": 32, "depths": (1, 1), "num_heads": (2, 4), "window_size": 8},
    },
    fit=lambda config, length: {"image_size": int(length)},
    limit=lambda config: None,
    inputs=_image,
    lengths=Lengths(
        positions=lambda length: (int(length) // _SWIN_PATCH) ** 2,
        executed=_swin_positions_padded,
        minimum=32,
        multiple_of=32,
        reason="its four stages halve a grid of 4-pixel patches",
    ),
    efficient_attention="shifted windows of 8 x 8 patches over a hierarchy of four stages",
    notes=(
        "positions are those of its first stage, of 4-pixel patches; ViT's patches are 16 pixels wide",
        "later stages pad their grids to a multiple of the 8-patch window, so cost is a staircase",
    ),
)
