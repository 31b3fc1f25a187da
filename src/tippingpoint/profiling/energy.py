"""Energy of a call from the counters of CPU and GPU, by way of zeus (arXiv:2208.06102).

settle    | read | a second                                | read |   does every counter move?
idle      | read | sleep                                   | read |   power of the machine that waits
calls     | read | synchronise  call call ...  synchronise | read |   again, with more calls, if it was too short

Counters are read at the ends of a window and never inside of it. Without a counter there is no number: power is
not guessed from a data sheet, and not added up from samples.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tippingpoint.errors import TippingPointError
from tippingpoint.measurement import Energy
from tippingpoint.profiling.device import Device
from tippingpoint.profiling.hardware import ROOT, read

WINDOW_S = 5.0
# Before the idle window, until clocks have come down and what reading needed has been started.
SETTLE_S = 1.0
# Calls are planned for a window a little longer than asked for, so that one that runs fast is long enough.
_MARGIN = 1.1
# More than any one GPU with its host takes; a counter that wrapped around unseen shows far more.
_MOST_WATTS = 10_000.0
# The name of our window among zeus's.
_WINDOW = "tippingpoint"


class MeterError(TippingPointError):
    """A counter could not be read, or what it said cannot be; the message says why in part of a sentence."""


class Meter(Protocol):
    """Counters of energy.

    Attributes:
        source: Which ones.
    """

    source: str

    def begin(self) -> None:
        """Read the counters.

        Raises:
            MeterError: If one cannot be read.
        """
        ...

    def end(self) -> float:
        """Return joules since `begin`.

        Raises:
            MeterError: If a counter cannot be read or did not move.
        """
        ...

    def close(self) -> None:
        """End what reading needed."""
        ...


class ZeusMeter:
    """Counters that zeus reads: of the GPU's driver, and of the CPU's packages and memory (RAPL).

    Args:
        monitor: A `ZeusMonitor` of the devices to count.
    """

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        parts = [f"GPU {index}" for index in monitor.gpu_indices]
        parts += [f"CPU package {index}" for index in monitor.cpu_indices]
        if any(monitor.cpus.supports_get_dram_energy_consumption(index) for index in monitor.cpu_indices):
            parts.append("its memory")
        self.source = f"zeus: counters of {', '.join(parts)}"

    def begin(self) -> None:
        """Read the counters."""
        with _reasons():
            # Whoever measures synchronises, so that there is one place that does.
            self._monitor.begin_window(_WINDOW, sync_execution=False)

    def end(self) -> float:
        """Return joules since `begin`, of all counters together."""
        with _reasons():
            seen = self._monitor.end_window(_WINDOW, sync_execution=False)
        counted = [*seen.gpu_energy.values(), *(seen.cpu_energy or {}).values()]
        if not counted or min(counted) <= 0:
            raise MeterError(f"{self.source} did not move")
        return sum(counted) + sum((seen.dram_energy or {}).values())

    def close(self) -> None:
        """End the process that zeus keeps.

        It looks once a second whether a counter of the CPU has wrapped around, and would outlive a worker.
        """
        for child in multiprocessing.active_children():
            child.terminate()
            child.join()


def open_meter(device_name: str) -> Meter | str:
    """Return the counters that cover a device, or the reason why there are none.

    A GPU's own counter must be there, and the CPU's count too where they can be read: the host works for the
    GPU. To be called in a worker, since zeus may start a process; close the meter afterwards.

    Args:
        device_name: "cpu", "cuda" or "cuda:N".
    """
    gpus = [] if device_name == "cpu" else [int(device_name.partition(":")[2] or 0)]
    # A worker's stdout is a log, but this must hold for anyone who calls it.
    with contextlib.redirect_stdout(sys.stderr):
        logging.getLogger("zeus").setLevel(logging.ERROR)
        try:
            monitors, devices = importlib.import_module("zeus.monitor"), importlib.import_module("zeus.device")
        except ImportError as error:
            return f"zeus is not installed (no {error.name}): pip install 'tippingpoint[energy]'"
        try:
            with _reasons():
                _check_gpus(devices, gpus)
                packages = _packages(devices)
                if not gpus and not packages:
                    return "the CPU's counters (RAPL) are not there or may not be read, which mostly takes root"
                return ZeusMeter(monitors.ZeusMonitor(gpu_indices=gpus, cpu_indices=packages))
        except MeterError as error:
            return str(error)


def measure_energy(
    meter: Meter | str,
    device: Device,
    call: Callable[[], None],
    *,
    window_s: float = WINDOW_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Return the energy of a call: gross, with the power of the idle machine beside it.

    Idle is measured first, with everything in memory and nothing running. Windows are long because counters
    move in steps of up to 0.1 s. The meter is closed at the end.

    Args:
        meter: What `open_meter` returned; a reason becomes a record without a number.
        device: Where the call runs.
        call: What to run, warmed up.
        window_s: Seconds of each of the two windows, at least.
        sleep: Waits for a number of seconds.
    """
    if isinstance(meter, str):
        return Energy(joules_per_call=None, source=f"no counter: {meter}")
    try:
        return _measure(meter, device, call, window_s, sleep)
    except MeterError as error:
        return Energy(joules_per_call=None, source=f"no counter: {error}")
    finally:
        meter.close()


def _measure(
    meter: Meter, device: Device, call: Callable[[], None], window_s: float, sleep: Callable[[float], None]
) -> Energy:
    device.synchronize()
    _window(meter, device, lambda: sleep(SETTLE_S))
    idle_joules, idle_s = _window(meter, device, lambda: sleep(window_s))
    calls = _calls(window_s, device.time_block(call, 1)[0])
    while True:
        joules, seconds = _window(meter, device, partial(device.time_block, call, calls))
        if seconds >= window_s:
            break
        calls = max(calls + 1, _calls(window_s, seconds / calls))
    return Energy(
        joules_per_call=joules / calls,
        source=meter.source,
        idle_watts=idle_joules / idle_s,
        window_s=seconds,
        calls=calls,
    )


def _window(meter: Meter, device: Device, run: Callable[[], object]) -> tuple[float, float]:
    """Run something between two readings of the counters; return joules and seconds."""
    meter.begin()
    start = device.now()
    run()
    seconds = device.now() - start
    joules = meter.end()
    if joules > _MOST_WATTS * seconds:
        raise MeterError(f"{meter.source} told {joules:.0f} J in {seconds:.1f} s, which cannot be")
    return joules, seconds


def _calls(window_s: float, per_call_s: float) -> int:
    return max(1, math.ceil(_MARGIN * window_s / max(per_call_s, 1e-6)))


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turn whatever zeus raises into a reason."""
    try:
        yield
    except MeterError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise MeterError(f"zeus cannot read a counter ({type(error).__name__}: {said})") from error


def _check_gpus(devices: Any, gpus: Sequence[int]) -> None:
    """Refuse GPUs without a counter (older than Volta), for which zeus would add up samples of power."""
    for index in gpus:
        if not devices.get_gpus().supports_get_total_energy_consumption(index):
            raise MeterError(f"GPU {index} has no counter of energy")


def _packages(devices: Any, root: Path = ROOT) -> list[int]:
    """Return the CPU packages whose counters can be read.

    Laptops have one for the whole platform beside them, which holds the packages and would count them twice.
    """
    try:
        count = len(devices.get_cpus())
    except Exception:  # noqa: BLE001 (no RAPL, no permission, no daemon: then there is none)
        return []
    names = [read(root / f"sys/class/powercap/intel-rapl:{index}/name") for index in range(count)]
    return [index for index, name in enumerate(names) if name != "psys"]
