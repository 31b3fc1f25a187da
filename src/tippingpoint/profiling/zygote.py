"""The process that workers are forked from: the libraries are imported once, and each worker starts fresh.

Importing PyTorch and the Transformers library takes seconds; a fork takes milliseconds. The zygote itself
starts no thread pool and no CUDA context, since neither survives a fork.

    python -m tippingpoint.profiling.zygote FD

FD is a connected socket to the parent. Requests are one byte: `f` comes with two descriptors (the worker's
socket and its log) and is answered with a process id; `w` and `k` are followed by a process id, wait for that
process (`k` kills it first) and are answered with its wait status. When the parent goes away, by whatever
means, every worker is killed.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
import sys

PID = struct.Struct("q")


def preload() -> None:
    """Import everything a worker needs, and nothing that starts a thread or a CUDA context."""
    import torch
    import transformers
    from torch.optim import AdamW  # noqa: F401
    from torch.utils import flop_counter  # noqa: F401

    from tippingpoint.models import build, catalog  # noqa: F401
    from tippingpoint.profiling import path, worker  # noqa: F401
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


def run(control: socket.socket) -> None:
    """Serve requests of the parent until it hangs up."""
    children: set[int] = set()
    try:
        _serve(control, children)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def _serve(control: socket.socket, children: set[int]) -> None:
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not request:
            return
        if request == b"f":
            pid = os.fork()
            if pid == 0:
                control.close()
                _become_worker(*descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            children.add(pid)
            control.sendall(PID.pack(pid))
        else:
            (pid,) = PID.unpack(_receive_exactly(control, PID.size))
            if request == b"k":
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            children.discard(pid)
            control.sendall(PID.pack(status))


def _become_worker(connection_descriptor: int, log_descriptor: int) -> None:
    """Serve one parent's questions and leave without running the zygote's clean-up."""
    status = 1
    try:
        _die_with_parent()
        os.dup2(log_descriptor, 1)
        os.dup2(log_descriptor, 2)
        os.close(log_descriptor)
        from multiprocessing.connection import Connection

        from tippingpoint.profiling.worker import serve

        serve(Connection(connection_descriptor))
        status = 0
    finally:
        os._exit(status)


def _die_with_parent() -> None:
    """Ask Linux to kill this worker should the zygote be killed, and to prefer it when memory runs out."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


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
    control.sendall(b"r")
    run(control)


if __name__ == "__main__":
    main()
