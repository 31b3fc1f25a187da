"""Attention variants in models of the Transformers library, in all of their layers."""

import copy
import pickle
import re
from itertools import product
from typing import Any

import pytest
import torch
import transformers
from encoders import (
    DOUBLE,
    ENCODERS,
    IMAGES,
    SINGLE,
    SPECIAL,
    SPEECH,
    TEXT,
    TINY,
    TRANSLATED,
    TWO_STACKS,
    VISION,
    WORDS,
    Encoder,
    close,
    noise,
    output,
    run,
)
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models.architecture import AttentionVariant
from tippingpoint.models.catalog import ARCHITECTURES, VARIANTS
from tippingpoint.models.swap import LIBRARY_NAME, swap_attention, variants_of

pytestmark = pytest.mark.usefixtures("one_thread")

every_encoder = pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
OURS = [row for row in VARIANTS.values() if row.library_name is None and not row.shares_maps]
every_variant = pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)


def narrow(row: AttentionVariant) -> dict[str, Any]:
    """Return small options of a variant, so that it changes what full attention computes."""
    options: dict[str, Any] = {
        name: 2 for name, option in row.options.items() if option.kind is int and option.off is None
    }
    return options | ({"max_length": 256} if "max_length" in row.options else {})


def bert(**changes: Any) -> PreTrainedModel:
    return ENCODERS["bert"].make(**changes)


@every_encoder
def test_a_window_over_everything_changes_nothing_and_a_narrow_one_does(encoder):
    model = encoder.make()
    full = run(model, encoder.inputs)
    assert not close(run(swap_attention(model, "local", window=2), encoder.inputs), full)
    assert close(run(swap_attention(model, "local", window=100), encoder.inputs), full)


@every_encoder
def test_swapping_back_restores_the_outputs_bit_for_bit(encoder):
    model = encoder.make()
    names, config = list(model.state_dict()), model.config.to_dict()
    full = run(model, encoder.inputs)
    assert swap_attention(model, "local", window=2) is model
    # Some eager paths of the library have their softmax in float32, whatever the model is in.
    assert close(run(swap_attention(model, "eager"), encoder.inputs), full, SINGLE)
    swap_attention(model, "linformer", max_length=256)
    assert torch.equal(run(swap_attention(model, "sdpa"), encoder.inputs), full)
    assert (list(model.state_dict()), model.config.to_dict()) == (names, config)
    assert {str(variant) for variant in variants_of(model)} == {"sdpa"}


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in ("bart", "whisper")])
def test_eager_is_the_librarys_own_bit_for_bit(name):
    encoder = ENCODERS[name]
    library = encoder.make()
    library.set_attn_implementation("eager")
    expected = run(library, encoder.inputs)
    assert torch.equal(run(swap_attention(encoder.make(), "eager"), encoder.inputs), expected)
    # What was loaded as eager goes to fused attention as it was fused from the start.
    assert torch.equal(run(swap_attention(library, "sdpa"), encoder.inputs), run(encoder.make(), encoder.inputs))


@every_encoder
def test_every_variant_runs_in_every_encoder_and_gradients_reach_what_full_attention_reaches(encoder):
    model = encoder.make()
    weights = copy.deepcopy(model.state_dict())
    full = output(model, encoder.inputs)
    loss(full).backward()
    expected = reached(model)
    for row in OURS:
        model.zero_grad()
        out = output(swap_attention(model, row.name, **narrow(row)), encoder.inputs)
        assert not close(out.detach(), full.detach()), row.name
        loss(out).backward()
        learned = {name for name in model.state_dict() if name not in weights}
        assert bool(learned) == (row.module is not None)
        assert reached(model) == expected | learned, row.name
    swap_attention(model, "sdpa")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def loss(out: Tensor) -> Tensor:
    # Outputs are normalised, so their squares would have no gradient.
    return (out * noise(*out.shape)).sum()


def reached(model: PreTrainedModel) -> set[str]:
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    # A key's bias shifts all scores of a query alike: its gradient is nothing but rounding.
    return {
        name
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.any() and not re.search(r"(key|k_proj|k_lin|linear_k)\.bias$", name)
    }


# Models whose convolutions and pools do not look at padding (SEW, Conformers, data2vec) change with it themselves.
PADDED = ["bert", "roberta", "modernbert", "electra", "distilbert", "albert", "nomic_bert", "bart_encoder"]
HEARD = ["hubert", "wav2vec2", "wav2vec2_bert"]
ATTENTIONS = ["sdpa", "eager", *(row.name for row in OURS)]


def padded(encoder: Encoder, filler: float) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Return inputs of which the second is padded, the second without its padding, and its real positions."""
    ((name, values),) = encoder.inputs.items()
    steps = {"input_ids": 33, "input_values": 4500, "input_features": 22}[name]
    mask = torch.arange(values.shape[1]) < torch.tensor([[values.shape[1]], [steps]])
    filled = torch.where(mask.reshape(*mask.shape, *[1] * (values.ndim - 2)), values, filler).to(values.dtype)
    positions = (steps - 400) // 320 + 1 if name == "input_values" else steps
    return {name: filled, "attention_mask": mask.long()}, {name: values[1:, :steps]}, positions


# Where a window holds nothing but padding, the library's eager path has no softmax in double precision.
UNDEFINED = ("modernbert", "eager")


@pytest.mark.parametrize(
    ("name", "attention"), [pair for pair in product((*PADDED, *HEARD), ATTENTIONS) if pair != UNDEFINED]
)
def test_padding_never_changes_what_is_real(name, attention):
    encoder = ENCODERS[name]
    model = swap_attention(encoder.make(), attention, **narrow(VARIANTS[attention]))
    epsilon = SINGLE if attention == "eager" else DOUBLE
    for filler in (0, 59):
        inputs, alone, positions = padded(encoder, filler)
        both = run(model, inputs)
        assert close(both[1:, :positions], run(model, alone), epsilon)
        assert close(both[:1], run(model, {key: value[:1] for key, value in encoder.inputs.items()}), epsilon)


@pytest.mark.parametrize("name", [*PADDED, *HEARD])
def test_a_model_that_is_not_told_of_padding_is_changed_by_it(name):
    encoder = ENCODERS[name]
    model = swap_attention(encoder.make(), "local", window=2)
    inputs, alone, positions = padded(encoder, 59)
    del inputs["attention_mask"]
    assert not close(run(model, inputs)[1:, :positions], run(model, alone))


@pytest.mark.parametrize("where", ["left", "holes"])
def test_padding_may_stand_anywhere(where):
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, : 12 if where == "left" else None : 1 if where == "left" else 3] = 0
    full, real = run(bert(), WORDS, attention_mask=mask), mask.bool()
    for window in (100, 39):
        local = run(swap_attention(bert(), "local", window=window), WORDS, attention_mask=mask)
        assert close(local[real], full[real])


@every_variant
@pytest.mark.parametrize("name", [*PADDED, *HEARD])
def test_a_mask_of_ones_is_no_mask(name, row):
    encoder = ENCODERS[name]
    model = swap_attention(encoder.make(), row.name, **narrow(row))
    ((_, values),) = encoder.inputs.items()
    ones = torch.ones(values.shape[:2], dtype=torch.long)
    assert torch.equal(run(model, encoder.inputs, attention_mask=ones), run(model, encoder.inputs))


TRANSLATORS = {
    "bart": ENCODERS["bart"],
    "whisper": ENCODERS["whisper"],
    "bart_lm": Encoder("BartForConditionalGeneration", TWO_STACKS, ENCODERS["bart"].inputs),
}


def image_captioner() -> PreTrainedModel:
    decoder = transformers.BertConfig(**{**TEXT, "is_decoder": True, "add_cross_attention": True})
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VISION), decoder
    )
    torch.manual_seed(0)
    return transformers.VisionEncoderDecoderModel(config).double().eval()


@pytest.mark.parametrize(
    ("make", "inputs"),
    [*((encoder.make, encoder.inputs) for encoder in TRANSLATORS.values()), (image_captioner, IMAGES | TRANSLATED)],
    ids=[*TRANSLATORS, "image_captioner"],
)
def test_in_a_model_with_a_decoder_the_encoder_alone_is_changed(make, inputs):
    model = make()
    states = (noise(2, 20, 32),)
    mask = {} if "pixel_values" in inputs else {"attention_mask": torch.arange(20) < torch.tensor([[20], [11]])}
    decoded = run(model, TRANSLATED, encoder_outputs=states, **mask)
    full = run(model, inputs)
    swap_attention(model, "local", window=2)
    assert len(variants_of(model)) == 4
    assert torch.equal(run(model, TRANSLATED, encoder_outputs=states, **mask), decoded)
    assert not close(run(model, inputs), full)
    decoding: list[Any] = [module for module in model.modules() if getattr(module, "is_causal", False)]
    assert decoding
    assert {attention.config._attn_implementation for attention in decoding} == {"sdpa"}


def test_one_tower_of_several_can_be_changed():
    tower = {**TINY, "projection_dim": 32}
    config = transformers.CLIPConfig(
        text_config={**tower, **SPECIAL},
        vision_config={**tower, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    model = transformers.CLIPModel(config).double().eval()
    with torch.inference_mode():
        before = model(**WORDS, **IMAGES)
        swap_attention(model.vision_model, "local", window=2)
        after = model(**WORDS, **IMAGES)
    assert torch.equal(after.text_embeds, before.text_embeds)
    assert not close(after.image_embeds, before.image_embeds)
    with pytest.raises(UnsupportedError, match=r"CLIPModel cannot take .*: it holds several encoders; give one"):
        swap_attention(model, "local", window=2)


def test_the_name_is_known_to_the_library_for_attention_and_for_masks():
    assert LIBRARY_NAME in ALL_ATTENTION_FUNCTIONS.valid_keys()
    assert LIBRARY_NAME in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()


def test_two_models_of_one_configuration_do_not_mix():
    config = transformers.BertConfig(**TEXT)
    torch.manual_seed(0)
    vanilla = transformers.BertModel(config).double().eval()
    models = [copy.deepcopy(vanilla) for _ in range(2)]
    # Made from one configuration object, as a comparison in a notebook would make them.
    sharing = transformers.BertModel(config).double().eval()
    sharing.load_state_dict(vanilla.state_dict())
    full = run(vanilla, WORDS)
    first, second = (swap_attention(m, "local", window=w) for m, w in zip(models, (2, 9), strict=True))
    outputs = [run(model, WORDS) for model in (first, second, first, second)]
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert not close(outputs[0], outputs[1])
    swap_attention(sharing, "local", window=2)
    assert torch.equal(run(sharing, WORDS), outputs[0])
    assert torch.equal(run(vanilla, WORDS), full)
    assert vanilla.config is config
    assert config._attn_implementation == "sdpa"


def test_the_default_window_is_that_of_the_models_modality():
    # A model outside of the catalogue gets that of text.
    for name, window in (("hubert", 50), ("bert", 128), ("vit", 128), ("electra", 128)):
        standing = variants_of(swap_attention(ENCODERS[name].make(), "local"))
        assert {str(variant) for variant in standing} == {f"local:window={window}"}


def test_dropout_reaches_the_variant_in_training_and_not_in_inference():
    for row in OURS:
        model = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
        swap_attention(model, row.name, **narrow(row))
        assert torch.equal(run(model, WORDS), run(model, WORDS)), row.name
        model.train()
        if row.name != "linear":  # has no weights to drop
            assert not torch.equal(run(model, WORDS), run(model, WORDS)), row.name


@every_variant
def test_gradient_checkpointing_changes_no_gradient(row):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = swap_attention(bert(), row.name, **narrow(row)).train()
        if checkpointing:
            # As releases of the library after 5.20 call it.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        torch.manual_seed(1)
        loss(output(model, WORDS)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


@pytest.mark.parametrize("attention", ["local:window=2", "linformer:rank=4"])
def test_a_compiled_model_computes_the_same(attention):
    model = swap_attention(bert(num_hidden_layers=2), attention)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    for mask in ({}, {"attention_mask": torch.ones(2, 40).long()}, {"attention_mask": padded_mask()}):
        real = mask.get("attention_mask", torch.ones(2, 40)).bool()
        assert close(run(compiled, WORDS, **mask)[real], run(model, WORDS, **mask)[real])
    torch.compiler.reset()


def padded_mask() -> Tensor:
    return (torch.arange(40) < torch.tensor([[40], [22]])).long()


# --- What a variant learns


def learned(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if ".tippingpoint.learned." in name}


def test_what_a_variant_learns_is_a_part_of_the_model():
    model: Any = bert()
    before = {name for name, _ in model.named_parameters()}
    swap_attention(model, "linformer", rank=4, layers=[1, 2])
    added = {name for name, _ in model.named_parameters()} - before
    assert added == set(learned(model))
    assert added == {
        f"encoder.layer.{layer}.attention.self.tippingpoint.learned.{part}_projection"
        for layer in (1, 2)
        for part in ("key", "value")
    }
    # As long as the positions of the model.
    assert {tuple(value.shape) for value in learned(model).values()} == {(4, 512)}
    assert {value.dtype for value in learned(model).values()} == {torch.float64}
    assert model.to(torch.bfloat16).to("cpu").dtype == torch.bfloat16
    assert {value.dtype for value in learned(model).values()} == {torch.bfloat16}
    assert run(model, WORDS).dtype == torch.bfloat16
    assert {value.device.type for value in learned(model.to("meta")).values()} == {"meta"}


def test_a_training_step_moves_what_a_variant_learns():
    model = swap_attention(bert(), "linformer", rank=4).train()
    before = copy.deepcopy(learned(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss(output(model, WORDS)).backward()
    optimizer.step()
    assert len(before) == 8
    assert not any(torch.equal(value, before[name]) for name, value in learned(model).items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("attention", ["linformer:rank=4", "local:window=2", "heads", "eager"])
def test_a_copy_of_a_swapped_model_is_a_model_of_its_own(copied, attention):
    model = swap_attention(bert(), attention)
    expected = run(model, WORDS)
    twin = copied(model)
    assert torch.equal(run(twin, WORDS), expected)
    with torch.no_grad():
        for parameter in [*twin.parameters()]:
            parameter.zero_()
    swap_attention(twin, "sdpa")
    assert torch.equal(run(model, WORDS), expected)


def test_what_was_learned_stays_until_its_layer_runs_another():
    model = swap_attention(bert(), "linformer", rank=4, layers=[0, 1])
    first = copy.deepcopy(learned(model))
    swap_attention(model, "linformer", rank=4)
    assert len(learned(model)) == 2 * len(first) == 8
    assert all(torch.equal(learned(model)[name], value) for name, value in first.items())
    swap_attention(model, "local", window=2, layers=[1])
    swap_attention(model, "linformer", rank=5, layers=[2])
    assert [tuple(value.shape) for value in learned(model).values()] == [(4, 512)] * 2 + [(5, 512)] * 2 + [
        (4, 512)
    ] * 2
    assert {name for name in first if "layer.0" in name} < set(learned(model))
    swap_attention(model, "sdpa")
    assert not learned(model)


def test_the_longest_input_is_the_models_or_is_asked_for():
    (variant,) = set(variants_of(swap_attention(bert(max_position_embeddings=64), "linformer", rank=4)))
    assert str(variant) == "linformer:max_length=64,rank=4"
    # A rank beyond it would be no projection.
    (variant,) = set(variants_of(swap_attention(bert(max_position_embeddings=64), "linformer")))
    assert str(variant) == "linformer:max_length=256,rank=256"
    hubert = ENCODERS["hubert"].make()
    with pytest.raises(InputError, match=r"'linformer:rank=4' learns .* does not say; add max_length=POSITIONS"):
        swap_attention(hubert, "linformer", rank=4)
    swap_attention(hubert, "linformer", rank=4, max_length=20)
    with pytest.raises(InputError, match="at most 20 positions, got 24"):
        run(hubert, ENCODERS["hubert"].inputs)


# --- What cannot be swapped

INSIDE = "its attention is computed inside its layers, not through the library's attention interface"
PAST = "only encoders can, and it attends to the past only, as decoders do"
BIASED = "its attention adds a position bias to its scores"
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
STAGES = {"image_size": 64, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4}
FOURIER = {key: value for key, value in TEXT.items() if key != "num_attention_heads"}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("WavLMModel", SPEECH, "own_scores"),
    ("T5EncoderModel", T5, "own_scores"),
    ("T5Model", T5, "own_scores"),
    ("Wav2Vec2ConformerModel", SPEECH, "own_scores"),
    ("ParakeetEncoder", {**TINY, "num_key_value_heads": 2}, "own_scores"),
    ("BeitModel", {**VISION, "use_relative_position_bias": True}, "own_scores"),
    ("BeitModel", {**VISION, "use_shared_relative_position_bias": True}, "own_scores"),
    ("SwinModel", STAGES, "efficient_attention"),
    ("Swinv2Model", STAGES, "efficient_attention"),
    ("LongformerModel", {**TEXT, "attention_window": 8}, "efficient_attention"),
    ("NystromformerModel", TEXT, "efficient_attention"),
    ("BigBirdModel", {**TEXT, "sep_token_id": 3}, "efficient_attention"),
    ("FNetModel", FOURIER, "efficient_attention"),
    ("MT5EncoderModel", T5, f"{BIASED} (position_bias, relative_attention_bias)"),
    ("Wav2Vec2BertModel", TINY, f"{BIASED} (distance_embedding)"),
    (
        "Wav2Vec2BertModel",
        {**TINY, "position_embeddings_type": "relative"},
        f"{BIASED} (linear_pos, pos_bias_u, pos_bias_v)",
    ),
    ("DebertaV2Model", TEXT, INSIDE),
    ("MPNetModel", TEXT, INSIDE),
    ("SEWDModel", {**SPEECH, "conv_dim": (16,) * 13}, INSIDE),
    ("GPT2Model", {**SPECIAL, "n_embd": 32, "n_layer": 1, "n_head": 2}, PAST),
    ("LlamaModel", TEXT, PAST),
    ("BertModel", {**TEXT, "is_decoder": True}, PAST),
]


# What adds to its scores, but hands them to the library's interface.
OF_THE_INTERFACE = {
    "T5EncoderModel",
    "T5Model",
    "MT5EncoderModel",
    "Wav2Vec2ConformerModel",
    "Wav2Vec2BertModel",
    "ParakeetEncoder",
    "BeitModel",
}


@pytest.mark.parametrize(("model_class", "config", "reason"), REFUSED)
def test_a_model_that_cannot_says_why_and_stays_as_it_was(model_class, config, reason):
    chosen = getattr(transformers, model_class)
    model = chosen(chosen.config_class(**config))
    names, attention = list(model.state_dict()), model.config._attn_implementation
    own = model.config
    with pytest.raises(UnsupportedError) as caught:
        swap_attention(model, "local", window=3)
    row = ARCHITECTURES.get(own.model_type)
    if reason == "own_scores":
        reason = f"inside its scores stands {row and row.own_scores}"
    elif reason == "efficient_attention":
        reason = f"its attention is {row and row.efficient_attention}"
    assert str(caught.value) == f"{model_class} cannot take 'local:window=3': {reason}"
    assert list(model.state_dict()) == names
    assert model.config is own
    assert own._attn_implementation == attention
    if model_class in OF_THE_INTERFACE:
        assert {str(variant) for variant in variants_of(model)} == {"sdpa"}
    else:
        with pytest.raises(UnsupportedError, match=f"{model_class} cannot be asked for its variants"):
            variants_of(model)


def failing(kind: str) -> tuple[PreTrainedModel, dict[str, Any], str]:
    """Return a model, a call that only shows that a variant cannot stand there, and what is said."""
    takes = r"'local:window=3' takes padding only, and the model adds a mask or position bias of shape \[2, "
    dense = r"'local:window=3' has no dense scores .*asks for attention maps or a causal mask"
    if kind == "causal":
        return Encoder("CLIPTextModel", TEXT, WORDS).make(), {}, dense
    if kind == "padding as a bias":
        return Encoder("LayoutLMModel", TEXT, WORDS).make(), {}, takes
    calls: dict[str, tuple[dict[str, Any], str]] = {
        "mask of each query": ({"attention_mask": torch.zeros(2, 40, 40, dtype=torch.float64)}, takes),
        "bias of each head": ({"attention_mask": torch.zeros(2, 2, 40, 40, dtype=torch.float64)}, takes),
        "attention maps": ({"output_attentions": True}, dense),
    }
    return bert(), *calls[kind]


@pytest.mark.parametrize(
    "kind", ["causal", "padding as a bias", "mask of each query", "bias of each head", "attention maps"]
)
def test_a_call_that_fails_leaves_the_model_usable(kind):
    model, asked, message = failing(kind)
    full = run(model, WORDS)
    swap_attention(model, "local", window=3)
    with pytest.raises(UnsupportedError, match=message):
        model(**WORDS, **asked)
    if asked:  # and not of the model itself
        assert not close(run(model, WORDS), full)
    assert torch.equal(run(swap_attention(model, "sdpa"), WORDS), full)


@pytest.mark.parametrize(
    ("variant", "options", "error", "message"),
    [
        ("locl", {}, InputError, "unknown variant 'locl'; .* Did you mean 'local'"),
        ("local", {"window": 0}, InputError, "must be a whole number of at least 1, got 0"),
        ("local", {"windw": 3}, InputError, "unknown option of 'local' 'windw'"),
        ("local:window=3", {"window": 4}, InputError, "variant 'local' was given an option twice"),
        ("local:", {}, InputError, "expected key=value after 'local'"),
        ("heads", {"keep": 1.5}, InputError, "must be a number of at least 0.01 and at most 1, got 1.5"),
        ("linear", {"feature_map": "relu"}, InputError, "must be one of favor, elu, got 'relu'"),
    ],
)
def test_a_swap_that_fails_leaves_the_model_as_it_was(variant, options, error, message):
    model = bert()
    before = run(model, WORDS)
    with pytest.raises(error, match=message):
        swap_attention(model, variant, **options)
    assert torch.equal(run(model, WORDS), before)
    assert model.config._attn_implementation == "sdpa"


def test_a_layer_that_came_after_the_swap_is_named():
    model: Any = swap_attention(bert(), "local", window=3)
    model.encoder.layer[1] = type(model.encoder.layer[0])(model.config).double().eval()
    with pytest.raises(UnsupportedError, match="was not in its model when an attention was put there"):
        run(model, WORDS)
