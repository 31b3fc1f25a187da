import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from synthetic import ENVIRONMENT, failure, measurement
from tippingpoint.measurement import BEST_BATCH
from tippingpoint.report.environments import differences_lines, unlike_fields
from tippingpoint.store import Store

NEWER = replace(
    ENVIRONMENT, torch="2.14.0", libraries=(("mkl", "2025"), ("numpy", "2.3")), build="A" * 70 + ", USE_MKL=1"
)
OLDER = replace(ENVIRONMENT, libraries=(("mkl", "2024"), ("numpy", "2.3")), build="A" * 70 + ", USE_MKL=0")
NOISY = [0.1, 0.2, 0.1, 0.3, 0.1, 0.2, 0.1, 0.3]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two runs in one environment and a third in another: texts, audio and images, failures and noise."""
    path = tmp_path_factory.mktemp("stored") / "runs.sqlite"
    with Store(path) as opened:
        opened.add(
            [
                measurement("bert", 512, 0.1, session="a-0"),
                measurement("bert@local:window=128", 512, NOISY, session="a-0"),
                measurement("longformer", 600, 0.3, session="a-0"),
                measurement("bert", 512, 0.2, session="a-0" + BEST_BATCH, batch_size=4, peak_bytes=None),
                failure("bert@eager", 8192, session="a", message="it needs 24 GiB"),
            ],
            study="text 1a2b3c4d",
            label="before",
        )
        opened.add(
            [
                measurement("bert", 512, 0.3, session="b-0", phase="training"),
                measurement("hubert@local:window=50", 12.5, 0.4, session="b-0"),
                failure("vit", 448, session="b", kind="crashed"),
            ],
            study="profile",
            label="after",
        )
        opened.add([measurement("bert", 512, 0.1, session="c-0", environment=NEWER)])
    return str(path)


def subjects_of(out: str) -> set[str]:
    return {row["workload"]["subject"] for row in json.loads(out)["outcomes"]}


def test_everything_is_listed_by_environment_with_its_units(run, store):
    code, out, err = run("show", store)
    assert (code, err) == (0, "")
    assert "runs.sqlite: 3 sessions, 7 measurements, 2 failures, 20" in out
    assert "2 environments, never put together; they differ in" in out
    assert re.search(
        rf"^  torch +2.13.0 in {ENVIRONMENT.fingerprint}; 2.14.0 in {NEWER.fingerprint}$", out, re.MULTILINE
    )
    first, second = out.split(f"Environment {NEWER.fingerprint}: ")
    assert f"Environment {ENVIRONMENT.fingerprint}: CPU, 2 threads" in first
    assert second.count("512 tokens") == 1
    for shown in ("12.5 s", "600 tokens", "448 px", "600 -> 1,024", "4 best", "out of memory", "crashed", "+-"):
        assert shown in first
    assert "8 x 1" in first
    assert "2 warnings" in first


def test_tables_fit_into_140_columns(run, store):
    _, out, _ = run("show", store)
    # Sentences are left to the terminal to wrap.
    sentences = ("Environment", "/", "  ")
    assert max(len(line.rstrip()) for line in out.splitlines() if not line.startswith(sentences)) <= 140
    rows = [line for line in out.splitlines() if line.startswith(("bert", "hubert", "longformer", "vit"))]
    assert len(rows) == 9
    assert not any(row.split()[0].endswith("…") for row in rows)


@pytest.mark.parametrize(
    ("filters", "subjects", "count"),
    [
        (["--subject", "bert"], {"bert", "bert@eager", "bert@local:window=128"}, 6),
        (["--subject", "bert@sdpa"], {"bert"}, 4),
        (["--subject", "bert@local"], {"bert@local:window=128"}, 1),
        (["--subject", "*@local*"], {"bert@local:window=128", "hubert@local:window=50"}, 2),
        (["--subject", "vit", "--subject", "longformer"], {"vit", "longformer"}, 2),
        (["--phase", "training"], {"bert"}, 1),
        (["--lengths", "12.5:448"], {"hubert@local:window=50", "vit"}, 2),
        (["--status", "failed"], {"vit", "bert@eager"}, 2),
        (["--status", "out_of_memory"], {"bert@eager"}, 1),
        (["--status", "ok", "--label", "after"], {"bert", "hubert@local:window=50"}, 2),
        (["--label", ""], {"bert"}, 1),
        (["--study", "text"], {"bert", "bert@eager", "bert@local:window=128", "longformer"}, 5),
        (["--study", "text 1a2b3c4d", "--batch-size", "4"], {"bert"}, 1),
        (["--environment", NEWER.fingerprint[:5]], {"bert"}, 1),
        (["--warnings"], {"bert@local:window=128", "longformer"}, 2),
        (["--device", "cpu", "--dtype", "float32", "--lengths", "8192:8192"], {"bert@eager"}, 1),
    ],
)
def test_filters_keep_what_they_say(run, store, filters, subjects, count):
    code, out, err = run("show", store, *filters, "--json")
    assert code == 0, err
    assert subjects_of(out) == subjects
    assert len(json.loads(out)["outcomes"]) == count


def test_a_filtered_table_says_how_much_of_the_store_it_shows(run, store):
    _, out, _ = run("show", store, "--label", "after")
    assert "3 of 9 outcomes shown" in out
    assert "environments" not in out
    assert "speech, inference, cpu float32, 2 threads, base, label after" in out


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        (["--subject", "swinv2"], "nothing has subject swinv2; there is bert, bert@local:window=128, longformer,"),
        (["--phase", "training", "--dtype", "bfloat16"], "nothing has dtype bfloat16; there is float32"),
        (
            ["--lengths", "1:2"],
            "nothing has length 1 to 2; there is 512 tokens, 600 tokens, 8,192 tokens, 12.5 s, 448 px",
        ),
        (["--status", "timeout"], "nothing has status timeout; there is ok, out_of_memory, crashed"),
        (["--label", "now"], "nothing has label now; there is before, after, (none)"),
        (["--study", "speech"], "nothing has study speech; there is text 1a2b3c4d, profile, (none)"),
        (
            ["--environment", "xyz"],
            f"nothing has environment xyz; there is {ENVIRONMENT.fingerprint}, {NEWER.fingerprint}",
        ),
        (["--batch-size", "3"], "nothing has batch size 3; there is 1, 4"),
        (["--device", "cuda"], "nothing has device cuda; there is cpu"),
        (
            ["--subject", "vit", "--phase", "training"],
            "nothing has all of subject vit, phase training at once; there is subject bert, ",
        ),
        (
            ["--warnings", "--phase", "training"],
            "nothing has all of phase training, warnings that say anything at once",
        ),
    ],
)
def test_what_matches_nothing_says_what_there_is_instead(run, store, filters, told):
    code, out, err = run("show", store, *filters)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {store}: {told}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        (["--phase", "trainin"], "unknown phase 'trainin'"),
        (["--status", "bad"], "unknown status 'bad'; expected one of ok, failed, out_of_memory"),
        (["--dtype", "float"], "unknown dtype 'float'"),
        (["--lengths", "12"], "lengths must be SHORTEST:LONGEST"),
        (["--lengths", "12:3"], "the shortest length must not be above the longest, got 12 and 3"),
        (["--subject", "bert@"], "a variant must follow '@'"),
        (["--subject", "bert@lokal"], "unknown variant 'lokal'"),
        (["--csv", "--json"], "--csv and --json exclude each other"),
    ],
)
def test_filters_that_are_not_legal_are_bad_usage(run, store, filters, told):
    code, out, err = run("show", store, *filters)
    assert (code, out) == (2, "")
    assert told in err


def test_a_store_that_is_not_there_or_empty_cannot_be_shown(run, tmp_path: Path):
    code, _, err = run("show", str(tmp_path / "none.sqlite"))
    assert code == 1
    assert "there is no store" in err
    Store(tmp_path / "empty.sqlite").close()
    code, _, err = run("show", str(tmp_path / "empty.sqlite"))
    assert code == 1
    assert "there are no results yet; measure something first" in err


def test_warnings_are_printed_with_what_they_are_about(run, store):
    code, out, _ = run("show", store, "--warnings")
    assert code == 0
    told = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert any(
        "bert@local:window=128 at 512 tokens, inference, batch 1: interquartile range" in line for line in told
    )
    assert any("longformer at 600 tokens, inference, batch 1: the model pads" in line for line in told)


def test_details_are_the_full_text_of_every_outcome(run, store):
    code, out, _ = run("show", store, "--details", "--label", "before")
    assert code == 0
    assert "longformer at length 600, batch 1, inference, cpu float32, 2 threads" in out
    assert "it needs 24 GiB" in out
    assert out.count("study text 1a2b3c4d, label before, session a") == 5


def test_json_has_the_raw_samples_and_what_run_they_belong_to(run, store):
    code, out, _ = run("show", store, "--label", "before", "--subject", "longformer", "--json")
    assert code == 0
    record = json.loads(out)
    (row,) = record["outcomes"]
    assert [sample["seconds"] for sample in row["samples"]] == [0.3] * 4
    assert (row["label"], row["study"], row["environment"]) == ("before", "text 1a2b3c4d", ENVIRONMENT.fingerprint)
    assert record["environments"][ENVIRONMENT.fingerprint]["torch"] == "2.13.0"
    assert "NaN" not in out


def test_csv_has_the_flat_rows_of_the_store(run, store):
    code, out, _ = run("show", store, "--csv", "--phase", "inference")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    with Store(store, create=False) as opened:
        expected = [row for row in opened.measurements() if row["phase"] == "inference"]
    assert [row["subject"] for row in rows] == [row["subject"] for row in expected]
    assert list(rows[0]) == list(expected[0])
    assert float(rows[0]["latency_s"]) == expected[0]["latency_s"]
    assert [row["latency_s"] for row in rows if row["status"] != "ok"] == ["", ""]


def test_environments_are_told_apart_setting_by_setting():
    rows = dict(unlike_fields([OLDER, NEWER]))
    assert rows == {
        "torch": ("2.13.0", "2.14.0"),
        "libraries mkl": ("2024", "2025"),
        "build": ("USE_MKL=0", "USE_MKL=1"),
    }
    lines = differences_lines({"x": OLDER, "y": NEWER, "z": NEWER})
    assert lines[0].split() == ["torch", "2.13.0", "in", "x;", "2.14.0", "in", "y,", "z"]
    assert differences_lines({"x": OLDER, "y": OLDER}) == []
    # An earlier version did not record it.
    assert ("libraries mkl", ("(not told)", "2024")) in unlike_fields([ENVIRONMENT, OLDER])
