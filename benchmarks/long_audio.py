"""How much audio fits into memory? HuBERT with local attention, with and without chunks of time. About 15 minutes.

    python benchmarks/long_audio.py [--minutes 1,5,15,60] [--seconds 30] [--limit 10] [--json FILE]

HuBERT at its Base size with random weights and `local:window=50` runs once on white noise of each length, each time
in a fresh process: as it is ("whole"), and after `chunk_activations`. Printed are the peak of resident memory with
everything that the process holds, the part that was not there before the call, seconds, and both again as "whole"
over "chunks"; below, what a minute more takes, and how far the two results are apart at the shortest length. No
process may hold more than `--limit` GB (1e9 bytes) of data: the system refuses it more, and a row says so; an arm
that was refused is not tried at longer lengths.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from tippingpoint.models.long_audio import chunk_activations
from tippingpoint.models.speech import HUBERT, SAMPLING_RATE
from tippingpoint.models.swap import swap_attention
from tippingpoint.profiling.device import CpuDevice
from tippingpoint.profiling.environment import read_environment

VARIANT = "local:window=50"
ARMS = ("chunks", "whole")
_REFUSED = ("can't allocate memory", "not enough memory", "could not create", "out of memory")


def build(size: str) -> transformers.PreTrainedModel:
    """Return HuBERT with local attention."""
    torch.manual_seed(0)
    model = transformers.HubertModel(transformers.HubertConfig(**HUBERT.sizes[size]))
    return swap_attention(model.eval().requires_grad_(False), VARIANT)


def noise(minutes: float) -> torch.Tensor:
    """Return the audio, [1, samples]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, round(minutes * 60 * SAMPLING_RATE), generator=generator)


def measure(arm: str, minutes: float, seconds: float, size: str) -> dict[str, Any]:
    """Run once in this process, after a second of audio to warm up."""
    device = CpuDevice()
    device.trim()
    model = build(size)
    if arm == "chunks":
        chunk_activations(model, seconds=seconds)
    audio = noise(minutes)
    with torch.inference_mode():
        model(noise(1 / 60))
        device.reset_peak()
        before, begin = device.used_bytes(), device.now()
        try:
            positions = model(audio).last_hidden_state.shape[1]
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(words in str(error) for words in _REFUSED):
                raise
            return {"refused": True}
        took = device.now() - begin
    peak = device.peak_bytes()
    return {
        "positions": positions,
        "seconds": took,
        "peak_bytes": peak,
        "call_bytes": peak - before,
        "memory_method": device.memory_method,
    }


def compare(minutes: float, seconds: float, size: str) -> dict[str, Any]:
    """Return how far apart the results are."""
    model, audio = build(size), noise(minutes)
    with torch.inference_mode():
        whole = model(audio).last_hidden_state
        chunked = chunk_activations(model, seconds=seconds)(audio).last_hidden_state
    return {"largest_difference": float((whole - chunked).abs().max()), "largest_value": float(whole.abs().max())}


def in_a_process(arm: str, minutes: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run an arm in a fresh process and return what it found."""
    settings = ["--seconds", str(options.seconds), "--limit", str(options.limit), "--size", options.size]
    command = [sys.executable, __file__, "--one", arm, "--minutes", str(minutes), *settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arm} at {minutes:g} minutes ended with code {done.returncode}")
    return json.loads(done.stdout)


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print a line for each length and arm, and what a minute more takes."""
    print(f"{'minutes':>8} {'arm':<8} {'peak':>10} {'of the call':>12} {'time':>9} {'x real time':>12}")
    chunks = {row["minutes"]: row for row in rows if row["arm"] == "chunks" and "seconds" in row}
    for row in rows:
        start = f"{row['minutes']:>8g} {row['arm']:<8} "
        if "refused" in row:
            print(start + "more than the limit")
            continue
        line = f"{row['peak_bytes'] / 1e9:>7.2f} GB {row['call_bytes'] / 1e9:>9.2f} GB {row['seconds']:>7.1f} s"
        line += f" {row['minutes'] * 60 / row['seconds']:>12.1f}"
        other = chunks.get(row["minutes"])
        if row["arm"] == "whole" and other:
            memory, time = row["call_bytes"] / other["call_bytes"], row["seconds"] / other["seconds"]
            line += f"   {memory:.1f} x the memory and {time:.2f} x the time of chunks"
        print(start + line)
    for arm in ARMS:
        measured = [row for row in rows if row["arm"] == arm and "seconds" in row]
        for one, two in itertools.pairwise(measured):
            minutes = two["minutes"] - one["minutes"]
            grows = (two["call_bytes"] - one["call_bytes"]) / minutes / 1e6
            slower = (two["seconds"] - one["seconds"]) / minutes
            span = f"from {one['minutes']:g} to {two['minutes']:g} minutes"
            print(f"{arm}: {span} each takes {grows:.0f} MB and {slower:.2f} s")


def main() -> None:
    """Measure each length, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", default="1,5,15,60", help="lengths of the audio, ascending")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a chunk")
    parser.add_argument("--limit", type=float, default=10.0, help="GB of data that a process may hold")
    parser.add_argument("--size", default="base", choices=list(HUBERT.sizes))
    parser.add_argument("--json", type=Path, help="also write the rows and the environment to this file")
    parser.add_argument("--one", choices=[*ARMS, "compare"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    lengths = [float(minutes) for minutes in options.minutes.split(",")]
    if options.one:
        resource.setrlimit(resource.RLIMIT_DATA, (int(options.limit * 1e9), -1))
        if options.one == "compare":
            found = compare(lengths[0], options.seconds, options.size)
        else:
            found = measure(options.one, lengths[0], options.seconds, options.size)
        print(json.dumps(found))
        return
    rows, refused = [], set()
    for minutes in lengths:
        for arm in ARMS:
            if arm in refused:
                continue
            row = {"arm": arm, "minutes": minutes, **in_a_process(arm, minutes, options)}
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
            if "refused" in row:
                refused.add(arm)
    report(rows)
    apart: dict[str, Any] = {}
    if any(row["arm"] == "whole" and "seconds" in row for row in rows):
        apart = in_a_process("compare", lengths[0], options)
        print(
            f"largest difference of the results at {lengths[0]:g} minutes: {apart['largest_difference']:.1e}, "
            f"where the largest value is {apart['largest_value']:.1f}"
        )
    if options.json:
        found = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "subject": f"hubert@{VARIANT}, {options.size}, float32, random weights, batch size 1, inference",
            "chunk_seconds": options.seconds,
            "limit_bytes": int(options.limit * 1e9),
            "environment": asdict(read_environment("cpu", torch.get_num_threads())),
            "rows": rows,
            "results_apart": apart,
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
