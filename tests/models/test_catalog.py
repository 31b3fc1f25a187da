import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models.architecture import Architecture
from tippingpoint.models.build import build, count_parameters, make_config
from tippingpoint.models.catalog import (
    ARCHITECTURES,
    VARIANTS,
    architecture_of,
    check_subject,
    is_vanilla,
    modality_of,
    resolve,
)
from tippingpoint.models.shape import Shape
from tippingpoint.units import UNITS
from tippingpoint.workload import SIZES, Subject, Workload

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = list(ARCHITECTURES.values())
every_architecture = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@pytest.mark.parametrize("table", [ARCHITECTURES, VARIANTS])
def test_the_catalogue_is_a_table_that_nobody_can_change(table):
    for name, row in table.items():
        assert row.name == name
        assert row.title
        assert row.paper.startswith("arXiv:")
    with pytest.raises(TypeError):
        table["mine"] = next(iter(table.values()))


@every_architecture
def test_every_architecture_has_every_size_and_a_unit(row):
    assert set(row.sizes) == set(SIZES)
    assert row.unit == UNITS[row.modality]


@pytest.mark.parametrize("row", VARIANTS.values(), ids=lambda row: row.name)
def test_every_variant_is_the_librarys_or_has_a_function_and_an_oracle_and_defaults_for_every_modality(row):
    assert sum(way is not None for way in (row.library_name, row.function, row.module)) == (not row.shares_maps)
    assert (row.library_name is None and not row.shares_maps) == (row.oracle is not None)
    for option in row.options.values():
        assert all(option.check(option.default_for(modality)) is not None for modality in UNITS)
        assert option.meaning


def is_legal(row: Architecture, length: float) -> bool:
    try:
        row.check_length(length)
    except InputError:
        return False
    return True


@every_architecture
@given(st.integers(1, 1200) | st.floats(0.001, 1200))
def test_the_nearest_legal_length_is_legal_and_none_is_nearer(row, length):
    nearest = row.nearest_legal(length)
    assert is_legal(row, nearest)
    if is_legal(row, length):
        # Seconds are rounded to a millisecond.
        assert abs(nearest - length) <= (0.0005 + 1e-12 if row.unit == "seconds" else 0)
    elif row.unit != "seconds":
        legal = (n for n in range(1, 1400) if is_legal(row, n))
        assert abs(nearest - length) == min(abs(n - length) for n in legal)


@every_architecture
@given(st.integers(1, 1200) | st.floats(0.001, 1200))
def test_an_illegal_length_is_refused_with_the_nearest_legal_one(row, length):
    if not is_legal(row, length):
        with pytest.raises(InputError, match=row.name) as caught:
            row.check_length(length)
        assert f"{row.nearest_legal(length):g}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [
        ("bert", 12.5, "bert takes whole tokens, got 12.5; the nearest is 12"),
        ("bert", 0, "a length must be positive, got 0"),
        (
            "nystromformer",
            64,
            r"nystromformer takes no input shorter than 65 tokens \(with no more positions than its 64 landmarks "
            r"the library runs full attention\), got 64 tokens",
        ),
        ("hubert", 0.02, r"hubert takes no input shorter than 0.0250 s \(.* needs 400 samples .*\), got 0.0200 s"),
        (
            "vit",
            225,
            r"vit takes multiples of 16 pixels \(its patches are 16 pixels wide\), got 225; the nearest is 224",
        ),
        ("vit", 8, r"vit takes no input shorter than 16 px \(its patches are 16 pixels wide\), got 8 px"),
        ("swinv2", 200, r"swinv2 takes multiples of 32 pixels \(.*\), got 200; the nearest is 192"),
    ],
)
def test_what_is_wrong_with_a_length_is_said_in_its_own_unit(name, length, message):
    with pytest.raises(InputError, match=message):
        ARCHITECTURES[name].check_length(length)


def output_positions(name: str, length: float) -> int:
    workload = Workload(name, length, size="tiny")
    subject = build(workload)
    with torch.inference_mode():
        return subject.model(**subject.inputs(workload)).last_hidden_state.shape[1]


def positions_of_first_layer(name: str, length: float) -> int:
    """Return how many positions enter the first layer of a model, whatever it pads and cuts off again."""
    workload = Workload(name, length, size="tiny")
    subject = build(workload)
    found: list[int] = []
    layers = [m for m in subject.model.modules() if type(m).__name__.endswith(("Layer", "Swinv2Attention"))]
    layers[0].register_forward_pre_hook(lambda module, args: found.append(args[0].shape[0] * args[0].shape[1]))
    with torch.inference_mode():
        subject.model(**subject.inputs(workload))
    return found[0]


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("bert", (1, 2, 37)),
        ("longformer", (1, 511, 513)),
        ("hubert", (0.025, 0.0451, 0.1, 0.4375, 1.0, 1.23456)),
        ("vit", (16, 48, 80)),
    ],
)
def test_positions_are_those_of_the_models_output(name, lengths):
    for length in lengths:
        assert output_positions(name, length) == ARCHITECTURES[name].positions(length)


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("bert", (37,)), ("longformer", (1, 512, 513)), ("nystromformer", (65, 100, 128, 129)), ("vit", (48,))],
)
def test_executed_positions_are_those_that_enter_the_models_layers(name, lengths):
    for length in lengths:
        assert positions_of_first_layer(name, length) == ARCHITECTURES[name].executed_positions(length)


def test_nystromformer_gives_back_its_padding_too():
    assert output_positions("nystromformer", 100) == 128
    assert ARCHITECTURES["nystromformer"].positions(100) == 100


@pytest.mark.parametrize("length", [32, 64, 96, 224])
def test_swin_positions_are_those_of_the_windows_of_its_first_stage(length):
    row = ARCHITECTURES["swinv2"]
    subject = build(Workload("swinv2", length, size="tiny"))
    windows: list[torch.Size] = []
    attention = next(m for m in subject.model.modules() if type(m).__name__ == "Swinv2Attention")
    attention.register_forward_pre_hook(lambda module, args: windows.append(args[0].shape))
    with torch.inference_mode():
        subject.model(**subject.inputs(Workload("swinv2", length, size="tiny")))
    count, area, _ = windows[0]
    assert count * area == row.executed_positions(length)
    # Legal lengths fill the windows of the first stage; only later, coarser stages are padded.
    assert row.executed_positions(length) == row.positions(length)


@every_architecture
def test_longer_inputs_never_have_fewer_positions(row):
    start = row.lengths.minimum
    lengths = [row.nearest_legal(start * 1.07**n) for n in range(60)]
    for first, second in pairwise(lengths):
        assert row.positions(first) <= row.positions(second)
        assert row.executed_positions(first) >= row.positions(first)


D, FFN, LAYERS = 768, 3072, 12
# Four projections, two feed-forward matrices, all with biases, and two normalisations.
LAYER = 4 * (D * D + D) + (D * FFN + FFN) + (FFN * D + D) + 2 * 2 * D
POOLER = D * D + D


def text_parameters(vocabulary: int, positions: int, types: int) -> int:
    """Embeddings, their normalisation, layers and pooler of a BERT of Base size."""
    return (vocabulary + positions + types) * D + 2 * D + LAYERS * LAYER + POOLER


def hubert_parameters() -> int:
    convolutions = 512 * 10 + 512 * 512 * (3 + 3 + 3 + 3 + 2 + 2)
    group_norm = 2 * 512
    projection = 2 * 512 + 512 * D + D
    # A convolution of 16 groups and width 128 with one magnitude for each tap, a bias, and a normalisation.
    positional = D * (D // 16) * 128 + 128 + D + 2 * D
    mask_embedding = D
    return convolutions + group_norm + projection + positional + mask_embedding + LAYERS * LAYER


def swinv2_parameters() -> int:
    width, total = 128, (3 * 16 + 1) * 128 + 2 * 128
    for stage, (depth, heads) in enumerate([(2, 4), (2, 8), (18, 16), (2, 32)]):
        # Queries and values have biases, keys have none; each head has a temperature and learns its position bias
        # from two coordinates through 512 units.
        attention = 4 * width * width + 3 * width + heads + (2 + 1) * 512 + 512 * heads
        feed_forward = 2 * 4 * width * width + 5 * width
        total += depth * (attention + feed_forward + 2 * 2 * width)
        if stage < 3:
            total += 4 * width * 2 * width + 2 * 2 * width
            width *= 2
    return total + 2 * width


@pytest.mark.parametrize(
    ("workload", "derived", "published_millions"),
    [
        (Workload("bert", 512), text_parameters(30522, 512, 2), 109.48),
        # Three projections more in each layer for a global attention that is not asked for.
        (Workload("longformer", 4096), text_parameters(50265, 4098, 1) + LAYERS * 3 * (D * D + D), 148.66),
        # 510 positions and two before them; a convolution of width 65 for each of 12 heads; no pooler.
        (Workload("nystromformer", 510), text_parameters(30000, 512 + 2, 2) - POOLER + LAYERS * 65 * 12, 108.5),
        (Workload("hubert", 1.0), hubert_parameters(), 94.37),
        (Workload("vit", 224), (3 * 256 + 1) * D + D + 197 * D + LAYERS * LAYER + 2 * D + POOLER, 86.39),
        (Workload("swinv2", 256), swinv2_parameters(), 86.9),
    ],
    ids=lambda value: str(value.subject) if isinstance(value, Workload) else "",
)
def test_base_models_have_the_published_number_of_parameters(workload, derived, published_millions):
    assert count_parameters(workload) == derived
    digits = 10 ** -len(str(published_millions).partition(".")[2])
    assert abs(derived / 1e6 - published_millions) <= digits


STACKS = [row.name for row in ROWS if not row.stages]


@pytest.mark.parametrize("name", STACKS)
def test_another_width_keeps_the_heads_and_the_ratio_of_the_feed_forward_part(name):
    row = ARCHITECTURES[name]
    length = row.nearest_legal(256)
    config = make_config(Workload(name, length, layers=3, width=1024)).to_dict()
    own = row.shape(make_config(Workload(name, length)).to_dict())
    heads = 1024 // own.head_dim if "heads" in row.keys else 1
    assert row.shape(config) == Shape(layers=3, width=1024, heads=heads, wide=own.wide * 1024 // own.width)


@pytest.mark.parametrize("name", [name for name in STACKS if "heads" in ARCHITECTURES[name].keys])
def test_a_width_that_is_no_multiple_of_a_head_names_the_nearest(name):
    row = ARCHITECTURES[name]
    length = row.nearest_legal(256)
    head = row.shape(make_config(Workload(name, length)).to_dict()).head_dim
    assert head == (128 if name == "parakeet_encoder" else 64)
    with pytest.raises(InputError, match=rf"multiple of its heads' {head} dimensions, got 1000; the nearest is 1024"):
        make_config(Workload(name, length, width=1000))
    with pytest.raises(InputError, match=rf"got 10; the nearest is {head}"):
        make_config(Workload(name, length, width=10))


@pytest.mark.parametrize("changes", [{"layers": 3}, {"width": 128}])
def test_an_architecture_of_stages_has_no_other_depth_or_width(changes):
    with pytest.raises(InputError, match="no plain stack of equal layers"):
        make_config(Workload("swinv2", 64, size="tiny", **changes))
    assert ARCHITECTURES["swinv2"].layers("base") is None


def test_a_size_has_the_depth_that_it_is_built_with():
    for name in STACKS:
        for size in SIZES:
            row = ARCHITECTURES[name]
            config = make_config(Workload(name, row.nearest_legal(256), size=size))
            assert row.layers(size) == getattr(config, row.keys["layers"])


TRANSFORMER = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("bert", TRANSFORMER),
        ("longformer", {**TRANSFORMER, "attention_window": 512}),
        ("nystromformer", {**TRANSFORMER, "num_landmarks": 64, "conv_kernel_size": 65}),
        ("hubert", {**TRANSFORMER, "feat_extract_norm": "group", "conv_stride": [5, 2, 2, 2, 2, 2, 2]}),
        ("vit", {**TRANSFORMER, "patch_size": 16}),
        ("swinv2", {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 8}),
    ],
)
def test_base_models_have_the_published_shape(name, published):
    config = make_config(Workload(name, 1 if name == "hubert" else 256)).to_dict()
    found = {key: list(config[key]) if isinstance(config[key], list | tuple) else config[key] for key in published}
    assert found == published


@pytest.mark.parametrize("size", SIZES)
def test_length_arithmetic_rests_on_the_numbers_that_models_of_every_size_are_built_with(size):
    def config(name: str) -> dict[str, Any]:
        return make_config(Workload(name, 256, size=size)).to_dict()

    rows = ARCHITECTURES
    assert rows["longformer"].executed_positions(1) == config("longformer")["attention_window"]
    assert rows["nystromformer"].lengths.minimum == config("nystromformer")["num_landmarks"] + 1
    assert rows["nystromformer"].executed_positions(65) == 2 * config("nystromformer")["num_landmarks"]
    assert rows["vit"].positions(256) == (256 // config("vit")["patch_size"]) ** 2 + 1
    assert rows["swinv2"].positions(256) == (256 // config("swinv2")["patch_size"]) ** 2
    assert config("swinv2")["window_size"] == 8


@every_architecture
def test_counting_parameters_without_building_gives_those_of_the_built_model(row):
    workload = Workload(row.name, row.nearest_legal(64), size="tiny")
    assert count_parameters(workload) == build(workload).parameters


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_adds_the_parameters_that_it_learns(name):
    plain, workload = (Workload(subject, 40, size="tiny") for subject in ("bert", f"bert@{name}"))
    # Of Linformer: keys and values are projected from 256 positions to 256, in 2 layers. Of the layer that reuses a
    # map: it has neither queries nor keys.
    learned = {"linformer": 2 * 2 * 256 * 256, "reuse": -2 * (64 * 64 + 64)}.get(name, 0)
    assert count_parameters(workload) == count_parameters(plain) + learned == build(workload).parameters


def test_a_longer_text_adds_a_row_for_each_position():
    assert count_parameters(Workload("bert", 1000)) - count_parameters(Workload("bert", 512)) == 488 * D


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("brt", "unknown architecture 'brt'; expected one of .* Did you mean 'bert'"),
        ("longfromer", "unknown architecture 'longfromer'; expected one of .* Did you mean 'longformer'"),
        ("bert@locl", "unknown variant 'locl'; expected one of sdpa, eager, local.* Did you mean 'local'"),
        ("bert@local:windw=3", "unknown option of 'local' 'windw'; expected one of window, .* Did you mean 'window'"),
        ("bert@eager:window=3", "variant 'eager' takes no options, got 'window'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(text, message):
    with pytest.raises(InputError, match=message):
        check_subject(Subject.parse(text))


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("window=0", "0"),
        ("window=-1", "-1"),
        ("window=2.5", "2.5"),
        ("window=true", "True"),
        ("window=wide", "'wide'"),
    ],
)
def test_an_illegal_option_value_is_answered_with_its_meaning_and_range(option, given):
    message = rf"local:window \(one-sided radius in positions.*\) must be a whole number of at least 1, got {given}"
    with pytest.raises(InputError, match=message):
        check_subject(Subject.parse(f"bert@local:{option}"))


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.efficient_attention])
def test_an_architecture_with_an_attention_of_its_own_takes_no_variant_and_names_those_that_do(name):
    with pytest.raises(UnsupportedError) as caught:
        check_subject(Subject.parse(f"{name}@local"))
    message = str(caught.value)
    assert message.startswith(f"{name} has an attention of its own (")
    takers = ", ".join(row.name for row in ROWS if row.takes_variants)
    assert f"drop '@local', or put the variant into one of {takers}" in message


def test_variants_that_do_not_compose_are_refused_together():
    with pytest.raises(UnsupportedError, match="variants local and eager do not compose"):
        check_subject(Subject.parse("bert@local+eager"))


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("bert", "bert"),
        ("bert@sdpa", "bert@sdpa"),
        ("hubert@local", "hubert@local:window=50"),
        ("bert@local", "bert@local:window=128"),
        ("bert@local:window=7,num_global=0", "bert@local:window=7"),
        ("bert@local:window=7,num_global=2", "bert@local:num_global=2,window=7"),
        ("bert@local:window=7,causal=false", "bert@local:window=7"),
        ("bert@heads:keep=1", "bert@heads:keep=1.0"),
        ("bert@linear", "bert@linear:feature_map=favor,num_features=256"),
        ("bert@linformer:max_length=0", "bert@linformer:rank=256"),
        (
            "bert@pooled:layers=2-3+local:layers=0,window=7",
            "bert@pooled:layers=2-3,ratio=4+local:layers=0,window=7",
        ),
    ],
)
def test_two_spellings_of_the_same_thing_become_one(written, canonical):
    subject = check_subject(Subject.parse(written))
    assert str(subject) == canonical
    assert check_subject(subject) == subject


def test_defaults_are_those_of_the_modality():
    local = VARIANTS["local"].options["window"]
    for modality, window in (("text", 128), ("speech", 50), ("vision", 128)):
        assert local.default_for(modality) == window
        assert str(resolve(Subject.parse("x@local"), modality)) == f"x@local:window={window}"


def test_subjects_of_one_comparison_are_of_one_modality():
    assert modality_of((Subject("bert"), Subject.parse("longformer"))) == "text"
    with pytest.raises(InputError, match=r"cannot be compared: bert \(text\) and vit \(vision\)"):
        modality_of((Subject("bert"), Subject("vit")))


@pytest.mark.parametrize(
    ("text", "vanilla"),
    [("bert", True), ("bert@eager", True), ("vit@sdpa", True), ("bert@local", False), ("longformer", False)],
)
def test_full_attention_is_vanilla_fused_or_not(text, vanilla):
    assert is_vanilla(Subject.parse(text)) == vanilla


def test_a_second_of_speech_is_49_frames_of_20_milliseconds():
    row = architecture_of(Subject("hubert"))
    assert row.positions(1.0) == 49
    # The receptive field of a frame is 400 samples, and frames are 320 samples apart.
    for seconds in (0.025, 0.5, 3.21, 60):
        assert row.positions(seconds) == 1 + math.floor((round(seconds * 16_000) - 400) / 320)
