"""Worker processes that read lengths beside one another, one batch each at a time.

They are fresh interpreters: not those of `multiprocessing`, which would run the caller's main module again, and not
forks, which do not go with a parent that has PyTorch's threads.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from tippingpoint.data.item_lengths import LengthReader, Lengths, Part
from tippingpoint.errors import DataError, InputError, TippingPointError

if TYPE_CHECKING:
    from tippingpoint.data.stream import Batch

# Fewer are read in this process: starting others would take longer.
_FEWEST_BATCHES = 3
# One thread each, since there is a process for each core.
_ONE_THREAD = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


def usable_jobs(jobs: int | None) -> int:
    """Return how many processes to use: as many as there are usable cores, if not said.

    Raises:
        InputError: If jobs < 1.
    """
    if jobs is not None:
        if jobs < 1:
            raise InputError(f"the number of jobs must be at least 1, got {jobs}")
        return jobs
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_all(batches: Iterable[Batch], read: LengthReader, jobs: int) -> Iterator[tuple[Batch, Lengths]]:
    """Yield every batch with its lengths, in any order; at most one more than `jobs` batches are alive.

    Raises:
        InputError: If the tokenizer is a path that does not exist.
        DataError: If a worker process dies, or the tokenizer cannot be loaded or fails on a document.
    """
    batches = iter(batches)
    ahead = list(islice(batches, _FEWEST_BATCHES)) if jobs > 1 and os.name == "posix" else []
    if len(ahead) < _FEWEST_BATCHES:
        for batch in chain(ahead, batches):
            yield batch, read(batch.parts)
        return
    pool = _Pool(read, jobs)
    try:
        yield from pool.read(chain(ahead, batches))
    finally:
        pool.close()


class _Worker:
    """One process and the batch it is at."""

    def __init__(self, read: LengthReader) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        # The caller's own path, so that the worker finds this package; not the folder it happens to be in.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tippingpoint.data.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
            # Ctrl-C is the parent's to handle.
            start_new_session=True,
        )
        theirs.close()
        self.batch: Batch | None = None
        self._send(read)

    def begin(self, batch: Batch) -> None:
        """Hand a batch over."""
        self.batch = batch
        self._send(batch.parts)

    def _send(self, what: LengthReader | list[Part]) -> None:
        try:
            self.connection.send(what)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died() from error

    def end(self) -> tuple[Batch, Lengths]:
        """Return the batch and its lengths."""
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._died() from error
        if isinstance(answer, TippingPointError):
            raise answer
        assert self.batch is not None
        batch, self.batch = self.batch, None
        return batch, answer

    def _died(self) -> DataError:
        code = self.process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        parts = self.batch.parts if self.batch else []
        place = f" at {parts[0].path or parts[0].values[0]!r} or soon after" if parts else ""
        return DataError(f"a process that reads lengths {how}{place}; if memory ran out, use fewer jobs")

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


class _Pool:
    def __init__(self, read: LengthReader, jobs: int) -> None:
        self._read = read
        self._jobs = jobs
        self._workers: list[_Worker] = []

    def read(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Lengths]]:
        # A worker has one batch at a time, so neither side ever writes while the other does.
        for batch in batches:
            idle = [worker for worker in self._workers if worker.batch is None]
            if not idle and len(self._workers) < self._jobs:
                self._workers.append(_Worker(self._read))
                idle = self._workers[-1:]
            if not idle:
                for worker in self._ready():
                    yield worker.end()
                    idle.append(worker)
            idle[0].begin(batch)
        while any(worker.batch for worker in self._workers):
            for worker in self._ready():
                yield worker.end()

    def _ready(self) -> list[_Worker]:
        """Wait for a worker that has answered; return all that have."""
        busy = {worker.connection: worker for worker in self._workers if worker.batch is not None}
        return [busy[connection] for connection in wait(list(busy)) if isinstance(connection, Connection)]

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
