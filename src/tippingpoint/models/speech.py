"""Speech encoders: configurations, inputs and length arithmetic. Lengths are seconds of 16 kHz audio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tippingpoint.models.architecture import Architecture, Lengths
from tippingpoint.models.flops import AttentionFlops, ForwardFlops, encoder, linear
from tippingpoint.models.shape import plain_shape

SAMPLING_RATE = 16_000
# (kernel, stride) of the waveform front end of wav2vec 2.0 and HuBERT
_FRONT_END = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))


def _samples(length: float) -> int:
    return round(length * SAMPLING_RATE)


def _frames(length: float) -> int:
    """Return frames that leave the convolutional front end: about 50 for each second."""
    count = _samples(length)
    for kernel, stride in _FRONT_END:
        count = (count - kernel) // stride + 1
    return count


def _waveform(config: Mapping[str, Any], batch_size: int, length: float, generator: Any) -> dict[str, Any]:
    """White noise of unit variance, as the feature extractor's normalisation would leave speech."""
    import torch

    return {"input_values": torch.randn(batch_size, _samples(length), generator=generator)}


def _hubert_flops(
    config: Mapping[str, Any], batch_size: int, length: float, attention: AttentionFlops
) -> ForwardFlops:
    """Front end, projection, positions by a grouped convolution, layers (wav2vec 2.0, arXiv:2006.11477, section 2).

    The waveform needs no gradient, although the library computes it. The convolution of positions counts one output
    for each frame; the library's even kernel makes one more and cuts it off.
    """
    count, channels, front_end = _samples(length), 1, []
    for width, kernel, stride in zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"], strict=True):
        count = (count - kernel) // stride + 1
        front_end.append(linear(batch_size * count, channels * kernel, width))
        channels = width
    width, taps = config["hidden_size"], config["num_conv_pos_embeddings"]
    projection = linear(batch_size * count, channels, width)
    positions = linear(batch_size * count, width // config["num_conv_pos_embedding_groups"] * taps, width)
    layers = encoder(plain_shape(config), batch_size, count, attention)
    return ForwardFlops(inner=sum(front_end[1:]) + projection + positions + layers, first=front_end[0])


# What is random by design is switched off, so that a training step does the same work each time: layers
# dropped at random (LayerDrop) and the augmentation of the input on the host (SpecAugment).
_DETERMINISTIC = {"layerdrop": 0.0, "apply_spec_augment": False}

HUBERT = Architecture(
    name="hubert",
    title="HuBERT",
    modality="speech",
    paper="arXiv:2106.07447",
    config_class="HubertConfig",
    model_class="HubertModel",
    sizes={
        "base": {**_DETERMINISTIC, "num_hidden_layers": 12},
        "small": {
            **_DETERMINISTIC,
            "num_hidden_layers": 4,
            "hidden_size": 512,
            "num_attention_heads": 8,
            "intermediate_size": 2048,
        },
        "tiny": {
            **_DETERMINISTIC,
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 2,
            "intermediate_size": 128,
            "conv_dim": (32,) * 7,
            "num_conv_pos_embeddings": 16,
        },
    },
    fit=lambda config, length: {},
    limit=lambda config: None,
    inputs=_waveform,
    lengths=Lengths(
        positions=_frames,
        minimum=0.025,
        reason="its convolutional front end needs 400 samples for one frame",
    ),
    front_end_values=lambda length: _samples(length) // 5 * 512,
    flops=_hubert_flops,
    notes=("LayerDrop and SpecAugment are off in training, so that every step does the same work",),
)

ROWS = (HUBERT,)
