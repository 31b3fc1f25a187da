"""How fast this machine can be: one large matrix product, and one copy far larger than the caches.

product   grow the matrices until one product takes some tens of milliseconds | the best of 0.15 s
copy      a buffer of four times the last-level caches                        | the best of 0.15 s

Both are what PyTorch reaches with the process's threads and settings, and not what a data sheet promises: a
model that runs on PyTorch can be held against them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tippingpoint.machine import Peaks
from tippingpoint.profiling.device import Device
from tippingpoint.profiling.hardware import last_level_cache_bytes

if TYPE_CHECKING:
    import torch

# Sides of square matrices, about 1.4 apart, so that the time grows by less than 3.4 from one to the next and the
# same machine mostly takes the same one. A GPU fills itself with the last one.
SIDES = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
# A product is long enough for the clock, for waking threads and for filling a GPU, and no longer than needed.
_LONG_ENOUGH_S = 0.02
_LONGEST_S = 0.05
# A block shorter than this is made of several calls.
_BLOCK_S = 0.02
_BUDGET_S = 0.15
_FEWEST_BLOCKS = 3
_MOST_TRIES = 8
_CACHES = 4
# Where the caches' size is unknown: more than most have.
_LEAST_COPY = 128 * 2**20
# A GPU copies less than this before its clocks and channels are busy.
_LEAST_CUDA_COPY = 512 * 2**20
_MEMORY_SHARE = 8
# Products of zeros draw less power than those of numbers, and a GPU's clock follows its power.
_PATTERN = 128


def measure_peaks(
    device: Device,
    threads: int,
    dtype: str,
    *,
    sides: Sequence[int] = SIDES,
    copy_bytes: int | None = None,
    budget_s: float = _BUDGET_S,
) -> Peaks:
    """Return the best rate of matrix products and of copying that was seen.

    Matrices grow until one product takes 20 ms or more, or the memory or the list of sides ends. Bytes are
    counted as those read plus those written; that a CPU reads the memory it is about to overwrite into its
    caches (write-allocate) is traffic too and is not counted, as in any program that copies.

    Args:
        device: Where to compute, and whose clock counts.
        threads: CPU threads.
        dtype: Name of the PyTorch dtype of both.
        sides: Sides of square matrices to choose from, ascending.
        copy_bytes: Size of the buffer that is copied; by default four times the last-level caches, and at least
            128 MiB (512 MiB on CUDA). Never more than what an eighth of the available memory holds twice.
        budget_s: Seconds of each of the two.
    """
    import torch

    place = device.name if device.name.startswith("cuda") else "cpu"
    kind = getattr(torch, dtype)
    room = device.available_bytes() // _MEMORY_SHARE
    largest = max(sides[0], math.isqrt(room // (3 * kind.itemsize)))
    with _threads(threads), torch.inference_mode():
        return Peaks(
            flops_per_s=_product_rate(device, place, kind, [side for side in sides if side <= largest], budget_s),
            bytes_per_s=_copy_rate(device, place, kind, min(copy_bytes or _copy_bytes(place), room // 2), budget_s),
        )


def _product_rate(device: Device, place: str, kind: torch.dtype, sides: Sequence[int], budget_s: float) -> float:
    """Return FLOP/s of the largest product that does not take too long."""
    side = sides[0]
    while True:
        call = _product(place, kind, side)
        seconds = _shortest(device, call)
        larger = [s for s in sides if s > side]
        if not larger or seconds >= _LONG_ENOUGH_S:
            return 2 * side**3 / _best(device, call, seconds, budget_s)
        # Small products are slow for their size, so what is predicted to be short enough will be. One step is
        # taken in any case: on a busy machine the time of a small one is that of waiting for a core.
        side = max([larger[0], *(s for s in larger if seconds * (s / side) ** 3 <= _LONGEST_S)])


def _copy_rate(device: Device, place: str, kind: torch.dtype, size: int, budget_s: float) -> float:
    """Return bytes read and written per second."""
    import torch

    source = torch.ones(max(1, size // kind.itemsize), dtype=kind, device=place)
    target = torch.zeros_like(source)

    def call() -> None:
        target.copy_(source)

    return 2 * source.nbytes / _best(device, call, _shortest(device, call), budget_s)


def _product(place: str, kind: torch.dtype, side: int) -> Callable[[], None]:
    import torch

    pattern = torch.rand(_PATTERN, _PATTERN, generator=torch.Generator().manual_seed(0)).to(place, kind)
    times = -(-side // _PATTERN)
    left = pattern.repeat(times, times)[:side, :side].contiguous()
    right = left.T.contiguous()
    result = torch.empty_like(left)

    def call() -> None:
        torch.mm(left, right, out=result)

    return call


def _shortest(device: Device, call: Callable[[], None]) -> float:
    """Return the seconds of the shortest of a few calls, after a first one that finds kernels and maps pages.

    On a busy machine a single call of two threads may take a hundred times as long as it should.
    """
    device.time_block(call, 1)
    times = [_seconds(device, call, 1)]
    while len(times) < _MOST_TRIES and sum(times) < _LONGEST_S:
        times.append(_seconds(device, call, 1))
    return min(times)


def _best(device: Device, call: Callable[[], None], seconds: float, budget_s: float) -> float:
    """Return the seconds of one call in the fastest of several blocks.

    Args:
        device: Whose clock counts.
        call: What to run.
        seconds: What one call took.
        budget_s: Seconds to spend; at least three blocks are run.
    """
    seconds = max(seconds, 1e-6)
    calls = math.ceil(_BLOCK_S / seconds)
    blocks = max(_FEWEST_BLOCKS, round(budget_s / (calls * seconds)))
    return min(_seconds(device, call, calls) for _ in range(blocks)) / calls


def _seconds(device: Device, call: Callable[[], None], calls: int) -> float:
    host, own = device.time_block(call, calls)
    return own or host


def _copy_bytes(place: str) -> int:
    import torch

    if place == "cpu":
        return max(_LEAST_COPY, _CACHES * last_level_cache_bytes())
    return max(_LEAST_CUDA_COPY, _CACHES * torch.cuda.get_device_properties(torch.device(place)).L2_cache_size)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
