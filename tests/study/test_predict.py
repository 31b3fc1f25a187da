"""From planted measurements in a store to labelled predictions; work counted on tiny models."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from processes import needs_proc
from synthetic import ENVIRONMENT, measurement
from tippingpoint.analysis.scaling import Extent
from tippingpoint.device_profiles import DeviceProfile, load_profile
from tippingpoint.errors import AnswerError, InputError, StoreError
from tippingpoint.machine import Peaks
from tippingpoint.measurement import Flops, Measurement, Memory
from tippingpoint.models.catalog import ARCHITECTURES, architecture_of
from tippingpoint.report.predict import prediction_record, prediction_tables
from tippingpoint.store import Store
from tippingpoint.study.predict import (
    count_work,
    counting_lengths,
    length_of,
    measuring_lengths,
    predict,
)
from tippingpoint.workload import Subject, Workload

PEAKS = Peaks(flops_per_s=1e11, bytes_per_s=1e10)
LENGTHS = (128, 256, 512, 1024, 2048)
BERT, LOCAL = "bert", "bert@local:window=128"
PROFILE = DeviceProfile(
    name="Imaginary GPU",
    source="nowhere",
    kind="datasheet",
    flops_per_s={"float32": 1e13},
    bytes_per_s=1e12,
    memory_bytes=8 * 10**9,
)


def planted(subject: str, length: int, *, pairs: float, dear: float = 1.0) -> Measurement:
    """A measurement of what takes 1 us for each position of 1e5 FLOPs and `pairs` of attention, at peak rate."""
    linear, attention = 100_000 * length, int(100 * pairs)
    flops = Flops(
        total=linear + attention,
        by_operator=(("addmm", linear), ("bmm", attention)),
        bytes_by_call=(("addmm", 100 * length, 12), ("bmm", 10 * length, 24), ("add", 10 * length, 12)),
    )
    seconds = dear * linear / PEAKS.flops_per_s + attention / PEAKS.flops_per_s + 12 * 3e-4
    return replace(
        measurement(subject, length, seconds),
        flops=flops,
        peaks=PEAKS,
        memory=Memory(peak_bytes=10**8 + 10**5 * length, weights_bytes=10**8, method="planted"),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "planted.sqlite")
    for length in LENGTHS:
        store.add(
            [
                planted(BERT, length, pairs=length**2),
                planted(LOCAL, length, pairs=257 * length, dear=2.0),
            ]
        )
    return store


def test_planted_costs_are_predicted_and_labelled(store):
    found = predict(BERT, [512, 600, 65_536], store=store, measure=False)
    measured, between, beyond = found.estimates
    assert [one.basis for one in found.estimates] == ["measured", "interpolated", "extrapolated"]
    assert measured.latency_s == pytest.approx(5.12e-4 + 100 * 512**2 / 1e11 + 3.6e-3)
    assert between.latency_s == pytest.approx(6e-4 + 100 * 600**2 / 1e11 + 3.6e-3, rel=0.05)
    assert beyond.latency_s == pytest.approx(0.0655 + 100 * 65_536**2 / 1e11, rel=0.05)
    low, high = beyond.latency_interval_s
    assert low < beyond.latency_s < high
    assert beyond.flops == pytest.approx(1e5 * 65_536 + 100 * 65_536**2)
    assert beyond.peak_bytes == pytest.approx(1e8 + 1e5 * 65_536)
    assert beyond.shares["attention"] > 0.9
    assert sum(beyond.shares.values()) == pytest.approx(1)
    assert beyond.roofline is None


def test_what_is_shorter_than_anything_measured_is_extrapolated_too(store):
    (one,) = predict(BERT, [64], store=store, measure=False).estimates
    assert one.basis == "extrapolated"


def test_the_tipping_point_of_two_predictions_has_an_interval_and_says_what_it_is(store):
    found = predict([BERT, LOCAL], [100_000], store=store, measure=False)
    latency, memory = found.tipping_points
    # 1e5 N + 100 N^2 against 2e5 N + 25,700 N
    assert latency.length == pytest.approx(1257, rel=0.1)
    assert latency.interval is not None
    low, high = latency.interval
    assert low is not None
    assert latency.length is not None
    assert low <= latency.length
    assert high is None or high >= latency.length
    assert latency.basis == "interpolated"
    assert "from 1," in latency.answer
    assert "interpolated" in latency.answer
    assert memory.metric == "peak_memory"
    assert memory.length is None
    assert "does not get a lower predicted peak memory" in memory.answer


def test_a_variant_that_is_never_cheaper_gets_no_tipping_point(store):
    point = predict([LOCAL, BERT], [100_000], store=store, measure=False).tipping_points[0]
    assert point.length is None
    assert "does not get a lower predicted latency" in point.answer
    assert "extrapolated" in point.answer


def test_another_machine_is_a_roofline_estimate_beside_a_scaled_one(store):
    found = predict([BERT, LOCAL], [65_536, 10**6], store=store, measure=False, device_profile=PROFILE)
    short, _, long, _ = found.estimates
    assert short.roofline is not None
    # a hundred times the rate of this machine, both of operations and of bytes
    best_here = sum(max(f / 1e11, b / 1e10) for f, b in ((6.5536e9, 78.6e6), (4.29e11, 15.7e6), (0, 7.86e6)))
    assert short.roofline.latency_s == pytest.approx(best_here / 100, rel=0.01)
    assert short.roofline.scaled_s == pytest.approx(short.latency_s / 100, rel=0.01)
    assert short.roofline.fits is True
    assert long.roofline is not None
    assert long.roofline.fits is False
    assert found.tipping_points[-1].basis == "roofline estimate"
    assert "roofline estimate, no interval" in found.tipping_points[-1].answer
    assert any("a lower bound" in note and "nowhere" in note for note in found.notes)


def test_a_prediction_is_text_tables_and_json(store):
    found = predict([BERT, LOCAL], [512, 65_536], store=store, measure=False, device_profile="h100")
    assert "extrapolated" in str(found)
    assert "roofline estimate" in str(found)
    assert "hold-out" in str(found)
    assert len(prediction_tables(found)) == 3
    record = json.loads(json.dumps(prediction_record(found), allow_nan=False))
    assert record["estimates"][-1]["basis"] == "extrapolated"
    assert record["models"][BERT]["median_error"] >= 0
    assert record["profile"]["name"].startswith("NVIDIA H100")
    assert record["tipping_points"][0]["answer"]


def test_the_store_answers_alone_for_its_own_conditions_only(store):
    with pytest.raises(AnswerError, match="measured at 0 lengths of different cost"):
        predict(BERT, [4096], store=store, measure=False, batch_size=2)
    with pytest.raises(AnswerError, match="measured at 0 lengths of different cost"):
        predict("hubert", [4], store=store, measure=False)


def test_another_shape_needs_counting(store):
    with pytest.raises(AnswerError, match="has to be counted, and measuring was not allowed"):
        predict(BERT, [4096], layers=24, store=store, measure=False)


def test_measurements_that_do_not_tell_peaks_or_accesses_are_not_enough(tmp_path):
    with Store(tmp_path / "old.sqlite") as old:
        for length in LENGTHS:
            old.add([measurement(BERT, length, 0.1)])
        with pytest.raises(AnswerError, match="0 lengths"):
            predict(BERT, [4096], store=old, measure=False)
        for length in LENGTHS:
            old.add([replace(planted(BERT, length, pairs=length**2), peaks=None)])
        with pytest.raises(AnswerError, match="do not tell how fast the machine is"):
            predict(BERT, [4096], store=old, measure=False)


def test_few_lengths_are_said_to_make_wide_intervals(tmp_path):
    with Store(tmp_path / "few.sqlite") as few:
        for length in LENGTHS[:3]:
            few.add([planted(BERT, length, pairs=length**2)])
        found = predict(BERT, [4096], store=few, measure=False)
    assert any("1 fit only" in note for note in found.notes)


def test_longformer_is_fitted_by_what_it_pays_for(tmp_path):
    """Its lengths are padded to multiples of 512: three of these four cost the same."""
    with Store(tmp_path / "padded.sqlite") as padded:
        for length in (128, 256, 512, 1024):
            paid = max(512, length)
            one = planted("longformer", paid, pairs=512 * paid)
            spec = one.workload.replace(length=length)
            padded.add([replace(one, workload=spec, positions=length)])
        found = predict("longformer", [2048, 2500], store=padded, measure=False)
    model = found.models["longformer"]
    assert [positions for positions, _ in model.measured] == [512, 1024]
    assert found.estimates[1].executed_positions == 2560


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": []}, "at least one subject and one length"),
        ({"lengths": [10.5]}, "whole tokens"),
        ({"lengths": [-1]}, "must be positive"),
        ({"subjects": []}, "at least one subject"),
        ({"subjects": ["bert", "hubert"]}, "different modalities"),
        ({"subjects": "swinv2", "lengths": [256], "layers": 24}, "no plain stack"),
        ({"device_profile": "h10"}, "unknown device profile 'h10'"),
        ({"device_profile": PROFILE, "dtype": "bfloat16"}, "tells no rate in bfloat16; it has float32"),
    ],
)
def test_what_cannot_be_predicted_is_one_clear_sentence(store, arguments, message):
    given = {"subjects": BERT, "lengths": [4096], "store": store, "measure": False, **arguments}
    with pytest.raises(InputError, match=message):
        predict(given.pop("subjects"), given.pop("lengths"), **given)


def test_an_empty_store_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        predict(BERT, [4096], store=tmp_path / "none.sqlite", measure=False)
    with Store(tmp_path / "empty.sqlite") as empty, pytest.raises(AnswerError, match="is empty"):
        predict(BERT, [4096], store=empty, measure=False)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_work_is_counted_where_nothing_is_padded(name):
    row, lengths = ARCHITECTURES[name], counting_lengths(Subject(name))
    assert len(set(lengths)) == 4
    for length in lengths:
        assert row.check_length(length) == length
        assert row.executed_positions(length) == row.positions(length)


def test_work_of_wide_windows_is_counted_beyond_them():
    assert min(counting_lengths(Subject.parse("bert@local:window=300"))) >= 128 + 2 * 300
    with pytest.raises(AnswerError, match="blocks too large"):
        counting_lengths(Subject.parse("bert@local:window=1000000"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lengths_to_measure_ascend_and_cost_more_each_time(name):
    row = ARCHITECTURES[name]
    # What pads to a coarse multiple is measured over more of it.
    lengths = measuring_lengths([Subject(name)], max(4000, 8 * row.executed_positions(row.nearest_legal(1))))
    paid = [row.executed_positions(length) for length in lengths]
    assert paid == sorted(set(paid))
    assert len(paid) >= 5


def test_lengths_to_measure_suit_all_subjects():
    lengths = measuring_lengths([Subject("vit"), Subject("swinv2")], 1000)
    assert all(length % 32 == 0 for length in lengths)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_length_of_so_many_positions_is_the_shortest_one(name):
    row = ARCHITECTURES[name]
    length = length_of(row, 300)
    assert row.check_length(length) == length
    assert row.positions(length) >= 300
    step = 0.02 if row.unit == "seconds" else row.lengths.multiple_of
    if length > row.nearest_legal(row.lengths.minimum):
        assert row.positions(length - step) < 300


@needs_proc
@pytest.mark.parametrize("subject", ["bert", "bert@local:window=64"])
def test_counted_work_is_that_of_deeper_models_and_longer_inputs(subject):
    """Two shallow models tell the operations of a third one exactly."""
    from tippingpoint.models.build import build
    from tippingpoint.profiling.flops import count_flops

    parsed = Subject.parse(subject)
    spec = Workload(parsed, 128, size="tiny", threads=1, width=96)
    extent = Extent(count_work(spec, lambda line: None), 2**20)
    # No longer than the tiny vocabulary: of a table that is shorter than its output, each row is read once.
    deep = spec.replace(length=960, layers=5)
    counted, _ = count_flops(build(deep).call(deep))
    found = extent.at(960, 5)
    assert sum(found.flops) == pytest.approx(counted.total, rel=1e-9)
    assert sum(found.bytes) == pytest.approx(counted.bytes_accessed, rel=1e-3)
    assert found.peak_bytes


@needs_proc
def test_a_prediction_measures_counts_and_goes_on_where_it_was(tmp_path):
    path = tmp_path / "tiny.sqlite"
    lines: list[str] = []

    def run():
        return predict(
            "bert", [192, 10**6], size="tiny", threads=1, layers=3, width=96, budget_s=0.1, store=path,
            progress=lines.append,
        )  # fmt: skip

    found = run()
    assert [one.basis for one in found.estimates] == ["extrapolated", "extrapolated"]
    assert found.workload.layers == 3
    assert any("each doubling of depth or width" in note for note in found.notes)
    assert sum("measuring" in line for line in lines) == 3
    lines.clear()
    assert run().estimates[0].latency_s == pytest.approx(found.estimates[0].latency_s)
    assert not any("measuring" in line for line in lines)
    with Store(path, create=False) as kept:
        assert {outcome.workload.layers for outcome in kept.outcomes()} == {None}


def test_shipped_profiles_can_be_used_by_name(store):
    (one,) = predict(BERT, [4096], store=store, measure=False, device_profile="a100").estimates
    assert one.roofline is not None
    assert one.roofline.latency_s < one.latency_s
    assert math.isfinite(one.roofline.scaled_s)
    assert load_profile("a100").peaks("float32").flops_per_s == 19.5e12
    assert architecture_of(one.subject).name == "bert"
    assert found_environment(store) == ENVIRONMENT.fingerprint


def found_environment(store: Store) -> str:
    return list(store.environments())[-1]
