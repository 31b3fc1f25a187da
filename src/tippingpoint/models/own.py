"""A model of one's own as a subject, `package.module:callable`. No torch at import time.

The callable is called with the keyword arguments `length` and `batch_size` and returns the model and its inputs: a
tensor, a tuple of tensors, or a mapping from arguments of the model's forward pass to tensors.

    def encoder(*, length: int, batch_size: int):
        return MyEncoder(), torch.randn(batch_size, length, 256)

`is_own` alone decides what is such a name, and `make` alone imports it: a study file that holds one is refused unless
it is trusted (`study.files.load_study`), and names that are read from a store are never made.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from tippingpoint.errors import InputError
from tippingpoint.models.architecture import Architecture, Lengths
from tippingpoint.workload import SIZES

_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_EXPECTED = (
    "expected a callable that takes the keyword arguments length and batch_size and returns (model, inputs), inputs "
    "being a tensor, a tuple of tensors or a mapping from arguments to tensors"
)


def is_own(name: str) -> bool:
    """Whether a subject's architecture is written `package.module:callable`."""
    return _PATH.fullmatch(name) is not None


def own_architecture(name: str) -> Architecture:
    """Return a row like the catalogue's for a model of one's own; its lengths are positions, in whole numbers.

    Args:
        name: `package.module:callable`.
    """
    return Architecture(
        name=name,
        title="a model of your own",
        modality="text",
        paper="",
        config_class="",
        model_class="",
        sizes={size: {} for size in SIZES},
        inputs=_no_inputs,
        lengths=Lengths(positions=int),
        efficient_attention="whatever the model of your own has",
    )


def _no_inputs(*args: Any) -> dict[str, Any]:
    raise AssertionError("a model of one's own comes with its inputs")


def make(name: str, length: int, batch_size: int) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Call a person's callable; return the model, and its positional and its named inputs.

    Args:
        name: `package.module:callable`; the present folder is looked into too.
        length: In positions.
        batch_size: Sequences.

    Raises:
        InputError: If it cannot be imported, or returns something else than a model and inputs.
    """
    from torch import Tensor, nn

    found: Any = _load(name)(length=length, batch_size=batch_size)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], nn.Module):
        raise InputError(f"{name} returned {_described(found)}; {_EXPECTED}")
    model, inputs = found
    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    positional = () if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    if not (named or positional) or not all(isinstance(each, Tensor) for each in (*positional, *named.values())):
        raise InputError(f"{name} returned inputs of type {type(inputs).__name__}; {_EXPECTED}")
    return model, positional, named


def _load(name: str) -> Callable[..., Any]:
    module, _, path = name.partition(":")
    # Last, so that nothing there takes the place of an installed library.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InputError(f"cannot import {name!r}: {error}; it is looked for in the present folder too") from error
    if not callable(found):
        raise InputError(f"{name} is {_described(found)}; {_EXPECTED}")
    return found


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(each).__name__ for each in value) or 'nothing'}"
    return f"something of type {type(value).__name__}"


def first_tensor(output: Any) -> Any:
    """Return what a loss is made of: the first floating-point tensor that a forward pass returns.

    Raises:
        InputError: If there is none.
    """
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    values = output.values() if isinstance(output, Mapping) else [output]
    for leaf in tree_leaves(list(values)):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise InputError(f"training needs a tensor of floating-point numbers to make a loss of, got {_described(output)}")
