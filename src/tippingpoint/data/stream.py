"""The items of a data set, in batches that a process can read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tippingpoint.data.columns import ColumnReader
from tippingpoint.data.files import Wanted, stream_files
from tippingpoint.data.item_lengths import Part
from tippingpoint.data.records import SUFFIXES, ColumnError, Run, read_numbers, read_records, suffix_of
from tippingpoint.data.sampling import Sample
from tippingpoint.data.skipped import Skipped
from tippingpoint.data.tally import Tally
from tippingpoint.errors import InputError

_BYTES_PER_BATCH = 4_000_000
_FILES_PER_BATCH = 256
_BYTES_OF_ANYTHING = 16
# What an item takes besides, here and where it is skipped: many tiny ones are no small batch.
_BYTES_OF_AN_ITEM = 64


class Batch(NamedTuple):
    """Items that one process reads at once, with their keys and their places in the data."""

    parts: list[Part]
    keys: np.ndarray
    numbers: np.ndarray


@dataclass
class ItemStream:
    """Every item of a data set that belongs to a sample, in batches, while they are found.

    Args:
        sources: Files, folders and patterns.
        wanted: Which files of them.
        column: Of files that have columns.
        plain: Whether the files are plain numbers, one for each line.
        tokenizer: Whether there is one, which has no use for numbers.
        sample: Decides what is read.
        tally: Is told what was skipped before it became an item.

    Attributes:
        holds: What the items stand for, in the words of `Run`.
        refused: Why the first of the files that were left out for their columns was; None if none was.
        bytes: Size of the text files and records that were handed out so far.
    """

    sources: Sequence[str]
    wanted: Wanted
    column: str
    plain: bool
    tokenizer: bool
    sample: Sample
    tally: Tally
    holds: set[str] = field(default_factory=set)
    refused: ColumnError | None = None
    bytes: int = 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches.

        Raises:
            InputError: If a path leads nowhere, the column is missing, or it has no use for the tokenizer.
            DataError: If a folder holds nothing readable.
        """
        with ColumnReader() as columns:
            yield from self._batches(columns)

    def _batches(self, columns: ColumnReader) -> Iterator[Batch]:
        parts: list[Part] = []
        keys: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        size = count = 0
        for run in self._runs(columns):
            if isinstance(run, Skipped):
                self.tally.note(self.sample.seen, run)
                continue
            self._check(run)
            first = self.sample.seen
            chosen, chosen_keys = self.sample.choose(len(run.numbers))
            if not len(chosen):
                continue
            values = run.pick(chosen)
            sizes = self._sizes(run, values)
            start = 0
            while start < len(values):
                end = _reach(sizes + _BYTES_OF_AN_ITEM, start, _BYTES_PER_BATCH - size)
                if run.holds == "file":
                    end = min(end, start + _FILES_PER_BATCH - count)
                where = chosen[start:end]
                places = [run.numbers[index] for index in where.tolist()]
                parts.append(Part(run.path, run.column, run.holds, run.as_json, places, values[start:end]))
                keys.append(chosen_keys[start:end])
                numbers.append(first + where)
                self.bytes += int(sizes[start:end].sum())
                size += int(sizes[start:end].sum()) + len(where) * _BYTES_OF_AN_ITEM
                count += len(where) if run.holds == "file" else 0
                start = end
                if size >= _BYTES_PER_BATCH or count >= _FILES_PER_BATCH:
                    yield Batch(parts, np.concatenate(keys), np.concatenate(numbers))
                    parts, keys, numbers, size, count = [], [], [], 0, 0
        if parts:
            yield Batch(parts, np.concatenate(keys), np.concatenate(numbers))

    def _runs(self, columns: ColumnReader) -> Iterator[Run | Skipped]:
        files: list[str] = []
        for found in stream_files(self.sources, self.wanted):
            if isinstance(found, Skipped):
                yield found
            elif self.plain:
                yield from read_numbers(found)
            elif suffix_of(found) in SUFFIXES:
                yield from self._records(found, columns)
            else:
                files.append(found)
                if len(files) == _FILES_PER_BATCH:
                    yield _run_of(files)
                    files = []
        if files:
            yield _run_of(files)

    def _records(self, path: str, columns: ColumnReader) -> Iterator[Run | Skipped]:
        try:
            yield from read_records(path, self.column, self.wanted.modality, columns)
        except ColumnError as error:
            # What was given by its own name was meant; a folder may hold tables of other things.
            if path in map(os.path.expanduser, self.sources):
                raise
            self.refused = self.refused or error
            yield Skipped(path, f"no usable column {self.column!r}")

    def _check(self, run: Run) -> None:
        if self.tokenizer and run.holds in ("number", "elements"):
            raise InputError(
                f"a tokenizer is for text, and column {run.column!r} of {run.path} holds "
                f"{'numbers' if run.holds == 'number' else 'token ids'}, which are lengths already; leave it out"
            )
        self.holds.add(run.holds)

    def _sizes(self, run: Run, values: list[Any]) -> np.ndarray:
        """How much there is to read of each value, in bytes."""
        if run.holds != "file":
            return np.fromiter(map(_size, values), np.int64, len(values))
        if self.wanted.modality != "text":
            # Of recordings and images only the header is read.
            return np.zeros(len(values), np.int64)
        return np.fromiter(map(_size_of_file, values), np.int64, len(values))


def _reach(sizes: np.ndarray, start: int, room: int) -> int:
    """The end of the values from `start` on that fill a room, or of all; at least one."""
    return start + min(int(np.searchsorted(np.cumsum(sizes[start:]), room)) + 1, len(sizes) - start)


def _run_of(files: list[str]) -> Run:
    return Run("", "", "file", range(len(files)), lambda indices: [files[index] for index in indices.tolist()])


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict) and isinstance(content := value.get("bytes"), bytes):
        return len(content)
    return _BYTES_OF_ANYTHING


def _size_of_file(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
