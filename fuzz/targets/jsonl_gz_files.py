"""Compressed JSONL: mutated as it is, and compressed anew."""

import gzip

from targets.jsonl_files import TOKENS  # noqa: F401
from targets.scratch import read


def one_input(data: bytes) -> None:
    """Read texts of a file that may be no gzip file, or of one that is."""
    read(data if data[:2] == b"\x1f\x8b" else gzip.compress(data, 1), ".jsonl.gz", "text")
