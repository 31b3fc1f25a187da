"""`tippingpoint find`: the tipping point of one pair."""

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
    Repeats,
    Size,
    Target,
    Threads,
    cores,
    length_range,
    names,
)


def command(
    baseline: Annotated[str, typer.Argument(help="The subject to beat, such as bert.")],
    variant: Annotated[str, typer.Argument(help="The subject that may be better, such as bert@local:window=128.")],
    lengths: Annotated[str, typer.Option(help="SHORTEST:LONGEST length to consider, in the native unit.")],
    metric: Annotated[str, typer.Option(help="Comma-separated: latency, throughput, peak_memory.")] = "latency",
    phase: Annotated[str, typer.Option(help="Comma-separated: inference, training.")] = "inference",
    batch_size: Annotated[int, typer.Option(help="Sequences per call (latency and peak memory).")] = 1,
    precision: Annotated[str, typer.Option(help="How narrow the bracket should become.")] = "10%",
    budget: Budget = "5m",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    affinity: Affinity = None,
    compile_: Compile = False,
    size: Size = "base",
    target: Target = "2%",
    repeats: Repeats = 1,
    store: Annotated[Path | None, typer.Option(help="Keep the results in this file and use what is in it.")] = None,
    label: Label = "",
    json: Json = False,
) -> None:
    """Find the length from which a variant stays better than a baseline.

    Example: tippingpoint find bert nystromformer --lengths 128:1024 --size tiny --budget 20s
    """
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.store import Store
    from tippingpoint.study.run import pair_study, run_study
    from tippingpoint.units import parse_duration, parse_fraction
    from tippingpoint.workload import METRICS, PHASES

    study = pair_study(
        baseline,
        variant,
        lengths=length_range(lengths),
        metrics=names(metric, "metric", METRICS),
        phases=names(phase, "phase", PHASES),
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        threads=threads,
        size=size,
        compiled=compile_,
        affinity=cores(affinity),
        budget_s=parse_duration(budget),
        precision=parse_fraction(precision),
        target=parse_fraction(target),
        repeats=repeats,
    )
    with Store(store or ":memory:") as opened:
        result = run_study(study, opened, label=label, progress=progress)
    if json:
        show_json(result.tipping_points)
        return
    for point in result.tipping_points:
        show(str(point))
