import csv
import html
import io
import json
import re
import struct
import xml.etree.ElementTree as ET
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, Tab, browser, chromium

from breakdowns import MS, component
from breakdowns import of as breakdown_of
from synthetic import ENVIRONMENT, failure, session_at
from tippingpoint.data import LengthData
from tippingpoint.measurement import Outcome
from tippingpoint.report.contents import contents
from tippingpoint.report.page import inline_json, page
from tippingpoint.report.page_figures import batch_figure, cost_figure, value_ticks, winner_figure
from tippingpoint.report.visible import visible
from tippingpoint.store import StoredSession
from tippingpoint.workload import Subject

needs_browser = pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")

HUBERT, EAGER = Subject.parse("hubert"), Subject.parse("hubert@eager")
LOCAL, LINEAR = Subject.parse("hubert@local:window=50"), Subject.parse("hubert@nystrom:landmarks=64")
SECONDS = (2, 5, 10, 20, 40, 80)
# A stranger's texts. What the grammar of subjects leaves of them can still end a script, an attribute, an expression.
SCRIPT = "<script>alert('x')</script>"
IMAGE = "<img src=x onerror=alert(1)>"
TEXTS = (
    SCRIPT,
    IMAGE,
    "\"'><svg/onload=alert(1)>",
    "</script><script>alert(1)</script>",
    "</style><style>body{display:none}</style>",
    "{{ 7*7 }}{% include '/etc/passwd' %}",
    "javascript:alert(1)",
    "url(http://evil.example/x)",
    "$rows",
    "datum['x'] || alert(1)",
    "\u2028alert(1)\u2029",
    "<!--<script>",
    "\u202etxt.exe\u0000\u0007",
)
NASTY = tuple(
    Subject.parse(f"hubert@local:window={value}")
    for value in (
        "</script><script>alert(1)</script>",
        "'\"><svg/onload",
        "$subjects",
        "datum.x)||alert(1)",
        "<!--<script>",
    )
)


def outcomes_of(variants: tuple[Subject, ...] = (LOCAL, LINEAR), **fields: Any) -> list[Outcome]:
    """Sessions in which the variants overtake, and in which step-by-step attention runs out of memory at last."""
    generator = np.random.default_rng(0)
    found: list[Outcome] = []
    for length in SECONDS:
        costs = {HUBERT: 0.05 * length + 0.002 * length**2, EAGER: 0.06 * length + 0.004 * length**2}
        costs |= {variant: (0.075 + 0.01 * place) * length for place, variant in enumerate(variants)}
        name = f"{length} {sorted(fields.items())}"
        if length == SECONDS[-1]:
            del costs[EAGER]
            found.append(failure(EAGER, length, session=name, message=IMAGE, **fields))
        found += session_at(length, costs, generator, noise=0.02, name=f"{name}-0", **fields)
    return found


def stored(found: list[Outcome], label: str = "") -> StoredSession:
    return StoredSession("study 1", label, "2026-01-02T03:04:05+00:00", 10.0, tuple(found))


def lengths() -> LengthData:
    return LengthData.of(np.exp(np.random.default_rng(0).normal(3, 0.5, 500)), modality="speech")


def rich_page() -> str:
    """Two phases, two batch sizes, breakdowns and the person's lengths."""
    sessions = [
        stored(outcomes_of(phase=phase, batch_size=size)) for phase in ("inference", "training") for size in (1, 4)
    ]
    parts = [component("attention", "QKV projections", 2 * MS), component("feed-forward", "feed-forward", 6 * MS)]
    calls = [
        breakdown_of(parts, plain_s=[9 * MS] * 8, subject=HUBERT, length=at, between_s=[MS] * 8) for at in (5, 20)
    ]
    return page(contents(sessions, store="runs.sqlite", breakdowns=calls, lengths=lengths()))


def hostile_page() -> str:
    """Every text that a store may hold is a stranger's."""
    environment = replace(ENVIRONMENT, cpu_model=SCRIPT, platform=IMAGE, torch="".join(TEXTS))
    found = [replace(outcome, environment=environment) for outcome in outcomes_of(NASTY)]
    lost = replace(failure(HUBERT, 160, session="x", message="".join(TEXTS), environment=environment), kind=IMAGE)
    parts = [component(IMAGE, SCRIPT, 2 * MS), component("=1+1", '=HYPERLINK("http://evil.example")', 2 * MS)]
    calls = [breakdown_of(parts, plain_s=[4 * MS] * 8, subject=NASTY[0], length=5, environment=environment)]
    sessions = [stored([*found, lost], label=text) for text in TEXTS[:3]]
    return page(contents(sessions, store="a/" + SCRIPT.replace("/", ""), title="".join(TEXTS), breakdowns=calls))


@pytest.fixture(scope="module")
def rich() -> str:
    return rich_page()


@pytest.fixture(scope="module")
def hostile() -> str:
    return hostile_page()


class Reader(HTMLParser):
    """What a browser would make of a page: elements, attributes, and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.shown: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.raw:
            self.raw[self._inside][-1] += data
        else:
            self.shown.append(data)


def policy_of(reader: Reader) -> dict[str, list[str]]:
    (content,) = [
        attributes["content"] or ""
        for tag, attributes in reader.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    return {name: values for name, *values in (part.split() for part in content.split(";"))}


@pytest.mark.parametrize("which", ["rich", "hostile"])
def test_only_the_pages_own_scripts_and_style_stand_in_it(which, request):
    reader = Reader(request.getfixturevalue(which))
    policy = policy_of(reader)
    assert policy["default-src"] == ["'none'"]
    assert not {"'unsafe-inline'", "'unsafe-eval'"} & {value for values in policy.values() for value in values}
    data, *scripts = reader.raw["script"]
    assert [f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts] == policy[
        "script-src"
    ]
    assert len(scripts) == 2
    assert json.loads(data)["comparisons"]
    assert len(reader.raw["style"]) == 1


@pytest.mark.parametrize("which", ["rich", "hostile"])
def test_no_element_asks_for_anything_or_handles_an_event(which, request):
    for tag, attributes in Reader(request.getfixturevalue(which)).elements:
        assert tag not in ("img", "svg", "iframe", "object", "embed", "base", "applet")
        assert not [name for name in attributes if name.startswith("on")]
        assert all((attributes.get(name) or "#").startswith(("#", "data:,")) for name in ("href", "src", "action"))


def test_hostile_texts_are_shown_as_they_are(hostile):
    reader = Reader(hostile)
    shown = "".join(reader.shown)
    for text in TEXTS:
        assert visible(text) in shown
    assert "49" not in html.unescape(re.search("<h1>(.*?)</h1>", hostile, re.DOTALL)[1])  # type: ignore[index]
    subjects = json.loads(reader.raw["script"][0])["comparisons"][0]["subjects"]
    assert {str(subject) for subject in NASTY} <= set(subjects)


def test_json_in_a_page_holds_nothing_that_html_would_read():
    for text in TEXTS:
        inlined = str(inline_json({text: [text]}))
        assert not set("<>&\u2028\u2029") & set(inlined)
        assert json.loads(inlined) == {text: [visible(text)]}


def test_no_data_are_in_the_specifications_of_figures():
    for figure in (cost_figure(), winner_figure(), batch_figure()):
        assert all(len(values) == 1 and values[0].startswith("$") for values in figure["datasets"].values())


def test_answers_and_every_number_are_there_without_a_script(rich):
    text = re.sub(r"<script.*?</script>", "", rich, flags=re.DOTALL)
    assert "On this machine, hubert@local:window=50 is faster than hubert from" in text
    assert "of your 500 recordings are longer" in text
    for caption in (
        "Tipping points with",
        "Latency by length",
        "Peak memory by length",
        "FLOPs by length",
        "Who is best at",
    ):
        assert text.count(f"<caption>{caption}") == (1 if caption.startswith("Tipping") else 4), caption
    assert text.count("<caption>Times as fast as hubert</caption>") == 4
    assert "<caption>Where the time of a call goes</caption>" in text
    assert "hubert@eager at 80.0 s: out of memory" in text


def test_every_table_has_a_caption_and_heads_with_a_scope(rich):
    elements = Reader(rich).elements
    assert sum(tag == "table" for tag, _ in elements) == sum(tag == "caption" for tag, _ in elements)
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in elements if tag == "th")


def test_a_page_of_one_setting_has_no_control_for_settings():
    text = page(contents([stored(outcomes_of())], store="runs.sqlite"))
    assert "data-facet" not in text.partition("<script>")[0]


def test_the_same_store_makes_the_same_page(rich):
    assert rich == rich_page()


@pytest.mark.parametrize(("low", "high"), [(1e-4, 10.0), (0.9, 1.3), (3e6, 4e9), (150.0, 170.0)])
def test_axes_have_a_few_round_values_inside(low, high):
    ticks = value_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    assert ticks == sorted(ticks)
    assert low <= ticks[0]
    assert ticks[-1] <= high


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = chromium()
    assert executable, "tests that ask for a browser are skipped without one"
    with browser(executable, tmp_path_factory.mktemp("browser")) as found:
        yield found


def opened(running: Browser, text: str, folder: Path, **screen: Any) -> Tab:
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    tab = running.open(path, **screen)
    drawn(tab)
    return tab


def drawn(tab: Tab) -> None:
    tab.wait("document.documentElement.dataset.drawn === 'yes'")


@pytest.fixture(scope="module")
def tab(running: Browser, rich: str, tmp_path_factory: pytest.TempPathFactory) -> Tab:
    return opened(running, rich, tmp_path_factory.mktemp("page"))


def pick(tab: Tab, selector: str, value: str) -> None:
    """Choose an option as a person does, and wait until what follows is drawn."""
    tab.evaluate(
        f"(() => {{ const s = document.querySelector({json.dumps(selector)}); s.value = {json.dumps(value)};"
        "s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    drawn(tab)


def label_of(tab: Tab, figure: str) -> str:
    return tab.evaluate(f"document.querySelector('#{figure} .plot').getAttribute('aria-label')")


@needs_browser
def test_every_figure_is_drawn_without_a_complaint_or_a_request(tab):
    assert tab.evaluate("[...document.querySelectorAll('figure')].map(f => f.id)") == [
        "cost",
        "winner",
        "batch",
        "breakdown",
    ]
    assert tab.evaluate("[...document.querySelectorAll('figure')].every(f => f.querySelector('svg path'))")
    assert tab.complaints() == []
    (only,) = tab.requests()
    assert only.startswith("file://")


@needs_browser
def test_controls_choose_metric_and_setting(tab):
    assert label_of(tab, "cost").startswith("latency against length")
    pick(tab, "#metric", "peak_memory")
    assert label_of(tab, "cost").startswith("peak memory against length")
    assert "peak memory (MiB)" in tab.evaluate("document.querySelector('#cost').textContent")
    rows = "[...document.querySelectorAll('#tips tbody tr')].filter(r => !r.hidden).length"
    few = tab.evaluate(rows)
    pick(tab, "[data-facet='0']", "training")
    assert "training, batch 1" in tab.evaluate("document.getElementById('shown').textContent")
    assert tab.evaluate("[...document.querySelectorAll('#costs .block')].map(b => b.hidden)") == [
        True,
        True,
        False,
        True,
    ]
    tab.evaluate("document.getElementById('all-settings').click()")
    assert tab.evaluate(rows) == 4 * few
    tab.evaluate("document.getElementById('all-settings').click()")
    pick(tab, "[data-facet='0']", "inference")
    pick(tab, "#metric", "latency")
    assert tab.complaints() == []


@needs_browser
def test_a_click_on_a_head_sorts_and_another_one_turns_round(tab):
    head = "[...document.querySelectorAll('#tips th')].find(h => h.textContent === 'from')"
    for direction in ("ascending", "descending"):
        tab.evaluate(f"{head}.querySelector('button').click()")
        assert tab.evaluate(f"{head}.getAttribute('aria-sort')") == direction
        values = tab.evaluate(
            "[...document.querySelectorAll('#tips tbody tr')].map(r => r.querySelector('.from').dataset.value)"
        )
        found = [float(value) for value in values if value]
        assert found == sorted(found, reverse=direction == "descending")
        assert values[len(found) :] == [""] * (len(values) - len(found))
    assert tab.evaluate("document.querySelectorAll('[aria-sort]').length") == 1


@needs_browser
def test_the_switch_makes_page_and_figures_dark_and_light_again(tab):
    colors = (
        "[getComputedStyle(document.body).backgroundColor,"
        "getComputedStyle(document.querySelector('#cost svg text')).fill]"
    )
    light = tab.evaluate(colors)
    assert light == ["rgb(255, 255, 255)", "rgb(26, 26, 26)"]
    tab.evaluate("document.getElementById('theme').click()")
    assert tab.evaluate("document.getElementById('theme').getAttribute('aria-pressed')") == "true"
    paper, ink = (max(map(int, re.findall(r"\d+", color))) for color in tab.evaluate(colors))
    assert paper < 60
    assert ink > 200
    tab.media(kind="print")
    assert tab.evaluate(colors) == light
    tab.media()
    tab.evaluate("document.getElementById('theme').click()")
    assert tab.evaluate(colors) == light
    tab.media(dark=True)
    tab.evaluate("document.documentElement.dataset.theme = 'auto'")
    assert tab.evaluate(colors) != light
    tab.media()


@needs_browser
def test_print_leaves_controls_out_and_keeps_figures(tab):
    tab.media(kind="print")
    # The heads of a table stay, though they are buttons.
    gone = "[...document.querySelectorAll('p button, select, input')].every(e => e.getClientRects().length === 0)"
    assert tab.evaluate(gone)
    assert tab.evaluate("[...document.querySelectorAll('figure')].every(f => f.getBoundingClientRect().height > 50)")
    tab.media()
    assert not tab.evaluate(gone)


@needs_browser
def test_the_tab_key_reaches_every_control_and_focus_is_seen(running, rich, tmp_path):
    tab = opened(running, rich, tmp_path)
    wanted = tab.evaluate(
        "[...document.querySelectorAll('a[href], button, select, input, summary')]"
        ".filter(e => e.getClientRects().length).length"
    )
    met = []
    who = "(e => e.id || e.dataset.facet || e.dataset.download || e.textContent.trim())(document.activeElement)"
    for _ in range(3 * wanted):
        tab.press("Tab", code=9)
        met.append(tab.evaluate(who))
        if len(met) > 1 and met[-1] == met[0]:
            break
        if len(met) in (1, 5):
            assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert met[0] == "Skip to the answers"
    for control in ("theme", "0", "1", "metric", "winner-metric", "all-settings", "svg", "png", "csv", "from"):
        assert control in met


def clicked(tab: Tab, figure: str, kind: str) -> bytes:
    """Click on a download and return what would be saved."""
    tab.evaluate(
        "if (!window.made) { const make = URL.createObjectURL; window.made = [];"
        "URL.createObjectURL = (blob) => { window.made.push(blob); return make.call(URL, blob); }; }"
    )
    tab.evaluate(f"window.made.length = 0; document.querySelector('#{figure} [data-download={kind}]').click()")
    tab.wait("window.made.length === 1")
    return bytes(tab.evaluate("window.made[0].arrayBuffer().then(b => [...new Uint8Array(b)])"))


@needs_browser
@pytest.mark.parametrize("figure", ["cost", "winner", "batch", "breakdown"])
def test_every_figure_can_be_had_as_svg_png_and_csv(tab, figure):
    drawing = ET.fromstring(clicked(tab, figure, "svg"))
    assert drawing.tag.endswith("svg")
    assert len(list(drawing.iter())) > 20
    image = clicked(tab, figure, "png")
    assert image.startswith(b"\x89PNG")
    assert min(struct.unpack(">II", image[16:24])) > 200
    rows = list(csv.reader(io.StringIO(clicked(tab, figure, "csv").decode())))
    assert len(rows) > 2
    assert {len(row) for row in rows} == {len(rows[0])}


@needs_browser
def test_downloads_are_files(running, rich, tmp_path):
    tab = opened(running, rich, tmp_path)
    (tmp_path / "report.html").unlink()
    tab.download_into(tmp_path)
    tab.evaluate("document.querySelector('#cost [data-download=csv]').click()")
    tab.downloaded()
    (file,) = tmp_path.iterdir()
    assert file.name == "cost-latency.csv"
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert {row["subject"] for row in rows} == {
        "hubert",
        "hubert@eager",
        "hubert@local:window=50",
        "hubert@nystrom:landmarks=64",
    }
    assert all(float(row["low"]) <= float(row["latency"]) <= float(row["high"]) for row in rows)


@needs_browser
def test_a_phone_needs_no_sideways_scrolling(running, rich, tmp_path):
    tab = opened(running, rich, tmp_path, width=360, height=740, mobile=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert tab.evaluate("document.querySelector('#cost svg').getBoundingClientRect().width") <= 360


@needs_browser
def test_a_strangers_texts_do_nothing(running, hostile, tmp_path):
    tab = opened(running, hostile, tmp_path)
    assert tab.complaints() == []
    assert len(tab.requests()) == 1
    assert tab.events("Page.javascriptDialogOpening") == []
    assert tab.evaluate("document.querySelectorAll('img, iframe, object, embed, script, style').length") == 4
    assert (
        tab.evaluate("document.querySelectorAll('.plot script, .plot image, .plot a, .plot foreignObject').length")
        == 0
    )
    shown = tab.evaluate("document.querySelector('#cost svg').textContent")
    for subject in NASTY:
        assert str(subject) in shown
    for select in ("metric", "winner-metric"):
        for value in tab.evaluate(f"[...document.getElementById('{select}').options].map(o => o.value)"):
            pick(tab, f"#{select}", value)
    tab.evaluate(
        "for (const mark of document.querySelectorAll('#cost svg path'))"
        "  mark.dispatchEvent(new MouseEvent('mousemove', {bubbles: true}))"
    )
    assert tab.complaints() == []
    rows = list(csv.reader(io.StringIO(clicked(tab, "breakdown", "csv").decode())))
    assert ["'=1+1", '\'=HYPERLINK("http://evil.example")'] in [row[2:4] for row in rows]
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "@"))]
