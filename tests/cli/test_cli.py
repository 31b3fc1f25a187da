import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from PIL import Image
from transformers import HubertConfig, HubertModel
from typer.core import TyperGroup

from checkpoints import make_bert
from synthetic import measurement
from tippingpoint import __version__
from tippingpoint.cli.app import app
from tippingpoint.models.map_similarity import plan_reuse
from tippingpoint.store import Store

_ROOT = typer.main.get_command(app)
assert isinstance(_ROOT, TyperGroup)
TOP = tuple(_ROOT.commands)
VERBS = {
    f"{name} {below}" if below else name: verb
    for name, command in _ROOT.commands.items()
    for below, verb in (command.commands.items() if isinstance(command, TyperGroup) else [("", command)])
}
MEASURING = ("profile", "find", "study", "recommend", "predict", "replay", "breakdown")

Run = tuple[int, str, str]


def example_of(verb: str) -> list[str]:
    """The words of the example in a verb's help, after the program's name."""
    found = re.search(r"^\s*Example: tippingpoint (.+)$", VERBS[verb].help or "", re.MULTILINE)
    assert found, f"the help of {verb} has no line 'Example: tippingpoint ...'"
    return shlex.split(found[1])


def python(*arguments: str, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, check=False, timeout=120, **options
    )


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as the examples speak of: README.md, docs, a checkpoint, results of two runs and of more."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "docs").mkdir()
    (folder / "README.md").write_text("one two three four " * 40)
    for number in range(5):
        (folder / "docs" / f"{number}.md").write_text("five six seven " * (20 + 30 * number))
    for name, seconds in (("before", 0.010), ("after", 0.012)):
        with Store(folder / f"{name}.sqlite") as store:
            for length in (128, 512):
                session = f"{name}-{length}"
                store.add(
                    [
                        measurement("bert", length, seconds * length, session=session),
                        measurement("longformer", length, 0.02 * length, session=session),
                    ]
                )
    shape = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    config = HubertConfig.from_dict({**shape, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16})
    HubertModel(config).save_pretrained(folder / "my_hubert")
    bert = make_bert(folder / "my_bert", [path.read_text() for path in folder.glob("**/*.md")])
    words = [{"input_ids": torch.tensor([[2, 5, 6, 7, 8, 9, 3]])}]
    (folder / "plan.json").write_text(plan_reuse(bert, words, 2).to_json())
    return folder


@pytest.fixture
def here(documents: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(documents)
    return documents


def quick(words: Sequence[str]) -> list[str]:
    """The same command with a budget that ends at once (the later option counts), on a machine that is busy."""
    words = [*words, *(["--budget", "0.1s", "--threads", "1"] if words[0] in MEASURING else [])]
    return [*words, *(["--metric", "latency"] if words[0] == "study" else [])]


def test_without_a_verb_the_help_is_shown(run):
    code, out, err = run()
    assert code == 2
    assert "Usage: tippingpoint" in out + err
    assert all(verb in out + err for verb in TOP)


def test_the_verbs_of_the_first_answer_are_there():
    assert {"list", "doctor", "lengths", "profile", "find", "study", "recommend"} <= set(VERBS)


def test_help_names_every_verb_with_what_it_does(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for verb in TOP:
        assert re.search(rf"^\s+{verb}\s+[A-Z]", out, re.MULTILINE), verb


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(run, verb, option):
    code, out, err = run(*verb.split(), option)
    assert (code, err) == (0, "")
    assert f"Example: tippingpoint {shlex.join(example_of(verb))}" in " ".join(out.split())
    assert shlex.join(example_of(verb)).startswith(f"{verb} " if len(example_of(verb)) > 1 else verb)
    assert "--json" in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_verb_says_what_it_is(verb):
    for parameter in VERBS[verb].params:
        if parameter.name != "help":
            assert getattr(parameter, "help", None), f"{verb} {parameter.name}"


def test_the_version_is_printed(run):
    assert run("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_runs_and_its_json_is_json_and_nothing_else(run, here, verb):
    words = quick(example_of(verb))
    code, out, err = run(*words, "--json")
    assert code == 0, err
    assert json.loads(out)
    assert "Traceback" not in err
    assert "NaN" not in out
    assert "Infinity" not in out

    # The store has what was measured, so that tables take no second measurement.
    if verb in ("find", "profile"):
        return
    if verb == "merge":  # which never replaces a file
        (here / words[-1]).unlink()
    code, out, err = run(*words)
    assert code == 0, err
    assert out.strip()
    with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
        json.loads(out)


def test_the_examples_that_measure_use_small_models():
    for verb in MEASURING:
        assert {"tiny", "small"} & set(example_of(verb)), verb


def test_list_names_architectures_variants_and_presets(run):
    code, out, _ = run("list", "--json")
    record = json.loads(out)
    assert code == 0
    assert {"bert", "longformer", "nystromformer", "hubert", "vit", "swinv2"} <= {
        row["name"] for row in record["architectures"]
    }
    assert {"sdpa", "eager", "local"} <= {row["name"] for row in record["variants"]}
    assert {"text", "speech", "vision", "compression", "reuse"} == {row["name"] for row in record["presets"]}
    _, out, _ = run("list", "--modality", "speech", "--json")
    speech = {row["name"] for row in json.loads(out)["architectures"]}
    assert {"hubert", "whisper", "wavlm"} <= speech
    assert speech.isdisjoint({"bert", "vit"})


def test_profile_measures_every_subject_at_every_length_and_keeps_the_results(run, here):
    store = here / "profiled.sqlite"
    words = ["profile", "bert", "bert@eager", "--lengths", "16,32", "--size", "tiny", "--threads", "1"]
    code, out, err = run(*words, "--budget", "0.1s", "--target", "50%", "--store", str(store))
    assert code == 0, err
    assert len(re.findall(r"^(?:16|32) tokens  bert@eager ", out, re.MULTILINE)) == 4  # time, and work
    assert "at length 16" in err
    with Store(store, create=False) as opened:
        rows = opened.measurements()
    assert [(row["subject"], row["length"]) for row in rows] == [
        ("bert", 16),
        ("bert@eager", 16),
        ("bert", 32),
        ("bert@eager", 32),
    ]


def test_profile_of_what_does_not_fit_shows_the_row_and_fails(run):
    code, out, err = run("profile", "bert", "--lengths", "20000000", "--size", "tiny")
    assert code == 1
    assert "out of memory" in out
    assert err.splitlines()[-1] == "error: nothing could be measured; the reasons stand above"


def test_lengths_are_shown_for_all_modalities(run, here):
    code, out, err = run("lengths", "docs", "--max-length", "100")
    assert code == 0
    assert "Lengths of 5 documents" in out
    assert "cut to 100 tokens" in out
    assert "reading the lengths of docs" in err
    Image.new("RGB", (64, 64)).save(here / "square.png")
    code, out, _ = run("lengths", "square.png", "--modality", "vision", "--json")
    assert (code, json.loads(out)["maximum"]) == (0, 64)


def test_lengths_name_what_was_left_out_on_stderr(run, here):
    folder = here / "mixed"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "good.png")
    (folder / "broken.png").write_bytes(b"no image")
    code, out, err = run("lengths", str(folder), "--modality", "vision", "--json")
    assert code == 0
    assert json.loads(out)["count"] == 1
    assert "warning: left out" in err
    assert "broken.png" in err


def test_a_recommendation_may_come_from_the_store_alone(run, here, tmp_path):
    store = tmp_path / "results.sqlite"
    with Store(store) as opened:
        for length in (16, 4096):
            opened.add(
                [
                    measurement("bert", length, 0.01, session=f"{length}-0", threads=2),
                    measurement("longformer", length, 0.02, session=f"{length}-0", threads=2),
                ]
            )
    before = store.read_bytes()
    words = ["recommend", "docs", "--no-measure", "--store", str(store), "--candidates", "bert longformer"]
    code, out, err = run(*words)
    assert code == 0, err
    assert "Use bert: " in out
    assert store.read_bytes() == before
    code, out, _ = run(*words, "--constraint", "latency<=1s", "--constraint", "peak_memory<=1GiB", "--json")
    assert code == 0
    assert json.loads(out)["choice"] == "bert"
    code, out, err = run(*words, "--switch", "--output", str(tmp_path / "answer.md"))
    assert code == 0, err
    assert "No switch between two models beats the best single one." in out
    text = (tmp_path / "answer.md").read_text()
    assert text.startswith("# Use bert\n")
    assert all(f"## {heading}" in text for heading in ("What was asked", "What would change the answer"))
    code, _, err = run(*words, "--output", str(tmp_path / "answer.json"))
    assert code == 0, err
    assert json.loads((tmp_path / "answer.json").read_text())["candidates"][0]["workload"]["per_1000_s"]["value"] > 0
    code, out, err = run(*words, "--batching", "fixed:4")
    assert (code, out.count("Use")) == (1, 0)
    assert "no candidate has been measured in batches of 4" in err


def _not_a_database(folder: Path) -> str:
    path = folder / "diary.sqlite"
    path.write_text("a diary, not a database; " * 100)
    return str(path)


def _of_another_program(folder: Path) -> str:
    path = folder / "recipes.sqlite"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE IF NOT EXISTS recipes (name TEXT)")
    database.close()
    return str(path)


def _empty_folder(folder: Path) -> str:
    (folder / "empty").mkdir(exist_ok=True)
    return str(folder / "empty")


def _study_with_unknown_key(folder: Path) -> str:
    path = folder / "study.yaml"
    path.write_text(
        "name: x\nmodality: text\nbaselines: [bert]\nvariants: [longformer]\nlengths: [1, 9]\nbugdet: 3s\n"
    )
    return str(path)


PROFILE = ["profile", "bert", "--size", "tiny", "--lengths"]
FIND = ["find", "bert", "longformer", "--size", "tiny", "--lengths"]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["studdy", "text"], 2, "No such command 'studdy'"),
        (["list", "--modallity", "text"], 2, "No such option.*--modallity.*--modality"),
        (["list", "--modality", "txt"], 2, "unknown modality 'txt'.*Did you mean 'text'"),
        (["list", "surplus"], 2, "unexpected extra argument"),
        (["profile", "bert"], 2, "Missing option '--lengths'"),
        (["profile", "--lengths", "10"], 2, "Missing argument"),
        (["profile", "bret", "--lengths", "10"], 2, "unknown architecture 'bret'.*Did you mean 'bert'"),
        (["profile", "bert@lokal", "--lengths", "10"], 2, "unknown variant 'lokal'.*Did you mean 'local'"),
        (["profile", "bert@local:windw=3", "--lengths", "10"], 2, "unknown option of 'local' 'windw'.*'window'"),
        (["profile", "bert@local:window=-3", "--lengths", "10"], 2, "must be a whole number of at least 1, got -3"),
        (["profile", "bert@", "--lengths", "10"], 2, "a variant must follow '@'"),
        (["profile", "longformer@local", "--lengths", "10"], 2, "longformer has an attention of its own"),
        (["profile", "bert", "bert", "--lengths", "10", "--size", "tiny"], 2, "bert stands twice"),
        ([*PROFILE, "ten"], 2, "a length must be a number, got 'ten'"),
        ([*PROFILE, "10,,20"], 2, "a length must be a number, got ''"),
        ([*PROFILE, "0"], 2, "a length must be positive, got 0"),
        ([*PROFILE, "-5"], 2, "a length must be positive, got -5"),
        ([*PROFILE, "nan"], 2, "a length must be a number, got nan"),
        ([*PROFILE, "1e999"], 2, "a length must be a number, got inf"),
        ([*PROFILE, "10.5"], 2, "bert takes whole tokens"),
        (["profile", "vit", "--lengths", "100"], 2, "vit takes multiples of 16 pixels .*the nearest is 96"),
        (["profile", "nystromformer", "--lengths", "64"], 2, "takes no input shorter than 65 tokens"),
        ([*PROFILE, "10", "--budget", "soon"], 2, "a duration must be a number with a unit, such as 90s or 5m"),
        ([*PROFILE, "10", "--budget", "0"], 2, "a duration must be positive"),
        ([*PROFILE, "10", "--budget", "5 years"], 2, "unknown unit 'years'"),
        ([*PROFILE, "10", "--target", "200%"], 2, "a share must be between 0 and 1"),
        ([*PROFILE, "10", "--phase", "trainin"], 2, "unknown phase 'trainin'.*Did you mean 'training'"),
        ([*PROFILE, "10", "--device", "tpu"], 2, "unknown device 'tpu'; expected cpu, cuda or cuda:N"),
        ([*PROFILE, "10", "--device", "cuda:99"], 2, "device 'cuda:99' was asked for, and"),
        ([*PROFILE, "10", "--dtype", "float16"], 2, "float16 needs a CUDA device"),
        ([*PROFILE, "10", "--threads", "0"], 2, "threads must be a whole number of at least 1"),
        ([*PROFILE, "10", "--threads", "many"], 2, "Invalid value for '--threads'"),
        ([*PROFILE, "10", "--batch-size", "0"], 2, "batch sizes must be whole numbers of at least 1"),
        (
            [*PROFILE, "10", "--store", "nowhere/a.sqlite"],
            1,
            "the folder nowhere of the store a.sqlite does not exist",
        ),
        ([*FIND, "128"], 2, "lengths must be SHORTEST:LONGEST, such as 128:8192, got '128'"),
        ([*FIND, "short:long"], 2, "a length must be a number, got 'short'"),
        ([*FIND, "512:128"], 2, "the shortest length must be below the longest, got 512 and 128"),
        ([*FIND, "1:9", "--metric", "latencies"], 2, "unknown metric 'latencies'.*Did you mean 'latency'"),
        ([*FIND, "1:9", "--metric", ","], 2, "expected at least one metric out of latency, throughput, peak_memory"),
        ([*FIND, "1:9", "--precision", "0"], 2, "a share must be between 0 and 1"),
        (["find", "bert", "vit", "--lengths", "1:9"], 2, "subjects of different modalities cannot be compared"),
        (["find", "bert", "bert", "--lengths", "1:9"], 2, "bert is both a baseline and a variant"),
        (["study", "txet"], 2, "cannot read the study 'txet'.*one of text, speech, vision"),
        (["study", _study_with_unknown_key], 2, "unknown key 'bugdet'; expected one of name, modality"),
        (["study", "text", "--phase", "sleeping"], 2, "unknown phase 'sleeping'"),
        (["study", "text", "--store", _not_a_database], 1, "could not be opened: it is not an SQLite file"),
        (["study", "text", "--store", _of_another_program], 1, "is an SQLite file of another program"),
        (["lengths", "nowhere"], 2, "there is no file or folder 'nowhere'"),
        (["lengths", _empty_folder], 1, "no text file in"),
        (["lengths", "README.md", "--modality", "speech"], 2, "cannot read 'README.md' as speech"),
        (["lengths", "README.md", "--column", "body"], 2, "the column 'body' needs a file with columns"),
        (["lengths", "README.md", "--tokenizer", "./nowhere"], 2, "there is no tokenizer at './nowhere'"),
        (["lengths", "README.md", "--max-length", "0"], 2, "the length to cut to must be positive"),
        (["recommend", "nowhere"], 2, "there is no file or folder 'nowhere'"),
        (["recommend", _empty_folder], 1, "no text file in"),
        (["recommend", "README.md", "--constraint", "fast"], 2, "cannot read the constraint 'fast'"),
        (["recommend", "README.md", "--objective", "speed"], 2, "unknown objective 'speed'"),
        (
            ["recommend", "README.md", "--batching", "pairs"],
            2,
            "cannot read the batching 'pairs'; expected one, fixed",
        ),
        (["recommend", "README.md", "--output", "answer.docx"], 2, "an answer's file must end in .md or .json"),
        (["recommend", "README.md", "--output", "nowhere/answer.md"], 2, "the folder 'nowhere' does not exist"),
        (["recommend", "README.md", "--candidates", "bert bret"], 2, "unknown architecture 'bret'"),
        (
            ["recommend", "README.md", "--candidates", "vit swinv2"],
            2,
            "the lengths are of text, and the candidates of",
        ),
        (["recommend", "README.md", "--no-measure", "--store", "none.sqlite"], 1, "there is no store none.sqlite"),
        (["doctor", "--device", "cuda:99"], 2, "device 'cuda:99' was asked for, and"),
        (["study", "text", "--on", "moon"], 2, "place to run .*moon.*local, ray"),
        (["study", "text", "--slots", "2"], 2, "--slots are for a cluster; add --on ray"),
        (["study", "text", "--on", "ray", "--slots", "0"], 2, "--slots"),
        (["study", "text", "--on", "ray"], 2, "say how many CPU cores to measure with"),
        (["study", "text", "--on", "ray", "--device", "cuda:1"], 2, "nobody knows which GPU is cuda:1"),
        (["study", "text", "--on", "ray", "--device", "H100", "--breakdown"], 2, "--breakdown is not for a cluster"),
        (["study", "text", "--on", "ray", "--device", "../x"], 2, "the kind of a device must be"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_what_cannot_be_done_is_one_line_on_stderr(run, here, arguments, code, expected, more):
    words = [word if isinstance(word, str) else word(here) for word in arguments]
    found, out, err = run(*words, *more)
    *told, complaint = err.splitlines()
    assert re.search(expected, complaint), err
    assert complaint.startswith("error: ")
    assert found == code
    assert "Traceback" not in out + err
    # Lines before it tell what was being done; no number was printed.
    assert not any(line.startswith("error") for line in told)
    if more:
        assert out == ""


def test_an_illegal_objective_is_refused_before_anything_is_shown(run, here):
    code, out, _ = run("recommend", "README.md", "--objective", "speed")
    assert (code, out) == (2, "")


def test_debug_shows_the_traceback():
    shown = python("-m", "tippingpoint", "profile", "bret", "--lengths", "10", "--debug")
    assert shown.returncode == 1
    assert "Traceback (most recent call last)" in shown.stderr
    assert "InputError: unknown architecture 'bret'" in shown.stderr
    hidden = python("-m", "tippingpoint", "profile", "bret", "--lengths", "10")
    assert hidden.returncode == 2
    assert hidden.stderr.count("\n") == 1


HEAVY = {"torch", "transformers", "numpy", "yaml", "pyarrow", "soundfile", "PIL", "tokenizers"}


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], HEAVY | {"pydantic"}),
        (["--version"], HEAVY | {"pydantic"}),
        # Typer itself takes pydantic to read the options of a verb.
        *[([*verb.split(), "--help"], HEAVY) for verb in VERBS],
        (["list", "--json"], HEAVY - {"numpy", "yaml"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_needs_no_heavy_library_imports_none(arguments, heavy):
    shown = python("-X", "importtime", "-m", "tippingpoint", *arguments)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in shown.stderr.splitlines()}
    assert "tippingpoint" in imported
    assert not imported & heavy


def test_help_takes_less_than_four_tenths_of_a_second():
    script = (
        "import resource, subprocess, sys; "
        "subprocess.run([sys.executable, '-m', 'tippingpoint', '--help'], check=True, stdout=subprocess.DEVNULL); "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    # Time of the CPU, the best of three: other work on the machine does not count.
    assert min(float(python("-c", script).stdout) for _ in range(3)) < 0.4


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["--help"], ["lengths", "docs"]])
def test_a_reader_that_goes_away_is_nothing_to_complain_about(documents, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        [sys.executable, "-m", "tippingpoint", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=documents,
    )
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert "BrokenPipeError" not in err
    assert "error" not in err.lower()
    assert process.returncode in (0, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "tippingpoint", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert process.returncode == 1
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1


def test_the_installed_command_is_the_same(tmp_path):
    command = Path(sys.executable).parent / "tippingpoint"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_output_without_a_terminal_is_wide_enough_and_has_no_colours(tmp_path):
    done = python("-m", "tippingpoint", "list", cwd=tmp_path)
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) > 80


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_encoding_without_block_characters_is_no_obstacle(documents, encoding):
    done = python(
        "-m", "tippingpoint", "lengths", "docs", cwd=documents, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    assert done.returncode == 0, done.stderr
    assert "Lengths of 5 documents" in done.stdout
