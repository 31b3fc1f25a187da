"""`find`: several batch sizes, the map, and what the answer says of itself."""

import json
from pathlib import Path

import pytest

from tippingpoint.store import Store

PAIR = ("find", "bert", "bert@local:window=8", "--size", "tiny", "--threads", "1", "--target", "50%")


def test_each_batch_size_has_a_tipping_point_and_the_map_is_drawn(run, tmp_path: Path):
    drawing, store = tmp_path / "map.svg", tmp_path / "kept.sqlite"
    code, out, err = run(
        *(*PAIR, "--lengths", "48:96", "--batch-sizes", "1,2", "--budget", "8s", "--precision", "99%"),
        *("--map", str(drawing), "--store", str(store)),
    )
    assert code == 0, err
    for size in (1, 2):
        assert f"batch {size}, cpu:" in out
        assert f"batch size {size}" in err
    assert "positions per batch" in out
    assert drawing.read_text().startswith("<svg")
    with Store(store) as opened:
        assert {outcome.workload.batch_size for outcome in opened.outcomes()} == {1, 2}


def test_what_an_answer_rests_on_and_cost_is_said(run):
    code, out, err = run(*PAIR, "--lengths", "48:96", "--budget", "4s", "--precision", "99%", "--json")
    assert code == 0, err
    (found,) = json.loads(out)
    assert found["sessions"] >= 1
    assert found["seconds"] > 0
    assert len(found["points"]) == found["sessions"]
    assert found["needed_s"] is None or found["needed_s"] > 0


def test_shallow_models_choose_where_to_measure_and_can_be_left_out(run, tmp_path: Path):
    words = ("find", "bert", "bert@local:window=8", "--size", "base", "--lengths", "16:32", "--target", "50%")
    kept = [tmp_path / name for name in ("with.sqlite", "without.sqlite")]
    # However little is left after the look, there is an answer.
    code, out, err = run(*words, "--budget", "1s", "--store", str(kept[0]))
    assert code == 0, err
    assert "16 tokens (screening)" in err
    assert "where to measure was chosen by models of 2 and 4 layers" in out
    code, out, err = run(*words, "--budget", "1s", "--no-screening", "--store", str(kept[1]))
    assert code == 0, err
    assert "screening" not in err
    depths = []
    for path in kept:
        with Store(path) as opened:
            depths.append({outcome.workload.layers for outcome in opened.outcomes()})
    assert depths == [{None, 2, 4}, {None}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--map", "map.bmp"), "a figure's file must end in one of"),
        (("--map", "nowhere/map.svg"), "the folder 'nowhere' does not exist"),
        (("--map", "map.svg", "--metric", "throughput"), "it has no map"),
        (("--batch-sizes", "1,2", "--metric", "throughput"), "leave --batch-sizes out"),
        (("--batch-sizes", "0"), "batch sizes must be whole numbers of at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_anything_is_measured(run, words, message):
    code, out, err = run(*PAIR, "--lengths", "48:96", *words)
    assert code == 2
    assert message in err
    assert "starting" not in err
    assert not out
