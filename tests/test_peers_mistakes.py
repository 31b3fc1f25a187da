"""What other profilers got wrong, each as a test that fails if it is done here too.

The list stands in docs/measuring.md; the names of the tests follow it.
"""

from __future__ import annotations

import itertools
import math
import re
import socket
import threading
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tippingpoint
from synthetic import ENVIRONMENT, failure, measurement
from tippingpoint.analysis.comparison import comparison_points
from tippingpoint.analysis.cost import cost_curve
from tippingpoint.analysis.tipping_point import tipping_point
from tippingpoint.machine import Conditions, Environment, Peaks
from tippingpoint.measurement import Energy, Failure, Flops, Measurement, Memory, Sample
from tippingpoint.models.build import build, count_parameters
from tippingpoint.models.catalog import ARCHITECTURES
from tippingpoint.profiling import device as device_module
from tippingpoint.profiling.device import CpuDevice, CudaDevice, FakeDevice, now
from tippingpoint.profiling.flops import count_flops
from tippingpoint.profiling.session import profile
from tippingpoint.profiling.timing import warm_up
from tippingpoint.profiling.wire import Wire
from tippingpoint.profiling.worker import Worker
from tippingpoint.report.records import plain
from tippingpoint.workload import PHASES, Subject, Workload

pytestmark = pytest.mark.usefixtures("one_thread")
SOURCES = sorted(Path(tippingpoint.__file__).parent.rglob("*.py"))
BERT, LOCAL = Subject.parse("bert"), Subject.parse("bert@local:window=8")


def tiny(subject: str, length: float = 64, **options: Any) -> Workload:
    return Workload(subject, length, **{"size": "tiny", "threads": 1, **options})


class FakeCuda:
    """Stands in for `torch.cuda`: kernels are queued, and only synchronising or an event's end waits for them."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def Event(self, enable_timing: bool) -> Any:  # noqa: N802 (the name of PyTorch's class)
        assert enable_timing
        return SimpleNamespace(record=lambda: self.log.append("event"), elapsed_time=lambda other: 1000.0)

    def synchronize(self, device: object) -> None:
        self.log.append("synchronize")

    def reset_peak_memory_stats(self, device: object) -> None:
        self.log.append("reset")

    def max_memory_allocated(self, device: object) -> int:
        self.log.append("peak")
        return 0


@pytest.fixture
def cuda() -> tuple[CudaDevice, FakeCuda]:
    """A CUDA device without CUDA."""
    device, fake = CudaDevice.__new__(CudaDevice), FakeCuda()
    device.name, device._cuda, device._device = "cuda", fake, None  # type: ignore[assignment]
    return device, fake


def test_cuda_is_synchronised_at_both_edges_of_a_block(cuda):
    device, fake = cuda
    _, seconds = device.time_block(lambda: fake.log.append("call"), 3)
    timed = ["synchronize", "event", "call", "call", "call", "event", "synchronize"]
    # The call before them wakes the device up and is not timed.
    assert fake.log == ["call", *timed]
    assert seconds == 1.0


def test_nothing_synchronises_inside_a_block():
    device = FakeDevice(itertools.repeat(0.001))
    device.time_block(lambda: None, 50)
    assert device.synchronizations == [0, 50]


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_dropout_is_off_while_inference_is_timed_and_on_in_training(row):
    length = row.nearest_legal(0.1 if row.modality == "speech" else 96)
    assert not any(module.training for module in build(tiny(row.name, length)).model.modules())
    assert build(tiny(row.name, length, phase="training")).model.training


def test_inference_keeps_no_graph():
    subject = build(tiny("bert"))
    seen: list[bool] = []
    subject.model.register_forward_hook(lambda module, inputs, output: seen.append(torch.is_inference_mode_enabled()))
    subject.call(tiny("bert"))()
    assert seen == [True]


class Watched(FakeDevice):
    """Notes when the peak is reset and read, and when a call runs in between."""

    def __init__(self) -> None:
        super().__init__(itertools.repeat(0.01), itertools.repeat(10**9))
        self.log: list[str] = []

    def time_block(self, call: Any, calls: int) -> tuple[float, float]:
        self.log.append("call")
        return super().time_block(call, calls)

    def reset_peak(self) -> None:
        self.log.append("reset")

    def peak_bytes(self) -> int:
        self.log.append("peak")
        return super().peak_bytes()


def test_the_peak_is_reset_before_the_call_it_is_read_for():
    device = Watched()
    worker = Worker("cpu", 1, device=device)
    worker.build(tiny("bert"))
    worker.measure_memory()
    assert device.log == ["reset", "call", "peak"]


def test_the_peak_of_a_shorter_input_is_not_that_of_the_longer_one_before():
    long, short = (profile(tiny("bert@eager", length), budget_s=0.1) for length in (1024, 128))
    assert isinstance(long, Measurement)
    assert isinstance(short, Measurement)
    assert long.memory
    assert short.memory
    assert short.memory.activations_bytes < long.memory.activations_bytes / 4


def test_the_size_after_the_run_is_not_called_its_peak():
    device = CpuDevice()
    device.trim()
    before = device.used_bytes()
    device.reset_peak()
    torch.ones(32 * 2**20).sum()
    assert device.peak_bytes() - before > 120 * 2**20
    assert device.used_bytes() - before < 60 * 2**20


def test_no_thread_samples_anything_while_blocks_are_timed():
    started: list[str] = []
    original = threading.Thread.start

    def start(self: threading.Thread) -> None:
        started.append(self.name)
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        profile(tiny("bert"), budget_s=0.1)
    assert started == []


def test_the_parent_waits_without_asking_again_and_again():
    """What the parent runs while a block is timed is a sleep until the answer comes; looking again is a busy wait."""
    ours, theirs = socket.socketpair()
    life, keepers = socket.socketpair()
    answer = Wire(theirs)
    with life, keepers:
        timer = threading.Timer(1.0, answer.send, [(True, 7)])
        timer.start()
        before = time.thread_time()
        assert Wire(ours).receive(now() + 60, life) == (True, 7)
        asleep = time.thread_time() - before
        timer.join()
        ours.close()
        theirs.close()
    # A loop that looks again and again takes the whole second.
    assert asleep < 0.2


def test_each_phase_has_a_peak_of_its_own():
    inference, training = (profile(tiny("bert", 128, phase=phase), budget_s=0.1) for phase in PHASES)
    assert isinstance(inference, Measurement)
    assert isinstance(training, Measurement)
    assert inference.memory
    assert training.memory
    assert inference.memory.gradients_bytes == inference.memory.optimizer_bytes == 0
    # The loss does not reach the pooler, a matrix and a vector of 64 values.
    reached = training.parameters - 64 * 65
    assert training.memory.gradients_bytes == 4 * reached
    # Two moments for each parameter, and a step count for each tensor.
    assert training.memory.optimizer_bytes == pytest.approx(8 * reached, rel=0.01)
    assert training.memory.peak_bytes > inference.memory.peak_bytes


def test_there_is_a_warm_up_and_it_is_not_among_the_samples():
    record = warm_up(FakeDevice(itertools.chain([9.0, 5.0], itertools.repeat(0.1))), lambda: None)
    assert record.per_call_s[:2] == (9.0, 5.0)
    found = profile(tiny("bert"), budget_s=0.1)
    assert isinstance(found, Measurement)
    assert len(found.warm_ups_s[0]) >= 2


def test_no_latency_is_printed_without_its_interval():
    text = str(measurement("bert", 128, [0.01, 0.011, 0.009, 0.01]))
    assert re.search(r"latency +\S+ \S+ +\(95 % \S+ \S+ to \S+ \S+, 4 blocks", text)
    assert "latency_interval_s" in plain(measurement("bert", 128, 0.01))


def test_samples_beyond_the_fences_are_not_dropped():
    quiet = [1.0, 1.01, 0.99, 1.0, 1.02]
    one = measurement("bert", 128, [*quiet, 50.0, 60.0, 70.0])
    assert len(one.outliers) == 0 or len(one.per_call_s) == 8
    assert one.latency_s > max(quiet[:3])
    assert one.latency_interval_s[1] > 10


def test_a_multiply_add_is_two_operations():
    a = torch.ones(3, 5)
    assert count_flops(lambda: [a @ a.T, None][1])[0].total == 2 * 3 * 5 * 3


def test_attention_is_among_the_operations():
    short, long = (count_flops(build(w).call(w))[0].total for w in (tiny("bert", 128), tiny("bert", 256)))
    assert long > 2.2 * short


def test_parts_of_memory_never_exceed_the_whole_unseen():
    memory = Memory(peak_bytes=100, weights_bytes=60, inputs_bytes=10, method="counted")
    parts = memory.weights_bytes + memory.inputs_bytes + memory.activations_bytes
    assert parts == memory.peak_bytes


def test_shared_parameters_are_counted_once():
    subject = build(tiny("bert"))
    before, weights = subject.parameters, subject.weights_bytes
    subject.model.second = subject.model.encoder.layer[0]  # type: ignore[assignment,index]
    assert subject.parameters == before == count_parameters(tiny("bert"))
    assert subject.weights_bytes == weights


def test_running_out_of_memory_is_printed_as_that_and_never_as_nan():
    lost = failure("bert", 1024)
    assert "nan" not in str(lost).lower()
    assert "out_of_memory" in str(lost)
    record = plain(lost)
    assert record["status"] == "out_of_memory"
    assert not any(isinstance(value, float) and math.isnan(value) for value in record.values())


def test_the_middle_is_the_median_and_lies_between_least_and_most():
    one = measurement("bert", 128, [3.0, 1.0, 2.0, 10.0, 2.0])
    assert one.latency_s == 2.0
    assert min(one.per_call_s) == 1.0
    assert max(one.per_call_s) == 10.0


@pytest.mark.parametrize("kind", ["crashed", "timeout", "unsupported"])
def test_a_failure_is_no_evidence_for_anybody(kind):
    outcomes = [
        measurement("bert", 128, 0.01, session="s-0"),
        failure("bert@local:window=8", 128, kind=kind, session="s"),
    ]
    assert comparison_points(outcomes, BERT, LOCAL, metric="latency", phase="inference") == []
    found = tipping_point(outcomes, BERT, LOCAL, metric="latency", phase="inference", batch_size=1, device="cpu")
    assert found.verdict == "undecided"


def test_time_is_read_from_one_clock_that_never_steps(monkeypatch):
    """Calls that read another clock are banned by name in pyproject.toml; this finds those that hide from it."""
    banned = re.compile(r"\btime\.(time|time_ns|monotonic|process_time|perf_counter)\(")
    assert [path.name for path in SOURCES if banned.search(path.read_text())] == []
    ticks = iter((5_000_000_000, 7_500_000_000))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(ticks))
    assert device_module.now() == 5.0
    assert device_module.now() == 7.5


UNITS = {"s", "seconds", "bytes", "hz", "c", "flops", "positions", "watts"}
RECORDS = (Environment, Conditions, Peaks, Sample, Memory, Flops, Energy, Measurement)
# Numbers without a unit: counts, places and shares.
COUNTS = {
    *("cores", "threads", "round", "order", "calls", "process", "total", "algorithmic", "parameters", "positions"),
    *("uncounted", "by_operator", "batch_curve", "affinity", "load"),
}


@pytest.mark.parametrize("record", RECORDS)
def test_every_number_of_a_record_has_its_unit_in_its_name(record):
    for field in fields(record):
        kind = str(field.type)
        if not re.search(r"\b(int|float)\b", kind) or field.name in COUNTS:
            continue
        name = re.split(r"_per_|_", field.name)
        assert UNITS & set(name) or "joules" in name, f"{record.__name__}.{field.name}: {kind}"


def test_joules_are_joules():
    one = Energy(joules_per_call=2.0, source="counter", idle_watts=3.0, window_s=10.0, calls=20)
    # 40 J in all, of which an idle machine takes 30.
    assert one.net_joules_per_call == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neither_device_nor_dtype_is_hard_coded(dtype):
    subject = build(tiny("hubert", 0.1, dtype=dtype))
    wanted = getattr(torch, dtype)
    assert {parameter.dtype for parameter in subject.model.parameters()} == {wanted}
    assert {t.dtype for t in subject.inputs(tiny("hubert", 0.1, dtype=dtype)).values() if t.is_floating_point()} == {
        wanted
    }
    with torch.device("meta"):
        elsewhere = build(tiny("bert", dtype=dtype))
    assert {parameter.device.type for parameter in elsewhere.model.parameters()} == {"cpu"}


def test_nothing_beyond_the_longest_measured_length_is_reported():
    outcomes = [measurement("bert", length, length / 1e4, session=f"{length}-0") for length in (128, 256)]
    curve = cost_curve(outcomes, BERT, metric="latency", phase="inference")
    assert curve is not None
    with pytest.raises(ValueError, match="beyond the longest measured length"):
        curve.at([257])
    variants = [
        measurement("bert@local:window=8", length, 2 * length**0.5 / 1e3, session=f"{length}-0")
        for length in (128, 256)
    ]
    found = tipping_point(
        [*outcomes, *variants], BERT, LOCAL, metric="latency", phase="inference", batch_size=1, device="cpu"
    )
    assert found.length is None or found.length <= 256


def test_measurements_of_unlike_environments_are_told_apart():
    other = replace(ENVIRONMENT, torch="2.12.0")
    assert other.fingerprint != ENVIRONMENT.fingerprint
    assert other.differences(ENVIRONMENT) == [("torch", "2.12.0", "2.13.0")]


def test_a_failure_is_a_row_of_the_same_record_as_a_measurement():
    assert {field.name for field in fields(Failure)} & {"workload", "environment", "session", "positions"} == {
        "workload",
        "environment",
        "session",
        "positions",
    }
