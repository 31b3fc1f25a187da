"""One file for each process and suffix, in memory where there is such a place."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from tippingpoint.data import LengthData, read_lengths
from tippingpoint.errors import TippingPointError

_IN_MEMORY = "/dev/shm"
_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-", dir=_IN_MEMORY if os.path.isdir(_IN_MEMORY) else None)


def path_of(suffix: str) -> Path:
    """Return the file with this suffix."""
    return Path(_FOLDER.name, f"input{suffix}")


def written(data: bytes, suffix: str) -> Path:
    """Return a file that holds some bytes and nothing else."""
    path = path_of(suffix)
    path.write_bytes(data)
    return path


def read(data: bytes, suffix: str, modality: str, **options: object) -> None:
    """Read the lengths of a file in this process, and what is made of them."""
    with suppress(TippingPointError):
        found = read_lengths([written(data, suffix)], modality, jobs=1, **options)  # pyright: ignore
        str(found)
        assert LengthData.from_dict(found.to_dict()) == found
