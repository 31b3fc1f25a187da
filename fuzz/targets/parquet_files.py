"""Parquet files, read by the other process as they are for a person; what ends that process must end nothing else."""

from contextlib import suppress
from itertools import islice

from targets.scratch import written
from tippingpoint.data.columns import ColumnReader
from tippingpoint.data.item_lengths import LengthReader, Part
from tippingpoint.data.records import ColumnError, read_records
from tippingpoint.data.skipped import Skipped

# Runs of a file that are looked into.
_MOST = 20
_COLUMNS = ColumnReader()


def one_input(data: bytes) -> None:
    """Read a column of texts and one of recordings."""
    look_into(data, ".parquet")


def look_into(data: bytes, suffix: str) -> None:
    """Read columns of a file, and the lengths of what stands in them."""
    path = str(written(data, suffix))
    for column, modality in (("text", "text"), ("audio", "speech")):
        with suppress(ColumnError):
            for run in islice(read_records(path, column, modality, _COLUMNS), _MOST):
                if not isinstance(run, Skipped):
                    part = Part(run.path, run.column, run.holds, run.as_json, run.numbers, run.all())
                    LengthReader(modality)([part])
