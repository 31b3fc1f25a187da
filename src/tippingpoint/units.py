"""Human units at the edge; everything inside the package is SI: seconds, bytes, plain counts, fractions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from tippingpoint.errors import InputError

# The native unit of a length, by modality.
UNITS = {"text": "tokens", "speech": "seconds", "vision": "pixels"}
MODALITIES = tuple(UNITS)

_BYTE_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_COUNT_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
# Written so that no text can be taken apart in two ways: a long one would take for ever.
_NUMBER = re.compile(r"((?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*([a-z%]*)", re.IGNORECASE)


def _number_and_unit(text: str, what: str, example: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text.strip())
    if match is None or not math.isfinite(float(match[1])):
        raise InputError(f"{what} must be a number with a unit, such as {example}, got {text!r}")
    return float(match[1]), match[2].lower()


def _positive(
    text: str | float, what: str, example: str, units: Mapping[str, float], listed: str, least: float = 0
) -> float:
    """Return a number without its unit: positive, and not below `least`."""
    value, unit = _number_and_unit(str(text), what, example)
    if unit not in {"", *units}:
        raise InputError(f"unknown unit {unit!r} in {text!r}; expected one of {listed}")
    value *= units.get(unit, 1)
    if value <= 0 or value < least:
        raise InputError(f"{what} must be positive, got {text!r}")
    if value == math.inf:
        raise InputError(f"{what} must be finite, got {text!r}")
    return value


def parse_bytes(text: str | float) -> int:
    """Return bytes from "4GiB", "512 MB" or a plain number of bytes.

    Raises:
        InputError: If it is no number, not positive, or the unit is unknown.
    """
    listed = "B, kB, MB, GB, TB, KiB, MiB, GiB, TiB"
    # What is less than a byte would be none.
    return int(_positive(text, "a memory size", "4GiB or 512MB", _BYTE_UNITS, listed, least=1))


def parse_length(text: str | float) -> float:
    """Return a length in its native unit from "64k", "1M", "64Ki" or a plain number; whole ones are integers.

    k and M are 1,000 and 1,000,000; Ki and Mi are 1,024 and 1,048,576.

    Raises:
        InputError: If it is no number, not positive, or the unit is unknown.
    """
    listed = "k, M, G (thousands) or Ki, Mi, Gi"
    length = _positive(text, "a length", "4096, 64k or 1M", _COUNT_UNITS, listed)
    return int(length) if length.is_integer() else length


def parse_duration(text: str | float) -> float:
    """Return seconds from "5m", "90s", "1.5h", "200ms" or a plain number of seconds.

    Raises:
        InputError: If it is no number, not positive, or the unit is unknown.
    """
    return _positive(text, "a duration", "90s or 5m", _TIME_UNITS, "us, ms, s, m, min, h")


def parse_fraction(text: str | float) -> float:
    """Return a fraction from "2%" or "0.02".

    Raises:
        InputError: If it is no number or not between 0 and 1, both ends excluded.
    """
    value, unit = _number_and_unit(str(text), "a share", "2% or 0.02")
    if unit not in {"", "%"}:
        raise InputError(f"unknown unit {unit!r} in {text!r}; expected a share such as 2% or 0.02")
    fraction = value / 100 if unit == "%" else value
    if not 0 < fraction < 1:
        raise InputError(f"a share must be between 0 and 1 (or 0% and 100%), got {text!r}")
    return fraction


def _scaled(value: float, steps: list[tuple[float, str]]) -> str:
    """Three significant digits in the largest unit that keeps the number at 1 or more."""
    for size, unit in steps:
        if abs(value) >= size * 0.9995 or (size, unit) == steps[-1]:
            scaled = value / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:,.{digits}f} {unit}"
    raise AssertionError("unreachable: the last step always matches")


def format_seconds(seconds: float) -> str:
    """Return "1.23 s", "45.6 ms" or "789 us"; from two minutes on, "2 m 05 s"."""
    if seconds == 0:
        return "0 s"
    if seconds >= 119.5:
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes:02d} m" if hours else f"{minutes} m {rest:02d} s"
    return _scaled(seconds, [(1.0, "s"), (1e-3, "ms"), (1e-6, "us")])


def format_bytes(size: float) -> str:
    """Return binary units: "1.50 GiB", "640 MiB"."""
    return _scaled(size, [(2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")])


def format_count(count: float) -> str:
    """Return decimal units without a space for counts: "109M", "12.3G"; small counts in full."""
    if abs(count) < 10_000:
        return f"{count:,.0f}"
    return _scaled(count, [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")]).replace(" ", "")


def format_items(count: int, noun: str) -> str:
    """Return "1 failure", "2 failures"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_rate(rate: float) -> str:
    """Return a rate to three significant digits: "0.836", "12.3", "4,560"."""
    if rate == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(rate))))
    return f"{rate:,.{digits}f}"


def format_percent(fraction: float) -> str:
    """Return "4.2 %" below ten percent and "42 %" from there on."""
    percent = 100 * fraction
    return f"{percent:.1f} %" if abs(percent) < 9.95 else f"{percent:.0f} %"


def format_half_width(fraction: float) -> str:
    """Return the half-width of an interval as `+-3.2 %`; of the useless ones only that they are."""
    return f"+-{format_percent(fraction)}" if fraction <= 1 else "over +-100 %"


def format_length(length: float, unit: str) -> str:
    """Return a length in its native unit: "1,900 tokens", "12.5 s", "448 px".

    Args:
        length: In the native unit.
        unit: One of "tokens", "seconds", "pixels".
    """
    if unit == "seconds":
        return f"{format_rate(length) if length < 100 else format(length, ',.0f')} s"
    return f"{length:,.0f} {'px' if unit == 'pixels' else unit}"
