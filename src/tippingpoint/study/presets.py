"""The studies that `tippingpoint study` has names for: literal tables.

text, speech, vision    a vanilla encoder and an efficient one; inference alone, so that five minutes reach far
                        (`--phase inference,training` adds training)
compression             every way to make self-attention cheaper beside the others, at matched FLOPs; in each modality
reuse                   attention map reuse by the size of its groups; in each modality
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tippingpoint.units import MODALITIES
from tippingpoint.workload import PHASES, Study, Subject, check_choice

PRESETS: Mapping[str, Study] = MappingProxyType(
    {
        "text": Study(
            name="text",
            modality="text",
            baselines=(Subject.parse("bert"), Subject.parse("bert@eager")),
            variants=(Subject.parse("longformer"), Subject.parse("nystromformer")),
            lengths=(128, 8192),
            phases=("inference",),
        ),
        "speech": Study(
            name="speech",
            modality="speech",
            baselines=(Subject.parse("hubert"),),
            variants=(Subject.parse("hubert@local:window=50"),),
            lengths=(1, 80),
            phases=("inference",),
        ),
        "vision": Study(
            name="vision",
            modality="vision",
            baselines=(Subject.parse("vit"),),
            variants=(Subject.parse("swinv2"),),
            lengths=(224, 1792),
            phases=("inference",),
        ),
    }
)

# Twice the width of a Base model (768): where full attention asks for as many FLOPs between its projections (4 N^2 d)
# as in them (8 N d^2).
MATCHED_POSITIONS = 1536
# What self-attention, its projections included, asks for there of what full attention does. Groups of three reach
# that at every length, since two layers of three do half of the work; what saves nothing of the projections must make
# do with a third of what stands between them.
MATCHED_SHARE = 2 / 3
# Of each variant, what comes nearest there, in a size that papers take: a window of 512 to both sides together
# (Longformer), 256 random features (Performer), rank 256 (Linformer). `reuse` chooses between its modes by measuring.
_MATCHED = (
    "local:window=256",
    "nystrom:landmarks=128",
    "linear:feature_map=favor,num_features=256",
    "linformer:rank=256",
    "pooled:ratio=3",
    "heads:keep=0.33",
    "reuse:group=3",
)
_GROUP_SIZES = (2, 3, 4, 6)
# Ten subjects in two phases need more than the five minutes of other studies.
_BUDGET_S = 1800.0


def _compression(modality: str, architecture: str, lengths: tuple[float, float], at: str) -> tuple[Study, ...]:
    study = Study(
        name="compression",
        modality=modality,
        baselines=(Subject.parse(architecture), Subject.parse(f"{architecture}@eager")),
        variants=tuple(Subject.parse(f"{architecture}@{variant}") for variant in _MATCHED),
        lengths=lengths,
        metrics=("latency", "peak_memory"),
        phases=PHASES,
        budget_s=_BUDGET_S,
        whole_range=True,
        about=f"variants are matched by FLOPs at {at}: there self-attention, its projections included, asks for "
        "about two thirds of what full attention does, in each of them. Arithmetic is matched, quality is not.",
    )
    return (study,)


def _reuse(modality: str, lengths: tuple[float, float], *architectures: str) -> tuple[Study, ...]:
    return tuple(
        Study(
            name="reuse",
            modality=modality,
            baselines=(Subject.parse(architecture), Subject.parse(f"{architecture}@eager")),
            variants=tuple(Subject.parse(f"{architecture}@reuse:group={size}") for size in _GROUP_SIZES),
            lengths=lengths,
            metrics=("latency", "peak_memory"),
            phases=PHASES,
            budget_s=_BUDGET_S / len(architectures),
            whole_range=True,
            about="groups of 2, 3, 4 and 6 consecutive layers share one attention map, kept or computed again, "
            "whichever is faster here: by arithmetic, self-attention costs 3/4, 2/3, 5/8 and 7/12 of before, less "
            "where its scores hold relative positions.",
        )
        for architecture in architectures
    )


# By name, then by modality; where there are several, each architecture has a study of its own. Lengths double from
# the first one, and so come by the one at which FLOPs are matched.
COMPARISONS: Mapping[str, Mapping[str, tuple[Study, ...]]] = MappingProxyType(
    {
        "compression": MappingProxyType(
            {
                "text": _compression("text", "bert", (192, 6144), "1,536 tokens"),
                "speech": _compression("speech", "hubert", (0.96, 61.44), "30.7 s (1,535 positions)"),
                "vision": _compression("vision", "vit", (160, 1280), "640 px (1,601 positions)"),
            }
        ),
        "reuse": MappingProxyType(
            {
                "text": _reuse("text", (128, 8192), "bert"),
                "speech": _reuse("speech", (1, 80), "hubert", "wav2vec2-conformer"),
                "vision": _reuse("vision", (224, 1792), "vit"),
            }
        ),
    }
)


def preset(name: str, modality: str | None = None) -> tuple[Study, ...]:
    """Return the studies that a name stands for, to be run one after the other; none if it is no preset's name.

    Args:
        name: Such as "text" or "compression".
        modality: "text", "speech" or "vision", where a preset has studies in each; text by default.

    Raises:
        InputError: If the modality is unknown.
    """
    if modality is not None:
        check_choice("modality", modality, MODALITIES)
    if name in COMPARISONS:
        return COMPARISONS[name][modality or MODALITIES[0]]
    return (PRESETS[name],) if name in PRESETS else ()


def all_presets() -> tuple[Study, ...]:
    """Return every study that has a name."""
    return (*PRESETS.values(), *(each for kind in COMPARISONS.values() for found in kind.values() for each in found))
