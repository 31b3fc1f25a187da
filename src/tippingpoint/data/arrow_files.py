"""Columns of Parquet and Arrow files, read some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tippingpoint.data.records import ColumnError, Run, missing_column
from tippingpoint.data.skipped import Skipped

if TYPE_CHECKING:
    import pyarrow as pa

_BYTES_AT_ONCE = 4_000_000
_ROWS_AT_ONCE = 16_384
_MAGIC_OF_FILES = b"ARROW1"
# What the library raises besides its own errors where a file contradicts itself, such as names that are no text.
_BROKEN = (UnicodeDecodeError, RuntimeError, LookupError, OverflowError, MemoryError)


def read_parquet(path: str, column: str, modality: str) -> Iterator[Run | Skipped]:
    """Yield the rows of one column of a Parquet file.

    Raises:
        ColumnError: If it has no such column, or the column holds something that has no length.
    """
    # Inside, because importing pyarrow is slow and only these files need it.
    import pyarrow as pa
    from pyarrow import parquet

    done = 0
    try:
        # Buffered ahead, what was read would be held until the file is closed.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BYTES_AT_ONCE) as file:
            holds = _kind_of(file.schema_arrow, path, column, modality)
            rows = _rows_at_once(file.metadata, column)
            for batch in file.iter_batches(batch_size=rows, columns=[column]):
                yield _run(path, column, holds, done, batch.column(0))
                done += len(batch)
    except ColumnError:
        raise
    except (pa.ArrowException, *_BROKEN) as error:
        yield _unreadable(path, "Parquet", done, error)


def read_arrow(path: str, column: str, modality: str) -> Iterator[Run | Skipped]:
    """Yield the rows of one column of an Arrow file, in its file format or its stream format.

    Raises:
        ColumnError: If it has no such column, or the column holds something that has no length.
    """
    import pyarrow as pa

    done = 0
    try:
        # Not memory-mapped: what was read would count as this process's memory, and a file that shrinks would end it.
        with pa.OSFile(path) as file:
            for batch in _arrow_batches(file, path, column):
                holds = _kind_of(batch.schema, path, column, modality)
                array = batch.column(batch.schema.get_field_index(column))
                array.validate()
                rows = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE * len(array) // max(array.nbytes, 1)))
                for start in range(0, len(array), rows):
                    yield _run(path, column, holds, done + start, array.slice(start, rows))
                done += len(array)
    except ColumnError:
        raise
    except (pa.ArrowException, *_BROKEN) as error:
        yield _unreadable(path, "Arrow", done, error)


def _arrow_batches(file: Any, path: str, column: str) -> Iterator[pa.RecordBatch]:
    from pyarrow import ipc

    is_file = file.read(len(_MAGIC_OF_FILES)) == _MAGIC_OF_FILES
    file.seek(0)
    with ipc.open_file(file) if is_file else ipc.open_stream(file) as reader:
        if column not in reader.schema.names:
            missing_column(path, column, reader.schema.names)
        if is_file:
            yield from map(reader.get_batch, range(reader.num_record_batches))
        else:
            yield from reader


def _unreadable(path: str, what: str, done: int, error: Exception) -> Skipped:
    after = f" after row {done}" if done else ""
    return Skipped(path, f"unreadable {what}{after}: {(str(error).splitlines() or [''])[0]}")


def _rows_at_once(metadata: Any, column: str) -> int:
    """How many rows of a column take a few megabytes, going by the row group whose rows are largest."""
    largest = 1.0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size = 0
        for place in range(group.num_columns):
            part = group.column(place)
            if part.path_in_schema == column or part.path_in_schema.startswith(f"{column}."):
                size += part.total_uncompressed_size
        largest = max(largest, size / max(group.num_rows, 1))
    return max(1, min(_ROWS_AT_ONCE, int(_BYTES_AT_ONCE / largest)))


def _kind_of(schema: pa.Schema, path: str, column: str, modality: str) -> str:
    """What a column holds, in the words of `Run`."""
    import pyarrow as pa

    if column not in schema.names:
        missing_column(path, column, schema.names)
    kind = schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(value) or pa.types.is_floating(value) or pa.types.is_decimal(value):
        return "number"
    if modality == "text" and _is_list_of_ids(value):
        return "elements"
    if str(value) in {"string", "large_string", "string_view", "binary", "large_binary"} or pa.types.is_null(value):
        return "text" if modality == "text" else "media"
    if modality != "text" and pa.types.is_struct(value) and {f.name for f in value} & {"bytes", "path"}:
        return "media"
    wanted = "text, lists of token ids" if modality == "text" else "recordings or images (bytes, or bytes and path)"
    raise ColumnError(f"column {column!r} of {path} holds {kind}; name a column of {wanted} or of numbers")


def _is_list_of_ids(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in kinds) and pa.types.is_integer(kind.value_type)


def _run(path: str, column: str, holds: str, done: int, array: pa.Array) -> Run:
    """Rows of one column; only those that are picked become Python's."""
    import pyarrow as pa
    from pyarrow import compute

    array.validate()
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if holds == "elements":
        array = compute.call_function("list_value_length", [array])
    elif holds == "text" and not pa.types.is_null(array.type):
        # As bytes, so that one wrong byte costs one row and not the batch.
        array = array.cast(pa.large_binary())
    # Offsets in the file may point anywhere.
    array.validate(full=True)

    def pick(indices: np.ndarray) -> list[Any]:
        return (array if len(indices) == len(array) else array.take(pa.array(indices))).to_pylist()

    return Run(path, column, holds, range(done + 1, done + len(array) + 1), pick)
