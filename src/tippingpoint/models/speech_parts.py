"""What speech encoders have in common: length arithmetic, inputs, sizes and closed forms of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tippingpoint.models.flops import AttentionFlops, ForwardFlops, encoder_linears, linear
from tippingpoint.models.shape import Shape

SAMPLING_RATE = 16_000
# Spectrograms have a frame for each 10 ms, of windows of 25 ms.
HOP, WINDOW = 160, 400
MEL_BANDS = 80
# (kernel, stride) of the waveform front end of wav2vec 2.0 and of all that followed it
_FRONT_END = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))

# What is random by design is switched off, so that a training step does the same work each time: layers
# dropped at random (LayerDrop) and the augmentation of the input on the host (SpecAugment).
DETERMINISTIC = {"layerdrop": 0.0, "apply_spec_augment": False}
DETERMINISTIC_NOTE = "LayerDrop and SpecAugment are off in training, so that every step does the same work"

# The library's feature extractors follow the normalisation of the published Base models.
UNMASKED = (
    "its front end normalises over time, padding included, and the library's feature extractor hands no mask over "
    "for such models"
)

SMALL = {"num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
TINY = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
LARGE = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}


def samples(length: float) -> int:
    """Return samples of audio at 16 kHz."""
    return round(length * SAMPLING_RATE)


def front_end_frames(length: float) -> int:
    """Return frames that leave the convolutional front end: about 50 for each second."""
    count = samples(length)
    for kernel, stride in _FRONT_END:
        count = (count - kernel) // stride + 1
    return count


def front_end_values(length: float) -> int:
    """Return values that leave the first convolution of the front end, in its 512 channels: the widest activation."""
    _, stride = _FRONT_END[0]
    return samples(length) // stride * 512


def waveform(config: Mapping[str, Any], batch_size: int, length: float, generator: Any) -> dict[str, Any]:
    """White noise of unit variance, as the feature extractor's normalisation would leave speech."""
    import torch

    return {"input_values": torch.randn(batch_size, samples(length), generator=generator)}


def spectrogram(batch_size: int, first: int, second: int, generator: Any) -> dict[str, Any]:
    """Noise of unit variance for features, in the order of axes that the model takes."""
    import torch

    return {"input_features": torch.randn(batch_size, first, second, generator=generator)}


def front_end_flops(config: Mapping[str, Any], batch_size: int, length: float) -> tuple[int, int, int]:
    """Return FLOPs of the first convolution over the waveform, of the others, and the frames that leave them.

    The waveform needs no gradient, although the library computes it.
    """
    count, channels, flops = samples(length), 1, []
    for width, kernel, stride in zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"], strict=True):
        count = (count - kernel) // stride + 1
        flops.append(linear(batch_size * count, channels * kernel, width))
        channels = width
    return flops[0], sum(flops[1:]), count


def position_convolution(config: Mapping[str, Any], rows: int, taps: int) -> int:
    """Return FLOPs of a grouped convolution that tells positions apart, one output for each row.

    With an even kernel the library makes one more and cuts it off.
    """
    width = config["hidden_size"]
    return linear(rows, width // config["num_conv_pos_embedding_groups"] * taps, width)


def conformer(shape: Shape, batch_size: int, positions: int, taps: int, attention: AttentionFlops) -> int:
    """Return FLOPs of all layers of a Conformer (arXiv:2005.08100, section 2), without what tells positions apart.

    Each has two feed-forward parts, and a convolution of `taps` along time for each channel by itself, between one
    that doubles the width for a gate and one that does not.
    """
    rows, width = batch_size * positions, shape.width
    convolutions = linear(rows, width, 2 * width) + linear(rows, taps, width) + linear(rows, width, width)
    second = 2 * linear(rows, width, shape.wide)
    layer = encoder_linears(rows, width, shape.wide) + second + convolutions
    return shape.layers * layer + batch_size * attention(positions, shape.heads, shape.head_dim, range(shape.layers))


def relative_scores(shape: Shape, batch_size: int, positions: int) -> ForwardFlops:
    """Return FLOPs of relative positions in one layer (arXiv:1901.02860, section 3.3).

    These are projections of the encodings of all distances, once for the batch, which are constants and need no
    gradient; and products of each query with the distance to each key. The library scores each query against all
    distances there are, also those that lead beyond the ends, and cuts these off.
    """
    projections = linear(2 * positions - 1, shape.width, shape.width)
    return ForwardFlops(inner=linear(batch_size * positions * positions, shape.width, 1), first=projections)
