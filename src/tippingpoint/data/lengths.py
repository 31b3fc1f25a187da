"""The record of how long the items of a data set are, and its statistics."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

from tippingpoint.errors import DataError, InputError
from tippingpoint.units import UNITS, format_length


@dataclass(frozen=True, slots=True)
class Skipped:
    """One file, folder or record that could not be used.

    Args:
        path: The file, or `file:line` (in Parquet `file:row`, from 1) for one record of it.
        reason: Why, in a few words.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthData:
    """How long every item of a data set is.

    Args:
        modality: "text", "speech" or "vision".
        unit: The native unit that goes with it: "tokens", "seconds" or "pixels".
        values: One length per item in that unit, in reading order; at least one, all positive.
        sources: The paths and patterns the caller gave.
        method: One sentence on how a length was had.
        estimated: Whether the lengths are estimates rather than counts.
        skipped: What could not be used; none of it is in `values`.

    Raises:
        InputError: If modality and unit do not go together, or a length is not positive and finite.
    """

    modality: str
    unit: str
    values: tuple[float, ...]
    sources: tuple[str, ...]
    method: str
    estimated: bool
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        if UNITS.get(self.modality) != self.unit:
            pairs = ", ".join(f"{modality} in {unit}" for modality, unit in UNITS.items())
            raise InputError(f"lengths must be of {pairs}; got {self.modality!r} in {self.unit!r}")
        if not self.values:
            raise InputError("lengths need at least one value, got none")
        wrong = next((value for value in self.values if not 0 < value < math.inf), None)
        if wrong is not None:
            raise InputError(f"a length must be positive and finite, got {wrong!r}; leave such items out")

    @property
    def count(self) -> int:
        """Number of items that have a length."""
        return len(self.values)

    @property
    def minimum(self) -> float:
        """Shortest length."""
        return min(self.values)

    @property
    def maximum(self) -> float:
        """Longest length."""
        return max(self.values)

    @property
    def median(self) -> float:
        """Smallest observed length that at least half of the items do not exceed."""
        return self.percentile(50)

    @property
    def mean(self) -> float:
        """Arithmetic mean of the lengths."""
        return math.fsum(self.values) / self.count

    def percentile(self, percent: float) -> float:
        """Return the smallest observed length that at least `percent` % of the items do not exceed.

        No interpolation, so "95 % of the items have at most this length" is literally true.

        Raises:
            InputError: If percent is not between 0 and 100.
        """
        return self._percentiles(percent)[0]

    def _percentiles(self, *percents: float) -> list[float]:
        ordered = sorted(self.values)
        found = []
        for percent in percents:
            if not 0 <= percent <= 100:
                raise InputError(f"a percentile must be between 0 and 100, got {percent!r}")
            # Through the decimal text: 99.9 means 99.9, not the binary number slightly above it.
            rank = math.ceil(Fraction(str(float(percent))) * len(ordered) / 100)
            found.append(ordered[max(rank, 1) - 1])
        return found

    def share_at_most(self, length: float) -> float:
        """Return the fraction, 0 to 1, of the items that are no longer than `length` (in `unit`)."""
        return sum(value <= length for value in self.values) / self.count

    def histogram(self, bins: int = 12) -> list[tuple[float, float, int]]:
        """Return (low, high, number of items) from the shortest to the longest length.

        A bin holds low <= length < high, the last one also its high end; every item is in exactly one.
        Bins are of equal width, or of equal ratio where the longest length is more than 4 times the
        shortest. Inner edges are whole numbers of tokens or pixels, so there can be fewer bins than asked.

        Args:
            bins: Most bins to return; items that all have one length give the single bin (length, length).

        Raises:
            InputError: If bins < 1.
        """
        if bins < 1:
            raise InputError(f"a histogram needs at least 1 bin, got {bins!r}")
        low, high = self.minimum, self.maximum
        fractions = [step / bins for step in range(1, bins)]
        if high > 4 * low:
            inner = [math.exp(math.log(low) + (math.log(high) - math.log(low)) * f) for f in fractions]
        else:
            inner = [low + (high - low) * f for f in fractions]
        if self.unit != "seconds":
            inner = [float(round(edge)) for edge in inner]
        edges = [low, *sorted({edge for edge in inner if low < edge < high}), high]
        counts = [0] * (len(edges) - 1)
        for value in self.values:
            counts[min(bisect.bisect_right(edges, value), len(counts)) - 1] += 1
        return list(zip(edges[:-1], edges[1:], counts, strict=True))

    def truncated(self, length: float) -> LengthData:
        """Return the data with longer items cut to `length`, as truncation would; the method says so.

        Args:
            length: In the native unit.

        Raises:
            InputError: If it is not positive.
        """
        if not 0 < length < math.inf:
            raise InputError(f"the length to cut to must be positive, got {length:g}")
        cut = sum(value > length for value in self.values)
        if not cut:
            return self
        return replace(
            self,
            values=tuple(min(value, length) for value in self.values),
            method=f"{self.method}; {cut:,} cut to {format_length(length, self.unit)}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, strings, numbers and booleans that JSON can hold."""
        return {
            "modality": self.modality,
            "unit": self.unit,
            "values": list(self.values),
            "sources": list(self.sources),
            "method": self.method,
            "estimated": self.estimated,
            "skipped": [asdict(skipped) for skipped in self.skipped],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> LengthData:
        """Return the record that `to_dict` wrote.

        Raises:
            DataError: If a field is missing or of the wrong kind.
            InputError: If the fields are there and contradict one another.
        """
        try:
            return cls(
                modality=str(record["modality"]),
                unit=str(record["unit"]),
                values=tuple(float(value) for value in record["values"]),
                sources=tuple(str(source) for source in record["sources"]),
                method=str(record["method"]),
                estimated=bool(record["estimated"]),
                skipped=tuple(Skipped(str(row["path"]), str(row["reason"])) for row in record["skipped"]),
            )
        except KeyError as error:
            raise DataError(f"a record of lengths needs the field {error}; write it with to_dict()") from error
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise DataError(f"a record of lengths is malformed: {error}; write it with to_dict()") from error

    def __str__(self) -> str:
        low, median, p90, p95, p99, high = (
            format_length(value, self.unit) for value in self._percentiles(0, 50, 90, 95, 99, 100)
        )
        lines = [
            f"{self.count:,} {self.modality} item{'s' * (self.count != 1)} from {', '.join(self.sources)}",
            f"shortest {low}, median {median}, mean {format_length(self.mean, self.unit)}, longest {high}",
            f"90 % have at most {p90}, 95 % at most {p95}, 99 % at most {p99}",
            f"lengths {self.method}" if self.estimated else f"lengths from {self.method}",
        ]
        if self.skipped:
            lines.append(f"{len(self.skipped):,} skipped: {name_first(self.skipped)}")
        return "\n".join(lines)


def name_first(skipped: tuple[Skipped, ...], limit: int = 3) -> str:
    """Return the first few of what was skipped with their reasons, and how many more there are."""
    named = ", ".join(str(item) for item in skipped[:limit])
    return named + (f" and {len(skipped) - limit:,} more" if len(skipped) > limit else "")
