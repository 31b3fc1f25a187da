"""Warm-up and timed blocks of one subject, inside its worker.

warm up:  first call (cold) | calls until two quarters agree, or a cap
a block:  [ synchronise | call call call | synchronise ]  long enough for the clock, collector off
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tippingpoint.profiling.device import Device

MIN_BLOCK_S = 0.02
MAX_WARM_UP_S = 5.0
MAX_WARM_UP_CALLS = 300
_BRIEFLY_S = 1.0
_MEANS_AGREE = 0.10
_QUARTILES_AGREE = 0.05


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Seconds of each call before timing (the first one is the cold call), and whether they settled."""

    per_call_s: tuple[float, ...]
    settled: bool


def warm_up(device: Device, call: Callable[[], None], *, brief: bool = False) -> WarmUp:
    """Call until calls take as long as those before them.

    At least one call and 0.5 s (1 s on CUDA) beyond the cold one; then until the third and the fourth quarter of
    the calls agree (means within 10 %, quartiles within 5 %), or 5 s beyond the cold call or 300 calls are spent.

    Args:
        device: Whose clock counts.
        call: What to run.
        brief: Two calls will do, or a first one of a second, whether they agree or not: for a rough look.
    """
    times: list[float] = []
    while True:
        times.append(device.time_block(call, 1)[0])
        if brief and (len(times) == 2 or times[0] >= _BRIEFLY_S):
            return WarmUp(tuple(times), settled=True)
        spent = sum(times[1:])
        capped = spent >= MAX_WARM_UP_S or len(times) >= MAX_WARM_UP_CALLS
        if len(times) < 2 or (spent < device.least_warm_up_s and not capped):
            continue
        # The first half is left out: a few slow calls at the start would weigh on its mean for a long time.
        settled = _halves_agree(times[len(times) // 2 :] if len(times) > 2 else times)
        if settled or capped:
            return WarmUp(tuple(times), settled)


def calls_per_block(per_call_s: float) -> int:
    """Return how many calls make a block of at least 20 ms, far above the cost of reading the clock."""
    return max(1, math.ceil(MIN_BLOCK_S / max(per_call_s, 1e-9)))


def _halves_agree(times: Sequence[float]) -> bool:
    middle = len(times) // 2
    early, late = sorted(times[:middle]), sorted(times[middle:])
    if not early:
        return False
    if not _within(sum(early) / len(early), sum(late) / len(late), _MEANS_AGREE):
        return False
    if len(early) < 4:
        return True
    return all(_within(early[len(early) * q // 4], late[len(late) * q // 4], _QUARTILES_AGREE) for q in (1, 3))


def _within(first: float, second: float, share: float) -> bool:
    return abs(first - second) <= share * second
