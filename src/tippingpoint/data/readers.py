"""Lengths of the items of a data set, modality by modality."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from tippingpoint.data import audio, images, text, tokens
from tippingpoint.data.files import find_files
from tippingpoint.data.lengths import LengthData
from tippingpoint.data.skipped import Skipped, name_first
from tippingpoint.errors import DataError, InputError, unknown
from tippingpoint.units import UNITS


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderReader:
    """How a modality with one item per file is read.

    Args:
        suffixes: Accepted suffixes of files.
        method: One sentence on how a length is had.
        read: The length of one file in the modality's native unit, or why there is none.
    """

    suffixes: tuple[str, ...]
    method: str
    read: Callable[[str], float | Skipped]


HEADER_READERS = {
    "speech": HeaderReader(suffixes=audio.SUFFIXES, method=audio.METHOD, read=audio.read_duration),
    "vision": HeaderReader(suffixes=images.SUFFIXES, method=images.METHOD, read=images.read_side),
}


def read_lengths(
    paths: Sequence[str | os.PathLike[str]],
    modality: str,
    *,
    column: str | None = None,
    tokenizer: str | None = None,
) -> LengthData:
    """Return how long every item of a data set is: tokens, seconds of audio, or pixels of a side.

    Text is read and its tokens counted, or estimated without a tokenizer (`estimate_tokens` says how far
    off); of audio and image files only the header is read. An item that cannot be used never stops the
    reading: it is named in `skipped`.

    Args:
        paths: Files, folders (with everything below them) and glob patterns such as "data/**/*.wav"; hidden
            names are passed over, and a file reached twice counts once.
        modality: "text" (.txt, .md, .rst, .jsonl, .csv, .parquet), "speech" (.wav, .flac, .ogg, .mp3) or
            "vision" (.png, .jpg, .jpeg, .webp).
        column: For text: the field or column of .jsonl, .csv and .parquet files; "text" if not given.
        tokenizer: For text: a folder with a tokenizer, a tokenizer.json file, or a model id of the hub.

    Returns:
        Lengths in tokens, seconds (to the millisecond) or pixels. A side in pixels is that of the square with as
        many pixels as the image.

    Raises:
        InputError: If the modality is unknown, a path or pattern leads nowhere, a file given by its own name
            has an unknown suffix, the column is missing, or an argument does not go with the modality.
        DataError: If a folder holds nothing readable, the tokenizer cannot be loaded, or nothing usable is
            left.
    """
    if modality not in UNITS:
        raise unknown("modality", modality, UNITS)
    sources = tuple(os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths))
    if modality == "text":
        values, skipped, method = _read_text(sources, column, tokenizer)
    else:
        for name, value in (("column", column), ("tokenizer", tokenizer)):
            if value is not None:
                raise InputError(f"a {name} is for text only, got {value!r} for {modality}; leave it out")
        reader = HEADER_READERS[modality]
        files, skipped = find_files(sources, reader.suffixes, modality)
        read = [reader.read(file) for file in files]
        values = tuple(length for length in read if not isinstance(length, Skipped))
        skipped += tuple(item for item in read if isinstance(item, Skipped))
        method = reader.method
    if not values:
        raise DataError(
            f"no {modality} length could be read, {len(skipped):,} of {len(skipped):,} failed: {name_first(skipped)}"
        )
    return LengthData.of(
        values,
        modality=modality,
        sources=sources,
        method=method,
        estimated=modality == "text" and tokenizer is None,
        skipped=skipped,
    )


def _read_text(
    sources: tuple[str, ...], column: str | None, tokenizer: str | None
) -> tuple[tuple[float, ...], tuple[Skipped, ...], str]:
    files, unlisted = find_files(sources, text.SUFFIXES, "text")
    if column is not None and not any(file.lower().endswith(text.COLUMN_SUFFIXES) for file in files):
        raise InputError(
            f"the column {column!r} needs a file with columns ({', '.join(text.COLUMN_SUFFIXES)}), and there "
            "is none; leave it out"
        )
    named = "text" if column is None else column
    documents = chain.from_iterable(text.read_documents(file, named) for file in files)
    values, skipped = tokens.count_tokens(documents, tokenizer)
    method = tokens.ESTIMATE_METHOD if tokenizer is None else f"tokenizer {tokenizer}"
    return values, unlisted + skipped, method
