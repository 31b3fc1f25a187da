"""`tippingpoint profile`: measure subjects at given lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.options import (
    Affinity,
    Budget,
    Compile,
    Device,
    Dtype,
    Json,
    Label,
    Layers,
    Padded,
    Repeats,
    Size,
    Target,
    Threads,
    Width,
    cores,
    counts,
    names,
    numbers,
)


def command(
    subjects: Annotated[list[str], typer.Argument(metavar="SUBJECT...", help="Such as bert or hubert@local.")],
    lengths: Annotated[str, typer.Option(help="Comma-separated lengths in the native unit.")],
    batch_sizes: Annotated[str, typer.Option("--batch-sizes", "--batch-size", help="Sequences per call.")] = "1",
    phase: Annotated[str, typer.Option(help="Comma-separated: inference, training.")] = "inference",
    metric: Annotated[
        str,
        typer.Option(
            help="Comma-separated: latency, peak_memory, flops; throughput looks for the best batch size, energy "
            "reads counters, both take longer."
        ),
    ] = "latency,peak_memory,flops",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    affinity: Affinity = None,
    compile_: Compile = False,
    padded: Padded = False,
    size: Size = "base",
    layers: Layers = None,
    width: Width = None,
    budget: Budget = "30s",
    target: Target = "2%",
    repeats: Repeats = 1,
    store: Annotated[Path | None, typer.Option(help="Also keep the results in this file.")] = None,
    label: Label = "",
    json: Json = False,
) -> None:
    """Measure latency, peak memory and FLOPs of subjects at given lengths, side by side.

    At each length, batch size and phase the subjects are timed in turns, so that drift of the machine hits all of
    them alike; the budget is that of the timed rounds there.

    Example: tippingpoint profile bert nystromformer --lengths 128,256 --size small
    """
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.errors import AnswerError
    from tippingpoint.measurement import Measurement
    from tippingpoint.profiling.device import now
    from tippingpoint.profiling.session import Effort, measure_together, resolve_workload
    from tippingpoint.report.profile import profile_tables, remarks
    from tippingpoint.store import Store
    from tippingpoint.units import parse_duration, parse_fraction
    from tippingpoint.workload import PHASES, PROFILE_METRICS, Workload, check_count

    metrics = names(metric, "metric", PROFILE_METRICS)
    effort = Effort(
        target=parse_fraction(target),
        budget_s=parse_duration(budget),
        repeats=check_count("repeats", repeats),
        energy="energy" in metrics,
    )
    grid = [
        [
            resolve_workload(
                Workload(
                    subject,
                    length,
                    batch_size=batch_size,
                    phase=one_phase,
                    device=device,
                    dtype=dtype,
                    threads=threads,
                    size=size,
                    compiled=compile_,
                    padded=padded,
                    affinity=cores(affinity),
                    layers=layers,
                    width=width,
                )
            )
            for subject in subjects
        ]
        for one_phase in names(phase, "phase", PHASES)
        for batch_size in counts(batch_sizes)
        for length in numbers(lengths)
    ]
    opened = Store(store) if store else None
    outcomes = []
    try:
        for workloads in grid:
            first = workloads[0]
            progress(f"{first.phase} at length {first.length:g}, batch {first.batch_size}")
            begin = now()
            found = measure_together(
                workloads,
                effort=effort,
                largest_batches=[None] * len(workloads) if "throughput" in metrics else None,
                progress=lambda line: progress(f"    {line}"),
            )
            if opened:
                opened.add(found, study="profile", seconds=now() - begin, label=label)
            outcomes += found
    finally:
        if opened:
            opened.close()
    if json:
        show_json(outcomes)
    else:
        environments = {outcome.environment.fingerprint: outcome.environment for outcome in outcomes}
        show(*map(str, environments.values()), "")
        for table in profile_tables(outcomes, metrics):
            show(table, "")
        for line in remarks(outcomes):
            show(line)
    if not any(isinstance(outcome, Measurement) for outcome in outcomes):
        raise AnswerError("nothing could be measured; the reasons stand above")
