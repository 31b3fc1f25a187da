"""Packages that add rows to the catalogue, installed as an installer would, and broken in every way."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tippingpoint.errors import InputError
from tippingpoint.models.architecture import Architecture, AttentionVariant
from tippingpoint.models.plugins import Table

PACKAGE = Path(__file__).parent.parent / "plugin_package"
GROUP = "tippingpoint.variants"

ROW = "from tippingpoint.models.architecture import AttentionVariant\n"
ROW += "GOOD = AttentionVariant(name='good', title='', exact=True, paper='', library_name='sdpa')\n"


def own(name: str) -> AttentionVariant:
    return AttentionVariant(name=name, title="", exact=True, paper="")


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a fresh process that sees the packages in a folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site)},
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the tests, built and installed without network into a folder of its own."""
    source, site = tmp_path_factory.mktemp("source") / "package", tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *offline, "--target", site, source], check=True)
    return site


def test_an_installed_package_is_listed(installed):
    done = python(installed, "-m", "tippingpoint", "list", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)["variants"]}
    assert (done.returncode, done.stderr) == (0, "")
    assert rows["prefix"]["title"] == "the first positions alone"
    assert rows["prefix"]["options"]["size"]["default"] == {"text": 64, "speech": 64, "vision": 64}


SWAP = """
import torch, transformers, tippingpoint
config = transformers.BertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64)
model = transformers.BertModel(config).double().eval()
tokens = torch.arange(1, 41)[None]
with torch.inference_mode():
    full = model(tokens).last_hidden_state
    covering = tippingpoint.swap_attention(model, "prefix", size=40)(tokens).last_hidden_state
    some = tippingpoint.swap_attention(model, "prefix", size=3)(tokens).last_hidden_state
assert (covering - full).abs().max() < 1000 * torch.finfo(torch.float64).eps
assert (some - full).abs().max() > 1e-3
model.save_pretrained("checkpoint")
print(tippingpoint.convert("checkpoint", "prefix:size=3", "converted").attention)
with torch.inference_mode():
    assert torch.equal(tippingpoint.load("converted")(tokens).last_hidden_state, some)
try:
    tippingpoint.swap_attention(model, "prefix", size=0)
except tippingpoint.InputError as error:
    print(error)
"""


def test_an_installed_package_runs_in_a_model_and_in_a_checkpoint(installed):
    done = python(installed, "-c", SWAP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "('prefix:size=3', 'prefix:size=3')",
        "prefix:size (positions that all others see) must be a whole number of at least 1, got 0",
    ]


FAST = ["--size", "tiny", "--budget", "0.5s", "--target", "50%", "--threads", "1"]


def test_an_installed_package_is_measured_and_its_work_counted(installed):
    done = python(
        installed, "-m", "tippingpoint", "profile", "bert@prefix:size=8", "--lengths", "64", *FAST, "--json"
    )
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    assert record["status"] == "ok"
    assert record["workload"]["subject"] == "bert@prefix:size=8"


def test_a_package_that_differs_from_its_oracle_is_not_timed(installed, tmp_path):
    shutil.copytree(installed, tmp_path / "site")
    module = tmp_path / "site" / "prefix_attention.py"
    module.write_text(module.read_text().replace("key[:, :, :size], value", "1.1 * key[:, :, :size], value"))
    words = ["profile", "bert@prefix:size=8", "--lengths", "64", *FAST]
    done = python(tmp_path / "site", "-m", "tippingpoint", *words)
    assert done.returncode == 1
    assert "'prefix:size=8' differs from its definition by" in done.stdout


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a package into a folder that Python looks into, as an installer leaves it there."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(name: str, *points: str, code: str = "", group: str = GROUP) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *points, ""]))
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return put


def table() -> Table[AttentionVariant]:
    return Table(AttentionVariant, GROUP, own("mine"))


BROKEN = {
    "import error": (
        "broken = broken:ROW",
        "import nowhere",
        "cannot be loaded: ModuleNotFoundError: No module",
    ),
    "syntax error": ("broken = broken:ROW", "def", "cannot be loaded: SyntaxError"),
    "exit": ("broken = broken:ROW", "raise SystemExit(3)", "cannot be loaded: SystemExit: 3"),
    "no such row": ("broken = broken:ROW", "", "cannot be loaded: AttributeError"),
    "no value": ("broken = ", "", "cannot be loaded"),
    "wrong type": ("broken = broken:ROW", "ROW = 3", "must name one AttentionVariant, and names a int"),
    "a module": ("broken = broken", "", "must name one AttentionVariant, and names a module"),
    "the class": (
        "broken = broken:AttentionVariant",
        "from tippingpoint.models.architecture import AttentionVariant",
        "must name one AttentionVariant, and names a type",
    ),
    "another name": ("broken = broken:GOOD", ROW, "must have the name of its row, which is 'good'"),
    "no word": ("bro.ken = broken:GOOD", ROW, "must have a word as its name, to be written in a subject"),
}


@pytest.mark.parametrize(("point", "code", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_package_is_a_warning_for_all_and_an_error_for_who_asks_for_it(point, code, message, package):
    package("broken", point, code=code)
    package("sound", "good = sound:GOOD", code=ROW)
    rows, name = table(), point.partition(" ")[0]
    with pytest.warns(UserWarning, match=message) as told:
        assert list(rows) == ["mine", "good"]
    assert len(told) == 1
    assert f"the entry point {name!r} = " in str(told[0].message)
    assert "of the package broken in tippingpoint.variants" in str(told[0].message)
    assert len(rows) == 2
    with pytest.raises(InputError, match=message):
        rows[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows["good"].title == ""  # nobody is told of what is not asked for
        assert rows.get("none") is None


def test_a_name_of_the_tables_own_cannot_be_taken(package):
    package("taker", "mine = taker:MINE", code=ROW.replace("GOOD", "MINE").replace("good", "mine"))
    rows = table()
    with pytest.warns(UserWarning, match="has the name of a row of tippingpoint's own; give it another name"):
        assert list(rows) == ["mine"]
    assert rows["mine"].library_name is None
    assert len(rows) == 1


def test_a_name_that_two_packages_give_is_neither_ones(package):
    for name in ("first", "second"):
        package(name, f"good = {name}:GOOD", code=ROW)
    rows = table()
    with pytest.raises(InputError, match=r"has the name that the package \w+ gives too; uninstall all but one"):
        rows["good"]
    with pytest.warns(UserWarning, match="gives too"):
        assert list(rows) == ["mine"]


def test_a_package_is_imported_only_when_its_row_is_asked_for(package):
    package("sound", "good = sound:GOOD", code=ROW)
    package("other", "unasked = other:GOOD", code="raise SystemExit('imported')")
    rows = table()
    assert rows["mine"].name == "mine"
    assert "sound" not in sys.modules
    assert rows["good"] is rows["good"]
    with pytest.raises(KeyError):
        rows["none"]


def test_groups_are_apart_and_architectures_come_the_same_way(package):
    package("sound", "good = sound:GOOD", code=ROW, group="tippingpoint.architectures")
    assert list(table()) == ["mine"]
    with pytest.warns(UserWarning, match="must name one Architecture, and names a AttentionVariant"):
        assert list(Table(Architecture, "tippingpoint.architectures")) == []


def test_a_broken_package_leaves_the_command_line_alone(package, tmp_path):
    package("broken", "broken = broken:ROW", code="import nowhere")
    done = python(tmp_path, "-m", "tippingpoint", "list", "--json")
    assert done.returncode == 0
    assert "local" in [row["name"] for row in json.loads(done.stdout)["variants"]]
    assert "the entry point 'broken' = 'broken:ROW' of the package broken" in done.stderr
    assert "Traceback" not in done.stderr
    done = python(tmp_path, "-m", "tippingpoint", "profile", "bert@broken", "--lengths", "9", "--size", "tiny")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the entry point 'broken' = 'broken:ROW' of the package broken")
    done = python(tmp_path, "-m", "tippingpoint", "profile", "bert@local", "--lengths", "9", *FAST)
    assert done.returncode == 0
    assert "broken" not in done.stderr
