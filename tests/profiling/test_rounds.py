import dataclasses
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tippingpoint.intervals import center_replicates, half_width
from tippingpoint.machine import Conditions
from tippingpoint.measurement import Sample
from tippingpoint.profiling.rounds import MAX_ROUNDS, MIN_ROUNDS, NARROW_CHECKS, Block, Rounds, run_rounds

FEWEST_WHEN_QUIET = MIN_ROUNDS + 2 * (NARROW_CHECKS - 1)


class Machine:
    """A machine with a scripted clock that slows down as it pleases.

    Args:
        slowness: Seconds of the clock (in the middle of a block) to the factor by which work takes longer.
    """

    def __init__(self, slowness: Callable[[float], float] = lambda time: 1.0) -> None:
        self.time = 100.0
        self.slowness = slowness
        self.order: list[str] = []

    def clock(self) -> float:
        return self.time


@dataclasses.dataclass
class FakeArm:
    """An arm whose calls take a known time, with noise of its own."""

    machine: Machine
    name: str
    seconds: float
    noise: Callable[[], float] = lambda: 0.0

    def time_block(self, calls: int) -> Block:
        work = calls * self.seconds * math.exp(self.noise())
        taken = work * self.machine.slowness(self.machine.time - 100.0 + work / 2)
        self.machine.time += taken
        self.machine.order.append(self.name)
        return Block(taken, 0.9 * taken)


def arms(
    machine: Machine, noise: Callable[[], float] = lambda: 0.0, **seconds: float
) -> dict[str, tuple[FakeArm, int]]:
    return {name: (FakeArm(machine, name, each, noise), 1) for name, each in seconds.items()}


def run(machine: Machine, these: Mapping[str, tuple[FakeArm, int]], *baselines: str, **options) -> Rounds:
    options = {"target": 0.02, "budget_s": 1e9, **options}
    return run_rounds(these, baselines, clock=machine.clock, **options)


def log_ratios(rounds: Rounds, baseline: str, variant: str) -> np.ndarray:
    pairs = zip(rounds.samples[baseline], rounds.samples[variant], strict=True)
    return np.array([math.log(b.per_call_s / v.per_call_s) for b, v in pairs])


def normal(sigma: float, seed: int = 0) -> Callable[[], float]:
    generator = random.Random(seed)
    return lambda: generator.gauss(0, sigma)


def test_each_round_times_every_arm_once_and_every_second_round_mirrors_the_one_before():
    machine = Machine()
    rounds = run(machine, arms(machine, normal(0.2), a=1.0, b=2.0, c=0.5), "a")
    count = len(rounds.samples["a"])
    orders = [machine.order[3 * n : 3 * n + 3] for n in range(count)]
    assert len(machine.order) == 3 * count
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert all(second == first[::-1] for first, second in zip(orders[::2], orders[1::2], strict=True))
    assert len({tuple(order) for order in orders}) == 6
    for name, taken in rounds.samples.items():
        assert [sample.round for sample in taken] == list(range(count))
        assert [sample.order for sample in taken] == [order.index(name) for order in orders]


def test_over_a_pair_of_rounds_every_arm_has_the_same_mean_place():
    machine = Machine()
    rounds = run(machine, arms(machine, a=1.0, b=2.0, c=0.5, d=4.0), "a")
    for taken in rounds.samples.values():
        places = [sample.order for sample in taken]
        assert all(first + second == 3 for first, second in zip(places[::2], places[1::2], strict=True))


def drawn_orders(seed: int) -> list[str]:
    machine = Machine()
    run(machine, arms(machine, a=1.0, b=1.0, c=1.0), "a", seed=seed)
    # Of the first and third round; the second and fourth mirror them.
    return machine.order[0:3] + machine.order[6:9]


def test_the_order_is_random_and_that_of_a_seed_is_always_the_same():
    orders = [drawn_orders(seed) for seed in range(40)]
    assert orders == [drawn_orders(seed) for seed in range(40)]
    # Of 36 pairs of orders, 40 draws see 24 on average.
    assert len({tuple(order) for order in orders}) > 15
    firsts = Counter(order[0] for order in orders)
    # 40 draws of three: each is expected 13 times, with a standard deviation of 3.
    assert all(13 - 9 <= firsts[name] <= 13 + 9 for name in "abc")


def test_samples_are_recorded_as_they_were_taken():
    machine = Machine()
    rounds = run_rounds({"a": (FakeArm(machine, "a", 0.25), 4)}, [], target=0.02, budget_s=10, clock=machine.clock)
    assert rounds.samples["a"][:2] == (Sample(0, 0, 0.0, 4, 1.0, 0.9), Sample(1, 0, 1.0, 4, 1.0, 0.9))


@pytest.mark.parametrize(
    "slowness",
    [
        lambda t: 1 + t / 100,
        lambda t: 1 + t / 20,
        lambda t: 2.0 if t > 5 else 1.0,
        lambda t: 1 + 0.5 * math.sin(t / 40),
    ],
)
def test_drift_of_the_machine_cancels_in_the_paired_ratios(slowness):
    machine = Machine(slowness)
    ratios = log_ratios(run(machine, arms(machine, a=2.0, b=1.0), "a", budget_s=100), "a", "b")
    # In one round the drift over half of it adds to the ratio; what is left after two is its curvature.
    worst = max(abs(ratio - math.log(2)) for ratio in ratios)
    assert np.median(ratios) == pytest.approx(math.log(2), abs=max(0.2 * worst, 1e-12))


def test_without_pairs_the_same_drift_would_be_taken_for_a_difference():
    machine = Machine(lambda t: 1 + t / 20)
    one_after_the_other = [[FakeArm(machine, name, 1.0).time_block(1).seconds for _ in range(10)] for name in "ab"]
    assert np.median(one_after_the_other[1]) > 1.5 * np.median(one_after_the_other[0])
    machine = Machine(lambda t: 1 + t / 20)
    ratios = log_ratios(run(machine, arms(machine, a=1.0, b=1.0), "a", target=1e-4, budget_s=60), "a", "b")
    assert abs(np.median(ratios)) < 0.002


def test_quiet_arms_stop_at_the_fewest_rounds():
    machine = Machine()
    rounds = run(machine, arms(machine, normal(0.001), a=1.0, b=2.0), "a")
    assert len(rounds.samples["a"]) == FEWEST_WHEN_QUIET
    assert rounds.stop_reason == "95 % interval within 2 %"


@settings(max_examples=40)
@given(sigma=st.floats(0.005, 0.05), target=st.sampled_from([0.01, 0.02, 0.05]), seed=st.integers(0, 99))
def test_sampling_goes_on_until_the_interval_is_within_the_target(sigma, target, seed):
    machine = Machine()
    rounds = run(machine, arms(machine, normal(sigma, seed), a=1.0, b=2.0), "a", target=target)
    ratios = log_ratios(rounds, "a", "b")
    assert len(ratios) % 2 == 0
    if rounds.stop_reason == f"95 % interval within {100 * target:g} %":
        assert half_width(ratios) <= target
        narrow = [half_width(ratios[:n]) <= target for n in range(MIN_ROUNDS, len(ratios) + 1, 2)]
        assert narrow[-NARROW_CHECKS:] == [True] * NARROW_CHECKS
        assert [True] * NARROW_CHECKS not in [
            narrow[i : i + NARROW_CHECKS] for i in range(len(narrow) - NARROW_CHECKS)
        ]
    else:
        assert "plateaued" in rounds.stop_reason


def test_noise_that_more_samples_cannot_beat_ends_the_sampling():
    machine = Machine()
    rounds = run(machine, arms(machine, normal(0.5), a=1.0, b=2.0), "a", target=1e-4)
    count = len(rounds.samples["a"])
    assert rounds.stop_reason == f"noise has plateaued after {count} rounds"
    # 64 estimates of the noise, one for every second round.
    assert MIN_ROUNDS + 2 * 63 <= count < MAX_ROUNDS


def test_noise_that_keeps_growing_ends_at_the_cap():
    machine = Machine()
    generator = random.Random(0)
    growing = lambda: 1e-4 * (machine.time - 100.0) * generator.gauss(0, 1)  # noqa: E731
    rounds = run(machine, arms(machine, growing, a=1.0, b=1.0), "a", target=1e-9)
    assert len(rounds.samples["a"]) == MAX_ROUNDS
    assert rounds.stop_reason == f"no more than {MAX_ROUNDS} rounds"


@pytest.mark.parametrize("budget", [9.0, 30.0, 100.0])
def test_the_budget_is_kept(budget):
    machine = Machine()
    rounds = run(machine, arms(machine, normal(0.05), a=0.5, b=0.25), "a", target=1e-6, budget_s=budget)
    assert rounds.stop_reason == f"time budget of {budget:.0f} s"
    spent = machine.time - 100.0
    # It stops when two more rounds would not fit, give or take the noise of two rounds.
    assert budget - 2.5 * 0.75 <= spent <= 1.1 * budget


def test_four_rounds_are_run_whatever_they_take():
    machine = Machine()
    rounds = run(machine, arms(machine, normal(0.05), a=100.0, b=50.0), "a", target=1e-6, budget_s=1.0)
    assert len(rounds.samples["a"]) == MIN_ROUNDS
    assert rounds.stop_reason == "time budget of 1 s"


def shared_noise(machine: Machine, sigma: float, seed: int = 0) -> Callable[[float], float]:
    """Slowness that changes from round to round and is the same for all arms within one."""
    generator = random.Random(seed)
    levels: list[float] = []

    def slowness(time: float) -> float:
        number = len(machine.order) // 2
        while len(levels) <= number:
            levels.append(math.exp(generator.gauss(0, sigma)))
        return levels[number]

    return slowness


def test_with_a_baseline_only_the_ratios_must_be_certain_and_without_one_each_latency():
    machine = Machine()
    machine.slowness = shared_noise(machine, 0.2)
    compared = run(machine, arms(machine, a=1.0, b=2.0), "a")
    assert len(compared.samples["a"]) == FEWEST_WHEN_QUIET
    machine = Machine()
    machine.slowness = shared_noise(machine, 0.2)
    alone = run(machine, arms(machine, a=1.0, b=2.0))
    assert len(alone.samples["a"]) > 10 * MIN_ROUNDS
    # A baseline that is not among the arms is none.
    machine = Machine()
    machine.slowness = shared_noise(machine, 0.2)
    assert len(run(machine, arms(machine, a=1.0, b=2.0), "elsewhere").samples["a"]) == len(alone.samples["a"])


def alternating(size: float) -> Callable[[], float]:
    signs = itertools.cycle([size, -size])
    return lambda: next(signs)


def test_every_variant_is_compared_with_every_baseline_and_baselines_not_with_each_other():
    # Over four rounds the ratios to the variant are known within 1.5 %, that of the baselines within 3 %.
    def three(machine: Machine) -> dict[str, tuple[FakeArm, int]]:
        noise = {"first": alternating(0.008), "second": alternating(-0.008), "variant": lambda: 0.0}
        return {name: (FakeArm(machine, name, 1.0, each), 1) for name, each in noise.items()}

    machine = Machine()
    assert len(run(machine, three(machine), "first", "second").samples["first"]) == FEWEST_WHEN_QUIET
    # With one baseline the second is an arm like any other, and with none nothing is held against anything.
    machine = Machine()
    assert len(run(machine, three(machine), "first").samples["first"]) > FEWEST_WHEN_QUIET
    machine = Machine()
    assert len(run(machine, three(machine)).samples["first"]) == FEWEST_WHEN_QUIET


def test_the_least_certain_comparison_decides():
    machine = Machine()
    loud = {"variant": (FakeArm(machine, "variant", 1.0, normal(0.2)), 1)}
    assert len(run(machine, {**arms(machine, a=1.0, b=2.0), **loud}, "a").samples["a"]) > 10 * MIN_ROUNDS


def covered(sigma: float, sessions: int) -> float:
    """Return how often the interval at which sampling stopped holds the planted ratio."""
    hits = 0
    for seed in range(sessions):
        machine = Machine()
        noise = normal(sigma, seed)
        ratios = log_ratios(run(machine, arms(machine, noise, a=1.0, b=2.0), "a", seed=seed), "a", "b")
        low, high = np.percentile(center_replicates(ratios), [2.5, 97.5])
        hits += low <= math.log(0.5) <= high
    return hits / sessions


# Stopping when the interval looks narrow favours samples that happen to agree. Asking for it twice in a row leaves
# 0.926 to 0.964 covered for sigma from 0.005 to 0.03; three standard errors of a share of 250 are 0.05.
@pytest.mark.parametrize("sigma", [0.005, 0.02])
def test_the_interval_at_which_sampling_stops_holds_the_planted_ratio(sigma):
    assert covered(sigma, 250) >= 0.88


@dataclasses.dataclass
class HotArm(FakeArm):
    """An arm on a device that is throttled during some blocks: those are slower, and say so."""

    throttled: Callable[[int], bool] = lambda block: False
    blocks: int = 0

    def time_block(self, calls: int) -> Block:
        hot = self.throttled(self.blocks)
        self.blocks += 1
        block = super().time_block(calls)
        seconds = 3 * block.seconds if hot else block.seconds
        return Block(seconds, None, Conditions(throttled=hot))


def hot_arms(machine: Machine, throttled: Callable[[int], bool], noise: float = 0.01):
    return {
        "a": (FakeArm(machine, "a", 1.0, normal(noise)), 1),
        "b": (HotArm(machine, "b", 0.5, normal(noise, seed=1), throttled=throttled), 1),
    }


def test_a_throttled_block_is_run_again_and_the_first_try_is_kept_and_counts_nowhere():
    rounds = run(Machine(), hot_arms(Machine(), lambda block: block == 3), "a", budget_s=60)
    tries = [sample for sample in rounds.samples["b"] if sample.round == 3]
    assert [sample.repeated for sample in tries] == [True, False]
    assert tries[0].seconds > 2 * tries[1].seconds
    assert sum(sample.repeated for sample in rounds.samples["b"]) == 1
    assert not any(sample.repeated for sample in rounds.samples["a"])
    assert tries[0].conditions == Conditions(throttled=True)


def test_the_throttled_try_takes_no_part_in_deciding_when_to_stop():
    quiet = run(Machine(), hot_arms(Machine(), lambda block: False, 0.001), "a")
    hot = run(Machine(), hot_arms(Machine(), lambda block: block == 1, 0.001), "a")
    assert hot.stop_reason == quiet.stop_reason == "95 % interval within 2 %"
    assert len(hot.samples["a"]) == len(quiet.samples["a"])


def test_a_machine_that_is_always_throttled_is_measured_as_it_is():
    rounds = run(Machine(), hot_arms(Machine(), lambda block: True), "a", budget_s=1e9, target=1e-9)
    repeated = [sample for sample in rounds.samples["b"] if sample.repeated]
    assert 0 < len(repeated) <= 2
    assert len(rounds.samples["b"]) == len(rounds.samples["a"]) + len(repeated)


def test_blocks_of_later_processes_have_rounds_of_their_own_and_the_same_beginning_of_time():
    machine = Machine()
    these = arms(machine, normal(0.01), a=1.0, b=2.0)
    first = run(machine, these, "a", origin=machine.clock())
    began = machine.time
    second = run(machine, these, "a", process=1, origin=100.0)
    assert {sample.process for sample in first.samples["a"]} == {0}
    assert {sample.process for sample in second.samples["b"]} == {1}
    numbers = [{sample.round for sample in rounds.samples["a"]} for rounds in (first, second)]
    assert not numbers[0] & numbers[1]
    assert min(sample.started_s for arm in "ab" for sample in second.samples[arm]) == began - 100.0


def test_every_process_has_an_order_of_its_own():
    orders = []
    for process in range(6):
        machine = Machine()
        run(machine, arms(machine, a=1.0, b=1.0, c=1.0), "a", process=process)
        orders.append(tuple(machine.order[:6]))
    assert len(set(orders)) > 1
