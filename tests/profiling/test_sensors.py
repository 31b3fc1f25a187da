import sys
from types import ModuleType
from typing import Any

import pytest

from tippingpoint.profiling.sensors import Gpu, gpu_cores, gpu_number, gpu_uuid, open_gpu


class NVMLError(Exception):
    pass


class FakeNvml(ModuleType):
    """Stands in for `pynvml` with two GPUs, and notes how their handles were asked for."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *, reasons: int | None = 0, old: bool = False, broken: bool = False) -> None:
        super().__init__("pynvml")
        self.reasons = reasons
        self.broken = broken
        self.asked: list[int | str] = []
        if old:
            self.nvmlDeviceGetCurrentClocksThrottleReasons = self._tell_reasons
        else:
            self.nvmlDeviceGetCurrentClocksEventReasons = self._tell_reasons

    def nvmlInit(self) -> None:  # noqa: N802 (the names are the original's)
        if self.broken:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self.asked.append(index)
        if index > 1:
            raise NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        self.asked.append(uuid)
        return 0

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}"

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        assert kind == self.NVML_CLOCK_SM
        return 1980

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        assert sensor == self.NVML_TEMPERATURE_GPU
        return 41

    def _tell_reasons(self, handle: int) -> int:
        if self.reasons is None:
            raise NVMLError("Not Supported")
        return self.reasons


@pytest.fixture
def install(monkeypatch):
    """Put a fake `pynvml` in place of the real one."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(**options: Any) -> FakeNvml:
        library = FakeNvml(**options)
        monkeypatch.setitem(sys.modules, "pynvml", library)
        return library

    return put


def opened(device: str = "cuda", uuid: str = "") -> Gpu:
    gpu = open_gpu(device, uuid)
    assert isinstance(gpu, Gpu), gpu
    return gpu


def test_a_gpu_tells_clock_and_temperature_in_our_units(install):
    install()
    gpu = opened()
    assert gpu.clock_hz() == 1.98e9
    assert gpu.temperature_c() == 41.0


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    [
        (0x00, False),  # nothing
        (0x01, False),  # idle
        (0x02, False),  # clocks that someone has set
        (0x04, False),  # software power cap
        (0x08, True),  # hardware slowdown
        (0x10, False),  # in step with other GPUs
        (0x20, True),  # software thermal slowdown
        (0x40, True),  # hardware thermal slowdown
        (0x80, True),  # power brake
        (0x100, False),  # display clocks
        (0x05, False),
        (0x44, True),
    ],
)
def test_heat_and_supply_throttle_and_the_machines_own_limits_do_not(install, reasons, throttled):
    install(reasons=reasons)
    assert opened().throttled() is throttled


def test_an_older_driver_tells_by_the_older_name(install):
    install(reasons=0x40, old=True)
    assert opened().throttled() is True


def test_what_a_gpu_does_not_tell_is_none(install):
    install(reasons=None)
    gpu = opened()
    assert gpu.throttled() is None
    assert gpu.clock_hz() == 1.98e9


@pytest.mark.parametrize(
    ("visible", "device", "asked"),
    [
        (None, "cuda", 0),
        (None, "cuda:1", 1),
        ("1", "cuda", 1),
        ("1,0", "cuda:1", 0),
        (" 1 , 0", "cuda:0", 1),
        ("GPU-aa,GPU-bb", "cuda:1", "GPU-bb"),
    ],
)
def test_a_gpu_is_found_as_cuda_numbers_the_visible_ones(install, monkeypatch, visible, device, asked):
    library = install()
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    opened(device)
    assert library.asked == [asked]


def test_a_uuid_names_the_gpu_whatever_is_visible(install, monkeypatch):
    library = install()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    opened("cuda", "GPU-cc")
    assert library.asked == ["GPU-cc"]


def test_without_the_library_the_reason_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_gpu("cuda") == "nvidia-ml-py is not installed"


def test_without_a_driver_or_a_gpu_there_is_a_reason(install, monkeypatch):
    install(broken=True)
    assert open_gpu("cuda") == "the driver does not tell: Driver Not Loaded"
    install()
    assert open_gpu("cuda:2") == "the driver does not tell: Invalid Argument"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert open_gpu("cuda:1") == "CUDA_VISIBLE_DEVICES names no GPU for cuda:1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert open_gpu("cuda") == "CUDA_VISIBLE_DEVICES names no GPU for cuda"


def test_a_gpu_tells_its_name_without_cuda_being_started(install, monkeypatch):
    library = install()
    assert gpu_uuid("cuda:1") == "GPU-1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-0")
    assert [gpu_uuid("cuda"), gpu_uuid("cuda:1")] == ["GPU-1", "GPU-0"]
    assert library.asked == [1, 1, "GPU-0"]


def test_without_a_driver_that_tells_a_gpu_has_no_name(install, monkeypatch):
    install(broken=True)
    assert gpu_uuid("cuda") == ""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_uuid("cuda") == ""


def test_a_gpu_tells_which_cores_are_near_it(monkeypatch):
    fake = FakeNvml()
    words = {"asked": 0}

    def near(handle: int, count: int) -> list[int]:
        words["asked"] = count
        return [0b1010, 0b1]

    monkeypatch.setattr(fake, "nvmlDeviceGetCpuAffinity", near, raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr("os.cpu_count", lambda: 100)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {1, 2, 64}, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpu_cores("cuda") == (1, 64)
    assert words["asked"] == 2
    assert gpu_number("cuda") == "1"


def test_without_a_driver_no_cores_are_near(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken=True))
    assert gpu_cores("cuda") == ()
