"""Text encoders of the library: shapes, lengths, what they ask for and what the library executes beyond that.

Closed forms are derived here by hand; those of the package are not used, except where the two are compared.
"""

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tippingpoint.attention.reference import local_mask
from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.measurement import Flops
from tippingpoint.models.build import LiveSubject, build, count_parameters, make_config, make_model
from tippingpoint.models.catalog import ARCHITECTURES, algorithmic_flops, check_subject
from tippingpoint.models.swap import swap_attention, variants_of
from tippingpoint.profiling.flops import count_flops
from tippingpoint.profiling.path import describe_path, observe_attention
from tippingpoint.workload import SIZES, Subject, Workload

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = ("roberta", "modernbert", "bart")
SAME_LENGTH = (*FULL, "t5", "longt5", "fnet", "yoso")
NEW = (*SAME_LENGTH, "led", "big_bird", "reformer", "funnel")
DOUBLE = torch.finfo(torch.float64).eps


def tiny(subject: str, length: int, **fields: Any) -> Workload:
    return Workload(subject, length, size="tiny", **{"batch_size": 2, **fields})


def hidden(live: LiveSubject, **inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        return live.model(**inputs).last_hidden_state


# Lengths


@pytest.mark.parametrize("length", [1, 2, 37])
@pytest.mark.parametrize("name", SAME_LENGTH)
def test_every_token_has_a_position_and_nothing_is_padded(name, length):
    workload = tiny(name, length)
    live = build(workload)
    inputs = live.inputs(workload)
    assert set(inputs) == {"input_ids"}
    assert inputs["input_ids"].shape == hidden(live, **inputs).shape[:2] == (2, length)
    row = ARCHITECTURES[name]
    assert row.positions(length) == row.executed_positions(length) == length


def entering(live: LiveSubject, workload: Workload) -> int:
    """Return how many positions of a sequence enter the first layer."""
    found: list[int] = []
    layer = next(m for m in live.model.modules() if type(m).__name__ in ("LEDEncoderLayer", "BigBirdLayer"))
    layer.register_forward_pre_hook(lambda module, args: found.append(args[0].shape[1]))
    hidden(live, **live.inputs(workload))
    return found[0]


@pytest.mark.parametrize(
    ("name", "length", "padded"),
    [("led", 1, 1024), ("led", 1024, 1024), ("led", 1025, 2048), ("big_bird", 705, 768), ("big_bird", 769, 832)],
)
def test_what_the_library_pads_and_cuts_off_again(name, length, padded):
    workload = tiny(name, length, batch_size=1)
    live = build(workload)
    assert entering(live, workload) == padded == ARCHITECTURES[name].executed_positions(length)
    assert hidden(live, **live.inputs(workload)).shape[1] == length


@pytest.mark.parametrize(("length", "padded"), [(65, 128), (128, 128), (129, 192)])
def test_reformer_runs_on_whole_chunks_with_a_mask_for_the_rest(length, padded):
    for phase in ("inference", "training"):
        workload = tiny("reformer", length, phase=phase)
        live = build(workload)
        inputs = live.inputs(workload)
        assert inputs["input_ids"].shape == (2, padded)
        assert ARCHITECTURES["reformer"].executed_positions(length) == padded
        if padded > length:
            assert inputs["attention_mask"].sum(dim=-1).tolist() == [length, length]
            assert (inputs["input_ids"][:, length:] == live.config["pad_token_id"]).all()
        else:
            assert "attention_mask" not in inputs
        live.call(workload)()


def test_padding_of_reformer_changes_no_real_token_of_a_layer_that_does_not_hash():
    """Hashing may: chunks are cut elsewhere when there is more to sort."""
    sizes = {**ARCHITECTURES["reformer"].sizes["tiny"], "attn_layers": ("local", "local")}
    sizes |= {"axial_pos_shape": (2, 64), "max_position_embeddings": 128}
    torch.manual_seed(0)
    model = transformers.ReformerModel(transformers.ReformerConfig(**sizes)).double().eval()
    ids = torch.randint(5, 1000, (1, 128))
    mask = (torch.arange(128) < 100)[None].long()
    with torch.inference_mode():
        outputs = [model(torch.where(mask.bool(), ids, filler), mask).last_hidden_state for filler in (0, 7)]
    assert torch.equal(outputs[0][:, :100], outputs[1][:, :100])


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [
        (
            "big_bird",
            704,
            r"big_bird takes no input shorter than 705 tokens \(up to 704 the library switches the model to full "
            r"attention for good\), got 704 tokens",
        ),
        (
            "reformer",
            64,
            r"reformer takes no input shorter than 65 tokens \(with no more positions than a chunk of 64 the library "
            r"runs full attention\), got 64 tokens",
        ),
        ("funnel", 4, r"funnel takes no input shorter than 5 tokens \(fewer leave its last block nothing to halve\)"),
    ],
)
def test_lengths_that_would_run_something_else_are_refused(name, length, message):
    row = ARCHITECTURES[name]
    with pytest.raises(InputError, match=message):
        row.check_length(length)
    assert row.nearest_legal(length) == length + 1 == row.check_length(length + 1)


@pytest.mark.parametrize(("length", "kind"), [(704, "original_full"), (705, "block_sparse")])
def test_the_library_switches_big_bird_to_full_attention_at_704(length, kind):
    config = transformers.BigBirdConfig(**ARCHITECTURES["big_bird"].sizes["tiny"])
    model = transformers.BigBirdModel(config).eval()
    with torch.inference_mode():
        model(torch.full((1, length), 7))
        assert model.attention_type == kind
        # And stays there for longer inputs.
        model(torch.full((1, 800), 7))
    attentions = {type(module).__name__ for module in model.modules()}
    assert ("BigBirdBlockSparseAttention" in attentions) == (kind == "block_sparse")
    assert ("BigBirdSelfAttention" in attentions) == (kind == "original_full")


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("size", SIZES)
def test_the_library_fails_where_funnel_has_nothing_to_halve(length, size):
    config = transformers.FunnelConfig(**{**ARCHITECTURES["funnel"].sizes[size], "vocab_size": 60, "d_model": 64})
    with torch.inference_mode(), pytest.raises(RuntimeError):
        transformers.FunnelBaseModel(config).eval()(torch.full((1, length), 7))


@pytest.mark.parametrize("length", [5, 6, 7, 8, 9, 63, 64, 65])
def test_funnel_halves_the_text_twice_and_keeps_the_first_token(length):
    workload = tiny("funnel", length)
    live = build(workload)
    half = -(-length // 2)
    assert hidden(live, **live.inputs(workload)).shape[1] == -(-half // 2)
    assert ARCHITECTURES["funnel"].positions(length) == length


@pytest.mark.parametrize(
    ("name", "key", "lengths"),
    [
        ("roberta", "max_position_embeddings", {1: 514, 512: 514, 513: 515}),
        ("modernbert", "max_position_embeddings", {8192: 8192, 8193: 8193}),
        ("bart", "max_position_embeddings", {1024: 1024, 1025: 1025}),
        ("led", "max_encoder_position_embeddings", {1: 16384, 16384: 16384, 16385: 17408}),
        ("big_bird", "max_position_embeddings", {705: 4096, 4096: 4096, 4097: 4160}),
        ("fnet", "max_position_embeddings", {512: 512, 513: 513}),
        ("yoso", "max_position_embeddings", {4096: 4096, 4097: 4097}),
    ],
)
def test_positions_grow_with_the_length_and_are_never_fewer_than_published(name, key, lengths):
    row = ARCHITECTURES[name]
    for length, table in lengths.items():
        config = make_config(Workload(name, length)).to_dict()
        assert config[key] == table
        assert row.limit(config) == table - (2 if name == "roberta" else 0)


@pytest.mark.parametrize("name", ["roberta", "bart", "fnet", "yoso"])
def test_the_longest_input_that_a_configuration_takes_runs_and_a_longer_one_does_not(name):
    row = ARCHITECTURES[name]
    config = getattr(transformers, row.config_class)(**{**row.sizes["tiny"], "max_position_embeddings": 40})
    model = make_model(row, config).eval()
    limit = row.limit(config.to_dict())
    assert limit is not None
    with torch.inference_mode():
        model(torch.full((1, int(limit)), 7))
        with pytest.raises((RuntimeError, IndexError)):
            model(torch.full((1, int(limit) + 1), 7))


@given(length=st.integers(65, 5000))
@settings(max_examples=30)
def test_reformer_has_a_position_for_each_token_of_the_padded_text_and_the_librarys_buckets(length):
    config = make_config(Workload("reformer", length, size="tiny")).to_dict()
    rows, columns = config["axial_pos_shape"]
    padded = ARCHITECTURES["reformer"].executed_positions(length)
    assert rows * columns == config["max_position_embeddings"] == padded
    layer = transformers.models.reformer.modeling_reformer.LSHSelfAttention(
        transformers.ReformerConfig(**{**config, "num_buckets": None}), layer_idx=1
    )
    layer._set_num_buckets(padded)
    assert layer.num_buckets == config["num_buckets"]


@pytest.mark.parametrize("name", NEW)
def test_random_tokens_are_never_padding(name):
    workload = tiny(name, 710, batch_size=4)
    live = build(workload)
    ids = live.inputs(workload)["input_ids"][:, :710]
    assert ids.min() >= 5
    assert ids.max() < 1000
    assert not (ids == live.config["pad_token_id"]).any()
    base = make_config(Workload(name, 710)).to_dict()
    generator = torch.Generator().manual_seed(0)
    drawn = ARCHITECTURES[name].inputs(base, 64, 7100, generator)["input_ids"][:, :7100]
    assert not (drawn == base["pad_token_id"]).any()


# Shapes and parameters

D, FFN, LAYERS = 768, 3072, 12
NORM = 2 * D
ATTENTION = 4 * (D * D + D)
LAYER = ATTENTION + (D * FFN + FFN) + (FFN * D + D) + 2 * NORM
POOLER = D * D + D


def parameters_by_hand() -> dict[str, int]:
    """Embeddings, layers and what stands before and after them."""
    return {
        "roberta": (50265 + 514 + 1) * D + NORM + LAYERS * LAYER + POOLER,
        # No biases; the first layer's attention has no normalisation of its own.
        "modernbert": 50368 * D + 22 * (4 * D * D + 3 * D * 1152 + 2 * D) - D + D + D,
        "bart": (50265 + 1024 + 2) * D + NORM + 6 * LAYER,
        # No biases, and normalisations only scale; 32 distances for each head.
        "t5": 32128 * D + LAYERS * (4 * D * D + 2 * D * FFN + 2 * D) + 32 * 12 + D,
        # Three projections more in each layer for a global attention that is not asked for.
        "led": (50265 + 16384) * D + NORM + 6 * (LAYER + 3 * (D * D + D)),
        "big_bird": (50358 + 4096 + 2) * D + NORM + LAYERS * LAYER + POOLER,
        # As T5 with gates; global tokens have distances and a normalisation of their own.
        "longt5": 32128 * D + LAYERS * (4 * D * D + 3 * D * 2048 + 3 * D) + 2 * 32 * 12 + D,
        "fnet": (32000 + 512 + 4) * D + NORM + (D * D + D) + LAYERS * (LAYER - ATTENTION) + POOLER,
        "yoso": (50265 + 4096 + 2 + 1) * D + NORM + LAYERS * LAYER,
        # No biases in attention, and a projection less where queries are keys; the two halves of the stream are
        # normalised together.
        "reformer": 30522 * D + (16 * D // 4 + 64 * 3 * D // 4) + LAYERS * (LAYER - 4 * D) - 6 * D * D + 2 * NORM,
        # Queries have no bias; distances have a projection, and content, distance and segment a bias for each head.
        "funnel": 30522 * D + NORM + LAYERS * (LAYER - D + D * D + 3 * D + 2 * D),
    }


@pytest.mark.parametrize("name", NEW)
def test_base_models_have_the_parameters_derived_by_hand(name):
    workload = Workload(name, 1024 if name in ("led", "big_bird", "reformer") else 512)
    assert count_parameters(workload) == parameters_by_hand()[name]


@pytest.mark.parametrize(
    ("name", "published_millions"), [("roberta", 125), ("modernbert", 149), ("fnet", 83), ("funnel", 115)]
)
def test_base_models_have_the_published_number_of_parameters(name, published_millions):
    assert abs(count_parameters(Workload(name, 512)) / 1e6 - published_millions) < 1


def test_led_is_bart_base_with_a_window_and_three_unused_projections_in_each_layer():
    bart, led = (make_config(Workload(name, 1024)).to_dict() for name in ("bart", "led"))
    for key in ("encoder_layers", "d_model", "encoder_attention_heads", "encoder_ffn_dim", "vocab_size"):
        assert bart[key] == led[key]
    assert led["attention_window"] == 1024
    assert f"{6 * 3 * (D * D + D) / 1e6:.1f} M" in " ".join(ARCHITECTURES["led"].notes)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NEW)
def test_a_size_is_written_out_and_no_default_of_the_library(name, size):
    row = ARCHITECTURES[name]
    written = row.sizes[size]
    expected = {"base": (768, 12), "small": (512, 8), "tiny": (64, 2)}[size]
    shape = row.shape(make_config(Workload(name, 1024, size=size)).to_dict())
    assert (shape.width, shape.heads) == (expected if name != "fnet" else (expected[0], 1))
    assert set(row.keys.values()) <= set(written) or row.stages


def test_layers_that_see_all_are_every_third_of_modernbert_from_the_first():
    kinds = make_config(Workload("modernbert", 512)).layer_types
    assert [n for n, kind in enumerate(kinds) if kind == "full_attention"] == list(range(0, 22, 3))


def test_no_decoder_is_built_where_the_encoder_alone_is_measured():
    for name in ("bart", "led"):
        live = build(tiny(name, 16))
        assert type(live.model).__name__.endswith("Encoder")
        assert not any("decoder" in parameter for parameter, _ in live.model.named_parameters())


@pytest.mark.parametrize("width", [96, 100])
def test_without_attention_any_width_will_do(width):
    config = make_config(Workload("fnet", 64, size="tiny", width=width))
    assert (config.hidden_size, config.intermediate_size) == (width, 2 * width)
    assert not hasattr(config, "num_attention_heads")


# FLOPs


def linear(rows: int, width_in: int, width_out: int) -> int:
    return 2 * rows * width_in * width_out


def attending(pairs: int, width: int) -> int:
    """Scores and weighted values, all heads together."""
    return 2 * linear(pairs, width, 1)


def stack_linears(rows: int, width: int, wide: int, layers: int) -> int:
    return layers * (4 * linear(rows, width, width) + 2 * linear(rows, width, wide))


def counted(name: str, length: int, batch: int, phase: str = "inference") -> tuple[Flops, int, dict[str, Any]]:
    """Return what is executed, what is asked for and the configuration."""
    workload = tiny(name, length, batch_size=batch, phase=phase)
    live = build(workload)
    flops, _ = count_flops(live.call(workload))
    asked = algorithmic_flops(workload, live.config)
    assert asked is not None
    return flops, asked, live.config


@pytest.mark.parametrize("name", ["roberta", "bart", "t5", "yoso"])
@given(batch=st.integers(1, 3), length=st.integers(1, 80))
@settings(max_examples=6)
def test_full_attention_is_linears_and_every_pair_and_nothing_more_is_executed(name, batch, length):
    flops, asked, _ = counted(name, length, batch)
    pooler = linear(batch, 64, 64) if name == "roberta" else 0
    expected = stack_linears(batch * length, 64, 128, 2) + 2 * attending(batch * length**2, 64) + pooler
    assert flops.total == asked == expected
    training, asked_in_training, _ = counted(name, length, batch, "training")
    assert asked_in_training == 3 * asked - 2 * pooler
    # Where no dropout of weights rules it out, fused attention computes its scores again.
    again = linear(2 * batch * length**2, 64, 1) if name == "bart" else 0
    assert training.total == asked_in_training + again


@given(batch=st.integers(1, 2), length=st.integers(1, 300))
@settings(max_examples=10)
def test_modernbert_asks_for_a_window_in_its_local_layers_and_executes_every_pair(batch, length):
    flops, asked, config = counted("modernbert", length, batch)
    assert config["layer_types"] == ["full_attention", "sliding_attention"]
    linears = 2 * (4 * linear(batch * length, 64, 64) + 3 * linear(batch * length, 64, 128))
    seen = int(local_mask(length, 64, 0, None).sum())
    assert flops.total == linears + 2 * attending(batch * length**2, 64)
    assert asked == linears + attending(batch * (length**2 + seen), 64)
    training, asked_in_training, _ = counted("modernbert", length, batch, "training")
    assert asked_in_training == 3 * asked
    assert training.total == 3 * flops.total + linear(2 * batch * length**2, 64, 1)


@pytest.mark.parametrize("window", [3, 64])
def test_a_local_layer_of_modernbert_sees_64_positions_on_either_side(window):
    """The library's own mask, and a variant's in the layers that see all."""
    subject = f"modernbert@local:window={window}"
    workload = tiny(subject, 150)
    live = build(workload)
    embeddings = live.model.get_input_embeddings()(live.inputs(workload)["input_ids"][:1]).detach().requires_grad_()
    live.model(inputs_embeds=embeddings).last_hidden_state[0, 75, 0].backward()
    gradient = embeddings.grad
    assert gradient is not None
    reached = gradient[0].abs().sum(dim=-1).nonzero().flatten()
    assert (reached.min(), reached.max()) == (max(0, 75 - 64 - window), min(149, 75 + 64 + window))


def test_a_variant_of_modernbert_changes_the_flops_of_its_global_layers_alone():
    def asked(subject: str, length: int = 1000) -> int:
        workload = Workload(subject, length)
        flops = algorithmic_flops(workload, make_config(workload).to_dict())
        assert flops is not None
        return flops

    full, band = 1000**2, int(local_mask(1000, 30, 0, None).sum())
    assert asked("modernbert") - asked("modernbert@local:window=30") == 8 * attending(full - band, D)
    # A window as wide as its own makes all layers alike.
    same = 22 * attending(int(local_mask(1000, 64, 0, None).sum()), D)
    linears = 22 * (4 * linear(1000, D, D) + 3 * linear(1000, D, 1152))
    assert asked("modernbert@local:window=64") == linears + same


@given(batch=st.integers(1, 2), length=st.integers(1, 2100))
@settings(max_examples=4)
def test_led_is_a_staircase_of_1024_positions(batch, length):
    flops, asked, _ = counted("led", length, batch)
    padded, radius = -(-length // 1024) * 1024, 512
    # Overlapping chunks of 1,024 by 1,024, of which a half is thrown away; then 512 rows by 1,536 values.
    scores = linear(batch * (padded // radius - 1) * 2 * radius, 64, 2 * radius)
    values = linear(batch * padded, 3 * radius, 64)
    assert flops.total == stack_linears(batch * padded, 64, 128, 2) + 2 * (scores + values)
    seen = int(local_mask(length, radius, 0, None).sum())
    assert asked == stack_linears(batch * length, 64, 128, 2) + 2 * attending(batch * seen, 64)


def test_led_asks_for_what_bart_with_its_window_asks_for():
    for length in (100, 1024, 3000):
        led, bart = Workload("led", length), Workload("bart@local:window=512", length)
        assert algorithmic_flops(led, make_config(led).to_dict()) == algorithmic_flops(
            bart, make_config(bart).to_dict()
        )


def maps_of_big_bird(length: int, phase: str) -> Tensor:
    """Return the weights of real positions in the first layer, [heads, length, length], without dropout."""
    workload = tiny("big_bird", length, batch_size=1, phase=phase)
    live = build(workload)
    for module in live.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    found: list[Tensor] = []
    attention = next(m for m in live.model.modules() if type(m).__name__ == "BigBirdBlockSparseAttention")
    attention.register_forward_hook(lambda module, args, output: found.append(output[1]))
    with torch.no_grad():
        live.model(**live.inputs(workload))
    return found[0][0, :, :length, :length]


def pairs_of_big_bird(length: int) -> int:
    """Count, block by block, what sees what."""
    blocks = -(-length // 64)
    sizes = [64] * (blocks - 1) + [length - 64 * (blocks - 1)]
    total = 0
    for block, size in enumerate(sizes):
        if block in (0, blocks - 1):
            total += size * length
        else:
            seen = {0, blocks - 1, block - 1, block, block + 1}
            total += size * (sum(sizes[other] for other in seen) + 3 * 64)
    return total


# At 1,024 tokens (and 3,072 and 4,096) the library follows another plan, which may draw a block that is seen anyway.
@pytest.mark.parametrize("length", [705, 768, 900, 1100])
def test_big_bird_asks_for_the_pairs_that_its_training_gives_weight_to(length):
    weights = maps_of_big_bird(length, "training")
    for head in weights:
        assert int((head > 0).sum()) == pairs_of_big_bird(length)
    workload = tiny("big_bird", length, batch_size=1)
    asked = algorithmic_flops(workload, make_config(workload).to_dict())
    expected = stack_linears(length, 64, 128, 2) + 2 * attending(pairs_of_big_bird(length), 64) + linear(1, 64, 64)
    assert asked == expected


def test_in_inference_the_random_blocks_of_big_bird_are_all_the_first():
    length = 768
    middle = maps_of_big_bird(length, "inference")[:, 5 * 64 : 6 * 64]
    seen = (middle > 0).any(dim=1).reshape(2, 12, 64).any(dim=-1)
    assert [row.nonzero().flatten().tolist() for row in seen] == [[0, 4, 5, 6, 11]] * 2
    assert "random blocks are all the first one" in " ".join(ARCHITECTURES["big_bird"].notes)


@pytest.mark.parametrize("length", [705, 768, 1000])
@pytest.mark.parametrize("batch", [1, 2])
def test_big_bird_executes_its_padding(length, batch):
    flops, asked, _ = counted("big_bird", length, batch)
    padded, pooler = -(-length // 64) * 64, linear(batch, 64, 64)
    linears = stack_linears(batch * padded, 64, 128, 2) + pooler
    assert flops.total == linears + 2 * attending(batch * pairs_of_big_bird(padded), 64)
    assert (asked == flops.total) == (length == padded)
    training, asked_in_training, _ = counted("big_bird", length, batch, "training")
    assert training.total == 3 * flops.total - 2 * pooler
    assert asked_in_training == 3 * asked - 2 * pooler


@pytest.mark.parametrize("kind", ["transient-global", "local"])
@given(batch=st.integers(1, 2), length=st.integers(1, 400))
@settings(max_examples=6)
def test_longt5_executes_whole_blocks_and_sums_by_a_product(kind, batch, length):
    config = make_config(tiny("longt5", length))
    config.encoder_attention_type = kind
    model = make_model(ARCHITECTURES["longt5"], config).eval().requires_grad_(False)
    ids = torch.full((batch, length), 7)
    flops, _ = count_flops(lambda: model(ids))
    # A token for each whole block of 16, unless attention is local only.
    marks = length // 16 if kind == "transient-global" else 0
    blocks = -(-length // 128)
    linears = 2 * (4 * linear(batch * length, 64, 64) + 3 * linear(batch * length, 64, 128))
    linears += 2 * 2 * linear(batch * marks, 64, 64)
    sums = 2 * linear(batch * marks, length, 64)
    executed = 2 * attending(batch * blocks * 128 * (3 * 128 + marks), 64)
    assert flops.total == linears + sums + executed
    seen = int(local_mask(length, 127, 0, None).sum()) + length * marks
    flops_of = ARCHITECTURES["longt5"].flops
    assert flops_of is not None
    asked = flops_of(config.to_dict(), batch, length, lambda *_: 0).of_phase("inference")
    assert asked == linears + 2 * attending(batch * seen, 64)


def test_longt5_training_has_no_gradient_of_the_blocks_a_token_is_in():
    inference, asked, _ = counted("longt5", 100, 2)
    training, asked_in_training, _ = counted("longt5", 100, 2, "training")
    assert asked_in_training == 3 * asked
    assert 3 * inference.total - training.total == 2 * linear(2 * 6, 100, 64)


@given(batch=st.integers(1, 2), length=st.integers(1, 200))
@settings(max_examples=6)
def test_fnet_is_its_feed_forward_parts_and_its_transforms_are_reported_as_uncounted(batch, length):
    flops, asked, _ = counted("fnet", length, batch)
    pooler = linear(batch, 64, 64)
    expected = linear(batch * length, 64, 64) + 2 * 2 * linear(batch * length, 64, 128) + pooler
    assert flops.total == asked == expected
    assert flops.uncounted == (("_fft_c2c", 2),)
    training, asked_in_training, _ = counted("fnet", length, batch, "training")
    assert training.total == asked_in_training == 3 * asked - 2 * pooler
    assert training.uncounted == (("_fft_c2c", 4),)


def test_the_transforms_of_fnet_would_be_less_than_a_hundredth():
    for length in (512, 4096, 16384):
        workload = Workload("fnet", length)
        asked = algorithmic_flops(workload, make_config(workload).to_dict())
        assert asked is not None
        values = length * D
        transforms = LAYERS * 5 * values * (values.bit_length() - 1)
        assert 0.005 < transforms / asked < 0.01


@given(batch=st.integers(1, 2), length=st.integers(65, 400))
@settings(max_examples=6)
def test_reformer_is_chunks_in_the_text_and_chunks_by_hash(batch, length):
    flops, asked, config = counted("reformer", length, batch)
    padded, buckets = -(-length // 64) * 64, config["num_buckets"]

    def expected(rows: int) -> tuple[int, int]:
        linears = stack_linears(rows, 64, 128, 2) - linear(rows, 64, 64)
        # Each position sees 128: once in the text, four times in as many rounds of hashing.
        return linears + 5 * attending(rows * 128, 64), 4 * linear(rows, 64, buckets // 2)

    assert asked == sum(expected(batch * length))
    assert flops.total == sum(expected(batch * padded))
    training, asked_in_training, _ = counted("reformer", length, batch, "training")
    layers, hashing = expected(batch * length)
    assert asked_in_training == 3 * layers + hashing
    # Reversible layers are computed again in the backward pass, by the buckets of the forward pass.
    layers, hashing = expected(batch * padded)
    assert training.total == 4 * layers + hashing


@given(batch=st.integers(1, 2), length=st.integers(5, 150))
@settings(max_examples=8)
def test_funnel_scores_twice_as_many_distances_as_there_are(batch, length):
    flops, asked, _ = counted("funnel", length, batch)
    half = -(-length // 2)
    quarter = -(-half // 2)
    inner = projected = spare = spare_projected = 0
    for queries, keys in ((length, length), (half, length), (quarter, half)):
        rows = batch * queries
        inner += 2 * linear(rows, 64, 64) + 2 * linear(batch * keys, 64, 64) + 2 * linear(rows, 64, 128)
        # Content, distance and values of each pair, and two segments for each query.
        inner += 3 * linear(rows * keys, 64, 1) + linear(rows, 64, 2)
        # Distances of positions 0, 1, 2 ... to each other or to -1, 1, 3, 5 ...
        pooled = range(-1, 2 * queries - 2, 2) if queries < keys else range(keys)
        distances = {first - second for first in pooled for second in range(keys)}
        projected += linear(len(distances), 64, 64)
        scored = keys + (2 * queries if queries < keys else keys)
        spare += linear(rows * (scored - keys), 64, 1)
        spare_projected += linear(scored - len(distances), 64, 64)
    assert asked == inner + projected
    assert flops.total - asked == spare + spare_projected
    training, asked_in_training, _ = counted("funnel", length, batch, "training")
    # Sinusoids of distances are constants.
    assert asked_in_training == 3 * inner + 2 * projected
    assert training.total - asked_in_training == 3 * spare + 2 * spare_projected


@pytest.mark.parametrize(
    ("name", "length", "spare"),
    [
        ("roberta", 512, 0),
        ("modernbert", 512, 14 * attending(512**2 - int(local_mask(512, 64, 0, None).sum()), D)),
        ("bart", 512, 0),
        ("t5", 512, 0),
        ("yoso", 512, 0),
        ("fnet", 512, 0),
        ("big_bird", 768, 0),
        # A band is cut out of whole blocks, and tokens are summed up by a product.
        (
            "longt5",
            512,
            LAYERS * (attending(512 * 384 - int(local_mask(512, 127, 0, None).sum()), D) + linear(32, 512, D)),
        ),
        # As many distances again as there are keys, or queries where they are pooled, and one or two more to project.
        (
            "funnel",
            512,
            sum(
                count * (linear(queries * again, D, 1) + linear(more, D, D))
                for queries, again, more, count in (
                    (512, 512, 1, 4),
                    (256, 512, 2, 1),
                    (256, 256, 1, 3),
                    (128, 256, 2, 1),
                    (128, 128, 1, 3),
                )
            ),
        ),
    ],
)
def test_base_models_execute_what_they_are_asked_for_and_what_the_library_adds(name, length, spare):
    """On a device that computes nothing."""
    row = ARCHITECTURES[name]
    workload = Workload(name, length)
    config = make_config(workload)
    with torch.device("meta"):
        model = make_model(row, config).eval().requires_grad_(False)
        ids = torch.zeros(1, length, dtype=torch.long)
    # Some look at the tokens, of which there are none, unless they are given a mask; the others look at a mask.
    mask = {"attention_mask": torch.ones_like(ids)} if name in ("yoso", "funnel", "big_bird") else {}
    flops, _ = count_flops(lambda: model(ids, **mask))
    asked = algorithmic_flops(workload, config.to_dict())
    assert asked is not None
    assert flops.total - asked == spare


# Traps of the library that the notes speak of


class Shapes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.seen.add(tuple(result.shape[-2:]))
        return result


@pytest.mark.parametrize(
    ("name", "square"),
    [("big_bird", True), ("t5", True), ("yoso", True), ("longt5", False), ("fnet", False), ("reformer", False)],
)
def test_which_hold_a_square_of_the_length_in_memory(name, square):
    workload = tiny(name, 832, batch_size=1)
    live = build(workload)
    inputs = live.inputs(workload)
    with Shapes() as shapes, torch.no_grad():
        live.model(**inputs)
    assert ((832, 832) in shapes.seen) == square


def test_yoso_ignores_padding():
    live = build(tiny("yoso", 20))
    ids = torch.full((1, 20), 7)
    mask = (torch.arange(20) < 10)[None].long()
    assert torch.equal(hidden(live, input_ids=ids), hidden(live, input_ids=ids, attention_mask=mask))
    assert "ignores a [batch, length] padding mask" in " ".join(ARCHITECTURES["yoso"].notes)


# Variants

VARIANTS = ("sdpa", "eager", "local:window=3", "local:window=3,num_global=2", "local:window=100")


def double(name: str) -> tuple[LiveSubject, Tensor]:
    workload = tiny(name, 40)
    live = build(workload)
    live.model.double()
    return live, live.inputs(workload)["input_ids"]


def close(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() <= 1000 * DOUBLE)


@pytest.mark.parametrize("name", FULL)
def test_full_attention_takes_variants_and_gives_them_back(name):
    live, ids = double(name)
    vanilla = hidden(live, input_ids=ids)
    assert swap_attention(live.model, "local", window=3) is live.model
    assert not close(hidden(live, input_ids=ids), vanilla)
    swap_attention(live.model, "local", window=39)
    assert close(hidden(live, input_ids=ids), vanilla)
    swap_attention(live.model, "sdpa")
    assert torch.equal(hidden(live, input_ids=ids), vanilla)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", FULL)
def test_padding_never_changes_the_outputs_of_real_tokens(name, variant):
    live, ids = double(name)
    swap_attention(live.model, variant)
    padding = torch.arange(40) < torch.tensor([[40], [31]])
    pad = live.config["pad_token_id"]
    padded = hidden(live, input_ids=torch.where(padding, ids, pad), attention_mask=padding.long())
    assert close(padded[1:, :31], hidden(live, input_ids=ids[1:, :31]))
    assert close(padded[:1], hidden(live, input_ids=ids[:1]))


def test_a_variant_stands_in_the_global_layers_of_modernbert_alone():
    live = build(Workload("modernbert@local:window=5", 16, size="tiny", layers=7))
    standing = [str(variant) for variant in variants_of(live.model)]
    assert [n for n, variant in enumerate(standing) if variant == "local:window=5"] == [0, 3, 6]


@pytest.mark.parametrize("name", FULL)
def test_what_ran_is_described_and_is_what_was_asked_for(name):
    workload = tiny(f"{name}@local:window=3", 40)
    live = build(workload)
    with observe_attention() as functions:
        _, operators = count_flops(live.call(workload))
    assert describe_path(workload, live, functions, operators).startswith("local:window=3")


@pytest.mark.parametrize("name", [name for name in NEW if name not in FULL])
def test_what_cannot_take_a_variant_says_why(name):
    row = ARCHITECTURES[name]
    reason = row.efficient_attention or row.own_scores
    assert reason
    with pytest.raises(UnsupportedError, match=f"^{name} .* and takes no variant; drop '@local'") as caught:
        check_subject(Subject.parse(f"{name}@local"))
    assert reason in str(caught.value)
    live = build(tiny(name, 710))
    with pytest.raises(UnsupportedError, match="cannot take 'local:window=3'") as caught:
        swap_attention(live.model, "local", window=3)
    assert reason in str(caught.value)


def test_t5_runs_full_attention_and_says_so():
    workload = tiny("t5", 40)
    live = build(workload)
    with observe_attention() as functions:
        _, operators = count_flops(live.call(workload))
    path = describe_path(workload, live, functions, operators)
    assert path.startswith("full, a learned bias for each distance of two positions (")
    assert "attention" in path.partition("(")[2]
