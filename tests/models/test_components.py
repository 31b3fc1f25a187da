"""What modules are called, by their names and classes: of the library, of other packages, of one's own."""

from pathlib import Path

import pytest
from torch import nn

from tippingpoint.errors import InputError
from tippingpoint.models.components import GROUPS, Label, is_part, parse_patterns
from tippingpoint.profiling.attribution import name_modules
from tippingpoint.study.files import load_components

QKV = "attention: QKV projections"
OUTPUT = "attention: output projection"
UP, DOWN, ACTIVATION = "feed-forward: up", "feed-forward: down", "feed-forward: activation"
NORMS = "norms and residuals"
FRONT_END, RELATIVE = "input: convolutional front end", "attention: relative positions"
REDUCTION = "attention: spatial reduction"

# Modules of well-known models: their path, and the classes from the model down to them.
NAMED = [
    # BERT and its kin
    ("embeddings.word_embeddings", "BertModel BertEmbeddings Embedding", "input: embedding"),
    ("embeddings.LayerNorm", "BertModel BertEmbeddings LayerNorm", "input: embedding"),
    ("encoder.layer.9.attention", "BertModel BertEncoder ModuleList BertLayer BertAttention", "attention"),
    ("layer.9.attention.self", "BertEncoder ModuleList BertLayer BertAttention BertSelfAttention", "attention"),
    ("layer.9.attention.self.key", "BertEncoder ModuleList BertLayer BertAttention BertSelfAttention Linear", QKV),
    ("layer.9.attention.self.dropout", "BertEncoder ModuleList BertLayer BertAttention Self Dropout", "attention"),
    ("layer.9.attention.output.dense", "BertEncoder ModuleList BertLayer BertAttention Output Linear", OUTPUT),
    ("layer.9.attention.output.LayerNorm", "BertEncoder ModuleList BertLayer BertAttention Output LayerNorm", NORMS),
    ("layer.9.attention.output.dropout", "BertEncoder ModuleList BertLayer BertAttention Output Dropout", NORMS),
    ("layer.9.intermediate.dense", "BertEncoder ModuleList BertLayer BertIntermediate Linear", UP),
    ("layer.9.intermediate.intermediate_act_fn", "BertEncoder ModuleList BertLayer Intermediate GELU", ACTIVATION),
    ("layer.9.output.dense", "BertEncoder ModuleList BertLayer BertOutput Linear", DOWN),
    ("layer.9.output", "BertEncoder ModuleList BertLayer BertOutput", NORMS),
    ("pooler.dense", "BertModel BertPooler Linear", "head"),
    # A head of a task
    ("classifier", "BertForSequenceClassification Linear", "head"),
    ("lm_head.decoder", "RobertaForMaskedLM RobertaLMHead Linear", "head"),
    # HuBERT
    ("feature_extractor.conv_layers.0.conv", "HubertModel Encoder ModuleList Layer Conv", FRONT_END),
    ("feature_projection.projection", "HubertModel HubertFeatureProjection Linear", "input: feature projection"),
    ("encoder.pos_conv_embed.conv", "HubertModel HubertEncoder Embedding Conv", "input: positional convolution"),
    ("layers.0.attention.q_proj", "HubertEncoder ModuleList HubertEncoderLayer HubertAttention Linear", QKV),
    ("layers.0.attention.out_proj", "HubertEncoder ModuleList HubertEncoderLayer HubertAttention Linear", OUTPUT),
    ("layers.0.feed_forward.intermediate_dense", "HubertEncoder ModuleList Layer HubertFeedForward Linear", UP),
    ("layers.0.feed_forward.output_dense", "HubertEncoder ModuleList Layer HubertFeedForward Linear", DOWN),
    # Conformers
    ("layers.0.conv_module.pointwise_conv1", "Encoder ModuleList Layer ConvolutionModule Conv", "convolution module"),
    ("layers.0.conv_module.layer_norm", "Encoder ModuleList Layer ConvolutionModule LayerNorm", "convolution module"),
    ("layers.0.self_attn.linear_pos", "Encoder ModuleList Layer ConformerSelfAttention Linear", RELATIVE),
    ("layers.0.ffn2.output_dense", "Encoder ModuleList Layer ConformerFeedForward Linear", DOWN),
    # T5, whose layers are called attentions
    (
        "block.0.layer.0.SelfAttention",
        "T5Stack ModuleList Block ModuleList T5LayerSelfAttention T5Attention",
        "attention",
    ),
    (
        "block.0.layer.0.SelfAttention.o",
        "T5Stack List Block ModuleList T5LayerSelfAttention T5Attention Linear",
        OUTPUT,
    ),
    ("block.0.layer.0.layer_norm", "T5Stack ModuleList T5Block ModuleList T5LayerSelfAttention T5LayerNorm", NORMS),
    ("block.0.layer.1.DenseReluDense.wi_0", "T5Stack ModuleList T5Block ModuleList T5LayerFF T5Dense Linear", UP),
    ("block.0.layer.1.DenseReluDense.wo", "T5Stack ModuleList T5Block ModuleList T5LayerFF T5Dense Linear", DOWN),
    # GPT-2 and Llama
    ("wte", "GPT2Model Embedding", "input: embedding"),
    ("h.0.attn.c_attn", "GPT2Model ModuleList GPT2Block GPT2Attention Conv1D", QKV),
    ("h.0.attn.c_proj", "GPT2Model ModuleList GPT2Block GPT2Attention Conv1D", OUTPUT),
    ("h.0.mlp.c_fc", "GPT2Model ModuleList GPT2Block GPT2MLP Conv1D", UP),
    ("h.0.mlp.c_proj", "GPT2Model ModuleList GPT2Block GPT2MLP Conv1D", DOWN),
    ("layers.0.self_attn.k_proj", "LlamaModel ModuleList LlamaDecoderLayer LlamaAttention Linear", QKV),
    ("layers.0.mlp.gate_proj", "LlamaModel ModuleList LlamaDecoderLayer LlamaMLP Linear", UP),
    ("layers.0.mlp.down_proj", "LlamaModel ModuleList LlamaDecoderLayer LlamaMLP Linear", DOWN),
    ("layers.0.input_layernorm", "LlamaModel ModuleList LlamaDecoderLayer LlamaRMSNorm", NORMS),
    # timm, torch and diffusers
    ("patch_embed.proj", "VisionTransformer PatchEmbed Conv", "input: patch embedding"),
    ("blocks.0.attn.qkv", "VisionTransformer Sequential Block Attention Linear", QKV),
    ("blocks.0.attn.proj", "VisionTransformer Sequential Block Attention Linear", OUTPUT),
    ("blocks.0.mlp.fc1", "VisionTransformer Sequential Block Mlp Linear", UP),
    ("blocks.0.ls1", "VisionTransformer Sequential Block LayerScale", NORMS),
    ("blocks.0.drop_path1", "VisionTransformer Sequential Block DropPath", NORMS),
    ("layers.0.self_attn", "TransformerEncoder ModuleList TransformerEncoderLayer MultiheadAttention", "attention"),
    ("layers.0.self_attn.out_proj", "TransformerEncoder ModuleList Layer MultiheadAttention OutLinear", OUTPUT),
    ("layers.0.linear1", "TransformerEncoder ModuleList TransformerEncoderLayer Linear", UP),
    ("layers.0.linear2", "TransformerEncoder ModuleList TransformerEncoderLayer Linear", DOWN),
    ("blocks.0.attn1.to_k", "UNet ModuleList BasicTransformerBlock Attention Linear", QKV),
    ("blocks.0.attn1.to_out.0", "UNet ModuleList BasicTransformerBlock Attention ModuleList Linear", OUTPUT),
    # Stages and reductions
    ("layers.0.downsample", "SwinEncoder ModuleList SwinStage SwinPatchMerging", "down- and upsampling"),
    ("0.attention.self.spatial_reduction", "Encoder Layer PvtAttention PvtSelfAttention Conv", REDUCTION),
    ("layer.0.fourier.self", "Encoder ModuleList Layer FNetFourierTransform FNetBasicFourierTransform", "attention"),
    # What no rule names has the name of its class, unless it stands in a part.
    ("blocks.0.mixer", "Model ModuleList Block Mixer", "Mixer"),
    ("blocks.0.mixer.token_mixing", "Model ModuleList Block Mixer Linear", "Linear"),
    ("blocks.0.mixer.dropout", "Model ModuleList Block Mixer Dropout", "Mixer"),
    ("blocks.0.mlp.gate", "Model ModuleList Block Mlp Gate", ACTIVATION),
    ("blocks.0.attn.strange", "Model ModuleList Block Attention Strange", "attention"),
    ("", "Model", "Model"),
]


def module_at(path: str, classes: str) -> tuple[nn.Module, nn.Module]:
    """A model of empty modules, and the one at the end of the path."""
    names, kinds = path.split(".") if path else [], classes.split()
    assert len(kinds) == len(names) + 1

    def make(kind: str) -> nn.Module:
        known = {"ModuleList": nn.ModuleList, "Sequential": nn.Sequential}
        return known.get(kind, type(kind, (nn.Module,), {}))()

    model = here = make(kinds[0])
    for name, kind in zip(names, kinds[1:], strict=True):
        child = make(kind)
        here.add_module(name, child)
        here = child
    return model, here


def name_of(path: str, classes: str, **patterns: str) -> Label:
    model, module = module_at(path, classes)
    label, _ = name_modules(model, parse_patterns(patterns) if patterns else None)[module]
    return label


@pytest.mark.parametrize(("path", "classes", "label"), NAMED, ids=[path or "the model" for path, _, _ in NAMED])
def test_modules_of_well_known_models_have_their_names(path, classes, label):
    assert str(name_of(path, classes)) == label


def test_linear_layers_without_a_name_go_up_or_down_in_a_feed_forward_part():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(), nn.Linear(16, 8))
            self.mixer = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))

    block = Block()
    names = name_modules(block)
    assert [str(names[module][0]) for module in block.mlp] == [UP, ACTIVATION, ACTIVATION, DOWN]
    assert [str(names[module][0]) for module in block.mixer] == ["Linear", "Linear"]


def test_names_of_weights_mean_a_projection_only_inside_an_attention():
    assert name_of("block.query", "Model SelfAttention Linear") == Label("attention", "QKV projections")
    assert name_of("block.query", "Model Retriever Linear") == Label("other", "Linear")
    assert name_of("block.proj", "Model Mixer Linear") == Label("other", "Linear")


def test_what_holds_a_projection_beside_a_norm_is_not_the_projection():
    alone = name_of("layers.0.self_attn.output", "LEDEncoder ModuleList LEDEncoderLayer LEDEncoderAttention Linear")
    assert alone == Label("attention", "output projection")
    model, dense = module_at("layer.0.attention.output.dense", "Encoder ModuleList Layer BertAttention Output Linear")
    names = name_modules(model)
    holder = model.get_submodule("layer.0.attention.output")
    assert [str(names[module][0]) for module in (holder, dense)] == [NORMS, OUTPUT]


def test_a_label_is_written_with_its_group_unless_it_is_the_whole_of_it():
    assert str(Label("attention", "QK^T")) == "attention: QK^T"
    assert str(Label("head", "head")) == "head"
    assert str(Label("other", "MyModule")) == "MyModule"


def test_groups_stand_in_the_order_of_a_forward_pass():
    order = ("input", "attention", "feed-forward", "norms and residuals", "head", "loss", "optimizer", "other")
    assert [name for name in GROUPS if name in order] == list(order)
    assert len(set(GROUPS)) == len(GROUPS)


@pytest.mark.parametrize("kind", ["Dropout", "Dropout1d", "Identity", "ModuleList", "ModuleDict", "Sequential"])
def test_containers_and_dropout_are_no_parts_of_their_own(kind):
    assert not is_part(kind)


@pytest.mark.parametrize("kind", ["Linear", "MyMixer", "SequentialMixer", "IdentityMixer"])
def test_any_other_class_is(kind):
    assert is_part(kind)


def test_names_of_ones_own_come_before_the_rules_and_the_first_that_fits_counts():
    patterns = {"blocks.0.*": "mine/first", "blocks.*.mlp.*": "mine/mlp", "*": "rest"}

    def label(path: str) -> str:
        return str(name_of(path, "Model ModuleList Block Mlp Linear", **patterns))

    assert label("blocks.0.mlp.fc1") == "mine: first"
    assert label("blocks.1.mlp.fc1") == "mine: mlp"
    assert label("layers.0.attention.query") == "rest"
    # Names are compared as they are written.
    assert label("Blocks.0.mlp.fc1") == "rest"


def test_what_stands_in_a_module_that_was_named_goes_with_it():
    classes = "Model ModuleList Block Mlp Linear"
    assert name_of("blocks.0.mlp.fc1", classes, **{"blocks.*.mlp": "mine/mlp"}) == Label("mine", "mlp")
    assert name_of("blocks.0.mlp.fc1", classes, **{"blocks.0": "mine"}) == Label("mine", "mine")
    # But what is called an attention is told apart, as rules would do it.
    inside = name_of("blocks.0.mlp.query", classes, **{"blocks.*.mlp": "attention"})
    assert str(inside) == QKV
    deeper = {"blocks.*.mlp": "attention", "blocks.*.mlp.query": "mine/query"}
    assert name_of("blocks.0.mlp.query", classes, **deeper) == Label("mine", "query")


def test_names_of_ones_own_are_groups_or_groups_with_names():
    found = parse_patterns({"a": "attention", "b.*": " feed-forward / up ", "[cd]?": "my part/its"})
    assert found == {
        "a": Label("attention", "attention"),
        "b.*": Label("feed-forward", "up"),
        "[cd]?": Label("my part", "its"),
    }
    assert list(found) == ["a", "b.*", "[cd]?"]


@pytest.mark.parametrize("record", [None, {}, [], "blocks.*: attention", ["attention"], 3])
def test_what_is_no_mapping_is_refused_with_an_example(record):
    with pytest.raises(InputError, match=r"""must be a mapping .* '"blocks\.\*\.mlp\.0": feed-forward/up', got"""):
        parse_patterns(record)


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("a", ""),
        ("a", "x/"),
        ("a", "/x"),
        ("a", "x/y/z"),
        ("a", None),
        ("a", 3),
        ("a", ["x"]),
        (3, "attention"),
        ("a", " "),
    ],
)
def test_a_part_that_is_no_name_is_refused_with_the_groups_there_are(pattern, part):
    with pytest.raises(InputError) as caught:
        parse_patterns({"fine": "head", pattern: part})
    message = str(caught.value)
    assert message.startswith(f"a module name must be given a part as GROUP or GROUP/NAME, got {pattern!r}: {part!r}")
    assert "input, attention" in message


def test_a_file_of_names_is_read(tmp_path: Path):
    path = tmp_path / "parts.yaml"
    path.write_text('# mine\n"blocks.*.mixer": attention\n"blocks.*.mlp.0": feed-forward/up\n')
    assert load_components(path) == {
        "blocks.*.mixer": Label("attention", "attention"),
        "blocks.*.mlp.0": Label("feed-forward", "up"),
    }


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read the names of components"),
        ("a: [", "is no YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("a: 3\n", "GROUP or GROUP/NAME, got 'a': 3"),
        ("", "must be a mapping"),
        ("!!python/object/apply:os.getcwd []\n", "is no YAML"),
    ],
)
def test_a_file_that_holds_no_names_is_named_with_what_is_wrong(tmp_path: Path, content: str | None, sentence: str):
    path = tmp_path / "parts.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        load_components(path)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)
    assert str(caught.value).count(str(path)) == 1
