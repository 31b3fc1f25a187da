"""Floating-point operations of a call, the bytes it moved, and which operators it really ran.

Counting is PyTorch's FlopCounterMode with the formulas it lacks or has wrong: in torch 2.13 fused attention on
the CPU counts as 0, and the backward pass of a grouped convolution as too much. One multiply-add is 2 FLOPs.
Element-wise work, normalisation and softmax are not counted, as is usual; operators that multiply matrices and
have no formula are listed.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch._C import DispatchKey  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    bmm_flop,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from torch.utils.module_tracker import ModuleTracker

from tippingpoint.measurement import Flops
from tippingpoint.profiling.traffic import accessed_bytes

_aten = torch.ops.aten


def _fused(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _fused_backward(grad_out: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad_out, query, key, value)


def _convolution_backward(
    grad_out: Any,
    inputs: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Any,
    **kwargs: Any,
) -> int:
    """The gradients of input and weight each take as many multiply-adds as the forward pass."""
    forward = conv_flop_count(inputs, weight, grad_out, transposed=transposed)
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))


def _product_added(total: Any, first: Any, second: Any, *args: Any, **kwargs: Any) -> int:
    return bmm_flop(first, second)


# PyTorch's own table has the fused attention of CUDA (flash, efficient, cuDNN), forward and backward.
FORMULAS: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _fused,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward,
    _aten._scaled_dot_product_attention_math_for_mps: _fused,
    _aten._scaled_dot_product_fused_attention_overrideable: _fused,
    _aten._scaled_dot_product_fused_attention_overrideable_backward: _fused_backward,
    _aten.convolution_backward: _convolution_backward,
    _aten.baddbmm_: _product_added,
}

# Operators whose name says that they multiply matrices, convolve, transform or run a whole layer: without a
# formula they must be reported.
_COSTLY = re.compile(
    r"""(mm|mv|matmul|einsum|conv|convolution|attention|rnn|lstm|gru|layer_fwd)(_|$)
    | (^|_)(bi|tri)?linear(_|$) | conv[0-9] | (^|_)fft | (^|_)cdist
    | linalg_(inv|solve|lstsq|pinv|lu|qr|svd|eig|cholesky|matrix_exp)""",
    re.VERBOSE,
)
_CHEAP = ("scaled_dot_product_attention_math", "_efficientzerotensor")


_WHOLE = "Global"

# Tells where an operator runs that is about to run, from the operator and its arguments.
SpotOf = Callable[[Any, Any], Hashable]
# Is told of a spot, what its operator returned, and what it was given.
Made = Callable[[Any, Any, Any], None]


class _Spots(ModuleTracker):
    """What the counter asks for the modules that are running: the whole call, and the spot of the last operator.

    The counter's own tracker asks each module for a gradient that reversible layers have not.
    """

    spot: Hashable = None

    @property
    def parents(self) -> set[Any]:
        """The whole call, and the last operator's spot."""
        return {_WHOLE} if self.spot is None else {_WHOLE, self.spot}

    @parents.setter
    def parents(self, names: set[str]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Do nothing: the counter's own tracker begins with a set of its own."""

    def __enter__(self) -> _Spots:
        return self

    def __exit__(self, *args: object) -> None:
        pass


@dataclass(slots=True)
class Work:
    """What operators of one spot asked for.

    Attributes:
        flops: Executed operations.
        bytes_accessed: Read and written; None where an operator does not tell.
    """

    flops: int = 0
    bytes_accessed: int | None = 0


class LeafOperators(TorchDispatchMode):
    """Sees the operators that reach the backend, those that others are made of included.

    Under inference mode an operator that is made of others reaches a mode whole. It is taken apart here as the
    backend would: what PyTorch has in Python for its compilers (and `OpOverload.decompose` prefers) runs other
    operators, a copy for a dropout that is off among them.
    """

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take an operator apart, or run it."""
        return self.enter(func, args, kwargs or {})

    def enter(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Take an operator apart, or run it."""
        if _is_made_of_others(func):
            with self:
                return func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        return self.run(func, args, kwargs)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one operator of the backend."""
        raise NotImplementedError


@functools.cache
def _is_made_of_others(func: Any) -> bool:
    if not isinstance(func, torch._ops.OpOverload):
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), DispatchKey.CompositeImplicitAutograd)


class _Operators(LeafOperators):
    """Counts the operators that reach the backend, and the bytes they read and write."""

    def __init__(self, spots: _Spots, spot_of: SpotOf | None, made: Made | None) -> None:
        super().__init__()
        self.counts: Counter[Any] = Counter()
        # By operator and the bytes that one call of it reads and writes.
        self.accesses: Counter[tuple[Any, int]] | None = Counter()
        self.work: dict[Hashable, Work] = {}
        self._spots = spots
        self._spot_of = spot_of
        self._made = made

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.counts[func._overloadpacket] += 1
        if self._spot_of is not None:
            self._spots.spot = self._spot_of(func, args)
        result = func(*args, **kwargs)
        accessed = accessed_bytes(func, args, kwargs, result)
        if accessed is None:  # makes the sum unknown, not smaller
            self.accesses = None
        elif accessed and self.accesses is not None:
            self.accesses[func._overloadpacket, accessed] += 1
        if self._spot_of is not None:
            work = self.work.setdefault(self._spots.spot, Work())
            known = accessed is not None and work.bytes_accessed is not None
            work.bytes_accessed = work.bytes_accessed + accessed if known else None  # type: ignore[operator]
        if self._made is not None:
            self._made(self._spots.spot, result, (args, kwargs))
        return result


def count_flops(call: Callable[[], object]) -> tuple[Flops, Counter[str]]:
    """Run a call once and count.

    Args:
        call: What to run, once.

    Returns:
        Executed FLOPs with the bytes accessed, and how often each operator ran, by name.
    """
    flops, operators, _ = count_work(call)
    return flops, operators


def count_work(
    call: Callable[[], object],
    spot_of: SpotOf | None = None,
    made: Made | None = None,
) -> tuple[Flops, Counter[str], dict[Any, Work]]:
    """Run a call once and count, everything together and by the spot where operators run.

    Args:
        call: What to run, once.
        spot_of: Asked once for each operator that is about to run; None tells no spots apart.
        made: Told of each operator's spot, of what it returned and of what it was given.

    Returns:
        Executed FLOPs with the bytes accessed; how often each operator ran, by name; and the work of each spot.
    """
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    counter.mod_tracker = spots = _Spots()
    operators = _Operators(spots, spot_of, made)
    # The later mode sees an operator first: it takes it apart, and says where it runs before it is counted.
    with counter, operators:
        call()
    counts: dict[Any, dict[Any, int]] = counter.get_flop_counts()  # type: ignore[assignment]
    by_operator = counts.get(_WHOLE, {})
    for spot, work in operators.work.items():
        work.flops = sum(counts.get(spot, {}).values())
    uncounted = {
        _name(op): count
        for op, count in operators.counts.items()
        if op not in counter.flop_registry and _is_costly(_name(op))
    }
    accesses = tuple(sorted((_name(op), size, calls) for (op, size), calls in (operators.accesses or {}).items()))
    flops = Flops(
        total=counter.get_total_flops(),
        by_operator=tuple(sorted((_name(op), int(count)) for op, count in by_operator.items())),
        uncounted=tuple(sorted(uncounted.items())),
        bytes_accessed=None if operators.accesses is None else sum(size * n for _, size, n in accesses),
        bytes_by_call=accesses,
    )
    return flops, Counter({_name(op): count for op, count in operators.counts.items()}), operators.work


def _name(operator: Any) -> str:
    return str(operator).replace("aten.", "")


def _is_costly(name: str) -> bool:
    return bool(_COSTLY.search(name)) and not any(word in name for word in _CHEAP)
