import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models.catalog import ARCHITECTURES, VARIANTS, resolve
from tippingpoint.models.swap import register, swap_attention
from tippingpoint.workload import Subject, Variant

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
TEXT: dict[str, Any] = {**TINY, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SPEECH = {**TINY, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16}
DOUBLE = torch.finfo(torch.float64).eps


def text_model(model_class: str = "BertModel", **config) -> PreTrainedModel:
    torch.manual_seed(0)
    chosen = getattr(transformers, model_class)
    return chosen(chosen.config_class(**TEXT, **config)).double().eval()


def speech_model(model_class: str = "HubertModel") -> PreTrainedModel:
    """A front end that normalises each frame by itself, as the large published models do.

    That of the Base models normalises over time, so padding changes every frame before attention comes in.
    """
    torch.manual_seed(0)
    chosen = getattr(transformers, model_class)
    config = chosen.config_class(**SPEECH, feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True)
    return chosen(config).double().eval()


def image_model() -> PreTrainedModel:
    torch.manual_seed(0)
    return transformers.ViTModel(transformers.ViTConfig(image_size=64, **TINY)).double().eval()


def run(model: PreTrainedModel, inputs: Tensor, padding: Tensor | None = None) -> Tensor:
    mask = {} if padding is None else {"attention_mask": padding.long()}
    with torch.inference_mode():
        return model(**{model.main_input_name: inputs}, **mask).last_hidden_state


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(5, 60, (batch, length), generator=torch.Generator().manual_seed(1))


def noise(batch: int, samples: int) -> Tensor:
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


MODELS = {
    "bert": (text_model, tokens(2, 40)),
    "hubert": (speech_model, noise(2, 16_000)),
    "vit": (image_model, images(2)),
}
every_model = pytest.mark.parametrize(("make", "inputs"), MODELS.values(), ids=MODELS)

ATTENTIONS = ["sdpa", "eager", "local:window=3", "local:window=3,num_global=2", "local:window=100"]


def close(first: Tensor, second: Tensor) -> bool:
    # Hidden states are normalised to unit variance; two layers of a few hundred double-precision roundings each.
    return bool((first - second).abs().max() <= 1000 * DOUBLE)


def test_every_architecture_of_the_catalogue_that_takes_variants_is_tested_here():
    assert set(MODELS) == {row.name for row in ARCHITECTURES.values() if not row.efficient_attention}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("filler", [0, 59])
def test_padding_tokens_never_change_the_outputs_of_real_ones(attention, filler):
    model = swap_attention(text_model(), attention)
    long, real = tokens(2, 90), 83
    padding = torch.arange(90) < torch.tensor([[90], [real]])
    padded = run(model, torch.where(padding, long, filler), padding)
    assert close(padded[1:, :real], run(model, long[1:, :real]))
    assert close(padded[:1], run(model, long[:1]))
    # And a model that was told nothing of the padding does change them: the test can tell.
    assert not close(run(model, torch.where(padding, long, filler))[1:, :real], padded[1:, :real])


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("filler", [0.0, 5.0])
def test_padded_audio_never_changes_the_outputs_of_real_audio(attention, filler):
    model = swap_attention(speech_model(), attention)
    samples, real = noise(2, 16_000), 9_000
    frames = (real - 400) // 320 + 1
    padding = torch.arange(16_000) < torch.tensor([[16_000], [real]])
    padded = run(model, torch.where(padding, samples, filler), padding)
    assert close(padded[1:, :frames], run(model, samples[1:, :real]))
    assert close(padded[:1], run(model, samples[:1]))


@every_model
@pytest.mark.parametrize("attention", ["local:window=3", "eager"])
def test_swapping_back_restores_the_outputs_bit_for_bit(make, inputs, attention):
    model = make()
    before = run(model, inputs)
    assert swap_attention(model, attention) is model
    assert not torch.equal(run(model, inputs), before)
    assert torch.equal(run(swap_attention(model, "sdpa"), inputs), before)


@every_model
def test_a_window_that_covers_the_sequence_changes_nothing(make, inputs):
    model = make()
    full = run(model, inputs)
    length = full.shape[1]
    assert close(run(swap_attention(model, "local", window=length - 1), inputs), full)
    assert close(run(swap_attention(model, "local", window=3, num_global=length), inputs), full)
    assert not close(run(swap_attention(model, "local", window=length - 2), inputs), full)


@every_model
def test_weights_are_untouched_and_gradients_reach_every_one_that_full_attention_reaches(make, inputs):
    model = make()
    weights = copy.deepcopy(model.state_dict())
    reached = []
    for attention in ("sdpa", "local:window=3"):
        model.zero_grad()
        out = swap_attention(model, attention)(**{model.main_input_name: inputs}).last_hidden_state
        out.square().mean().backward()
        reached.append({name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()})
    assert reached[0] == reached[1]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_known_to_the_library_for_attention_and_for_masks(name):
    (variant,) = resolve(Subject("x", (Variant(name),)), "text").variants
    registered = register(variant)
    assert registered in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()
    assert registered == "eager" or registered in ALL_ATTENTION_FUNCTIONS.valid_keys()


def test_two_models_with_unlike_windows_do_not_mix():
    config = transformers.BertConfig(**TEXT)
    torch.manual_seed(0)
    vanilla = transformers.BertModel(config).double().eval()
    models = [copy.deepcopy(vanilla) for _ in range(2)]
    # Made from one configuration object, as a comparison in a notebook would make them.
    sharing = transformers.BertModel(config).double().eval()
    sharing.load_state_dict(vanilla.state_dict())
    full = run(vanilla, tokens(2, 40))
    narrow, wide = (swap_attention(m, "local", window=w) for m, w in zip(models, (2, 9), strict=True))
    outputs = [run(model, tokens(2, 40)) for model in (narrow, wide, narrow, wide)]
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert not close(outputs[0], outputs[1])
    swap_attention(sharing, "local", window=2)
    assert torch.equal(run(sharing, tokens(2, 40)), outputs[0])
    assert torch.equal(run(vanilla, tokens(2, 40)), full)
    assert vanilla.config is config
    assert config._attn_implementation == "sdpa"


def test_the_default_window_is_that_of_the_models_modality():
    # A model outside of the catalogue gets that of text.
    for model, window in ((speech_model(), 50), (text_model(), 128), (text_model("RobertaModel"), 128)):
        assert f"window={window}" in str(swap_attention(model, "local").config._attn_implementation)


@pytest.mark.parametrize("name", ["RobertaModel", "ElectraModel", "DistilBertModel", "AlbertModel", "Wav2Vec2Model"])
def test_encoders_outside_of_the_catalogue_take_variants_too(name):
    speech = name == "Wav2Vec2Model"
    model = speech_model(name) if speech else text_model(name)
    inputs = noise(1, 16_000) if speech else tokens(2, 40)
    full = run(model, inputs)
    assert not close(run(swap_attention(model, "local", window=2), inputs), full)
    assert close(run(swap_attention(model, "local", window=200), inputs), full)


def own_attention(name: str) -> PreTrainedModel:
    swin = {"image_size": 64, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4), "window_size": 8}
    t5 = {"vocab_size": 60, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    fnet = {key: value for key, value in TEXT.items() if key != "num_attention_heads"}
    config = {
        "Swinv2Model": swin,
        "LongformerModel": {**TEXT, "attention_window": 8},
        "NystromformerModel": TEXT,
        "WavLMModel": SPEECH,
        "T5EncoderModel": t5,
        "BigBirdModel": {**TEXT, "sep_token_id": 3},
        "FNetModel": fnet,
    }[name]
    model_class = getattr(transformers, name)
    return model_class(model_class.config_class(**config))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Swinv2Model", "its attention is shifted windows of 8 x 8 patches over a hierarchy of four stages"),
        ("LongformerModel", r"its attention is a sliding window of 512 \(radius 256\)"),
        ("NystromformerModel", "its attention is the Nystrom approximation with 64 landmarks"),
        ("WavLMModel", "inside its scores stands a gated relative position bias"),
        (
            "BigBirdModel",
            "its attention is computed inside its layers, not through the library's attention interface",
        ),
        ("FNetModel", "its attention is computed inside its layers, not through the library's attention interface"),
        ("T5EncoderModel", "its attention adds a position bias to its scores"),
    ],
)
def test_a_model_that_computes_attention_itself_says_so(name, reason):
    with pytest.raises(UnsupportedError, match=f"^{name} cannot take 'local:window=3': {reason}$"):
        swap_attention(own_attention(name), "local", window=3)


def decoder(name: str) -> PreTrainedModel:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    special = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = {
        "BertModel": {**TEXT, "is_decoder": True},
        "GPT2Model": {**special, "n_embd": 32, "n_layer": 1, "n_head": 2},
        "LlamaModel": TEXT,
        "BartModel": {**special, **sizes, "decoder_start_token_id": 1},
    }[name]
    model_class = getattr(transformers, name)
    return model_class(model_class.config_class(**config))


@pytest.mark.parametrize("name", ["BertModel", "GPT2Model", "LlamaModel", "BartModel"])
def test_decoders_are_refused(name):
    with pytest.raises(
        UnsupportedError, match=f"^{name} cannot take .*: only encoders can, and it attends to the past"
    ):
        swap_attention(decoder(name), "local", window=3)


def test_a_model_with_sliding_windows_of_its_own_is_refused_when_it_asks_for_them():
    model = swap_attention(text_model("ModernBertModel", cls_token_id=1, sep_token_id=2), "local", window=3)
    with pytest.raises(UnsupportedError, match="this model masks positions in a way of its own"):
        run(model, tokens(1, 9))


@pytest.mark.parametrize("shape", [(2, 9, 9), (2, 1, 9, 9)])
def test_a_mask_that_is_more_than_padding_is_refused(shape):
    model = swap_attention(text_model(), "local", window=3)
    with pytest.raises(
        UnsupportedError, match="'local:window=3' takes padding only, and BertSelfAttention adds a mask"
    ):
        model(tokens(2, 9), attention_mask=torch.zeros(shape))


def test_attention_weights_that_do_not_exist_are_not_given_out():
    model = swap_attention(text_model(), "local", window=3)
    with pytest.raises(UnsupportedError, match=r"'local:window=3' has no dense scores .* to give back"):
        model(tokens(2, 9), output_attentions=True)


@pytest.mark.parametrize(
    ("variant", "options", "error", "message"),
    [
        ("locl", {}, InputError, "unknown variant 'locl'; .* Did you mean 'local'"),
        ("local", {"window": 0}, InputError, "must be a whole number of at least 1, got 0"),
        ("local", {"windw": 3}, InputError, "unknown option of 'local' 'windw'"),
        ("local:window=3", {"window": 4}, InputError, "variant 'local' was given an option twice"),
        ("local:", {}, InputError, "expected key=value after 'local'"),
    ],
)
def test_a_swap_that_fails_leaves_the_model_as_it_was(variant, options, error, message):
    model = text_model()
    before = run(model, tokens(2, 20))
    with pytest.raises(error, match=message):
        swap_attention(model, variant, **options)
    assert torch.equal(run(model, tokens(2, 20)), before)
    assert model.config._attn_implementation == "sdpa"


def test_a_call_that_fails_leaves_the_model_usable():
    model = swap_attention(text_model(), "local", window=3)
    before = run(model, tokens(2, 20))
    with pytest.raises(UnsupportedError):
        model(tokens(2, 20), attention_mask=torch.zeros(2, 1, 20, 20))
    assert torch.equal(run(model, tokens(2, 20)), before)
    assert run(swap_attention(model, "sdpa"), tokens(2, 20)).isfinite().all()


def test_dropout_reaches_the_variant_in_training_and_not_in_inference():
    model = swap_attention(text_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5), "local", window=3)
    assert torch.equal(run(model, tokens(2, 20)), run(model, tokens(2, 20)))
    model.train()
    assert not torch.equal(run(model, tokens(2, 20)), run(model, tokens(2, 20)))
