import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from processes import needs_proc
from tippingpoint.errors import InputError, TippingPointError
from tippingpoint.measurement import Failure, Measurement
from tippingpoint.profiling import exclusive
from tippingpoint.profiling.breakdown import breakdown
from tippingpoint.profiling.exclusive import BusyError, exclusively
from tippingpoint.profiling.process import WorkerProcess, Zygote
from tippingpoint.profiling.session import Effort, measure_together, screen
from tippingpoint.workload import Workload

WAIT_S = 60.0
TINY = Workload("bert", 32, size="tiny", threads=1)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of locks of the test's own."""
    monkeypatch.setenv("TIPPINGPOINT_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks"


@pytest.fixture
def machine(monkeypatch) -> None:
    """A machine of two sockets with two cores each, and of GPUs that tell their names."""
    monkeypatch.setattr(exclusive, "sockets", lambda cores: tuple(sorted({core // 2 for core in cores or range(4)})))
    monkeypatch.setattr(exclusive, "gpu_uuid", lambda device: f"GPU-{device.partition(':')[2] or 0}")


class Other:
    """Another thread, which measures as soon as it may."""

    def __init__(self, work: Callable[[Callable[[str], None]], object]) -> None:
        self.lines: list[str] = []
        self.waits = threading.Event()
        self.found: object = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.found = self._work(self._hear)

    def _hear(self, line: str) -> None:
        self.lines.append(line)
        self.waits.set()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert self.is_done


def taking(device: str, cores: tuple[int, ...] | None = None, *, share_socket: bool = False) -> Other:
    """Another thread that takes what is asked for, and lets go at once."""

    def work(progress: Callable[[str], None]) -> None:
        with exclusively(device, cores, share_socket=share_socket, progress=progress):
            pass

    return Other(work)


def is_free(device: str, cores: tuple[int, ...] | None = None, *, share_socket: bool = False) -> bool:
    """Whether another measurement would begin at once; one that would not does not wait."""

    def give_up(line: str) -> None:
        raise BlockingIOError(line)

    def work(progress: Callable[[str], None]) -> bool:
        try:
            with exclusively(device, cores, share_socket=share_socket, progress=give_up):
                return True
        except BlockingIOError:
            return False

    other = Other(work)
    other.join()
    assert isinstance(other.found, bool)
    return other.found


@contextmanager
def held(device: str, cores: tuple[int, ...] | None = None, *, share_socket: bool = False) -> Iterator[None]:
    lines: list[str] = []
    with exclusively(device, cores, share_socket=share_socket, progress=lines.append):
        assert not lines
        yield


def test_who_comes_second_says_so_once_and_waits_until_the_first_lets_go(machine):
    with held("cpu"):
        other = taking("cpu")
        assert other.waits.wait(WAIT_S)
        assert not other.is_done
    other.join()
    assert other.lines == ["waiting: another measurement is running on this machine (socket 0)"]


def test_what_is_let_go_is_free(machine):
    for _ in range(3):
        with held("cuda:1"):
            pass


def test_an_error_lets_go(machine):
    with pytest.raises(KeyboardInterrupt), held("cpu"):
        raise KeyboardInterrupt
    assert is_free("cpu")


def test_measurements_on_different_sockets_run_side_by_side(machine):
    with held("cpu", (0, 1)):
        assert is_free("cpu", (2, 3))
        assert not is_free("cpu", (1,))
        assert not is_free("cpu", (1, 2))
        assert not is_free("cpu")


def test_a_gpu_is_measured_alone_and_with_the_socket_to_itself(machine):
    with held("cuda:0", (0, 1)):
        assert not is_free("cuda:0", (2, 3))
        assert not is_free("cuda", (2, 3))
        assert not is_free("cuda:1", (0,))
        assert not is_free("cpu", (0,))
        assert is_free("cuda:1", (2,))
        assert is_free("cpu", (2, 3))


def test_gpus_may_share_a_socket_but_not_with_a_measurement_on_the_cpu(machine):
    with held("cuda:0", share_socket=True):
        assert is_free("cuda:1", share_socket=True)
        assert not is_free("cuda:0", share_socket=True)
        assert not is_free("cuda:1")
        assert not is_free("cpu")
        assert not is_free("cpu", share_socket=True)
    with held("cpu"):
        assert not is_free("cuda:1", share_socket=True)


def test_a_call_within_another_of_the_same_thread_takes_nothing(machine):
    with held("cuda:0"), held("cuda:0"), held("cpu"), held("cpu", (3,)):
        pass
    with held("cuda:0", share_socket=True), held("cuda:0"):
        # The outermost call decides: the sockets are shared still.
        assert is_free("cuda:1", share_socket=True)
    assert is_free("cuda:0")


def test_a_call_within_another_lets_nothing_go(machine):
    with held("cpu"):
        with held("cpu"):
            pass
        assert not is_free("cpu")


def test_a_call_within_another_cannot_ask_for_more(machine):
    with held("cpu", (0,)):
        with pytest.raises(
            InputError,
            match=r"needs GPU GPU-0, socket 1, and the one around it has only socket 0 to itself; take all",
        ):
            exclusively("cuda:0", (0, 2)).__enter__()
        assert is_free("cuda:0", (2,))
    assert is_free("cpu")


def test_who_lets_go_and_comes_again_stands_behind_who_waits(machine):
    order = []

    def work(progress: Callable[[str], None]) -> None:
        with exclusively("cpu", progress=progress):
            order.append("other")

    with held("cpu"):
        other = Other(work)
        assert other.waits.wait(WAIT_S)
    with exclusively("cpu"):
        order.append("first again")
    other.join()
    assert order == ["other", "first again"]


def test_a_measurement_on_the_cpu_gets_its_turn_though_gpus_share_the_socket_all_the_time(machine):
    with held("cuda:0", share_socket=True):
        cpu = taking("cpu")
        assert cpu.waits.wait(WAIT_S)
        late = taking("cuda:1", share_socket=True)
        assert late.waits.wait(WAIT_S), "the socket was taken from under who waits for it"
        assert not late.is_done
    cpu.join()
    late.join()


def test_two_that_need_the_same_things_never_wait_for_each_other_for_ever(machine):
    def often(device: str, cores: tuple[int, ...]) -> Other:
        def work(progress: Callable[[str], None]) -> None:
            for _ in range(50):
                with exclusively(device, cores, progress=progress):
                    pass

        return Other(work)

    for one in [often("cuda:0", (0, 2)), often("cuda:0", (2, 0)), often("cuda:1", (3,)), often("cpu", (2, 1))]:
        one.join()


HOLDER = """
import sys
from tippingpoint.profiling.exclusive import BusyError, exclusively
with exclusively("cpu"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder() -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the machine."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_what_a_killed_process_held_is_free():
    with holder() as process:
        assert not is_free("cpu")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert is_free("cpu")


@needs_proc
def test_locks_are_not_handed_down_to_workers(folder):
    def open_files(pid: int) -> list[str]:
        links = Path(f"/proc/{pid}/fd").iterdir()
        return [os.readlink(link) for link in links if link.is_symlink()]

    if Zygote._current is not None:
        Zygote._current.close()
    with exclusively("cpu"), WorkerProcess("cpu", 1) as worker:
        assert any(str(folder) in name for name in open_files(os.getpid()) if name)
        for pid in (worker.pid, Zygote.get().process.pid):
            assert not [name for name in open_files(pid) if str(folder) in name]


def test_everybody_may_use_the_folder_and_its_files_whatever_the_umask_was(folder):
    before = os.umask(0o077)
    try:
        with held("cpu"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o666}
    assert {"socket-0", "socket-0.queue"} <= {file.name for file in folder.iterdir()}


def test_a_folder_that_is_a_link_is_refused(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TippingPointError, match=r"take turns by locks, .*link or a file; set TIPPINGPOINT_LOCKS to"):
        exclusively("cpu").__enter__()
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["socket-0", "socket-0.queue"])
@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_is_a_link_is_refused_and_never_followed(machine, folder, tmp_path, name, there):
    folder.mkdir()
    target = tmp_path / "precious"
    if there:
        target.write_text("kept")
        target.chmod(0o600)
    (folder / name).symlink_to(target)
    with pytest.raises(TippingPointError, match="cannot be used for that"):
        exclusively("cpu").__enter__()
    assert target.exists() == there
    assert not there or (target.read_text(), stat.S_IMODE(target.stat().st_mode)) == ("kept", 0o600)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_plain_file_is_refused_without_waiting(machine, folder, make):
    folder.mkdir()
    make(folder / "socket-0")
    with pytest.raises(TippingPointError, match="cannot be used for that"):
        exclusively("cpu").__enter__()


def test_a_name_that_is_no_file_name_becomes_one(machine, folder, monkeypatch):
    monkeypatch.setattr(exclusive, "gpu_uuid", lambda device: "MIG-GPU-1/../../2")
    with held("cuda"):
        pass
    assert {file.name for file in folder.iterdir()} >= {"gpu-MIG-GPU-1_______2"}


def test_a_gpu_without_a_name_goes_by_its_number(machine, folder, monkeypatch):
    monkeypatch.setattr(exclusive, "gpu_uuid", lambda device: "")
    with held("cuda:3"):
        assert (folder / "gpu-3").exists()


def test_without_names_a_process_that_sees_some_gpus_locks_by_the_drivers_numbers(machine, folder, monkeypatch):
    monkeypatch.setattr(exclusive, "gpu_uuid", lambda device: "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,2")
    with held("cuda"), held("cuda:0"):
        assert (folder / "gpu-5").exists()
        assert not (folder / "gpu-0").exists()


def test_a_process_that_is_forked_meanwhile_holds_nothing_and_waits_for_its_turn(machine, folder):
    reading, writing = os.pipe()
    with held("cuda:1", (0,)):
        child = os.fork()
        if child == 0:
            seen = b"-"
            with suppress(BaseException):
                links = [
                    os.readlink(f"/dev/fd/{name}")
                    for name in os.listdir("/dev/fd")
                    if os.path.islink(f"/dev/fd/{name}")
                ]
                copies = [link for link in links if link.startswith(str(folder))]
                try:
                    with exclusively("cuda:1", (0,), wait=False):
                        seen = b"measured"
                except BusyError:
                    seen = b"copies" if copies else b"busy"
            os.write(writing, seen)
            os._exit(0)
        assert os.read(reading, 20) == b"busy"
        assert os.waitpid(child, 0)[1] == 0
        # What it closed were its copies; the lock is held.
        assert not is_free("cuda:1", (0,))
    assert is_free("cuda:1", (0,))
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_a_process_that_is_forked_meanwhile_and_leaves_the_block_closes_nothing_of_its_own(machine):
    block = exclusively("cpu")
    block.__enter__()
    child = os.fork()
    if child == 0:
        try:
            # They take the numbers of the files that were closed.
            mine = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
            block.__exit__(None, None, None)
            for descriptor in mine:
                os.fstat(descriptor)
            os._exit(0)
        finally:
            os._exit(1)
    block.__exit__(None, None, None)
    assert os.waitpid(child, 0)[1] == 0


def test_a_lock_ends_with_its_process_though_one_forked_from_it_lives_on(machine, folder):
    reading, writing = os.pipe()
    first = os.fork()
    if first == 0:
        exclusively("cpu").__enter__()
        second = os.fork()
        if second == 0:
            os.write(writing, os.getpid().to_bytes(4))
            signal.pause()
        os._exit(0)
    second = int.from_bytes(os.read(reading, 4))
    assert os.waitpid(first, 0)[1] == 0
    try:
        assert is_free("cpu")
    finally:
        os.kill(second, signal.SIGKILL)
        for descriptor in (reading, writing):
            os.close(descriptor)


def test_a_file_that_somebody_removed_while_it_was_waited_for_is_made_anew(machine, folder):
    with held("cpu", (0,)):
        other = taking("cpu", (0,))
        assert other.waits.wait(WAIT_S)
        (folder / "socket-0").unlink()
    other.join()
    assert (folder / "socket-0").exists()
    with held("cpu", (0,)):
        assert not is_free("cpu", (0,))


def test_no_descriptor_is_left(machine):
    def count() -> int:
        return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))

    with held("cuda:0"):
        pass
    before = count()
    for _ in range(20):
        with held("cuda:0"), held("cpu"):
            pass
    assert count() == before


@pytest.mark.parametrize(
    "measure",
    [
        lambda progress: measure_together([TINY], effort=Effort(brief=True), progress=progress),
        lambda progress: screen([TINY.replace(layers=1)], effort=Effort(brief=True), progress=progress),
        lambda progress: [breakdown(TINY, budget_s=0.1, progress=progress)],
    ],
    ids=["measure_together", "screen", "breakdown"],
)
def test_whatever_times_something_waits_until_the_machine_is_free(measure):
    with holder() as process:
        other = Other(measure)
        assert other.waits.wait(WAIT_S)
        assert other.lines == ["waiting: another measurement is running on this machine (socket 0)"]
        assert process.poll() is None
        process.kill()
        other.join()
    assert isinstance(other.found, list)
    assert not isinstance(other.found[0], Failure)


def test_a_session_within_a_lock_of_its_own_does_not_wait(machine):
    lines: list[str] = []
    with exclusively("cpu"):
        (found,) = measure_together([TINY], effort=Effort(brief=True), progress=lines.append)
    assert isinstance(found, Measurement)
    assert not [line for line in lines if line.startswith("waiting")]


def test_workloads_on_several_devices_are_not_one_session():
    with pytest.raises(InputError, match="measures on one device, got cpu and cuda:0; measure them one by one"):
        measure_together([TINY, TINY.replace(device="cuda:0", subject="bert@eager")])
