import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from synthetic import ENVIRONMENT, MIB, failure, measurement
from tippingpoint.analysis.comparison import ComparisonPoint
from tippingpoint.analysis.recommend import Constraint, Recommendation, recommend_from
from tippingpoint.analysis.tipping_point import TippingPoint, tipping_point
from tippingpoint.data import LengthData, Skipped
from tippingpoint.measurement import BEST_BATCH, FAILURE_KINDS, Outcome
from tippingpoint.models.catalog import ARCHITECTURES, VARIANTS
from tippingpoint.report.catalog import architectures_table, presets_table, variants_table
from tippingpoint.report.records import plain
from tippingpoint.report.tables import (
    candidates_table,
    lengths_table,
    measurements_table,
    percentiles_line,
    tipping_points_table,
)
from tippingpoint.study.presets import PRESETS
from tippingpoint.study.run import StudyResult
from tippingpoint.workload import METRICS, Subject

BERT = Subject.parse("bert")
LOCAL = Subject.parse("bert@local:window=128")
LONGFORMER = Subject.parse("longformer")
SUBJECTS = (BERT, LOCAL, LONGFORMER)


def outcomes_of() -> list[Outcome]:
    """A study in which the variant tips at 1,000 tokens, and everyone runs out of memory in turn."""
    outcomes: list[Outcome] = []
    for length in (128, 512, 1030, 2048):
        session = f"{length}-0"
        outcomes += [
            measurement(BERT, length, 1e-5 * length * (1 + length / 1000), session=session, peak_bytes=length * MIB),
            measurement(LOCAL, length, 2e-5 * length, session=session, peak_bytes=2 * length * MIB),
            measurement(LONGFORMER, length, 5e-5 * length, session=session),
            measurement(BERT, length, 4e-5 * length, session=session + BEST_BATCH, batch_size=8, peak_bytes=None),
        ]
    outcomes += [failure(BERT, 4096, session="4096"), measurement(LOCAL, 4096, 0.08, session="4096-0")]
    outcomes += [failure(LONGFORMER, 4096, session="4096", kind="crashed", message="it broke")]
    return outcomes


def tips(outcomes: Sequence[Outcome], variant: Subject = LOCAL, metric: str = "latency") -> TippingPoint:
    return tipping_point(outcomes, BERT, variant, metric=metric, phase="inference")


def answer_of(outcomes: list[Outcome]) -> Recommendation:
    data = lengths_of(200, 300, 3000, 9000)
    constraints = [Constraint.parse("latency<=1h")]
    return recommend_from(
        data, outcomes, ENVIRONMENT, baselines=(BERT,), variants=(LOCAL, LONGFORMER), constraints=constraints
    )


def lengths_of(*values: float) -> LengthData:
    return LengthData.of(
        values,
        modality="text",
        sources=("docs",),
        method="tokenizer",
        skipped=(Skipped("broken.csv:3", "no text"),),
    )


def text_of(*renderables: RenderableType, width: int = 160) -> str:
    console = Console(file=StringIO(), width=width, highlight=False)
    for renderable in renderables:
        console.print(renderable)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def round_trip(record: object) -> Any:
    """Through strict JSON and back; what comes back is what went in."""
    flat = plain(record)
    text = json.dumps(flat, allow_nan=False)
    assert json.loads(text) == flat
    return flat


def test_a_measurement_becomes_a_record_with_its_statistics():
    one = measurement(LOCAL, 512, [0.01, 0.02, 0.03], threads=3)
    record = round_trip(one)
    assert record["status"] == "ok"
    assert record["workload"]["subject"] == "bert@local:window=128"
    assert (record["workload"]["length"], record["workload"]["threads"]) == (512, 3)
    assert record["latency_s"] == one.latency_s == 0.02
    assert record["latency_interval_s"] == list(one.latency_interval_s)
    assert [sample["seconds"] for sample in record["samples"]] == [0.01, 0.02, 0.03]
    assert record["warnings"] == list(one.warnings)
    assert record["memory"]["peak_bytes"] == 100 * MIB


@pytest.mark.parametrize("kind", FAILURE_KINDS)
def test_a_failure_becomes_a_record_with_its_kind_as_status(kind):
    record = round_trip(failure("bert@eager", 512, kind=kind, refused=True))
    assert (record["status"], record["kind"], record["refused"]) == (kind, kind, True)
    assert record["workload"]["subject"] == "bert@eager"
    assert "latency_s" not in record


def test_a_point_without_memory_has_no_ratio_and_says_who_ran_out():
    record = round_trip(ComparisonPoint(4096, censored=1))
    assert record == {"length": 4096, "ratio": None, "interval": [None, None], "rounds": 0, "censored": 1}
    record = round_trip(ComparisonPoint(4096, censored=-1))
    assert (record["ratio"], record["censored"]) == (0, -1)


def test_a_point_has_its_ratio_instead_of_its_rounds():
    record = round_trip(ComparisonPoint(512, (math.log(2),) * 5))
    assert record["ratio"] == pytest.approx(2)
    assert record["interval"] == pytest.approx([2, 2])
    assert record["rounds"] == 5


def test_a_tipping_point_becomes_a_record():
    outcomes = outcomes_of()
    record = round_trip(tips(outcomes))
    assert (record["baseline"], record["variant"]) == ("bert", "bert@local:window=128")
    assert record["verdict"] == "crosses"
    assert record["length"] == pytest.approx(1000, rel=0.05)
    assert [point["length"] for point in record["points"]] == [128, 512, 1030, 2048, 4096]
    assert record["points"][-1]["censored"] == 1


def test_a_recommendation_becomes_a_record_with_its_reason():
    answer = answer_of(outcomes_of())
    record = round_trip(answer)
    assert record["choice"] == str(answer.choice)
    assert record["reason"] == answer.reason
    assert record["batching"] == "one"
    assert record["constraints"] == ["latency at the 95th percentile at most 1 h 00 m"]
    assert record["data"]["count"] == 4
    assert record["data"]["skipped"] == [{"path": "broken.csv:3", "reason": "no text"}]
    assert {candidate["subject"] for candidate in record["candidates"]} == set(map(str, SUBJECTS))


def test_lengths_become_a_summary_and_not_one_number_for_each_item():
    record = round_trip(lengths_of(*range(1, 1001)))
    assert (record["count"], record["minimum"], record["maximum"]) == (1000, 1, 1000)
    assert record["percentiles"]["95"] == 950
    assert sum(bin_["count"] for bin_ in record["histogram"]) == 1000
    assert len(json.dumps(record)) < 3000


def test_a_study_and_its_result_become_records():
    study = PRESETS["text"]
    assert round_trip(study)["baselines"] == ["bert", "bert@eager"]
    outcomes = outcomes_of()
    points = tuple(tips(outcomes, metric=metric) for metric in METRICS)
    result = StudyResult(
        study=study,
        environment=ENVIRONMENT,
        outcomes=tuple(outcomes),
        tipping_points=points,
        seconds=3.0,
        complete=True,
    )
    record = round_trip(result)
    assert len(record["outcomes"]) == len(outcomes)
    assert record["environment"]["cpu_model"] == "Imaginary 9000"


def test_a_tipping_point_without_observations_becomes_a_record():
    record = round_trip(tips([]))
    assert (record["verdict"], record["length"], record["points"]) == ("undecided", None, [])


@dataclass
class _Anything:
    value: object


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(BERT)
nested = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
        | st.builds(_Anything, inner)
    ),
    max_leaves=10,
)


@given(nested)
def test_whatever_is_nested_becomes_strict_json(value):
    json.dumps(plain(value), allow_nan=False)


def _leaves(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def test_numbers_that_are_not_finite_become_none():
    assert plain([math.inf, -math.inf, math.nan, 1.5]) == [None, None, None, 1.5]
    assert {type(leaf) for leaf in _leaves(plain(answer_of(outcomes_of())))} <= {str, int, float, bool, type(None)}


def test_measurements_are_shown_with_latency_throughput_memory_and_padding():
    text = text_of(measurements_table(outcomes_of(), SUBJECTS, "inference"))
    lines = [line.split("  ") for line in text.splitlines() if line.startswith("1,030")]
    assert [next(part.strip() for part in line[1:] if part.strip()) for line in lines] == list(map(str, SUBJECTS))
    assert "1,030 -> 1,536" in text
    assert "20.6 ms" in text
    # the best batch of eight
    assert f"{8 / (4e-5 * 1030):.0f}/s" in text
    assert "1.01 GiB" in text
    assert "1.00G" in text
    assert "0.0 %" in text


@pytest.mark.parametrize("kind", FAILURE_KINDS)
def test_failures_are_rows_of_the_table(kind):
    outcomes = [measurement(BERT, 512, 0.01), failure(LOCAL, 512, kind=kind)]
    text = text_of(measurements_table(outcomes, SUBJECTS, "inference"))
    (line,) = [line for line in text.splitlines() if "local" in line]
    assert kind.replace("_", " ") in line


def test_a_table_of_nothing_but_failures_is_a_table():
    text = text_of(measurements_table([failure(BERT, 512), failure(LOCAL, 512)], SUBJECTS, "inference"))
    assert text.count("out of memory") == 2


def test_a_table_of_nothing_is_a_table():
    assert "Measured (training)" in text_of(measurements_table([], SUBJECTS, "training"))
    assert "Tipping points" in text_of(tipping_points_table([]))


def test_the_latest_of_several_measurements_is_shown():
    outcomes = [measurement(BERT, 512, 0.01, session="a-0"), measurement(BERT, 512, 0.07, session="b-0")]
    text = text_of(measurements_table(outcomes, SUBJECTS, "inference"))
    assert "70.0 ms" in text
    assert "10.0 ms" not in text


def test_tipping_points_are_shown_with_verdict_interval_and_reach():
    outcomes = outcomes_of()
    points = [tips(outcomes), tips(outcomes, LONGFORMER), tips([]), tips(outcomes, metric="peak_memory")]
    lines = text_of(tipping_points_table(points)).splitlines()
    crosses, never, undecided, memory = lines[-4:]
    assert "crosses" in crosses
    assert " tokens " in crosses
    assert " to " in crosses
    assert "never (up to 2,048 tokens)" in never
    assert "undecided" in undecided
    # more memory at every length, until the baseline has none left
    assert "crosses" in memory
    assert not {"inf", "nan"} & set(" ".join(lines).split())


def test_a_variant_that_wins_everywhere_says_from_where():
    outcomes = [measurement(BERT, 512, 0.02), measurement(LOCAL, 512, 0.01)]
    assert "always (from 512 tokens)" in text_of(tipping_points_table([tips(outcomes)]))


def test_candidates_are_shown_with_cost_remark_and_recommendation():
    text = text_of(candidates_table(answer_of(outcomes_of())))
    assert text.count("recommended") == 1
    (line,) = [line for line in text.splitlines() if line.startswith("longformer")]
    assert "measured only up to 2,048 tokens" in line


@pytest.mark.parametrize("objective", METRICS)
def test_candidates_are_shown_in_the_unit_of_the_objective(objective):
    answer = replace(answer_of(outcomes_of()), objective=objective)
    text = text_of(candidates_table(answer))
    head = {"latency": "mean latency", "throughput": "time of one", "peak_memory": "peak memory"}
    assert head[objective] in text


def test_lengths_are_shown_as_a_histogram_that_counts_everything():
    data = lengths_of(*range(10, 1000))
    lines = text_of(lengths_table(data)).splitlines()
    assert lines[0].strip() == "Lengths of 990 documents"
    assert lines[-1].rstrip(" █▏").endswith("100 %")
    assert "95 % 950 tokens" in percentiles_line(data)


def test_lengths_that_are_all_equal_are_one_line():
    lines = text_of(lengths_table(lengths_of(7, 7, 7))).splitlines()
    assert len(lines) == 3
    assert "100 %" in lines[-1]


def test_everything_in_the_catalogue_is_listed():
    text = text_of(
        architectures_table(ARCHITECTURES.values()),
        variants_table(VARIANTS.values()),
        presets_table(PRESETS.values()),
    )
    for name in (*ARCHITECTURES, *VARIANTS, *PRESETS):
        assert any(line.startswith(name + " ") for line in text.splitlines()), name


@pytest.mark.parametrize("width", [40, 80, 200])
def test_tables_fit_into_any_terminal(width):
    outcomes = outcomes_of()
    tables = (
        measurements_table(outcomes, SUBJECTS, "inference"),
        tipping_points_table([tips(outcomes)]),
        candidates_table(answer_of(outcomes)),
        lengths_table(lengths_of(1, 2, 3)),
    )
    assert all(len(line) <= width for line in text_of(*tables, width=width).splitlines())
