"""Two runs of the same workloads held against each other: what became faster, smaller, or tips elsewhere.

The two sides were timed apart, so nothing pairs their blocks: each side's centre is resampled on its own, and the
interval of the ratio holds the noise of both. Drift of the machine between the two stays in the ratio; several
processes on each side, hours apart, bring it into the interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tippingpoint.analysis.changes import (
    Change,
    Overall,
    describe,
    failures,
    memory_ratio,
    overall,
    say_overall,
    say_ratio,
    time_ratio,
)
from tippingpoint.analysis.moves import Move, moves
from tippingpoint.analysis.sides import Side
from tippingpoint.errors import AnswerError, InputError
from tippingpoint.machine import Environment, Peaks
from tippingpoint.measurement import Failure, Measurement, Outcome
from tippingpoint.units import format_bytes, format_count, format_items, format_percent
from tippingpoint.workload import METRICS, Workload, check_choice

# What a caller may want to hear of as a failure: a workload that fails now counts as slower, too.
ALARMS = {
    "slower": ("slower", "now fails"),
    "larger": ("larger",),
    "moved": ("moved up", "moved down"),
    "undecided": ("undecided",),
    "failing": ("now fails",),
}
# Fields of an environment that make it another machine, whatever runs on it.
_MACHINE = ("cpu_model", "device_name", "cores", "threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedSide:
    """One of the two runs.

    Attributes:
        name: What it is called.
        environment: Where it was measured.
        measurements: How many it holds.
        failures: How many it holds.
        alone: Workloads that the other side does not have.
    """

    name: str
    environment: Environment
    measurements: int
    failures: int
    alone: tuple[Workload, ...]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Comparison:
    """Two runs of the same workloads held against each other.

    Attributes:
        old: The side that was there before.
        new: The side that is held against it.
        threshold: Ratios within this share of 1 are the same.
        changes: For each workload and metric that both sides have.
        overall: Geometric means, for each metric.
        tipping_points: For each pair that both sides measured at two or more lengths.
        environment_differences: Field, its value on the old and on the new side.
        warnings: What makes the ratios speak of something else than the change that was made.
        notes: What the reader should know.
    """

    old: ComparedSide
    new: ComparedSide
    threshold: float
    changes: tuple[Change, ...]
    overall: tuple[Overall, ...]
    tipping_points: tuple[Move, ...]
    environment_differences: tuple[tuple[str, str, str], ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def alarms(self, kinds: Iterable[str]) -> list[str]:
        """Return everything that has one of these verdicts, in words.

        Args:
            kinds: Of `ALARMS`: "slower", "larger", "moved", "undecided", "failing".

        Raises:
            InputError: If a kind is unknown.
        """
        verdicts = {verdict for kind in kinds for verdict in ALARMS[check_choice("verdict to fail on", kind, ALARMS)]}
        found: list[Change | Move] = [change for change in self.changes if change.verdict in verdicts]
        # An undecided tipping point is none of them: most are, wherever a budget was small.
        found += [move for move in self.tipping_points if move.verdict in verdicts & set(ALARMS["moved"])]
        return [str(one) for one in found]

    def __str__(self) -> str:
        lines = [f"{self.old.name} (old) and {self.new.name} (new), same within {format_percent(self.threshold)}"]
        lines += [f"  {one.metric.replace('_', ' ')}: {say_overall(one)}" for one in self.overall]
        lines += [f"  {change}{say_ratio(change)}" for change in self.changes if change.verdict != "same"]
        lines += [f"  {move}" for move in self.tipping_points if move.verdict != "same"]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from tippingpoint.report.notebook import as_html

        return as_html(self)


def compare(
    old: Iterable[Outcome],
    new: Iterable[Outcome],
    *,
    names: tuple[str, str] = ("old", "new"),
    metrics: Iterable[str] = METRICS,
    threshold: float = 0.03,
) -> Comparison:
    """Hold a new run of the same workloads against an old one.

    Workloads are the same if they differ in nothing but threads and cores they are pinned to, which are the
    environment's. A ratio is new over old; it is called "faster" or "slower" ("smaller", "larger") if its whole
    95 % interval is beyond the threshold, "same" if the whole interval lies within it, else "undecided".

    Args:
        old: Outcomes of the old side, oldest first, such as `Store("before.sqlite").outcomes()`.
        new: Outcomes of the new side.
        names: What the two are called in messages.
        metrics: Any of "latency", "throughput", "peak_memory".
        threshold: A share: 0.03 calls what lies between 1 / 1.03 and 1.03 the same.

    Raises:
        InputError: If an argument is not legal, or one side holds several environments for what is compared.
        AnswerError: If the two have no workload in common.
    """
    metrics = tuple(check_choice("metric", metric, METRICS) for metric in metrics)
    if not 0 < threshold < 1:
        raise InputError(f"the threshold must be a share between 0 and 1, got {threshold!r}")
    sides = [Side(name, tuple(outcomes)) for name, outcomes in zip(names, (old, new), strict=True)]
    keys = [key for key in sides[1].outcomes_of if key in sides[0].outcomes_of]
    if not keys:
        raise AnswerError(_nothing_in_common(*sides))
    before, after = (side.of_one_environment(keys) for side in sides)

    changes: list[Change] = []
    means: list[Overall] = []
    for metric in metrics:
        read = memory_ratio if metric == "peak_memory" else time_ratio
        measured = before.measured(metric), after.measured(metric)
        ratios = [read(metric, measured[0][key], new) for key, new in measured[1].items() if key in measured[0]]
        changes += [ratio.change(threshold) for ratio in ratios]
        means += overall(ratios, threshold)
    changes += failures(before, after)
    seen = [metric for metric in metrics if any(change.metric == metric for change in changes)]
    differences = before.environment.differences(after.environment)
    return Comparison(
        old=_summary(before, after),
        new=_summary(after, before),
        threshold=threshold,
        changes=tuple(changes),
        overall=tuple(means),
        tipping_points=tuple(moves(before.outcomes, after.outcomes, seen)),
        environment_differences=tuple(differences),
        warnings=(
            *_other_machine(differences),
            *_other_speed(before, after, keys, threshold),
            *_other_work(changes),
            *_failed_at_times(before, keys),
            *_failed_at_times(after, keys),
            *_doubtful(before, keys),
            *_doubtful(after, keys),
        ),
        notes=(
            *(
                f"{metric.replace('_', ' ')} was not measured on both sides"
                for metric in metrics
                if metric not in seen
            ),
            *_notes(before, after, changes),
        ),
    )


def _summary(side: Side, other: Side) -> ComparedSide:
    failed = sum(isinstance(outcome, Failure) for outcome in side.outcomes)
    return ComparedSide(
        name=side.name,
        environment=side.environment,
        measurements=len(side.outcomes) - failed,
        failures=failed,
        alone=tuple(found[-1].workload for key, found in side.outcomes_of.items() if key not in other.outcomes_of),
    )


def _other_work(changes: Iterable[Change]) -> Iterable[str]:
    where: dict[str, dict[str, None]] = {}
    for change in changes:
        for text in change.unlike:
            where.setdefault(text, {})[describe(change.workload)] = None
    for text, found in where.items():
        yield f"not the same work: {text} in {_few(list(found))}"


def _other_machine(differences: Iterable[tuple[str, str, str]]) -> Iterable[str]:
    told = [f"{name} {old} -> {new}" for name, old, new in differences if name in _MACHINE]
    if told:
        yield f"not the same machine: {', '.join(told)}; ratios hold that difference as well"


def _other_speed(before: Side, after: Side, keys: Sequence[Workload], threshold: float) -> Iterable[str]:
    """Yield by how much the machine itself ran at another speed, where both sides measured its peaks."""
    for dtype in dict.fromkeys(key.dtype for key in keys):
        found = [_peaks(side, [key for key in keys if key.dtype == dtype]) for side in (before, after)]
        if not all(found):
            continue
        flops = [float(np.median([peaks.flops_per_s for peaks in side])) for side in found]
        copied = [float(np.median([peaks.bytes_per_s for peaks in side])) for side in found]
        for (old, new), what, shown in (
            (flops, f"matrix products in {dtype}", [f"{format_count(each)}FLOP/s" for each in flops]),
            (copied, "copies in memory", [f"{format_bytes(each)}/s" for each in copied]),
        ):
            if abs(math.log(new / old)) > math.log1p(threshold):
                speed = f"{format_percent(abs(new / old - 1))} {'slower' if new < old else 'faster'}"
                yield (
                    f"the machine itself ran {speed} in {after.name}: {what} {' -> '.join(shown)}; ratios hold that "
                    "difference as well"
                )


def _peaks(side: Side, keys: Iterable[Workload]) -> list[Peaks]:
    return [o.peaks for key in keys for o in side.outcomes_of[key] if isinstance(o, Measurement) and o.peaks]


def _failed_at_times(side: Side, keys: Iterable[Workload]) -> Iterable[str]:
    for key in keys:
        found = side.outcomes_of[key]
        failures = [outcome for outcome in found if isinstance(outcome, Failure)]
        if 0 < len(failures) < len(found):
            kinds = ", ".join(dict.fromkeys(failure.kind.replace("_", " ") for failure in failures))
            yield f"{describe(key)} failed {len(failures)} of {len(found)} times in {side.name} ({kinds})"


def _doubtful(side: Side, keys: Iterable[Workload]) -> Iterable[str]:
    measured = [o for key in keys for o in side.outcomes_of[key] if isinstance(o, Measurement)]
    doubtful = sum(bool(measurement.warnings) for measurement in measured)
    if doubtful:
        yield (
            f"{side.name}: {doubtful} of {format_items(len(measured), 'measurement')} compared came with warnings "
            "(see `tippingpoint show --warnings`)"
        )


def _notes(before: Side, after: Side, changes: Sequence[Change]) -> Iterable[str]:
    timed = [change for change in changes if change.metric in ("latency", "throughput")]
    if timed:
        yield (
            "the sides were not timed side by side: what else changed on the machine between them is in the ratios; "
            "--repeats 3 or more on each side, at different times, brings it into the intervals"
        )
    for number, side in enumerate((before, after)):
        single = {change.workload for change in timed if change.processes[number] == 1}
        if single:
            everywhere = len(single) == len({change.workload for change in timed})
            which = "every workload" if everywhere else _few([describe(workload) for workload in single])
            yield f"{side.name} has one process for {which}: differences between processes are not in its interval"
    blind = [change for change in timed if change.interval is None]
    if blind:
        told = _few([describe(change.workload) for change in blind])
        yield f"a single timed block shows no noise, so nothing is decided for {told}"


def _few(texts: Sequence[str], most: int = 3) -> str:
    rest = len(texts) - most
    return "; ".join(texts[:most]) + (f"; and {rest} more" if rest > 0 else "")


def _nothing_in_common(before: Side, after: Side) -> str:
    """Return why two sides cannot be compared: the fields of which they share no value."""
    for side in (before, after):
        if not side.outcomes_of:
            return f"{side.name} holds nothing to compare"
    apart = []
    fields = (
        "subject",
        "length",
        "batch_size",
        "phase",
        "device",
        "dtype",
        "size",
        "layers",
        "width",
        "compiled",
        "padded",
    )
    for field in fields:
        old, new = (
            list(dict.fromkeys(str(getattr(key, field)) for key in side.outcomes_of)) for side in (before, after)
        )
        if not set(old) & set(new):
            apart.append(
                f"{field.replace('_', ' ')} {', '.join(old)} in {before.name}, {', '.join(new)} in {after.name}"
            )
    reason = "; ".join(apart) or "each of their values is on both sides, but no combination of them is"
    return f"{before.name} and {after.name} have no workload in common: {reason}"
