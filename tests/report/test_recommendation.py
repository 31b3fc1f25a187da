import json

import pytest

from synthetic import ENVIRONMENT, failure, measurement
from tippingpoint.analysis.recommend import Constraint, Recommendation, recommend_from
from tippingpoint.data import LengthData
from tippingpoint.errors import InputError
from tippingpoint.measurement import Outcome
from tippingpoint.report.document import Bullets, Heading, Paragraph
from tippingpoint.report.grids import Grid
from tippingpoint.report.recommendation import blocks, check_output, write_recommendation
from tippingpoint.workload import Subject

BERT, LOCAL = Subject.parse("bert"), Subject.parse("bert@local:window=128")


@pytest.fixture
def answer() -> Recommendation:
    outcomes: list[Outcome] = []
    for length in (128, 1024, 4096):
        for subject, cost in ((BERT, 1e-6 * length**2), (LOCAL, 1e-3 * length)):
            outcomes.append(measurement(subject, length, [cost] * 9, session=f"{length}-0", peak_bytes=1000 * length))
    outcomes.append(failure(BERT, 8192, session="8192"))
    outcomes.append(measurement(LOCAL, 8192, [8.192] * 9, session="8192-0", peak_bytes=8_192_000))
    data = LengthData.of([300.0] * 60 + [3000.0] * 40, modality="text")
    return recommend_from(
        data,
        outcomes,
        ENVIRONMENT,
        baselines=(BERT,),
        variants=(LOCAL,),
        constraints=[Constraint.parse("peak_memory<=1GiB")],
        switch=True,
    )


def test_an_answer_says_what_why_what_it_costs_and_what_would_change_it(answer):
    found = list(blocks(answer))
    assert found[0] == Paragraph(answer.reason)
    assert [block.text for block in found if isinstance(block, Heading)] == [
        "What was asked",
        "What each would cost on this data",
        "What it rests on",
        "What would change the answer",
        "What to know",
    ]
    lines = [item for block in found if isinstance(block, Bullets) for item in block.items]
    assert "must keep: peak memory at most 1.00 GiB" in lines
    assert "quality is not measured here: an approximation may cost accuracy" in lines
    assert set(answer.changes) <= set(lines)


def test_the_observations_stand_below_with_their_intervals(answer):
    costs, observed = [block for block in blocks(answer) if isinstance(block, Grid)]
    assert [row[0] for row in costs.rows] == [str(candidate.subject) for candidate in answer.candidates]
    assert [row[0] for row in observed.rows] == ["128 tokens", "1,024 tokens", "4,096 tokens", "8,192 tokens"]
    assert observed.rows[0][2:] == ("0.128", "0.128 to 0.128", "9")
    assert observed.rows[-1][2] == "baseline out of memory"


def test_what_it_saves_on_the_data_and_with_two_models_is_said(answer):
    # 0.6 * 0.09 + 0.4 * 9 seconds for one, 0.6 * 0.3 + 0.4 * 3, and with both 0.6 * 0.09 + 0.4 * 3: a power law goes
    # through what was measured.
    assert answer.choice == LOCAL
    assert "1,000 documents take 23 m 00 s instead of 1 h 00 m" in answer.reason
    assert (
        "Two models, bert up to 300 tokens and bert@local:window=128 above it (40 % of the documents)"
        in answer.reason
    )
    assert answer.switch is not None
    assert answer.switch.gain.value == pytest.approx(1 - 1.254 / 1.38, rel=1e-3)


def test_an_answer_becomes_a_file(answer, tmp_path):
    write_recommendation(answer, check_output(tmp_path / "answer.md"))
    text = (tmp_path / "answer.md").read_text()
    assert text.startswith("# Use bert@local:window=128\n")
    assert "| bert@local:window=128 |" in text
    write_recommendation(answer, check_output(str(tmp_path / "answer.JSON")))
    record = json.loads((tmp_path / "answer.JSON").read_text())
    assert record["choice"] == "bert@local:window=128"
    assert record["switch"]["length"] == 300


def test_a_file_that_cannot_be_is_refused_beforehand(answer, tmp_path):
    with pytest.raises(InputError, match=r"must end in \.md or \.json, got 'answer.html'"):
        check_output("answer.html")
    with pytest.raises(InputError, match="does not exist; create it"):
        check_output(tmp_path / "nowhere" / "answer.md")
    (tmp_path / "answer.md").mkdir()
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        write_recommendation(answer, tmp_path / "answer.md")
