from collections import Counter

import numpy as np
import pytest

from tippingpoint.analysis.replay import ReplayBatch
from tippingpoint.errors import InputError
from tippingpoint.profiling import replay
from tippingpoint.profiling.device import FakeDevice
from tippingpoint.profiling.process import WorkerError
from tippingpoint.profiling.replay import MIN_BATCHES, ReplayRun, run_batches
from tippingpoint.profiling.worker import Worker
from tippingpoint.workload import Workload

BATCHES = [ReplayBatch(float(n), (float(n), n - 9.0), 2) for n in (30, 64, 41, 57, 22)]
LARGEST = [BATCHES[1]]


def tiny(subject: str, length: float = 64, **fields) -> Workload:
    return Workload(subject, length, **{"size": "tiny", "threads": 1, "batch_size": 2, **fields})


def run(*subjects: str, batches=BATCHES, **options) -> ReplayRun:
    return run_batches(
        [tiny(subject) for subject in subjects], batches, LARGEST, progress=lambda line: None, **options
    )


def test_every_batch_runs_once_for_every_subject_in_an_order_that_is_turned_round():
    found = run("bert", "bert@local:window=8", "longformer")
    assert found.stop_reason == "all batches were run"
    assert [str(each.subject) for each in found.subjects] == ["bert", "bert@local:window=8", "longformer"]
    for each in found.subjects:
        assert each.batches == tuple(BATCHES)
        assert [sample.round for sample in each.samples] == [0, 1, 2, 3, 4]
        assert all(sample.seconds > 0 and sample.conditions is not None for sample in each.samples)
        assert each.failure is None
    places = [[sample.order for sample in each.samples] for each in found.subjects]
    assert places == [[0, 2, 0, 2, 0], [1, 1, 1, 1, 1], [2, 0, 2, 0, 2]]


def test_peak_memory_and_what_really_ran_are_of_the_padded_batch():
    fused, eager = run("bert", "bert@eager", batches=BATCHES[:2]).subjects
    assert fused.attention.startswith("sdpa (")
    assert eager.attention == "eager"
    for each in (fused, eager):
        assert each.peak_bytes is not None
        # The weights at least.
        assert each.peak_bytes > 4 * 100_000
    assert "high-water" in fused.memory_method or "maximum resident" in fused.memory_method


@pytest.mark.parametrize("method", ["time_batch", "measure_peak", "build"])
def test_a_subject_that_fails_is_a_failure_and_the_others_go_on(monkeypatch, method):
    asked: Counter[str] = Counter()
    ask = replay._Arm.ask

    def failing(self, session, question, *arguments):
        asked[question] += self.name == "bert@eager"
        if self.name == "bert@eager" and question == method and (method != "time_batch" or asked[question] == 3):
            error = WorkerError("out_of_memory", "no more")
            self.fail(session, self.worker.environment, error)
            self.worker.close()
            raise error
        return ask(self, session, question, *arguments)

    monkeypatch.setattr(replay._Arm, "ask", failing)
    found = run("bert", "bert@eager")
    whole, broken = found.subjects
    assert len(whole.samples) == len(BATCHES)
    assert whole.failure is None
    assert broken.failure is not None
    assert (broken.failure.kind, broken.failure.message) == ("out_of_memory", "no more")
    assert len(broken.samples) == (2 if method == "time_batch" else 0)
    assert broken.batches == tuple(BATCHES[: len(broken.samples)])
    assert found.stop_reason == "all batches were run"


def test_if_nothing_runs_that_is_said_and_nothing_is_made_up(monkeypatch):
    ask = replay._Arm.ask

    def failing(self, session, question, *arguments):
        if question == "build":
            error = WorkerError("crashed", "gone")
            self.fail(session, self.worker.environment, error)
            self.worker.close()
            raise error
        return ask(self, session, question, *arguments)

    monkeypatch.setattr(replay._Arm, "ask", failing)
    found = run("bert")
    assert found.stop_reason == "no subject could run"
    assert found.subjects[0].samples == ()
    assert found.environment.threads == 1


def test_a_bound_that_refuses_what_fits_is_refuted_by_shorter_inputs(monkeypatch):
    ask, refused = replay._Arm.ask, []

    def refusing(self, session, question, *arguments):
        if question == "build" and not arguments[1]:
            refused.append(arguments[0].length)
            error = WorkerError("out_of_memory", "an upper bound", refused="bound")
            self.fail(session, self.worker.environment, error)
            self.worker.close()
            raise error
        return ask(self, session, question, *arguments)

    monkeypatch.setattr(replay._Arm, "ask", refusing)
    (found,) = run("bert").subjects
    assert refused == [64, 64]
    assert found.failure is None
    assert len(found.samples) == len(BATCHES)


def test_a_budget_ends_batches_and_two_are_run_in_any_case():
    found = run("bert", budget_s=0.0)
    assert len(found.subjects[0].samples) == 2
    assert found.stop_reason == "time budget of 0 s after 2 batches"


def test_batches_end_when_the_mean_is_known_and_never_before_there_are_some():
    many = [ReplayBatch(40.0, (40.0, 40.0), 2)] * (2 * MIN_BATCHES)
    found = run("bert", batches=many, target=0.9)
    assert len(found.subjects[0].samples) == MIN_BATCHES
    assert found.stop_reason == f"95 % interval within 90 % after {MIN_BATCHES} batches"


def test_anchors_run_with_the_batches_and_count_as_none_of_them():
    anchor = ReplayBatch(48.0, (48.0, 48.0), 0)
    found = run("bert", "bert@eager", batches=[BATCHES[0], BATCHES[1], anchor, BATCHES[2]])
    assert found.stop_reason == "all batches were run"
    for each in found.subjects:
        assert each.batches == tuple(BATCHES[:3])
        assert [sample.round for sample in each.samples] == [0, 1, 3]
        assert [sample.round for sample in each.anchors] == [2]
    found = run("bert", batches=[anchor, *BATCHES[:2], *[anchor] * 9, *BATCHES], budget_s=0.0)
    assert found.stop_reason == "time budget of 0 s after 2 batches"


def test_subjects_that_do_not_fit_beside_each_other_run_one_after_the_other(monkeypatch):
    monkeypatch.setattr(replay, "available_memory", lambda: 1)
    found = run("bert", "bert@eager", batches=BATCHES[:2])
    first, second = found.subjects
    assert len(first.samples) == len(second.samples) == 2
    assert {sample.order for each in found.subjects for sample in each.samples} == {0}


def test_a_subject_can_stand_once():
    with pytest.raises(InputError, match="each subject can stand once in a replay, bert stands twice"):
        run("bert", "bert")


@pytest.mark.parametrize(
    ("durations", "calls", "seconds"),
    [
        # A batch as long as a block is run once; a shorter one wakes the threads and is timed in a block.
        ([0.5], 1, 0.5),
        ([0.02], 1, 0.02),
        ([0.011, 0.01, 0.01], 2, 0.02),
        ([0.009] + [0.005] * 3, 3, 0.015),
    ],
)
def test_short_batches_are_timed_in_blocks(durations, calls, seconds):
    device = FakeDevice(durations)
    worker = Worker("cpu", 1, device=device)
    worker.build(tiny("bert"))
    found = worker.time_batch(30.0, (30.0, 21.0))
    assert (found[0], found[1]) == (calls, pytest.approx(seconds))
    assert device.calls == len(durations)


def test_inputs_are_made_outside_of_what_is_timed_and_are_others_for_each_batch():
    worker = Worker("cpu", 1, device=FakeDevice([1.0] * 9))
    worker.build(tiny("bert"))
    batches = []
    for seed in (0, 0, 1):
        worker.time_batch(30.0, (30.0, 21.0), seed)
        assert worker._call is not None
        batches.append(worker._call.batch["input_ids"])
    assert (batches[0] == batches[1]).all()
    assert not (batches[0] == batches[2]).all()


def test_the_peak_of_several_batches_is_that_of_the_one_that_needs_most():
    worker = Worker("cpu", 1, device=FakeDevice([1.0] * 9, peaks=[300, 900, 500]))
    worker.build(tiny("bert"))
    sizes = tuple((each.length, each.lengths) for each in BATCHES[:3])
    assert worker.measure_peak(sizes) == (900, "scripted")


def test_images_and_audio_run_too():
    for subject, lengths in (("vit", (64, 32, 48)), ("hubert", (0.5, 0.2, 0.3))):
        batches = [ReplayBatch(float(length), (float(length),) * 2, 2) for length in lengths]
        workload = tiny(subject, max(lengths))
        found = run_batches([workload], batches, batches[:1], progress=lambda line: None)
        assert found.subjects[0].failure is None
        assert np.all(found.subjects[0].seconds > 0)


def test_training_runs_on_batches_of_several_lengths():
    found = run_batches([tiny("bert", phase="training")], BATCHES[:3], LARGEST, progress=lambda line: None).subjects[
        0
    ]
    assert found.failure is None
    assert len(found.samples) == 3
