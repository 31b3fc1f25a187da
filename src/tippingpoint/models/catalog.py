"""The catalogue: literal tables of what can be measured. No torch at import time; tests enumerate it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from tippingpoint.errors import InputError, UnsupportedError, unknown
from tippingpoint.models import speech, text, vision
from tippingpoint.models.architecture import Architecture, AttentionVariant, Option
from tippingpoint.models.attention_flops import (
    heads_flops,
    linear_flops,
    linformer_flops,
    nystrom_flops,
    pooled_flops,
)
from tippingpoint.models.flops import AttentionFlops, attend, linear, local_pairs
from tippingpoint.models.groups import GROUP, REUSE, WRITTEN, groups_of, is_groups, reuse_of, sources
from tippingpoint.models.layers import OPTION, layers_of, parse_layers, without_layers
from tippingpoint.models.own import is_own, own_architecture
from tippingpoint.models.plugins import Table
from tippingpoint.workload import Subject, Variant, Workload

ARCHITECTURES: Mapping[str, Architecture] = Table(
    Architecture,
    "tippingpoint.architectures",
    *text.ROWS,
    *speech.ROWS,
    *vision.ROWS,
)

VARIANTS: Mapping[str, AttentionVariant] = Table(
    AttentionVariant,
    "tippingpoint.variants",
    AttentionVariant(
        name="sdpa",
        title="fused full attention (what the library runs by default)",
        exact=True,
        paper="arXiv:2205.14135",
        library_name="sdpa",
        keeps_map=True,
    ),
    AttentionVariant(
        name="eager",
        title="full attention step by step, with the score matrix in memory",
        exact=True,
        paper="arXiv:1706.03762",
        library_name="eager",
    ),
    AttentionVariant(
        name="local",
        title="sliding window; with HuBERT this is L-HuBERT",
        exact=True,
        paper="arXiv:2004.05150",
        options={
            "window": Option(
                kind=int,
                minimum=1,
                default={"text": 128, "speech": 50, "vision": 128},
                meaning="one-sided radius in positions: i sees j with |i - j| <= window",
            ),
            "num_global": Option(
                kind=int,
                minimum=0,
                default=0,
                meaning="leading positions that see, and are seen by, every position",
                off=0,
            ),
            "causal": Option(
                kind=bool,
                default=False,
                meaning="see the position itself and earlier ones only",
                off=False,
            ),
        },
        function="tippingpoint.attention.local:local_attention",
        oracle="tippingpoint.attention.reference:local_attention",
        pairs=local_pairs,
        path="tippingpoint.attention.local:describe_way",
        keeps_map=True,
    ),
    AttentionVariant(
        name="nystrom",
        title="Nystrom approximation through landmarks",
        exact=False,
        paper="arXiv:2102.03902",
        options={
            "landmarks": Option(
                kind=int,
                minimum=1,
                default=64,
                meaning="segments of consecutive positions whose means stand for all",
            ),
        },
        function="tippingpoint.attention.nystrom:nystrom_attention",
        oracle="tippingpoint.attention.reference:nystrom_attention",
        flops=nystrom_flops,
    ),
    AttentionVariant(
        name="linear",
        title="linear attention by feature maps: FAVOR+ of the Performer, or elu+1",
        exact=False,
        paper="arXiv:2009.14794",
        options={
            "feature_map": Option(
                kind=str,
                choices=("favor", "elu"),
                default="favor",
                meaning="positive random features of softmax (favor), or elu(x) + 1",
            ),
            "num_features": Option(
                kind=int, minimum=1, default=256, meaning="random features of favor; elu has one for each dimension"
            ),
        },
        function="tippingpoint.attention.linear:linear_attention",
        oracle="tippingpoint.attention.reference:linear_attention",
        flops=linear_flops,
    ),
    AttentionVariant(
        name="linformer",
        title="learned projections of keys and values to a fixed number",
        exact=False,
        paper="arXiv:2006.04768",
        options={
            "rank": Option(kind=int, minimum=1, default=256, meaning="keys and values after the projection"),
            "max_length": Option(
                kind=int,
                default=0,
                meaning="longest input in positions, which the weights are for; by default what the model takes",
                off=0,
            ),
        },
        module="tippingpoint.attention.linformer:LinformerAttention",
        oracle="tippingpoint.attention.reference:linformer_attention",
        flops=linformer_flops,
    ),
    AttentionVariant(
        name="pooled",
        title="keys and values averaged over neighbours",
        exact=False,
        paper="arXiv:2102.12122",
        options={"ratio": Option(kind=int, minimum=1, default=4, meaning="positions averaged into one")},
        function="tippingpoint.attention.pooled:pooled_attention",
        oracle="tippingpoint.attention.reference:pooled_attention",
        flops=pooled_flops,
    ),
    AttentionVariant(
        name="heads",
        title="some heads pruned; projections stay",
        exact=False,
        paper="arXiv:1905.10650",
        options={
            "keep": Option(
                kind=float,
                minimum=0.01,
                maximum=1,
                default=0.5,
                meaning="share of the heads that attend: the first ones",
            ),
        },
        function="tippingpoint.attention.heads:kept_heads_attention",
        oracle="tippingpoint.attention.reference:kept_heads_attention",
        flops=heads_flops,
    ),
    AttentionVariant(
        name=REUSE,
        title="groups of layers share one attention map; goes with local",
        exact=False,
        paper="arXiv:2301.12444",
        options={
            GROUP: Option(
                kind=int,
                default=2,
                meaning="layers that share a map, the first of which computes it; or which layers do",
                legal=is_groups,
                written=WRITTEN,
            ),
            "mode": Option(
                kind=str,
                choices=("auto", "map", "recompute"),
                default="auto",
                meaning="keep the map, or queries and keys for fused attention in every layer; auto measures",
            ),
            "maps": Option(
                kind=str,
                choices=("same", "bfloat16"),
                default="same",
                off="same",
                meaning="what maps are kept in: as the model computes, or in bfloat16",
            ),
        },
        shares_maps=True,
    ),
)


def architecture_of(subject: Subject) -> Architecture:
    """Return the catalogue's row for a subject's architecture, or one for a model of one's own.

    Raises:
        InputError: If the catalogue has no such name, with the nearest ones.
    """
    if is_own(subject.architecture):
        return own_architecture(subject.architecture)
    if subject.architecture not in ARCHITECTURES:
        raise unknown("architecture", subject.architecture, ARCHITECTURES)
    return ARCHITECTURES[subject.architecture]


def resolve(subject: Subject, modality: str) -> Subject:
    """Return the subject with every variant checked and every option written out.

    Two spellings of the same thing become equal: `hubert@local` is `hubert@local:window=50`.

    Args:
        subject: What was asked for.
        modality: Of the subject's architecture; chooses defaults.

    Raises:
        InputError: If a variant or option is unknown, or a value is out of range.
    """
    return Subject(subject.architecture, tuple(_resolve_variant(v, modality) for v in subject.variants))


def _resolve_variant(variant: Variant, modality: str) -> Variant:
    row = VARIANTS.get(variant.name)
    if row is None:
        raise unknown("variant", variant.name, VARIANTS)
    given = dict(variant.options)
    legal = [*row.options, *([] if row.library_name else [OPTION])]
    options = {key: option.default_for(modality) for key, option in row.options.items()}
    for key, value in given.items():
        if key not in legal:
            if not legal:
                raise InputError(f"variant {row.name!r} takes no options, got {key!r}")
            raise unknown(f"option of {row.name!r}", key, legal)
        if key == OPTION:
            parse_layers(value)
            options[key] = value
            continue
        option = row.options[key]
        try:
            options[key] = option.check(value)
        except ValueError:
            raise InputError(
                f"{row.name}:{key} ({option.meaning}) must be {option.expected}, got {value!r}"
            ) from None
    return Variant(row.name, tuple((k, v) for k, v in options.items() if k == OPTION or v != row.options[k].off))


def check_subject(subject: Subject) -> Subject:
    """Return a catalogue subject with its options written out, checked as a whole.

    Raises:
        UnsupportedError: If the architecture has an attention of its own, or the variants do not compose.
        InputError: If a name, option or value is not legal.
    """
    architecture = architecture_of(subject)
    refused = [v for v in subject.variants if v.name in VARIANTS and not architecture.takes(VARIANTS[v.name])]
    if refused:
        reason = (
            f"has an attention of its own ({architecture.efficient_attention})"
            if architecture.efficient_attention
            else f"computes its scores in a way of its own ({architecture.own_scores})"
        )
        but = f" but {REUSE}, eager and sdpa" if architecture.shares_maps else ""
        able = [row.name for row in ARCHITECTURES.values() if row.takes(VARIANTS[refused[0].name])]
        raise UnsupportedError(
            f"{architecture.name} {reason} and takes no variant{but}; drop '@{refused[0]}', or put the variant into "
            f"one of {', '.join(able)}"
        )
    subject = resolve(subject, architecture.modality)
    for first, second in combinations(subject.variants, 2):
        places = [dict(variant.options).get(OPTION) for variant in (first, second)]
        apart = None not in places and not set(parse_layers(places[0] or 0)) & set(parse_layers(places[1] or 0))
        sharing = [VARIANTS[variant.name].shares_maps for variant in (first, second)]
        if True in sharing:
            other = second if sharing[0] else first
            if apart or (VARIANTS[other.name].keeps_map and VARIANTS[other.name].library_name is None):
                continue
            raise UnsupportedError(
                f"variants {first.name} and {second.name} do not compose: {other.name} leaves no map to share; give "
                f"each layers of its own, such as {other.name}:layers=0-5+{REUSE}:layers=6-11"
            )
        if not apart:
            raise UnsupportedError(
                f"variants {first.name} and {second.name} do not compose; two stand in one model where each has "
                f"layers of its own, such as {first.name}:layers=0-5+{second.name}:layers=6-11"
            )
    return subject


def standing(subject: Subject, layers: Sequence[int], count: int) -> list[Variant]:
    """Return what a subject puts into each layer of a model: `sdpa` where it says nothing.

    Args:
        subject: With its options checked; `reuse` says which layers take over a map by `reuse:of=LAYER`.
        layers: Those that take a variant: all but those with a window of their own.
        count: Layers of the model.
    """
    found = [Variant("sdpa")] * count
    for variant in subject.variants:
        if not VARIANTS[variant.name].shares_maps:
            full = VARIANTS[variant.name].library_name is not None
            for layer in layers_of(variant, count):
                found[layer] = without_layers(variant) if full or layer in layers else found[layer]
    for variant in subject.variants:
        if VARIANTS[variant.name].shares_maps:
            able = [layer for layer in layers if VARIANTS[found[layer].name].keeps_map]
            options: dict[str, Any] = dict(variant.options)
            for layer, of in sources(groups_of(variant, found, able)).items():
                found[layer] = reuse_of(of, options["mode"], options.get("maps", "same"), None)
    return found


def modality_of(subjects: tuple[Subject, ...]) -> str:
    """Return the one modality of several subjects.

    Raises:
        InputError: If they are of different modalities.
    """
    by_modality = {architecture_of(subject).modality: subject for subject in subjects}
    if len(by_modality) > 1:
        named = " and ".join(f"{subject} ({modality})" for modality, subject in by_modality.items())
        raise InputError(f"subjects of different modalities cannot be compared: {named}")
    return next(iter(by_modality))


def is_vanilla(subject: Subject) -> bool:
    """Whether a subject computes full attention, fused or not: something to be held against."""
    if architecture_of(subject).efficient_attention:
        return False
    return all(VARIANTS[v.name].library_name in ("sdpa", "eager") for v in subject.variants if v.name in VARIANTS)


def algorithmic_flops(workload: Workload, config: Mapping[str, Any]) -> int | None:
    """Return what the published definition of a subject asks for in one call, in FLOPs.

    That is at the real length, without what an implementation adds: padding, whole blocks, scores computed again in
    the backward pass. Training is three forward passes, less the gradients that nobody needs: of the input, and
    of a pooler that the loss does not depend on.

    Args:
        workload: What is called.
        config: Of the subject that was built for it.

    Returns:
        FLOPs of the whole batch; None where the catalogue has no closed form.

    Raises:
        InputError: If the catalogue does not know the subject.
        UnsupportedError: If its variants do not compose.
    """
    subject = check_subject(workload.subject)
    architecture = architecture_of(subject)
    if architecture.flops is None:
        return None
    rows = [VARIANTS[variant.name] for variant in subject.variants]
    if any(row.flops is None and row.pairs is None and not (row.exact or row.shares_maps) for row in rows):
        return None
    count = architecture.shape(config).layers
    forward = architecture.flops(config, workload.batch_size, workload.length, _attention_flops(subject, count))
    if architecture.scores is not None:
        computing = sum(variant.name != REUSE for variant in standing(subject, range(count), count))
        forward += architecture.scores(config, workload.batch_size, workload.length) * computing
    return forward.of_phase(workload.phase)


def _attention_flops(subject: Subject, count: int) -> AttentionFlops:
    """Return what the self-attention of a subject with `count` layers asks for: full, but where a variant stands."""

    def attention(positions: int, heads: int, head_dim: int, layers: Sequence[int]) -> int:
        there = standing(subject, layers, count)
        return sum(_layer_flops(layer, there, positions, heads, head_dim) for layer in layers)

    return attention


def _layer_flops(layer: int, there: Sequence[Variant], positions: int, heads: int, head_dim: int) -> int:
    """Return what one layer's attention asks for, for one sequence, beside its projections."""
    variant = there[layer]
    if variant.name != REUSE:
        return _variant_flops(variant, positions, heads, head_dim)
    options: dict[str, Any] = dict(variant.options)
    source = _variant_flops(there[options["of"]], positions, heads, head_dim)
    # Values are weighed, which is half of attention, and neither queries nor keys are projected. Where queries and
    # keys are kept in place of the map, to score them again is the implementation's way, not the definition's.
    width = heads * head_dim
    return source // 2 - 2 * linear(positions, width, width)


def _variant_flops(variant: Variant, positions: int, heads: int, head_dim: int) -> int:
    """Return what a variant asks for in one layer, for one sequence."""
    row = VARIANTS[variant.name]
    options: dict[str, Any] = {key: value for key, value in variant.options if key != OPTION}
    if row.flops is not None:
        return row.flops(positions, heads, head_dim, **options)
    pairs = positions * positions if row.pairs is None else row.pairs(positions, **options)
    return attend(pairs, heads * head_dim)
