"""How good is the schedule of many comparisons on many machines, and what does it cost to make it?

    python benchmarks/scheduling.py --json studies/results/scheduling.json

10,000 comparisons wait for 200 GPUs of four kinds, one of which starts machines as they are asked for. Workers die,
machines go and come back, one machine kills whatever it is given and on another no worker starts. All of that is
simulated, with the clock; the `Coordinator` is the real one. Each comparison takes as long as its budget on average,
but no two the same (log-normal), and nobody knows beforehand. The time until the last one is done is held against a
lower bound that no schedule could beat; see `bounds_s` of the simulated cluster.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

# The simulated cluster is that of the tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from simulated_cluster import Nodes, SimulatedCluster, Trouble, planned  # pyright: ignore[reportMissingImports]
from tippingpoint.profiling.device import now
from tippingpoint.profiling.environment import read_environment
from tippingpoint.store import Store
from tippingpoint.study.comparisons import comparisons
from tippingpoint.study.coordinate import Coordinator, _recall
from tippingpoint.study.ledger import study_key
from tippingpoint.study.queue import Comparison
from tippingpoint.study.run import resolve_study
from tippingpoint.units import format_bytes, format_seconds
from tippingpoint.workload import Place, Study, Subject

# Nodes, GPUs of each, and seconds until a node that is asked for is there.
KINDS = {"H100": (10, 8, None), "A100": (15, 4, None), "L40S": (10, 4, None), "T4": (5, 4, 240.0)}
COMPARISONS = 10_000
# A third of the comparisons may take so many seconds each.
BUDGETS_S = (300.0, 600.0, 1200.0)
# Standard deviation of the logarithm of what a comparison, and a session, really takes.
SPREAD = 0.8
SESSION_S = 60.0
# One in so many cannot be measured at all.
REFUSED = 500
TROUBLE = Trouble(
    slot_s=6 * 3600.0,
    node_s=24 * 3600.0,
    back_s=1200.0,
    killing=frozenset(["H100-3"]),
    stillborn=frozenset(["L40S-7"]),
)


def studies(count: int) -> list[Study]:
    """Return studies of so many comparisons in all, for each kind as many as it has GPUs."""
    gpus = sum(nodes * each for nodes, each, _ in KINDS.values())
    found, window = [], 0
    for kind, (nodes, each, _) in KINDS.items():
        share = max(1, round(count * nodes * each / gpus / len(BUDGETS_S) / 2))
        for budget in BUDGETS_S:
            variants = tuple(Subject.parse(f"bert@local:window={window + n + 1}") for n in range(share))
            window += share
            study = Study(
                name=f"{kind} {budget:g}",
                modality="text",
                baselines=(Subject.parse("bert"),),
                variants=variants,
                lengths=(64, 4096),
                places=(Place(kind=kind),),
                apart=True,
                budget_s=budget * 2 * share,
            )
            found.append(resolve_study(study))
    return found


def plans_of(parts: list[Study], seed: int) -> dict[str, tuple[float, ...]]:
    """Return what the sessions of each comparison really take; none of those that are refused."""
    generator = np.random.default_rng(seed)
    plans = {}
    for number, part in enumerate(parts):
        if number % REFUSED == REFUSED // 2:
            continue
        left = part.budget_s * float(generator.lognormal(-(SPREAD**2) / 2, SPREAD))
        sessions = []
        while left > 0:
            session = min(left, SESSION_S * float(generator.lognormal(-(SPREAD**2) / 2, SPREAD)))
            sessions.append(session)
            left -= session
        plans[study_key(part)] = tuple(sessions)
    return plans


class Aside:
    """Something whose CPU time is taken by itself."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.cpu_s, self.calls = inner, 0.0, 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a method that is timed."""
        method = getattr(self._inner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return method(*arguments, **options)
            finally:
                self.cpu_s += time.process_time() - began
                self.calls += 1

        setattr(self, name, timed)
        return timed


class Nowhere:
    """A store that keeps nothing."""

    def add(self, *_: Any, **__: Any) -> None:
        """Keep nothing."""


def run(parts: list[Study], plans: dict[str, tuple[float, ...]], store: Any, seed: int) -> dict[str, Any]:
    """Measure everything once; return figures."""
    nodes = [Nodes(Place(kind=kind), count, slots, start) for kind, (count, slots, start) in KINDS.items()]
    cluster = SimulatedCluster(nodes, planned(plans), trouble=TROUBLE, seed=seed)
    waiting = [Comparison(part, 0) for part in parts]
    around, kept = Aside(cluster), Aside(store)
    lines: list[str] = []
    started, began = now(), time.process_time()
    Coordinator(waiting, kept, around, say=lines.append).run()  # type: ignore[arg-type]
    own = time.process_time() - began - around.cpu_s - kept.cpu_s
    bounds = cluster.bounds_s()
    return {
        "comparisons": len(parts),
        "sessions": kept.calls,
        "makespan_s": cluster.now(),
        "bounds_s": {str(place): bound for place, bound in bounds.items()},
        "over_bound": cluster.now() / max(bounds.values()),
        "measured_s": sum(seconds for _, seconds in cluster.worked.values()),
        "refused": sum("does not fit" in part.trouble for part in waiting),
        "given_up": sum(part.trouble.startswith("lost") for part in waiting),
        "counts": dict(sorted(cluster.counts.items())),
        "lines": len(lines),
        "coordinator_cpu_s": own,
        "coordinator_cpu_ms_per_comparison": 1e3 * own / len(parts),
        "store_cpu_s": kept.cpu_s,
        "wall_s": now() - started,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def resume(parts: list[Study], path: Path) -> dict[str, Any]:
    """Return what it takes to go on with all that is in a store."""
    with Store(path, create=False) as store:
        began = time.process_time()
        sessions = store.sessions()
        read = time.process_time()
        waiting = [Comparison(part, 0) for part in parts]
        _recall(waiting, sessions, "")
        recalled = time.process_time()
        Coordinator(waiting, store, None, say=print)  # type: ignore[arg-type]
        queued = time.process_time()
    return {
        "sessions": len(sessions),
        "read_cpu_s": read - began,
        "recall_cpu_s": recalled - read,
        "queue_cpu_s": queued - recalled,
        "store_bytes": path.stat().st_size,
    }


def main() -> None:
    """Simulate, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--comparisons", type=int, default=COMPARISONS)
    parser.add_argument("--seeds", type=int, default=3, help="so many simulations without a store on disk")
    parser.add_argument("--on-disk", type=int, default=1000, help="comparisons of one with a store on disk")
    parser.add_argument("--profile", action="store_true", help="say where the time of the first one went, and end")
    parser.add_argument("--json", type=Path, help="write what was found here as well")
    options = parser.parse_args()
    began = time.process_time()
    wanted = studies(options.comparisons)
    parts = [part for study in wanted for part in comparisons(study)]
    print(f"{len(parts)} comparisons made in {time.process_time() - began:.2f} s of CPU time")
    if options.profile:
        profiler = cProfile.Profile()
        profiler.runcall(run, parts, plans_of(parts, 0), Nowhere(), 0)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
        return
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.sqlite"
        for seed in range(options.seeds + bool(options.on_disk)):
            on_disk = seed == options.seeds
            if on_disk:
                parts = [part for study in studies(options.on_disk) for part in comparisons(study)]
            plans = plans_of(parts, seed)
            with Store(path) if on_disk else nullcontext(Nowhere()) as store:
                found = {"seed": seed, "store": "on disk" if on_disk else "none"}
                found |= run(parts, plans, store, seed)
            runs.append(found)
            print(
                f"seed {seed}, store {found['store']}: {format_seconds(found['makespan_s'])}, "
                f"{found['over_bound']:.3f} of the lower bound; "
                f"{found['coordinator_cpu_ms_per_comparison']:.3f} ms of CPU time for each comparison; "
                f"{found['refused']} refused, {found['given_up']} given up; {found['counts']}; "
                f"{format_bytes(found['peak_memory_bytes'])} at most"
            )
            if on_disk:
                runs.append({"resume": resume(parts, path)})
                print(runs[-1])
    if options.json:
        record = {
            "command": " ".join(["python", *sys.argv]),
            "environment": asdict(read_environment("cpu", 1)),
            "cluster": {kind: dict(zip(("nodes", "gpus", "start_s"), KINDS[kind], strict=True)) for kind in KINDS},
            "budgets_s": BUDGETS_S,
            "spread": SPREAD,
            "session_s": SESSION_S,
            "trouble": {key: sorted(v) if isinstance(v, frozenset) else v for key, v in asdict(TROUBLE).items()},
            "runs": runs,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
