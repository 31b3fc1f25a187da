import json
import re
from pathlib import Path

import numpy as np
import pytest

from breakdowns import MS, component, of
from synthetic import session_at
from tippingpoint.data import LengthData
from tippingpoint.data.length_files import write_lengths
from tippingpoint.store import Store
from tippingpoint.workload import Subject

HUBERT, LOCAL = Subject.parse("hubert"), Subject.parse("hubert@local:window=50")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Recordings in inference and training, with a breakdown of each; and a session of bert alone."""
    path = tmp_path_factory.mktemp("report") / "runs.sqlite"
    generator = np.random.default_rng(0)
    with Store(path) as opened:
        for phase in ("inference", "training"):
            for length in (2, 5, 10, 20, 40):
                costs = {HUBERT: 0.05 * length + 0.002 * length**2, LOCAL: 0.07 * length}
                opened.add(session_at(length, costs, generator, name=f"{phase} {length}-0", phase=phase))
            parts = [component("attention", "QKV projections", 2 * MS)]
            opened.add_breakdowns([of(parts, plain_s=[2 * MS] * 8, subject=HUBERT, length=5, phase=phase)])
        opened.add(session_at(128, {Subject.parse("bert"): 0.1}, generator), label="alone")
    return str(path)


def test_a_page_is_written_and_its_size_is_told(run, store, tmp_path):
    page = tmp_path / "report.html"
    code, out, err = run("report", store, "-o", str(page), "--title", "Ours & theirs")
    assert (code, err) == (0, "reporting 21 outcomes\n")
    assert re.fullmatch(rf"{page}: [\d,.]+ [KM]iB\n", out)
    text = page.read_text()
    assert "<h1>Ours &amp; theirs</h1>" in text
    assert "hubert@local:window=50 is faster than hubert from" in text
    assert "only bert was measured" in text
    assert list(tmp_path.iterdir()) == [page]


def test_json_tells_the_answers_and_where_the_report_is(run, store, tmp_path):
    page = tmp_path / "report.html"
    code, out, _ = run("report", store, "-o", str(page), "--json")
    assert code == 0
    said = json.loads(out)
    assert said["files"] == [str(page)]
    assert page.exists()
    assert said["answers"][0]["text"].startswith("hubert@local:window=50 is faster than hubert from")
    assert {point["variant"] for point in said["tipping_points"]} == {"hubert@local:window=50"}
    assert "only bert was measured" in said["missing"][0]["text"]


def test_filters_leave_out_what_does_not_pass(run, store, tmp_path):
    page = tmp_path / "report.html"
    assert run("report", store, "-o", str(page), "--phase", "training", "--range", "5:40")[0] == 0
    text = re.sub("<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert "8 measurements and 0 failures" in text
    assert "speech, training, batch 1" in text
    assert "speech, inference, batch 1" not in text
    assert "2.00 s" not in text.partition("How it was measured")[0].partition("Latency by length")[2]


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_padded_batches_of_several_sizes_are_reported_beside_batches_of_one_length(run, tmp_path, name):
    path = tmp_path / "batches.sqlite"
    report = tmp_path / name
    generator = np.random.default_rng(0)
    with Store(path) as opened:
        for size, padded in ((1, False), (4, False), (4, True), (8, True)):
            for length in (2, 10, 40):
                costs = {HUBERT: size * (0.05 * length + 0.002 * length**2), LOCAL: size * 0.07 * length}
                session = f"{size} {padded} {length}-0"
                opened.add(session_at(length, costs, generator, name=session, batch_size=size, padded=padded))
    code, _, err = run("report", str(path), "-o", str(report))
    assert code == 0, err
    text = report.read_text()
    for size, padded in ((1, ""), (4, ""), (4, ", padded"), (8, ", padded")):
        assert f"speech, inference, batch {size}, cpu float32, 2 threads, base{padded}" in text
    # A map over batch sizes for each manner of batching.
    assert text.count('<details class="batch-table"') == (2 if name == "report.html" else 0)


def test_the_persons_lengths_stand_in_the_page(run, store, tmp_path):
    file = tmp_path / "lengths.json"
    write_lengths(LengthData.of([1.0] * 10 + [39.0] * 30, modality="speech"), file)
    page = tmp_path / "report.html"
    code, _, err = run("report", store, "-o", str(page), "--lengths", str(file), "--modality", "speech")
    assert code == 0, err
    assert "75 % of your 40 recordings are longer" in page.read_text()


def test_lengths_of_another_modality_are_refused(run, store, tmp_path):
    (tmp_path / "text.txt").write_text("some words\n")
    page = tmp_path / "report.html"
    code, _, err = run("report", store, "-o", str(page), "--lengths", str(tmp_path / "text.txt"))
    assert code == 2
    assert "your lengths are of text" in err
    assert "say --modality speech" in err
    assert not page.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "report.docx"), "must end in one of .html"),
        (("-o", "report"), "or say --format"),
        (("-o", "nowhere/report.html"), "the folder 'nowhere' does not exist"),
        (("--format", "word"), "unknown format 'word'"),
        (("--phase", "sleeping"), "unknown phase 'sleeping'"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_read(run, store, arguments, said):
    code, out, err = run("report", store, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "reporting" not in err


def test_a_folder_is_no_file(run, store, tmp_path):
    code, _, err = run("report", store, "-o", str(tmp_path / "."), "--format", "html")
    assert code == 2
    assert "is a folder; name a file in it" in err


def test_a_store_without_a_comparison_says_which_command_would_make_one(run, store, tmp_path):
    code, out, err = run("report", store, "-o", str(tmp_path / "report.html"), "--label", "alone")
    assert (code, out) == (1, "")
    assert "only bert was measured, and no variant beside it" in err
    assert "`tippingpoint find bert bert@local:window=128 --lengths 128:1024" in err
    assert not list(tmp_path.iterdir())


def test_a_page_that_is_there_already_is_replaced(run, store, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("before")
    assert run("report", store, "-o", str(page))[0] == 0
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_breakdowns_go_with_the_outcomes_that_are_shown(run, store, tmp_path):
    page = tmp_path / "report.html"
    for phases, count in (("inference,training", 2), ("training", 1)):
        assert run("report", store, "-o", str(page), "--phase", phases)[0] == 0
        assert page.read_text().count("<caption>Where the time of a call goes</caption>") == count


@pytest.mark.parametrize(
    ("name", "beginning"), [("report.md", b"# "), ("report.csv", b"subject,"), ("report.pdf", b"%PDF")]
)
def test_the_files_name_says_the_format(run, store, tmp_path, name, beginning):
    code, out, err = run("report", store, "-o", str(tmp_path / name))
    assert code == 0, err
    assert (tmp_path / name).read_bytes().startswith(beginning)
    told = {Path(line.partition(": ")[0]) for line in out.splitlines()}
    assert told == set(tmp_path.iterdir())
