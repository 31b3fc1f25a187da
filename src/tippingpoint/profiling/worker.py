"""A subject alive in its own process: what it can be asked, and the loop that serves the questions.

The parent asks one thing at a time over a socket and sleeps until the answer comes.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tippingpoint.errors import InputError, TippingPointError, UnsupportedError, WontFitError
from tippingpoint.machine import Peaks
from tippingpoint.measurement import Energy, Memory
from tippingpoint.models.catalog import algorithmic_flops, architecture_of
from tippingpoint.models.own import is_own
from tippingpoint.profiling.answers import Inspection, Problem
from tippingpoint.profiling.device import Device, open_device
from tippingpoint.profiling.energy import measure_energy, open_meter
from tippingpoint.profiling.environment import device_uuid, read_environment
from tippingpoint.profiling.last_words import one_line
from tippingpoint.profiling.memory import (
    SAFE_SHARE,
    KnownPoints,
    bound_call_bytes,
    chooses_mode,
    least_call_bytes,
    predict_call_bytes,
    weight_bytes,
)
from tippingpoint.profiling.peaks import measure_peaks
from tippingpoint.profiling.timing import WarmUp, calls_per_block, warm_up
from tippingpoint.profiling.wire import Wire
from tippingpoint.units import format_bytes
from tippingpoint.workload import Workload

if TYPE_CHECKING:
    from tippingpoint.analysis.breakdown import Parts
    from tippingpoint.models.build import Call
    from tippingpoint.models.components import Patterns

# What PyTorch, CUDA and the C++ library say of want of memory without an exception of its own.
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "bad_alloc", "out of memory", "ALLOC_FAILED")
# Of a trace its end is kept, of a group of exceptions the first ones are named.
_TRACE_CHARACTERS = 20_000
_NAMED = 3


class Worker:
    """Builds one workload's subject and measures it; lives in a process of its own.

    Args:
        device_name: "cpu", "cuda" or "cuda:N".
        threads: CPU threads.
        affinity: Cores to stay on; None leaves it to the system.
        device: Opened from its name when None.

    Raises:
        InputError: If the device is not there, or the process may not run on one of the cores.
    """

    def __init__(
        self,
        device_name: str,
        threads: int,
        affinity: tuple[int, ...] | None = None,
        device: Device | None = None,
    ) -> None:
        import torch

        if affinity is not None:
            _pin(affinity)
        torch.set_num_threads(threads)
        self.device = device or open_device(device_name)
        self.environment = read_environment(device_name, threads)
        self._call: Call | None = None
        self._compile_s: float | None = None

    def build(self, workload: Workload, known: KnownPoints = (), cache: str | None = None) -> int:
        """Build the workload's subject and return its number of parameters.

        Args:
            workload: What to build.
            known: Memory that shorter lengths of the same subject needed.
            cache: Folder for compiled code.

        Raises:
            WontFitError: If it is predicted to need more memory than there is.
            InputError: If the workload is not legal.
        """
        from tippingpoint.models.build import build

        self._refuse_what_cannot_fit(workload, known)
        if cache is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        self.workload = workload
        _touch_libraries(workload.device, workload.dtype)
        if chooses_mode(workload.subject):
            # What times the modes is no part of the model.
            importlib.import_module("torch.utils.benchmark")
        self._before_model = self.device.used_bytes()
        self.subject = build(workload)
        return self.subject.parameters

    def _refuse_what_cannot_fit(self, workload: Workload, known: KnownPoints) -> None:
        from tippingpoint.models.build import count_parameters, make_config

        if is_own(workload.subject.architecture):
            return  # nothing is known of it before it is built
        architecture, config = architecture_of(workload.subject), make_config(workload).to_dict()
        weights = weight_bytes(workload, count_parameters(workload))
        there = self.device.available_bytes()
        least = weights + least_call_bytes(workload, architecture, config)
        call = predict_call_bytes(known, architecture.positions(workload.length))
        if least > SAFE_SHARE * there:
            need, basis, measured = least, "for weights and attention scores alone", True
        elif call is not None:
            need, basis, measured = weights + call, "extrapolated from shorter inputs", True
        else:
            need, basis, measured = (
                weights + bound_call_bytes(workload, architecture, config),
                "an upper bound",
                False,
            )
        if need > SAFE_SHARE * there:
            raise WontFitError(
                f"refused before trying: about {format_bytes(need)} would be needed ({basis}), and "
                f"{format_bytes(there)} are free",
                measured=measured,
            )

    def measure_memory(self) -> Memory:
        """Return peak memory of the first call (training: of the second step too, when optimizer state lives).

        To be asked once, before anything else has run: afterwards the allocator holds memory of its own.
        """
        self.device.trim()
        self.device.reset_peak()
        self._call = call = self.subject.call(self.workload)
        weights, inputs, method = self.subject.weights_bytes, call.inputs_bytes, self.device.memory_method
        first, _ = self.device.time_block(call, 1)
        if self.workload.phase == "training":
            call()
        peak = self.device.peak_bytes() - self._before_model
        if chooses_mode(self.workload.subject):
            # In the first call two modes were timed against each other; a later one runs the faster alone.
            self.device.trim()
            self.device.reset_peak()
            call()
            peak = self.device.peak_bytes() - self._before_model
            method += "; of a call after choosing a mode"
        if self.workload.compiled:
            # The compiler ran in the first call and left much behind; only a later call is the model's own.
            self._compile_s = first
            self.device.trim()
            held = self.device.used_bytes()
            self.device.reset_peak()
            call()
            above = self.device.peak_bytes() - held
            peak = weights + inputs + call.gradients_bytes + call.optimizer_bytes + above
            method += "; of a call after compiling, above what stays between calls"
        return Memory(
            # Of a tiny model a reading in pages may miss what it certainly holds.
            peak_bytes=max(peak, weights + inputs),
            weights_bytes=weights,
            inputs_bytes=inputs,
            gradients_bytes=call.gradients_bytes,
            optimizer_bytes=call.optimizer_bytes,
            reserved_bytes=self.device.reserved_bytes(),
            method=method,
        )

    def inspect(self) -> Inspection:
        """Check the variant against its oracle, run one call, and say what really ran.

        Raises:
            UnsupportedError: If another attention ran than the subject asks for, or the variant's output
                differs from its oracle's in this environment.
        """
        from tippingpoint.profiling.flops import count_flops
        from tippingpoint.profiling.path import check_variants, describe_path, fused_kernels, observe_attention

        check_variants(self.workload)
        # Operators are counted one by one; compiled code would hide them.
        compiled = self.workload.compiled
        call = None if compiled else self._call
        call = call or self.subject.call(self.workload.replace(compiled=False))
        with observe_attention() as functions:
            flops, operators = count_flops(call)
        flops = replace(flops, algorithmic=algorithmic_flops(self.workload, self.subject.config))
        attention = describe_path(self.workload, self.subject, functions, operators)
        if compiled or self.workload.device != "cpu":
            names = ", ".join(fused_kernels(self._call or call, self.device)) or "none for attention alone"
            attention += f"; {'compiled, ' if compiled else ''}kernels: {names}"
        return Inspection(
            flops=flops, attention=attention, notes=self.subject.architecture.notes, compile_s=self._compile_s
        )

    def break_down(self, patterns: Patterns | None, budget_s: float) -> Parts:
        """Return the parts of a call: what each asks for and takes.

        Args:
            patterns: A person's own names of modules.
            budget_s: Seconds for timing.
        """
        from tippingpoint.profiling.components import break_down

        self.device.keep()
        _, calls = self.warm_up()
        assert self._call is not None
        return break_down(self._call, self.subject.model, self.device, patterns, budget_s=budget_s, calls=calls)

    def trace(self, path: str, patterns: Patterns | None) -> None:
        """Write one call as a Chrome trace, with the parts as ranges."""
        from tippingpoint.profiling.components import write_trace

        if self._call is None:
            self.warm_up()
        assert self._call is not None
        write_trace(self._call, self.subject.model, self.device, patterns, path)

    def set_batch_size(self, batch_size: int) -> None:
        """Make a batch of another size; the old one is let go first."""
        self._call = None
        self.workload = self.workload.replace(batch_size=batch_size)
        self._call = self.subject.call(self.workload)

    def warm_up(self, brief: bool = False) -> tuple[WarmUp, int]:
        """Warm up; return its record and the number of calls that make a block."""
        if self._call is None:
            self._call = self.subject.call(self.workload)
        record = warm_up(self.device, self._call, brief=brief)
        # What lives now lives until the end; the collection before each block need not look at it again.
        gc.collect()
        gc.freeze()
        return record, calls_per_block(record.per_call_s[-1])

    def time_block(self, calls: int) -> tuple[float, float | None]:
        """Time a block of calls: host seconds, and the device's own where it has a clock."""
        assert self._call is not None, "warm up first"
        return self.device.time_block(self._call, calls)

    def feed(self, length: float, lengths: tuple[float, ...], seed: int = 0) -> None:
        """Make a batch of items with lengths of their own, padded and masked, and leave it to the calls that follow.

        Args:
            length: At which it runs, no longer than what was built.
            lengths: Of its sequences.
            seed: Of their values.
        """
        if self._call is None:
            self._call = self.subject.call(self.workload)
        self.subject.feed(self._call, self.workload.replace(length=length, batch_size=len(lengths)), lengths, seed)

    def time_batch(self, length: float, lengths: tuple[float, ...], seed: int = 0) -> tuple[int, float, float | None]:
        """Time one batch: calls, host seconds, and the device's own where it has a clock.

        A batch that takes as long as a block, as nearly all do, is run once. A shorter one wakes the threads, and is
        then timed in a block, as single lengths are.
        """
        self.feed(length, lengths, seed)
        seconds, device_seconds = self.time_block(1)
        calls = calls_per_block(seconds)
        return (calls, *self.time_block(calls)) if calls > 1 else (1, seconds, device_seconds)

    def measure_peak(self, batches: tuple[tuple[float, tuple[float, ...]], ...]) -> tuple[int, str]:
        """Return the most memory that any of some batches takes, and how it was read.

        To be asked once, before anything else has run: afterwards the allocator holds memory of its own.

        Args:
            batches: Length and lengths of each, as `feed` takes them.
        """
        peaks = []
        self.device.trim()
        for length, lengths in batches:
            self.device.reset_peak()
            self.feed(length, lengths)
            assert self._call is not None
            self._call()
            if self.workload.phase == "training":
                self._call()  # the state of the optimizer lives
            peaks.append(self.device.peak_bytes() - self._before_model)
        return max(peaks), self.device.memory_method

    def memory_facts(self) -> tuple[str, int]:
        """Return how peak memory is read here, and the bytes that are free on the device."""
        return self.device.memory_method, self.device.available_bytes()

    def available_bytes(self) -> int:
        """Return bytes that could still be taken on the device."""
        return self.device.available_bytes()

    def device_uuid(self) -> str:
        """Return the UUID by which the parent finds a GPU's sensors; empty for the CPU."""
        return device_uuid(self.device.name)

    def peaks(self, dtype: str) -> Peaks:
        """Return how fast this machine can be, with the threads of this worker and in a dtype."""
        return measure_peaks(self.device, self.environment.threads, dtype)

    def energy_source(self) -> str:
        """Return which counters of energy there are, or "none" and the reason."""
        meter = open_meter(self.device.name)
        return f"none: {meter}" if isinstance(meter, str) else meter.source

    def measure_energy(self) -> Energy:
        """Return the energy of a call; takes more than eleven seconds where there is a counter."""
        assert self._call is not None, "warm up first"
        return measure_energy(open_meter(self.device.name), self.device, self._call)


def _pin(affinity: tuple[int, ...]) -> None:
    """Stay on some cores; threads that are started later do so too."""
    if not hasattr(os, "sched_setaffinity"):
        raise InputError(f"this system ({sys.platform}) cannot pin a process to cores; leave the affinity out")
    allowed = os.sched_getaffinity(0)
    if not allowed.issuperset(affinity):
        raise InputError(
            f"affinity names cores {', '.join(map(str, affinity))}, and this process may use "
            f"{', '.join(map(str, sorted(allowed)))}"
        )
    os.sched_setaffinity(0, affinity)


def _touch_libraries(device: str, dtype: str) -> None:
    """Run each kind of operator once, so that code pages and thread pools are not counted as the model's."""
    import torch
    import torch.nn.functional as F

    # Training in a lower precision runs float32 too.
    for kind in {torch.float32, getattr(torch, dtype)}:
        x = torch.ones(1, 2, 64, 64, device=device, dtype=kind)
        F.scaled_dot_product_attention(x, x, x)
        F.layer_norm(F.gelu(F.linear(x @ x, x[0, 0])), (64,)).softmax(-1)
        F.conv1d(x[0], torch.ones(64, 64, 3, device=device, dtype=kind))


def classify(error: BaseException) -> Problem:
    """Return what an exception means for a study: the kind of failure and one sentence."""
    try:
        return _classify(error)
    except BaseException:  # noqa: BLE001 (a subject's exception may raise when it is looked at)
        return Problem("crashed", "an exception was raised that cannot be described", "")


def _classify(error: BaseException) -> Problem:
    trace = "".join(traceback.format_exception(error))[-_TRACE_CHARACTERS:]
    message = _describe(error)
    if isinstance(error, BaseExceptionGroup):
        leaves = _leaves(error)
        message = f"{message}: {'; '.join(map(_describe, leaves[:_NAMED]))}"
        ran_out = any(map(_is_out_of_memory, leaves))
        return Problem("out_of_memory" if ran_out else "crashed", one_line(message), trace)
    if _is_out_of_memory(error):
        return Problem("out_of_memory", message, trace)
    if isinstance(error, WontFitError):
        return Problem("out_of_memory", str(error), trace, "measured" if error.measured else "bound")
    if isinstance(error, UnsupportedError):
        return Problem("unsupported", str(error), trace)
    if isinstance(error, InputError) and _is_ours(error):
        return Problem("input", str(error), trace)
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return Problem("unsupported", f"torch.compile cannot take it: {message}", trace)
    if isinstance(error, TippingPointError):
        return Problem("crashed", str(error), trace)
    return Problem("crashed", message, trace)


def _is_ours(error: BaseException) -> bool:
    """Whether nothing but this package was on the way to an exception; a subject may raise whatever it likes."""
    names = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return all(name == "contextlib" or name.startswith("tippingpoint.") for name in names)


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        # They raise nothing narrower.
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


def _describe(error: BaseException) -> str:
    """Return class and message of an exception, on one line."""
    try:
        said = str(error)
    except BaseException as another:  # noqa: BLE001
        said = f"(its message raises {type(another).__name__})"
    return one_line(f"{type(error).__name__}: {said}")


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Return the exceptions of a group and of the groups in it."""
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


def serve(wire: Wire) -> None:
    """Answer the parent until it hangs up.

    The first message is (device name, threads, affinity) and is answered with the environment; each later one is
    (method, arguments). Answers are (True, result) or (False, Problem).
    """
    worker: Worker | None = None
    own = os.getpid()
    while True:
        try:
            message = wire.receive()
        except EOFError:
            return  # the parent is gone or done; nothing to clean up
        try:
            result: Any
            if worker is None:
                worker = Worker(*message)
                result = worker.environment
            else:
                method, arguments = message
                result = getattr(worker, method)(*arguments)
        except BaseException as error:  # noqa: BLE001 (the isolation boundary: whatever a subject raises is a row)
            answer = (False, classify(error))
        else:
            answer = (True, result)
        if os.getpid() != own:
            os._exit(0)  # a process that the subject forked came back here; only one may answer
        with suppress(Exception):  # the subject may have closed them
            sys.stdout.flush()
            sys.stderr.flush()
        _answer(wire, answer)


def _answer(wire: Wire, answer: tuple[bool, Any]) -> None:
    try:
        wire.send(answer)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 (raised before a byte was sent: what a subject made cannot be pickled)
        problem = classify(error)
        wire.send((False, replace(problem, message=f"its answer cannot be sent: {problem.message}")))
