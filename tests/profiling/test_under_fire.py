"""Subjects that do the worst to their worker: each is one row, and nothing of it is left."""

import errno
import inspect
import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processes import descendants_of, is_alive, needs_proc, status, wait_until, workers_of
from tippingpoint.errors import InputError
from tippingpoint.measurement import Failure, Measurement
from tippingpoint.profiling import family, keeper, process, zygote
from tippingpoint.profiling.answers import ANSWERS, Problem
from tippingpoint.profiling.device import now
from tippingpoint.profiling.last_words import last_lines, one_line
from tippingpoint.profiling.oom import OomKills
from tippingpoint.profiling.process import WorkerError, WorkerProcess, Zygote
from tippingpoint.profiling.session import Effort, measure_together, profile
from tippingpoint.profiling.wire import GarbledError, Wire
from tippingpoint.profiling.worker import Worker, _answer, classify
from tippingpoint.store import Store
from tippingpoint.workload import Workload

pytestmark = needs_proc

SUBJECTS = r"""
import atexit, ctypes, os, pickle, resource, signal, socket, stat, struct, sys, threading
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, deed, number):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.deed = deed
        self.left = number

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            self.deed()
        return self.layer(x)


def __getattr__(name):
    # DEED: done in the first call. DEED_built: before there is a model. DEED_later: in the sixth call.
    deed, _, when = name.partition("_")
    if deed not in DEEDS:
        raise AttributeError(name)

    def make(*, length, batch_size):
        if when == "built":
            DEEDS[deed]()
        return Model(DEEDS[deed], {"built": 0, "later": 6}.get(when, 1)), torch.randn(batch_size, length, 8)

    return make


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no words")

    __repr__ = __str__


class Liar(type):
    __name__ = property(lambda self: 1 / 0)


class Lying(Exception, metaclass=Liar):
    pass


class Unpicklable(Exception):
    def __init__(self):
        super().__init__("it holds a lock")
        self.lock = threading.Lock()


def throw(error):
    raise error


def do_recur():
    do_recur()


def want_more_than_allowed(bytes_allowed, take):
    held = os.sysconf("SC_PAGESIZE") * int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (held + bytes_allowed, resource.RLIM_INFINITY))
    take(2 * bytes_allowed)


def do_segfault():
    print("\x1b[31mabout to read\x1b[0m")
    sys.stderr.write("progress 1 %\rprogress 2 %\n\n")
    print("a byte", end="")
    sys.stdout.flush()
    ctypes.string_at(0)


def do_flood():
    line = "y" * 65535 + "\n"
    for _ in range(2048):
        sys.stdout.write(line)
    print("enough of that")
    os.abort()


def do_sleep():
    print("good night")
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            pass
    while True:
        threading.Event().wait(1000)


def do_spin():
    while True:
        pass


def end_slowly():
    atexit.register(do_sleep)
    threading.Thread(target=do_sleep).start()


def sockets():
    for number in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                yield number
        except OSError:
            pass


def write(data):
    for number in sockets():
        os.write(number, data)


def answer(what):
    data = pickle.dumps(what)
    write(struct.pack("=Q", len(data)) + data)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def half_a_memory():
    from tippingpoint.measurement import Memory
    return Memory(peak_bytes="much", weights_bytes=1, method="guessed")


def untold_problem():
    from tippingpoint.profiling.answers import Problem
    return Problem("crashed", None, "")


def do_refuse():
    from tippingpoint.errors import InputError
    raise InputError("I take no such thing")


def do_relay():
    from tippingpoint.workload import Workload
    Workload("bert", -1)


def do_daemon():
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open(f"daemon-{os.getpid()}", "w").close()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(writing, b"x")
            do_sleep()
        os._exit(0)
    os.read(reading, 1)


def do_helper():
    reading, writing = os.pipe()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, lambda *_: (open("tidied", "w").close(), os._exit(0)))
        os.write(writing, b"x")
        while True:
            threading.Event().wait(1000)
    os.read(reading, 1)


def share_memory(path):
    from multiprocessing.shared_memory import SharedMemory
    with open(path, "w") as file:
        file.write(SharedMemory(create=True, size=4096).name)


def do_chain():
    if os.fork() == 0:
        os.setsid()
        while not os.fork():
            pass
        os._exit(0)


def do_family():
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            os.fork()
            os.fork()
            do_sleep()


def do_grow():
    held = []
    while True:
        held.append(torch.ones(2**20))


def kill(pid, number=signal.SIGKILL):
    os.kill(pid, number)
    do_sleep()


DEEDS = {
    "fine": lambda: None,
    "exit": lambda: throw(SystemExit(3)),
    "leave": lambda: sys.exit("enough"),
    "interrupt": lambda: throw(KeyboardInterrupt()),
    "close": lambda: throw(GeneratorExit()),
    "stop": lambda: throw(StopIteration("none left")),
    "unprintable": lambda: throw(Unprintable()),
    "lying": lambda: throw(Lying()),
    "unpicklable": lambda: throw(Unpicklable()),
    "recur": do_recur,
    "memory": lambda: throw(MemoryError()),
    "alloc": lambda: throw(RuntimeError("std::bad_alloc")),
    "paint": lambda: throw(ValueError("\x1b[2J\x1b]0;owned\x07red\x9b31m\u202e\nand on")),
    "group": lambda: throw(ExceptionGroup("two", [ValueError("one"), ExceptionGroup("deep", [KeyError("it")])])),
    "refuse": do_refuse,
    "relay": do_relay,
    "full": lambda: throw(BaseExceptionGroup("two", [SystemExit(1), MemoryError("it")])),
    "tensor": lambda: want_more_than_allowed(2**30, lambda size: torch.ones(size, dtype=torch.uint8)),
    "bytes": lambda: want_more_than_allowed(2**30, bytearray),
    "segfault": do_segfault,
    "flood": do_flood,
    "abort": os.abort,
    "end": lambda: os._exit(0),
    "seven": lambda: os._exit(7),
    "die": lambda: (print("farewell"), kill(os.getpid())),
    "realtime": lambda: kill(os.getpid(), 40),
    "together": lambda: os.killpg(0, signal.SIGKILL),
    "sleep": do_sleep,
    "spin": do_spin,
    "freeze": lambda: kill(os.getpid(), signal.SIGSTOP),
    "linger": end_slowly,
    "hangup": lambda: (print("going under"), os.closerange(3, 256), do_sleep()),
    "unplug": lambda: os.closerange(3, 256),
    "garble": lambda: write(b"hello, parent, how are you?"),
    "promise": lambda: (write(struct.pack("=Q", 1000) + b"and no more"), do_sleep()),
    "nothing": lambda: write(struct.pack("=Q", 0)),
    "attack": lambda: answer((True, Attack())),
    "odd": lambda: answer([1, 2, 3]),
    "five": lambda: answer((True, 5)),
    "half": lambda: answer((True, half_a_memory())),
    "untold": lambda: answer((False, untold_problem())),
    "wrong": lambda: answer((False, "no")),
    "share": lambda: share_memory("shared"),
    "fork": os.fork,
    "daemon": do_daemon,
    "helper": do_helper,
    "chain": do_chain,
    "family": do_family,
    "widow": lambda: (do_daemon(), do_segfault()),
    "sleeper": lambda: (do_daemon(), do_sleep()),
    "rebel": lambda: (do_daemon(), kill(os.getppid())),
    "gag": lambda: (do_daemon(), kill(os.getppid(), signal.SIGSTOP)),
    "grow": do_grow,
}
"""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory) -> Iterator[Path]:
    """A folder with the subjects, and processes that were started in it."""
    place = tmp_path_factory.mktemp("subjects")
    (place / "subjects_under_fire.py").write_text(SUBJECTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(Zygote, "_current", None)
        yield place
        if Zygote._current is not None:
            Zygote._current.close()


@pytest.fixture(autouse=True)
def nothing_is_left(folder) -> Iterator[None]:
    """Whatever a subject does, nothing of it is left."""
    for path in folder.glob("daemon-*"):
        path.unlink()
    yield
    assert wait_until(lambda: not any(map(is_alive, daemons(folder))))
    if Zygote._current is not None:
        assert wait_until(lambda: not descendants_of(Zygote.get().process.pid))


def daemons(folder: Path) -> list[int]:
    return [int(path.name.partition("-")[2]) for path in folder.glob("daemon-*")]


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess("cpu", 1, timeout_s=60) as started:
        yield started


def bad(name: str) -> Workload:
    return Workload(f"subjects_under_fire:{name}", 8, threads=1)


def call(worker: WorkerProcess, name: str, within_s: float = 60) -> Any:
    """Build a subject and call it once, which may take so long."""
    if name.endswith("_built"):
        worker._timeout_s = within_s
    worker.ask("build", bad(name))
    worker._timeout_s = within_s
    return worker.ask("measure_memory")


def failure(worker: WorkerProcess, name: str, within_s: float = 60) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        call(worker, name, within_s)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
    return caught.value


# What is raised


@pytest.mark.parametrize("when", ["", "_built"])
@pytest.mark.parametrize(
    ("deed", "kind", "message"),
    [
        ("exit", "crashed", "SystemExit: 3"),
        ("leave", "crashed", "SystemExit: enough"),
        ("interrupt", "crashed", "KeyboardInterrupt"),
        ("close", "crashed", "GeneratorExit"),
        ("stop", "crashed", "StopIteration: none left"),
        ("unprintable", "crashed", "Unprintable: (its message raises ValueError)"),
        ("lying", "crashed", "an exception was raised that cannot be described"),
        ("unpicklable", "crashed", "Unpicklable: it holds a lock"),
        ("recur", "crashed", "RecursionError: maximum recursion depth exceeded"),
        ("memory", "out_of_memory", "MemoryError"),
        ("alloc", "out_of_memory", "RuntimeError: std::bad_alloc"),
        ("paint", "crashed", "ValueError: red31m and on"),
        ("group", "crashed", "ExceptionGroup: two (2 sub-exceptions): ValueError: one; KeyError: 'it'"),
        ("refuse", "crashed", "I take no such thing"),
        ("relay", "crashed", "a length must be"),
        ("full", "out_of_memory", "BaseExceptionGroup: two (2 sub-exceptions): SystemExit: 1; MemoryError: it"),
        ("tensor", "out_of_memory", "RuntimeError: "),
        ("bytes", "out_of_memory", "MemoryError"),
    ],
)
def test_whatever_a_subject_raises_is_a_failure_of_its_kind_and_the_worker_goes_on(worker, deed, kind, message, when):
    error = failure(worker, deed + when)
    assert error.kind == kind
    assert str(error).startswith(message)
    assert worker.ask("available_bytes") > 0


def test_the_trace_of_an_exception_is_bounded():
    def shallow(depth: int) -> None:
        if depth:
            deep(depth - 1)
        raise ValueError("x" * 10_000)

    def deep(depth: int) -> None:
        shallow(depth)

    with pytest.raises(ValueError) as caught:  # noqa: PT011 (it is our own)
        shallow(400)
    problem = classify(caught.value)
    assert len(problem.trace) <= 20_000
    assert len(problem.message) <= 500


# How it ends


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("segfault", "the process was ended by SIGSEGV; it last said: about to read | progress 2 % | a byte"),
        ("abort", "the process was ended by SIGABRT"),
        ("end", "the process left with status 0"),
        ("seven", "the process left with status 7"),
        ("realtime", "the process was ended by signal 40"),
    ],
)
def test_a_subject_that_ends_its_process_has_crashed_with_what_it_last_said(worker, deed, message):
    error = failure(worker, deed)
    assert (error.kind, str(error)) == ("crashed", message)
    assert not is_alive(worker.pid)


def test_one_that_is_killed_had_held_so_much(worker):
    error = failure(worker, "die")
    assert re.fullmatch(
        r"the process was ended by SIGKILL when it had held up to [\d.]+ [MG]iB; it last said: farewell", str(error)
    )


def test_a_worker_that_has_died_says_so_again_and_again(worker):
    first = failure(worker, "abort")
    for _ in range(2):
        with pytest.raises(WorkerError) as caught:
            worker.ask("available_bytes")
        assert str(caught.value) == str(first)


def test_who_signals_its_process_group_meets_nobody_else(worker):
    with WorkerProcess("cpu", 1) as other:
        assert failure(worker, "together").kind == "killed"
        assert other.ask("available_bytes") > 0


def test_a_flood_of_output_touches_no_disk_and_takes_no_memory_and_its_last_words_are_kept(worker):
    for number in (1, 2):
        assert os.readlink(f"/proc/{worker.pid}/fd/{number}").startswith("pipe:")
    watching = status(worker.pid)["PPid"]
    before = memory_of(watching)
    seen, over = [before], threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            seen.append(memory_of(watching))

    worker.ask("build", bad("flood"))
    looking = threading.Thread(target=look)
    looking.start()
    with pytest.raises(WorkerError, match=r"ended by SIGABRT; it last said: y{200} \| enough of that$"):
        worker.ask("measure_memory")
    over.set()
    looking.join()
    assert max(seen) - before < 2**24


def memory_of(pid: str) -> int:
    """Bytes of a process's own that it holds; 0 when it has ended."""
    return 1024 * int(status(int(pid)).get("RssAnon", "0").split()[0])


@given(st.text(st.characters() | st.sampled_from("\x1b[]\r\n\x07m;0")))
def test_what_was_said_becomes_one_line_that_steers_nothing(text):
    for line in (one_line(text), last_lines(text.encode(errors="surrogatepass"))):
        assert line.isprintable()
        assert len(line) <= 5 * 203


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (b"", ""),
        (b"one\n\n \ntwo", "one | two"),
        (b"1\n2\n3\n4\n5\n6\n", "2 | 3 | 4 | 5 | 6"),
        (b" 10 %\r 50 %\r100 %\r\nbye\r\n", "100 % | bye"),
        (b"\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "red link"),
        (b"\xff\xfe\x00bell\x07", "\N{REPLACEMENT CHARACTER}" * 2 + "bell"),
        (b"a" * 300 + b"the end", "a" * 193 + "the end"),
    ],
)
def test_the_last_lines_of_an_output(said, line):
    assert last_lines(said) == line


# One that does not answer


@pytest.mark.parametrize("deed", ["sleep", "spin", "freeze", "sleep_built", "promise"])
def test_a_subject_that_hangs_is_stopped_and_what_it_said_is_known(worker, deed):
    doing = "build" if deed.endswith("_built") else "measure memory"
    speaks = deed not in ("spin", "freeze")
    # On a busy machine too it has said its words by then.
    within_s = 8 if speaks else 1
    error = failure(worker, deed, within_s=within_s)
    assert error.kind == "timeout"
    assert str(error).startswith(f"'{doing}' took longer than {within_s} s and was stopped")
    assert ("it last said: good night" in str(error)) == speaks
    assert not is_alive(worker.pid)


def test_a_worker_that_does_not_listen_is_not_waited_for_when_it_is_told_much(worker):
    os.kill(worker.pid, signal.SIGSTOP)
    worker._timeout_s = 0.2
    with pytest.raises(WorkerError) as caught:
        worker.ask("measure_peak", bytes(2**24))
    assert caught.value.kind == "timeout"


def test_a_subject_that_would_hang_as_it_ends_is_ended(worker):
    call(worker, "linger")
    worker.close()
    assert not is_alive(worker.pid)


def test_one_that_hangs_up_and_goes_on_is_stopped(worker, monkeypatch):
    monkeypatch.setattr(process, "_ENDING_S", 0.2)
    error = failure(worker, "hangup")
    assert error.kind == "crashed"
    assert str(error) == ("the process hung up but went on, and was stopped; it last said: going under | good night")
    assert not is_alive(worker.pid)


def test_one_that_loses_the_line_ends_and_says_why(worker):
    error = failure(worker, "unplug")
    assert error.kind == "crashed"
    assert str(error).startswith("the process left with status 1; it last said: ")
    assert "Bad file descriptor" in str(error)


@pytest.mark.parametrize("deed", ["garble", "nothing", "attack", "odd", "wrong", "five", "half", "untold"])
def test_what_is_no_answer_is_a_crash_and_nothing_of_it_is_done(worker, deed, folder):
    error = failure(worker, deed)
    assert error.kind == "crashed"
    assert re.match(
        r"'measure memory' was answered with what is no answer \(.*\), and the process was stopped", str(error)
    )
    assert not (folder / "attacked").exists()
    assert not is_alive(worker.pid)


# The wire


@pytest.fixture
def wires() -> Iterator[tuple[Wire, Wire, socket.socket]]:
    ours, theirs = socket.socketpair()
    end, other_end = socket.socketpair()
    with ours, theirs, end, other_end:
        yield Wire(ours), Wire(theirs), end


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists))
def test_plain_values_travel(value):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Wire(theirs).send((True, value))
        assert Wire(ours).receive(now() + 60, theirs) == (True, value)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_message_are_garbled_or_not_enough(data):
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(data)
        with suppress(GarbledError, EOFError):
            Wire(ours).receive(now() + 60, ours)


@given(st.binary(max_size=200) | st.just(pickle.dumps(os.getpid)) | st.just(pickle.dumps(Workload)))
def test_a_message_of_any_bytes_is_plain_or_garbled(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(len(data).to_bytes(8, sys.byteorder) + data)
        with suppress(GarbledError):
            assert Wire(ours).receive(now() + 60, theirs) is not os.getpid


@pytest.mark.parametrize(
    "reached",
    [os.system, subprocess.Popen, re.compile, WorkerProcess, WorkerProcess.close, process.wait, Store, Workload, set],
)
def test_an_answer_names_nothing_but_records_of_measurements(wires, reached):
    ours, theirs, end = wires
    theirs.send(reached)
    with pytest.raises(GarbledError, match="is no record of a measurement"):
        ours.receive(now() + 60, end)


class Making:
    """Pickles as a call of a class."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> Any:
        return self._call[0], self._call[1:]


def test_reading_an_answer_makes_no_store(wires, tmp_path):
    ours, theirs, end = wires
    theirs.send((True, Making(Store, str(tmp_path / "made.sqlite"))))
    with pytest.raises(GarbledError, match="Store is no record of a measurement"):
        ours.receive(now() + 60, end)
    assert list(tmp_path.iterdir()) == []


def test_reading_an_answer_imports_nothing(wires, monkeypatch):
    ours, theirs, end = wires
    Wire(theirs._socket).send(Making(Store))
    monkeypatch.delitem(sys.modules, "tippingpoint.store", raising=False)
    with pytest.raises(GarbledError):
        ours.receive(now() + 60, end)
    assert "tippingpoint.store" not in sys.modules


def test_every_question_that_a_worker_knows_has_a_type_for_its_answer():
    questions = {name for name, _ in inspect.getmembers(Worker, inspect.isfunction) if not name.startswith("_")}
    assert questions == set(ANSWERS) - {"starting"}


def test_an_answer_that_cannot_be_pickled_is_a_problem_instead(wires):
    ours, theirs, end = wires
    _answer(theirs, (True, lambda: 0))
    good, problem = ours.receive(now() + 60, end)
    assert not good
    assert isinstance(problem, Problem)
    assert problem.kind == "crashed"
    assert problem.message.startswith("its answer cannot be sent: ")


def test_what_was_answered_before_the_end_counts(wires):
    ours, theirs, end = wires
    theirs.send((True, 1))
    end.shutdown(socket.SHUT_RDWR)
    assert ours.receive(now() + 60, end) == (True, 1)
    with pytest.raises(EOFError):
        ours.receive(now() + 60, end)


# What is left behind


def test_of_a_subject_that_forks_only_one_answers(worker):
    assert call(worker, "fork").peak_bytes > 0
    # The other one has come to the end of the same question.
    assert worker.ask("memory_facts")[1] > 0
    assert worker.ask("available_bytes") > 0


@pytest.mark.parametrize("deed", ["daemon", "family", "chain"])
def test_what_a_subject_has_started_ends_with_its_worker(worker, folder, deed):
    call(worker, deed)
    assert deed != "daemon" or all(map(is_alive, daemons(folder)))
    zygote_pid = Zygote.get().process.pid
    # One that is just finding another parent is not seen.
    assert wait_until(lambda: len(descendants_of(zygote_pid)) >= 3)
    started = [*descendants_of(zygote_pid), *daemons(folder)]
    worker.close()
    assert wait_until(lambda: not any(map(is_alive, started)))


def test_it_ends_too_when_the_worker_is_killed(worker, folder):
    call(worker, "daemon")
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerError):
        worker.ask("available_bytes")
    assert len(daemons(folder)) == 1
    assert not any(map(is_alive, daemons(folder)))


def test_a_death_is_noticed_though_what_the_subject_left_holds_the_line(worker, folder):
    error = failure(worker, "widow")
    assert (error.kind, len(daemons(folder))) == ("crashed", 1)
    assert "SIGSEGV" in str(error)
    assert not any(map(is_alive, daemons(folder)))


def test_it_ends_too_when_the_worker_takes_too_long(worker, folder):
    assert failure(worker, "sleeper", within_s=5).kind == "timeout"
    assert len(daemons(folder)) == 1
    assert not any(map(is_alive, daemons(folder)))


def test_what_tidies_up_when_it_is_asked_to_end_is_asked_first(worker, folder):
    call(worker, "helper")
    worker.close()
    assert (folder / "tidied").exists()


def test_shared_memory_of_a_worker_that_is_killed_is_given_back(worker, folder):
    call(worker, "share")
    shared = Path("/dev/shm", (folder / "shared").read_text())
    assert shared.exists()
    os.kill(worker.pid, signal.SIGKILL)
    worker.close()
    assert not shared.exists()


def test_children_are_found_where_the_kernel_does_not_list_them(monkeypatch):
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "children":
            raise FileNotFoundError(path)
        return read(path)

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        listed = set(family.children())
        monkeypatch.setattr(Path, "read_bytes", refuse)
        assert child.pid in listed
        assert set(family.children()) == listed
        child.kill()


def test_a_subject_that_kills_what_watches_over_it_ends_with_it(worker, folder):
    error = failure(worker, "rebel")
    assert (error.kind, len(daemons(folder))) == ("killed", 1)
    assert str(error) == "the process and what watched over it were killed"
    assert wait_until(lambda: not is_alive(worker.pid) and not any(map(is_alive, daemons(folder))))


def test_a_subject_that_stops_what_watches_over_it_ends_with_it(worker, folder, monkeypatch, caplog):
    monkeypatch.setattr(process, "_END_S", 0.2)
    with caplog.at_level(logging.WARNING):
        error = failure(worker, "gag", within_s=5)
    assert (error.kind, len(daemons(folder))) == ("timeout", 1)
    assert f"the measuring process {worker.pid} could not be ended" in caplog.text
    assert wait_until(lambda: not is_alive(worker.pid) and not any(map(is_alive, daemons(folder))))


def test_nothing_is_left_when_the_process_that_workers_are_forked_from_was_killed(folder):
    with WorkerProcess("cpu", 1) as worker:
        call(worker, "daemon")
        os.kill(Zygote.get().process.pid, signal.SIGKILL)
        assert worker.ask("available_bytes") > 0
    assert len(daemons(folder)) == 1
    assert not any(map(is_alive, [worker.pid, *daemons(folder)]))


COORDINATOR = """
import os, sys
from tippingpoint.profiling.process import WorkerProcess
from tippingpoint.workload import Workload
workers = [WorkerProcess("cpu", 1) for _ in range(2)]
for worker, deed in zip(workers, ("daemon", "sleeper")):
    worker.ask("build", Workload(f"subjects_under_fire:{deed}", 8, threads=1))
workers[0].ask("measure_memory")
if os.fork() == 0:  # holds copies of whatever was open, and outlives its parent
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
workers[1].ask("measure_memory")
"""


def test_nothing_is_left_when_the_coordinator_is_killed_though_a_copy_of_it_lives_on(folder):
    with subprocess.Popen(
        [sys.executable, "-c", COORDINATOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
    ) as coordinator:
        assert coordinator.stdout is not None
        assert coordinator.stdin is not None
        assert coordinator.stdout.readline() == "forked\n"
        assert wait_until(lambda: len(daemons(folder)) == 2)
        copies = [pid for pid in descendants_of(coordinator.pid) if command_of(pid) == command_of(coordinator.pid)]
        started = set(descendants_of(coordinator.pid)) - set(copies)
        coordinator.kill()
        coordinator.wait()
        assert wait_until(lambda: not any(map(is_alive, [*started, *daemons(folder)])), seconds=30)
        assert len(copies) == 1
        assert is_alive(copies[0])


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_process_forked_from_this_one_has_no_part_in_its_workers(worker):
    pid = os.fork()
    if pid == 0:
        free = Zygote._current is None and worker._life.fileno() < 0 and Zygote._lock.acquire(blocking=False)
        os._exit(0 if free else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert worker.ask("available_bytes") > 0


def test_after_two_hundred_dead_workers_nothing_has_grown(folder):
    def held() -> tuple[int, int, int]:
        children = Path("/proc/thread-self/children").read_text().split()
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), len(children)

    WorkerProcess("cpu", 1).close()
    before = held()
    begun = Zygote.get().process.pid
    for number in range(200):
        worker = WorkerProcess("cpu", 1)
        if number % 2:
            os.kill(worker.pid, signal.SIGKILL)
        elif number % 20 == 0:
            failure(worker, "abort")
        elif number % 20 == 2:
            failure(worker, "memory")
        worker.close()
    assert held() == before
    assert Zygote.get().process.pid == begun
    assert wait_until(lambda: not Path(f"/proc/{begun}/task/{begun}/children").read_text().split())
    assert len(os.listdir(f"/proc/{begun}/fd")) < 16


# The kernel's killer


def test_a_worker_the_kernel_killed_for_want_of_memory_has_run_out_of_it(worker, monkeypatch):
    # As the kernel does it: it counts, and kills.
    monkeypatch.setattr(worker._oom_kills, "any_since", lambda: True)
    error = failure(worker, "die")
    assert error.kind == "out_of_memory"
    assert re.match(
        r"the system killed the process for want of memory when it had held up to [\d.]+ [MG]iB; it last", str(error)
    )


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A group of processes that may use little memory, where such can be made."""
    group = _make_group(Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes") or _make_group(
        Path("/sys/fs/cgroup"), "memory.max"
    )
    if group is None:
        pytest.skip("no group of processes with a limit of memory can be made here")
    yield group
    assert wait_until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def _make_group(root: Path, limit: str) -> Path | None:
    group = root / f"tippingpoint-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        (group / limit).write_text(str(2**27))
    except OSError:
        group.rmdir()
        return None
    return group


def test_the_kernels_killer_takes_the_worker_and_says_how_much_it_held(worker, little_memory, monkeypatch):
    worker.ask("build", bad("grow"))
    (little_memory / "cgroup.procs").write_text(str(worker.pid))
    # One that is started there knows its group from the start.
    monkeypatch.setattr(worker, "_oom_kills", OomKills(worker.pid))
    with pytest.raises(WorkerError) as caught:
        worker.ask("measure_memory")
    assert caught.value.kind == "out_of_memory"
    assert "the system killed the process for want of memory when it had held up to" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "counter"),
    [
        ("0::/user/job", "user/job/memory.events"),
        ("0::/seen/by/the/host", "memory.events"),
        ("4:memory:/job", "memory/job/memory.oom_control"),
        ("0::/job", None),
    ],
)
def test_the_count_of_a_workers_own_group_comes_before_that_of_the_host(tmp_path, line, counter):
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text(f"1:cpu:/other\n{line}\n")
    host = tmp_path / "proc/vmstat"
    own = host if counter is None else tmp_path / "sys/fs/cgroup" / counter
    own.parent.mkdir(parents=True, exist_ok=True)
    for path in (host, own):
        path.write_text("oom 1\noom_kill 3\noom_group_kill 9\n")
    kills = OomKills(7, tmp_path)
    assert not kills.any_since()
    if own != host:
        host.write_text("oom_kill 4\n")  # somebody else's
        assert not kills.any_since()
    own.write_text("oom_kill 4\n")
    assert kills.any_since()


def test_where_nothing_can_be_read_nothing_was_killed(tmp_path):
    assert not OomKills(7, tmp_path).any_since()
    (tmp_path / "proc/vmstat").mkdir(parents=True)  # reading it raises, as without permission
    assert not OomKills(7, tmp_path).any_since()


def test_a_worker_is_killed_before_anybody_else_and_so_is_what_it_has_started(worker, folder):
    def score(pid: int | str) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    call(worker, "daemon")
    assert score(worker.pid) == score(daemons(folder)[0]) == 1000
    assert score("self") == score(Zygote.get().process.pid) == score(status(worker.pid)["PPid"]) < 1000


# The zygote


@pytest.fixture
def asked() -> Iterator[tuple[zygote._Zygote, socket.socket]]:
    """A zygote in this process, and what it is asked on."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(60)
        one = zygote._Zygote(theirs)
        yield one, ours
        one._bell.take_down()


def test_a_request_the_zygote_does_not_know_is_refused(asked):
    one, ours = asked
    for request in (b"x", b"f"):
        ours.sendall(request)
        assert one._serve()
        assert keeper.PID.unpack(ours.recv(keeper.PID.size)) == (-errno.EINVAL,)


def test_the_zygote_kills_no_process_that_is_not_its_own(asked):
    one, ours = asked
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        for pid in (stranger.pid, os.getppid(), -1, 0, 2**22 + 1):
            ours.sendall(b"k" + keeper.PID.pack(pid))
            assert one._serve()
            assert keeper.PID.unpack(ours.recv(keeper.PID.size)) == (-errno.ESRCH,)
        assert stranger.poll() is None
        stranger.kill()


def test_a_parent_that_goes_away_in_the_middle_of_a_request_has_gone(asked):
    one, ours = asked
    ours.sendall(b"k" + keeper.PID.pack(1)[:3])
    ours.close()
    assert not one._serve()


def test_where_the_system_lets_no_process_be_started_that_is_said(asked, monkeypatch):
    def refuse() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    one, ours = asked
    connection, life = socket.socketpair()
    with connection, life, monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        socket.send_fds(ours, [b"f"], [connection.fileno(), life.fileno()])
        assert one._serve()
    assert keeper.PID.unpack(ours.recv(keeper.PID.size)) == (-errno.EAGAIN,)


def test_a_process_that_could_not_be_started_is_a_failure_with_the_reason():
    refusing = Zygote.__new__(Zygote)
    refusing._control, theirs = socket.socketpair()
    with refusing._control, theirs:
        theirs.sendall(keeper.PID.pack(-errno.EAGAIN))
        with pytest.raises(WorkerError, match="could be started: Resource temporarily unavail"):
            refusing.fork(theirs, theirs)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("place", ["socketpair", "Popen", "TemporaryFile"])
def test_where_this_process_can_start_or_open_nothing_more_that_is_said_and_nothing_leaks(monkeypatch, place):
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(Zygote, "_current", None)
        patch.setattr(
            {"socketpair": socket, "Popen": subprocess, "TemporaryFile": process.tempfile}[place], place, refuse
        )
        with pytest.raises(WorkerError, match="no process could be started: Too many open files") as caught:
            WorkerProcess("cpu", 1)
    assert caught.value.kind == "crashed"
    del caught
    assert descriptors() == before


def test_a_zygote_that_ends_again_and_again_is_a_failure_and_nothing_leaks(monkeypatch):
    def gone(*arguments: object) -> int:
        raise process._ZygoteGoneError

    Zygote.get()
    before = descriptors()
    monkeypatch.setattr(Zygote, "fork", gone)
    with pytest.raises(WorkerError, match=r"no process could be started: .* ended twice") as caught:
        WorkerProcess("cpu", 1)
    assert caught.value.kind == "crashed"
    assert descriptors() == before


# Rows

# No answer of the arm that is measured takes so long, on a busy machine either; the one that sleeps is waited for.
BRIEF = Effort(brief=True, timeout_s=10.0)


@pytest.mark.parametrize(
    ("deed", "kind", "message"),
    [
        ("segfault_later", "crashed", r"the process was ended by SIGSEGV; it last said: about to read \| .* a byte"),
        ("flood_later", "crashed", r"the process was ended by SIGABRT; .* \| enough of that"),
        ("full_later", "out_of_memory", r"BaseExceptionGroup: .* MemoryError: it"),
        ("exit_built", "crashed", r"SystemExit: 3"),
        ("end_later", "crashed", r"the process left with status 0"),
        ("sleep_later", "timeout", r"'.*' took longer than 10 s and was stopped; it last said: good night"),
        ("widow_later", "crashed", r"the process was ended by SIGSEGV; .*"),
        ("attack_later", "crashed", r"'.*' was answered with what is no answer .*"),
    ],
)
def test_each_is_a_row_and_the_other_arm_of_the_pair_is_measured(deed, kind, message, folder):
    lost, found = measure_together([bad(deed), bad("fine")], effort=BRIEF, progress=lambda line: None)
    assert isinstance(lost, Failure), lost
    assert (lost.kind, lost.workload, lost.refused) == (kind, bad(deed), False)
    assert re.fullmatch(message, lost.message)
    assert isinstance(found, Measurement)
    assert found.workload == bad("fine")
    assert not any(map(is_alive, daemons(folder)))
    assert workers_of(Zygote.get().process.pid) == []


def test_a_subject_that_forks_is_measured_like_any_other():
    found = measure_together([bad("fork"), bad("fine")], effort=BRIEF, progress=lambda line: None)
    assert [type(outcome) for outcome in found] == [Measurement, Measurement]


def test_a_profile_of_it_is_a_failure_too():
    lost = profile(bad("seven"), budget_s=0.1)
    assert isinstance(lost, Failure)
    assert (lost.kind, lost.message) == ("crashed", "the process left with status 7")


def test_what_is_no_model_is_the_callers_mistake_with_a_clean_message():
    with pytest.raises(InputError) as caught:
        profile(bad("no_such_deed"))
    assert str(caught.value).isprintable()
