import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType

from synthetic import failure, measurement, session_at
from tippingpoint.analysis.winners import Contest, Race
from tippingpoint.errors import AnswerError
from tippingpoint.measurement import Outcome
from tippingpoint.report.figures import length_ticks
from tippingpoint.report.speed_up import (
    draw,
    race_record,
    race_tables,
    races_by_label,
    speed_up_chart,
    speed_up_table,
    winners_table,
)
from tippingpoint.store import StoredSession
from tippingpoint.workload import Subject

BERT, EAGER = Subject.parse("bert"), Subject.parse("bert@eager")
VARIANTS = tuple(
    Subject.parse(f"bert@{text}")
    for text in (
        "local:window=256",
        "nystrom:landmarks=128",
        "linear:feature_map=favor,num_features=256",
        "linformer:rank=256",
        "pooled:ratio=3",
        "heads:keep=0.33",
        "reuse:group=3,mode=auto",
    )
)
CONTEST = Contest((BERT, EAGER), VARIANTS)
LENGTHS = (192, 384, 768, 1536)


def outcomes_of(phase: str = "inference") -> list[Outcome]:
    """All subjects at all lengths: the first variant wins from 768 on, the last one before; eager runs out last."""
    generator = np.random.default_rng(0)
    found: list[Outcome] = []
    for length in LENGTHS:
        costs = {subject: 1.0 + 0.05 * place for place, subject in enumerate(VARIANTS)}
        costs |= {BERT: 2.0, EAGER: 3.0, VARIANTS[-1]: 0.5 if length < 768 else 1.5}
        if length == 1536:
            del costs[EAGER]
            found.append(failure(EAGER, length, session=f"at {length:g}", phase=phase))
        found += session_at(length, costs, generator, noise=0.005, phase=phase)
    return found


def race(outcomes: list[Outcome] | None = None, contest: Contest = CONTEST, phase: str = "inference") -> Race:
    return Race(contest=contest, outcomes=tuple(outcomes or outcomes_of(phase)), phase=phase)


def text_of(*found: RenderableType, width: int = 140) -> list[str]:
    console = Console(file=StringIO(), width=width)
    console.print(*found, sep="\n")
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def cells(line: str) -> list[str]:
    return re.split(r"\s{3,}|(?<=\d)\s{2}(?=\D)", line.strip())


def layers_of(spec: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    for panel in spec["hconcat"]:
        for layer in panel["layer"]:
            if layer["mark"]["type"] == kind:
                yield {**layer, "rows": spec["datasets"][layer["data"]["name"]]}


def test_the_table_has_every_subject_at_every_length_with_all_baselines_in_140_columns():
    title, head, *rows = text_of(speed_up_table(race()))
    assert title == "Speed-up with its 95 % interval (inference)"
    assert re.split(r"\s{2,}", head.strip()) == [
        "tokens",
        "subject",
        "over bert",
        "over bert@eager",
        "memory",
        "parameters",
        "FLOPs",
        "by definition",
    ]
    rows = [row for row in rows if row.strip()]
    assert len(rows) == len(LENGTHS) * len(CONTEST.subjects)
    assert all(re.match(r" *[0-9,]+  \S", row) for row in rows)
    assert re.search(r"1,536  bert@eager +out of memory", "\n".join(rows))
    (local,) = [row for row in rows if re.match(r" +192  local:window=256 ", row)]
    over = re.findall(r"(\d\.\d\d)x  (\d\.\d\d) to (\d\.\d\d)", local)
    assert [float(ratio) for ratio, _, _ in over] == pytest.approx([2, 3], rel=0.02)
    assert all(float(low) <= float(ratio) <= float(high) for ratio, low, high in over)
    assert "100 MiB" in local
    # A mode that is the default is not said.
    assert any(re.match(r" +192  reuse:group=3  ", row) for row in rows)


def test_the_table_says_where_each_wins():
    title, head, *rows = text_of(winners_table(race()))
    assert title == "Where each wins (inference; 4 lengths, 192 to 1,536 tokens)"
    assert head.split()[:2] == ["subject", "fastest"]
    won = {row.split()[0]: row for row in rows}
    assert re.match(r"reuse:group=3 +192 to 384 tokens", won["reuse:group=3"])
    assert re.match(r"local:window=256 +768 to 1,536 tokens", won["local:window=256"])
    # All take the same memory: the first is the smallest, and the others are level.
    assert won["bert"].endswith("192 to 1,536 tokens")
    assert won["bert@eager"].endswith("192 to 768 tokens")


def test_where_lengths_are_not_shared_nobody_wins():
    outcomes: list[Outcome] = [measurement(BERT, 128, 2.0), measurement(VARIANTS[0], 128, 1.0)]
    title, *_ = text_of(winners_table(race(outcomes)))
    assert title == "Where each wins (inference; at no length were all of them measured)"


def test_subjects_of_several_architectures_are_written_in_full():
    longformer = Subject.parse("longformer")
    costs = {BERT: 2.0, VARIANTS[0]: 1.5, longformer: 1.0}
    outcomes: list[Outcome] = [measurement(subject, 512, seconds) for subject, seconds in costs.items()]
    text = "\n".join(text_of(speed_up_table(race(outcomes, Contest((BERT,), (VARIANTS[0], longformer))))))
    assert "bert@local:window=256" in text
    assert "longformer" in text


def test_a_figure_has_a_panel_for_each_baseline_and_a_line_for_each_other_subject():
    spec = speed_up_chart(race()).to_dict()
    assert [panel["title"]["text"] for panel in spec["hconcat"]] == ["over bert", "over bert@eager"]
    first, second = layers_of(spec, "line")
    assert {row["subject"] for row in first["rows"]} == {
        "bert@eager",
        *(str(each).partition("@")[2].replace(",mode=auto", "") for each in VARIANTS),
    }
    assert {row["subject"] for row in second["rows"]} == {*(row["subject"] for row in first["rows"])} - {
        "bert@eager"
    } | {"bert"}
    assert {row["length"] for row in first["rows"]} == set(LENGTHS)
    # The one that ran out of memory has no ratio there, and the subtitle says so.
    assert {row["length"] for row in second["rows"]} == {192, 384, 768}
    assert spec["title"]["text"] == "Speed-up in inference: bert"
    assert spec["title"]["subtitle"] == [
        "cpu float32, 2 threads, base, batch 1; bars are 95 % intervals",
        "bert@eager ran out of memory at 1,536 tokens",
    ]


def test_axes_are_logarithmic_hold_everything_and_are_the_same_in_all_panels():
    spec = speed_up_chart(race()).to_dict()
    scales = [(line["encoding"]["x"]["scale"], line["encoding"]["y"]["scale"]) for line in layers_of(spec, "line")]
    assert scales[0] == scales[1]
    x, y = scales[0]
    assert (x["type"], y["type"]) == ("log", "log")
    rows = [row for line in layers_of(spec, "line") for row in line["rows"]]
    assert x["domain"][0] < 192 < 1536 < x["domain"][1]
    assert y["domain"][0] < min(1, *(row["low"] for row in rows))
    assert max(row["high"] for row in rows) < y["domain"][1]
    (line, _) = layers_of(spec, "line")
    assert 1 in line["encoding"]["y"]["axis"]["values"]
    low, high = x["domain"]
    assert line["encoding"]["x"]["axis"]["values"] == length_ticks(low, high, "tokens")


def test_an_interval_that_says_nothing_does_not_squeeze_the_others():
    outcomes: list[Outcome] = [
        measurement(BERT, 512, [2.0, 2.0, 2.0]),
        measurement(VARIANTS[0], 512, [0.01, 1.0, 2.0]),
        measurement(VARIANTS[1], 512, [1.0, 1.0, 1.0]),
    ]
    line, *_ = layers_of(speed_up_chart(race(outcomes, Contest((BERT,), VARIANTS[:2]))).to_dict(), "line")
    rows = {row["subject"]: row for row in line["rows"]}
    low, high = line["encoding"]["y"]["scale"]["domain"]
    assert rows["local:window=256"]["high"] > 10 * high
    assert low <= 1 < max(row["ratio"] for row in rows.values()) < high
    bars = [layer for layer in layers_of(speed_up_chart(race()).to_dict(), "rule") if "y2" in layer["encoding"]]
    assert all(layer["mark"]["clip"] for layer in bars)


def test_subjects_look_unlike_with_and_without_colour_and_baselines_come_last():
    point, _ = layers_of(speed_up_chart(race()).to_dict(), "point")
    names = point["encoding"]["color"]["scale"]["domain"]
    assert names[-2:] == ["bert", "bert@eager"]
    # The order of the lines at the right end.
    assert (names[0], names[6]) == ("local:window=256", "reuse:group=3")
    for channel in ("color", "shape"):
        looks = point["encoding"][channel]["scale"]["range"]
        assert len(set(looks[:7])) == 7
        assert not set(looks[:7]) & set(looks[7:])


@pytest.mark.parametrize(("scale", "most"), [(1.0, 14), (1.02, 14), (3.0, 14), (200.0, 21)])
def test_ratios_have_round_ticks_however_far_apart_they_are(scale, most):
    outcomes: list[Outcome] = [measurement(BERT, 512, scale), measurement(VARIANTS[0], 512, 1.0)]
    line, *_ = layers_of(speed_up_chart(race(outcomes, Contest((BERT,), VARIANTS[:1]))).to_dict(), "line")
    low, high = line["encoding"]["y"]["scale"]["domain"]
    ticks = line["encoding"]["y"]["axis"]["values"]
    assert 1 in ticks
    assert all(low <= tick <= high for tick in ticks)
    assert len(ticks) <= most


def test_memory_can_be_drawn():
    spec = speed_up_chart(race(), "peak_memory").to_dict()
    line, _ = layers_of(spec, "line")
    assert line["encoding"]["y"]["title"] == "peak memory, baseline / variant"
    assert spec["title"]["text"] == "Peak memory saved in inference: bert"


def test_nothing_that_could_be_compared_is_not_drawn(tmp_path):
    lost: list[Outcome] = [
        failure(BERT, 512, session="s"),
        measurement(VARIANTS[0], 512, 1.0, session="s-0"),
    ]
    with pytest.raises(AnswerError, match="no length could be compared"):
        speed_up_chart(race(lost, Contest((BERT,), VARIANTS[:1])))
    with pytest.raises(AnswerError, match="no length could be compared"):
        draw([race(lost, Contest((BERT,), VARIANTS[:1]))], ["latency"], tmp_path / "figure.svg")


def test_files_are_named_by_what_tells_them_apart(tmp_path):
    found = [race(phase=phase) for phase in ("inference", "training")]
    assert draw(found[:1], ["latency"], tmp_path / "a.json") == [tmp_path / "a.json"]
    assert [path.name for path in draw(found, ["latency"], tmp_path / "b.json")] == [
        "b-inference.json",
        "b-training.json",
    ]
    assert [path.name for path in draw(found[:1], ["latency", "peak_memory"], tmp_path / "c.json")] == [
        "c-latency.json",
        "c-peak_memory.json",
    ]
    again = draw([found[0], found[0]], ["latency"], tmp_path / "d.json")
    assert [path.name for path in again] == ["d.json", "d-2.json"]
    drawn = json.loads((tmp_path / "b-training.json").read_text())
    assert drawn["title"]["text"] == "Speed-up in training: bert"
    assert all(isinstance(path, Path) and path.exists() for path in again)


def test_a_record_has_ratios_and_winners():
    record = json.loads(json.dumps(race_record(race())))
    assert (record["phase"], record["baselines"]) == ("inference", ["bert", "bert@eager"])
    eager = [each for each in record["speed_ups"] if each["baseline"] == "bert@eager"]
    assert eager[0]["points"][-1] == {"length": 1536, "ratio": None, "interval": None, "censored": 1}
    assert [(best["length"], best["subject"]) for best in record["best"]["latency"]] == [
        (192, str(VARIANTS[-1])),
        (384, str(VARIANTS[-1])),
        (768, str(VARIANTS[0])),
        (1536, str(VARIANTS[0])),
    ]


def test_runs_with_other_labels_stay_apart():
    sessions = [
        StoredSession("text", label, "2026-01-01T00:00:00+00:00", 1.0, tuple(outcomes_of()))
        for label in ("before", "after", "before")
    ]
    found = races_by_label(sessions)
    assert [label for label, _ in found] == ["before", "after"]
    text = "\n".join(text_of(*race_tables(found)))
    assert text.count("Where each wins") == 2
    assert "cpu float32, 2 threads, base, batch 1, label after" in text


def test_a_store_without_a_vanilla_subject_says_so():
    session = StoredSession("text", "", "2026-01-01T00:00:00+00:00", 1.0, (measurement(VARIANTS[0], 128, 1.0),))
    assert text_of(*race_tables(races_by_label([session]))) == [
        "nothing here was measured together with a vanilla subject, so there are no speed-ups"
    ]
