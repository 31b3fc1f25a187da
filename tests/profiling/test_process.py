import os
import signal
from collections.abc import Iterator

import pytest

from processes import children_of, is_alive, needs_proc, status, wait_until, workers_of
from tippingpoint.errors import InputError, TippingPointError
from tippingpoint.profiling.process import WorkerError, WorkerProcess, Zygote
from tippingpoint.workload import Workload

pytestmark = needs_proc

TINY = Workload("bert", 32, size="tiny", threads=1)


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess("cpu", 1, timeout_s=60) as started:
        yield started


def zygote_pid() -> int:
    return Zygote.get().process.pid


def pid_of(worker: WorkerProcess) -> int:
    return worker.pid


def failure_of(worker: WorkerProcess, method: str, *arguments: object) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        worker.ask(method, *arguments)
    assert isinstance(caught.value, TippingPointError)
    assert "\n" not in str(caught.value)
    return caught.value


def test_every_worker_is_a_process_of_its_own_forked_from_one_that_stays(worker):
    parent = zygote_pid()
    with WorkerProcess("cpu", 1) as other:
        assert len({os.getpid(), parent, pid_of(worker), pid_of(other)}) == 4
        assert workers_of(parent) == sorted([pid_of(worker), pid_of(other)])
        assert len(children_of(parent)) == 2
    assert zygote_pid() == parent


def test_the_process_that_workers_are_forked_from_has_one_thread_even_after_they_have_computed(worker):
    assert status(zygote_pid())["Threads"] == "1"
    worker.ask("build", TINY, ())
    worker.ask("measure_memory")
    with WorkerProcess("cpu", 2) as other:
        other.ask("build", TINY.replace(threads=2), ())
        other.ask("measure_memory")
        assert status(zygote_pid())["Threads"] == "1"


def test_a_worker_says_where_it_runs(worker):
    assert worker.environment.threads == 1
    assert worker.environment.device_name == "CPU"
    assert worker.environment.torch
    with WorkerProcess("cpu", 2) as other:
        assert other.environment.threads == 2
        assert other.environment.fingerprint != worker.environment.fingerprint


def test_a_worker_answers_one_question_after_the_other(worker):
    assert worker.ask("build", TINY, ()) > 100_000
    assert worker.ask("measure_memory").peak_bytes > 0
    _, calls = worker.ask("warm_up")
    seconds, device_seconds = worker.ask("time_block", calls)
    assert seconds > 0
    assert device_seconds is None


def test_closing_ends_the_process_and_closing_again_does_nothing():
    worker = WorkerProcess("cpu", 1)
    assert is_alive(pid_of(worker))
    worker.close()
    assert not is_alive(pid_of(worker))
    worker.close()
    assert wait_until(lambda: not children_of(zygote_pid()))


def test_leaving_by_an_exception_ends_the_process():
    with pytest.raises(KeyboardInterrupt), WorkerProcess("cpu", 1) as worker:
        raise KeyboardInterrupt
    assert not is_alive(pid_of(worker))


def test_a_worker_that_raises_has_crashed_with_the_exception_as_message_and_goes_on(worker):
    error = failure_of(worker, "time_block", 1)
    assert error.kind == "crashed"
    assert str(error) == "AssertionError: warm up first"
    assert "Traceback" in error.trace
    assert error.refused is None
    assert worker.ask("available_bytes") > 0


def test_a_question_that_nobody_understands_is_a_crash(worker):
    error = failure_of(worker, "no_such_method")
    assert error.kind == "crashed"
    assert "no_such_method" in str(error)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_worker_ended_by_a_signal_has_crashed_with_its_name(worker, number):
    os.kill(pid_of(worker), number)
    error = failure_of(worker, "available_bytes")
    assert error.kind == ("killed" if number == signal.SIGKILL else "crashed")
    assert f"the process was ended by {number.name}" in str(error)
    assert not is_alive(pid_of(worker))


def test_a_worker_that_dies_before_it_is_asked_is_noticed(worker):
    os.kill(pid_of(worker), signal.SIGKILL)
    assert wait_until(lambda: not is_alive(pid_of(worker)))
    assert failure_of(worker, "available_bytes").kind == "killed"


def test_a_worker_that_has_died_can_be_closed():
    with WorkerProcess("cpu", 1) as worker:
        os.kill(pid_of(worker), signal.SIGKILL)
    assert not is_alive(pid_of(worker))
    assert wait_until(lambda: not children_of(zygote_pid()))


def test_a_worker_that_hangs_is_given_up_and_ended():
    with WorkerProcess("cpu", 1, timeout_s=0.2) as worker:
        os.kill(pid_of(worker), signal.SIGSTOP)
        error = failure_of(worker, "available_bytes")
        assert error.kind == "timeout"
        assert "'available bytes' took longer than" in str(error)
        assert not is_alive(pid_of(worker))


def test_a_workload_that_is_not_legal_is_the_callers_mistake(worker):
    with pytest.raises(InputError, match="nystromformer takes no input shorter than 65 tokens"):
        worker.ask("build", TINY.replace(subject="nystromformer"), ())


def test_a_workload_that_cannot_be_is_unsupported(worker):
    error = failure_of(worker, "build", TINY.replace(subject="longformer@local"), ())
    assert error.kind == "unsupported"


def test_a_device_that_is_not_there_is_one_clear_error_and_leaves_no_process():
    torch = pytest.importorskip("torch")
    name = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(InputError, match=f"device '{name}' was asked for, and"):
        WorkerProcess(name, 1)
    assert wait_until(lambda: not children_of(zygote_pid()))


def test_when_the_process_that_workers_are_forked_from_is_killed_they_go_on_and_the_next_one_gets_another(worker):
    before = zygote_pid()
    os.kill(before, signal.SIGKILL)
    assert worker.ask("available_bytes") > 0
    with WorkerProcess("cpu", 1) as other:
        assert other.ask("available_bytes") > 0
        assert zygote_pid() != before
    assert worker.ask("available_bytes") > 0


def test_a_worker_can_be_closed_after_the_process_it_was_forked_from_was_killed():
    with WorkerProcess("cpu", 1) as worker:
        os.kill(zygote_pid(), signal.SIGKILL)
    assert not is_alive(pid_of(worker))


def test_a_process_to_fork_workers_from_that_ends_as_it_is_asked_has_a_successor():
    asked = Zygote.get()
    with pytest.MonkeyPatch.context() as patch:
        # As if it had ended between the look and the question.
        patch.setattr(asked.process, "poll", lambda: asked.process.returncode)
        os.kill(asked.process.pid, signal.SIGKILL)
        with WorkerProcess("cpu", 1) as worker:
            assert worker.ask("available_bytes") > 0
    assert Zygote.get() is not asked
