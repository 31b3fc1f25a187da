"""`breakdown` from the command line, and the lengths that it is given."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from synthetic import measurement
from tippingpoint.cli.options import ladder
from tippingpoint.errors import InputError
from tippingpoint.report.records import plain
from tippingpoint.store import Store
from tippingpoint.workload import Subject

QUICK = ("--size", "tiny", "--budget", "0.2s", "--threads", "1")


def test_a_call_is_broken_down_as_json(run):
    code, out, err = run("breakdown", "bert", "--lengths", "32", *QUICK, "--json")
    assert code == 0, err
    (record,) = json.loads(out)
    assert record["status"] == "ok"
    assert (record["workload"]["subject"], record["workload"]["length"], record["workload"]["size"]) == (
        "bert",
        32,
        "tiny",
    )
    total = sum(sum(row["seconds"].values()) for row in record["rows"])
    assert total + record["between_operators_s"] + record["unexplained_s"] == pytest.approx(record["whole_s"])
    assert {"attention", "feed-forward", "input", "head"} <= {row["group"] for row in record["groups"]}
    assert "bert at 32: parts" in err


def test_tables_figure_and_sentences_are_of_everything_that_was_asked_for(run, tmp_path: Path):
    figure = tmp_path / "parts.svg"
    code, out, err = run(
        *("breakdown", "bert", "bert@local:window=4", "--lengths", "32,48", *QUICK),
        *("--metric", "latency,flops,memory,parameters", "--figure", str(figure)),
    )
    assert code == 0, err
    for title in ("bert: inference", "bert at 48 tokens: inference", "bert@local:window=4 at 48 tokens: inference"):
        assert title in out
    for column in ("time", "share", "FLOPs", "of peak", "bytes", "of bandwidth", "held at peak", "parameters"):
        assert column in out
    for line in ("between operators", "unexplained", "whole call", "if attention were free"):
        assert line in out
    assert "At the peak of memory" in out
    assert figure.read_text().startswith("<svg")
    assert "drawn into" in err


def test_phases_are_broken_down_one_after_the_other(run):
    code, out, err = run("breakdown", "bert", "--lengths", "32", "--phase", "training,inference", *QUICK, "--json")
    assert code == 0, err
    assert [record["workload"]["phase"] for record in json.loads(out)] == ["training", "inference"]


def test_layers_are_told_apart_in_the_table_and_in_the_figure(run, tmp_path: Path):
    figure = tmp_path / "layers.json"
    code, out, err = run("breakdown", "bert", "--lengths", "32", *QUICK, "--by-layer", "--figure", str(figure))
    assert code == 0, err
    assert "layer 0, attention" in out
    assert "layer 1, feed-forward" in out
    assert "Time by layer" in figure.read_text()


def test_fused_attention_is_split_by_running_it_step_by_step(run):
    code, out, err = run("breakdown", "bert", "--lengths", "32", *QUICK, "--unfused")
    assert code == 0, err
    for step in ("QK^T", "mask and softmax", "AV"):
        assert f"{step} (as in unfused)" in out
    assert "bert@eager at 32: parts" in err


def test_names_of_ones_own_come_from_a_file(run, tmp_path: Path):
    names = tmp_path / "names.yaml"
    names.write_text('"encoder.layer.*.intermediate": my part/up\n')
    code, out, err = run("breakdown", "bert", "--lengths", "32", *QUICK, "--components", str(names))
    assert code == 0, err
    assert "my part" in out


def test_breakdowns_are_kept_in_a_store_which_says_how_many_it_holds(run, tmp_path: Path):
    store = tmp_path / "parts.sqlite"
    keep = ("--store", str(store), "--label", "before", "--unfused", "--json")
    code, out, err = run("breakdown", "bert", "--lengths", "32", *QUICK, *keep)
    assert code == 0, err
    with Store(store) as opened:
        found = opened.breakdowns(label="before")
        assert plain(found[:1]) == json.loads(out)
        assert [str(each.workload.subject) for each in found] == ["bert", "bert@eager"]
        code, _, err = run("show", str(store))
        assert code == 1
        assert "parts.sqlite: 2 breakdowns of bert, bert@eager, and no measurements; measure something first" in err
        opened.add([measurement("bert", 32, 0.1)])
    _, out, _ = run("show", str(store))
    assert "parts.sqlite: 2 breakdowns of bert, bert@eager\n" in out
    _, out, _ = run("show", str(store), "--json")
    assert json.loads(out)["breakdowns"] == 2


def test_a_store_that_cannot_be_is_said_before_anything_is_measured(run):
    code, out, err = run("breakdown", "bert", "--lengths", "32", *QUICK, "--store", "no_such_folder/a.sqlite")
    assert (code, out) == (1, "")
    assert err == "error: the folder no_such_folder of the store a.sqlite does not exist\n"


def test_a_study_keeps_its_breakdowns_beside_its_measurements(run, tmp_path: Path):
    study, store = tmp_path / "study.yaml", tmp_path / "s.sqlite"
    study.write_text(
        "name: small\nmodality: text\nbaselines: [bert]\nvariants: ['bert@local:window=4']\nlengths: [16, 32]\n"
        "phases: [inference]\nmetrics: [latency]\nsize: tiny\nthreads: 1\nbudget: 2s\n"
    )
    code, out, err = run("study", str(study), "--breakdown", "--json", "--store", str(store), "--label", "before")
    assert code == 0, err
    assert json.loads(out)["study"]["name"] == "small"
    with Store(store) as opened:
        kept = opened.breakdowns(label="before")
        assert opened.outcomes()
    assert [str(each.workload.subject) for each in kept] == ["bert", "bert@local:window=4"]


def test_a_trace_is_written(run, tmp_path: Path):
    trace = tmp_path / "trace.json"
    code, _, err = run("breakdown", "bert", "--lengths", "32", *QUICK, "--trace", str(trace))
    assert code == 0, err
    assert "layer 0, attention: QKV projections" in trace.read_text()


# Scores of as many positions squared fit nowhere, which is known before anything is tried.
TOO_LONG = "10000000"


def test_what_cannot_be_broken_down_is_said_beside_what_could(run):
    code, out, err = run("breakdown", "bert@eager", "--lengths", f"32,{TOO_LONG}", *QUICK)
    assert code == 0, err
    assert "bert@eager at 32 tokens: inference" in out
    assert "failed: bert@eager at length 1e+07" in out
    assert "refused before trying" in out


def test_if_nothing_could_be_broken_down_the_exit_code_says_so(run):
    code, out, err = run("breakdown", "bert@eager", "--lengths", TOO_LONG, *QUICK, "--json")
    assert code == 1
    (record,) = json.loads(out)
    assert record["status"] == "out_of_memory"
    assert err.splitlines()[-1].startswith("error: nothing could be broken down")


WRONG = [
    (("--lengths", "32", "--metric", "latency,watts"), "unknown metric 'watts'"),
    (("--lengths", "32", "--metric", ","), "expected at least one metric out of latency, flops, memory, parameters"),
    (("--lengths", "32", "--phase", "backward"), "unknown phase 'backward'"),
    (
        ("--lengths", "32", "--figure", "parts.gif"),
        "a figure's file must end in one of .svg, .png, .pdf, .html, .json",
    ),
    (("--lengths", "32", "--figure", "no_such_folder/a.svg"), "the folder 'no_such_folder' does not exist"),
    (("--lengths", "32", "--figure", "a.svg", "--phase", "inference,training"), "a figure is of one phase"),
    (
        ("--lengths", "32,64", "--trace", "a.json"),
        "a trace is of one call: name one subject, one length and one phase",
    ),
    (("--lengths", "many"), "a length must be a number, got 'many'"),
    (("--lengths", "128:"), "a length must be a number, got ''"),
    (("--lengths", "64:32"), "lengths must be SHORTEST:LONGEST, such as 128:4096, got '64:32'"),
    (("--lengths", "0:32"), "lengths must be SHORTEST:LONGEST, such as 128:4096, got '0:32'"),
    (("--lengths", "-1"), "a length must be positive"),
    (("--lengths", "32", "--budget", "soon"), "a duration must be a number with a unit"),
    (
        ("--lengths", "32", "--components", "no_such_file.yaml"),
        "cannot read the names of components 'no_such_file.yaml'",
    ),
    (("--lengths", "32", "--compile"), "No such option"),
    ((), "Missing option '--lengths'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_what_is_wrong_is_one_sentence_and_exit_code_2(run, arguments, message):
    code, out, err = run("breakdown", "bert", "--size", "tiny", *arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("subjects", "options", "message"),
    [
        (("bert@local",), ("--unfused",), "--unfused is for subjects with their own full attention, such as bert"),
        (("bert", "bert@eager"), ("--unfused",), "leave variants out"),
        (("bert", "hubert@nothing"), (), "unknown variant 'nothing'"),
        (("bret",), (), "unknown architecture 'bret'"),
        (("bert", "vit"), ("--trace", "a.json"), "a trace is of one call"),
    ],
)
def test_subjects_that_an_option_is_not_for_are_refused(run, subjects, options, message):
    code, out, err = run("breakdown", *subjects, "--lengths", "32", "--size", "tiny", *options)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "subject", "expected"),
    [
        ("128:4096", "bert", (128, 256, 512, 1024, 2048, 4096)),
        ("128,512,512", "bert", (128, 512)),
        ("0.5,2", "hubert", (0.5, 2)),
        ("512:512", "bert", (512,)),
        # The other end is always there, in the place of the last that was doubled where that is nearly as long.
        ("128:3000", "bert", (128, 256, 512, 1024, 2048, 3000)),
        ("128:1100", "bert", (128, 256, 512, 1100)),
        ("1:10", "hubert", (1, 2, 4, 10)),
        ("1:15", "hubert", (1, 2, 4, 8, 15)),
        ("1:80", "hubert", (1, 2, 4, 8, 16, 32, 80)),
        # What an architecture cannot take becomes what it can, once.
        ("100:400", "vit", (96, 192, 400)),
        ("8:64", "vit", (16, 32, 64)),
    ],
)
def test_a_range_of_lengths_doubles_from_one_end_on(text, subject, expected):
    assert ladder(text, Subject.parse(subject)) == expected


@pytest.mark.parametrize(
    ("text", "subject"),
    [("128:4096", "bert"), ("1:80", "hubert"), ("64:1024", "vit"), ("100:110", "bert"), ("100:220", "bert")],
)
def test_a_range_has_both_of_its_ends(text, subject):
    found = ladder(text, Subject.parse(subject))
    assert [found[0], found[-1]] == [float(end) for end in text.split(":")]
    assert all(second / first == pytest.approx(2) for first, second in pairwise(found[:-1]))


@pytest.mark.parametrize("text", ["4096:128", "0:128", "-5:10", ":", "1:2:3", "a:b", "nan:10", "1:inf"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(InputError):
        ladder(text, Subject.parse("bert"))
