"""`tippingpoint predict`: cost and tipping points beyond what fits here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.options import Budget, Device, Dtype, Json, Layers, Phase, Size, Threads, Width


def command(
    subjects: Annotated[
        list[str], typer.Argument(metavar="SUBJECT...", help="One, or several to hold against the first.")
    ],
    lengths: Annotated[
        str,
        typer.Option(
            help="Comma-separated lengths in the native unit, such as 4096,64k,1M (k and M are 1,000 and 1,000,000; "
            "Ki and Mi are 1,024 and 1,048,576)."
        ),
    ],
    batch_size: Annotated[int, typer.Option(help="Sequences per call.")] = 1,
    phase: Phase = "inference",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    size: Size = "base",
    layers: Layers = None,
    width: Width = None,
    device_profile: Annotated[
        str | None,
        typer.Option(
            help="Another machine: a100, h100, h200, l4, or a YAML file such as `doctor --device-profile` writes."
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Whether to measure and count here, or to take all of it from the store.")
    ] = True,
    budget: Budget = "2m",
    store: Annotated[Path | None, typer.Option(help="Keep the results in this file and use what is in it.")] = None,
    json: Json = False,
) -> None:
    """Predict latency, peak memory and tipping points at lengths, depths and widths that do not fit here.

    Short inputs are measured, work is counted, and what lies outside the measured lengths is called extrapolated.

    Example: tippingpoint predict bert --lengths 4096,1M --size tiny --budget 5s
    """
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.report.predict import prediction_record, prediction_tables
    from tippingpoint.study.predict import predict
    from tippingpoint.units import parse_duration, parse_length

    prediction = predict(
        subjects,
        [parse_length(part) for part in lengths.split(",")],
        batch_size=batch_size,
        phase=phase,
        device=device,
        dtype=dtype,
        threads=threads,
        size=size,
        layers=layers,
        width=width,
        device_profile=device_profile,
        budget_s=parse_duration(budget),
        store=store,
        measure=measure,
        progress=progress,
    )
    if json:
        show_json(prediction_record(prediction))
        return
    show(str(prediction.environment), "")
    for table in prediction_tables(prediction):
        show(table, "")
    for point in prediction.tipping_points:
        show(point.answer)
    for note in prediction.notes:
        show(f"note: {note}")
