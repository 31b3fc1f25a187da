"""Attention maps that layers share, beside the library's eager attention and a bare batched product.

    python benchmarks/reuse.py [--lengths 1024 4096] [--device cuda --dtype bfloat16] [--json FILE]

Only what stands between the projections is timed, on query, key and value of 12 heads of 64 dimensions as a model
hands them over. All contenders of a length run in one process, in rounds: each runs once a round, in random order,
and a ratio is that of two neighbours in a round. "computing" is a layer that computes the map and its own output:
into fresh memory as the first group of a forward pass does, or over the map of the group before, as the others do.
"reusing" is a layer that weighs its values by a map. Peak memory of a call stands beside what the closed form says.
Let nothing else run.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.bert.modeling_bert import eager_attention_forward

from tippingpoint.attention.reuse import share
from tippingpoint.profiling.device import Device, open_device
from tippingpoint.profiling.environment import read_environment

HEADS, HEAD_DIM = 12, 64
EAGER, FUSED, BARE = "eager, library's", "fused", "bare P @ V"
WINDOW = 128


@dataclass
class Contender:
    """Something that is timed.

    Attributes:
        name: For the table.
        call: Runs it once, and returns what it leaves.
        beside: What it is held against.
        expected_bytes: Peak above what was there before, by the closed form; None where there is none.
        seconds: Of each round.
        ratios: Its time over that of what it is held against, by round.
        peak_bytes: As measured.
    """

    name: str
    call: Callable[[], Any]
    beside: str = ""
    expected_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def contenders(length: int, device: str, dtype: torch.dtype) -> list[Contender]:
    """Return what is timed at a length."""
    query, key, value = (
        torch.randn(1, length, HEADS, HEAD_DIM, device=device, dtype=dtype).transpose(1, 2) for _ in range(3)
    )
    padding = torch.zeros(1, 1, 1, length, device=device, dtype=dtype)
    padding[..., length - length // 8 :] = torch.finfo(dtype).min
    real = padding[:, 0, 0] == 0
    module: Any = SimpleNamespace(training=False, num_key_value_groups=1)
    size = dtype.itemsize
    scores, output = HEADS * length * length, size * HEADS * length * HEAD_DIM
    columns = 64 + 2 * WINDOW
    band = HEADS * -(-length // 64) * 64 * columns

    def eager(mask: Tensor | None) -> Tensor:
        return eager_attention_forward(module, query, key, value, mask, scaling=HEAD_DIM**-0.5)[0]

    def computing(**options: Any) -> Any:
        return share(query, key, value, "map", **options)

    whole = computing()[1]
    half = computing(map_dtype=torch.bfloat16)[1]
    local = computing(window=WINDOW)[1]
    again = share(query, key, value, "recompute")[1]
    spare = torch.empty_like(whole.weights)
    spare_half = torch.empty_like(half.weights)
    flat, values = whole.weights.flatten(0, 1), value.contiguous().flatten(0, 1)
    made = [
        Contender(EAGER, lambda: eager(None)),
        Contender(f"{EAGER}, padding", lambda: eager(padding)),
        Contender(FUSED, lambda: F.scaled_dot_product_attention(query, key, value), EAGER),
        Contender(BARE, lambda: torch.bmm(flat, values)),
        Contender("computing, fresh memory", computing, EAGER, scores * size + output),
        Contender("computing", lambda: computing(memory=spare), EAGER),
        Contender("computing, padding", lambda: computing(memory=spare, mask=real), f"{EAGER}, padding"),
        Contender("reusing", lambda: whole.attend(value), BARE),
        Contender(
            "computing, bfloat16 map, fresh",
            lambda: computing(map_dtype=torch.bfloat16),
            EAGER,
            scores * 2 + output,
        ),
        Contender("computing, bfloat16 map", lambda: computing(map_dtype=torch.bfloat16, memory=spare_half), EAGER),
        Contender("reusing, bfloat16 map", lambda: half.attend(value), BARE),
        Contender("reusing, recompute", lambda: again.attend(value), FUSED),
        Contender(f"computing, local:window={WINDOW}", lambda: computing(window=WINDOW), EAGER, band * size + output),
        Contender(f"reusing, local:window={WINDOW}", lambda: local.attend(value), BARE),
    ]
    return made


def measure(device: Device, everyone: list[Contender], budget_s: float) -> None:
    """Time all contenders of a length in rounds."""

    def run(contender: Contender) -> Callable[[], None]:
        def call() -> None:
            with torch.inference_mode():
                contender.call()

        return call

    calls = {contender.name: run(contender) for contender in everyone}
    once = sum(device.time_block(call, 1)[0] for call in calls.values())  # warms up
    gc.collect()
    gc.freeze()
    order = list(everyone)
    for _ in range(max(5, min(40, int(budget_s / once)))):
        random.shuffle(order)
        times = {contender.name: device.time_block(calls[contender.name], 1)[0] for contender in order}
        for contender in everyone:
            contender.seconds.append(times[contender.name])
            if contender.beside:
                contender.ratios.append(times[contender.name] / times[contender.beside])


def read_memory(device: Device, everyone: list[Contender]) -> None:
    """Note the peak memory of each call, of which one has run before."""
    for contender in everyone:
        with torch.inference_mode():
            contender.call()
            device.trim()
            device.synchronize()
            device.reset_peak()
            before = device.used_bytes()
            left = contender.call()
            device.synchronize()
            contender.peak_bytes = max(0, device.peak_bytes() - before)
            del left


def table(everyone: list[Contender]) -> Iterator[str]:
    """Yield lines of one length."""
    width = max(len(contender.name) for contender in everyone)
    yield f"{'':{width}}{'ms':>9}  {'over':>18}{'':20}{'MiB':>8}{'expected':>10}"
    for contender in everyone:
        ratio = beside = expected = ""
        if contender.ratios:
            low, _, high = statistics.quantiles(contender.ratios, n=4)
            ratio, beside = f"{statistics.median(contender.ratios):.3f} ({low:.2f}-{high:.2f})", contender.beside
        if contender.expected_bytes is not None:
            share_of = contender.peak_bytes / contender.expected_bytes
            expected = f"{contender.expected_bytes / 2**20:10.1f} ({share_of - 1:+.1%})"
        yield (
            f"{contender.name:{width}}{1e3 * statistics.median(contender.seconds):9.1f}  {ratio:>18}  {beside:18}"
            f"{contender.peak_bytes / 2**20:8.1f}{expected}"
        )


def main() -> None:
    """Print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for each length")
    parser.add_argument("--json", help="file to write, with the environment")
    options = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    device, dtype = open_device(options.device), getattr(torch, options.dtype)
    print(f"{HEADS} heads of {HEAD_DIM}, {options.dtype}, {options.device}, {torch.get_num_threads()} threads")
    results: list[dict[str, Any]] = []
    for length in options.lengths:
        everyone = contenders(length, options.device, dtype)
        measure(device, everyone, options.budget)
        read_memory(device, everyone)
        print(f"\n{length} positions; {len(everyone[0].seconds)} rounds")
        print("\n".join(table(everyone)), flush=True)
        for contender in everyone:
            record = {name: value for name, value in vars(contender).items() if name != "call"}
            results.append({"length": length, **record})
        del everyone
        gc.unfreeze()
        gc.collect()
    if options.json:
        environment = asdict(read_environment(options.device, torch.get_num_threads()))
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"environment": environment, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
