"""Text encoders that see windows, blocks or landmarks in place of the whole text. Lengths are tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tippingpoint.models.architecture import Architecture, Lengths
from tippingpoint.models.flops import (
    AttentionFlops,
    ForwardFlops,
    attend,
    encoder_linears,
    linear,
    local_pairs,
    pooler,
)
from tippingpoint.models.shape import plain_shape
from tippingpoint.models.text_common import (
    ENCODER_DECODER_KEYS,
    T5_KEYS,
    round_up,
    sizes,
    token_inputs,
    tokens,
)

_LONGFORMER_WINDOW = 512
_LED_WINDOW = 1024
_LANDMARKS = 64
_BLOCK = 64
_RANDOM_BLOCKS = 3
# Up to as many blocks as two global ones, three of the window and twice the random ones, BigBird attends fully.
_FULL_BLOCKS = 5 + 2 * _RANDOM_BLOCKS


def _nystromformer_inputs(
    config: Mapping[str, Any], batch_size: int, length: float, generator: Any
) -> dict[str, Any]:
    """Tokens padded to a multiple of the landmarks, and the mask that says so.

    The library's own expansion of a [batch, length] mask has a row for each query and does not fit the rows
    of the landmarks (transformers 5.23 raises a shape error), so the mask is handed over expanded: additive,
    [batch, 1, 1, length].
    """
    import torch

    ids = token_inputs(config, batch_size, length, generator)["input_ids"]
    padding = round_up(length, config["num_landmarks"]) - int(length)
    if not padding:
        return {"input_ids": ids}
    ids = torch.nn.functional.pad(ids, (0, padding), value=config["pad_token_id"])
    mask = torch.zeros(batch_size, 1, 1, ids.shape[1])
    mask[..., int(length) :] = torch.finfo(mask.dtype).min
    return {"input_ids": ids, "attention_mask": mask}


def _nystromformer_mask(real: Any) -> Any:
    """The mask as the library's layers take it, additive; see `_nystromformer_inputs`."""
    import torch

    return torch.zeros(real.shape).masked_fill_(~real, torch.finfo(torch.float32).min)[:, None, None, :]


def _tell_nystromformer(model: Any, length: float) -> None:
    """The library's layers keep the padded length as a number, and reshape by it; no weight depends on it."""
    for module in model.modules():
        if hasattr(module, "num_landmarks"):
            module.seq_len = round_up(length, module.num_landmarks)


def _bands_flops(config: Mapping[str, Any], batch_size: int, length: float, keys: Mapping[str, str] | None) -> int:
    """The band alone (section 3.1): no padding, and none of the overlap of the library's chunks."""
    shape, windows = plain_shape(config, keys) if keys else plain_shape(config), config["attention_window"]
    if isinstance(windows, int):  # until the library's model has made it one for each layer
        windows = [windows] * shape.layers
    bands = sum(local_pairs(int(length), window=window // 2) for window in windows)
    linears = shape.layers * encoder_linears(batch_size * int(length), shape.width, shape.wide)
    return linears + attend(batch_size * bands, shape.width)


def _longformer_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    return ForwardFlops(
        inner=_bands_flops(config, batch_size, length, None), unreached=pooler(batch_size, config["hidden_size"])
    )


def _led_flops(config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops) -> ForwardFlops:
    return ForwardFlops(inner=_bands_flops(config, batch_size, length, ENCODER_DECODER_KEYS))


def _bigbird_pairs(length: int, block: int, random: int) -> int:
    """Pairs of the definition (arXiv:2007.14062, section 2), in blocks as in its appendix D.

    The first and the last block see all and are seen by all; the others see themselves, their neighbours and random
    blocks. The last block may be shorter. Random blocks are no others' twice, as in training.
    """
    count = -(-length // block)
    last = length - (count - 1) * block
    outer = (block + last) * length
    # The first or the last block is a neighbour of the second and of the one before the last.
    next_to_them = 2 * block * ((3 + random) * block + last)
    middle = (count - 4) * block * ((4 + random) * block + last)
    return outer + next_to_them + middle


def _bigbird_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    shape, block, random = plain_shape(config), config["block_size"], config["num_random_blocks"]
    pairs = int(length) ** 2
    if length > (5 + 2 * random) * block:
        pairs = _bigbird_pairs(int(length), block, random)
    layer = encoder_linears(batch_size * int(length), shape.width, shape.wide)
    layer += attend(batch_size * pairs, shape.width)
    return ForwardFlops(inner=shape.layers * layer, unreached=pooler(batch_size, shape.width))


def _longt5_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """A band, and keys and values of a global token for each whole block (arXiv:2112.07916, section 3.2).

    A global token is the sum of its block, which is no matrix product. The feed-forward part is gated, as in T5.1.1.
    """
    shape, rows = plain_shape(config, T5_KEYS), batch_size * int(length)
    globals_ = 0
    if config["encoder_attention_type"] == "transient-global":
        globals_ = int(length) // config["global_block_size"]
    linears = 4 * linear(rows, shape.width, shape.width) + 3 * linear(rows, shape.width, shape.wide)
    linears += 2 * linear(batch_size * globals_, shape.width, shape.width)
    pairs = local_pairs(int(length), window=config["local_radius"]) + int(length) * globals_
    return ForwardFlops(inner=shape.layers * (linears + attend(batch_size * pairs, shape.width)))


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


LONGFORMER = Architecture(
    name="longformer",
    title="Longformer",
    modality="text",
    paper="arXiv:2004.05150",
    config_class="LongformerConfig",
    model_class="LongformerModel",
    sizes=sizes(every={"vocab_size": 50265, "attention_window": _LONGFORMER_WINDOW, "type_vocab_size": 1}),
    # Two more than the padded length, as in RoBERTa: positions start after the padding index.
    fit=lambda config, length: {
        "max_position_embeddings": max(4098, 2 + round_up(length, config["attention_window"])),
        "pad_token_id": 1,
    },
    limit=lambda config: config["max_position_embeddings"] - 2,
    inputs=token_inputs,
    lengths=Lengths(positions=tokens, executed=lambda length: round_up(length, _LONGFORMER_WINDOW)),
    efficient_attention="a sliding window of 512 (radius 256)",
    flops=_longformer_flops,
    notes=(
        "the library pads inputs to a multiple of 512, so cost is a staircase",
        "no global attention is asked for; the unused global projections add 21.3 M parameters at Base",
    ),
)

LED = Architecture(
    name="led",
    title="Longformer Encoder-Decoder (encoder)",
    modality="text",
    paper="arXiv:2004.05150",
    config_class="LEDConfig",
    model_class="LEDModel",
    part="encoder",
    # The library's default has Large's shape and half of the window; Base is BART Base with a window. No decoder is
    # built.
    sizes=sizes(
        ENCODER_DECODER_KEYS,
        base={"encoder_layers": 6},
        every={
            "vocab_size": 50265,
            "attention_window": _LED_WINDOW,
            "pad_token_id": 1,
            "decoder_layers": 0,
            "encoder_layerdrop": 0.0,
        },
    ),
    fit=lambda config, length: {
        "max_encoder_position_embeddings": max(16384, round_up(length, config["attention_window"]))
    },
    limit=lambda config: config["max_encoder_position_embeddings"],
    inputs=token_inputs,
    lengths=Lengths(positions=tokens, executed=lambda length: round_up(length, _LED_WINDOW)),
    keys=ENCODER_DECODER_KEYS,
    efficient_attention="a sliding window of 1,024 (radius 512)",
    flops=_led_flops,
    notes=(
        "only its encoder; at Base that is 6 layers, where Longformer has 12",
        "the library pads inputs to a multiple of 1,024, so cost is a staircase",
        "no global attention is asked for; the unused global projections add 10.6 M parameters at Base",
    ),
)

BIGBIRD = Architecture(
    name="big_bird",
    title="BigBird",
    modality="text",
    paper="arXiv:2007.14062",
    config_class="BigBirdConfig",
    model_class="BigBirdModel",
    sizes=sizes(
        every={
            "vocab_size": 50358,
            "attention_type": "block_sparse",
            "block_size": _BLOCK,
            "num_random_blocks": _RANDOM_BLOCKS,
        }
    ),
    fit=lambda config, length: {"max_position_embeddings": max(4096, round_up(length, config["block_size"]))},
    limit=lambda config: config["max_position_embeddings"],
    inputs=token_inputs,
    lengths=Lengths(
        positions=tokens,
        executed=lambda length: round_up(length, _BLOCK),
        minimum=_FULL_BLOCKS * _BLOCK + 1,
        reason=f"up to {_FULL_BLOCKS * _BLOCK} the library switches the model to full attention for good",
    ),
    efficient_attention="blocks of 64 that see the first, the last, three around them and three at random",
    flops=_bigbird_flops,
    trains_in_float32="under autocast the library scatters float32 weights into a bfloat16 map",
    notes=(
        "the library pads inputs to a multiple of 64, so cost is a staircase",
        "the library lays its weights out in a dense [heads, length, length] map, whether it is asked for or not, so "
        "memory and time are quadratic all the same",
        "in inference the library's random blocks are all the first one: the work is the same, the output is not",
    ),
)

LONGT5 = Architecture(
    name="longt5",
    title="LongT5 (encoder)",
    modality="text",
    paper="arXiv:2112.07916",
    config_class="LongT5Config",
    model_class="LongT5EncoderModel",
    # The library's default is of T5 Small's shape, with local attention and no gates; Base is T5.1.1 Base's.
    sizes=sizes(
        T5_KEYS,
        base={"d_ff": 2048},
        every={
            "vocab_size": 32128,
            "feed_forward_proj": "gated-gelu",
            "d_kv": 64,
            "encoder_attention_type": "transient-global",
            "local_radius": 127,
            "global_block_size": 16,
        },
        tiny={"d_kv": 32},
    ),
    inputs=token_inputs,
    lengths=Lengths(positions=tokens),
    keys=T5_KEYS,
    efficient_attention="a sliding window of radius 127 and a global token for each 16",
    flops=_longt5_flops,
    notes=(
        "only its encoder; a global token for each 16 keeps it quadratic, with a sixteenth of full attention's pairs",
        "the library sums up the tokens of each global one by a dense product, which is quadratic too, and its "
        "attention pads to blocks of 128",
    ),
)

NYSTROMFORMER = Architecture(
    name="nystromformer",
    title="Nystromformer",
    modality="text",
    paper="arXiv:2102.03902",
    config_class="NystromformerConfig",
    model_class="NystromformerModel",
    sizes=sizes(every={"vocab_size": 30000, "num_landmarks": _LANDMARKS, "conv_kernel_size": 65}),
    # The library reshapes by this number, which must equal the real length; where it equals the number of
    # landmarks the model silently takes full attention, hence the minimum length below.
    fit=lambda config, length: {
        "segment_means_seq_len": round_up(length, config["num_landmarks"]),
        "max_position_embeddings": max(510, round_up(length, config["num_landmarks"])),
        "pad_token_id": 1,
    },
    limit=lambda config: config["max_position_embeddings"],
    inputs=_nystromformer_inputs,
    lengths=Lengths(
        positions=tokens,
        executed=lambda length: round_up(length, _LANDMARKS),
        minimum=_LANDMARKS + 1,
        reason="with no more positions than its 64 landmarks the library runs full attention",
    ),
    efficient_attention="the Nystrom approximation with 64 landmarks",
    flops=_nystromformer_flops,
    mask=_nystromformer_mask,
    tell_length=_tell_nystromformer,
    needs_float32="the library inverts matrices with a float32 identity",
    notes=("inputs are padded to a multiple of its 64 landmarks, as the library demands",),
)
