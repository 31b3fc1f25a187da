"""Flat rows as files for other programs: CSV, JSON lines, Parquet, Arrow."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tippingpoint.report.figures import whole_file
from tippingpoint.report.visible import as_cell
from tippingpoint.workload import check_choice

Row = Mapping[str, Any]

# Rows in memory at a time.
_BATCH = 10_000
# Columns by their type in Parquet and Arrow; the others are texts.
_TYPES = {
    "int64": (
        "positions",
        "batch_size",
        "threads",
        "layers",
        "width",
        "executed_positions",
        "samples",
        "processes",
        "peak_bytes",
        "weights_bytes",
        "activations_bytes",
        "flops",
        "algorithmic_flops",
        "bytes_accessed",
        "parameters",
        "positions_low",
        "positions_high",
        "sessions",
        "process",
        "round",
        "order",
        "calls",
        "layer",
        "held_bytes",
        "cores",
        "memory_bytes",
        "device_memory_bytes",
    ),
    "bool": (
        "compiled",
        "padded",
        "repeated",
        "throttled",
    ),
    "float64": (
        "length",
        "latency_s",
        "latency_low_s",
        "latency_high_s",
        "first_call_s",
        "spread",
        "sequences_per_s",
        "positions_per_s",
        "flops_per_s",
        "joules_per_call",
        "length_low",
        "length_high",
        "measured_from",
        "measured_to",
        "longer_share",
        "started_s",
        "seconds",
        "per_call_s",
        "device_seconds",
        "load",
        "others_s",
        "steal_s",
        "cores_s",
        "clock_hz",
        "temperature_c",
        "whole_s",
        "between_operators_s",
    ),
}
_TYPE_OF = {name: kind for kind, names in _TYPES.items() for name in names}


def write_rows(rows: Iterable[Row], format: str, path: Path) -> int:
    """Write rows that have the same keys into a file; return how many they were.

    The file becomes what it should be at once, or stays what it was.

    Args:
        rows: Read one after the other.
        format: One of `ROW_FORMATS`.
        path: The file.

    Raises:
        InputError: If the format is unknown, or the file cannot be written there.
    """
    check_choice("format", format, ROW_FORMATS)
    counted = itertools.count()
    passing = (row for row, _ in zip(rows, counted, strict=False))
    with whole_file(path) as file:
        _WRITERS[format](passing, {}, file)
    return next(counted)


def as_csv(rows: Iterable[Row]) -> bytes:
    """Return rows as CSV, which no spreadsheet takes for formulas; what is not there is empty."""
    file = io.BytesIO()
    _csv(rows, {}, file)
    return file.getvalue()


def as_parquet(rows: Iterable[Row], told: Mapping[str, str]) -> bytes:
    """Return rows as Parquet; a column has its type even where all of it is empty.

    Args:
        rows: With the same keys.
        told: What is said of the whole, beside the rows.
    """
    file = io.BytesIO()
    _parquet(rows, told, file)
    return file.getvalue()


def _csv(rows: Iterable[Row], _: Mapping[str, str], file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({key: as_cell(value) for key, value in row.items()})
    # The file is not this wrapper's to close.
    text.detach()


def _json_lines(rows: Iterable[Row], _: Mapping[str, str], file: BinaryIO) -> None:
    for row in rows:
        file.write(json.dumps(row, allow_nan=False).encode() + b"\n")


def _parquet(rows: Iterable[Row], told: Mapping[str, str], file: BinaryIO) -> None:
    from pyarrow import parquet

    schema, tables = _tables(rows, told)
    with parquet.ParquetWriter(file, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _arrow(rows: Iterable[Row], told: Mapping[str, str], file: BinaryIO) -> None:
    import pyarrow as pa

    schema, tables = _tables(rows, told)
    with pa.ipc.new_file(file, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _tables(rows: Iterable[Row], told: Mapping[str, str]) -> tuple[Any, Iterator[Any]]:
    """Return a schema, and tables of it that are made one after the other."""
    import pyarrow as pa

    batches = _batches(rows)
    first = next(batches, [])
    names = list(first[0]) if first else []
    schema = pa.schema([(name, _TYPE_OF.get(name, "string")) for name in names], metadata=dict(told))

    def tables() -> Iterator[Any]:
        for batch in itertools.chain([first], batches):
            plain = [{key: _whole_characters(value) for key, value in row.items()} for row in batch]
            yield pa.Table.from_pylist(plain, schema=schema)

    return schema, tables()


def _batches(rows: Iterable[Row]) -> Iterator[Sequence[Row]]:
    following = iter(rows)
    while batch := list(itertools.islice(following, _BATCH)):
        yield batch


def _whole_characters(value: object) -> object:
    """Return a text that UTF-8 can hold: halves of characters, which file names may have, are spelled out."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


_WRITERS: dict[str, Callable[[Iterable[Row], Mapping[str, str], BinaryIO], None]] = {
    "csv": _csv,
    "jsonl": _json_lines,
    "parquet": _parquet,
    "arrow": _arrow,
}
ROW_FORMATS = tuple(_WRITERS)
