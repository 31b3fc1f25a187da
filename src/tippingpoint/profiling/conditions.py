"""What the machine does while a block is timed: read by the parent just before it and just after it.

begin()   load | throttle counters | CPU time of all, of the worker, of the parent
          ---- the block: the parent sleeps, nothing is read ----
end()     CPU time of all, of the worker, of the parent | throttle counters | clock, temperature

Files are opened once and read again in place. On the CPU both ends together take some hundred microseconds at
most, however many cores there are: clocks and throttle counters are read of a few of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tippingpoint.machine import Conditions
from tippingpoint.profiling.hardware import ROOT, read
from tippingpoint.profiling.sensors import Gpu, open_gpu

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Cores whose clock and throttle counter are read: enough for a mean, and a bound on what reading costs.
_MOST_CORES = 32
# Of /proc/cpuinfo the first cores are enough; the kernel writes no more of it than is asked for.
_MOST_BYTES = 16_384
_PACKAGE_SENSORS = ("coretemp", "k10temp", "zenpower")
_PACKAGE_ZONES = ("x86_pkg_temp", "cpu-thermal", "cpu_thermal")


class Watch:
    """Reads the machine at both ends of a worker's timed blocks.

    Args:
        device_name: Where the worker computes: "cpu", "cuda" or "cuda:N".
        pid: The worker's process.
        uuid: Of the worker's GPU. Without it the GPU is looked up by its number, which CUDA and the driver may
            give in different orders where the GPUs are not alike.
        root: Of the file system that is read.
    """

    def __init__(self, device_name: str, pid: int, *, uuid: str = "", root: Path = ROOT) -> None:
        self._host = _open_host(root)
        self._processes = [_File(root / f"proc/{process}/stat") for process in {pid, os.getpid()}]
        self._on_cpu = device_name == "cpu"
        gpu = None if self._on_cpu else open_gpu(device_name, uuid)
        self._gpu = gpu if isinstance(gpu, Gpu) else None
        self._before: _Reading | None = None

    def begin(self) -> None:
        """Read what a block begins with."""
        self._load = self._host.load()
        self._before = self._read()

    def end(self) -> Conditions:
        """Return what happened since `begin`."""
        before = self._before
        assert before is not None, "begin first"
        after = self._read()
        self._before = None
        return Conditions(
            load=self._load,
            others_s=_seconds(before.others, after.others),
            steal_s=_seconds(before.steal, after.steal),
            cores_s=_seconds(before.every, after.every),
            clock_hz=self._host.clock_hz() if self._on_cpu else self._gpu and self._gpu.clock_hz(),
            temperature_c=self._host.temperature_c() if self._on_cpu else self._gpu and self._gpu.temperature_c(),
            throttled=_throttled(before.throttle, after.throttle) if self._on_cpu else _either(before, after),
        )

    def close(self) -> None:
        """Let go of the worker's files; what belongs to the machine stays open for the next one."""
        for file in self._processes:
            file.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self) -> _Reading:
        busy, steal, every = self._host.ticks()
        own = [_process_ticks(file.read()) for file in self._processes]
        others = None if busy is None or None in own else busy - sum(filter(None, own))
        return _Reading(
            others=others,
            steal=steal,
            every=every,
            throttle=self._host.throttle_counts() if self._on_cpu else (),
            slowed=self._gpu.throttled() if self._gpu else None,
        )


@dataclass(frozen=True, slots=True)
class _Reading:
    """Counters at one end of a block: ticks of other processes, of other machines and of all cores, throttling."""

    others: int | None
    steal: int | None
    every: int | None
    throttle: tuple[int | None, ...]
    slowed: bool | None


class _File:
    """A file that is opened once and read again and again; one that cannot be read is empty."""

    __slots__ = ("_descriptor",)

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._descriptor = -1

    @property
    def is_open(self) -> bool:
        return self._descriptor >= 0

    def read(self) -> bytes:
        if not self.is_open:
            return b""
        try:
            return os.pread(self._descriptor, _MOST_BYTES, 0)
        except OSError:  # the process it tells of has ended, or the core was taken away
            return b""

    def number(self) -> int | None:
        text = self.read().strip()
        return int(text) if text.lstrip(b"-").isdigit() else None

    def close(self) -> None:
        if self.is_open:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


class _Host:
    """The machine's own files."""

    def __init__(self, root: Path) -> None:
        cores = _some(sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"), key=_number_of))
        self._load = _File(root / "proc/loadavg")
        self._stat = _File(root / "proc/stat")
        self._clocks = _those_open(core / "cpufreq/scaling_cur_freq" for core in cores)
        self._cpuinfo = _File(root / "proc/cpuinfo")
        self._temperatures = _those_open(_temperature_paths(root))
        self._throttles = _those_open(_throttle_paths(cores))
        self._quotas = _those_open(_quota_paths(root))

    def load(self) -> float | None:
        """Return the one-minute load average."""
        fields = self._load.read().split()
        return float(fields[0]) if fields else None

    def ticks(self) -> tuple[int | None, int | None, int | None]:
        """Return ticks that all cores worked, ticks that were stolen from them, and all there were."""
        fields = [int(field) for field in self._stat.read().partition(b"\n")[0].split()[1:9]]
        if len(fields) < 7:
            return None, None, None
        user, nice, system, _, _, interrupts, soft_interrupts, *steal = fields
        return user + nice + system + interrupts + soft_interrupts, steal[0] if steal else None, sum(fields)

    def clock_hz(self) -> float | None:
        """Return the mean clock of the cores."""
        kilohertz = [value for file in self._clocks if (value := file.number())]
        if kilohertz:
            return 1e3 * sum(kilohertz) / len(kilohertz)
        megahertz = [float(value) for value in re.findall(rb"^cpu MHz\s*:\s*([\d.]+)\n", self._cpuinfo.read(), re.M)]
        return 1e6 * sum(megahertz) / len(megahertz) if megahertz else None

    def temperature_c(self) -> float | None:
        """Return the temperature of the hottest package in degrees Celsius."""
        thousandths = [value for file in self._temperatures if (value := file.number()) is not None]
        return max(thousandths) / 1e3 if thousandths else None

    def throttle_counts(self) -> tuple[int | None, ...]:
        """Return how often heat or a quota stopped each core and each group so far."""
        quotas = (re.search(rb"^nr_throttled (\d+)", file.read(), re.M) for file in self._quotas)
        return (
            *(file.number() for file in self._throttles),
            *(int(found[1]) if found else None for found in quotas),
        )


@cache
def _open_host(root: Path) -> _Host:
    """Return the machine's files, open for as long as the process lives and shared by every watch."""
    return _Host(root)


def _those_open(paths: Iterable[Path]) -> list[_File]:
    return [file for file in map(_File, paths) if file.is_open]


def _some(cores: list[Path]) -> list[Path]:
    """Return all cores, or as many as may be read, evenly spread."""
    step = max(1, -(-len(cores) // _MOST_CORES))
    return cores[::step]


def _number_of(path: Path) -> int:
    return int(re.sub(r"\D", "", path.name))


def _temperature_paths(root: Path) -> list[Path]:
    """Return the files with the temperature of the CPU's packages."""
    zones = (root / "sys/class/thermal").glob("thermal_zone*")
    found = [zone / "temp" for zone in zones if read(zone / "type") in _PACKAGE_ZONES]
    if found:
        return found
    monitors = (root / "sys/class/hwmon").glob("hwmon*")
    # The first sensor is the package's; one for each core would cost more to read than the rest together.
    return [monitor / "temp1_input" for monitor in monitors if read(monitor / "name") in _PACKAGE_SENSORS]


def _throttle_paths(cores: list[Path]) -> list[Path]:
    """Return the counters of heat: one for each core, and one for each package of cores."""
    packages = {read(core / "topology/physical_package_id"): core for core in cores}
    return [
        *(core / "thermal_throttle/core_throttle_count" for core in cores),
        *(core / "thermal_throttle/package_throttle_count" for core in packages.values()),
    ]


def _quota_paths(root: Path) -> list[Path]:
    """Return the counters of CPU quotas: those of this process's group and of all groups around it.

    A container sees its own group as the root of the tree.
    """
    top = root / "sys/fs/cgroup"
    found = [top / "cpu.stat", top / "cpu/cpu.stat"]
    unified = re.search(r"^0::/(.+)$", read(root / "proc/self/cgroup"), re.MULTILINE)
    if unified:
        group = Path(unified[1])
        found += [top / part / "cpu.stat" for part in (group, *group.parents) if part != Path()]
    return found


def _process_ticks(text: bytes) -> int | None:
    """Return ticks that a process worked, from /proc/PID/stat; None for one that is gone."""
    # The name of the program stands in parentheses and may hold any character.
    fields = text.rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12]) if len(fields) > 12 else None


def _seconds(before: int | None, after: int | None) -> float | None:
    if before is None or after is None:
        return None
    # The kernel rounds the time of a process otherwise than the time of a core.
    return max(0, after - before) / _TICKS_PER_S


def _throttled(before: tuple[int | None, ...], after: tuple[int | None, ...]) -> bool | None:
    grown = [new > old for old, new in zip(before, after, strict=True) if old is not None and new is not None]
    return any(grown) if grown else None


def _either(before: _Reading, after: _Reading) -> bool | None:
    """Return whether a GPU was slowed at either end; None where neither could be read.

    The driver tells only of now. What slows a GPU lasts longer than a block, so both ends are asked.
    """
    told = [slowed for slowed in (before.slowed, after.slowed) if slowed is not None]
    return any(told) if told else None
