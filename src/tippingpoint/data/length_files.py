"""The small file that stands for a data set: its lengths and nothing that was in it.

    {"format": "tippingpoint lengths", "version": 1, "modality": "text", "unit": "tokens",
     "lengths": [12, 80], "counts": [3, 1], "population": null, "method": "...", "estimated": true,
     "skipped_reasons": {"empty document": 2}}

No text, no name of a file, folder, column or local tokenizer is in it; of what was skipped only how many items there
were for each kind of reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace

from tippingpoint.data.lengths import LengthData
from tippingpoint.errors import DataError, InputError
from tippingpoint.units import format_bytes

SUFFIX = ".json"
FORMAT = "tippingpoint lengths"
VERSION = 1
LARGEST_BYTES = 2**26


def length_file_of(sources: Sequence[str]) -> str | None:
    """Return the length file among the paths a person gave, None if there is none.

    Raises:
        InputError: If there is something beside it.
    """
    found = [path for path in sources if path.lower().endswith(SUFFIX) and not os.path.isdir(path)]
    if found and len(sources) > 1:
        raise InputError(f"the length file {found[0]!r} stands for a whole data set; give it alone")
    return os.path.expanduser(found[0]) if found else None


def write_lengths(data: LengthData, path: str | os.PathLike[str]) -> None:
    """Write what of a data set may be shared: lengths and counts, no names.

    Raises:
        OSError: If it cannot be written.
    """
    record = replace(data, sources=(), skipped=()).to_dict()
    del record["sources"], record["skipped"]
    # Tokens and pixels are whole numbers; a reader should not wonder about 12.0.
    record["lengths"] = [int(length) if length.is_integer() else length for length in data.lengths]
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "version": VERSION, **record}, file, allow_nan=False)
        file.write("\n")


def read_length_file(path: str) -> LengthData:
    """Return what `write_lengths` wrote; its source is the file.

    Raises:
        InputError: If there is no such file.
        DataError: If it is something else, of a later version, or its numbers contradict one another.
    """
    try:
        # A pipe could go on for ever, and a parsed file takes many times its size.
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError("it is no regular file")
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_size > LARGEST_BYTES:
                raise OSError(f"it is over {format_bytes(LARGEST_BYTES)}")
            record = json.load(file)
    except FileNotFoundError:
        raise InputError(f"there is no file {path!r}; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path!r} cannot be read as a length file: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(
            f"{path!r} is no length file; one is written by `tippingpoint lengths ... --output FILE.json` (records "
            "of text, one for each line, are read from .jsonl)"
        )
    if record.get("version") != VERSION:
        raise DataError(
            f"the length file {path!r} has version {record.get('version')!r}, and this tippingpoint reads version "
            f"{VERSION}; use the newer one, or write it again"
        )
    try:
        return LengthData.from_dict({**record, "sources": [path], "skipped": []})
    except (DataError, InputError) as error:
        raise DataError(f"the length file {path!r} is malformed: {error}") from error
