"""Attention maps that layers of a model of the Transformers library share."""

import copy
import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from encoders import ENCODERS, IMAGES, SPECIAL, SPEECH, TINY, WORDS, Encoder, close, noise, output, run
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tippingpoint.attention.reference import local_mask
from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models import layer_attention
from tippingpoint.models.checkpoints import convert, load, save
from tippingpoint.models.groups import check_groups, parse_groups, write_groups
from tippingpoint.models.sharing import may_share, reuse_attention
from tippingpoint.models.swap import LIBRARY_NAME, find_attentions, swap_attention, variants_of

pytestmark = pytest.mark.usefixtures("one_thread")

CONFORMER = Encoder(
    "Wav2Vec2ConformerModel",
    {**SPEECH, "position_embeddings_type": "relative", "layerdrop": 0.0},
    {"input_values": noise(2, 8000)},
)
PARAKEET = Encoder(
    "ParakeetEncoder",
    {**TINY, "num_mel_bins": 16, "subsampling_conv_channels": 8, "layerdrop": 0.0, "num_key_value_heads": 2},
    {"input_features": noise(2, 160, 16)},
)
SHARING = {name: encoder for name, encoder in ENCODERS.items() if name != "albert"}
W2V_BERT = Encoder(
    "Wav2Vec2BertModel",
    {**TINY, "position_embeddings_type": "relative", "layerdrop": 0.0},
    {"input_features": noise(2, 30, 160)},
)
RELATIVE = {"wav2vec2_conformer_relative": CONFORMER, "parakeet": PARAKEET, "wav2vec2_bert_relative": W2V_BERT}
EVERY = {**SHARING, **RELATIVE}
every_encoder = pytest.mark.parametrize("encoder", EVERY.values(), ids=EVERY)
every_mode = pytest.mark.parametrize("mode", ["map", "recompute"])
# Padding of the second sequence, in the units of the input; that of the front end's frames follows from it.
PADDED = {
    "bert": torch.arange(40) < torch.tensor([[40], [23]]),
    "roberta": torch.arange(40) < torch.tensor([[40], [23]]),
    "modernbert": torch.arange(40) < torch.tensor([[40], [23]]),
    "distilbert": torch.arange(40) < torch.tensor([[40], [23]]),
    "bart_encoder": torch.arange(40) < torch.tensor([[40], [23]]),
    "hubert": torch.arange(8000) < torch.tensor([[8000], [4700]]),
    "wav2vec2_conformer_relative": torch.arange(8000) < torch.tensor([[8000], [4700]]),
    "parakeet": torch.arange(160) < torch.tensor([[160], [90]]),
}


def bert(**changes: Any) -> Any:
    return ENCODERS["bert"].make(**changes)


@contextmanager
def by_definition(model: PreTrainedModel, groups: list[tuple[int, ...]]) -> Iterator[None]:
    """Let layers of a model that still has all of its parts share maps: by loops over samples and heads."""
    attentions = find_attentions(model, "be tested", own_scores=True)
    source = {layer: group[0] for group in groups for layer in group}
    maps: dict[int, list[list[Tensor]]] = {}

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float = 1.0,
        position_bias: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        if module not in attentions:  # of a decoder
            return original(
                module, query, key, value, attention_mask, scaling=scaling, position_bias=position_bias, **others
            )
        layer = attentions.index(module)
        batch, heads = query.shape[:2]
        if source.get(layer, layer) == layer:
            scores = [[query[b, h] @ key[b, h].T * scaling for h in range(heads)] for b in range(batch)]
            for b, h in itertools.product(range(batch), range(heads)):
                for added in (position_bias, attention_mask):
                    if added is not None:
                        one = added.expand(batch, heads, *added.shape[2:])[b, h]
                        if one.dtype == torch.bool:
                            # Rows that may look nowhere stay finite.
                            one = torch.where(one, 0.0, -1e30).double()
                        scores[b][h] = scores[b][h] + one
            maps[layer] = [[scores[b][h].softmax(dim=-1) for h in range(heads)] for b in range(batch)]
        used = maps[source.get(layer, layer)]
        rows = [torch.stack([used[b][h] @ value[b, h] for h in range(heads)], dim=1) for b in range(batch)]
        return torch.stack(rows), None

    table = ALL_ATTENTION_FUNCTIONS._global_mapping
    original = table["sdpa"]
    table["sdpa"] = attend
    try:
        yield
    finally:
        table["sdpa"] = original


def real_rows(name: str, hidden: Tensor) -> Tensor:
    """Leave out what padding gave."""
    padding = PADDED[name]
    kept = int(hidden.shape[1] * padding[1].sum() / padding.shape[1]) - 1
    return torch.cat([hidden[0], hidden[1, :kept]])


@every_encoder
@every_mode
def test_sharing_equals_a_loop_over_samples_and_heads(encoder, mode):
    model = encoder.make()
    groups = [(0, 2)] if len(may_share(model)) < 4 else [(0, 1), (2, 3)]
    with by_definition(model, groups):
        wanted = run(model, encoder.inputs)
    assert not close(wanted, run(model, encoder.inputs))
    reuse_attention(model, 2, mode=mode)
    assert close(run(model, encoder.inputs), wanted)


@pytest.mark.parametrize("name", PADDED)
@every_mode
def test_sharing_with_padding_equals_a_loop_over_samples_and_heads(name, mode):
    encoder, padding = EVERY[name], {"attention_mask": PADDED[name]}
    model = encoder.make()
    groups = [(0, 2)] if len(may_share(model)) < 4 else [(0, 1, 2)]
    with by_definition(model, groups):
        wanted = real_rows(name, run(model, encoder.inputs, **padding))
    reuse_attention(model, groups, mode=mode)
    given = run(model, encoder.inputs, **padding)
    assert close(real_rows(name, given), wanted)
    assert given.isfinite().all()
    assert not close(real_rows(name, run(model, encoder.inputs)), wanted)


@every_encoder
def test_groups_of_one_layer_change_nothing_bit_for_bit(encoder):
    model = encoder.make()
    before, config, state = run(model, encoder.inputs), model.config.to_dict(), list(model.state_dict())
    assert reuse_attention(model, 1) is model
    reuse_attention(model, [(0,), (2,)])
    assert torch.equal(run(model, encoder.inputs), before)
    assert (model.config.to_dict(), list(model.state_dict())) == (config, state)


def parameters_of_a_layer(name: str) -> int:
    """2 (d^2 + d) for queries and keys, less the biases that a model does without; and what scores distances."""
    width, biases = 32, 2
    if name in ("modernbert", "nomic_bert", "parakeet"):
        biases = 0
    elif name in ("whisper", "whisper_encoder", "dinov3", "beit", "videomae"):
        biases = 1
    relative = width * width + 2 * width if name in RELATIVE else 0
    return 2 * width * width + biases * width + relative


@pytest.mark.parametrize("name", EVERY)
def test_the_parameters_that_are_gone_are_those_of_the_closed_form(name):
    encoder = EVERY[name]
    model = encoder.make(**({"attention_bias": False} if name == "parakeet" else {}))
    before = model.num_parameters()
    able = may_share(model)
    reuse_attention(model, [able])
    gone = (len(able) - 1) * parameters_of_a_layer(name)
    assert before - model.num_parameters() == gone
    assert (
        before - sum(p.numel() for n, p in model.state_dict().items() if n in dict(model.named_parameters())) == gone
    )


@pytest.mark.parametrize("local", [{"window": 3}, {"window": 3, "num_global": 2}, {"window": 2, "causal": True}])
@every_mode
def test_maps_of_local_attention_are_shared(local, mode):
    model = bert()
    count = model.config.num_attention_heads
    with by_definition(model, [(0, 1, 2, 3)]):
        band = local_mask(40, local["window"], local.get("num_global", 0), PADDED["bert"], local.get("causal", False))
        mask = torch.where(band, 0.0, float("-inf")).double().expand(2, count, 40, 40)
        embedded = model.embeddings(WORDS["input_ids"])
        wanted = real_rows("bert", model.encoder(embedded, attention_mask=mask).last_hidden_state).detach()
    swap_attention(model, "local", **local)
    reuse_attention(model, 4, mode=mode)
    given = run(model, WORDS, attention_mask=PADDED["bert"])
    assert close(real_rows("bert", given), wanted)


def test_a_subject_says_the_same():
    by_text, by_call = bert(), bert()
    swap_attention(by_text, "local:window=3,layers=0-1+x".partition("+")[0])
    swap_attention(by_text, "reuse:group=0-1_2-3,mode=map,maps=bfloat16")
    swap_attention(by_call, "local", window=3, layers=[0, 1])
    reuse_attention(by_call, [(0, 1), (2, 3)], mode="map", map_dtype=torch.bfloat16)
    assert variants_of(by_text) == variants_of(by_call)
    assert list(map(str, variants_of(by_text))) == [
        "local:window=3",
        "reuse:maps=bfloat16,mode=map,of=0",
        "sdpa",
        "reuse:maps=bfloat16,mode=map,of=2",
    ]
    assert torch.equal(run(by_text, WORDS), run(by_call, WORDS))


def test_equal_groups_hold_layers_of_the_same_attention():
    model = bert()
    swap_attention(model, "local", window=3, layers=[0, 1, 2])
    reuse_attention(model, 2, mode="map")
    assert [dict(variant.options).get("of") for variant in variants_of(model)] == [None, 0, None, None]
    model = ENCODERS["modernbert"].make()
    assert may_share(model) == (0, 2)
    reuse_attention(model, 2, mode="map")
    assert [dict(variant.options).get("of") for variant in variants_of(model)] == [None, None, 0, None]


def test_layers_of_a_number_are_chosen_by_the_option():
    model = bert()
    swap_attention(model, "reuse:group=2,layers=1-3,mode=map")
    assert [dict(variant.options).get("of") for variant in variants_of(model)] == [None, None, 1, None]
    again = bert()
    swap_attention(again, "reuse", layers=[1, 2, 3], group=2, mode="map")
    assert variants_of(again) == variants_of(model)


@every_mode
def test_heads_take_the_maps_that_they_are_matched_to(mode):
    shape = {"num_attention_heads": 4}
    matches = [2, 0, 3, 1]
    model, permuted = bert(**shape), bert(**shape)
    # The same as giving each head the values of the head whose map it takes, and the output back.
    layer: Any = permuted.encoder.layer[1].attention
    places = torch.cat([torch.arange(8) + 8 * matches.index(head) for head in range(4)])
    for name in ("weight", "bias"):
        parameter = getattr(layer.self.value, name)
        parameter.data = parameter.data[places]
    layer.output.dense.weight.data = layer.output.dense.weight.data[:, places]
    with by_definition(permuted, [(0, 1)]):
        wanted = run(permuted, WORDS)
    reuse_attention(model, [(0, 1)], mode=mode, heads={1: matches})
    assert close(run(model, WORDS), wanted)
    assert not close(run(reuse_attention(bert(**shape), [(0, 1)], mode=mode), WORDS), wanted)


def gradients(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    output(model, inputs).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def checkpoint_layers(model: PreTrainedModel, **options: bool) -> None:
    """Switch gradient checkpointing on, by what the installed version of the library calls it."""
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable(options or None)


TRAINED = {
    name: EVERY[name] for name in ("bert", "modernbert", "hubert", "vit", "wav2vec2_conformer_relative", "parakeet")
}
STILL: dict[str, Any] = {"layerdrop": 0.0, "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
QUIET = {**STILL, "feat_proj_dropout": 0.0, "final_dropout": 0.0, "apply_spec_augment": False, "dropout": 0.0}
QUIET |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout_positions": 0.0}
QUIET |= {"conformer_conv_dropout": 0.0, "mlp_dropout": 0.0, "embedding_dropout": 0.0}


@pytest.mark.parametrize("encoder", TRAINED.values(), ids=TRAINED)
@every_mode
def test_gradients_go_through_shared_maps(encoder, mode):
    model = encoder.make(**QUIET).eval()
    groups = [may_share(model)]
    with by_definition(model, groups):
        wanted = gradients(model, encoder.inputs)
    reuse_attention(model, groups, mode=mode)
    ours = gradients(model, encoder.inputs)
    assert ours
    for name, gradient in ours.items():
        # A projection for all three keeps its rows for values alone.
        other = wanted.get(name.replace(".tippingpoint.learned", ""))
        assert other is not None, name
        assert close(gradient, other[-len(gradient) :] if "Wqkv" in name else other)
    assert len(ours) == len([p for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("encoder", TRAINED.values(), ids=TRAINED)
@every_mode
def test_gradient_checkpointing_gives_the_same_gradients(encoder, mode):
    model = reuse_attention(encoder.make(**QUIET), 4, mode=mode).train()
    plain = gradients(model, encoder.inputs)
    checkpoint_layers(model)
    first = gradients(model, encoder.inputs)
    again = gradients(model, encoder.inputs)
    assert plain.keys() == first.keys() == again.keys()
    assert all(close(plain[name], other[name]) for other in (first, again) for name in plain)


def test_two_passes_before_the_first_backward_keep_their_own_maps_under_checkpointing():
    model = reuse_attention(bert(**QUIET), 4, mode="map").train()
    batches = [WORDS, {"input_ids": WORDS["input_ids"].flip(1)}]
    apart = [gradients(model, batch) for batch in batches]
    checkpoint_layers(model)
    model.zero_grad()
    losses = [output(model, batch).square().sum() for batch in batches]
    for loss in losses:
        loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert close(parameter.grad, apart[0][name] + apart[1][name])


def test_reentrant_checkpointing_is_refused_because_it_would_lose_gradients():
    model = reuse_attention(bert(), 2, mode="map").train()
    checkpoint_layers(model, use_reentrant=True)
    with pytest.raises(UnsupportedError, match="use_reentrant=True cuts the gradient of shared attention maps"):
        model(**WORDS)
    assert not layer_attention._FRAMES.stack


def test_layers_that_are_dropped_at_random_are_refused_in_training_only():
    model = reuse_attention(ENCODERS["hubert"].make(layerdrop=0.1), 2, mode="map")
    run(model, ENCODERS["hubert"].inputs)
    with pytest.raises(UnsupportedError, match=r"drops whole layers in training \(layerdrop=0.1\)"):
        model.train()(**ENCODERS["hubert"].inputs)


@pytest.mark.parametrize("encoder", [ENCODERS["bert"], ENCODERS["vit"], PARAKEET], ids=["bert", "vit", "parakeet"])
@every_mode
def test_a_compiled_model_is_one_graph_and_gives_the_same(encoder, mode):
    model = reuse_attention(encoder.make(), 2, mode=mode)
    wanted = run(model, encoder.inputs)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert close(run(compiled, encoder.inputs), wanted)
    assert close(run(compiled, encoder.inputs), wanted)
    torch.compiler.reset()


def test_auto_measures_outside_of_the_graph_of_a_compiler():
    model = reuse_attention(bert(), 2)
    wanted = run(model, WORDS)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="aot_eager")
    assert close(run(compiled, WORDS), wanted)
    torch.compiler.reset()


class StoppedError(Exception):
    pass


def test_nothing_stays_after_an_exception_and_the_next_call_is_right():
    model: Any = reuse_attention(bert(), 2, mode="map")
    wanted = run(model, WORDS)

    def fail(module: nn.Module, inputs: Any) -> None:
        raise StoppedError

    layer: Any = model.encoder.layer[1]
    handle = layer.register_forward_pre_hook(fail)
    with pytest.raises(StoppedError):
        run(model, WORDS)
    handle.remove()
    assert not layer_attention._FRAMES.stack
    assert torch.equal(run(model, WORDS), wanted)


def test_nothing_stays_after_a_call():
    model = reuse_attention(bert(), 2, mode="map")
    for call in (lambda: run(model, WORDS), lambda: gradients(model, WORDS)):
        call()
        assert not layer_attention._FRAMES.stack


def test_models_that_call_one_another_and_themselves_do_not_mix():
    changes: list[dict[str, Any]] = [{}, {"num_attention_heads": 4}]
    one, other = (reuse_attention(bert(**change), 2, mode="map") for change in changes)
    layers: Any = one.encoder
    turned = {"input_ids": WORDS["input_ids"].flip(1)}
    wanted = [run(one, WORDS), run(other, turned), run(one, turned)]
    inner: list[Tensor] = []

    def call_others(module: nn.Module, inputs: Any) -> None:
        if not inner:
            inner.append(torch.zeros(()))
            inner.extend([run(other, turned), run(one, turned)])

    layers.layer[1].register_forward_pre_hook(call_others)
    assert torch.equal(run(one, WORDS), wanted[0])
    assert torch.equal(inner[1], wanted[1])
    assert torch.equal(inner[2], wanted[2])


def in_threads(*calls: Callable[[], Tensor]) -> list[Tensor]:
    results: dict[int, Tensor] = {}
    start = threading.Barrier(len(calls))

    def go(number: int) -> None:
        start.wait()
        for _ in range(5):
            results[number] = calls[number]()

    threads = [threading.Thread(target=go, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[number] for number in range(len(calls))]


def test_threads_that_call_one_model_have_their_own_maps():
    model = reuse_attention(bert(), 2, mode="map")
    batches = [{"input_ids": WORDS["input_ids"].roll(shift, 1)} for shift in range(4)]
    wanted = [run(model, batch) for batch in batches]
    for given, right in zip(in_threads(*(lambda b=b: run(model, b) for b in batches)), wanted, strict=True):
        assert torch.equal(given, right)


def test_replicas_of_data_parallel_training_have_their_own_maps():
    model = reuse_attention(bert(**QUIET), 2, mode="map").train()
    batches = [{"input_ids": WORDS["input_ids"].roll(shift, 1)} for shift in range(2)]
    wanted = [gradients(model, batch) for batch in batches]
    # As nn.DataParallel makes them, whose own copies need GPUs.
    replicas = [copy.deepcopy(model) for _ in batches]
    in_threads(*(lambda r=r, b=b: output(r, b).sum().detach() for r, b in zip(replicas, batches, strict=True)))
    for replica, batch, right in zip(replicas, batches, wanted, strict=True):
        assert all(close(gradient, right[name]) for name, gradient in gradients(replica, batch).items())


@pytest.mark.parametrize("name", ["bert", "modernbert", *RELATIVE])
def test_copies_run_by_themselves(name):
    encoder = EVERY[name]
    model = reuse_attention(encoder.make(), [(0, 2)], mode="map", heads={2: [1, 0]})
    wanted = run(model, encoder.inputs)
    copies = [copy.deepcopy(model)]
    # The library's weight normalisation cannot be pickled, nor a class that is made as it is needed.
    if name not in RELATIVE:
        copies.append(pickle.loads(pickle.dumps(model)))
    del model
    assert all(torch.equal(run(other, encoder.inputs), wanted) for other in copies)


@pytest.mark.parametrize("name", ["bert", "bert_classifier", "modernbert", "hubert", "bart", *RELATIVE])
def test_what_is_saved_is_loaded_with_its_maps_shared(name, tmp_path):
    encoder = EVERY[name]
    model = encoder.make()
    if name == "bert":
        swap_attention(model, "local", window=3)
    heads = None if name == "hubert" else {2: [1, 0]}
    map_dtype = torch.bfloat16 if name == "hubert" else None
    reuse_attention(model, [(0, 2)], mode="map", heads=heads, map_dtype=map_dtype)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert variants_of(again) == variants_of(model)
    assert again.num_parameters() == model.num_parameters()
    assert torch.equal(run(again, encoder.inputs), run(model, encoder.inputs))


def test_a_checkpoint_is_converted_and_what_is_gone_is_said(tmp_path):
    model = bert()
    model.save_pretrained(tmp_path / "checkpoint")
    done = convert(tmp_path / "checkpoint", "local:window=3+reuse:group=4,mode=map", tmp_path / "converted")
    gone = 3 * 2 * (32 * 32 + 32)
    assert done.parameters_before - done.parameters_after == gone
    assert f"({-gone:,} of layers that reuse a map)" in str(done)
    assert done.attention == ("local:window=3", *("reuse:mode=map,of=0",) * 3)
    swap_attention(model, "local", window=3)
    reuse_attention(model, 4, mode="map")
    assert torch.equal(run(load(tmp_path / "converted"), WORDS), run(model, WORDS))


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "one attention for all": (
        lambda: reuse_attention(ENCODERS["albert"].make(), 2),
        UnsupportedError,
        "no two of its layers have an attention that can be shared",
    ),
    "a bias of its own kind": (
        lambda: reuse_attention(
            Encoder("T5EncoderModel", {**SPECIAL, "d_model": 32, "num_layers": 2}, WORDS).make(), 2
        ),
        UnsupportedError,
        r"T5EncoderModel cannot share attention maps: its attention adds a position bias",
    ),
    "an approximation": (
        lambda: reuse_attention(swap_attention(bert(), "nystrom", landmarks=2), [(0, 1)]),
        UnsupportedError,
        "layer 0 of BertModel runs 'nystrom:landmarks=2', whose map cannot be kept",
    ),
    "a window": (
        lambda: reuse_attention(ENCODERS["modernbert"].make(), [(0, 1)]),
        UnsupportedError,
        r"layer 1 of ModernBertModel attends within a window of the model's own; .* \[0, 2\]",
    ),
    "twice": (
        lambda: reuse_attention(reuse_attention(bert(), 2), [(1, 2)]),
        UnsupportedError,
        "layer 1 of BertModel reuses the map of another already",
    ),
    "a swap after it": (
        lambda: swap_attention(reuse_attention(bert(), 2), "sdpa"),
        UnsupportedError,
        "have given up their queries and keys; load the checkpoint again",
    ),
    "two groups": (lambda: reuse_attention(bert(), [(0, 1), (1, 2)]), InputError, r"layers \[1\] are in two groups"),
    "no such layer": (lambda: reuse_attention(bert(), [(3, 4)]), InputError, "from 0 to 3"),
    "an empty group": (lambda: reuse_attention(bert(), [()]), InputError, "at least one layer"),
    "no layers": (lambda: reuse_attention(bert(), 0), InputError, "at least 1"),
    "a mode": (lambda: reuse_attention(bert(), 2, mode="fast"), InputError, "mode"),
    "a dtype": (lambda: reuse_attention(bert(), 2, map_dtype=torch.float16), InputError, "torch.bfloat16"),
    "no maps to keep": (
        lambda: reuse_attention(bert(), 2, mode="recompute", map_dtype=torch.bfloat16),
        InputError,
        "keeps none",
    ),
    "heads": (lambda: reuse_attention(bert(), 2, heads={1: [0, 0]}), InputError, "each of their 2 heads once"),
    "heads of a computing layer": (lambda: reuse_attention(bert(), 2, heads={0: [0, 1]}), InputError, r"\[1, 3\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared_is_refused_with_the_reason(name):
    call, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        call()


def test_a_refusal_leaves_the_model_as_it_was():
    model = swap_attention(bert(), "nystrom", landmarks=2, layers=[3])
    before, state = run(model, WORDS), list(model.state_dict())
    with pytest.raises(UnsupportedError):
        reuse_attention(model, [(0, 1), (2, 3)])
    assert torch.equal(run(model, WORDS), before)
    assert list(model.state_dict()) == state


class Strange(nn.Module):
    """An attention whose projections have names of their own."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(32, 32) for _ in range(3))
        self.config: Any = other.config

    def forward(self, hidden_states: Tensor, **others: Any) -> Any:
        return ALL_ATTENTION_FUNCTIONS[LIBRARY_NAME](self, hidden_states, hidden_states, hidden_states, None)


def test_projections_that_cannot_be_told_apart_are_refused():
    model: Any = bert()
    for layer in model.encoder.layer:
        layer.attention.self = Strange(layer.attention.self)
    with pytest.raises(UnsupportedError, match=r"which of its linear layers \(a, b, c\) make queries"):
        reuse_attention(model, 2)


def test_a_layer_outside_of_its_encoder_says_what_to_call():
    model: Any = reuse_attention(bert(), 2, mode="map")
    hidden = noise(1, 5, 32)
    with pytest.raises(UnsupportedError, match="was called outside of its encoder"):
        model.encoder.layer[0](hidden)


def test_a_layer_whose_source_did_not_run_says_so():
    model: Any = reuse_attention(bert(), 2, mode="map")
    model.encoder.layer = model.encoder.layer[1:]
    with pytest.raises(UnsupportedError, match="takes its attention map from layer 0, which was not run before it"):
        run(model, WORDS)


@pytest.mark.parametrize(
    ("text", "groups"),
    [(3, 3), ("0-2_3-5", ((0, 1, 2), (3, 4, 5))), ("0-1_2_3-5", ((0, 1), (2,), (3, 4, 5))), ("0-6/3", ((0, 3, 6),))],
)
def test_groups_are_read_and_written(text, groups):
    assert parse_groups(text) == groups
    if not isinstance(groups, int):
        assert parse_groups(write_groups(groups)) == tuple(group for group in groups if len(group) > 1)


def test_groups_that_cannot_be_written_are_refused():
    with pytest.raises(InputError, match="evenly spaced"):
        write_groups([(0, 1, 3)])
    for wrong in (0, -1, True, 1.5, "a", "3-1", "0-2_2-3", "_"):
        with pytest.raises(InputError):
            parse_groups(wrong)
    assert write_groups([(0,), (1,)]) == 1
    assert check_groups([(2, 0)], None) == ((0, 2),)


def test_images_and_their_outputs_are_those_of_every_layer_sharing_one_map():
    model = reuse_attention(ENCODERS["vit"].make(), 4, mode="map")
    assert [str(variant) for variant in variants_of(model)] == ["sdpa", *["reuse:mode=map,of=0"] * 3]
    assert run(model, IMAGES).isfinite().all()


def test_half_precision_is_near_the_whole():
    model: Any = reuse_attention(bert(), 2, mode="map")
    wanted = run(model, WORDS)
    for dtype in (torch.float32, torch.bfloat16):
        given = run(copy.deepcopy(model).to(dtype), WORDS)
        assert (given.double() - wanted).abs().max() < 50 * torch.finfo(dtype).eps * wanted.abs().max()


def test_automatic_mixed_precision_is_near_the_whole():
    model = reuse_attention(bert(**QUIET), 2, mode="map").float().train()
    wanted = output(model, WORDS)
    with torch.autocast("cpu", torch.bfloat16):
        given = output(model, WORDS)
        given.float().square().sum().backward()
    assert (given - wanted).abs().max() < 50 * torch.finfo(torch.bfloat16).eps * wanted.abs().max()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
