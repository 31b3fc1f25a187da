"""At what input length does an efficient Transformer become worth it, on your machine, for your data?

Names are imported when they are first used, so that `import tippingpoint` does not import PyTorch: reports and
recommendations from results measured elsewhere do without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tippingpoint.analysis.batch_map import BatchMap, batch_map
    from tippingpoint.analysis.breakdown import Breakdown
    from tippingpoint.analysis.compare import Comparison, compare
    from tippingpoint.analysis.prediction import Prediction
    from tippingpoint.analysis.recommend import Constraint, Recommendation
    from tippingpoint.analysis.replay import Replay
    from tippingpoint.analysis.tipping_point import TippingPoint
    from tippingpoint.attention.linear import linear_attention
    from tippingpoint.attention.local import local_attention
    from tippingpoint.attention.nystrom import nystrom_attention
    from tippingpoint.attention.pooled import pooled_attention
    from tippingpoint.data import LengthData, read_lengths, write_lengths
    from tippingpoint.errors import (
        AnswerError,
        DataError,
        InputError,
        StoreError,
        TippingPointError,
        UnsupportedError,
    )
    from tippingpoint.measurement import Environment, Failure, Measurement
    from tippingpoint.models.checkpoints import Conversion, convert, load, save
    from tippingpoint.models.long_audio import chunk_activations
    from tippingpoint.models.map_similarity import plan_reuse
    from tippingpoint.models.reuse_plan import ReusePlan
    from tippingpoint.models.sharing import reuse_attention
    from tippingpoint.models.swap import swap_attention, variants_of
    from tippingpoint.profiling.breakdown import breakdown
    from tippingpoint.profiling.session import profile
    from tippingpoint.report.notebook import as_html
    from tippingpoint.store import Store
    from tippingpoint.study.predict import predict
    from tippingpoint.study.recommend import recommend
    from tippingpoint.study.replay import replay
    from tippingpoint.study.run import StudyResult, find_tipping_point, run_study
    from tippingpoint.workload import Study, Subject, Variant, Workload

_HOMES = {
    "analysis.batch_map": ("BatchMap", "batch_map"),
    "analysis.compare": ("Comparison", "compare"),
    "analysis.prediction": ("Prediction",),
    "analysis.recommend": ("Constraint", "Recommendation"),
    "analysis.replay": ("Replay",),
    "analysis.tipping_point": ("TippingPoint",),
    "attention.linear": ("linear_attention",),
    "attention.local": ("local_attention",),
    "attention.nystrom": ("nystrom_attention",),
    "attention.pooled": ("pooled_attention",),
    "analysis.breakdown": ("Breakdown",),
    "data": ("LengthData", "read_lengths", "write_lengths"),
    "errors": (
        "AnswerError",
        "DataError",
        "InputError",
        "StoreError",
        "TippingPointError",
        "UnsupportedError",
    ),
    "measurement": ("Environment", "Failure", "Measurement"),
    "models.checkpoints": ("Conversion", "convert", "load", "save"),
    "models.long_audio": ("chunk_activations",),
    "models.map_similarity": ("plan_reuse",),
    "models.reuse_plan": ("ReusePlan",),
    "models.sharing": ("reuse_attention",),
    "models.swap": ("swap_attention", "variants_of"),
    "profiling.breakdown": ("breakdown",),
    "profiling.session": ("profile",),
    "report.notebook": ("as_html",),
    "store": ("Store",),
    "study.predict": ("predict",),
    "study.recommend": ("recommend",),
    "study.replay": ("replay",),
    "study.run": ("StudyResult", "find_tipping_point", "run_study"),
    "workload": ("Study", "Subject", "Variant", "Workload"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AnswerError",
    "BatchMap",
    "Breakdown",
    "Comparison",
    "Constraint",
    "Conversion",
    "DataError",
    "Environment",
    "Failure",
    "InputError",
    "LengthData",
    "Measurement",
    "Prediction",
    "Recommendation",
    "Replay",
    "ReusePlan",
    "Store",
    "StoreError",
    "Study",
    "StudyResult",
    "Subject",
    "TippingPoint",
    "TippingPointError",
    "UnsupportedError",
    "Variant",
    "Workload",
    "__version__",
    "as_html",
    "batch_map",
    "breakdown",
    "chunk_activations",
    "compare",
    "convert",
    "find_tipping_point",
    "linear_attention",
    "load",
    "local_attention",
    "nystrom_attention",
    "plan_reuse",
    "pooled_attention",
    "predict",
    "profile",
    "read_lengths",
    "recommend",
    "replay",
    "reuse_attention",
    "run_study",
    "save",
    "swap_attention",
    "variants_of",
    "write_lengths",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tippingpoint' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tippingpoint.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
