"""What a process does about those it has started, and about what those leave behind.

On Linux a process may adopt: whatever its children start becomes its own child once its parent has gone, also what
has left its session. Nothing gets away from a process that adopts, short of killing it. Other systems know only
process groups; what leaves its group there is lost sight of.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_ON_LINUX = sys.platform.startswith("linux")


def adopt_orphans() -> None:
    """Become the parent of what children leave behind."""
    if _ON_LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> list[int]:
    """Return the children of this process, ended ones that nobody has waited for included; empty where none can tell.

    It may miss one that is just being started: whoever ends them all asks until there is none to wait for.
    """
    try:
        return [int(pid) for pid in Path("/proc/thread-self/children").read_bytes().split()]
    except OSError:  # not Linux, or a kernel built without it
        found = (path.parent for path in Path("/proc").glob("[0-9]*/stat"))
        return [int(path.name) for path in found if _parent_of(path) == os.getpid()]


def _parent_of(process: Path) -> int | None:
    try:
        # The name of the program stands in parentheses and may hold any character.
        return int((process / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to children that nobody has waited for yet, so that no number has gone to another process."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


class Bell:
    """A descriptor that becomes readable when a child ends, or somebody asks this process to end (SIGTERM)."""

    _SIGNALS = (signal.SIGCHLD, signal.SIGTERM)

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        for number in self._SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._reading

    def silence(self) -> bool:
        """Let it be ready for the next ring; return whether this process was asked to end."""
        try:
            return signal.SIGTERM in os.read(self._reading, 4096)
        except BlockingIOError:
            return False

    def take_down(self) -> None:
        """Leave signals as they were: in a process that was forked from the one that hung it up."""
        signal.set_wakeup_fd(-1)
        for number in self._SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.close(self._reading)
        os.close(self._writing)
