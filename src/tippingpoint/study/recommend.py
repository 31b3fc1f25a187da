"""Recommend for a person's lengths, measuring what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from tippingpoint.analysis.batching import Batching
from tippingpoint.analysis.constraint import OBJECTIVES, Constraint, measured_metric
from tippingpoint.analysis.recommend import Recommendation, recommend_from
from tippingpoint.analysis.switching import check_switch
from tippingpoint.analysis.workload_cost import epochs, resamples
from tippingpoint.data import LengthData
from tippingpoint.errors import InputError
from tippingpoint.measurement import Outcome
from tippingpoint.models.catalog import architecture_of, check_subject, is_vanilla, modality_of
from tippingpoint.store import Store, open_store
from tippingpoint.study.presets import PRESETS
from tippingpoint.study.run import collect, resolve_study, run_study
from tippingpoint.units import UNITS
from tippingpoint.workload import Study, Subject, check_choice

# A study begins at this percentile of the lengths: what is shorter costs no more.
_FIRST_PERCENTILE = 5


def recommend(
    lengths: LengthData | Iterable[float],
    *,
    candidates: Sequence[str | Subject] | None = None,
    modality: str | None = None,
    objective: str = "latency",
    constraints: Mapping[str, str | float] | Sequence[Constraint] = (),
    batching: str | Batching = "one",
    switch: bool = False,
    phase: str = "inference",
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    size: str = "base",
    budget_s: float = 300.0,
    store: Store | str | PathLike[str] | None = None,
    measure: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Recommendation:
    """Say which subject to use for a person's own lengths, and why.

    Args:
        lengths: What `read_lengths` returned, or plain lengths in the native unit.
        candidates: Subjects to choose from, such as ["bert", "nystromformer"]; those of the modality's preset
            by default. The vanilla ones are the baselines; without any, the preset's first is added.
        modality: "text", "speech" or "vision"; needed if neither lengths nor candidates tell.
        objective: "latency" (mean of the items), "latency_p50", "latency_p95", "latency_p99", "throughput" or
            "peak_memory".
        constraints: What the choice must keep: {"peak_memory": "4GiB"} (of the batch that needs most),
            {"latency": "200ms"} (95th percentile of the items; "latency_p50" and "latency_p99" are theirs),
            {"throughput": 5} (items per second).
        batching: How the items are batched: "one", "fixed:8", "bucketed:8", "budget:16k" or "packed:4096"; see
            `Batching`.
        switch: Whether to look for two models, one for items up to a length and another above it.
        phase: "inference" or "training".
        device: "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" or "float16".
        threads: CPU threads; all usable cores by default.
        size: "base", "small" or "tiny".
        budget_s: Seconds of measuring, earlier runs on the same store included.
        store: Where measurements are kept and found again; None keeps nothing.
        measure: False answers from the store alone, from its latest environment; torch is not needed then.
        progress: Called with one line at a time.

    Raises:
        InputError: If an argument is not legal.
        AnswerError: If no candidate could be measured, or none keeps the constraints.
    """
    with open_store(store, create=measure) as opened:
        check_choice("objective", objective, OBJECTIVES)
        batching = Batching.parse(batching)
        if switch:
            check_switch(objective)
        wanted: list[Constraint] = []
        if isinstance(constraints, Mapping):
            wanted += [Constraint.of(metric, value) for metric, value in constraints.items()]
        else:
            wanted += constraints
        subjects = [check_subject(Subject.parse(candidate)) for candidate in candidates or ()]
        data = _as_data(lengths, modality, subjects)
        batching.check_modality(data.modality)
        metrics = measured_metrics(batching, objective, *(constraint.metric for constraint in wanted))
        study = workload_study(
            data,
            subjects,
            batching,
            metrics=metrics,
            phase=phase,
            device=device,
            dtype=dtype,
            threads=threads,
            size=size,
            budget_s=budget_s,
        )
        if measure:
            result = run_study(study, opened, progress=progress)
        else:
            environment = opened.latest_environment()
            study = resolve_study(study.replace(threads=environment.threads, affinity=environment.affinity or None))
            result = collect(study, opened, environment)
        there = opened.outcomes(environment=result.environment.fingerprint)
        also = [outcome for outcome in there if _is_alike(outcome, result.study)]
    return recommend_from(
        data,
        result.outcomes,
        result.environment,
        baselines=result.study.baselines,
        variants=result.study.variants,
        objective=objective,
        phase=phase,
        batching=batching,
        constraints=wanted,
        switch=switch,
        also=also,
    )


def _is_alike(outcome: Outcome, study: Study) -> bool:
    """Whether an outcome is of a study's subjects as they were measured, in batches of whatever size."""
    workload = outcome.workload
    if workload.subject not in study.subjects:
        return False
    wanted = study.workload(workload.subject, workload.length, study.phases[0])
    return workload == wanted.replace(batch_size=workload.batch_size, padded=workload.padded)


def _as_data(lengths: LengthData | Iterable[float], modality: str | None, subjects: Sequence[Subject]) -> LengthData:
    if isinstance(lengths, LengthData):
        data = lengths
    else:
        if modality is None and subjects:
            modality = modality_of(tuple(subjects))
        if modality is None:
            raise InputError("plain lengths need a modality or candidates that tell it, such as modality='text'")
        check_choice("modality", modality, UNITS)
        data = LengthData.of(lengths, modality=modality)
    if subjects and modality_of(tuple(subjects)) != data.modality:
        raise InputError(f"the lengths are of {data.modality}, and the candidates of {modality_of(tuple(subjects))}")
    return data


def measured_metrics(batching: Batching, *names: str) -> tuple[str, ...]:
    """Return the metrics that must be measured for objectives and constraints.

    One by one, throughput is that of the best batch size, which must be looked for; another policy has its own.
    """
    found = dict.fromkeys(map(measured_metric, names))
    if batching.kind != "one" and "throughput" in found:
        found = dict.fromkeys("latency" if name == "throughput" else name for name in found)
    return tuple(found)


def workload_study(
    data: LengthData, subjects: Sequence[Subject], batching: Batching, *, metrics: tuple[str, ...], **options: Any
) -> Study:
    """Return the study that prices a person's items as they are batched.

    Args:
        data: The person's lengths.
        subjects: To choose from, options written out; those of the modality's preset if there are none. Without a
            vanilla one the preset's first is the baseline.
        batching: How items are batched.
        metrics: What to measure.
        options: Further fields of `Study`.

    Raises:
        InputError: If all subjects are vanilla, or an option is not legal.
    """
    preset = PRESETS[data.modality]
    # A second baseline would cost time and is slower than the first: what a user would run is enough here.
    subjects = subjects or (*preset.baselines[:1], *preset.variants)
    baselines = tuple(subject for subject in subjects if is_vanilla(subject)) or preset.baselines[:1]
    variants = tuple(subject for subject in subjects if not is_vanilla(subject))
    if not variants:
        raise InputError(
            f"the candidates {', '.join(map(str, subjects))} are all vanilla; add an efficient one, such as "
            f"{preset.variants[0]}"
        )
    (epoch,) = epochs(resamples(data, math.inf, count=0), batching)
    longest = architecture_of(baselines[0]).nearest_legal(float(epoch.lengths.max()))
    ran = LengthData.of(np.repeat(epoch.lengths, epoch.batches), modality=data.modality)
    return Study(
        name=f"recommend {data.modality}",
        modality=data.modality,
        baselines=baselines,
        variants=variants,
        lengths=(min(ran.percentile(_FIRST_PERCENTILE), longest / 2), longest),
        metrics=metrics,
        batch_size=1 if batching.kind == "budget" else batching.sequences(longest),
        batch_budget=batching.size if batching.kind == "budget" else None,
        padded=batching.pads(data.modality),
        # Every item of the data has a cost, not only those near a tipping point.
        whole_range=True,
        phases=(options.pop("phase"),),
        **options,
    )
