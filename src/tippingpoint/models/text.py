"""Text encoders with full attention: configurations, inputs and length arithmetic. Lengths are tokens.

Those with another attention stand in `text_windows` and `text_mixing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from tippingpoint.models.architecture import Architecture, Lengths
from tippingpoint.models.flops import AttentionFlops, ForwardFlops, attend, encoder, linear, local_pairs
from tippingpoint.models.shape import plain_shape
from tippingpoint.models.text_common import (
    ENCODER_DECODER_KEYS,
    T5_KEYS,
    pooled_flops,
    sizes,
    token_inputs,
    tokens,
)
from tippingpoint.models.text_mixing import FNET, FUNNEL, REFORMER, YOSO
from tippingpoint.models.text_windows import BIGBIRD, LED, LONGFORMER, LONGT5, NYSTROMFORMER


def _encoder_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops, keys: Mapping[str, str]
) -> ForwardFlops:
    return ForwardFlops(inner=encoder(plain_shape(config, keys), batch_size, int(length), attention))


def _modernbert_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """Layers whose feed-forward part is gated: two matrices in, one out (arXiv:2412.13663, section 2.1).

    Where `layer_types` says so, a layer sees within half of `local_attention` on either side; the others see all.
    """
    shape, rows = plain_shape(config), batch_size * int(length)
    full = [layer for layer, kind in enumerate(config["layer_types"]) if kind == "full_attention"]
    band = local_pairs(int(length), window=config["local_attention"] // 2)
    linears = 4 * linear(rows, shape.width, shape.width) + 3 * linear(rows, shape.width, shape.wide)
    attending = attention(int(length), shape.heads, shape.head_dim, full)
    attending += (shape.layers - len(full)) * attend(band, shape.width)
    return ForwardFlops(inner=shape.layers * linears + batch_size * attending)


BERT = Architecture(
    name="bert",
    title="BERT",
    modality="text",
    paper="arXiv:1810.04805",
    config_class="BertConfig",
    model_class="BertModel",
    sizes=sizes(every={"vocab_size": 30522}),
    # Positions of the published model end at 512; random weights let the table grow with the length.
    fit=lambda config, length: {"max_position_embeddings": max(512, int(length))},
    limit=lambda config: config["max_position_embeddings"],
    inputs=token_inputs,
    lengths=Lengths(positions=tokens),
    flops=pooled_flops,
)

ROBERTA = Architecture(
    name="roberta",
    title="RoBERTa",
    modality="text",
    paper="arXiv:1907.11692",
    config_class="RobertaConfig",
    model_class="RobertaModel",
    sizes=sizes(every={"vocab_size": 50265, "type_vocab_size": 1, "pad_token_id": 1}),
    # Two more than there are positions: they are counted from behind the padding index.
    fit=lambda config, length: {"max_position_embeddings": max(514, 2 + int(length))},
    limit=lambda config: config["max_position_embeddings"] - 2,
    inputs=token_inputs,
    lengths=Lengths(positions=tokens),
    flops=pooled_flops,
)

MODERNBERT = Architecture(
    name="modernbert",
    title="ModernBERT",
    modality="text",
    paper="arXiv:2412.13663",
    config_class="ModernBertConfig",
    model_class="ModernBertModel",
    # Base is the published one of 149 M parameters: 22 layers, of which every third, from the first, attends fully.
    sizes=sizes(
        base={"num_hidden_layers": 22, "intermediate_size": 1152},
        every={"vocab_size": 50368, "local_attention": 128, "global_attn_every_n_layers": 3},
        tiny=dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id"), 0),
    ),
    # Positions are rotations of queries and keys; the number limits nothing but what a checkpoint was trained for.
    fit=lambda config, length: {"max_position_embeddings": max(8192, int(length))},
    limit=lambda config: config["max_position_embeddings"],
    inputs=token_inputs,
    lengths=Lengths(positions=tokens),
    flops=_modernbert_flops,
    notes=(
        "two of three layers see a window of 128 (radius 64) and keep it whatever the variant, which goes into the "
        "others",
        "without FlashAttention the library computes every score of a local layer and masks it, so what runs is "
        "quadratic in all layers",
    ),
)

BART = Architecture(
    name="bart",
    title="BART (encoder)",
    modality="text",
    paper="arXiv:1910.13461",
    config_class="BartConfig",
    model_class="BartModel",
    part="encoder",
    # The library's default is BART Large; Base has 6 layers. No decoder is built.
    sizes=sizes(
        ENCODER_DECODER_KEYS,
        base={"encoder_layers": 6},
        every={"vocab_size": 50265, "decoder_layers": 0, "encoder_layerdrop": 0.0},
    ),
    fit=lambda config, length: {"max_position_embeddings": max(1024, int(length))},
    limit=lambda config: config["max_position_embeddings"],
    inputs=token_inputs,
    lengths=Lengths(positions=tokens),
    keys=ENCODER_DECODER_KEYS,
    flops=partial(_encoder_flops, keys=ENCODER_DECODER_KEYS),
    notes=("only its encoder; at Base that is 6 layers, where BERT has 12",),
)

T5 = Architecture(
    name="t5",
    title="T5 (encoder)",
    modality="text",
    paper="arXiv:1910.10683",
    config_class="T5Config",
    model_class="T5EncoderModel",
    # The library's default is T5 Small.
    sizes=sizes(
        T5_KEYS,
        every={"vocab_size": 32128, "feed_forward_proj": "relu", "d_kv": 64},
        tiny={"d_kv": 32},
    ),
    inputs=token_inputs,
    lengths=Lengths(positions=tokens),
    keys=T5_KEYS,
    own_scores="a learned bias for each distance of two positions",
    flops=partial(_encoder_flops, keys=T5_KEYS),
    notes=(
        "only its encoder",
        "the position biases are a dense [heads, length, length] mask, which keeps fused attention from its fastest "
        "kernels",
    ),
)

ROWS = (
    BERT,
    ROBERTA,
    MODERNBERT,
    BART,
    T5,
    LONGFORMER,
    LED,
    BIGBIRD,
    LONGT5,
    NYSTROMFORMER,
    FNET,
    YOSO,
    REFORMER,
    FUNNEL,
)
