"""Text encoders: configurations, inputs and length arithmetic. Lengths are tokens."""

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
    local_pairs,
    pooler,
)
from tippingpoint.models.shape import plain_shape

LONGFORMER_WINDOW = 512
NYSTROM_LANDMARKS = 64

_BASE = {"num_hidden_layers": 12}
_SMALL = {"num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
_TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 1000,
}


def _tokens(length: float) -> int:
    return int(length)


def _round_up(length: float, multiple: int) -> int:
    return -(-int(length) // multiple) * multiple


def _token_inputs(config: Mapping[str, Any], batch_size: int, length: float, generator: Any) -> dict[str, Any]:
    """Random tokens, none of them a special one; no mask, since nothing is padded."""
    import torch

    tokens = torch.randint(5, config["vocab_size"], (batch_size, int(length)), generator=generator)
    return {"input_ids": tokens}


def _nystromformer_inputs(
    config: Mapping[str, Any], batch_size: int, length: float, generator: Any
) -> dict[str, Any]:
    """Tokens padded to the length the model was built for, and the mask that says so.

    The library's own expansion of a [batch, length] mask has a row for each query and does not fit the rows
    of the landmarks (transformers 5.23 raises a shape error), so the mask is handed over expanded: additive,
    [batch, 1, 1, length].
    """
    import torch

    tokens = _token_inputs(config, batch_size, length, generator)["input_ids"]
    padding = config["segment_means_seq_len"] - int(length)
    if not padding:
        return {"input_ids": tokens}
    tokens = torch.nn.functional.pad(tokens, (0, padding), value=config["pad_token_id"])
    mask = torch.zeros(batch_size, 1, 1, tokens.shape[1])
    mask[..., int(length) :] = torch.finfo(mask.dtype).min
    return {"input_ids": tokens, "attention_mask": mask}


def _bert_flops(config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops) -> ForwardFlops:
    shape = plain_shape(config)
    layers = encoder(shape, batch_size, int(length), attention)
    return ForwardFlops(inner=layers, unreached=pooler(batch_size, shape.width))


def _longformer_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """The band alone (section 3.1): no padding, and none of the overlap of the library's chunks."""
    width, layers, windows = config["hidden_size"], config["num_hidden_layers"], config["attention_window"]
    if isinstance(windows, int):  # until the library's model has made it one for each layer
        windows = [windows] * layers
    bands = sum(local_pairs(int(length), window=window // 2) for window in windows)
    linears = layers * encoder_linears(batch_size * int(length), width, config["intermediate_size"])
    return ForwardFlops(inner=linears + attend(batch_size * bands, width), unreached=pooler(batch_size, width))


def _nystromformer_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """The products in the order of section 3 (its complexity: n m^2 + m n d + m^3 + n m d), at n positions."""
    width, heads, marks = config["hidden_size"], config["num_attention_heads"], config["num_landmarks"]
    rows, rows_of_marks = batch_size * int(length), batch_size * marks
    scores = 2 * linear(rows, width, marks) + linear(rows_of_marks, width, marks)
    # Six steps of the iteration towards the pseudo-inverse (equation 11), each of four products of a head.
    inverse = 6 * 4 * linear(heads * rows_of_marks, marks, marks)
    values = linear(heads * rows, marks, marks) + 2 * linear(rows, width, marks)
    skip = linear(rows, config["conv_kernel_size"] or 0, width)
    layer = encoder_linears(rows, width, config["intermediate_size"]) + scores + inverse + values + skip
    return ForwardFlops(inner=config["num_hidden_layers"] * layer)


BERT = Architecture(
    name="bert",
    title="BERT",
    modality="text",
    paper="arXiv:1810.04805",
    config_class="BertConfig",
    model_class="BertModel",
    sizes={"base": {**_BASE, "vocab_size": 30522}, "small": {**_SMALL, "vocab_size": 30522}, "tiny": _TINY},
    # Positions of the published model end at 512; random weights let the table grow with the length.
    fit=lambda config, length: {"max_position_embeddings": max(512, int(length))},
    limit=lambda config: config["max_position_embeddings"],
    inputs=_token_inputs,
    lengths=Lengths(positions=_tokens),
    flops=_bert_flops,
)

LONGFORMER = Architecture(
    name="longformer",
    title="Longformer",
    modality="text",
    paper="arXiv:2004.05150",
    config_class="LongformerConfig",
    model_class="LongformerModel",
    sizes={
        "base": {**_BASE, "vocab_size": 50265, "attention_window": LONGFORMER_WINDOW, "type_vocab_size": 1},
        "small": {**_SMALL, "vocab_size": 50265, "attention_window": LONGFORMER_WINDOW, "type_vocab_size": 1},
        "tiny": {**_TINY, "attention_window": LONGFORMER_WINDOW, "type_vocab_size": 1},
    },
    # Two more than the padded length, as in RoBERTa: positions start after the padding index.
    fit=lambda config, length: {
        "max_position_embeddings": max(4098, 2 + _round_up(length, config["attention_window"])),
        "pad_token_id": 1,
    },
    limit=lambda config: config["max_position_embeddings"] - 2,
    inputs=_token_inputs,
    lengths=Lengths(positions=_tokens, executed=lambda length: _round_up(length, LONGFORMER_WINDOW)),
    efficient_attention="a sliding window of 512 (radius 256)",
    flops=_longformer_flops,
    notes=(
        "the library pads inputs to a multiple of 512, so cost is a staircase",
        "no global attention is asked for; the unused global projections add 21.3 M parameters at Base",
    ),
)

NYSTROMFORMER = Architecture(
    name="nystromformer",
    title="Nystromformer",
    modality="text",
    paper="arXiv:2102.03902",
    config_class="NystromformerConfig",
    model_class="NystromformerModel",
    sizes={
        "base": {**_BASE, "vocab_size": 30000, "num_landmarks": NYSTROM_LANDMARKS, "conv_kernel_size": 65},
        "small": {**_SMALL, "vocab_size": 30000, "num_landmarks": NYSTROM_LANDMARKS, "conv_kernel_size": 65},
        "tiny": {**_TINY, "num_landmarks": NYSTROM_LANDMARKS, "conv_kernel_size": 65},
    },
    # The library reshapes by this number, which must equal the real length; where it equals the number of
    # landmarks the model silently takes full attention, hence the minimum length below.
    fit=lambda config, length: {
        "segment_means_seq_len": _round_up(length, config["num_landmarks"]),
        "max_position_embeddings": max(510, _round_up(length, config["num_landmarks"])),
        "pad_token_id": 1,
    },
    limit=lambda config: config["max_position_embeddings"],
    inputs=_nystromformer_inputs,
    lengths=Lengths(
        positions=_tokens,
        executed=lambda length: _round_up(length, NYSTROM_LANDMARKS),
        minimum=NYSTROM_LANDMARKS + 1,
        reason="with no more positions than its 64 landmarks the library runs full attention",
    ),
    efficient_attention="the Nystrom approximation with 64 landmarks",
    flops=_nystromformer_flops,
    needs_float32="the library inverts matrices with a float32 identity",
    notes=("inputs are padded to a multiple of its 64 landmarks, as the library demands",),
)

ROWS = (BERT, LONGFORMER, NYSTROMFORMER)
