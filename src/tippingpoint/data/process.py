"""A process that answers one question after another, and whose end is noticed.

It is a fresh interpreter: not one of `multiprocessing`, which would run the caller's main module again, and not a
fork, which does not go with a parent that has PyTorch's threads. What the libraries of file formats make of a broken
file happens there, and ends at worst that process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tippingpoint.clock import now
from tippingpoint.errors import TippingPointError

AVAILABLE = os.name == "posix"
# No answer takes so long, unless what is read makes a library hang.
ANSWER_S = 600.0
# One thread each, since there is a process for each core.
_ONE_THREAD = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class DiedError(Exception):
    """The process ended instead of answering.

    Args:
        code: Its exit code, negative for a signal.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"was killed by {_name_of(-code)}" if code < 0 else f"ended with exit code {code}")
        # Out of memory, or a person; not what it was reading.
        self.was_ended = -code in (signal.SIGKILL, signal.SIGTERM)


class HungError(DiedError):
    """The process took too long to answer, and was ended."""

    def __init__(self) -> None:
        super().__init__(0)
        self.args = (f"took longer than {ANSWER_S:g} s and was stopped",)


def _name_of(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


class Process:
    """A process that calls a function with whatever it is sent, and answers with what that returns.

    Args:
        answer: Can be pickled; it keeps its state from one question to the next.
        quiet: Whether what it writes to stderr is dropped: a library's last words, with bytes of the file in them.
    """

    def __init__(self, answer: Callable[[Any], Any], *, quiet: bool = False) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        # The caller's own path, so that the worker finds this package; not the folder it happens to be in.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "tippingpoint.data.worker", str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL if quiet else None,
                    env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
                    # Ctrl-C is the parent's to handle.
                    start_new_session=True,
                )
        except BaseException:
            self.connection.close()
            raise
        try:
            self.send(answer)
        except BaseException:
            self.close()
            raise

    def send(self, what: Any) -> None:
        """Ask.

        Raises:
            DiedError: If the process has ended.
        """
        self.deadline_s = now() + ANSWER_S
        try:
            self.connection.send(what)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise DiedError(self._process.wait()) from error

    def receive(self) -> Any:
        """Wait for the answer.

        Raises:
            TippingPointError: What the function raised.
            DiedError: If the process has ended.
            HungError: If it has not answered by `deadline_s`, on the clock of `clock.now`.
        """
        try:
            if not self.connection.poll(max(0.0, self.deadline_s - now())):
                raise HungError
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise DiedError(self._process.wait()) from error
        if isinstance(answer, TippingPointError):
            raise answer
        return answer

    def ask(self, what: Any) -> Any:
        """Ask and wait for the answer; see `receive`."""
        self.send(what)
        return self.receive()

    def close(self) -> None:
        """End it."""
        self.connection.close()
        self._process.kill()
        self._process.wait()
