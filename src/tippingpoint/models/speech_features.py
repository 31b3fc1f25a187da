"""Speech encoders on spectrograms: configurations and length arithmetic. Lengths are seconds of 16 kHz audio.

What the feature extractor computes from the waveform is not measured; what it hands over is made up, with the number
of frames that it would have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tippingpoint.models.architecture import Architecture, Lengths
from tippingpoint.models.flops import AttentionFlops, ForwardFlops, encoder, linear
from tippingpoint.models.shape import plain_shape
from tippingpoint.models.speech_parts import (
    DETERMINISTIC,
    DETERMINISTIC_NOTE,
    HOP,
    LARGE,
    MEL_BANDS,
    SAMPLING_RATE,
    SMALL,
    TINY,
    WINDOW,
    conformer,
    relative_scores,
    samples,
    spectrogram,
)

_WHISPER_KEYS = {
    "layers": "encoder_layers",
    "width": "d_model",
    "heads": "encoder_attention_heads",
    "wide": "encoder_ffn_dim",
}
# The decoder is dropped right after the model is made: what is not made need not be dropped.
_NO_DECODER = {
    "decoder_layers": 0,
    "max_target_positions": 1,
    "vocab_size": 1,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
}

_ALL_PADDED = "it takes as many frames as it has positions for, and its feature extractor pads all audio to that"


def _whisper_frames(length: float) -> int:
    """One for each 10 ms that have passed: the extractor drops the last, which is centred on the end."""
    return samples(length) // HOP


def _whisper_positions(length: float) -> int:
    return -(-_whisper_frames(length) // 2)


def _whisper_inputs(config: Mapping[str, Any], batch_size: int, length: float, generator: Any) -> dict[str, Any]:
    """As many frames as the model demands; an odd number gets one of silence, as the extractor would give it."""
    return spectrogram(batch_size, config["num_mel_bins"], 2 * _whisper_positions(length), generator)


def _whisper_sizes(layers: int, width: int, heads: int, wide: int) -> dict[str, Any]:
    values = {"layers": layers, "width": width, "heads": heads, "wide": wide}
    named = {_WHISPER_KEYS[name]: value for name, value in values.items()}
    return {**named, "num_mel_bins": MEL_BANDS, "encoder_layerdrop": 0.0, **_NO_DECODER}


def _whisper_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """Two convolutions of three frames, of which the second halves them, and layers (section 2.2)."""
    shape = plain_shape(config, _WHISPER_KEYS)
    positions = _whisper_positions(length)
    first = linear(batch_size * _whisper_frames(length), 3 * config["num_mel_bins"], shape.width)
    second = linear(batch_size * positions, 3 * shape.width, shape.width)
    return ForwardFlops(inner=second + encoder(shape, batch_size, positions, attention), first=first)


WHISPER = Architecture(
    name="whisper",
    title="Whisper (encoder)",
    modality="speech",
    paper="arXiv:2212.04356",
    config_class="WhisperConfig",
    model_class="WhisperModel",
    part="encoder",
    # Base is the published whisper-small: 12 layers of width 768, as in other Base models; whisper-base has 6 of 512.
    sizes={
        "base": _whisper_sizes(12, 768, 12, 3072),
        "small": _whisper_sizes(4, 512, 8, 2048),
        "tiny": _whisper_sizes(2, 64, 2, 128),
    },
    keys=_WHISPER_KEYS,
    # The model takes exactly the frames of its table of positions; random weights let it be that of the length.
    fit=lambda config, length: {"max_source_positions": _whisper_positions(length)},
    # To half a sample, which is rounded: all that has no frame beyond the table.
    limit=lambda config: (config["max_source_positions"] * 2 * HOP + HOP - 0.5) / SAMPLING_RATE,
    inputs=_whisper_inputs,
    lengths=Lengths(
        positions=_whisper_positions,
        minimum=HOP / SAMPLING_RATE,
        reason="a frame of its spectrogram stands for 10 ms",
    ),
    flops=_whisper_flops,
    unmasked="padded audio is part of its input, as it was trained",
    needs_one_length=_ALL_PADDED,
    trains_at_one_length=_ALL_PADDED,
    notes=(
        "its size base has the shape of the published whisper-small, 12 layers of width 768",
        "built for the length; published weights take exactly 30 s, 1,500 positions, and shorter audio is padded",
        "takes no padding mask: padded audio is part of the input, as the published model was trained",
    ),
)


def _fbank_pairs(length: float) -> int:
    """Pairs of frames of 25 ms, 10 ms apart, within the audio; the extractor's mask leaves a single last one out."""
    return ((samples(length) - WINDOW) // HOP + 1) // 2


def _wav2vec2_bert_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """Projection and layers; features are normalised with learned scales, so the projection has both gradients."""
    shape, positions = plain_shape(config), _fbank_pairs(length)
    projection = linear(batch_size * positions, config["feature_projection_input_dim"], shape.width)
    taps = config["conv_depthwise_kernel_size"]
    return ForwardFlops(inner=projection + conformer(shape, batch_size, positions, taps, attention))


_WAV2VEC2_BERT = {
    **DETERMINISTIC,
    "position_embeddings_type": "rotary",
    "feature_projection_input_dim": 2 * MEL_BANDS,
    "conv_depthwise_kernel_size": 31,
    "hidden_act": "swish",
}

WAV2VEC2_BERT = Architecture(
    name="wav2vec2-bert",
    title="W2v-BERT 2.0",
    modality="speech",
    paper="arXiv:2312.05187",
    config_class="Wav2Vec2BertConfig",
    model_class="Wav2Vec2BertModel",
    # Published in one size only, that of a Large model.
    sizes={
        "base": {**_WAV2VEC2_BERT, **LARGE},
        "small": {**_WAV2VEC2_BERT, **SMALL},
        "tiny": {**_WAV2VEC2_BERT, **TINY},
    },
    inputs=lambda config, batch_size, length, generator: spectrogram(
        batch_size, _fbank_pairs(length), config["feature_projection_input_dim"], generator
    ),
    lengths=Lengths(
        positions=_fbank_pairs,
        minimum=(WINDOW + HOP) / SAMPLING_RATE,
        reason="two frames of its filter bank, of 25 ms each and 10 ms apart, make a position",
    ),
    flops=_wav2vec2_bert_flops,
    notes=(
        "its size base has the one published shape, that of a Large model: 24 layers of width 1024",
        "the published checkpoint has relative_key positions inside its scores, which no variant can take; here are "
        "the rotary positions of the same class",
        "the library turns hidden states by their positions before it projects queries and keys, not after",
        DETERMINISTIC_NOTE,
    ),
)

_SUBSAMPLING = 8


def _parakeet_frames(length: float) -> int:
    """One for each 10 ms that have passed; the extractor makes one more, and its mask leaves that out."""
    return samples(length) // HOP


def _parakeet_positions(length: float) -> int:
    return -(-_parakeet_frames(length) // _SUBSAMPLING)


def _subsampling_flops(config: Mapping[str, Any], batch_size: int, frames: int) -> tuple[int, int]:
    """Return FLOPs of the first convolution over time and mel bands, and of the others with the projection.

    Each halves both, rounded up; all but the first are separable (FastConformer, arXiv:2305.05084, section 2.1).
    """
    channels, taps = config["subsampling_conv_channels"], config["subsampling_conv_kernel_size"] ** 2
    bands, flops, halved = config["num_mel_bins"], [], 1
    while halved < config["subsampling_factor"]:
        frames, bands, halved = -(-frames // 2), -(-bands // 2), 2 * halved
        points = batch_size * frames * bands
        pointwise = linear(points, channels, channels) if flops else 0
        flops.append(linear(points, taps, channels) + pointwise)
    projection = linear(batch_size * frames, channels * bands, config["hidden_size"])
    return flops[0], sum(flops[1:]) + projection


def _parakeet_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    shape = plain_shape(config)
    positions = _parakeet_positions(length)
    first, subsampling = _subsampling_flops(config, batch_size, _parakeet_frames(length))
    layers = conformer(shape, batch_size, positions, config["conv_kernel_size"], attention)
    return ForwardFlops(inner=subsampling + layers, first=first)


def _parakeet_scores(config: Mapping[str, Any], batch_size: int, length: float) -> ForwardFlops:
    return relative_scores(plain_shape(config), batch_size, _parakeet_positions(length))


_PARAKEET = {
    "layerdrop": 0.0,
    "num_mel_bins": MEL_BANDS,
    "subsampling_factor": _SUBSAMPLING,
    "subsampling_conv_channels": 256,
    "conv_kernel_size": 9,
}

PARAKEET = Architecture(
    name="parakeet_encoder",
    title="Parakeet (FastConformer encoder)",
    modality="speech",
    paper="arXiv:2305.05084",
    config_class="ParakeetEncoderConfig",
    model_class="ParakeetEncoder",
    # Base is the encoder of parakeet-ctc-0.6b, the smallest that was published under the name.
    sizes={
        "base": {**_PARAKEET, **LARGE, "num_attention_heads": 8},
        "small": {**_PARAKEET, **SMALL},
        "tiny": {**_PARAKEET, **TINY, "subsampling_conv_channels": 16},
    },
    inputs=lambda config, batch_size, length, generator: spectrogram(
        batch_size, _parakeet_frames(length), config["num_mel_bins"], generator
    ),
    lengths=Lengths(
        positions=_parakeet_positions,
        minimum=(_SUBSAMPLING + 1) * HOP / SAMPLING_RATE,
        reason="batch normalisation needs two positions in training, and 8 frames of 10 ms make one",
    ),
    own_scores="a term for relative positions, as in Transformer-XL",
    scores=_parakeet_scores,
    shares_maps=True,
    front_end_values=lambda length: -(-_parakeet_frames(length) // 2) * MEL_BANDS // 2 * 256,
    flops=_parakeet_flops,
    notes=(
        "its size base has the shape of parakeet-ctc-0.6b: 24 layers of width 1024 with 8 heads",
        "LayerDrop is off in training, so that every step does the same work",
    ),
)
