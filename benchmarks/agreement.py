"""Does our median latency agree with an independent harness? Runs for about ten minutes; let nothing else run.

    python benchmarks/agreement.py [--repeats 5]

`bert` and `vit` are timed at three lengths by `tippingpoint.profile` and, in processes of their own, by
`torch.utils.benchmark` on models that the Transformers library builds without our code; a bare matrix product is
timed by both too. The two take turns, so that drift of the machine hits both alike, and the median of the ratios
is printed with the range of single repeats.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from tippingpoint import Measurement, Workload, profile
from tippingpoint.profiling.device import CpuDevice
from tippingpoint.profiling.environment import usable_cores
from tippingpoint.profiling.timing import calls_per_block, warm_up

LENGTHS = {"bert": (128, 384, 1024), "vit": (160, 224, 384)}
MATRICES = (256, 1024)
# Seconds that either harness times one workload in one repeat.
SECONDS = 5.0

_INDEPENDENT = """
import sys, torch, transformers
from torch.utils.benchmark import Timer

name, length, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
if name == "bert":
    model = transformers.BertModel(transformers.BertConfig(max_position_embeddings=max(512, length)))
    batch = {"input_ids": torch.randint(5, 30522, (1, length))}
elif name == "vit":
    model = transformers.ViTModel(transformers.ViTConfig(image_size=length))
    batch = {"pixel_values": torch.randn(1, 3, length, length)}
else:
    a, b = torch.randn(length, length), torch.randn(length, length)
    model, batch = None, None
if model is not None:
    model.eval().requires_grad_(False)
with torch.inference_mode():
    timer = Timer(
        stmt="model(**batch)" if model is not None else "a @ b",
        globals=globals(), num_threads=threads,
    )
    print(timer.blocked_autorange(min_run_time=float(sys.argv[4])).median)
"""


def independent(name: str, length: int, threads: int) -> float:
    """Return the other harness's median seconds per call, in a fresh process."""
    command = [sys.executable, "-c", _INDEPENDENT, name, str(length), str(threads), str(SECONDS)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def ours(name: str, length: int, threads: int) -> float:
    """Return our median seconds per call."""
    if name == "matmul":
        return _our_matmul(length, threads)
    # A target that is never reached: both harnesses time for as long.
    found = profile(Workload(name, length, threads=threads), target=1e-4, budget_s=SECONDS)
    if not isinstance(found, Measurement):
        raise SystemExit(f"{name} at {length} could not be measured: {found}")
    return found.latency_s


def _our_matmul(length: int, threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(length, length), torch.randn(length, length)
    device = CpuDevice()

    def call() -> None:
        with torch.inference_mode():
            torch.mm(a, b)

    calls = calls_per_block(warm_up(device, call).per_call_s[-1])
    count = max(4, round(SECONDS / (0.02 if calls > 1 else warm_up(device, call).per_call_s[-1])))
    return statistics.median(device.time_block(call, calls)[0] / calls for _ in range(count))


def main() -> None:
    """Print one line for each workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    threads = usable_cores()
    workloads = [(name, length) for name, lengths in LENGTHS.items() for length in lengths]
    workloads += [("matmul", size) for size in MATRICES]
    print(f"{threads} threads, {repeats} repeats, {SECONDS:g} s each; ratio = ours / torch.utils.benchmark\n")
    print(f"{'workload':<14}{'ours':>12}{'theirs':>12}{'ratio':>9}   single repeats")
    for name, length in workloads:
        pairs = []
        for repeat in range(repeats):
            if repeat % 2:
                theirs, mine = independent(name, length, threads), ours(name, length, threads)
            else:
                mine, theirs = ours(name, length, threads), independent(name, length, threads)
            pairs.append((mine, theirs))
        ratios = sorted(mine / theirs for mine, theirs in pairs)
        mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"{name + ' ' + str(length):<14}{1e3 * mine:>9.2f} ms{1e3 * theirs:>9.2f} ms"
            f"{statistics.median(ratios):>9.3f}   {ratios[0]:.3f} to {ratios[-1]:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
