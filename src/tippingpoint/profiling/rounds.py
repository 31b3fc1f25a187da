"""Paired rounds: every arm is timed once in each round, in random order, then in the mirrored order.

round 0   A C B        Drift of a shared machine that is linear over two rounds cancels in the log-ratio
round 1   B C A        of any two arms; each round gives one ratio for each pair.
round 2   C A B
...

A block during which the device was throttled is run again at once; the throttled one is kept, and counts nowhere.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tippingpoint.intervals import half_width
from tippingpoint.machine import Conditions
from tippingpoint.measurement import Sample

MIN_ROUNDS = 4
# Checks in a row, one every second round, at which the interval must be narrow: once may be luck.
NARROW_CHECKS = 2
MAX_ROUNDS = 400
# The parent's own work must stay small beside the blocks: a rough look with few replicates tells whether the
# interval is so much wider than the target that the full one need not be computed.
_ROUGH_REPLICATES = 300
_ROUGHLY = 1.4
_PLATEAU_LENGTH = 64
_PLATEAU_SPREAD = 0.05
# A block during which the device was throttled is run again, at most so often ...
_MOST_AGAIN = 2
# ... and only while this is the exception: a machine that is always throttled is measured as it is.
_THROTTLED_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Block:
    """What a timed block told: host seconds, the device's own where it has a clock, and what the machine did."""

    seconds: float
    device_seconds: float | None = None
    conditions: Conditions | None = None


class Arm(Protocol):
    """Something whose blocks can be timed."""

    def time_block(self, calls: int) -> Block:
        """Time `calls` calls."""
        ...


@dataclass(frozen=True, slots=True)
class Rounds:
    """What the rounds gave: samples of each arm by name, and why sampling ended."""

    samples: Mapping[str, tuple[Sample, ...]]
    stop_reason: str


def run_rounds(
    arms: Mapping[str, tuple[Arm, int]],
    baselines: Sequence[str],
    *,
    target: float,
    budget_s: float,
    clock: Callable[[], float],
    seed: int = 0,
    process: int = 0,
    origin: float | None = None,
    fewest: int = MIN_ROUNDS,
) -> Rounds:
    """Time the arms in interleaved rounds until every interval is tight, noise plateaus or the budget ends.

    Args:
        arms: By name: what to time, and the calls of one block.
        baselines: Names of the arms that the others are held against; with none of them among `arms`, every
            arm's own latency decides.
        target: Half-width of the 95 % interval of the median log-ratio (or log-latency) to reach.
        budget_s: Seconds for all rounds together; the fewest rounds are run whatever they take.
        clock: Of the parent.
        seed: Of the order.
        process: Which process of each subject is timed, from 0; no two of them share a round.
        origin: The clock when the session's first block began; now by default.
        fewest: Rounds to run at least, an even number.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in arms}
    noise: list[float] = []
    narrow = 0
    begin = clock()
    origin = begin if origin is None else origin
    for number, order in enumerate(_orders(list(arms), seed + process), start=1):
        for place, name in enumerate(order):
            arm, calls = arms[name]
            for attempt in itertools.count():
                started = clock() - origin
                block = arm.time_block(calls)
                again = attempt < _MOST_AGAIN and _is_exception(block, samples[name])
                samples[name].append(
                    Sample(
                        round=process * MAX_ROUNDS + number - 1,
                        order=place,
                        started_s=started,
                        calls=calls,
                        seconds=block.seconds,
                        device_seconds=block.device_seconds,
                        process=process,
                        conditions=block.conditions,
                        repeated=again,
                    )
                )
                if not again:
                    break
        if number < fewest or number % 2:
            continue
        compared = _compared(samples, baselines)
        noise.append(max(float(values.std(ddof=1)) for values in compared))
        elapsed = clock() - begin
        narrow = narrow + 1 if all(_is_narrow(values, target) for values in compared) else 0
        if narrow == NARROW_CHECKS:
            reason = f"95 % interval within {100 * target:g} %"
        elif _has_plateaued(noise):
            reason = f"noise has plateaued after {number} rounds"
        elif number >= MAX_ROUNDS:
            reason = f"no more than {MAX_ROUNDS} rounds"
        elif elapsed + 2 * elapsed / number > budget_s:
            reason = f"time budget of {budget_s:.0f} s"
        else:
            continue
        return Rounds({name: tuple(taken) for name, taken in samples.items()}, reason)
    raise AssertionError("orders never end")


def _orders(names: list[str], seed: int) -> Iterator[list[str]]:
    """Yield the order of each round without end: random, then the same in the mirror."""
    generator = random.Random(seed)
    while True:
        order = list(names)
        generator.shuffle(order)
        yield order
        yield order[::-1]


def _is_exception(block: Block, before: Sequence[Sample]) -> bool:
    """Whether a block was throttled on a machine that is not throttled all the time."""
    if block.conditions is None or not block.conditions.throttled:
        return False
    throttled = sum(bool(sample.conditions and sample.conditions.throttled) for sample in before)
    return throttled <= _THROTTLED_SHARE * len(before)


def _compared(samples: Mapping[str, Sequence[Sample]], baselines: Sequence[str]) -> list[np.ndarray]:
    """Return log-ratios of each pair with a baseline, by round; without a baseline, each arm's own logarithms."""
    logs = {
        name: np.log([sample.per_call_s for sample in taken if not sample.repeated])
        for name, taken in samples.items()
    }
    present = [name for name in baselines if name in logs]
    pairs = [logs[b] - logs[v] for b in present for v in logs if v not in present]
    return pairs or list(logs.values())


def _is_narrow(values: np.ndarray, target: float) -> bool:
    """Whether a 95 % interval is within the target; far from it a rough look is enough."""
    roughly = half_width(values, count=_ROUGH_REPLICATES)
    return roughly <= _ROUGHLY * target and half_width(values) <= target


def _has_plateaued(noise: Sequence[float]) -> bool:
    """Whether more samples have stopped telling more about the noise."""
    recent = np.array(noise[-_PLATEAU_LENGTH:])
    return len(recent) == _PLATEAU_LENGTH and bool(recent.std() < _PLATEAU_SPREAD * recent.mean())
