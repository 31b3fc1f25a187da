"""What a race tells as numbers: costs against length, ratios over its baselines, and where its subjects failed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tippingpoint.analysis.cost import cost_curve
from tippingpoint.analysis.winners import Race, SpeedUp
from tippingpoint.measurement import Failure, Measurement, is_best_batch
from tippingpoint.workload import METRICS, Subject

# What a curve may show: FLOPs are counted and not compared.
CURVE_METRICS = (*METRICS, "flops")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Cost at one length, all sessions there together.

    Attributes:
        length: In the native unit.
        positions: The same in sequence positions.
        value: Seconds per batch, sequences per second, bytes or FLOPs.
        low: Lower end of its 95 % interval; the value itself where it was counted.
        high: Upper end of its 95 % interval.
        batch_size: At which it was measured last.
    """

    length: float
    positions: int
    value: float
    low: float
    high: float
    batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Cost of one subject against length.

    Attributes:
        subject: Whose.
        metric: One of `CURVE_METRICS`.
        points: Shortest first; at least one.
    """

    subject: Subject
    metric: str
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedUpPoint:
    """How many times less a subject costs than a baseline at one length.

    Attributes:
        length: In the native unit.
        ratio: Cost of the baseline over cost of the subject; infinite or zero where one of them ran out of memory.
        interval: Its 95 % interval.
        censored: +1 if only the baseline ran out of memory, -1 if only the subject did, 0 otherwise.
    """

    length: float
    ratio: float
    interval: tuple[float, float]
    censored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedUpCurve:
    """How many times less a subject costs than a baseline.

    Attributes:
        baseline: The subject to beat.
        subject: The other one, which may be a baseline itself.
        metric: "latency".
        points: Shortest first.
    """

    baseline: Subject
    subject: Subject
    metric: str
    points: tuple[SpeedUpPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Where a subject failed, and so where its curve may end.

    Attributes:
        subject: Who.
        kind: Of failure.
        length: The shortest at which it failed so.
        message: What happened there.
        count: How many outcomes failed so.
    """

    subject: Subject
    kind: str
    length: float
    message: str
    count: int


def curve_of(race: Race, subject: Subject, metric: str) -> Curve | None:
    """Return the costs of a subject at every length, all sessions there together; None if there is none."""
    mine = [outcome for outcome in race.outcomes if outcome.workload.subject == subject]
    at = {
        outcome.workload.length: outcome
        for outcome in sorted(mine, key=is_best_batch)
        if isinstance(outcome, Measurement) and (metric == "throughput" or not is_best_batch(outcome))
    }
    if metric == "flops":
        rows = [(length, (m.flops.total,) * 3) for length, m in sorted(at.items()) if m.flops]
    else:
        size = race.batch_size
        found = cost_curve(mine, subject, metric=metric, phase=race.phase, batch_size=lambda length: size)
        if found is None:
            return None
        # Costs are those of one sequence; a latency is that of the batch.
        logs = found.log_costs + (math.log(size) if metric == "latency" else 0.0)
        logs = -logs if metric == "throughput" else logs
        rows = list(zip(found.lengths, np.exp(np.percentile(logs, [2.5, 50, 97.5], axis=0)).T.tolist(), strict=True))
    points = tuple(
        CurvePoint(
            length=length,
            positions=at[length].positions,
            value=value,
            low=low,
            high=high,
            batch_size=at[length].workload.batch_size,
        )
        for length, (low, value, high) in rows
    )
    return Curve(subject=subject, metric=metric, points=points) if points else None


def ratios_of(found: SpeedUp) -> SpeedUpCurve:
    """Return ratios as numbers: they take long, and every format asks for them again."""
    points = (
        SpeedUpPoint(length=point.length, ratio=point.ratio, interval=point.interval, censored=point.censored)
        for point in found.points
    )
    return SpeedUpCurve(baseline=found.baseline, subject=found.subject, metric=found.metric, points=tuple(points))


def ends_of(race: Race) -> tuple[End, ...]:
    """Return failures by subject and kind, each with the shortest length at which it happened."""
    found: dict[tuple[Subject, str], list[Failure]] = {}
    for outcome in race.seen:
        if isinstance(outcome, Failure):
            found.setdefault((outcome.workload.subject, outcome.kind), []).append(outcome)
    ends = []
    for (subject, kind), failures in found.items():
        first = min(failures, key=lambda failure: failure.workload.length)
        ends.append(
            End(
                subject=subject,
                kind=kind,
                length=first.workload.length,
                message=first.message,
                count=len(failures),
            )
        )
    return tuple(ends)
