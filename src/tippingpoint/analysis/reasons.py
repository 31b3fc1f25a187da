"""A recommendation in plain words: what, how much it saves, what would change it, what is doubtful."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tippingpoint.analysis.batching import Batching
from tippingpoint.analysis.constraint import OBJECTIVES, Constraint, show_value
from tippingpoint.analysis.switching import Switch
from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.analysis.workload_cost import Estimate, certainly_less
from tippingpoint.data import LengthData
from tippingpoint.units import format_bytes, format_length, format_percent, format_seconds
from tippingpoint.workload import Subject

ITEMS = {"text": "documents", "speech": "recordings", "vision": "images"}
_NAMES = {
    "latency": "mean latency",
    "latency_p50": "median latency",
    "latency_p95": "latency at the 95th percentile",
    "latency_p99": "latency at the 99th percentile",
    "throughput": "throughput",
    "peak_memory": "peak memory",
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What there is to say; see `Recommendation`.

    Attributes:
        data: The lengths.
        batching: How the items are batched.
        objective: What was chosen by.
        choice: What was chosen.
        close: Who is within noise of it.
        baseline: Who was to be beaten.
        costs: Draws of what every candidate costs that was measured far enough.
        fit: Those that keep the constraints.
        points: Tipping points of the variants.
        constraints: What had to be kept.
        covered: Share of the items no longer than what was measured.
        reach: The longest length measured.
        masked: Whether what was measured holds padding where the batches do.
        asked_for_switch: Whether two models were considered.
        switch: The best policy of two, if any gains.
        elsewhere: Other ways of batching that were measured, and who is certainly better there, or the choice.
    """

    data: LengthData
    batching: Batching
    objective: str
    choice: Subject
    close: Subject | None
    baseline: Subject
    costs: Mapping[Subject, Mapping[str, np.ndarray]]
    fit: tuple[Subject, ...]
    points: tuple[TippingPoint, ...]
    constraints: tuple[Constraint, ...]
    covered: float
    reach: float
    masked: bool
    asked_for_switch: bool
    switch: Switch | None
    elsewhere: tuple[tuple[Batching, Subject], ...] = ()

    @property
    def items(self) -> str:
        """What the items are called."""
        return ITEMS[self.data.modality]


def reason(answer: Answer) -> str:
    """Return why the choice was made, with what it saves and where others would pay."""
    data, cost = answer.data, float(answer.costs[answer.choice][answer.objective][0])
    most = format_length(data.percentile(95), data.unit)
    best = {
        "latency": f"fastest on average ({format_seconds(cost)} for one)",
        "throughput": f"fastest in batches ({format_seconds(cost)} for one)",
        "peak_memory": f"smallest at the longest ({format_bytes(cost)})",
    }.get(answer.objective, f"best by {_NAMES[answer.objective]} ({format_seconds(cost)})")
    text = f"95 % of your {answer.items} are at most {most}, and {answer.choice} is {best}"
    if answer.batching.kind != "one":
        text += f", run {answer.batching.describe(data.unit)}"
    against = answer.costs.get(answer.baseline)
    if answer.close and float(answer.costs[answer.close][answer.objective][0]) < cost:
        text = (
            f"95 % of your {answer.items} are at most {most}, and nothing is certainly better than {answer.choice}: "
            f"{answer.close} is within noise of it ({show_value(answer.objective, cost)} for {answer.choice})"
        )
    elif answer.close:
        text += f", within noise of {answer.close}"
    elif answer.choice != answer.baseline and against is not None and answer.objective in against:
        text += f", {float(against[answer.objective][0]) / cost:.2f} times better than {answer.baseline}"
    pays = [_pays(answer, point) for point in _others(answer)]
    return " ".join([f"{text}.", *_savings(answer), *_of_two(answer), *pays])


def _savings(answer: Answer) -> list[str]:
    """Return what 1,000 items take, and what they took with the baseline, where the two certainly differ."""
    own, other = answer.costs[answer.choice], answer.costs.get(answer.baseline)
    name = "throughput" if answer.objective == "throughput" else "per_item"
    if answer.choice == answer.baseline or other is None or answer.objective == "peak_memory":
        return []
    before, after = (format_seconds(1000 * float(draws[name][0])) for draws in (other, own))
    saved = Estimate.of(1 - own[name] / other[name])
    if saved.low <= 0 <= saved.high:
        return [f"1,000 {answer.items} take {after}, within noise of the {before} of {answer.baseline}."]
    less = "less" if saved.value > 0 else "more"
    low, high = sorted((abs(saved.low), abs(saved.high)))
    return [
        f"1,000 {answer.items} take {after} instead of {before}: {format_percent(abs(saved.value))} {less} "
        f"(95 % {format_percent(low)} to {format_percent(high)})."
    ]


def _of_two(answer: Answer) -> list[str]:
    """Return what two models would gain."""
    if not answer.asked_for_switch:
        return []
    two, unit = answer.switch, answer.data.unit
    if two is None:
        return ["No switch between two models beats the best single one."]
    text = (
        f"Two models, {two.short} up to {format_length(two.length, unit)} and {two.long} above it "
        f"({format_percent(two.share)} of the {answer.items}), take {format_seconds(two.cost_s.value)} for one: "
    )
    gain, low, high = (format_percent(share) for share in (two.gain.value, two.gain.low, two.gain.high))
    if not two.certain:
        return [f"{text}within noise of {two.single} alone ({gain} less, 95 % {low} to {high})."]
    return [f"{text}{gain} less than {two.single} alone (95 % {low} to {high}), for the weights of both in memory."]


def _others(answer: Answer) -> list[TippingPoint]:
    """Return the tipping points of variants that were not chosen, where there is one or certainly none."""
    return [
        point
        for point in answer.points
        if point.variant != answer.choice and point.points and (point.length is not None or point.verdict == "never")
    ]


def _pays(answer: Answer, point: TippingPoint) -> str:
    data = answer.data
    if point.length is None:
        reach = format_length(point.measured_range[1], data.unit)
        return f"{point.variant} does not pay up to {reach}, the longest measured."
    share = format_percent(1 - data.share_at_most(point.length))
    pays = format_length(float(f"{point.length:.2g}") if point.length >= 100 else point.length, data.unit)
    return f"{point.variant} would pay from about {pays} on, which {share} of them exceed."


def changes(answer: Answer) -> tuple[str, ...]:
    """Return what would change the answer: other metrics, longer inputs, other batches, another device."""
    found = []
    by_choice: dict[Subject, list[str]] = {}
    for objective in OBJECTIVES:
        known = {subject: answer.costs[subject] for subject in answer.fit if objective in answer.costs[subject]}
        if objective == answer.objective or answer.choice not in known:
            continue
        best = min(known, key=lambda subject: float(known[subject][objective][0]))
        if certainly_less(known[best][objective], known[answer.choice][objective]):
            by_choice.setdefault(best, []).append(_NAMES[objective])
    found += [f"by {' or '.join(names)} it would be {subject}" for subject, names in by_choice.items()]
    longest = answer.data.maximum
    for point in answer.points:
        if point.variant != answer.choice and point.length is not None and point.length > answer.data.percentile(95):
            at = format_length(point.length, point.unit)
            beyond = "longer than any you have" if point.length > longest else "which at most 5 % of yours are"
            found.append(f"longer inputs: {point.variant} is better from {at} on, {beyond}")
    return (*found, *_batched_otherwise(answer))


def _batched_otherwise(answer: Answer) -> list[str]:
    """Return who it would be in other batches, as far as they were measured, and what was not part of the answer."""
    unit = answer.data.unit
    found = [
        f"{other.describe(unit)} it would be {best}" for other, best in answer.elsewhere if best != answer.choice
    ]
    same = [other.describe(unit) for other, best in answer.elsewhere if best == answer.choice]
    found += [f"no other one {' or '.join(same)}"] if same else []
    device = answer.points[0].device if answer.points else "cpu"
    if answer.elsewhere:
        return [*found, f"another device than {device} was not part of this answer"]
    other = "--batching fixed:8" if answer.batching.kind == "one" else "--batching one"
    return [f"another way of batching ({other}), and another device than {device}, were not part of this answer"]


def notes(answer: Answer) -> tuple[str, ...]:
    """Return what is doubtful about the answer."""
    data = answer.data
    found = []
    if answer.covered < 1:
        found.append(
            f"{format_percent(1 - answer.covered)} of the items are longer than "
            f"{format_length(answer.reach, data.unit)}, the longest measured: the answer does not speak of them (a "
            "larger --budget measures longer, --max-length cuts)"
        )
    found += [
        f"whether {answer.choice} keeps '{constraint}' is within noise"
        for constraint in answer.constraints
        if constraint.in_doubt(answer.costs[answer.choice])
    ]
    if data.estimated:
        found.append("lengths are estimates; --tokenizer counts them")
    found += data.notes()
    if data.skipped_count:
        found.append(f"left out because it could not be read: {data.skipped_count:,} of the items")
    if not answer.masked:
        found.append("measured on batches without padding: with it, masks cost a few percent more in some subjects")
    if answer.batching.kind == "packed":
        found.append("nothing keeps the items of a packed sequence from attending to each other")
    found += [f"{point.variant}: {point.answer}" for point in answer.points if point.verdict == "undecided"]
    found.append("quality is not measured here: an approximation may cost accuracy")
    return tuple(found)
