"""Run a speech encoder on long audio in chunks of time, with the result of the whole.

The convolutional front end of the wav2vec 2.0 family turns 320 samples into one position, and its first layer
alone makes 512 values of every fifth sample: 23.6 GB for an hour in float32. The values are needed a few
milliseconds around each position only, so they are made, used and dropped chunk by chunk:

    samples     |<------- chunk ------->|--|            each chunk is given its whole receptive field, so that
                                     |<-|---- chunk ----->|--|     seams are where they are without chunks

Nothing is cut off at a seam, unlike in chunked transcription, where each chunk is recognised by itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models.speech import SAMPLING_RATE

# By what the modules of the family are called in the library, whatever the model.
_FRONT_END_LAYERS = "conv_layers"
_POSITIONS = "pos_conv_embed"
_PROJECTION = "feature_projection"
_FEED_FORWARD_LAYER = "intermediate_dense"

_ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")


def chunk_activations(model: PreTrainedModel, *, seconds: float | None = 30.0) -> PreTrainedModel:
    """Let a speech encoder make its large intermediate results in chunks of time, in place.

    The forward pass still takes the whole audio, [batch, samples], and returns the whole result; in chunks run the
    convolutional front end, the feature projection, the positional convolution and the feed-forward layers. What is
    left grows by a few hidden states of [batch, positions, width]. Full attention needs more: see `swap_attention`.

    Results are those of the model without chunks: the same values are computed from the same inputs, and a group
    normalisation over time takes its statistics from the whole audio, in a pass of its own. Sums may be made in
    another order, so that results agree to rounding; inputs of at most one chunk give the same bits.

    Only what records no gradient runs in chunks, for a gradient keeps all activations anyway: a model in training
    mode, or one that records gradients, runs as if this had never been called (in evaluation mode with a warning,
    for a forgotten `torch.inference_mode()` is the usual reason).

    Weights, `state_dict`, configuration and what `save_pretrained` writes are untouched, and copies of the model
    have chunks of their own. Hooks on modules inside the chunked ones are called for each chunk.

    Args:
        model: A model of the Transformers library with a front end like that of wav2vec 2.0 (HuBERT, Wav2Vec2,
            WavLM, SEW, data2vec-audio, UniSpeech ...), with or without a head.
        seconds: Length of a chunk in seconds of 16 kHz audio, rounded down to whole positions, but one at least.
            The front end holds about 20 MB of each second in float32 at the Base size. Chunks of less than about 5 s
            cost time, for the positional convolution reads 2.5 s around each. None: no chunks any more.

    Returns:
        The same model.

    Raises:
        UnsupportedError: If the model has no such front end.
        InputError: If seconds is neither None nor a positive number.

    Reference: wav2vec 2.0, arXiv:2006.11477, sections 2 and 4.2, for the front end; Chan, Golub and LeVeque,
    Algorithms for Computing the Sample Variance, The American Statistician 37 (1983), for variances of parts.
    """
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (number and math.isfinite(seconds) and seconds > 0):
        raise InputError(f"seconds must be a positive number, or None for no chunks, got {seconds!r}")
    front_ends = [module for module in model.modules() if _is_front_end(module)]
    if not front_ends:
        raise UnsupportedError(
            f"{type(model).__name__} cannot run in chunks of audio: it has no front end of convolutions over the "
            "waveform as wav2vec 2.0 and HuBERT have"
        )
    for front_end in front_ends:
        _check_front_end(model, front_end)
    for module in model.modules():
        _remove(module)
    if seconds is None:
        return model
    stride = min(Reach.of(front_end).stride for front_end in front_ends)
    positions = max(1, int(seconds * SAMPLING_RATE) // stride)
    for front_end in front_ends:
        for norm in _group_norms(front_end):
            norm.forward = _SharedNorm(norm)
        front_end.forward = _FrontEnd(front_end, positions)
    for module in _others(model):
        module.forward = _Chunked(module, positions)
    return model


@dataclass(frozen=True, slots=True)
class Reach:
    """What one output of a stack of convolutions depends on.

    Output t reads the inputs from t * stride - left to t * stride + right. The default is a position-wise function.
    """

    stride: int = 1
    left: int = 0
    right: int = 0

    @staticmethod
    def of(module: nn.Module) -> Reach:
        """Return the reach of a module's convolutions, one after another."""
        reach = Reach()
        for conv in _convolutions(module):
            reach = reach.then(conv)
        return reach

    def then(self, conv: nn.Conv1d) -> Reach:
        """Return the reach of what this reaches, convolved.

        Behind a convolution that pads, the library cuts the last output off if the kernel is even; one more is asked
        for than is needed.
        """
        left = int(conv.padding[0])
        right = (conv.kernel_size[0] - 1) * conv.dilation[0] - left + (conv.stride[0] if left else 0)
        return Reach(self.stride * conv.stride[0], self.left + left * self.stride, self.right + right * self.stride)

    def inputs(self, first: int, stop: int | None, length: int) -> tuple[int, int]:
        """Return the range of inputs that the outputs from first to stop need; from first on if stop is None.

        It begins at a multiple of the stride, so that its outputs are those of the whole from there on. Where a
        convolution pads, the outputs beside its ends are wrong, if they are not those of the whole: they are more
        than it was asked for.
        """
        begin = max(0, first * self.stride - self.left) // self.stride * self.stride
        end = length if stop is None else min(length, (stop - 1) * self.stride + self.right + 1)
        return begin, end

    def last_chunk(self, length: int, size: int) -> int:
        """Return the first output of the last chunk, 0 if one chunk is all.

        It has at least one output that needs no padding behind the end, and all those that do.
        """
        return max(0, (length - 1 - self.right) // self.stride // size * size)


class _Chunked:
    """A module's forward pass in chunks of time; stands in for its `forward`.

    It is a plain object rather than a function, so that a copy of the module gets one that calls the copy.

    Args:
        module: What runs; [batch, time, channels], or [batch, channels, time] where it convolves.
        size: Outputs of a chunk.
    """

    def __init__(self, module: nn.Module, size: int) -> None:
        self.module = module
        # Other libraries put a `forward` of their own into a module, too (to move weights between devices, say).
        self.before: Callable[..., Any] | None = module.__dict__.get("forward")
        self.whole: Callable[..., Any] = module.forward
        self.size = size
        self.reach = Reach.of(module)

    def __call__(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
        axis = self.time_axis(inputs)
        if args or kwargs or axis is None or self.module.training or _records_gradients(self.module, inputs):
            return self.whole(inputs, *args, **kwargs)
        last = self.reach.last_chunk(inputs.shape[axis], self.size)
        return self.run(inputs, axis, last) if last else self.whole(inputs)

    def time_axis(self, inputs: Tensor) -> int | None:
        """Return the axis of time; None where it cannot be told."""
        if inputs.ndim != 3:
            return None
        convolutions = _convolutions(self.module)
        if not convolutions:
            return 1
        # As many positions as channels are few enough to run as they are.
        axes = [axis for axis in (1, 2) if inputs.shape[3 - axis] == convolutions[0].in_channels]
        return axes[0] if len(axes) == 1 else None

    def run(self, inputs: Tensor, axis: int, last: int) -> Any:
        """Run the chunks and return what the module would have returned."""
        return self.join(inputs, axis, axis, last)

    def join(self, inputs: Tensor, axis: int, output_axis: int, last: int) -> Any:
        """Run the chunks, of which the last begins at output `last`, and write each into its place.

        The last chunk comes first: how long the result is, is known then.
        """
        results = []
        for part in self.chunk(inputs, axis, output_axis, last):
            shape = list(part.shape)
            shape[output_axis] += last
            results.append(part.new_empty(shape))
            results[-1].narrow(output_axis, last, part.shape[output_axis]).copy_(part)
        for first in range(0, last, self.size):
            parts = self.chunk(inputs, axis, output_axis, first, first + self.size)
            for result, part in zip(results, parts, strict=True):
                result.narrow(output_axis, first, self.size).copy_(part)
        return results[0] if len(results) == 1 else tuple(results)

    def chunk(self, inputs: Tensor, axis: int, output_axis: int, first: int, stop: int | None = None) -> list[Tensor]:
        """Return the outputs from first to stop; all that there are from first on if stop is None."""
        begin, end = self.reach.inputs(first, stop, inputs.shape[axis])
        outputs = self.whole(inputs.narrow(axis, begin, end - begin))
        skipped = first - begin // self.reach.stride
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        return [
            part.narrow(output_axis, skipped, (part.shape[output_axis] - skipped) if stop is None else stop - first)
            for part in parts
        ]


class _FrontEnd(_Chunked):
    """The convolutional front end in chunks: [batch, samples] to [batch, channels, positions]."""

    def __call__(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
        if (
            not self.module.training
            and _records_gradients(self.module, inputs)
            and self.reach.last_chunk(inputs.shape[-1], self.size)
        ):
            warnings.warn(
                "gradients are recorded, which keeps all activations, so that audio is not processed in chunks; call "
                "the model within torch.inference_mode() to need less memory",
                stacklevel=2,
            )
        return super().__call__(inputs, *args, **kwargs)

    def time_axis(self, inputs: Tensor) -> int | None:
        return 1 if inputs.ndim == 2 else None

    def run(self, inputs: Tensor, axis: int, last: int) -> Any:
        """Gather what each group normalisation must know of the whole, the first one first, then run the chunks."""
        moments: dict[nn.Module, _Moments] = {}
        token = _MOMENTS.set(moments)
        try:
            for norm, reach in _group_norms(self.module).items():
                moments[norm] = _Moments(norm)
                self.gather(inputs, reach)
                moments[norm].complete = True
            return self.join(inputs, axis, 2, last)
        finally:
            _MOMENTS.reset(token)

    def gather(self, inputs: Tensor, reach: Reach) -> None:
        """Run chunks up to the normalisation that is not complete yet, each position that it sees once."""
        length = inputs.shape[1]
        positions = (length - 1 - reach.right) // reach.stride + 1
        size = self.size * self.reach.stride // reach.stride
        for first in range(0, positions, size):
            begin, end = reach.inputs(first, min(first + size, positions), length)
            try:
                self.whole(inputs[:, begin:end])
            except _Gathered:
                continue


class _Gathered(Exception):  # noqa: N818 (not an error: it ends a pass early)
    """What a chunk adds to a normalisation's statistics was added; nothing behind it needs to run."""


class _SharedNorm:
    """A group normalisation that takes its statistics from the whole audio; stands in for its `forward`."""

    def __init__(self, module: nn.GroupNorm) -> None:
        self.module = module
        self.before: Callable[..., Any] | None = module.__dict__.get("forward")
        self.whole: Callable[..., Any] = module.forward

    def __call__(self, input: Tensor) -> Tensor:
        moments = (_MOMENTS.get() or {}).get(self.module)
        if moments is None:
            return self.whole(input)
        if moments.complete:
            return moments.normalize(input)
        moments.add(input)
        raise _Gathered


class _Moments:
    """Mean and variance over time of each group of channels, [batch, groups], of chunks seen one after another."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        self.norm = norm
        self.complete = False
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        """Add a chunk, [batch, channels, time].

        Each chunk's moments are taken about its own mean and combined in double precision: no large numbers cancel.
        """
        values = inputs.to(_exact_enough(inputs)).unflatten(1, (self.norm.num_groups, -1)).flatten(2)
        # On the CPU, for not every device has double precision; they are a few hundred numbers.
        variance, mean = (m.cpu().double() for m in torch.var_mean(values, dim=-1, correction=0))
        count = values.shape[-1]
        total = self.count + count
        apart = mean - self.mean
        self.mean = self.mean + apart * (count / total)
        self.squares = self.squares + variance * count + apart.square() * (self.count * count / total)
        self.count = total

    def normalize(self, inputs: Tensor) -> Tensor:
        """Normalise a chunk, [batch, channels, time], as the module would with the whole before it."""
        norm = self.norm
        scale = (self.squares / self.count + norm.eps).rsqrt()
        scale, mean = (m.repeat_interleave(norm.num_channels // norm.num_groups, 1) for m in (scale, self.mean))
        if norm.weight is not None:
            scale = scale * norm.weight.cpu().double()
        shift = -mean * scale
        if norm.bias is not None:
            shift = shift + norm.bias.cpu().double()
        precision = _exact_enough(inputs)
        scale, shift = (m.unsqueeze(-1).to(inputs.device, precision) for m in (scale, shift))
        return torch.addcmul(shift, inputs.to(precision), scale).to(inputs.dtype)


# The statistics of the front end that runs now, of each of its normalisations; there is one for each thread.
_MOMENTS: ContextVar[dict[nn.Module, _Moments] | None] = ContextVar("_MOMENTS", default=None)


def _exact_enough(inputs: Tensor) -> torch.dtype:
    return torch.promote_types(inputs.dtype, torch.float32)


def _records_gradients(module: nn.Module, inputs: Tensor) -> bool:
    if not torch.is_grad_enabled():
        return False
    return inputs.requires_grad or any(parameter.requires_grad for parameter in module.parameters())


def _convolutions(module: nn.Module) -> list[nn.Conv1d]:
    return [one for one in module.modules() if isinstance(one, nn.Conv1d)]


def _is_front_end(module: nn.Module) -> bool:
    layers = getattr(module, _FRONT_END_LAYERS, None)
    if not isinstance(layers, nn.ModuleList):
        return False
    convolutions = [_convolutions(layer) for layer in layers]
    return bool(convolutions) and all(len(of) == 1 for of in convolutions) and convolutions[0][0].in_channels == 1


def _check_front_end(model: nn.Module, front_end: nn.Module) -> None:
    """Refuse a front end that holds anything whose reach over time is not known."""
    for layer in getattr(front_end, _FRONT_END_LAYERS):
        for child in layer.children():
            padded = isinstance(child, nn.Conv1d) and child.padding not in ((0,), 0)
            known = isinstance(child, nn.Conv1d | nn.GroupNorm | nn.LayerNorm | nn.Dropout | nn.Identity)
            if padded or not (known or type(child).__module__ in _ACTIVATIONS):
                what = "a convolution that pads" if padded else f"a {type(child).__name__}"
                raise UnsupportedError(
                    f"{type(model).__name__} cannot run in chunks of audio: its front end has {what}, and how far "
                    "that sees is not known"
                )


def _group_norms(front_end: nn.Module) -> dict[nn.GroupNorm, Reach]:
    """Return the normalisations over time in a front end, each with the reach of what it is given."""
    found, reach = {}, Reach()
    for layer in getattr(front_end, _FRONT_END_LAYERS):
        reach = reach.then(_convolutions(layer)[0])
        found |= {module: reach for module in layer.modules() if isinstance(module, nn.GroupNorm)}
    return found


def _others(model: nn.Module) -> set[nn.Module]:
    """Return what runs in chunks behind the front end."""
    found = set()
    for module in model.modules():
        projection, positions = (getattr(module, name, None) for name in (_PROJECTION, _POSITIONS))
        if isinstance(projection, nn.Module):
            found.add(projection)
        if isinstance(positions, nn.Module) and _pads_with_zeros(positions):
            found.add(positions)
        if isinstance(getattr(module, _FEED_FORWARD_LAYER, None), nn.Module):
            found.add(module)
    return found


def _pads_with_zeros(module: nn.Module) -> bool:
    """Whether a module's convolutions reach as far as their sizes say, and nothing in it looks over all of time."""
    return all(
        conv.padding_mode == "zeros" and not isinstance(conv.padding, str) for conv in _convolutions(module)
    ) and not any(isinstance(one, nn.GroupNorm) for one in module.modules())


def _remove(module: nn.Module) -> None:
    """Give a module its forward pass back."""
    forward = module.__dict__.get("forward")
    if not isinstance(forward, _Chunked | _SharedNorm):
        return
    del module.forward
    if forward.before is not None:
        module.forward = forward.before
