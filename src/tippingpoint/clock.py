"""The one clock: seconds that never step, for whatever takes time or waits."""

from __future__ import annotations

import time


def now() -> float:
    """Return seconds of a clock that never steps; only differences mean anything."""
    return time.perf_counter_ns() / 1e9  # noqa: TID251 (this is the one clock)
