"""What a stranger wrote is read or refused: every target of fuzz/, and every input that once broke one."""

import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FUZZ = Path(__file__).parents[2] / "fuzz"
sys.path.insert(0, str(FUZZ))

from child import seeds_of  # noqa: E402 # pyright: ignore[reportMissingImports]
from mutations import mutated  # noqa: E402 # pyright: ignore[reportMissingImports]
from targets import TARGETS, load  # noqa: E402 # pyright: ignore[reportMissingImports]

# The others take too long for hundreds of inputs.
SLOW = {
    "store_reports": 4,
    "store_records": 25,
    "store_files": 40,
    "store_schemas": 40,
    "study_files": 150,
    "csv_files": 100,
}
KEPT = sorted(path for path in (FUZZ / "crashes").glob("*/*") if path.is_file())


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_to_begin_with_are_kept_and_break_nothing(target):
    seeds = seeds_of(target)
    assert seeds
    for data in seeds[:20]:
        load(target).one_input(data)


@pytest.mark.parametrize("target", TARGETS)
def test_mutations_break_nothing(target):
    module: Any = load(target)
    seeds, random = seeds_of(target), Random(target)
    tokens, is_json = getattr(module, "TOKENS", ()), getattr(module, "JSON", False)
    for _ in range(SLOW.get(target, 200)):
        module.one_input(mutated(random.choice(seeds), random, tokens, seeds, is_json=is_json))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_broke_it_does_so_no_more(path):
    load(path.parent.name).one_input(path.read_bytes())


def test_every_kept_input_is_of_a_target():
    assert {path.parent.name for path in KEPT} <= set(TARGETS)


WORDS = st.sampled_from(
    [
        "bert",
        "hubert",
        "os:system",
        "local",
        "reuse",
        "window",
        "layers",
        "=",
        ":",
        ",",
        "+",
        "@",
        "-1",
        "1e999",
        "0-5",
        " ",
        "é",
    ]
)
GRAMMAR = st.lists(WORDS, max_size=12).map("".join)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | GRAMMAR
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["name", "modality", "baselines", "variants", "lengths", "metrics", "device", "budget", "affinity", "x"]
)


@settings(max_examples=300)
@given(GRAMMAR | st.text(max_size=30))
def test_any_text_is_a_subject_and_a_quantity_or_neither(text):
    for target in ("subjects", "quantities"):
        load(target).one_input(text.encode("utf-8", "surrogateescape"))


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, TREES, max_size=8))
def test_any_plain_data_is_a_study_or_none(fields):
    import yaml

    load("study_files").one_input(yaml.safe_dump(fields, allow_unicode=True).encode("utf-8", "replace"))


@settings(max_examples=200)
@given(
    st.fixed_dictionaries(
        {
            "format": st.just("tippingpoint lengths"),
            "version": st.just(1),
            "modality": st.sampled_from(["text", "speech"]),
        },
        optional={
            "unit": st.sampled_from(["tokens", "seconds"]),
            "lengths": st.lists(st.floats() | st.integers() | st.none(), max_size=4),
            "counts": st.lists(st.integers() | st.floats(), max_size=4),
            "population": LEAVES,
            "method": LEAVES,
            "estimated": LEAVES,
            "skipped_reasons": TREES,
        },
    )
)
def test_any_numbers_are_lengths_or_none(record):
    import json

    load("length_files").one_input(json.dumps(record).encode())


@settings(max_examples=300)
@given(
    st.lists(
        st.binary(max_size=30) | st.sampled_from([b'{"text": "a"}', b"12", b'"', b",", b"text", b"[[[[", b"\xff"]),
        max_size=6,
    )
)
def test_any_lines_are_records_or_named(lines):
    data = b"\n".join(lines)
    for target in ("jsonl_files", "csv_files", "plain_numbers", "texts", "recordings", "images"):
        load(target).one_input(data)
