"""Documents in text files and in the columns of JSON Lines, CSV and Parquet files."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple, NoReturn

from tippingpoint.data.skipped import Skipped
from tippingpoint.errors import InputError

WHOLE_FILE_SUFFIXES = (".txt", ".md", ".rst")
COLUMN_SUFFIXES = (".jsonl", ".csv", ".parquet")
SUFFIXES = WHOLE_FILE_SUFFIXES + COLUMN_SUFFIXES

# JSON Lines has no header: this many records without the column are taken to mean that it is not there.
_RECORDS_BEFORE_GIVING_UP = 1000
_ROWS_PER_BATCH = 1024


class Document(NamedTuple):
    """One text and the file, or `file:line`, that it came from."""

    where: str
    text: str


def read_documents(path: str, column: str) -> Iterator[Document | Skipped]:
    """Yield every document of one file, or why there is none in its place.

    A .txt, .md or .rst file is one document; the other files hold one per record. Text is UTF-8, with or
    without a byte order mark. A document of white space alone is empty and skipped; blank lines between
    records are no records.

    Args:
        path: The file.
        column: Field of a JSON Lines record, or column of a Parquet or CSV file (whose first row names them).

    Raises:
        InputError: If the file has no such column, or a Parquet column holds something other than text.
    """
    suffix = os.path.splitext(path)[1].lower()
    read = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}.get(suffix)
    nothing = True
    try:
        for document in _whole(path) if read is None else read(path, column):
            nothing = False
            yield document
    except OSError as error:
        yield Skipped(path, error.strerror or str(error))
    else:
        if nothing:
            yield Skipped(path, "no records")


def _whole(path: str) -> Iterator[Document | Skipped]:
    with open(path, "rb") as file:
        text = _decoded(file.read(), path)
    if isinstance(text, str):
        yield Skipped(path, "empty document") if _is_empty(text) else Document(path, text)
    else:
        yield text


def _is_empty(text: str) -> bool:
    return not text or text.isspace()


def _decoded(raw: bytes, where: str) -> str | Skipped:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Skipped(where, f"not UTF-8 at byte {error.start}")


def _checked(value: object, where: str, column: str) -> Document | Skipped:
    """The text of one record's field, if it is text that can be encoded."""
    if value is None or (isinstance(value, str) and _is_empty(value)):
        return Skipped(where, f"{column!r} is empty")
    if not isinstance(value, str):
        return Skipped(where, f"{column!r} holds {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        return Skipped(where, f"{column!r} is not UTF-8")
    return Document(where, value)


def _missing_column(path: str, column: str, columns: Iterable[str]) -> NoReturn:
    names = ", ".join(repr(name) for name in columns)
    raise InputError(f"{path} has no column {column!r}; name one that it has: {names or 'none'}")


def _jsonl(path: str, column: str) -> Iterator[Document | Skipped]:
    keys: dict[str, None] = {}
    present, without = False, 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"{path}:{number}"
            line = _decoded(raw, where)
            if isinstance(line, Skipped):
                yield line
                continue
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Skipped(where, f"invalid JSON: {error}")
                continue
            if not isinstance(record, dict):
                yield Skipped(where, f"a JSON {type(record).__name__}, not an object")
            elif column in record:
                present = True
                yield _checked(record[column], where, column)
            else:
                without += 1
                keys.update(dict.fromkeys(record))
                if not present and without >= _RECORDS_BEFORE_GIVING_UP:
                    break
                yield Skipped(where, f"no field {column!r}")
    if without and not present:
        _missing_column(path, column, keys)


def _csv(path: str, column: str) -> Iterator[Document | Skipped]:
    # Escaped, so that one wrong byte costs one row and not the rest of the file.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, strict=True)
        header = _next_row(rows)
        if header is None:
            return
        if isinstance(header, csv.Error):
            yield Skipped(path, f"invalid CSV: {header}")
            return
        if column not in header:
            _missing_column(path, column, header)
        index = header.index(column)
        while (row := _next_row(rows)) is not None:
            where = f"{path}:{rows.line_num}"
            if isinstance(row, csv.Error):
                yield Skipped(where, f"invalid CSV: {row}")
            elif row:
                yield _checked(row[index] if index < len(row) else None, where, column)


def _next_row(rows: Iterator[list[str]]) -> list[str] | csv.Error | None:
    """The next row without the length limit of the csv module, which documents exceed."""
    # The limit belongs to the whole process, so it is put back before anyone else runs.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        return next(rows, None)
    except csv.Error as error:
        return error
    finally:
        csv.field_size_limit(limit)


def _parquet(path: str, column: str) -> Iterator[Document | Skipped]:
    # Inside, because importing pyarrow is slow and only Parquet needs it.
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if column not in schema.names:
                _missing_column(path, column, schema.names)
            kind = schema.field(column).type
            value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if str(value_kind) not in {"string", "large_string", "string_view", "binary", "large_binary"}:
                raise InputError(f"column {column!r} of {path} holds {kind}, not text; name a column of text")
            for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH, columns=[column]):
                # As bytes, so that one wrong byte costs one row and not the batch.
                for raw in batch.column(0).cast(value_kind).cast(pa.large_binary()).to_pylist():
                    number += 1
                    where = f"{path}:{number}"
                    text = None if raw is None else _decoded(raw, where)
                    yield text if isinstance(text, Skipped) else _checked(text, where, column)
    except pa.ArrowException as error:
        after = f" after row {number}" if number else ""
        yield Skipped(path, f"unreadable Parquet{after}: {str(error).splitlines()[0]}")
