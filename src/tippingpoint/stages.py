"""Names for the steps inside an attention, for whoever watches: a breakdown of the time, a profiler's trace.

    with stage("landmarks"):
        ...

Where nobody watches that costs less than a microsecond and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

# What steps of every attention are called; approximations add their own.
SCORES = "QK^T"
SOFTMAX = "mask and softmax"
WEIGHTED = "AV"
FUSED = "fused attention"
REUSE = "map reuse"

Watcher = Callable[[str], AbstractContextManager[None]]

_watcher: Watcher | None = None


def stage(name: str) -> AbstractContextManager[None]:
    """Return a context in which everything that runs belongs to a step; steps may stand inside each other.

    Args:
        name: What the step is called in a table: a noun such as "landmarks".
    """
    return nullcontext() if _watcher is None else _watcher(name)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell a watcher of every step that begins meanwhile; the one before it comes back afterwards.

    Args:
        watcher: Called with the name of a step; its context is entered and left with the step.
    """
    global _watcher
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before
