import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tippingpoint.profiling.device import FakeDevice
from tippingpoint.profiling.timing import (
    MAX_WARM_UP_CALLS,
    MAX_WARM_UP_S,
    MIN_BLOCK_S,
    WarmUp,
    calls_per_block,
    warm_up,
)


def warmed(durations: Iterator[float]) -> WarmUp:
    device = FakeDevice(durations)
    calls: list[int] = []
    record = warm_up(device, lambda: calls.append(1))
    assert len(calls) == len(record.per_call_s)
    return record


def noisy(seconds: float, spread: float, seed: int = 0) -> Iterator[float]:
    generator = random.Random(seed)
    return (seconds * generator.lognormvariate(0, spread) for _ in itertools.count())


def test_the_first_call_is_kept_as_the_cold_one_and_uses_none_of_the_time_to_settle():
    record = warmed(itertools.chain([30.0], itertools.repeat(0.25)))
    assert record == WarmUp((30.0, 0.25, 0.25), settled=True)


def test_a_steady_call_settles_after_half_a_second():
    record = warmed(itertools.repeat(0.125))
    assert record == WarmUp((0.125,) * 5, settled=True)


def test_a_long_steady_call_settles_after_two():
    assert warmed(itertools.repeat(20.0)) == WarmUp((20.0, 20.0), settled=True)


def test_warm_up_goes_on_while_calls_become_faster():
    # Times come down from 0.42 s to 0.02 s, as clocks and caches warm up.
    durations = [0.4 * 0.8**n + 0.02 for n in range(200)]
    record = warmed(iter(durations))
    assert record.settled
    assert record.per_call_s[-1] < 0.025
    assert sum(record.per_call_s) < 3.5


@given(spread=st.floats(0, 0.03), seed=st.integers(0, 9), seconds=st.floats(0.01, 1))
def test_ordinary_noise_settles_before_the_cap(spread, seed, seconds):
    record = warmed(noisy(seconds, spread, seed))
    assert record.settled
    assert sum(record.per_call_s[1:-1]) < MAX_WARM_UP_S


def test_calls_that_never_settle_end_at_five_seconds_and_say_so():
    # Each call takes 6 % longer than the one before.
    record = warmed(0.05 * 1.06**n for n in itertools.count())
    assert not record.settled
    assert sum(record.per_call_s[1:-1]) < MAX_WARM_UP_S <= sum(record.per_call_s[1:])


def test_calls_that_never_settle_end_at_300_and_say_so():
    record = warmed(0.002 * 1.005**n for n in itertools.count())
    assert not record.settled
    assert len(record.per_call_s) == MAX_WARM_UP_CALLS


def test_short_steady_calls_are_settled_when_the_cap_comes_before_half_a_second():
    record = warmed(itertools.repeat(0.001))
    assert record.settled
    assert len(record.per_call_s) == MAX_WARM_UP_CALLS


def test_quarters_of_equal_mean_and_unlike_spread_have_not_settled():
    # When half a second is over, after 18 calls, the third quarter is steady and the fourth jumps about its mean.
    jumping = warmed(itertools.chain([0.031] * 13, itertools.cycle([0.02, 0.042])))
    assert len(warmed(itertools.repeat(0.031)).per_call_s) == 18
    assert len(jumping.per_call_s) > 18
    assert jumping.settled


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 1), (0.02, 1), (0.0199, 2), (0.001, 20), (1e-6, 20_000)])
def test_a_block_has_as_many_calls_as_make_20_milliseconds(seconds, calls):
    assert calls_per_block(seconds) == calls


@given(st.floats(1e-9, 100))
def test_a_block_is_never_too_short_and_never_longer_than_needed(seconds):
    calls = calls_per_block(seconds)
    # Up to the rounding of one division.
    assert calls * seconds >= MIN_BLOCK_S * (1 - 1e-15)
    assert calls == 1 or (calls - 1) * seconds < MIN_BLOCK_S * (1 + 1e-15)


def test_a_block_of_calls_too_short_for_the_clock_is_finite():
    assert calls_per_block(0.0) == 20_000_000
