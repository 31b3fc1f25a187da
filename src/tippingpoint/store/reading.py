"""What the tables of a store hold, as records: whole sessions, and nothing that was not written so."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tippingpoint.analysis.breakdown import Breakdown
from tippingpoint.measurement import Environment, Failure, Measurement, Outcome
from tippingpoint.store.file import UnreadableError
from tippingpoint.store.records import (
    breakdown_digest,
    check_duration,
    kind_of,
    load,
    load_environment,
    session_digest,
)
from tippingpoint.store.rows import outcome_row

HEADER = "study, label, measured_at, seconds, place, digest"
BREAKDOWN = "environment, label, measured_at, status, record, digest"
# An environment, and the text that it was written as; by fingerprint.
Environments = Mapping[str, tuple[Environment, str]]
# The columns of `HEADER` of sessions, by their numbers.
Headers = Mapping[int, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class StoredSession:
    """Outcomes that were measured together.

    Attributes:
        study: Key of the study that asked for them.
        label: What the person called the run, such as "before"; empty by default.
        measured_at: When they were written, in UTC, as the machine's clock said; a clock may be set back, so that a
            later session has an earlier time.
        seconds: Wall time they took.
        outcomes: Measurements and failures.
        place: Where it was measured: machine and GPU or socket as a cluster names them, such as "node-17/cuda:3";
            empty for this machine.
    """

    study: str
    label: str
    measured_at: str
    seconds: float
    outcomes: tuple[Outcome, ...]
    place: str = ""

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row for each outcome; see `Store.measurements`."""
        return [outcome_row(self, outcome) for outcome in self.outcomes]


@dataclass(frozen=True, slots=True)
class StoredBreakdown:
    """A breakdown, or what there is instead of one.

    Attributes:
        label: What the person called the run.
        measured_at: When it was written; see `StoredSession`.
        found: What was broken down, or why it could not be.
    """

    label: str
    measured_at: str
    found: Breakdown | Failure


@dataclass(frozen=True, slots=True)
class RawSession:
    """A session as its tables hold it.

    Attributes:
        number: Its place in the file.
        header: The columns of `HEADER`.
        rows: Environment, status and record of each outcome, in order.
    """

    number: int
    header: tuple[Any, ...]
    rows: tuple[tuple[Any, ...], ...]

    def decoded(self, environments: Environments) -> StoredSession:
        """Return what was measured.

        Raises:
            UnreadableError: If it is not what was written, or not all of it.
        """
        study, label, measured_at, seconds, place, told = self.header
        check_texts(study, label, measured_at, place, *(text for row in self.rows for text in row))
        _check_moment(measured_at)
        check_duration(seconds, least=0.0)
        if session_digest(measured_at, seconds, place, self.rows) != told:
            raise UnreadableError(f"session {self.number} is not whole")
        outcomes = tuple(_decoded(row, Measurement, environments) for row in self.rows)
        return StoredSession(study, label, measured_at, float(seconds), outcomes, place)


def read_environments(db: sqlite3.Connection) -> dict[str, tuple[Environment, str]]:
    """Return every environment that is written down, and its text, by fingerprint.

    Raises:
        UnreadableError: If one is not what was written.
    """
    rows = db.execute("SELECT fingerprint, record FROM environments").fetchall()
    return {fingerprint: (load_environment(record, fingerprint), record) for fingerprint, record in rows}


def read_sessions(db: sqlite3.Connection) -> list[RawSession]:
    """Return all sessions, in the order in which they were written.

    Raises:
        UnreadableError: If there are outcomes of none.
    """
    return read_outcomes(db, read_headers(db))


def read_headers(db: sqlite3.Connection, *, after: int = 0) -> Headers:
    """Return the sessions behind the one with this number, without their outcomes, in the order of writing.

    Raises:
        UnreadableError: If there are outcomes of none.
    """
    orphans = "SELECT count(*) FROM outcomes WHERE session > ? AND session NOT IN (SELECT id FROM sessions)"
    if db.execute(orphans, (after,)).fetchone()[0]:
        raise UnreadableError("there are outcomes of no session")
    rows = db.execute(f"SELECT id, {HEADER} FROM sessions WHERE id > ? ORDER BY id", (after,))
    headers = {number: tuple(header) for number, *header in rows}
    _check_numbers(headers)
    return headers


def read_outcomes(db: sqlite3.Connection, headers: Headers) -> list[RawSession]:
    """Return sessions with their outcomes, in the order of these headers, which is that of their numbers."""
    rows: dict[int, list[tuple[Any, ...]]] = {number: [] for number in headers}
    query = "SELECT session, environment, status, record FROM outcomes WHERE session BETWEEN ? AND ? ORDER BY id"
    for session, *row in db.execute(query, (min(rows, default=0), max(rows, default=0))):
        if session in rows:
            rows[session].append(tuple(row))
    return [RawSession(number, header, tuple(rows[number])) for number, header in headers.items()]


def read_breakdowns(db: sqlite3.Connection, numbers: Sequence[int]) -> list[tuple[Any, ...]]:
    """Return the columns of `BREAKDOWN` of those with these numbers, which follow each other."""
    query = f"SELECT {BREAKDOWN} FROM breakdowns WHERE id BETWEEN ? AND ? ORDER BY id"
    return db.execute(query, (min(numbers, default=0), max(numbers, default=0))).fetchall()


def breakdown_numbers(db: sqlite3.Connection) -> list[int]:
    """Return the number of every breakdown, in the order of writing.

    Raises:
        UnreadableError: If one is none.
    """
    numbers = [number for (number,) in db.execute("SELECT id FROM breakdowns ORDER BY id")]
    _check_numbers(numbers)
    return numbers


def _check_numbers(values: Iterable[object]) -> None:
    for value in values:
        if not isinstance(value, int):
            raise UnreadableError(f"a row has the number {value!r}")


def decoded_breakdown(row: tuple[Any, ...], environments: Environments) -> StoredBreakdown:
    """Return what a row of `read_breakdowns` holds.

    Raises:
        UnreadableError: If it is not what was written.
    """
    fingerprint, label, measured_at, status, record, told = row
    check_texts(*row)
    _check_moment(measured_at)
    if breakdown_digest(measured_at, fingerprint, status, record) != told:
        raise UnreadableError("a breakdown is not what was written")
    return StoredBreakdown(label, measured_at, _decoded((fingerprint, status, record), Breakdown, environments))


def _decoded(row: tuple[Any, ...], fine: type[Any], environments: Environments) -> Any:
    fingerprint, status, record = row
    if fingerprint not in environments:
        raise UnreadableError(f"there is no environment {fingerprint}")
    return load(kind_of(status, fine), record, *environments[fingerprint])


def check_texts(*values: object) -> None:
    """See that all are texts.

    Raises:
        UnreadableError: If one is not.
    """
    if not all(isinstance(value, str) for value in values):
        raise UnreadableError("a column is no text")


def _check_moment(text: str) -> None:
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise UnreadableError(f"a moment is {text!r}") from error
