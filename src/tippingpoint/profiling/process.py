"""The parent's side of a worker: start it, ask it, notice how it died."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait
from typing import IO, Any
from weakref import WeakSet

from tippingpoint.errors import InputError, TippingPointError
from tippingpoint.measurement import Environment
from tippingpoint.profiling.answers import ANSWERS, Problem, fits
from tippingpoint.profiling.device import now
from tippingpoint.profiling.keeper import PID, End
from tippingpoint.profiling.last_words import last_lines, one_line
from tippingpoint.profiling.oom import OomKills
from tippingpoint.profiling.wire import GarbledError, Wire
from tippingpoint.units import format_bytes

logger = logging.getLogger(__name__)

# The zygote answers at once, and a keeper as soon as its worker's memory has been given back.
_ANSWER_S = 60.0
_END_S = 30.0
# A worker that hung up is about to end; one that has not ended after so long goes on, and is ended.
_ENDING_S = 5.0
# Sockets that a process forked from this one must not keep open: their end is how others know of ours.
_sockets: WeakSet[socket.socket] = WeakSet()


class WorkerError(TippingPointError):
    """A worker could not answer: it becomes a `Failure` row of the given kind."""

    def __init__(self, kind: str, message: str, trace: str = "", refused: str | None = None) -> None:
        super().__init__(one_line(message, len(message)))
        self.kind = kind
        self.trace = trace
        self.refused = refused


class _ZygoteGoneError(Exception):
    """The zygote has ended, or does not answer."""


class Zygote:
    """The running zygote; one for each parent process, started when first needed."""

    _current: Zygote | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        with ExitStack() as failed:
            self._control, theirs = _socket_pair()
            failed.callback(self._control.close)
            with theirs:
                self._log = failed.enter_context(tempfile.TemporaryFile())
                self.process = _popen(theirs.fileno(), self._log)
            failed.pop_all()
        atexit.register(self.close)
        try:
            is_ready = self._control.recv(1) == b"r"
        except ConnectionError:
            is_ready = False
        if not is_ready:
            self.process.wait()
            said = self._said()
            self.close()
            raise TippingPointError(f"the measuring process could not start: {said}")
        self._control.settimeout(_ANSWER_S)

    @classmethod
    def get(cls) -> Zygote:
        """Return the running zygote, starting one if there is none."""
        with cls._lock:
            if cls._current is None or cls._current.process.poll() is not None:
                if os.name != "posix":
                    raise TippingPointError(f"measuring needs Linux or macOS, this is {sys.platform}")
                if cls._current is not None:
                    cls._current.close()
                cls._current = cls()
            return cls._current

    def fork(self, connection: socket.socket, life: socket.socket) -> int:
        """Start a worker that answers on one socket, and whose life is told of on another; return its keeper's pid.

        Raises:
            WorkerError: If the system lets no process be started.
        """
        with self._lock, self._answering():
            socket.send_fds(self._control, [b"f"], [connection.fileno(), life.fileno()])
            pid = self._answer()
        if pid < 0:
            raise WorkerError("crashed", f"no process could be started: {os.strerror(-pid)}")
        return pid

    def kill(self, keeper: int) -> None:
        """Kill a keeper that does not answer, and with it its worker."""
        with suppress(_ZygoteGoneError), self._lock, self._answering():
            self._control.sendall(b"k" + PID.pack(keeper))
            self._answer()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Tell that the zygote is gone if it is, or if it does not answer; the next to need one starts another."""
        try:
            yield
        except OSError as error:
            self.process.kill()
            self.process.wait()
            raise _ZygoteGoneError from error

    def _answer(self) -> int:
        data = b""
        while len(data) < PID.size:
            part = self._control.recv(PID.size - len(data))
            if not part:
                raise ConnectionError("the zygote hung up")
            data += part
        return PID.unpack(data)[0]

    def _said(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 4096))
        return last_lines(self._log.read())

    def close(self) -> None:
        """Hang up; the zygote ends whatever is still alive, and itself. Closing twice is harmless."""
        atexit.unregister(self.close)
        self._control.close()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    @classmethod
    def after_fork(cls) -> None:
        """Let a process forked from this one start a zygote of its own, and hold none of the sockets."""
        if cls._current is not None:
            atexit.unregister(cls._current.close)
        cls._current, cls._lock = None, threading.Lock()
        for each in list(_sockets):
            each.close()


os.register_at_fork(after_in_child=Zygote.after_fork)


def _popen(control: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a zygote that is asked on a socket."""
    # NumPy's OpenBLAS would start its threads on import; workers use PyTorch's own pool.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    return subprocess.Popen(
        # -P: a numpy.py that lies in the folder someone measures in is not imported.
        [sys.executable, "-P", "-m", "tippingpoint.profiling.zygote", str(control)],
        pass_fds=[control],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        # Ctrl-C is the parent's to handle; it hangs up and the zygote ends its workers.
        start_new_session=True,
    )


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets; the first is this process's own."""
    ours, theirs = socket.socketpair()
    _sockets.add(ours)
    return ours, theirs


class WorkerProcess:
    """A worker in a fresh process. Use as a context manager, or call `close`.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        threads: CPU threads of the worker.
        affinity: Cores to pin it to; None leaves it to the system.
        timeout_s: Seconds after which an answer is no longer waited for.

    Raises:
        InputError: If the device is not there, or a core is not.
        WorkerError: If it could not be started.
    """

    def __init__(
        self,
        device: str,
        threads: int,
        *,
        affinity: tuple[int, ...] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._lost: WorkerError | None = None
        self._start()
        self._oom_kills = OomKills(self.pid)
        try:
            self.environment: Environment = self._ask("starting", (device, threads, affinity))
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        for _ in range(2):  # another zygote takes the place of one that is gone
            try:
                return self._fork()
            except _ZygoteGoneError:
                pass
            except OSError as error:
                raise WorkerError("crashed", f"no process could be started: {error.strerror or error}") from error
        raise WorkerError(
            "crashed", "no process could be started: the process that workers are forked from ended twice"
        )

    def _fork(self) -> None:
        with ExitStack() as failed:
            connection, theirs = _socket_pair()
            failed.callback(connection.close)
            with theirs:
                self._life, keepers = _socket_pair()
                failed.callback(self._life.close)
                with keepers:
                    self._zygote = Zygote.get()
                    self._keeper = self._zygote.fork(theirs, keepers)
            self._life.settimeout(_ANSWER_S)
            try:
                told = self._life.recv(PID.size)
            except TimeoutError as error:
                self._zygote.kill(self._keeper)
                raise WorkerError("crashed", "the process took too long to start") from error
            # Nothing is told if the keeper was killed before it could.
            (self.pid,) = PID.unpack(told) if len(told) == PID.size else (-errno.ECHILD,)
            if self.pid < 0:
                raise WorkerError("crashed", f"no process could be started: {os.strerror(-self.pid)}")
            self._wire = Wire(connection)
            failed.pop_all()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return what the worker's method returns; sleeps until it does.

        Raises:
            InputError: If the workload is not legal.
            WorkerError: If it raised, died or took too long, now or before.
        """
        return self._ask(method, (method, arguments))

    def _ask(self, question: str, message: tuple[Any, ...]) -> Any:
        doing = question.replace("_", " ")
        if self._lost is not None:
            raise self._lost
        deadline = None if self._timeout_s is None else now() + self._timeout_s
        try:
            self._wire.send(message, deadline)
            good, result = self._wire.receive(deadline, self._life)
            if not fits(result, ANSWERS[question] if good else Problem):
                raise GarbledError(f"something of type {type(result).__name__}")
        except TimeoutError:
            assert self._timeout_s is not None
            what = f"'{doing}' took longer than {self._timeout_s:g} s and was stopped"
            raise self._lose("timeout", what, self._end()) from None
        except (EOFError, OSError):
            raise self._death() from None
        except (GarbledError, TypeError, ValueError) as error:
            what = f"'{doing}' was answered with what is no answer ({error}), and the process was stopped"
            raise self._lose("crashed", what, self._end()) from None
        if good:
            return result
        if result.kind == "input":
            raise InputError(one_line(result.message, len(result.message)))
        raise WorkerError(result.kind, result.message, result.trace, result.refused)

    def _lose(self, kind: str, what: str, end: End | None) -> WorkerError:
        """Return what happened to a worker that is no more, with its last words."""
        said = last_lines(end.said) if end else ""
        self._lost = WorkerError(kind, f"{what}; it last said: {said}" if said else what)
        return self._lost

    def _death(self) -> WorkerError:
        """Find out how the worker died."""
        went_on = not self._ends_within(_ENDING_S)
        end = self._end()
        if went_on:
            return self._lose("crashed", "the process hung up but went on, and was stopped", end)
        if end is None:
            return self._lose("killed", "the process and what watched over it were killed", end)
        if not os.WIFSIGNALED(end.status):
            return self._lose("crashed", f"the process left with status {os.WEXITSTATUS(end.status)}", end)
        number = os.WTERMSIG(end.status)
        if number != signal.SIGKILL:
            return self._lose("crashed", f"the process was ended by {_signal_name(number)}", end)
        held = f" when it had held up to {format_bytes(end.peak_bytes)}"
        if self._oom_kills.any_since():
            return self._lose("out_of_memory", f"the system killed the process for want of memory{held}", end)
        return self._lose("killed", f"the process was ended by SIGKILL{held}", end)

    def _ends_within(self, seconds: float) -> bool:
        """Wait for the worker's end without bringing it about; return whether it came."""
        return bool(wait([self._life], seconds))

    def _end(self) -> End | None:
        """End the worker and all it has started; return how it ended, None if nobody can tell."""
        told = b""
        deadline = now() + _END_S
        try:
            with suppress(OSError):  # it has ended already
                self._life.shutdown(socket.SHUT_WR)
            while True:
                self._life.settimeout(max(1e-3, deadline - now()))
                part = self._life.recv(65536)
                if not part:
                    return End.unpack(told)
                told += part
        except TimeoutError:
            logger.warning("the measuring process %d could not be ended", self.pid)
            self._zygote.kill(self._keeper)
        except ConnectionError:
            pass
        return None

    def close(self) -> None:
        """End the worker at once; nothing in it is worth keeping. Closing twice is harmless."""
        if self._life.fileno() < 0:
            return
        if self._lost is None:
            self._end()
            self._lost = WorkerError("crashed", "the process has been closed")
        self._hang_up()

    def _hang_up(self) -> None:
        self._wire.close()
        self._life.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # those in between the real-time ones have no names
        return f"signal {number}"
