"""`tippingpoint replay`: a person's real batches, really run, beside what is predicted for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.lengths import Column, MaxLength, Paths, Plain, SampleSize, Tokenizer, read
from tippingpoint.cli.options import BatchingPolicy, Device, Dtype, Json, Phase, Size, StorePath, Threads


def command(
    paths: Paths,
    subjects: Annotated[
        str, typer.Option(help="What to run, separated by spaces, such as 'bert bert@local:window=128'.")
    ],
    batching: BatchingPolicy = "one",
    modality: Annotated[str | None, typer.Option(help="text, speech or vision; that of the subjects.")] = None,
    column: Column = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    plain: Plain = False,
    sample: SampleSize = None,
    phase: Phase = "inference",
    budget: Annotated[
        str, typer.Option(help="Time, such as 90s or 5m: half for what the prediction lacks, half for the batches.")
    ] = "3m",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    size: Size = "base",
    store: StorePath = Path("tippingpoint.sqlite"),
    json: Json = False,
) -> None:
    """Run your real batches, padded and masked, and hold what they take against the prediction of `recommend`.

    Example: tippingpoint replay README.md --subjects 'bert nystromformer' --max-length 512 --size tiny --budget 30s
    """
    from tippingpoint.analysis.batching import Batching
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.data import length_file_of
    from tippingpoint.models.catalog import check_subject, modality_of
    from tippingpoint.report.replay import remarks, replay_record, replay_tables
    from tippingpoint.report.tables import lengths_table, percentiles_line
    from tippingpoint.study.replay import replay
    from tippingpoint.units import parse_duration
    from tippingpoint.workload import Subject

    policy = Batching.parse(batching)
    chosen = [check_subject(Subject.parse(text)) for text in subjects.split()]
    budget_s = parse_duration(budget)
    if modality is None and chosen and (plain or length_file_of(paths) is None):
        modality = modality_of(tuple(chosen))
    data = read(paths, modality, column, tokenizer, max_length, plain, sample)
    if not json:
        show(lengths_table(data), percentiles_line(data), "")
    found = replay(
        data,
        chosen,
        batching=policy,
        phase=phase,
        device=device,
        dtype=dtype,
        threads=threads,
        size=size,
        budget_s=budget_s,
        store=store,
        progress=progress,
    )
    if json:
        show_json(replay_record(found))
        return
    show(f"Run on {found.environment}", "")
    for table in replay_tables(found):
        show(table, "")
    for line in remarks(found):
        show(line)
