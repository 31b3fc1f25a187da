"""Plain lengths of a record, for tests."""

from tippingpoint.data import LengthData


def values(data: LengthData) -> list[float]:
    """Return one length for each item, shortest first."""
    return [length for length, count in zip(data.lengths, data.counts, strict=True) for _ in range(count)]
