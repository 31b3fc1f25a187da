"""Fuzz everything that reads what a stranger wrote: python fuzz/run.py --inputs 1000000 [--engine atheris|random].

Inputs are shared out among the targets (`targets/`). Each target runs in a process of its own, one after the other;
after a crash the next process goes on. An input that raised something else than a `TippingPointError`, took longer
than 20 s, more than 3 GiB, or ended the process is kept under fuzz/crashes/TARGET/, which tests replay from then on.
With --record FILE the numbers are written there, beside those of earlier runs.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from targets import TARGETS  # noqa: E402 (found beside this file)

# Each input is written down before it is tried.
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
_RESTARTS = 10
_PATIENCE_S = 120
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)|^#(\d+)\s.*?cov: (\d+)", re.MULTILINE)


@dataclass
class Result:
    """What became of a target."""

    target: str
    engine: str
    inputs: int = 0
    seconds: float = 0.0
    edges: int | None = None
    crashes: list[str] = field(default_factory=list)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def fuzz(target: str, engine: str, inputs: int, seconds: float, seed: int) -> Result:
    """Try inputs on one target, in as many processes as it takes."""
    result = Result(target, engine)
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        for restart in range(_RESTARTS + 1):
            left = inputs - result.inputs
            if left <= 0 or result.seconds >= seconds:
                break
            begin = time.monotonic()
            code, tried, edges, said = _run(target, engine, left, seconds - result.seconds, seed + restart, folder)
            result.seconds += time.monotonic() - begin
            result.inputs += tried
            result.edges = max(filter(None, (result.edges, edges)), default=None)
            if code == 0:
                break
            now = Path(folder, "now")
            if not now.exists():
                raise SystemExit(f"{target} did not begin:\n{said}")
            result.crashes.append(_keep(target, now.read_bytes()))
            say(f"  crash {result.crashes[-1]} (exit code {code})\n{said}")
    return result


def _run(
    target: str, engine: str, inputs: int, seconds: float, seed: int, folder: str
) -> tuple[int, int, int | None, str]:
    """Run one process; return its exit code, the inputs it tried, the edges it covered, and its last lines."""
    words = [target, engine, str(inputs), f"{seconds:.0f}", str(seed), folder]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, str(HERE / "child.py"), *words], stdout=log, stderr=log)
        try:
            code = process.wait(seconds + _PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        log.seek(0)
        said = log.read()
    tried, edges = 0, None
    if engine == "atheris":
        for total, at, covered in _EXECUTED.findall(said):
            tried = max(tried, int(total or at))
            edges = int(covered) if covered else edges
    elif found := re.findall(r'^\{"inputs": (\d+)\}', said, re.MULTILINE):
        tried = int(found[-1])
    return code, tried, edges, "\n".join(said.splitlines()[-25:])


def _keep(target: str, data: bytes) -> str:
    """Keep an input that broke a target; return where."""
    path = HERE / "crashes" / target / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path.relative_to(HERE.parent))


def record(results: list[Result], path: Path, seed: int) -> None:
    """Write what was found, behind what was written before."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=HERE)
    run = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "seed": seed,
        "targets": [vars(result) | {"seconds": round(result.seconds, 1)} for result in results],
    }
    runs.append(run)
    total = sum(each["inputs"] for one in runs for each in one["targets"])
    path.write_text(json.dumps({"inputs": total, "runs": runs}, indent=1) + "\n")


def main() -> None:
    """Run what the command line asks for; exit code 1 if something crashed."""
    parser = argparse.ArgumentParser(description="Fuzz everything that reads what a stranger wrote.")
    parser.add_argument("--inputs", type=int, default=20_000, help="of all targets together")
    parser.add_argument("--seconds", type=float, default=86_400, help="of all targets together")
    parser.add_argument("--engine", choices=("atheris", "random"), help="atheris where it is installed")
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated; all by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path, help="a JSON file that the numbers are added to")
    given = parser.parse_args()
    there = importlib.util.find_spec("atheris") is not None
    if given.engine == "atheris" and not there:
        raise SystemExit("atheris is not installed; pip install 'tippingpoint[fuzz]', or take --engine random")
    engine = given.engine or ("atheris" if there else "random")
    if not there:
        say("atheris is not installed: inputs are mutated at random, without a look at what they reach")
    chosen = given.targets.split(",")
    if unknown := set(chosen) - set(TARGETS):
        raise SystemExit(f"unknown targets {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    weight = sum(TARGETS[name] for name in chosen)
    results = []
    for name in chosen:
        share = TARGETS[name] / weight
        result = fuzz(name, engine, max(1, round(given.inputs * share)), given.seconds / len(chosen), given.seed)
        edges = "" if result.edges is None else f", {result.edges:,} edges"
        say(
            f"{name}: {result.inputs:,} inputs in {result.seconds:.0f} s ({engine}){edges}, "
            f"{len(result.crashes)} crashes",
        )
        results.append(result)
    say(f"{sum(result.inputs for result in results):,} inputs")
    if given.record:
        record(results, given.record, given.seed)
    if any(result.crashes for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
