import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from synthetic import ENVIRONMENT, MIB, failure, measurement
from tippingpoint.analysis.changes import CHANGES, Change
from tippingpoint.analysis.compare import ALARMS, Comparison, compare
from tippingpoint.analysis.moves import MOVES, moved
from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.errors import AnswerError, InputError
from tippingpoint.machine import Peaks
from tippingpoint.measurement import BEST_BATCH, LOOK, Flops, Measurement, Outcome, Sample
from tippingpoint.report.records import plain
from tippingpoint.workload import Subject

BERT = Subject.parse("bert")
LOCAL = Subject.parse("bert@local:window=128")


def timed(
    generator: np.random.Generator,
    cost: float,
    session: str,
    *,
    processes: int = 1,
    blocks: int = 12,
    within: float = 0.02,
    between: float = 0.0,
    subject: str = "bert",
    length: float = 512,
) -> Measurement:
    """A measurement of several processes, each with a speed of its own, with planted noise."""
    logs = math.log(cost) + between * generator.standard_normal((processes, 1))
    seconds = np.exp(logs + within * generator.standard_normal((processes, blocks)))
    samples = [
        Sample(blocks * process + block, 0, 0.1 * block, 1, float(seconds[process, block]), process=process)
        for process in range(processes)
        for block in range(blocks)
    ]
    return replace(measurement(subject, length, cost, session=session), samples=tuple(samples))


def latency(old: Sequence[Outcome], new: Sequence[Outcome], **options) -> Change:
    (change,) = compare(old, new, metrics=("latency",), **options).changes
    return change


def verdicts(answer: Comparison) -> list[tuple[str | None, str]]:
    return [(change.metric, change.verdict) for change in answer.changes]


# What is planted is found


def test_looks_with_shallow_models_are_not_compared():
    generator = np.random.default_rng(1)
    looks = [measurement("bert", 512, seconds, session=f"s{LOOK}", layers=2) for seconds in (1.0, 2.0)]
    answer = compare([timed(generator, 1.0, "old"), looks[0]], [timed(generator, 1.0, "new"), looks[1]])
    assert {change.workload.layers for change in answer.changes} == {None}


def test_a_planted_slow_down_is_found_and_a_planted_speed_up_too():
    generator = np.random.default_rng(1)
    old, new = timed(generator, 1.0, "old"), timed(generator, 1.1, "new")
    found = latency([old], [new])
    assert found.verdict == "slower"
    assert found.ratio == pytest.approx(1.1, rel=0.02)
    assert found.interval is not None
    assert found.interval[0] < 1.1 < found.interval[1]
    assert latency([new], [old]).verdict == "faster"


def test_a_planted_slow_down_of_ten_percent_is_found_almost_always():
    generator = np.random.default_rng(2)
    found = Counter(
        latency([timed(generator, 1.0, f"old{n}")], [timed(generator, 1.1, f"new{n}")]).verdict for n in range(200)
    )
    assert found["slower"] >= 190
    assert set(found) <= {"slower", "undecided"}


def test_padded_batches_are_held_against_padded_batches_alone():
    def side(name: str, plain_s: float, padded_s: float) -> list[Outcome]:
        found: list[Outcome] = []
        for padded, seconds in ((False, plain_s), (True, padded_s)):
            fields: dict[str, Any] = {"padded": padded, "peak_bytes": None}
            session = f"{name} {padded}-0"
            found.append(measurement("bert", 512, seconds, session=session, batch_size=4, **fields))
            best = measurement("bert", 512, 2 * seconds, session=session + BEST_BATCH, batch_size=8, **fields)
            found.append(best)
        return found

    answer = compare(side("old", 0.1, 0.2), side("new", 0.1, 0.3))
    told = [(change.metric, change.workload.padded, change.verdict) for change in answer.changes]
    assert told == [
        ("latency", False, "same"),
        ("latency", True, "slower"),
        ("throughput", False, "same"),
        ("throughput", True, "slower"),
    ]
    assert [change.batch_sizes for change in answer.changes] == [(4, 4)] * 2 + [(8, 8)] * 2


@pytest.mark.parametrize("processes", [1, 3])
def test_no_planted_change_is_almost_never_called_one(processes):
    generator = np.random.default_rng(3)
    found = Counter()
    for n in range(300):
        old, new = (
            timed(generator, 1.0, f"{side}{n}", processes=processes, blocks=10, between=0.01 * (processes > 1))
            for side in ("old", "new")
        )
        found[latency([old], [new], threshold=0.001).verdict] += 1
    assert found["slower"] + found["faster"] < 0.05 * 300


def test_no_planted_change_is_the_same_where_the_noise_is_small():
    generator = np.random.default_rng(4)
    found = latency([timed(generator, 1.0, "old", within=0.005)], [timed(generator, 1.0, "new", within=0.005)])
    assert found.verdict == "same"


@pytest.mark.parametrize(("processes", "blocks"), [(1, 16), (7, 6)])
def test_the_interval_of_the_ratio_holds_the_planted_ratio(processes, blocks):
    # Over 500 simulations each, coverage was 0.966 for 7 and 0.970 for 30 processes, and up to 0.99 between: the
    # interval of each side is made wider for few values, and their difference needs a little less of that.
    generator = np.random.default_rng(5)
    held, runs = 0, 300
    for n in range(runs):
        old, new = (
            timed(generator, cost, f"{cost}{n}", processes=processes, blocks=blocks, between=0.03 * (processes > 1))
            for cost in (1.0, 1.07)
        )
        interval = latency([old], [new]).interval
        assert interval is not None
        held += interval[0] <= 1.07 <= interval[1]
    assert 0.92 <= held / runs <= 0.98


def test_differences_between_processes_make_the_interval_wider():
    generator = np.random.default_rng(6)
    widths = []
    for between in (0.0, 0.1):
        sides = [timed(generator, 1.0, f"{s}{between}", processes=5, between=between) for s in ("old", "new")]
        interval = latency(sides[:1], sides[1:]).interval
        assert interval is not None
        widths.append(interval[1] - interval[0])
    assert widths[1] > 2 * widths[0]


def test_several_sessions_of_a_side_are_further_processes():
    generator = np.random.default_rng(7)
    old = [timed(generator, cost, f"old{cost}") for cost in (0.9, 1.0, 1.1)]
    new = [timed(generator, cost, f"new{cost}") for cost in (0.95, 1.0, 1.05)]
    found = latency(old, new)
    assert found.processes == (3, 3)
    assert found.verdict == "undecided"
    # One session of each says less about differences between processes than there is.
    assert latency(old[:1], new[1:2]).verdict == "slower"


def test_swapping_the_sides_inverts_every_ratio_and_turns_every_verdict():
    generator = np.random.default_rng(8)
    turned = {"faster": "slower", "slower": "faster", "smaller": "larger", "larger": "smaller"}
    seen = set()
    for n in range(40):
        old, new = (
            [
                replace(
                    timed(generator, cost, f"{side}{n}", within=0.01),
                    memory=measurement("bert", 512, 1.0, peak_bytes=int(100 * MIB * size)).memory,
                )
            ]
            for side, cost, size in (("old", 1.0, 1.0), ("new", 1 + 0.002 * n, 1 + 0.005 * (20 - n)))
        )
        there, back = compare(old, new), compare(new, old)
        for one, other in zip(there.changes, back.changes, strict=True):
            assert one.ratio is not None
            assert one.interval is not None
            assert other.interval is not None
            assert other.ratio == pytest.approx(1 / one.ratio)
            assert other.interval == pytest.approx((1 / one.interval[1], 1 / one.interval[0]))
            assert other.verdict == turned.get(one.verdict, one.verdict)
            seen.add(one.verdict)
        for one, other in zip(there.overall, back.overall, strict=True):
            assert other.ratio == pytest.approx(1 / one.ratio)
    assert seen == {"slower", "smaller", "larger", "same", "undecided"}


def test_the_geometric_mean_of_planted_ratios_is_recovered():
    generator = np.random.default_rng(9)
    ratios = (0.8, 1.0, 1.25, 1.1, 0.9, 1.05)
    truth = math.prod(ratios) ** (1 / len(ratios))
    held, runs = 0, 60
    for n in range(runs):
        old = [timed(generator, 1.0, f"old{n}-{i}", length=100 + i) for i in range(len(ratios))]
        new = [timed(generator, ratio, f"new{n}-{i}", length=100 + i) for i, ratio in enumerate(ratios)]
        (found,) = compare(old, new, metrics=("latency",)).overall
        assert found.workloads == len(ratios)
        assert found.ratio == pytest.approx(truth, rel=0.03)
        held += found.interval[0] <= truth <= found.interval[1]
        # Six workloads together are known better than one of them.
        assert found.interval[1] / found.interval[0] < 1.06
    assert held >= 0.92 * runs


def test_what_disturbed_all_subjects_of_a_session_does_not_average_out():
    noise = 0.05 * np.random.default_rng(10).standard_normal(12)
    subjects = ("bert", "bert@eager", "longformer", "bert@local:window=128")
    old, new = (
        [measurement(subject, 512, list(np.exp(shift)), session=f"{side}-0") for subject in subjects]
        for side, shift in (("old", noise), ("new", noise[::-1]))
    )
    answer = compare(old, new, metrics=("latency",))
    interval = answer.changes[0].interval
    assert interval is not None
    assert answer.overall[0].interval == pytest.approx(interval)


# Verdicts


@pytest.mark.parametrize(
    ("ratio", "threshold", "verdict"),
    [
        (1.029, 0.03, "same"),
        (1.031, 0.03, "slower"),
        (1 / 1.029, 0.03, "same"),
        (1 / 1.031, 0.03, "faster"),
        (1.031, 0.05, "same"),
        (1.009, 0.005, "slower"),
    ],
)
def test_time_without_noise_is_judged_by_the_threshold_alone(ratio, threshold, verdict):
    old, new = [measurement("bert", 512, 0.1)], [measurement("bert", 512, 0.1 * ratio)]
    found = latency(old, new, threshold=threshold)
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(ratio)
    assert (found.old, found.new) == pytest.approx((0.1, 0.1 * ratio))


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(1.0, "same"), (1.005, "same"), (1.04, "undecided"), (1.06, "larger"), (0.94, "smaller"), (0.96, "undecided")],
)
def test_peak_memory_is_known_within_its_tolerance(ratio, verdict):
    old, new = (measurement("bert", 512, 0.1, peak_bytes=int(100 * MIB * r)) for r in (1, ratio))
    answer = compare([old], [new], metrics=("peak_memory",))
    assert verdicts(answer) == [("peak_memory", verdict)]
    # The tolerance is the method's own, so that many workloads do not make it smaller.
    assert answer.overall[0].interval == answer.changes[0].interval


def test_a_single_block_shows_no_noise_and_decides_nothing():
    answer = compare([measurement("bert", 512, [0.1])], [measurement("bert", 512, [0.2])], metrics=("latency",))
    (change,) = answer.changes
    assert (change.verdict, change.interval) == ("undecided", None)
    assert change.ratio == pytest.approx(2)
    assert answer.overall == ()
    assert any("a single timed block shows no noise" in note for note in answer.notes)


def test_throughput_is_time_per_sequence_at_the_best_batch_size_of_each_side():
    old = [
        measurement("bert", 512, 0.1, session="a-0", batch_curve=((1, 10.0), (4, 20.0))),
        measurement("bert", 512, 0.2, session="a-0" + BEST_BATCH, batch_size=4, peak_bytes=None),
    ]
    new = [
        measurement("bert", 512, 0.1, session="b-0", batch_curve=((1, 10.0), (8, 40.0))),
        measurement("bert", 512, 0.2, session="b-0" + BEST_BATCH, batch_size=8, peak_bytes=None),
    ]
    answer = compare(old, new)
    assert verdicts(answer) == [("latency", "same"), ("throughput", "faster"), ("peak_memory", "same")]
    change = answer.changes[1]
    assert (change.old, change.new, change.ratio) == pytest.approx((0.05, 0.025, 0.5))
    assert change.batch_sizes == (4, 8)
    # Where larger batches did not pay, the measurement itself is at the best batch size.
    (change,) = compare(old[:1], new, metrics=("throughput",)).changes
    assert (change.batch_sizes, change.ratio) == ((1, 8), pytest.approx(0.25))


def test_throughput_that_nobody_looked_for_is_said_to_be_missing():
    answer = compare([measurement("bert", 512, 0.1)], [measurement("bert", 512, 0.1)])
    assert {change.metric for change in answer.changes} == {"latency", "peak_memory"}
    assert "throughput was not measured on both sides" in answer.notes


def test_workloads_of_other_phases_batch_sizes_and_dtypes_are_not_held_against_each_other():
    old = [measurement("bert", 512, 0.1), measurement("bert", 512, 0.3, phase="training")]
    new = [
        measurement("bert", 512, 0.1),
        measurement("bert", 512, 0.3, batch_size=4),
        measurement("bert", 512, 0.3, dtype="bfloat16"),
        measurement("bert", 512, 0.3, compiled=True),
    ]
    answer = compare(old, new, metrics=("latency",))
    assert verdicts(answer) == [("latency", "same")]
    assert [workload.phase for workload in answer.old.alone] == ["training"]
    assert len(answer.new.alone) == 3


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ([measurement("vit", 224, 0.1)], "subject bert in old, vit in new; length 512 in old, 224 in new"),
        ([measurement("bert", 512, 0.1, compiled=True)], "compiled False in old, True in new"),
        ([], "new holds nothing to compare"),
        (
            [measurement("bert", 64, 0.1, phase="training"), measurement("vit", 512, 0.1)],
            "each of their values is on both sides",
        ),
    ],
)
def test_sides_without_a_workload_in_common_cannot_be_compared(new, reason):
    old = [measurement("bert", 512, 0.1)]
    if "each" in reason:
        old += [measurement("bert", 64, 0.1), measurement("vit", 64, 0.1, phase="training")]
    with pytest.raises(AnswerError, match=reason):
        compare(old, new)


def test_arguments_that_are_not_legal_are_refused():
    one = [measurement("bert", 512, 0.1)]
    with pytest.raises(InputError, match="unknown metric 'speed'"):
        compare(one, one, metrics=("speed",))
    with pytest.raises(InputError, match="the threshold must be a share between 0 and 1, got 3"):
        compare(one, one, threshold=3)
    with pytest.raises(InputError, match=r"unknown verdict to fail on 'slow'.*Did you mean 'slower'"):
        compare(one, one).alarms(["slow"])


# Failures


def test_a_workload_that_fails_on_one_side_is_a_change():
    ok = measurement("longformer", 64, 0.1)
    old = [ok, measurement("bert", 512, 0.1), failure("bert", 1024), failure("bert", 2048)]
    new = [ok, failure("bert", 512, kind="crashed"), measurement("bert", 1024, 0.1), failure("bert", 2048)]
    answer = compare(old, new, metrics=("latency",))
    assert verdicts(answer) == [
        ("latency", "same"),
        (None, "now fails"),
        (None, "no longer fails"),
        (None, "fails in both"),
    ]
    assert answer.changes[1].failed == (None, "crashed")
    assert answer.alarms(["slower"]) == ["bert at 512 tokens, inference, batch 1: now fails"]
    assert answer.alarms(["failing"]) == answer.alarms(["slower"])
    assert answer.alarms(["larger", "undecided", "moved"]) == []
    assert (answer.old.failures, answer.new.failures) == (2, 2)


def test_what_failed_at_times_was_measured_and_is_warned_of():
    old = [measurement("bert", 512, 0.1)]
    new = [failure("bert", 512, kind="timeout"), measurement("bert", 512, 0.1)]
    answer = compare(old, new, metrics=("latency",))
    assert verdicts(answer) == [("latency", "same")]
    assert "bert at 512 tokens, inference, batch 1 failed 1 of 2 times in new (timeout)" in answer.warnings


def test_a_failure_in_trying_a_larger_batch_is_none_of_the_workload():
    old = [measurement("bert", 512, 0.1)]
    new = [*old, failure("bert", 512, session="s-0" + BEST_BATCH)]
    assert verdicts(compare(old, new, metrics=("latency",))) == [("latency", "same")]


# What is not the same beside the change that was made


def test_unlike_work_is_warned_of_once_with_every_workload_it_is_about():
    old = [measurement("bert", length, 0.1) for length in (64, 128, 256, 512, 1024)]
    new = [replace(one, attention="eager", parameters=2_000_000) for one in old]
    answer = compare(old, new)
    assert all(len(change.unlike) == 2 for change in answer.changes)
    (attention,) = (warning for warning in answer.warnings if "attention" in warning)
    assert attention.startswith(
        "not the same work: attention sdpa -> eager in bert at 64 tokens, inference, batch 1; "
    )
    assert attention.endswith("and 2 more")
    assert any("parameters 1,000,000 -> 2,000,000" in warning for warning in answer.warnings)


def test_more_flops_or_more_padding_is_other_work():
    old = measurement("bert", 512, 0.1)
    new = replace(old, flops=Flops(total=12 * 10**8, by_operator=()), executed_positions=640)
    (change,) = compare([old], [new], metrics=("latency",)).changes
    assert change.unlike == ("executed positions 512 -> 640", "FLOPs 1.00G -> 1.20G (20 %)")


def test_environments_are_compared_field_by_field_and_another_machine_is_warned_of():
    old = [measurement("bert", 512, 0.1)]
    newer = replace(ENVIRONMENT, torch="2.14.0")
    answer = compare(old, [measurement("bert", 512, 0.1, environment=newer)])
    assert answer.environment_differences == (("torch", "2.13.0", "2.14.0"),)
    assert not any("machine" in warning for warning in answer.warnings)
    other = replace(ENVIRONMENT, cpu_model="Imaginary 9100", threads=4)
    answer = compare(old, [measurement("bert", 512, 0.1, environment=other, threads=4)])
    (warning,) = (warning for warning in answer.warnings if "machine" in warning)
    assert warning.startswith("not the same machine: cpu_model Imaginary 9000 -> Imaginary 9100, threads 2 -> 4;")


def test_a_side_with_several_environments_is_refused_and_never_pooled():
    newer = replace(ENVIRONMENT, torch="2.14.0")
    old = [measurement("bert", 512, 0.1), measurement("bert", 512, 0.2, environment=newer)]
    with pytest.raises(InputError, match=r"old was measured in 2 environments.*--environments OLD,NEW") as refused:
        compare(old, [measurement("bert", 512, 0.1)])
    for environment in (ENVIRONMENT, newer):
        assert environment.fingerprint in str(refused.value)


def test_what_is_not_compared_may_have_another_environment_and_counts_nowhere():
    newer = replace(ENVIRONMENT, torch="2.14.0")
    old = [measurement("bert", 512, 0.1), measurement("bert", 1024, 0.2, environment=newer)]
    answer = compare(old, [measurement("bert", 512, 0.1)])
    assert answer.old.measurements == 1
    assert answer.old.alone == ()


def test_a_machine_that_ran_slower_itself_is_warned_of():
    old, new = (
        replace(measurement("bert", 512, 0.1), peaks=Peaks(flops_per_s=flops, bytes_per_s=10 * 2**30))
        for flops in (140e9, 129e9)
    )
    (warning,) = (warning for warning in compare([old], [new]).warnings if "machine" in warning)
    assert warning.startswith(
        "the machine itself ran 7.9 % slower in new: matrix products in float32 140GFLOP/s -> 129GFLOP/s"
    )
    assert not any("machine" in warning for warning in compare([old], [new], threshold=0.1).warnings)
    assert any("ran 8.5 % faster in new" in warning for warning in compare([new], [old]).warnings)


def test_the_notes_say_what_the_intervals_do_not_hold():
    generator = np.random.default_rng(11)
    single, several = timed(generator, 1.0, "a"), timed(generator, 1.0, "b", processes=3)
    notes = compare([single], [several], names=("x", "y")).notes
    assert any("the sides were not timed side by side" in note for note in notes)
    assert "x has one process for every workload: differences between processes are not in its interval" in notes
    assert not any(note.startswith("y has one process") for note in notes)


def test_measurements_that_doubt_themselves_are_counted():
    noisy = measurement("bert", 512, [0.1, 0.2, 0.1, 0.3, 0.1, 0.2, 0.1, 0.3])
    assert noisy.warnings
    answer = compare([noisy], [measurement("bert", 512, 0.1)])
    assert any(warning.startswith("old: 1 of 1 measurement compared came with") for warning in answer.warnings)


# Tipping points


def study_of(tips_at: float, session: str, lengths: Sequence[float] = (128, 512, 1024, 2048)) -> list[Outcome]:
    """Sessions in which a linear variant overtakes a quadratic baseline at `tips_at`; 1 % of noise."""
    generator = np.random.default_rng(int(tips_at))
    return [
        timed(generator, cost, f"{session}{length}-0", subject=subject, length=length, within=0.01)
        for length in lengths
        for subject, cost in (("bert", length**2 / tips_at), ("bert@local:window=128", float(length)))
    ]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (700, 1500, "moved up"),
        (1500, 700, "moved down"),
        (700, 700, "same"),
        (700, 9000, "moved up"),
        (9000, 700, "moved down"),
        (50, 700, "moved up"),
        (50, 9000, "moved up"),
        (9000, 50, "moved down"),
        (9000, 8000, "same"),
        (50, 40, "same"),
    ],
)
def test_a_planted_move_of_the_tipping_point_is_found(before, after, verdict):
    answer = compare(study_of(before, "old"), study_of(after, "new"), metrics=("latency",))
    (move,) = answer.tipping_points
    assert move.verdict == verdict
    assert (move.old.baseline, move.old.variant) == (BERT, LOCAL)
    expected = [str(move)] if verdict.startswith("moved") else []
    assert answer.alarms(["moved"]) == expected


def test_a_pair_needs_two_lengths_on_both_sides():
    assert compare(study_of(700, "old"), study_of(700, "new", lengths=(128,))).tipping_points == ()
    latency, memory = compare(study_of(700, "old"), study_of(700, "new", lengths=(128, 2048))).tipping_points
    assert (latency.new.metric, memory.new.metric) == ("latency", "peak_memory")


def answer_at(verdict: str, place: tuple[float, float, float] | None = None) -> TippingPoint:
    point = compare(study_of(700, "a"), study_of(700, "b"), metrics=("latency",)).tipping_points[0].old
    length, interval = (place[1], (place[0], place[2])) if place else (None, None)
    return replace(point, verdict=verdict, length=length, interval=interval)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (("crosses", (500, 600, 700)), ("crosses", (701, 800, 900)), "moved up"),
        (("crosses", (500, 600, 700)), ("crosses", (650, 800, 900)), "undecided"),
        (("crosses", (500, 600, 700)), ("crosses", (550, 620, 720)), "same"),
        (("crosses", (500, 600, 700)), ("several crossings", (701, 800, 900)), "moved up"),
        (("crosses", (500, 600, 700)), ("undecided", None), "undecided"),
        (("undecided", None), ("undecided", None), "undecided"),
        # Measured from 128 to 2,048 tokens: it never paid up to there, or always from there.
        (("never", None), ("crosses", (1800, 1900, 2048)), "moved down"),
        (("never", None), ("crosses", (1900, 2100, 2200)), "undecided"),
        (("always", None), ("crosses", (128, 150, 200)), "undecided"),
        (("always", None), ("crosses", (129, 150, 200)), "moved up"),
        (("always", None), ("never", None), "moved up"),
    ],
)
def test_a_tipping_point_moved_only_if_its_answers_are_apart(before, after, verdict):
    old, new = (answer_at(*each) for each in (before, after))
    assert moved(old, new) == verdict
    turned = {"moved up": "moved down"}
    if verdict != "moved down":
        assert moved(new, old) == turned.get(verdict, verdict)
    assert verdict in MOVES


# The record


def test_a_comparison_becomes_a_record_and_a_text():
    old = [*study_of(700, "old"), measurement("bert", 64, [0.1])]
    new = [*study_of(1500, "new"), failure("bert", 64)]
    answer = compare(old, new, names=("before", "after"))
    record = json.loads(json.dumps(plain(answer), allow_nan=False))
    assert record["changes"][0]["workload"]["subject"] == "bert"
    assert {change["verdict"] for change in record["changes"]} <= set(CHANGES)
    assert record["tipping_points"][0]["verdict"] == "moved up"
    text = str(answer)
    assert text.startswith("before (old) and after (new), same within 3.0 %")
    assert "bert at 64 tokens, inference, batch 1: now fails" in text
    assert "bert@local:window=128 against bert, inference latency: moved up" in text
    assert repr(answer) == text


def test_everything_to_fail_on_is_a_verdict():
    assert {verdict for verdicts in ALARMS.values() for verdict in verdicts} <= {*CHANGES, *MOVES}
