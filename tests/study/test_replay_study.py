from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from synthetic import ENVIRONMENT, measurement
from tippingpoint.analysis.replay import Replay, Replayed
from tippingpoint.data import LengthData
from tippingpoint.errors import AnswerError, InputError
from tippingpoint.measurement import Outcome, Sample
from tippingpoint.models.catalog import architecture_of
from tippingpoint.profiling.replay import MIN_BATCHES, ReplayRun
from tippingpoint.study import replay as module
from tippingpoint.study.replay import replay

SUBJECTS = ("bert", "bert@local:window=128", "nystromformer")
LENGTHS = np.random.default_rng(0).integers(40, 900, size=200).tolist()


def seconds_of(subject: str, length: float) -> float:
    """A cost of a sequence that lines of logarithms follow exactly."""
    return {"bert": 2e-6, "bert@local:window=128": 1e-6, "nystromformer": 3e-6}[subject] * length


class Planted:
    """Measurements at single lengths, and batches that take `slower` times what these say."""

    def __init__(self, slower: float = 1.0, lengths: tuple[int, ...] = (64, 128, 512, 1024)) -> None:
        self.slower = slower
        self.lengths = lengths
        # What full batches at measured lengths take now, as a multiple of what they took.
        self.then = 1.0
        self.anchors: list = []
        self.batches: list = []
        self.largest: list = []
        self.options: dict = {}
        self.workloads: list = []
        self.outcomes: list[Outcome] = []

    def run_study(self, study, store, **options):
        for subject in study.subjects:
            for length in self.lengths:
                count = study.batch_size_at(length)
                positions = architecture_of(subject).executed_positions(length)
                taken = [count * seconds_of(str(subject), positions)] * 8
                fields = {"batch_size": count, "phase": study.phases[0], "peak_bytes": 1000 * length * count}
                self.outcomes.append(measurement(subject, length, taken, **fields))
        return SimpleNamespace(outcomes=tuple(self.outcomes))

    def run_batches(self, workloads, batches, largest, **options):
        self.anchors = [batch for batch in batches if not batch.items]
        batches = [batch for batch in batches if batch.items]
        self.workloads, self.batches, self.largest, self.options = workloads, batches, largest, options
        subjects = []
        for workload in workloads:
            row = architecture_of(workload.subject)
            samples = tuple(
                Sample(
                    round=number,
                    order=0,
                    started_s=0.0,
                    calls=1,
                    seconds=self.slower
                    * len(batch.lengths)
                    * seconds_of(str(workload.subject), row.executed_positions(row.runs_at(batch.length))),
                )
                for number, batch in enumerate(batches)
            )
            anchors = tuple(
                replace(
                    samples[0],
                    seconds=self.then
                    * len(anchor.lengths)
                    * seconds_of(str(workload.subject), row.executed_positions(anchor.length)),
                )
                for anchor in self.anchors
            )
            subjects.append(
                Replayed(
                    subject=workload.subject, batches=tuple(batches), samples=samples, anchors=anchors, peak_bytes=1
                )
            )
        return ReplayRun(tuple(subjects), ENVIRONMENT, "all batches were run")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Planted:
    machine = Planted()
    monkeypatch.setattr(module, "run_study", machine.run_study)
    monkeypatch.setattr(module, "run_batches", machine.run_batches)
    return machine


def found(planted: Planted, **options) -> Replay:
    return replay(LENGTHS, SUBJECTS, **{"threads": 2, **options})


POLICIES = ("one", "fixed:8", "bucketed:8", "budget:4096", "packed:1000")


@pytest.mark.parametrize("slower", [1.0, 1.25])
@pytest.mark.parametrize("policy", POLICIES)
def test_batches_that_cost_what_single_lengths_say_show_no_difference_and_others_theirs(planted, policy, slower):
    planted.slower = slower
    for each in found(planted, batching=policy).subjects:
        assert each.difference is not None
        # Between two measured lengths Nystromformer's positions are steps, and so are planted costs.
        assert each.difference.value == pytest.approx(1 / slower - 1, abs=0.01)
        assert each.predicted_per_1000_s is not None
        assert each.per_1000_s is not None
        assert each.predicted_per_1000_s.value == pytest.approx(each.per_1000_s.value / slower, rel=0.01)
        assert each.latency_s(95) == pytest.approx(slower * (each.predicted_latency_s(95) or 0), rel=0.02)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_machine_that_has_become_slower_is_told_from_a_prediction_that_is_wrong(planted, policy):
    planted.slower, planted.then = 2.0 * 1.25, 2.0
    for each in found(planted, batching=policy).subjects:
        assert each.slowdown == pytest.approx(2.0, rel=0.01)
        assert each.difference is not None
        assert each.difference.value == pytest.approx(1 / 2.5 - 1, abs=0.01)
        assert each.difference_as_fast == pytest.approx(1 / 1.25 - 1, abs=0.01)


def test_anchors_are_full_batches_at_a_measured_length_behind_every_fourth_batch(planted):
    found(planted, batching="fixed:8")
    assert len(planted.anchors) == len(planted.batches) // 4
    (anchor,) = set(planted.anchors)
    assert anchor.length in planted.lengths
    # With padding, as the batches and what was measured for them.
    assert anchor.lengths == (anchor.length,) * 7 + (anchor.length - 1,)
    assert anchor.padded
    found(planted, batching="packed:300")
    assert not any(anchor.padded for anchor in planted.anchors)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_item_is_in_one_of_the_batches_of_an_epoch(planted, policy):
    answer = found(planted, batching=policy)
    epoch = planted.batches[: answer.epoch_batches]
    assert sum(batch.items for batch in epoch) == len(LENGTHS)
    if not policy.startswith("packed"):
        assert sorted(length for batch in epoch for length in batch.lengths) == sorted(LENGTHS)
    assert {workload.length for workload in planted.workloads} == {max(batch.length for batch in epoch)}
    assert planted.largest[-1].length == max(batch.length for batch in epoch)


def test_another_seed_makes_other_batches_and_the_same_one_the_same(planted):
    runs = []
    for seed in (0, 0, 1):
        found(planted, batching="fixed:8", seed=seed)
        runs.append(list(planted.batches))
    assert runs[0] == runs[1] != runs[2]


def test_few_items_run_in_several_epochs(planted):
    answer = replay([100, 200, 300], SUBJECTS, threads=2)
    assert answer.epoch_batches == 3
    assert MIN_BATCHES <= len(planted.batches) < MIN_BATCHES + 3


def test_of_very_many_items_a_sample_is_put_into_batches(planted):
    data = LengthData(
        modality="text",
        unit="tokens",
        lengths=(100.0, 200.0),
        counts=(10**9, 10**9),
        sources=(),
        method="planted",
        estimated=False,
    )
    answer = replay(data, SUBJECTS, threads=2)
    assert answer.epoch_batches == 50_000
    shorter = sum(batch.length == 100 for batch in planted.batches)
    assert abs(shorter / 50_000 - 0.5) < 0.02
    assert "of 2,000,000,000 items, 50,000 drawn at random were put into batches" in answer.notes


def test_batches_longer_than_what_was_measured_have_no_prediction_and_that_is_said(planted):
    planted.lengths = (64, 768)
    for each in found(planted).subjects:
        assert each.priced is not None
        longer = sum(batch.length > 1.005 * 768 for batch in planted.batches)
        assert (~each.priced).sum() == longer > 0
        assert any(note.startswith(f"{longer} of {len(planted.batches)} batches are longer") for note in each.notes)
        assert each.difference is not None


def test_without_a_prediction_for_most_of_the_time_there_is_none_for_any(planted):
    # A good half of the items, which are the short ones.
    planted.lengths = (64, 512)
    for each in found(planted).subjects:
        assert each.difference is each.predicted_per_1000_s is None
        assert each.per_1000_s is not None
        assert any("have no prediction" in note for note in each.notes)


def test_memory_is_predicted_for_the_largest_batches(planted):
    for each in found(planted, batching="fixed:8").subjects:
        assert each.predicted_peak is not None
        executed = architecture_of(each.subject).executed_positions
        assert each.predicted_peak.value == pytest.approx(8000 * executed(max(LENGTHS)), rel=0.05)


def test_what_is_known_of_memory_goes_to_the_guard_against_too_large_a_batch(planted):
    found(planted, batching="fixed:8")
    assert [len(points) for points in planted.options["known"]] == [4, 4, 4]


def test_memory_is_not_extrapolated_from_lengths_that_are_far_off(planted):
    planted.lengths = (16, 64)
    found(planted)
    assert planted.options["known"] == [(), (), ()]


def test_if_nothing_can_be_measured_what_was_observed_still_stands(planted, monkeypatch):
    def nothing(*args, **options):
        raise AnswerError("every workload failed")

    monkeypatch.setattr(module, "run_study", nothing)
    answer = found(planted)
    assert "nothing is predicted: every workload failed" in answer.notes
    assert all(each.per_1000_s and each.difference is None for each in answer.subjects)


def test_half_of_the_budget_is_for_the_batches(planted):
    found(planted, budget_s=100)
    assert planted.options["budget_s"] == 50


def test_a_front_end_without_a_mask_says_so_where_something_is_padded(planted, monkeypatch):
    monkeypatch.setattr(module, "run_study", lambda *args, **options: SimpleNamespace(outcomes=()))
    monkeypatch.setitem(globals(), "seconds_of", lambda subject, length: 1.0)
    seconds = [2.0, 3.5, 9.0, 4.0]
    for batching, said in (("one", False), ("fixed:4", True)):
        for each in replay(seconds, ["hubert", "hubert@local"], batching=batching, threads=2).subjects:
            assert any("padded batches run without a mask" in note for note in each.notes) == said


@pytest.mark.parametrize(
    ("lengths", "subjects", "options", "message"),
    [
        ([100], [], {}, "a replay needs at least one subject"),
        ([100], ["bert", "hubert"], {}, "subjects of different modalities"),
        ([2.0], ["whisper", "whisper@local"], {}, "whisper cannot be replayed in inference, because all its inputs"),
        ([200], ["reformer"], {"phase": "training"}, "reformer cannot be replayed in training"),
        ([100], ["bert"], {}, "are all vanilla; add an efficient one"),
        ([], ["bert", "nystromformer"], {}, "lengths need at least one value"),
        ([100], ["bert", "nystromformer"], {"batching": "fixed"}, "needs a size"),
        ([64], ["vit", "vit@local"], {"batching": "packed:100"}, "is for text and speech"),
    ],
)
def test_what_cannot_be_replayed_is_said_in_one_sentence(planted, lengths, subjects, options, message):
    with pytest.raises(InputError, match=message):
        replay(lengths, subjects, **options)


def test_data_of_another_modality_than_the_subjects_is_refused(planted):
    data = LengthData.of([2.0, 3.0], modality="speech")
    with pytest.raises(InputError, match="the lengths are of speech, and the subjects of text"):
        replay(data, ["bert", "nystromformer"])


def test_a_notebook_shows_the_tables_and_what_to_know(planted):
    answer = found(planted, batching="fixed:8")
    shown = answer._repr_html_()
    assert shown.count("<table") == 2
    for each in answer.subjects:
        assert str(each.subject) in shown
    assert answer.stop_reason in shown
