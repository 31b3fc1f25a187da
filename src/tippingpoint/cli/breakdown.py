"""`tippingpoint breakdown`: where the time, the memory and the arithmetic of a call go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.options import (
    Affinity,
    Budget,
    Device,
    Dtype,
    Json,
    Label,
    Layers,
    Size,
    Threads,
    Width,
    cores,
    ladder,
    names,
)


def command(
    subjects: Annotated[
        list[str], typer.Argument(metavar="SUBJECT...", help="Such as bert, hubert@local or package.module:callable.")
    ],
    lengths: Annotated[
        str, typer.Option(help="Lengths in the native unit: 128,512 or 128:4096, which doubles from one end on.")
    ],
    phase: Annotated[str, typer.Option(help="Comma-separated: inference, training.")] = "inference",
    metric: Annotated[
        str, typer.Option(help="Comma-separated columns: latency, flops (with bytes and rates), memory, parameters.")
    ] = "latency,flops",
    by_layer: Annotated[bool, typer.Option("--by-layer", help="Tell layers apart, in tables and figure.")] = False,
    unfused: Annotated[
        bool, typer.Option("--unfused", help="Estimate what fused attention is made of, by running it step by step.")
    ] = False,
    components: Annotated[
        Path | None, typer.Option(help="YAML file of your own names: module pattern to GROUP or GROUP/NAME.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw parts against length into this .svg, .png, .pdf, .html or .json file.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write one call as a trace for Chrome or Perfetto into this .json file.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences per call.")] = 1,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    affinity: Affinity = None,
    size: Size = "base",
    layers: Layers = None,
    width: Width = None,
    budget: Budget = "10s",
    store: Annotated[Path | None, typer.Option(help="Also keep the breakdowns in this file.")] = None,
    label: Label = "",
    json: Json = False,
) -> None:
    """Break calls down into parts: embedding, projections, QK^T, softmax, feed-forward, norms and the rest.

    Parts, the time between operators and what is left unexplained add up to the time of a plain call, timed beside
    calls that are watched; the budget is that of the rounds of one subject at one length.

    Example: tippingpoint breakdown bert bert@local --lengths 128,256 --size tiny --budget 1s
    """
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.errors import AnswerError, InputError
    from tippingpoint.measurement import Failure
    from tippingpoint.profiling.breakdown import breakdown
    from tippingpoint.profiling.session import resolve_workload
    from tippingpoint.report.breakdown import METRICS, breakdown_lines, breakdown_tables, draw, split_fused
    from tippingpoint.report.figures import check_path
    from tippingpoint.store import open_store
    from tippingpoint.study.files import load_components
    from tippingpoint.units import parse_duration
    from tippingpoint.workload import PHASES, Subject, Workload

    metrics = names(metric, "metric", METRICS)
    patterns = load_components(components) if components else None
    seconds = parse_duration(budget)
    asked = [
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
                affinity=cores(affinity),
                layers=layers,
                width=width,
            )
        )
        for one_phase in names(phase, "phase", PHASES)
        for subject in map(Subject.parse, subjects)
        for length in ladder(lengths, subject)
    ]
    if figure:
        check_path(figure)
        if len({workload.phase for workload in asked}) > 1:
            raise InputError("a figure is of one phase; draw inference and training into files of their own")
    if unfused and any(workload.subject.variants for workload in asked):
        raise InputError("--unfused is for subjects with their own full attention, such as bert; leave variants out")
    if trace and len(asked) > 1:
        raise InputError("a trace is of one call: name one subject, one length and one phase")

    outcomes, splits = [], {}
    with open_store(store) as opened:
        for workload in asked:
            outcome = breakdown(workload, patterns=patterns, budget_s=seconds, trace=trace, progress=progress)
            opened.add_breakdowns([outcome], label=label)
            outcomes.append(outcome)
            if unfused and not isinstance(outcome, Failure):
                eager = resolve_workload(workload.replace(subject=Subject.parse(f"{workload.subject}@eager")))
                step_by_step = breakdown(eager, patterns=patterns, budget_s=seconds, progress=progress)
                opened.add_breakdowns([step_by_step], label=label)
                if isinstance(step_by_step, Failure):
                    outcomes.append(step_by_step)
                else:
                    splits[outcome.workload] = split_fused(outcome, step_by_step)
    found = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
    if json:
        show_json(outcomes)
    else:
        show(*{outcome.environment.fingerprint: str(outcome.environment) for outcome in outcomes}.values(), "")
        for table in breakdown_tables(found, metrics, by_layer=by_layer, splits=splits):
            show(table, "")
        for line in breakdown_lines(outcomes):
            show(line)
    if figure and found:
        draw(found, figure, by_layer=by_layer)
        progress(f"drawn into {figure}")
    if not found:
        raise AnswerError("nothing could be broken down; the reasons stand above")
