"""A person's own texts, recordings and images as what a checkpoint's model is called with, one after the other.

What turns them into tensors is what lies beside the weights: tokenizer, feature extractor, image processor. PyTorch
and the Transformers library are imported inside functions.
"""

from __future__ import annotations

import math
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tippingpoint.data import audio, images, text
from tippingpoint.data.files import find_files
from tippingpoint.data.skipped import Skipped, name_first
from tippingpoint.data.tokens import open_tokenizer
from tippingpoint.errors import DataError, InputError, UnsupportedError
from tippingpoint.models.catalog import ARCHITECTURES
from tippingpoint.units import UNITS, format_items, format_length

if TYPE_CHECKING:
    from torch import Tensor

# The first argument of a model, as the Transformers library names it.
_MODALITIES = {"input_ids": "text", "input_values": "speech", "input_features": "speech", "pixel_values": "vision"}
_SUFFIXES = {"text": text.SUFFIXES, "speech": audio.SUFFIXES, "vision": images.SUFFIXES}
# Where neither the model nor the caller says: what a laptop's memory takes in full attention.
_LONGEST = {"text": 2048, "speech": 30.0}
_LEAST_TOKENS, _LEAST_SECONDS = 2, 0.1
_SAMPLE_RATE = 16_000
# Added to the variance of a waveform, as the library's feature extractors do.
_SILENCE = 1e-7
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
# The files of a person come from many places in a folder; the same ones are taken each time.
_SEED = 0


class ModelInput(NamedTuple):
    """One input: its file or record, the model's arguments, and whether it was cut."""

    where: str
    arguments: dict[str, Tensor]
    cut: bool = False


Reader = Callable[[str], Iterator[ModelInput | Skipped]]


@dataclass(kw_only=True)
class ModelInputs:
    """Inputs for a model, made while they are iterated over, which can be done once.

    Attributes:
        modality: "text", "speech" or "vision".
        files: Where they come from, in the order in which they are read.
        most: At most so many inputs.
        longest: Length to which longer ones are cut, in the native unit; None where inputs have one size.
        notes: What the reader of a result should know about how they were made.
        used: Number of inputs so far.
        cut: How many of them were cut.
        skipped: What could not be used so far.
    """

    modality: str
    files: tuple[str, ...]
    most: int
    longest: float | None
    notes: tuple[str, ...]
    reader: Reader
    used: int = 0
    cut: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the arguments of a model, a batch of one at a time.

        Raises:
            DataError: If there is not one usable input.
        """
        for path in self.files:
            for item in self.reader(path):
                if isinstance(item, Skipped):
                    self.skipped.append(item)
                    continue
                self.used += 1
                self.cut += item.cut
                yield item.arguments
                if self.used == self.most:
                    return
        if not self.used:
            raise DataError(
                f"no {self.modality} input could be read, {format_items(len(self.skipped), 'item')} failed: "
                f"{name_first(tuple(self.skipped))}"
            )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was left out so far, a few by name."""
        if not self.skipped:
            return ()
        return (f"left out {format_items(len(self.skipped), 'item')}: {name_first(tuple(self.skipped))}",)

    def __str__(self) -> str:
        """Say what was read so far."""
        said = format_items(self.used, f"{self.modality} input")
        if self.longest is not None and self.cut:
            said += f", {self.cut:,} cut to {format_length(self.longest, UNITS[self.modality])}"
        return said


def read_model_inputs(
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    main_input: str,
    *,
    column: str | None = None,
    max_length: float | None = None,
    max_inputs: int = 32,
) -> ModelInputs:
    """Return a person's data as inputs of a checkpoint's model.

    Files are read in a random order, the same each time, so that some of many stand for all.

    Args:
        paths: Files, folders and patterns, as `read_lengths` takes them.
        folder: The checkpoint, with its tokenizer, feature extractor or image processor.
        config: Its configuration.
        main_input: What the model calls its first argument, such as "input_ids".
        column: For text: the field or column of .jsonl, .csv and .parquet files.
        max_length: Cut longer texts (tokens) and recordings (seconds) to this length; by default to what the model
            takes, or to 2,048 tokens or 30 s where it says nothing.
        max_inputs: At most so many.

    Raises:
        InputError: If the model takes something else, a path leads nowhere, or an argument is not legal.
        DataError: If a folder holds nothing readable, or the tokenizer cannot be loaded.
    """
    model_type = str(config.get("model_type"))
    row = ARCHITECTURES.get(model_type)
    modality = row.modality if row else _MODALITIES.get(main_input)
    if modality is None or main_input not in _MODALITIES or config.get("num_frames"):
        raise UnsupportedError(
            f"inputs of {model_type!r} cannot be made of files: it takes {main_input!r}, and texts, recordings and "
            "images are known; call tippingpoint.plan_reuse with your own batches"
        )
    if max_inputs < 1:
        raise InputError(f"the number of inputs must be at least 1, got {max_inputs}")
    if max_length is not None and not 0 < max_length < math.inf:
        raise InputError(f"the length to cut to must be positive, got {max_length:g}")
    for name, value, allowed in (("column", column, ("text",)), ("max_length", max_length, ("text", "speech"))):
        if value is not None and modality not in allowed:
            raise InputError(f"a {name} is for {' and '.join(allowed)}, got {value!r} for {modality}; leave it out")
    files, unlisted = find_files([os.fspath(path) for path in paths], _SUFFIXES[modality], modality)
    order = list(files)
    random.Random(_SEED).shuffle(order)
    limit = row.limit(config) if row and modality != "vision" else config.get("max_position_embeddings")
    place = Path(folder)
    longest: float | None = None
    if modality == "text":
        tokenizer = open_tokenizer(place)
        limits = [limit, max_length, tokenizer.model_max_length]
        longest = int(_shortest(limits if limit else [*limits, _LONGEST["text"]]))
        reader, notes = _text_reader(tokenizer, column or "text", int(longest)), ()
    elif modality == "speech":
        longest = _shortest([limit if row else None, max_length, None if max_length else _LONGEST["speech"]])
        reader, notes = _speech_reader(place, main_input, longest)
    else:
        reader, notes = _image_reader(place, config)
    return ModelInputs(
        modality=modality,
        files=tuple(order),
        most=max_inputs,
        longest=longest,
        notes=notes,
        reader=reader,
        skipped=list(unlisted),
    )


def _shortest(limits: Sequence[float | None]) -> float:
    return min(limit for limit in limits if limit is not None and limit > 0)


def _text_reader(tokenizer: Any, column: str, longest: int) -> Reader:
    if longest < _LEAST_TOKENS:
        raise InputError(f"texts must not be cut to fewer than {_LEAST_TOKENS} tokens, got {longest}")

    def read(path: str) -> Iterator[ModelInput | Skipped]:
        for document in text.read_documents(path, column):
            if isinstance(document, Skipped):
                yield document
                continue
            whole = tokenizer(document.text, truncation=False, verbose=False)["input_ids"]
            encoded = tokenizer(
                document.text, truncation=True, max_length=longest, return_tensors="pt", verbose=False
            )
            count = encoded["input_ids"].shape[1]
            if count < _LEAST_TOKENS:
                yield Skipped(document.where, f"too short: {format_items(count, 'token')}")
                continue
            yield ModelInput(document.where, dict(encoded), len(whole) > count)

    return read


def _speech_reader(folder: Path, main_input: str, longest: float) -> tuple[Reader, tuple[str, ...]]:
    extractor = _preprocessor(folder, "AutoFeatureExtractor")
    if extractor is None and main_input != "input_values":
        raise InputError(
            f"{str(folder)!r} holds no {_PREPROCESSORS[0]}, which says how {main_input!r} are made of a recording; "
            "copy it from the published checkpoint"
        )
    rate = int(getattr(extractor, "sampling_rate", _SAMPLE_RATE))
    note = f"{_PREPROCESSORS[0]} is missing: recordings are normalised to mean 0 and variance 1"

    def read(path: str) -> Iterator[ModelInput | Skipped]:
        found = audio.read_waveform(path, rate, longest)
        if isinstance(found, Skipped):
            yield found
            return
        waveform, cut = found
        if len(waveform) < _LEAST_SECONDS * rate:
            yield Skipped(path, f"shorter than {_LEAST_SECONDS:g} s")
        elif extractor is None:
            yield ModelInput(path, {main_input: _tensor(_normalised(waveform))[None]}, cut)
        else:
            made = extractor(waveform, sampling_rate=rate, return_tensors="pt")
            yield ModelInput(path, dict(made), cut)

    return read, () if extractor else (note,)


def _image_reader(folder: Path, config: Mapping[str, Any]) -> tuple[Reader, tuple[str, ...]]:
    processor = _preprocessor(folder, "AutoImageProcessor")
    size = config.get("image_size")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if processor is None and not (isinstance(height, int) and isinstance(width, int)):
        raise InputError(
            f"{str(folder)!r} holds no {_PREPROCESSORS[0]}, and its configuration no image_size; copy the former "
            "from the published checkpoint"
        )
    if processor is None and config.get("num_channels", 3) != 3:
        raise InputError(f"images have 3 channels here, and the model takes {config['num_channels']}")
    note = (
        f"{_PREPROCESSORS[0]} is missing: images are resized to {width} x {height} pixels, with values from -1 to 1"
    )

    def read(path: str) -> Iterator[ModelInput | Skipped]:
        from PIL import Image

        too_large = (Image.DecompressionBombError, Image.DecompressionBombWarning)
        try:
            # By name: among all formats is one (EPS) that another program is run for.
            with (
                warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
                Image.open(path, formats=_IMAGE_FORMATS) as opened,
            ):
                image = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, *too_large) as error:
            yield Skipped(path, shorten(f"cannot be decoded: {error}", 120))
            return
        if processor is not None:
            yield ModelInput(path, dict(processor(images=image, return_tensors="pt")))
            return
        assert isinstance(height, int)
        assert isinstance(width, int)
        resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        values = np.ascontiguousarray(resized.transpose(2, 0, 1)) / 127.5 - 1
        yield ModelInput(path, {"pixel_values": _tensor(values)[None]})

    return read, () if processor else (note,)


def _normalised(waveform: np.ndarray) -> np.ndarray:
    return ((waveform - waveform.mean()) / np.sqrt(waveform.var() + _SILENCE)).astype(np.float32)


def _tensor(values: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(values)


def _preprocessor(folder: Path, kind: str) -> Any:
    """Return the library's feature extractor or image processor of a checkpoint; None if it has none."""
    if not any((folder / name).is_file() for name in _PREPROCESSORS):
        return None
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of format, of unknown names and of missing packages
        raise DataError(
            f"what prepares inputs in {str(folder)!r} cannot be loaded: {shorten(str(error), 200)}"
        ) from error
