"""Run a person's real batches, and hold what they took against what single lengths predict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from os import PathLike

import numpy as np

from tippingpoint.analysis.batching import Batches, Batching
from tippingpoint.analysis.cost import cost_curve
from tippingpoint.analysis.replay import Replay, ReplayBatch, Replayed, batches_to_run, most_demanding
from tippingpoint.analysis.workload_cost import Estimate
from tippingpoint.data import LengthData
from tippingpoint.errors import AnswerError, InputError
from tippingpoint.measurement import Measurement, Outcome
from tippingpoint.models.catalog import architecture_of, check_subject, modality_of
from tippingpoint.models.own import is_own
from tippingpoint.models.padding import nearly_full
from tippingpoint.profiling.memory import KnownPoints, activation_bytes
from tippingpoint.profiling.replay import MIN_BATCHES, TARGET, run_batches
from tippingpoint.store import Store, open_store
from tippingpoint.study.recommend import workload_study
from tippingpoint.study.run import run_study
from tippingpoint.units import format_length
from tippingpoint.workload import Subject, Workload

# The share of the budget for what the prediction lacks; the rest is for the batches.
_PREDICTION_SHARE = 0.5
# Of larger data a sample of so many items is put into batches.
_MOST_ITEMS = 50_000
# A batch that is longer than what was measured by less than this costs what the longest costs.
_ROUNDING = 0.005
# Behind so many batches stands an anchor.
_ANCHOR_EVERY = 4
# Memory is extrapolated by no more than this factor of the length; beyond it, shorter inputs are tried.
_NEAR = 4
# A difference on a smaller share of the time would speak of short items only.
_LEAST_PRICED = 0.5


def replay(
    lengths: LengthData | Iterable[float],
    subjects: Sequence[str | Subject],
    *,
    batching: str | Batching = "one",
    phase: str = "inference",
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    size: str = "base",
    budget_s: float = 180.0,
    target: float = TARGET,
    seed: int = 0,
    store: Store | str | PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Replay:
    """Run a person's real batches, and compare with what measurements at single lengths predict for them.

    Items are put into batches as the policy says, and batches are drawn at random until the mean is known or the
    budget ends; where they are few, all run, several times. They hold random values of the items' lengths, padded and
    masked as the Transformers library would.

    Args:
        lengths: What `read_lengths` returned, or plain lengths in the native unit.
        subjects: To run, such as ["bert", "nystromformer"]; one of them an efficient one, as for `recommend`, whose
            prediction is checked.
        batching: How the items are batched: "one", "fixed:8", "bucketed:8", "budget:16k" or "packed:4096"; see
            `Batching`.
        phase: "inference" or "training".
        device: "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" or "float16".
        threads: CPU threads; all usable cores by default.
        size: "base", "small" or "tiny".
        budget_s: Seconds: up to a half for what the prediction lacks in the store, the rest for batches.
        target: Half-width of the 95 % interval of the mean seconds per item at which batches end.
        seed: Of the batches and their values.
        store: Where the measurements behind the prediction are kept and found again; None keeps nothing.
        progress: Called with one line at a time.

    Returns:
        For every subject what was observed and predicted, or how it failed.

    Raises:
        InputError: If an argument is not legal, or data and subjects do not go together.
    """
    say = progress or (lambda line: None)
    batching = Batching.parse(batching)
    wanted = [check_subject(Subject.parse(subject)) for subject in subjects]
    if not wanted:
        raise InputError("a replay needs at least one subject, such as 'bert'")
    modality = modality_of(tuple(wanted))
    data = lengths if isinstance(lengths, LengthData) else LengthData.of(lengths, modality=modality)
    if data.modality != modality:
        raise InputError(f"the lengths are of {data.modality}, and the subjects of {modality}")
    batching.check_modality(modality)
    for subject in wanted:
        _check_lengths(subject, phase)
    options = {"device": device, "dtype": dtype, "threads": threads, "size": size}
    epoch = batching.form(_items(data, seed), np.random.default_rng(seed))
    batches = _enough(epoch, data, batching, seed)
    largest = most_demanding(batches_to_run(epoch))
    workloads = [_workload(subject, largest[-1], phase, options) for subject in wanted]
    with open_store(store) as opened:
        study = workload_study(
            data,
            wanted,
            batching,
            metrics=("latency",),
            phase=phase,
            budget_s=_PREDICTION_SHARE * budget_s,
            **options,
        )
        outcomes: tuple[Outcome, ...] = ()
        notes = _notes(data, epoch)
        try:
            outcomes = run_study(study, opened, progress=say).outcomes
        except AnswerError as error:
            notes.append(f"nothing is predicted: {error}")
    anchor = _anchor(outcomes, wanted, batching, phase, largest[-1])
    ran = run_batches(
        workloads,
        _with_anchors(batches, anchor),
        largest,
        known=[_known(workload, outcomes) for workload in workloads],
        target=target,
        budget_s=(1 - _PREDICTION_SHARE) * budget_s,
        seed=seed,
        progress=say,
    )
    return Replay(
        data=data,
        batching=batching,
        phase=phase,
        device=device,
        dtype=dtype,
        size=size,
        environment=ran.environment,
        epoch_batches=len(epoch),
        padded=epoch.padding,
        stop_reason=ran.stop_reason,
        subjects=tuple(_priced(found, outcomes, batching, phase, largest, anchor) for found in ran.subjects),
        notes=tuple(notes),
    )


def _check_lengths(subject: Subject, phase: str) -> None:
    """Refuse a model that takes one length only: what it costs is what that length costs.

    Raises:
        InputError: If the subject is such a one.
    """
    row = architecture_of(subject)
    reason = row.why_one_length(phase)
    if reason:
        raise InputError(
            f"{row.name} cannot be replayed in {phase}, because all its inputs have one length ({reason}); what it "
            f"costs is what `tippingpoint profile {subject}` says at that length"
        )


def _items(data: LengthData, seed: int) -> np.ndarray:
    """Return the length of every item, of very many a sample, [items]."""
    counts = np.array(data.counts)
    if counts.sum() > _MOST_ITEMS:
        counts = np.random.default_rng(seed).multinomial(_MOST_ITEMS, counts / counts.sum())
    return np.repeat(np.array(data.lengths, dtype=float), counts)


def _enough(epoch: Batches, data: LengthData, batching: Batching, seed: int) -> list[ReplayBatch]:
    """Return the batches of the data; where they are few, those of further epochs behind them."""
    batches = batches_to_run(epoch)
    generator = np.random.default_rng([seed, 1])
    while len(batches) < MIN_BATCHES:
        batches += batches_to_run(batching.form(_items(data, seed), generator))
    return batches


def _workload(subject: Subject, longest: ReplayBatch, phase: str, options: dict) -> Workload:
    row = architecture_of(subject)
    length = row.runs_at(longest.length)
    return Workload(
        subject,
        length if row.unit == "seconds" else int(length),
        batch_size=len(longest.lengths),
        phase=phase,
        **options,
    )


def _anchor(
    outcomes: Sequence[Outcome], subjects: Sequence[Subject], batching: Batching, phase: str, longest: ReplayBatch
) -> ReplayBatch | None:
    """Return a full batch at the middle one of the lengths at which every subject was measured; None without one."""
    measured = [
        {
            outcome.workload.length
            for outcome in outcomes
            if isinstance(outcome, Measurement)
            and (outcome.workload.subject, outcome.workload.phase) == (subject, phase)
            and outcome.workload.batch_size == batching.sequences(outcome.workload.length)
        }
        for subject in subjects
    ]
    common = sorted(length for length in set.intersection(*measured) if length <= longest.length)
    if not common:
        return None
    length = common[len(common) // 2]
    row, count = architecture_of(subjects[0]), batching.sequences(length)
    lengths = nearly_full(row, length, count) if count > 1 and batching.pads(row.modality) else (length,) * count
    return ReplayBatch(length, lengths, 0)


def _with_anchors(batches: Sequence[ReplayBatch], anchor: ReplayBatch | None) -> list[ReplayBatch]:
    if anchor is None:
        return list(batches)
    return [
        each
        for number, batch in enumerate(batches, start=1)
        for each in ([batch] if number % _ANCHOR_EVERY else [batch, anchor])
    ]


def _notes(data: LengthData, epoch: Batches) -> list[str]:
    notes = []
    if data.count > _MOST_ITEMS:
        notes.append(f"of {data.count:,} items, {_MOST_ITEMS:,} drawn at random were put into batches")
    if data.modality == "vision":
        notes.append("images of a batch are resized to the side of its largest, in whole patches")
    return notes


def _known(workload: Workload, outcomes: Sequence[Outcome]) -> KnownPoints:
    """Return what the measurements behind the prediction tell of memory, if one of them is near the length."""
    points = [
        (outcome.positions, activation_bytes(outcome.workload, outcome.memory, outcome.parameters))
        for outcome in outcomes
        if isinstance(outcome, Measurement)
        and outcome.memory
        and (outcome.workload.subject, outcome.workload.batch_size) == (workload.subject, workload.batch_size)
    ]
    longest = max((positions for positions, _ in points), default=0)
    return points if _NEAR * longest >= architecture_of(workload.subject).positions(workload.length) else ()


def _priced(
    found: Replayed,
    outcomes: Sequence[Outcome],
    batching: Batching,
    phase: str,
    largest: Sequence[ReplayBatch],
    anchor: ReplayBatch | None,
) -> Replayed:
    """Return a subject's part with what single lengths predict for the batches that it ran."""
    row = architecture_of(found.subject)
    notes = found.notes
    if row.unmasked and not is_own(row.name) and any(batch.padded for batch in found.batches):
        notes += (f"padded batches run without a mask: {row.unmasked}",)
    found = replace(found, notes=notes)
    seconds, memory = (
        cost_curve(outcomes, found.subject, metric=metric, phase=phase, batch_size=batching.sequences)
        for metric in ("latency", "peak_memory")
    )
    if seconds is None or not found.batches:
        return found
    reach = (1 + _ROUNDING) * seconds.reach
    lengths = np.array([row.runs_at(batch.length) for batch in found.batches])
    priced = lengths <= reach
    if not priced.all():
        end = format_length(seconds.reach, row.unit)
        many = f"{(~priced).sum()} of {len(priced)} batches"
        notes += (f"{many} are longer than what was measured ({end}) and have no prediction: give more budget",)
    if found.seconds[priced].sum() < _LEAST_PRICED * found.seconds.sum():
        return replace(found, notes=notes)
    sequences = np.array([len(batch.lengths) for batch in found.batches])[priced]
    peak: Estimate | None = None
    if memory is not None and largest[-1].length <= (1 + _ROUNDING) * memory.reach:
        sizes = memory.at([min(row.runs_at(batch.length), memory.reach) for batch in largest]).max(axis=1)
        peak = Estimate.of(np.concatenate([[np.median(sizes)], sizes]))
    return replace(
        found,
        notes=notes,
        prices=seconds.at(np.minimum(lengths[priced], seconds.reach)) * sequences,
        priced=priced,
        anchor_price=float(np.median(seconds.at([anchor.length]))) * len(anchor.lengths) if anchor else None,
        predicted_peak=peak,
    )
