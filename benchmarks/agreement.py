"""Does our median latency agree with an independent harness? Runs for about ten minutes; let nothing else run.

    python benchmarks/agreement.py [--repeats 3] [--apart]

`bert` and `vit` are timed at three lengths, and a bare matrix product at two sizes, by our blocks and by
`torch.utils.benchmark`. Both time the same forward in the same process and take turns block by block, so that neither
drift of the machine nor where memory happens to lie in a process is taken for a difference of the harnesses. Each
repeat is a fresh process. Printed are the medians, the median of the repeats' ratios with their range, and whether
the 95 % interval of the ratio holds 1.

With `--apart` the whole of `tippingpoint.profile` is held against `torch.utils.benchmark` in a process of its own, on
a model that the Transformers library builds without our code (twelve minutes). Then the differences between two
processes of one model are in the ratio too, and they are larger than those of the harnesses.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable

import numpy as np

from tippingpoint import Measurement, Workload, profile
from tippingpoint.intervals import center_replicates, interval
from tippingpoint.profiling.hardware import usable_cores

LENGTHS = {"bert": (128, 384, 1024), "vit": (160, 224, 384)}
MATRICES = (256, 1024)
# Seconds that each harness times one workload in one repeat.
SECONDS = 2.5

_INDEPENDENT = """
import sys, torch, transformers
from torch.utils.benchmark import Timer

name, length, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
if name == "bert":
    model = transformers.BertModel(transformers.BertConfig(max_position_embeddings=max(512, length)))
    batch = {"input_ids": torch.randint(5, 30522, (1, length))}
else:
    model = transformers.ViTModel(transformers.ViTConfig(image_size=length))
    batch = {"pixel_values": torch.randn(1, 3, length, length)}
model.eval().requires_grad_(False)
with torch.inference_mode():
    timer = Timer(stmt="model(**batch)", globals=globals(), num_threads=threads)
    print(timer.blocked_autorange(min_run_time=float(sys.argv[4])).median)
"""


def beside(name: str, length: int, threads: int) -> tuple[float, float]:
    """Time one workload by both harnesses in turns, in this process; return our and their median seconds."""
    import torch
    from torch.utils.benchmark import Timer

    from tippingpoint.profiling.device import CpuDevice
    from tippingpoint.profiling.timing import calls_per_block, warm_up

    torch.set_num_threads(threads)
    device, call = CpuDevice(), _forward(name, length, threads)
    per_call = warm_up(device, call).per_call_s[-1]
    calls = calls_per_block(per_call)
    timer = Timer(stmt="call()", globals={"call": call}, num_threads=threads)
    timer.timeit(calls)
    ours: list[float] = []
    theirs: list[float] = []
    turns = [
        lambda: ours.append(device.time_block(call, calls)[0] / calls),
        lambda: theirs.append(timer.timeit(calls).median),
    ]
    for _ in range(max(4, round(SECONDS / (calls * per_call)))):
        for turn in turns:
            turn()
        turns.reverse()
    return statistics.median(ours), statistics.median(theirs)


def _forward(name: str, length: int, threads: int) -> Callable[[], None]:
    import torch

    if name != "matmul":
        from tippingpoint.models.build import build

        workload = Workload(name, length, threads=threads)
        return build(workload).call(workload)
    a, b = torch.randn(length, length), torch.randn(length, length)

    def call() -> None:
        with torch.inference_mode():
            torch.mm(a, b)

    return call


def in_a_fresh_process(name: str, length: int, threads: int) -> tuple[float, float]:
    """Return what `beside` gives in a process of its own."""
    command = [sys.executable, __file__, "--one", name, str(length), str(threads)]
    ours, theirs = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:]
    return float(ours), float(theirs)


def apart(name: str, length: int, threads: int) -> tuple[float, float]:
    """Return the median seconds of `profile`, and of the other harness in a process that has none of our code."""
    # A target that is never reached: both harnesses time for as long.
    found = profile(Workload(name, length, threads=threads), target=1e-4, budget_s=SECONDS)
    if not isinstance(found, Measurement):
        raise SystemExit(f"{name} at {length} could not be measured: {found}")
    command = [sys.executable, "-c", _INDEPENDENT, name, str(length), str(threads), str(SECONDS)]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    return found.latency_s, float(theirs)


def main() -> None:
    """Print one line for each workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "LENGTH", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, length, threads = options.one
        print(*beside(name, int(length), int(threads)))
        return
    threads = usable_cores()
    workloads = [(name, length) for name, lengths in LENGTHS.items() for length in lengths]
    if not options.apart:
        workloads += [("matmul", size) for size in MATRICES]
    where = "in processes of their own" if options.apart else "in turns within one process"
    print(f"{threads} threads, {options.repeats} repeats, {SECONDS:g} s each, {where}")
    print("ratio = ours / torch.utils.benchmark\n")
    print(f"{'workload':<14}{'ours':>12}{'theirs':>12}{'ratio':>9}   {'repeats':<17}95 %")
    for name, length in workloads:
        measure = apart if options.apart else in_a_fresh_process
        pairs = [measure(name, length, threads) for _ in range(options.repeats)]
        logs = np.log([mine / theirs for mine, theirs in pairs])
        low, high = np.exp(interval(center_replicates(logs)))
        mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"{f'{name} {length}':<14}{1e3 * mine:>9.2f} ms{1e3 * theirs:>9.2f} ms{np.exp(np.median(logs)):>9.3f}   "
            f"{f'{np.exp(logs.min()):.3f} to {np.exp(logs.max()):.3f}':<17}{low:.3f} to {high:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
