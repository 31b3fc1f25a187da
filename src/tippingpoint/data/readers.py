"""Lengths of the items of a data set, whatever its modality, its size and the way it is stored."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tippingpoint.data import audio, images, text, tokens
from tippingpoint.data.files import Wanted
from tippingpoint.data.item_lengths import LengthReader
from tippingpoint.data.length_files import length_file_of, read_length_file
from tippingpoint.data.lengths import LengthData
from tippingpoint.data.pool import read_all, usable_jobs
from tippingpoint.data.records import SUFFIXES as COLUMN_SUFFIXES
from tippingpoint.data.sampling import DEFAULT_SAMPLE, Sample, parse_sample
from tippingpoint.data.skipped import name_first
from tippingpoint.data.stream import ItemStream
from tippingpoint.data.tally import Found, Tally
from tippingpoint.errors import DataError, InputError, unknown
from tippingpoint.units import UNITS

_SUFFIXES = {"text": text.SUFFIXES, "speech": audio.SUFFIXES, "vision": images.SUFFIXES}
_HEADER_METHODS = {"speech": audio.METHOD, "vision": images.METHOD}
# What the `datasets` library and the hub call such columns.
_COLUMNS = {"text": "text", "speech": "audio", "vision": "image"}
_PLAIN_SUFFIXES = (".txt",)


class Progress(NamedTuple):
    """How far the reading has come.

    Attributes:
        items: Items that were found so far, whether they were read or left out of a sample.
        total: How many there are, once that is known.
        bytes: Size of the texts among them that were read; 0 where only headers are.
    """

    items: int
    total: int | None
    bytes: int


def read_lengths(
    paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    modality: str | None = None,
    *,
    column: str | None = None,
    tokenizer: str | None = None,
    plain: bool = False,
    sample: int | float | str | None = DEFAULT_SAMPLE,
    jobs: int | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> LengthData:
    """Return how long the items of a data set are: tokens, seconds of audio, or pixels of a side.

    Text is read and its tokens counted, or estimated without a tokenizer (`estimate_tokens` says how far
    off); of audio and images only the header is read. A column of numbers, or of lists of token ids, is lengths
    already. An item that cannot be used never stops the reading: it is named in `skipped`.

    Memory does not grow with the data, and the answer is the same for any number of jobs.

    Args:
        paths: Files, folders (with everything below them), saved `datasets` folders, and glob patterns such as
            "data/**/*.wav"; hidden names are passed over, and a file reached twice counts once. Or one length
            file, which `write_lengths` wrote.
        modality: "text" (.txt, .md, .rst), "speech" (.wav, .flac, .ogg, .mp3) or "vision" (.png, .jpg, .jpeg,
            .webp); not needed for a length file.
        column: The field or column of .jsonl, .csv, .parquet and .arrow files: text, numbers, lists of token ids,
            or recordings and images as bytes or paths. By default "text", "audio" or "image"; given for speech or
            vision, only files with columns are read.
        tokenizer: For text: a folder with a tokenizer, a tokenizer.json file, or a model id of the hub.
        plain: The files hold lengths, one number a line; blank lines and what follows a # are passed over.
        sample: At most so many items are read, drawn evenly from all, the same ones each time; a share such as
            "5%" of them; or "all".
        jobs: Processes to read with; by default one for each core this process may use. Small data is read in
            this process.
        seed: Another one draws another sample.
        progress: Called now and then while reading.

    Returns:
        Lengths in tokens, seconds (to the millisecond) or pixels. A side in pixels is that of the square with as
        many pixels as the image.

    Raises:
        InputError: If the modality is unknown, a path or pattern leads nowhere, a file given by its own name
            has an unknown suffix, the column is missing, or an argument does not go with the others.
        DataError: If a folder holds nothing readable, the tokenizer cannot be loaded, a process that reads dies,
            or nothing usable is left.
    """
    sources = tuple(os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths))
    wanted_sample = parse_sample(sample)
    processes = usable_jobs(jobs)
    # Plain numbers may be in a file of any name.
    if not plain and (file := length_file_of(sources)):
        part = None if sample == DEFAULT_SAMPLE else sample
        return _from_length_file(file, modality, column=column, tokenizer=tokenizer, sample=part)
    if modality is None:
        raise InputError(f"expected a modality, one of {', '.join(UNITS)}; only a length file says its own")
    if modality not in UNITS:
        raise unknown("modality", modality, UNITS)
    _check(modality, column, tokenizer, plain)
    chosen = Sample(wanted_sample, seed)
    tally = Tally(chosen.most)
    stream = ItemStream(
        sources=sources,
        wanted=_wanted(modality, column, plain),
        column=column or _COLUMNS[modality],
        plain=plain,
        tokenizer=tokenizer is not None,
        sample=chosen,
        tally=tally,
    )
    for batch, lengths in read_all(stream, LengthReader(modality, tokenizer), processes):
        tally.add(batch.keys, batch.numbers, lengths)
        if progress:
            progress(Progress(chosen.seen, None, stream.bytes))
    if progress:
        progress(Progress(chosen.seen, chosen.seen, stream.bytes))
    if stream.refused and (not stream.holds or (column is not None and stream.holds == {"file"})):
        raise stream.refused
    if column is not None and stream.holds == {"file"}:
        raise InputError(
            f"the column {column!r} needs a file with columns ({', '.join(COLUMN_SUFFIXES)}), and there "
            "is none; leave it out"
        )
    found = tally.found()
    if not found.lengths:
        raise _nothing(modality, found, chosen.seen)
    return LengthData(
        modality=modality,
        unit=UNITS[modality],
        lengths=found.lengths,
        counts=found.counts,
        sources=sources,
        method=_method(modality, tokenizer, stream.holds, plain),
        estimated=modality == "text" and tokenizer is None and bool(stream.holds & {"file", "text"}),
        skipped=found.skipped,
        skipped_reasons=found.reasons,
        population=chosen.seen if chosen.is_part else None,
    )


def _from_length_file(path: str, modality: str | None, **options: object) -> LengthData:
    for name, value in options.items():
        if value is not None:
            raise InputError(f"a {name} is for data, and {path!r} holds lengths; leave it out")
    data = read_length_file(path)
    if modality not in (None, data.modality):
        raise InputError(f"{path!r} holds lengths of {data.modality}, not of {modality}; leave the modality out")
    return data


def _check(modality: str, column: str | None, tokenizer: str | None, plain: bool) -> None:
    if tokenizer is not None and modality != "text":
        raise InputError(f"a tokenizer is for text only, got {tokenizer!r} for {modality}; leave it out")
    for name, value in (("column", column), ("tokenizer", tokenizer)):
        if plain and value is not None:
            raise InputError(f"plain files hold numbers alone and have no use for a {name}; leave one of both out")


def _wanted(modality: str, column: str | None, plain: bool) -> Wanted:
    if plain:
        return Wanted(modality=modality, suffixes=_PLAIN_SUFFIXES, by_name=None)
    if modality == "text":
        return Wanted(modality=modality, suffixes=_SUFFIXES["text"])
    if column is not None:
        return Wanted(modality=modality, suffixes=COLUMN_SUFFIXES, datasets=True)
    return Wanted(
        modality=modality,
        suffixes=_SUFFIXES[modality],
        by_name=COLUMN_SUFFIXES,
        datasets=True,
        hint=f" (with a column named: {', '.join(COLUMN_SUFFIXES)})",
    )


def _method(modality: str, tokenizer: str | None, holds: set[str], plain: bool) -> str:
    """One sentence on how the lengths were had, with no name in it that must not be shared."""
    said = []
    if modality == "text" and holds & {"file", "text"}:
        said.append(tokens.method_of(tokenizer))
    if holds & {"file", "media"} and modality in _HEADER_METHODS:
        said.append(_HEADER_METHODS[modality])
    if "elements" in holds:
        said.append("lists of token ids")
    if "number" in holds:
        numbers = "plain numbers" if plain else "a column of numbers"
        said.append(f"{numbers}, to the millisecond" if modality == "speech" else numbers)
    return "; ".join(said)


def _nothing(modality: str, found: Found, seen: int) -> DataError:
    failed = sum(count for _, count in found.reasons)
    if not failed:
        return DataError(f"the sample holds none of {seen:,} {modality} items; take a larger one, or all")
    return DataError(
        f"no {modality} length could be read, {failed:,} of {failed:,} failed: "
        f"{name_first(found.skipped, count=failed)}"
    )
