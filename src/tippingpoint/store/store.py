"""A store of results: sessions are written whole as soon as they exist, and read whole or not at all.

A study that is killed loses at most the session it was in. Environments are stored once each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from tippingpoint.analysis.breakdown import Breakdown
from tippingpoint.errors import AnswerError, StoreError
from tippingpoint.measurement import Environment, Failure, Outcome
from tippingpoint.store.file import PATIENCE_S, check_exists, connect, explained, transaction
from tippingpoint.store.reading import (
    BREAKDOWN,
    HEADER,
    Headers,
    RawSession,
    StoredBreakdown,
    StoredSession,
    breakdown_numbers,
    decoded_breakdown,
    read_breakdowns,
    read_environments,
    read_headers,
    read_outcomes,
)
from tippingpoint.store.records import breakdown_digest, check_seconds, dump, dump_environment, session_digest
from tippingpoint.store.rows import Row, breakdown_rows, environment_row, outcome_rows, sample_rows
from tippingpoint.store.schema import bring_up_to_date, copy_up_to_date
from tippingpoint.units import format_items
from tippingpoint.workload import Workload, check_choice

TABLES = ("outcomes", "samples", "environments", "breakdowns")
# Sessions and breakdowns that are read in one transaction.
_AT_A_TIME = 100


class Store:
    """Results in one SQLite file. Use as a context manager, or call `close`.

    A file of an earlier version is brought up to date where it may be written to, and is otherwise read as it is.

    Args:
        path: The file; it is created if it does not exist. ":memory:" keeps results until `close`.
        create: False refuses to make a new file.
        patience_s: How long another process that holds the file is waited for.

    Raises:
        StoreError: If the file is no store, comes from a newer version, or cannot be opened.
    """

    def __init__(
        self,
        path: str | PathLike[str] = "tippingpoint.sqlite",
        *,
        create: bool = True,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.path = Path(path)
        in_memory = str(path) == ":memory:"
        if not create:
            check_exists(self.path)
        if not in_memory and not self.path.parent.is_dir():
            raise StoreError(f"the folder {self.path.parent} of the store {self.path.name} does not exist")
        # Sessions never change once they are written, so that each is read once.
        self._read: dict[int, tuple[tuple[Any, ...], StoredSession]] = {}
        self._last = 0
        self._seen: int | None = None
        with self._explained("opened"):
            self._db = connect(path, patience_s=patience_s)
            try:
                self._bring_up_to_date(create)
            except BaseException:
                self._db.close()
                raise

    def _bring_up_to_date(self, create: bool) -> None:
        try:
            bring_up_to_date(self._db, self.path, create=create)
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):
                raise
            copy = copy_up_to_date(self._db, self.path)
            copy.execute("PRAGMA query_only = ON")
            self._db.close()
            self._db = copy

    def _explained(self, doing: str) -> AbstractContextManager[None]:
        return explained(self.path, doing)

    def add(
        self, outcomes: Sequence[Outcome], *, study: str = "", seconds: float = 0.0, label: str = "", place: str = ""
    ) -> None:
        """Write the outcomes of one session, all of them or none.

        Args:
            outcomes: What was measured together.
            study: Key of the study that asked for it.
            seconds: Wall time it took.
            label: What the person calls the run.
            place: Where it was measured, if not on this machine; see `StoredSession`.

        Raises:
            StoreError: If it cannot be written; the file is left as it was.
        """
        # All that takes long comes before the lock.
        outcomes = tuple(outcomes)
        environments = _texts([outcome.environment for outcome in outcomes])
        rows = [(outcome.environment.fingerprint, *dump(outcome)) for outcome in outcomes]
        now = _now()
        digest = session_digest(now, check_seconds(seconds), place, rows)
        with self._explained("written"), transaction(self._db):
            self._add_environments(environments)
            number = self._db.execute(
                f"INSERT INTO sessions ({HEADER}) VALUES (?, ?, ?, ?, ?, ?)",
                (study, label, now, seconds, place, digest),
            ).lastrowid
            self._db.executemany(
                "INSERT INTO outcomes (session, environment, status, record) VALUES (?, ?, ?, ?)",
                [(number, *row) for row in rows],
            )

    def add_breakdowns(self, found: Sequence[Breakdown | Failure], *, label: str = "") -> None:
        """Write breakdowns, all of them or none; nothing that was there before is thrown away.

        Args:
            found: What was broken down, and what could not be.
            label: What the person calls the run.

        Raises:
            StoreError: If it cannot be written; the file is left as it was.
        """
        found = tuple(found)
        environments, now = _texts([each.environment for each in found]), _now()
        rows = []
        for each in found:
            fingerprint, (status, record) = each.environment.fingerprint, dump(each)
            digest = breakdown_digest(now, fingerprint, status, record)
            rows.append((fingerprint, label, now, status, record, digest))
        with self._explained("written"), transaction(self._db):
            self._add_environments(environments)
            self._db.executemany(f"INSERT INTO breakdowns ({BREAKDOWN}) VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _add_environments(self, texts: Mapping[str, str]) -> None:
        """Write environments that are not there yet, within a transaction."""
        self._db.executemany("INSERT OR IGNORE INTO environments VALUES (?, ?)", texts.items())

    def sessions(self, *, environment: str | None = None) -> list[StoredSession]:
        """Return every session, oldest first.

        Args:
            environment: Only outcomes measured in the environment with this fingerprint.

        Raises:
            StoreError: If the file is damaged.
        """
        with self._explained("read"):
            self._read_on()
        found = [session for _, (_, session) in sorted(self._read.items())]
        if environment is not None:
            found = [
                replace(each, outcomes=tuple(o for o in each.outcomes if o.environment.fingerprint == environment))
                for each in found
            ]
        return [session for session in found if session.outcomes]

    def _read_on(self) -> None:
        """Read the sessions that were written since the last time; if another process wrote, those it changed too."""
        with transaction(self._db, "DEFERRED"):
            seen = self._db.execute("PRAGMA data_version").fetchone()[0]
            after = self._last if seen == self._seen else 0
            headers = read_headers(self._db, after=after)
            unread = {n: header for n, header in headers.items() if n not in self._read or header != self._read[n][0]}
            environments = read_environments(self._db) if unread else {}
        if not after:
            # Another process may have taken some out, and put some between.
            for number in self._read.keys() - headers.keys():
                del self._read[number]
        for raw in self._with_outcomes(unread):
            self._read[raw.number] = raw.header, raw.decoded(environments)
        self._last = max(self._read, default=0)
        self._seen = seen

    def _with_outcomes(self, headers: Headers) -> Iterator[RawSession]:
        """Read outcomes of sessions, some at a time, since a writer waits for readers; they never change."""
        numbers = list(headers)
        for begin in range(0, len(numbers), _AT_A_TIME):
            with transaction(self._db, "DEFERRED"):
                found = read_outcomes(self._db, {n: headers[n] for n in numbers[begin : begin + _AT_A_TIME]})
            yield from found

    def each_session(self) -> Iterator[StoredSession]:
        """Read every session that there is now, oldest first, and keep none of them: for stores of any size.

        Raises:
            StoreError: If the file is damaged.
        """
        with self._explained("read"):
            with transaction(self._db, "DEFERRED"):
                headers, environments = read_headers(self._db), read_environments(self._db)
            for raw in self._with_outcomes(headers):
                if raw.rows:
                    yield raw.decoded(environments)

    def each_breakdown(self) -> Iterator[StoredBreakdown]:
        """Read every breakdown that there is now, those that failed included, oldest first, and keep none of them.

        Raises:
            StoreError: If the file is damaged.
        """
        with self._explained("read"):
            with transaction(self._db, "DEFERRED"):
                numbers, environments = breakdown_numbers(self._db), read_environments(self._db)
            for begin in range(0, len(numbers), _AT_A_TIME):
                with transaction(self._db, "DEFERRED"):
                    rows = read_breakdowns(self._db, numbers[begin : begin + _AT_A_TIME])
                yield from (decoded_breakdown(row, environments) for row in rows)

    def breakdowns(self, *, environment: str | None = None, label: str | None = None) -> list[Breakdown]:
        """Return the latest breakdown of each workload in each environment under each label, oldest first.

        One that failed later does not hide it.

        Args:
            environment: Only those of the environment with this fingerprint.
            label: Only those of runs that were called so.

        Raises:
            StoreError: If the file is damaged.
        """
        latest: dict[tuple[Workload, str, str], Breakdown] = {}
        for each in self.every_breakdown():
            found = each.found
            fingerprint = found.environment.fingerprint
            if isinstance(found, Breakdown) and environment in (None, fingerprint) and label in (None, each.label):
                key = (found.workload, fingerprint, each.label)
                latest.pop(key, None)
                latest[key] = found
        return list(latest.values())

    def every_breakdown(self) -> list[StoredBreakdown]:
        """Return all breakdowns that were ever written, those that failed included, oldest first.

        Raises:
            StoreError: If the file is damaged.
        """
        return list(self.each_breakdown())

    def outcomes(self, *, environment: str | None = None) -> list[Outcome]:
        """Return every measurement and failure, oldest first; see `sessions`."""
        return [outcome for session in self.sessions(environment=environment) for outcome in session.outcomes]

    def environments(self) -> dict[str, Environment]:
        """Return the environments that outcomes were measured in by fingerprint, the latest one last."""
        return _latest(self.outcomes())

    def latest_environment(self) -> Environment:
        """Return the environment that was measured in last, for an answer without measuring.

        Raises:
            AnswerError: If there are no outcomes.
            StoreError: If the file is damaged.
        """
        environments = self.environments()
        if not environments:
            raise AnswerError(f"the store {self.path} is empty, and measuring was not allowed")
        return list(environments.values())[-1]

    def measurements(self) -> list[dict[str, Any]]:
        """Return one flat row for each outcome, failures included, for `pandas.DataFrame` or `polars.from_dicts`.

        Every row has the same keys; what a failure does not have is None. Times are in seconds, sizes in bytes.
        """
        return [row for each in self.sessions() for row in each.rows()]

    def rows(self, table: str = "outcomes") -> Iterator[Row]:
        """Return the flat rows of a table, all of which have the same keys; they are read one after the other.

        Args:
            table: "outcomes" (see `measurements`), "samples" (a row for each timed block), "environments" (those that
                were measured in), or "breakdowns" (a row for each component of a call, by layer and direction).

        Raises:
            InputError: If there is no such table.
            StoreError: If the file is damaged.
        """
        check_choice("table", table, TABLES)
        if table == "breakdowns":
            return (row for stored in self.each_breakdown() for row in breakdown_rows(stored))
        if table == "environments":
            return (environment_row(each) for each in self._every_environment())
        of_outcome = outcome_rows if table == "outcomes" else sample_rows
        return (row for each in self.each_session() for outcome in each.outcomes for row in of_outcome(each, outcome))

    def _every_environment(self) -> list[Environment]:
        """Return the environments of outcomes and breakdowns, each once."""
        found = _latest(outcome for session in self.each_session() for outcome in session.outcomes)
        found |= {b.found.environment.fingerprint: b.found.environment for b in self.each_breakdown()}
        return list(found.values())

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        try:
            outcomes, breakdowns = self.outcomes(), len(self.breakdowns())
        except StoreError as error:
            return f"Store({str(self.path)!r}: {error})"
        failed = sum(isinstance(outcome, Failure) for outcome in outcomes)
        subjects = sorted({str(outcome.workload.subject) for outcome in outcomes})
        parts = f", and {format_items(breakdowns, 'breakdown')}" if breakdowns else ""
        return (
            f"Store({str(self.path)!r}: {len(outcomes) - failed} measurements and {failed} failures of "
            f"{', '.join(subjects) or 'no subject yet'}{parts})"
        )

    def _repr_html_(self) -> str:
        from tippingpoint.report.notebook import as_html

        return as_html(self)


@contextmanager
def open_store(store: Store | str | PathLike[str] | None, *, create: bool = True) -> Iterator[Store]:
    """Open what an argument called `store` may be, and close what was opened.

    Args:
        store: A file; None for results that are kept no longer than this; or a store, which stays open.
        create: False refuses to make a new file.

    Raises:
        StoreError: If the file is no store, comes from a newer version, or cannot be opened.
    """
    if isinstance(store, Store):
        yield store
        return
    with Store(":memory:" if store is None else store, create=create) as opened:
        yield opened


def _latest(outcomes: Iterable[Outcome]) -> dict[str, Environment]:
    """Return the environments of outcomes by fingerprint, the one of the last outcome last."""
    latest: dict[str, Environment] = {}
    for outcome in outcomes:
        fingerprint = outcome.environment.fingerprint
        latest.pop(fingerprint, None)
        latest[fingerprint] = outcome.environment
    return latest


def _texts(environments: Sequence[Environment]) -> dict[str, str]:
    """Return what is written of environments, by fingerprint."""
    return {each.fingerprint: dump_environment(each) for each in environments}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
