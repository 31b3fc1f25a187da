import gc
import random
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tippingpoint.machine import Peaks
from tippingpoint.profiling import peaks
from tippingpoint.profiling.device import CpuDevice, FakeDevice
from tippingpoint.profiling.peaks import SIDES, measure_peaks

SMALL = (4, 6, 8, 12, 16, 24, 32)
Model = Callable[[int | None], float]


class Machine:
    """A fake device whose clock runs as a model of a machine says, and what was asked of it.

    Args:
        model: Seconds of a product of matrices of a side, or of a copy for None.
        available: Bytes that it has.
    """

    def __init__(self, model: Model, available: int = 2**40) -> None:
        self.sides: list[int | None] = [None]
        self.threads: set[int] = set()
        self.device = FakeDevice(self._durations(model), available=available)

    def _durations(self, model: Model) -> Iterator[float]:
        while True:
            self.threads.add(torch.get_num_threads())
            yield model(self.sides[-1])

    def measure(self, monkeypatch: pytest.MonkeyPatch, dtype: str = "float32", **options: object) -> Peaks:
        product, copy = peaks._product, peaks._copy_rate

        def spy_product(place: str, kind: torch.dtype, side: int) -> Callable[[], None]:
            self.sides.append(side)
            return product(place, kind, side)

        def spy_copy(*arguments: object) -> float:
            self.sides.append(None)
            return copy(*arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(peaks, "_product", spy_product)
            patch.setattr(peaks, "_copy_rate", spy_copy)
            return measure_peaks(
                self.device,
                1,
                dtype,
                **{"sides": SMALL, "copy_bytes": 2**16, **options},  # type: ignore[arg-type]
            )


def at_rate(flops_per_s: float, copy_s: float = 0.01) -> Model:
    """A machine that multiplies at one rate whatever the size."""
    return lambda side: copy_s if side is None else 2 * side**3 / flops_per_s


def test_known_durations_give_known_rates(monkeypatch):
    seen = Machine(at_rate(1e6, copy_s=0.01)).measure(monkeypatch)
    assert seen.flops_per_s == pytest.approx(1e6)
    # Every byte is read once and written once.
    assert seen.bytes_per_s == pytest.approx(2 * 2**16 / 0.01)


@pytest.mark.parametrize(
    ("flops_per_s", "side"),
    [
        (2 * 8**3 / 0.03, 8),
        (2 * 16**3 / 0.021, 16),
        (2 * 24**3 / 0.049, 24),
        (2 * 32**3 / 0.001, 32),  # the list ends
        (2 * 4**3 / 0.3, 4),  # already the smallest takes long
    ],
)
def test_matrices_grow_until_a_product_takes_some_tens_of_milliseconds(monkeypatch, flops_per_s, side):
    machine = Machine(at_rate(flops_per_s))
    assert machine.measure(monkeypatch).flops_per_s == pytest.approx(flops_per_s)
    assert machine.sides[-2] == side


def test_what_starting_a_product_costs_is_left_behind_with_the_small_ones(monkeypatch):
    rate = 2 * 24**3 / 0.03
    machine = Machine(lambda side: 0.01 if side is None else 0.005 + 2 * side**3 / rate)
    seen = machine.measure(monkeypatch)
    assert machine.sides[-2] == 24
    assert seen.flops_per_s == pytest.approx(2 * 24**3 / 0.035)


def test_the_best_of_several_blocks_counts(monkeypatch):
    generator = random.Random(0)

    def model(side: int | None) -> float:
        clean = 0.025 if side is None else 2 * side**3 / 1e6
        return clean * generator.choice([1, 1.5, 3])

    seen = Machine(model).measure(monkeypatch)
    assert seen.flops_per_s == pytest.approx(1e6)
    assert seen.bytes_per_s == pytest.approx(2 * 2**16 / 0.025)


def test_a_busy_machine_does_not_stop_matrices_from_growing(monkeypatch):
    """Threads that wait for a core make every small product take as long as a large one."""
    rate = 2 * 24**3 / 0.03
    machine = Machine(lambda side: 0.01 if side is None else max(0.016, 2 * side**3 / rate))
    assert machine.measure(monkeypatch).flops_per_s == pytest.approx(rate)
    assert machine.sides[-2] == 24


def test_matrices_take_no_more_than_an_eighth_of_the_memory(monkeypatch):
    machine = Machine(at_rate(1e8), available=8 * 3 * 4 * 16**2)
    machine.measure(monkeypatch)
    assert machine.sides[-2] == 16
    machine = Machine(at_rate(1e8), available=8 * 3 * 2 * 16**2)
    machine.measure(monkeypatch, dtype="bfloat16")
    assert machine.sides[-2] == 16


def test_a_machine_without_memory_still_gives_an_answer(monkeypatch):
    machine = Machine(at_rate(1e6), available=0)
    assert machine.measure(monkeypatch).flops_per_s == pytest.approx(1e6)
    assert machine.sides[-2] == SMALL[0]


def test_the_two_buffers_of_a_copy_take_no_more_than_an_eighth_of_the_memory(monkeypatch):
    seen = Machine(at_rate(1e6, copy_s=0.01), available=8 * 2 * 4096).measure(monkeypatch, copy_bytes=2**20)
    assert seen.bytes_per_s == pytest.approx(2 * 4096 / 0.01)


@given(rate=st.floats(1e4, 1e8), copy_s=st.floats(1e-3, 0.05))
def test_it_takes_about_a_second_on_any_machine(rate, copy_s):
    machine = Machine(at_rate(rate, copy_s))
    with pytest.MonkeyPatch.context() as patch:
        seen = machine.measure(patch)
    assert seen.flops_per_s == pytest.approx(rate)
    assert machine.device.now() < 1.5


def test_the_budget_is_kept(monkeypatch):
    machine = Machine(at_rate(1e6))
    machine.measure(monkeypatch, budget_s=0)
    shortest = machine.device.now()
    machine = Machine(at_rate(1e6))
    machine.measure(monkeypatch, budget_s=2)
    assert shortest + 3 < machine.device.now() < shortest + 4.5


def test_it_computes_with_the_threads_it_was_given_and_leaves_them_as_they_were(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        machine = Machine(at_rate(1e6))
        machine.measure(monkeypatch)
        assert machine.threads == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_clock_of_the_device_counts_where_it_has_one():
    class TwoClocks(FakeDevice):
        def time_block(self, call: Callable[[], None], calls: int) -> tuple[float, float]:
            host, own = super().time_block(call, calls)
            return 3 * host, own

    def durations() -> Iterator[float]:
        while True:
            yield 0.03

    seen = measure_peaks(TwoClocks(durations()), 1, "float32", sides=(16,), copy_bytes=2**10)
    assert seen.flops_per_s == pytest.approx(2 * 16**3 / 0.03)


@pytest.fixture
def frozen() -> Iterator[None]:
    """Keep what lives now out of garbage collections, as in a worker, where each block begins with one."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("one_thread", "frozen")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_this_machine_has_plausible_peaks(dtype):
    seen = measure_peaks(CpuDevice(), 1, dtype, sides=(32, 64), copy_bytes=2**20, budget_s=0.01)
    # Of one core: between a microcontroller and more than any will have.
    assert 1e6 < seen.flops_per_s < 1e14
    assert 1e6 < seen.bytes_per_s < 1e13


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("side", [5, 128, 200])
def test_a_product_multiplies_numbers_that_are_not_zero(side):
    kept: list[torch.Tensor] = []
    original = torch.mm

    def keep(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        kept.extend((left, right, out))
        return original(left, right, out=out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "mm", keep)
        peaks._product("cpu", torch.float32, side)()
    left, right, out = kept
    assert left.shape == right.shape == out.shape == (side, side)
    assert left.is_contiguous()
    assert right.is_contiguous()
    torch.testing.assert_close(out, left @ right)
    assert (left > 0).float().mean() > 0.99


@pytest.mark.parametrize(("cache_mib", "copy_mib"), [(100, 400), (8, 128), (0, 128)])
def test_a_copy_is_far_larger_than_the_caches(monkeypatch, cache_mib, copy_mib):
    monkeypatch.setattr(peaks, "last_level_cache_bytes", lambda: cache_mib * 2**20)
    assert peaks._copy_bytes("cpu") == copy_mib * 2**20


@pytest.mark.parametrize(("cache_mib", "copy_mib"), [(50, 512), (256, 1024)])
def test_on_a_gpu_a_copy_is_far_larger_than_its_cache(monkeypatch, cache_mib, copy_mib):
    class Properties:
        L2_cache_size = cache_mib * 2**20

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    assert peaks._copy_bytes("cuda:0") == copy_mib * 2**20


def test_sides_end_at_8192_and_no_step_between_them_makes_a_product_jump_over_the_time_asked_for():
    assert SIDES[-1] == 8192
    assert list(SIDES) == sorted(SIDES)
    assert all((later / earlier) ** 3 < 3.4 for earlier, later in pairwise(SIDES))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_has_plausible_peaks(dtype):
    from tippingpoint.profiling.device import CudaDevice

    seen = measure_peaks(CudaDevice("cuda"), 1, dtype)
    assert 1e11 < seen.flops_per_s < 1e16
    assert 1e10 < seen.bytes_per_s < 1e14
