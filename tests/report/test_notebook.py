"""What a notebook shows of every record: HTML that parses, says the numbers, and lets nothing in."""

from __future__ import annotations

import base64
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import tippingpoint
from batch_maps import crossing_at, lost, seen, tip
from breakdowns import encoder
from synthetic import ENVIRONMENT, failure, measurement, workload
from tippingpoint.analysis.batch_map import batch_map
from tippingpoint.analysis.compare import compare
from tippingpoint.analysis.prediction import CostEstimate, PredictedTippingPoint, Prediction
from tippingpoint.analysis.recommend import recommend_from
from tippingpoint.data import LengthData
from tippingpoint.report import notebook
from tippingpoint.report.grids import Grid, grid_of
from tippingpoint.report.notebook import as_html, table_html
from tippingpoint.report.tables import plain_table
from tippingpoint.store import Store
from tippingpoint.workload import Subject

BERT, LOCAL = Subject.parse("bert"), Subject.parse("bert@local:window=128")
EVIL = "<script>alert(1)</script><img src=x onerror=\"alert('x')\">&"
_VOID = {"img", "br"}
_SVG = re.compile(r'src="data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)"')


class Reader(HTMLParser):
    """Reads a page, insists on balanced tags and collects what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @classmethod
    def of(cls, html: str) -> Reader:
        reader = cls()
        reader.feed(html)
        reader.close()
        assert reader.open == []
        return reader

    @property
    def text(self) -> str:
        return "\n".join(self.words)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def figures(html: str) -> list[str]:
    return [base64.b64decode(data).decode() for data in _SVG.findall(html)]


def outcomes(scale: float = 1.0):
    """Two subjects that cross at 1,000 tokens, and one that ran out of memory."""
    generator = np.random.default_rng(0)
    costs = {BERT: lambda n: 1e-5 * n * (1 + n / 1000), LOCAL: lambda n: 2e-5 * n}
    return [
        measurement(subject, n, scale * cost(n) * np.exp(0.01 * generator.standard_normal(8)), session=f"{n}-0")
        for n in (128, 512, 2048, 4096)
        for subject, cost in costs.items()
    ] + [failure("bert@eager", 8192, message="it needs 24 GiB")]


def documents() -> LengthData:
    return LengthData.of([100, 200, 200, 900, 3000], modality="text", method="given by a test")


def prediction() -> Prediction:
    estimate = CostEstimate(
        subject=BERT,
        length=2048,
        positions=2048,
        executed_positions=2048,
        basis="extrapolated",
        latency_s=0.125,
        latency_interval_s=(0.1, 0.15),
        peak_bytes=None,
        peak_interval=None,
        flops=1e9,
        shares={"linear": 1.0},
    )
    point = PredictedTippingPoint(
        baseline=BERT,
        variant=LOCAL,
        metric="latency",
        basis="extrapolated",
        length=1234.0,
        interval=(1000.0, 1500.0),
        horizon=(128.0, 8192.0),
        unit="tokens",
    )
    return Prediction(
        workload=workload("bert", 128),
        environment=ENVIRONMENT,
        estimates=(estimate,),
        models={},
        tipping_points=(point,),
        profile=None,
        notes=("a note",),
    )


def recommendation():
    return recommend_from(documents(), outcomes(), ENVIRONMENT, baselines=(BERT,), variants=(LOCAL,))


# Of each type: a record, words that its HTML must have, and how many figures.
RECORDS = {
    "Measurement": (lambda: measurement("bert", 512, 0.125), ("bert at length 512", "125 ms", "100 MiB", "1.00M"), 0),
    "Failure": (lambda: failure("bert", 512, message="it needs 24 GiB"), ("out of memory", "it needs 24 GiB"), 0),
    "TippingPoint": (lambda: crossing_at(1, 900), ("900 tokens", "857 tokens", "0.377x", "3.02x"), 1),
    "TippingPoint that lost one": (
        lambda: tip(8, [seen(128, 0.5), seen(512, 2), lost(2048, 1)], (200, 256, 300)),
        ("256 tokens", "baseline out of memory"),
        1,
    ),
    "TippingPoint of one length": (lambda: tip(1, [seen(128, 0.5)]), ("0.5x", "the only length measured"), 1),
    "BatchMap": (lambda: batch_map([crossing_at(1, 1960), crossing_at(4, 900)]), ("1,960 tokens", "3,600"), 1),
    "Recommendation": (recommendation, ("use bert", "candidate", "quality is not measured here"), 1),
    "Breakdown": (encoder, ("fused attention", "40.0 ms", "34 %", "if attention were free"), 1),
    "LengthData": (documents, ("Lengths of 5 documents", "3,000 tokens", "given by a test"), 1),
    "LengthData of one length": (
        lambda: LengthData.of([7], modality="text"),
        ("Lengths of 1 documents", "7 tokens", "100 %"),
        1,
    ),
    "Comparison": (lambda: compare(outcomes(), outcomes(2.0)), ("slower", "2.000", "Failures", "out of memory"), 0),
    "Prediction": (prediction, ("2,048 tokens", "125 ms", "1,234 tokens", "a note"), 0),
}


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_shows_its_numbers_in_tables_that_a_reader_can_be_told(name):
    make, words, drawn = RECORDS[name]
    html = make()._repr_html_()
    page = Reader.of(html)
    for word in words:
        assert word in page.text
    assert page.attributes("table")
    assert len(page.attributes("caption")) == len(page.attributes("table"))
    assert {each.get("scope") for each in page.attributes("th")} == {"row", "col"}
    assert len(figures(html)) == drawn
    assert all(figure.startswith("<svg") for figure in figures(html))
    for image in page.attributes("img"):
        assert image["role"] == "img"
        assert image["alt"]
        assert image["alt"] == image["aria-label"]
    assert not {"script", "iframe", "object", "style", "link"} & {tag for tag, _ in page.tags}


def test_a_store_shows_what_it_holds(tmp_path: Path):
    with Store(tmp_path / "results.sqlite") as store:
        store.add(outcomes())
        store.add_breakdowns([encoder()])
        page = Reader.of(store._repr_html_())
        for word in ("results.sqlite", "bert@local:window=128", "128 tokens to 4,096 tokens", "1 breakdown of bert"):
            assert word in page.text
        assert ENVIRONMENT.fingerprint in page.text
    # A store that was closed still has a face.
    assert "could not be read" in Reader.of(store._repr_html_()).text


def test_a_store_with_an_architecture_that_is_not_installed_here_is_shown(tmp_path: Path):
    with Store(tmp_path / "results.sqlite") as store:
        store.add([replace(one, workload=one.workload.replace(subject="of-a-plugin")) for one in outcomes()[:1]])
        assert "of-a-plugin" in Reader.of(store._repr_html_()).text


def test_names_and_messages_from_outside_let_nothing_in():
    data = LengthData.of([1, 2], modality="text", sources=(EVIL,), method=EVIL)
    records = [
        measurement("bert", 64, 0.1, environment=replace(ENVIRONMENT, cpu_model=EVIL)),
        replace(measurement("bert", 64, 0.1), attention=EVIL, notes=(EVIL,)),
        failure("bert", 64, message=EVIL),
        replace(crossing_at(1, 900), notes=(EVIL,), variant=Subject("./<script>alert(1)</script>&'")),
        encoder(notes=(EVIL,), attention=EVIL),
        data,
        replace(recommendation(), notes=(EVIL,), data=data),
        replace(prediction(), notes=(EVIL,)),
        compare(outcomes(), outcomes(), names=(EVIL, "new")),
    ]
    for record in records:
        page = Reader.of(as_html(record))
        assert not page.attributes("script")
        for image in page.attributes("img"):
            assert set(image) == {"role", "alt", "aria-label", "style", "src"}
            assert (image["src"] or "").startswith("data:image/svg+xml;base64,")
        assert not any("<script" in figure or "<image" in figure for figure in figures(as_html(record)))


@pytest.mark.parametrize("missing", ["altair", "vl_convert"])
def test_without_what_draws_the_table_stands_and_a_line_says_why_there_is_no_figure(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    page = Reader.of(crossing_at(1, 900)._repr_html_())
    assert "900 tokens" in page.text
    assert f"no figure: import of {missing} halted" in page.text
    assert not page.attributes("img")


def test_a_figure_that_cannot_be_drawn_costs_nothing_but_the_figure(monkeypatch):
    def broken(_: object) -> None:
        raise ValueError("no <ink> left")

    monkeypatch.setattr(notebook, "parts_chart", broken)
    page = Reader.of(encoder()._repr_html_())
    assert "no figure: no <ink> left" in page.text
    assert "fused attention" in page.text


def test_what_is_no_record_has_no_view():
    with pytest.raises(TypeError, match="there is no view of int"):
        as_html(3)


def test_the_package_offers_the_same_view():
    assert tippingpoint.as_html(failure("bert", 64)) == failure("bert", 64)._repr_html_()


def test_a_table_of_a_terminal_keeps_its_words_and_loses_its_drawings():
    table = plain_table("a title", "name\nin lines", "number", "")
    table.add_row("one", "1", "█")
    table.add_section()
    table.add_row("  two", "22", "██")
    grid = grid_of(table)
    assert grid == Grid(
        title="a title",
        columns=("name in lines", "number"),
        numbers=(False, True),
        rows=(("one", "1"), ("  two", "22")),
        sections=frozenset({0}),
    )
    page = Reader.of(table_html(grid))
    assert [style for each in page.attributes("td") if (style := each["style"]) and "right" in style]
    assert any("padding-left:1.2em" in (each["style"] or "") for each in page.attributes("th"))
