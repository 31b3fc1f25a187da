"""Text encoders that mix positions by hashing, sampling, Fourier transforms or pooling. Lengths are tokens."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from tippingpoint.models.architecture import Architecture, Lengths
from tippingpoint.models.flops import AttentionFlops, ForwardFlops, attend, encoder_linears, linear, pooler
from tippingpoint.models.shape import KEYS, Shape, plain_shape
from tippingpoint.models.text_common import round_up, sizes, token_inputs, tokens

_CHUNK = 64
# A stack without attention has no heads.
_FNET_KEYS = {name: key for name, key in KEYS.items() if name != "heads"}


def _fnet_flops(config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops) -> ForwardFlops:
    """A projection after the embeddings, and feed-forward parts; a fast Fourier transform is no matrix product."""
    width, rows = config["hidden_size"], batch_size * int(length)
    feed_forward = 2 * linear(rows, width, config["intermediate_size"])
    return ForwardFlops(
        inner=linear(rows, width, width) + config["num_hidden_layers"] * feed_forward,
        unreached=pooler(batch_size, width),
    )


def _yoso_flops(config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops) -> ForwardFlops:
    """The expectation of its sampling (arXiv:2111.09714, section 3.2): a score for every pair of positions."""
    shape, rows = plain_shape(config), batch_size * int(length)
    layer = encoder_linears(rows, shape.width, shape.wide) + attend(batch_size * int(length) ** 2, shape.width)
    layer += linear(rows, config["conv_window"] or 0, shape.width)
    return ForwardFlops(inner=shape.layers * layer)


def _reformer_fit(config: Mapping[str, Any], length: float) -> dict[str, Any]:
    """Positions by row and column of a grid that holds the padded length, and about two chunks' worth of buckets.

    In training the library demands that the grid is as large as the input. Buckets are as many as the library would
    choose by itself at its first call, and keep for all later ones.
    """
    padded = round_up(length, _CHUNK)
    return {
        "axial_pos_shape": (padded // _CHUNK, _CHUNK),
        "max_position_embeddings": padded,
        "num_buckets": 2 ** ((2 * padded // _CHUNK).bit_length() - 1),
    }


def _reformer_inputs(config: Mapping[str, Any], batch_size: int, length: float, generator: Any) -> dict[str, Any]:
    """Tokens padded to whole chunks, as the library demands in training and does by itself in inference."""
    import torch

    ids = token_inputs(config, batch_size, length, generator)["input_ids"]
    padding = round_up(length, config["lsh_attn_chunk_length"]) - int(length)
    if not padding:
        return {"input_ids": ids}
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, padding))
    return {
        "input_ids": torch.nn.functional.pad(ids, (0, padding), value=config["pad_token_id"]),
        "attention_mask": mask,
    }


def _reformer_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """Chunks that see themselves and the one before (arXiv:2001.04451, section 2): in the text, or as sorted by hash.

    The chunk before the first is the last. Queries are keys where they are hashed, so there is one projection less. A
    hash is the nearest of random directions (a half of the buckets; the other half are their opposites), which no
    gradient goes through.
    """
    width, rows, hashes = config["hidden_size"], batch_size * int(length), config["num_hashes"]
    hashed = sum(kind == "lsh" for kind in config["attn_layers"])
    layers = len(config["attn_layers"])
    chunks = 1 + config["local_num_chunks_before"] + config["local_num_chunks_after"]
    near = attend(rows * chunks * config["local_attn_chunk_length"], width)
    chunks = 1 + config["lsh_num_chunks_before"] + config["lsh_num_chunks_after"]
    alike = hashes * attend(rows * chunks * config["lsh_attn_chunk_length"], width)
    linears = layers * encoder_linears(rows, width, config["feed_forward_size"]) - hashed * linear(rows, width, width)
    hashing = hashed * hashes * linear(rows, width, config["num_buckets"] // 2)
    return ForwardFlops(inner=linears + (layers - hashed) * near + hashed * alike, unreached=hashing)


def _reformer_size(layers: int, width: int, heads: int, wide: int, **others: Any) -> dict[str, Any]:
    """Return a configuration; positions' rows take a quarter of the width and their columns the rest.

    Hashes are seeded, so that outputs repeat; their cost does not depend on it.
    """
    return {
        "attn_layers": ("local", "lsh") * (layers // 2),
        "hidden_size": width,
        "num_attention_heads": heads,
        "attention_head_size": width // heads,
        "feed_forward_size": wide,
        "axial_pos_embds_dim": (width // 4, width - width // 4),
        "local_attn_chunk_length": _CHUNK,
        "lsh_attn_chunk_length": _CHUNK,
        "num_hashes": 4,
        "hash_seed": 0,
        "vocab_size": 30522,
        **others,
    }


def _funnel_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """Blocks of layers, each of half the length of the one before (arXiv:2006.03236, sections 2.2 and A.2).

    The first layer of a block has pooled queries, and keys and values that are not. Beside its content, a score has a
    part for the distance (a projected sinusoid: once for a batch, and a constant comes in) and one of two for the
    segment.
    """
    width, wide, keys = config["d_model"], config["d_inner"], int(length)
    inner = first = 0
    for block, depth in enumerate(config["block_sizes"]):
        queries = -(-keys // 2) if block else keys
        for _ in range(depth):
            rows = batch_size * queries
            inner += 2 * linear(rows, width, width) + 2 * linear(batch_size * keys, width, width)
            inner += 2 * linear(rows, width, wide)
            inner += 3 * linear(rows * keys, width, 1) + linear(rows, width, 2)
            first += linear(_distances(queries, keys), width, width)
            keys = queries
    return ForwardFlops(inner=inner, first=first)


def _distances(queries: int, keys: int) -> int:
    """Return how many distances there are: of all positions from all, or of every second from all."""
    return 2 * queries + keys - 2 if queries < keys else 2 * keys - 1


FNET = Architecture(
    name="fnet",
    title="FNet",
    modality="text",
    paper="arXiv:2105.03824",
    config_class="FNetConfig",
    model_class="FNetModel",
    sizes=sizes(_FNET_KEYS, every={"vocab_size": 32000, "type_vocab_size": 4}),
    fit=lambda config, length: {"max_position_embeddings": max(512, int(length))},
    limit=lambda config: config["max_position_embeddings"],
    inputs=token_inputs,
    lengths=Lengths(positions=tokens),
    keys=_FNET_KEYS,
    efficient_attention="none: a Fourier transform over positions and width in its place",
    unmasked="it has no attention to mask, and its tokenizer hands no mask over",
    keys_seen=lambda config, positions: 0,
    flops=_fnet_flops,
    needs_float32="the Fourier transforms of PyTorch have no bfloat16",
    trains_in_float32="the Fourier transforms of PyTorch have no bfloat16, and autocast on CUDA hands it to them",
    notes=(
        "its Fourier transforms are no matrix products and are in no FLOPs; by the usual 5 n log2 n they would be "
        "less than 1 % at Base",
    ),
)

YOSO = Architecture(
    name="yoso",
    title="YOSO (expectation)",
    modality="text",
    paper="arXiv:2111.09714",
    config_class="YosoConfig",
    model_class="YosoModel",
    sizes=sizes(every={"vocab_size": 50265, "use_expectation": True, "hash_code_len": 9}),
    fit=lambda config, length: {"max_position_embeddings": max(4096, int(length))},
    limit=lambda config: config["max_position_embeddings"],
    inputs=token_inputs,
    lengths=Lengths(positions=tokens),
    efficient_attention="the expectation of Bernoulli sampling, which is quadratic",
    flops=_yoso_flops,
    notes=(
        "what runs is the expectation of its sampling; the sampling itself, which is linear, needs CUDA kernels that "
        "the library would download",
        "the library (5.23) ignores a [batch, length] padding mask",
    ),
)

REFORMER = Architecture(
    name="reformer",
    title="Reformer (encoder)",
    modality="text",
    paper="arXiv:2001.04451",
    config_class="ReformerConfig",
    model_class="ReformerModel",
    # No Base was published: this is BERT Base's shape. Layers that see their neighbourhood and layers that hash
    # alternate, in chunks of 64, as in the published character model.
    sizes={
        "base": _reformer_size(12, 768, 12, 3072),
        "small": _reformer_size(4, 512, 8, 2048),
        "tiny": _reformer_size(2, 64, 2, 128, vocab_size=1000),
    },
    fit=_reformer_fit,
    limit=lambda config: config["axial_pos_shape"][0] * config["axial_pos_shape"][1],
    inputs=_reformer_inputs,
    lengths=Lengths(
        positions=tokens,
        executed=partial(round_up, multiple=_CHUNK),
        minimum=_CHUNK + 1,
        reason="with no more positions than a chunk of 64 the library runs full attention",
    ),
    stages=lambda config: Shape(
        layers=len(config["attn_layers"]),
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        wide=config["feed_forward_size"],
    ),
    efficient_attention="chunks of 64 and the one before, in every second layer as sorted by 4 rounds of hashing",
    flops=_reformer_flops,
    trains_at_one_length="in training the library demands inputs as long as its grid of positions",
    notes=(
        "no Base was published; this is BERT Base's shape",
        "inputs are padded to a multiple of 64, as the library demands in training",
        "its layers are reversible: the backward pass computes them again, and under autocast it does so in float32",
    ),
)

FUNNEL = Architecture(
    name="funnel",
    title="Funnel Transformer (B4-4-4)",
    modality="text",
    paper="arXiv:2006.03236",
    config_class="FunnelConfig",
    model_class="FunnelBaseModel",
    # Base is the published B4-4-4H768, as deep as BERT Base.
    sizes={
        "base": {"block_sizes": (4, 4, 4), "d_model": 768, "n_head": 12, "d_head": 64, "d_inner": 3072},
        "small": {"block_sizes": (2, 1, 1), "d_model": 512, "n_head": 8, "d_head": 64, "d_inner": 2048},
        "tiny": {
            "block_sizes": (1, 1, 1),
            "d_model": 64,
            "n_head": 2,
            "d_head": 32,
            "d_inner": 128,
            "vocab_size": 1000,
        },
    },
    fit=lambda config, length: {"pad_token_id": 0},
    inputs=token_inputs,
    lengths=Lengths(positions=tokens, minimum=5, reason="fewer leave its last block nothing to halve"),
    # The first block is the longest; later ones are shorter.
    stages=lambda config: Shape(
        layers=sum(config["block_sizes"]), width=config["d_model"], heads=config["n_head"], wide=config["d_inner"]
    ),
    efficient_attention="full attention with relative positions over a hierarchy that halves the text twice",
    flops=_funnel_flops,
    notes=(
        "without the decoder, whose place is in pre-training: a quarter of the positions come out",
        "the library scores twice as many distances as there are and throws half of them away",
    ),
)
