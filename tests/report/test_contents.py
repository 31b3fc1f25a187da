import re
import shlex
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from synthetic import ENVIRONMENT, MIB, failure, measurement, session_at
from tippingpoint.analysis.tipping_point import tipping_point
from tippingpoint.data import LengthData
from tippingpoint.errors import AnswerError
from tippingpoint.measurement import BEST_BATCH, LOOK, Measurement, Outcome
from tippingpoint.report.answers import longer_share, sentence
from tippingpoint.report.contents import Contents, contents
from tippingpoint.store import StoredSession
from tippingpoint.workload import Subject

BERT = Subject.parse("bert")
LOCAL = Subject.parse("bert@local:window=128")
NYSTROM = Subject.parse("nystromformer")
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
# Where the planted costs of BERT and LOCAL are equal.
CROSSING = 1000


def costs(length: float) -> dict[Subject, float]:
    """Full attention grows with the square of the length; the two are equal at the crossing."""
    return {BERT: 1e-4 * length + 1e-7 * length**2, LOCAL: 1e-4 * length + 1e-7 * length * CROSSING}


def pair(name: str = "", **fields: Any) -> list[Outcome]:
    """A session at each length, in which bert is overtaken at the crossing."""
    generator = np.random.default_rng(0)
    return [
        outcome
        for length in LENGTHS
        for outcome in session_at(length, costs(length), generator, noise=0.01, name=f"{name}{length}-0", **fields)
    ]


def stored(*outcomes: Outcome, label: str = "") -> StoredSession:
    return StoredSession("study 1", label, "2026-01-02T03:04:05+00:00", 10.0, outcomes)


def told(sessions: Iterable[StoredSession], **options: object) -> Contents:
    return contents(list(sessions), store="runs.sqlite", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found() -> Contents:
    return told([stored(*pair())])


def test_the_first_answer_is_where_the_variant_overtakes(found):
    (point, *_) = found.comparisons[0].tipping_points
    assert found.answers[0].text == sentence(point)
    assert re.fullmatch(
        r"bert@local:window=128 is faster than bert from [\d,]+ tokens on \(95 % [\d,]+ to [\d,]+\)",
        found.answers[0].text,
    )
    assert point.interval[0] <= CROSSING <= point.interval[1]


def test_tipping_points_are_those_of_the_analysis(found):
    outcomes = found.comparisons[0].race.outcomes
    for point in found.comparisons[0].tipping_points:
        alone = tipping_point(outcomes, BERT, LOCAL, metric=point.metric, phase="inference")
        assert (point.length, point.interval, point.verdict) == (alone.length, alone.interval, alone.verdict)
    assert found.comparisons[0].tipping_points[0].sessions == len(LENGTHS)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_curve_holds_the_planted_cost_of_a_batch(batch_size):
    (compared,) = told([stored(*pair(batch_size=batch_size))]).comparisons
    curve = next(each for each in compared.curves if (each.subject, each.metric) == (BERT, "latency"))
    assert [point.length for point in curve.points] == list(LENGTHS)
    for point in curve.points:
        assert point.value == pytest.approx(costs(point.length)[BERT], rel=0.03)
        assert point.low <= point.value <= point.high


def test_two_sessions_at_a_length_are_pooled_into_a_narrower_interval():
    once = told([stored(*pair())]).comparisons[0]
    twice = told([stored(*pair()), stored(*pair("again "))]).comparisons[0]
    widths = [sum(np.log(point.high / point.low) for point in each.curves[0].points) for each in (once, twice)]
    assert twice.curves[0].metric == "latency"
    assert len(twice.curves[0].points) == len(LENGTHS)
    assert widths[1] < widths[0]


def test_settings_that_differ_are_never_put_together():
    other = replace(ENVIRONMENT, torch="2.14.0")
    sessions = [
        stored(*pair()),
        stored(*pair("a"), label="after"),
        stored(*pair("b", batch_size=4)),
        stored(*pair("c", phase="training")),
        stored(*pair("d", environment=other)),
    ]
    found = told(sessions)
    assert len({each.setting for each in found.comparisons}) == 5
    for each in found.comparisons:
        assert len(each.race.outcomes) == 2 * len(LENGTHS)
    assert len(found.environments) == 2


def test_inference_and_small_batches_come_first():
    sessions = [stored(*pair("c", phase="training")), stored(*pair("b", batch_size=4)), stored(*pair())]
    order = [(each.setting.phase, each.setting.batch_size) for each in told(sessions).comparisons]
    assert order == [("inference", 1), ("inference", 4), ("training", 1)]


def test_throughput_is_told_once_where_best_batches_were_measured():
    best = [
        replace(outcome, session=outcome.session + BEST_BATCH)
        for outcome in pair(batch_size=16)
        if isinstance(outcome, Measurement)
    ]
    found = told([stored(*pair(), *best), stored(*pair("b", batch_size=4))])
    metrics = {each.setting.batch_size: each.metrics for each in found.comparisons}
    assert metrics == {1: ("latency", "throughput", "peak_memory", "flops"), 4: ("latency", "peak_memory", "flops")}
    curve = next(each for each in found.comparisons[0].curves if each.metric == "throughput")
    assert curve.points[0].batch_size == 16
    assert curve.points[0].value == pytest.approx(16 / costs(128)[BERT], rel=0.03)


def test_padded_batches_are_a_setting_of_their_own_with_best_batches_of_their_own():
    best = [
        replace(outcome, session=outcome.session + BEST_BATCH)
        for outcome in pair(batch_size=16, padded=True)
        if isinstance(outcome, Measurement)
    ]
    sessions = [stored(*pair("a", batch_size=8)), stored(*pair("b", batch_size=8, padded=True), *best)]
    plain, padded = told(sessions).comparisons
    assert [each.setting.workload.padded for each in (plain, padded)] == [False, True]
    assert plain.metrics == ("latency", "peak_memory", "flops")
    assert padded.metrics == ("latency", "throughput", "peak_memory", "flops")
    curve = next(each for each in padded.curves if each.metric == "throughput")
    assert curve.points[0].batch_size == 16


def test_looks_with_shallow_models_are_left_out():
    looks = [replace(outcome, session=outcome.session + LOOK) for outcome in pair(layers=2)]
    found = told([stored(*pair(), *looks)])
    assert len(found.comparisons) == 1
    assert found.missing == ()


def test_failures_are_where_curves_end():
    lost = [failure(BERT, length, session=f"{length}", message="it needs 24 GiB") for length in (8192, 16384)]
    alone = [measurement(LOCAL, length, 1.0, session=f"{length}-0") for length in (8192, 16384)]
    (end,) = told([stored(*pair(), *lost, *alone)]).comparisons[0].ends
    assert (end.subject, end.kind, end.length, end.count) == (BERT, "out_of_memory", 8192, 2)
    assert end.message == "it needs 24 GiB"


def test_warnings_that_differ_in_their_numbers_alone_are_one_group():
    noisy = [
        measurement(BERT, length, [0.1, 0.2 + spread, 0.1, 0.4] * 2, session="n")
        for spread, length in enumerate(LENGTHS)
    ]
    found = told([stored(*pair(), *noisy)])
    texts = [re.sub(r"\d[\d.,]*", "#", each.text) for each in found.warnings]
    assert len(texts) == len(set(texts))
    spread = next(each for each in found.warnings if each.text.startswith("interquartile range"))
    assert spread.count == len(LENGTHS)
    assert spread.examples[0][0] == "bert at 128 tokens, inference, batch 1"


def test_a_store_with_a_baseline_alone_says_which_command_adds_a_variant():
    alone = [outcome for outcome in pair(size="tiny") if outcome.workload.subject == BERT]
    with pytest.raises(AnswerError) as raised:
        told([stored(*alone)])
    assert "only bert was measured, and no variant beside it" in str(raised.value)
    (command,) = re.findall("`(.*)`", str(raised.value))
    assert shlex.split(command) == [
        *("tippingpoint", "find", "bert", "bert@local:window=128", "--lengths", "128:4096"),
        *("--threads=2", "--size=tiny", "--store", "runs.sqlite"),
    ]


def test_a_store_with_a_variant_alone_says_which_command_adds_a_baseline():
    with pytest.raises(
        AnswerError, match=r"no vanilla subject .*`tippingpoint find bert nystromformer --lengths 128:1024"
    ):
        told([stored(measurement(NYSTROM, 128, 0.1))])


def test_subjects_that_never_met_in_a_session_are_no_comparison():
    apart = [
        measurement(subject, length, 0.1, session=f"{subject}-{length}")
        for subject in (BERT, LOCAL)
        for length in (128, 512)
    ]
    with pytest.raises(
        AnswerError, match=r"never measured in one session .*find bert bert@local:window=128 --lengths 128:512"
    ):
        told([stored(*apart)])


def test_an_empty_store_has_no_answer():
    with pytest.raises(AnswerError, match="no results yet"):
        told([])


def test_what_is_incomplete_is_told_beside_what_is_known():
    found = told([stored(*pair(), measurement("vit", 224, 0.1, phase="training"))])
    assert len(found.comparisons) == 1
    (gap,) = found.missing
    assert "only vit was measured" in gap.text
    assert gap.command.startswith("tippingpoint find vit vit@local:window=128 --lengths 224:1792 --phase=training")


def test_names_of_a_stranger_are_quoted_in_a_command():
    label, store = "a; rm -rf ~ $(id)", "my runs`id`.sqlite"
    with pytest.raises(AnswerError) as raised:
        contents([stored(measurement(BERT, 128, 0.1), label=label)], store=store)
    command = str(raised.value).partition("; `")[2].removesuffix("` would measure it")
    words = shlex.split(command)
    assert f"--label={label}" in words
    assert words[-1] == store


def test_an_architecture_that_is_not_installed_is_left_out_and_named():
    foreign = replace(pair("f")[0], workload=pair("f")[0].workload.replace(subject="nosuchmodel"))
    found = told([stored(*pair(), foreign)])
    assert len(found.comparisons) == 1
    assert found.missing[0].text.startswith("what was measured of nosuchmodel is left out")


def test_the_share_of_longer_items_is_counted():
    lengths = LengthData.of([10] * 25 + [100_000] * 75, modality="text")
    found = told([stored(*pair())], lengths=lengths)
    assert found.answers[0].data == "75 % of your 100 documents are longer"
    assert longer_share(found.comparisons[0].tipping_points[0], lengths) == 0.75


def test_lengths_of_another_modality_say_nothing():
    lengths = LengthData.of([1.0, 2.0], modality="speech")
    found = told([stored(*pair())], lengths=lengths)
    assert {answer.data for answer in found.answers} == {""}


def test_every_verdict_is_a_sentence_with_both_names(found):
    point = found.comparisons[0].tipping_points[0]
    for verdict in ("always", "never", "undecided", "several crossings"):
        said = sentence(replace(point, verdict=verdict))
        assert "bert@local:window=128" in said
        assert said.count("bert") > 1
    undecided = sentence(replace(point, verdict="undecided", length=None, interval=None))
    assert undecided.startswith("whether bert@local:window=128 is faster than bert is undecided")


def test_memory_of_a_variant_that_needs_less_everywhere_is_said_so():
    outcomes = [
        replace(outcome, memory=replace(outcome.memory, peak_bytes=(1 + (outcome.workload.subject == BERT)) * MIB))
        for outcome in pair()
        if isinstance(outcome, Measurement) and outcome.memory
    ]
    said = [answer.text for answer in told([stored(*outcomes)]).answers]
    assert any(text.startswith("bert@local:window=128 needs less memory than bert at every length") for text in said)
