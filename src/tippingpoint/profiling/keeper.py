"""The process between a worker and everybody else: it takes what the worker says, and lets nothing outlive it.

keeper    fork the worker | tell the parent its pid |  asleep, but for the worker's output  | end what is left
          | tell the parent how the worker ended, and its last words

It ends the worker, and all that the worker has started, when the worker ends, when the parent hangs up or has ended
itself, and when it is asked to (SIGTERM). It is a process of its own because it must outlive the worker, must not
share a thread with the parent, which sleeps while a block is timed, and must know whose the processes are that it
finds without a parent.
"""

from __future__ import annotations

import io
import os
import select
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass

from tippingpoint.endings import die_first, die_with
from tippingpoint.profiling.device import now
from tippingpoint.profiling.family import Bell, adopt_orphans, children, signal_all

# The worker's pid; below zero the error that kept it from being started.
PID = struct.Struct("=q")
_END = struct.Struct("=qq")
# What is kept of a worker's output: its last words.
_KEPT_BYTES = 8192
_READ_BYTES = 65536
# What a worker has left behind is asked to end (helpers then tidy up), and killed after so many seconds.
_GRACE_S = 0.5
_LOOK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class End:
    """How a worker ended: its wait status, the most memory it held, and its last words."""

    status: int
    peak_bytes: int
    said: bytes

    def pack(self) -> bytes:
        """Return it as it travels to the parent."""
        return _END.pack(self.status, self.peak_bytes) + self.said

    @classmethod
    def unpack(cls, data: bytes) -> End | None:
        """Return what a keeper told; None if it ended before it could."""
        if len(data) < _END.size:
            return None
        status, peak_bytes = _END.unpack_from(data)
        return cls(status, peak_bytes, data[_END.size :])


def keep(parent: socket.socket, connection: socket.socket) -> None:
    """Run a worker to its end; return in the keeper only, when nothing of the worker is left.

    Args:
        parent: To tell of the worker's life; hung up by the parent to end it.
        connection: The worker's, to answer questions on.
    """
    adopt_orphans()
    reading, writing = os.pipe()
    own = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        parent.sendall(PID.pack(-(error.errno or 1)))
        return
    if pid == 0:
        parent.close()
        os.close(reading)
        _become_worker(own, connection, writing)
    connection.close()
    os.close(writing)
    _Keeper(pid, parent, reading).run()


def _become_worker(keeper: int, connection: socket.socket, output: int) -> None:
    """Serve one parent's questions and leave without running the zygote's clean-up."""
    status = 1
    try:
        # A session of its own: a subject that signals its process group meets nobody else.
        os.setsid()
        die_with(keeper)
        die_first()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        # What is printed before a process is killed shall be known.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True)
        from tippingpoint.profiling.wire import Wire
        from tippingpoint.profiling.worker import serve

        serve(Wire(connection))
        status = 0
    except BaseException:  # noqa: BLE001 (what it was is told, and this process ends)
        traceback.print_exc()
    finally:
        os._exit(status)


class _Keeper:
    def __init__(self, worker: int, parent: socket.socket, output: int) -> None:
        self._worker = worker
        self._parent = parent
        self._output = output
        os.set_blocking(output, False)
        self._bell = Bell()
        self._poller = select.poll()
        for each in (parent, output, self._bell):
            self._poller.register(each, select.POLLIN)
        self._hears = True
        self._said = b""
        self._status: int | None = None
        self._peak_bytes = 0
        self._is_alone = False
        self._is_over = False

    def run(self) -> None:
        self._tell(PID.pack(self._worker))
        self._wait_for_children()  # one that ended before the bell was hung up
        while self._status is None and not self._is_over:
            self._step()
        self._end_all()
        while self._listen():
            pass
        assert self._status is not None
        self._tell(End(self._status, self._peak_bytes, self._said).pack())

    def _tell(self, what: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self._parent.sendall(what)

    def _step(self, timeout_s: float | None = None) -> None:
        """Sleep until something happens, and see to it."""
        for descriptor, _ in self._poller.poll(None if timeout_s is None else 1000 * timeout_s):
            if descriptor == self._output:
                self._listen()
            elif descriptor == self._bell.fileno():
                self._is_over |= self._bell.silence()
                self._wait_for_children()
            else:
                self._is_over = True
                self._poller.unregister(self._parent)

    def _listen(self) -> bool:
        """Take what the worker has said, and keep the end of it; return whether there was anything."""
        try:
            data = os.read(self._output, _READ_BYTES) if self._hears else b""
        except BlockingIOError:
            return False
        if self._hears and not data:  # nobody is left who could say anything
            self._hears = False
            self._poller.unregister(self._output)
        self._said = (self._said + data)[-_KEPT_BYTES:]
        return bool(data)

    def _wait_for_children(self) -> None:
        """Take note of children that have ended."""
        while not self._is_alone:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self._is_alone = True
                return
            if pid == 0:
                return
            if pid == self._worker:
                self._status = status
                self._peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def _end_all(self) -> None:
        """End the worker, if it has not ended, and everything that it has started."""
        if self._status is None:
            signal_all([self._worker], signal.SIGKILL)
        while self._status is None:
            self._step()
        if sys.platform == "darwin":
            signal_all([-self._worker], signal.SIGKILL)
        begin = now()
        asked: set[int] = set()
        while not self._is_alone:
            left = set(children())
            if now() - begin < _GRACE_S:
                signal_all(left - asked, signal.SIGTERM)
                asked |= left
            else:
                signal_all(left, signal.SIGKILL)
            self._step(_LOOK_AGAIN_S)
            self._wait_for_children()
