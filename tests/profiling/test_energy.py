import itertools
import multiprocessing
import sys
from collections.abc import Iterator
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tippingpoint.profiling import energy, worker
from tippingpoint.profiling.device import FakeDevice
from tippingpoint.profiling.energy import Meter, MeterError, ZeusMeter, measure_energy, open_meter
from trees import write

PACKAGES = energy._packages
IDLE_W = 30.0
CALL_J = 2.0


class Machine(FakeDevice):
    """A fake device whose clock goes on while it sleeps."""

    def sleep(self, seconds: float) -> None:
        self._clock += seconds


class FakeMeter:
    """Counters of a machine that draws 30 W idle and 2 J more for each call; notes when they were read."""

    source = "imaginary counters"

    def __init__(self, device: Machine, *, fails_at: int | None = None, wraps_at: int | None = None) -> None:
        self.device = device
        self.read: list[tuple[float, int]] = []
        self.fails_at = fails_at
        self.wraps_at = wraps_at
        self.closed = 0

    def _read(self) -> float:
        if len(self.read) == self.fails_at:
            raise MeterError("imaginary counters did not move")
        joules = IDLE_W * self.device.now() + CALL_J * self.device.calls
        if self.wraps_at is not None and len(self.read) >= self.wraps_at:
            joules += 262_144
        self.read.append((self.device.now(), self.device.calls))
        return joules

    def begin(self) -> None:
        self.before = self._read()

    def end(self) -> float:
        return self._read() - self.before

    def close(self) -> None:
        self.closed += 1


def nothing() -> None:
    pass


def measured(durations: Iterator[float], **options: Any) -> tuple[energy.Energy, Machine, FakeMeter]:
    device = Machine(durations)
    meter = FakeMeter(device, **options)
    return measure_energy(meter, device, nothing, sleep=device.sleep), device, meter


def test_energy_is_gross_and_the_idle_power_is_beside_it():
    seen, _, meter = measured(itertools.repeat(0.5))
    assert seen.calls == 11
    assert seen.window_s == pytest.approx(5.5)
    assert seen.idle_watts == pytest.approx(IDLE_W)
    assert seen.joules_per_call == pytest.approx(CALL_J + IDLE_W * 0.5)
    assert seen.net_joules_per_call == pytest.approx(CALL_J)
    assert seen.source == "imaginary counters"
    assert meter.closed == 1


@given(per_call_s=st.floats(0.01, 30))
def test_planted_energy_is_recovered_whatever_a_call_takes(per_call_s):
    seen, _, _ = measured(itertools.repeat(per_call_s))
    assert seen.net_joules_per_call == pytest.approx(CALL_J, rel=1e-6)
    assert seen.idle_watts == pytest.approx(IDLE_W)
    assert seen.window_s >= 5


def test_counters_are_read_at_the_ends_of_three_windows_and_never_inside_of_them():
    _, _, meter = measured(itertools.repeat(0.5))
    settle, idle, calls = pairs(meter.read)
    assert [calls_before for _, calls_before in (*settle, *idle)] == [0] * 4
    assert settle[1][0] - settle[0][0] == pytest.approx(1)
    assert idle[1][0] - idle[0][0] == pytest.approx(5)
    assert (calls[0][1], calls[1][1]) == (1, 12)


def pairs(values: list[tuple[float, int]]) -> list[tuple[tuple[float, int], tuple[float, int]]]:
    return list(zip(values[::2], values[1::2], strict=True))


def test_the_device_is_synchronised_at_the_ends_of_the_window_only():
    _, device, _ = measured(itertools.repeat(0.5))
    # Before idling, around the call that tells how many make a window, and around the window.
    assert device.synchronizations == [0, 0, 1, 1, 12]


def test_a_window_that_was_too_short_is_measured_again_with_more_calls():
    seen, device, _ = measured(itertools.chain([1.0], itertools.repeat(0.01)))
    assert seen.window_s >= 5
    # Six calls of a second were expected to do; they took hundredths.
    assert seen.calls == 551
    assert device.synchronizations == [0, 0, 1, 1, 7, 7, 558]
    assert seen.net_joules_per_call == pytest.approx(CALL_J)


def test_windows_can_be_longer():
    device = Machine(itertools.repeat(0.5))
    meter = FakeMeter(device)
    seen = measure_energy(meter, device, nothing, window_s=20, sleep=device.sleep)
    assert seen.window_s >= 20
    (_, before), (_, after) = pairs(meter.read)[1]
    assert before == after == 0
    assert pairs(meter.read)[1][1][0] - pairs(meter.read)[1][0][0] == pytest.approx(20)


def test_without_a_counter_there_is_no_number_and_nothing_runs():
    device = Machine()
    seen = measure_energy("zeus is not installed", device, nothing, sleep=device.sleep)
    assert seen.joules_per_call is None
    assert seen.net_joules_per_call is None
    assert seen.source == "no counter: zeus is not installed"
    assert device.calls == 0


@pytest.mark.parametrize("reading", range(6))
def test_a_counter_that_fails_at_any_time_is_a_reason_and_the_meter_is_closed(reading):
    seen, _, meter = measured(itertools.repeat(0.5), fails_at=reading)
    assert seen.joules_per_call is None
    assert seen.source == "no counter: imaginary counters did not move"
    assert meter.closed == 1


def test_a_counter_that_wrapped_around_unseen_is_not_believed():
    seen, _, _ = measured(itertools.repeat(0.5), wraps_at=5)
    assert seen.joules_per_call is None
    assert seen.source == "no counter: imaginary counters told 262331 J in 5.5 s, which cannot be"


def test_a_call_that_fails_closes_the_meter():
    device = Machine(itertools.repeat(0.5))
    meter = FakeMeter(device)
    with pytest.raises(ZeroDivisionError):
        measure_energy(meter, device, lambda: [1 // 0, None][1], sleep=device.sleep)
    assert meter.closed == 1


class Count(list[str]):
    """What a fake zeus returns for the CPUs or GPUs of the machine."""

    def __init__(self, number: int, *, has_counter: bool = True, has_memory: bool = False) -> None:
        super().__init__(["device"] * number)
        self.has_counter = has_counter
        self.has_memory = has_memory

    def supports_get_total_energy_consumption(self, index: int) -> bool:
        if index >= len(self):
            raise ValueError("No GPUs available.")
        return self.has_counter

    def supports_get_dram_energy_consumption(self, index: int) -> bool:
        return self.has_memory


class ZeusMonitor:
    """A fake of zeus's, with joules that a test plants."""

    planted = SimpleNamespace(gpu_energy={}, cpu_energy={0: 7.0}, dram_energy=None)

    def __init__(self, gpu_indices: list[int], cpu_indices: list[int]) -> None:
        sys.stdout.write("zeus says hello\n")
        self.gpu_indices, self.cpu_indices = gpu_indices, cpu_indices
        self.cpus = sys.modules["zeus.device"].get_cpus() if cpu_indices else None
        self.log: list[str] = []

    def begin_window(self, key: str, sync_execution: bool) -> None:
        assert not sync_execution
        self.log.append("begin")

    def end_window(self, key: str, sync_execution: bool) -> Any:
        assert not sync_execution
        if isinstance(self.planted, Exception):
            raise self.planted
        return self.planted


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Put a fake zeus in place of the real one, on a machine with some CPU packages and GPUs."""

    def put(cpus: Count | Exception, gpus: Count | Exception | None = None, names: tuple[str, ...] = ()) -> None:
        monitor, device = ModuleType("zeus.monitor"), ModuleType("zeus.device")
        monitor.ZeusMonitor = ZeusMonitor  # type: ignore[attr-defined]
        for name, found in (("get_cpus", cpus), ("get_gpus", gpus)):
            setattr(device, name, answer(found))
        for name, module in (("zeus", ModuleType("zeus")), ("zeus.monitor", monitor), ("zeus.device", device)):
            monkeypatch.setitem(sys.modules, name, module)
        write(tmp_path, {f"sys/class/powercap/intel-rapl:{n}/name": name for n, name in enumerate(names)})
        monkeypatch.setattr(energy, "_packages", partial(PACKAGES, root=tmp_path))

    return put


def answer(found: object) -> Any:
    def get() -> object:
        if isinstance(found, Exception):
            raise found
        return found

    return get


def opened(device: str) -> Meter:
    meter = open_meter(device)
    assert not isinstance(meter, str), meter
    return meter


def test_on_a_cpu_the_counters_of_its_packages_and_memory_count(install, monkeypatch):
    install(Count(2, has_memory=True))
    meter = opened("cpu")
    assert meter.source == "zeus: counters of CPU package 0, CPU package 1, its memory"
    planted = SimpleNamespace(gpu_energy={}, cpu_energy={0: 10.0, 1: 20.0}, dram_energy={0: 3.0, 1: 0.5})
    monkeypatch.setattr(ZeusMonitor, "planted", planted)
    meter.begin()
    assert meter.end() == 33.5


def test_a_counter_of_the_whole_platform_is_left_out_since_it_holds_the_others(install):
    install(Count(3), names=("package-0", "psys", "package-1"))
    assert opened("cpu").source == "zeus: counters of CPU package 0, CPU package 2"


def test_on_a_gpu_its_counter_counts_and_the_cpus_where_they_can_be_read(install, monkeypatch):
    install(PermissionError("RAPL needs root"), Count(2))
    meter = opened("cuda:1")
    assert meter.source == "zeus: counters of GPU 1"
    monkeypatch.setattr(
        ZeusMonitor, "planted", SimpleNamespace(gpu_energy={1: 40.0}, cpu_energy=None, dram_energy=None)
    )
    meter.begin()
    assert meter.end() == 40.0
    install(Count(1), Count(1))
    assert opened("cuda").source == "zeus: counters of GPU 0, CPU package 0"


@pytest.mark.parametrize(
    "planted",
    [
        SimpleNamespace(gpu_energy={0: 0.0}, cpu_energy={0: 5.0}, dram_energy=None),
        SimpleNamespace(gpu_energy={0: 5.0}, cpu_energy={0: -200.0}, dram_energy=None),
        SimpleNamespace(gpu_energy={}, cpu_energy=None, dram_energy=None),
    ],
)
def test_a_counter_that_did_not_move_or_fell_gives_no_joules(install, monkeypatch, planted):
    install(Count(1), Count(1))
    monkeypatch.setattr(ZeusMonitor, "planted", planted)
    meter = opened("cuda")
    meter.begin()
    with pytest.raises(MeterError, match=r"^zeus: counters of GPU 0, CPU package 0 did not move$"):
        meter.end()


def test_what_zeus_raises_while_reading_is_a_reason(install, monkeypatch):
    install(Count(1))
    monkeypatch.setattr(ZeusMonitor, "planted", OSError("device\n gone"))
    meter = opened("cpu")
    meter.begin()
    with pytest.raises(MeterError, match=r"^zeus cannot read a counter \(OSError: device gone\)$"):
        meter.end()


def test_without_zeus_the_reason_says_what_to_install(monkeypatch):
    for name in ("zeus", "zeus.monitor", "zeus.device"):
        monkeypatch.setitem(sys.modules, name, None)
    reason = open_meter("cpu")
    assert isinstance(reason, str)
    assert reason.startswith("zeus is not installed")
    assert reason.endswith("pip install 'tippingpoint[energy]'")


@pytest.mark.parametrize("cpus", [Count(0), PermissionError("no"), RuntimeError("RAPL unavailable")])
def test_a_cpu_without_readable_counters_has_a_reason(install, cpus):
    install(cpus)
    assert open_meter("cpu") == "the CPU's counters (RAPL) are not there or may not be read, which mostly takes root"


def test_a_gpu_without_a_counter_has_a_reason_and_its_power_is_not_added_up_from_samples(install):
    install(Count(1), Count(1, has_counter=False))
    assert open_meter("cuda") == "GPU 0 has no counter of energy"
    install(Count(1), Count(0))
    assert open_meter("cuda") == "zeus cannot read a counter (ValueError: No GPUs available.)"
    install(Count(1), RuntimeError("NVML\nunavailable"))
    assert open_meter("cuda") == "zeus cannot read a counter (RuntimeError: NVML unavailable)"


def test_zeus_writes_nothing_to_stdout(install, capsys):
    install(Count(1))
    opened("cpu")
    out, err = capsys.readouterr()
    assert out == ""
    assert "zeus says hello" in err


def test_closing_ends_the_processes_that_zeus_started(monkeypatch):
    ended: list[str] = []
    child = SimpleNamespace(terminate=lambda: ended.append("terminate"), join=lambda: ended.append("join"))
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [child])
    ZeusMeter(SimpleNamespace(gpu_indices=[0], cpu_indices=[])).close()
    assert ended == ["terminate", "join"]


def test_a_worker_tells_its_counters_and_measures_the_call_it_has(monkeypatch):
    device = Machine(itertools.repeat(0.5))
    ours = worker.Worker("cpu", 1, device=device)
    monkeypatch.setattr(worker, "open_meter", lambda name: f"nothing for {name}")
    assert ours.energy_source() == "none: nothing for fake"
    with pytest.raises(AssertionError, match="warm up first"):
        ours.measure_energy()
    ours._call = nothing  # type: ignore[assignment]
    assert ours.measure_energy().source == "no counter: nothing for fake"
    meter = FakeMeter(device)
    monkeypatch.setattr(worker, "open_meter", lambda name: meter)
    assert ours.energy_source() == "imaginary counters"
    monkeypatch.setattr(worker, "measure_energy", partial(measure_energy, sleep=device.sleep))
    assert ours.measure_energy().net_joules_per_call == pytest.approx(CALL_J)
