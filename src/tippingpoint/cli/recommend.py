"""`tippingpoint recommend`: which encoder to use for a person's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.lengths import Column, Jobs, MaxLength, Modality, Paths, Plain, SampleSize, Tokenizer, read
from tippingpoint.cli.options import BatchingPolicy, Budget, Device, Dtype, Json, Phase, Size, StorePath, Threads


def command(
    paths: Paths,
    modality: Modality = None,
    objective: Annotated[
        str,
        typer.Option(help="latency (mean), latency_p50, latency_p95, latency_p99, throughput or memory."),
    ] = "latency",
    constraint: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as 'peak_memory<=4GiB', 'latency<=200ms' (95th percentile), 'latency_p99<=1s', "
            "'throughput>=5'; may be repeated."
        ),
    ] = None,
    batching: BatchingPolicy = "one",
    switch: Annotated[
        bool, typer.Option("--switch", help="Look for two models too: one up to a length, another above it.")
    ] = False,
    candidates: Annotated[
        str | None,
        typer.Option(help="Subjects to choose from, separated by spaces; the preset's by default."),
    ] = None,
    column: Column = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    plain: Plain = False,
    sample: SampleSize = None,
    jobs: Jobs = None,
    phase: Phase = "inference",
    budget: Budget = "5m",
    measure: Annotated[bool, typer.Option(help="Measure what is missing, or answer from the store alone.")] = True,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    size: Size = "base",
    store: StorePath = Path("tippingpoint.sqlite"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the answer too: .md, or .json with everything.")
    ] = None,
    json: Json = False,
) -> None:
    """Say which encoder to use for your own files, from which length on another pays, and why.

    Example: tippingpoint recommend README.md docs --size tiny --budget 20s
    """
    from tippingpoint.analysis.batching import Batching
    from tippingpoint.analysis.constraint import OBJECTIVES, Constraint
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.report.recommendation import check_output, write_recommendation
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
    from tippingpoint.workload import Subject, check_choice

    wanted = check_choice("objective", "peak_memory" if objective == "memory" else objective, OBJECTIVES)
    policy = Batching.parse(batching)
    # Before minutes of measuring.
    target = None if output is None else check_output(output)
    bounds = [Constraint.parse(text) for text in constraint or ()]
    chosen = [Subject.parse(text) for text in candidates.split()] if candidates else None
    data = read(paths, modality, column, tokenizer, max_length, plain, sample, jobs)
    if not json:
        show(lengths_table(data), percentiles_line(data), "")
    with Store(store, create=measure) as opened:
        answer = recommend(
            data,
            candidates=chosen,
            objective=wanted,
            constraints=bounds,
            batching=policy,
            switch=switch,
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
    if target is not None:
        write_recommendation(answer, target)
        progress(f"wrote {target}")
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
    for change in answer.changes:
        show(f"would change it: {change}")
    for note in answer.notes:
        show(f"note: {note}")
