"""Verbs that keep a store: merge, export, vacuum."""

import json
import sqlite3
from pathlib import Path

import pytest

from breakdowns import encoder
from synthetic import failure, measurement
from tippingpoint.store import Store


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two stores, of which one is damaged, and a folder called folder.csv."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "damaged"):
        with Store(f"{name}.sqlite") as store:
            for number in range(20):
                session = f"{name}-{number}"
                store.add(
                    [measurement("bert", 128, [0.01] * 50, session=session), failure("vit", 224)], study=session
                )
    whole = Path("damaged.sqlite").read_bytes()
    Path("damaged.sqlite").write_bytes(whole[: len(whole) // 2])
    Path("folder.csv").mkdir()
    return tmp_path


def test_merging_says_what_the_new_file_holds(run, stores):
    code, out, err = run("merge", "one.sqlite", "one.sqlite", "-o", "new.sqlite")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "new.sqlite: 20 sessions with 40 outcomes, 0 breakdowns, 1 environment",
        "in several files, and kept once: 20 sessions",
    ]


def test_salvaging_says_what_is_lost_and_json_stays_json(run, stores):
    code, out, err = run("merge", "one.sqlite", "damaged.sqlite", "-o", "new.sqlite", "--salvage", "--json")
    assert code == 0
    record = json.loads(out)
    assert record["path"] == "new.sqlite"
    assert record["lost"] > 0
    assert 20 < record["sessions"] == 40 - record["lost"]
    assert (
        err
        == f"warning: at least {record['lost']} sessions and breakdowns could not be read and are not in new.sqlite\n"
    )


def test_vacuuming_says_the_size_before_and_now(run, stores):
    size = Path("one.sqlite").stat().st_size
    code, out, err = run("vacuum", "one.sqlite", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "path": "one.sqlite",
        "bytes_before": size,
        "bytes_after": Path("one.sqlite").stat().st_size,
        "environments": 0,
        "sessions": 20,
    }
    assert run("vacuum", "one.sqlite")[1].startswith("one.sqlite: whole, 20 sessions; ")


def test_a_table_of_breakdowns_is_exported(run, stores):
    with Store("one.sqlite") as store:
        store.add_breakdowns([encoder()])
    code, out, err = run("export", "one.sqlite", "-o", "parts.jsonl", "--table", "breakdowns")
    assert (code, err) == (0, "")
    lines = Path("parts.jsonl").read_text().splitlines()
    assert out.startswith(f"parts.jsonl: {len(lines)} rows of breakdowns, ")
    assert json.loads(lines[0])["group"] == "input"


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ("merge", 2, "Missing argument"),
        ("merge one.sqlite", 2, "Missing option"),
        ("merge one.sqlite -o one.sqlite", 2, "'one.sqlite' exists already; name a new file"),
        ("merge one.sqlite damaged.sqlite -o new.sqlite", 1, "tippingpoint merge damaged.sqlite -o NEW --salvage"),
        ("merge nowhere.sqlite -o new.sqlite", 1, "there is no store nowhere.sqlite"),
        ("export one.sqlite", 2, "Missing option"),
        ("export one.sqlite -o rows.txt", 2, "must end in one of .csv, .jsonl, .parquet, .arrow, got 'rows.txt'"),
        ("export one.sqlite -o rows", 2, "must end in one of"),
        ("export one.sqlite -o folder.csv", 2, "'folder.csv' cannot be written"),
        ("export one.sqlite -o nowhere/rows.csv", 2, "cannot be written"),
        ("export one.sqlite -o rows.csv --table sample", 2, "Did you mean 'samples'"),
        ("export one.sqlite -o rows.csv --table breakdowns", 1, "the store one.sqlite holds no breakdowns"),
        ("export nowhere.sqlite -o rows.csv", 1, "there is no store nowhere.sqlite"),
        ("export damaged.sqlite -o rows.csv", 1, "it is damaged"),
        ("vacuum nowhere.sqlite", 1, "there is no store nowhere.sqlite"),
        ("vacuum damaged.sqlite", 1, "it is damaged"),
        ("vacuum folder.csv", 1, "check that it is a file"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_leaves_all_files_as_they_were(run, stores, words, code, expected):
    before = {path: path.read_bytes() for path in stores.iterdir() if path.is_file()}
    found, out, err = run(*words.split())
    assert (found, out) == (code, "")
    assert expected in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in stores.iterdir() if path.is_file()} == before


def test_a_store_that_is_one_of_another_program_is_left_alone(run, stores):
    database = sqlite3.connect("recipes.csv")
    database.execute("CREATE TABLE recipes (name TEXT)")
    database.close()
    for words in ("merge recipes.csv -o new.sqlite", "vacuum recipes.csv", "export recipes.csv -o rows.csv"):
        code, _, err = run(*words.split())
        assert (code, "of another program" in err) == (1, True)
