import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processes import needs_proc
from tippingpoint.machine import Conditions
from tippingpoint.profiling import conditions
from tippingpoint.profiling.conditions import Watch
from tippingpoint.profiling.sensors import Gpu
from trees import CORES, write

PID = 4321
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
HEAT = "thermal_throttle/core_throttle_count"


@pytest.fixture(autouse=True)
def close_trees() -> Iterator[None]:
    """Let go of the files of trees that are gone."""
    yield
    conditions._open_host.cache_clear()


@pytest.fixture(scope="module")
def one_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tree")


def stat(user: int, *, nice: int = 0, system: int = 0, interrupts: int = 0, steal: int = 0) -> dict[str, object]:
    """/proc/stat with ticks of work, and some of waiting that count nowhere."""
    return {"proc/stat": f"cpu  {user} {nice} {system} 999 888 {interrupts} 0 {steal} 77 66\ncpu0 1 2 3 4 5 6 7 8"}


def process(pid: int, user: int, system: int = 0, name: str = "python") -> dict[str, object]:
    """/proc/PID/stat with ticks of work in its fields 14 and 15."""
    return {f"proc/{pid}/stat": f"{pid} ({name}) S 1 1 1 0 -1 0 0 0 0 0 {user} {system} 55 44 20 0 1 0 33 22 11"}


def quiet_machine(root: Path) -> Path:
    """A machine on which nothing has happened yet."""
    return write(
        root,
        {"proc/loadavg": "0.25 0.50 0.75 1/99 4321", **stat(0), **process(PID, 0), **process(os.getpid(), 0)},
    )


def around(root: Path, changes: Mapping[str, object], device: str = "cpu") -> Conditions:
    """Conditions of a block during which some files change."""
    with Watch(device, PID, root=root) as watch:
        watch.begin()
        write(root, changes)
        return watch.end()


def test_a_quiet_machine_is_told_as_such(tmp_path):
    seen = around(quiet_machine(tmp_path), {})
    assert seen == Conditions(load=0.25, others_s=0.0, steal_s=0.0, cores_s=0.0)


def test_the_load_is_that_of_the_beginning(tmp_path):
    seen = around(quiet_machine(tmp_path), {"proc/loadavg": "9.00 0.50 0.75 1/99 4321"})
    assert seen.load == 0.25


def test_others_are_all_work_less_that_of_the_worker_and_of_this_process(tmp_path):
    changes = {
        **stat(100, nice=20, system=30, interrupts=4, steal=7),
        **process(PID, 60, 15),
        **process(os.getpid(), 2, 1),
    }
    seen = around(quiet_machine(tmp_path), changes)
    assert seen.others_s == pytest.approx((154 - 75 - 3) * TICK_S)
    assert seen.steal_s == pytest.approx(7 * TICK_S)
    # Everything there was, what idle cores had included.
    assert seen.cores_s is not None
    assert seen.cores_s >= (154 + 7) * TICK_S


def test_only_what_happened_during_the_block_counts(tmp_path):
    root = write(quiet_machine(tmp_path), {**stat(1_000_000, steal=500), **process(PID, 70_000)})
    with Watch("cpu", PID, root=root) as watch:
        watch.begin()
        write(root, {**stat(1_000_050, steal=500), **process(PID, 70_040)})
        first = watch.end()
        write(root, {**stat(2_000_000, steal=900), **process(PID, 70_040)})
        watch.begin()
        second = watch.end()
    assert first.others_s == pytest.approx(10 * TICK_S)
    assert (first.steal_s, second.others_s, second.steal_s) == (0.0, 0.0, 0.0)


TICKS = st.integers(0, 10_000)


@given(everything=TICKS, worker=TICKS, own=TICKS, before=st.integers(0))
def test_others_are_never_negative_though_the_kernel_rounds_processes_and_cores_unlike(
    one_tree, everything, worker, own, before
):
    root = write(quiet_machine(one_tree), stat(before))
    seen = around(root, {**stat(before + everything), **process(PID, worker), **process(os.getpid(), own)})
    assert seen.others_s == pytest.approx(max(0, everything - worker - own) * TICK_S)


def test_a_program_whose_name_has_spaces_and_parentheses_is_read_right(tmp_path):
    root = write(quiet_machine(tmp_path), process(PID, 5, name="a) b (c 9 9"))
    seen = around(root, {**stat(100), **process(PID, 45, name="a) b (c 9 9")})
    assert seen.others_s == pytest.approx(60 * TICK_S)


def test_a_worker_that_has_ended_leaves_the_others_unknown(tmp_path):
    seen = around(quiet_machine(tmp_path), {**stat(100), f"proc/{PID}/stat": ""})
    assert seen.others_s is None
    assert seen.steal_s == 0.0


def test_where_nothing_can_be_read_nothing_is_claimed(tmp_path):
    assert around(tmp_path, {}) == Conditions()


def test_the_clock_is_the_mean_over_the_cores_when_the_block_ended(tmp_path):
    root = quiet_machine(tmp_path)
    for core in range(3):
        write(root, {f"{CORES}/cpu{core}/cpufreq/scaling_cur_freq": 1_000_000})
    seen = around(root, {f"{CORES}/cpu{core}/cpufreq/scaling_cur_freq": (core + 1) * 1_000_000 for core in range(3)})
    assert seen.clock_hz == pytest.approx(2e9)


def test_without_frequency_files_the_clock_is_what_the_cpu_says(tmp_path):
    root = write(quiet_machine(tmp_path), {"proc/cpuinfo": "cpu MHz\t\t: 2000.000\nflags : a\ncpu MHz\t\t: 3000.500"})
    assert around(root, {}).clock_hz == pytest.approx(2500.25e6)


def test_a_line_that_was_cut_off_is_no_clock(tmp_path, monkeypatch):
    root = write(quiet_machine(tmp_path), {"proc/cpuinfo": "cpu MHz\t\t: 2000.000\ncpu MHz\t\t: 3000.000"})
    monkeypatch.setattr(conditions, "_MOST_BYTES", len("cpu MHz\t\t: 2000.000\ncpu MHz\t\t: 3"))
    assert around(root, {}).clock_hz == pytest.approx(2e9)


def test_of_many_cores_some_are_read_and_they_are_spread_over_all(tmp_path):
    root = quiet_machine(tmp_path)
    for core in range(100):
        write(root, {f"{CORES}/cpu{core}/cpufreq/scaling_cur_freq": 1_000_000 if core < 50 else 3_000_000})
    with Watch("cpu", PID, root=root) as watch:
        assert 16 <= len(watch._host._clocks) <= 32
        watch.begin()
        assert watch.end().clock_hz == pytest.approx(2e9, rel=0.05)


def test_the_temperature_is_that_of_the_hottest_package(tmp_path):
    root = quiet_machine(tmp_path)
    for zone, (kind, thousandths) in enumerate(
        [("acpitz", 95_000), ("x86_pkg_temp", 51_500), ("x86_pkg_temp", 63_250)]
    ):
        folder = f"sys/class/thermal/thermal_zone{zone}"
        write(root, {f"{folder}/type": kind, f"{folder}/temp": thousandths})
    assert around(root, {}).temperature_c == 63.25


@pytest.mark.parametrize("name", ["coretemp", "k10temp"])
def test_without_zones_the_temperature_comes_from_the_monitors_of_the_cpu(tmp_path, name):
    root = quiet_machine(tmp_path)
    write(root, {"sys/class/hwmon/hwmon0/name": "nvme", "sys/class/hwmon/hwmon0/temp1_input": 80_000})
    write(root, {"sys/class/hwmon/hwmon1/name": name, "sys/class/hwmon/hwmon1/temp1_input": 44_000})
    assert around(root, {}).temperature_c == 44.0


@pytest.mark.parametrize(("later", "throttled"), [(7, False), (8, True)])
def test_heat_that_slowed_a_core_meanwhile_throttled_it_and_earlier_heat_did_not(tmp_path, later, throttled):
    root = quiet_machine(tmp_path)
    for core in range(2):
        write(root, {f"{CORES}/cpu{core}/{HEAT}": 7})
    assert around(root, {f"{CORES}/cpu1/{HEAT}": later}).throttled is throttled


def test_heat_that_slowed_a_package_throttled_it(tmp_path):
    root = quiet_machine(tmp_path)
    counter = "thermal_throttle/package_throttle_count"
    for core in range(4):
        package = core // 2
        write(root, {f"{CORES}/cpu{core}/topology/physical_package_id": package, f"{CORES}/cpu{core}/{counter}": 3})
    # All cores of a package tell the same.
    assert around(root, {f"{CORES}/cpu{core}/{counter}": 4 for core in (2, 3)}).throttled is True


@pytest.mark.parametrize("folder", ["sys/fs/cgroup", "sys/fs/cgroup/cpu"])
def test_a_containers_quota_that_stopped_it_throttled_it(tmp_path, folder):
    root = write(quiet_machine(tmp_path), {f"{folder}/cpu.stat": "usage_usec 5\nnr_periods 9\nnr_throttled 2"})
    assert around(root, {}).throttled is False
    changed = {f"{folder}/cpu.stat": "usage_usec 9\nnr_periods 99\nnr_throttled 3"}
    assert around(root, changed).throttled is True


def test_the_quota_of_a_group_around_this_one_counts(tmp_path):
    root = write(quiet_machine(tmp_path), {"proc/self/cgroup": "0::/user.slice/measuring.scope"})
    inner, outer = "sys/fs/cgroup/user.slice/measuring.scope/cpu.stat", "sys/fs/cgroup/user.slice/cpu.stat"
    # The root of the tree has no quota and so no such counter.
    write(root, {"sys/fs/cgroup/cpu.stat": "usage_usec 5", inner: "nr_throttled 0", outer: "nr_throttled 4"})
    assert around(root, {}).throttled is False
    assert around(root, {outer: "nr_throttled 5"}).throttled is True


def test_a_machine_without_such_counters_does_not_know_whether_it_was_throttled(tmp_path):
    root = write(quiet_machine(tmp_path), {"sys/fs/cgroup/cpu.stat": "usage_usec 5\nuser_usec 5"})
    assert around(root, {}).throttled is None


class ScriptedGpu(Gpu):
    """A GPU that tells what it is given, one block after the other."""

    def __init__(self, *slowed: bool | None) -> None:
        super().__init__(None, None)
        self.slowed = iter(slowed)

    def clock_hz(self) -> float:
        return 1.755e9

    def temperature_c(self) -> float:
        return 66.0

    def throttled(self) -> bool | None:
        return next(self.slowed)


@pytest.mark.parametrize(
    ("begin", "end", "throttled"),
    [(False, False, False), (True, False, True), (False, True, True), (None, True, True), (None, None, None)],
)
def test_on_a_gpu_clock_temperature_and_throttling_are_the_gpus(tmp_path, monkeypatch, begin, end, throttled):
    root = write(quiet_machine(tmp_path), {f"{CORES}/cpu0/{HEAT}": 1})
    write(root, {f"{CORES}/cpu0/cpufreq/scaling_cur_freq": 1_000_000})
    monkeypatch.setattr(conditions, "open_gpu", lambda device, uuid: ScriptedGpu(begin, end))
    seen = around(root, {f"{CORES}/cpu0/{HEAT}": 2, **stat(9)}, device="cuda")
    assert (seen.clock_hz, seen.temperature_c, seen.throttled) == (1.755e9, 66.0, throttled)
    assert seen.others_s == pytest.approx(9 * TICK_S)


def test_without_the_drivers_library_nothing_is_claimed_of_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    root = write(quiet_machine(tmp_path), {f"{CORES}/cpu0/cpufreq/scaling_cur_freq": 1_000_000})
    seen = around(root, {}, device="cuda:1")
    assert (seen.clock_hz, seen.temperature_c, seen.throttled) == (None, None, None)
    assert (seen.load, seen.others_s) == (0.25, 0.0)


def test_the_uuid_of_the_gpu_is_handed_on(monkeypatch, tmp_path):
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(conditions, "open_gpu", lambda *arguments: asked.append(arguments) or "none here")
    with Watch("cuda:1", PID, uuid="GPU-aa", root=tmp_path):
        pass
    assert asked == [("cuda:1", "GPU-aa")]


def test_files_are_opened_once_and_a_workers_are_closed_with_its_watch(tmp_path):
    root = quiet_machine(tmp_path)
    with Watch("cpu", PID, root=root):
        pass
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        with Watch("cpu", PID, root=root) as watch:
            inside = len(os.listdir("/dev/fd"))
            watch.begin()
            watch.end()
            assert len(os.listdir("/dev/fd")) == inside == before + 2
    assert len(os.listdir("/dev/fd")) == before


@needs_proc
def test_this_machine_tells_of_this_process():
    with Watch("cpu", os.getpid()) as watch:
        watch.begin()
        seen = watch.end()
    assert seen.load is not None
    assert seen.others_s is not None
    assert 0 <= seen.others_s < 60
    assert seen.clock_hz is None or 1e8 < seen.clock_hz < 1e10
    assert seen.temperature_c is None or 0 < seen.temperature_c < 120


def test_a_block_that_did_not_begin_has_no_end(tmp_path):
    with Watch("cpu", PID, root=quiet_machine(tmp_path)) as watch:
        watch.begin()
        watch.end()
        with pytest.raises(AssertionError, match="begin first"):
            watch.end()
