"""`tippingpoint study`: a preset or a study file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.options import Affinity, Json, Label, StorePath, cores, names


def command(
    study: Annotated[str, typer.Argument(metavar="PRESET|FILE", help="text, speech, vision, or a YAML file.")],
    budget: Annotated[str | None, typer.Option(help="Time to spend on measuring, such as 90s or 5m.")] = None,
    size: Annotated[str | None, typer.Option(help="base, small or tiny.")] = None,
    phase: Annotated[str | None, typer.Option(help="Comma-separated: inference, training.")] = None,
    metric: Annotated[str | None, typer.Option(help="Comma-separated: latency, throughput, peak_memory.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 (CUDA).")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    affinity: Affinity = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile", help="Run models through torch.compile first.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Stop timing when the 95 % interval is within this share.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Fresh processes of each subject to time at each length.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="How far a tipping point's 95 % interval may reach to either side.")
    ] = None,
    screening: Annotated[
        bool | None, typer.Option(help="Let models of 2 and 4 layers tell where to measure (no number is theirs).")
    ] = None,
    store: StorePath = Path("tippingpoint.sqlite"),
    label: Label = "",
    json: Json = False,
) -> None:
    """Compare baselines with efficient variants and find where each tips.

    Results are kept in the store as they are made; the same command goes on where it was interrupted, and a
    larger budget refines what is there.

    Example: tippingpoint study text --size tiny --budget 30s
    """
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.report.tables import measurements_table, notes, tipping_points_table
    from tippingpoint.store import Store
    from tippingpoint.study.files import load_study
    from tippingpoint.study.presets import PRESETS
    from tippingpoint.study.run import resolve_study, run_study
    from tippingpoint.units import format_seconds, parse_duration, parse_fraction
    from tippingpoint.workload import METRICS, PHASES

    changes = {
        "budget_s": budget and parse_duration(budget),
        "precision": precision and parse_fraction(precision),
        "size": size,
        "phases": phase and names(phase, "phase", PHASES),
        "metrics": metric and names(metric, "metric", METRICS),
        "device": device,
        "dtype": dtype,
        "threads": threads,
        "affinity": cores(affinity),
        "compiled": compile_,
        "target": target and parse_fraction(target),
        "repeats": repeats,
        "screening": screening,
    }
    chosen = PRESETS[study] if study in PRESETS else load_study(study)
    chosen = resolve_study(chosen.replace(**{key: value for key, value in changes.items() if value is not None}))
    with Store(store) as opened:
        result = run_study(chosen, opened, label=label, progress=progress)
    if json:
        show_json(result)
        return
    show(f"{result.environment}", "")
    for kind in result.study.phases:
        show(measurements_table(result.outcomes, result.study.subjects, kind), "")
    show(tipping_points_table(result.tipping_points), "")
    for line in notes(result.tipping_points):
        show(f"note: {line}")
    if not result.complete:
        show(
            f"note: the budget of {format_seconds(result.study.budget_s)} ended first; the same command with a "
            "larger --budget measures longer inputs and narrows the intervals"
        )
    show(f"results are in {store}")
