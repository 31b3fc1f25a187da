import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

import tippingpoint
from tippingpoint.errors import AnswerError, DataError, InputError, UnsupportedError
from tippingpoint.models import checkpoint_files
from tippingpoint.models.architecture import AttentionVariant, Option
from tippingpoint.models.catalog import VARIANTS
from tippingpoint.models.checkpoints import convert, load, save
from tippingpoint.models.swap import swap_attention, variants_of

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
TEXT: dict[str, Any] = {**TINY, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SPEECH: dict[str, Any] = {**TINY, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "vocab_size": 20}
BART: dict[str, Any] = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": 2,
    "decoder_start_token_id": 1,
}
MODERN: dict[str, Any] = {**TEXT, "num_hidden_layers": 4, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(5, 60, (2, 40), generator=torch.Generator().manual_seed(1))}


def sound() -> dict[str, Tensor]:
    return {"input_values": torch.randn(1, 16_000, generator=torch.Generator().manual_seed(1))}


def image() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))}


MODELS: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Tensor]]]] = {
    "HubertModel": (SPEECH, sound),
    "HubertForCTC": (SPEECH, sound),
    "BertForSequenceClassification": (TEXT, tokens),
    "BertForMaskedLM": (TEXT, tokens),  # its output layer is tied to its embeddings
    "ModernBertModel": (MODERN, tokens),
    "BartForConditionalGeneration": (BART, tokens),
    "ViTForImageClassification": ({**TINY, "image_size": 64}, image),
}


def make(name: str, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    return model_class(model_class.config_class(**{**MODELS.get(name, (TEXT,))[0], **options})).eval()


def run(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    assert not model.training
    with torch.inference_mode():
        return model(**inputs)[0]


def write(folder: Path, name: str = "HubertModel", **options: Any) -> Path:
    make(name, **options).save_pretrained(folder)
    return folder


@pytest.fixture
def hubert(tmp_path: Path) -> Path:
    return write(tmp_path / "hubert")


def edit_config(folder: Path, **changes: Any) -> Path:
    values = json.loads((folder / "config.json").read_text()) | changes
    values = {key: value for key, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_what_was_converted_opens_with_the_variant_in_place_and_the_same_outputs_bit_for_bit(name, tmp_path):
    source, inputs = write(tmp_path / "source", name), MODELS[name][1]()
    done = convert(source, "local:window=3", tmp_path / "out")
    opened, plain = load(tmp_path / "out"), load(source)
    assert type(opened) is type(plain) is type(make(name))
    assert torch.equal(run(opened, inputs), run(swap_attention(make(name), "local:window=3"), inputs))
    assert torch.equal(run(plain, inputs), run(make(name), inputs))
    assert not torch.equal(run(opened, inputs), run(plain, inputs))
    assert done.attention == tuple(map(str, variants_of(opened)))
    assert done.parameters_before == done.parameters_after == plain.num_parameters()
    assert all(torch.equal(weight, plain.state_dict()[key]) for key, weight in opened.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_converting_back_gives_the_checkpoint_that_there_was(name, tmp_path):
    source = write(tmp_path / "source", name)
    convert(source, "local:window=3", tmp_path / "out")
    done = convert(tmp_path / "out", "sdpa", tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config == json.loads((source / "config.json").read_text())
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert set(done.attention) == {"sdpa"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_window_that_covers_the_recording_gives_the_outputs_of_the_original(dtype, tmp_path):
    model: Any = make("HubertModel")
    model.to(dtype).save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", "local:window=49", tmp_path / "out")
    inputs = {"input_values": sound()["input_values"].to(dtype)}
    opened, original = load(tmp_path / "out"), load(tmp_path / "source")
    assert opened.dtype == dtype
    # Hidden states are normalised to unit variance; two layers of a few hundred roundings each.
    assert (run(opened, inputs) - run(original, inputs)).abs().max() <= 1000 * torch.finfo(dtype).eps
    narrower = convert(tmp_path / "source", "local:window=47", tmp_path / "narrower")
    assert (run(load(narrower.output), inputs) - run(original, inputs)).abs().max() > 1000 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    "attention",
    [
        ["local:window=3,layers=0-1", "local:window=9,layers=3"],
        ["eager"],
        "local:window=3,num_global=2,causal=true,layers=2",
    ],
)
def test_layers_keep_what_each_of_them_was_given(attention, tmp_path):
    source = write(tmp_path / "source", "BertModel", num_hidden_layers=4)
    done = convert(source, attention, tmp_path / "out")
    expected = make("BertModel", num_hidden_layers=4)
    for variant in [attention] if isinstance(attention, str) else attention:
        swap_attention(expected, variant)
    opened = load(tmp_path / "out")
    assert variants_of(opened) == variants_of(expected)
    assert torch.equal(run(opened, tokens()), run(expected, tokens()))
    changed = [number for number, variant in enumerate(variants_of(expected)) if str(variant) != "sdpa"]
    assert list(done.changed) == changed


def test_layers_with_windows_of_their_own_and_decoders_keep_their_attention(tmp_path):
    modern = convert(write(tmp_path / "modern", "ModernBertModel"), "local:window=3", tmp_path / "out")
    assert modern.attention == ("local:window=3", "sdpa", "sdpa", "local:window=3")
    assert modern.changed == (0, 3)
    assert str(modern).startswith(
        "ModernBertModel: local:window=3 in layer 0, sdpa in layers 1-2, local:window=3 in layer 3; 2 of 4 layers"
    )
    convert(write(tmp_path / "bart", "BartForConditionalGeneration"), "local:window=3", tmp_path / "bart-out")
    model: Any = load(tmp_path / "bart-out")
    assert model.model.encoder.config._attn_implementation == "tippingpoint"
    assert model.model.decoder.config._attn_implementation == "sdpa"


def test_a_converted_checkpoint_can_be_converted_again(hubert, tmp_path):
    convert(hubert, "local:window=3,layers=0", tmp_path / "first")
    done = convert(tmp_path / "first", "local:window=5,layers=1", tmp_path / "second")
    assert done.attention == ("local:window=3", "local:window=5")
    assert done.changed == (1,)


def test_the_library_alone_opens_it_too_without_the_variant(hubert, tmp_path):
    convert(hubert, "local:window=3", tmp_path / "out")
    plain = transformers.HubertModel.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(run(plain, sound()), run(load(hubert), sound()))


class Projected(nn.Module):
    """Attends to a few learned mixtures of the keys and values."""

    def __init__(self, *, rank: int, max_length: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(rank, max_length))
        self.register_buffer("seen", torch.rand(3))
        self.register_buffer("fixed", torch.linspace(1, 2, max_length), persistent=False)

    def forward(self, query, key, value, *, padding_mask=None, scale=None, dropout=0.0):
        mix = self.mix[:, : key.shape[2]] * self.fixed[: key.shape[2]]  # pyright: ignore[reportIndexIssue]
        return nn.functional.scaled_dot_product_attention(query, mix @ key, mix @ value, scale=scale)


@pytest.fixture
def learned_variant(monkeypatch: pytest.MonkeyPatch) -> str:
    """A variant with learned parameters, in the catalogue for the time of a test."""
    module: Any = types.ModuleType("projected_variant")
    module.Projected = Projected
    monkeypatch.setitem(sys.modules, "projected_variant", module)
    number = {"kind": int, "minimum": 1}
    row = AttentionVariant(
        name="projected",
        title="mixtures",
        exact=False,
        paper="",
        options={
            "rank": Option(default=4, meaning="mixtures", **number),
            "max_length": Option(default=64, meaning="longest input", **number),
        },
        module="projected_variant:Projected",
    )
    monkeypatch.setitem(VARIANTS._own, "projected", row)  # type: ignore[attr-defined]
    return "projected:rank=5,max_length=50"


@pytest.mark.parametrize("layers", [1, 12])
def test_what_a_variant_learned_survives(layers, learned_variant, tmp_path):
    source = write(tmp_path / "source", "BertModel", num_hidden_layers=layers)
    done = convert(source, learned_variant, tmp_path / "out")
    assert done.parameters_after - done.parameters_before == layers * 5 * 50
    assert "(+" in str(done)
    assert "note: the weights of the variant are random: train the model before it is used" in str(done)
    convert(source, learned_variant, tmp_path / "same")
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "same")]
    assert written[0] == written[1]
    assert "'projected:max_length=50,rank=5' takes at most 50 positions" in str(done)
    model = load(tmp_path / "out")
    with torch.no_grad():
        for number, module in enumerate(m for m in model.modules() if isinstance(m, Projected)):
            module.mix.add_(number + 1)
    saved = save(model, tmp_path / "trained")
    again = load(saved)
    assert torch.equal(run(again, tokens()), run(model, tokens()))
    assert not torch.equal(run(again, tokens()), run(load(tmp_path / "out"), tokens()))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    # What trains a model saves it by itself.
    model.save_pretrained(tmp_path / "by_a_trainer")
    assert torch.equal(run(load(tmp_path / "by_a_trainer"), tokens()), run(model, tokens()))


def test_what_a_variant_learned_must_be_there_and_be_its_own(learned_variant, tmp_path):
    source = write(tmp_path / "source", "BertModel")
    convert(source, learned_variant, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    name = "encoder.layer.1.attention.self.tippingpoint.learned.mix"
    edit_weights(tmp_path / "other", lambda weights: weights.update({name: torch.zeros(5, 49)}))
    with pytest.raises(DataError, match=r"what a variant learned in .* does not fit it"):
        load(tmp_path / "other")
    edit_weights(tmp_path / "out", lambda weights: [weights.pop(key) for key in list(weights) if ".learned." in key])
    with pytest.raises(DataError, match=r"holds what variants learned in 0 layers, and its config.json has .* in 2;"):
        load(tmp_path / "out")


def test_a_variant_that_is_not_installed_any_more_is_named(learned_variant, tmp_path, monkeypatch):
    convert(write(tmp_path / "source", "BertModel"), learned_variant, tmp_path / "out")
    monkeypatch.delitem(VARIANTS._own, "projected")  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"unknown variant 'projected'.* Is the package installed that it came from"):
        load(tmp_path / "out")


def test_a_checkpoint_in_parts_is_read(tmp_path):
    make("BertModel").save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    assert torch.equal(run(load(tmp_path / "parts"), tokens()), run(make("BertModel"), tokens()))
    next((tmp_path / "parts").glob("model-00002*")).unlink()
    with pytest.raises(DataError, match=r"names model-00002-of-.*\.safetensors, which is not there"):
        load(tmp_path / "parts")
    index = tmp_path / "parts" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(DataError, match="must map each weight to a file beside it"):
        load(tmp_path / "parts")


def test_weights_keep_their_dtype_unless_another_is_asked_for(tmp_path):
    model: Any = make("BertModel")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    convert(tmp_path / "half", "local:window=3", tmp_path / "out")
    assert {parameter.dtype for parameter in load(tmp_path / "out").parameters()} == {torch.bfloat16}
    assert load(tmp_path / "out", dtype="float32", device="cpu").dtype == torch.float32
    assert load(tmp_path / "out", dtype=torch.float16).dtype == torch.float16
    with pytest.raises(InputError, match=r"unknown dtype 'float31'; .* Did you mean 'float32'"):
        load(tmp_path / "out", dtype="float31")
    with pytest.raises(InputError, match="the device 'tpu9' cannot be used"):
        load(tmp_path / "out", device="tpu9")


def test_without_a_named_class_the_encoder_of_its_type_is_made(tmp_path):
    folder = edit_config(write(tmp_path / "bert", "BertModel"), architectures=None)
    assert type(load(folder)).__name__ == "BertModel"


def test_names_of_weights_of_older_libraries_are_understood(hubert):
    def age(weights: dict[str, Tensor]) -> None:
        for new, old in (
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        ):
            weights[f"encoder.pos_conv_embed.conv.{old}"] = weights.pop(f"encoder.pos_conv_embed.conv.{new}")

    before = run(load(hubert), sound())
    assert torch.equal(run(load(edit_weights(hubert, age)), sound()), before)


def test_weights_of_another_head_are_left_out_and_named(tmp_path):
    folder = write(tmp_path / "bert", "BertForMaskedLM")
    heads = {"bert.pooler.dense.weight": torch.zeros(32, 32), "cls.seq_relationship.weight": torch.zeros(2, 32)}
    edit_weights(folder, lambda weights: weights.update(heads))
    done = convert(folder, "local", tmp_path / "out")
    assert done.left_out == tuple(heads)
    assert "note: BertForMaskedLM has no place for bert.pooler.dense.weight and 1 more of the checkpoint" in str(done)


def test_what_only_training_needs_may_be_missing_and_is_named(hubert, tmp_path):
    edit_weights(hubert, lambda weights: weights.pop("masked_spec_embed"))
    assert "note: the checkpoint has no masked_spec_embed" in str(convert(hubert, "local", tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("encoder.layers.1.attention.k_proj.bias"),
            r"1 weight is missing \(encoder.layers.1.attention.k",
        ),
        (
            lambda w: [w.pop(key) for key in list(w) if "encoder.layers.0" in key],
            r"16 weights are missing \(encoder.layers.0.attention.k_proj.bias, .*, .*, \.\.\.\)",
        ),
        (
            lambda w: w.update({f"encoder.layers.2.{n}.weight": torch.zeros(3) for n in "abcd"}),
            r"4 weights have no place \(encoder.layers.2.a.weight",
        ),
        (
            lambda w: w.update({"encoder.layer_norm.scale": torch.zeros(3)}),
            r"1 weight has no place \(encoder.layer_norm",
        ),
        (
            lambda w: w.update({"encoder.layer_norm.bias": torch.zeros(3)}),
            r"1 weight has another shape \(encoder.layer_norm.bias is \[3\] in the file and \[32\] in the model\)",
        ),
        (
            lambda w: w.update({"a.tippingpoint.learned.b": torch.zeros(3)}),
            "holds what variants learned in 1 layer, and",
        ),
    ],
)
def test_weights_that_are_not_the_configurations_are_an_error_and_never_random(change, message, hubert, tmp_path):
    edit_weights(hubert, change)
    with pytest.raises(DataError, match=message):
        convert(hubert, "local", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "options", "limit"),
    [
        ("BertModel", {}, "takes at most 512 tokens: its table of positions ends there"),
        ("XLMRobertaModel", {"pad_token_id": 1, "max_position_embeddings": 130}, "takes at most 128 "),
        ("BartModel", BART, "takes at most 64 "),
        ("ViTModel", {"image_size": 64}, "takes images of 64 px; others need interpolate_pos_encoding=True"),
        ("HubertModel", SPEECH, None),
    ],
)
def test_what_a_checkpoint_cannot_take_is_said(name, options, limit, tmp_path):
    done = convert(write(tmp_path / "source", name, **options), "local:window=3", tmp_path / "out")
    assert len(done.limits) == (limit is not None)
    assert limit is None or done.limits[0].startswith(limit)
    assert limit is None or f"limit: {limit}" in str(done)


def test_tokenizers_are_copied_and_code_and_pickles_are_not(hubert, tmp_path):
    kept = ["merges.txt", "preprocessor_config.json", "spiece.model", "tokenizer.json", "vocab.json", "LICENSE"]
    for name in [*kept, "modeling_own.py", "training_args.bin", "optimizer.pt", "trainer_state.json", "README.md"]:
        (hubert / name).write_text(name)
    done = convert(hubert, "local", tmp_path / "out")
    assert sorted(done.companions) == sorted(kept)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {*kept, "config.json", "model.safetensors"}
    assert (tmp_path / "out" / "vocab.json").read_text() == "vocab.json"


def test_how_a_model_generates_is_kept(tmp_path):
    source = write(tmp_path / "bart", "BartForConditionalGeneration")
    values = json.loads((source / "generation_config.json").read_text())
    (source / "generation_config.json").write_text(json.dumps(values | {"num_beams": 3}))
    convert(source, "local", tmp_path / "out")
    model: Any = load(tmp_path / "out")
    assert model.generation_config.num_beams == 3
    (source / "generation_config.json").unlink()
    older: Any = load(edit_config(source, num_beams=4))
    assert older.generation_config.num_beams == 4


def test_nothing_that_a_configuration_asks_for_beyond_the_model_is_followed(hubert, tmp_path):
    (hubert / "own.py").write_text("raise SystemExit('code of a checkpoint ran')")
    edit_config(
        hubert,
        auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"},
        attn_implementation="owner/kernels",
        _attn_implementation="owner/kernels",
        transformers_weights="../elsewhere.safetensors",
        fusion_config={"patch_embeddings": True},
    )
    convert(hubert, "local", tmp_path / "out")
    written = (tmp_path / "out" / "config.json").read_text()
    assert "own." not in written
    assert "owner/" not in written


def test_pickled_weights_are_refused_with_the_command_that_converts_them(hubert):
    expected = run(load(hubert), sound())
    torch.save(load_file(hubert / "model.safetensors"), hubert / "pytorch_model.bin")
    (hubert / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"holds pickled weights \(pytorch_model.bin\), which can run code"
    ) as caught:
        load(hubert)
    command = shlex.split(str(caught.value).rpartition("write safetensors once: ")[2])
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    assert torch.equal(run(load(f"{hubert}-safetensors"), sound()), expected)


def _corrupt_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            shutil.rmtree,
            InputError,
            "there is no folder .*; give one with config.json and model.safetensors, or a hub",
        ),
        (lambda f: (shutil.rmtree(f), f.write_text("")), InputError, "a checkpoint is a folder .* is a file"),
        (lambda f: (f / "config.json").unlink(), InputError, "holds no config.json; give the folder that save_pretr"),
        (_corrupt_json, DataError, "cannot be read as JSON: Expecting property name"),
        (lambda f: (f / "config.json").write_text("[]"), DataError, "must hold a JSON object, and holds a list"),
        (lambda f: (f / "config.json").write_text("{}"), DataError, "names no model_type"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), DataError, "cannot be read as JSON"),
        (lambda f: edit_config(f, model_type="hubrt"), InputError, "model type 'hubrt', .* did you mean 'hubert'"),
        (
            lambda f: edit_config(f, model_type="zzz"),
            InputError,
            "does not know; code that comes with a checkpoint .its auto_map. is",
        ),
        (
            lambda f: edit_config(f, architectures=["OwnModel"]),
            InputError,
            "of the class 'OwnModel', which transformers",
        ),
        (
            lambda f: edit_config(f, architectures=["logging"]),
            InputError,
            "of the class 'logging', which transformers",
        ),
        (lambda f: edit_config(f, architectures=["BertModel"]), DataError, "BertModel, which is no model of type"),
        (lambda f: edit_config(f, hidden_size="wide"), DataError, "is no configuration of 'hubert'"),
        (lambda f: edit_config(f, num_attention_heads=5), DataError, "HubertModel cannot be made of"),
        (lambda f: edit_config(f, quantization_config={"quant_method": "x"}), UnsupportedError, "are quantized"),
        (lambda f: edit_config(f, tippingpoint=["x"]), DataError, "must hold 'attention', a list of one variant"),
        (
            lambda f: edit_config(f, tippingpoint={"attention": ["local:window=3"]}),
            DataError,
            "has variants for 1 layers, and HubertModel has 2",
        ),
        (
            lambda f: edit_config(f, tippingpoint={"attention": ["local:windw=3"] * 2}),
            DataError,
            "cannot be put in place: unknown option of 'local' 'windw'",
        ),
        (lambda f: (f / "model.safetensors").unlink(), InputError, "holds no weights; expected model.safetensors"),
        (_cut_weights, DataError, r"model.safetensors' cannot be read \(.*copy the checkpoint again"),
    ],
)
def test_a_checkpoint_that_cannot_be_opened_is_one_sentence(damage, error, message, hubert, tmp_path):
    damage(hubert)
    for act in (lambda: load(hubert), lambda: convert(hubert, "local", tmp_path / "out")):
        with pytest.raises(error, match=message) as caught:
            act()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("attention", "error", "message"),
    [
        ("locl", InputError, "unknown variant 'locl'.*Did you mean 'local'"),
        ("local:window=0", InputError, "must be a whole number of at least 1, got 0"),
        ("local:windw=3", InputError, "unknown option of 'local' 'windw'"),
        ("local:layers=0-7", InputError, "names layer 7, and the model has layers 0 to 1"),
        ("local:layers=7-0", InputError, "must be written N, FIRST-LAST or FIRST-LAST/STEP"),
        ("", InputError, "a variant's name must be a word"),
        ([], InputError, "expected at least one variant, such as local:window=50"),
        (["local:window=3", "local:window=4,layers=1"], UnsupportedError, "are both for layer 1"),
    ],
)
def test_an_attention_that_cannot_be_put_in_leaves_nothing_behind(attention, error, message, hubert, tmp_path):
    with pytest.raises(error, match=message):
        convert(hubert, attention, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hubert"]


def test_a_model_that_takes_no_variant_says_why_and_opens_as_it_is(tmp_path):
    source = write(tmp_path / "wavlm", "WavLMModel", **SPEECH)
    with pytest.raises(UnsupportedError, match=r"^WavLMModel cannot take 'local:window="):
        convert(source, "local", tmp_path / "out")
    assert torch.equal(run(load(source), sound()), run(make("WavLMModel", **SPEECH), sound()))
    assert torch.equal(run(load(save(load(source), tmp_path / "saved")), sound()), run(load(source), sound()))


def test_a_folder_that_holds_something_is_replaced_only_if_asked_and_only_if_it_is_a_checkpoint(hubert, tmp_path):
    (tmp_path / "out").mkdir()  # an empty folder will do
    convert(hubert, "local:window=3", tmp_path / "out")
    with pytest.raises(InputError, match="is not empty; give another, or replace it by --force"):
        convert(hubert, "local:window=5", tmp_path / "out")
    assert str(variants_of(load(tmp_path / "out"))[0]) == "local:window=3"
    convert(hubert, "local:window=5", tmp_path / "out", force=True)
    assert str(variants_of(load(tmp_path / "out"))[0]) == "local:window=5"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("dear diary")
    with pytest.raises(InputError, match="holds something that is no checkpoint, which is never replaced"):
        convert(hubert, "local", tmp_path / "home", force=True)
    with pytest.raises(InputError, match="is a file; give a folder"):
        convert(hubert, "local", tmp_path / "home" / "diary.txt", force=True)
    edit_config(hubert, name="mine")
    for above in (hubert, hubert / "..", Path(os.path.relpath(hubert))):
        with pytest.raises(InputError, match="holds the checkpoint itself"):
            convert(hubert, "local", above, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"hubert", "out", "home"}


def _stop(*arguments: Any, **options: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("force", [False, True])
def test_what_is_interrupted_or_fails_leaves_what_there_was(force, hubert, tmp_path, monkeypatch):
    if force:
        convert(hubert, "local:window=3", tmp_path / "out")
    before = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", _stop)
        with pytest.raises(KeyboardInterrupt):
            convert(hubert, "local:window=5", tmp_path / "out", force=force)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    real = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if (
            (self / "model.safetensors").exists()
            and Path(target).name == "out"
            and ".out" in self.name
            and written[0]
        ):
            written[0] = False
            raise OSError(28, "No space left on device")
        return real(self, target)

    written = [True]
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(
        AnswerError, match=r"cannot be written \(No space left on device\); what was there before is unt"
    ):
        convert(hubert, "local:window=5", tmp_path / "out", force=force)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    if force:
        assert str(variants_of(load(tmp_path / "out"))[0]) == "local:window=3"


FULL_DISK = """
import resource, sys
import tippingpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    tippingpoint.convert(sys.argv[1], "local", sys.argv[2])
except tippingpoint.TippingPointError as error:
    print(type(error).__name__, error)
"""


def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_nothing(hubert, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, hubert, tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("AnswerError")
    assert "cannot be written (" in done.stdout
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["hubert"]


def test_a_place_without_room_or_that_cannot_be_written_is_one_sentence(hubert, tmp_path, monkeypatch):
    with pytest.raises(AnswerError, match="cannot be written"):
        convert(hubert, "local", hubert / "config.json" / "out")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint_files.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(AnswerError, match=r"needs [\d.]+ KiB, and 1,000 B are free there; make room"):
        convert(hubert, "local", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hubert"]


UNWANTED = ("own.py", "pytorch_model.bin", "tokenizer.py", "model.pt", "optimizer.bin", "tf_model.h5", "vocab.pkl")


def test_a_hub_id_is_fetched_without_code_and_pickles(hubert, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def fetch(name: str, *, allow_patterns: list[str], local_files_only: bool, **options: Any) -> str:
        asked.append((name, local_files_only))
        assert not any(fnmatchcase(name, pattern) for pattern in allow_patterns for name in UNWANTED)
        if local_files_only:
            raise FileNotFoundError("not in the cache")
        return str(hubert)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    done = convert("owner/hubert", "local", tmp_path / "out")
    assert asked == [("owner/hubert", True), ("owner/hubert", False)]
    assert done.checkpoint == "owner/hubert"
    assert torch.equal(run(load("owner/hubert"), sound()), run(load(hubert), sound()))

    def refuse(*arguments: Any, **options: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(
        InputError, match=r"no folder 'owner/none', and the hub gives no .* \(no network\); give a folder"
    ):
        load("owner/none")
    with pytest.raises(InputError, match=r"there is no folder './none'; give one with"):
        load("./none")


def test_the_names_are_public():
    assert tippingpoint.load is load
    assert tippingpoint.convert is convert
    assert tippingpoint.save is save


def test_the_library_is_as_talkative_afterwards_as_before(hubert, tmp_path, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    convert(hubert, "local", tmp_path / "out")
    load(tmp_path / "out")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_the_library_alone_writes_what_stands_in_a_model_and_what_was_taken_out_stays_out(tmp_path):
    model = swap_attention(make("HubertModel"), "local", window=3)
    model.save_pretrained(tmp_path / "local")
    reopened = load(tmp_path / "local")
    assert torch.equal(run(reopened, sound()), run(model, sound()))
    swap_attention(reopened, "sdpa").save_pretrained(tmp_path / "back")
    assert {str(variant) for variant in variants_of(load(tmp_path / "back"))} == {"sdpa"}


# A checkpoint of a stranger


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("asked for a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["here/none", "./none", "../none", "/none/there", "a/b/c", "~/none", "none"])
def test_a_path_that_leads_nowhere_is_never_looked_for_elsewhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match="there is no folder"):
        load(name)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoConfig": "planted.Config", "AutoModel": "planted.Model"}},
        {"trust_remote_code": True, "custom_pipelines": {"x": {"impl": "planted.Pipe"}}},
        {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"},
        {"backbone": "evil/backbone", "use_timm_backbone": True, "use_pretrained_backbone": True},
        {"_name_or_path": "evil/model", "transformers_weights": "../../secret"},
    ],
)
def test_a_configuration_leads_to_no_code_and_no_download(hubert, changes, monkeypatch):
    (hubert / "planted.py").write_text("raise SystemExit('planted code ran')")
    monkeypatch.syspath_prepend(str(hubert))
    expected = run(load(hubert), sound())
    assert torch.equal(run(load(edit_config(hubert, **changes)), sound()), expected)


@pytest.mark.usefixtures("no_network")
def test_a_model_that_would_be_made_of_another_is_not_fetched(tmp_path):
    folder = write(tmp_path / "model")
    edit_config(folder, model_type="detr", architectures=["DetrModel"], backbone="evil/backbone", num_hidden_layers=1)
    with pytest.raises((DataError, InputError)) as caught:
        load(folder)
    assert "evil" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "planted", "auto_map": {"AutoModel": "planted.Model"}}, "its auto_map. is never run"),
        ({"architectures": ["Planted"]}, "its auto_map. is never run"),
        ({"num_hidden_layers": 10**9}, "asks for 1,000,000,000 layers"),
    ],
)
def test_what_only_code_of_its_own_could_make_is_refused(hubert, changes, message):
    with pytest.raises((InputError, DataError), match=message):
        load(edit_config(hubert, **changes))


@pytest.mark.parametrize(
    "header",
    [
        (2**63).to_bytes(8, "little"),
        (2**40).to_bytes(8, "little") + b"{}",
        (99_000_000).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (70).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4]}}'
        + b"    ",
        (68).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,9223372036854775]}}',
        b"\x80\x04\x95cos\nsystem\n",
        b"",
    ],
)
def test_weights_whose_header_lies_are_named(hubert, header):
    (hubert / "model.safetensors").write_bytes(header)
    with pytest.raises(DataError, match=r"model\.safetensors' cannot be read"):
        load(hubert)


def test_the_command_that_converts_pickles_is_quoted(tmp_path):
    folder = write(tmp_path / 'it\'s "$(touch ran)" `x`; y')
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds pickled weights") as caught:
        load(folder)
    words = shlex.split(str(caught.value).rpartition("write safetensors once: ")[2])
    assert len(words) == 3
    assert str(folder) in ast.literal_eval(re.findall(r"from_pretrained\((.*?)\)\.save", words[2])[0])


def test_links_to_a_persons_own_files_are_not_copied(hubert, tmp_path):
    (tmp_path / "secret").write_text("mine")
    (hubert / "tokenizer.json").symlink_to(tmp_path / "secret")
    (hubert / "vocab.txt").write_text("a")
    (hubert / "LICENSE").symlink_to(hubert / "vocab.txt")
    assert convert(hubert, "local", tmp_path / "out").companions == ("LICENSE", "vocab.txt")
    assert "mine" not in {path.read_text(errors="replace") for path in (tmp_path / "out").iterdir()}


def test_links_into_the_hubs_cache_are_copied(tmp_path):
    folder = write(tmp_path / "models--a--b" / "snapshots" / "1")
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "7").write_text("{}")
    (folder / "tokenizer.json").symlink_to("../../blobs/7")
    assert convert(folder, "local", tmp_path / "out").companions == ("tokenizer.json",)
