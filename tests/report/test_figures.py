import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

import altair as alt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from batch_maps import LENGTHS, crossing_at, lost, seen, tip
from tippingpoint.analysis.batch_map import BatchMap, batch_map
from tippingpoint.errors import AnswerError, InputError
from tippingpoint.report import figures
from tippingpoint.report.batch_map import batch_map_chart, batch_rows_table
from tippingpoint.report.figures import DIVERGING, FORMATS, THEME, length_ticks, save
from tippingpoint.workload import Subject

FIRST_BYTES = {"svg": b"<svg", "png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-", "html": b"<!DOCTYPE html>", "json": b"{"}


@functools.cache
def everything() -> BatchMap:
    """A map on which everything occurs that can: crossings, memory that ran out, nothing at all, nothing certain."""
    return batch_map(
        [
            crossing_at(1, 1960),
            crossing_at(4, 900),
            tip(8, [seen(128, 0.5), seen(512, 2), lost(2048, 1), lost(8192, 1)], (200, 256, 300)),
            tip(16, [seen(128, 0.5), lost(512, -1)], verdict="never"),
            tip(32, [seen(length, 1.0) for length in LENGTHS]),
            tip(64, []),
        ]
    )


@pytest.fixture(scope="module")
def chart() -> alt.LayerChart:
    return batch_map_chart(everything())


@pytest.fixture(scope="module")
def spec(chart: alt.LayerChart) -> dict[str, Any]:
    return chart.to_dict()


def layers_of(spec: Mapping[str, Any], kind: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Every layer of a kind of mark with its rows."""
    for layer in spec["layer"]:
        if layer["mark"]["type"] == kind:
            yield layer, spec["datasets"][layer["data"]["name"]]


def test_every_batch_size_is_a_row_the_largest_on_top(spec):
    (layer, rows), *_ = layers_of(spec, "text")
    assert layer["encoding"]["y"]["scale"]["domain"] == [64, 32, 16, 8, 4, 1]
    assert {row["batch_size"]: row["label"] for row in rows} == {
        1: "1,960 tokens (1,867 to 2,058)",
        4: "900 tokens (857 to 945)",
        8: "256 tokens (200 to 300)",
        16: "never (up to 512 tokens)",
        32: "undecided (up to 8,192 tokens)",
        64: "nothing compared",
    }


def test_lengths_are_logarithmic_in_their_native_unit(spec):
    (layer, _), *_ = layers_of(spec, "point")
    x = layer["encoding"]["x"]
    assert (x["scale"]["type"], x["title"]) == ("log", "input length (tokens)")
    low, high = x["scale"]["domain"]
    assert 0.9 * 128 < low < 128
    assert 8192 < high < 8192 / 0.9
    assert x["axis"]["values"] == [128, 256, 512, 1024, 2048, 4096, 8192]


def test_no_cell_is_lost(spec):
    drawn = [row for _, rows in layers_of(spec, "rect") for row in rows]
    cells = everything().cells
    assert {(row["batch_size"], row["length"]): row["ratio"] for row in drawn} == {
        (cell.batch_size, cell.length): cell.ratio for cell in cells
    }
    assert len(drawn) == len(cells)
    assert all(row["start"] <= row["length"] <= row["end"] for row in drawn)


def test_a_mark_says_without_colour_who_is_better_at_every_measured_length(spec):
    ((layer, rows),) = layers_of(spec, "point")
    said = {(row["batch_size"], row["length"]): row["mark"] for row in rows}
    better = {"variant": "variant better", "baseline": "baseline better", "undecided": "undecided (hatched)"}
    assert {place: mark for place, mark in said.items() if mark != "tipping point"} == {
        (cell.batch_size, cell.length): f"{cell.out_of_memory} out of memory"
        if cell.out_of_memory
        else better[cell.winner]
        for cell in everything().cells
        if cell.measured
    }
    scale = layer["encoding"]["shape"]["scale"]
    assert scale["domain"] == [
        "variant better",
        "baseline better",
        "undecided (hatched)",
        "tipping point",
        "baseline out of memory",
        "variant out of memory",
    ]
    assert len(set(scale["range"])) == len(scale["domain"])


def test_the_legend_has_only_the_marks_that_occur():
    spec = batch_map_chart(batch_map([tip(1, [seen(512, 2.0)], verdict="always")])).to_dict()
    ((layer, _),) = layers_of(spec, "point")
    assert layer["encoding"]["shape"]["scale"]["domain"] == ["variant better"]


def test_the_legend_explains_hatching_between_measured_lengths():
    spec = batch_map_chart(batch_map([tip(1, [seen(128, 0.5), seen(8192, 2.0)])])).to_dict()
    ((layer, rows),) = layers_of(spec, "point")
    assert "undecided (hatched)" not in {row["mark"] for row in rows}
    assert "undecided (hatched)" in layer["encoding"]["shape"]["scale"]["domain"]


def test_tipping_points_have_their_intervals_and_a_line_that_breaks_where_there_is_none():
    rows = [crossing_at(1, 1000), crossing_at(2, 900), tip(4, [seen(512, 1.0)]), crossing_at(8, 700)]
    spec = batch_map_chart(batch_map(rows)).to_dict()
    ((layer, line),) = layers_of(spec, "line")
    assert layer["encoding"]["detail"]["field"] == "run"
    assert [(row["batch_size"], row["length"], row["run"]) for row in line] == [
        (1, 1000, 0),
        (2, 900, 0),
        (8, 700, 1),
    ]
    bars = [bar for layer, bar in layers_of(spec, "rule") if layer["encoding"]["x"]["field"] == "low"]
    assert len(bars) == 2  # the white halo, and the bar
    for bar in bars:
        assert [(row["low"], row["high"]) for row in bar] == [(n / 1.05, n * 1.05) for n in (1000, 900, 700)]


@pytest.mark.parametrize(
    ("ratios", "reach", "beyond"),
    [
        ((1.0,), 1.25, False),
        ((0.9, 1.1), 1.25, False),
        ((0.7, 1.2), 1.5, False),
        ((1.1, 1.9), 2, False),
        ((0.3, 1.0), 4, False),
        ((0.3, 7.0), 8, False),
        ((0.1, 1.0), 16, False),
        ((0.01, 1.0), 16, True),
        ((0.5, 100.0), 16, True),
    ],
)
def test_colours_are_logarithmic_and_1_is_in_their_middle(ratios, reach, beyond):
    points = [seen(128 * 2**number, ratio) for number, ratio in enumerate(ratios)]
    spec = batch_map_chart(batch_map([tip(1, points)])).to_dict()
    (color,) = [layer["encoding"]["color"] for layer, _ in layers_of(spec, "rect") if "color" in layer["encoding"]]
    scale, legend = color["scale"], color["legend"]
    assert (scale["type"], scale["range"], scale["clamp"]) == ("log", list(DIVERGING), True)
    assert scale["domain"] == pytest.approx([reach ** (step / 3) for step in range(-3, 4)])
    assert scale["domain"][3] == 1
    assert [legend["values"][0], legend["values"][-1]] == [scale["domain"][0], scale["domain"][-1]]
    assert 1 in legend["values"]
    # A ratio farther away than the colours reach is not passed off as the last one.
    assert ("'>'" in legend["labelExpr"]) == beyond


def test_the_title_says_what_is_shown_and_the_subtitle_how_the_tipping_point_moves(spec):
    assert spec["title"]["text"] == ["bert@local:window=128 against bert: latency, inference, cpu"]
    assert " ".join(spec["title"]["subtitle"]) == everything().trend.split(". ")[0]
    assert all(len(line) <= 90 for line in spec["title"]["subtitle"])


def test_a_long_title_is_broken_between_words_and_variants():
    variant = Subject.parse(
        "bert@local:window=128+nystrom:landmarks=256,iterations=6+reuse:group=3,mode=auto,whole=no"
    )
    chart = batch_map_chart(batch_map([tip(1, [seen(512, 1.0)], variant=variant)]))
    lines = chart.to_dict()["title"]["text"]
    assert len(lines) > 1
    assert all(len(line) <= 72 for line in lines)
    assert all(line.endswith("+") or after.startswith("against") for line, after in itertools.pairwise(lines))
    assert "".join(lines).replace("against", " against") == f"{variant} against bert: latency, inference, cpu"


def test_hatching_covers_what_is_undecided_and_nothing_else():
    found = batch_map(
        [tip(1, [seen(length, 1.0) for length in LENGTHS]), tip(2, [seen(length, 2.0) for length in LENGTHS])]
    )
    spec = batch_map_chart(found).to_dict()
    ((_, lines),) = [
        (layer, rows) for layer, rows in layers_of(spec, "rule") if layer["encoding"]["x"]["field"] == "start"
    ]
    assert {line["batch_size"] for line in lines} == {1}
    assert all(128 <= line["start"] < line["end"] <= 8192 for line in lines)
    assert len(lines) > 50


@pytest.mark.parametrize(
    ("subject", "lengths", "title"),
    [
        ("hubert", (0.5, 32.0), "audio length (seconds)"),
        ("vit", (224, 512), "image side (pixels)"),
        ("bert", (512,), "input length (tokens)"),
    ],
)
def test_every_unit_can_be_drawn(subject, lengths, title):
    baseline, variant = Subject.parse(subject), Subject.parse(f"{subject}@local")
    points = [seen(length, 1.5) for length in lengths]
    found = batch_map([tip(size, points, baseline=baseline, variant=variant) for size in (1, 8)])
    ((layer, rows),) = layers_of(batch_map_chart(found).to_dict(), "point")
    assert layer["encoding"]["x"]["title"] == title
    assert layer["encoding"]["x"]["axis"]["values"]
    assert {row["length"] for row in rows} == set(lengths)


def test_a_map_of_memory_alone_can_be_drawn(tmp_path):
    save(batch_map_chart(batch_map([tip(1, [lost(512, 1), lost(1024, 1)])])), tmp_path / "map.svg")


def test_a_map_without_any_comparison_is_not_drawn():
    with pytest.raises(AnswerError, match="no length could be compared at any batch size"):
        batch_map_chart(batch_map([tip(1, []), tip(8, [])]))


@pytest.mark.parametrize("unit", ["tokens", "seconds", "pixels"])
@given(low=st.floats(0.05, 1000), factor=st.floats(1.01, 1000))
def test_ticks_are_round_lengths_within_the_axis(unit, low, factor):
    ticks = length_ticks(low, low * factor, unit)
    assert ticks == sorted(set(ticks))
    assert all(low <= tick <= low * factor for tick in ticks)
    assert len(ticks) >= 3 or factor < 3
    assert len(ticks) < 16


def test_all_figures_share_one_look(spec):
    config = spec["config"]
    assert {**config, "view": {**config["view"], **THEME["view"]}} == {**THEME, "view": config["view"]}


@pytest.mark.parametrize("ending", FORMATS)
def test_a_figure_is_written_as_its_name_ends(chart, ending, tmp_path):
    path = tmp_path / f"map.{ending.upper() if ending == 'png' else ending}"
    path.write_text("an older figure")
    save(chart, path)
    assert path.read_bytes().startswith(FIRST_BYTES[ending])
    assert list(tmp_path.iterdir()) == [path]


def test_a_drawing_holds_its_title_as_text(chart, tmp_path):
    save(chart, tmp_path / "map.svg")
    drawn = (tmp_path / "map.svg").read_text()
    for text in (
        "bert@local:window=128 against bert: latency, inference, cpu",
        "nothing compared",
        "batch size",
        "1x",
    ):
        assert f">{text}<" in drawn


def test_a_page_needs_no_network(chart, tmp_path):
    save(chart, tmp_path / "map.html")
    page = (tmp_path / "map.html").read_text()
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
    assert "cdn" not in page.lower()


def test_a_specification_can_be_read_again(chart, tmp_path):
    save(chart, tmp_path / "map.json")
    assert json.loads((tmp_path / "map.json").read_text())["title"] == chart.to_dict()["title"]


def test_an_ending_that_is_no_format_is_refused_before_anything_is_drawn(chart, tmp_path):
    for name in ("map.jpeg", "map", "svg"):
        with pytest.raises(
            InputError, match=r"must end in one of \.svg, \.png, \.pdf, \.html, \.json, got '.*" + name
        ):
            save(chart, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_not_made(chart, tmp_path):
    with pytest.raises(InputError, match=r"the folder '.*nowhere' does not exist; create it"):
        save(chart, tmp_path / "nowhere" / "map.svg")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_replaced_stays_and_nothing_is_left_behind(chart, tmp_path):
    (tmp_path / "map.svg").mkdir()
    with pytest.raises(InputError, match=r"'.*map.svg' cannot be written: "):
        save(chart, tmp_path / "map.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["map.svg"]


def test_a_figure_that_fails_leaves_the_older_one_alone(chart, tmp_path, monkeypatch):
    path = tmp_path / "map.svg"
    path.write_text("an older figure")

    def fail(*_: object) -> bytes:
        raise RuntimeError("the renderer broke")

    monkeypatch.setattr(figures, "_rendered", fail)
    with pytest.raises(RuntimeError, match="the renderer broke"):
        save(chart, path)
    assert path.read_text() == "an older figure"


def text_of(found: BatchMap) -> list[str]:
    console = Console(file=StringIO(), width=140)
    console.print(batch_rows_table(found))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_the_table_has_a_row_for_every_batch_size():
    title, _, *rows = text_of(everything())
    assert title.strip() == "bert@local:window=128 against bert: latency, inference, cpu"
    assert [re.split(r"\s{2,}", row.strip()) for row in rows] == [
        ["1", "crosses", "1,960 tokens", "1,867 to 2,058", "1,960", "1,960"],
        ["4", "crosses", "900 tokens", "857 to 945", "900", "3,600"],
        ["8", "crosses", "256 tokens", "200 to 300", "256", "2,048"],
        ["16", "never (up to 512 tokens)"],
        ["32", "undecided (up to 8,192 tokens)"],
        ["64", "nothing compared"],
    ]


def test_positions_are_those_of_the_modality():
    baseline, variant = Subject.parse("hubert"), Subject.parse("hubert@local:window=50")
    point = tip(4, [seen(1.0, 0.5), seen(32.0, 2.0)], (9.0, 10.0, 11.0), baseline=baseline, variant=variant)
    assert re.split(r"\s{2,}", text_of(batch_map([point]))[-1].strip()) == [
        "4",
        "crosses",
        "10.0 s",
        "9.00 to 11.0",
        "499",
        "1,996",
    ]
