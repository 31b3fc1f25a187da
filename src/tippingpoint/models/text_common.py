"""What the text encoders share: sizes, inputs and length arithmetic. Lengths are tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tippingpoint.models.flops import AttentionFlops, ForwardFlops, encoder, pooler
from tippingpoint.models.shape import KEYS, plain_shape

# Configurations that are not derived from BERT's have these names for depth, width, heads and inner size.
ENCODER_DECODER_KEYS = {
    "layers": "encoder_layers",
    "width": "d_model",
    "heads": "encoder_attention_heads",
    "wide": "encoder_ffn_dim",
}
T5_KEYS = {"layers": "num_layers", "width": "d_model", "heads": "num_heads", "wide": "d_ff"}


def sizes(
    keys: Mapping[str, str] = KEYS,
    *,
    every: Mapping[str, Any],
    base: Mapping[str, Any] | None = None,
    tiny: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the configurations of an architecture by size; small and tiny have the same shape in all of them.

    Args:
        keys: What the configuration calls each attribute of a shape; one that is left out is not written.
        base: Of the published Base model alone; what it leaves out is as in BERT Base.
        every: Of all sizes, whatever their shape.
        tiny: Of the tiny one alone, such as special tokens beyond its vocabulary.
    """

    def shaped(**shape: int) -> dict[str, int]:
        return {keys[name]: value for name, value in shape.items() if name in keys}

    return {
        "base": {**every, **shaped(layers=12, width=768, heads=12, wide=3072), **(base or {})},
        "small": {**every, **shaped(layers=4, width=512, heads=8, wide=2048)},
        "tiny": {**every, **shaped(layers=2, width=64, heads=2, wide=128), "vocab_size": 1000, **(tiny or {})},
    }


def tokens(length: float) -> int:
    """Return the positions of a text: its tokens."""
    return int(length)


def round_up(length: float, multiple: int) -> int:
    """Return the least multiple that is no shorter."""
    return -(-int(length) // multiple) * multiple


def token_inputs(config: Mapping[str, Any], batch_size: int, length: float, generator: Any) -> dict[str, Any]:
    """Random tokens, none of them padding; no mask, since nothing is padded."""
    import torch

    ids = torch.randint(5, config["vocab_size"], (batch_size, int(length)), generator=generator)
    return {"input_ids": ids.masked_fill_(ids == config["pad_token_id"], 5)}


def pooled_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """Layers like the first Transformer's and a pooler, as BERT has them."""
    shape = plain_shape(config)
    layers = encoder(shape, batch_size, int(length), attention)
    return ForwardFlops(inner=layers, unreached=pooler(batch_size, shape.width))
