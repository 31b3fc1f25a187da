"""`replay`: a person's batches, really run."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Six texts of 20 to 120 words."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(1, 7):
        (folder / f"{number}.txt").write_text("word " * 20 * number)
    return folder


def words(texts: Path, *more: str) -> tuple[str, ...]:
    return (str(texts), "--size", "tiny", "--threads", "1", "--store", str(texts.parent / "s.sqlite"), *more)


def test_batches_are_run_and_held_against_their_prediction(run, texts):
    chosen = words(texts, "--subjects", "bert bert@local:window=8", "--batching", "fixed:2", "--budget", "2s")
    code, out, err = run("replay", *chosen)
    assert code == 0, err
    assert "Lengths of 6 documents" in out
    assert "Seconds for 1,000 items (inference, cpu float32, tiny, fixed:2)" in out
    assert "observed / predicted" in out
    assert "6 items in batches of 2, padded to the longest are 3 batches, of which" in out
    assert "bert: attention ran as sdpa" in out
    assert "batches of bert, bert@local:window=8" in err

    code, out, err = run("replay", *chosen, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert (record["batching"], record["epoch_batches"]) == ("fixed:2", 3)
    first = record["subjects"][0]
    assert (first["subject"], first["status"]) == ("bert", "ok")
    assert len(first["batches"]) == len(first["samples"]) >= 2
    assert first["per_1000_s"]["low"] <= first["per_1000_s"]["value"] <= first["per_1000_s"]["high"]
    assert first["latency_s"]["p50"] <= first["latency_s"]["p99"]
    assert first["peak_bytes"] > 0
    assert len(first["predicted_s"]) == sum(first["priced"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--subjects", "brt"), "unknown architecture 'brt'"),
        (("--subjects", " "), "a replay needs at least one subject"),
        (("--subjects", "bert"), "are all vanilla; add an efficient one"),
        (("--subjects", "bert bert@local", "--batching", "some"), "cannot read the batching 'some'"),
        (("--subjects", "bert bert@local", "--budget", "long"), "a duration must be a number"),
        (("--subjects", "hubert hubert@local", "--modality", "text"), "the lengths are of text, and the subjects"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, texts, more, message):
    code, _, err = run("replay", *words(texts, *more))
    assert code == 2
    assert message in err.splitlines()[-1]


def test_the_modality_is_that_of_the_subjects(run, texts):
    code, _, err = run("replay", *words(texts, "--subjects", "vit vit@local"))
    assert code == 1
    assert "vision" in err.splitlines()[-1]
