"""What measuring costs beside the measured work itself. Runs for a minute; let nothing else run.

    python benchmarks/engine_cost.py [--runs 5]

One workload (`bert` at 128 tokens) is profiled several times after the libraries were imported once. Of the wall
time of a profile, what the worker spent building the model, warming up and in timed blocks is the work itself; the
rest is the engine's: forking, describing the machine, the memory pass, the FLOP count, the oracle gate. The parent's
CPU time is held against that of its workers, from the kernel's own accounts.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from tippingpoint import Measurement, Workload, profile
from tippingpoint.profiling.device import now
from tippingpoint.profiling.process import WorkerProcess, Zygote

WORKLOAD = Workload("bert", 128)
OWN_WORK = ("build", "warm_up", "time_block")


def worker_cpu_s() -> float:
    """Return CPU seconds of all workers that have ended, from the account of their parent, the zygote."""
    fields = Path(f"/proc/{Zygote.get().process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def parent_cpu_s() -> float:
    """Return CPU seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print where the time of a profile goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs

    begin = now()
    Zygote.get()
    print(f"importing the libraries, once for all workers   {now() - begin:6.2f} s")

    spent: dict[str, float] = defaultdict(float)
    ask, start = WorkerProcess.ask, WorkerProcess.__init__

    def timed_ask(self: WorkerProcess, method: str, *arguments: Any) -> Any:
        began = now()
        try:
            return ask(self, method, *arguments)
        finally:
            spent[method] += now() - began

    def timed_start(self: WorkerProcess, *arguments: Any, **options: Any) -> None:
        began = now()
        start(self, *arguments, **options)
        starts.append(now() - began)

    starts: list[float] = []
    WorkerProcess.ask, WorkerProcess.__init__ = timed_ask, timed_start  # type: ignore[method-assign]
    walls, overheads, shares = [], [], []
    parts: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        spent.clear()
        cpu, workers, begin = parent_cpu_s(), worker_cpu_s(), now()
        found = profile(WORKLOAD, budget_s=10)
        walls.append(now() - begin)
        if not isinstance(found, Measurement):
            raise SystemExit(f"could not be measured: {found}")
        overheads.append(walls[-1] - sum(spent[method] for method in OWN_WORK))
        shares.append((parent_cpu_s() - cpu) / (worker_cpu_s() - workers))
        for method, seconds in spent.items():
            parts[method].append(seconds)
    print(
        f"a fresh worker is ready after                   {statistics.median(starts):6.2f} s "
        f"(median of {len(starts)}, slowest {max(starts):.2f} s)"
    )
    print(f"one profile, wall time                          {statistics.median(walls):6.2f} s")
    for method, seconds in sorted(parts.items(), key=lambda item: -statistics.median(item[1])):
        own = "work" if method in OWN_WORK else "engine"
        print(f"    {method:<24}{own:<20}{statistics.median(seconds):6.2f} s")
    print(
        f"engine's own time (not build, warm-up, blocks)  {statistics.median(overheads):6.2f} s "
        f"({min(overheads):.2f} to {max(overheads):.2f}); the first one also measures the machine's peaks"
    )
    print(f"parent's CPU time over its workers'             {statistics.median(shares):6.2%}")


if __name__ == "__main__":
    main()
