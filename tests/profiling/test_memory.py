from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tippingpoint.measurement import Memory
from tippingpoint.models.build import make_config
from tippingpoint.models.catalog import ARCHITECTURES, architecture_of, check_subject
from tippingpoint.profiling.memory import (
    activation_bytes,
    bound_call_bytes,
    chooses_mode,
    least_call_bytes,
    predict_call_bytes,
    weight_bytes,
)
from tippingpoint.profiling.process import WorkerProcess
from tippingpoint.workload import PHASES, Subject, Workload

MARGIN = 1.15

lengths = st.integers(1, 10_000)
linear = st.integers(1_000, 10**6)
quadratic = st.integers(1, 10**4)


def need(a: int, c: int, positions: int) -> int:
    return a * positions + c * positions**2


@given(a=linear, c=quadratic, short=lengths, between=lengths, beyond=lengths)
def test_a_linear_and_a_quadratic_part_are_told_apart_exactly_up_to_the_margin(a, c, short, between, beyond):
    known = [(short, need(a, c, short)), (short + between, need(a, c, short + between))]
    far = short + between + beyond
    # One division each of numbers below 1e13, subtracted: a relative error of the quadratic part that a far length
    # multiplies.
    slack = 1e-12 * (far / between) ** 2
    assert predict_call_bytes(known, far) == pytest.approx(MARGIN * need(a, c, far), rel=1e-9 + slack, abs=1)


@given(a=linear, short=lengths, between=lengths, beyond=lengths)
def test_what_grows_linearly_is_predicted_to_go_on_so(a, short, between, beyond):
    known = [(short, need(a, 0, short)), (short + between, need(a, 0, short + between))]
    far = short + between + beyond
    slack = 1e-12 * (far / between) ** 2
    assert predict_call_bytes(known, far) == pytest.approx(MARGIN * need(a, 0, far), rel=1e-9 + slack, abs=1)


@given(a=linear, overhead=st.integers(0, 10**8), short=lengths, between=lengths, beyond=lengths)
def test_a_need_that_grows_less_than_linearly_is_never_predicted_to_grow_more(a, overhead, short, between, beyond):
    points = [short, short + between]
    far = short + between + beyond
    found = predict_call_bytes([(n, overhead + a * n) for n in points], far)
    assert found is not None
    slack = 1e-12 * (far / between) ** 2
    assert a * far <= found * (1 + slack) + 1
    assert found <= MARGIN * (overhead + a * points[1]) * far / points[1] * (1 + 1e-9 + slack) + 1


@given(c=quadratic, positions=lengths, beyond=lengths)
def test_a_single_length_is_taken_as_quadratic(c, positions, beyond):
    far = positions + beyond
    assert predict_call_bytes([(positions, c * positions**2)], far) == pytest.approx(
        MARGIN * c * far**2, rel=1e-9, abs=1
    )


points = st.lists(
    st.tuples(lengths, st.integers(1, 10**12)), min_size=1, max_size=5, unique_by=lambda point: point[0]
)


@given(points, lengths, st.integers(0, 10_000))
def test_a_longer_input_is_never_predicted_to_need_less_nor_anything_less_than_the_longest_known(known, length, more):
    shorter, longer = predict_call_bytes(known, length), predict_call_bytes(known, length + more)
    assert shorter is not None
    assert longer is not None
    # Each is truncated to whole bytes.
    assert shorter <= longer + 1
    assert shorter >= int(max(known)[1])


@given(points, st.randoms(use_true_random=False), lengths)
def test_the_order_of_known_lengths_does_not_matter(known, random, length):
    shuffled = random.sample(known, len(known))
    assert predict_call_bytes(shuffled, length) == predict_call_bytes(known, length)


def test_up_to_the_longest_known_length_its_own_need_is_expected():
    known = [(100, 10_000), (200, 50_000)]
    assert predict_call_bytes(known, 150) == predict_call_bytes(known, 200) == int(MARGIN * 50_000)


def test_where_nothing_is_known_nothing_is_predicted():
    assert predict_call_bytes([], 100) is None
    assert predict_call_bytes([(100, 0)], 100) is None


@pytest.mark.parametrize(
    ("phase", "dtype", "each"),
    [
        ("inference", "float32", 4),
        ("inference", "bfloat16", 2),
        # Weights, gradients and two moments, in float32 whatever autocast computes in.
        ("training", "float32", 16),
        ("training", "bfloat16", 16),
    ],
)
def test_weights_take_their_own_bytes_and_training_takes_gradients_and_moments_with_them(phase, dtype, each):
    workload = Workload("bert", 512, phase=phase, dtype=dtype)
    assert weight_bytes(workload, 1000) == 1000 * each
    memory = Memory(peak_bytes=20_000, weights_bytes=4_000, method="counted")
    assert activation_bytes(workload, memory, 1000) == 20_000 - 1000 * each
    assert activation_bytes(workload, memory, 10**6) == 0


def bound(workload: Workload) -> int:
    return bound_call_bytes(workload, architecture_of(workload.subject), make_config(workload).to_dict())


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_the_bound_grows_with_the_length_and_the_batch_and_is_larger_in_training(row, phase):
    short, long = (row.nearest_legal(scale * (1 if row.modality == "speech" else 600)) for scale in (1, 2))
    workload = Workload(row.name, short, phase=phase)
    assert bound(workload) < bound(workload.replace(length=long))
    assert bound(workload) < bound(workload.replace(batch_size=2))
    assert bound(workload.replace(phase="inference")) < bound(workload.replace(phase="training"))


def test_full_attention_is_bounded_quadratically_and_windows_of_images_linearly():
    text = [bound(Workload("bert", length)) for length in (16_384, 32_768)]
    assert text[1] / text[0] == pytest.approx(4, abs=0.3)
    images = [bound(Workload("swinv2", length)) for length in (1024, 2048)]
    assert images[1] / images[0] == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("subject", "length", "size", "batch_size", "dtype"),
    [
        ("bert@eager", 256, "small", 1, "float32"),
        ("bert", 512, "tiny", 4, "bfloat16"),
        ("bert@local:window=32", 700, "tiny", 4, "float32"),
        ("longformer", 600, "tiny", 2, "bfloat16"),
        ("nystromformer", 500, "tiny", 2, "float32"),
        ("hubert", 1.0, "small", 1, "float32"),
        ("vit@eager", 320, "tiny", 2, "float32"),
        ("swinv2", 224, "tiny", 2, "float32"),
        ("bert@reuse:group=2,mode=map", 1024, "tiny", 2, "float32"),
        ("bert@reuse:group=2,maps=bfloat16,mode=map", 1024, "tiny", 1, "bfloat16"),
        ("bert@reuse:group=0-2/2_1-3/2,mode=map", 512, "small", 1, "float32"),
        ("bert@local:window=32+reuse:group=2,mode=map", 700, "tiny", 4, "float32"),
        ("wav2vec2-conformer@reuse:group=2,mode=map", 6.0, "tiny", 2, "float32"),
    ],
)
def test_the_bound_holds_for_what_is_measured(subject, length, size, batch_size, dtype, phase):
    workload = Workload(subject, length, size=size, batch_size=batch_size, dtype=dtype, phase=phase)
    with WorkerProcess("cpu", 2) as worker:
        parameters = worker.ask("build", workload)
        needed = activation_bytes(workload, worker.ask("measure_memory"), parameters)
    assert 0 < needed <= bound(workload)
    if "mode=map" in subject:
        assert 0 < least(workload) <= needed


def least(workload: Workload) -> int:
    return least_call_bytes(workload, architecture_of(workload.subject), make_config(workload).to_dict())


def maps(subject: str, length: float = 1000, **fields: Any) -> float:
    """Maps of full attention, in float32, that no call can do without."""
    workload = Workload(subject, length, size="small", **fields)
    row = architecture_of(workload.subject)
    heads = row.shape(make_config(workload).to_dict()).heads
    return least(workload) / (workload.batch_size * heads * row.positions(length) ** 2 * 4)


def test_one_map_of_a_group_at_a_time_is_certain_in_inference_and_all_of_them_in_training():
    assert maps("bert@reuse:group=2,mode=map") == maps("bert@reuse:group=4,mode=map") == 1
    assert maps("bert@reuse:group=2,mode=map", phase="training") == 2
    assert maps("bert@reuse:group=4,mode=map", phase="training") == 1
    assert maps("bert@reuse:group=1-2,mode=map", phase="training", batch_size=3) == 1
    # Groups that interleave have both maps alive.
    assert maps("bert@reuse:group=0-2/2_1-3/2,mode=map") == 2
    assert maps("wav2vec2-conformer@reuse:group=2,mode=map", 12.5) == 1
    assert maps("vit@reuse:group=4,mode=map", 320) == 1


def test_maps_in_half_precision_take_half():
    assert maps("bert@reuse:group=2,maps=bfloat16,mode=map") == 0.5
    assert maps("bert@reuse:group=2,mode=map", dtype="bfloat16") == 0.5
    assert maps("bert@reuse:group=2,maps=bfloat16,mode=map", dtype="bfloat16") == 0.5


@pytest.mark.parametrize("phase", PHASES)
def test_no_map_is_certain_where_none_is_kept_or_the_mode_is_measured(phase):
    for subject in ("bert", "bert@reuse:group=2,mode=recompute", "bert@reuse:group=2", "bert@reuse:group=1,mode=map"):
        assert maps(subject, phase=phase) == 0
    assert maps("bert@local:window=50+reuse:group=2,mode=recompute", phase=phase) == 0


def test_maps_of_local_attention_grow_linearly():
    def columns(subject: str) -> float:
        return maps(subject, 2000) * 2000

    assert columns("bert@local:window=50+reuse:group=4,mode=map") == 64 + 100
    assert columns("bert@local:window=50,num_global=3+reuse:group=4,mode=map") == 64 + 100 + 3
    assert columns("bert@local:causal=true,window=50+reuse:group=4,mode=map") == 64 + 50


def test_layers_with_a_window_of_their_own_share_no_map():
    # Of ModernBERT's layers those numbered 0, 3, 6 ... see everything.
    config = make_config(Workload("modernbert", 512, size="base")).to_dict()
    full = config["layer_types"].count("full_attention")
    assert 1 < full < config["num_hidden_layers"]
    workload = Workload("modernbert@reuse:group=2,mode=map", 512, phase="training")
    each = architecture_of(workload.subject).shape(config).heads * 512**2 * 4
    assert least(workload) == full // 2 * each


def test_a_mode_is_chosen_in_the_first_call_unless_one_is_given():
    assert chooses_mode(check_subject(Subject.parse("bert@reuse:group=3")))
    assert not chooses_mode(check_subject(Subject.parse("bert@reuse:group=3,mode=map")))
    assert not chooses_mode(check_subject(Subject.parse("bert@local")))


def test_what_choosing_a_mode_takes_is_not_counted_as_the_models():
    needed = {}
    for mode in ("map", "recompute", "auto"):
        workload = Workload(f"bert@reuse:group=2,mode={mode}", 2048, size="tiny", threads=1)
        with WorkerProcess("cpu", 1) as worker:
            parameters = worker.ask("build", workload)
            needed[mode] = activation_bytes(workload, worker.ask("measure_memory"), parameters)
    # Which one is faster is not known here; what both take together would be much more than either.
    chosen = min(("map", "recompute"), key=lambda mode: abs(needed[mode] - needed["auto"]))
    assert needed["map"] > needed["recompute"] + 2**24
    assert needed["auto"] == pytest.approx(needed[chosen], abs=10 * 2**20)
