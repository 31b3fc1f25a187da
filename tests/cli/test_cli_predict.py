"""`predict`, and the profiles that `doctor` writes for it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from processes import needs_proc
from synthetic import measurement
from tippingpoint.device_profiles import load_profile
from tippingpoint.machine import Peaks
from tippingpoint.measurement import Flops
from tippingpoint.store import Store

PEAKS = Peaks(flops_per_s=1e11, bytes_per_s=1e10)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Planted times of two subjects: one that grows with the square, and one that costs twice for each position."""
    path = tmp_path / "planted.sqlite"
    with Store(path) as store:
        for length in (128, 256, 512, 1024, 2048):
            outcomes = []
            for subject, dear, pairs in (("bert", 1, length), ("bert@local:window=128", 2, 257)):
                linear, attention = 10**5 * length, 100 * pairs * length
                one = measurement(subject, length, (dear * linear + attention) / 1e11 + 0.0036)
                flops = Flops(
                    total=linear + attention,
                    by_operator=(("addmm", linear), ("bmm", attention)),
                    bytes_by_call=(("addmm", 100 * length, 12), ("add", 10 * length, 12)),
                )
                outcomes.append(replace(one, flops=flops, peaks=PEAKS))
            store.add(outcomes)
    return path


def predict(run, store: Path, *words: str) -> str:
    code, out, err = run("predict", "bert", "bert@local", "--no-measure", "--store", str(store), *words)
    assert code == 0, err
    return out


def test_each_row_says_what_it_rests_on(run, store):
    out = predict(run, store, "--lengths", "512,600,64k")
    assert out.count("measured") >= 2
    assert out.count("interpolated") >= 2
    assert out.count("extrapolated") >= 2
    assert "64,000 tokens" in out
    assert "hold-out" in out
    assert "Predicted share of the time" in out
    assert "bert@local:window=128 has the lower predicted latency than bert from" in out
    assert "Roofline" not in out


def test_another_machine_has_a_table_of_its_own(run, store):
    out = predict(run, store, "--lengths", "1M", "--device-profile", "h100")
    assert "Roofline estimate, NVIDIA H100 SXM 80 GB, float32" in out
    assert "a lower bound" in out
    assert "datasheet" in out


def test_json_has_intervals_labels_and_answers(run, store):
    record = json.loads(predict(run, store, "--lengths", "512,1M", "--device-profile", "l4", "--json"))
    last = record["estimates"][-1]
    assert (last["length"], last["basis"]) == (10**6, "extrapolated")
    assert last["latency_interval_s"][0] < last["latency_s"] < last["latency_interval_s"][1]
    assert last["roofline"]["latency_s"] > 0
    assert record["models"]["bert"]["held_out"][0]["predicted"] > 0
    assert all(point["answer"] for point in record["tipping_points"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lengths", "long"), "a length must be a number with a unit"),
        (("--lengths", "4096", "--device-profile", "h10"), "unknown device profile 'h10'"),
        (("--lengths", "4096", "--dtype", "bfloat16", "--device-profile", "nowhere.yaml"), "cannot read the device"),
        (("--lengths", "4096", "--layers", "0"), "layers must be a whole number"),
        (("--lengths", "4096", "--width", "1000", "--budget", "0.1s", "--size", "tiny"), "multiple of its heads'"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, store, words, message):
    code, out, err = run("predict", "bert", "--store", str(store), "--threads", "1", *words)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


@needs_proc
def test_two_machines_can_be_exchanged(run, store, tmp_path):
    path = tmp_path / "here.yaml"
    code, _, err = run("doctor", "--threads", "1", "--device-profile", str(path))
    assert code == 0, err
    assert load_profile(path).kind == "measured"
    assert "Roofline estimate" in predict(run, store, "--lengths", "4096", "--device-profile", str(path))
