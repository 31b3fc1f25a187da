"""The record of how long the items of a data set are, and its statistics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from tippingpoint.data.skipped import MOST_NAMED, Skipped, name_first
from tippingpoint.errors import DataError, InputError, unknown
from tippingpoint.units import UNITS, format_length

# A band of 95 %.
_MISSES = 0.05
_SCALE = 2.0**-64


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthData:
    """How long the items of a data set are: its distinct lengths and how many items have each.

    Args:
        modality: "text", "speech" or "vision".
        unit: The native unit that goes with it: "tokens", "seconds" or "pixels".
        lengths: Distinct lengths in that unit, growing; at least one, all positive.
        counts: Number of items of each length, at least 1.
        sources: The paths and patterns the caller gave.
        method: One sentence on how a length was had.
        estimated: Whether the lengths are estimates rather than counts.
        skipped: The first 1,000 of what could not be used; none of it is in `lengths`.
        skipped_reasons: How many items could not be used, by kind of reason; those of `skipped` if not given.
        population: How many items there were where only a sample of them was read; None if all were.

    Raises:
        InputError: If modality and unit do not go together, a length is not positive and finite, or the
            numbers contradict one another.
    """

    modality: str
    unit: str
    lengths: tuple[float, ...]
    counts: tuple[int, ...]
    sources: tuple[str, ...]
    method: str
    estimated: bool
    skipped: tuple[Skipped, ...] = ()
    skipped_reasons: tuple[tuple[str, int], ...] = ()
    population: int | None = None

    def __post_init__(self) -> None:
        if UNITS.get(self.modality) != self.unit:
            pairs = ", ".join(f"{modality} in {unit}" for modality, unit in UNITS.items())
            raise InputError(f"lengths must be of {pairs}; got {self.modality!r} in {self.unit!r}")
        if not self.lengths:
            raise InputError("lengths need at least one value, got none")
        lengths, counts = np.asarray(self.lengths, float), np.asarray(self.counts)
        legal = (lengths > 0) & (lengths < math.inf)
        if not legal.all():
            wrong = float(lengths[~legal][0])
            raise InputError(f"a length must be positive and finite, got {wrong!r}; leave such items out")
        if (np.diff(lengths) <= 0).any():
            raise InputError("lengths must be distinct and growing; LengthData.of takes them as they come")
        if counts.shape != lengths.shape or counts.dtype.kind not in "iu" or (counts < 1).any():
            raise InputError(
                f"every length needs a count of at least 1, got {len(self.counts):,} counts of {len(self.lengths):,} "
                "lengths; LengthData.of counts"
            )
        if self.population is not None and self.population < self.count:
            raise InputError(f"{self.count:,} items cannot be a sample of {self.population:,}")
        if not self.skipped_reasons:
            kinds = Counter(item.kind for item in self.skipped)
            object.__setattr__(self, "skipped_reasons", tuple(sorted(kinds.items())))
        object.__setattr__(self, "skipped", self.skipped[:MOST_NAMED])

    @classmethod
    def of(
        cls,
        values: Iterable[float],
        *,
        modality: str,
        unit: str | None = None,
        sources: tuple[str, ...] = (),
        method: str = "given by the caller",
        estimated: bool = False,
        skipped: tuple[Skipped, ...] = (),
        population: int | None = None,
    ) -> LengthData:
        """Return the record of plain lengths, one for each item, in any order.

        Args:
            values: In the native unit; any iterable of numbers, NumPy arrays among them.
            modality: "text", "speech" or "vision".
            unit: That of the modality by default.
            sources: As in the record, and so the others.
            method: One sentence on how a length was had.
            estimated: Whether the lengths are estimates.
            skipped: What could not be used.
            population: How many items there were, if these are a sample.

        Raises:
            InputError: If the modality is unknown, there is no length, or one is not positive and finite.
        """
        if modality not in UNITS:
            raise unknown("modality", modality, UNITS)
        plain = values if isinstance(values, np.ndarray) else list(values)
        lengths, counts = np.unique(np.asarray(plain, float), return_counts=True)
        return cls(
            modality=modality,
            unit=UNITS[modality] if unit is None else unit,
            lengths=tuple(lengths.tolist()),
            counts=tuple(counts.tolist()),
            sources=sources,
            method=method,
            estimated=estimated,
            skipped=skipped,
            population=population,
        )

    @property
    def count(self) -> int:
        """Number of items that have a length."""
        return sum(self.counts)

    @property
    def skipped_count(self) -> int:
        """Number of items that could not be used, named or not."""
        return sum(count for _, count in self.skipped_reasons)

    @property
    def sampling_error(self) -> float:
        """Half-width, 0 to 1, of the 95 % band around every share of items at most so long; 0 if all were read.

        With a probability of at least 95 %, no share is further off, whatever the lengths are: the inequality of
        Dvoretzky, Kiefer and Wolfowitz with the constant of Massart (Annals of Probability 18, 1990),
        sqrt(ln(2 / 0.05) / (2 n)). It is for independent draws; those of a sample, which takes no item twice,
        spread less, and nothing is claimed for that.
        """
        return 0.0 if self.population is None else min(1.0, math.sqrt(math.log(2 / _MISSES) / (2 * self.count)))

    @property
    def minimum(self) -> float:
        """Shortest length."""
        return self.lengths[0]

    @property
    def maximum(self) -> float:
        """Longest length."""
        return self.lengths[-1]

    @property
    def median(self) -> float:
        """Smallest observed length that at least half of the items do not exceed."""
        return self.percentile(50)

    @property
    def mean(self) -> float:
        """Arithmetic mean of the lengths."""
        # Scaled by a power of two, which is exact, so that no sum overflows.
        terms = (length * _SCALE * count for length, count in zip(self.lengths, self.counts, strict=True))
        return math.fsum(terms) / self.count / _SCALE

    def percentile(self, percent: float) -> float:
        """Return the smallest observed length that at least `percent` % of the items do not exceed.

        No interpolation, so "95 % of the items have at most this length" is literally true.

        Raises:
            InputError: If percent is not between 0 and 100.
        """
        return self.percentiles(percent)[0]

    def percentiles(self, *percents: float) -> list[float]:
        """Return several percentiles, each as `percentile` does.

        Raises:
            InputError: If one is not between 0 and 100.
        """
        reached = np.cumsum(self.counts)
        found = []
        for percent in percents:
            if not 0 <= percent <= 100:
                raise InputError(f"a percentile must be between 0 and 100, got {percent!r}")
            # Through the decimal text: 99.9 means 99.9, not the binary number slightly above it.
            rank = math.ceil(Fraction(str(float(percent))) * int(reached[-1]) / 100)
            found.append(self.lengths[int(np.searchsorted(reached, max(rank, 1)))])
        return found

    def share_at_most(self, length: float) -> float:
        """Return the fraction, 0 to 1, of the items that are no longer than `length` (in `unit`)."""
        return sum(self.counts[: int(np.searchsorted(self.lengths, length, side="right"))]) / self.count

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
        firsts = np.searchsorted(self.lengths, edges[:-1])
        counts = np.add.reduceat(np.asarray(self.counts), firsts)
        # Where two edges have no length between them, reduceat returns that of the next bin.
        counts[:-1][np.diff(firsts) == 0] = 0
        return list(zip(edges[:-1], edges[1:], counts.tolist(), strict=True))

    def truncated(self, length: float) -> LengthData:
        """Return the data with longer items cut to `length`, as truncation would; the method says so.

        Args:
            length: In the native unit.

        Raises:
            InputError: If it is not positive.
        """
        if not 0 < length < math.inf:
            raise InputError(f"the length to cut to must be positive, got {length:g}")
        kept = int(np.searchsorted(self.lengths, length))
        if kept == len(self.lengths) or self.maximum == length:
            return self
        cut = sum(self.counts[int(np.searchsorted(self.lengths, length, side="right")) :])
        return replace(
            self,
            lengths=(*self.lengths[:kept], float(length)),
            counts=(*self.counts[:kept], sum(self.counts[kept:])),
            method=f"{self.method}; {cut:,} cut to {format_length(length, self.unit)}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, strings, numbers and booleans that JSON can hold."""
        return {
            "modality": self.modality,
            "unit": self.unit,
            "lengths": list(self.lengths),
            "counts": list(self.counts),
            "population": self.population,
            "sources": list(self.sources),
            "method": self.method,
            "estimated": self.estimated,
            "skipped": [asdict(skipped) for skipped in self.skipped],
            "skipped_reasons": dict(self.skipped_reasons),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> LengthData:
        """Return the record that `to_dict` wrote, that of earlier versions with one value for each item included.

        Raises:
            DataError: If a field is missing or of the wrong kind.
            InputError: If the fields are there and contradict one another.
        """
        try:
            common: dict[str, Any] = {
                "modality": str(record["modality"]),
                "unit": str(record["unit"]),
                "sources": tuple(str(source) for source in record["sources"]),
                "method": str(record["method"]),
                "estimated": bool(record["estimated"]),
                "skipped": tuple(Skipped(str(row["path"]), str(row["reason"])) for row in record["skipped"]),
            }
            if "values" in record:
                return cls.of(map(float, record["values"]), **common)
            population = record.get("population")
            return cls(
                lengths=tuple(map(float, record["lengths"])),
                counts=tuple(map(int, record["counts"])),
                population=None if population is None else int(population),
                skipped_reasons=tuple((str(k), int(n)) for k, n in record.get("skipped_reasons", {}).items()),
                **common,
            )
        except KeyError as error:
            raise DataError(f"a record of lengths needs the field {error}; write it with to_dict()") from error
        except InputError:
            raise
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"a record of lengths is malformed: {error}; write it with to_dict()") from error

    def __str__(self) -> str:
        low, median, p90, p95, p99, high = (
            format_length(value, self.unit) for value in self.percentiles(0, 50, 90, 95, 99, 100)
        )
        of = "" if self.population is None else f" sampled of {self.population:,}"
        place = f" from {', '.join(self.sources)}" if self.sources else ""
        lines = [
            f"{self.count:,} {self.modality} item{'s' * (self.count != 1)}{of}{place}",
            f"shortest {low}, median {median}, mean {format_length(self.mean, self.unit)}, longest {high}",
            f"90 % have at most {p90}, 95 % at most {p95}, 99 % at most {p99}",
            *self.notes(),
            f"lengths {self.method}" if self.estimated else f"lengths from {self.method}",
        ]
        if self.skipped_count:
            lines.append(f"{self.skipped_count:,} skipped: {self.describe_skipped()}")
        return "\n".join(lines)

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of the numbers must know: how far off a sample can be."""
        if self.population is None:
            return ()
        points = float(f"{100 * self.sampling_error:.2g}")
        return (
            f"a sample: every share of items is within {points:g} percentage points of that of all "
            f"{self.population:,} (95 %); the longest item may be longer",
        )

    def describe_skipped(self) -> str:
        """Return the first few of what was skipped, by name, or the kinds of reasons where no name was kept."""
        if self.skipped:
            return name_first(self.skipped, count=self.skipped_count)
        return ", ".join(f"{kind} ({count:,})" for kind, count in self.skipped_reasons)

    def _repr_html_(self) -> str:
        from tippingpoint.report.notebook import as_html

        return as_html(self)
