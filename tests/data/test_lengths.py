import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tippingpoint.data import LengthData, Skipped, read_lengths
from tippingpoint.errors import DataError, InputError

positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
lengths = st.lists(positive | st.integers(1, 50).map(float), min_size=1, max_size=60)
percents = st.floats(0, 100) | st.decimals(0, 100, places=1).map(float)


def make(values: list[float] | np.ndarray, unit: str = "seconds", skipped: tuple[Skipped, ...] = ()) -> LengthData:
    modality = {"seconds": "speech", "tokens": "text", "pixels": "vision"}[unit]
    return LengthData.of(
        values, modality=modality, unit=unit, sources=("data",), method="audio header", skipped=skipped
    )


def common(data: LengthData) -> dict[str, Any]:
    return {"modality": data.modality, "sources": data.sources, "method": data.method}


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one two three")


@given(values=lengths, percent=percents)
def test_percentile_is_the_smallest_observed_length_that_enough_items_do_not_exceed(values, percent):
    found = make(values).percentile(percent)
    needed = Fraction(str(percent)) * len(values) / 100
    assert found in values
    assert sum(value <= found for value in values) >= needed
    shorter = [value for value in values if value < found]
    assert not shorter or len(shorter) < needed


def test_percentiles_of_a_thousand_items_mean_what_they_say():
    data = make([float(value) for value in range(1000, 0, -1)])
    assert [data.percentile(p) for p in (0, 0.1, 7, 50, 95, 99.9, 100)] == [1, 1, 70, 500, 950, 999, 1000]
    assert data.share_at_most(data.percentile(95)) == 0.95
    assert (data.count, data.minimum, data.maximum, data.median, data.mean) == (1000, 1, 1000, 500, 500.5)


def test_share_at_most_runs_from_none_to_all():
    data = make([1.0, 2.0, 2.0, 5.0])
    assert [data.share_at_most(length) for length in (0.5, 1, 2, 4.9, 5, 100)] == [0, 0.25, 0.75, 0.75, 1, 1]


@pytest.mark.parametrize("percent", [-1, 100.5, float("nan")])
def test_a_percentile_outside_0_to_100_is_refused(percent):
    with pytest.raises(InputError, match="a percentile must be between 0 and 100, got"):
        make([1.0]).percentile(percent)


@given(values=lengths, bins=st.integers(1, 30), unit=st.sampled_from(["seconds", "tokens", "pixels"]))
def test_histogram_counts_every_item_once_in_bins_that_touch(values, bins, unit):
    data = make(values, unit)
    histogram = data.histogram(bins)
    assert 1 <= len(histogram) <= bins
    assert sum(count for _, _, count in histogram) == data.count
    assert (histogram[0][0], histogram[-1][1]) == (data.minimum, data.maximum)
    assert all(left[1] == right[0] for left, right in pairwise(histogram))
    for low, high, count in histogram[:-1]:
        assert low < high
        assert count == sum(low <= value < high for value in values)


def test_histogram_edges_are_of_equal_ratio_over_a_wide_range_and_equal_width_over_a_narrow_one():
    wide = make([1.0, 2.0, 5.0, 50.0, 1000.0]).histogram(3)
    assert [edge for edge, _, _ in wide] == pytest.approx([1, 10, 100])
    assert [count for _, _, count in wide] == [3, 1, 1]
    narrow = make([1.0, 1.5, 2.5, 4.0]).histogram(3)
    assert narrow == [(1.0, 2.0, 2), (2.0, 3.0, 1), (3.0, 4.0, 1)]


def test_histogram_of_tokens_has_whole_numbers_between_its_bins():
    assert make([3.0, 4.0, 5.0], "tokens").histogram(12) == [(3.0, 4.0, 1), (4.0, 5.0, 2)]


def test_histogram_of_items_of_one_length_is_one_bin():
    assert make([7.0, 7.0]).histogram() == [(7.0, 7.0, 2)]


def test_histogram_without_bins_is_refused():
    with pytest.raises(InputError, match="a histogram needs at least 1 bin, got 0"):
        make([1.0]).histogram(0)


@given(
    values=lengths,
    skipped=st.lists(st.builds(Skipped, st.text(max_size=9), st.text(max_size=9)), max_size=3).map(tuple),
)
def test_a_record_survives_json(values, skipped):
    data = make(values, skipped=skipped)
    assert LengthData.from_dict(json.loads(json.dumps(data.to_dict()))) == data


def test_a_stored_record_without_a_field_names_it():
    stored = make([1.0]).to_dict()
    del stored["lengths"]
    with pytest.raises(DataError, match="a record of lengths needs the field 'lengths'"):
        LengthData.from_dict(stored)


def test_the_record_of_an_earlier_version_with_one_value_for_each_item_is_read():
    stored = make([2.0, 1.0, 2.0]).to_dict()
    for name in ("lengths", "counts", "population", "skipped_reasons"):
        del stored[name]
    assert LengthData.from_dict(stored | {"values": [2.0, 1.0, 2.0]}) == make([2.0, 1.0, 2.0])


@given(values=lengths)
def test_a_record_is_the_same_whatever_the_order_and_kind_of_the_values(values):
    data = make(values)
    assert data == make(values[::-1]) == LengthData.of(np.array(values), **common(data))
    assert list(data.lengths) == sorted(set(values))
    assert (data.count, data.mean) == (len(values), pytest.approx(math.fsum(v / len(values) for v in values)))


@given(values=lengths, limit=positive.filter(lambda value: value < 1e300))
def test_truncating_is_cutting_every_item(values, limit):
    cut = make(values).truncated(limit)
    expected = make([min(value, limit) for value in values])
    assert (cut.lengths, cut.counts) == (expected.lengths, expected.counts)
    assert cut.truncated(limit) is cut
    longer = sum(value > limit for value in values)
    assert ("cut to" in cut.method) == bool(longer)
    assert not longer or f"; {longer} cut to" in cut.method


def test_a_million_distinct_lengths_have_a_histogram_and_percentiles():
    data = make(np.arange(1, 1_000_001) / 1000)
    assert sum(count for _, _, count in data.histogram()) == data.count == 1_000_000
    assert data.percentiles(50, 100) == [500.0, 1000.0]


def test_a_sample_states_the_band_around_its_shares():
    data = LengthData.of([1, 2, 3, 4] * 250, modality="text", population=4000)
    assert data.sampling_error == pytest.approx(math.sqrt(math.log(40) / 2000))
    assert "1,000 text items sampled of 4,000\n" in str(data)
    assert "every share of items is within 4.3 percentage points of that of all 4,000 (95 %)" in str(data)
    assert LengthData.from_dict(json.loads(json.dumps(data.to_dict()))) == data
    assert make([1.0]).sampling_error == 0.0


def test_the_band_holds_in_95_of_100_samples_at_least():
    generator = np.random.default_rng(0)
    everything = LengthData.of(generator.integers(1, 50, 2000), modality="text")
    population = np.repeat(everything.lengths, everything.counts)
    missed = 0
    for _ in range(200):
        sample = LengthData.of(generator.choice(population, 100, replace=False), modality="text", population=2000)
        missed += any(
            abs(sample.share_at_most(length) - everything.share_at_most(length)) > sample.sampling_error
            for length in everything.lengths
        )
    assert missed <= 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": (2.0, 1.0), "counts": (1, 1)}, "distinct and growing"),
        ({"lengths": (1.0, 1.0), "counts": (1, 1)}, "distinct and growing"),
        ({"counts": ()}, "every length needs a count of at least 1, got 0 counts of 1 lengths"),
        ({"counts": (0,)}, "every length needs a count"),
        ({"counts": (1.5,)}, "every length needs a count"),
        ({"population": 2}, "3 items cannot be a sample of 2"),
    ],
)
def test_numbers_that_contradict_one_another_are_refused(change, message):
    data = make([1.0, 1.0, 1.0])
    with pytest.raises(InputError, match=message):
        replace(data, **change)


def test_of_more_skipped_items_than_are_named_the_count_stays():
    skipped = tuple(Skipped(f"{n}.wav", f"no readable image header: {n}") for n in range(1500))
    data = make([1.0], skipped=skipped)
    assert (len(data.skipped), data.skipped_count) == (1000, 1500)
    assert data.skipped_reasons == (("no readable image header", 1500),)
    assert str(data).splitlines()[-1].startswith("1,500 skipped: 0.wav (")
    assert str(data).endswith("and 1,497 more")


def test_the_kind_of_a_reason_leaves_out_what_only_one_item_says():
    reasons = {
        "not UTF-8 at byte 12": "not UTF-8",
        "'note: x' is empty": "(name) is empty",
        "invalid JSON: Expecting value": "invalid JSON",
        "unreadable Parquet after row 5: /home/me/a": "unreadable Parquet",
        "empty file": "empty file",
    }
    assert {reason: Skipped("a", reason).kind for reason in reasons} == reasons


def test_a_stored_record_with_a_field_of_the_wrong_kind_is_refused():
    with pytest.raises(DataError, match="a record of lengths is malformed: could not convert"):
        LengthData.from_dict(make([1.0]).to_dict() | {"lengths": ["long"]})


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_length_is_positive_and_finite(value):
    with pytest.raises(InputError, match="a length must be positive and finite, got"):
        make([1.0, value])


def test_a_record_has_lengths_in_the_unit_of_its_modality():
    with pytest.raises(InputError, match="lengths need at least one value, got none"):
        make([])
    with pytest.raises(InputError, match=r"text in tokens, speech in seconds.*got 'text' in 'seconds'"):
        LengthData.from_dict(make([1.0]).to_dict() | {"modality": "text"})


def test_the_summary_tells_count_percentiles_method_and_what_was_skipped():
    skipped = tuple(Skipped(f"{letter}.wav", "empty file") for letter in "abcde")
    assert str(make([float(value) for value in range(1, 101)], skipped=skipped)).splitlines() == [
        "100 speech items from data",
        "shortest 1.00 s, median 50.0 s, mean 50.5 s, longest 100 s",
        "90 % have at most 90.0 s, 95 % at most 95.0 s, 99 % at most 99.0 s",
        "lengths from audio header",
        "5 skipped: a.wav (empty file), b.wav (empty file), c.wav (empty file) and 2 more",
    ]


def test_folders_are_read_in_sorted_order_without_hidden_names_and_other_suffixes(tmp_path, monkeypatch):
    write(tmp_path, "b.txt", "a.MD", "sub/c.rst", ".hidden.txt", ".git/d.txt", "e.pdf")
    seen = []
    monkeypatch.setattr("tippingpoint.data.text.read_whole", lambda path: seen.append(path) or Skipped(path, "no"))
    with pytest.raises(DataError):
        read_lengths([tmp_path], "text")
    assert [os.path.relpath(path, tmp_path) for path in seen] == ["a.MD", "b.txt", "sub/c.rst"]


def test_files_folders_and_patterns_mix_and_a_file_reached_twice_counts_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "x/a.txt", "x/y/b.txt", "x/y/z/c.txt", "d.md")
    (tmp_path / "link.txt").symlink_to(tmp_path / "d.md")
    assert read_lengths(["x/**/*.txt"], "text").count == 3
    assert read_lengths(["x/*"], "text").count == 3
    data = read_lengths(["x/a.txt", "./x", tmp_path / "x/y/b.txt", "**/*.txt", "link.txt", "*.md"], "text")
    assert data.count == 4
    assert data.sources[:3] == ("x/a.txt", "./x", str(tmp_path / "x/y/b.txt"))


def test_one_path_needs_no_list(tmp_path):
    write(tmp_path, "a.txt")
    assert read_lengths(tmp_path / "a.txt", "text") == read_lengths([str(tmp_path / "a.txt")], "text")


def test_a_name_with_pattern_characters_that_exists_is_a_file(tmp_path):
    write(tmp_path, "a[1].txt", "a1.txt")
    assert read_lengths([tmp_path / "a[1].txt", tmp_path / "a1.txt"], "text").count == 2


def test_a_link_back_to_a_folder_above_does_not_loop(tmp_path):
    write(tmp_path, "sub/a.txt")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    assert read_lengths([tmp_path], "text").count == 1


def test_linked_folders_are_read(tmp_path):
    write(tmp_path, "elsewhere/a.txt")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    assert read_lengths([tmp_path / "data"], "text").count == 1


def test_an_unknown_modality_suggests_the_near_one(tmp_path):
    with pytest.raises(InputError, match=r"unknown modality 'speach'; expected one of text.*mean 'speech'"):
        read_lengths([tmp_path], "speach")


def test_paths_that_lead_nowhere_are_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no file or folder '.*/none\.txt'; check the path"):
        read_lengths([tmp_path / "none.txt"], "text")
    with pytest.raises(InputError, match=r"the pattern '.*/\*\*/\*\.wav' matches nothing; check it"):
        read_lengths([tmp_path / "**/*.wav"], "speech")
    with pytest.raises(InputError, match=r"reading text lengths needs at least one file, .* got none"):
        read_lengths([], "text")


def test_a_folder_without_a_readable_file_says_what_was_looked_for(tmp_path):
    write(tmp_path, "a.txt", "sub/b.pdf")
    with pytest.raises(DataError, match=r"no speech file in '.*': looked for \.wav, \.flac, \.ogg, \.mp3"):
        read_lengths([tmp_path], "speech")
    with pytest.raises(DataError, match=r"no text file in '.*\*\.pdf': looked for \.txt, \.md"):
        read_lengths([tmp_path / "sub" / "*.pdf"], "text")


def test_a_file_given_by_name_must_have_an_accepted_suffix(tmp_path):
    write(tmp_path, "a.pdf")
    with pytest.raises(InputError, match=r"cannot read '.*a\.pdf' as vision; .* ending in \.png, \.jpg"):
        read_lengths([tmp_path / "a.pdf"], "vision")


def test_a_tokenizer_is_refused_where_there_is_no_text(tmp_path):
    with pytest.raises(InputError, match="a tokenizer is for text only, got 'x' for speech; leave it out"):
        read_lengths([tmp_path], "speech", tokenizer="x")


def test_nothing_usable_counts_the_failures_and_names_three(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.wav").touch()
    message = r"no speech length could be read, 4 of 4 failed: \S*a\.wav \(empty file\), .* and 1 more"
    with pytest.raises(DataError, match=message):
        read_lengths([tmp_path], "speech")


def test_importing_the_package_loads_no_reader_library():
    heavy = ["torch", "transformers", "tokenizers", "pyarrow", "soundfile", "PIL"]
    code = f"import sys, tippingpoint.data; print([m for m in {heavy} if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
