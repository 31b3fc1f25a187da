"""Predict cost beyond what fits here: measure short inputs, count work, extrapolate, and say so."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np

from tippingpoint.analysis.prediction import CostEstimate, PredictedTippingPoint, Prediction, RooflineEstimate
from tippingpoint.analysis.scaling import (
    Count,
    CountedCall,
    Extent,
    ScalingModel,
    cache_bytes,
    fit_scaling,
    last_crossing,
    memory_spread,
)
from tippingpoint.device_profiles import DeviceProfile, load_profile
from tippingpoint.errors import AnswerError, InputError
from tippingpoint.machine import Environment, Peaks
from tippingpoint.measurement import Failure, Measurement
from tippingpoint.models.architecture import Architecture
from tippingpoint.models.catalog import architecture_of, check_subject, modality_of
from tippingpoint.profiling.device import now
from tippingpoint.profiling.process import WorkerError, WorkerProcess
from tippingpoint.profiling.session import Effort, default_threads, measure_together, resolve_workload
from tippingpoint.store import Store, open_store
from tippingpoint.units import format_items, format_length, format_percent, format_seconds
from tippingpoint.workload import Subject, Workload

logger = logging.getLogger(__name__)

# Fits are made to this many lengths of different cost, if the budget is not spent before; to three in any case.
ENOUGH_LENGTHS = 5
_FEWEST_LENGTHS = 3
# Work is counted at these multiples of a step, at which no block is half full, with these depths.
_COUNTED_AT = (2, 3, 4, 5)
_COUNTED_DEPTHS = (2, 4)
# Where stages shrink the grid, each of them is a multiple of a window this wide at these multiples of the side.
_WINDOWS = (8, 7)
_STEPS = (256, 512, 1024, 2048, 4096, 8192)
# Lengths to measure, in positions: each doubled again and again.
_MEASURED_AT = (128, 192)
_DOUBLINGS = 24
# What the next length takes, as a multiple of the last one: 1.5 times as long, quadratic cost.
_NEXT_COST = 2.25
# One session may take this share of the budget for timed rounds.
_ROUNDS_SHARE = 0.08
_STUDY = "predict"
# Lengths at which two predicted costs are held against each other.
_GRID = 400


@dataclass(frozen=True)
class _Known:
    """A subject with its rates and its work: what `predict` looks everything up in."""

    subject: Subject
    architecture: Architecture
    model: ScalingModel
    extent: Extent
    layers: int | None
    far: float
    measured: dict[float, Measurement]
    peaks: Peaks

    def count(self, length: float) -> Count:
        return self.extent.at(self.architecture.executed_positions(length), self.layers)


def predict(
    subjects: str | Subject | Sequence[str | Subject],
    lengths: Sequence[float],
    *,
    batch_size: int = 1,
    phase: str = "inference",
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    size: str = "base",
    layers: int | None = None,
    width: int | None = None,
    device_profile: DeviceProfile | str | PathLike[str] | None = None,
    budget_s: float = 120.0,
    store: Store | str | PathLike[str] | None = None,
    measure: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Prediction:
    """Predict latency and peak memory at lengths, depths and widths that do not fit here.

    Short lengths are measured here or found in the store, all subjects side by side; work is counted with two
    shallow models of the shape asked for; see `tippingpoint.analysis.scaling` for the rest.

    Args:
        subjects: One, or several of one modality; the first is what the others are held against.
        lengths: In the native unit.
        batch_size: Sequences per call.
        phase: "inference" or "training".
        device: Where to measure: "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" or "float16".
        threads: CPU threads; all usable cores by default.
        size: "base", "small" or "tiny"; what is measured, and what is predicted unless layers or width say else.
        layers: Depth to predict for.
        width: Hidden size to predict for.
        device_profile: Another machine: the name of a shipped profile, a YAML file, or the profile itself.
        budget_s: Seconds of measuring; three lengths are measured in any case. None of it is spent if the store
            has five lengths of different cost.
        store: Where measurements are kept and found again; None keeps nothing.
        measure: False takes measurements and counts from the store alone, from its latest environment; PyTorch is
            not needed then, and layers and width cannot be other than measured.
        progress: Called with one line at a time.

    Raises:
        InputError: If an argument is not legal, or the architecture has no depth and width of its own to change.
        AnswerError: If too little could be measured.
    """
    with open_store(store, create=measure) as opened:
        say = progress or (lambda line: logger.info("%s", line))
        profile = load_profile(device_profile) if isinstance(device_profile, str | PathLike) else device_profile
        if profile is not None:
            profile.peaks(dtype)
        given = [subjects] if isinstance(subjects, str | Subject) else list(subjects)
        chosen = tuple(dict.fromkeys(check_subject(Subject.parse(one)) for one in given))
        if not chosen or not lengths:
            raise InputError("a prediction needs at least one subject and one length")
        modality_of(chosen)
        asked = sorted(dict.fromkeys(lengths))
        for subject in chosen:
            _check_shape(subject, size, layers, width)
            for length in asked:
                architecture_of(subject).check_length(length)
        environment = _environment(opened, device, threads, measure)
        first = resolve_workload(
            Workload(
                chosen[0],
                asked[0],
                batch_size=batch_size,
                phase=phase,
                device=device,
                dtype=dtype,
                threads=environment.threads,
                size=size,
            )
        )
        shaped = first.replace(layers=layers, width=width)
        counted: dict[Subject, tuple[CountedCall, ...]] = {}
        if measure:
            # First, because a shape that is not legal shows here.
            counted = {subject: count_work(shaped.replace(subject=subject), say) for subject in chosen}
            _measure(chosen, first, asked, opened, environment, budget_s, say)
        known = [_know(subject, shaped, opened, environment, counted.get(subject)) for subject in chosen]
    return Prediction(
        workload=shaped,
        environment=environment,
        estimates=tuple(_estimate(one, length, _at_best(known), profile, dtype) for length in asked for one in known),
        models={str(one.subject): one.model for one in known},
        tipping_points=tuple(
            point for other in known[1:] for point in _tipping_points(known[0], other, asked, profile, dtype)
        ),
        profile=profile,
        notes=_notes(known, shaped, profile),
    )


def _check_shape(subject: Subject, size: str, layers: int | None, width: int | None) -> None:
    """Refuse another shape where there is no stack of equal layers."""
    row = architecture_of(subject)
    if (layers is not None or width is not None) and row.layers(size) is None:
        row.reshape({}, layers, width)  # raises, and says why


def _environment(store: Store, device: str, threads: int | None, measure: bool) -> Environment:
    if measure:
        with WorkerProcess(device, threads or default_threads(None)) as worker:
            return worker.environment
    return store.latest_environment()


def _found(subject: Subject, first: Workload, store: Store, environment: Environment) -> dict[float, Measurement]:
    """Return what the store has of a subject at any length, under the conditions of a workload; the latest each."""
    found: dict[float, Measurement] = {}
    for outcome in store.outcomes(environment=environment.fingerprint):
        workload = outcome.workload
        if (
            isinstance(outcome, Measurement)
            and workload == first.replace(subject=subject, length=workload.length)
            and outcome.flops is not None
            and outcome.flops.bytes_by_call
        ):
            found[workload.length] = outcome
    return dict(sorted(found.items()))


def _distinct(subject: Subject, lengths: Sequence[float]) -> int:
    """Count lengths of different cost: padding makes some alike."""
    return len({architecture_of(subject).executed_positions(length) for length in lengths})


def _measure(
    subjects: Sequence[Subject],
    first: Workload,
    asked: Sequence[float],
    store: Store,
    environment: Environment,
    budget_s: float,
    say: Callable[[str], None],
) -> None:
    """Measure ascending lengths until the budget ends, unless the store has enough."""

    def distinct() -> int:
        return min(_distinct(subject, list(_found(subject, first, store, environment))) for subject in subjects)

    if distinct() >= ENOUGH_LENGTHS:
        return
    begin = now()
    earlier = [one.seconds for one in store.sessions(environment=environment.fingerprint) if one.study == _STUDY]
    last_s = max(earlier, default=0.0)
    for length in measuring_lengths(subjects, max(asked)):
        spent = now() - begin
        if distinct() >= _FEWEST_LENGTHS and spent + _NEXT_COST * last_s > budget_s:
            return
        if all(length in _found(subject, first, store, environment) for subject in subjects):
            continue
        unit = architecture_of(subjects[0]).unit
        say(f"[{format_seconds(spent)} of {format_seconds(budget_s)}] measuring {format_length(length, unit)}")
        outcomes = measure_together(
            [first.replace(subject=subject, length=length) for subject in subjects],
            effort=Effort(budget_s=max(0.1, _ROUNDS_SHARE * budget_s)),
            progress=lambda line: say(f"    {line}"),
        )
        last_s = now() - begin - spent
        store.add(outcomes, study=_STUDY, seconds=last_s)
        if any(isinstance(outcome, Failure) for outcome in outcomes):
            return


def measuring_lengths(subjects: Sequence[Subject], longest: float) -> list[float]:
    """Return lengths to measure, ascending: doublings of 128 and 192 positions that every subject takes.

    Those that cost the same as the one before, because every subject pads them alike, are left out.
    """
    rows = [architecture_of(subject) for subject in subjects]
    strictest = _strictest(rows)
    found: dict[tuple[int, ...], float] = {}
    for positions in sorted(start * 2**times for start in _MEASURED_AT for times in range(_DOUBLINGS)):
        length = length_of(strictest, positions)
        if length > longest:
            break
        if all(row.nearest_legal(length) == length for row in rows):
            # Of lengths that are padded alike, the longest: it pays for no padding.
            found[tuple(row.executed_positions(length) for row in rows)] = length
    return sorted(found.values())


def _strictest(rows: Sequence[Architecture]) -> Architecture:
    """Return the one whose lengths the others are likely to take as well."""
    return max(rows, key=lambda row: (row.lengths.multiple_of, row.lengths.minimum))


def length_of(architecture: Architecture, positions: int) -> float:
    """Return the shortest legal length that has at least so many positions, up to the rounding of legal lengths."""
    low, high = 0.0, max(1.0, architecture.lengths.minimum)
    while architecture.positions(architecture.nearest_legal(high)) < positions:
        low, high = high, 2 * high
    while high - low > 1e-4 * max(1.0, low) and high - low > 5e-4:
        middle = (low + high) / 2
        if architecture.positions(architecture.nearest_legal(middle)) < positions:
            low = middle
        else:
            high = middle
    return architecture.nearest_legal(high)


def counting_lengths(subject: Subject) -> list[float]:
    """Return the lengths at which work is counted: beyond windows, and such that no block is half full.

    Raises:
        AnswerError: If there are no such lengths.
    """
    row = architecture_of(subject)
    options = [value for variant in subject.variants for _, value in variant.options if isinstance(value, int)]
    if row.layers("base") is None:
        steps = [*(window * row.lengths.multiple_of for window in _WINDOWS), *_STEPS]
        choices = [[float(times * step) for times in range(1, len(_COUNTED_AT) + 1)] for step in steps]
    else:
        steps = list(_STEPS)
        choices = [[length_of(row, times * step) for times in _COUNTED_AT] for step in steps]
    for step, lengths in zip(steps, choices, strict=True):
        legal = all(row.nearest_legal(length) == length for length in lengths)
        unpadded = legal and all(row.executed_positions(length) == row.positions(length) for length in lengths)
        if unpadded and len(set(lengths)) == len(lengths) and 2 * step >= 3 * max(options, default=0):
            return lengths
    raise AnswerError(f"{subject} has blocks too large to count its work at")


def count_work(workload: Workload, say: Callable[[str], None]) -> tuple[CountedCall, ...]:
    """Count the work of a workload's subject and shape at a few lengths, with shallow models built for it.

    No clock is read: each count is a process that builds a model, reads the peak memory of one call and counts the
    operations and bytes of another.

    Args:
        workload: Shape and conditions; its length and depth do not matter.
        say: Takes a line of progress.

    Raises:
        AnswerError: If it could not be counted.
    """
    row = architecture_of(workload.subject)
    depths = _COUNTED_DEPTHS if row.layers(workload.size) is not None else (None,)
    counts = []
    say(f"{workload.subject}: counting work")
    for depth in depths:
        for length in counting_lengths(workload.subject):
            one = workload.replace(length=length, layers=depth)
            assert one.threads is not None
            try:
                with WorkerProcess(one.device, one.threads, affinity=one.affinity) as worker:
                    worker.ask("build", one)
                    memory = worker.ask("measure_memory")
                    flops = worker.ask("inspect").flops
            except WorkerError as error:
                raise AnswerError(f"the work of {one} could not be counted: {error}") from error
            counts.append(
                CountedCall(
                    positions=row.executed_positions(length), layers=depth, flops=flops, peak_bytes=memory.peak_bytes
                )
            )
    return tuple(counts)


def _know(
    subject: Subject,
    shaped: Workload,
    store: Store,
    environment: Environment,
    calls: tuple[CountedCall, ...] | None,
) -> _Known:
    """Put together what is known of a subject; without `calls`, work is followed from the measured lengths."""
    row = architecture_of(subject)
    own = row.layers(shaped.size)
    layers = shaped.layers or own
    first = shaped.replace(layers=None, width=None)
    found = _found(subject, first, store, environment)
    distinct = _distinct(subject, list(found))
    if distinct < 2:
        raise AnswerError(
            f"{subject} was measured at {distinct} lengths of different cost, and rates need at least two: "
            f"{'measure it first' if calls is None else 'give it a larger --budget'}"
        )
    cache = cache_bytes(environment, shaped.device)
    seen = [call for one in found.values() if (call := CountedCall.of(one, own))]
    counted = [call.count(cache) for call in seen]
    peaks = fastest([measurement.peaks for measurement in found.values() if measurement.peaks])
    model = fit_scaling(counted, [measurement.latency_s for measurement in found.values()], peaks)
    other_shape = layers != own or shaped.width is not None
    if calls is not None:
        extent = Extent(calls, cache)
    elif other_shape:
        raise AnswerError("another depth or width has to be counted, and measuring was not allowed")
    else:
        extent = Extent(tuple(seen), cache)
    far = 0.0
    if other_shape:
        there, here = extent.at(counted[-1].positions, own), counted[-1]
        far += abs(math.log2((layers or 1) / (own or 1)))
        # Linear layers grow with the square of the width.
        far += abs(math.log2(there.flops[1] / here.flops[1])) / 2
    else:
        model = memory_spread(model, extent, counted)
    return _Known(subject, row, model, extent, layers, far, {} if other_shape else found, peaks)


def fastest(peaks: Sequence[Peaks]) -> Peaks:
    """Return the best of each that was seen.

    Raises:
        AnswerError: If there is none.
    """
    if not peaks:
        raise AnswerError("the measurements do not tell how fast the machine is: measure again with this version")
    return Peaks(
        flops_per_s=max(peak.flops_per_s for peak in peaks), bytes_per_s=max(peak.bytes_per_s for peak in peaks)
    )


def _at_best(known: Sequence[_Known]) -> Peaks:
    return fastest([one.peaks for one in known])


def _estimate(known: _Known, length: float, here: Peaks, profile: DeviceProfile | None, dtype: str) -> CostEstimate:
    count = known.count(length)
    seconds = known.model.seconds(count)
    reach = math.exp(known.model.log_half_width(count.positions, known.far))
    basis = "extrapolated" if known.far or count.positions > known.model.longest else "interpolated"
    if count.positions < known.model.measured[0][0]:
        basis = "extrapolated"
    interval, peak, peak_interval = (seconds / reach, seconds * reach), count.peak_bytes, None
    if peak is not None:
        wide = math.exp(known.model.memory_log_half_width(count.positions, known.far))
        peak_interval = (peak / wide, peak * wide)
    flops = sum(count.flops)
    measured = known.measured.get(length)
    if measured is not None:
        basis, seconds, interval = "measured", measured.latency_s, measured.latency_interval_s
        if measured.memory:
            peak = float(measured.memory.peak_bytes)
            peak_interval = (peak, peak)
        flops = measured.flops.total if measured.flops else flops
    roofline = None
    if profile is not None:
        peaks = profile.peaks(dtype)
        best_there = count.roofline_s(peaks.flops_per_s, peaks.bytes_per_s)
        best_here = count.roofline_s(here.flops_per_s, here.bytes_per_s)
        roofline = RooflineEstimate(
            latency_s=best_there,
            scaled_s=best_there * seconds / best_here,
            fits=None if peak is None else peak <= profile.memory_bytes,
        )
    return CostEstimate(
        subject=known.subject,
        length=length,
        positions=known.architecture.positions(length),
        executed_positions=count.positions,
        basis=basis,
        latency_s=seconds,
        latency_interval_s=interval,
        peak_bytes=peak,
        peak_interval=peak_interval,
        flops=float(flops),
        shares=known.model.shares(count),
        roofline=roofline,
    )


def _tipping_points(
    baseline: _Known, variant: _Known, asked: Sequence[float], profile: DeviceProfile | None, dtype: str
) -> list[PredictedTippingPoint]:
    """Hold two predicted costs against each other, from the shortest measured length to the longest asked for."""
    rows = (baseline.architecture, variant.architecture)
    strictest = _strictest(rows)
    shortest = strictest.nearest_legal(
        min(asked[0], *(next(iter(one.measured), asked[0]) for one in (baseline, variant)))
    )
    if shortest >= asked[-1]:
        return []
    grid = sorted({strictest.nearest_legal(float(at)) for at in np.geomspace(shortest, asked[-1], _GRID)})
    counts = [[one.count(length) for length in grid] for one in (baseline, variant)]
    both = (baseline, variant)
    found = []

    def add(metric: str, basis: str, costs: list[list[float]], widths: list[list[float]] | None) -> None:
        ratios = [math.log(old / new) for old, new in zip(*costs, strict=True)]
        reach = [math.hypot(*pair) for pair in zip(*widths, strict=True)] if widths else [0.0] * len(grid)
        length, interval = last_crossing(grid, ratios, reach)
        longest = min(max(one.measured, default=0.0) for one in both)
        if basis == "extrapolated" and length is not None and length <= longest:
            basis = "interpolated"
        found.append(
            PredictedTippingPoint(
                baseline=baseline.subject,
                variant=variant.subject,
                metric=metric,
                basis=basis,
                length=length,
                interval=interval if widths else None,
                horizon=(grid[0], grid[-1]),
                unit=baseline.architecture.unit,
            )
        )

    add(
        "latency",
        "extrapolated",
        [[one.model.seconds(count) for count in of] for one, of in zip(both, counts, strict=True)],
        [
            [one.model.log_half_width(count.positions, one.far) for count in of]
            for one, of in zip(both, counts, strict=True)
        ],
    )
    peaks = [[count.peak_bytes or 0.0 for count in of] for of in counts]
    if all(all(column) for column in peaks):
        widths = [
            [one.model.memory_log_half_width(count.positions, one.far) for count in of]
            for one, of in zip(both, counts, strict=True)
        ]
        add("peak_memory", "extrapolated", peaks, widths)
    if profile is not None:
        there = profile.peaks(dtype)
        add(
            "latency",
            "roofline estimate",
            [[count.roofline_s(there.flops_per_s, there.bytes_per_s) for count in of] for of in counts],
            None,
        )
    return found


def _notes(known: Sequence[_Known], shaped: Workload, profile: DeviceProfile | None) -> tuple[str, ...]:
    found = []
    for one in known:
        model = one.model
        errors = f"{format_percent(model.median_error)} median absolute error of "
        errors += format_items(len(model.held_out), "prediction")
        found.append(
            f"{one.subject}: rates fitted to {len(model.measured)} lengths up to {model.longest:,} positions; "
            f"hold-out: {errors}, up to {format_percent(max(held.error for held in model.held_out))}"
        )
        if model.fits < 3:
            found.append(
                f"{one.subject}: hold-out made {format_items(model.fits, 'fit')} only, so its intervals are wide: "
                "measure more lengths (--budget)"
            )
    if shaped.layers is not None or shaped.width is not None:
        found.append(
            f"rates are those of size {shaped.size}; work was counted for {shaped.shape}; hold-out was over lengths "
            "alone, and each doubling of depth or width widens the interval as one of length does"
        )
    if profile is not None:
        found.append(
            f"roofline estimate for {profile}: a lower bound, every operator at peak rate or at full bandwidth; the "
            "scaled one assumes that software there reaches the share of its peaks that it reaches here; operators "
            "and peak memory are those seen here"
        )
    return tuple(found)
