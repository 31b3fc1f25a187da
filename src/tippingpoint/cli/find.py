"""`tippingpoint find`: the tipping point of one pair."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tippingpoint.cli.options import (
    Affinity,
    Budget,
    Compile,
    Device,
    Dtype,
    Json,
    Label,
    Padded,
    Repeats,
    Size,
    Target,
    Threads,
    cores,
    counts,
    length_range,
    names,
)

if TYPE_CHECKING:
    from tippingpoint.analysis.tipping_point import TippingPoint


def command(
    baseline: Annotated[str, typer.Argument(help="The subject to beat, such as bert.")],
    variant: Annotated[str, typer.Argument(help="The subject that may be better, such as bert@local:window=128.")],
    lengths: Annotated[str, typer.Option(help="SHORTEST:LONGEST length to consider, in the native unit.")],
    metric: Annotated[str, typer.Option(help="Comma-separated: latency, throughput, peak_memory.")] = "latency",
    phase: Annotated[str, typer.Option(help="Comma-separated: inference, training.")] = "inference",
    batch_sizes: Annotated[
        str,
        typer.Option(
            "--batch-sizes",
            "--batch-size",
            help="Sequences per call, such as 1,8,32: a tipping point for each, sharing the budget.",
        ),
    ] = "1",
    precision: Annotated[
        str, typer.Option(help="How far its 95 % interval may reach to either side of a tipping point.")
    ] = "10%",
    budget: Budget = "5m",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    affinity: Affinity = None,
    compile_: Compile = False,
    padded: Padded = False,
    size: Size = "base",
    target: Target = "2%",
    repeats: Repeats = 1,
    screening: Annotated[
        bool, typer.Option(help="Let models of 2 and 4 layers tell where to measure (no number is theirs).")
    ] = True,
    map_: Annotated[
        Path | None,
        typer.Option("--map", help="Draw length by batch size into this file: .svg, .png, .pdf or .html."),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Keep the results in this file and use what is in it.")] = None,
    label: Label = "",
    json: Json = False,
) -> None:
    """Find the length from which a variant stays better than a baseline.

    Looks far and wide with shallow models first, then measures the models themselves around the tipping point until
    its interval is as narrow as asked for. With several batch sizes, says how the tipping point moves with them.

    Example: tippingpoint find bert nystromformer --lengths 128:1024 --size tiny --budget 20s
    """
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.errors import InputError
    from tippingpoint.report.figures import check_path
    from tippingpoint.store import Store
    from tippingpoint.study.run import pair_study, run_batches
    from tippingpoint.units import parse_duration, parse_fraction
    from tippingpoint.workload import METRICS, PHASES

    sizes = counts(batch_sizes)
    study = pair_study(
        baseline,
        variant,
        lengths=length_range(lengths),
        metrics=names(metric, "metric", METRICS),
        phases=names(phase, "phase", PHASES),
        device=device,
        dtype=dtype,
        threads=threads,
        size=size,
        compiled=compile_,
        padded=padded,
        affinity=cores(affinity),
        budget_s=parse_duration(budget),
        precision=parse_fraction(precision),
        target=parse_fraction(target),
        repeats=repeats,
        screening=screening,
    )
    if map_:
        check_path(map_)
        if study.metrics == ("throughput",):
            raise InputError("throughput is taken at the best batch size, so it has no map; add --metric latency")
    if study.metrics == ("throughput",) and len(sizes) > 1:
        raise InputError("throughput is taken at the best batch size; leave --batch-sizes out")
    with Store(store or ":memory:") as opened:
        results = run_batches(study, opened, sizes, label=label, progress=progress)
    points = [point for result in results for point in result.tipping_points]
    if json:
        show_json(points)
    else:
        for point in points:
            show(str(point))
    if len(sizes) > 1 or map_:
        for phase_, metric_ in itertools.product(study.phases, study.metrics):
            if metric_ == "throughput":
                continue
            found = [point for point in points if (point.phase, point.metric) == (phase_, metric_)]
            several = len(study.phases) * len(set(study.metrics) - {"throughput"}) > 1
            name = map_ and (map_.with_stem(f"{map_.stem}-{metric_}-{phase_}") if several else map_)
            _show_batches(found, name, quiet=json)


def _show_batches(points: list[TippingPoint], path: Path | None, *, quiet: bool) -> None:
    """Print how a tipping point moves with the batch size, and draw the map."""
    from tippingpoint.analysis.batch_map import batch_map
    from tippingpoint.cli.output import progress, show
    from tippingpoint.report.batch_map import batch_map_chart, batch_rows_table
    from tippingpoint.report.figures import save

    found = batch_map(points)
    if not quiet:
        show("", batch_rows_table(found), found.trend)
    if path:
        save(batch_map_chart(found), path)
        progress(f"drew {path}")
