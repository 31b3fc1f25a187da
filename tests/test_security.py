"""Files of strangers are data: nothing of them is imported, opened or asked for, and nothing steers a terminal."""

import csv
import io
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from breakdowns import component, of
from synthetic import ENVIRONMENT, failure, session_at
from tippingpoint.cli import main
from tippingpoint.cli.output import progress, show, show_csv
from tippingpoint.data import LengthData, write_lengths
from tippingpoint.errors import AnswerError, InputError
from tippingpoint.measurement import Outcome
from tippingpoint.models.own import is_own
from tippingpoint.report.tables import plain_table
from tippingpoint.store import Store
from tippingpoint.study.files import load_study
from tippingpoint.workload import Subject

# Names of code: of the standard library, of this package, and of what lies in the present folder.
CODE = (
    "planted:make",
    "os:system",
    "builtins:exec",
    "planted.part:make",
    "tippingpoint:profile",
    "_os:x",
    "subprocess:run",
)
STUDY = {
    "name": "mine",
    "modality": "text",
    "baselines": ["bert"],
    "variants": ["nystromformer"],
    "lengths": [128, 1024],
}
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"
EVIL = f"\x1b]0;title\x07\x9b31m\u202e=cmd|' /C calc'!A0{SCRIPT}"

# Says what was imported, opened, connected to and started while the command line ran.
WATCHED = """
import sys

seen = []

def watch(event, arguments):
    if event in ("import", "open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "exec"):
        seen.append(f"{event} {arguments[:2]!r}")

from tippingpoint.cli import main

sys.addaudithook(watch)
code = main(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write("\\n".join(seen))
sys.exit(code)
"""


def study_file(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    return path


# Study files


@pytest.mark.parametrize("name", CODE)
@pytest.mark.parametrize("place", ["baselines", "variants"])
def test_a_study_file_that_names_code_says_so_and_how_to_allow_it(tmp_path, name, place):
    assert is_own(name)
    path = study_file(tmp_path / "study.yaml", **{place: [name]})
    with pytest.raises(
        InputError, match=rf"names code to import and call \({name}\).*--trust-code \(trust_code=True\)"
    ):
        load_study(path)
    assert name in {str(subject) for subject in load_study(path, trust_code=True).subjects}


def test_a_study_file_without_code_needs_no_trust(tmp_path):
    path = study_file(tmp_path / "study.yaml", variants=["bert@local:window=64"])
    assert load_study(path) == load_study(path, trust_code=True)


def test_the_command_line_runs_code_of_a_study_file_only_when_it_is_told_to(tmp_path, monkeypatch, capsys):
    path = study_file(tmp_path / "study.yaml", variants=["planted:make"])
    asked = []

    def measure(study: Any, *_: Any, **__: Any) -> None:
        asked.append(study)
        raise AnswerError("far enough")

    monkeypatch.setattr("tippingpoint.study.run.run_study", measure)
    arguments = ["study", str(path), "--store", str(tmp_path / "a.sqlite")]
    assert main(arguments) == 2
    assert "planted:make" in capsys.readouterr().err
    assert not asked
    assert main([*arguments, "--trust-code"]) == 1
    assert str(asked[0].variants[0]) == "planted:make"


# What verbs do with a stranger's store and lengths


def planted_outcomes(*subjects: Subject) -> list[Outcome]:
    """Outcomes of code beside vanilla ones; environments, messages and labels are made of evil texts."""
    generator = np.random.default_rng(0)
    environment = replace(ENVIRONMENT, cpu_model=EVIL, device_name="/planted/device", platform="planted:make")
    found: list[Outcome] = []
    for length in (128, 512, 2048):
        costs = {Subject("bert"): 1e-4 * length + 1e-7 * length**2}
        costs |= dict.fromkeys(subjects, 0.0002 * length)
        session = session_at(length, costs, generator, noise=0.01, name=f"{length}-0", environment=environment)
        found += [
            replace(each, attention=EVIL, stop_reason=EVIL, notes=(f"/planted/note {EVIL}",)) for each in session
        ]
    lost = failure(subjects[0], 4096, session="x", message=f"/planted/message {EVIL}", environment=environment)
    return [*found, lost]


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """A folder with a stranger's store, lengths and code; importing the code leaves a file behind."""
    code = f"open({str(tmp_path / 'it ran')!r}, 'w').close()"
    (tmp_path / "planted.py").write_text(code)
    # What is imported while verbs run, and lies in the present folder.
    for name in ("numpy", "yaml", "altair", "jinja2", "rich"):
        (tmp_path / f"{name}.py").write_text(code)
    subjects = [Subject("planted:make"), Subject("os:system"), Subject.parse("bert@local:window=64")]
    with Store(tmp_path / "found.sqlite") as store:
        store.add(planted_outcomes(*subjects), study=f"planted:make {EVIL}", label=f"/planted/label {EVIL}")
        parts = [component("/planted/group", EVIL, 2e-3), component(EVIL, "=1+1", 1e-3)]
        call = of(parts, plain_s=[3e-3] * 8, subject=subjects[0], length=128)
        store.add_breakdowns([replace(call, environment=replace(ENVIRONMENT, cpu_model=EVIL))], label=EVIL)
    data = LengthData.of([100, 200, 900], modality="text", method=f"/planted/method planted:make {EVIL}")
    write_lengths(data, tmp_path / "lengths.json")
    return tmp_path


VERBS = (
    "show found.sqlite",
    "show found.sqlite --warnings --details",
    "show found.sqlite --json",
    "show found.sqlite --speed-ups",
    "report found.sqlite -o report.html",
    "report found.sqlite -o report.md --lengths lengths.json",
    "report found.sqlite -o report.csv",
    "report found.sqlite -o report.tex",
    "report found.sqlite -o report.pdf",
    "compare found.sqlite found.sqlite",
    "recommend lengths.json --no-measure --store found.sqlite --candidates 'bert planted:make os:system'",
    "lengths lengths.json",
)


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_imports_opens_or_asks_for_what_a_store_or_a_length_file_names(strangers, verb):
    watched = [sys.executable, "-P", "-c", WATCHED, "seen.txt", *shlex.split(verb)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(watched, cwd=strangers, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    seen = (strangers / "seen.txt").read_text().splitlines()
    assert any(line.startswith("open") for line in seen)
    assert [line for line in seen if "planted" in line or "/C calc" in line] == []
    assert [line for line in seen if line.startswith(("socket", "os.system"))] == []
    assert not (strangers / "it ran").exists()
    assert not set("\x1b\x07\x9b\u202e") & set(done.stdout + done.stderr)
    for page in strangers.glob("report.[hm]*"):
        assert not [tag for tag in ("<script>alert", "<img src=x") if tag in page.read_text()]


def test_what_lies_in_the_present_folder_is_not_run_by_measuring(tmp_path):
    for name in ("numpy", "torch", "transformers", "yaml", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported what lies here')")
    script = "import sys; from tippingpoint.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [
        "profile",
        "bert",
        "--lengths",
        "8",
        "--size",
        "tiny",
        "--threads",
        "1",
        "--budget",
        "0.1s",
        "--metric",
        "latency",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# Terminals and spreadsheets


def test_nothing_that_is_printed_steers_a_terminal(capsys):
    table = plain_table(EVIL, EVIL, "number")
    table.add_row(EVIL, "1")
    show(table, f"two\nlines {EVIL}")
    progress(EVIL)
    assert main(["show", f"none{EVIL}.sqlite"]) == 1
    captured = capsys.readouterr()
    assert not set("\x1b\x07\x9b\u202e") & set(captured.out + captured.err)
    assert "\\x1b]0;title" in captured.out
    assert "two\nlines" in captured.out
    assert captured.err.count("\\u202e") == 2


def test_rows_that_are_printed_hold_no_formula(capsys):
    rows = [{"subject": text, "latency_s": -1.5} for text in ("=1+1", "+x", "-x", "@x", "a=b", f"x{EVIL}")]
    show_csv(rows)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    read = list(csv.DictReader(io.StringIO(printed)))
    assert [row["subject"] for row in read[:5]] == ["'=1+1", "'+x", "'-x", "'@x", "a=b"]
    assert {row["latency_s"] for row in read} == {"-1.5"}
