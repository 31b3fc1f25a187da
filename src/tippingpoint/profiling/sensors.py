"""Clock, temperature and throttling of an NVIDIA GPU, from the driver, by way of nvidia-ml-py (`pynvml`)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

# Bits of the driver's reasons for a clock below the highest. These mean that something is wrong with cooling or
# supply and that the same block would be faster on another day. Not among them: idle (0x1), clocks that someone
# has set (0x2, 0x10, 0x100), and the software power cap (0x4), at which a large GPU runs under any heavy load;
# these are how this machine is, and running a block again would change nothing.
_HARDWARE_SLOWDOWN = 0x08
_SOFTWARE_THERMAL = 0x20
_HARDWARE_THERMAL = 0x40
_POWER_BRAKE = 0x80
# Bits of a word of the driver's sets of cores.
_WORD = 64
SLOWED = _HARDWARE_SLOWDOWN | _SOFTWARE_THERMAL | _HARDWARE_THERMAL | _POWER_BRAKE


class Gpu:
    """Sensors of one GPU; each answer is None where this GPU does not tell.

    Args:
        library: The module `pynvml`, initialised.
        handle: The GPU's, of that library.
    """

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle

    def uuid(self) -> str:
        """Return the name that no other GPU has."""
        return str(self._ask("nvmlDeviceGetUUID") or "")

    def near_cores(self) -> tuple[int, ...]:
        """Return the CPU cores that are nearest to it; none where this GPU does not tell."""
        words = self._ask("nvmlDeviceGetCpuAffinity", -(-(os.cpu_count() or 1) // _WORD)) or ()
        return tuple(
            number * _WORD + bit for number, word in enumerate(words) for bit in range(_WORD) if int(word) >> bit & 1
        )

    def clock_hz(self) -> float | None:
        """Return the clock of the multiprocessors."""
        megahertz = self._ask("nvmlDeviceGetClockInfo", self._library.NVML_CLOCK_SM)
        return None if megahertz is None else 1e6 * megahertz

    def temperature_c(self) -> float | None:
        """Return the temperature in degrees Celsius."""
        degrees = self._ask("nvmlDeviceGetTemperature", self._library.NVML_TEMPERATURE_GPU)
        return None if degrees is None else float(degrees)

    def throttled(self) -> bool | None:
        """Return whether heat or the power supply slows it now."""
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # drivers before 535 have the old name only
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if reasons is None else bool(reasons & SLOWED)

    def _ask(self, question: str, *arguments: Any) -> Any:
        ask: Callable[..., Any] | None = getattr(self._library, question, None)
        try:
            return None if ask is None else ask(self._handle, *arguments)
        except self._library.NVMLError:
            return None


def open_gpu(device_name: str, uuid: str = "") -> Gpu | str:
    """Return the sensors of a GPU, or the reason why there are none.

    Args:
        device_name: "cuda" or "cuda:N", as PyTorch numbers them.
        uuid: Of the GPU; found by its number and CUDA_VISIBLE_DEVICES when empty.
    """
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return "nvidia-ml-py is not installed"
    name = uuid or _name(device_name)
    if name == "":
        return f"CUDA_VISIBLE_DEVICES names no GPU for {device_name}"
    try:
        library.nvmlInit()
        if isinstance(name, str):
            return Gpu(library, library.nvmlDeviceGetHandleByUUID(name))
        return Gpu(library, library.nvmlDeviceGetHandleByIndex(name))
    except library.NVMLError as error:
        return f"the driver does not tell: {error}"


def gpu_uuid(device_name: str) -> str:
    """Return the UUID of a GPU without starting CUDA; empty where the driver cannot be asked.

    Args:
        device_name: "cuda" or "cuda:N"; found by its number and CUDA_VISIBLE_DEVICES.
    """
    gpu = open_gpu(device_name)
    return gpu.uuid() if isinstance(gpu, Gpu) else ""


def gpu_cores(device_name: str) -> tuple[int, ...]:
    """Return the CPU cores nearest to a GPU that this process may run on; none where the driver does not tell."""
    gpu = open_gpu(device_name)
    near = gpu.near_cores() if isinstance(gpu, Gpu) else ()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    return tuple(core for core in near if core in allowed)


def gpu_number(device_name: str) -> str:
    """Return by what the driver knows a CUDA device: its number, or its UUID."""
    return str(_name(device_name))


def _name(device_name: str) -> int | str:
    """Return by what the driver knows a CUDA device: its number there, or its UUID; empty for one that is hidden."""
    number = int(device_name.partition(":")[2] or 0)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return number
    names = [name.strip() for name in visible.split(",")]
    name = names[number] if number < len(names) else ""
    return int(name) if name.isdigit() else name
