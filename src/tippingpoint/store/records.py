"""Outcomes, breakdowns and environments as texts of JSON, and back; a text may be a stranger's or damaged."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np

from tippingpoint.analysis.breakdown import DIRECTIONS, Breakdown
from tippingpoint.errors import StoreError
from tippingpoint.measurement import FAILURE_KINDS, Environment, Failure, Measurement, Outcome
from tippingpoint.store.file import UnreadableError
from tippingpoint.workload import Subject

_Record = TypeVar("_Record", Measurement, Failure, Breakdown)

OK = "ok"
_MOST = 2**63
# What a call may take, in seconds, and the most that any other number with a fraction may be.
_SHORTEST_S, _LONGEST_S, _LARGEST = 1e-12, 1e12, 1e24


@cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def session_digest(measured_at: str, seconds: float, place: str, rows: Sequence[Sequence[str]]) -> str:
    """Return 16 hexadecimal digits of a session.

    Args:
        measured_at: When it was written.
        seconds: What it took.
        place: Where it was measured.
        rows: Environment, status and record of each of its outcomes, in order.
    """
    # A minus before 0 does not come back from a file.
    return _digest([measured_at, repr(float(seconds) + 0.0), place, *map(list, rows)])


def breakdown_digest(measured_at: str, environment: str, status: str, record: str) -> str:
    """Return 16 hexadecimal digits of a breakdown: of all that is written of it but its label."""
    return _digest([measured_at, environment, status, record])


def _digest(told: list[Any]) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def dump_environment(environment: Environment) -> str:
    """Return what is written of an environment."""
    return json.dumps(asdict(environment))


def load_environment(record: str, fingerprint: str | None = None) -> Environment:
    """Return an environment as it was written.

    Args:
        record: The text.
        fingerprint: What it must have; None where an earlier version made other ones.

    Raises:
        UnreadableError: If it is none, or not the one that was written.
    """
    try:
        found = _adapter(Environment).validate_json(record, strict=True)
    except (ValueError, TypeError) as error:
        raise UnreadableError from error
    _check_numbers(found)
    if fingerprint not in (None, found.fingerprint):
        raise UnreadableError(f"an environment is not {fingerprint}")
    return found


def dump(outcome: Outcome | Breakdown) -> tuple[str, str]:
    """Return the status of an outcome, and what is written of it beside its environment.

    Raises:
        StoreError: If it could not be read back, because a number in it is none: one such record would make the
            whole file unreadable.
    """
    status = outcome.kind if isinstance(outcome, Failure) else OK
    record = _adapter(type(outcome)).dump_json(outcome, exclude={"environment"}).decode()
    kind: Any = type(outcome)
    try:
        if load(kind, record, outcome.environment, dump_environment(outcome.environment)) != outcome:
            raise UnreadableError("it would come back as something else")
    except UnreadableError as error:
        reason = error.__cause__ or error
        raise StoreError(f"what was measured of {outcome.workload} cannot be stored: {reason}") from error
    return status, record


def kind_of(status: str, fine: type[Measurement] | type[Breakdown]) -> type[Any]:
    """Return what a row with this status holds, where `fine` is what one with nothing wrong does.

    Raises:
        UnreadableError: If no row has such a status.
    """
    if status not in (OK, *FAILURE_KINDS):
        raise UnreadableError(f"a status {status!r}")
    return fine if status == OK else Failure


def load(kind: type[_Record], record: str, environment: Environment, environment_record: str) -> _Record:
    """Return what a text holds.

    Args:
        kind: What it must be.
        record: The text.
        environment: Of it.
        environment_record: The same as a text.

    Raises:
        UnreadableError: If it is something else, or a number in it cannot be.
    """
    if not (isinstance(record, str) and record.startswith("{") and record.endswith("}")):
        raise UnreadableError
    whole = f'{record[:-1]}{"," if len(record) > 2 else ""}"environment":{environment_record}}}'
    try:
        # Of a key that stands twice the last one counts. Strict, so that "3" is not taken for a number.
        found: Any = replace(_adapter(kind).validate_json(whole, strict=True), environment=environment)
        _check_numbers(found)
        _CHECKS[kind](found)
    except (ValueError, TypeError, OverflowError) as error:
        raise UnreadableError from error
    return found


def _check_numbers(value: object) -> None:
    """See that whole numbers are counts that fit into 64 bits, and that others are finite and not absurd."""
    if isinstance(value, float):
        if not abs(value) <= _LARGEST:
            raise UnreadableError(f"a number is {value}")
    elif isinstance(value, int):
        if not 0 <= value < _MOST:
            raise UnreadableError(f"a count is {value}")
    elif isinstance(value, tuple):
        for each in value:
            _check_numbers(each)
    elif is_dataclass(value) and not isinstance(value, Subject):
        for name in _names(type(value)):
            _check_numbers(getattr(value, name))


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def check_duration(value: object, *, least: float = _SHORTEST_S) -> None:
    """See that something is seconds, by default such that something can be divided by them.

    Raises:
        UnreadableError: If it is not.
    """
    if not isinstance(value, int | float) or not least <= value <= _LONGEST_S:
        raise UnreadableError(f"a duration is {value!r}")


def check_seconds(seconds: float) -> float:
    """Return what a session took, if it can be stored.

    Raises:
        StoreError: If nobody could read it back.
    """
    try:
        check_duration(seconds, least=0.0)
    except UnreadableError as error:
        raise StoreError(f"a session of {seconds!r} seconds cannot be stored") from error
    return seconds


def _check_durations(values: Iterable[float]) -> None:
    for value in values:
        check_duration(value)


def _check_measurement(found: Measurement) -> None:
    if not found.counted or not found.warm_ups_s or not found.warm_ups_s[0]:
        raise UnreadableError("nothing was timed")
    if any(sample.calls < 1 for sample in found.samples):
        raise UnreadableError("a block has no calls")
    _check_durations(sample.per_call_s for sample in found.samples)
    if any(sample.device_seconds is not None and sample.device_seconds < 0 for sample in found.samples):
        raise UnreadableError("a device that went back in time")
    _check_durations(seconds for process in found.warm_ups_s for seconds in process)
    if found.energy and found.energy.joules_per_call is not None and found.energy.calls < 1:
        raise UnreadableError("energy of no calls")
    if found.peaks and not min(found.peaks.flops_per_s, found.peaks.bytes_per_s) > 0:
        raise UnreadableError("a machine that does nothing")
    if any(size < 1 or not rate > 0 for size, rate in found.batch_curve):
        raise UnreadableError("a batch without throughput")
    _check_memory(found)


def _check_memory(found: Measurement | Breakdown) -> None:
    if found.memory and found.memory.peak_bytes < 1:
        raise UnreadableError("a peak of nothing")


def _check_failure(found: Failure) -> None:
    if found.kind not in FAILURE_KINDS:
        raise UnreadableError(f"a failure of the kind {found.kind!r}")


def _check_breakdown(found: Breakdown) -> None:
    _check_durations(found.plain_s)
    rounds = len(found.plain_s)
    series = [found.clocked_s, found.between_s, *(each.seconds for each in found.components)]
    if not rounds or not found.components or any(len(each) != rounds for each in series):
        raise UnreadableError("rounds of unlike number")
    if any(each.direction not in DIRECTIONS for each in found.components):
        raise UnreadableError("a direction that is none")
    explained = np.sum([each.seconds for each in found.components], axis=0) + np.array(found.between_s)
    if not all(math.isfinite(value) and value > 0 for value in explained):
        raise UnreadableError("parts of no time")
    _check_memory(found)


_CHECKS: dict[Any, Any] = {Measurement: _check_measurement, Failure: _check_failure, Breakdown: _check_breakdown}
