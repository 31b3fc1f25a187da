"""What is printed, drawn and written of breakdowns, from planted ones."""

import json
import math
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from rich.table import Table

from breakdowns import MS, component, encoder, of
from synthetic import ENVIRONMENT, failure
from tippingpoint.errors import AnswerError, InputError
from tippingpoint.machine import Peaks
from tippingpoint.measurement import Memory
from tippingpoint.report.breakdown import (
    METRICS,
    breakdown_chart,
    breakdown_lines,
    breakdown_table,
    breakdown_tables,
    draw,
    layers_chart,
    lengths_table,
    memory_table,
    split_fused,
    subjects_table,
)
from tippingpoint.report.records import plain

PEAKS = Peaks(flops_per_s=1e6, bytes_per_s=1e5)


def text_of(*found: RenderableType, width: int = 160) -> list[str]:
    console = Console(file=StringIO(), width=width, no_color=True, highlight=False)
    console.print(*found, sep="\n")
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def cells(line: str) -> list[str]:
    """The columns of a line; names have single spaces, and so has a number with its unit."""
    return re.split(r"\s{2,}", line.strip())


def below_title(table: Table, width: int = 160) -> list[str]:
    """The lines of a table from its heads on; a title that is wider than the table takes several lines before."""
    lines = text_of(table, width=width)
    return lines[next(place for place, line in enumerate(lines) if cells(line)[0] in ("part", "what")) :]


def row_of(lines: list[str], name: str) -> list[str]:
    """The cells behind the name of the one row that has it."""
    (found,) = [cells(line)[1:] for line in lines if cells(line)[0] == name]
    return found


# ---- one call


def test_the_table_is_a_tree_of_groups_and_parts_with_the_rest_below():
    table = breakdown_table(encoder(threads=2), ("latency",))
    assert table.title == "bert at 512 tokens: inference, cpu float32, 2 threads, base, batch 1"
    lines = below_title(table)
    assert cells(lines[0]) == ["part", "time", "share"]
    assert [cells(line) for line in lines[1:] if line] == [
        ["input", "1.00 ms", "0.8 %"],
        ["embedding", "1.00 ms", "0.8 %"],
        ["attention", "70.0 ms", "59 %"],
        ["QKV projections", "20.0 ms", "17 %"],
        ["fused attention", "40.0 ms", "34 %"],
        ["output projection", "10.0 ms", "8.5 %"],
        ["feed-forward", "36.0 ms", "31 %"],
        ["up", "16.0 ms", "14 %"],
        ["activation", "4.00 ms", "3.4 %"],
        ["down", "16.0 ms", "14 %"],
        # A group that is one part has no second line.
        ["norms and residuals", "2.00 ms", "1.7 %"],
        ["head", "2.00 ms", "1.7 %"],
        ["between operators", "5.00 ms", "4.2 %"],
        ["unexplained", "2.00 ms", "1.7 %"],
        ["whole call", "118 ms", "100 %"],
    ]
    # Parts stand further in than their groups.
    assert [line.startswith("  ") for line in lines[1:5]] == [False, True, False, True]


def test_groups_between_and_what_is_left_add_up_to_the_whole():
    lines = below_title(breakdown_table(encoder(training=True), ("latency",)))
    shown = {
        cells(line)[0]: float(cells(line)[-2].split()[0]) for line in lines[1:] if line and not line.startswith("  ")
    }
    whole = shown.pop("whole call")
    assert len(shown) == 9
    assert sum(shown.values()) == pytest.approx(whole, abs=0.5)


def test_what_was_explained_twice_is_shown_as_negative():
    found = of([component("head", "head", 1.25)], plain_s=[1.0] * 8)
    assert row_of(text_of(breakdown_table(found, ("latency",))), "unexplained") == ["-250 ms", "-25 %"]


def test_training_has_a_column_for_each_direction():
    lines = below_title(breakdown_table(encoder(training=True), ("latency",)))
    assert cells(lines[0]) == ["part", "forward", "backward", "optimizer", "time", "share"]
    assert row_of(lines, "up") == ["16.0 ms", "32.0 ms", "0", "48.0 ms", "14 %"]
    assert row_of(lines, "optimizer") == ["0", "0", "4.00 ms", "4.00 ms", "1.2 %"]
    assert row_of(lines, "between operators") == ["5.00 ms", "1.5 %"]
    assert row_of(lines, "whole call") == ["341 ms", "100 %"]
    # Numbers of the last columns stand below their heads all the same.
    ends = {len(line) for line in lines if line}
    assert len(ends) == 1


def test_arithmetic_has_its_share_of_what_the_machine_can_do():
    lines = below_title(breakdown_table(encoder(peaks=PEAKS), ("latency", "flops")))
    assert cells(lines[0]) == ["part", "time", "share", "FLOPs", "of peak", "bytes", "of bandwidth"]
    # 8,000 in 16 ms are half of a million in a second; 800 bytes in that time half of 100,000.
    assert row_of(lines, "up") == ["16.0 ms", "14 %", "8,000", "50 %", "800 B", "50 %"]
    assert row_of(lines, "activation") == ["4.00 ms", "3.4 %", "400 B", "100 %"]
    assert row_of(lines, "whole call")[2] == "26.0k"
    without = text_of(breakdown_table(encoder(), ("latency", "flops")))
    assert row_of(without, "up") == ["16.0 ms", "14 %", "8,000", "800 B"]


def test_bytes_that_are_not_known_are_left_out():
    found = of([component("head", "head", 1.0, bytes_accessed=None)], plain_s=[1.0] * 8, peaks=PEAKS)
    assert row_of(text_of(breakdown_table(found, ("latency", "flops"))), "head") == ["1.00 s", "100 %"]


def test_only_what_was_asked_for_is_shown():
    lines = below_title(breakdown_table(encoder(), ("memory", "parameters")))
    assert cells(lines[0]) == ["part", "held at peak", "parameters"]
    assert row_of(lines, "fused attention") == ["128 B"]
    assert row_of(lines, "up") == ["80"]
    assert row_of(lines, "embedding") == ["32.0 B", "500"]
    # Held: 32 of the embedding, and 64 and 128 in each layer.
    assert row_of(lines, "whole call") == ["416 B", "1,000"]
    assert not [line for line in lines if "unexplained" in line or "between operators" in line]


def test_layers_can_be_told_apart():
    lines = text_of(breakdown_table(encoder(), ("latency",), by_layer=True))
    assert row_of(lines, "layer 0, attention") == row_of(lines, "layer 1, attention") == ["35.0 ms", "30 %"]
    assert [cells(line) for line in lines if "fused attention" in line] == [
        ["fused attention", "20.0 ms", "17 %"]
    ] * 2
    assert row_of(lines, "layer 1, norms and residuals") == ["1.00 ms", "0.8 %"]
    assert row_of(lines, "input") == ["1.00 ms", "0.8 %"]


@pytest.mark.parametrize("metrics", [("latency",), ("flops",), METRICS, ("parameters", "latency")])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("by_layer", [False, True])
def test_every_line_fits_into_140_columns_and_nothing_is_cut(metrics, training, by_layer):
    found = encoder(training=training, peaks=PEAKS)
    table = breakdown_table(found, metrics, by_layer=by_layer)
    assert below_title(table, width=140) == below_title(table, width=1000)


# ---- fused attention, split by what it would be unfused


def test_fused_attention_is_shared_out_as_its_steps_are_unfused():
    # Unfused, steps take 6, 10 and 4 of 20.
    split = split_fused(encoder(), encoder("bert@eager", steps=True))
    assert [name for name, _ in split] == ["QK^T", "mask and softmax", "AV"]
    assert [seconds for _, seconds in split] == pytest.approx([12 * MS, 20 * MS, 8 * MS])
    lines = text_of(breakdown_table(encoder(), ("latency", "flops"), split=split))
    below = [cells(line) for line in lines[lines.index(next(line for line in lines if "fused" in line)) :]][1:4]
    assert below == [
        ["QK^T (as in unfused)", "12.0 ms", "10 %"],
        ["mask and softmax (as in unfused)", "20.0 ms", "17 %"],
        ["AV (as in unfused)", "8.00 ms", "6.8 %"],
    ]


def test_a_slower_unfused_attention_gives_the_same_shares():
    one, other = (split_fused(encoder(), encoder("bert@eager", steps=True, scale=scale)) for scale in (1.0, 3.0))
    assert [seconds for _, seconds in one] == pytest.approx([seconds for _, seconds in other])


def test_a_split_stands_in_the_right_columns_of_training():
    split = split_fused(encoder(training=True), encoder("bert@eager", training=True, steps=True))
    assert sum(seconds for _, seconds in split) == pytest.approx(120 * MS)
    head, *lines = below_title(breakdown_table(encoder(training=True), ("latency",), split=split))
    assert row_of(lines, "QK^T (as in unfused)") == ["36.0 ms", "11 %"]
    (line,) = [line for line in lines if "QK^T" in line]
    assert line.index("36.0 ms") > head.index("optimizer")


@pytest.mark.parametrize(
    ("fused", "unfused"),
    [(encoder("bert@eager", steps=True), encoder("bert@eager", steps=True)), (encoder(), encoder())],
    ids=["nothing fused", "nothing unfused"],
)
def test_there_is_nothing_to_share_out_where_one_side_has_no_such_parts(fused, unfused):
    assert split_fused(fused, unfused) == ()


# ---- several calls


def test_lengths_stand_beside_each_other_with_their_bounds():
    found = [encoder(length=512, threads=2), encoder(length=1024, scale=4.0, threads=2)]
    table = lengths_table(found)
    assert table.title == "bert: inference, cpu float32, 2 threads, base, batch 1"
    lines = below_title(table)
    assert cells(lines[0]) == ["part", "512 tokens", "1,024 tokens"]
    assert row_of(lines, "fused attention") == ["40.0 ms", "34 %", "160 ms", "67 %"]
    assert row_of(lines, "attention") == ["70.0 ms", "59 %", "190 ms", "80 %"]
    assert row_of(lines, "between operators") == ["5.00 ms", "4.2 %", "5.00 ms", "2.1 %"]
    assert row_of(lines, "unexplained") == ["2.00 ms", "1.7 %", "2.00 ms", "0.8 %"]
    assert row_of(lines, "whole call") == ["118 ms", "238 ms"]
    assert row_of(lines, "adds up to") == ["0.983", "0.992"]
    assert row_of(lines, "give or take") == ["+-0.0 %", "+-0.0 %"]
    assert row_of(lines, "watching added") == ["10 %", "10 %"]
    assert row_of(lines, "if attention were free") == ["1.51x", "3.05x"]
    assert row_of(lines, "and its projections too") == ["2.46x", "4.96x"]
    assert not [line for line in lines if cells(line)[0] == "head" and line.startswith("  ")]


def test_a_part_that_one_side_lacks_leaves_its_cell_empty():
    table = subjects_table([encoder(), encoder("bert@eager", steps=True, scale=2.0)])
    assert table.title == "Side by side at 512 tokens: inference, cpu float32, 2 threads, base, batch 1"
    assert heads_of(table) == ["part", "bert", "bert@eager"]
    lines = below_title(table)
    (fused,) = [line for line in lines if "fused attention" in line]
    (scores,) = [line for line in lines if "QK^T" in line]
    end = lines[0].index("bert") + len("bert")
    assert fused.index("34 %") < end < scores.index("24.0 ms")
    assert cells(scores)[1:] == ["24.0 ms", "15 %"]
    assert row_of(lines, "whole call") == ["118 ms", "158 ms"]
    assert row_of(lines, "speed-up over the first") == ["1.00x", "0.75x"]


def heads_of(table: Table) -> list[str]:
    return [str(column.header).replace("\n", " ") for column in table.columns]


def test_long_names_of_subjects_take_several_lines_and_all_of_them_fit():
    subject = "bert@local:window=128,num_global=2+reuse:mode=map"
    table = subjects_table([encoder(subject), encoder()])
    assert heads_of(table) == ["part", "bert @local num_global=2 window=128 +reuse mode=map", "bert"]
    assert max(map(len, text_of(table, width=1000))) <= 100


# Fails: intervals are so wide that names of parts are folded.
def test_many_subjects_beside_each_other_have_their_times_alone():
    variants = ("", "@eager", "@local", "@nystrom", "@linear", "@pooled", "@heads", "@linformer")
    lines = below_title(subjects_table([encoder(f"bert{variant}") for variant in variants]), width=140)
    assert row_of(lines, "fused attention") == ["40.0 ms"] * 8
    assert row_of(lines, "speed-up over the first") == ["1.00x"] * 8
    assert row_of(lines, "norms and residuals") == ["2.00 ms"] * 8


def titles(found, metrics=("latency",), **options) -> list[str]:
    return [str(table.title) for table in breakdown_tables(found, metrics, **options)]


def test_each_subject_has_its_lengths_and_its_longest_in_detail():
    found = [encoder(subject, length) for subject in ("bert", "bert@eager") for length in (512, 1024)]
    heads = [title.split(": inference")[0] for title in titles(found)]
    assert heads == [
        "bert",
        "bert at 1,024 tokens",
        "bert@eager",
        "bert@eager at 1,024 tokens",
        "Side by side at 1,024 tokens",
    ]


def test_phases_are_not_mixed():
    found = [encoder(), encoder("bert@eager"), encoder(training=True)]
    shown = titles(found)
    assert [title for title in shown if title.startswith("Side by side")] == [shown[-1]]
    assert "inference" in shown[-1]
    assert [title for title in shown if "training" in title] == [
        "bert at 512 tokens: training, cpu float32, 2 threads, base, batch 1"
    ]


def test_one_call_has_one_table_and_memory_another_where_it_was_asked_for():
    assert len(titles([encoder()])) == 1
    memory = Memory(peak_bytes=1000, weights_bytes=10, method="planted")
    with_memory = titles([encoder(memory=memory)], ("memory",))
    assert len(with_memory) == 2
    assert with_memory[1].startswith("At the peak of memory: bert at 512 tokens")


def test_splits_are_shown_with_the_call_that_they_belong_to():
    found = [encoder(), encoder("bert@local")]
    splits = {found[0].workload: split_fused(encoder(), encoder("bert@eager", steps=True))}
    texts = ["\n".join(text_of(table)) for table in breakdown_tables(found, ("latency",), splits=splits)]
    assert ["as in unfused" in text for text in texts] == [True, False, False]


# ---- memory


def test_the_peak_of_memory_is_shared_out_among_who_made_it():
    memory = Memory(
        peak_bytes=100 * 1024, weights_bytes=50 * 1024, inputs_bytes=1024, optimizer_bytes=20 * 1024, method="planted"
    )
    parts = [
        component("attention", "AV", 1.0, layer=0, held_bytes=4 * 1024),
        component("attention", "AV", 1.0, layer=1, held_bytes=6 * 1024),
        component("head", "head", 1.0, held_bytes=2 * 1024),
        component("loss", "loss", 1.0),
    ]
    found = of(parts, plain_s=[4.0] * 8, memory=memory, gradients_bytes=12 * 1024)
    assert [cells(line) for line in below_title(memory_table(found)) if line] == [
        ["what", "bytes", "share"],
        ["weights", "50.0 KiB", "50 %"],
        ["inputs", "1.00 KiB", "1.0 %"],
        ["optimizer state", "20.0 KiB", "20 %"],
        ["gradients of parameters", "12.0 KiB", "12 %"],
        ["made by attention: AV", "10.0 KiB", "10 %"],
        ["made by head", "2.00 KiB", "2.0 %"],
        ["workspace of operators, and the rest", "5.00 KiB", "5.0 %"],
        ["peak", "100 KiB", "100 %"],
    ]


def test_more_than_the_peak_is_shown_as_too_much():
    memory = Memory(peak_bytes=1000, weights_bytes=900, method="planted")
    found = of([component("head", "head", 1.0, held_bytes=300)], plain_s=[1.0] * 8, memory=memory)
    lines = text_of(memory_table(found))
    assert row_of(lines, "workspace of operators, and the rest") == ["-200 B", "-20 %"]
    assert not [line for line in lines if line.startswith(("inputs", "optimizer", "gradients"))]


# ---- lines


def test_lines_say_how_well_it_adds_up_what_ran_and_what_could_be_had():
    assert breakdown_lines([encoder(notes=("it is planted",))]) == [
        "bert at 512 tokens: parts add up to 0.983 of a plain call (95 % 0.983 to 0.983, 8 rounds); watching added "
        "10 % to a call",
        "if attention were free, bert at 512 tokens would be 1.51 times as fast, and 2.46 times if its projections "
        "were free too: no attention variant can give more here",
        "bert: attention ran as sdpa",
        "bert: it is planted",
    ]


def test_warnings_and_failures_are_said_and_nothing_twice():
    doubtful = of([component("head", "head", 0.7)], plain_s=[1.0] * 8, between_s=[0.3] * 8, subject="vit", length=224)
    lines = breakdown_lines([encoder(), failure("bert", 8192), encoder(length=1024), doubtful])
    assert len(lines) == len(set(lines))
    assert lines.count("bert: attention ran as sdpa") == 1
    assert [line for line in lines if line.startswith("warning: ")] == [
        "warning: vit at 224 px: 30 % of the time passes between operators: torch.compile or larger batches would "
        "help more than another attention"
    ]
    assert lines[-1] == f"failed: {failure('bert', 8192).workload}: not enough memory"


# ---- JSON


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def test_a_record_is_complete_and_nothing_in_it_is_infinite():
    memory = Memory(peak_bytes=1000, weights_bytes=900, method="planted")
    found = encoder(training=True, peaks=PEAKS, memory=memory, gradients_bytes=7, notes=("one",))
    record = json.loads(json.dumps(plain(found), allow_nan=False))
    assert finite(record)
    assert record["status"] == "ok"
    assert record["workload"]["subject"] == "bert"
    assert record["fingerprint"] == ENVIRONMENT.fingerprint
    assert record["environment"]["cpu_model"] == "Imaginary 9000"
    assert record["whole_s"] == pytest.approx(341 * MS)
    assert record["closure"] == pytest.approx(339 / 341)
    assert record["closure_interval"] == pytest.approx([339 / 341] * 2)
    assert record["overhead"] == pytest.approx(0.1)
    assert record["kept"] == list(found.kept)
    assert record["most_speed_up"] == pytest.approx(341 / 221)
    assert record["most_speed_up_with_projections"] == pytest.approx(341 / 131)
    assert (record["gradients_bytes"], record["memory"]["peak_bytes"], record["notes"]) == (7, 1000, ["one"])
    assert len(record["components"]) == len(found.components)
    assert all(len(each["seconds"]) == len(record["plain_s"]) for each in record["components"])
    for rows in (record["rows"], record["groups"]):
        total = sum(sum(row["seconds"].values()) for row in rows)
        assert total + record["between_operators_s"] + record["unexplained_s"] == pytest.approx(record["whole_s"])
    assert {row["group"] for row in record["groups"]} == {each["group"] for each in record["components"]}


def test_a_record_of_a_model_that_is_all_attention_is_finite_too():
    record = plain(of([component("attention", "AV", 1.0, bytes_accessed=None)], plain_s=[1.0] * 8))
    assert finite(record)
    assert record["rows"][0]["bytes_accessed"] is None
    assert record["memory"] is None


# ---- figures


def panels_of(spec: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Of each subject's column: time, share, bound."""
    return [column["vconcat"] for column in spec["hconcat"]]


def written(title: dict[str, Any]) -> str:
    """A title, whose text may stand in several lines."""
    text = title["text"]
    return text if isinstance(text, str) else " ".join(text)


def rows_of(spec: dict[str, Any], panel: dict[str, Any]) -> list[dict[str, Any]]:
    data = panel["data"]
    return data["values"] if "values" in data else spec["datasets"][data["name"]]


SEVERAL = [
    encoder(subject, length, scale=scale, steps=subject == "bert@eager")
    for subject in ("bert", "bert@eager")
    for length, scale in ((512, 1.0), (1024, 4.0), (2048, 16.0))
]


def test_a_figure_has_a_column_for_each_subject_and_a_bar_for_each_length():
    spec = breakdown_chart(SEVERAL).to_dict()
    columns = panels_of(spec)
    assert len(columns) == 2
    assert [written(column[0]["title"]) for column in columns] == ["bert", "bert@eager"]
    for column, subject in zip(columns, ("bert", "bert@eager"), strict=True):
        for panel in column[:2]:
            rows = rows_of(spec, panel)
            assert {row["subject"] for row in rows} == {subject}
            assert {row["length"] for row in rows} == {"512", "1,024", "2,048"}
            assert panel["encoding"]["x"]["scale"]["domain"] == ["512", "1,024", "2,048"]
            assert panel["encoding"]["x"]["sort"] == ["512", "1,024", "2,048"]
    assert "Where the time goes in inference" in json.dumps(spec["title"])


def test_bars_are_as_high_as_calls_are_long_but_for_what_is_unexplained():
    spec = breakdown_chart(SEVERAL).to_dict()
    absolute, share, _ = panels_of(spec)[0]
    bar = [row for row in rows_of(spec, absolute) if row["length"] == "1,024"]
    # In milliseconds, as all of them take less than a second.
    assert sum(row["time"] for row in bar) == pytest.approx(116 + 3 * 40)
    assert sum(row["share"] for row in bar) == pytest.approx((116 + 120) / (118 + 120))
    highest = max(
        sum(row["time"] for row in rows_of(spec, column[0]) if row["length"] == length)
        for column in panels_of(spec)
        for length in ("512", "1,024", "2,048")
    )
    domains = [column[0]["encoding"]["y"]["scale"]["domain"] for column in panels_of(spec)]
    assert domains[0] == domains[1]
    assert domains[0][0] == 0
    assert highest <= domains[0][1] < 1.2 * highest
    assert share["encoding"]["y"]["scale"]["domain"][0] == 0


def test_parts_are_stacked_in_the_order_of_a_forward_pass_in_every_bar():
    spec = breakdown_chart(SEVERAL).to_dict()
    order = [
        "QKV projections",
        "fused attention",
        "output projection",
        "feed-forward: up",
        "feed-forward: activation",
        "feed-forward: down",
        "norms and residuals",
        "head",
    ]
    places: dict[str, int] = {}
    for column in panels_of(spec):
        for row in rows_of(spec, column[0]):
            assert places.setdefault(row["part"], row["place"]) == row["place"]
    shown = sorted(places, key=lambda part: places[part])
    assert [part for part in shown if part in order] == order
    assert shown[-1] == "between operators"
    assert {"QK^T", "mask and softmax", "AV"} <= set(shown)
    # The legend reads from the top of a bar to its foot, with a colour of its own for each part.
    scale = panels_of(spec)[0][0]["encoding"]["color"]["scale"]
    assert scale["domain"] == shown[::-1]
    assert len(set(scale["range"])) == len(scale["range"]) == len(shown)
    assert panels_of(spec)[0][0]["encoding"]["order"]["field"] == "place"


def test_parts_are_stacked_so_in_whatever_order_they_ran():
    planted = encoder()
    turned = of(planted.components[::-1], plain_s=planted.plain_s, between_s=planted.between_s)
    specs = [breakdown_chart([each]).to_dict() for each in (planted, turned)]
    stacks = [{row["part"].partition(":")[0]: row["place"] for row in rows_of(s, panels_of(s)[0][0])} for s in specs]
    groups = [sorted(stack, key=lambda name: stack[name])[-5:] for stack in stacks]
    last = ["feed-forward", "norms and residuals", "head", "smaller parts", "between operators"]
    assert groups[0] == groups[1] == last


def test_parts_too_small_to_see_are_one():
    parts = [
        component("head", "head", 0.98),
        component("input", "embedding", 0.004),
        component("loss", "loss", 0.006),
    ]
    spec = breakdown_chart([of(parts, plain_s=[1.0] * 8)]).to_dict()
    rows = {row["part"]: row["time"] for row in rows_of(spec, panels_of(spec)[0][0])}
    assert rows == pytest.approx({"head": 980.0, "smaller parts": 10.0})


def test_a_part_that_is_large_at_one_length_is_shown_at_all():
    short = of([component("head", "head", 1.0), component("attention", "AV", 0.001)], plain_s=[1.001] * 8, length=128)
    long = of([component("head", "head", 1.0), component("attention", "AV", 1.0)], plain_s=[2.0] * 8, length=4096)
    spec = breakdown_chart([short, long]).to_dict()
    rows = rows_of(spec, panels_of(spec)[0][0])
    assert {(row["part"], row["length"]) for row in rows} == {
        (p, n) for p in ("head", "AV") for n in ("128", "4,096")
    }
    # Seconds, as one of them takes two.
    assert max(row["time"] for row in rows) == pytest.approx(1.0)


def test_parts_of_one_name_in_two_groups_are_told_apart():
    parts = [component("attention", "gate", 0.5), component("my mixer", "gate", 0.5)]
    spec = breakdown_chart([of(parts, plain_s=[1.0] * 8)]).to_dict()
    assert {row["part"] for row in rows_of(spec, panels_of(spec)[0][0])} == {"attention: gate", "my mixer: gate"}


def test_the_bound_is_drawn_with_and_without_projections():
    spec = breakdown_chart(SEVERAL).to_dict()
    bound = panels_of(spec)[0][2]
    rows = {(row["length"], row["kind"]): row["speed-up"] for row in rows_of(spec, bound)}
    assert len(rows) == 2 * 3
    free, too = sorted({kind for _, kind in rows}, key=lambda kind: rows["512", kind])
    assert rows["512", free] == pytest.approx(118 / 78)
    assert rows["512", too] == pytest.approx(118 / 48)
    assert max(rows.values()) < bound["encoding"]["y"]["scale"]["domain"][1]


def test_layers_are_a_strip_for_each_subject_at_its_longest():
    spec = layers_chart(SEVERAL).to_dict()
    names = [written(panel["title"]) for panel in spec["hconcat"]]
    assert names == ["bert 2,048 tokens", "bert@eager 2,048 tokens"]
    rows = rows_of(spec, spec["hconcat"][0])
    times = {(row["layer"], row["part"]): row["milliseconds"] for row in rows}
    assert len(times) == 2 * 7
    assert times[1, "attention: fused attention"] == pytest.approx(16 * 20)
    assert times[0, "norms and residuals"] == pytest.approx(1)
    domains = {json.dumps(panel["encoding"]["color"]["scale"]["domain"]) for panel in spec["hconcat"]}
    assert len(domains) == 1
    assert "Time by layer in inference" in json.dumps(spec["title"])


def test_without_layers_or_calls_there_is_nothing_to_draw():
    with pytest.raises(AnswerError, match="no layers were found in the model"):
        layers_chart([of([component("head", "head", 1.0)], plain_s=[1.0] * 8)])
    with pytest.raises(AnswerError, match="nothing was broken down"):
        breakdown_chart([])


@pytest.mark.parametrize("by_layer", [False, True])
def test_figures_are_written_as_their_names_end(tmp_path: Path, by_layer: bool):
    draw(SEVERAL, tmp_path / "parts.svg", by_layer=by_layer)
    picture = (tmp_path / "parts.svg").read_text()
    assert picture.startswith("<svg")
    for word in ("@eager", "norms and residuals", "QK^T"):
        assert word in picture
    draw(SEVERAL, tmp_path / "parts.json", by_layer=by_layer)
    assert json.loads((tmp_path / "parts.json").read_text())["hconcat"]
    with pytest.raises(InputError, match="a figure's file must end in one of"):
        draw(SEVERAL, tmp_path / "parts.gif", by_layer=by_layer)


def test_training_is_drawn_with_its_loss_and_optimizer():
    spec = breakdown_chart([encoder(training=True)]).to_dict()
    rows = {row["part"]: row["time"] for row in rows_of(spec, panels_of(spec)[0][0])}
    assert rows["optimizer"] == pytest.approx(4)
    assert rows["feed-forward: up"] == pytest.approx(48)
    assert "training" in json.dumps(spec["title"])
