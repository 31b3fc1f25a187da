"""Documents in text files and in the columns of JSON Lines, CSV, Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tippingpoint.data import records
from tippingpoint.data.skipped import Skipped
from tippingpoint.errors import InputError

WHOLE_FILE_SUFFIXES = (".txt", ".md", ".rst")
COLUMN_SUFFIXES = records.SUFFIXES
SUFFIXES = WHOLE_FILE_SUFFIXES + COLUMN_SUFFIXES


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
        column: Field of a JSON Lines record, or column of another file (whose first row names them in CSV).

    Raises:
        InputError: If the file has no such column, or it holds something other than text.
    """
    if records.suffix_of(path) not in COLUMN_SUFFIXES:
        yield read_whole(path)
        return
    for run in records.read_records(path, column, "text"):
        if isinstance(run, Skipped):
            yield run
            continue
        if run.holds == "elements" or (run.holds == "number" and records.is_arrow(path)):
            raise InputError(f"column {column!r} of {path} holds no text; name a column of text")
        for number, value in zip(run.numbers, run.all(), strict=True):
            where = f"{path}:{number}"
            if run.as_json and not isinstance(value, Skipped):
                value = field_of(value, where, column)
            yield text_of(value, where, column)


def read_whole(path: str) -> Document | Skipped:
    """Return the one document of a text file, or why there is none."""
    try:
        with open(path, "rb") as file:
            raw = file.read(records.LARGEST_BYTES + 1)
    except OSError as error:
        return Skipped(path, error.strerror or str(error))
    if len(raw) > records.LARGEST_BYTES:
        return Skipped(path, records.TOO_LARGE)
    text = _decoded(raw, path)
    if isinstance(text, Skipped):
        return text
    return Skipped(path, "empty document") if _is_empty(text) else Document(path, text)


def field_of(line: bytes, where: str, column: str) -> object:
    """Return what a line of JSON holds in a field, or a Skipped that says why there is nothing."""
    record = records.parse_json(line)
    if isinstance(record, UnicodeDecodeError):
        return Skipped(where, f"not UTF-8 at byte {record.start}")
    if isinstance(record, Exception):
        return Skipped(where, f"invalid JSON: {record}")
    if not isinstance(record, dict):
        return Skipped(where, f"a JSON {type(record).__name__}, not an object")
    return record[column] if column in record else Skipped(where, f"no field {column!r}")


def text_of(value: object, where: str, column: str) -> Document | Skipped:
    """Return the text of one record's field, if it is text that can be encoded."""
    if isinstance(value, bytes):
        value = _decoded(value, where)
    if isinstance(value, Skipped):
        return value
    if value is None or (isinstance(value, str) and _is_empty(value)):
        return Skipped(where, f"{column!r} is empty")
    if not isinstance(value, str):
        return Skipped(where, f"{column!r} holds {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        return Skipped(where, f"{column!r} is not UTF-8")
    return Document(where, value)


def _is_empty(text: str) -> bool:
    return not text or text.isspace()


def _decoded(raw: bytes, where: str) -> str | Skipped:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Skipped(where, f"not UTF-8 at byte {error.start}")
