"""Processes that read lengths beside one another, one batch each at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from tippingpoint.clock import now
from tippingpoint.data.item_lengths import LengthReader, Lengths, Part
from tippingpoint.data.process import AVAILABLE, DiedError, HungError, Process
from tippingpoint.data.skipped import Skipped
from tippingpoint.errors import DataError, InputError

if TYPE_CHECKING:
    from tippingpoint.data.stream import Batch

# Fewer are read in this process: starting others would take longer.
_FEWEST_BATCHES = 3
# So many items may end a process before something else than the items is taken to be wrong.
_MOST_DEATHS = 50


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
        DataError: If a worker process is killed or too many items end one, or the tokenizer cannot be loaded or
            fails on a document.
    """
    batches = iter(batches)
    ahead = list(islice(batches, _FEWEST_BATCHES)) if jobs > 1 and AVAILABLE else []
    if len(ahead) < _FEWEST_BATCHES:
        for batch in chain(ahead, batches):
            yield batch, read(batch.parts)
        return
    pool = _Pool(read, jobs)
    try:
        yield from pool.read(chain(ahead, batches))
    finally:
        pool.close()


class _Worker(Process):
    """One process and the batch it is at."""

    def __init__(self, read: LengthReader) -> None:
        super().__init__(read)
        self.batch: Batch | None = None

    def begin(self, batch: Batch) -> None:
        """Hand a batch over."""
        self.batch = batch
        self.send(batch.parts)

    def end(self) -> tuple[Batch, Lengths]:
        """Return the batch and its lengths."""
        lengths = self.receive()
        assert self.batch is not None
        batch, self.batch = self.batch, None
        return batch, lengths


class _Pool:
    def __init__(self, read: LengthReader, jobs: int) -> None:
        self._read = read
        self._jobs = jobs
        self._workers: list[_Worker] = []
        self._deaths = 0

    def read(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Lengths]]:
        # A worker has one batch at a time, so neither side ever writes while the other does.
        for batch in batches:
            idle = [worker for worker in self._workers if worker.batch is None]
            if not idle and len(self._workers) < self._jobs:
                idle = [self._start()]
            while not idle:
                for worker in self._ready():
                    yield self._end(worker)
                idle = [worker for worker in self._workers if worker.batch is None]
            try:
                idle[0].begin(batch)
            except DiedError as error:
                yield batch, self._survive(idle[0], batch, error)
        while any(worker.batch for worker in self._workers):
            for worker in self._ready():
                yield self._end(worker)

    def _start(self) -> _Worker:
        try:
            self._workers.append(_Worker(self._read))
        except DiedError as error:
            raise DataError(f"a process that reads lengths {error} as it started") from error
        return self._workers[-1]

    def _end(self, worker: _Worker) -> tuple[Batch, Lengths]:
        batch = worker.batch
        assert batch is not None
        try:
            return worker.end()
        except DiedError as error:
            return batch, self._survive(worker, batch, error)

    def _survive(self, dead: _Worker, batch: Batch, error: DiedError) -> Lengths:
        """Put a new process in the place of a dead one, and find out by it which item of the batch was too much."""
        self._replace(dead, batch.parts, error)
        items = [
            part._replace(numbers=[number], values=[value])
            for part in batch.parts
            for number, value in zip(part.numbers, part.values, strict=True)
        ]
        lengths = Lengths.empty(len(items))
        waiting = _smaller(0, len(items), error)
        while waiting:
            start, end = waiting.pop()
            worker = self._workers[-1]
            try:
                lengths.put(start, worker.ask(items[start:end]))
            except DiedError as again:
                self._deaths += end - start == 1
                self._replace(worker, items[start:end], again)
                if end - start == 1:
                    where = items[start].where
                    lengths.skip(start, Skipped(where, f"the process that read it {again}"))
                else:
                    waiting += _smaller(start, end, again)
        return lengths

    def _replace(self, dead: _Worker, parts: list[Part], error: DiedError) -> None:
        """Start a process in the place of a dead one, which becomes the last.

        Raises:
            DataError: If it was not an item that ended it, or too many did.
        """
        self._workers.remove(dead)
        dead.close()
        if error.was_ended or self._deaths > _MOST_DEATHS:
            place = f" at {parts[0].path or parts[0].values[0]!r} or soon after" if parts else ""
            raise DataError(
                f"a process that reads lengths {error}{place}; if memory ran out, use fewer jobs"
            ) from error
        self._start()

    def _ready(self) -> list[_Worker]:
        """Wait for a worker that has answered, or has hung; return all that have."""
        busy = {worker.connection: worker for worker in self._workers if worker.batch is not None}
        left_s = min(worker.deadline_s for worker in busy.values()) - now()
        ready = [busy[each] for each in wait(list(busy), max(0.0, left_s)) if isinstance(each, Connection)]
        return ready or [worker for worker in busy.values() if worker.deadline_s <= now()]

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def _smaller(start: int, end: int, error: DiedError) -> list[tuple[int, int]]:
    """Return the parts of some items to try by themselves, the first one last: halves, or what hangs one by one."""
    if isinstance(error, HungError):
        return [(number, number + 1) for number in reversed(range(start, end))]
    middle = (start + end) // 2
    return [(middle, end), (start, middle)]
