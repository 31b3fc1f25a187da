"""What a tipping point costs: this search beside a plain doubling grid with fixed repetitions, on this machine.

    python benchmarks/search_cost.py

The grid is what a careful person would write in an afternoon: every length from the shortest, doubled up to the
longest; for each subject a fresh process, two calls to warm up, ten timed calls, the median; the tipping point on a
straight line between the two lengths where the sign of the log-ratio changes. It has no interval. Both look at the
same range of lengths, one after the other, with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.models.catalog import architecture_of
from tippingpoint.profiling.device import now
from tippingpoint.profiling.process import WorkerProcess
from tippingpoint.profiling.session import default_threads, resolve_workload
from tippingpoint.report.records import plain
from tippingpoint.study.run import find_tipping_point
from tippingpoint.units import format_length, format_seconds
from tippingpoint.workload import Subject, Workload

PAIRS = {
    "text": ("bert@eager", "nystromformer", (128, 4096)),
    "speech": ("hubert", "hubert@local:window=50", (1, 16)),
}
WARM_UP, REPETITIONS = 2, 10


def grid(baseline: str, variant: str, lengths: tuple[float, float], size: str) -> list[tuple[float, float]]:
    """Return the log-ratio of median latencies at every doubling of the shortest length."""
    found, length = [], lengths[0]
    while length <= lengths[1]:
        logs = [math.log(median_latency(subject, length, size)) for subject in (baseline, variant)]
        found.append((length, logs[0] - logs[1]))
        print(f"    grid at {length:g}: {math.exp(found[-1][1]):.3f}x", file=sys.stderr)
        length *= 2
    return found


def median_latency(subject: str, length: float, size: str) -> float:
    """Return the median of the timed calls in a fresh process, in seconds."""
    workload = resolve_workload(Workload(subject, length, size=size))
    with WorkerProcess("cpu", default_threads(None), timeout_s=3600) as worker:
        worker.ask("build", workload)
        worker.ask("set_batch_size", 1)
        times = [worker.ask("time_block", 1)[0] for _ in range(WARM_UP + REPETITIONS)]
    return statistics.median(times[WARM_UP:])


def crossing(points: list[tuple[float, float]]) -> float | None:
    """Return where the log-ratio comes up through zero for the last time, on straight lines; None if it does not."""
    for (left, low), (right, high) in zip(reversed(points[:-1]), reversed(points[1:]), strict=True):
        if low <= 0 < high:
            return left * (right / left) ** (-low / (high - low))
    return None


def main() -> None:
    """Run both on each pair, and print wall times and answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--precision", type=float, default=0.1)
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for the search")
    parser.add_argument("--size", default="base")
    parser.add_argument("--json", type=Path, help="write what was found here as well")
    options = parser.parse_args()
    # The libraries are imported once, before either is timed.
    with WorkerProcess("cpu", default_threads(None)) as worker:
        print(worker.environment)
        environment = worker.environment
    records = []
    for name in options.pairs:
        baseline, variant, lengths = PAIRS[name]
        began = now()
        found: TippingPoint = find_tipping_point(
            baseline,
            variant,
            lengths=lengths,
            size=options.size,
            precision=options.precision,
            budget_s=options.budget,
            progress=lambda line: print(f"    {line}", file=sys.stderr),
        )
        ours = now() - began
        began = now()
        points = grid(baseline, variant, lengths, options.size)
        theirs = now() - began
        unit = architecture_of(Subject.parse(baseline)).unit
        place = crossing(points)
        print(f"{baseline} against {variant}, {lengths[0]:g} to {lengths[1]:g} {unit}, inference latency")
        print(f"  search  {format_seconds(ours):>12}  {found.answer}")
        print(
            f"  grid    {format_seconds(theirs):>12}  "
            + ("no crossing" if place is None else f"crosses at {format_length(place, unit)}, no interval")
        )
        print(f"  the grid took {theirs / ours:.1f} times as long")
        records.append(
            {
                "baseline": baseline,
                "variant": variant,
                "lengths": lengths,
                "search_seconds": ours,
                "search": plain(found),
                "grid_seconds": theirs,
                "grid": points,
                "grid_crossing": place,
            }
        )
    if options.json:
        record = {"environment": plain(environment), "precision": options.precision, "pairs": records}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
