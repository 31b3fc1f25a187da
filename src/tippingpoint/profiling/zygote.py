"""The process that workers are forked from: the libraries are imported once, and each worker starts fresh.

Importing PyTorch and the Transformers library takes seconds; a fork takes milliseconds. The zygote itself
starts no thread pool and no CUDA context, since neither survives a fork.

    python -m tippingpoint.profiling.zygote FD

FD is a connected socket to the parent. Requests are one byte: `f` comes with two descriptors (the worker's socket
for questions and the keeper's for the worker's life) and is answered with the pid of the worker's keeper; `k` is
followed by the pid of a keeper that does not answer, which is killed, and is answered with 0. What cannot be done is
answered with an error number below zero. When the parent goes away, by whatever means, every worker is ended; and
what a keeper leaves that was killed itself is the zygote's to end.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import sys
import traceback

from tippingpoint.profiling.device import now
from tippingpoint.profiling.family import Bell, adopt_orphans, children, signal_all
from tippingpoint.profiling.keeper import PID, keep

# Keepers that were asked to end are killed after so many seconds.
_PATIENCE_S = 10.0
_LOOK_AGAIN_S = 0.05


def preload() -> None:
    """Import everything a worker needs, and nothing that starts a thread or a CUDA context."""
    import torch
    import transformers
    from torch.optim import AdamW  # noqa: F401
    from torch.utils import flop_counter  # noqa: F401

    from tippingpoint.models import build, catalog  # noqa: F401
    from tippingpoint.profiling import path, wire, worker  # noqa: F401
    from tippingpoint.profiling.environment import software

    for row in catalog.ARCHITECTURES.values():
        getattr(transformers, row.config_class)
        getattr(transformers, row.model_class)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Asks git for the commit, once for all workers.
    software()
    # The optimizer imports the compiler when it is first made, which takes longer than a small model.
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])


class _Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._keepers: set[int] = set()
        self._bell = Bell()
        self._poller = select.poll()
        for each in (control, self._bell):
            self._poller.register(each, select.POLLIN)

    def run(self) -> None:
        """Serve requests of the parent until it hangs up, or this process is asked to end."""
        is_over = False
        while not is_over:
            for descriptor, _ in self._poller.poll():
                if descriptor == self._bell.fileno():
                    is_over |= self._bell.silence()
                    self._tidy_up()
                else:
                    is_over |= not self._serve()

    def _serve(self) -> bool:
        """Serve one request; return whether there was one."""
        try:
            request, descriptors, _, _ = socket.recv_fds(self._control, 1, 2)
            if not request:
                return False
            if request == b"f" and len(descriptors) == 2:
                answer = self._fork(*descriptors)
            elif request == b"k":
                (pid,) = PID.unpack(_receive_exactly(self._control, PID.size))
                answer = self._kill(pid)
            else:
                answer = -errno.EINVAL
            for descriptor in descriptors:
                os.close(descriptor)
            self._control.sendall(PID.pack(answer))
        except (EOFError, ConnectionError):
            return False  # the parent went away in the middle of it
        return True

    def _fork(self, connection: int, life: int) -> int:
        try:
            pid = os.fork()
        except OSError as error:
            return -(error.errno or errno.EAGAIN)
        if pid == 0:
            try:
                self._bell.take_down()
                self._control.close()
                keep(socket.socket(fileno=life), socket.socket(fileno=connection))
            except BaseException:  # noqa: BLE001 (what it was is told, and this process ends)
                traceback.print_exc()
            finally:
                os._exit(0)
        self._keepers.add(pid)
        return pid

    def _kill(self, pid: int) -> int:
        # Nobody has waited for it yet, so the number is still its own.
        if pid not in self._keepers:
            return -errno.ESRCH
        os.kill(pid, signal.SIGKILL)
        return 0

    def _tidy_up(self) -> bool:
        """Forget keepers that have ended and end what they have left; return whether any child is left."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                break
            self._keepers.discard(pid)
        signal_all(set(children()) - self._keepers, signal.SIGKILL)
        return True

    def end(self) -> None:
        """End every worker."""
        self._poller.unregister(self._control)
        signal_all(self._keepers, signal.SIGTERM)
        begin = now()
        while self._tidy_up():
            if now() - begin > _PATIENCE_S:
                signal_all(self._keepers, signal.SIGKILL)
            self._poller.poll(1000 * _LOOK_AGAIN_S)
            self._bell.silence()


def _receive_exactly(control: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = control.recv(size - len(data))
        if not part:
            raise EOFError("the parent went away in the middle of a request")
        data += part
    return data


def main() -> None:
    """Import the libraries, say so, and serve."""
    control = socket.socket(fileno=int(sys.argv[1]))
    preload()
    gc.collect()
    gc.freeze()
    adopt_orphans()
    zygote = _Zygote(control)
    control.sendall(b"r")
    try:
        zygote.run()
    finally:
        zygote.end()


if __name__ == "__main__":
    main()
