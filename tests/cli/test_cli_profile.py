"""`profile` with every option, and what its tables say."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from synthetic import failure, measurement
from tippingpoint.cli.options import cores, counts
from tippingpoint.errors import InputError
from tippingpoint.machine import Peaks
from tippingpoint.measurement import Energy, Flops
from tippingpoint.report.profile import profile_tables, remarks
from tippingpoint.store import Store
from tippingpoint.workload import PROFILE_METRICS

QUICK = ("--size", "tiny", "--budget", "0.1s", "--threads", "1")


def test_every_length_batch_size_and_phase_is_measured_and_kept_with_its_label(run, tmp_path: Path):
    store = tmp_path / "kept.sqlite"
    code, out, err = run(
        *("profile", "bert", "--lengths", "32,48", "--batch-sizes", "1,2", "--phase", "inference,training"),
        *("--label", "before", "--store", str(store), *QUICK),
    )
    assert code == 0, err
    with Store(store) as opened:
        sessions = opened.sessions()
        found = [(o.workload.phase, o.workload.batch_size, o.workload.length) for o in opened.outcomes()]
    assert found == [(p, b, n) for p in ("inference", "training") for b in (1, 2) for n in (32, 48)]
    assert {session.label for session in sessions} == {"before"}
    assert "training, cpu float32" in out
    for column in ("latency", "95 %", "spread", "blocks", "first call", "peak memory", "of peak", "of bandwidth"):
        assert column in out
    assert "training at length 48, batch 2" in err


def test_repeats_and_pinned_cores_are_what_was_asked_for(run):
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else pytest.skip("cannot pin here")
    code, out, err = run(
        *("profile", "bert", "--lengths", "32", "--size", "tiny", "--budget", "0.1s"),
        *("--repeats", "2", "--affinity", str(core), "--json"),
    )
    assert code == 0, err
    (record,) = json.loads(out)
    assert {sample["process"] for sample in record["samples"]} == {0, 1}
    assert record["workload"]["affinity"] == [core]
    assert record["workload"]["threads"] == 1
    assert record["status"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repeats", "0"), "repeats must be a whole number of at least 1, got 0"),
        (("--batch-sizes", "1,x"), "batch sizes must be whole numbers of at least 1, such as 1,8, got '1,x'"),
        (("--batch-sizes", "1.5"), "batch sizes must be whole numbers of at least 1, such as 1,8, got '1.5'"),
        (("--metric", "latency,watts"), "unknown metric 'watts'"),
        (("--affinity", "3-1"), "cores must be numbers or ranges, such as 0-3,8, got '3-1'"),
        (("--affinity", "a"), "cores must be numbers or ranges"),
        (("--affinity", "4095"), "affinity names cores 4095, and this process may use"),
        (("--target", "zero"), "'zero'"),
    ],
)
def test_what_is_wrong_with_an_option_is_one_sentence_and_exit_code_2(run, arguments, message):
    code, out, err = run("profile", "bert", "--lengths", "32", "--size", "tiny", *arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "expected"), [("0", (0,)), ("2,0", (0, 2)), ("1-3,7", (1, 2, 3, 7)), ("1,1-2", (1, 2)), (None, None)]
)
def test_cores_are_numbers_and_ranges(text, expected):
    assert cores(text) == expected


def test_batch_sizes_are_whole_numbers():
    assert counts("1,8,1") == (1, 8)
    with pytest.raises(InputError, match="got '0'"):
        counts("0")


def shown(outcomes, metrics=PROFILE_METRICS) -> str:
    """The tables as a pipe gets them."""
    from rich.console import Console

    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        for table in profile_tables(outcomes, metrics):
            console.print(table)
    return capture.get()


FULL = replace(
    measurement("bert", 512, [0.1, 0.11, 0.1, 0.1, 0.09, 0.1, 0.1, 0.1]),
    flops=Flops(total=5 * 10**9, by_operator=(), bytes_accessed=10**9),
    peaks=Peaks(flops_per_s=1e11, bytes_per_s=2e10),
    energy=Energy(joules_per_call=3.0, source="counter", idle_watts=10.0, window_s=5.0, calls=50),
)


def test_a_row_says_how_far_from_the_limit_a_subject_runs():
    text = shown([FULL])
    assert "50 %" in text.split("of bandwidth")[1]
    assert "3 J" in text
    assert "2 J" in text
    assert "…" not in text


def test_only_the_columns_that_were_asked_for_are_shown():
    assert "FLOPs" not in shown([FULL], ("latency",))
    assert "latency" not in shown([FULL], ("flops",))
    assert "energy" not in shown([FULL], ("latency", "flops"))


def test_a_failure_has_a_row_and_its_reason_below():
    lost = failure("bert@eager", 512, session="s")
    assert "out of memory" in shown([lost])
    (line,) = remarks([lost])
    assert line.startswith("failed: bert@eager at 512 tokens: ")


def test_what_the_reader_should_know_is_said_once():
    nothing = Energy(joules_per_call=None, source="no counter: none here")
    noisy = replace(measurement("bert", 512, [0.1, 0.2, 0.1, 0.3] * 4), energy=nothing)
    lines = remarks([noisy, noisy])
    assert len(lines) == len(set(lines))
    assert "no energy: no counter: none here" in lines
    assert any(line.startswith("warning: bert at 512 tokens: interquartile range") for line in lines)


def test_the_parent_imports_neither_torch_nor_transformers():
    """It would cost a second and a thread pool beside what is measured."""
    program = (
        "import sys; from tippingpoint import profile, Workload; "
        "found = profile(Workload('bert', 32, size='tiny', threads=1), budget_s=0.1); "
        "print(type(found).__name__, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Measurement", "False", "False"]
