"""`tippingpoint profile`: measure subjects at given lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.options import Budget, Device, Dtype, Json, Phase, Size, Threads, number


def command(
    subjects: Annotated[list[str], typer.Argument(metavar="SUBJECT...", help="Such as bert or hubert@local.")],
    lengths: Annotated[str, typer.Option(help="Comma-separated lengths in the native unit.")],
    batch_size: Annotated[int, typer.Option(help="Sequences per call.")] = 1,
    phase: Phase = "inference",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    size: Size = "base",
    budget: Budget = "30s",
    target: Annotated[str, typer.Option(help="Half-width of the 95 % interval to reach.")] = "2%",
    store: Annotated[Path | None, typer.Option(help="Also keep the results in this file.")] = None,
    json: Json = False,
) -> None:
    """Measure latency, peak memory and FLOPs of subjects at given lengths, side by side.

    The budget is that of the timed rounds at each length.

    Example: tippingpoint profile bert nystromformer --lengths 128,256 --size small
    """
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.errors import AnswerError
    from tippingpoint.measurement import Measurement
    from tippingpoint.profiling.device import now
    from tippingpoint.profiling.session import Effort, measure_together, resolve_workload
    from tippingpoint.report.tables import measurements_table
    from tippingpoint.store import Store
    from tippingpoint.units import parse_duration, parse_fraction
    from tippingpoint.workload import Workload

    effort = Effort(target=parse_fraction(target), budget_s=parse_duration(budget))
    grid = [
        [
            resolve_workload(
                Workload(
                    subject,
                    number(length),
                    batch_size=batch_size,
                    phase=phase,
                    device=device,
                    dtype=dtype,
                    threads=threads,
                    size=size,
                )
            )
            for subject in subjects
        ]
        for length in lengths.split(",")
    ]
    opened = Store(store) if store else None
    outcomes = []
    try:
        for workloads in grid:
            progress(f"at length {workloads[0].length:g}")
            begin = now()
            found = measure_together(workloads, effort=effort, progress=lambda line: progress(f"    {line}"))
            if opened:
                opened.add(found, study="profile", seconds=now() - begin)
            outcomes += found
    finally:
        if opened:
            opened.close()
    if json:
        show_json(outcomes)
    else:
        named = list(dict.fromkeys(workload.subject for workload in grid[0]))
        show(measurements_table(outcomes, named, phase), "")
        for outcome in outcomes:
            show(str(outcome))
    if not any(isinstance(outcome, Measurement) for outcome in outcomes):
        raise AnswerError("nothing could be measured; the reasons stand above")
