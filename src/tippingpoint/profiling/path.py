"""What really ran: the attention path of a call, and the gate that checks a variant before it is timed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tippingpoint.attention.reuse import share
from tippingpoint.errors import UnsupportedError
from tippingpoint.models.build import LiveSubject
from tippingpoint.models.catalog import VARIANTS, check_subject, standing
from tippingpoint.models.layer_attention import ComputingAttention, LayerAttention, load_function
from tippingpoint.models.layers import without_layers
from tippingpoint.models.swap import (
    LIBRARY_NAME,
    variants_of,
    windowed_layers,
    with_max_length,
)
from tippingpoint.profiling.device import Device
from tippingpoint.workload import Variant, Workload

# More positions than any block of the fast functions, and no multiple of anything.
_GATE_LENGTH = 301
_GATE_SHAPE = (2, 3, _GATE_LENGTH, 32)
# What lower precision rounds once or twice (weights, outputs), and what is computed in float32 at least between.
_GATE_ROUNDINGS = 8
_GATE_FLOAT32_ROUNDINGS = 64

# What runs in a layer for which nothing is asked, and its definition.
_FUSED = Variant("sdpa")
_FULL_ORACLE = "tippingpoint.attention.reference:full_attention"


class AttentionCalls(Counter[str]):
    """Calls of the library's attention functions by name.

    Attributes:
        dropout: The largest probability of dropping an attention weight that a call asked for.
    """

    dropout: float = 0.0


@contextmanager
def observe_attention() -> Iterator[AttentionCalls]:
    """Observe calls of the library's attention functions; leaves the table as it was."""
    calls = AttentionCalls()
    table = ALL_ATTENTION_FUNCTIONS._global_mapping
    original = dict(table)

    def observed(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            calls.dropout = max(calls.dropout, kwargs.get("dropout", 0.0))
            return function(*args, **kwargs)

        return call

    try:
        table.update({name: observed(name, function) for name, function in original.items()})
        yield calls
    finally:
        table.clear()
        table.update(original)


def describe_path(
    workload: Workload, subject: LiveSubject, functions: AttentionCalls, operators: Counter[str]
) -> str:
    """Return the attention path of a call in words.

    Args:
        workload: What was asked for.
        subject: What was built.
        functions: Calls of the library's attention functions.
        operators: Operators that ran, by name.

    Raises:
        UnsupportedError: If another path ran than the subject asks for: a number for it would be a lie.
    """
    architecture = subject.architecture
    if architecture.efficient_attention:
        return architecture.efficient_attention
    fused = {name: n for name, n in operators.items() if "attention" in name and "backward" not in name}
    kernel = ", ".join(f"{name} x{n}" for name, n in sorted(fused.items())) or "unfused operators"
    full = f"full, {architecture.own_scores} ({kernel})"
    if architecture.own_scores and not architecture.shares_maps:
        return full
    layers = architecture.shape(subject.config).layers
    subject_asked = check_subject(workload.subject)
    windowed = windowed_layers(subject.model)
    asked = standing(subject_asked, [layer for layer in range(layers) if layer not in windowed], layers)
    there = variants_of(subject.model)
    names = {VARIANTS[variant.name].library_name for variant in asked}
    name = (names.pop() if len(names) == 1 else None) or LIBRARY_NAME
    # The library's eager path does not go through its table of functions.
    wanted = Counter() if name == "eager" else Counter({name: layers})
    if functions != wanted or not all(map(_is, asked, there)):
        wanted_here = "+".join(map(str, subject_asked.variants or (_FUSED,)))
        raise UnsupportedError(
            f"{workload.subject} was to run '{wanted_here}' in {layers} layers, and what ran was "
            f"{dict(functions) or 'the eager path'} with {_listed(there)}"
        )
    if not functions:
        return "eager"
    if not subject_asked.variants and architecture.own_scores:
        return full
    ways = [
        f"{variant}{_way(variant, workload, subject, functions.dropout)}"
        for variant in subject_asked.variants or (_FUSED,)
    ]
    return f"{' and '.join(ways)} ({kernel})"


def _is(asked: Variant, there: Variant) -> bool:
    longest = dict(there.options).get("max_length")
    return asked.name == there.name and with_max_length(asked, None if longest is None else int(longest)) == there


def _listed(standing: Sequence[Variant]) -> str:
    return ", ".join(f"{variant} x{count}" for variant, count in Counter(map(str, standing)).items())


def _way(variant: Variant, workload: Workload, subject: LiveSubject, dropout: float) -> str:
    """Return which of its ways a variant's function takes in the workload, where it has several."""
    row = VARIANTS[variant.name]
    if row.shares_maps:
        modes = {module.ran for module in subject.model.modules() if isinstance(module, ComputingAttention)}
        return f", {' and '.join(sorted(modes)) or 'no layers that share'}"
    if row.path is None:
        return ""
    describe = load_function(row.path)
    positions = subject.architecture.positions(workload.length)
    kind = workload.device.partition(":")[0]
    options = dict(without_layers(variant).options)
    head_dim = subject.architecture.shape(subject.config).head_dim
    return f", {describe(positions, kind, workload.dtype, head_dim=head_dim, dropout=dropout, **options)}"


_FUSED_KERNEL = re.compile(r"\w*(?:flash|fmha|sdpa|attention)\w*", re.IGNORECASE)


def fused_kernels(call: Callable[[], None], device: Device) -> tuple[str, ...]:
    """Return the names of the fused attention kernels that one call runs, from PyTorch's profiler.

    Args:
        call: What to run, once.
        device: Where it runs.
    """
    from torch.profiler import DeviceType, ProfilerActivity, profile

    on_cpu = device.name == "cpu"
    with profile(activities=[ProfilerActivity.CPU if on_cpu else ProfilerActivity.CUDA]) as seen:
        call()
        device.synchronize()
    where = DeviceType.CPU if on_cpu else DeviceType.CUDA
    names = {
        match.group()
        for event in seen.events() or ()
        if event.device_type == where
        for match in [_FUSED_KERNEL.search(event.name)]
        if match
    }
    return tuple(sorted(names))


def check_variants(workload: Workload) -> None:
    """Compare each variant of a workload with its dense oracle on the workload's device and dtype.

    Raises:
        UnsupportedError: If they differ by more than rounding; no speed is reported for a wrong result.
    """
    dtype = getattr(torch, workload.dtype)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(_GATE_SHAPE, generator=generator).to(workload.device, dtype) for _ in range(3))
    padding_mask = torch.ones(_GATE_SHAPE[0], _GATE_LENGTH, dtype=torch.bool, device=workload.device)
    padding_mask[1, _GATE_LENGTH // 2 :] = False

    def compare(variant: Variant, ours: Tensor, oracle: Tensor, kept: torch.dtype) -> None:
        real = padding_mask[:, None, :, None]
        error = ((ours - oracle).abs() * real).max().item()
        single = torch.finfo(torch.float32).eps
        relative = _GATE_ROUNDINGS * torch.finfo(kept).eps + _GATE_FLOAT32_ROUNDINGS * single
        # Of the outputs: they are averages, and far smaller than the values.
        bound = relative * (oracle.abs() * real).max().item()
        if not error <= bound:
            raise UnsupportedError(
                f"'{variant}' differs from its definition by {error:.2g} on {workload.device} in "
                f"{workload.dtype} (allowed {bound:.2g}); its speed would mean nothing"
            )

    asked = check_subject(workload.subject).variants
    for variant in asked:
        row = VARIANTS[variant.name]
        if row.shares_maps:
            alone = [other for other in asked if other != variant and VARIANTS[other.name].keeps_map]
            plain = without_layers(alone[0]) if alone else _FUSED
            options: dict[str, Any] = dict(plain.options)
            kept = torch.bfloat16 if dict(variant.options).get("maps") == "bfloat16" else dtype
            others = value.flip(2)
            with torch.inference_mode():
                oracle = load_function(VARIANTS[plain.name].oracle or _FULL_ORACLE)
                wanted = oracle(query, key, others, padding_mask=padding_mask, **options)
                for mode in ("map", "recompute"):
                    _, shared = share(query, key, value, mode, mask=padding_mask, map_dtype=kept, **options)
                    compare(variant, shared.attend(others), wanted, kept)
        elif row.oracle is not None:
            plain = with_max_length(without_layers(variant), _GATE_LENGTH)
            layer = LayerAttention(plain).to(workload.device, dtype)
            # The definition is told what a variant has learned, in place of the options that it was made of.
            learned = {name.removeprefix("learned."): parameter for name, parameter in layer.named_parameters()}
            with torch.inference_mode():
                ours = layer(query, key, value, mask=padding_mask, bias=None, scale=None, dropout=0.0)
                oracle = load_function(row.oracle)
                wanted = oracle(query, key, value, padding_mask=padding_mask, **(learned or dict(plain.options)))
            compare(variant, ours, wanted, dtype)
