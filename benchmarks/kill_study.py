"""Studies of real models whose coordinator, worker or both are killed at random moments, and what they end with.

Every study is started again after its coordinator died, until it is finished; then its store is looked over. When a
worker is killed while its coordinator lives, the session is measured once more; if a worker of that is killed too, it
leaves a failure, which is not tried again, and not at longer inputs, so that such a study may end with less.

    python benchmarks/kill_study.py               100 kills; about 20 minutes on two idle cores
    python benchmarks/kill_study.py --kills 10

Required, of every study: after each kill, the sessions that were there before are there, in order, as they were. In
the end each workload (subject, length, phase, batch size) was measured once, as without kills, but for those with a
failure and longer ones of the same subject; every session is whole, there are at most half as many failures as
killed workers, and SQLite's own check is clean.
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
    integrity,
    problems,
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


def run(folder: Path, chance: random.Random, most: int) -> tuple[Counter[str], list[str]]:
    """Run a study to its end, killing up to `most` times; return how often each victim died, and what got lost."""
    killed: Counter[str] = Counter()
    lost: list[str] = []
    before = sessions_in(folder)
    while True:
        with start_study(folder) as process:
            while killed.total() < most and process.poll() is None:
                time.sleep(chance.uniform(0, LONGEST_WAIT_S))
                victim = chance.choice(VICTIMS)
                before = sessions_in(folder)
                if process.poll() is None and kill(process, victim):
                    killed[victim] += 1
                    if sessions_in(folder)[: len(before)] != before:
                        lost.append(f"the death of {victim} changed what was there")
                    if victim != "worker":
                        break
            _, complaints = process.communicate()
        if "Traceback" in complaints:
            raise SystemExit(complaints)
        if process.returncode != -signal.SIGKILL:
            if sessions_in(folder)[: len(before)] != before:
                lost.append("what was there at the last kill is not there as it was")
            return killed, lost


def problems_of(folder: Path, workers_killed: int) -> list[str]:
    """Return what is wrong with the store of a study that is finished."""
    sessions = sessions_in(folder)
    failed = sum(hasattr(outcome, "kind") for session in sessions for outcome in session.outcomes)
    found = problems(sessions)
    if failed > workers_killed // 2:
        found.append(f"{failed} failures, and {workers_killed} workers were killed")
    if integrity(folder / "results.sqlite") != "ok":
        found.append("the integrity check is not clean")
    return found


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
            died, found = run(Path(name), chance, most)
            killed += died
            found += problems_of(Path(name), died["worker"])
        wrong += bool(found)
        told = ", ".join(f"{count} times {victim}" for victim, count in died.items()) or "nobody"
        print(f"study {studies}: killed {told}; {'; '.join(found) or 'fine'}", flush=True)
    shares = ", ".join(f"{killed[victim]} times {victim}" for victim in VICTIMS)
    print(f"{killed.total()} kills ({shares}) in {studies} studies: {wrong} of them not as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
