import pytest
from hypothesis import given
from hypothesis import strategies as st

from tippingpoint.errors import InputError
from tippingpoint.units import (
    format_bytes,
    format_count,
    format_items,
    format_length,
    format_percent,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_duration,
    parse_fraction,
    parse_length,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 * 2**30), ("512 MB", 512_000_000), ("1.5kib", 1536), ("7", 7), (7, 7), ("1e3 B", 1000)],
)
def test_memory_sizes_are_read_in_decimal_and_binary_units(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("90s", 90), ("1.5h", 5400), ("200ms", 0.2), ("3us", 3e-6), (2.5, 2.5), ("2 min", 120)],
)
def test_durations_are_read_in_units_from_microseconds_to_hours(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "length"),
    [("4096", 4096), ("64k", 64_000), ("1M", 10**6), ("1.5m", 1_500_000), ("64Ki", 65_536), ("1 Mi", 2**20), (7, 7)],
)
def test_lengths_are_read_in_thousands_and_in_powers_of_two(text, length):
    assert parse_length(text) == length
    assert isinstance(parse_length(text), int)


def test_a_length_may_be_a_fraction():
    assert parse_length("2.5") == 2.5


@pytest.mark.parametrize(
    ("text", "message"),
    [("long", "must be a number with a unit, such as 4096"), ("4T", "unknown unit 't'"), ("0", "must be positive")],
)
def test_what_is_no_length_says_what_was_expected(text, message):
    with pytest.raises(InputError, match=message):
        parse_length(text)


@pytest.mark.parametrize(("text", "share"), [("2%", 0.02), ("0.02", 0.02), (0.5, 0.5), ("99.9 %", 0.999)])
def test_shares_are_read_as_percent_or_fraction(text, share):
    assert parse_fraction(text) == pytest.approx(share, rel=1e-15)


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_bytes, "plenty", "a memory size must be a number with a unit, such as 4GiB or 512MB, got 'plenty'"),
        (parse_bytes, "-1GB", "a memory size must be a number with a unit, .* got '-1GB'"),
        (parse_bytes, "1e999", "a memory size must be a number with a unit"),
        (parse_bytes, "0MB", "a memory size must be positive, got '0MB'"),
        (parse_bytes, "0.4B", "a memory size must be positive, got '0.4B'"),
        (
            parse_bytes,
            "4 gigs",
            "unknown unit 'gigs' in '4 gigs'; expected one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB",
        ),
        (parse_bytes, "50%", "unknown unit '%'"),
        (parse_duration, "", "a duration must be a number with a unit, such as 90s or 5m, got ''"),
        (parse_duration, "0s", "a duration must be positive, got '0s'"),
        (parse_duration, "3 days", "unknown unit 'days' in '3 days'; expected one of us, ms, s, m, min, h"),
        (parse_duration, "nan", "a duration must be a number with a unit"),
        (parse_fraction, "2", r"a share must be between 0 and 1 \(or 0% and 100%\), got '2'"),
        (parse_fraction, "0", "a share must be between 0 and 1"),
        (parse_fraction, "100%", "a share must be between 0 and 1"),
        (parse_fraction, "2x", "unknown unit 'x' in '2x'; expected a share such as 2% or 0.02"),
    ],
)
def test_what_cannot_be_read_says_what_was_expected(parse, text, message):
    with pytest.raises(InputError, match=message):
        parse(text)


@given(st.integers(1, 2**60))
def test_a_printed_memory_size_reads_back_to_three_digits(size):
    text = format_bytes(size)
    if size < 2**50:
        assert parse_bytes(text.replace(",", "")) == pytest.approx(size, rel=0.0051)


@given(st.floats(1e-6, 119.4))
def test_a_printed_duration_reads_back_to_three_digits(seconds):
    assert parse_duration(format_seconds(seconds)) == pytest.approx(seconds, rel=0.0051)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (format_seconds(0.0456), "45.6 ms"),
        (format_seconds(1.234), "1.23 s"),
        (format_seconds(789e-6), "789 us"),
        (format_seconds(0.9999), "1.00 s"),
        (format_seconds(119.4), "119 s"),
        (format_seconds(125), "2 m 05 s"),
        (format_seconds(3725), "1 h 02 m"),
        (format_bytes(1.5 * 2**30), "1.50 GiB"),
        (format_bytes(640 * 2**20), "640 MiB"),
        (format_bytes(1023.9), "1.00 KiB"),
        (format_bytes(0), "0.00 B"),
        (format_count(109_482_240), "109M"),
        (format_count(12.3e9), "12.3G"),
        (format_count(9_999), "9,999"),
        (format_rate(0), "0"),
        (format_rate(0.836), "0.836"),
        (format_rate(12.34), "12.3"),
        (format_rate(4560), "4,560"),
        (format_percent(0.042), "4.2 %"),
        (format_percent(0.42), "42 %"),
        (format_percent(0.0996), "10 %"),
        (format_length(1900, "tokens"), "1,900 tokens"),
        (format_length(12.5, "seconds"), "12.5 s"),
        (format_length(448, "pixels"), "448 px"),
    ],
)
def test_numbers_are_printed_to_three_digits_in_their_own_unit(shown, text):
    assert shown == text


def test_items_are_counted_in_words():
    assert [format_items(count, "failure") for count in (0, 1, 2, 1200)] == [
        "0 failures",
        "1 failure",
        "2 failures",
        "1,200 failures",
    ]


@pytest.mark.parametrize(
    ("parse", "text"), [(parse_bytes, "1e300TiB"), (parse_length, "1e308k"), (parse_duration, "1e308h")]
)
def test_what_no_number_can_hold_is_refused(parse, text):
    with pytest.raises(InputError, match="must be finite"):
        parse(text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["1" * 100_000 + "!", "1" + " " * 100_000 + "!", " " * 100_000 + "!", "1." * 50_000])
def test_a_long_text_is_refused_at_once(text):
    with pytest.raises(InputError):
        parse_duration(text)
