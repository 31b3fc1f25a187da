"""Speech encoders on waveforms: configurations and length arithmetic. Lengths are seconds of 16 kHz audio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tippingpoint.models.architecture import Architecture, Lengths
from tippingpoint.models.flops import AttentionFlops, ForwardFlops, encoder, linear
from tippingpoint.models.shape import plain_shape
from tippingpoint.models.speech_features import PARAKEET, WAV2VEC2_BERT, WHISPER
from tippingpoint.models.speech_parts import (
    DETERMINISTIC,
    DETERMINISTIC_NOTE,
    LARGE,
    SMALL,
    TINY,
    UNMASKED,
    conformer,
    front_end_flops,
    front_end_frames,
    front_end_values,
    position_convolution,
    relative_scores,
    samples,
    waveform,
)
from tippingpoint.models.speech_parts import SAMPLING_RATE as SAMPLING_RATE

_BASE = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_TINY_FRONT_END = {"conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16}
_SIZES = {
    "base": {**DETERMINISTIC, **_BASE, "num_conv_pos_embeddings": 128},
    "small": {**DETERMINISTIC, **SMALL, "num_conv_pos_embeddings": 128},
    "tiny": {**DETERMINISTIC, **TINY, **_TINY_FRONT_END},
}
_LENGTHS = Lengths(
    positions=front_end_frames,
    minimum=0.025,
    reason="its convolutional front end needs 400 samples for one frame",
)


def _hubert_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """Front end, projection, grouped convolution of positions, layers (wav2vec 2.0, arXiv:2006.11477, section 2).

    data2vec has several smaller convolutions of positions one after another (arXiv:2202.03555, section 4.2).
    """
    first, front_end, count = front_end_flops(config, batch_size, length)
    rows = batch_size * count
    projection = linear(rows, config["conv_dim"][-1], config["hidden_size"])
    # The number of taps in HuBERT, and of convolutions in data2vec.
    taps = config["num_conv_pos_embeddings"] * config.get("conv_pos_kernel_size", 1)
    positions = position_convolution(config, rows, taps)
    layers = encoder(plain_shape(config), batch_size, count, attention)
    return ForwardFlops(inner=front_end + projection + positions + layers, first=first)


HUBERT = Architecture(
    name="hubert",
    title="HuBERT",
    modality="speech",
    paper="arXiv:2106.07447",
    config_class="HubertConfig",
    model_class="HubertModel",
    sizes=_SIZES,
    inputs=waveform,
    lengths=_LENGTHS,
    unmasked=UNMASKED,
    front_end_values=front_end_values,
    flops=_hubert_flops,
    notes=(DETERMINISTIC_NOTE,),
)

WAV2VEC2 = Architecture(
    name="wav2vec2",
    title="wav2vec 2.0",
    modality="speech",
    paper="arXiv:2006.11477",
    config_class="Wav2Vec2Config",
    model_class="Wav2Vec2Model",
    sizes=_SIZES,
    inputs=waveform,
    lengths=_LENGTHS,
    unmasked=UNMASKED,
    front_end_values=front_end_values,
    flops=_hubert_flops,
    notes=("the encoder alone: the quantizer of its pre-training is left out", DETERMINISTIC_NOTE),
)


def _wavlm_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """As HuBERT, and two gates of the position bias for each head, each of a sum of four (section III-B)."""
    shape = plain_shape(config)
    gates = linear(batch_size * front_end_frames(length) * shape.heads, shape.head_dim, 2 * 4)
    flops = _hubert_flops(config, batch_size, length, attention)
    return replace(flops, inner=flops.inner + shape.layers * gates)


WAVLM = Architecture(
    name="wavlm",
    title="WavLM",
    modality="speech",
    paper="arXiv:2110.13900",
    config_class="WavLMConfig",
    model_class="WavLMModel",
    sizes={size: {**values, "num_buckets": 320, "max_bucket_distance": 800} for size, values in _SIZES.items()},
    inputs=waveform,
    lengths=_LENGTHS,
    own_scores="a gated relative position bias",
    unmasked=UNMASKED,
    front_end_values=front_end_values,
    flops=_wavlm_flops,
    notes=(
        "the library makes a position bias for each pair of positions, head and sequence, and asks for attention "
        "maps that nobody reads, so that attention is never fused and memory is quadratic",
        DETERMINISTIC_NOTE,
    ),
)

_DATA2VEC = {**DETERMINISTIC, "num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 19}

DATA2VEC = Architecture(
    name="data2vec-audio",
    title="data2vec (audio)",
    modality="speech",
    paper="arXiv:2202.03555",
    config_class="Data2VecAudioConfig",
    model_class="Data2VecAudioModel",
    sizes={
        "base": {**_DATA2VEC, **_BASE},
        "small": {**_DATA2VEC, **SMALL},
        "tiny": {**_DATA2VEC, **TINY, "conv_dim": (32,) * 7},
    },
    inputs=waveform,
    lengths=_LENGTHS,
    front_end_values=front_end_values,
    flops=_hubert_flops,
    notes=(
        "the library masks padding before its five convolutions of positions and not between them, so that a part of "
        "it reaches the last real positions, whatever the attention",
        DETERMINISTIC_NOTE,
    ),
)

_SQUEEZE = 2


def _squeezed(length: float) -> int:
    return front_end_frames(length) // _SQUEEZE


def _sew_flops(config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops) -> ForwardFlops:
    """Layers on averages of two frames; positions by a convolution with that stride; two frames from each again.

    What is squeezed has no position of its own where a frame is left over, although the library computes one.
    """
    first, front_end, count = front_end_flops(config, batch_size, length)
    shape, channels, squeeze = plain_shape(config), config["conv_dim"][-1], config["squeeze_factor"]
    positions = count // squeeze
    rows = batch_size * positions
    projection = linear(batch_size * count, channels, shape.width) if channels != shape.width else 0
    convolution = position_convolution(config, rows, config["num_conv_pos_embeddings"])
    upsampling = linear(rows, shape.width, squeeze * shape.width)
    layers = encoder(shape, batch_size, positions, attention)
    return ForwardFlops(inner=front_end + projection + convolution + layers + upsampling, first=first)


_SEW = {**DETERMINISTIC, "squeeze_factor": _SQUEEZE, "num_conv_pos_embeddings": 31}

SEW = Architecture(
    name="sew",
    title="SEW",
    modality="speech",
    paper="arXiv:2109.06870",
    config_class="SEWConfig",
    model_class="SEWModel",
    # Base is the published SEW-small: 12 layers of width 768, as in wav2vec 2.0 Base.
    sizes={
        "base": {**_SEW, **_BASE},
        "small": {**_SEW, **SMALL},
        "tiny": {**_SEW, **TINY, "conv_dim": (8, 16, 16, 16, 16, 32, 32, 32, 32, 32, 32, 32, 32)},
    },
    inputs=waveform,
    lengths=Lengths(
        positions=_squeezed,
        minimum=0.045,
        reason="two frames of its front end, which need 720 samples, are squeezed into one position",
    ),
    unmasked=UNMASKED,
    front_end_values=lambda length: samples(length) // 5 * 64,
    flops=_sew_flops,
    notes=(
        "its size base has the shape of the published SEW-small: 12 layers of width 768",
        "a position is 40 ms, and hidden states are given back for 20 ms each; the last of an odd number is zero",
        DETERMINISTIC_NOTE,
    ),
)


def _conformer_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """Front end, projection and layers; the convolution of positions is made and never used by the library."""
    first, front_end, count = front_end_flops(config, batch_size, length)
    shape = plain_shape(config)
    projection = linear(batch_size * count, config["conv_dim"][-1], shape.width)
    layers = conformer(shape, batch_size, count, config["conv_depthwise_kernel_size"], attention)
    return ForwardFlops(inner=front_end + projection + layers, first=first)


def _conformer_scores(config: Mapping[str, Any], batch_size: int, length: float) -> ForwardFlops:
    return relative_scores(plain_shape(config), batch_size, front_end_frames(length))


_CONFORMER = {
    **DETERMINISTIC,
    "position_embeddings_type": "relative",
    "conv_depthwise_kernel_size": 31,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "hidden_act": "swish",
}

WAV2VEC2_CONFORMER = Architecture(
    name="wav2vec2-conformer",
    title="wav2vec 2.0 with Conformer layers",
    modality="speech",
    paper="arXiv:2010.05171",
    config_class="Wav2Vec2ConformerConfig",
    model_class="Wav2Vec2ConformerModel",
    # Published in one size only, Large.
    sizes={
        "base": {**_CONFORMER, **LARGE, "num_conv_pos_embeddings": 128},
        "small": {**_CONFORMER, **SMALL, "num_conv_pos_embeddings": 128},
        "tiny": {**_CONFORMER, **TINY, **_TINY_FRONT_END},
    },
    # The table of encodings is computed, not learned; one of the length need not be made again in the first call.
    fit=lambda config, length: {"max_source_positions": max(5000, front_end_frames(length))},
    inputs=waveform,
    lengths=Lengths(
        positions=front_end_frames,
        minimum=0.045,
        reason="batch normalisation needs two frames in training, and its front end 720 samples for them",
    ),
    own_scores="a term for relative positions, as in Transformer-XL",
    scores=_conformer_scores,
    shares_maps=True,
    front_end_values=front_end_values,
    flops=_conformer_flops,
    notes=(
        "its size base has the shape of the published Large model, the only one: 24 layers of width 1024",
        "the library makes the convolution of positions that wav2vec 2.0 has, 8.4 M parameters, and never uses it",
        DETERMINISTIC_NOTE,
    ),
)

ROWS = (HUBERT, WAV2VEC2, WHISPER, WAV2VEC2_BERT, WAVLM, SEW, WAV2VEC2_CONFORMER, PARAKEET, DATA2VEC)
