"""The one owner of clock, synchronisation and peak bytes."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tippingpoint.clock import now
from tippingpoint.errors import InputError

_SETTLE_S = 0.01
# glibc's malloc.h; blocks of this size and more get a mapping of their own.
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1
_MAPPED_APART = 128 * 1024
# The largest block that the C library ever keeps by itself, and more than its heap ever holds at its end.
_LARGEST_KEPT = 32 * 2**20
_NEVER_TRIM = 2**31 - 1


def settle() -> None:
    """Sleep until the threads of the subject that ran last have stopped spinning and left the cores.

    OpenMP's threads spin for some milliseconds after their last parallel region before they sleep; a block of
    another process that begins meanwhile would share the cores with them.
    """
    time.sleep(_SETTLE_S)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the garbage collector out of a timed block."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Device(Protocol):
    """What measuring needs of a device. Times are in seconds, sizes in bytes."""

    name: str
    memory_method: str
    # Seconds of calls beyond the cold one before timing may begin: a GPU's clocks take their time.
    least_warm_up_s: float

    def now(self) -> float:
        """Return the host's clock."""
        ...

    def time_block(self, call: Callable[[], None], calls: int) -> tuple[float, float | None]:
        """Run `call` `calls` times; return host seconds and, where the device has a clock, its seconds.

        Synchronises before the first timed call and after the last one, never between. A block of several calls,
        which are short ones then, begins with one that is not timed: it wakes threads that went to sleep and
        fills caches that others emptied, which would otherwise be shared out among the calls of the block.
        """
        ...

    def synchronize(self) -> None:
        """Wait until everything that was queued has run."""
        ...

    def used_bytes(self) -> int:
        """Return bytes held now."""
        ...

    def reset_peak(self) -> None:
        """Forget the high-water mark."""
        ...

    def peak_bytes(self) -> int:
        """Return the most bytes held since `reset_peak`."""
        ...

    def reserved_bytes(self) -> int | None:
        """Return the most bytes taken from the device since `reset_peak`; None where nothing is kept back."""
        ...

    def trim(self) -> None:
        """Give memory that was freed back, and do so at once from now on, so that what is held is what is in use."""
        ...

    def keep(self) -> None:
        """Keep memory that was freed, as far as it is kept by chance otherwise."""
        ...

    def available_bytes(self) -> int:
        """Return bytes that could still be taken without harming anyone."""
        ...


class CpuDevice:
    """The CPU: the kernel's own high-water mark of resident memory."""

    name = "cpu"
    least_warm_up_s = 0.5

    def __init__(self) -> None:
        self._can_reset = _reset_high_water_mark()
        self._libc = _libc_with_mallopt()
        self.memory_method = (
            "high-water mark of resident memory, reset before the call"
            if self._can_reset
            else "maximum resident size of a fresh process (this system cannot reset the high-water mark)"
        )
        if self._libc is None:
            self.memory_method += "; freed blocks that the C library keeps are counted"

    def now(self) -> float:
        return now()

    def synchronize(self) -> None:
        """Do nothing: a call on the CPU has run when it returns."""

    def time_block(self, call: Callable[[], None], calls: int) -> tuple[float, None]:
        with quiet():
            if calls > 1:
                call()
            start = self.now()
            for _ in range(calls):
                call()
            return self.now() - start, None

    def used_bytes(self) -> int:
        return _status_bytes("VmRSS") if self._can_reset else self.peak_bytes()

    def reset_peak(self) -> None:
        if self._can_reset:
            _reset_high_water_mark()

    def peak_bytes(self) -> int:
        if self._can_reset:
            return _status_bytes("VmHWM")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def reserved_bytes(self) -> None:
        """The C library does not say what it keeps."""

    def trim(self) -> None:
        """Make the C library map every large block apart.

        By default glibc keeps freed blocks of up to 32 MiB, depending on what was freed before, and its resident
        memory is up to twice what is in use, unevenly from one length to the next.
        """
        if self._libc is not None:
            self._libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_APART)
            self._libc.malloc_trim(0)

    def keep(self) -> None:
        """Make the C library keep freed blocks of up to 32 MiB, and map larger ones apart as it always does.

        By default it gives such blocks back when they happen to stand at the end of its heap: one and the same call
        met between 1,000 and 78,000 page faults, a tenth of its time.
        """
        if self._libc is not None:
            self._libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
            self._libc.mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)

    def available_bytes(self) -> int:
        return available_memory()


class CudaDevice:
    """A CUDA device: events beside the host's clock, and the caching allocator's peak."""

    memory_method = "peak of the caching allocator (allocated), reset before the call"
    least_warm_up_s = 1.0

    def __init__(self, name: str) -> None:
        import torch

        if not torch.cuda.is_available():
            raise InputError(f"device {name!r} was asked for, and this PyTorch finds no CUDA device")
        self._cuda = torch.cuda
        # "cuda" without a number is the first one; PyTorch's set_device does not take it that way.
        self._device = torch.device("cuda", torch.device(name).index or 0)
        if self._device.index >= torch.cuda.device_count():
            raise InputError(f"device {name!r} was asked for, and there are {torch.cuda.device_count()}")
        self.name = name
        torch.cuda.set_device(self._device)

    def now(self) -> float:
        return now()

    def synchronize(self) -> None:
        self._cuda.synchronize(self._device)

    def time_block(self, call: Callable[[], None], calls: int) -> tuple[float, float]:
        begin = self._cuda.Event(enable_timing=True)
        end = self._cuda.Event(enable_timing=True)
        with quiet():
            if calls > 1:
                call()
            self.synchronize()
            start = self.now()
            begin.record()
            for _ in range(calls):
                call()
            end.record()
            self.synchronize()
            host = self.now() - start
        return host, begin.elapsed_time(end) / 1e3

    def used_bytes(self) -> int:
        return self._cuda.memory_allocated(self._device)

    def reset_peak(self) -> None:
        self.synchronize()
        self._cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        self.synchronize()
        return self._cuda.max_memory_allocated(self._device)

    def reserved_bytes(self) -> int:
        return self._cuda.max_memory_reserved(self._device)

    def trim(self) -> None:
        self._cuda.empty_cache()

    def keep(self) -> None:
        """Do nothing: the caching allocator keeps all."""

    def available_bytes(self) -> int:
        return self._cuda.mem_get_info(self._device)[0]


class FakeDevice:
    """A device with a scripted clock, for tests: no time passes and nothing is allocated.

    Args:
        durations: Seconds that successive calls take.
        peaks: Bytes that successive calls of `peak_bytes` return.
        available: Bytes that `available_bytes` returns.
    """

    name = "fake"
    memory_method = "scripted"
    least_warm_up_s = 0.5

    def __init__(self, durations: Iterable[float] = (), peaks: Iterable[int] = (), available: int = 2**40) -> None:
        self._durations = iter(durations)
        self._peaks = iter(peaks)
        self._clock = 0.0
        self._available = available
        self.synchronizations: list[int] = []
        self.calls = 0

    def now(self) -> float:
        return self._clock

    def synchronize(self) -> None:
        self.synchronizations.append(self.calls)

    def time_block(self, call: Callable[[], None], calls: int) -> tuple[float, float]:
        self.synchronize()
        start = self._clock
        for _ in range(calls):
            call()
            self.calls += 1
            self._clock += next(self._durations)
        self.synchronize()
        return self._clock - start, self._clock - start

    def used_bytes(self) -> int:
        return 0

    def reset_peak(self) -> None:
        """Do nothing: peaks are scripted."""

    def peak_bytes(self) -> int:
        return next(self._peaks)

    def reserved_bytes(self) -> None:
        """Nothing is reserved."""

    def trim(self) -> None:
        """Do nothing: nothing is kept."""

    def keep(self) -> None:
        """Do nothing: nothing is allocated."""

    def available_bytes(self) -> int:
        return self._available


def open_device(name: str) -> Device:
    """Return the device of a workload.

    Raises:
        InputError: If it is not there.
    """
    return CpuDevice() if name == "cpu" else CudaDevice(name)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {field}")


def _reset_high_water_mark() -> bool:
    """Set VmHWM back to the present resident size; False where the system has no such thing."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _libc_with_mallopt() -> ctypes.CDLL | None:
    """Return the C library where its allocator can be told what to keep (glibc)."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def available_memory() -> int:
    """Return bytes of main memory that could be taken without swapping, container limits included."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        found.append(max(0, int(text) - int(used.read_text())))
    return min(found) if found else total_memory()


def total_memory() -> int:
    """Return bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
