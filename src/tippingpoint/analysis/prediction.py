"""What a prediction says: costs, tipping points and estimates for another machine, each with what it rests on."""

from __future__ import annotations

from dataclasses import dataclass

from tippingpoint.analysis.scaling import ScalingModel
from tippingpoint.device_profiles import DeviceProfile
from tippingpoint.machine import Environment
from tippingpoint.models.catalog import architecture_of
from tippingpoint.units import format_bytes, format_length, format_seconds
from tippingpoint.workload import Subject, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineEstimate:
    """What another machine would take, from its peaks alone.

    Attributes:
        latency_s: Every component at the machine's peaks: a lower bound, as long as its caches help no more than
            its matrix rate allows.
        scaled_s: The same divided by the share of its own roofline that this machine reaches, or is predicted to
            reach, at the same workload: assumes that software is as good there as here.
        fits: Whether the predicted peak memory is within the machine's.
    """

    latency_s: float
    scaled_s: float
    fits: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """What one call of a subject takes at one length.

    Attributes:
        subject: What runs.
        length: In the native unit.
        positions: Of one sequence.
        executed_positions: After the model's own padding.
        basis: "measured", "interpolated" (between measured lengths) or "extrapolated".
        latency_s: Seconds for each call.
        latency_interval_s: 95 % interval; where extrapolated, from hold-out.
        peak_bytes: Peak memory; None where it is not known.
        peak_interval: 95 % interval of it.
        flops: Executed FLOPs of one call.
        shares: Share of each component in the predicted seconds.
        roofline: Of another machine, where its profile was given.
    """

    subject: Subject
    length: float
    positions: int
    executed_positions: int
    basis: str
    latency_s: float
    latency_interval_s: tuple[float, float]
    peak_bytes: float | None
    peak_interval: tuple[float, float] | None
    flops: float
    shares: dict[str, float]
    roofline: RooflineEstimate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedTippingPoint:
    """From which length on the second subject's predicted cost stays below the first's.

    Attributes:
        baseline: The first subject.
        variant: The second.
        metric: "latency" or "peak_memory".
        basis: "extrapolated", "interpolated" (within the measured lengths) or "roofline estimate".
        length: In the native unit; None is "not up to the horizon".
        interval: 95 %, from the hold-out of both; None as an end is "not up to the horizon". None altogether for
            a roofline estimate, which has none.
        horizon: Shortest and longest length that was looked at.
        unit: Of the lengths.
    """

    baseline: Subject
    variant: Subject
    metric: str
    basis: str
    length: float | None
    interval: tuple[float | None, float | None] | None
    horizon: tuple[float, float]
    unit: str

    @property
    def answer(self) -> str:
        """One sentence."""
        metric, first, last = self.metric.replace("_", " "), *self.horizon
        begin = f"{self.variant} has the lower predicted {metric}"
        looked = f"between {format_length(first, self.unit)} and {format_length(last, self.unit)}"
        if self.length is None:
            text = f"{self.variant} does not get a lower predicted {metric} than {self.baseline} for good {looked}"
        elif self.length == first:
            text = f"{begin} than {self.baseline} everywhere {looked}"
        else:
            text = f"{begin} than {self.baseline} from {format_length(self.length, self.unit)} on"
        if self.interval is None:
            return f"{text} ({self.basis}, no interval)"
        if self.interval == (first, None):
            return f"{text} ({self.basis}; the 95 % interval covers every length {looked}, so this decides nothing)"
        ends = [f"beyond {format_length(last, self.unit)}" if e is None else format_length(e, self.unit)
                for e in self.interval]  # fmt: skip
        return f"{text} ({self.basis}, 95 % {ends[0]} to {ends[1]})"


@dataclass(frozen=True, kw_only=True, repr=False)
class Prediction:
    """What subjects cost at lengths, depths and widths that were not measured; every number says what it rests on.

    Attributes:
        workload: Shape and conditions of what is predicted, at the shortest length asked for.
        environment: Where rates were measured.
        estimates: For each length and subject.
        models: For each subject, rates and hold-out.
        tipping_points: With two subjects or more, of each against the first.
        profile: The other machine, where one was given.
        notes: What the reader should know.
    """

    workload: Workload
    environment: Environment
    estimates: tuple[CostEstimate, ...]
    models: dict[str, ScalingModel]
    tipping_points: tuple[PredictedTippingPoint, ...]
    profile: DeviceProfile | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for one in self.estimates:
            unit = architecture_of(one.subject).unit
            low, high = (format_seconds(end) for end in one.latency_interval_s)
            line = f"{one.subject} at {format_length(one.length, unit)}: {format_seconds(one.latency_s)} "
            line += f"(95 % {low} to {high}, {one.basis})"
            if one.peak_bytes is not None:
                line += f", peak memory {format_bytes(one.peak_bytes)}"
            if one.roofline and self.profile:
                line += (
                    f"; {self.profile.name}: at least {format_seconds(one.roofline.latency_s)} (roofline estimate)"
                )
            lines.append(line)
        lines += [point.answer for point in self.tipping_points]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from tippingpoint.report.notebook import as_html

        return as_html(self)
