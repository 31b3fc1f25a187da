"""The file that stands for a data set, and files of plain numbers."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from length_values import values

from tippingpoint.data import LengthData, Skipped, read_lengths, write_lengths
from tippingpoint.errors import DataError, InputError

SECRET = "patient-smith"


def data_of(*given: float, **options) -> LengthData:
    return LengthData.of(given, **{"modality": "text", "method": "the tokenizer org/model", **options})


@given(
    lengths=st.lists(st.integers(1, 10**6) | st.floats(0.001, 1e6), min_size=1), population=st.none() | st.just(99**9)
)
def test_what_is_written_is_read_again(lengths, population, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "lengths.json"
    data = data_of(*lengths, population=population)
    write_lengths(data, path)
    assert read_lengths(path) == replace(data, sources=(str(path),))


def test_nothing_of_what_was_read_is_in_the_file_but_lengths(tmp_path):
    folder = tmp_path / SECRET
    folder.mkdir()
    (folder / f"{SECRET}.txt").write_text(f"{SECRET} has a fever")
    (folder / f"{SECRET}2.txt").write_bytes(b"\xff")
    (folder / "a.jsonl").write_text(json.dumps({SECRET: "one"}) + "\n" + json.dumps({SECRET: 3}) + "\n{" + SECRET)
    data = read_lengths(folder, "text", column=SECRET)
    assert SECRET in str(data)
    path = tmp_path / "lengths.json"
    write_lengths(data, path)
    assert SECRET not in path.read_text()
    assert json.loads(path.read_text())["skipped_reasons"] == {
        "(name) holds int, not text": 1,
        "invalid JSON": 1,
        "not UTF-8": 1,
    }
    again = read_lengths(path)
    assert (again.lengths, again.skipped, again.skipped_count) == (data.lengths, (), 3)
    assert "3 skipped: (name) holds int, not text (1), invalid JSON (1), not UTF-8 (1)" in str(again)


def test_a_length_file_needs_no_modality_and_agrees_with_one_that_is_given(tmp_path):
    path = tmp_path / "lengths.json"
    write_lengths(LengthData.of([1.5], modality="speech"), path)
    assert read_lengths(path, "speech").modality == "speech"
    with pytest.raises(InputError, match="holds lengths of speech, not of text; leave the modality out"):
        read_lengths(path, "text")
    options: dict[str, Any] = {"column": "x", "tokenizer": "x", "sample": "5%"}
    for name, value in options.items():
        with pytest.raises(InputError, match=rf"a {name} is for data, and .* holds lengths; leave it out"):
            read_lengths(path, **{name: value})
    with pytest.raises(InputError, match="stands for a whole data set; give it alone"):
        read_lengths([path, tmp_path])
    with pytest.raises(InputError, match="expected a modality, one of text, speech, vision"):
        read_lengths(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2, and this tippingpoint reads version 1; use the newer one"),
        ({"format": "other"}, r"is no length file; one is written by `tippingpoint lengths \.\.\. --output"),
        ({"lengths": [2, 1], "counts": [1, 1]}, "is malformed: lengths must be distinct and growing"),
        ({"lengths": [0]}, "is malformed: a length must be positive and finite, got 0"),
        ({"lengths": [float("nan")]}, "is malformed: a length must be positive"),
        ({"counts": [-1]}, "is malformed: every length needs a count of at least 1"),
        ({"counts": ["many"]}, "is malformed: .* invalid literal"),
        ({"unit": "seconds"}, "is malformed: lengths must be of text in tokens"),
        ({"skipped_reasons": [1]}, "is malformed"),
    ],
)
def test_a_file_that_is_something_else_says_what(tmp_path, change, message):
    path = tmp_path / "lengths.json"
    write_lengths(data_of(3), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        read_lengths(path)


def test_a_length_file_that_is_not_there_or_no_json_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match=r"there is no file '.*none\.json'"):
        read_lengths(tmp_path / "none.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"a\.json' cannot be read as a length file"):
        read_lengths(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"a\.json' cannot be read as a length file"):
        read_lengths(tmp_path / "a.json")


def test_plain_files_hold_one_number_a_line(tmp_path):
    path = tmp_path / "lengths"
    path.write_bytes(b"# seconds\r\n1.5\r\n\r\n2.00049 # the second\n 3e0 \n-1\n0\nnan\ninf\nthree\n1 2\n\xff\n4")
    data = read_lengths(path, "speech", plain=True)
    assert values(data) == [1.5, 2.0, 3, 4]
    assert (data.method, data.estimated) == ("plain numbers, to the millisecond", False)
    assert [(item.path.rsplit(":")[-1], item.reason) for item in data.skipped] == [
        *((str(line), "no positive number") for line in (6, 7, 8, 9)),
        *((str(line), "no number") for line in (10, 11, 12)),
    ]


def test_plain_files_of_a_folder_are_read_together(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("7\n8\n")
    assert read_lengths(tmp_path, "text", plain=True).counts == (3, 3)
    (tmp_path / "0.txt").write_text("# nothing\n")
    assert read_lengths(tmp_path, "text", plain=True).skipped == (Skipped(str(tmp_path / "0.txt"), "no numbers"),)


@pytest.mark.parametrize("option", ["column", "tokenizer"])
def test_plain_files_have_no_use_for_a_column_or_a_tokenizer(tmp_path, option):
    options: dict[str, Any] = {option: "x"}
    with pytest.raises(InputError, match=f"plain files hold numbers alone and have no use for a {option}"):
        read_lengths(tmp_path, "text", plain=True, **options)
