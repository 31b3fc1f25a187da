"""Length files: JSON of a stranger, and everything that is computed of lengths."""

from contextlib import suppress

from targets.scratch import written
from tippingpoint.data import read_lengths
from tippingpoint.errors import TippingPointError

TOKENS = (
    b"1e308",
    b"5e-324",
    b"NaN",
    b"Infinity",
    b"-1",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"9" * 30,
    b'"lengths"',
    b"1.5",
)
JSON = True


def one_input(data: bytes) -> None:
    """Read a length file and describe it."""
    with suppress(TippingPointError):
        found = read_lengths(written(data, ".json"))
        str(found)
        found.to_dict()
        found.histogram()
        found.truncated(found.median)
