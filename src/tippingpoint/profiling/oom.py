"""Whether the kernel has killed a process for want of memory, as far as it counts.

It counts for each group of processes (a container, a service, a job), and for the whole host. The host's count says
little: somebody else's process may have been meant. So the worker's own group is asked where there is one.
"""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/")


class OomKills:
    """What the kernel counts where a process lives, from now on.

    Args:
        pid: Of the process.
        root: Of the file system.
    """

    def __init__(self, pid: int, root: Path = _ROOT) -> None:
        places = (*_own_group(pid, root), root / "proc/vmstat")
        self._path = next((path for path in places if _count(path) is not None), None)
        self._before = self._now()

    def any_since(self) -> bool:
        """Whether one was killed since; False where nothing is counted."""
        return self._now() > self._before

    def _now(self) -> int:
        return (self._path and _count(self._path)) or 0


def _own_group(pid: int, root: Path) -> list[Path]:
    """Return the counters of the group of a process, of the second version of groups or of the first."""
    top, found = root / "sys/fs/cgroup", []
    for line in _lines(root / f"proc/{pid}/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        # In a container without a view of the host's groups, the path is the host's and the files are at the top.
        if number == "0" and not controllers:
            found += [top / group.lstrip("/") / "memory.events", top / "memory.events"]
        elif "memory" in controllers.split(","):
            found += [top / "memory" / group.lstrip("/") / "memory.oom_control", top / "memory/memory.oom_control"]
    return found


def _count(path: Path) -> int | None:
    """Return how many were killed; None where that does not stand."""
    fields = [line.split() for line in _lines(path)]
    counts = [int(field[1]) for field in fields if len(field) == 2 and field[0] == "oom_kill" and field[1].isdigit()]
    return sum(counts) if counts else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # not there, or not for us
        return []
