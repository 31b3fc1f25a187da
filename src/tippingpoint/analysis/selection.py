"""Which outcomes of a store are meant: filters that say what there is when nothing matches, and sides to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from tippingpoint.errors import AnswerError, InputError
from tippingpoint.measurement import FAILURE_KINDS, Failure, Measurement, Outcome
from tippingpoint.models.catalog import architecture_of, check_subject, is_vanilla
from tippingpoint.store import StoredSession
from tippingpoint.units import format_length
from tippingpoint.workload import Subject

STATUSES = ("ok", "failed", *FAILURE_KINDS)
_GLOB = frozenset("*?[")
# So many values are listed when a filter matches nothing.
_MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class _Test:
    """One filter: what it asks for, whether an outcome has it, and what the outcome has."""

    field: str
    wanted: str
    passes: Callable[[StoredSession, Outcome], bool]
    value: Callable[[StoredSession, Outcome], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Filters over what a store holds; an outcome must pass all of them.

    Attributes:
        subjects: Any of these: a subject, an architecture with all its variants, or a glob such as "bert@*".
        phases: Any of these.
        lengths: From here to there in the native unit, both ends included.
        device: "cpu", "cuda" or "cuda:N", as it was asked for.
        dtype: Of the workload.
        batch_size: Sequences per call.
        status: "ok", "failed" or a kind of failure.
        label: What the run was called.
        study: Key of the study, or its name alone.
        environment: First digits of a fingerprint.
        doubtful: Only measurements with warnings.
    """

    subjects: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()
    lengths: tuple[float, float] | None = None
    device: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    status: str | None = None
    label: str | None = None
    study: str | None = None
    environment: str | None = None
    doubtful: bool = False

    def __post_init__(self) -> None:
        if self.lengths and self.lengths[0] > self.lengths[1]:
            low, high = self.lengths
            raise InputError(f"the shortest length must not be above the longest, got {low:g} and {high:g}")

    def of(self, sessions: Iterable[StoredSession], name: str) -> list[StoredSession]:
        """Return the sessions with the outcomes that pass; sessions that keep none are left out.

        Args:
            sessions: Of a store.
            name: What to call them where nothing passes.

        Raises:
            InputError: If a subject cannot be read.
            AnswerError: If nothing passes, saying what there is instead.
        """
        sessions = list(sessions)
        tests = self._tests()
        kept = []
        for session in sessions:
            outcomes = tuple(o for o in session.outcomes if all(test.passes(session, o) for test in tests))
            if outcomes:
                kept.append(replace(session, outcomes=outcomes))
        if not kept:
            there = [(session, outcome) for session in sessions for outcome in session.outcomes]
            raise AnswerError(f"{name}: {_nothing(tests, there)}")
        return kept

    def _tests(self) -> list[_Test]:
        patterns = [_subject_pattern(text) for text in self.subjects]
        low, high = self.lengths or (0, 0)
        start, status, study = self.environment or "", self.status, self.study
        tests: list[tuple[object, _Test]] = [
            (
                self.subjects,
                _Test(
                    "subject",
                    " or ".join(self.subjects),
                    lambda _, o: any(matches(o.workload.subject) for matches in patterns),
                    lambda _, o: str(o.workload.subject),
                ),
            ),
            (
                self.phases,
                _Test(
                    "phase",
                    " or ".join(self.phases),
                    lambda _, o: o.workload.phase in self.phases,
                    lambda _, o: o.workload.phase,
                ),
            ),
            (
                self.lengths,
                _Test("length", f"{low:g} to {high:g}", lambda _, o: low <= o.workload.length <= high, _length_of),
            ),
            (self.device, _equality("device", self.device, lambda _, o: o.workload.device)),
            (self.dtype, _equality("dtype", self.dtype, lambda _, o: o.workload.dtype)),
            (self.batch_size, _equality("batch size", self.batch_size, lambda _, o: o.workload.batch_size)),
            (self.label is not None, _equality("label", self.label, lambda session, _: session.label)),
            (
                status,
                _Test(
                    "status",
                    str(status),
                    lambda _, o: status == ("failed" if isinstance(o, Failure) else "ok") or status == status_of(o),
                    lambda _, o: status_of(o),
                ),
            ),
            (
                study,
                _Test(
                    "study",
                    str(study),
                    lambda session, _: study in (session.study, session.study.rpartition(" ")[0]),
                    lambda session, _: session.study or "(none)",
                ),
            ),
            (
                start,
                _Test(
                    "environment",
                    start,
                    lambda _, o: o.environment.fingerprint.startswith(start),
                    lambda _, o: o.environment.fingerprint,
                ),
            ),
            (
                self.doubtful,
                _Test(
                    "warnings",
                    "that say anything",
                    lambda _, o: isinstance(o, Measurement) and bool(o.warnings),
                    lambda _, o: "failures" if isinstance(o, Failure) else "measurements without a warning",
                ),
            ),
        ]
        return [test for wanted, test in tests if wanted]


def status_of(outcome: Outcome) -> str:
    """Return "ok", or the kind of failure."""
    return "ok" if isinstance(outcome, Measurement) else outcome.kind


def side(sessions: Iterable[StoredSession], name: str) -> list[StoredSession]:
    """Return the sessions with this label; where none has it, those of the environment whose fingerprint begins so.

    Raises:
        InputError: If there is neither, or several environments begin so.
    """
    sessions = list(sessions)
    labelled = [session for session in sessions if session.label == name]
    if labelled:
        return labelled
    if not name or not _fingerprints(sessions, name):
        labels = ", ".join(dict.fromkeys(session.label or "(none)" for session in sessions)) or "(none)"
        raise InputError(
            f"no run is labelled {name!r} and no environment begins with it; there are labels {labels} and "
            f"environments {', '.join(_fingerprints(sessions))}"
        )
    return of_environment(sessions, name)


def of_environment(sessions: Iterable[StoredSession], start: str) -> list[StoredSession]:
    """Return the sessions with the outcomes of the one environment whose fingerprint begins with `start`.

    Raises:
        InputError: If none or several begin so.
    """
    sessions = list(sessions)
    found = _fingerprints(sessions, start)
    if len(found) != 1:
        what = "no environment begins" if not found else f"{len(found)} environments begin"
        raise InputError(f"{what} with {start!r}; there are {', '.join(found or _fingerprints(sessions))}")
    return Selection(environment=found[0]).of(sessions, found[0])


def _fingerprints(sessions: Iterable[StoredSession], start: str = "") -> list[str]:
    found = dict.fromkeys(o.environment.fingerprint for session in sessions for o in session.outcomes)
    return [fingerprint for fingerprint in found if fingerprint.startswith(start)]


def _subject_pattern(text: str) -> Callable[[Subject], bool]:
    """Return what tells whether a subject is meant.

    An architecture means all its subjects; `bert@sdpa` means `bert` alone as well, which is the same thing.

    Raises:
        InputError: If it is no subject.
    """
    if _GLOB & set(text):
        return lambda subject: fnmatchcase(str(subject), text)
    wanted = Subject.parse(text)
    if not wanted.variants:
        return lambda subject: subject.architecture == wanted.architecture
    wanted = check_subject(wanted)
    fused = str(wanted) == f"{wanted.architecture}@sdpa" and is_vanilla(wanted)
    return lambda subject: subject == wanted or (fused and subject == wanted.plain)


def _equality(field: str, wanted: object, value: Callable[[StoredSession, Outcome], object]) -> _Test:
    return _Test(
        field,
        str(wanted) or "(none)",
        lambda session, outcome: value(session, outcome) == wanted,
        lambda session, outcome: str(value(session, outcome)) or "(none)",
    )


def _length_of(_: StoredSession, outcome: Outcome) -> str:
    return format_length(outcome.workload.length, architecture_of(outcome.workload.subject).unit)


def _nothing(tests: Sequence[_Test], outcomes: Sequence[tuple[StoredSession, Outcome]]) -> str:
    """Return why nothing passed: the filters that nothing passes alone, or all of them, and what there is."""
    if not outcomes:
        return "there are no results yet; measure something first"
    alone = [test for test in tests if not any(test.passes(*outcome) for outcome in outcomes)]
    parts = []
    for test in alone or tests:
        values = list(dict.fromkeys(test.value(*outcome) for outcome in outcomes))
        listed = ", ".join(values[:_MOST_LISTED]) + (", ..." if len(values) > _MOST_LISTED else "")
        parts.append(
            f"nothing has {test.field} {test.wanted}; there is {listed}" if alone else f"{test.field} {listed}"
        )
    if alone:
        return "; ".join(parts)
    wanted = ", ".join(f"{test.field} {test.wanted}" for test in tests)
    return f"nothing has all of {wanted} at once; there is {'; '.join(parts)}"
