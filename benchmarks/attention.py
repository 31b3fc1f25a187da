"""Our attention functions beside those of other libraries: time, share of what the arithmetic allows, peak memory.

    python benchmarks/attention.py [--lengths 512 4096] [--device cuda --dtype bfloat16] [--json FILE]

Only what stands between the projections is timed, on query, key and value of 12 heads of 64 dimensions as a model
hands them over. All contenders of a length run in one process, in rounds: each runs once a round, in random order,
and a ratio is that of two neighbours in a round. "limit" is the time that the multiply-adds of the definition alone
would take at the rate of a matrix product (2,048 x 2,048) that runs in the same rounds; backward passes count twice
the forward's. Let nothing else run.

The library's Longformer and Nystromformer run without their projections (these give back what they are handed),
without global positions and without the Nystromformer's convolution. `local-attention` is measured if it is installed
(`pip install local-attention`), with its window set to see as far to both sides, and without rotary positions.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tippingpoint.attention.local import choose_way, local_attention
from tippingpoint.models.catalog import VARIANTS
from tippingpoint.models.flops import attend, local_pairs
from tippingpoint.models.layer_attention import load_function
from tippingpoint.profiling.device import Device, open_device
from tippingpoint.profiling.environment import read_environment

HEADS, HEAD_DIM = 12, 64
WIDTH = HEADS * HEAD_DIM
PHASES = ("forward", "forward and backward")
RATE = "matrix product"
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """Something that attends.

    Attributes:
        name: For the table.
        attend: On query, key, value [1, heads, length, head_dim].
        flops: Of its definition, in a forward pass.
        trains: Whether it has a backward pass on this device.
        ours: Whether it is this project's.
        beside: The contender of ours that it is held against.
    """

    name: str
    attend: Attend
    flops: int
    trains: bool = True
    ours: bool = False
    beside: str = ""


@dataclass
class Result:
    """What was measured of a contender.

    Attributes:
        name: Of the contender.
        length: Positions.
        phase: One of PHASES.
        seconds: Of each round.
        ratios: Its time over that of the contender of ours that it is held against, by round.
        limits: Its time over what its arithmetic would take, by round.
        peak_bytes: Above what was there before the call; the output is part of it.
    """

    name: str
    length: int
    phase: str
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def without_projections(module: Any) -> Any:
    """Take the projections out of a library's attention; what they would give back is set before each call."""
    for name in ("query", "key", "value"):
        delattr(module, name)
    return module


def longformer(length: int, window: int, device: str) -> Attend:
    """Return the library's sliding window, on queries and keys as they are."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(attention_window=[2 * window], attention_probs_dropout_prob=0.0)
    module = without_projections(LongformerSelfAttention(config, layer_id=0).to(device))
    nothing = torch.zeros(1, length, device=device)
    none = torch.zeros(1, length, dtype=torch.bool, device=device)

    def attend_(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = [tensor.transpose(1, 2).flatten(2).transpose(0, 1) for tensor in (query, key, value)]
        # It divides its queries in place.
        module.query, module.key, module.value = (lambda _: rows[0].clone()), (lambda _: rows[1]), (lambda _: rows[2])
        output = module(
            rows[2].transpose(0, 1),
            attention_mask=nothing,
            is_index_masked=none,
            is_index_global_attn=none,
            is_global_attn=False,
        )
        return output[0].view(1, length, HEADS, HEAD_DIM).transpose(1, 2)

    return attend_


def nystromformer(length: int, landmarks: int, device: str) -> Attend:
    """Return the library's Nystrom approximation, on queries and keys as they are."""
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    config = NystromformerConfig(
        num_landmarks=landmarks,
        segment_means_seq_len=length,
        attention_probs_dropout_prob=0.0,
    )
    module = without_projections(NystromformerSelfAttention(config).to(device))
    module.conv_kernel_size = None

    def attend_(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = [tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value)]
        module.query, module.key, module.value = (lambda _: rows[0]), (lambda _: rows[1]), (lambda _: rows[2])
        return module(rows[2])[0].view(1, length, HEADS, HEAD_DIM).transpose(1, 2)

    return attend_


def compiled_flex(length: int, window: int, device: str) -> Attend:
    """Return FlexAttention with a mask of blocks, compiled as its documentation says."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query - key <= window) & (key - query <= window)

    mask = create_block_mask(near, None, None, length, length, device=device)
    torch.compiler.reset()  # code of other lengths would count against the limit of recompilations
    compiled: Any = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda query, key, value: compiled(query, key, value, block_mask=mask)


def local_attention_package(window: int) -> Attend | None:
    """Return the `local-attention` package's, or None if it is not installed."""
    try:
        from local_attention import LocalAttention  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    module: Any = LocalAttention(
        window_size=window,
        look_backward=1,
        look_forward=1,
        exact_windowsize=True,
        use_rotary_pos_emb=False,
        autopad=True,
    )
    return lambda query, key, value: module(query, key, value)


def ours(name: str, **options: Any) -> Attend:
    """Return a variant's function."""
    path = VARIANTS[name].function
    assert path is not None
    return partial(load_function(path), **options)


def contenders(length: int, window: int, landmarks: int, device: str, dtype: torch.dtype) -> Iterator[Contender]:
    """Yield what is timed at a length."""
    full = attend(length * length, WIDTH)
    band = attend(local_pairs(length, window=window), WIDTH)
    local = f"local:window={window}"
    yield Contender("fused full attention", F.scaled_dot_product_attention, full, beside=local)
    yield Contender(local, partial(local_attention, window=window), band, ours=True)
    if length % (2 * window) == 0 and dtype == torch.float32:
        yield Contender("  Longformer's (library)", longformer(length, window, device), band, beside=local)
    on_cpu = device == "cpu"
    yield Contender(
        "  FlexAttention, compiled", compiled_flex(length, window, device), band, not on_cpu, beside=local
    )
    package = local_attention_package(window)
    if package is not None:
        yield Contender("  local-attention package", package, band, beside=local)
    chosen = choose_way(length, device, dtype, window=window)
    for way in ("streamed", "gathered") if on_cpu and length > window else ("gathered",):
        if way != chosen:
            yield Contender(f"  {way}", partial(local_attention, window=window, way=way), band, beside=local)
    rows: dict[str, dict[str, Any]] = {
        "nystrom": {"landmarks": landmarks},
        "linear": {"feature_map": "favor", "num_features": 256},
        "linear, elu": {"feature_map": "elu"},
        "pooled": {"ratio": 4},
        "heads": {"keep": 0.5},
    }
    for title, options in rows.items():
        name = title.partition(",")[0]
        closed_form = VARIANTS[name].flops
        assert closed_form is not None
        flops = closed_form(length, HEADS, HEAD_DIM, **options)
        text = ",".join(f"{key}={value}" for key, value in options.items())
        yield Contender(f"{name}:{text}", ours(name, **options), flops, ours=True)
        if name == "nystrom" and length % landmarks == 0 and length > landmarks and dtype == torch.float32:
            library = nystromformer(length, landmarks, device)
            yield Contender("  Nystromformer's (library)", library, flops, beside=f"{name}:{text}")


def calls_of(
    place: str, length: int, phase: str, dtype: torch.dtype, everyone: list[Contender]
) -> dict[str, Callable[[], None]]:
    """Return a call of each contender that has the phase, on inputs that all share."""
    training = phase == PHASES[1]
    query, key, value = (
        torch.randn(1, length, HEADS, HEAD_DIM, device=place, dtype=dtype).transpose(1, 2).requires_grad_(training)
        for _ in range(3)
    )
    gradient = torch.randn_like(query)

    def call(contender: Contender) -> None:
        if training:
            torch.autograd.grad(contender.attend(query, key, value), (query, key, value), gradient)
        else:
            with torch.inference_mode():
                contender.attend(query, key, value)

    return {c.name: partial(call, c) for c in everyone if c.trains or not training}


def measure(
    device: Device,
    place: str,
    length: int,
    phase: str,
    dtype: torch.dtype,
    everyone: list[Contender],
    budget_s: float,
) -> list[Result]:
    """Time all contenders of a length in rounds."""
    calls = calls_of(place, length, phase, dtype, everyone)
    everyone = [contender for contender in everyone if contender.name in calls]
    square = torch.randn(2048, 2048, device=place, dtype=dtype)

    def product() -> None:
        torch.mm(square, square)

    calls[RATE] = product
    once = {name: device.time_block(run, 1)[0] for name, run in calls.items()}  # warms up, and compiles
    gc.collect()
    gc.freeze()  # a block begins with a collection, which would look at all libraries each time
    once = {name: min(once[name], device.time_block(run, 1)[0]) for name, run in calls.items()}
    rounds = max(5, min(40, int(budget_s / sum(once.values()))))
    results = {c.name: Result(c.name, length, phase) for c in everyone}
    order = list(calls)
    for _ in range(rounds):
        random.shuffle(order)
        times = {name: device.time_block(calls[name], 1)[0] for name in order}
        rate = 2 * 2048**3 / times[RATE]
        for contender in everyone:
            result, seconds = results[contender.name], times[contender.name]
            result.seconds.append(seconds)
            result.limits.append(seconds * rate / (contender.flops * (3 if phase == PHASES[1] else 1)))
            if contender.beside:
                result.ratios.append(seconds / times[contender.beside])
    return list(results.values())


def read_memory(device: Device, calls: dict[str, Callable[[], None]], results: list[Result]) -> None:
    """Note the peak memory of each call, of which one has run before."""
    for result in results:
        calls[result.name]()
        device.trim()
        device.synchronize()
        device.reset_peak()
        before = device.used_bytes()
        calls[result.name]()
        device.synchronize()
        result.peak_bytes = max(0, device.peak_bytes() - before)


def table(results: list[Result]) -> Iterator[str]:
    """Yield lines of one length and phase."""
    width = max(len(result.name) for result in results)
    yield f"{'':{width}}{'ms':>9}{'over ours':>19}{'over limit':>12}"
    for result in results:
        ratio = ""
        if result.ratios:
            low, _, high = statistics.quantiles(result.ratios, n=4)
            ratio = f"{statistics.median(result.ratios):5.2f} ({low:.2f}-{high:.2f})"
        yield (
            f"{result.name:{width}}{1e3 * statistics.median(result.seconds):9.2f}{ratio:>19}"
            f"{statistics.median(result.limits):12.2f}"
        )


def main() -> None:
    """Print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--window", type=int, default=256, help="one-sided radius")
    parser.add_argument("--landmarks", type=int, default=64)
    parser.add_argument("--phases", nargs="+", default=PHASES, choices=PHASES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each length and phase")
    parser.add_argument("--json", help="file to write, with the environment")
    options = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    device, dtype = open_device(options.device), getattr(torch, options.dtype)
    print(f"{HEADS} heads of {HEAD_DIM}, {options.dtype}, {options.device}, {torch.get_num_threads()} threads")
    if local_attention_package(options.window) is None:
        print("the package local-attention is not installed and is left out")
    found: list[Result] = []
    for length in options.lengths:
        way = choose_way(length, device.name, dtype, window=options.window)
        for phase in options.phases:
            everyone = list(contenders(length, options.window, options.landmarks, options.device, dtype))
            results = measure(device, options.device, length, phase, dtype, everyone, options.budget)
            found += results
            rounds = len(results[0].seconds)
            print(f"\n{length} positions, {phase}; local attention takes the way '{way}'; {rounds} rounds")
            print("\n".join(table(results)), flush=True)
    # Last, because an allocator that gives all back, as reading memory needs it, is slower.
    for phase in options.phases:
        print(f"\npeak memory of a call in MiB, {phase}, at {' '.join(map(str, options.lengths))} positions")
        peaks: dict[str, list[str]] = {}
        for length in options.lengths:
            everyone = list(contenders(length, options.window, options.landmarks, options.device, dtype))
            results = [result for result in found if (result.length, result.phase) == (length, phase)]
            read_memory(device, calls_of(options.device, length, phase, dtype, everyone), results)
            for result in results:
                peaks.setdefault(result.name, []).append(f"{result.peak_bytes / 2**20:.1f}")
        print("\n".join(f"{name:42}{'  '.join(values)}" for name, values in peaks.items()), flush=True)
    if options.json:
        environment = asdict(read_environment(options.device, torch.get_num_threads()))
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"environment": environment, "results": [asdict(result) for result in found]}, file, indent=1)


if __name__ == "__main__":
    main()
