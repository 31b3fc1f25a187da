"""Records of files with columns, a run of them at a time and not yet looked into."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tippingpoint.data.skipped import Skipped
from tippingpoint.errors import InputError
from tippingpoint.units import format_bytes

if TYPE_CHECKING:
    from tippingpoint.data.columns import ColumnReader

SUFFIXES = (".jsonl", ".csv", ".parquet", ".arrow", ".jsonl.gz", ".csv.gz")

# JSON Lines has no header: this many records without the column are taken to mean that it is not there.
_RECORDS_BEFORE_GIVING_UP = 1000
_BYTES_AT_ONCE = 4_000_000
# No document and no record is larger; a line without an end would otherwise fill the memory.
LARGEST_BYTES = 2**26
TOO_LARGE = f"over {format_bytes(LARGEST_BYTES)} in one"
# So much of a line that is too long is passed over to reach the next one.
_MOST_PASSED_OVER = 2**31
# What Python takes for a line besides what stands in it.
_BYTES_OF_A_LINE = 64
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Run:
    """Some records of one file in their order, or some files.

    Attributes:
        path: The file; empty if the values are files themselves.
        column: The field or column that was asked for; empty where there is none.
        holds: What the values stand for: "file" (paths), "text", "media" (a recording or an image in bytes, or its
            path), "number" (a length), or "elements" (a list, or how many elements it has).
        numbers: Line or row of each record in the file, from 1.
        pick: Returns the values at some indices: text as str or bytes, numbers, lists, records as `datasets` stores
            media; or, if `as_json`, lines of JSON that hold them. What cannot be used is a Skipped.
        as_json: Whether the values are lines of JSON.
    """

    path: str
    column: str
    holds: str
    numbers: Sequence[int]
    pick: Callable[[np.ndarray], list[Any]]
    as_json: bool = False

    def all(self) -> list[Any]:
        """Return every value."""
        return self.pick(np.arange(len(self.numbers)))


def suffix_of(path: str) -> str:
    """Return the suffix of a file in lower case, ".jsonl.gz" being one."""
    name = path.rsplit("/", 1)[-1].lower()
    # A name that only begins with a dot has none.
    parts = name.lstrip(".").split(".")
    if len(parts) > 2 and parts[-1] == "gz":
        return "." + ".".join(parts[-2:])
    return "." + parts[-1] if len(parts) > 1 else ""


def is_arrow(path: str) -> bool:
    """Return whether a file's columns have types."""
    return suffix_of(path) in (".parquet", ".arrow")


def read_records(
    path: str, column: str, modality: str, columns: ColumnReader | None = None
) -> Iterator[Run | Skipped]:
    """Yield the records of one file, and what of it could not be read.

    Args:
        path: A file with one of `SUFFIXES`.
        column: Field of a JSON Lines record, or column of the other files (the first row of CSV names them).
        modality: What the column is to be lengths of.
        columns: Reads Parquet and Arrow files; one of its own, for this file alone, if not given.

    Raises:
        ColumnError: If the file has no such column, or it holds something that has no length.
    """
    if is_arrow(path):
        if columns is None:
            from tippingpoint.data.columns import ColumnReader

            with ColumnReader() as own:
                yield from read_records(path, column, modality, own)
            return
        runs = columns.read(path, column, modality)
    else:
        runs = (_csv if suffix_of(path).startswith(".csv") else _jsonl)(path, column, modality)
    nothing = True
    try:
        for run in runs:
            nothing = False
            yield run
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield Skipped(path, f"cut off or no gzip file: {error}")
    except OSError as error:
        yield Skipped(path, error.strerror or f"unreadable: {error}")
    else:
        if nothing:
            yield Skipped(path, "no records")


def read_numbers(path: str) -> Iterator[Run | Skipped]:
    """Yield the lines of a file of plain numbers, without blank lines and comments (from # on)."""
    nothing = True
    try:
        with _open(path) as file:
            for first, lines in _blocks(file, path):
                stripped = [(number, _without_comment(line)) for number, line in enumerate(lines, first)]
                numbers = [number for number, line in stripped if line]
                if numbers:
                    nothing = False
                    yield Run(path, "", "number", numbers, _picker([line for _, line in stripped if line]))
    except OSError as error:
        yield Skipped(path, error.strerror or str(error))
        return
    if nothing:
        yield Skipped(path, "no numbers")


def _without_comment(line: bytes | Skipped) -> bytes | Skipped:
    return line if isinstance(line, Skipped) else line.partition(b"#")[0].strip()


class ColumnError(InputError):
    """A file that does not have the column, or has something in it that has no length."""


def missing_column(path: str, column: str, columns: Iterable[str]) -> NoReturn:
    """Raise the error that names the columns there are."""
    names = ", ".join(repr(name) for name in columns)
    raise ColumnError(f"{path} has no column {column!r}; name one that it has: {names or 'none'}")


def _picker(values: Sequence[Any]) -> Callable[[np.ndarray], list[Any]]:
    return lambda indices: [values[index] for index in indices.tolist()]


def _open(path: str) -> io.BufferedReader | gzip.GzipFile:
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")


def _blocks(file: io.BufferedReader | gzip.GzipFile, path: str) -> Iterator[tuple[int, list[bytes | Skipped]]]:
    """Lines of a few megabytes together, with the number of the first, from 1; of a cut-off file what there is."""
    first, size = 1, 0
    lines: list[bytes | Skipped] = []
    try:
        while line := file.readline(LARGEST_BYTES):
            size += len(line) + _BYTES_OF_A_LINE
            if _goes_on(line) and _pass_over(file):
                line = Skipped(f"{path}:{first + len(lines)}", TOO_LARGE)
            lines.append(line)
            if size >= _BYTES_AT_ONCE:
                yield first, lines
                first, size, lines = first + len(lines), 0, []
    except (EOFError, OSError, zlib.error):
        yield first, lines
        raise
    yield first, lines


def _goes_on(line: bytes | str) -> bool:
    return len(line) == LARGEST_BYTES and line[-1:] not in (b"\n", "\n", "\r")


def _pass_over(file: Any) -> bool:
    """Go to the end of a line; return whether there was any more of it.

    Raises:
        OSError: If it has no end within reason.
    """
    passed = 0
    while part := file.readline(LARGEST_BYTES):
        passed += len(part)
        if not _goes_on(part):
            break
        if passed >= _MOST_PASSED_OVER:
            raise OSError(f"a line of over {format_bytes(passed)}")
    return passed > 0


def _jsonl(path: str, column: str, modality: str) -> Iterator[Run | Skipped]:
    with _open(path) as file:
        blocks = _blocks(file, path)
        ahead: list[tuple[int, list[bytes | Skipped]]] = []
        holds = _first_kind(path, column, modality, blocks, ahead)
        for first, lines in chain(ahead, blocks):
            present = [(number, line) for number, line in enumerate(lines, first) if not _is_blank(line)]
            if present:
                numbers, values = zip(*present, strict=True)
                yield Run(path, column, holds, numbers, _picker(values), as_json=True)


def _is_blank(line: bytes | Skipped) -> bool:
    return isinstance(line, bytes) and line.isspace()


def _first_kind(
    path: str,
    column: str,
    modality: str,
    blocks: Iterator[tuple[int, list[bytes | Skipped]]],
    ahead: list[tuple[int, list[bytes | Skipped]]],
) -> str:
    """What the first record with the column holds in it; blocks that were read to find out are put into `ahead`."""
    keys: dict[str, None] = {}
    present, without = False, 0
    for block in blocks:
        ahead.append(block)
        for line in block[1]:
            record = None if isinstance(line, Skipped) else parse_json(line)
            if not isinstance(record, dict):
                continue
            if (value := record.get(column)) is not None:
                return _kind_of(value, modality)
            present |= column in record
            without += column not in record
            keys.update(dict.fromkeys(record) if len(keys) < _RECORDS_BEFORE_GIVING_UP else {})
            if without >= _RECORDS_BEFORE_GIVING_UP and not present:
                missing_column(path, column, keys)
        if present:
            break
    if without and not present:
        missing_column(path, column, keys)
    return "text" if modality == "text" else "media"


def parse_json(line: bytes) -> Any:
    """Return what a line of JSON holds, or the exception that says why there is nothing."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return error


def _kind_of(value: object, modality: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    if modality != "text":
        return "media"
    return "elements" if isinstance(value, list) and all(type(one) is int for one in value) else "text"


def _csv(path: str, column: str, modality: str) -> Iterator[Run | Skipped]:
    # Escaped, so that one wrong byte costs one row and not the rest of the file.
    opened = gzip.open if path.lower().endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _CsvLines(file)
        rows = csv.reader(lines, strict=True)
        header = _next_row(rows, lines)
        if header is None:
            return
        if isinstance(header, csv.Error):
            yield Skipped(path, f"invalid CSV: {header}")
            return
        if column not in header:
            missing_column(path, column, header)
        index = header.index(column)
        holds = None
        for numbers, values in _csv_blocks(path, rows, lines, index):
            holds = holds or _csv_kind(values, modality)
            yield Run(path, column, holds, numbers, _picker(values))


def _csv_blocks(
    path: str, rows: Any, lines: _CsvLines, index: int
) -> Iterator[tuple[list[int], list[str | Skipped | None]]]:
    numbers: list[int] = []
    values: list[str | Skipped | None] = []
    size = 0
    while (row := _next_row(rows, lines)) is not None:
        if isinstance(row, csv.Error):
            values.append(Skipped(f"{path}:{rows.line_num}", f"invalid CSV: {row}"))
        elif row:
            value = row[index] if index < len(row) else None
            values.append(value)
            size += len(value or "")
        else:
            continue
        numbers.append(rows.line_num)
        if size >= _BYTES_AT_ONCE or len(values) >= _ROWS_AT_ONCE:
            yield numbers, values
            numbers, values, size = [], [], 0
    if values:
        yield numbers, values


def _csv_kind(values: Sequence[str | Skipped | None], modality: str) -> str:
    """What a column of CSV holds, which knows text alone: numbers, if most of the first rows are."""
    there = [value for value in values if isinstance(value, str) and value.strip()]
    if sum(map(_is_number, there)) > len(there) / 2:
        return "number"
    return "text" if modality == "text" else "media"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class _CsvLines:
    """Lines of a text file as the csv module takes them, of which no row holds more than the largest record."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.taken = 0

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(LARGEST_BYTES)
        if not line:
            raise StopIteration
        self.taken += len(line)
        if (_goes_on(line) and _pass_over(self._file)) or self.taken > LARGEST_BYTES:
            raise csv.Error(TOO_LARGE)
        return line


def _next_row(rows: Iterator[list[str]], lines: _CsvLines) -> list[str] | csv.Error | None:
    """The next row without the length limit of the csv module, which documents exceed."""
    lines.taken = 0
    # The limit belongs to the whole process, so it is put back before anyone else runs.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        return next(rows, None)
    except csv.Error as error:
        return error
    finally:
        csv.field_size_limit(limit)
