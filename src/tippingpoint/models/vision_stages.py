"""Image encoders of several stages, each on a coarser grid than the one before.

Lengths are the side of a square in pixels, and positions those of the first stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from tippingpoint.models.architecture import Architecture, Lengths
from tippingpoint.models.flops import AttentionFlops, ForwardFlops, attend, encoder_linears, linear
from tippingpoint.models.shape import Shape
from tippingpoint.models.vision_common import DETERMINISTIC, image, patches_flops

_PATCH = 4


def _positions(length: float) -> int:
    return (int(length) // _PATCH) ** 2


def _positions_padded(window: int) -> Callable[[float], int]:
    """Positions of the first stage once its side is a multiple of the window.

    Later stages pad their own grids, and only for the attention of a layer, not for its feed-forward part: no number
    of positions tells that. The FLOPs that are executed do.
    """

    def executed(length: float) -> int:
        side = int(length) // _PATCH
        own = min(side, window)
        return (-(-side // own) * own) ** 2

    return executed


def _window_pairs(side: int, window: int, before: int) -> int:
    """Return pairs within the windows of a grid of side x side; the first begins `before` positions ahead of it.

    Windows at the edges hold only what is there (Swin, arXiv:2103.14030, section 3.2): how the library batches them,
    by padding and by a mask over windows that wrap around, is left out.
    """
    starts = range(-before, side, window)
    lengths = [min(start + window, side) - max(start, 0) for start in starts]
    return sum(length * length for length in lengths) ** 2


def _swin_flops(config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops) -> ForwardFlops:
    """Stages of windowed layers, each but the last followed by a merging of 2 x 2 patches (section 3)."""
    width, side = config["embed_dim"], int(length) // config["patch_size"]
    first, inner = patches_flops(config, batch_size, length, width), 0
    for stage, depth in enumerate(config["depths"]):
        if stage:
            side, width = side // 2, 2 * width
            inner += linear(batch_size * side * side, 2 * width, width)
        window = min(config["window_size"], side)
        for layer in range(depth):
            # Every second layer moves its windows on by a half, so that its first one begins before the grid.
            before = window - window // 2 if layer % 2 and side > window else 0
            inner += encoder_linears(batch_size * side * side, width, int(config["mlp_ratio"] * width))
            inner += attend(batch_size * _window_pairs(side, window, before), width)
    return ForwardFlops(inner=inner, first=first)


def _swinv2_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """As Swin, with a network of the position biases in each layer (arXiv:2111.09883, section 3.3).

    It runs once for a batch. Its input is a constant.
    """
    layers = _swin_flops(config, batch_size, length, attention)
    first, inner, side = layers.first, layers.inner, int(length) // config["patch_size"]
    for depth, heads in zip(config["depths"], config["num_heads"], strict=True):
        offsets = (2 * min(config["window_size"], side) - 1) ** 2
        first += depth * linear(offsets, 2, 512)
        inner += depth * linear(offsets, 512, heads)
        side //= 2
    return ForwardFlops(inner=inner, first=first)


def _pvt_flops(config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops) -> ForwardFlops:
    """Overlapping patches, attention to a reduced grid, and a convolution in the feed-forward part (section 3).

    Convolutions are counted as if every position had the whole of their window, borders included.
    """
    side, channels, inner, first = int(length), config["num_channels"], 0, 0
    for stage, depth in enumerate(config["depths"]):
        width, reduction = config["hidden_sizes"][stage], config["sr_ratios"][stage]
        wide, kernel = config["mlp_ratios"][stage] * width, config["patch_sizes"][stage]
        side //= config["strides"][stage]
        rows, keys = batch_size * side * side, (side // reduction) ** 2
        embedding = linear(rows, kernel * kernel * channels, width)
        first, inner = (first + embedding, inner) if stage == 0 else (first, inner + embedding)
        queries_and_output, keys_and_values = (
            2 * linear(rows, width, width),
            2 * linear(batch_size * keys, width, width),
        )
        reduced = linear(batch_size * keys, reduction * reduction * width, width) if reduction > 1 else 0
        feed_forward = 2 * linear(rows, width, wide) + linear(rows, 9, wide)
        layer = queries_and_output + keys_and_values + reduced + attend(rows * keys, width) + feed_forward
        inner += depth * layer
        channels = width
    return ForwardFlops(inner=inner, first=first)


def _hiera_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """Layers within mask units or over everything; the first of a later stage pools its queries (section 3).

    That layer makes queries, keys, values and its shortcut, in the new width, of all positions that there were; it
    attends as the stage before does, from the pooled queries.
    """
    positions = prod(int(length) // stride for stride in config["patch_stride"])
    unit, pooled = prod(config["masked_unit_size"]), prod(config["query_stride"])
    width = config["embed_dim"]
    first = linear(batch_size * positions, config["num_channels"] * prod(config["patch_size"]), width)
    inner = 0
    for stage, depth in enumerate(config["depths"]):
        for layer in range(depth):
            opens = layer == 0 and stage > 0
            within = config["masked_unit_attention"][stage] or (opens and config["masked_unit_attention"][stage - 1])
            keys, rows, width_in = unit if within else positions, batch_size * positions, width
            if opens:
                width = int(config["embed_dim"] * config["embed_dim_multiplier"] ** stage)
                inner += linear(rows, width_in, width)
            if opens and stage <= config["num_query_pool"]:
                positions, unit = positions // pooled, unit // pooled
            inner += linear(rows, width_in, 3 * width) + attend(batch_size * positions * keys, width)
            rows = batch_size * positions
            inner += linear(rows, width, width) + 2 * linear(rows, width, int(config["mlp_ratio"] * width))
    return ForwardFlops(inner=inner, first=first)


def _swin_shape(config: Mapping[str, Any]) -> Shape:
    """The first stage is the longest; later ones are shorter and wider."""
    return Shape(
        layers=sum(config["depths"]),
        width=config["embed_dim"],
        heads=config["num_heads"][0],
        wide=int(config["mlp_ratio"] * config["embed_dim"]),
    )


_PVT = {
    **DETERMINISTIC,
    "num_encoder_blocks": 4,
    "hidden_sizes": (64, 128, 320, 512),
    "num_attention_heads": (1, 2, 5, 8),
    "sr_ratios": (8, 4, 2, 1),
    "patch_sizes": (7, 3, 3, 3),
    "strides": (_PATCH, 2, 2, 2),
}
_HIERA = {
    **DETERMINISTIC,
    "num_heads": (1, 2, 4, 8),
    "patch_size": (7, 7),
    "patch_stride": (_PATCH, _PATCH),
    "masked_unit_size": (8, 8),
    "masked_unit_attention": (True, True, False, False),
    "num_query_pool": 3,
    "query_stride": (2, 2),
}
# The published Base and Tiny of Swin and of Swin V2, and one for tests.
_SWIN_BASE = {**DETERMINISTIC, "embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
_SWIN_SMALL = {**DETERMINISTIC, "embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
_SWIN_TESTED = {**DETERMINISTIC, "embed_dim": 32, "depths": (1, 1), "num_heads": (2, 4)}

SWINV2 = Architecture(
    name="swinv2",
    title="Swin V2",
    modality="vision",
    paper="arXiv:2111.09883",
    config_class="Swinv2Config",
    model_class="Swinv2Model",
    # The library's default configuration is the published Tiny.
    sizes={
        "base": {**_SWIN_BASE, "window_size": 8},
        "small": {**_SWIN_SMALL, "window_size": 8},
        "tiny": {**_SWIN_TESTED, "window_size": 8},
    },
    fit=lambda config, length: {"image_size": int(length)},
    inputs=image,
    lengths=Lengths(
        positions=_positions,
        executed=_positions_padded(8),
        minimum=32,
        multiple_of=32,
        reason="its four stages halve a grid of 4-pixel patches",
    ),
    stages=_swin_shape,
    efficient_attention="shifted windows of 8 x 8 patches over a hierarchy of four stages",
    keys_seen=lambda config, positions: config["window_size"] ** 2,
    flops=_swinv2_flops,
    notes=(
        "positions are those of its first stage, of 4-pixel patches; ViT's patches are 16 pixels wide",
        "later stages pad their grids to a multiple of the 8-patch window, so cost is a staircase",
        "stochastic depth is off in training",
    ),
)

SWIN = Architecture(
    name="swin",
    title="Swin",
    modality="vision",
    paper="arXiv:2103.14030",
    config_class="SwinConfig",
    model_class="SwinModel",
    sizes={
        "base": {**_SWIN_BASE, "window_size": 7},
        "small": {**_SWIN_SMALL, "window_size": 7},
        "tiny": {**_SWIN_TESTED, "window_size": 7},
    },
    fit=lambda config, length: {"image_size": int(length)},
    inputs=image,
    # The library shrinks the window to a grid smaller than it, but not the table of position biases, and raises.
    lengths=Lengths(
        positions=_positions,
        executed=_positions_padded(7),
        minimum=224,
        multiple_of=32,
        reason="the grid of its last stage, of 32-pixel cells, must hold a window of 7 x 7",
    ),
    stages=_swin_shape,
    efficient_attention="shifted windows of 7 x 7 patches over a hierarchy of four stages",
    keys_seen=lambda config, positions: config["window_size"] ** 2,
    flops=_swin_flops,
    notes=(
        "positions are those of its first stage, of 4-pixel patches; ViT's patches are 16 pixels wide",
        "stages pad their grids to a multiple of the 7-patch window, unless the side is a multiple of 224 pixels",
        "stochastic depth is off in training",
    ),
)

PVT_V2 = Architecture(
    name="pvt_v2",
    title="PVT v2",
    modality="vision",
    paper="arXiv:2106.13797",
    config_class="PvtV2Config",
    model_class="PvtV2Model",
    # There is no published Base: B5 is as large as the Base models beside it, and B2 as their Small. The library's
    # default configuration is B0.
    sizes={
        "base": {**_PVT, "depths": (3, 6, 40, 3), "mlp_ratios": (4, 4, 4, 4)},
        "small": {**_PVT, "depths": (3, 4, 6, 3), "mlp_ratios": (8, 8, 4, 4)},
        "tiny": {
            **_PVT,
            "hidden_sizes": (16, 32, 64, 64),
            "num_attention_heads": (1, 2, 2, 2),
            "depths": (1, 1, 1, 1),
            "mlp_ratios": (8, 8, 4, 4),
        },
    },
    fit=lambda config, length: {"image_size": int(length)},
    inputs=image,
    lengths=Lengths(
        positions=_positions,
        minimum=32,
        multiple_of=32,
        reason="each of its stages attends to a grid of 32-pixel cells",
    ),
    stages=lambda config: Shape(
        layers=sum(config["depths"]),
        width=config["hidden_sizes"][0],
        heads=config["num_attention_heads"][0],
        wide=config["mlp_ratios"][0] * config["hidden_sizes"][0],
    ),
    efficient_attention="spatial reduction: keys and values on a grid of 32-pixel cells, in each of four stages",
    keys_seen=lambda config, positions: positions // config["sr_ratios"][0] ** 2,
    flops=_pvt_flops,
    notes=(
        "base has the shape of the published B5, small that of B2",
        "positions are those of its first stage, of 4-pixel patches; ViT's patches are 16 pixels wide",
    ),
)

HIERA = Architecture(
    name="hiera",
    title="Hiera",
    modality="vision",
    paper="arXiv:2306.00989",
    config_class="HieraConfig",
    model_class="HieraModel",
    # The published Base (Base Plus is wider) and Small. Mask units are squares only with all four stages.
    sizes={
        "base": {**_HIERA, "embed_dim": 96, "depths": (2, 3, 16, 3)},
        "small": {**_HIERA, "embed_dim": 96, "depths": (1, 2, 11, 2)},
        "tiny": {**_HIERA, "embed_dim": 16, "depths": (1, 1, 2, 1)},
    },
    fit=lambda config, length: {"image_size": (int(length), int(length))},
    limit=lambda config: config["image_size"][0],
    inputs=image,
    lengths=Lengths(
        positions=_positions,
        minimum=32,
        multiple_of=32,
        reason="its mask units are 8 x 8 patches of 4 pixels",
    ),
    stages=_swin_shape,
    efficient_attention="within mask units of 8 x 8 patches in two stages, full in the two coarser ones",
    # The third stage sees all of a grid of 1/16 of the positions, with four times the heads.
    keys_seen=lambda config, positions: max(prod(config["masked_unit_size"]), positions // 64),
    flops=_hiera_flops,
    notes=("positions are those of its first stage, of 4-pixel patches; ViT's patches are 16 pixels wide",),
)

STAGED = (SWINV2, SWIN, PVT_V2, HIERA)
