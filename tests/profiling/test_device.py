import gc
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tippingpoint.errors import InputError
from tippingpoint.profiling.device import (
    CpuDevice,
    CudaDevice,
    FakeDevice,
    available_memory,
    now,
    open_device,
    quiet,
    total_memory,
)

MIB = 2**20
needs_high_water_mark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's high-water mark of resident memory"
)


@needs_high_water_mark
def test_known_allocations_are_measured_within_two_percent():
    """In a fresh process, as subjects are: an allocator with a history may serve a request from what it holds."""
    program = """
import torch
from tippingpoint.profiling.device import CpuDevice

MIB = 2**20
device = CpuDevice()
torch.ones(8).sum()

def peak_of(call):
    before = device.used_bytes()
    device.reset_peak()
    call()
    return (device.peak_bytes() - before) / MIB

kept = []
print(peak_of(lambda: kept.append(torch.ones(64 * MIB // 4))))
print(peak_of(lambda: torch.ones(48 * MIB // 4)))          # let go before the peak is read
print(peak_of(lambda: None))                               # the peak before is forgotten
print(peak_of(lambda: kept.pop()))
print(peak_of(lambda: [torch.ones(32 * MIB // 4) for _ in range(3)]))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    peaks = [float(line) for line in result.stdout.split()]
    assert peaks == pytest.approx([64, 48, 0, 0, 96], rel=0.02, abs=0.5)


def test_a_known_sleep_is_measured_within_one_percent():
    device = CpuDevice()
    # On a busy machine a sleep may overrun; the least disturbed of a few tells what the device measures.
    taken = min(device.time_block(lambda: time.sleep(0.05), 4)[0] for _ in range(5))
    assert 0.2 <= taken <= 0.2 * 1.01


def test_the_clock_never_steps_back_and_tells_microseconds():
    readings = [now() for _ in range(1000)]
    assert readings == sorted(readings)
    assert min(later - earlier for earlier, later in pairwise(readings)) < 1e-4


def test_the_garbage_collector_stays_out_of_a_block_and_comes_back_after_it_even_when_a_call_fails():
    seen: list[bool] = []
    assert gc.isenabled()
    CpuDevice().time_block(lambda: seen.append(gc.isenabled()), 3)
    assert seen == [False] * 4  # one call that is not timed, and three
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        CpuDevice().time_block(lambda: [1 // 0, None][1], 1)
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with quiet():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_fake_device_takes_its_script_and_synchronises_at_the_edges_of_a_block_only():
    device = FakeDevice(durations=[0.5, 1.0, 2.0, 4.0], peaks=[10, 20], available=7)
    calls: list[int] = []
    assert device.time_block(lambda: calls.append(1), 3) == (3.5, 3.5)
    assert device.time_block(lambda: calls.append(1), 1) == (4.0, 4.0)
    assert len(calls) == device.calls == 4
    assert device.synchronizations == [0, 3, 3, 4]
    assert (device.peak_bytes(), device.peak_bytes(), device.available_bytes()) == (10, 20, 7)


class ScriptedCuda:
    """Stands in for `torch.cuda` and notes the order of what is asked of it."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def synchronize(self, device: torch.device) -> None:
        self.log.append("synchronize")

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.log.append("reset")

    def max_memory_allocated(self, device: torch.device) -> int:
        self.log.append("peak")
        return 123

    def Event(self, enable_timing: bool) -> "ScriptedEvent":  # noqa: N802 (the name of the original)
        assert enable_timing
        return ScriptedEvent(self.log)


class ScriptedEvent:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def record(self) -> None:
        self.log.append("event")

    def elapsed_time(self, end: "ScriptedEvent") -> float:
        self.log.append("elapsed")
        return 2500.0


def scripted_cuda_device() -> tuple[CudaDevice, list[str]]:
    device = CudaDevice.__new__(CudaDevice)
    cuda = ScriptedCuda()
    device._cuda = cuda  # pyright: ignore[reportAttributeAccessIssue]
    device._device = torch.device("cuda", 0)
    return device, cuda.log


def test_nothing_synchronises_a_gpu_inside_of_a_block():
    device, log = scripted_cuda_device()
    host_s, device_s = device.time_block(lambda: log.append("call"), 3)
    assert log == ["call", "synchronize", "event", "call", "call", "call", "event", "synchronize", "elapsed"]
    assert device_s == 2.5
    assert host_s > 0


def test_a_block_of_short_calls_begins_with_one_that_is_not_timed_and_a_single_call_is_all_there_is():
    calls: list[float] = []
    device = CpuDevice()
    seconds, _ = device.time_block(lambda: [calls.append(1.0), time.sleep(0.5 if len(calls) == 1 else 0.001)][0], 3)
    assert len(calls) == 4
    assert seconds < 0.5
    device.time_block(lambda: calls.append(1.0), 1)
    assert len(calls) == 5


def test_a_gpus_peak_is_reset_and_read_only_when_its_work_is_done():
    device, log = scripted_cuda_device()
    device.reset_peak()
    assert device.peak_bytes() == 123
    assert log == ["synchronize", "reset", "synchronize", "peak"]


def test_memory_that_is_free_is_less_than_all_of_it():
    assert 0 < available_memory() <= total_memory()
    assert CpuDevice().available_bytes() <= total_memory()


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    assert isinstance(open_device("cpu"), CpuDevice)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device 'cuda' was asked for, and this PyTorch finds no CUDA device"):
        open_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="device 'cuda:5' was asked for, and there are 2"):
        open_device("cuda:5")
