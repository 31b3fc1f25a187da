"""YAML of strangers: plain data, and errors that say where."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tippingpoint.errors import InputError
from tippingpoint.yaml_files import LARGEST_BYTES, parse_yaml, read_yaml

# JSON writes what lies beyond as two halves.
TEXTS = st.text(st.characters(exclude_categories=("Cs",), max_codepoint=0xFFFF), max_size=20)
NUMBERS = st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_json_which_is_yaml_too_comes_back_as_it_was_written(data):
    assert parse_yaml(json.dumps(data)) == data


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: no", {"a": "no"}),
        ("a: on\nb: yes", {"a": "on", "b": "yes"}),
        ("no: 1", {"no": 1}),
        ("a: 2024-01-02", {"a": "2024-01-02"}),
        ("a: 1:30", {"a": "1:30"}),
        ("a: 0x10", {"a": "0x10"}),
        ("a: 1_000", {"a": "1_000"}),
        ("a: .nan\nb: .inf", {"a": ".nan", "b": ".inf"}),
        ("a: 1e3", {"a": 1000.0}),
        ("a: -7\nb: 0.5\nc: .5\nd: 0", {"a": -7, "b": 0.5, "c": 0.5, "d": 0}),
        ("a: '010'", {"a": "010"}),
        ("a: true\nb: ~\nc:", {"a": True, "b": None, "c": None}),
        ("", None),
    ],
)
def test_words_mean_what_they_look_like(text, data):
    assert parse_yaml(text) == data


LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LAUGHS, r"aliases .* are not read.*\(line 1, column 4\)"),
        ("a: *x", "aliases"),
        ("a: 1\nb: 2\na: 3", r"the key 'a' stands there twice; leave one out \(line 3, column 1\)"),
        ("{b: {a: 1, 'a': 2}}", "twice"),
        ("1: 2", "a key must be a text"),
        ("true: 2", "a key must be a text"),
        ("[1]: 2", "a key must be a text"),
        ("? {a: 1}\n: 2", "a key must be a text"),
        ("!!python/object/apply:os.getcwd []", r"tags \(!\) are not read"),
        ("a: !!binary aGk=", "tags"),
        ("!!set {a}", "tags"),
        ("a: 010", "octal"),
        ("a: 1e999", "too large"),
        ("a: " + "9" * 10_000, "too large"),
        ("a: 18446744073709551616", "too large"),
        ('a: "\\ud800"', "half of a character"),
        ('a: "\\UFFFFFFFF"', "no YAML"),
        ("a: \x00", "no YAML"),
        ("[" * 100_000, "nested more than 20 deep"),
        ("- " * 50_000, "nested more than 20 deep"),
        ("a: 1\n---\nb: 2", "another document"),
    ],
)
def test_what_is_not_plain_is_one_sentence(text, why):
    with pytest.raises(InputError, match=why) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_file_that_is_no_file_is_never_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, why in (
        (tmp_path / "pipe.yaml", "it is no regular file"),
        (Path("/dev/zero"), "it is no regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none.yaml", "No such file"),
        ("with\0zero", "null byte"),
    ):
        with pytest.raises(InputError, match=rf"cannot read the study .*\(.*{why}.*\); try another"):
            read_yaml(path, "study", "; try another")


def test_a_file_is_small_and_utf_8(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: " + b"x" * LARGEST_BYTES)
    with pytest.raises(InputError, match="too large, over 128 KiB"):
        read_yaml(path, "study")
    path.write_bytes(b"a: \xff")
    with pytest.raises(InputError, match="can't decode"):
        read_yaml(path, "study")
    path.write_bytes(b"\xef\xbb\xbfa: b")
    assert read_yaml(path, "study") == {"a": "b"}
    path.write_text("a: [")
    with pytest.raises(InputError, match="is no YAML"):
        read_yaml(path, "study")
