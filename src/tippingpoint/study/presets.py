"""The studies that `tippingpoint study text|speech|vision` runs: a literal table.

Inference alone, so that five minutes reach far; `--phase inference,training` adds training.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tippingpoint.workload import Study, Subject

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
