"""A call broken down in processes of its own: of the catalogue, and models of one's own."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from processes import needs_proc, workers_of
from tippingpoint import breakdown as exported
from tippingpoint.analysis.breakdown import Breakdown
from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.measurement import Failure
from tippingpoint.models.components import parse_patterns
from tippingpoint.profiling.breakdown import breakdown
from tippingpoint.profiling.process import Zygote
from tippingpoint.workload import Workload

BUDGET_S = 0.2


def tiny(subject: str, length: float = 32, **fields) -> Workload:
    return Workload(subject, length, **{"size": "tiny", "threads": 1, **fields})


def own(name: str, length: float = 40, **fields) -> Workload:
    return Workload(f"models_of_mine:{name}", length, **{"threads": 1, **fields})


def broken_down(workload: Workload, **options) -> Breakdown:
    found = breakdown(workload, budget_s=BUDGET_S, **options)
    assert isinstance(found, Breakdown), found
    return found


def assert_adds_up(found: Breakdown) -> None:
    parts = sum(row.total_s for row in found.rows())
    assert math.isclose(parts + found.between_operators_s + found.unexplained_s, found.whole_s, rel_tol=1e-12)
    assert len(found.plain_s) == len(found.clocked_s) == len(found.between_s) >= 6
    assert all(len(each.seconds) == len(found.plain_s) for each in found.components)
    assert min(*found.plain_s, *found.clocked_s) > 0
    assert min(found.between_s) >= 0
    assert all(min(each.seconds) >= 0 for each in found.components)
    assert sum(each.parameters for each in found.components) == found.parameters


@pytest.mark.parametrize("phase", ["inference", "training"])
def test_a_call_is_broken_down_into_parts_that_add_up(phase):
    found = broken_down(tiny("bert", phase=phase))
    assert_adds_up(found)
    assert (found.positions, found.executed_positions) == (32, 32)
    assert found.environment.threads == 1
    assert found.workload.phase == phase
    assert found.attention.startswith("sdpa (")
    assert found.memory is not None
    assert found.memory.peak_bytes > 0
    assert found.peaks is not None
    names = {(row.group, row.name) for row in found.rows()}
    assert {
        ("attention", "QKV projections"),
        ("feed-forward", "up"),
        ("input", "embedding"),
        ("head", "head"),
    } <= names
    assert found.explained_s > 0
    linears = [row for row in found.rows() if row.name in ("QKV projections", "up", "down")]
    per_layer = 2 * 32 * 64 * 128
    times = 3 if phase == "training" else 1
    assert {row.name: row.flops for row in linears} == {
        "QKV projections": times * 2 * 3 * 2 * 32 * 64 * 64,
        "up": times * 2 * per_layer,
        "down": times * 2 * per_layer,
    }
    assert {each.layer for each in found.components} == {None, 0, 1}
    assert found.directions == (("forward", "backward", "optimizer") if phase == "training" else ("forward",))
    assert (found.gradients_bytes > 0) == (phase == "training")


@pytest.mark.parametrize(
    ("workload", "steps"),
    [
        (tiny("hubert@local:window=5", 0.5), ("fused attention",)),
        (tiny("vit@nystrom:landmarks=8", 64), ("landmarks", "pseudo-inverse")),
        (tiny("bert@eager", batch_size=2), ("QK^T", "mask and softmax", "AV")),
        (tiny("bert@reuse:mode=map", 64), ("QK^T", "map reuse")),
        (tiny("bert", dtype="bfloat16"), ("fused attention",)),
    ],
    ids=str,
)
def test_variants_and_other_settings_are_broken_down_into_their_own_steps(workload, steps):
    found = broken_down(workload)
    assert_adds_up(found)
    assert set(steps) <= {row.name for row in found.rows() if row.group == "attention"}
    assert found.workload.subject.architecture == workload.subject.architecture
    assert found.flops > 0


def test_the_package_has_it_under_one_name():
    assert exported is breakdown


def test_progress_is_told_line_by_line():
    lines: list[str] = []
    broken_down(tiny("bert"), progress=lines.append)
    assert lines == ["bert at 32: peak memory and what really runs", "bert at 32: parts"]


@needs_proc
def test_no_process_is_left():
    broken_down(tiny("bert"))
    assert workers_of(Zygote.get().process.pid) == []


def test_names_of_ones_own_reach_the_process():
    patterns = parse_patterns({"encoder.layer.*.attention": "mine/mixing", "pooler": "mine/end"})
    rows = {(row.group, row.name): row for row in broken_down(tiny("bert"), patterns=patterns).rows()}
    assert rows["mine", "mixing"].flops > rows["mine", "end"].flops > 0
    assert not {group for group, _ in rows} & {"attention", "head"}


def test_a_compiled_workload_is_refused_with_what_to_do():
    with pytest.raises(InputError, match=r"a compiled model has no parts .*; break it down without --compile"):
        breakdown(tiny("bert", compiled=True), budget_s=BUDGET_S)


@pytest.mark.parametrize(
    ("workload", "sentence"),
    [
        (tiny("no_such_model"), "unknown architecture"),
        (tiny("bert@nothing"), "unknown variant"),
        (tiny("vit", 33), "multiples of 16 pixels"),
    ],
    ids=str,
)
def test_what_the_catalogue_refuses_is_refused(workload, sentence):
    with pytest.raises(InputError, match=sentence):
        breakdown(workload, budget_s=BUDGET_S)


def at_the_parts(number: signal.Signals) -> Callable[[str], None]:
    """A listener to progress that sends the worker a signal when its parts are to come."""

    def listen(line: str) -> None:
        if line.endswith(": parts"):
            (worker,) = workers_of(Zygote.get().process.pid)
            os.kill(worker, number)

    return listen


@needs_proc
@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (signal.SIGSTOP, "timeout", "'break down' took longer than 3 s and was stopped"),
        (signal.SIGKILL, "killed", "the process was ended by SIGKILL when it had held up to "),
    ],
)
def test_a_process_that_hangs_or_dies_is_a_failure(number, kind, sentence):
    broken_down(tiny("bert", 64))  # what is measured once for a machine takes longer than an answer may take below
    found = breakdown(tiny("bert", 64), budget_s=BUDGET_S, timeout_s=3.0, progress=at_the_parts(number))
    assert isinstance(found, Failure)
    assert (found.kind, found.positions) == (kind, 64)
    assert found.message.startswith(sentence)
    assert found.workload == tiny("bert", 64)
    assert workers_of(Zygote.get().process.pid) == []


def test_a_trace_has_the_parts_as_ranges(tmp_path: Path):
    path = tmp_path / "trace.json"
    broken_down(tiny("bert"), trace=path)
    events = json.loads(path.read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {
        "input: embedding",
        "layer 0, attention: QKV projections",
        "layer 1, feed-forward: up",
        "layer 1, norms and residuals",
        "head",
    } <= names
    (addmm, *_) = [event for event in events if event.get("name") == "aten::addmm"]
    around = [
        event["name"]
        for event in events
        if event.get("cat") == "user_annotation" and event["ts"] <= addmm["ts"] <= event["ts"] + event["dur"]
    ]
    assert "layer 0, attention: QKV projections" in around


def test_a_trace_has_the_steps_of_an_attention_as_ranges(tmp_path: Path):
    path = tmp_path / "trace.json"
    broken_down(tiny("bert@nystrom:landmarks=4"), trace=str(path))
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert {"landmarks", "pseudo-inverse"} <= names


def test_a_trace_in_a_folder_that_is_not_there_is_refused_before_anything_is_measured(tmp_path: Path):
    lines: list[str] = []
    with pytest.raises(InputError, match="folder"):
        breakdown(tiny("bert"), budget_s=BUDGET_S, trace=tmp_path / "missing" / "trace.json", progress=lines.append)
    assert lines == []


def test_a_trace_lands_in_the_folder_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Zygote.get()  # which stays where it was started
    monkeypatch.chdir(tmp_path)
    broken_down(tiny("bert"), trace="trace.json")
    assert (tmp_path / "trace.json").exists()


MODELS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mixing = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.linear1, self.linear2, self.gate = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 16)

    def forward(self, hidden):
        mixed, _ = self.mixing(*[self.norm(hidden)] * 3, need_weights=False)
        return self.gate(hidden + self.linear2(self.linear1(mixed).relu()))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, hidden):
        for block in self.blocks:
            hidden = block(hidden)
        return {"length": hidden.shape[1], "hidden": hidden}


def encoder(*, length, batch_size):
    return Encoder(), torch.randn(batch_size, length, 16)


def by_name(*, length, batch_size):
    return Encoder(), {"hidden": torch.randn(batch_size, length, 16)}


class Failing(nn.Linear):
    def forward(self, hidden):
        raise ZeroDivisionError("it was bound to happen")


def failing(*, length, batch_size):
    return Failing(4, 4), torch.ones(batch_size, length, 4)


def alone(*, length, batch_size):
    return Encoder()


def listed(*, length, batch_size):
    return Encoder(), [torch.ones(1)]


def of_length_only(length):
    return Encoder(), torch.ones(1)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, hidden):
        return self.inner(hidden).argmax(-1)


def counting(*, length, batch_size):
    return Counting(), torch.ones(batch_size, length, 4)
"""


@pytest.fixture(scope="module")
def present_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a module of models, and processes that were started in it."""
    folder = tmp_path_factory.mktemp("present")
    (folder / "models_of_mine.py").write_text(MODELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Zygote, "_current", None)
        yield folder
        started = Zygote._current
        if started is not None:
            started.close()


@pytest.mark.usefixtures("present_folder")
@pytest.mark.parametrize("phase", ["inference", "training"])
@pytest.mark.parametrize("name", ["encoder", "by_name"])
def test_a_model_of_ones_own_in_the_present_folder_is_broken_down(name, phase):
    found = broken_down(own(name, phase=phase, batch_size=2))
    assert_adds_up(found)
    assert found.positions == 40
    assert found.parameters == 3 * (32 + 4 * (16 * 16 + 16) + 2 * 16 * 32 + 32 + 16 + 16 * 16 + 16)
    rows = {(row.group, row.name): row for row in found.rows()}
    times = 3 if phase == "training" else 1
    up = 2 * 2 * 40 * 16 * 32
    assert rows["feed-forward", "up"].flops == times * 3 * up
    assert rows["feed-forward", "down"].flops == times * 3 * up
    assert ("attention", "fused attention") in rows
    assert {each.layer for each in found.components if each.group == "attention"} == {0, 1, 2}
    assert found.memory is not None


@pytest.mark.usefixtures("present_folder")
def test_its_modules_are_called_what_their_owner_calls_them():
    found = broken_down(own("encoder"), patterns=parse_patterns({"blocks.*.gate": "gates/all of them"}))
    (gate,) = [row for row in found.rows() if row.group == "gates"]
    assert (gate.name, gate.flops, gate.parameters) == ("all of them", 3 * 2 * 40 * 16 * 16, 3 * (16 * 16 + 16))


@pytest.mark.usefixtures("present_folder")
def test_a_model_of_ones_own_that_fails_is_a_failure_with_its_reason():
    found = breakdown(own("failing"), budget_s=BUDGET_S)
    assert isinstance(found, Failure)
    assert found.kind == "crashed"
    assert "ZeroDivisionError: it was bound to happen" in found.message
    assert found.positions == 40


@pytest.mark.usefixtures("present_folder")
@pytest.mark.parametrize(
    ("workload", "sentence"),
    [
        (own("alone"), "models_of_mine:alone returned something of type Encoder; expected a callable"),
        (own("listed"), "models_of_mine:listed returned inputs of type list; expected a callable"),
        (own("missing"), "cannot import 'models_of_mine:missing': .*present folder"),
        (Workload("no_module_of_mine:make", 40, threads=1), "cannot import 'no_module_of_mine:make'"),
        (
            own("encoder", size="tiny"),
            "by your own code, which says its depth, width and inputs; leave size out",
        ),
        (own("counting", phase="training"), "training needs a tensor of floating-point numbers"),
    ],
    ids=str,
)
def test_what_is_wrong_with_ones_own_callable_is_one_sentence(workload, sentence):
    with pytest.raises(InputError, match=sentence):
        breakdown(workload, budget_s=BUDGET_S)


@pytest.mark.usefixtures("present_folder")
def test_a_callable_that_cannot_be_called_so_is_a_failure_that_names_it():
    found = breakdown(own("of_length_only"), budget_s=BUDGET_S)
    assert isinstance(found, Failure)
    assert "unexpected keyword argument 'batch_size'" in found.message


def test_a_model_of_ones_own_takes_no_variant():
    with pytest.raises(UnsupportedError, match="models_of_mine:encoder"):
        breakdown(own("encoder").replace(subject="models_of_mine:encoder@local"), budget_s=BUDGET_S)
