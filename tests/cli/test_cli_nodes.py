"""Where people read of nodes that should be alike and are not: after a study on a cluster, in `show`, in reports."""

from pathlib import Path

import numpy as np
import pytest

from clusters import GPU
from synthetic import session_at
from tippingpoint.cli import study
from tippingpoint.store import Store
from tippingpoint.workload import Subject

BERT, LOCAL = Subject.parse("bert"), Subject.parse("bert@local:window=128")


def write(path: Path, slow: str, factor: float) -> str:
    """Write what three nodes measured of one pair; the last one may be slower."""
    generator = np.random.default_rng(0)
    with Store(path) as store:
        for node in ("node-1", "node-2", slow):
            for length in (128, 256, 512, 1024, 2048, 4096):
                more = factor if node == slow else 1.0
                costs = {BERT: more * (1e-4 * length + 1e-7 * length**2), LOCAL: more * 2e-4 * length}
                outcomes = session_at(
                    length, costs, generator, noise=0.01, name=f"{node} {length}-0", environment=GPU, device="cuda"
                )
                store.add(outcomes, place=f"{node}/cuda:0")
    return str(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("nodes") / "runs.sqlite", "node-17", 1.25)


@pytest.fixture
def nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that had nothing left to measure."""
    monkeypatch.setattr(study, "_run_on_ray", lambda *_: ([], ()))


def test_show_tells_of_a_node_that_is_slower(run, store):
    code, out, _ = run("show", store)
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("note: ")]
    assert line.startswith("note: node-17 is 1.2")
    assert "than 2 other nodes with NVIDIA H100 80GB" in line


@pytest.mark.usefixtures("nothing_to_measure")
def test_a_study_on_a_cluster_ends_with_the_nodes_that_disagree(run, store):
    code, out, err = run("study", "text", "--on", "ray", "--device", "H100", "--store", store)
    assert code == 0, err
    assert out.startswith("note: node-17 is 1.2")


@pytest.mark.usefixtures("nothing_to_measure")
def test_a_study_on_alike_nodes_says_nothing_of_them(run, tmp_path):
    alike = write(tmp_path / "alike.sqlite", "node-17", 1.0)
    assert run("study", "text", "--on", "ray", "--device", "H100", "--store", alike)[:2] == (0, "")


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_a_report_tells_of_it_too(run, store, tmp_path, name):
    report = tmp_path / name
    code, _, err = run("report", store, "-o", str(report))
    assert code == 0, err
    text = report.read_text()
    assert text.count("Nodes that should be alike and are not:") == 1
    assert "node-17 is 1.2" in text.partition("Nodes that should be alike and are not:")[2]


def test_a_report_of_alike_nodes_says_nothing_of_them(run, tmp_path):
    alike, report = write(tmp_path / "alike.sqlite", "node-17", 1.0), tmp_path / "report.html"
    assert run("report", alike, "-o", str(report))[0] == 0
    assert "should be alike" not in report.read_text()


def test_the_name_of_a_node_is_text_and_nothing_else(run, tmp_path):
    named, report = write(tmp_path / "named.sqlite", "<b>17</b>\x1b[31m", 1.25), tmp_path / "report.html"
    assert run("report", named, "-o", str(report))[0] == 0
    assert "<b>17</b>" not in report.read_text()
    assert "&lt;b&gt;17&lt;/b&gt;\\x1b[31m is 1.2" in report.read_text()
    assert "\x1b" not in run("show", named)[1]
