"""Image encoders: configurations, inputs and length arithmetic. Lengths are the side of a square in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tippingpoint.models.architecture import Architecture, Lengths
from tippingpoint.models.flops import (
    AttentionFlops,
    ForwardFlops,
    attend,
    encoder,
    encoder_linears,
    linear,
    pooler,
)
from tippingpoint.models.shape import Shape, plain_shape

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


def _patches_flops(config: Mapping[str, Any], batch_size: int, length: float, width: int) -> int:
    patch = config["patch_size"]
    return linear(batch_size * (int(length) // patch) ** 2, config["num_channels"] * patch * patch, width)


def _vit_flops(config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops) -> ForwardFlops:
    positions = (int(length) // config["patch_size"]) ** 2 + 1
    shape = plain_shape(config)
    return ForwardFlops(
        inner=encoder(shape, batch_size, positions, attention),
        first=_patches_flops(config, batch_size, length, shape.width),
        unreached=pooler(batch_size, shape.width),
    )


def _window_pairs(side: int, window: int, before: int) -> int:
    """Return pairs within the windows of a grid of side x side; the first begins `before` positions ahead of it.

    Windows at the edges hold only what is there (Swin, arXiv:2103.14030, section 3.2): how the library batches them,
    by padding and by a mask over windows that wrap around, is left out.
    """
    starts = range(-before, side, window)
    lengths = [min(start + window, side) - max(start, 0) for start in starts]
    return sum(length * length for length in lengths) ** 2


def _swinv2_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """Stages of windowed layers, each but the last followed by a merging of 2 x 2 patches (section 3).

    The network of the position biases (section 3.3) runs once for a batch. Its input is a constant.
    """
    width, side = config["embed_dim"], int(length) // config["patch_size"]
    first, inner = _patches_flops(config, batch_size, length, width), 0
    stages = list(zip(config["depths"], config["num_heads"], strict=True))
    for stage, (depth, heads) in enumerate(stages):
        window = min(config["window_size"], side)
        offsets, rows = (2 * window - 1) ** 2, batch_size * side * side
        for layer in range(depth):
            # Every second layer moves its windows on by a half, so that its first one begins before the grid.
            before = window - window // 2 if layer % 2 and side > window else 0
            inner += encoder_linears(rows, width, int(config["mlp_ratio"] * width))
            inner += attend(batch_size * _window_pairs(side, window, before), width)
            inner += linear(offsets, 512, heads)
            first += linear(offsets, 2, 512)
        if stage < len(stages) - 1:
            side, width = side // 2, 2 * width
            inner += linear(batch_size * side * side, 2 * width, width)
    return ForwardFlops(inner=inner, first=first)


VIT = Architecture(
    name="vit",
    title="ViT",
    modality="vision",
    paper="arXiv:2010.11929",
    config_class="ViTConfig",
    model_class="ViTModel",
    sizes={
        "base": {"num_hidden_layers": 12},
        "small": {"num_hidden_layers": 12, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
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
    flops=_vit_flops,
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
    # The first stage is the longest; later ones are shorter and wider.
    stages=lambda config: Shape(
        layers=sum(config["depths"]),
        width=config["embed_dim"],
        heads=config["num_heads"][0],
        wide=int(config["mlp_ratio"] * config["embed_dim"]),
    ),
    efficient_attention="shifted windows of 8 x 8 patches over a hierarchy of four stages",
    flops=_swinv2_flops,
    notes=(
        "positions are those of its first stage, of 4-pixel patches; ViT's patches are 16 pixels wide",
        "later stages pad their grids to a multiple of the 8-patch window, so cost is a staircase",
    ),
)

ROWS = (VIT, SWINV2)
