"""`tippingpoint recommend`: which encoder to use for a person's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.lengths import Column, MaxLength, Modality, Paths, Tokenizer, read
from tippingpoint.cli.options import Budget, Device, Dtype, Json, Phase, Size, StorePath, Threads


def command(
    paths: Paths,
    modality: Modality = "text",
    objective: Annotated[str, typer.Option(help="latency, throughput or memory.")] = "latency",
    constraint: Annotated[
        list[str] | None,
        typer.Option(help="Such as 'peak_memory<=4GiB', 'latency<=200ms', 'throughput>=5'; may be repeated."),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(help="Subjects to choose from, separated by spaces; the preset's by default."),
    ] = None,
    column: Column = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    phase: Phase = "inference",
    budget: Budget = "5m",
    measure: Annotated[bool, typer.Option(help="Measure what is missing, or answer from the store alone.")] = True,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    size: Size = "base",
    store: StorePath = Path("tippingpoint.sqlite"),
    json: Json = False,
) -> None:
    """Say which encoder to use for your own files, from which length on another pays, and why.

    Example: tippingpoint recommend README.md docs --size tiny --budget 20s
    """
    from tippingpoint.analysis.recommend import Constraint
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.report.tables import (
        candidates_table,
        lengths_table,
        measurements_table,
        percentiles_line,
        tipping_points_table,
    )
    from tippingpoint.store import Store
    from tippingpoint.study.recommend import recommend
    from tippingpoint.units import parse_duration
    from tippingpoint.workload import METRICS, Subject, check_choice

    wanted = check_choice("objective", "peak_memory" if objective == "memory" else objective, METRICS)
    bounds = [Constraint.parse(text) for text in constraint or ()]
    chosen = [Subject.parse(text) for text in candidates.split()] if candidates else None
    data = read(paths, modality, column, tokenizer, max_length)
    if not json:
        show(lengths_table(data), percentiles_line(data), "")
    with Store(store, create=measure) as opened:
        answer = recommend(
            data,
            candidates=chosen,
            objective=wanted,
            constraints=bounds,
            phase=phase,
            device=device,
            dtype=dtype,
            threads=threads,
            size=size,
            budget_s=parse_duration(budget),
            store=opened,
            measure=measure,
            progress=progress,
        )
        outcomes = opened.outcomes(environment=answer.environment.fingerprint)
    if json:
        show_json(answer)
        return
    subjects = [answer.baseline, *(point.variant for point in answer.tipping_points)]
    ours = [o for o in outcomes if o.workload.shape == size and o.workload.device == device]
    show(f"Measured on {answer.environment}", "")
    show(measurements_table(ours, subjects, phase), "")
    show(tipping_points_table(answer.tipping_points), "")
    show(candidates_table(answer), "")
    show(f"Use {answer.choice}: {answer.reason}")
    for note in answer.notes:
        show(f"note: {note}")
