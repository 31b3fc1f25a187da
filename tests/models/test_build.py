import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tippingpoint.errors import UnsupportedError
from tippingpoint.models.build import LiveSubject, build, make_config
from tippingpoint.models.catalog import ARCHITECTURES
from tippingpoint.models.swap import variants_of
from tippingpoint.profiling.flops import count_flops
from tippingpoint.workload import PHASES, Workload

pytestmark = pytest.mark.usefixtures("one_thread")

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
every_phase = pytest.mark.parametrize("phase", PHASES)


def tiny(subject: str, phase: str = "inference", length: float | None = None, **fields: Any) -> Workload:
    row = ARCHITECTURES[subject.partition("@")[0]]
    length = length or row.nearest_legal({"text": 70, "speech": 0.2, "vision": 64}[row.modality])
    return Workload(subject, length, phase=phase, size="tiny", batch_size=2, **fields)


def hidden(subject: LiveSubject, workload: Workload) -> Tensor:
    with torch.inference_mode():
        return subject.model(**subject.inputs(workload)).last_hidden_state


@pytest.mark.parametrize("name", [name for name, row in ARCHITECTURES.items() if not row.stages])
def test_a_model_has_the_depth_and_width_asked_for(name):
    shaped = tiny(name, layers=3, width=96)
    subject, own = build(shaped), build(tiny(name))
    assert hidden(subject, shaped).shape[-1] == 96
    shape = subject.architecture.shape(subject.config)
    assert (shape.layers, shape.heads) == (3, 3 if "heads" in subject.architecture.keys else 1)
    assert [m for m in subject.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3]
    assert not [m for m in own.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3]
    assert subject.parameters > own.parameters


def test_each_layer_more_has_the_same_parameters():
    one, two, three = (build(tiny("bert", layers=depth)).parameters for depth in (1, 2, 3))
    width, wide = 64, 128
    assert three - two == two - one == 4 * width * (width + 1) + 2 * width * wide + wide + width + 4 * width


@every_architecture
@every_phase
def test_every_architecture_runs_in_every_phase(name, phase):
    workload = tiny(name, phase)
    call = build(workload).call(workload)
    assert call() is None
    assert call() is None


@every_architecture
def test_the_same_workload_is_built_with_the_same_weights_and_inputs_each_time(name):
    workload = tiny(name)
    first, second = build(workload), build(workload)
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
    again = second.inputs(workload)
    for key, tensor in first.inputs(workload).items():
        assert torch.equal(tensor, again[key])
        assert tensor.shape[0] == workload.batch_size


@every_architecture
def test_dropout_is_off_in_inference(name):
    workload = tiny(name)
    subject = build(workload)
    assert not subject.model.training
    assert torch.equal(hidden(subject, workload), hidden(subject, workload))
    _, operators = count_flops(subject.call(workload))
    assert not {"bernoulli_", "native_dropout", "rand"} & set(operators)


# Published without dropout; what they drop at random besides, whole layers, is off.
UNDROPPED = ("modernbert", "whisper", *(row.name for row in ARCHITECTURES.values() if row.modality == "vision"))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in UNDROPPED])
def test_what_the_published_model_drops_in_training_is_dropped_here(name):
    workload = tiny(name, "training")
    subject = build(workload)
    assert subject.model.training
    _, operators = count_flops(subject.call(workload))
    assert {"bernoulli_", "native_dropout", "rand"} & set(operators)


def test_layers_are_never_dropped_and_nothing_is_masked_in_speech_training():
    workload = tiny("hubert", "training")
    subject = build(workload)
    assert subject.config["layerdrop"] == 0
    assert not subject.config["apply_spec_augment"]
    runs: list[str] = []
    for name, module in subject.model.named_modules():
        if type(module).__name__ == "HubertEncoderLayer":
            module.register_forward_pre_hook(lambda module, args, name=name: runs.append(name))
    call = subject.call(workload)
    for _ in range(20):
        call()
    assert len(runs) == 20 * subject.config["num_hidden_layers"]


def moved(subject: LiveSubject, call: Callable[[], None]) -> set[str]:
    before = {name: parameter.detach().clone() for name, parameter in subject.model.named_parameters()}
    call()
    return {name for name, parameter in subject.model.named_parameters() if not torch.equal(parameter, before[name])}


@every_architecture
def test_a_training_step_moves_every_weight_that_has_a_part_in_the_hidden_states(name):
    workload = tiny(name, "training")
    subject = build(workload)
    learned = {name for name, weight in subject.model.named_parameters() if weight.requires_grad}
    still = learned - moved(subject, subject.call(workload))
    # Poolers come after the hidden states, the embedding of what is masked and a global attention are not asked for,
    # a key's bias shifts all scores of a query alike, and batch normalisation takes away what a bias before it adds.
    excused = ("pooler", "post_layernorm", "_global", "masked_spec_embed", "mask_token", "key.bias", "k_proj.bias")
    excused += ("linear_k.bias", "depthwise_conv.bias")
    if name == "wav2vec2-conformer":  # the library makes the convolution of positions of wav2vec 2.0 for nothing
        excused += ("pos_conv_embed",)
    assert [name for name in still if not any(part in name for part in excused)] == []


@every_architecture
def test_an_inference_call_moves_nothing_and_keeps_no_graph(name):
    workload = tiny(name)
    subject = build(workload)
    assert moved(subject, subject.call(workload)) == set()
    assert not any(parameter.requires_grad for parameter in subject.model.parameters())


@every_architecture
@every_phase
def test_inputs_are_made_once_and_outside_of_the_call(name, phase):
    workload = tiny(name, phase)
    made: list[int] = []
    row = ARCHITECTURES[name]

    def counted(config: Any, batch_size: int, length: float, generator: Any) -> dict[str, Any]:
        made.append(batch_size)
        return row.inputs(config, batch_size, length, generator)

    subject = dataclasses.replace(build(workload), architecture=dataclasses.replace(row, inputs=counted))
    call = subject.call(workload)
    assert made == [2]
    _, operators = count_flops(call)
    call()
    assert made == [2]
    # Reformer hashes by directions that are drawn anew in every call.
    drawn = {"randint", "normal_", "uniform_"} | ({"randn"} if name != "reformer" else set())
    assert not drawn & set(operators)


@given(length=st.integers(65, 4000), size=st.sampled_from(["base", "tiny"]))
@settings(max_examples=30)
def test_nystromformer_is_configured_for_a_multiple_of_its_landmarks_and_never_for_full_attention(length, size):
    config = make_config(Workload("nystromformer", length, size=size)).to_dict()
    padded = config["segment_means_seq_len"]
    assert padded % config["num_landmarks"] == 0
    assert length <= padded < length + config["num_landmarks"]
    # The library takes full attention where the two are equal.
    assert padded != config["num_landmarks"]
    assert config["max_position_embeddings"] >= padded
    assert padded == ARCHITECTURES["nystromformer"].executed_positions(length)


@pytest.mark.parametrize(("length", "padded"), [(129, 192), (192, 192), (193, 256)])
def test_nystromformer_runs_on_the_padded_length_and_never_holds_a_square_of_it(length, padded):
    workload = tiny("nystromformer", length=length)
    subject = build(workload)
    inputs = subject.inputs(workload)
    assert inputs["input_ids"].shape == (2, padded)
    assert (inputs["input_ids"][:, length:] == subject.config["pad_token_id"]).all()
    if length == padded:
        assert "attention_mask" not in inputs
    else:
        seen = inputs["attention_mask"] == 0
        assert seen.sum(dim=-1).flatten().tolist() == [length, length]
    shapes: set[tuple[int, ...]] = set()

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                shapes.add(tuple(result.shape[-2:]))
            return result

    with Shapes(), torch.no_grad():
        subject.model(**inputs)
    assert (padded, 64) in shapes
    assert (padded, padded) not in shapes


def test_longformers_positions_begin_after_the_padding_index_and_grow_with_the_padded_length():
    for length, table in ((1, 4098), (4096, 4098), (4097, 4610), (5000, 5122)):
        config = make_config(Workload("longformer", length))
        assert (config.max_position_embeddings, config.pad_token_id) == (table, 1)
    workload = tiny("longformer", length=4097).replace(batch_size=1)
    assert hidden(build(workload), workload).shape[1] == 4097


def test_berts_positions_grow_with_the_length_and_are_never_fewer_than_published():
    for length, table in ((5, 512), (512, 512), (513, 513), (3000, 3000)):
        assert make_config(Workload("bert", length)).max_position_embeddings == table
    workload = tiny("bert", length=700)
    assert hidden(build(workload), workload).shape[1] == 700


@pytest.mark.parametrize("name", ["bert", "longformer", "nystromformer"])
def test_random_tokens_are_never_special_ones(name):
    workload = tiny(name, length=300).replace(batch_size=8)
    ids = build(workload).inputs(workload)["input_ids"][:, :300]
    assert ids.min() >= 5
    assert ids.max() < 1000
    assert len(ids.unique()) > 500


@pytest.mark.parametrize(
    ("name", "standing"),
    [
        ("bert", "sdpa"),
        ("bert@eager", "eager"),
        ("bert@local:window=3", "local:window=3"),
        # What it learns is for the positions of the workload, and not for those that the model could take.
        ("bert@linformer:rank=4", "linformer:max_length=70,rank=4"),
        ("hubert@linformer:rank=4", "linformer:max_length=9,rank=4"),
    ],
)
def test_the_variant_of_the_subject_is_what_the_model_runs(name, standing):
    subject = build(tiny(name))
    assert {str(variant) for variant in variants_of(subject.model)} == {standing}


def test_inference_in_a_lower_precision_has_weights_of_it_and_training_has_not():
    inference = build(tiny("hubert", dtype="bfloat16"))
    assert {p.dtype for p in inference.model.parameters()} == {torch.bfloat16}
    assert inference.inputs(tiny("hubert"))["input_values"].dtype == torch.bfloat16
    training = build(tiny("hubert", "training", dtype="bfloat16"))
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}


@every_architecture
@every_phase
def test_every_architecture_runs_in_bfloat16_or_says_why_not(name, phase):
    workload = tiny(name, phase, dtype="bfloat16")
    if ARCHITECTURES[name].why_float32(phase):
        with pytest.raises(UnsupportedError, match=f"{name} runs {phase} in float32 only .*, got bfloat16"):
            build(workload)
    else:
        build(workload).call(workload)()


# Architectures whose padding changes nothing that is real, as the library has them. In the others it does: FNet and
# YOSO know no mask; landmarks, hashes, blocks and pools lie elsewhere in a longer input (Nystromformer, Reformer,
# BigBird, Funnel); front ends normalise over time, or convolutions reach into it (data2vec, Wav2Vec2-Conformer).
RESPECTFUL = (
    *("bert", "roberta", "modernbert", "bart", "t5", "longformer", "led", "longt5"),
    *("wav2vec2-bert", "parakeet_encoder"),
)
# Every variant as it goes through a padded batch; BERT stands for text, W2v-BERT for speech.
PUT_IN = (
    "eager",
    "local:window=5",
    "local:window=5,num_global=2",
    "nystrom:landmarks=8",
    "linear",
    "linformer:rank=8",
    "pooled:ratio=3",
    "heads",
    "reuse:group=2",
    "local:window=5+reuse:group=2",
)
PADDED_LENGTHS = {"text": (750, (710, 623)), "speech": (2.0, (1.8, 1.1))}


def fed(live: LiveSubject, workload: Workload, lengths: tuple[float, ...]) -> dict[str, Tensor]:
    """What a model is called with after it was fed a batch."""
    call = live.call(workload)
    live.feed(call, workload.replace(length=max(lengths)), lengths)
    return call.batch


@pytest.mark.parametrize(
    "subject",
    [*RESPECTFUL, *(f"{name}@{variant}" for name in ("bert", "wav2vec2-bert") for variant in PUT_IN)],
)
def test_a_padded_batch_gives_each_item_what_it_gets_alone(subject):
    longest, lengths = PADDED_LENGTHS[ARCHITECTURES[subject.partition("@")[0]].modality]
    workload = tiny(subject, length=longest)
    live = build(workload)
    both = fed(live, workload, lengths)
    name = next(iter(both))
    with torch.inference_mode():
        together = live.model(**both).last_hidden_state
    for row, length in enumerate(lengths):
        alone = fed(live, workload, (length,))
        # The same values, and padding only where the library pads a single input too.
        steps = min(alone[name].shape[1], both[name].shape[1])
        alone[name][:, :steps] = both[name][row : row + 1, :steps]
        with torch.inference_mode():
            hidden_alone = live.model(**alone).last_hidden_state[0]
        positions = live.architecture.positions(length)
        wanted = hidden_alone[:positions]
        error = (together[row, :positions] - wanted).abs().max()
        assert error <= 1000 * torch.finfo(torch.float32).eps * wanted.abs().max()


@pytest.mark.parametrize("name", ["bert", "nystromformer", "wav2vec2-bert"])
def test_without_its_mask_a_padded_batch_would_give_something_else(name):
    longest, lengths = PADDED_LENGTHS[ARCHITECTURES[name].modality]
    workload = tiny(name, length=longest)
    live = build(workload)
    both = fed(live, workload, lengths)
    # Nystromformer's mask is added to scores; the others' counts what is real.
    nothing = torch.full_like(both["attention_mask"], 0 if name == "nystromformer" else 1)
    with torch.inference_mode():
        masked = live.model(**both).last_hidden_state[1, :40]
        plain = live.model(**{**both, "attention_mask": nothing}).last_hidden_state[1, :40]
    assert (masked - plain).abs().max() > 1e-4 * masked.abs().max()


PADDING = [name for name, row in ARCHITECTURES.items() if row.modality != "vision" and not row.needs_one_length]


@pytest.mark.parametrize("name", PADDING)
def test_masks_are_those_that_tokenizers_and_feature_extractors_hand_over(name):
    row = ARCHITECTURES[name]
    longest, lengths = PADDED_LENGTHS[row.modality]
    workload = tiny(name, length=longest)
    live = build(workload)
    batch = fed(live, workload, lengths)
    values, mask = next(iter(batch.values())), batch.get("attention_mask")
    assert (mask is None) == (name in {"fnet", "hubert", "wav2vec2", "wavlm", "sew"}) == bool(row.unmasked)
    if mask is None:
        return
    real = mask[:, 0, 0] == 0 if name == "nystromformer" else mask.bool()
    assert real.shape == values.shape[:2]
    ends = real.sum(dim=1)
    assert ends[0] > ends[1]
    assert (real == (torch.arange(values.shape[1]) < ends[:, None])).all()
    # What is padded holds the tokenizer's padding, or silence.
    filler = (live.config["pad_token_id"] or 0) if row.modality == "text" else 0
    assert (values[1, ends[1] :] == filler).all()


def test_models_without_a_mask_are_those_that_normalise_over_time():
    """The rule that the library's feature extractor states, and follows for no mask."""
    for name, row in ARCHITECTURES.items():
        config = getattr(transformers, row.config_class)(**row.sizes["base"]).to_dict()
        if row.modality == "speech" and "feat_extract_norm" in config and name != "data2vec-audio":
            assert bool(row.unmasked) == (config["feat_extract_norm"] == "group"), name


def test_the_librarys_feature_extractor_pads_with_silence_and_gives_no_mask_for_them():
    """Silence is one value: the extractor normalises what it has padded."""
    sound = [torch.randn(500).numpy(), torch.randn(300).numpy()]
    given = transformers.Wav2Vec2FeatureExtractor()(sound, sampling_rate=16000, padding=True, return_tensors="pt")
    assert set(given) == {"input_values"}
    assert len(given["input_values"][1, 300:].unique()) == 1


@pytest.mark.parametrize(
    ("name", "length", "shape"),
    [
        ("vit", 230, (2, 3, 224, 224)),
        ("vit", 5, (2, 3, 16, 16)),
        ("swinv2", 250, (2, 3, 224, 224)),
        ("dinov2", 100, (2, 3, 98, 98)),
        ("bert", 7.0, (2, 7)),
        ("big_bird", 70, (2, 705)),
        ("hubert", 0.001, (2, 400)),
        ("nystromformer", 20, (2, 128)),
        ("reformer", 70, (2, 128)),
    ],
)
def test_batches_run_at_the_nearest_length_that_the_model_takes_and_holds_them(name, length, shape):
    longest = {"text": 750, "speech": 0.2, "vision": 448}[ARCHITECTURES[name].modality]
    workload = tiny(name, length=longest)
    live = build(workload)
    call = live.call(workload)
    live.feed(call, workload.replace(length=length), (length, length))
    assert next(iter(call.batch.values())).shape == shape
    call()


@pytest.mark.parametrize("name", [name for name, row in ARCHITECTURES.items() if row.modality == "vision"])
@every_phase
def test_images_of_several_sizes_run_in_one_model(name, phase):
    workload = tiny(name, phase, length=448)
    live = build(workload)
    call = live.call(workload)
    for side in (224, 448, 320):
        live.feed(call, workload.replace(length=side), (side, side))
        call()
    positions = live.architecture.positions
    assert positions(224) < positions(320) < positions(448)


def test_the_state_of_the_optimizer_stays_when_another_batch_is_fed():
    workload = tiny("bert", "training")
    live = build(workload)
    call = live.call(workload)
    call()
    held = call.optimizer_bytes
    live.feed(call, workload.replace(length=20), (20, 11))
    assert call.optimizer_bytes == held > 0
    call()
    assert call.optimizer_bytes == held


@pytest.mark.parametrize(
    ("name", "phase"), [("whisper", "inference"), ("whisper", "training"), ("reformer", "training")]
)
def test_models_that_take_one_length_say_why(name, phase):
    assert ARCHITECTURES[name].why_one_length(phase)
    assert not ARCHITECTURES["bert"].why_one_length(phase)
    workload = tiny(name, phase, length=200 if name == "reformer" else 2.0)
    live = build(workload)
    call = live.call(workload)
    live.feed(call, workload.replace(length=workload.length / 2), (workload.length / 2,))
    with pytest.raises((ValueError, RuntimeError)):
        call()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("phase", PHASES)
def test_a_padded_workload_has_one_shorter_sequence_masked_as_the_library_would(name, phase):
    row = ARCHITECTURES[name]
    length = row.nearest_legal({"text": 40, "speech": 1.0, "vision": 64}[row.modality])
    workload = Workload(name, length, batch_size=3, phase=phase, size="tiny")
    plain, padded = (build(each).inputs(each) for each in (workload, workload.replace(padded=True)))
    first = next(iter(plain))
    assert padded[first].shape == plain[first].shape
    if row.modality == "vision" or row.why_one_length(phase):
        assert set(padded) == set(plain)
        return
    assert ("attention_mask" in padded) == (not row.unmasked)
    if not row.unmasked:
        mask = padded["attention_mask"].flatten(1)
        # Nystromformer's is what is added to scores.
        real = ((mask == 0) if mask.is_floating_point() else (mask == 1)).sum(1).tolist()
        assert real[0] == real[1] > real[2] > 0.85 * real[0]
    build(workload.replace(padded=True)).call(workload.replace(padded=True))()
