"""Attention variants in some layers of a model, and how a subject names the layers."""

from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from encoders import ENCODERS, MODERN, SINGLE, TEXT, WORDS, Encoder, close, run
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tippingpoint.attention import reference
from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models.build import build
from tippingpoint.models.catalog import check_subject
from tippingpoint.models.layer_attention import LayerAttention
from tippingpoint.models.layers import layers_of, parse_layers, without_layers
from tippingpoint.models.swap import swap_attention, variants_of, windowed_layers
from tippingpoint.workload import Subject, Workload

pytestmark = pytest.mark.usefixtures("one_thread")


def standing(model: PreTrainedModel) -> list[str]:
    return [str(variant) for variant in variants_of(model)]


@pytest.mark.parametrize(
    ("value", "layers"),
    [(0, [0]), (3, [3]), ("0-3", [0, 1, 2, 3]), ("2-2", [2]), ("0-11/3", [0, 3, 6, 9]), ("1-4/2", [1, 3])],
)
def test_layers_are_written_as_a_number_or_a_range_with_its_end(value, layers):
    assert list(parse_layers(value)) == layers


@pytest.mark.parametrize("value", [-1, 1.5, True, "3-1", "0-4/0", "a", "1-", "-3", "0-4/", "1-2-3", "0;2"])
def test_what_names_no_layers_is_answered_with_how_they_are_written(value):
    with pytest.raises(InputError, match=r"must be written N, FIRST-LAST or FIRST-LAST/STEP, got ") as caught:
        parse_layers(value)
    assert repr(value) in str(caught.value)


@given(first=st.integers(0, 30), more=st.integers(0, 30), step=st.integers(1, 9), count=st.integers(1, 40))
def test_layers_survive_the_subjects_grammar_and_are_among_those_that_there_are(first, more, step, count):
    subject = Subject.parse(f"bert@local:layers={first}-{first + more}/{step},window=3")
    assert Subject.parse(str(subject)) == subject
    (variant,) = subject.variants
    expected = list(range(first, first + more + 1, step))
    if expected[-1] >= count:
        with pytest.raises(InputError, match=f"names layer {expected[-1]}, .* layers 0 to {count - 1}$"):
            layers_of(variant, count)
    else:
        assert list(layers_of(variant, count)) == expected
    assert str(without_layers(variant)) == "local:window=3"
    assert layers_of(without_layers(variant), count) == range(count)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("bert@local:layers=3-1", InputError, "must be written N, FIRST-LAST"),
        ("bert@eager:layers=3", InputError, "variant 'eager' takes no options, got 'layers'"),
        (
            "bert@local:layers=0-1+nystrom",
            UnsupportedError,
            "local and nystrom do not compose; two stand in",
        ),
        ("bert@local:layers=0-4+nystrom:layers=4-5", UnsupportedError, "each has layers of its own, such as local:"),
        ("bert@local:layers=0+eager", UnsupportedError, "local and eager do not compose"),
    ],
)
def test_layers_that_cannot_be_are_refused_before_anything_is_built(text, error, message):
    with pytest.raises(error, match=message):
        check_subject(Subject.parse(text))


def test_two_variants_stand_where_a_subject_puts_them():
    written = "bert@local:window=3,layers=0-1+nystrom:landmarks=4,layers=2-3"
    subject = check_subject(Subject.parse(written))
    assert str(subject) == "bert@local:layers=0-1,window=3+nystrom:landmarks=4,layers=2-3"
    live = build(Workload(written, 40, size="tiny", layers=6))
    assert standing(live.model) == ["local:window=3"] * 2 + ["nystrom:landmarks=4"] * 2 + ["sdpa"] * 2
    interleaved = build(Workload("bert@local:window=3,layers=0-4/2+heads:layers=1-5/2", 40, size="tiny", layers=6))
    assert standing(interleaved.model) == ["local:window=3", "heads:keep=0.5"] * 3
    with pytest.raises(InputError, match="names layer 3, and the model has layers 0 to 2"):
        build(Workload(written, 40, size="tiny", layers=3))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (range(0, 3), [0, 1, 2]),
        (range(0, 4, 2), [0, 2]),
        ([3], [3]),
        ((1, 1, 0), [0, 1]),
        ({2}, [2]),
        ((n for n in (1, 3)), [1, 3]),
    ],
)
def test_a_variant_stands_in_the_layers_asked_for(layers, expected):
    model = swap_attention(ENCODERS["bert"].make(), "local", layers=layers, window=3)
    assert standing(model) == ["local:window=3" if layer in expected else "sdpa" for layer in range(4)]


def test_several_calls_compose_and_other_layers_keep_what_they_have():
    model = ENCODERS["bert"].make()
    full = run(model, WORDS)
    for variant, layers in (("local:window=3", range(3)), ("linear", [1]), ("pooled:ratio=2,layers=2-3", None)):
        swap_attention(model, variant, layers=layers)
    linear = "linear:feature_map=favor,num_features=256"
    assert standing(model) == ["local:window=3", linear, "pooled:ratio=2", "pooled:ratio=2"]
    swap_attention(model, "eager", layers=[1])
    swap_attention(model, "sdpa", layers=[2, 3])
    assert standing(model) == ["local:window=3", "eager", "sdpa", "sdpa"]
    alone = swap_attention(ENCODERS["bert"].make(), "local", layers=[0], window=3)
    assert close(run(model, WORDS), run(alone, WORDS), SINGLE)
    # The last layer that differs goes back: nothing of it stays in the model.
    swap_attention(model, "sdpa", layers=[0])
    swap_attention(model, "sdpa", layers=[1])
    assert not [module for module in model.modules() if isinstance(module, LayerAttention)]
    assert torch.equal(run(model, WORDS), full)


@pytest.mark.parametrize("layers", [[4], [-1], [], [0, 9], [1.0], ["1"], [True]])
def test_a_layer_that_there_is_not_is_refused_and_nothing_changes(layers):
    model = ENCODERS["bert"].make()
    with pytest.raises(InputError, match=r"layers must be numbers from 0 to 3 \(the model has 4\), got "):
        swap_attention(model, "local", layers=layers, window=3)
    with pytest.raises(InputError, match="'local:layers=2-4,window=3' names layer 4, and the model has"):
        swap_attention(model, "local:window=3,layers=2-4")
    assert standing(model) == ["sdpa"] * 4
    assert model.config._attn_implementation == "sdpa"


def by_hand(plan: dict[int, Any], seen: dict[int, int]) -> Any:
    """Return an attention of the library's kind that runs, in the layers of a plan, the definition that it names."""
    fused = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
    ) -> tuple[Tensor, None]:
        definition = plan.get(seen.setdefault(id(module), len(seen)))
        if definition is None:
            return fused(module, query, key, value, attention_mask, **others)
        assert attention_mask is None
        return definition(query, key, value, scale=others.get("scaling")).transpose(1, 2), None

    return attend


PLANS = {
    "first": ({0: "local:window=2"}, {0: lambda *qkv, **scale: reference.local_attention(*qkv, window=2, **scale)}),
    "two kinds": (
        {0: "local:window=3", 2: "pooled:ratio=2"},
        {
            0: lambda *qkv, **scale: reference.local_attention(*qkv, window=3, **scale),
            2: lambda *qkv, **scale: reference.pooled_attention(*qkv, ratio=2, **scale),
        },
    ),
}


# All layers of ALBERT share one attention.
@pytest.mark.parametrize(
    ("name", "plan"), [pair for pair in product(ENCODERS, PLANS) if pair != ("albert", "two kinds")]
)
def test_exactly_the_layers_asked_for_run_the_definition_of_the_variant(name, plan, monkeypatch):
    encoder = ENCODERS[name]
    written, definitions = PLANS[plan]
    model, hand = encoder.make(), encoder.make()
    layers = len(variants_of(model))
    seen: dict[int, int] = {}
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "by_hand", by_hand(definitions, seen))
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "by_hand", sdpa_mask)
    for module in hand.modules():
        config: Any = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation_internal = "by_hand"
    for layer, variant in written.items():
        swap_attention(model, variant, layers=[layer])
    expected = run(hand, encoder.inputs)
    assert len(seen) >= layers
    assert close(run(model, encoder.inputs), expected)
    # And what runs in other layers is another model.
    moved = (max(written) + 1) % layers
    if moved not in (*written, *windowed_layers(model)):
        swap_attention(model, "local", window=2, layers=[moved])
        assert not close(run(model, encoder.inputs), expected)


@pytest.mark.parametrize("layers", [[0], [1, 3], range(4)])
def test_each_layer_runs_once_what_stands_in_it(layers):
    model = swap_attention(ENCODERS["hubert"].make(), "local", window=3, layers=layers)
    ran: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, LayerAttention):
            module.register_forward_hook(lambda module, args, output: ran.update([str(module.variant)]))
    run(model, ENCODERS["hubert"].inputs)
    expected = {"local:window=3": len(layers), "sdpa": 4 - len(layers)}
    assert ran == Counter({name: count for name, count in expected.items() if count})


# --- Layers that attend within a window of their own: layers 1 and 3 of ModernBERT here


def modern() -> PreTrainedModel:
    return ENCODERS["modernbert"].make()


MASK = (torch.arange(40) < torch.tensor([[40], [31]])).long()


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_local_layers_of_a_model_stay_as_they_are(mask):
    real = MASK.bool() if mask is not None else torch.ones(2, 40, dtype=torch.bool)
    full = run(modern(), WORDS, attention_mask=mask)
    model = swap_attention(modern(), "local", window=100)
    assert standing(model) == ["local:window=100", "sdpa"] * 2
    assert windowed_layers(model) == (1, 3)
    assert close(run(model, WORDS, attention_mask=mask)[real], full[real])
    # They do attend within their window: full attention everywhere is another model.
    unlike = Encoder("ModernBertModel", {**MODERN, "global_attn_every_n_layers": 1}, WORDS).make()
    assert not close(run(unlike, WORDS, attention_mask=mask)[real], full[real])
    swap_attention(model, "local", window=2)
    assert not close(run(model, WORDS, attention_mask=mask)[real], full[real])
    assert torch.equal(run(swap_attention(model, "sdpa"), WORDS, attention_mask=mask), full)


def test_full_attention_step_by_step_may_stand_in_local_layers_too():
    assert standing(swap_attention(modern(), "eager")) == ["eager"] * 4
    model = swap_attention(modern(), "eager", layers=[1])
    assert standing(model) == ["sdpa", "eager", "sdpa", "sdpa"]
    assert close(run(model, WORDS), run(modern(), WORDS), SINGLE)


@pytest.mark.parametrize(("layers", "own"), [([1], [1]), ([0, 1], [1]), (range(1, 4), [1, 3])])
def test_a_variant_in_a_local_layer_that_is_asked_for_is_refused(layers, own):
    model = modern()
    with pytest.raises(UnsupportedError) as caught:
        swap_attention(model, "nystrom", layers=layers)
    assert str(caught.value) == (
        f"layers {own} of ModernBertModel attend within a window of their own and cannot take "
        "'nystrom:landmarks=64'; those that can are [0, 2]"
    )
    assert standing(model) == ["sdpa"] * 4


def test_a_variant_beside_an_attention_that_only_the_library_has_is_refused():
    model = Encoder("BertModel", TEXT, WORDS).make()
    model.set_attn_implementation("flex_attention")
    with pytest.raises(UnsupportedError, match="runs 'flex_attention', which cannot stand beside another; put"):
        swap_attention(model, "local", window=3, layers=[0])
    assert standing(model) == ["flex_attention"] * 4
    assert standing(swap_attention(model, "local", window=3)) == ["local:window=3"] * 4


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        "bert@local:layers=0-99999999+linear:layers=3",
        "bert@local:layers=0-3+reuse:group=0-99999999",
        "bert@reuse:group=" + "_".join(["0-999"] * 900),
        "bert@reuse:group=" + "1_" * 50_000 + "1",
        "bert@reuse:group=" + "9" * 5000 + "_1",
        "bert@local:layers=0-" + "9" * 5000,
        "bert@local:layers=1000",
    ],
)
def test_layers_that_no_model_has_are_refused_at_once(text):
    with pytest.raises(InputError):
        check_subject(Subject.parse(text))
