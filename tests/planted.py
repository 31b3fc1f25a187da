"""A machine that measures nothing: what it returns follows from what it is asked alone, wherever it is asked.

Importable by other processes, such as those of a cluster.
"""

from __future__ import annotations

import fcntl
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from synthetic import ENVIRONMENT, Machine, Noise
from tippingpoint.measurement import Environment, Outcome, session_root
from tippingpoint.study.ledger import study_key
from tippingpoint.study.search import Known, Step
from tippingpoint.workload import Place, Study, Subject

COSTS = {
    "bert": lambda n: 1e-4 * n + 1e-7 * n**2,
    "longformer": lambda n: 2.2e-4 * n,
    "nystromformer": lambda n: 1.6e-4 * n + 5e-9 * n**2,
}


CORE = Place(kind="cpu", cores=1)


def planted_study(place: Place | None, **changes) -> Study:
    """Two pairs in two phases, each searched by itself."""
    fields = {
        "name": "planted",
        "modality": "text",
        "baselines": (Subject("bert"),),
        "variants": (Subject("longformer"), Subject("nystromformer")),
        "lengths": (64, 4096),
        "metrics": ("latency", "peak_memory"),
        "threads": 1,
        "size": "tiny",
        "places": () if place is None else (place,),
        "apart": True,
        "budget_s": 400.0,
    }
    return Study(**{**fields, **changes})


@contextmanager
def _nobody_else_here() -> Iterator[None]:
    """Fail if somebody else measures on this machine, which its folder of locks stands for: it has one socket."""
    mark = Path(os.environ["TIPPINGPOINT_LOCKS"], "measuring")
    mark.parent.mkdir(exist_ok=True)
    with mark.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with its process
        yield


@dataclass(frozen=True)
class PlantedMachine:
    """Answers as a simulated machine does whose noise depends on the question alone.

    Attributes:
        folder: Where each process that is asked leaves a file with its name, if anywhere: PID.
        gate: A file that the second session of every comparison waits for, if anything: so that somebody may be
            sure to come while work is going on.
    """

    folder: str = ""
    gate: str = ""

    def alone(self, study: Study, progress: Callable[[str], None]) -> AbstractContextManager[None]:
        return nullcontext()

    def environment(self, study: Study) -> Environment:
        return ENVIRONMENT

    def measure(
        self, study: Study, step: Step, known: Known, remaining_s: float, progress: Callable[[str], None]
    ) -> tuple[Sequence[Outcome], float]:
        if self.folder:
            Path(self.folder, str(os.getpid())).touch()
        with _nobody_else_here():
            return self._measure(study, step, known)

    def _measure(self, study: Study, step: Step, known: Known) -> tuple[Sequence[Outcome], float]:
        before = {session_root(outcome.session) for outcome in (*known.outcomes, *known.screened)}
        if self.gate and before:
            for _ in range(12_000):
                if Path(self.gate).exists():
                    break
                time.sleep(0.005)
        name = f"{zlib.crc32(study_key(study.replace(places=())).encode()):08x}{len(before):02d}"
        costs = {subject: COSTS[subject.architecture] for subject in study.subjects}
        simulated = Machine(study, costs, noise=Noise(0.02), seed=zlib.crc32(name.encode()))
        outcomes, seconds = simulated.run(step)
        return [
            replace(
                outcome,
                session=outcome.session.replace("0000", name),
                workload=outcome.workload.replace(device=study.device),
            )
            for outcome in outcomes
        ], seconds
