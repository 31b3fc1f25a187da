"""What was observed: frozen records that keep raw samples; every statistic is derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

# What a notebook shows is made by `report`, which stands above: the package's own face knows where.
import tippingpoint
from tippingpoint.intervals import center, center_replicates, interval
from tippingpoint.machine import Conditions, Environment, Peaks
from tippingpoint.units import (
    format_bytes,
    format_count,
    format_half_width,
    format_percent,
    format_rate,
    format_seconds,
)
from tippingpoint.workload import Workload

FAILURE_KINDS = ("out_of_memory", "timeout", "crashed", "killed", "unsupported")
# A session is named ROOT (the pass that each subject runs alone), ROOT-GROUP (those timed together),
# ROOT-GROUP-batch (the same, each at its best batch size) or ROOT-look (shallow models that were only looked at).
BEST_BATCH = "-batch"
LOOK = "-look"
# Of normally distributed values 0.7 % lie beyond Tukey's fences; of the few blocks of one workload, sometimes one.
_MANY_OUTLIERS = 0.1
# An outlier is far if it is off by this share of the median.
_FAR = 0.1
# Share of the cores' time that others may take before it is said.
_MUCH_TAKEN = 0.05
# Nothing is faster than the peak; by more than this, the peak was not one.
_ABOVE_PEAK = 1.1
# Executed and algorithmic FLOPs are shown apart from this difference on.
_SAME_FLOPS = 0.01


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed block of calls.

    Attributes:
        round: Pairs it with the other subjects' blocks; no two processes share a round.
        order: Its place within the round.
        started_s: Seconds from the first block of the session to the start of this one.
        calls: How many calls were made.
        seconds: What they took together, on the host's clock.
        device_seconds: The same on the device's own clock, where it has one.
        process: Which of the subject's processes ran it, from 0.
        conditions: What the machine did meanwhile.
        repeated: The device was throttled, and the block was run again: this one is kept, and counts nowhere.
    """

    round: int
    order: int
    started_s: float
    calls: int
    seconds: float
    device_seconds: float | None = None
    process: int = 0
    conditions: Conditions | None = None
    repeated: bool = False

    @property
    def per_call_s(self) -> float:
        """Seconds per call."""
        return self.seconds / self.calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak memory of a call, in bytes above what the process held before the model existed, and its parts.

    Attributes:
        peak_bytes: The most that was held at once.
        weights_bytes: Parameters and buffers, shared ones once.
        inputs_bytes: The batch.
        gradients_bytes: In training, of all parameters.
        optimizer_bytes: In training, state of the optimizer.
        method: How the peak was read.
        reserved_bytes: On CUDA, what the caching allocator had taken from the device at its peak.
    """

    peak_bytes: int
    weights_bytes: int
    method: str
    inputs_bytes: int = 0
    gradients_bytes: int = 0
    optimizer_bytes: int = 0
    reserved_bytes: int | None = None

    @property
    def activations_bytes(self) -> int:
        """What the peak held beside weights, inputs, gradients and optimizer state: activations and workspace."""
        parts = self.weights_bytes + self.inputs_bytes + self.gradients_bytes + self.optimizer_bytes
        return max(0, self.peak_bytes - parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Floating-point operations of one call (a multiply-add is 2).

    Attributes:
        total: What was executed, padding and whole blocks included.
        by_operator: The same by operator.
        uncounted: Operators that look costly and have no formula, and how often each ran.
        algorithmic: What the published definition asks for at the real length, in closed form; None where the
            catalogue has no formula.
        bytes_accessed: Inputs and outputs of every operator that ran, in bytes: what crosses the memory bus if
            no cache helps.
        bytes_by_call: The same in detail: operator, bytes that one call of it reads and writes, and how many of its
            calls do so; empty in records of versions that did not tell.
    """

    total: int
    by_operator: tuple[tuple[str, int], ...]
    uncounted: tuple[tuple[str, int], ...] = ()
    algorithmic: int | None = None
    bytes_accessed: int | None = None
    bytes_by_call: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of one call, from counters alone.

    Attributes:
        joules_per_call: Gross: everything the counters saw, divided by the calls; None without a counter.
        idle_watts: Power of the idle machine just before, by the same counters.
        window_s: Seconds of the window in which calls ran.
        calls: How many ran in it.
        source: Which counters, or why there is none.
    """

    joules_per_call: float | None
    source: str
    idle_watts: float = 0.0
    window_s: float = 0.0
    calls: int = 0

    @property
    def net_joules_per_call(self) -> float | None:
        """Without what the idle machine would have used in the same time."""
        if self.joules_per_call is None:
            return None
        return self.joules_per_call - self.idle_watts * self.window_s / self.calls


@dataclass(frozen=True, kw_only=True, repr=False)
class Measurement:
    """What was observed for a workload.

    Attributes:
        workload: What was measured.
        environment: Where.
        session: Identifies the interleaved session; samples of one session pair by their round.
        positions: Sequence positions of one input.
        executed_positions: Positions after the model's own padding; what was paid for.
        parameters: Number of parameters, shared ones once.
        attention: The path that really ran, as observed in one call.
        warm_ups_s: For each process, seconds per call before the timed blocks; the first one is the cold call.
        samples: The timed blocks, in order, none dropped.
        stop_reason: Why sampling ended.
        memory: Peak memory, from a process of its own.
        flops: From a pass of its own.
        batch_curve: Sequences per second by batch size, where the best one was looked for.
        notes: What the reader of the number should know.
        peaks: How fast this machine was seen to be with the workload's threads and dtype.
        energy: Where it was asked for.
        compile_s: With `torch.compile`, seconds of the first call of all, with an empty cache of compiled code.
    """

    workload: Workload
    environment: Environment
    session: str
    positions: int
    executed_positions: int
    parameters: int
    attention: str
    warm_ups_s: tuple[tuple[float, ...], ...]
    samples: tuple[Sample, ...]
    stop_reason: str
    memory: Memory | None = None
    flops: Flops | None = None
    batch_curve: tuple[tuple[int, float], ...] = ()
    notes: tuple[str, ...] = ()
    peaks: Peaks | None = None
    energy: Energy | None = None
    compile_s: float | None = None

    @cached_property
    def counted(self) -> tuple[Sample, ...]:
        """The samples that count: all but those that were run again because the device was throttled."""
        return tuple(sample for sample in self.samples if not sample.repeated)

    @cached_property
    def per_call_s(self) -> np.ndarray:
        """Seconds per call of every sample that counts, [samples]."""
        return np.array([sample.per_call_s for sample in self.counted])

    @property
    def processes(self) -> tuple[int, ...]:
        """The process of every sample that counts, [samples]."""
        return tuple(sample.process for sample in self.counted)

    @property
    def process_count(self) -> int:
        """How many processes were timed."""
        return len(set(self.processes))

    @cached_property
    def latency_s(self) -> float:
        """Median seconds per batch (of several processes: the geometric mean of their medians)."""
        if self.process_count == 1:
            return float(np.median(self.per_call_s))
        return float(np.exp(center(np.log(self.per_call_s), self.processes)))

    @cached_property
    def latency_interval_s(self) -> tuple[float, float]:
        """95 % interval of the latency."""
        low, high = interval(center_replicates(np.log(self.per_call_s), self.processes))
        return float(np.exp(low)), float(np.exp(high))

    @property
    def half_width(self) -> float:
        """Half-width of the latency's 95 % interval, as a share of the latency."""
        low, high = self.latency_interval_s
        return (high - low) / 2 / self.latency_s

    @property
    def first_call_s(self) -> float:
        """Seconds of the very first call of the first process (cold)."""
        return self.warm_ups_s[0][0]

    @property
    def sequences_per_s(self) -> float:
        """Sequences per second at this batch size."""
        return self.workload.batch_size / self.latency_s

    @property
    def positions_per_s(self) -> float:
        """Real (unpadded) sequence positions per second at this batch size."""
        return self.sequences_per_s * self.positions

    @property
    def flops_per_s(self) -> float | None:
        """Executed floating-point operations per second; None without a count."""
        return self.flops.total / self.latency_s if self.flops else None

    @property
    def share_of_peak(self) -> float | None:
        """Operations per second as a share of this machine's matrix products; None where either is not known."""
        if self.flops_per_s is None or self.peaks is None:
            return None
        return self.flops_per_s / self.peaks.flops_per_s

    @property
    def share_of_bandwidth(self) -> float | None:
        """Bytes accessed per second as a share of this machine's copying.

        Above 1 where caches serve what the operators read and write; None where either is not known.
        """
        if self.flops is None or self.flops.bytes_accessed is None or self.peaks is None:
            return None
        return self.flops.bytes_accessed / self.latency_s / self.peaks.bytes_per_s

    @cached_property
    def _quartiles(self) -> np.ndarray:
        return np.percentile(self.per_call_s, [25, 75])

    @cached_property
    def outliers(self) -> tuple[Sample, ...]:
        """Samples beyond Tukey's fences, 1.5 interquartile ranges from the quartiles; they count all the same."""
        low, high = self._quartiles
        reach = 1.5 * (high - low)
        return tuple(s for s in self.counted if not low - reach <= s.per_call_s <= high + reach)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, high = self._quartiles
        return float((high - low) / self.latency_s)

    @property
    def host_over_device(self) -> float | None:
        """Median of host over device seconds; None where the device has no clock of its own."""
        ratios = [s.seconds / s.device_seconds for s in self.samples if s.device_seconds]
        return float(np.median(ratios)) if ratios else None

    def _taken_by(self, what: str) -> float | None:
        """Share of all cores' time that somebody else took while blocks were timed; None where it is not known."""
        known = [
            (getattr(sample.conditions, what), sample.conditions.cores_s)
            for sample in self.counted
            if sample.conditions is not None and getattr(sample.conditions, what) is not None
        ]
        time = sum(seconds or 0.0 for _, seconds in known)
        return sum(taken for taken, _ in known) / time if time else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is doubtful about this measurement, and what to do next."""
        found = []
        if len(self.counted) < 4:
            found.append(f"only {len(self.counted)} timed blocks: give it a larger --budget")
        elif self.half_width > 0.05:
            more = "with more processes (--repeats 5)" if self.process_count in (2, 3) else "with a larger --budget"
            found.append(f"the 95 % interval of the latency is {format_half_width(self.half_width)}: rerun {more}")
        if self.spread > 0.1:
            found.append(
                f"interquartile range is {format_percent(self.spread)} of the median: something else is using "
                "the machine (see `tippingpoint doctor`), or give it a larger --budget"
            )
        far = [s for s in self.outliers if abs(s.per_call_s / self.latency_s - 1) > _FAR]
        if len(far) > max(1, _MANY_OUTLIERS * len(self.counted)):
            found.append(
                f"{len(far)} of {len(self.counted)} blocks lie far beyond Tukey's fences (they count): look for what "
                "runs now and then, and rerun with a larger --budget"
            )
        throttled = sum(bool(sample.conditions and sample.conditions.throttled) for sample in self.counted)
        if throttled:
            found.append(
                f"{throttled} of {len(self.counted)} blocks ran while the device was throttled: let it cool, or give "
                "the container the cores that its threads need"
            )
        for what, who in (("others_s", "other processes"), ("steal_s", "other virtual machines")):
            share = self._taken_by(what)
            if share is not None and share > _MUCH_TAKEN:
                taken = f"{who} took {format_percent(share)} of the cores' time while it was timed"
                found.append(f"{taken}: rerun when it is quiet")
        if self.host_over_device is not None and self.host_over_device >= 1.2:
            found.append(
                f"launch-bound: the host took {self.host_over_device:.2f} times as long as the device computed; "
                "torch.compile or larger batches would help more than another attention"
            )
        if self.share_of_peak is not None and self.share_of_peak > _ABOVE_PEAK:
            found.append(
                f"it ran {self.share_of_peak:.2f} times as fast as this machine's matrix products: those were timed "
                "while something else ran, so shares of the peak are too high; rerun when it is quiet"
            )
        if self.executed_positions > 1.1 * self.positions:
            found.append(
                f"the model pads {self.positions:,} positions to {self.executed_positions:,} and pays for them"
            )
        if self.flops and self.flops.uncounted:
            names = ", ".join(name for name, _ in self.flops.uncounted)
            found.append(f"FLOPs leave out operators without a formula: {names}")
        return tuple(found)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Everything a reader wants to know, as names and texts."""
        low, high = self.latency_interval_s
        blocks = f"{len(self.counted)} blocks"
        blocks += f" in {self.process_count} processes" if self.process_count > 1 else ""
        found = [
            (
                "latency",
                f"{format_seconds(self.latency_s)}  (95 % {format_seconds(low)} to {format_seconds(high)}, {blocks}, "
                f"first call {format_seconds(self.first_call_s)})",
            ),
            (
                "throughput",
                f"{format_rate(self.sequences_per_s)} sequences/s, {format_count(self.positions_per_s)} positions/s",
            ),
        ]
        if self.compile_s is not None:
            found.append(("compiling", f"{format_seconds(self.compile_s)} (the first call of all)"))
        if self.memory:
            parts = {
                "weights": self.memory.weights_bytes,
                "inputs": self.memory.inputs_bytes,
                "activations": self.memory.activations_bytes,
                "gradients": self.memory.gradients_bytes,
                "optimizer": self.memory.optimizer_bytes,
            }
            listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
            reserved = self.memory.reserved_bytes
            listed += f"; {format_bytes(reserved)} reserved" if reserved is not None else ""
            found.append(("peak memory", f"{format_bytes(self.memory.peak_bytes)}  ({listed})"))
        if self.flops:
            found.append(("FLOPs", f"{format_count(self.flops.total)}  ({self._speed(self.flops)})"))
        if self.energy:
            joules, net = self.energy.joules_per_call, self.energy.net_joules_per_call
            said = f"none ({self.energy.source})"
            if joules is not None and net is not None:
                said = f"{joules:.3g} J, {net:.3g} J above idle  ({self.energy.source})"
            found.append(("energy", said))
        padded = f", padded to {self.executed_positions:,}" if self.executed_positions != self.positions else ""
        return [
            *found,
            ("parameters", format_count(self.parameters)),
            ("positions", f"{self.positions:,}{padded}"),
            ("attention", self.attention),
            *(("note", note) for note in self.notes),
            *(("warning", warning) for warning in self.warnings),
        ]

    def __str__(self) -> str:
        return "\n".join([str(self.workload), *(f"  {name:<12} {text}" for name, text in self.facts)])

    def _speed(self, flops: Flops) -> str:
        """Say how fast the operations ran, and how far from the machine's limits that is."""
        text = f"{format_count(flops.total / self.latency_s)}/s"
        if self.share_of_peak is not None:
            text += f", {format_percent(self.share_of_peak)} of this machine's matrix products"
        if self.share_of_bandwidth is not None:
            text += f", {format_percent(self.share_of_bandwidth)} of its memory bandwidth"
        if flops.algorithmic is not None and abs(flops.total / flops.algorithmic - 1) > _SAME_FLOPS:
            text += f"; its definition asks for {format_count(flops.algorithmic)}"
        return text

    # What a person sees who types its name; the samples would bury everything else.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        return tippingpoint.as_html(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Failure:
    """A workload that could not be measured; a row like any other, never an aborted study.

    Attributes:
        workload: What was tried.
        environment: Where.
        session: The session it belonged to.
        kind: "out_of_memory", "timeout", "crashed", "killed" (with SIGKILL, and not for want of memory as far as the
            kernel tells: mostly by somebody else) or "unsupported".
        message: What happened, in one sentence.
        positions: Sequence positions of one input, where they could be computed.
        refused: True when it was predicted and never tried.
    """

    workload: Workload
    environment: Environment
    session: str
    kind: str
    message: str
    positions: int
    refused: bool = False

    def __str__(self) -> str:
        return f"{self.workload}\n  {self.kind}  {self.message}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return tippingpoint.as_html(self)


Outcome = Measurement | Failure


def is_look(outcome: Outcome) -> bool:
    """Whether an outcome is a rough look, for deciding what to measure."""
    return outcome.session.endswith(LOOK)


def is_best_batch(outcome: Outcome) -> bool:
    """Whether an outcome belongs to rounds in which every subject runs at its best batch size."""
    return outcome.session.endswith(BEST_BATCH)


def session_root(session: str) -> str:
    """Return the part of a session's name that is the same for all that was measured in it."""
    return session.partition("-")[0]


def paired_log_ratios(baseline: Measurement, variant: Measurement) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return log(baseline / variant) of the seconds per sequence, round by round, and the process of each round.

    Positive where the variant is faster. Pairing by round cancels the drift of a shared machine. At unlike
    batch sizes this is the log-ratio of throughputs. Both have the shape [rounds].

    Raises:
        ValueError: If the two were not measured in one session, or share no round.
    """
    if baseline.session != variant.session:
        raise ValueError("measurements of different sessions cannot be paired")
    theirs = {s.round: s.per_call_s / baseline.workload.batch_size for s in baseline.counted}
    ours = {s.round: s for s in variant.counted}
    rounds = sorted(theirs.keys() & ours.keys())
    if not rounds:
        raise ValueError("the two measurements share no round")
    ratios = np.log([theirs[r] * variant.workload.batch_size / ours[r].per_call_s for r in rounds])
    return ratios, tuple(ours[r].process for r in rounds)
