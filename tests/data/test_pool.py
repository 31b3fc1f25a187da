import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from processes import children_of, needs_proc
from tippingpoint.data import Progress, read_lengths
from tippingpoint.data.item_lengths import LengthReader, Lengths
from tippingpoint.data.pool import read_all, usable_jobs
from tippingpoint.data.stream import Batch
from tippingpoint.errors import DataError, InputError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers need POSIX")


@pytest.fixture
def big(tmp_path) -> Path:
    """Enough for workers: 20 MB in 4,000 documents, every hundredth of them broken."""
    path = tmp_path / "big.jsonl"
    with path.open("w") as file:
        for number in range(4000):
            file.write("{broken\n" if number % 100 == 7 else json.dumps({"text": "word " * (number % 1900)}) + "\n")
    return path


def test_the_answer_is_the_same_for_any_number_of_jobs(big):
    alone = read_lengths(big, "text", jobs=1)
    assert alone.count + alone.skipped_count == 4000
    assert alone.skipped[0].path == f"{big}:1"
    assert read_lengths(big, "text", jobs=3) == alone


def test_a_sample_is_the_same_for_any_number_of_jobs(big):
    alone = read_lengths(big, "text", jobs=1, sample=700)
    assert (alone.population, alone.count + alone.skipped_count) == (4000, 700)
    assert read_lengths(big, "text", jobs=2, sample=700) == alone
    assert read_lengths(big, "text", jobs=1, sample=700, seed=1) != alone


@needs_proc
def test_no_process_is_left(big):
    before = children_of(os.getpid())
    seen = []
    read_lengths(big, "text", jobs=2, progress=lambda _: seen.append(len(children_of(os.getpid()))))
    assert max(seen) >= len(before) + 2
    assert children_of(os.getpid()) == before


@needs_proc
def test_an_interrupt_leaves_no_process(big):
    before = children_of(os.getpid())

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_lengths(big, "text", jobs=2, progress=interrupt)
    assert children_of(os.getpid()) == before


@needs_proc
def test_a_killed_worker_is_one_clear_error(big):
    before = set(children_of(os.getpid()))

    def kill(progress: Progress) -> None:
        for child in set(children_of(os.getpid())) - before:
            os.kill(child, signal.SIGKILL)

    with pytest.raises(DataError, match=r"killed by signal 9 .* at '.*big\.jsonl' or soon after; if memory ran out"):
        read_lengths(big, "text", jobs=2, progress=kill)
    assert set(children_of(os.getpid())) == before


def test_an_error_of_a_worker_is_that_of_this_process(big):
    with pytest.raises(InputError, match=r"there is no tokenizer at '\./none'"):
        read_lengths(big, "text", jobs=2, tokenizer="./none")


def test_a_script_without_a_main_guard_reads_with_workers(big, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import tippingpoint\nprint(tippingpoint.read_lengths({str(big)!r}, 'text', jobs=2).count)\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == read_lengths(big, "text", jobs=1).count


def test_a_module_beside_the_data_is_not_run_by_workers(big, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported what lies beside the data')")
    monkeypatch.chdir(tmp_path)
    assert read_lengths(big, "text", jobs=2).count > 3000


def test_small_data_is_read_in_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started a process"))
    for number in range(300):
        (tmp_path / f"{number}.txt").write_text("one two")
    assert read_lengths(tmp_path, "text", jobs=4).count == 300


def test_progress_counts_every_item_and_tells_the_total_last(big):
    seen: list[Progress] = []
    read_lengths(big, "text", jobs=2, progress=seen.append)
    assert [each.items for each in seen] == sorted(each.items for each in seen)
    assert (seen[-1].items, seen[-1].total) == (4000, 4000)
    assert {each.total for each in seen[:-1]} == {None}
    assert seen[-1].bytes == pytest.approx(big.stat().st_size, rel=0.01)


@dataclass
class Counted(LengthReader):
    """Answers in this process without reading, and counts the batches that are alive."""

    def __call__(self, parts) -> Lengths:
        return Lengths(np.ones(1))


def test_without_workers_one_batch_is_alive_at_a_time():
    alive = []

    def batches():
        for number in range(50):
            alive.append(number)
            yield Batch([], np.zeros(1, np.uint64), np.array([number]))

    for _, (batch, _) in zip(range(10), read_all(batches(), Counted("text"), 1), strict=False):
        assert len(alive) == batch.numbers[0] + 1


@pytest.mark.parametrize("jobs", [0, -2])
def test_jobs_are_at_least_one(jobs):
    with pytest.raises(InputError, match=f"the number of jobs must be at least 1, got {jobs}"):
        usable_jobs(jobs)
