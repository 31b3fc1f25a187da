"""Numbers with units, as a person or a study file writes them."""

from contextlib import suppress

from tippingpoint.analysis.batching import Batching
from tippingpoint.analysis.constraint import Constraint
from tippingpoint.cli.options import cores, length_range, numbers
from tippingpoint.data.sampling import parse_sample
from tippingpoint.errors import TippingPointError
from tippingpoint.units import format_bytes, format_seconds, parse_bytes, parse_duration, parse_fraction, parse_length

TOKENS = (b"1e308", b"GiB", b"ms", b"%", b"Ki", b"<=", b"peak_memory", b"latency", b"budget:", b"0-3", b"nan", b"inf")
_PARSERS = (parse_bytes, parse_duration, parse_fraction, parse_length, parse_sample, Batching.parse, Constraint.parse)


def one_input(data: bytes) -> None:
    """Give a text to every parser of a quantity."""
    text = data.decode("utf-8", "surrogateescape")
    for parse in (*_PARSERS, length_range, numbers, cores):
        with suppress(TippingPointError):
            parse(text)
    with suppress(TippingPointError):
        assert parse_bytes(text) > 0
        format_bytes(parse_bytes(text))
    with suppress(TippingPointError):
        assert parse_duration(text) > 0
        format_seconds(parse_duration(text))
