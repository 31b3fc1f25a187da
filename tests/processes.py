"""What Linux knows of processes, for tests that look whether any is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


def status(pid: int) -> dict[str, str]:
    """Fields of /proc/PID/status; empty once the process is gone or only its end is left to be read."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {} if fields["State"].startswith(("Z", "X")) else fields


def is_alive(pid: int) -> bool:
    return bool(status(pid))


def children_of(pid: int) -> list[int]:
    """Living children of a process."""
    every = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [child for child in every if status(child).get("PPid") == str(pid)]


def descendants_of(pid: int) -> list[int]:
    found = children_of(pid)
    return found + [deeper for child in found for deeper in descendants_of(child)]


def workers_of(zygote: int) -> list[int]:
    """Living workers of the process they are forked from; each has a keeper in between."""
    return sorted(worker for keeper in children_of(zygote) for worker in children_of(keeper))


def wait_until(condition: Callable[[], bool], *, seconds: float = 10.0) -> bool:
    """Poll; return whether the condition came true in time."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        time.sleep(0.02)
    return condition()
