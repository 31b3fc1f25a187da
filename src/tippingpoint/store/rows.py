"""Flat rows of plain values, for tables: of outcomes, timed blocks, environments and the parts of calls.

All rows of a kind have the same keys; what there is not is None. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from tippingpoint.analysis.breakdown import Breakdown
from tippingpoint.machine import Conditions
from tippingpoint.measurement import Environment, Failure, Measurement, Outcome
from tippingpoint.workload import Workload

if TYPE_CHECKING:
    from tippingpoint.store.reading import StoredBreakdown, StoredSession

Row = dict[str, Any]

_OBSERVED = (
    "executed_positions",
    "latency_s",
    "latency_low_s",
    "latency_high_s",
    "first_call_s",
    "samples",
    "processes",
    "spread",
    "sequences_per_s",
    "positions_per_s",
    "peak_bytes",
    "weights_bytes",
    "activations_bytes",
    "flops",
    "algorithmic_flops",
    "bytes_accessed",
    "flops_per_s",
    "joules_per_call",
    "parameters",
    "attention",
)
_OF_A_COMPONENT = (
    "group",
    "name",
    "layer",
    "direction",
    "seconds",
    "flops",
    "bytes_accessed",
    "held_bytes",
    "parameters",
)


def outcome_row(session: StoredSession, outcome: Outcome) -> Row:
    """Return one row for an outcome; what a failure does not have is None."""
    failed = isinstance(outcome, Failure)
    return {
        "subject": str(outcome.workload.subject),
        "length": float(outcome.workload.length),
        "positions": outcome.positions,
        **_setting(outcome.workload),
        "status": outcome.kind if failed else "ok",
        "message": outcome.message if failed else None,
        **(dict.fromkeys(_OBSERVED) if failed else _observed(outcome)),
        **_origin(session, outcome),
    }


def outcome_rows(session: StoredSession, outcome: Outcome) -> Iterator[Row]:
    """Return the one row of an outcome."""
    yield outcome_row(session, outcome)


def sample_rows(session: StoredSession, outcome: Outcome) -> Iterator[Row]:
    """Return one row for each timed block of an outcome, in order; none for a failure."""
    if isinstance(outcome, Failure):
        return
    workload = outcome.workload
    for sample in outcome.samples:
        timed = {
            "process": sample.process,
            "round": sample.round,
            "order": sample.order,
            "started_s": sample.started_s,
            "calls": sample.calls,
            "seconds": sample.seconds,
            "per_call_s": sample.per_call_s,
            "device_seconds": sample.device_seconds,
            "repeated": sample.repeated,
        }
        yield {
            "subject": str(workload.subject),
            "length": float(workload.length),
            **_setting(workload),
            **timed,
            **asdict(sample.conditions or Conditions()),
            **_origin(session, outcome),
        }


def environment_row(environment: Environment) -> Row:
    """Return one row for an environment; lists are one text each."""
    told = {field.name: getattr(environment, field.name) for field in fields(environment)}
    return {"environment": environment.fingerprint, **{name: _plain(value) for name, value in told.items()}}


def breakdown_rows(stored: StoredBreakdown) -> Iterator[Row]:
    """Return one row for each component of a call, by layer and direction; one for a call that failed."""
    found = stored.found
    failed = isinstance(found, Failure)
    call = {
        "subject": str(found.workload.subject),
        "length": float(found.workload.length),
        "positions": found.positions,
        **_setting(found.workload),
        "status": found.kind if failed else "ok",
        "message": found.message if failed else None,
        "whole_s": None if failed else found.whole_s,
        "between_operators_s": None if failed else found.between_operators_s,
    }
    origin = {
        "label": stored.label,
        "measured_at": stored.measured_at,
        "environment": found.environment.fingerprint,
    }
    parts: list[Row] = [dict.fromkeys(_OF_A_COMPONENT)] if failed else _components(found)
    for part in parts:
        yield {**call, **part, **origin}


def _components(found: Breakdown) -> list[Row]:
    return [
        {name: getattr(each, name) for name in _OF_A_COMPONENT} | {"seconds": found.typical_s(each.seconds)}
        for each in found.components
    ]


def _setting(workload: Workload) -> Row:
    """Return what a workload is beside its subject and length."""
    return {
        "batch_size": workload.batch_size,
        "phase": workload.phase,
        **workload.columns,
        "affinity": None if workload.affinity is None else _plain(workload.affinity),
    }


def _observed(outcome: Measurement) -> Row:
    low, high = outcome.latency_interval_s
    memory, flops = outcome.memory, outcome.flops
    values = (
        outcome.executed_positions,
        outcome.latency_s,
        low,
        high,
        outcome.first_call_s,
        len(outcome.counted),
        outcome.process_count,
        outcome.spread,
        outcome.sequences_per_s,
        outcome.positions_per_s,
        memory.peak_bytes if memory else None,
        memory.weights_bytes if memory else None,
        memory.activations_bytes if memory else None,
        flops.total if flops else None,
        flops.algorithmic if flops else None,
        flops.bytes_accessed if flops else None,
        outcome.flops_per_s,
        outcome.energy.joules_per_call if outcome.energy else None,
        outcome.parameters,
        outcome.attention,
    )
    return dict(zip(_OBSERVED, values, strict=True))


def _origin(session: StoredSession, outcome: Outcome) -> Row:
    """Return who asked for an outcome, when and where."""
    return {
        "study": session.study,
        "label": session.label,
        "session": outcome.session,
        "measured_at": session.measured_at,
        "place": session.place,
        "environment": outcome.environment.fingerprint,
    }


def _plain(value: Any) -> Any:
    """Return a value, or a list of values or of pairs as one text."""
    if not isinstance(value, tuple):
        return value
    return ",".join("=".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value)
