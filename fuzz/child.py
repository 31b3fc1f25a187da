"""One target in a process of its own: python fuzz/child.py TARGET ENGINE INPUTS SECONDS SEED FOLDER.

The input at hand is written to FOLDER/now before it is tried, so that whatever ends this process leaves it behind.
Exit codes: 0 done; 70 an input took too long; 71 it took too much memory; 77 it raised. The random engine prints a
line of JSON at the end; what atheris prints is read by `run.py`.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import resource
import signal
import sys
import traceback
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
LONGEST_S = 20
MOST_MEMORY = 3 * 2**30
# Bytes on a Mac, KiB elsewhere.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
TOO_LONG, TOO_MUCH, RAISED = 70, 71, 77


class _TooLongError(BaseException):
    pass


def seeds_of(target: str) -> list[bytes]:
    """Return the inputs that a target begins with: those that are kept, and what once broke it."""
    folders = (HERE / "corpus" / target, HERE / "crashes" / target)
    return [path.read_bytes() for folder in folders for path in sorted(folder.glob("*")) if path.is_file()]


def run_random(module: ModuleType, target: str, inputs: int, seconds: float, seed: int, now: Path) -> int:
    """Try mutations of the seeds, and of mutations; return the exit code."""
    import time

    from mutations import mutated

    random = Random(seed)
    known = seeds_of(target) or [b""]
    tokens, is_json = getattr(module, "TOKENS", ()), getattr(module, "JSON", False)
    begin, done = time.monotonic(), 0

    def expire(*_: object) -> None:
        raise _TooLongError

    signal.signal(signal.SIGALRM, expire)
    code = 0
    while done < inputs and time.monotonic() - begin < seconds:
        data = mutated(random.choice(known), random, tokens, known, is_json=is_json)
        now.write_bytes(data)
        # The second one is for what does not come back to Python.
        signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
        faulthandler.dump_traceback_later(2 * LONGEST_S, exit=True)
        try:
            done += 1
            module.one_input(data)
        except _TooLongError:
            code = TOO_LONG
        except BaseException:  # noqa: BLE001 - whatever it is, it is a defect
            code = RAISED
            traceback.print_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT > MOST_MEMORY:
            code = TOO_MUCH
        if code:
            break
        if len(known) < 2000 and random.random() < 0.001:
            known.append(data)
    sys.stdout.write(json.dumps({"inputs": done}) + "\n")
    return code


def run_atheris(target: str, inputs: int, seconds: float, seed: int, now: Path) -> None:
    """Let atheris look for inputs that reach code which no other one reached; it ends the process."""
    # Of its names some are native, and no type checker sees them.
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["tippingpoint", "yaml"]):
        from targets import load

        module = load(target)
    from mutations import mutated

    tokens, is_json = getattr(module, "TOKENS", ()), getattr(module, "JSON", False)
    known = seeds_of(target)

    def one_input(data: bytes) -> None:
        now.write_bytes(data)
        module.one_input(data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        if seed % 2:
            return atheris.Mutate(data, max_size)
        return mutated(data, Random(seed), tokens, known, is_json=is_json)[:max_size]

    grown = now.parent / "grown"
    grown.mkdir(exist_ok=True)
    flags = {
        "runs": inputs,
        "max_total_time": int(seconds) or 1,
        "seed": seed,
        "timeout": LONGEST_S,
        "rss_limit_mb": MOST_MEMORY // 2**20,
        "max_len": max(4096, *(len(each) + 512 for each in known), 4096),
        "print_final_stats": 1,
        "artifact_prefix": f"{now.parent}/",
    }
    folders = [str(grown), *(str(path) for path in (HERE / "corpus" / target,) if path.is_dir())]
    arguments = [sys.argv[0], *(f"-{name}={value}" for name, value in flags.items()), *folders]
    atheris.Setup(arguments, one_input, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    """Run what the command line asks for."""
    sys.path.insert(0, str(HERE))
    target, engine, inputs, seconds, seed, folder = sys.argv[1:]
    now = Path(folder, "now")
    if engine == "atheris":
        run_atheris(target, int(inputs), float(seconds), int(seed), now)
        return
    from targets import load

    sys.exit(run_random(load(target), target, int(inputs), float(seconds), int(seed), now))


if __name__ == "__main__":
    main()
