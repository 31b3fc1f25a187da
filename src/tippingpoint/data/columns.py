"""Columns of Parquet and Arrow files, read in another process.

Their library is large and written in C++, and the files are a stranger's: one that ends the process or wants all
memory is unreadable, and the reading goes on with the next file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from tippingpoint.data.process import AVAILABLE, DiedError, Process
from tippingpoint.data.records import Run, suffix_of
from tippingpoint.data.skipped import Skipped
from tippingpoint.errors import TippingPointError

# A few megabytes are read at a time; what wants so much more is no file of texts or recordings.
MOST_MEMORY = 2 * 2**30


class _InProcess:
    """What the other process does: it has one file open, and hands out the values that are picked of its last run."""

    def __init__(self, most_memory: int) -> None:
        self._most_memory = most_memory
        self._runs: Iterator[Run | Skipped] = iter(())
        self._run: Run | None = None

    def __call__(self, question: tuple[str, Any]) -> Any:
        kind, what = question
        try:
            if kind == "pick":
                assert self._run is not None
                return self._run.pick(what)
            if kind == "open":
                _limit_memory(self._most_memory)
                self._runs = runs_of(*what)
            found = next(self._runs, None)
        except TippingPointError:
            raise
        except MemoryError:
            return Skipped("", "it takes too much memory")
        except OSError as error:
            return Skipped("", error.strerror or f"unreadable: {error}")
        except Exception as error:  # noqa: BLE001 - what a broken file makes the library raise ends that file alone
            return Skipped("", f"unreadable: {type(error).__name__}: {error}")
        self._run = found if isinstance(found, Run) else None
        return found if self._run is None else replace(self._run, pick=_not_here)


def _not_here(indices: np.ndarray) -> list[Any]:
    raise AssertionError("values are picked where the file is open")


def _limit_memory(size: int) -> None:
    # Not everywhere, and not where a lower limit is in force.
    with suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (size, most))


def runs_of(path: str, column: str, modality: str) -> Iterator[Run | Skipped]:
    """Yield the rows of one column, in this process."""
    from tippingpoint.data.arrow_files import read_arrow, read_parquet

    return (read_parquet if suffix_of(path) == ".parquet" else read_arrow)(path, column, modality)


class ColumnReader:
    """Reads Parquet and Arrow files one after the other in one other process, which is started when it is needed.

    Use it as a context manager.

    Args:
        most_memory: Of that process, in bytes.
    """

    def __init__(self, most_memory: int = MOST_MEMORY) -> None:
        self._most_memory = most_memory
        self._process: Process | None = None

    def read(self, path: str, column: str, modality: str) -> Iterator[Run | Skipped]:
        """Yield the rows of one column of a file, and what of it could not be read.

        Raises:
            ColumnError: If it has no such column, or the column holds something that has no length.
        """
        if not AVAILABLE:
            yield from runs_of(path, column, modality)
            return
        done = 0
        found = self._ask(path, ("open", (path, column, modality)))
        while found is not None:
            if isinstance(found, Skipped):
                after = f" after row {done}" if done and not found.path else ""
                yield Skipped(found.path or path, f"{found.reason}{after}")
                if not found.path:
                    return
            else:
                done = found.numbers[-1] if len(found.numbers) else done
                yield self._with_values(found)
            if self._process is None:
                yield Skipped(path, f"the process that read it died after row {done}")
                return
            found = self._ask(path, ("next", None))

    def _with_values(self, run: Run) -> Run:
        def pick(indices: np.ndarray) -> list[Any]:
            values = self._ask(run.path, ("pick", indices))
            if isinstance(values, Skipped):
                return [Skipped(f"{run.path}:{run.numbers[index]}", values.reason) for index in indices.tolist()]
            return values

        return replace(run, pick=pick)

    def _ask(self, path: str, question: tuple[str, Any]) -> Any:
        try:
            if self._process is None:
                self._process = Process(_InProcess(self._most_memory), quiet=True)
            return self._process.ask(question)
        except DiedError as error:
            self.close()
            return Skipped("", f"the process that read it {error}")

    def close(self) -> None:
        """End the other process."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def __enter__(self) -> ColumnReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
