"""Speech encoders beyond HuBERT: shapes, lengths, FLOPs and the variants they take."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models.build import build, count_parameters, make_config, make_model
from tippingpoint.models.catalog import ARCHITECTURES, algorithmic_flops, check_subject
from tippingpoint.models.swap import swap_attention
from tippingpoint.profiling.flops import count_flops
from tippingpoint.profiling.memory import activation_bytes, bound_call_bytes
from tippingpoint.profiling.process import WorkerProcess
from tippingpoint.workload import PHASES, SIZES, Subject, Workload

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16_000
NAMES = [row.name for row in ARCHITECTURES.values() if row.modality == "speech"]
TAKERS = ["wav2vec2", "whisper", "wav2vec2-bert", "sew", "data2vec-audio"]
OWN_SCORES = ["wavlm", "wav2vec2-conformer", "parakeet_encoder"]
# Those whose attention drops nothing in training, so that it stays fused and its scores are computed again.
FUSED_IN_TRAINING = ("whisper", "wav2vec2-bert")
every_name = pytest.mark.parametrize("name", NAMES)
every_phase = pytest.mark.parametrize("phase", PHASES)
# Shortest legal inputs, those of an odd number of frames, and a few more.
audio = st.integers(1440, 12_000)


def linear(rows: int, width_in: int, width_out: int) -> int:
    return 2 * rows * width_in * width_out


def tiny(name: str, length: float = 0.5, **fields: Any) -> Workload:
    return Workload(name, length, size="tiny", **fields)


def frames(count: int) -> int:
    """Frames of 25 ms, 20 ms apart, that fit into so many samples."""
    return (count - 400) // 320 + 1


# What the library's numbers of positions are, written out once more: of samples.
POSITIONS = {
    **dict.fromkeys(("hubert", "wav2vec2", "wavlm", "data2vec-audio", "wav2vec2-conformer"), frames),
    "sew": lambda count: frames(count) // 2,
    "whisper": lambda count: (count // 160 + 1) // 2,
    "wav2vec2-bert": lambda count: ((count - 400) // 160 + 1) // 2,
    "parakeet_encoder": lambda count: (count // 160 + 7) // 8,
}


def test_every_speech_encoder_is_tested_here():
    assert set(NAMES) == set(POSITIONS) == {"hubert", *TAKERS, *OWN_SCORES}


@every_name
@given(count=st.integers(1440, 48_000_000))
def test_positions_are_those_of_the_definition(name, count):
    assert ARCHITECTURES[name].positions(count / RATE) == POSITIONS[name](count)


@every_name
@pytest.mark.parametrize("beyond", [0, 1, 319, 320, 640, 1280, 1281, 5437])
def test_as_many_positions_enter_every_layer(name, beyond):
    row = ARCHITECTURES[name]
    workload = tiny(name, row.lengths.minimum + beyond / RATE)
    subject = build(workload)
    seen: list[torch.Size] = []
    layers = [m for m in subject.model.modules() if re.search("Encoder(Layer|Block)$", type(m).__name__)]
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    with torch.inference_mode():
        output = subject.model(**subject.inputs(workload)).last_hidden_state
    positions = row.positions(workload.length)
    assert seen == [(1, positions, 64)] * 2
    # SEW gives two frames for each position, and a last one that is zero if there is one to spare.
    given_back = frames(round(workload.length * RATE)) if name == "sew" else positions
    assert output.shape == (1, given_back, 64)
    if name == "sew":
        assert not output[:, 2 * positions :].any()


@every_name
@every_phase
def test_the_shortest_input_runs_alone_and_none_shorter_is_taken(name, phase):
    row = ARCHITECTURES[name]
    shortest = round(row.lengths.minimum * RATE)
    assert shortest / RATE == row.lengths.minimum
    subject = build(tiny(name, row.lengths.minimum, phase=phase))
    subject.call(tiny(name, row.lengths.minimum, phase=phase))()
    assert all(weight.isfinite().all() for weight in subject.model.parameters())
    with pytest.raises(InputError, match=f"{name} takes no input shorter than"):
        row.check_length((shortest - 1) / RATE)


@pytest.mark.parametrize(("name", "seconds"), [("wav2vec2-conformer", 719 / RATE), ("parakeet_encoder", 0.0899)])
def test_one_position_is_too_few_for_batch_normalisation_in_training(name, seconds):
    row = ARCHITECTURES[name]
    assert row.positions(seconds) == 1
    config: Any = make_config(tiny(name))
    model = make_model(row, config).train()
    inputs = row.inputs(config.to_dict(), 1, seconds, torch.Generator())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(**inputs)


@given(count=st.integers(720, 40_000))
@settings(max_examples=15)
def test_there_are_as_many_features_as_the_librarys_extractors_make(count):
    sound = np.random.default_rng(0).standard_normal(count).astype(np.float32)

    def made(name: str) -> tuple[int, ...]:
        row = ARCHITECTURES[name]
        inputs = row.inputs(make_config(tiny(name)).to_dict(), 1, count / RATE, torch.Generator())
        return tuple(inputs["input_features"].shape)

    given_to: dict[str, Any] = {"sampling_rate": RATE, "return_tensors": "np"}
    whisper = transformers.WhisperFeatureExtractor()(sound, padding="do_not_pad", truncation=False, **given_to)
    _, bands, found = whisper["input_features"].shape
    # An odd number is filled up, as the model demands.
    assert made("whisper") == (1, bands, found + found % 2)
    pairs = transformers.SeamlessM4TFeatureExtractor()(sound, **given_to)
    assert made("wav2vec2-bert") == (1, pairs["attention_mask"].sum(), pairs["input_features"].shape[-1])
    parakeet = transformers.ParakeetFeatureExtractor()(sound, sampling_rate=RATE)
    assert made("parakeet_encoder") == (1, int(parakeet["attention_mask"].sum()), parakeet["input_features"].shape[2])


@given(positions=st.integers(1, 3000), count=st.integers(160, 1_000_000))
def test_published_positions_of_whisper_hold_what_has_no_frame_beyond_them(positions, count):
    row = ARCHITECTURES["whisper"]
    limit = row.limit({"max_source_positions": positions})
    assert limit is not None
    assert (count / RATE <= limit) == (row.positions(count / RATE) <= positions)


def test_whisper_is_its_encoder_built_for_the_length():
    published = ARCHITECTURES["whisper"].limit({"max_source_positions": 1500})
    assert published == pytest.approx(30.01, abs=1e-4)
    for seconds, positions in ((0.01, 1), (1.0, 50), (30.0, 1500), (60.005, 3000), (60.01, 3001)):
        assert make_config(tiny("whisper", seconds)).to_dict()["max_source_positions"] == positions
    subject = build(tiny("whisper", 1.0))
    assert type(subject.model).__name__ == "WhisperEncoder"
    with pytest.raises(ValueError, match="mel input features to be of length 100"):
        subject.model(torch.zeros(1, 80, 98))


@pytest.mark.parametrize("size", SIZES)
def test_sizes_say_what_the_length_arithmetic_and_the_variants_rest_on(size):
    def config(name: str) -> dict[str, Any]:
        return make_config(Workload(name, 1.0, size=size)).to_dict()

    assert config("wav2vec2-bert")["position_embeddings_type"] == "rotary"
    assert config("wav2vec2-conformer")["position_embeddings_type"] == "relative"
    assert config("sew")["squeeze_factor"] == 2
    assert config("parakeet_encoder")["subsampling_factor"] == 8
    assert config("whisper")["num_mel_bins"] == config("parakeet_encoder")["num_mel_bins"] == 80
    assert make_config(Workload("wav2vec2-conformer", 200, size=size)).max_source_positions == 9999


@every_name
def test_every_layer_runs_in_every_training_step_and_nothing_is_masked(name):
    workload = tiny(name, phase="training")
    subject = build(workload)
    runs: Counter[str] = Counter()
    for module in subject.model.modules():
        if re.search("Encoder(Layer|Block)$", type(module).__name__):
            module.register_forward_pre_hook(lambda module, args: runs.update(["layer"]))
    call = subject.call(workload)
    for _ in range(12):
        call()
    assert runs == {"layer": 12 * 2}
    masked = [weight for part, weight in subject.model.named_parameters() if "masked_spec" in part]
    assert all(weight.grad is None for weight in masked)


D, WIDE, LAYERS = 768, 3072, 12
LAYER = 4 * (D * D + D) + 2 * D * WIDE + WIDE + D + 4 * D
FRONT_END = 512 * 10 + 512 * 512 * (4 * 3 + 2 * 2)
LARGE, LARGE_WIDE = 1024, 4096
FEED_FORWARD = 2 * LARGE * LARGE_WIDE + LARGE_WIDE + LARGE


def positional(width: int, taps: int) -> int:
    """A convolution of 16 groups with one magnitude for each tap, and a bias."""
    return width * (width // 16) * taps + taps + width


def conformer_layer(taps: int) -> int:
    """Without positions: two feed-forward parts, four projections, three convolutions, and normalisations."""
    convolutions = 2 * LARGE * LARGE + taps * LARGE + LARGE * LARGE
    return 2 * FEED_FORWARD + 4 * (LARGE * LARGE + LARGE) + convolutions + 5 * 2 * LARGE + 2 * LARGE


def sew_parameters() -> int:
    widths, taps = (64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512), (10, *[3, 1] * 4, 2, 1, 2, 1)
    front_end = sum(
        before * after * kernel for before, after, kernel in zip((1, *widths), widths, taps, strict=False)
    )
    upsampling = D * 2 * D + 2 * D
    projection = 2 * 512 + 512 * D + D
    mask_embedding = D
    return front_end + 2 * 64 + projection + positional(D, 31) + 2 * D + upsampling + mask_embedding + LAYERS * LAYER


RELATIVE = LARGE * LARGE + 2 * LARGE
WAVLM_BIAS = 320 * 12 + LAYERS * (12 + 64 * 8 + 8)
SUBSAMPLING = 9 * 256 + 256 + 2 * (9 * 256 + 256 + 256 * 256 + 256) + 2560 * LARGE + LARGE


@pytest.mark.parametrize(
    ("name", "derived", "published_millions"),
    [
        ("wav2vec2", FRONT_END + 1024 + 1024 + 512 * D + D + positional(D, 128) + 2 * D + D + LAYERS * LAYER, 94.37),
        # 320 buckets of distances for each head in the first layer, and gates in every one.
        (
            "wavlm",
            FRONT_END + 2048 + 512 * D + D + positional(D, 128) + 2 * D + D + LAYERS * LAYER + WAVLM_BIAS,
            94.38,
        ),
        # Every convolution is normalised; five of positions, without magnitudes of their own.
        (
            "data2vec-audio",
            FRONT_END + 7 * 1024 + 1024 + 512 * D + D + 5 * (D * 48 * 19 + D) + 2 * D + D + LAYERS * LAYER,
            93.16,
        ),
        ("sew", sew_parameters(), 89.6),
        # Keys have no bias. The decoder of whisper-small makes 241.7 M of it.
        ("whisper", 3 * 80 * D + D + 3 * D * D + D + 1500 * D + LAYERS * (LAYER - D) + 2 * D, 88.2),
        ("wav2vec2-bert", 320 + 160 * LARGE + LARGE + LARGE + 24 * conformer_layer(31), 580),
        # 7 convolutions with biases and normalisations; the convolution of positions is made and not used.
        (
            "wav2vec2-conformer",
            FRONT_END + 7 * 3 * 512 + 1024 + 512 * LARGE + LARGE + positional(LARGE, 128) + 2 * LARGE + LARGE
            + 24 * (conformer_layer(31) + RELATIVE),
            619,
        ),
        # Convolutions have biases.
        ("parakeet_encoder", SUBSAMPLING + 24 * (conformer_layer(9) + 4 * LARGE + RELATIVE), 608),
    ],
)  # fmt: skip
def test_base_models_have_the_published_number_of_parameters(name, derived, published_millions):
    assert count_parameters(Workload(name, 30.0)) == derived
    digits = 10 ** -len(str(published_millions).partition(".")[2])
    assert abs(derived / 1e6 - published_millions) <= digits


def test_wav2vec2_costs_what_openvino_says():
    """26.843 GFLOPs at 30,480 samples, with a head of 32 letters and what is not a product."""
    workload = Workload("wav2vec2", 30_480 / RATE)
    flops = algorithmic_flops(workload, make_config(workload).to_dict())
    assert flops is not None
    assert (flops + linear(95, 768, 32)) / 1e9 == pytest.approx(26.843, rel=0.003)


def overhead(name: str, config: dict[str, Any], batch: int, count: int, phase: str) -> int:
    """What the library executes beyond the definition."""
    products = 3 if phase == "training" else 1
    positions, shape = POSITIONS[name](count), ARCHITECTURES[name].shape(config)
    width, layers = shape.width, shape.layers
    extra = 0
    if name in ("hubert", "wav2vec2", "wavlm"):
        # An even kernel gives one frame more, which is cut off.
        extra += products * linear(batch, width // 16 * config["num_conv_pos_embeddings"], width)
    if name == "sew" and frames(count) % 2:
        # A position for the half that is left over, which is cut off.
        extra += products * linear(batch, width // 16 * 31, width)
    if name == "whisper" and count // 160 % 2:
        # A frame of silence, whose gradient nobody needs.
        extra += min(products, 2) * linear(batch, 3 * 80, width)
    if name in ("wav2vec2-conformer", "parakeet_encoder"):
        # All distances there are, for each query.
        extra += products * layers * linear(batch * positions * (positions - 1), width, 1)
    if name == "parakeet_encoder":
        # Encodings of distances are projected for each sequence alike.
        extra += min(products, 2) * layers * linear((batch - 1) * (2 * positions - 1), width, width)
    if phase == "training" and "conv_stride" in config:
        # The gradient of the waveform.
        extra += linear(batch * ((count - 10) // 5 + 1), 10, config["conv_dim"][0])
    if phase == "training" and name in FUSED_IN_TRAINING:
        extra += layers * linear(batch * positions**2, width, 1)
    return extra


@every_name
@every_phase
@given(batch=st.integers(1, 3), count=audio)
@settings(max_examples=8)
def test_what_is_executed_is_the_closed_form_and_what_the_library_adds(name, phase, batch, count):
    workload = tiny(name, count / RATE, batch_size=batch, phase=phase)
    live = build(workload)
    flops, _ = count_flops(live.call(workload))
    assert flops.uncounted == ()
    algorithmic = algorithmic_flops(workload, live.config)
    assert algorithmic is not None
    assert flops.total - algorithmic == overhead(name, live.config, batch, count, phase)


@every_name
@pytest.mark.parametrize("size", ["base", "small"])
@pytest.mark.parametrize("seconds", [1.0, 30.01])
def test_published_shapes_cost_their_closed_form(name, size, seconds):
    """On a device without memory, where a model is only shapes."""
    workload = Workload(name, seconds, batch_size=2, size=size)
    row, config = ARCHITECTURES[name], make_config(workload)
    with torch.device("meta"):
        model = make_model(row, config).eval().requires_grad_(False)
    inputs = row.inputs(config.to_dict(), 2, seconds, torch.Generator())
    meta = {key: tensor.to("meta") for key, tensor in inputs.items()}
    executed, _ = count_flops(lambda: model(**meta))
    algorithmic = algorithmic_flops(workload, config.to_dict())
    assert algorithmic is not None
    assert executed.total - algorithmic == overhead(name, config.to_dict(), 2, round(seconds * RATE), "inference")


def double(name: str, **changes: Any) -> PreTrainedModel:
    """A tiny model whose front end normalises each frame by itself, so that padding stays where it is."""
    torch.manual_seed(0)
    row = ARCHITECTURES[name]
    if name in ("wav2vec2", "sew"):
        changes = {"feat_extract_norm": "layer", **changes}
    config = getattr(transformers, row.config_class)(**{**row.sizes["tiny"], **row.fit({}, 0.6), **changes})
    return make_model(row, config).double().eval()


def inputs_of(name: str, model: PreTrainedModel) -> Tensor:
    """0.6 s, twice."""
    row = ARCHITECTURES[name]
    made = row.inputs(model.config.to_dict(), 2, 0.6, torch.Generator().manual_seed(1))
    return made[model.main_input_name].double()


def run(model: PreTrainedModel, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
    given_mask = {} if mask is None else {"attention_mask": mask.long()}
    with torch.inference_mode():
        return model(**{model.main_input_name: inputs}, **given_mask).last_hidden_state


def close(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() <= 1000 * torch.finfo(torch.float64).eps * float(second.abs().max()))


@pytest.mark.parametrize("name", TAKERS)
def test_a_window_over_everything_changes_nothing_and_a_narrow_one_does(name):
    model = double(name)
    inputs = inputs_of(name, model)
    full, positions = run(model, inputs), ARCHITECTURES[name].positions(0.6)
    assert not close(run(swap_attention(model, "local", window=3), inputs), full)
    assert not close(run(swap_attention(model, "local", window=positions - 2), inputs), full)
    assert close(run(swap_attention(model, "local", window=positions - 1), inputs), full)
    assert close(run(swap_attention(model, "eager"), inputs), full)
    assert torch.equal(run(swap_attention(model, "sdpa"), inputs), full)
    assert str(check_subject(Subject.parse(f"{name}@local"))) == f"{name}@local:window=50"


# (where padding of the second input begins, outputs before it): an even number for SEW, where the half of a position
# that stands on padding is otherwise part of it. Of data2vec see below, and Whisper's encoder knows no padding.
PADDED = {"wav2vec2": (6_000, frames(6_000)), "sew": (6_480, frames(6_480)), "wav2vec2-bert": (20, 20)}


@pytest.mark.parametrize("attention", ["sdpa", "eager", "local:window=3", "local:window=3,num_global=2"])
@pytest.mark.parametrize("name", PADDED)
def test_padding_never_changes_the_outputs_of_real_audio(name, attention):
    model = swap_attention(double(name), attention)
    inputs = inputs_of(name, model)
    real, outputs = PADDED[name]
    mask = torch.arange(inputs.shape[1]) < torch.tensor([[inputs.shape[1]], [real]])
    changed = inputs.clone()
    changed[1, real:] = 5.0
    for padded in (inputs, changed):
        hidden = run(model, padded, mask)
        assert close(hidden[1:, :outputs], run(model, inputs[1:, :real]))
        assert close(hidden[:1], run(model, inputs[:1]))
    assert not close(run(model, changed)[1, :outputs], hidden[1, :outputs])


def test_padding_of_data2vec_is_kept_out_of_attention():
    """Its stacked convolutions carry a part of it over, before attention comes in, with any attention alike."""
    model = double("data2vec-audio")
    inputs = inputs_of("data2vec-audio", model)
    mask = torch.arange(inputs.shape[1]) < torch.tensor([[inputs.shape[1]], [6_000]])
    full = run(model, inputs, mask)[1, : frames(6_000)]
    assert not close(run(model, inputs)[1, : frames(6_000)], full)
    assert close(run(swap_attention(model, "local", window=100), inputs, mask)[1, : frames(6_000)], full)


@pytest.mark.parametrize("name", OWN_SCORES)
def test_what_has_positions_in_its_scores_says_so(name):
    reason = re.escape(ARCHITECTURES[name].own_scores)
    assert reason
    with pytest.raises(UnsupportedError, match=f"^{name} computes its scores in a way of its own .{reason}"):
        check_subject(Subject.parse(f"{name}@local"))
    with pytest.raises(UnsupportedError, match=f"cannot take 'local:window=3': inside its scores stands {reason}$"):
        swap_attention(build(tiny(name)).model, "local", window=3)


@pytest.mark.parametrize("kind", ["relative_key", "relative"])
def test_published_positions_of_w2v_bert_are_refused(kind):
    model = double("wav2vec2-bert", position_embeddings_type=kind)
    with pytest.raises(UnsupportedError, match="its attention adds a position bias to its scores"):
        swap_attention(model, "local", window=3)


@every_phase
@pytest.mark.parametrize("name", ["wavlm", "wav2vec2-conformer"])
def test_the_bound_on_memory_holds_for_scores_with_positions_in_them(name, phase):
    workload = Workload(name, 20.0, size="tiny", phase=phase)
    with WorkerProcess("cpu", 2) as worker:
        parameters = worker.ask("build", workload)
        needed = activation_bytes(workload, worker.ask("measure_memory"), parameters)
    assert 0 < needed <= bound_call_bytes(workload, ARCHITECTURES[name], make_config(workload).to_dict())
