"""Algorithmic FLOPs as a function of the catalogue alone; what is executed stands in profiling/test_flops.py."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from tippingpoint.attention.reference import local_mask
from tippingpoint.errors import InputError
from tippingpoint.models.build import LiveSubject, build, count_parameters, make_config
from tippingpoint.models.catalog import ARCHITECTURES, VARIANTS, algorithmic_flops, check_subject
from tippingpoint.models.flops import local_pairs
from tippingpoint.models.layer_attention import load_function
from tippingpoint.workload import PHASES, Subject, Workload

SUBJECTS = (*ARCHITECTURES, "bert@local:window=20", "hubert@local:window=3,num_global=2", "vit@local:window=9")


def asked(subject: str, length: float, **others: Any) -> int:
    workload = Workload(subject, length, **others)
    flops = algorithmic_flops(workload, make_config(workload).to_dict())
    assert flops is not None
    return flops


@pytest.mark.parametrize("row", [v for v in VARIANTS.values() if v.exact and v.oracle], ids=lambda row: row.name)
@given(data=st.data(), length=st.integers(1, 24))
def test_pairs_of_an_exact_variant_are_those_to_which_its_oracle_gives_weight(row, data, length):
    options = {
        name: data.draw(st.integers(int(option.minimum), length + 2), label=name)
        for name, option in row.options.items()
    }
    same, values = torch.zeros(1, 1, length, 4), torch.eye(length)[None, None]
    try:
        weights = load_function(row.oracle)(same, same, values, **options)
    except InputError:
        reject()
    pairs = length**2 if row.pairs is None else row.pairs(length, **options)
    assert pairs == int((weights > 0).sum())


@given(length=st.integers(1, 60), window=st.integers(1, 70), num_global=st.integers(0, 60))
def test_pairs_of_local_attention_are_the_entries_of_its_dense_mask(length, window, num_global):
    num_global = min(num_global, length)
    pairs = local_pairs(length, window=window, num_global=num_global)
    assert pairs == int(local_mask(length, window, num_global, None).sum())
    assert pairs <= length**2
    assert (pairs == length**2) == (window >= length - num_global - 1)


def bias_network(side: float, phase: str) -> int:
    """Two stages of one layer, of 2 and 4 heads; the first product's input is a constant and has no gradient."""
    total = 0
    for grid, heads in ((side // 4, 2), (side // 8, 4)):
        offsets = (2 * int(min(8, grid)) - 1) ** 2
        first, second = 2 * offsets * 2 * 512, 2 * offsets * 512 * heads
        total += 2 * first + 3 * second if phase == "training" else first + second
    return total


def distances(length: float, phase: str) -> int:
    """Three blocks of one layer: distances between all positions, and of each half from the whole before it."""
    half = -(-int(length) // 2)
    quarter = -(-half // 2)
    count = 2 * int(length) - 1 + 2 * half + int(length) - 2 + 2 * quarter + half - 2
    return count * 2 * 64 * 64 * (2 if phase == "training" else 1)


def relative(name: str) -> Callable[[float, str], int]:
    """Two layers project the encodings of all distances, which are constants."""

    def projections(length: float, phase: str) -> int:
        count = 2 * ARCHITECTURES[name].positions(length) - 1
        return 2 * count * 2 * 64 * 64 * (2 if phase == "training" else 1)

    return projections


# Swin's network of position biases, and projections of distances.
ONCE: dict[str, Callable[[float, str], int]] = {
    "swinv2": bias_network,
    "funnel": distances,
    **{name: relative(name) for name in ("wav2vec2-conformer", "parakeet_encoder")},
}


def waveform(length: float) -> int:
    """The first convolution, for each channel."""
    return 2 * ((round(length * 16_000) - 10) // 5 + 1) * 10


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("subject", SUBJECTS)
@given(length=st.floats(0.025, 3000), longer=st.floats(1, 1.5), batch=st.integers(1, 5))
@settings(max_examples=20)
def test_more_is_asked_for_longer_inputs_and_for_each_sequence_the_same(subject, phase, length, longer, batch):
    row = ARCHITECTURES[Subject.parse(subject).architecture]
    first, second = row.nearest_legal(length), row.nearest_legal(length * longer)
    short, long = (asked(subject, n, phase=phase, size="tiny") for n in (first, second))
    if row.positions(first) == row.positions(second) and row.unit != "seconds":
        assert short == long
    elif row.positions(first) < row.positions(second):
        assert short < long
    else:
        assert short <= long
    # But for what runs once for the batch.
    once = ONCE[subject](first, phase) if subject in ONCE else 0
    several = asked(subject, first, phase=phase, size="tiny", batch_size=batch)
    assert several == batch * short - (batch - 1) * once


def hashing(length: float) -> int:
    """One layer, 4 rounds; half of the buckets are directions. They are a power of two, up to two for a chunk."""
    buckets = 1
    while 2 * buckets <= 2 * -(-length // 64):
        buckets *= 2
    return 4 * 2 * int(length) * 64 * buckets // 2


@pytest.mark.parametrize("subject", SUBJECTS)
@given(length=st.floats(0.025, 3000))
@settings(max_examples=20)
def test_training_is_three_forward_passes_less_the_gradients_that_nobody_needs(subject, length):
    name = Subject.parse(subject).architecture
    length = ARCHITECTURES[name].nearest_legal(length)
    inference, training = (asked(subject, length, phase=phase, size="tiny") for phase in ("inference", "training"))
    pooler = 2 * 64 * 64
    needless = {
        **dict.fromkeys(("bert", "roberta", "big_bird", "fnet"), 2 * pooler),
        **dict.fromkeys(("modernbert", "bart", "t5", "led", "longt5", "yoso"), 0),
        "reformer": 2 * hashing(length),
        "funnel": distances(length, "inference"),
        "longformer": 2 * pooler,
        "nystromformer": 0,
        **dict.fromkeys(("hubert", "wav2vec2", "wavlm", "data2vec-audio"), waveform(length) * 32),
        "sew": waveform(length) * 8,
        "wav2vec2-conformer": waveform(length) * 32 + relative("wav2vec2-conformer")(length, "inference"),
        "wav2vec2-bert": 0,
        "whisper": 2 * (round(length * 16_000) // 160) * 3 * 80 * 64,
        "parakeet_encoder": 2 * -(-(round(length * 16_000) // 160) // 2) * 40 * 9 * 16
        + relative("parakeet_encoder")(length, "inference"),
        "vit": 2 * pooler + 2 * int(length // 16) ** 2 * 768 * 64,
        "deit": 2 * pooler + 2 * int(length // 16) ** 2 * 768 * 64,
        "dinov2": 2 * int(length // 14) ** 2 * 3 * 14**2 * 64,
        **dict.fromkeys(("clip_vision_model", "dinov3_vit", "beit"), 2 * int(length // 16) ** 2 * 768 * 64),
        "swin": 2 * int(length // 4) ** 2 * 3 * 4**2 * 32,
        **dict.fromkeys(("pvt_v2", "hiera"), 2 * int(length // 4) ** 2 * 3 * 7**2 * 16),
    }
    if name == "swinv2":
        coordinates = sum((2 * int(min(8, length // patch)) - 1) ** 2 for patch in (4, 8))
        needless["swinv2"] = 2 * int(length // 4) ** 2 * 48 * 32 + 2 * coordinates * 2 * 512
    assert training == 3 * inference - needless[name]


@given(length=st.integers(1, 5000))
@settings(max_examples=20)
def test_the_longformer_asks_for_what_bert_with_its_window_asks_for(length):
    assert asked("longformer", length, size="small") == asked("bert@local:window=256", length, size="small")


@pytest.mark.parametrize(
    ("subject", "length", "published_gigamacs"),
    [("vit", 224, 17.6), ("swinv2", 256, 20.3)],
)
def test_base_models_cost_what_is_published(subject, length, published_gigamacs):
    """Without the classifier, which is a thousandth; the authors count a multiply-add as 1."""
    assert asked(subject, length) / 2e9 == pytest.approx(published_gigamacs, rel=0.004)


def test_eager_and_fused_attention_are_the_same_algorithm():
    for phase in PHASES:
        assert len({asked(s, 100, phase=phase) for s in ("bert", "bert@sdpa", "bert@eager")}) == 1
        # A window over everything is full attention.
        assert asked("bert@local:window=99", 100, phase=phase) == asked("bert", 100, phase=phase)
        assert asked("bert@local:window=98", 100, phase=phase) < asked("bert", 100, phase=phase)


def test_what_has_no_closed_form_has_no_algorithmic_flops(monkeypatch):
    workload = Workload("bert@local:window=8", 100, size="tiny")
    config = make_config(workload).to_dict()
    assert algorithmic_flops(workload, config)
    approximate = dataclasses.replace(VARIANTS["local"], exact=False, pairs=None)
    with monkeypatch.context() as patch:
        patch.setattr("tippingpoint.models.catalog.VARIANTS", {**VARIANTS, "local": approximate})
        assert algorithmic_flops(workload, config) is None
    mine = dataclasses.replace(ARCHITECTURES["bert"], flops=None)
    monkeypatch.setattr("tippingpoint.models.catalog.ARCHITECTURES", {**ARCHITECTURES, "bert": mine})
    assert algorithmic_flops(workload, config) is None


def test_every_architecture_and_exact_variant_of_the_catalogue_has_a_closed_form():
    for row in ARCHITECTURES.values():
        assert asked(row.name, row.nearest_legal(64), size="tiny")
        for name in VARIANTS if row.takes_variants else ():
            assert asked(str(check_subject(Subject.parse(f"{row.name}@{name}"))), row.nearest_legal(64))


class Tied(transformers.BertModel):
    """A BERT whose layers are all the first one, and which holds a table under a second name."""

    def __init__(self, config: transformers.BertConfig) -> None:
        super().__init__(config)
        for place in range(1, len(self.encoder.layer)):
            self.encoder.layer[place] = self.encoder.layer[0]
        self.second_name = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.second_name.weight = self.embeddings.word_embeddings.weight


def test_shared_parameters_are_counted_once(monkeypatch):
    workload = Workload("bert", 16, size="tiny")
    layer = 4 * (64 * 64 + 64) + 2 * 64 * 128 + 128 + 64 + 2 * 2 * 64
    whole = count_parameters(workload)
    assert build(workload).parameters == whole
    monkeypatch.setattr(transformers, "BertModel", Tied)
    subject: LiveSubject = build(workload)
    assert isinstance(subject.model, Tied)
    assert count_parameters(workload) == subject.parameters == whole - layer
