"""Similarities of attention maps against dense ones, and the model as it was."""

from typing import Any

import pytest
import torch
import transformers
from encoders import ENCODERS, SOUND, SPEECH, TEXT, WORDS, Encoder, run, tokens
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tippingpoint
from tippingpoint.errors import DataError, InputError, UnsupportedError
from tippingpoint.models.map_similarity import DISTANCES, map_similarity, rows_in_block
from tippingpoint.models.sharing import reuse_attention
from tippingpoint.models.swap import find_attentions

LENGTH = 40
RELATIVE = Encoder("Wav2Vec2ConformerModel", {**SPEECH, "position_embeddings_type": "relative"}, SOUND)
PARAKEET = Encoder(
    "ParakeetEncoder",
    {
        **{
            name: value
            for name, value in SPEECH.items()
            if name.startswith(("num_hidden", "hidden", "num_att", "inter"))
        },
        "num_mel_bins": 16,
        "subsampling_conv_channels": 8,
        "num_key_value_heads": 2,
    },
    {"input_features": torch.randn(2, 160, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)},
)
EVERY = {**ENCODERS, "relative_conformer": RELATIVE, "parakeet": PARAKEET}
# Published weights attend somewhere; those of a fresh model hardly do.
SHARPER = 2.0


def make(encoder: Encoder, **changes: Any) -> PreTrainedModel:
    """Return a model whose maps are far from uniform and differ from layer to layer."""
    model = encoder.make(**changes)
    generator = torch.Generator().manual_seed(3)
    for attention in find_attentions(model, "be made sharp", own_scores=True):
        for module in attention.modules():
            if isinstance(module, nn.Linear):
                noise = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
                module.weight.data = noise * SHARPER**0.5 / module.in_features**0.5
    return model


pytestmark = pytest.mark.usefixtures("one_thread")

BERT = ENCODERS["bert"]
# The library's eager Parakeet takes its softmax in single precision.
SINGLE_SOFTMAX = 1e-7


def padding(*lengths: int, positions: int = LENGTH) -> Tensor:
    return (torch.arange(positions) < torch.tensor(lengths)[:, None]).long()


def dense_overlaps(maps: list[Tensor], real: Tensor) -> Tensor:
    """Return overlaps [layers, layers, heads, heads] of whole maps [batch, heads, positions, positions]."""
    count, heads = len(maps), maps[0].shape[1]
    found = torch.zeros(count, count, heads, heads, dtype=torch.float64)
    for a in range(count):
        for b in range(a + 1, count):
            for h in range(heads):
                for g in range(heads):
                    rows = torch.minimum(maps[a][:, h], maps[b][:, g]).sum(dim=-1)
                    found[a, b, h, g] = rows[real].mean()
    return found


def dense_near(maps: list[Tensor], real: Tensor) -> Tensor:
    places = torch.arange(maps[0].shape[-1])
    found = []
    for own in maps:
        within = [(places - places[:, None]).abs() <= distance for distance in DISTANCES]
        found.append([[((own[:, h] * band).sum(-1))[real].mean() for band in within] for h in range(own.shape[1])])
    return torch.tensor(found, dtype=torch.float64)


def library_maps(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return the maps that the library's eager attention gives back."""
    maps: list[Tensor] = []
    hooks = [
        attention.register_forward_hook(lambda _module, _inputs, outputs: maps.append(outputs[1]))
        for attention in find_attentions(model, "be looked at", own_scores=True)
    ]
    before = model.config._attn_implementation or "sdpa"
    model.set_attn_implementation("eager")
    run(model, inputs)
    model.set_attn_implementation(before)
    for hook in hooks:
        hook.remove()
    return maps


def as_tensor(similarity) -> Tensor:
    count, heads = len(similarity.eligible), similarity.heads
    found = torch.zeros(count, count, heads, heads, dtype=torch.float64)
    for a in range(count):
        for b in range(a + 1, count):
            found[a, b] = torch.tensor(similarity.overlaps[a][b - a - 1], dtype=torch.float64)
    return found


def agree(similarity, maps: list[Tensor], real: Tensor, error: float = 1e-12) -> None:
    """Fail unless a similarity is that of dense maps, which are neither equal nor disjoint."""
    expected = dense_overlaps(maps, real)
    assert 0.05 < float(expected[0, 1:].mean()) < 0.95
    torch.testing.assert_close(as_tensor(similarity), expected, rtol=0, atol=error)
    torch.testing.assert_close(
        torch.tensor(similarity.near, dtype=torch.float64), dense_near(maps, real), rtol=0, atol=error
    )


def test_overlaps_are_those_of_dense_maps():
    model = make(BERT)
    similarity = map_similarity(model, [WORDS])
    agree(similarity, library_maps(model, WORDS), torch.ones(2, LENGTH, dtype=torch.bool))
    assert (similarity.inputs, similarity.rows, similarity.positions) == (2, 2 * LENGTH, LENGTH)
    assert similarity.model == "BertModel"
    assert similarity.map_parameters == (2 * (32 * 32 + 32),) * 4
    assert similarity.diagonality.shape == (4, len(DISTANCES))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_is_no_query_and_has_no_weight(implementation):
    model = make(BERT)
    model.set_attn_implementation(implementation)
    inputs = {**WORDS, "attention_mask": padding(LENGTH, 23)}
    similarity = map_similarity(model, [inputs])
    agree(similarity, library_maps(model, inputs), inputs["attention_mask"].bool())
    assert (similarity.rows, similarity.positions) == (LENGTH + 23, (LENGTH + 23) / 2)
    short = {"input_ids": WORDS["input_ids"][1:, :23]}
    apart = map_similarity(model, [{"input_ids": WORDS["input_ids"][:1]}, short])
    torch.testing.assert_close(as_tensor(apart), as_tensor(similarity), rtol=0, atol=1e-9)


def test_padding_of_speech_is_found_behind_the_front_end():
    model = make(ENCODERS["hubert"])
    mask = (torch.arange(8000) < torch.tensor([[8000], [4000]])).long()
    inputs = {**SOUND, "attention_mask": mask}
    real = padding(24, 12, positions=24).bool()
    agree(map_similarity(model, [inputs]), library_maps(model, inputs), real)


def test_relative_positions_are_in_the_scores():
    model = make(RELATIVE)
    mask = (torch.arange(8000) < torch.tensor([[8000], [4000]])).long()
    inputs = {**SOUND, "attention_mask": mask}
    similarity = map_similarity(model, [inputs])
    maps = library_maps(model, inputs)
    agree(similarity, maps, padding(24, 12, positions=24).bool())
    ratio = tippingpoint.plan_reuse(model, [inputs], 2).cost_ratio
    assert ratio == pytest.approx((6 * 32 + 4 * 18) / (2 * 32 + 18))
    assert tippingpoint.plan_reuse(model, [inputs], 2, cost_ratio=3.0).cost_ratio == 3


@pytest.mark.parametrize("encoder", [RELATIVE, PARAKEET], ids=["conformer", "parakeet"])
def test_biases_that_do_not_fit_are_taken_in_several_calls(encoder, monkeypatch):
    model = make(encoder)
    whole = map_similarity(model, [encoder.inputs])
    monkeypatch.setattr("tippingpoint.models.map_similarity._MIB", 2**14)
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    parts = map_similarity(model, [encoder.inputs], memory_mib=1)
    hook.remove()
    assert len(calls) > 2
    torch.testing.assert_close(as_tensor(parts), as_tensor(whole), rtol=0, atol=1e-12)
    assert (parts.rows, parts.inputs, parts.positions) == (whole.rows, whole.inputs, whole.positions)


def test_a_bias_in_the_mask_is_in_the_scores():
    model = make(PARAKEET)
    similarity, maps = map_similarity(model, [PARAKEET.inputs]), library_maps(model, PARAKEET.inputs)
    agree(similarity, maps, torch.ones(2, 20).bool(), SINGLE_SOFTMAX)


def test_shared_keys_are_those_of_each_query_head():
    encoder = Encoder("ParakeetEncoder", {**PARAKEET.config, "num_key_value_heads": 1}, PARAKEET.inputs)
    model = make(encoder)
    similarity, maps = map_similarity(model, [encoder.inputs]), library_maps(model, encoder.inputs)
    agree(similarity, maps, torch.ones(2, 20).bool(), SINGLE_SOFTMAX)


def test_how_inputs_are_divided_into_batches_does_not_matter():
    model = make(BERT)
    ids = tokens(5, 30, seed=7)
    once = map_similarity(model, [{"input_ids": ids}], rows=11)
    streamed = map_similarity(model, ({"input_ids": part} for part in ids.split([2, 1, 2])), rows=11)
    assert once == streamed


@pytest.mark.parametrize("memory", [2**10, 2**14, 2**17])
def test_the_size_of_blocks_does_not_matter(memory, monkeypatch):
    model = make(BERT)
    whole = map_similarity(model, [WORDS])
    monkeypatch.setattr("tippingpoint.models.map_similarity._MIB", memory)
    torch.testing.assert_close(
        as_tensor(map_similarity(model, [WORDS], memory_mib=1)), as_tensor(whole), rtol=0, atol=1e-12
    )


def test_rows_are_sampled_by_the_seed_and_come_near_the_whole():
    model = make(BERT)
    whole = map_similarity(model, [WORDS], rows=None)
    assert map_similarity(model, [WORDS], rows=LENGTH) == whole
    some, same, other = (map_similarity(model, [WORDS], rows=25, seed=seed) for seed in (0, 0, 1))
    assert some.rows == 50
    assert some == same != other
    assert float((as_tensor(some) - as_tensor(whole)).abs().max()) < 0.1


def test_a_block_of_maps_fits_into_the_memory_that_is_given():
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            parts = result if isinstance(result, tuple) else (result,)
            seen.extend(part.nbytes for part in parts if isinstance(part, Tensor))
            return result

    budget = 2**20
    model = make(BERT)
    with Watch():
        map_similarity(model, [{"input_ids": tokens(1, 400)}], memory_mib=1)
    rows = rows_in_block(4, 2, 400, 8, budget // 2)
    maps = 8 * 4 * 2 * 400
    assert rows * maps < budget // 2 < (rows + 1) * maps * 4
    assert max(seen) <= budget
    # A whole number of rows always, and more of them in more memory.
    assert rows_in_block(48, 25, 10**6, 4, 2**20) == 1
    assert rows_in_block(12, 12, 512, 4, 2**27) > 200


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"albert"}))
def test_every_encoder_with_maps_of_its_own_can_be_planned_for(name):
    encoder = EVERY[name]
    model = make(encoder)
    before = run(model, encoder.inputs)
    windowed = name == "modernbert"
    plan = tippingpoint.plan_reuse(model, [encoder.inputs], 1)
    assert plan.groups == (((0, 2), (1,), (3,)) if windowed else ((0, 1, 2, 3),))
    assert set(plan.head_matches) == ({2} if windowed else {1, 2, 3})
    assert 0 < plan.choice.unmatched <= plan.choice.matched < 1
    assert torch.equal(run(model, encoder.inputs), before)
    whole = model.num_parameters()
    assert whole - reuse_attention(model, plan).num_parameters() == plan.choice.parameters_saved > 0


def test_layers_with_the_same_weights_are_told_to_share():
    torch.manual_seed(0)
    model = make(BERT, num_hidden_layers=5)
    attentions: list[Any] = find_attentions(model, "be given the same weights")
    layers: Any = model.get_submodule("encoder.layer")
    # Nothing moves the hidden states before layer 3, so layers 0 to 2 see the same.
    for layer in layers[:3]:
        for part in (layer.attention.output.dense, layer.output.dense):
            part.weight.data.zero_()
            part.bias.data.zero_()
    for copy, order in ((1, [1, 0]), (2, [0, 1])):
        for name in ("query", "key"):
            source = getattr(attentions[0], name)
            target = getattr(attentions[copy], name)
            target.weight.data = source.weight.data.view(2, 16, 32)[order].reshape(32, 32)
            target.bias.data = source.bias.data.view(2, 16)[order].reshape(32)
    plan = tippingpoint.plan_reuse(model, [WORDS], 3)
    assert plan.groups == ((0, 1, 2), (3,), (4,))
    assert plan.head_matches == {1: (1, 0), 2: (0, 1)}
    assert plan.choice.matched == pytest.approx(1)
    assert plan.choice.unmatched < 0.99


def state_of(model: PreTrainedModel) -> tuple[Any, ...]:
    return (
        model.config.to_dict(),
        model.config._attn_implementation,
        id(model.config),
        [module.training for module in model.modules()],
        [id(parameter) for parameter in model.parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        dict(ALL_ATTENTION_FUNCTIONS._global_mapping),
        set(vars(ALL_ATTENTION_FUNCTIONS)),
        torch.random.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = make(BERT)
    before = run(model, WORDS)
    model.train(training)
    model.get_submodule("pooler").train(not training)
    state = state_of(model)
    plan = tippingpoint.plan_reuse(model, [WORDS], 2)
    assert state_of(model) == state
    assert plan == tippingpoint.plan_reuse(model.eval(), [WORDS], 2)
    assert torch.equal(run(model, WORDS), before)


def test_the_model_is_left_as_it_was_by_an_exception_inside():
    model = make(BERT).train()
    state = state_of(model)

    def batches():
        yield WORDS
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        tippingpoint.plan_reuse(model, batches(), 2)
    assert state_of(model) == state
    with pytest.raises(IndexError):
        tippingpoint.plan_reuse(model, [{"input_ids": torch.tensor([[1, 2, 10_000]])}], 2)
    assert state_of(model) == state


@pytest.mark.parametrize(
    ("batches", "complaint"),
    [
        ([], "at least one batch of inputs, got none"),
        (WORDS, r"this is one batch; give \[batch\]"),
        ([tokens()], "a batch must be a dictionary of model inputs, such as .*; batch 0 is a Tensor"),
        ([{}], "the same first dimension, .* those of batch 0 have none"),
        (
            [WORDS, {**WORDS, "attention_mask": padding(9)}],
            "batch 1 have {'input_ids': 2, 'attention_mask': 1}",
        ),
        ([{"input_ids": tokens(1, 1)}], "BertModel, input 0 has 1 real sequence position"),
        ([WORDS, {**WORDS, "attention_mask": padding(9, 1)}], "input 3 has 1 real sequence position"),
    ],
)
def test_inputs_that_cannot_be_compared_are_refused(batches, complaint):
    with pytest.raises(InputError, match=complaint):
        tippingpoint.plan_reuse(BERT.make(), batches, 2)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_maps": 0}, "num_maps must be a whole number from 1 to 4, .* got 0"),
        ({"num_maps": 5}, "num_maps must be a whole number from 1 to 4, .* got 5"),
        ({"rows": 0}, "rows must be a whole number of at least 1, got 0"),
        ({"memory_mib": 0}, "memory_mib must be a whole number of at least 1, got 0"),
        ({"cost_ratio": 0.5}, "must be at least 1, got 0.5"),
    ],
)
def test_options_that_are_not_legal_are_refused(options, complaint):
    with pytest.raises(InputError, match=complaint):
        tippingpoint.plan_reuse(BERT.make(), [WORDS], **{"num_maps": 2, **options})


def test_weights_that_are_no_numbers_are_an_error_and_no_plan():
    model = BERT.make()
    next(model.parameters()).data[:] = torch.nan
    with pytest.raises(DataError, match="attention maps of input 0 are not finite"):
        tippingpoint.plan_reuse(model, [WORDS], 2)


def test_layers_that_are_one_module_are_refused():
    with pytest.raises(UnsupportedError, match="the 4 layers of AlbertModel are one attention module"):
        tippingpoint.plan_reuse(ENCODERS["albert"].make(), [WORDS], 2)


def test_layers_that_run_a_variant_are_refused_until_it_is_taken_out():
    model = make(BERT)
    expected = tippingpoint.plan_reuse(model, [WORDS], 2)
    tippingpoint.swap_attention(model, "local", window=4, layers=[2])
    with pytest.raises(UnsupportedError, match="layer 2 of BertModel runs 'local:window=4' in place of its own"):
        tippingpoint.plan_reuse(model, [WORDS], 2)
    tippingpoint.swap_attention(model, "eager", layers=[2])
    inputs = {**WORDS, "attention_mask": padding(LENGTH, 23)}
    agree(map_similarity(model, [inputs]), library_maps(make(BERT), inputs), inputs["attention_mask"].bool())
    tippingpoint.swap_attention(model, "sdpa")
    assert tippingpoint.plan_reuse(model, [WORDS], 2) == expected


def test_decoders_and_windowed_layers_are_refused():
    decoder = transformers.GPT2Model(transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=60))
    with pytest.raises(UnsupportedError, match="GPT2Model cannot share attention maps"):
        tippingpoint.plan_reuse(decoder, [WORDS], 1)
    local = transformers.ModernBertConfig(
        **TEXT, cls_token_id=1, sep_token_id=2, layer_types=["sliding_attention"] * 4, local_attention=8
    )
    with pytest.raises(UnsupportedError, match="every layer of ModernBertModel attends within a window"):
        tippingpoint.plan_reuse(transformers.ModernBertModel(local), [WORDS], 1)


def test_half_precision_is_compared_in_single():
    model = make(BERT)
    exact = map_similarity(model, [WORDS])
    half = map_similarity(model.bfloat16(), [WORDS])
    assert float((as_tensor(half) - as_tensor(exact)).abs().max()) < 0.1
