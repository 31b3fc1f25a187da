"""`tippingpoint lengths`: samples, length files, plain numbers and progress."""

import io
import json
import sys

import pytest

from tippingpoint.cli import lengths
from tippingpoint.data import LengthData, Progress, write_lengths


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": "word " * (n % 50 + 1)}) + "\n" for n in range(1000)) + "{\n" * 30)
    return path


def test_the_file_that_is_written_gives_the_same_answer_as_the_data(run, documents, tmp_path):
    file = tmp_path / "lengths.json"
    code, out, err = run("lengths", str(documents), "--output", str(file))
    assert code == 0
    assert f"wrote {file}: lengths and counts, no text and no names" in err
    code, again, err = run("lengths", str(file))
    assert (code, again) == (0, out)
    assert "warning: left out 30 items" in err
    code, out, _ = run("lengths", str(file), "--modality", "speech")
    assert (code, out) == (2, "")


def test_a_length_file_must_be_called_json(run, documents, tmp_path):
    code, _, err = run("lengths", str(documents), "--output", str(tmp_path / "lengths.txt"))
    assert (code, err.splitlines()[-1].split(",")[0]) == (2, "error: a length file ends in .json")


def test_a_sample_says_its_error_on_screen_and_in_json(run, documents):
    code, out, _ = run("lengths", str(documents), "--sample", "400")
    assert code == 0
    assert "percentage points of that of all 1,030 (95 %)" in out
    code, out, _ = run("lengths", str(documents), "--sample", "400", "--jobs", "1", "--json")
    record = json.loads(out)
    assert (record["count"] + record["skipped_count"], record["population"]) == (400, 1030)
    assert 0.06 < record["sampling_error"] < 0.08
    assert json.loads(run("lengths", str(documents), "--sample", "all", "--json")[1])["sampling_error"] == 0


def test_ten_unreadable_items_are_named_and_the_others_counted(run, documents):
    _, _, err = run("lengths", str(documents))
    lines = [line for line in err.splitlines() if line.startswith("warning: left out")]
    assert len(lines) == 11
    assert lines[-1] == "warning: left out 20 more"


def test_plain_numbers_are_read_from_any_file(run, tmp_path):
    path = tmp_path / "numbers"
    path.write_text("# lengths\n3\n5\n")
    code, out, _ = run("lengths", str(path), "--plain", "--json")
    assert (code, json.loads(out)["mean"]) == (0, 4)


@pytest.mark.parametrize(("option", "value"), [("--sample", "some"), ("--sample", "0"), ("--jobs", "0")])
def test_options_that_are_not_legal_are_one_sentence(run, documents, option, value):
    code, out, err = run("lengths", str(documents), option, value)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 5.0, 11.0, 11.0, 12.0, 30.0])
    monkeypatch.setattr("tippingpoint.profiling.device.now", lambda: next(clock))
    with lengths._shown() as show:
        for items in (1, 2000, 3000):
            show(Progress(items, None, 0))
        show(Progress(4000, 4000, 0))
    assert capsys.readouterr().err == "  2,000 items so far\n"


def test_on_a_terminal_progress_is_a_bar_that_goes_away(monkeypatch, documents):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    data = lengths.read([str(documents)])
    assert data.count == 1000
    assert "1,030 items" in terminal.getvalue()


def test_a_recommendation_takes_a_length_file_of_any_modality(run, tmp_path):
    write_lengths(LengthData.of([1.5, 3.0], modality="speech"), tmp_path / "lengths.json")
    code, out, err = run("recommend", str(tmp_path / "lengths.json"), "--no-measure", "--store", str(tmp_path / "no"))
    assert code == 1
    assert err.splitlines()[-1].startswith("error: there is no store")
    assert "Lengths of 2 recordings" in out
