"""What could disturb a measurement on this machine, and what to do about it."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tippingpoint.device_profiles import DeviceProfile
from tippingpoint.machine import Environment, Peaks
from tippingpoint.profiling.device import available_memory, now, quiet
from tippingpoint.profiling.exclusive import exclusively
from tippingpoint.profiling.hardware import physical_cores, usable_cores
from tippingpoint.profiling.process import WorkerProcess
from tippingpoint.profiling.sensors import open_gpu
from tippingpoint.units import format_bytes, format_percent, format_seconds

_BLOCKS = 60
_BLOCK_S = 0.02
_UNKNOWN = "the system does not say"
# A dtype this many times slower than float32 is emulated and not meant to be used.
_MUCH_SLOWER = 4
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something seen: level "ok" or "warning", and for a warning what to do."""

    level: str
    what: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Examination:
    """Facts about machine and versions, and findings; `peaks` by dtype."""

    facts: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    environment: Environment
    peaks: dict[str, Peaks]


def examine(
    device: str = "cpu", threads: int | None = None, *, progress: Callable[[str], None] | None = None
) -> Examination:
    """Look at the machine as it is now, when no measurement runs on it.

    Args:
        device: Where measurements are to run.
        threads: CPU threads; all usable cores by default.
        progress: Called with one line if a measurement is waited for.

    Raises:
        InputError: If the device is not there.
    """
    with exclusively(device, progress=progress):
        begin = now()
        with WorkerProcess(device, threads or usable_cores()) as worker:
            environment = worker.environment
            start_s = now() - begin
            memory_method, free = worker.ask("memory_facts")
            energy = worker.ask("energy_source")
            uuid = worker.ask("device_uuid")
            peaks = _peaks(worker)
        noise = _noise()
    facts = (
        ("CPU", f"{environment.cpu_model}, {environment.cores} usable cores, {environment.cpu_capability}"),
        ("caches", environment.caches or _UNKNOWN),
        ("governor", environment.governor or _UNKNOWN),
        ("virtualization", environment.virtualization or "none that shows"),
        ("memory", f"{format_bytes(environment.memory_bytes)}, {format_bytes(available_memory())} free"),
        (
            "device",
            f"{environment.device_name} {environment.driver}".strip() + f", {format_bytes(free)} free",
        ),
        ("threads", str(environment.threads)),
        *((f"best in {dtype}", f"{peak}") for dtype, peak in peaks.items()),
        ("energy", energy),
        ("system", environment.platform),
        ("Python", environment.python),
        ("PyTorch", environment.torch),
        ("built with", environment.build),
        ("Transformers", environment.transformers),
        ("tippingpoint", environment.tippingpoint),
        ("peak memory by", memory_method),
        ("measuring process", f"ready in {format_seconds(start_s)}"),
        ("fingerprint", environment.fingerprint),
    )
    checks = (
        _load(),
        noise,
        _steal(),
        _governor(environment),
        _quota(),
        _threads(environment.threads, physical_cores()),
        _affinity(environment),
        _variables(),
        _sensors(device, uuid),
        _swap(),
        _disk(),
        _memory(),
    )
    return Examination(facts, tuple(finding for finding in checks if finding), environment, peaks)


def measured_profile(examination: Examination) -> DeviceProfile:
    """Return the machine's measured peaks as a profile for predictions on other machines."""
    environment = examination.environment
    gpu = environment.device_memory_bytes > 0
    return DeviceProfile(
        name=environment.device_name if gpu else f"{environment.cpu_model}, {environment.threads} threads",
        source=f"tippingpoint {environment.tippingpoint} doctor, torch {environment.torch}",
        kind="measured",
        flops_per_s={dtype: peak.flops_per_s for dtype, peak in examination.peaks.items()},
        bytes_per_s=max(peak.bytes_per_s for peak in examination.peaks.values()),
        memory_bytes=environment.device_memory_bytes or environment.memory_bytes,
        note="the fastest matrix product and copy that PyTorch was seen to do",
    )


def _peaks(worker: WorkerProcess) -> dict[str, Peaks]:
    """Return how fast the machine is; in bfloat16 too, unless it is so slow in it that nobody would choose it."""
    peaks = {"float32": worker.ask("peaks", "float32")}
    bfloat16 = worker.ask("peaks", "bfloat16")
    if bfloat16.flops_per_s >= peaks["float32"].flops_per_s / _MUCH_SLOWER:
        peaks["bfloat16"] = bfloat16
    return peaks


def _load() -> Finding:
    load = os.getloadavg()[0]
    share = load / usable_cores()
    text = f"load average {load:.2f} on {usable_cores()} cores"
    if share > 0.25:
        return Finding("warning", text, "something else is computing: stop it, or wait, before measuring")
    return Finding("ok", text)


def _noise() -> Finding:
    """Time a small matrix product again and again: its spread is the least noise to expect."""
    matrix = np.ones((128, 128), dtype=np.float32)
    begin = now()
    np.dot(matrix, matrix)
    calls = max(1, int(_BLOCK_S / max(now() - begin, 1e-6)))
    blocks = []
    with quiet():
        for _ in range(_BLOCKS):
            begin = now()
            for _ in range(calls):
                np.dot(matrix, matrix)
            blocks.append(now() - begin)
    low, _, high = statistics.quantiles(blocks, n=4)
    spread = (high - low) / statistics.median(blocks)
    text = f"a small matrix product varies by {format_percent(spread)} (interquartile range over median)"
    if spread > 0.05:
        return Finding(
            "warning",
            text,
            "the machine is noisy: give measurements a larger --budget, and expect wide intervals",
        )
    return Finding("ok", text)


def _cpu_times() -> list[int] | None:
    path = Path("/proc/stat")
    if not path.exists():
        return None
    return [int(value) for value in path.read_text().splitlines()[0].split()[1:]]


def _steal() -> Finding | None:
    times = _cpu_times()
    if times is None or len(times) < 8:
        return None
    share = times[7] / max(1, sum(times[:8]))
    if share > 0.01:
        return Finding(
            "warning",
            f"{format_percent(share)} of CPU time since boot was taken by other virtual machines",
            "this machine is shared: measure at a quiet hour, or on dedicated hardware",
        )
    return Finding("ok", "no CPU time is taken by other virtual machines")


def _governor(environment: Environment) -> Finding | None:
    if not environment.governor:
        return None
    text = f"the CPU frequency governor is '{environment.governor}'"
    if environment.governor != "performance":
        return Finding(
            "warning",
            text,
            "clocks change while measuring: `sudo cpupower frequency-set -g performance`",
        )
    return Finding("ok", text)


def _threads(threads: int, physical: int) -> Finding | None:
    if threads <= physical:
        return None
    return Finding(
        "warning",
        f"{threads} threads are to compute on {physical} physical cores",
        f"threads that share a core wait for each other: use --threads {physical}",
    )


def _affinity(environment: Environment) -> Finding | None:
    if not environment.affinity:
        return None
    cores = ", ".join(map(str, environment.affinity))
    return Finding(
        "warning",
        f"processes may run on some of the cores only: {cores}",
        "results hold for these cores; measure both sides of a comparison on the same ones",
    )


def _sensors(device: str, uuid: str) -> Finding | None:
    if device == "cpu":
        return None
    gpu = open_gpu(device, uuid)
    if isinstance(gpu, str) or gpu.clock_hz() is None:
        reason = gpu if isinstance(gpu, str) else "this GPU does not tell"
        return Finding(
            "warning",
            f"the GPU's clock cannot be read: {reason}",
            "a GPU that slows down will not be noticed: pip install 'tippingpoint[cuda]' (nvidia-ml-py)",
        )
    return Finding("ok", "the GPU's clock, temperature and slowdowns are recorded with every block")


def _quota() -> Finding | None:
    path = Path("/sys/fs/cgroup/cpu.max")
    if not path.exists():
        return None
    quota, period = path.read_text().split()
    if quota != "max" and int(quota) / int(period) < usable_cores():
        return Finding(
            "warning",
            f"this container may use {int(quota) / int(period):.1f} cores of time, and sees {usable_cores()}",
            "it will be throttled in the middle of a call: use --threads with at most that number",
        )
    return None


def _variables() -> Finding | None:
    found = [f"{name}={os.environ[name]}" for name in _THREAD_VARIABLES if name in os.environ]
    if found:
        return Finding(
            "warning",
            f"the environment sets {', '.join(found)}",
            "threads are set with --threads; unset these so that they do not interfere",
        )
    return None


def _swap() -> Finding | None:
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in path.read_text().splitlines()}
    used = fields.get("SwapTotal", 0) - fields.get("SwapFree", 0)
    if used > 2**28:
        return Finding(
            "warning", f"{format_bytes(used)} are swapped out", "close other programs: swapping ruins timings"
        )
    return None


def _disk() -> Finding | None:
    free = shutil.disk_usage(".").free
    if free < 2**28:
        return Finding("warning", f"only {format_bytes(free)} of disk are free here", "make room for the store")
    return None


def _memory() -> Finding | None:
    free = available_memory()
    if free < 2**32:
        return Finding(
            "warning",
            f"only {format_bytes(free)} of memory are free",
            "long inputs will be refused; close other programs",
        )
    return None
