"""What a store holds of a study: the outcomes that bear on it, and the time it has taken."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

from tippingpoint.measurement import Environment, Measurement, Outcome, is_best_batch
from tippingpoint.profiling.memory import activation_bytes
from tippingpoint.store import Store, StoredSession
from tippingpoint.study.search import SCREENING_LAYERS, Known
from tippingpoint.workload import Study, Subject


@cache
def study_key(study: Study) -> str:
    """Return the name under which a study's time is counted: its own, and what it measures.

    A larger budget, a finer precision or other metrics go on with the same study.
    """
    parts = (
        study.subjects,
        study.baselines,
        study.phases,
        study.device,
        study.dtype,
        study.threads,
        study.size,
        study.compiled,
        study.affinity,
    )
    batches = (study.batch_size,) if study.batch_budget is None else ("budget", study.batch_budget)
    batches += ("padded",) * study.padded
    # Only where they are named, so that studies of earlier versions keep their keys.
    batches += ("apart",) * study.apart + (() if study.place is None else (repr(study.place),))
    digest = hashlib.sha256(repr((*parts, *batches)).encode()).hexdigest()[:8]
    return f"{study.name} {digest}"


def sessions_of(study: Study, store: Store, label: str = "") -> list[StoredSession]:
    """Return the sessions that bear on a study, wherever they were measured, oldest first.

    Args:
        study: With subjects resolved.
        store: Where they are.
        label: Only runs that are called so, if it is not empty.
    """
    return [session for session in store.sessions() if label in ("", session.label) and bears_on(study, session)]


def measured_in(sessions: Iterable[StoredSession], environment: Environment) -> list[StoredSession]:
    """Return sessions with only those outcomes that were measured in an environment."""
    wanted, found = environment.fingerprint, []
    for session in sessions:
        own = tuple(outcome for outcome in session.outcomes if outcome.environment.fingerprint == wanted)
        if own:
            found.append(session if own == session.outcomes else replace(session, outcomes=own))
    return found


def bears_on(study: Study, session: StoredSession) -> bool:
    """Whether a session may tell a study something.

    To a pair that is searched apart, only what was measured for it: what others measure meanwhile would make the
    search depend on the order in which they do.
    """
    if study.apart:
        return session.study == study_key(study)
    return any(outcome.workload.subject in study.subjects for outcome in session.outcomes)


def known_from(study: Study, sessions: Iterable[StoredSession]) -> Known:
    """Return what sessions tell a study: the same subjects under the same conditions."""
    found = [outcome for session in sessions for outcome in session.outcomes]
    return Known(
        tuple(outcome for outcome in found if _belongs(study, outcome, (None,))),
        tuple(outcome for outcome in found if _belongs(study, outcome, SCREENING_LAYERS)),
    )


def read_known(study: Study, store: Store, environment: Environment, label: str = "") -> Known:
    """Return what a store knows that bears on a study and was measured in an environment."""
    return known_from(study, measured_in(sessions_of(study, store, label), environment))


def _belongs(study: Study, outcome: Outcome, layers: tuple[int | None, ...]) -> bool:
    """Whether an outcome is of a study's subjects, with some depth, at the study's batch size or at the best one."""
    workload = outcome.workload
    if workload.subject not in study.subjects or workload.phase not in study.phases or workload.layers not in layers:
        return False
    same = study.workload(workload.subject, workload.length, workload.phase).replace(layers=workload.layers)
    return workload == (same.replace(batch_size=workload.batch_size) if is_best_batch(outcome) else same)


def memory_points(study: Study, subject: Subject, phase: str, known: Known) -> list[tuple[int, int]]:
    """Return positions and bytes of activations that were measured of a subject."""
    return [
        (outcome.positions, activation_bytes(outcome.workload, outcome.memory, outcome.parameters))
        for outcome in known.outcomes
        if isinstance(outcome, Measurement)
        and outcome.memory
        and (outcome.workload.subject, outcome.workload.phase) == (subject, phase)
        and outcome.workload.batch_size == study.batch_size_at(outcome.workload.length)
    ]


def seconds_spent(study: Study, sessions: Sequence[StoredSession], label: str = "") -> float:
    """Return what a study has taken so far, wherever it was measured.

    Args:
        study: With subjects resolved.
        sessions: Of any study and any environment.
        label: Only runs that are called so, if it is not empty.
    """
    key = study_key(study)
    return sum(session.seconds for session in sessions if session.study == key and label in ("", session.label))
