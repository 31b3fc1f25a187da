"""Break one call down into parts, in processes of its own.

one process    build | peak memory | path, oracle | exit
another        build | FLOPs, bytes, what is held, by part | warm up |  plain clocked  clocked plain  ...  | exit
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from tippingpoint.analysis.breakdown import Breakdown, Parts
from tippingpoint.errors import InputError
from tippingpoint.measurement import Failure
from tippingpoint.models.components import Patterns
from tippingpoint.profiling.process import WorkerError
from tippingpoint.profiling.session import (
    Arm,
    Effort,
    alone_on_machine,
    measure_alone,
    memory_point,
    resolve_workload,
)
from tippingpoint.workload import Workload

logger = logging.getLogger(__name__)

# Seconds of rounds for one workload.
BUDGET_S = 10.0


def breakdown(
    workload: Workload,
    *,
    patterns: Patterns | None = None,
    budget_s: float = BUDGET_S,
    timeout_s: float = 600.0,
    trace: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Breakdown | Failure:
    """Break a call of a workload down: time, FLOPs, bytes, memory and parameters of its parts, which add up.

    Args:
        workload: What to call.
        patterns: Names for modules of a model of one's own; see `tippingpoint.models.components.parse_patterns`.
        budget_s: Seconds of timed rounds (six are run in any case).
        timeout_s: Give a single step up after this many seconds.
        trace: File for a Chrome trace of one call, with the parts as ranges; Perfetto opens it too.
        progress: Called with one line at a time.

    Returns:
        A `Breakdown`; or a `Failure` if the workload runs out of memory, crashes, takes too long or is unsupported.

    Raises:
        InputError: If the workload is not legal, or compiled: a compiler melts parts into one another; or if there is
            no folder for the trace.
    """
    workload = resolve_workload(workload)
    if workload.compiled:
        raise InputError(
            "a compiled model has no parts to tell apart: torch.compile melts operators of several into one; break "
            "it down without --compile"
        )
    target = None if trace is None else Path(os.path.abspath(trace))
    if target is not None and not target.parent.is_dir():
        raise InputError(
            f"the folder {str(target.parent)!r} of the trace does not exist; create it, or choose another"
        )
    say = progress or (lambda line: logger.info("%s", line))
    arm, session = Arm(workload), uuid.uuid4().hex[:12]
    effort = Effort(budget_s=budget_s, timeout_s=timeout_s)
    parts: Parts | None = None
    with alone_on_machine([arm], say), contextlib.suppress(WorkerError):
        say(f"{arm.name} at {workload.length:g}: peak memory and what really runs")
        alone = measure_alone(arm, (), effort, session)
        with arm.process(effort):
            arm.ask(session, "build", workload, (memory_point(arm, alone),), None)
            say(f"{arm.name} at {workload.length:g}: parts")
            parts = arm.ask(session, "break_down", patterns, budget_s)
            if target is not None:
                arm.ask(session, "trace", str(target), patterns)
        assert parts is not None
        return Breakdown(
            workload=workload,
            environment=alone.environment,
            positions=arm.positions,
            executed_positions=arm.architecture.executed_positions(workload.length),
            parameters=alone.parameters,
            attention=alone.inspection.attention,
            components=parts.components,
            plain_s=parts.plain_s,
            clocked_s=parts.clocked_s,
            between_s=parts.between_s,
            gradients_bytes=parts.gradients_bytes,
            memory=alone.memory,
            peaks=alone.peaks,
            notes=alone.inspection.notes,
        )
    failure = arm.outcomes[0]
    assert isinstance(failure, Failure)
    return failure
