"""Plain data for `--json`: what JSON can hold, and nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tippingpoint.analysis.batching import Batching
from tippingpoint.analysis.breakdown import Breakdown
from tippingpoint.analysis.comparison import ComparisonPoint
from tippingpoint.analysis.constraint import Constraint
from tippingpoint.analysis.recommend import Recommendation
from tippingpoint.data import LengthData
from tippingpoint.measurement import Failure, Measurement
from tippingpoint.workload import Subject

_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


def plain(value: Any) -> Any:
    """Return a record as dictionaries, lists, texts and finite numbers; derived statistics included.

    An infinite ratio (one side ran out of memory) becomes None; its point says so by `censored`.
    """
    if isinstance(value, Subject | Constraint | Batching):
        return str(value)
    if isinstance(value, ComparisonPoint):
        return plain(
            {
                "length": value.length,
                "ratio": value.ratio,
                "interval": value.interval,
                "rounds": len(value.log_ratios),
                "censored": value.censored,
            }
        )
    if isinstance(value, Breakdown):
        return breakdown_record(value)
    if isinstance(value, LengthData):
        return lengths_record(value)
    if isinstance(value, Measurement | Failure):
        return outcome_record(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        record = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {**record, "reason": value.reason} if isinstance(value, Recommendation) else record
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def outcome_record(outcome: Measurement | Failure) -> dict[str, Any]:
    """Return a measurement with its statistics, or a failure."""
    record: dict[str, Any] = {
        field.name: plain(getattr(outcome, field.name)) for field in dataclasses.fields(outcome)
    }
    record["fingerprint"] = outcome.environment.fingerprint
    if isinstance(outcome, Failure):
        return {**record, "status": outcome.kind}
    outliers = {id(sample) for sample in outcome.outliers}
    return {
        **record,
        "status": "ok",
        "latency_s": outcome.latency_s,
        "latency_interval_s": list(outcome.latency_interval_s),
        "spread": outcome.spread,
        # Places of the samples beyond Tukey's fences; they count all the same.
        "outliers": [place for place, sample in enumerate(outcome.samples) if id(sample) in outliers],
        "first_call_s": outcome.first_call_s,
        "sequences_per_s": outcome.sequences_per_s,
        "positions_per_s": outcome.positions_per_s,
        "activations_bytes": outcome.memory.activations_bytes if outcome.memory else None,
        "flops_per_s": outcome.flops_per_s,
        "share_of_peak": outcome.share_of_peak,
        "share_of_bandwidth": outcome.share_of_bandwidth,
        "warnings": list(outcome.warnings),
    }


def breakdown_record(found: Breakdown) -> dict[str, Any]:
    """Return a breakdown with what follows from it."""
    record: dict[str, Any] = {field.name: plain(getattr(found, field.name)) for field in dataclasses.fields(found)}
    return {
        **record,
        "fingerprint": found.environment.fingerprint,
        "status": "ok",
        "kept": list(found.kept),
        "whole_s": found.whole_s,
        "between_operators_s": found.between_operators_s,
        "unexplained_s": found.unexplained_s,
        "closure": found.closure,
        "closure_interval": list(found.closure_interval),
        "overhead": found.overhead,
        "most_speed_up": found.most_speed_up(),
        "most_speed_up_with_projections": found.most_speed_up(projections=True),
        "groups": plain(found.groups()),
        "rows": plain(found.rows()),
        "warnings": list(found.warnings),
    }


def lengths_record(data: LengthData) -> dict[str, Any]:
    """Return the summary of a data set's lengths, without one number for each item."""
    return {
        "modality": data.modality,
        "unit": data.unit,
        "count": data.count,
        "population": data.population,
        "sampling_error": data.sampling_error,
        "method": data.method,
        "estimated": data.estimated,
        "sources": list(data.sources),
        "minimum": data.minimum,
        "maximum": data.maximum,
        "mean": data.mean,
        "percentiles": {str(p): data.percentile(p) for p in _PERCENTILES},
        "histogram": [{"low": low, "high": high, "count": count} for low, high, count in data.histogram()],
        "skipped_count": data.skipped_count,
        "skipped_reasons": dict(data.skipped_reasons),
        "skipped": [{"path": skipped.path, "reason": skipped.reason} for skipped in data.skipped],
    }
