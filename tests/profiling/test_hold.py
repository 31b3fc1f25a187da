import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tippingpoint.errors import InputError
from tippingpoint.profiling import exclusive, hold
from tippingpoint.profiling.environment import HELD_VARIABLE, read_environment
from tippingpoint.profiling.exclusive import BusyError, exclusively
from tippingpoint.workload import Place


class System:
    """Which cores this process is held to, without holding it."""

    def __init__(self) -> None:
        self.cores = {0, 1, 2, 3}

    def sched_getaffinity(self, pid: int) -> set[int]:
        return set(self.cores)

    def sched_setaffinity(self, pid: int, cores: object) -> None:
        self.cores = set(cores)  # type: ignore[call-overload]


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch) -> System:
    """A machine of two sockets with two cores each, and two GPUs, the first near the second socket."""
    system = System()
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.setattr(os, name, getattr(system, name), raising=False)
    monkeypatch.setenv("TIPPINGPOINT_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(exclusive, "sockets", lambda cores: tuple(sorted({c // 2 for c in cores or system.cores})))
    monkeypatch.setattr(exclusive, "gpu_uuid", lambda device: f"GPU-{device.partition(':')[2] or 0}")
    monkeypatch.setattr(hold, "cores_by_socket", lambda: [(0, 1), (2, 3)])
    monkeypatch.setattr(hold, "gpu_cores", lambda device: (2, 3))
    return system


@pytest.fixture
def others() -> Iterator[ExitStack]:
    """What other processes hold: another thread's locks would do, and so do these, which nobody knows of."""
    with ExitStack() as stack:
        yield stack


def measured_by_another(others: ExitStack, *cores: int) -> None:
    """Let somebody else measure on cores."""
    others.enter_context(exclusively("cpu", cores))
    del exclusive._held.names  # as if it were not this thread
    others.callback(setattr, exclusive._held, "names", frozenset())


def test_cores_of_a_free_socket_are_held_and_stayed_on(machine):
    with hold.hold(Place(kind="cpu", cores=2)) as where:
        assert where == "cores 0-1"
        assert machine.cores == {0, 1}
        with exclusively("cpu", None):
            pass  # a session within it waits for nothing
    assert machine.cores == {0, 1, 2, 3}


def test_a_socket_that_is_measured_on_is_left_alone(machine, others):
    measured_by_another(others, 0)
    with hold.hold(Place(kind="cpu", cores=1)) as where:
        assert where == "cores 2"
        assert machine.cores == {2}


def test_more_cores_than_any_socket_has_are_refused_and_nothing_stays_held(machine):
    with (
        pytest.raises(InputError, match="3 CPU cores of one socket, and this machine has 2"),
        hold.hold(Place(kind="cpu", cores=3)),
    ):
        raise AssertionError
    assert machine.cores == {0, 1, 2, 3}
    assert HELD_VARIABLE not in os.environ
    with exclusively("cpu", None, wait=False):
        pass


def test_a_gpu_is_held_with_the_socket_beside_it(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with hold.hold(Place(kind="H100")) as where:
        assert where == "cuda:5"
        assert machine.cores == {2, 3}


def test_gpus_of_one_socket_take_turns_unless_they_may_share_it(monkeypatch, others):
    others.enter_context(exclusively("cuda:1", (2,), share_socket=True))
    del exclusive._held.names
    others.callback(setattr, exclusive._held, "names", frozenset())
    with pytest.raises(BusyError, match="socket 1"), exclusively("cuda:0", (2, 3), wait=False):
        raise AssertionError
    with hold.hold(Place(kind="H100", share_socket=True)):
        pass


def test_where_the_driver_tells_nothing_a_gpu_has_every_socket(machine, monkeypatch):
    monkeypatch.setattr(hold, "gpu_cores", lambda device: ())
    with hold.hold(Place(kind="cuda")):
        assert machine.cores == {0, 1, 2, 3}
        with exclusively("cuda", (0, 3)):
            pass


def test_which_cores_are_held_makes_no_other_environment(machine):
    with hold.hold(Place(kind="cpu", cores=1)):
        first = read_environment("cpu", 1)
    machine.cores = {2}
    pinned = read_environment("cpu", 1)
    assert first.affinity == ()
    assert first.cores == 1
    assert pinned.affinity == (2,)


@pytest.mark.parametrize(("cores", "written"), [((0, 1, 2, 5), "0-2,5"), ((7,), "7"), ((3, 1, 2), "1-3")])
def test_cores_are_written_as_the_system_does(cores, written):
    assert hold._ranges(cores) == written
