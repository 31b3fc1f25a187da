"""A report in other formats than a page: what is in them, that nothing in them is markup, and whole files."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ET
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from breakdowns import encoder
from synthetic import ENVIRONMENT, failure, session_at
from tippingpoint import __version__
from tippingpoint.data import LengthData
from tippingpoint.errors import InputError
from tippingpoint.measurement import Outcome
from tippingpoint.report import export as export_module
from tippingpoint.report import latex, markdown
from tippingpoint.report.contents import Contents, contents
from tippingpoint.report.document import Bullets, Heading, Paragraph, document
from tippingpoint.report.export import FORMATS, export, tipping_point_rows
from tippingpoint.report.grids import Grid
from tippingpoint.report.paper_figures import COLUMN_IN, Figure, broken, figures, filled_in
from tippingpoint.report.pdf import pdf
from tippingpoint.report.visible import visible
from tippingpoint.store import StoredSession
from tippingpoint.workload import Subject

BERT, LOCAL = Subject.parse("bert"), Subject.parse("bert@local:window=128")
LENGTHS = (128, 512, 2048, 4096)
# What the grammar of subjects lets through, and means something to one format or another.
EVIL = Subject.parse("bert@local:window=</td>|`$&_%#~^{x}\\'\"<script>\u202e")
Row = dict[str, Any]


def outcomes(variant: Subject = LOCAL, **fields: Any) -> list[Outcome]:
    """The variant overtakes at 1,000 tokens; at last the baseline runs out of memory."""
    generator = np.random.default_rng(0)
    found: list[Outcome] = []
    for length in LENGTHS:
        costs = {BERT: 1e-4 * length + 1e-7 * length**2, variant: 2e-4 * length}
        found += session_at(length, costs, generator, noise=0.01, name=f"{length}-0", **fields)
    return [*found, failure(BERT, 8192, session="8192", message="it needs\n24 GiB")]


def session(found: list[Outcome], label: str = "") -> StoredSession:
    return StoredSession("study 1", label, "2026-01-02T03:04:05+00:00", 10.0, tuple(found))


def told(*sessions: StoredSession, **options: Any) -> Contents:
    return contents(list(sessions), store="runs.sqlite", **options)


SESSION = session(outcomes())
ROWS = SESSION.rows()


@pytest.fixture(scope="module")
def found() -> Contents:
    lengths = LengthData.of([100, 900, 3000, 3000], modality="text")
    return told(SESSION, title="A title", lengths=lengths, breakdowns=[encoder()])


@pytest.fixture(scope="module")
def drawn(found: Contents) -> list[Figure]:
    """All figures; each is drawn once."""
    return figures(found)


@pytest.fixture(scope="module")
def evil() -> Contents:
    nasty = outcomes(EVIL, environment=replace(ENVIRONMENT, cpu_model="<b>\n| evil |\x1b[31m"))
    return told(session(nasty, label="=cmd()|'\u202e"), title="# a *title*\n<script>")


def texts_of(content: bytes) -> str:
    """Return the texts of a PDF that ReportLab wrote, in their order."""
    found = []
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", content, re.DOTALL):
        # Longer ones are images.
        if len(stream) > 20_000:
            continue
        try:
            page = zlib.decompress(base64.a85decode(stream.strip().removesuffix(b"~>"), ignorechars=b"\n\r"))
        except (ValueError, zlib.error):
            continue
        found += [text.decode("cp1252") for text in re.findall(rb"\((.*?)(?<!\\)\) Tj", page)]
    return re.sub(r"\\(.)", r"\1", " ".join(found))


# Documents


def test_a_report_is_read_from_the_answers_to_what_they_rest_on(found):
    blocks = list(document(found))
    headings = [block.text for block in blocks if isinstance(block, Heading)]
    assert headings == ["Answers", "Tipping points", "Speed-ups", "Environment"]
    assert isinstance(blocks[0], Paragraph)
    assert blocks[0].text.startswith("8 measurements and 1 failure in 1 session")
    answers = next(block for block in blocks if isinstance(block, Bullets))
    assert re.match(r"bert@local:window=128 is faster than bert from [\d,]+ tokens on", answers.items[0])
    assert "50 % of your 4 documents are longer" in answers.items[0]
    tips, speed_ups = [block for block in blocks if isinstance(block, Grid)]
    assert tips.columns[-1] == "documents longer"
    assert [row[0] for row in tips.rows] == ["latency", "peak memory"]
    assert [row[0] for row in speed_ups.rows] == ["128 tokens", "512 tokens", "2,048 tokens", "4,096 tokens"]


def test_figures_stand_behind_the_answers_and_the_rest_is_counted(found):
    figure = Figure("one", "what is seen", {})
    blocks = list(document(found, [figure], left_out=3))
    assert blocks.index(figure) < blocks.index(Heading("Tipping points"))
    assert any(isinstance(block, Paragraph) and block.text.startswith("3 more figures") for block in blocks)


@pytest.mark.parametrize(
    ("hidden", "shown"),
    [
        ("a\nb\tc", "a b c"),
        ("\u202eevil", "\\u202eevil"),
        ("\x1b[31m", "\\x1b[31m"),
        ("half \udce9", "half \\udce9"),
        ("Länge 長", "Länge 長"),
    ],
)
def test_of_a_text_all_can_be_seen(hidden, shown):
    assert visible(hidden) == shown
    assert visible(shown) == shown


# Markdown


def test_markdown_says_it_all_in_tables_that_github_reads(found, tmp_path: Path):
    (file,) = export(found, "md", tmp_path / "report.md", rows=ROWS)
    text = file.read_text()
    assert text.startswith(
        "# A title\n\n8 measurements and 1 failure in 1 session, 2026-01-02 03:04 UTC\n\n## Answers\n"
    )
    assert "| metric | variant | against | verdict | from | 95 % | positions | documents longer |" in text
    assert "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |" in text
    assert "\n**Times as fast as bert: text, inference, batch 1, cpu float32, 2 threads, base**\n" in text
    assert f"- {ENVIRONMENT.fingerprint}: CPU, 2 threads on Imaginary 9000" in text


def test_in_markdown_every_row_has_as_many_cells_as_its_table(evil, tmp_path: Path):
    (file,) = export(evil, "md", tmp_path / "report.md", rows=ROWS)
    for table in re.findall(r"(?:^\|.*\|\n)+", file.read_text(), re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1


def test_in_markdown_nothing_from_outside_is_markup(evil, tmp_path: Path):
    (file,) = export(evil, "md", tmp_path / "report.md", rows=ROWS)
    text = file.read_text()
    assert text.startswith("# \\# a \\*title\\* &lt;script&gt;\n")
    assert "<" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not re.search(r"(?<!\\)[`$~{}\[\]]", text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b and _c_", r"a_b and \_c\_"),
        ("[x](http://y)", r"\[x\](http<!---->://y)"),
        ("@me, not bert@local", "@<!---->me, not bert@local"),
        (r"\|", r"\\\|"),
        ("1.5 s", "1.5 s"),
    ],
)
def test_markdown_shows_texts_as_they_are(text, shown):
    assert markdown.escaped(text) == shown


@pytest.mark.parametrize(("text", "line"), [("- a", r"\- a"), ("1. a", r"1\. a"), ("+- 3 %", r"\+- 3 %"), ("a", "a")])
def test_in_markdown_no_text_begins_a_list(text, line):
    assert markdown.markdown("t", [Paragraph(text)]) == f"# t\n\n{line}\n"


# CSV and Parquet


def test_csv_has_every_row_and_the_tipping_points_beside_them(found, tmp_path: Path):
    files = export(found, "csv", tmp_path / "report.csv", rows=ROWS)
    assert [file.name for file in files] == ["report.csv", "report-tipping-points.csv"]
    rows, tips = (list(csv.DictReader(io.StringIO(file.read_text()))) for file in files)
    assert [list(row) for row in rows] == [list(row) for row in ROWS]
    assert [row["latency_s"] for row in rows] == [
        "" if r["latency_s"] is None else repr(r["latency_s"]) for r in ROWS
    ]
    assert rows[-1]["message"] == "it needs\n24 GiB"
    assert [(row["metric"], row["variant"], row["unit"]) for row in tips] == [
        ("latency", str(LOCAL), "tokens"),
        ("peak_memory", str(LOCAL), "tokens"),
    ]
    assert float(tips[0]["length_low"]) <= float(tips[0]["length"]) <= float(tips[0]["length_high"])
    assert float(tips[0]["longer_share"]) == 0.5


def test_no_text_in_csv_is_a_formula_and_numbers_stay_numbers(tmp_path: Path):
    rows: list[Row] = [{"subject": text, "latency_s": -1.5} for text in ("=1+1", "+x", "-x", "@x", "\tx", "plain")]
    file, _ = export(told(SESSION), "csv", tmp_path / "a.csv", rows=rows)
    read = list(csv.DictReader(io.StringIO(file.read_text(), newline="")))
    assert [row["subject"] for row in read] == ["'=1+1", "'+x", "'-x", "'@x", "'\tx", "plain"]
    assert {row["latency_s"] for row in read} == {"-1.5"}


def test_parquet_comes_back_as_the_rows_were_and_knows_where_they_are_from(found, tmp_path: Path):
    file, tips = export(found, "parquet", tmp_path / "report.parquet", rows=ROWS)
    table = parquet.read_table(file)
    assert table.to_pylist() == ROWS
    assert parquet.read_table(tips).to_pylist() == tipping_point_rows(found)
    assert table.schema.metadata[b"tippingpoint.version"].decode() == __version__
    environments = json.loads(table.schema.metadata[b"tippingpoint.environments"])
    assert environments[ENVIRONMENT.fingerprint]["cpu_model"] == ENVIRONMENT.cpu_model


def test_every_column_has_its_type_even_where_all_of_it_is_empty(found, tmp_path: Path):
    rows = [row for row in ROWS if row["status"] != "ok"]
    assert rows[0]["latency_s"] is None
    file, tips = export(found, "parquet", tmp_path / "a.parquet", rows=rows)
    for path, filled in ((file, ROWS), (tips, tipping_point_rows(found))):
        types = {field.name: str(field.type) for field in parquet.read_schema(path)}
        for row in filled:
            for name, value in row.items():
                expected = {bool: "bool", int: "int64", float: "double", str: "string", type(None): types[name]}
                assert types[name] == expected[type(value)], name


def test_half_a_character_of_a_file_name_stops_neither_csv_nor_parquet(tmp_path: Path):
    rows = [{"subject": "./caf\udce9", "latency_s": 1.0}]
    for kind in ("csv", "parquet"):
        file, _ = export(told(SESSION), kind, tmp_path / f"a.{kind}", rows=rows)
        assert b"./caf\\udce9" in file.read_bytes()


# LaTeX


def test_latex_has_a_table_of_tipping_points_and_one_of_speed_ups(found, tmp_path: Path):
    (file,) = export(found, "latex", tmp_path / "report.tex", rows=ROWS)
    text = file.read_text()
    assert re.findall(r"\\label\{(.*?)\}", text) == ["tab:tipping-points", "tab:times-as-fast-as-bert"]
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\bottomrule") == 2
    assert r"{metric} & {variant} & {against} & {verdict} & {from} & {95 \%} & {positions}" in text
    assert text.count(r"\begin{tabular}{llllrrrr}") == 1


def test_in_latex_nothing_from_outside_is_a_command(evil, tmp_path: Path):
    (file,) = export(evil, "latex", tmp_path / "report.tex", rows=ROWS)
    comment, *lines = file.read_text().splitlines()
    assert comment == "% # a *title* <script>"
    known = {
        "usepackage",
        "begin",
        "end",
        "centering",
        "small",
        "caption",
        "label",
        "toprule",
        "midrule",
        "bottomrule",
    }
    known |= {command[1:].rstrip("{}") for command in latex._SPECIAL.values() if command[1:2].isalpha()}
    known |= {"ensuremath", "pm", "times", "mu"}
    text = "\n".join(lines[1:])
    assert set(re.findall(r"\\([A-Za-z]+)", text)) <= known
    bare = re.sub(r"\\[{}$&#%_\\]", "", text)
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"[$#%_~^<>|\"`']", re.sub(r"\\label\{.*?\}", "", bare))
    assert text.isascii()


def test_long_tables_go_on_on_the_next_page_and_labels_are_used_once():
    grid = Grid(title="A: b", columns=("n",), numbers=(True,), rows=tuple((str(n),) for n in range(100)))
    text = latex.latex("t", [grid, grid])
    assert text.count(r"\begin{longtable}{r}") == text.count(r"\end{longtable}") == 2
    assert re.findall(r"\\label\{(.*?)\}", text) == ["tab:a", "tab:a-2"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex is installed")
def test_latex_compiles(evil, tmp_path: Path):
    (file,) = export(evil, "latex", tmp_path / "report.tex", rows=ROWS)
    packages = re.findall(r"\\usepackage(?:\[\w+\])?\{\w+\}", file.read_text())
    main = tmp_path / "main.tex"
    main.write_text(
        "\n".join([r"\documentclass{article}", *packages, r"\begin{document}\input{report}\end{document}"])
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", main.name],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()[-2000:]


# PDF


def test_a_pdf_has_answers_figures_and_tables(found, tmp_path: Path):
    (file,) = export(found, "pdf", tmp_path / "report.pdf", rows=ROWS)
    content = file.read_bytes()
    assert content.startswith(b"%PDF-")
    text = texts_of(content)
    for words in ("A title", "Answers", "bert@local:window=128 is faster than bert", "Tipping points", "Environment"):
        assert words in text
    # Latency, memory, who is best at both, a breakdown and the person's lengths; a mask for each where it is clear.
    assert content.count(b"/Subtype /Image") >= 6


def test_the_same_report_is_the_same_pdf_and_strange_letters_are_spelled_out(evil):
    blocks = list(document(evil))
    first = pdf(evil.title, blocks)
    assert first == pdf(evil.title, blocks)
    text = texts_of(first)
    assert "\\u202e" in text
    # A sign that had to be escaped is a text of its own.
    assert "<script>" in text.replace(" ", "")
    assert "長".encode("cp1252", "backslashreplace").decode() in texts_of(pdf("t", [Paragraph("長")]))


def test_a_table_with_more_columns_than_a_page_has_room_for_is_printed_all_the_same():
    columns = tuple(f"bert@local:window={n}" for n in range(30))
    grid = Grid(title="t", columns=columns, numbers=(True,) * 30, rows=(("1.00 (0.90 to 1.10)",) * 30,))
    assert pdf("t", [grid, Bullets(())]).startswith(b"%PDF-")


# Figures


def test_a_folder_has_every_figure_in_three_formats_and_says_what_is_seen(found, drawn, tmp_path: Path):
    files = export(found, "folder", tmp_path / "figures", rows=ROWS)
    names = [figure.name for figure in drawn]
    assert names == [
        "latency-bert-inference-batch1",
        "peak-memory-bert-inference-batch1",
        "FLOPs-bert-inference-batch1",
        "best-latency-bert-inference-batch1",
        "best-peak-memory-bert-inference-batch1",
        "parts-bert-512-tokens-inference",
        "lengths",
    ]
    expected = {f"{name}.{kind}" for name in names for kind in ("svg", "pdf", "png")} | {"index.md"}
    assert {file.name for file in files} == {file.name for file in (tmp_path / "figures").iterdir()} == expected
    index = (tmp_path / "figures/index.md").read_text()
    for name in names:
        assert f"({name}.svg)" in index
    assert "Dashed lines are tipping points, their intervals shaded" in index
    assert "The histogram is that of your data" in index


def test_figures_are_a_column_wide_in_every_format(drawn):
    for figure in drawn:
        svg = ET.fromstring(figure.svg())
        assert svg.get("width") == f"{COLUMN_IN:g}in", figure.name
        box = re.search(rb"MediaBox \[0 0 ([\d.]+)", figure.pdf())
        assert box
        assert float(box[1]) == pytest.approx(72 * COLUMN_IN, abs=0.5)
        width, _ = struct.unpack(">II", figure.png()[16:24])
        assert width == pytest.approx(300 * COLUMN_IN, abs=2)


def test_letters_in_figures_can_be_read_on_paper(drawn):
    for figure in drawn:
        svg = figure.svg()
        shrunk = COLUMN_IN * 72 / float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])  # type: ignore[index]
        sizes = [shrunk * float(size) for size in re.findall(r'font-size="([\d.]+)px"', svg)]
        assert min(sizes) > 6.0, figure.name


def test_names_of_files_and_figures_survive_a_strangers_names(evil):
    for figure in figures(evil):
        assert re.fullmatch(r"[A-Za-z0-9-]+", figure.name)
        words = "".join(ET.fromstring(figure.svg()).itertext())
        assert "\u202e" not in words
        assert figure.pdf().startswith(b"%PDF-")


def test_figures_of_one_name_are_told_apart():
    both = told(session(outcomes(), "before"), session(outcomes(), "after"))
    names = [figure.name for figure in figures(both)]
    assert len(set(names)) == len(names)
    assert {"latency-bert-inference-batch1", "latency-bert-inference-batch1-2"} <= set(names)


def test_padded_batches_have_a_map_over_batch_sizes_of_their_own():
    manners = ((1, False), (4, False), (4, True), (8, True))
    each = [session(outcomes(batch_size=size, padded=padded)) for size, padded in manners]
    names = [figure.name for figure in figures(told(*each))]
    assert [name for name in names if name.startswith("best-by-batch")] == [
        "best-by-batch-bert-inference",
        "best-by-batch-bert-inference-2",
    ]


def test_a_failure_is_a_cross_which_the_caption_explains():
    (figure, *_) = figures(told(session([*outcomes(), failure("bert@eager", 2048)])))
    assert "Crosses are where one failed" in figure.caption
    assert "out of memory" not in figure.svg()
    (figure, *_) = figures(told(SESSION))
    assert "Crosses" not in figure.caption


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("bert", ["bert"]),
        ("bert@local:window=128", ["bert@local:", "window=128"]),
        ("hubert@local:window=50+reuse:group=3", ["hubert@local:", "window=50+reuse:", "group=3"]),
    ],
)
def test_long_names_are_broken_where_their_parts_meet(name, lines):
    assert broken(name, 16).split("\n") == lines
    assert broken(name, 16).replace("\n", "") == name


def test_holes_are_filled_and_what_is_put_in_is_not_looked_into():
    specification = {"a": "$one", "b": ["$many"], "c": ["$one", 2], "d": "plain", "e": {"f": ["$one"]}}
    assert filled_in(specification, {"one": "$many", "many": ["$one", "x"]}) == {
        "a": "$many",
        "b": ["$one", "x"],
        "c": ["$many", 2],
        "d": "plain",
        "e": {"f": ["$many"]},
    }


# Files


@pytest.mark.parametrize("kind", FORMATS)
def test_what_cannot_be_written_is_one_sentence(found, tmp_path: Path, kind):
    with pytest.raises(InputError, match=r"the folder '.*nowhere' does not exist; create it, or choose another"):
        export(found, kind, tmp_path / "nowhere/report", rows=ROWS)
    taken = tmp_path / "taken"
    taken.touch() if kind == "folder" else taken.mkdir()
    with pytest.raises(InputError, match=r"'.*taken' (is a folder; name a file in it|cannot be made: File exists)"):
        export(found, kind, taken, rows=ROWS)


def test_an_unknown_format_names_the_nearest(found, tmp_path: Path):
    with pytest.raises(InputError, match="Did you mean 'parquet'"):
        export(found, "parket", tmp_path / "a", rows=ROWS)


def test_an_existing_file_is_replaced_and_nothing_else_is_left(found, tmp_path: Path):
    target = tmp_path / "report.md"
    target.write_text("before")
    export(found, "md", target, rows=ROWS)
    assert target.read_text().startswith("# A title")
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_stays_what_it_was_if_its_content_cannot_be_made(found, tmp_path: Path, monkeypatch):
    def broken_table(*_: object) -> bytes:
        raise RuntimeError("no room")

    target = tmp_path / "report.csv"
    target.write_text("before")
    monkeypatch.setattr(export_module, "as_csv", broken_table)
    with pytest.raises(RuntimeError, match="no room"):
        export(found, "csv", target, rows=ROWS)
    assert target.read_text() == "before"
