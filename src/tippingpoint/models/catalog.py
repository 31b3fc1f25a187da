"""The catalogue: literal tables of what can be measured. No torch at import time; tests enumerate it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from tippingpoint.errors import InputError, UnsupportedError, unknown
from tippingpoint.models import speech, text, vision
from tippingpoint.models.architecture import Architecture, AttentionVariant, Option
from tippingpoint.models.flops import full_pairs, local_pairs
from tippingpoint.workload import OptionValue, Subject, Variant, Workload

_Row = TypeVar("_Row", Architecture, AttentionVariant)


def _table(*rows: _Row) -> Mapping[str, _Row]:
    table = {row.name: row for row in rows}
    assert len(table) == len(rows), "a name stands twice in the catalogue"
    return MappingProxyType(table)


ARCHITECTURES: Mapping[str, Architecture] = _table(
    text.BERT,
    text.LONGFORMER,
    text.NYSTROMFORMER,
    speech.HUBERT,
    vision.VIT,
    vision.SWINV2,
)

VARIANTS: Mapping[str, AttentionVariant] = _table(
    AttentionVariant(
        name="sdpa",
        title="fused full attention (what the library runs by default)",
        exact=True,
        paper="arXiv:2205.14135",
        library_name="sdpa",
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
                default={"text": 0, "speech": 0, "vision": 0},
                meaning="leading positions that see, and are seen by, every position",
                off=0,
            ),
        },
        function="tippingpoint.attention.local:local_attention",
        oracle="tippingpoint.attention.reference:local_attention",
        pairs=local_pairs,
    ),
)


def architecture_of(subject: Subject) -> Architecture:
    """Return the catalogue's row for a subject's architecture.

    Raises:
        InputError: If the catalogue has no such name, with the nearest ones.
    """
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
    for key, value in given.items():
        if key not in row.options:
            if not row.options:
                raise InputError(f"variant {row.name!r} takes no options, got {key!r}")
            raise unknown(f"option of {row.name!r}", key, row.options)
        option = row.options[key]
        if type(value) is not option.kind or isinstance(value, str) or value < option.minimum:
            kind = "a whole number" if option.kind is int else f"a {option.kind.__name__}"
            raise InputError(
                f"{row.name}:{key} ({option.meaning}) must be {kind} of at least {option.minimum:g}, got {value!r}"
            )
    options: dict[str, OptionValue] = {key: option.default[modality] for key, option in row.options.items()}
    options |= given
    return Variant(row.name, tuple((k, v) for k, v in options.items() if v != row.options[k].off))


def check_subject(subject: Subject) -> Subject:
    """Return a catalogue subject with its options written out, checked as a whole.

    Raises:
        UnsupportedError: If the architecture has an attention of its own, or the variants do not compose.
        InputError: If a name, option or value is not legal.
    """
    architecture = architecture_of(subject)
    if subject.variants and architecture.efficient_attention:
        raise UnsupportedError(
            f"{architecture.name} has an attention of its own ({architecture.efficient_attention}) and takes no "
            f"variant; drop '@{subject.variants[0]}', or put the variant into one of "
            f"{', '.join(a.name for a in ARCHITECTURES.values() if not a.efficient_attention)}"
        )
    if len(subject.variants) > 1:
        raise UnsupportedError(f"variants {' and '.join(v.name for v in subject.variants)} do not compose")
    return resolve(subject, architecture.modality)


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
    pairs = full_pairs
    for variant in subject.variants:
        row = VARIANTS[variant.name]
        if row.pairs is not None:
            pairs = partial(row.pairs, **dict(variant.options))
        elif not row.exact:
            return None
    forward = architecture.flops(config, workload.batch_size, workload.length, pairs)
    return forward.of_phase(workload.phase)
