import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models.long_audio import Reach, _Moments, chunk_activations
from tippingpoint.models.swap import swap_attention

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
BASE = {"feat_extract_norm": "group"}
FAMILY = [
    "HubertModel",
    "Wav2Vec2Model",
    "WavLMModel",
    "SEWModel",
    "SEWDModel",
    "Data2VecAudioModel",
    "UniSpeechModel",
    "UniSpeechSatModel",
    "Wav2Vec2ConformerModel",
    "Wav2Vec2ForCTC",
    "HubertForSequenceClassification",
]
# 61 positions and 37 samples to spare: a multiple of nothing
SAMPLES = 400 + 60 * 320 + 37
POSITION_S = 0.02
DOUBLE = torch.finfo(torch.float64).eps


def speech_model(model_class: str = "HubertModel", **config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    chosen = getattr(transformers, model_class)
    sizes = {"conv_dim": (16,) * (13 if "SEW" in model_class else 7)}
    sizes |= {"conv_pos_kernel_size": 6} if "Data2Vec" in model_class else {"num_conv_pos_embeddings": 16}
    return chosen(chosen.config_class(**TINY, **sizes, **config)).double().eval()


def noise(batch: int, samples: int) -> Tensor:
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run(model: PreTrainedModel, inputs: Tensor, padding: Tensor | None = None) -> Tensor:
    mask = {} if padding is None else {"attention_mask": padding.long()}
    with torch.inference_mode():
        return model(inputs, **mask)[0]


def close(first: Tensor, second: Tensor) -> bool:
    # A few roundings each in sums of a thousand terms, carried through two layers and their normalisations; a value
    # from the wrong side of a seam is off by more than 1e-6.
    return first.shape == second.shape and bool((first - second).abs().max() <= 4000 * DOUBLE)


def in_whole_numbers(model: PreTrainedModel) -> PreTrainedModel:
    """Make all sums exact, in any order: small whole weights, rectifiers, nothing normalised."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm | nn.LayerNorm):
                setattr(module, name, nn.Identity())
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randint(-1, 2, weight.shape, generator=generator))
    return model


RECTIFIED = {"feat_extract_activation": "relu", "hidden_act": "relu"}


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("norm", [BASE, LARGE], ids=["group", "layer"])
def test_the_result_is_that_of_the_whole_at_any_chunk_length(name, norm):
    model = speech_model(name, **norm)
    inputs = noise(2, SAMPLES)
    with torch.inference_mode():
        whole = model(inputs, output_hidden_states=True)
        for positions in (1, 7, 30, 60):
            assert chunk_activations(model, seconds=positions * POSITION_S) is model
            chunked = model(inputs, output_hidden_states=True)
            assert close(chunked[0], whole[0]), positions
            assert len(chunked.hidden_states) == len(whole.hidden_states) == 3
            assert all(map(close, chunked.hidden_states, whole.hidden_states)), positions
        # One chunk is no chunk.
        assert torch.equal(
            model(inputs[:, :19_000])[0], chunk_activations(model, seconds=None)(inputs[:, :19_000])[0]
        )
        assert torch.equal(chunk_activations(model, seconds=POSITION_S * 61)(inputs)[0], whole[0])
        assert torch.equal(chunk_activations(model, seconds=3600)(inputs)[0], whole[0])
        chunk_activations(model, seconds=POSITION_S)
        assert torch.equal(chunk_activations(model, seconds=None)(inputs)[0], whole[0])


@pytest.mark.parametrize("samples", [400, 719, 720, 721, 1040, 16_001])
@pytest.mark.parametrize("name", ["HubertModel", "SEWModel", "Data2VecAudioModel"])
def test_where_sums_are_exact_every_bit_is_that_of_the_whole(name, samples):
    model = in_whole_numbers(speech_model(name, **RECTIFIED, **BASE))
    inputs = noise(2, samples).mul(3).round()
    with torch.inference_mode():
        front_end = model.get_submodule("feature_extractor")
        whole = front_end(inputs)
        for positions in (1, 2, 3, 8, 49, 50):
            chunk_activations(model, seconds=positions * POSITION_S)
            assert torch.equal(front_end(inputs), whole), positions


@pytest.mark.parametrize("kernel", [2, 3, 15, 16])
@pytest.mark.parametrize("name", ["HubertModel", "SEWModel", "Data2VecAudioModel"])
def test_the_positional_convolution_and_what_is_position_wise_have_the_same_bits_where_sums_are_exact(name, kernel):
    model = speech_model(name, **RECTIFIED)
    setattr(model.config, "conv_pos_kernel_size" if "Data2Vec" in name else "num_conv_pos_embeddings", kernel)
    model = in_whole_numbers(type(model)(model.config).double().eval())
    convolution = model.get_submodule("encoder.pos_conv_embed")
    feed_forward = model.get_submodule("encoder.layers.0.feed_forward")
    projection = model.get_submodule("feature_projection")
    with torch.inference_mode():
        # 32 is the width, where the axes cannot be told apart
        for length in (1, 2, 17, 31, 32, 50):
            hidden = torch.randint(-2, 3, (2, length, 32), generator=torch.Generator().manual_seed(3)).double()
            features = hidden[..., :16]
            positions = hidden.transpose(1, 2) if name == "SEWModel" else hidden
            chunk_activations(model, seconds=None)
            wholes = convolution(positions), feed_forward(hidden), projection(features)
            for size in (1, 2, 7, 16, 49):
                chunk_activations(model, seconds=size * POSITION_S)
                chunked = convolution(positions), feed_forward(hidden), projection(features)
                for one, other in zip(chunked, wholes, strict=True):
                    pairs = zip(one, other, strict=True) if isinstance(one, tuple) else ((one, other),)
                    assert all(torch.equal(*pair) for pair in pairs), (length, size)


def test_the_published_positional_convolution_is_that_of_the_whole():
    torch.manual_seed(0)
    config = transformers.HubertConfig(**TINY, conv_dim=(16,) * 7)
    assert config.num_conv_pos_embeddings == 128
    model = transformers.HubertModel(config).double().eval()
    inputs = noise(1, 5 * 16_000 + 3)
    whole = run(model, inputs)
    for seconds in (0.3, 1, 4):
        assert close(run(chunk_activations(model, seconds=seconds), inputs), whole)


@pytest.mark.parametrize("norm", [BASE, LARGE], ids=["group", "layer"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "local:window=3"])
def test_padding_and_other_attentions_go_with_chunks(norm, attention):
    model = swap_attention(speech_model(**norm), attention)
    padding = torch.arange(SAMPLES) < torch.tensor([[SAMPLES], [9_000]])
    whole = run(model, noise(2, SAMPLES) * padding, padding)
    for seconds in (POSITION_S, 0.3):
        assert close(run(chunk_activations(model, seconds=seconds), noise(2, SAMPLES) * padding, padding), whole)


def test_chunks_that_do_not_see_beyond_their_seams_are_told_apart():
    model = speech_model()
    front_end = model.get_submodule("feature_extractor")
    with torch.inference_mode():
        whole = front_end(noise(1, SAMPLES))
        cut = torch.cat([front_end(part) for part in noise(1, SAMPLES).tensor_split([320 * 30], 1)], dim=2)
        assert not close(cut, whole[..., : cut.shape[2]])
        assert not close(cut[..., :20], whole[..., :20])  # a normalisation of the chunk alone
    layered = speech_model(**LARGE)
    chunk_activations(layered, seconds=0.3)
    chunked = layered.get_submodule("encoder.pos_conv_embed").forward
    whole = run(layered, noise(1, SAMPLES))
    chunked.reach = Reach(1, 0, 0)  # type: ignore[attr-defined]
    assert not close(run(layered, noise(1, SAMPLES)), whole)


@pytest.mark.parametrize("norm", [BASE, LARGE], ids=["group", "layer"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_in_single_precision_chunks_are_no_further_from_the_truth_than_the_whole(norm, offset):
    model = speech_model(**norm)
    front_end = model.get_submodule("feature_extractor")
    inputs = noise(2, 5 * 16_000 + 7) + offset
    with torch.inference_mode():
        truth = front_end(inputs)
        model.float()
        whole = (front_end(inputs.float()) - truth).abs().max()
        for seconds in (0.1, 1.7):
            chunk_activations(model, seconds=seconds)
            chunked = (front_end(inputs.float()) - truth).abs().max()
            assert chunked <= 2 * whole + 4 * torch.finfo(torch.float32).eps * truth.abs().max()


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("affine", [True, False])
def test_moments_of_chunks_are_those_of_the_whole_however_far_the_mean_lies_from_zero(groups, affine):
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, 6, affine=affine).requires_grad_(False).double()
    if affine:
        norm.weight.normal_()
        norm.bias.normal_()
    inputs = torch.randn(2, 6, 1000, dtype=torch.float64)
    for mean in (0.0, 1e4):
        values = (inputs + mean).float()
        moments = _Moments(norm)
        for chunk in values.split([1, 499, 7, 493], dim=2):
            moments.add(chunk)
        exact = values.double().unflatten(1, (groups, -1)).flatten(2)
        assert moments.count == exact.shape[-1]
        assert torch.allclose(moments.mean, exact.mean(-1), rtol=1e-7, atol=1e-6)
        # A mean of ten thousand in single precision is good to 5e-4; squares would have been good to 8 in 1.
        variance = exact.var(-1, correction=0)
        assert torch.allclose(moments.squares / moments.count, variance, rtol=1e-4 if mean else 1e-6)
        assert torch.allclose(moments.normalize(values.double()), norm(values.double()), atol=5e-3 if mean else 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precisions_stay_within_their_rounding(dtype):
    model = speech_model().to(dtype)
    inputs = noise(2, SAMPLES).to(dtype)
    whole = run(model, inputs)
    chunked = run(chunk_activations(model, seconds=0.3), inputs)
    assert chunked.dtype == dtype
    assert (chunked - whole).abs().max() <= 32 * torch.finfo(dtype).eps


def test_too_little_audio_fails_as_it_does_without_chunks():
    messages = []
    for seconds in (None, POSITION_S):
        with pytest.raises(RuntimeError) as raised:
            run(chunk_activations(speech_model(**LARGE), seconds=seconds), noise(1, 399))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, Tensor):
                self.values = max(self.values, one.numel())
        return result


@pytest.mark.parametrize("norm", [BASE, LARGE], ids=["group", "layer"])
def test_no_tensor_in_the_front_end_grows_with_the_audio_but_its_result(norm):
    model = speech_model(**norm)
    front_end = model.get_submodule("feature_extractor")

    def largest(seconds: float) -> tuple[int, int]:
        inputs = noise(1, int(seconds * 16_000))
        with torch.inference_mode(), Largest() as seen:
            result = front_end(inputs)
        return seen.values, result.numel()

    chunk_activations(model, seconds=0.1)
    # 16 channels of every fifth sample of a chunk and of what the last position of it sees beyond
    chunk = 16 * (1600 + 80) // 5
    for seconds in (2, 5, 10):
        values, result = largest(seconds)
        assert values <= max(chunk, result)
    chunk_activations(model, seconds=None)
    assert largest(5)[0] > 40 * chunk


def test_feed_forward_layers_make_no_tensor_of_all_positions_but_their_result():
    model = chunk_activations(speech_model(), seconds=0.1)
    hidden = torch.randn(1, 500, 32).double()
    with torch.inference_mode(), Largest() as seen:
        model.get_submodule("encoder.layers.1.feed_forward")(hidden)
    assert seen.values == 500 * 32


def train(model: PreTrainedModel, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    torch.manual_seed(3)
    output = model(inputs)[0]
    output.square().mean().backward()
    return output.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("norm", [BASE, LARGE], ids=["group", "layer"])
def test_training_is_as_if_chunks_had_never_been_asked_for(norm):
    model = speech_model(**norm, layerdrop=0.0, mask_time_prob=0.0).train()
    output, gradients = train(model, noise(2, SAMPLES))
    same_output, same_gradients = train(chunk_activations(model, seconds=0.1), noise(2, SAMPLES))
    assert torch.equal(output, same_output)
    assert len(gradients) > 30
    assert all(map(torch.equal, gradients, same_gradients))
    # Dropout is drawn for the whole also where no gradient is recorded.
    torch.manual_seed(3)
    with torch.no_grad():
        assert torch.equal(model(noise(2, SAMPLES))[0], output)


def test_recorded_gradients_of_a_model_in_evaluation_mode_are_those_of_the_whole_and_it_says_that_they_take_memory():
    model = speech_model()
    output, gradients = train(model, noise(1, SAMPLES))
    chunk_activations(model, seconds=0.1)
    with pytest.warns(UserWarning, match="gradients are recorded, .* within torch.inference_mode"):
        same_output, same_gradients = train(model, noise(1, SAMPLES))
    assert torch.equal(output, same_output)
    assert all(map(torch.equal, gradients, same_gradients))
    train(chunk_activations(model, seconds=60), noise(1, SAMPLES))  # one chunk has nothing to lose: no warning


def test_a_model_whose_weights_need_no_gradient_runs_in_chunks_also_outside_of_inference_mode():
    model = chunk_activations(speech_model().requires_grad_(False), seconds=0.1)
    with Largest() as seen:
        model(noise(1, 5 * 16_000))
    assert seen.values < 16 * 5 * 16_000 / 5


def test_copies_have_chunks_and_weights_of_their_own():
    model = chunk_activations(speech_model(), seconds=0.1)
    before = run(model, noise(1, SAMPLES))
    other = copy.deepcopy(model)
    assert torch.equal(run(other, noise(1, SAMPLES)), before)
    for weight in other.parameters():
        weight.data.mul_(0.5)
    assert torch.equal(run(model, noise(1, SAMPLES)), before)
    changed = run(other, noise(1, SAMPLES))
    assert not close(changed, before)
    assert close(run(chunk_activations(other, seconds=None), noise(1, SAMPLES)), changed)
    with torch.inference_mode(), Largest() as seen:
        model(noise(1, SAMPLES))
    assert seen.values < 16 * SAMPLES / 5


def test_weights_names_configuration_and_what_is_saved_are_untouched(tmp_path):
    model = speech_model().float()
    config, names = model.config.to_dict(), list(model.state_dict())
    modules = [(name, type(module)) for name, module in model.named_modules()]
    whole = run(model, noise(1, SAMPLES).float())
    chunk_activations(model, seconds=0.1)
    assert list(model.state_dict()) == names
    assert [(name, type(module)) for name, module in model.named_modules()] == modules
    assert model.config.to_dict() == config
    model.save_pretrained(tmp_path)
    loaded = transformers.HubertModel.from_pretrained(tmp_path).eval()
    assert torch.equal(run(loaded, noise(1, SAMPLES).float()), whole)


def test_models_that_run_side_by_side_do_not_mix_their_statistics():
    model = chunk_activations(speech_model(), seconds=0.1)
    inputs = [noise(1, SAMPLES) * scale + scale for scale in (1, 2, 3, 4)]
    alone = [run(model, one) for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(map(torch.equal, pool.map(lambda one: run(model, one), inputs), alone))


def test_a_call_that_fails_leaves_the_model_usable():
    model = chunk_activations(speech_model(), seconds=0.1)
    before = run(model, noise(1, SAMPLES))

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    hook = model.get_submodule("feature_extractor.conv_layers.3").register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        run(model, noise(1, SAMPLES))
    hook.remove()
    norm = model.get_submodule("feature_extractor.conv_layers.0.layer_norm")
    assert norm(torch.randn(1, 16, 5).double()).shape == (1, 16, 5)
    assert torch.equal(run(model, noise(1, SAMPLES)), before)


def test_a_forward_pass_that_another_library_put_in_place_is_called_and_stays():
    model = speech_model()
    feed_forward = model.get_submodule("encoder.layers.0.feed_forward")
    own, sizes = feed_forward.forward, []

    def counted(hidden: Tensor) -> Tensor:
        sizes.append(hidden.shape[1])
        return own(hidden)

    feed_forward.forward = counted
    run(chunk_activations(chunk_activations(model, seconds=0.4), seconds=0.5), noise(1, SAMPLES))
    assert sorted(sizes) == [11, 25, 25]
    assert chunk_activations(model, seconds=None).get_submodule("encoder.layers.0.feed_forward").forward is counted
    assert all("forward" not in module.__dict__ for module in chunk_activations(model).modules() if module in [model])


def test_calling_it_off_leaves_nothing_behind():
    model = speech_model()
    before = [set(module.__dict__) for module in model.modules()]
    for seconds in (None, 0.1, 2, None):
        chunk_activations(model, seconds=seconds)
    assert [set(module.__dict__) for module in model.modules()] == before


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf"), "30", True])
def test_what_is_no_length_of_a_chunk_is_told(seconds):
    with pytest.raises(InputError, match="seconds must be a positive number, or None for no chunks, got "):
        chunk_activations(speech_model(), seconds=seconds)


def other_model(name: str) -> PreTrainedModel:
    text = {"vocab_size": 60, "pad_token_id": 0}
    whisper = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    whisper |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = {"BertModel": {**TINY, **text}, "WhisperModel": whisper, "Wav2Vec2BertModel": TINY}[name]
    model_class = getattr(transformers, name)
    return model_class(model_class.config_class(**config))


@pytest.mark.parametrize("seconds", [30.0, None])
@pytest.mark.parametrize("name", ["BertModel", "WhisperModel", "Wav2Vec2BertModel"])
def test_a_model_without_such_a_front_end_is_refused(name, seconds):
    message = f"^{name} cannot run in chunks of audio: it has no front end of convolutions over the waveform"
    with pytest.raises(UnsupportedError, match=message):
        chunk_activations(other_model(name), seconds=seconds)


@pytest.mark.parametrize(
    ("module", "what"),
    [(nn.InstanceNorm1d(16), "a InstanceNorm1d"), (nn.Conv1d(16, 16, 3, padding=1), "a convolution that pads")],
)
def test_a_front_end_whose_reach_is_not_known_is_refused(module, what):
    model = speech_model()
    layer = model.get_submodule("feature_extractor.conv_layers.2")
    setattr(layer, "conv" if isinstance(module, nn.Conv1d) else "layer_norm", module)
    with pytest.raises(
        UnsupportedError, match=f"^HubertModel cannot run in chunks of audio: its front end has {what}"
    ):
        chunk_activations(model)
