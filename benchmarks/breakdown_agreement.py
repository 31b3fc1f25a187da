"""Parts timed alone beside what a breakdown says of them: projections, feed-forward layers, the front end.

    python benchmarks/breakdown_agreement.py
    python benchmarks/breakdown_agreement.py --length 512 --json agreement.json

Alone means: the modules of one part, with the inputs that the model gave them, run one after the other in a loop of
their own. What is different then: the caches hold what the loop left, not what the model did.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tippingpoint import Breakdown, Workload, breakdown
from tippingpoint.models.build import build
from tippingpoint.models.components import ATTENTION, FEED_FORWARD, INPUT, OUTPUT_PROJECTION, PROJECTIONS
from tippingpoint.profiling.attribution import name_modules
from tippingpoint.profiling.device import CpuDevice
from tippingpoint.report.records import plain

PARTS = {
    "bert": ((ATTENTION, PROJECTIONS), (ATTENTION, OUTPUT_PROJECTION), (FEED_FORWARD, "up"), (FEED_FORWARD, "down")),
    "hubert": ((INPUT, "convolutional front end"), (INPUT, "positional convolution"), (FEED_FORWARD, "up")),
    "vit": ((INPUT, "patch embedding"), (ATTENTION, PROJECTIONS), (FEED_FORWARD, "up"), (FEED_FORWARD, "down")),
}


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=1024, help="positions, about")
    parser.add_argument("--only", default=",".join(PARTS), help="architectures")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of rounds for each breakdown")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", default="base")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lengths = {
        "bert": options.length,
        "hubert": (320 * options.length + 80) / 16000,
        "vit": 16 * round(options.length**0.5),
    }
    rows = []
    environment = None
    for name in options.only.split(","):
        workload = Workload(name, lengths[name], threads=options.threads, size=options.size)
        found = breakdown(workload, budget_s=options.budget)
        assert isinstance(found, Breakdown), found
        environment = found.environment
        alone = time_alone(workload)
        for row in found.rows():
            if (row.group, row.name) in PARTS[name]:
                seconds = alone[row.group, row.name]
                ratio = row.total_s / seconds
                rows.append(
                    {
                        "architecture": name,
                        "positions": found.positions,
                        "part": f"{row.group}: {row.name}",
                        "breakdown_s": row.total_s,
                        "alone_s": seconds,
                        "ratio": ratio,
                        "closure": found.closure,
                    }
                )
                print(
                    f"{name:8} {found.positions:6,} positions  {row.group + ': ' + row.name:34} breakdown "
                    f"{1e3 * row.total_s:8.1f} ms   alone {1e3 * seconds:8.1f} ms   ratio {ratio:.3f}",
                    flush=True,
                )
    if options.json:
        record = {"environment": plain(environment), "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def time_alone(workload: Workload) -> dict[tuple[str, str], float]:
    """Return the seconds of each part's modules in a loop of their own, by group and name."""
    subject = build(workload)
    model: nn.Module = subject.model
    wanted = PARTS[str(workload.subject)]
    calls: dict[tuple[str, str], list[tuple[nn.Module, tuple[Tensor, ...]]]] = {part: [] for part in wanted}
    hooks = []
    names = name_modules(model)
    parents = {child: module for module in names for child in module.children()}
    for module, (label, _) in names.items():
        part = (label.group, label.name)
        # The outermost module of a part, which runs the others.
        if part in calls and names.get(parents.get(module, model), (None,))[0] != label:

            def note(module: nn.Module, inputs: tuple[Tensor, ...], part: tuple[str, str] = part) -> None:
                calls[part].append((module, tuple(each.clone() for each in inputs)))

            hooks.append(module.register_forward_pre_hook(note))
    subject.call(workload)()
    for hook in hooks:
        hook.remove()
    return {part: _time(found) for part, found in calls.items()}


def _time(calls: list[tuple[nn.Module, tuple[Tensor, ...]]]) -> float:
    device = CpuDevice()

    def run() -> None:
        with torch.inference_mode():
            for module, inputs in calls:
                module(*inputs)

    return _median(device, run)


def _median(device: CpuDevice, run: Callable[[], None]) -> float:
    for _ in range(2):
        device.time_block(run, 1)
    return statistics.median(device.time_block(run, 1)[0] for _ in range(9))


if __name__ == "__main__":
    main()
