import json
import re
from pathlib import Path

import numpy as np
import pytest

from synthetic import session_at
from tippingpoint.store import Store
from tippingpoint.workload import Subject

COSTS = {"bert": 2.0, "bert@eager": 3.0, "bert@local:window=128": 1.0, "bert@reuse:group=3,mode=auto": 1.5}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two lengths of four subjects, for inference and training."""
    path = tmp_path_factory.mktemp("raced") / "runs.sqlite"
    generator = np.random.default_rng(0)
    costs = {Subject.parse(text): seconds for text, seconds in COSTS.items()}
    with Store(path) as opened:
        for phase in ("inference", "training"):
            for length in (128, 512):
                opened.add(session_at(length, costs, generator, phase=phase), study="compression 1a2b3c4d")
    return str(path)


def test_speed_ups_of_a_store_are_shown_by_phase_with_who_wins_where(run, store):
    code, out, err = run("show", store, "--speed-ups")
    assert (code, err) == (0, "")
    assert [line.strip() for line in out.splitlines() if line.startswith("Speed-up")] == [
        "Speed-up with its 95 % interval (inference)",
        "Speed-up with its 95 % interval (training)",
    ]
    assert len(re.findall(r"^local:window=128 +128 to 512 tokens", out, re.MULTILINE)) == 2
    _, out, _ = run("show", store, "--speed-ups", "--phase", "training")
    assert "(inference" not in out


def test_speed_ups_of_a_store_as_json(run, store):
    _, out, _ = run("show", store, "--speed-ups", "--json", "--phase", "inference")
    (record,) = json.loads(out)
    assert record["baselines"] == ["bert", "bert@eager"]
    assert {best["subject"] for best in record["best"]["latency"]} == {"bert@local:window=128"}


def test_a_figure_of_a_store_is_drawn_for_each_phase_and_metric(run, store, tmp_path):
    code, out, err = run("show", store, "--figure", str(tmp_path / "figure.svg"))
    assert code == 0
    assert "Environment" in out
    phases, metrics = ("inference", "training"), ("latency", "peak_memory")
    names = [f"figure-{phase}-{metric}.svg" for phase in phases for metric in metrics]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert re.findall(r"^drew .*/(.*)$", err, re.MULTILINE) == names


def test_a_figure_that_cannot_be_written_is_refused_before_anything_is_read(run, store, tmp_path):
    code, _, err = run("show", store, "--figure", str(tmp_path / "figure.jpeg"))
    assert code == 2
    assert "must end in one of" in err
    code, _, err = run("study", "text", "--figure", str(tmp_path / "nowhere" / "figure.svg"))
    assert code == 2
    assert "does not exist" in err


def test_a_table_of_speed_ups_is_no_csv(run, store):
    code, _, err = run("show", store, "--speed-ups", "--csv")
    assert code == 2
    assert "--csv and --speed-ups exclude each other" in err


def test_a_modality_goes_with_presets_that_have_several(run, tmp_path: Path):
    code, _, err = run("study", "text", "--modality", "speech")
    assert code == 2
    assert "'text' is a study of text; --modality goes with compression and reuse, got 'speech'" in err
    code, _, err = run("study", "compression", "--modality", "smell")
    assert code == 2
    assert "unknown modality 'smell'" in err
    path = tmp_path / "mine.yaml"
    path.write_text("{name: a, modality: text, baselines: [bert], variants: [longformer], lengths: [128, 512]}")
    code, _, err = run("study", str(path), "--modality", "vision")
    assert code == 2
    assert "is a study of text" in err


def test_a_study_of_several_variants_shows_their_speed_ups_and_what_it_is_about(run, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "{name: mine, modality: text, baselines: [bert, bert@eager], variants: ['bert@local:window=4', "
        "'bert@reuse:group=2,mode=recompute'], lengths: [16, 32], size: tiny, phases: [inference], "
        "metrics: [latency, peak_memory], budget: 0.1s, threads: 1, about: how far it pays}"
    )
    figure = tmp_path / "figure.json"
    code, out, err = run("study", str(path), "--store", str(tmp_path / "s.sqlite"), "--figure", str(figure))
    assert code == 0, err
    assert re.search(r"^study mine: how far it pays$", out, re.MULTILINE)
    assert "Speed-up with its 95 % interval (inference)" in out
    assert "Where each wins (inference; 1 length, 16 tokens)" in out
    drawn = [json.loads((tmp_path / f"figure-{metric}.json").read_text()) for metric in ("latency", "peak_memory")]
    assert [each["title"]["text"] for each in drawn] == [
        "Speed-up in inference: bert",
        "Peak memory saved in inference: bert",
    ]
