"""Results in one SQLite file: versioned, crash-safe, raw samples never thrown away.

A session's outcomes are written in one transaction as soon as they exist, so a study that is killed loses at
most the session it was in. Environments are stored once each.

Schema history
    1   sessions, environments, outcomes
    2   sessions have a label; a measurement has warm-ups of several processes; fingerprints leave defaults out
    3   breakdowns
    4   sessions have a place
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from tippingpoint.analysis.breakdown import Breakdown
from tippingpoint.errors import AnswerError, StoreError
from tippingpoint.measurement import Environment, Failure, Measurement, Outcome
from tippingpoint.units import format_items
from tippingpoint.workload import Workload

_Record = TypeVar("_Record", Measurement | Failure, Breakdown)

SCHEMA_VERSION = 4
# "tipp": tells our files from other programs' SQLite files
_APPLICATION_ID = 0x74697070

_DAMAGED = "it is damaged; keep a copy and start a new one"

_BREAKDOWNS = """
CREATE TABLE breakdowns (
    id INTEGER PRIMARY KEY,
    environment TEXT NOT NULL REFERENCES environments(fingerprint),
    label TEXT NOT NULL,
    measured_at TEXT NOT NULL,
    status TEXT NOT NULL,
    record TEXT NOT NULL
);
"""
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    study TEXT NOT NULL,
    measured_at TEXT NOT NULL,
    seconds REAL NOT NULL,
    label TEXT NOT NULL DEFAULT '',
    place TEXT NOT NULL DEFAULT ''
);
CREATE TABLE environments (
    fingerprint TEXT PRIMARY KEY,
    record TEXT NOT NULL
);
CREATE TABLE outcomes (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL REFERENCES sessions(id),
    environment TEXT NOT NULL REFERENCES environments(fingerprint),
    status TEXT NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX outcomes_by_session ON outcomes(session);
{_BREAKDOWNS}
"""


@dataclass(frozen=True, slots=True)
class StoredSession:
    """Outcomes that were measured together.

    Attributes:
        study: Key of the study that asked for them.
        label: What the person called the run, such as "before"; empty by default.
        measured_at: When they were written, in UTC.
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
        return [_row(self, outcome) for outcome in self.outcomes]


class Store:
    """Results in one SQLite file. Use as a context manager, or call `close`.

    Args:
        path: The file; it is created if it does not exist. ":memory:" keeps results until `close`.
        create: False refuses to make a new file.

    Raises:
        StoreError: If the file is no store, comes from a newer version, or cannot be opened.
    """

    def __init__(self, path: str | PathLike[str] = "tippingpoint.sqlite", *, create: bool = True) -> None:
        self.path = Path(path)
        in_memory = str(path) == ":memory:"
        if not create and not self.path.exists():
            raise StoreError(f"there is no store {self.path}; measure something first, or name another file")
        if not in_memory and not self.path.parent.is_dir():
            raise StoreError(f"the folder {self.path.parent} of the store {self.path.name} does not exist")
        with self._explained("opened"):
            self._db = sqlite3.connect(str(path), timeout=30, isolation_level=None)
            try:
                self._check_schema()
            except BaseException:
                self._db.close()
                raise

    def _check_schema(self) -> None:
        """Make the tables of a new file, and bring those of an older version up to date."""
        with self._transaction("DEFERRED"):
            version = self._schema_version()
        if version == SCHEMA_VERSION:
            return
        with self._transaction():
            # Two processes may open a file at the same moment: whoever comes second finds it done.
            version = self._schema_version()
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
            for step in range(version or SCHEMA_VERSION, SCHEMA_VERSION):
                try:
                    _MIGRATIONS[step](self._db)
                except (ValueError, KeyError) as error:
                    raise _UnreadableError from error
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _schema_version(self) -> int:
        """Return the version of the file's schema, 0 for a new file; ask within a transaction.

        Raises:
            StoreError: If it is no store, or comes from a newer version.
        """
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        tables = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if tables == 0 and version == 0:
            return 0
        if application != _APPLICATION_ID:
            raise StoreError(f"{self.path} is an SQLite file of another program, not a store of results")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} was written by a newer version of tippingpoint (its schema is {version}, this "
                f"version reads up to {SCHEMA_VERSION}); upgrade with `pip install --upgrade tippingpoint`"
            )
        return version

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn SQLite's errors into one sentence that says what to do."""
        try:
            yield
        except sqlite3.Error as error:
            message = str(error)
            hints = {
                "not a database": "it is not an SQLite file; name another file",
                "malformed": _DAMAGED,
                "disk is full": "the disk is full; make room and run the same command again, what was "
                "measured before is kept",
                "readonly": "it cannot be written to; check its permissions",
                "read-only": "it cannot be written to; check its permissions",
                "locked": "another process has been using it for over 30 s",
                "unable to open": "check that it is a file and may be written to",
            }
            hint = next((text for key, text in hints.items() if key in message), message)
            raise StoreError(f"the store {self.path} could not be {doing}: {hint}") from error
        except _UnreadableError as error:
            raise StoreError(f"the store {self.path} could not be {doing}: {_DAMAGED}") from error

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
        with self._explained("written"), self._transaction():
            cursor = self._db.execute(
                "INSERT INTO sessions (study, measured_at, seconds, label, place) VALUES (?, ?, ?, ?, ?)",
                (study, _now(), seconds, label, place),
            )
            for outcome in outcomes:
                self._db.execute(
                    "INSERT INTO outcomes (session, environment, status, record) VALUES (?, ?, ?, ?)",
                    (cursor.lastrowid, self._add_environment(outcome.environment), *_dump(outcome)),
                )

    def add_breakdowns(self, found: Sequence[Breakdown | Failure], *, label: str = "") -> None:
        """Write breakdowns, all of them or none; nothing that was there before is thrown away.

        Args:
            found: What was broken down, and what could not be.
            label: What the person calls the run.

        Raises:
            StoreError: If it cannot be written; the file is left as it was.
        """
        with self._explained("written"), self._transaction():
            for each in found:
                self._db.execute(
                    "INSERT INTO breakdowns (environment, label, measured_at, status, record) VALUES (?, ?, ?, ?, ?)",
                    (self._add_environment(each.environment), label, _now(), *_dump(each)),
                )

    def _add_environment(self, environment: Environment) -> str:
        """Write an environment if it is not there yet, within a transaction; return its fingerprint."""
        record = json.dumps(asdict(environment))
        self._db.execute("INSERT OR IGNORE INTO environments VALUES (?, ?)", (environment.fingerprint, record))
        return environment.fingerprint

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        self._db.execute(f"BEGIN {kind}")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # A commit that fails, because of a reader or a full disk, leaves the transaction open.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def sessions(self, *, environment: str | None = None) -> list[StoredSession]:
        """Return every session, oldest first.

        Args:
            environment: Only outcomes measured in the environment with this fingerprint.

        Raises:
            StoreError: If the file is damaged.
        """
        with self._explained("read"):
            environments = self._environments()
            outcomes: dict[int, list[Outcome]] = {}
            for session, fingerprint, status, record in self._db.execute(
                "SELECT session, environment, status, record FROM outcomes ORDER BY id"
            ):
                if environment in (None, fingerprint):
                    kind = Measurement if status == "ok" else Failure
                    outcome = _load(kind, record, environments.get(fingerprint))
                    outcomes.setdefault(session, []).append(outcome)
            rows = self._db.execute(
                "SELECT id, study, label, measured_at, seconds, place FROM sessions ORDER BY id"
            ).fetchall()
        return [
            StoredSession(study, label, moment, seconds, tuple(outcomes[number]), place)
            for number, study, label, moment, seconds, place in rows
            if number in outcomes
        ]

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
        with self._explained("read"):
            environments = self._environments()
            for fingerprint, name, record in self._db.execute(
                "SELECT environment, label, record FROM breakdowns WHERE status = 'ok' ORDER BY id"
            ):
                if environment in (None, fingerprint) and label in (None, name):
                    found = _load(Breakdown, record, environments.get(fingerprint))
                    key = (found.workload, fingerprint, name)
                    latest.pop(key, None)
                    latest[key] = found
        return list(latest.values())

    def _environments(self) -> dict[str, Environment]:
        """Return every environment that is written down, by fingerprint."""
        rows = self._db.execute("SELECT fingerprint, record FROM environments")
        return {fingerprint: _load_environment(record) for fingerprint, record in rows}

    def outcomes(self, *, environment: str | None = None) -> list[Outcome]:
        """Return every measurement and failure, oldest first; see `sessions`."""
        return [outcome for session in self.sessions(environment=environment) for outcome in session.outcomes]

    def environments(self) -> dict[str, Environment]:
        """Return the environments that outcomes were measured in by fingerprint, the latest one last."""
        latest: dict[str, Environment] = {}
        for outcome in self.outcomes():
            fingerprint = outcome.environment.fingerprint
            latest.pop(fingerprint, None)
            latest[fingerprint] = outcome.environment
        return latest

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
        return [row for session in self.sessions() for row in session.rows()]

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


@cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _dump(outcome: Outcome | Breakdown) -> tuple[str, str]:
    """Return the status of an outcome, and what is written of it beside its environment."""
    status = outcome.kind if isinstance(outcome, Failure) else "ok"
    record = _adapter(type(outcome)).dump_json(outcome, exclude={"environment"})
    return status, record.decode()


class _UnreadableError(Exception):
    """A record is not what this version wrote."""


def _load(kind: type[_Record], record: str, environment: Environment | None) -> _Record:
    if environment is None:
        raise _UnreadableError
    try:
        fields = {**json.loads(record), "environment": environment}
        return _adapter(kind).validate_python(fields)
    except (ValueError, TypeError) as error:
        raise _UnreadableError from error


def _load_environment(record: str) -> Environment:
    try:
        return _adapter(Environment).validate_json(record)
    except ValueError as error:
        raise _UnreadableError from error


def _to_schema_2(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE sessions ADD COLUMN label TEXT NOT NULL DEFAULT ''")
    for number, text in db.execute("SELECT id, record FROM outcomes WHERE status = 'ok'").fetchall():
        record = json.loads(text)
        record["warm_ups_s"] = [record.pop("warm_up_s")]
        db.execute("UPDATE outcomes SET record = ? WHERE id = ?", (json.dumps(record), number))
    for old, text in db.execute("SELECT fingerprint, record FROM environments").fetchall():
        new = _load_environment(text).fingerprint
        db.execute("INSERT OR IGNORE INTO environments VALUES (?, ?)", (new, text))
        db.execute("UPDATE outcomes SET environment = ? WHERE environment = ?", (new, old))
        if new != old:
            db.execute("DELETE FROM environments WHERE fingerprint = ?", (old,))


def _to_schema_3(db: sqlite3.Connection) -> None:
    db.execute(_BREAKDOWNS)


def _to_schema_4(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE sessions ADD COLUMN place TEXT NOT NULL DEFAULT ''")


# By the version they start from.
_MIGRATIONS = {1: _to_schema_2, 2: _to_schema_3, 3: _to_schema_4}


def _row(session: StoredSession, outcome: Outcome) -> dict[str, Any]:
    workload = outcome.workload
    row: dict[str, Any] = {
        "subject": str(workload.subject),
        "length": float(workload.length),
        "positions": outcome.positions,
        "batch_size": workload.batch_size,
        "phase": workload.phase,
        "device": workload.device,
        "dtype": workload.dtype,
        "threads": workload.threads,
        "size": workload.size,
        "layers": workload.layers,
        "width": workload.width,
        "compiled": workload.compiled,
        "padded": workload.padded,
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
