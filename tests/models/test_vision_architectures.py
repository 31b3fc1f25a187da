"""Image encoders beyond ViT: shapes, lengths, FLOPs and the variants they take."""

import re
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.measurement import Flops
from tippingpoint.models.build import build, count_parameters, make_config, make_model
from tippingpoint.models.catalog import ARCHITECTURES, algorithmic_flops, check_subject
from tippingpoint.models.swap import swap_attention
from tippingpoint.profiling.flops import count_flops
from tippingpoint.profiling.memory import activation_bytes, bound_call_bytes
from tippingpoint.profiling.process import WorkerProcess
from tippingpoint.workload import PHASES, SIZES, Subject, Workload

pytestmark = pytest.mark.usefixtures("one_thread")

FUSED = "_scaled_dot_product_flash_attention_for_cpu"
PLAIN = {"deit": (16, 2), "dinov2": (14, 1), "clip_vision_model": (16, 1), "dinov3_vit": (16, 5), "beit": (16, 1)}
STAGED = ("swin", "swinv2", "pvt_v2", "hiera")
TAKERS = [name for name in PLAIN if name != "beit"]
every_phase = pytest.mark.parametrize("phase", PHASES)


def linear(rows: int, width_in: int, width_out: int) -> int:
    return 2 * rows * width_in * width_out


def tiny(name: str, length: float = 0, **fields: Any) -> Workload:
    return Workload(name, length or ARCHITECTURES[name].nearest_legal(64), size="tiny", **fields)


def counted(workload: Workload) -> tuple[Flops, int, dict[str, Any]]:
    live = build(workload)
    flops, _ = count_flops(live.call(workload))
    assert flops.uncounted == ()
    algorithmic = algorithmic_flops(workload, live.config)
    assert algorithmic is not None
    return flops, algorithmic, live.config


def counted_on_paper(workload: Workload) -> tuple[int, int]:
    """Executed and algorithmic FLOPs of a model without memory, so of any size."""
    row, config = ARCHITECTURES[workload.subject.architecture], make_config(workload)
    with torch.device("meta"):
        model = make_model(row, config)
    training = workload.phase == "training"
    model.train(training).requires_grad_(training)
    inputs = row.inputs(config.to_dict(), workload.batch_size, workload.length, torch.Generator())
    inputs = {name: tensor.to("meta") for name, tensor in inputs.items()}

    def call() -> None:
        hidden = model(**inputs).last_hidden_state
        if training:
            hidden.square().mean().backward()

    executed, _ = count_flops(call)
    algorithmic = algorithmic_flops(workload, config.to_dict())
    assert algorithmic is not None
    return executed.total, algorithmic


def hidden(model: PreTrainedModel, inputs: Tensor, **others: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(pixel_values=inputs, **others).last_hidden_state


def close(first: Tensor, second: Tensor) -> bool:
    bound = 1000 * torch.finfo(torch.float64).eps * float(second.abs().max())
    return bool((first - second).abs().max() <= bound)


# Shapes


D, FFN, LAYERS = 768, 3072, 12
# Four projections, two feed-forward matrices, all with biases, and two normalisations.
LAYER = 4 * (D * D + D) + (D * FFN + FFN) + (FFN * D + D) + 2 * 2 * D
SCALES, CLASS, NORM, POOLER = 2 * D, D, 2 * D, D * D + D


def patches(side: int, bias: bool = True) -> int:
    return 3 * side * side * D + bias * D


def swin_parameters() -> int:
    width, total = 128, 3 * 16 * 128 + 3 * 128
    for stage, (depth, heads) in enumerate([(2, 4), (2, 8), (18, 16), (2, 32)]):
        layer = 4 * (width * width + width) + 8 * width * width + 5 * width + 4 * width
        total += depth * (layer + 13 * 13 * heads)
        if stage < 3:
            total += 4 * width * 2 * width + 2 * 4 * width
            width *= 2
    return total + 2 * width


def pvt_parameters(depths: tuple[int, ...], ratios: tuple[int, ...]) -> int:
    total, channels = 0, 3
    for stage, width in enumerate((64, 128, 320, 512)):
        kernel, reduction, wide = (7, 3, 3, 3)[stage], (8, 4, 2, 1)[stage], ratios[stage] * width
        total += kernel * kernel * channels * width + width + 2 * 2 * width
        attention = 4 * (width * width + width)
        if reduction > 1:
            attention += reduction * reduction * width * width + width + 2 * width
        feed_forward = width * wide + wide + 9 * wide + wide + wide * width + width
        total += depths[stage] * (attention + feed_forward + 2 * 2 * width)
        channels = width
    return total


def hiera_parameters() -> int:
    width, total = 96, 3 * 49 * 96 + 96 + 56 * 56 * 96
    for stage, depth in enumerate((2, 3, 16, 3)):
        for layer in range(depth):
            width_in = width
            if stage and layer == 0:
                width *= 2
                total += width_in * width + width
            total += width_in * 3 * width + 3 * width + width * width + width
            total += 8 * width * width + 5 * width + 2 * width_in + 2 * width
    return total + 2 * width


@pytest.mark.parametrize(
    ("workload", "derived", "head", "published_millions"),
    [
        # The distilled model has two classifiers.
        (
            Workload("deit", 224),
            patches(16) + 2 * CLASS + 198 * D + LAYERS * LAYER + NORM + POOLER,
            2 * 769_000 - POOLER,
            87,
        ),
        # Scales on both branches of a layer, and a token for what is masked.
        (
            Workload("dinov2", 518),
            patches(14) + 2 * CLASS + (37 * 37 + 1) * D + LAYERS * (LAYER + SCALES) + NORM,
            0,
            86.6,
        ),
        # Patches have no bias; a normalisation stands before the layers and one on the class token after them.
        (Workload("clip_vision_model", 224), patches(16, False) + CLASS + 197 * D + LAYERS * LAYER + 2 * NORM, 0, 86),
        # Positions are turned into queries and keys, so there is no table; keys have no bias.
        (
            Workload("dinov3_vit", 224),
            patches(16) + (1 + 4 + 1) * D + LAYERS * (LAYER - D + SCALES) + NORM,
            0,
            86,
        ),
        # A bias for each offset of two patches and three for the class token, for each head of each layer.
        (
            Workload("beit", 224),
            patches(16) + CLASS + LAYERS * (LAYER - D + SCALES + (27 * 27 + 3) * 12) + NORM,
            769_000,
            86.5,
        ),
        (Workload("swin", 224), swin_parameters(), 1025_000, 88),
        (Workload("pvt_v2", 224), pvt_parameters((3, 6, 40, 3), (4, 4, 4, 4)), 513_000, 82.0),
        (Workload("pvt_v2", 224, size="small"), pvt_parameters((3, 4, 6, 3), (8, 8, 4, 4)), 513_000, 25.4),
        (Workload("hiera", 224), hiera_parameters(), 769_000, 52),
    ],
    ids=lambda value: f"{value.subject}-{value.size}" if isinstance(value, Workload) else "",
)
def test_models_have_the_published_number_of_parameters(workload, derived, head, published_millions):
    """`head` is what the published number has beside the encoder: a classifier, but no pooler."""
    assert count_parameters(workload) == derived
    digits = 10 ** -len(str(published_millions).partition(".")[2]) if isinstance(published_millions, float) else 1
    assert abs((derived + head) / 1e6 - published_millions) <= digits / 2 + 0.06


@pytest.mark.parametrize("size", SIZES)
def test_length_arithmetic_rests_on_the_numbers_that_models_of_every_size_are_built_with(size):
    for name, (patch, others) in PLAIN.items():
        row = ARCHITECTURES[name]
        length = row.nearest_legal(256)
        config = make_config(Workload(name, length, size=size)).to_dict()
        assert config["patch_size"] == patch == row.lengths.multiple_of == row.lengths.minimum
        assert row.positions(length) == (length // patch) ** 2 + others
        assert others == config.get("num_register_tokens", 0) + (2 if name == "deit" else 1)
    for name, window in (("swin", 7), ("swinv2", 8)):
        config = make_config(Workload(name, 256, size=size)).to_dict()
        assert (config["patch_size"], config["window_size"], config["drop_path_rate"]) == (4, window, 0)
    pvt = make_config(Workload("pvt_v2", 256, size=size)).to_dict()
    # In every stage a key stands for 32 x 32 pixels.
    stride = 1
    for reduction, step in zip(pvt["sr_ratios"], pvt["strides"], strict=True):
        stride *= step
        assert stride * reduction == ARCHITECTURES["pvt_v2"].lengths.multiple_of
    hiera = make_config(Workload("hiera", 256, size=size)).to_dict()
    # Three times pooled by 2, a unit of 8 is one position; with fewer stages its positions would lie apart.
    assert hiera["num_query_pool"] == len(hiera["depths"]) - 1 == 3
    assert list(hiera["masked_unit_size"]) == [8, 8]
    assert 8 * hiera["patch_stride"][0] == ARCHITECTURES["hiera"].lengths.multiple_of


def entering(name: str, length: float, kind: str) -> list[torch.Size]:
    """Return the shapes that enter the modules of a kind."""
    workload = tiny(name, length)
    subject = build(workload)
    found: list[torch.Size] = []
    for module in subject.model.modules():
        if type(module).__name__ == kind:
            module.register_forward_pre_hook(
                lambda module, args, kwargs: found.append((*args, *kwargs.values())[0].shape), with_kwargs=True
            )
    with torch.inference_mode():
        subject.model(**subject.inputs(workload))
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("deit", "DeiTLayer"),
        ("dinov2", "Dinov2Layer"),
        ("clip_vision_model", "CLIPEncoderLayer"),
        ("dinov3_vit", "DINOv3ViTLayer"),
        ("beit", "BeitLayer"),
        ("pvt_v2", "PvtV2BlockLayer"),
        ("hiera", "HieraLayer"),
    ],
)
def test_positions_are_those_that_enter_the_first_layer(name, kind):
    row = ARCHITECTURES[name]
    for length in (row.lengths.minimum, row.nearest_legal(96), row.nearest_legal(224)):
        if name == "pvt_v2":  # hands its first argument over by name or not, by version
            shapes = entering(name, length, "PvtV2SelfAttention")
            assert [shape[1] for shape in shapes] == [row.positions(length) // 4**stage for stage in range(4)]
        else:
            first = entering(name, length, kind)[0]
            assert first[1] == row.positions(length) == row.executed_positions(length)


@pytest.mark.parametrize(("length", "side"), [(224, 56), (256, 70), (288, 77), (448, 112)])
def test_swin_pads_its_first_stage_to_whole_windows(length, side):
    row = ARCHITECTURES["swin"]
    count, area, _ = entering("swin", length, "SwinAttention")[0]
    assert count * area == row.executed_positions(length) == side * side
    assert row.positions(length) == (length // 4) ** 2


def test_swin_needs_a_whole_window_in_its_last_stage_and_the_others_a_whole_cell():
    with pytest.raises(
        InputError, match=r"swin takes no input shorter than 224 px \(.* window of 7 x 7\), got 192 px"
    ):
        make_config(Workload("swin", 192))
    for name in ("pvt_v2", "hiera"):
        with pytest.raises(InputError, match=rf"{name} takes multiples of 32 pixels \(.*\), got 240"):
            make_config(Workload(name, 240))
    with pytest.raises(InputError, match=r"dinov2 takes multiples of 14 pixels .*, got 256; the nearest is 252"):
        make_config(Workload("dinov2", 256))


def test_the_library_cannot_run_swin_below_its_minimum():
    row = ARCHITECTURES["swin"]
    config = make_config(Workload("swin", 224, size="small"))
    model = make_model(row, config).eval()
    with pytest.raises(RuntimeError, match="must match"):
        hidden(model, torch.zeros(1, 3, 192, 192))


@pytest.mark.parametrize("name", [*PLAIN, *STAGED])
@every_phase
def test_models_run_at_several_lengths(name, phase):
    row = ARCHITECTURES[name]
    for length in (row.nearest_legal(96), row.nearest_legal(288)):
        workload = tiny(name, length, phase=phase, batch_size=2)
        build(workload).call(workload)()


def test_coordinates_and_layers_are_not_changed_at_random_in_training():
    for name in (row.name for row in ARCHITECTURES.values() if row.modality == "vision"):
        workload = tiny(name, phase="training")
        _, operators = count_flops(build(workload).call(workload))
        assert not {"rand", "uniform_", "bernoulli_", "native_dropout"} & set(operators), name


def test_beit_trains_after_inference_in_the_same_process():
    """The library keeps the index of position biases, and one made in inference mode cannot be trained with."""
    length = 16 * 11  # no other test's
    inference, training = (tiny("beit", length, phase=phase) for phase in ("inference", "training"))
    live = build(inference)
    with torch.inference_mode():
        live.model(**live.inputs(inference))
    build(training).call(training)()


# FLOPs


@pytest.mark.parametrize("name", PLAIN)
@given(batch=st.integers(1, 3), side=st.integers(1, 6))
@settings(max_examples=8)
def test_a_plain_vit_is_its_patches_its_layers_and_its_pooler(name, batch, side):
    patch, others = PLAIN[name]
    workload = tiny(name, patch * side, batch_size=batch)
    flops, algorithmic, _ = counted(workload)
    rows = batch * (side * side + others)
    pooler = linear(batch, 64, 64) if name == "deit" else 0
    expected = {
        "convolution": linear(batch * side * side, 3 * patch * patch, 64),
        "addmm": 2 * (4 * linear(rows, 64, 64) + 2 * linear(rows, 64, 128)) + pooler,
        FUSED: 2 * 2 * linear(rows, 64, side * side + others),
    }
    if name in ("beit", "dinov3_vit"):  # keys without a bias
        keys = 2 * linear(rows, 64, 64)
        expected = {**expected, "addmm": expected["addmm"] - keys, "mm": keys}
    assert Counter(dict(flops.by_operator)) == expected
    assert algorithmic == flops.total
    training, asked, _ = counted(workload.replace(phase="training"))
    first = expected["convolution"]
    assert asked == 3 * algorithmic - first - 2 * pooler
    # The fused kernel computes its scores again; with a bias to learn inside them, there is no fused kernel.
    again = 0 if name == "beit" else expected[FUSED] // 2
    assert training.total == asked + again


@every_phase
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [*PLAIN, "pvt_v2", "hiera"])
def test_every_size_is_asked_for_what_it_executes(name, size, phase):
    row = ARCHITECTURES[name]
    length = row.nearest_legal(96 if size == "base" else 224)
    executed, algorithmic = counted_on_paper(Workload(name, length, size=size, phase=phase, batch_size=3))
    assert executed == algorithmic


def window_of(side: int, window: int, shift: int) -> Tensor:
    """Window of each position of a grid, [side * side], cut as the library cuts its padded and rolled grid."""
    padded = -(-side // window) * window
    at = torch.arange(padded)
    along = torch.empty_like(at)
    # A window that wraps around has two parts, which do not see each other.
    along[(at + shift) % padded] = 2 * (at // window) + (at + shift >= padded).long()
    return (2 * padded * along[:side, None] + along[:side]).flatten()


@pytest.mark.parametrize("length", [224, 256, 288])
@pytest.mark.parametrize("size", ["base", "small"])
def test_swin_executes_whole_windows_and_is_asked_for_what_they_hold(size, length):
    workload = Workload("swin", length, size=size)
    executed, algorithmic = counted_on_paper(workload)
    config = make_config(workload).to_dict()
    width, side = config["embed_dim"], length // 4
    run = asked = linear(side * side, 48, width)
    for stage, depth in enumerate(config["depths"]):
        padded = (-(-side // 7) * 7) ** 2
        for layer in range(depth):
            feed_forward = 2 * linear(side * side, width, 4 * width)
            run += 4 * linear(padded, width, width) + 2 * linear(padded, 49, width) + feed_forward
            inside = window_of(side, 7, 3 if layer % 2 and side > 7 else 0)
            pairs = int((torch.bincount(inside) ** 2).sum())
            asked += 4 * linear(side * side, width, width) + 2 * linear(pairs, width, 1) + feed_forward
        if stage < 3:
            side, width = side // 2, 2 * width
            merging = linear(side * side, 2 * width, width)
            run, asked = run + merging, asked + merging
    assert (executed, algorithmic) == (run, asked)
    assert algorithmic < executed
    # In training, three of everything but the gradient of the pixels.
    more, training = counted_on_paper(workload.replace(phase="training"))
    assert more - training == 3 * (executed - algorithmic)


@pytest.mark.parametrize(
    ("workload", "published_gigamacs", "share"),
    [
        # The authors count whole windows where they are shifted too: less than a hundredth of it all.
        (Workload("swin", 224), 15.4, 0.004),
        (Workload("swin", 224, size="small"), 4.5, 0.015),
        (Workload("pvt_v2", 224), 11.8, 0.01),
        (Workload("pvt_v2", 224, size="small"), 4.0, 0.015),
        (Workload("hiera", 224), 9.4, 0.005),
        # One position more than ViT, whose number it is.
        (Workload("deit", 224), 17.6, 0.005),
    ],
    ids=lambda value: f"{value.subject}-{value.size}" if isinstance(value, Workload) else "",
)
def test_models_cost_what_is_published(workload, published_gigamacs, share):
    flops = algorithmic_flops(workload, make_config(workload).to_dict())
    assert flops is not None
    assert flops / 2e9 == pytest.approx(published_gigamacs, rel=share)


def test_hiera_attends_within_units_to_everything_and_pvt_to_cells():
    """By the shapes that really meet: queries and keys of each layer, heads aside."""
    shapes: dict[str, list[tuple[int, int]]] = {"hiera": [], "pvt_v2": []}
    product = Tensor.__matmul__

    for name, found in shapes.items():
        workload = tiny(name, 64)
        live = build(workload)
        with pytest.MonkeyPatch.context() as patch:
            seen = []

            def watched(self: Tensor, other: Tensor, seen: list = seen) -> Tensor:
                seen.append((self.shape, other.shape))
                return product(self, other)

            patch.setattr(Tensor, "__matmul__", watched)
            patch.setattr(torch, "matmul", watched)
            live.call(workload)()
        found += [(q[-2], k[-1]) for q, k in seen[::2]]
    # 256 positions in 4 units; pooled to 16 each, to 4 each, then all 16 see all 16, pooled to 4 that see 16.
    assert shapes["hiera"] == [(64, 64), (16, 64), (4, 16), (16, 16), (4, 16)]
    assert shapes["pvt_v2"] == [(256, 4), (64, 4), (16, 4), (4, 4)]


@every_phase
@pytest.mark.parametrize("name", ["swin", "pvt_v2", "hiera", "beit"])
def test_the_bound_on_memory_holds(name, phase):
    workload = tiny(name, 224, batch_size=2, phase=phase)
    row = ARCHITECTURES[name]
    with WorkerProcess("cpu", 2) as worker:
        parameters = worker.ask("build", workload)
        needed = activation_bytes(workload, worker.ask("measure_memory"), parameters)
    assert 0 < needed <= bound_call_bytes(workload, row, make_config(workload).to_dict())


@pytest.mark.parametrize("name", ["swin", "pvt_v2", "hiera"])
def test_the_bound_on_memory_knows_that_hierarchies_see_few_keys(name):
    row, workload = ARCHITECTURES[name], Workload(name, 1024)
    config = make_config(workload).to_dict()
    positions = row.positions(1024)
    assert row.keys_seen is not None
    assert row.keys_seen(config, positions) <= positions // 64
    scores = 4 * 6 * row.shape(config).heads * positions**2
    assert bound_call_bytes(workload, row, config) < scores / 8


# Variants


def model_and_images(name: str, side: int = 5) -> tuple[PreTrainedModel, Tensor]:
    workload = tiny(name, side * ARCHITECTURES[name].lengths.multiple_of, batch_size=2)
    subject = build(workload)
    return subject.model.double(), subject.inputs(workload)["pixel_values"].double()


@pytest.mark.parametrize("name", TAKERS)
def test_a_window_over_everything_changes_nothing_and_a_narrow_one_does(name):
    model, images = model_and_images(name)
    full = hidden(model, images)
    length = full.shape[1]
    assert length == ARCHITECTURES[name].positions(images.shape[-1])
    assert not close(hidden(swap_attention(model, "local", window=3), images), full)
    assert close(hidden(swap_attention(model, "local", window=length - 1), images), full)
    # Some eager paths of the library have their softmax in float32, whatever the model is in.
    assert (hidden(swap_attention(model, "eager"), images) - full).abs().max() < 1e-6
    assert torch.equal(hidden(swap_attention(model, "sdpa"), images), full)


@pytest.mark.parametrize("name", TAKERS)
def test_the_default_window_is_that_of_images(name):
    model, _ = model_and_images(name)
    swap_attention(model, "local")
    assert f"window={128}" in str(check_subject(Subject.parse(f"{name}@local")))


# CLIP and DINOv3 hand a mask to their attention as it is, so a bool one is understood where a variant stands.
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("deit", "sdpa"),
        ("dinov2", "sdpa"),
        *((name, attention) for name in TAKERS for attention in ("local:window=4", "local:window=4,num_global=1")),
    ],
)
def test_patches_that_are_masked_never_change_the_outputs_of_others(name, attention):
    model, images = model_and_images(name)
    swap_attention(model, attention)
    patch, others = PLAIN[name]
    mask = torch.ones(2, 25 + others, dtype=torch.bool)
    mask[1, others + 15 :] = 0  # the last two rows of patches of the second image
    changed = images.clone()
    changed[1, :, 3 * patch :] = 7.0
    masked, again = (hidden(model, pixels, attention_mask=mask) for pixels in (images, changed))
    assert close(again[0], masked[0])
    assert close(again[1, : others + 15], masked[1, : others + 15])
    assert not close(hidden(model, changed)[1, : others + 15], hidden(model, images)[1, : others + 15])


@pytest.mark.parametrize("name", ["beit", *STAGED])
def test_what_takes_no_variant_says_why(name):
    row = ARCHITECTURES[name]
    reason = row.own_scores or row.efficient_attention
    assert reason
    with pytest.raises(UnsupportedError, match=re.escape(reason)):
        check_subject(Subject.parse(f"{name}@local"))
    with pytest.raises(UnsupportedError, match=f"cannot take 'local:window=3': .*{re.escape(reason)}"):
        swap_attention(build(tiny(name)).model, "local", window=3)
