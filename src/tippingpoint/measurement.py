"""What was observed: frozen records that keep raw samples; every statistic is derived from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from tippingpoint.units import format_bytes, format_count, format_percent, format_rate, format_seconds
from tippingpoint.workload import Workload

FAILURE_KINDS = ("out_of_memory", "timeout", "crashed", "unsupported")
REPLICATES = 2000
# A session is named ROOT (the pass that each subject runs alone), ROOT-GROUP (those timed together) or
# ROOT-GROUP-batch (the same, each at its best batch size).
BEST_BATCH = "-batch"
# Below this many samples the bootstrap of a median cannot leave the observed range often enough to hold
# 95 %: with n samples the widest interval it can give covers 1 - 2**(1 - n). Student's t takes over.
# Above it, replicates are still too narrow by sqrt((n - 1) / n) and by the normal quantile where Student's
# belongs, together 1 + 1.7 / (n - 1) to first order (the expanded percentile interval of Hesterberg,
# arXiv:1411.5279). Without that the 95 % interval of 8 samples holds the truth in 90 % of cases.
FEWEST_FOR_BOOTSTRAP = 8
_TOO_NARROW = 1.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The machine and software a measurement was made with; only what stays the same between two runs."""

    device_name: str
    cpu_model: str
    cores: int
    threads: int
    memory_bytes: int
    platform: str
    python: str
    torch: str
    transformers: str
    tippingpoint: str
    cpu_capability: str = ""
    driver: str = ""
    float32_matmul_precision: str = "highest"

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits; equal for two runs that may be compared."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return (
            f"{self.device_name}, {self.threads} threads on {self.cpu_model} ({self.cores} cores, "
            f"{format_bytes(self.memory_bytes)}), torch {self.torch}, transformers {self.transformers}, "
            f"{self.platform}"
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed block: `calls` calls took `seconds`; `round` pairs it with the other arms' blocks."""

    round: int
    order: int
    started_s: float
    calls: int
    seconds: float
    device_seconds: float | None = None

    @property
    def per_call_s(self) -> float:
        """Seconds per call."""
        return self.seconds / self.calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak memory of a call, in bytes above what the process held before the model existed.

    `weights_bytes` is what building the model added; `peak_bytes` minus it is what the call itself needed:
    inputs, activations and, in training, gradients and optimizer state.
    """

    peak_bytes: int
    weights_bytes: int
    method: str

    @property
    def call_bytes(self) -> int:
        """Bytes the call needed beyond the weights."""
        return max(0, self.peak_bytes - self.weights_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Floating-point operations of one call (a multiply-add is 2), and the operators without a formula."""

    total: int
    by_operator: tuple[tuple[str, int], ...]
    uncounted: tuple[tuple[str, int], ...] = ()


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
        warm_up_s: Seconds per call before the timed blocks; the first one is the cold call.
        samples: The timed blocks, in order, none dropped.
        stop_reason: Why sampling ended.
        memory: Peak memory, from a process of its own.
        flops: From a pass of its own.
        batch_curve: Sequences per second by batch size, where the best one was looked for.
        notes: What the reader of the number should know.
    """

    workload: Workload
    environment: Environment
    session: str
    positions: int
    executed_positions: int
    parameters: int
    attention: str
    warm_up_s: tuple[float, ...]
    samples: tuple[Sample, ...]
    stop_reason: str
    memory: Memory | None = None
    flops: Flops | None = None
    batch_curve: tuple[tuple[int, float], ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def per_call_s(self) -> np.ndarray:
        """Seconds per call of every sample, [samples]."""
        return np.array([sample.per_call_s for sample in self.samples])

    @property
    def latency_s(self) -> float:
        """Median seconds per batch."""
        return float(np.median(self.per_call_s))

    @cached_property
    def latency_interval_s(self) -> tuple[float, float]:
        """95 % interval of the median latency."""
        low, high = np.exp(np.percentile(center_replicates(np.log(self.per_call_s)), [2.5, 97.5]))
        return float(low), float(high)

    @property
    def first_call_s(self) -> float:
        """Seconds of the very first call (cold)."""
        return self.warm_up_s[0]

    @property
    def sequences_per_s(self) -> float:
        """Sequences per second at this batch size."""
        return self.workload.batch_size / self.latency_s

    @property
    def positions_per_s(self) -> float:
        """Real (unpadded) sequence positions per second at this batch size."""
        return self.sequences_per_s * self.positions

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, high = np.percentile(self.per_call_s, [25, 75])
        return float((high - low) / self.latency_s)

    @property
    def host_over_device(self) -> float | None:
        """Median of host over device seconds; None where the device has no clock of its own."""
        ratios = [s.seconds / s.device_seconds for s in self.samples if s.device_seconds]
        return float(np.median(ratios)) if ratios else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is doubtful about this measurement, and what to do next."""
        found = []
        low, high = self.latency_interval_s
        if len(self.samples) < 4:
            found.append(f"only {len(self.samples)} timed blocks: give it a larger budget")
        elif (half := (high - low) / 2 / self.latency_s) > 0.05:
            found.append(
                f"the 95 % interval of the latency is +-{format_percent(half)}: rerun with a larger budget on a "
                "quieter machine"
            )
        if self.spread > 0.1:
            found.append(
                f"interquartile range is {format_percent(self.spread)} of the median: something else is using "
                "the machine (see `tippingpoint doctor`)"
            )
        if self.host_over_device is not None and self.host_over_device >= 1.2:
            found.append(
                f"launch-bound: the host took {self.host_over_device:.2f} times as long as the device computed; "
                "torch.compile or larger batches would help more than another attention"
            )
        if self.executed_positions > 1.1 * self.positions:
            found.append(
                f"the model pads {self.positions:,} positions to {self.executed_positions:,} and pays for them"
            )
        if self.flops and self.flops.uncounted:
            names = ", ".join(name for name, _ in self.flops.uncounted)
            found.append(f"FLOPs leave out operators without a formula: {names}")
        return tuple(found)

    def __str__(self) -> str:
        low, high = self.latency_interval_s
        lines = [
            str(self.workload),
            f"  latency      {format_seconds(self.latency_s)}  (95 % {format_seconds(low)} to "
            f"{format_seconds(high)}, {len(self.samples)} blocks, first call {format_seconds(self.first_call_s)})",
            f"  throughput   {format_rate(self.sequences_per_s)} sequences/s, "
            f"{format_count(self.positions_per_s)} positions/s",
        ]
        if self.memory:
            lines.append(
                f"  peak memory  {format_bytes(self.memory.peak_bytes)}  "
                f"(weights {format_bytes(self.memory.weights_bytes)}; {self.memory.method})"
            )
        if self.flops:
            lines.append(
                f"  FLOPs        {format_count(self.flops.total)}  "
                f"({format_count(self.flops.total / self.latency_s)}/s)"
            )
        lines += [
            f"  parameters   {format_count(self.parameters)}",
            f"  positions    {self.positions:,}"
            + (f", padded to {self.executed_positions:,}" if self.executed_positions != self.positions else ""),
            f"  attention    {self.attention}",
            *(f"  note         {note}" for note in self.notes),
            *(f"  warning      {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)

    # What a person sees who types its name; the samples would bury everything else.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Failure:
    """A workload that could not be measured; a row like any other, never an aborted study.

    Attributes:
        workload: What was tried.
        environment: Where.
        session: The session it belonged to.
        kind: "out_of_memory", "timeout", "crashed" or "unsupported".
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


Outcome = Measurement | Failure


def is_best_batch(outcome: Outcome) -> bool:
    """Whether an outcome belongs to rounds in which every subject runs at its best batch size."""
    return outcome.session.endswith(BEST_BATCH)


def center_replicates(values: Sequence[float] | np.ndarray, seed: int = 0, count: int = REPLICATES) -> np.ndarray:
    """Return bootstrap replicates of the centre of a sample, [count].

    From 8 values on, medians of resamples, spread a little wider around the median to make up for the small
    sample. With fewer, the median cannot be resampled honestly: draws from Student's t around the mean. A
    single value has no spread of its own and is returned as it is, which is right only for quantities without
    noise, such as peak memory.

    Args:
        values: Observations, on the scale on which they are roughly symmetric (logarithms of times).
        seed: Of the generator, so that the same data always give the same interval.
        count: Number of replicates.
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError("no values to resample")
    generator = np.random.default_rng(seed)
    if values.size >= FEWEST_FOR_BOOTSTRAP:
        picks = generator.integers(values.size, size=(count, values.size))
        center = np.median(values)
        return center + (1 + _TOO_NARROW / (values.size - 1)) * (np.median(values[picks], axis=1) - center)
    if values.size == 1:
        return np.full(count, values[0])
    error = values.std(ddof=1) / np.sqrt(values.size)
    return values.mean() + error * generator.standard_t(values.size - 1, size=count)


def half_width(values: Sequence[float] | np.ndarray) -> float:
    """Return the half-width of the 95 % interval of the centre of `values`; infinite below two values."""
    if len(values) < 2:
        return float("inf")
    low, high = np.percentile(center_replicates(values), [2.5, 97.5])
    return float(high - low) / 2


def paired_log_ratios(baseline: Measurement, variant: Measurement) -> np.ndarray:
    """Return log(baseline / variant) of the seconds per sequence, round by round, [rounds].

    Positive where the variant is faster. Pairing by round cancels the drift of a shared machine. At unlike
    batch sizes this is the log-ratio of throughputs.

    Raises:
        ValueError: If the two were not measured in one session, or share no round.
    """
    if baseline.session != variant.session:
        raise ValueError("measurements of different sessions cannot be paired")
    theirs = {s.round: s.per_call_s / baseline.workload.batch_size for s in baseline.samples}
    ours = {s.round: s.per_call_s / variant.workload.batch_size for s in variant.samples}
    rounds = sorted(theirs.keys() & ours.keys())
    if not rounds:
        raise ValueError("the two measurements share no round")
    return np.log([theirs[r] / ours[r] for r in rounds])
