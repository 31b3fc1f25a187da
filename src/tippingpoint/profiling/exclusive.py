"""Exclusive use of this machine: two measurements never share a GPU or a CPU socket, whoever started them.

There is a file for each GPU and each socket, in one folder for all users, and who measures holds an advisory lock
on it. The kernel lets go of a lock when its process ends, however it ends. Beside each file lies its queue:

    to lock     lock the queue | lock the socket | let go of the queue
    to let go   let go of the socket

Who waits for the socket holds the queue meanwhile, so that whoever has just let go stands behind, and two studies
take turns; and so that sockets which are shared all the time come free for a measurement that wants one alone.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from tippingpoint.errors import InputError, TippingPointError
from tippingpoint.profiling.hardware import sockets
from tippingpoint.profiling.sensors import gpu_number, gpu_uuid

logger = logging.getLogger(__name__)

# Where locks lie, if not in the folder for temporary files.
FOLDER_VARIABLE = "TIPPINGPOINT_LOCKS"
_NEVER_FOLLOWED = os.O_NOFOLLOW | os.O_CLOEXEC
# What each thread holds.
_held = threading.local()


class _LockFile:
    """An open file to lock; closing it lets go, and closing it twice is harmless."""

    # A process forked from this one has a copy of each, and the lock would stay as long as one of them is open.
    _all: ClassVar[set[_LockFile]] = set()

    def __init__(self, path: Path) -> None:
        self.descriptor = _open(path)
        self._all.add(self)

    def close(self) -> None:
        if self in self._all:
            self._all.remove(self)
            os.close(self.descriptor)

    @classmethod
    def after_fork(cls) -> None:
        """Let a process forked from this one hold nothing: it takes its turn like any other."""
        for each in list(cls._all):
            each.close()
        _held.__dict__.clear()


os.register_at_fork(after_in_child=_LockFile.after_fork)


class BusyError(TippingPointError):
    """Another process measures there."""


@contextmanager
def exclusively(
    device: str,
    cores: Iterable[int] | None = None,
    *,
    share_socket: bool = False,
    wait: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Have a device, and the CPU sockets of some cores, to oneself; wait until they are free.

    The outermost call of a thread decides: within it a call for what is held already takes and waits for nothing,
    and one for more than that is refused, since two processes that each hold a part would wait for ever.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        cores: That are computed on; None means all this process may use.
        share_socket: Whether other measurements on GPUs may share the sockets meanwhile; for a GPU only. Measurements
            on the CPU have a socket alone in any case.
        wait: Whether to wait for what is not free.
        progress: Gets one line if something is not free.

    Raises:
        BusyError: If something is not free, and is not to be waited for.
        InputError: If a call around this one does not hold all of what is asked for.
        TippingPointError: If there is no usable folder for locks.
    """
    shared = share_socket and device != "cpu"
    names = _names(device, cores)
    outer: frozenset[str] | None = getattr(_held, "names", None)
    if outer is not None:
        if missing := names - outer:
            raise InputError(
                f"this measurement needs {_spoken(missing)}, and the one around it has only {_spoken(outer)} to "
                f"itself; take all of it in the outer call of exclusively"
            )
        yield
        return
    with ExitStack() as stack:
        say = _once(progress or (lambda line: logger.info("%s", line))) if wait else _refuse
        folder = _folder()
        # Everybody locks in the same order (GPUs first, as sockets serve many), so that none waits in a circle.
        for name in sorted(names):
            how = fcntl.LOCK_SH if shared and name.startswith("socket") else fcntl.LOCK_EX
            with _locked(folder / f"{name}.queue", fcntl.LOCK_EX, name, say):
                stack.enter_context(_locked(folder / name, how, name, say))
        _held.names = names
        stack.callback(_held.__dict__.pop, "names", None)
        yield


def _names(device: str, cores: Iterable[int] | None) -> frozenset[str]:
    """Return the names of the locks for a device and for the sockets that cores lie on."""
    names = {f"socket-{socket}" for socket in sockets(cores)}
    if device != "cpu":
        # Where the driver tells no UUID, the number by which it knows the GPU: a process may see only some of them.
        which = gpu_uuid(device) or gpu_number(device)
        names.add(f"gpu-{re.sub(r'[^A-Za-z0-9-]', '_', which)}")
    return frozenset(names)


def _spoken(names: Iterable[str]) -> str:
    return ", ".join(name.replace("gpu-", "GPU ").replace("socket-", "socket ") for name in sorted(names))


def _refuse(name: str) -> None:
    raise BusyError(f"another measurement is running on this machine ({_spoken([name])})")


def _once(progress: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that says that something is not free, and nothing when called again."""
    said: list[str] = []

    def say(name: str) -> None:
        if not said:
            said.append(name)
            progress(f"waiting: another measurement is running on this machine ({_spoken([name])})")

    return say


@contextmanager
def _locked(path: Path, how: int, name: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock on a file, created if need be; `waiting` is told the name if it is not free."""
    while True:
        file = _LockFile(path)
        try:
            try:
                fcntl.flock(file.descriptor, how | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting(name)
                fcntl.flock(file.descriptor, how)
            if not _is_at(path, file.descriptor):
                continue  # somebody tidied up meanwhile; others will lock the new file
            # What tidies up by age leaves alone what is used.
            with suppress(OSError):
                os.utime(file.descriptor)
            yield
            return
        finally:
            file.close()


def _folder() -> Path:
    """Return the folder of locks, created if need be; everybody may create files there, and remove their own."""
    folder = Path(os.environ.get(FOLDER_VARIABLE) or Path(tempfile.gettempdir(), "tippingpoint-locks"))
    try:
        with suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(0o1777)
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise NotADirectoryError("it is a link or a file")
    except OSError as error:
        raise _unusable(folder, error) from error
    return folder


def _open(path: Path) -> int:
    """Return a descriptor of a plain file, never through a link."""
    try:
        while True:
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | _NEVER_FOLLOWED)
                break
            # Created apart from opening: in a folder for all, Linux lets nobody "create" what another one owns.
            with suppress(FileExistsError):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NEVER_FOLLOWED, 0o666)
                os.fchmod(descriptor, 0o666)
                break
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileExistsError("it is not a plain file")
    except OSError as error:
        raise _unusable(path, error) from error
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _unusable(path: Path, error: OSError) -> TippingPointError:
    return TippingPointError(
        f"measurements on this machine take turns by locks, and {str(path)!r} cannot be used for that: {error}; set "
        f"{FOLDER_VARIABLE} to a folder that everybody who measures here may write to"
    )
