import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from synthetic import ENVIRONMENT, MIB, failure, measurement
from tippingpoint import compare
from tippingpoint.measurement import BEST_BATCH, Outcome
from tippingpoint.report.compare import changes_tables
from tippingpoint.store import Store
from tippingpoint.study.ledger import read_known
from tippingpoint.study.run import pair_study, resolve_study

NEWER = replace(ENVIRONMENT, torch="2.14.0")
LOCAL = "bert@local:num_global=16,window=128"


def sessions(name: str, *, slower: float = 1.0, larger: float = 1.0, tips_at: float = 700, **fields):
    """Three lengths of a pair, with its best batch sizes at the last one."""
    for length in (256, 1024, 4096):
        session = f"{name}{length}-0"
        outcomes: list[Outcome] = [
            measurement("bert", length, slower * 1e-6 * length**2, session=session, **fields),
            measurement(
                LOCAL,
                length,
                1e-6 * tips_at * length,
                session=session,
                peak_bytes=int(larger * 100 * MIB),
                **fields,
            ),
        ]
        if length == 4096:
            batches = {"batch_size": 8, "peak_bytes": None, "session": session + BEST_BATCH}
            outcomes.append(measurement("bert", length, 10 * slower, **batches, **fields))
        yield outcomes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of a run before and after a change, and one that holds several runs under labels."""
    folder = tmp_path_factory.mktemp("compared")
    with Store(folder / "before.sqlite") as before, Store(folder / "after.sqlite") as after:
        for outcomes in sessions("before"):
            before.add(outcomes)
        for outcomes in sessions("after", slower=1.2, larger=1.1, tips_at=2000, environment=NEWER):
            after.add(outcomes)
        before.add([measurement("bert", 64, 0.1, session="x-0"), measurement("bert", 128, 0.1, session="x-0")])
        after.add([failure("bert", 64, session="y", kind="crashed", environment=NEWER)])
    with Store(folder / "runs.sqlite") as runs:
        for label, options in (("one", {}), ("two", {}), ("slow", {"slower": 1.2, "environment": NEWER})):
            for outcomes in sessions(label, **options):
                runs.add(outcomes, label=label)
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def rows_of(out: str, table: str) -> list[str]:
    """The rows of one table, below its title and its header."""
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(table))
    rows = []
    for line in lines[start + 2 :]:
        if not line:
            break
        rows.append(line.rstrip())
    return rows


def test_two_stores_are_compared(run):
    code, out, err = run("compare", "before.sqlite", "after.sqlite")
    assert (code, err) == (0, "")
    assert f"old  before.sqlite: 9 measurements, 1 workload only here, environment {ENVIRONMENT.fingerprint}" in out
    assert "new  after.sqlite: 7 measurements, 1 failure, " in out
    assert "  torch  2.13.0 -> 2.14.0" in out
    latency = rows_of(out, "Latency (time per batch); same within 3.0 %")
    assert [row.rsplit(maxsplit=1)[1] for row in latency] == ["slower"] * 3 + ["slower"] * 3
    assert "4,096 tokens" in latency[2]
    assert "1.200 to 1.200" in latency[2]
    (throughput,) = rows_of(out, "Throughput")
    assert ("1.25 s" in throughput, "1.50 s" in throughput) == (True, True)
    memory = rows_of(out, "Peak memory")
    assert [row.rsplit(maxsplit=1)[1] for row in memory] == ["same"] * 3 + ["larger"] * 3
    (failed,) = rows_of(out, "Failures")
    assert failed.split() == ["bert", "inference", "64", "tokens", "1", "measured", "crashed", "now", "fails"]
    moves = [row for row in rows_of(out, "Tipping points") if row.startswith("inference")]
    assert re.search(r" (69\d|70\d) tokens \(6\d\d to 7\d\d\)", moves[0])
    assert re.search(r" 1,6[4-9]\d tokens \(1,[4-6]\d\d to 1,[6-8]\d\d\)", moves[0])
    assert [move.endswith("moved up") for move in moves] == [True, True, False]
    assert "latency: new over old time " in out
    assert "geometric mean of 6 workloads" in out
    assert "note: the sides were not timed side by side" in out


def test_tables_fit_into_140_columns(run):
    _, out, _ = run("compare", "before.sqlite", "after.sqlite")
    tables = [
        line.rstrip() for line in out.splitlines() if line.startswith(("bert", "inference", "subject", "phase"))
    ]
    assert len(tables) > 15
    assert max(map(len, tables)) <= 140


def test_two_labels_of_one_store_are_compared(run):
    code, out, _ = run("compare", "runs.sqlite", "--labels", "one,two")
    assert code == 0
    assert "old  runs.sqlite one: 7 measurements" in out
    assert "The environments are alike." in out
    assert {row.rsplit(maxsplit=1)[1] for row in rows_of(out, "Latency")} == {"same"}
    code, out, _ = run("compare", "runs.sqlite", "--labels", "one,slow", "--subject", "bert@sdpa", "--json")
    record = json.loads(out)
    assert code == 0
    assert {change["workload"]["subject"] for change in record["changes"]} == {"bert"}
    assert {change["verdict"] for change in record["changes"] if change["metric"] == "latency"} == {"slower"}
    assert record["environment_differences"] == [["torch", "2.13.0", "2.14.0"]]


def test_an_environment_may_stand_in_place_of_a_label(run):
    code, out, _ = run("compare", "runs.sqlite", "--labels", f"two,{NEWER.fingerprint[:6]}", "--json")
    assert code == 0
    assert "slower" in {change["verdict"] for change in json.loads(out)["changes"]}


def test_a_side_with_several_environments_must_be_chosen(run):
    code, out, err = run("compare", "runs.sqlite", "before.sqlite")
    assert (code, out) == (2, "")
    assert "runs.sqlite was measured in 2 environments" in err
    assert ENVIRONMENT.fingerprint in err
    assert NEWER.fingerprint in err
    chosen = f"{NEWER.fingerprint[:5]},{ENVIRONMENT.fingerprint[:5]}"
    code, out, err = run("compare", "runs.sqlite", "before.sqlite", "--environments", chosen)
    assert code == 0, err
    # The two runs that are alike are put together as further processes.
    assert " faster" in out
    code, out, err = run("compare", "runs.sqlite", "--environments", chosen)
    assert code == 0, err
    assert "2, 1" not in rows_of(out, "Latency")[0]
    assert "1, 2" in rows_of(out, "Latency")[0]


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ([], 0, []),
        (
            ["--fail-on", "slower"],
            1,
            ["bert at 256 tokens, inference, batch 1 latency: slower", "64 tokens", "8 of them"],
        ),
        (["--fail-on", "failing"], 1, ["bert at 64 tokens, inference, batch 1: now fails"]),
        (["--fail-on", "larger"], 1, [f"{LOCAL} at 256 tokens, inference, batch 1 peak memory: larger"]),
        (["--fail-on", "moved"], 1, [f"{LOCAL} against bert, inference latency: moved up"]),
        (["--fail-on", "undecided"], 0, []),
        (["--fail-on", "slower,moved", "--metric", "peak_memory"], 1, ["now fails"]),
        (
            ["--fail-on", "slower", "--threshold", "25%", "--subject", "bert", "--metric", "throughput"],
            1,
            ["now fails"],
        ),
    ],
)
def test_what_to_fail_on_is_an_exit_code_and_named_on_stderr(run, options, code, told):
    found, out, err = run("compare", "before.sqlite", "after.sqlite", *options)
    assert found == code
    assert out
    for text in told:
        assert text in err
    assert err == "" or err.splitlines()[-1].startswith("error: --fail-on ")


def test_what_only_one_side_has_is_counted_and_listed_on_demand(run):
    _, out, _ = run("compare", "before.sqlite", "after.sqlite", "--details")
    assert "only in before.sqlite: bert at 128 tokens, inference, batch 1" in out
    _, out, _ = run("compare", "before.sqlite", "after.sqlite")
    assert "only in before.sqlite" not in out


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["before.sqlite"], 2, r"one store was given.*--labels OLD,NEW \(it has \(none\)\)"),
        (["runs.sqlite"], 2, r"it has one, two, slow"),
        (["runs.sqlite", "--labels", "one"], 2, "--labels must be OLD,NEW, got 'one'"),
        (["runs.sqlite", "--labels", "one,"], 2, "--labels must be OLD,NEW, got 'one,'"),
        (
            ["runs.sqlite", "--labels", "one,tow"],
            2,
            "no run is labelled 'tow'.*labels one, two, slow and",
        ),
        (["runs.sqlite", "--environments", "x,y"], 2, "no environment begins with 'x'; there are "),
        (["before.sqlite", "none.sqlite"], 1, "there is no store none.sqlite"),
        (["before.sqlite", "after.sqlite", "runs.sqlite"], 2, "unexpected extra argument"),
        (["before.sqlite", "after.sqlite", "--threshold", "3"], 2, "a share must be between 0 and 1"),
        (["before.sqlite", "after.sqlite", "--metric", "speed"], 2, "unknown metric 'speed'"),
        (["before.sqlite", "after.sqlite", "--fail-on", "slow"], 2, "unknown verdict to fail on 'slow'"),
        (
            ["before.sqlite", "after.sqlite", "--phase", "training"],
            1,
            "before.sqlite: nothing has phase",
        ),
        (
            ["before.sqlite", "after.sqlite", "--subject", "vit"],
            1,
            "before.sqlite: nothing has subject vit; ",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(run, arguments, code, told):
    found, out, err = run("compare", *arguments)
    assert (found, out) == (code, "")
    assert re.search(told, err)
    assert err.count("\n") == 1


def test_rows_say_what_is_not_the_same_work_and_in_what_setting():
    old = [measurement("bert", 64, 0.1), measurement("bert", 64, 0.1, dtype="bfloat16")]
    new = [replace(one, attention="eager") for one in old]
    (table, _) = changes_tables(compare(old, new))
    assert [column.header for column in table.columns][:3] == ["subject", "phase", "setting"]
    assert list(table.columns[2].cells) == ["cpu float32 base", "cpu bfloat16 base"]
    assert {str(cell) for cell in table.columns[-1].cells} == {"same (other work)"}


def test_a_run_with_a_label_goes_on_with_its_own_outcomes_alone(tmp_path):
    study = resolve_study(pair_study("bert", "longformer", lengths=(64, 128), threads=2))
    with Store(tmp_path / "labels.sqlite") as store:
        for label, length in (("before", 64), ("after", 128), ("", 96)):
            store.add([measurement("bert", length, 0.1)], label=label)
        seen = {
            label: [outcome.workload.length for outcome in read_known(study, store, ENVIRONMENT, label).outcomes]
            for label in ("", "before", "after", "other")
        }
    assert seen == {"": [64, 128, 96], "before": [64], "after": [128], "other": []}


def test_a_label_is_kept_with_what_was_measured(run, tmp_path):
    store = str(tmp_path / "labelled.sqlite")
    words = ["find", "bert", "longformer", "--lengths", "48:96", "--size", "tiny", "--threads", "1"]
    code, _, err = run(*words, "--budget", "0.1s", "--store", store, "--label", "before")
    assert code == 0, err
    with Store(store) as opened:
        assert {session.label for session in opened.sessions()} == {"before"}
    code, out, _ = run("show", store, "--label", "before")
    assert code == 0
    assert "label before" in out
