"""Image encoders that are plain stacks; those of several stages stand in vision_stages.

Lengths are the side of a square in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tippingpoint.models.architecture import Architecture, Lengths
from tippingpoint.models.flops import AttentionFlops, ForwardFlops, encoder, pooler
from tippingpoint.models.shape import KEYS, plain_shape
from tippingpoint.models.vision_common import DETERMINISTIC, image, patches_flops
from tippingpoint.models.vision_stages import STAGED

_REGISTERS = 4

# The shapes that the authors of ViT and DeiT call Base and Small; tiny is for tests.
_SIZES: Mapping[str, Mapping[str, Any]] = {
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "small": {"num_hidden_layers": 12, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128},
}


def _sizes(**values: Any) -> dict[str, dict[str, Any]]:
    """Return the sizes of a plain ViT with further configuration values."""
    return {size: {**shape, **values} for size, shape in _SIZES.items()}


def _lengths(patch: int, others: int) -> Lengths:
    """Return the rules of square patches with `others` positions beside them."""
    return Lengths(
        positions=lambda length: (int(length) // patch) ** 2 + others,
        minimum=patch,
        multiple_of=patch,
        reason=f"its patches are {patch} pixels wide",
    )


def _flops(
    others: int, *, pools: bool = False, keys: Mapping[str, str] = KEYS
) -> Callable[[Mapping[str, Any], int, float, AttentionFlops], ForwardFlops]:
    """Return the closed form of a plain ViT (arXiv:2010.11929, section 3.1).

    Args:
        others: Positions beside the patches: class token, distillation token, registers.
        pools: Whether a linear layer stands on the class token.
        keys: What the configuration calls the attributes of a shape.
    """

    def flops(config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops) -> ForwardFlops:
        positions = (int(length) // config["patch_size"]) ** 2 + others
        shape = plain_shape(config, keys)
        return ForwardFlops(
            inner=encoder(shape, batch_size, positions, attention),
            first=patches_flops(config, batch_size, length, shape.width),
            unreached=pooler(batch_size, shape.width) if pools else 0,
        )

    return flops


def _image_size(config: Mapping[str, Any], length: float) -> dict[str, Any]:
    return {"image_size": int(length)}


VIT = Architecture(
    name="vit",
    title="ViT",
    modality="vision",
    paper="arXiv:2010.11929",
    config_class="ViTConfig",
    model_class="ViTModel",
    sizes=_sizes(patch_size=16),
    fit=_image_size,
    limit=lambda config: config["image_size"],
    inputs=image,
    lengths=_lengths(16, others=1),
    flops=_flops(others=1, pools=True),
)

DEIT = Architecture(
    name="deit",
    title="DeiT",
    modality="vision",
    paper="arXiv:2012.12877",
    config_class="DeiTConfig",
    model_class="DeiTModel",
    sizes=_sizes(patch_size=16),
    fit=_image_size,
    limit=lambda config: config["image_size"],
    inputs=image,
    lengths=_lengths(16, others=2),
    flops=_flops(others=2, pools=True),
    notes=("the distilled model: a distillation token stands beside the class token",),
)

_DINOV2_KEYS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "ratio": "mlp_ratio",
}
DINOV2 = Architecture(
    name="dinov2",
    title="DINOv2",
    modality="vision",
    paper="arXiv:2304.07193",
    config_class="Dinov2Config",
    model_class="Dinov2Model",
    # ViT-B/14 and ViT-S/14; the published models have the plain feed-forward part (only the giant has gates).
    sizes={
        size: {
            **{key: value for key, value in shape.items() if key != "intermediate_size"},
            **DETERMINISTIC,
            "mlp_ratio": shape["intermediate_size"] // shape["hidden_size"],
            "patch_size": 14,
        }
        for size, shape in _SIZES.items()
    },
    # The published positions are for 518 pixels, and the model interpolates them to any other size in every call; a
    # table of the length's own size is left as it is.
    fit=_image_size,
    inputs=image,
    lengths=_lengths(14, others=1),
    keys=_DINOV2_KEYS,
    flops=_flops(others=1, keys=_DINOV2_KEYS),
    notes=("random weights have positions for the length itself; a checkpoint interpolates its own in every call",),
)

CLIP_VISION = Architecture(
    name="clip_vision_model",
    title="CLIP, vision tower",
    modality="vision",
    paper="arXiv:2103.00020",
    config_class="CLIPVisionConfig",
    model_class="CLIPVisionModel",
    # ViT-B/16; the library's default configuration is ViT-B/32. There is no published smaller one.
    sizes=_sizes(patch_size=16),
    fit=_image_size,
    limit=lambda config: config["image_size"],
    inputs=image,
    lengths=_lengths(16, others=1),
    flops=_flops(others=1),
    notes=("of ViT-B/16, without the projection to the space it shares with text",),
)

DINOV3 = Architecture(
    name="dinov3_vit",
    title="DINOv3",
    modality="vision",
    paper="arXiv:2508.10104",
    config_class="DINOv3ViTConfig",
    model_class="DINOv3ViTModel",
    # ViT-B/16 and ViT-S/16; the library's default configuration is Small without registers, and scales the
    # coordinates of the patches at random in training.
    sizes=_sizes(**DETERMINISTIC, patch_size=16, num_register_tokens=_REGISTERS, pos_embed_rescale=None),
    fit=_image_size,
    inputs=image,
    lengths=_lengths(16, others=1 + _REGISTERS),
    flops=_flops(others=1 + _REGISTERS),
    notes=(
        "four registers stand beside the class token",
        "coordinates of patches are not scaled at random in training, so that every step does the same work",
    ),
)


def _beit_inputs(config: Mapping[str, Any], batch_size: int, length: float, generator: Any) -> dict[str, Any]:
    """Images, and the library's index of position biases made where training can use it.

    The library makes it in the first call of a process for each grid and keeps it; made in inference mode, training
    in the same process could not save it for the backward pass.
    """
    import torch
    from transformers.models.beit.modeling_beit import BeitRelativePositionBias

    side = int(length) // config["patch_size"]
    with torch.inference_mode(False):
        BeitRelativePositionBias.generate_relative_position_index((side, side))
    return image(config, batch_size, length, generator)


BEIT = Architecture(
    name="beit",
    title="BEiT",
    modality="vision",
    paper="arXiv:2106.08254",
    config_class="BeitConfig",
    model_class="BeitModel",
    # The library's default configuration has no positions at all; the published models have the biases.
    sizes=_sizes(
        **DETERMINISTIC,
        patch_size=16,
        use_relative_position_bias=True,
        use_shared_relative_position_bias=False,
        use_absolute_position_embeddings=False,
        use_mean_pooling=True,
        layer_scale_init_value=0.1,
    ),
    fit=_image_size,
    inputs=_beit_inputs,
    lengths=_lengths(16, others=1),
    own_scores="a bias for the relative position of two patches, learned in each layer",
    flops=_flops(others=1),
    notes=(
        "every layer gathers a bias for every pair of positions in each call, from an index that stays on the CPU",
        "stochastic depth is off in training",
    ),
)

ROWS = (VIT, DEIT, DINOV2, CLIP_VISION, DINOV3, BEIT, *STAGED)
