"""Studies of real models whose coordinator, worker or both are killed at random moments, and what they end with.

Every study is started again after its coordinator died, until it is finished; then its store is looked over. A
worker that is killed while its coordinator lives leaves a failure, like any that crashes; what crashed is not tried
again, and not at longer inputs, so that such a study may end with less.

    python benchmarks/kill_study.py               100 kills; about 20 minutes on two idle cores
    python benchmarks/kill_study.py --kills 10

Required, of every study: what is finished (subject, length and phase) is what an undisturbed run finishes, unless a
killed worker left a failure; nothing is there twice, every session is whole, there are no more failures than killed
workers, and SQLite's own check is clean.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))
sys.path.append(str(Path(__file__).parent.parent / "tests" / "study"))
from test_killed import (  # pyright: ignore[reportMissingImports]
    LENGTHS,
    SUBJECTS,
    integrity,
    sessions_in,
    start_study,
    workers_of,
)

from processes import descendants_of  # pyright: ignore[reportMissingImports]

VICTIMS = ("coordinator", "worker", "both")
# Studies take a few seconds; one that is killed much later would mostly be over.
LONGEST_WAIT_S = 8.0


def kill(process: subprocess.Popen[str], victim: str) -> bool:
    """Kill processes of a study; return whether there were any."""
    workers = workers_of(process.pid)
    chosen = {
        "coordinator": [process.pid],
        "worker": workers[:1],
        "both": [process.pid, *descendants_of(process.pid)] if workers else [],
    }[victim]
    for pid in chosen:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
    return bool(chosen)


def run(folder: Path, chance: random.Random, most: int) -> Counter[str]:
    """Run a study to its end, killing up to `most` times; return how often each victim died."""
    killed: Counter[str] = Counter()
    while True:
        with start_study(folder) as process:
            while killed.total() < most and process.poll() is None:
                time.sleep(chance.uniform(0, LONGEST_WAIT_S))
                victim = chance.choice(VICTIMS)
                if process.poll() is None and kill(process, victim):
                    killed[victim] += 1
                    if victim != "worker":
                        break
            _, complaints = process.communicate()
        if "Traceback" in complaints:
            raise SystemExit(complaints)
        if process.returncode != -signal.SIGKILL:
            return killed


def problems(folder: Path, workers_killed: int) -> list[str]:
    """Return what is wrong with the store of a study that is finished."""
    outcomes = [outcome for session in sessions_in(folder) for outcome in session.outcomes]
    whole = [outcome for outcome in outcomes if outcome.workload.layers is None]
    finished = {(str(o.workload.subject), o.workload.length, o.workload.phase) for o in whole}
    expected = {(subject, float(length), "inference") for subject in SUBJECTS for length in LENGTHS}
    failed = sum(hasattr(outcome, "kind") for outcome in outcomes)
    twice = [key for key, count in Counter((o.session, o.workload) for o in outcomes).items() if count > 1]
    return [
        text
        for wrong, text in (
            (not failed and not finished >= expected, f"{sorted(expected - finished)} are missing"),
            (bool(twice), f"{len(twice)} outcomes stand twice"),
            (failed > workers_killed, f"{failed} failures, and {workers_killed} workers were killed"),
            (integrity(folder / "results.sqlite") != "ok", "the integrity check is not clean"),
        )
        if wrong
    ]


def main() -> int:
    """Kill, print what happened, and return 1 if a store is not what it should be."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    chance = random.Random(given.seed)
    killed: Counter[str] = Counter()
    studies = wrong = 0
    while killed.total() < given.kills:
        studies += 1
        with tempfile.TemporaryDirectory() as name:
            most = min(chance.randint(1, 6), given.kills - killed.total())
            died = run(Path(name), chance, most)
            killed += died
            found = problems(Path(name), died["worker"])
        wrong += bool(found)
        told = ", ".join(f"{count} times {victim}" for victim, count in died.items()) or "nobody"
        print(f"study {studies}: killed {told}; {'; '.join(found) or 'fine'}", flush=True)
    shares = ", ".join(f"{killed[victim]} times {victim}" for victim in VICTIMS)
    print(f"{killed.total()} kills ({shares}) in {studies} studies: {wrong} of them not as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
