"""The parent's side of a worker: start it, ask it, notice how it died."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tippingpoint.errors import InputError, TippingPointError
from tippingpoint.measurement import Environment
from tippingpoint.profiling.worker import Problem
from tippingpoint.profiling.zygote import PID

_LOG_LINES = 5


class WorkerError(TippingPointError):
    """A worker could not answer: it becomes a `Failure` row of the given kind."""

    def __init__(self, kind: str, message: str, trace: str = "", refused: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.trace = trace
        self.refused = refused


class Zygote:
    """The running zygote; one for each parent process, started when first needed."""

    _current: Zygote | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        # NumPy's OpenBLAS would start its threads on import; workers use PyTorch's own pool.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        environment.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            # -P: a numpy.py that lies in the folder someone measures in is not imported.
            [sys.executable, "-P", "-m", "tippingpoint.profiling.zygote", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            # Ctrl-C is the parent's to handle; it hangs up and the zygote ends its workers.
            start_new_session=True,
        )
        theirs.close()
        self._control = ours
        if ours.recv(1) != b"r":
            self.process.wait()
            raise TippingPointError(f"the measuring process could not start: {_last_lines(self._log)}")

    @classmethod
    def get(cls) -> Zygote:
        """Return the running zygote, starting one if there is none."""
        with cls._lock:
            if cls._current is None or cls._current.process.poll() is not None:
                if os.name != "posix":
                    raise TippingPointError(f"measuring needs Linux or macOS, this is {sys.platform}")
                cls._current = cls()
                atexit.register(cls._current.close)
            return cls._current

    def fork(self, connection: socket.socket, log: Any) -> int:
        """Start a worker on a connected socket; return its process id."""
        with self._lock, _ended_explained():
            socket.send_fds(self._control, [b"f"], [connection.fileno(), log.fileno()])
            return self._answer()

    def reap(self, pid: int, *, kill: bool) -> int:
        """Wait for a worker's end, killing it first if asked; return its wait status."""
        with self._lock, _ended_explained():
            self._control.sendall((b"k" if kill else b"w") + PID.pack(pid))
            return self._answer()

    def _answer(self) -> int:
        data = b""
        while len(data) < PID.size:
            part = self._control.recv(PID.size - len(data))
            if not part:
                raise ConnectionError("the zygote hung up")
            data += part
        return PID.unpack(data)[0]

    def close(self) -> None:
        """Hang up; the zygote kills whatever is still alive and ends."""
        self._control.close()
        self.process.wait()
        self._log.close()


@contextmanager
def _ended_explained() -> Iterator[None]:
    """Turn a connection that breaks because the zygote is gone into the failure of a worker."""
    try:
        yield
    except OSError as error:
        raise WorkerError("crashed", "the measuring process has ended unexpectedly") from error


class WorkerProcess:
    """A worker in a fresh process. Use as a context manager, or call `close`.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        threads: CPU threads of the worker.
        affinity: Cores to pin it to; None leaves it to the system.
        timeout_s: Seconds after which an answer is no longer waited for.

    Raises:
        InputError: If the device is not there, or a core is not.
    """

    def __init__(
        self,
        device: str,
        threads: int,
        *,
        affinity: tuple[int, ...] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._zygote = Zygote.get()
        self._timeout_s = timeout_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._oom_kills = _count_oom_kills()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self.pid = self._zygote.fork(theirs, self._log)
        except WorkerError:
            ours.close()
            self._log.close()
            raise
        self._connection = Connection(ours.detach())
        self._alive = True
        try:
            self._connection.send((device, threads, affinity))
            self.environment: Environment = self._receive("starting")
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return what the worker's method returns; sleeps until it does.

        Raises:
            InputError: If the workload is not legal.
            WorkerError: If it raised, died or took too long.
        """
        try:
            self._connection.send((method, arguments))
        except OSError:
            raise self._death() from None
        return self._receive(method.replace("_", " "))

    def _receive(self, doing: str) -> Any:
        if not self._connection.poll(self._timeout_s):
            self._end(kill=True)
            raise WorkerError("timeout", f"'{doing}' took longer than {self._timeout_s:.0f} s and was stopped")
        try:
            good, result = self._connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if good:
            return result
        assert isinstance(result, Problem)
        if result.kind == "input":
            raise InputError(result.message)
        raise WorkerError(result.kind, result.message, result.trace, result.refused)

    def _death(self) -> WorkerError:
        """Find out how the worker died."""
        status = self._end(kill=False)
        said = _last_lines(self._log)
        said = f"; it last said: {said}" if said else ""
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGKILL and _count_oom_kills() > self._oom_kills:
                return WorkerError("out_of_memory", f"the system killed the process for want of memory{said}")
            return WorkerError("crashed", f"the process was ended by {signal.Signals(number).name}{said}")
        return WorkerError("crashed", f"the process left with status {os.WEXITSTATUS(status)}{said}")

    def _end(self, *, kill: bool) -> int:
        self._alive = False
        return self._zygote.reap(self.pid, kill=kill)

    def close(self) -> None:
        """End the worker at once; nothing in it is worth keeping. Closing twice is harmless."""
        if self._log.closed:
            return
        self._connection.close()
        if self._alive:
            # Without the zygote there is nobody to ask, and nothing to end: its workers went with it.
            with suppress(WorkerError):
                self._end(kill=True)
        self._log.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _count_oom_kills() -> int:
    """Return how often the kernel killed a process for want of memory; 0 where it does not say."""
    total = 0
    for path in (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events")):
        if path.exists():
            fields = (line.split() for line in path.read_text().splitlines())
            total += sum(int(value) for name, value in fields if name == "oom_kill")
    return total


def _last_lines(log: Any) -> str:
    """Return the last words of a log, on one line."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - 4096))
    lines = log.read().decode(errors="replace").splitlines()
    return " | ".join([line.strip()[-200:] for line in lines if line.strip()][-_LOG_LINES:])
