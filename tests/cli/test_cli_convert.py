import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

import tippingpoint
from tippingpoint.models.swap import variants_of

TINY: dict[str, Any] = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "hubert"
    config = transformers.HubertConfig(**TINY, conv_dim=(16,) * 7, num_conv_pos_embeddings=16)
    transformers.HubertForCTC(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


def test_convert_says_what_it_did_and_what_to_type_next(run, hubert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("convert", str(hubert), "--attention", "local:window=50", "--output", "l hubert")
    assert (code, err) == (0, f"reading {hubert}\n")
    first, parameters, written, following = out.splitlines()
    assert first == "HubertForCTC: local:window=50; 4 of 4 layers changed"
    assert parameters.startswith("parameters: ")
    assert parameters.endswith(", as before")
    assert written.startswith("written to l hubert: ")
    assert written.endswith("of weights, configuration, preprocessor_config.json")
    words = shlex.split(following.removeprefix("next: "))
    assert words[:2] == ["python", "-c"]
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(tippingpoint): LayerAttention(local:window=50)" in done.stdout


def test_variants_for_some_layers_may_be_repeated_or_composed(run, hubert, tmp_path):
    apart = ["--attention", "local:window=64,layers=0-1", "--attention", "eager:layers=3"]
    code, _, err = run("convert", str(hubert), *apart, "--output", str(tmp_path / "a"))
    assert code == 2
    assert err.splitlines()[-1] == "error: variant 'eager' takes no options, got 'layers'"
    apart = ["--attention", "local:window=64,layers=0-1", "--attention", "local:window=9,layers=3"]
    assert run("convert", str(hubert), *apart, "--output", str(tmp_path / "a"))[0] == 0
    composed = "local:window=64,layers=0-1+local:window=9,layers=3"
    code, out, _ = run("convert", str(hubert), "--attention", composed, "--output", str(tmp_path / "b"))
    assert code == 0
    assert "local:window=64 in layers 0-1, sdpa in layer 2, local:window=9 in layer 3; 3 of 4 layers changed" in out
    models = [tippingpoint.load(tmp_path / name) for name in "ab"]
    assert variants_of(models[0]) == variants_of(models[1])


def test_json_is_the_record_and_nothing_else(run, hubert, tmp_path):
    words = ["convert", str(hubert), "--attention", "local", "--output", str(tmp_path / "out"), "--json"]
    code, out, _ = run(*words)
    record = json.loads(out)
    assert code == 0
    assert record["conversion"]["attention"] == ["local:window=50"] * 4
    assert record["conversion"]["changed"] == [0, 1, 2, 3]
    assert record["conversion"]["companions"] == ["preprocessor_config.json"]
    assert "tippingpoint.load" in record["next_command"]


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (
            ["nowhere", "--attention", "local"],
            2,
            "error: there is no folder 'nowhere'; give one with config.json and",
        ),
        (["HUBERT", "--attention", "lokal"], 2, "error: unknown variant 'lokal'; expected one of"),
        (
            ["HUBERT", "--attention", "local:layers=9"],
            2,
            "error: 'local:layers=9,window=50' names layer 9, and the model has",
        ),
        (["HUBERT"], 2, "error: Missing option '--attention'"),
    ],
)
def test_what_cannot_be_converted_is_one_line(words, code, complaint, run, hubert, tmp_path):
    words = [str(hubert) if word == "HUBERT" else word for word in words]
    found, out, err = run("convert", *words, "--output", str(tmp_path / "out"))
    assert (found, out) == (code, "")
    assert err.splitlines()[-1].startswith(complaint)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_kept_unless_force_is_given(run, hubert, tmp_path):
    words = ["convert", str(hubert), "--attention", "local", "--output", str(tmp_path / "out")]
    assert run(*words)[0] == 0
    code, _, err = run(*words)
    assert code == 2
    assert err.splitlines()[-1].endswith("is not empty; give another, or replace it by --force (force=True)")
    assert run(*words, "--force")[0] == 0


def test_a_place_that_cannot_be_written_is_no_fault_of_the_command(run, hubert):
    code, _, err = run(
        "convert", str(hubert), "--attention", "local", "--output", str(hubert / "config.json" / "out")
    )
    assert code == 1
    assert "cannot be written" in err.splitlines()[-1]
