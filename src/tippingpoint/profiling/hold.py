"""A place on this machine, held by this process for as long as it lives on it: a GPU and its socket, or cores.

A process that shares its machine with others of its kind must not compute wherever the system puts it: two of them
on one socket would spoil each other's numbers. It picks a socket that nobody measures on, and stays there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from tippingpoint.errors import InputError
from tippingpoint.profiling.environment import HELD_VARIABLE
from tippingpoint.profiling.exclusive import BusyError, exclusively
from tippingpoint.profiling.hardware import cores_by_socket
from tippingpoint.profiling.sensors import gpu_cores, gpu_number
from tippingpoint.workload import Place

# Any of several sockets may become free, and a lock is waited for one at a time.
_LOOK_AGAIN_S = 1.0


@contextmanager
def hold(place: Place) -> Iterator[str]:
    """Hold a place of this machine; waits until one is free.

    The process and what it starts stay on the cores that it yields; environments do not say which cores these are,
    so that what was measured on one socket may go on on the next.

    Args:
        place: What to hold.

    Yields:
        The device in words, such as "cuda:3" or "cores 0-7".

    Raises:
        InputError: If no socket of this machine has so many cores.
    """
    assert place.cores is not None, "a place knows its cores"
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    held = os.environ.get(HELD_VARIABLE)
    os.environ[HELD_VARIABLE] = "1"
    with ExitStack() as stack:
        try:
            if place.device == "cpu":
                cores = _hold_cores(place.cores, stack)
                yield f"cores {_ranges(cores)}" if cores else "its cores"
            else:
                _stay_on(gpu_cores("cuda"))
                stack.enter_context(exclusively("cuda", share_socket=place.share_socket))
                yield f"cuda:{gpu_number('cuda')}"
        finally:
            if held is None:
                del os.environ[HELD_VARIABLE]
            if before is not None:
                os.sched_setaffinity(0, before)


def _hold_cores(count: int, stack: ExitStack) -> tuple[int, ...]:
    """Hold the first cores of a socket that is free, or of the first one to become free; none where none can be."""
    if not hasattr(os, "sched_setaffinity"):
        stack.enter_context(exclusively("cpu"))
        return ()
    large = [cores[:count] for cores in cores_by_socket() if len(cores) >= count]
    if not large:
        most = max(map(len, cores_by_socket()))
        raise InputError(f"the study asks for {count} CPU cores of one socket, and this machine has {most}")
    while True:
        for cores in large:
            with suppress(BusyError):
                stack.enter_context(exclusively("cpu", cores, wait=False))
                return _stay_on(cores)
        time.sleep(_LOOK_AGAIN_S)


def _stay_on(cores: tuple[int, ...]) -> tuple[int, ...]:
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    return cores


def _ranges(cores: tuple[int, ...]) -> str:
    """Return numbers as the system writes them: 0-3,8."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][-1] + 1:
            parts[-1].append(core)
        else:
            parts.append([core])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
