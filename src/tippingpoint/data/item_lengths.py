"""How long single items are: what a worker process does with a batch of them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tippingpoint.data import audio, images, text, tokens
from tippingpoint.data.skipped import MOST_NAMED, Skipped
from tippingpoint.data.text import Document

_READ_MEDIA = {"speech": audio.read_duration, "vision": images.read_side}
# A tokenizer's answer takes many times the memory of the text.
_DOCUMENTS_AT_ONCE = 256
_CHARACTERS_AT_ONCE = 1_000_000


class Part(NamedTuple):
    """Some items of one batch: values of one `Run`, with its other fields; files where `holds` is "file"."""

    path: str
    column: str
    holds: str
    as_json: bool
    numbers: Sequence[int]
    values: list[Any]

    @property
    def where(self) -> str:
        """What to call its first item."""
        return str(self.values[0]) if self.holds == "file" else f"{self.path}:{self.numbers[0]}"


@dataclass(slots=True)
class Lengths:
    """Lengths of a batch of items.

    Attributes:
        lengths: In the order of the batch; of a skipped item -1 less the number of its kind of reason.
        kinds: Those kinds with their numbers, from 0.
        named: The first of what was skipped, by its index.
    """

    lengths: np.ndarray
    kinds: dict[str, int] = field(default_factory=dict)
    named: list[tuple[int, Skipped]] = field(default_factory=list)

    @classmethod
    def empty(cls, count: int) -> Lengths:
        """Return room for the lengths of so many items."""
        return cls(np.full(count, math.nan))

    def put(self, start: int, others: Lengths) -> None:
        """Take over the lengths of the items from a place on."""
        codes = [self.kinds.setdefault(kind, len(self.kinds)) for kind in others.kinds]
        values = others.lengths.copy()
        skipped = values < 0
        values[skipped] = -1 - np.array(codes, float)[(-1 - values[skipped]).astype(int)]
        self.lengths[start : start + len(values)] = values
        self.named += [(start + index, item) for index, item in others.named][: MOST_NAMED - len(self.named)]

    def skip(self, index: int, item: Skipped) -> None:
        """Note that an item has no length."""
        self.lengths[index] = -1 - self.kinds.setdefault(item.kind, len(self.kinds))
        if len(self.named) < MOST_NAMED:
            self.named.append((index, item))


@dataclass
class LengthReader:
    """Turns items into lengths.

    Args:
        modality: "text", "speech" or "vision".
        tokenizer: As in `load_tokenizer`; None estimates. It is loaded when first needed.
    """

    modality: str
    tokenizer: str | None = None
    _count: tokens.Counter | None = field(default=None, init=False, repr=False)

    def __call__(self, parts: Sequence[Part]) -> Lengths:
        """Return the lengths of a batch of items.

        Raises:
            InputError: If the tokenizer is a path that does not exist.
            DataError: If the tokenizer cannot be loaded or fails on a document.
        """
        lengths = Lengths.empty(sum(len(part.values) for part in parts))
        waiting: list[tuple[int, Document]] = []
        characters = 0
        index = 0
        for part in parts:
            for number, value in zip(part.numbers, part.values, strict=True):
                found = self._read(part, number, value)
                if isinstance(found, Document):
                    waiting.append((index, found))
                    characters += len(found.text)
                    if characters >= _CHARACTERS_AT_ONCE or len(waiting) >= _DOCUMENTS_AT_ONCE:
                        self._count_all(waiting, lengths)
                        waiting, characters = [], 0
                elif isinstance(found, Skipped):
                    lengths.skip(index, found)
                else:
                    lengths.lengths[index] = found
                index += 1
        if waiting:
            self._count_all(waiting, lengths)
        return lengths

    def _count_all(self, waiting: list[tuple[int, Document]], lengths: Lengths) -> None:
        if self._count is None:
            self._count = tokens.estimate_all if self.tokenizer is None else tokens.load_tokenizer(self.tokenizer)
        counts = self._count([document.text for _, document in waiting])
        for (index, document), count in zip(waiting, counts, strict=True):
            if count > 0:
                lengths.lengths[index] = count
            else:
                lengths.skip(index, Skipped(document.where, "the tokenizer makes no token of it"))

    def _read(self, part: Part, number: int, value: Any) -> Document | Skipped | float:
        if part.holds == "file":
            return text.read_whole(value) if self.modality == "text" else _READ_MEDIA[self.modality](value)
        where = f"{part.path}:{number}"
        if part.as_json and not isinstance(value, Skipped):
            value = text.field_of(value, where, part.column)
        if isinstance(value, Skipped):
            return value
        if part.holds == "text":
            return text.text_of(value, where, part.column)
        if value is None or value == "":
            return Skipped(where, f"{part.column!r} is empty")
        if part.holds == "media":
            return self._read_media(part, where, value)
        if isinstance(value, list) and part.holds == "elements":
            value = len(value)
        return self._as_length(value, where)

    def _read_media(self, part: Part, where: str, value: Any) -> float | Skipped:
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
        if content is None and isinstance(path, bytes):
            content = path
        if isinstance(content, bytes):
            return _READ_MEDIA[self.modality](content, where)
        if not isinstance(path, str) or not path:
            kind = "nothing" if path is None else type(path).__name__
            return Skipped(where, f"{part.column!r} holds {kind}, neither bytes nor a path")
        # What a data file names is not what the person named: it stays within the folder of that file.
        folder = os.path.realpath(os.path.dirname(part.path))
        try:
            file = os.path.realpath(os.path.join(folder, path))
        except (OSError, ValueError):
            return Skipped(where, "a path that is none")
        if os.path.commonpath([folder, file]) != folder:
            return Skipped(where, "a path that leads out of the folder of its file")
        if not os.path.isfile(file):
            return Skipped(where, "a path without a file")
        return _READ_MEDIA[self.modality](file, where)

    def _as_length(self, value: Any, where: str) -> float | Skipped:
        """Return a number as a length of this modality."""
        try:
            # Python's True is a number, and its text may have underscores.
            if isinstance(value, bool | list | dict) or (isinstance(value, str | bytes) and _has_underscore(value)):
                return Skipped(where, "no number")
            length = float(value)
        except (TypeError, ValueError, OverflowError):
            return Skipped(where, "no number")
        if not 0 < length < math.inf:
            return Skipped(where, "no positive number")
        return audio.to_millisecond(length) if self.modality == "speech" else length


def _has_underscore(value: str | bytes) -> bool:
    return ("_" in value) if isinstance(value, str) else (b"_" in value)
