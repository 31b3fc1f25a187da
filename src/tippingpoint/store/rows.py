"""Flat rows of plain values, for tables: of outcomes, of timed blocks, of environments, of the parts of a call.

All rows of a kind have the same keys; what there is not is None. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tippingpoint.measurement import Failure, Outcome

if TYPE_CHECKING:
    from tippingpoint.store.reading import StoredSession


def outcome_row(session: StoredSession, outcome: Outcome) -> dict[str, Any]:
    """Return one flat row; see `Store.measurements`."""
    workload = outcome.workload
    row: dict[str, Any] = {
        "subject": str(workload.subject),
        "length": float(workload.length),
        "positions": outcome.positions,
        "batch_size": workload.batch_size,
        "phase": workload.phase,
        **workload.columns,
        "affinity": None if workload.affinity is None else ",".join(map(str, workload.affinity)),
        "status": "ok",
        "message": None,
    }
    observed: dict[str, Any] = dict.fromkeys(
        (
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
    )
    if isinstance(outcome, Failure):
        row |= {"status": outcome.kind, "message": outcome.message}
    else:
        low, high = outcome.latency_interval_s
        observed |= {
            "executed_positions": outcome.executed_positions,
            "latency_s": outcome.latency_s,
            "latency_low_s": low,
            "latency_high_s": high,
            "first_call_s": outcome.first_call_s,
            "samples": len(outcome.counted),
            "processes": outcome.process_count,
            "spread": outcome.spread,
            "sequences_per_s": outcome.sequences_per_s,
            "positions_per_s": outcome.positions_per_s,
            "peak_bytes": outcome.memory.peak_bytes if outcome.memory else None,
            "weights_bytes": outcome.memory.weights_bytes if outcome.memory else None,
            "activations_bytes": outcome.memory.activations_bytes if outcome.memory else None,
            "flops": outcome.flops.total if outcome.flops else None,
            "algorithmic_flops": outcome.flops.algorithmic if outcome.flops else None,
            "bytes_accessed": outcome.flops.bytes_accessed if outcome.flops else None,
            "flops_per_s": outcome.flops_per_s,
            "joules_per_call": outcome.energy.joules_per_call if outcome.energy else None,
            "parameters": outcome.parameters,
            "attention": outcome.attention,
        }
    return {
        **row,
        **observed,
        "study": session.study,
        "label": session.label,
        "session": outcome.session,
        "measured_at": session.measured_at,
        "place": session.place,
        "environment": outcome.environment.fingerprint,
    }
