"""Bytes that an operator reads and writes, if nothing of what it reads is in a cache.

Each operator is taken to read each of its inputs from memory once and to write each of its outputs once. Fusion and
caches make the true traffic smaller; an operator that reads an input again and again makes it larger.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

# These read no more than the shape of what they are given ...
_SHAPE_ONLY = re.compile(r"^new_|_like$|^empty")
# ... these leave what they allocate as it is ...
_UNWRITTEN = re.compile(r"^(new_)?empty(_|$)")
# ... these write their first argument without having read it ...
_OVERWRITES = re.compile(
    r"^(copy|fill|zero|normal|uniform|bernoulli|random|exponential|geometric|cauchy|log_normal)_$"
    r"|^_foreach_(copy|zero)_$"
)
# ... and these read no more of their table than they pick from it.
_PICKS = re.compile(r"^(embedding|index|_unsafe_index|index_select|gather|take)$")


def accessed_bytes(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int | None:
    """Return bytes that one call of an operator read and wrote.

    Views and changes of metadata move nothing. What is written in place is read as well, unless it is overwritten.
    Of a broadcast or overlapping tensor only what is stored counts.

    Args:
        operator: An overload of PyTorch's dispatcher.
        args: It was called with.
        kwargs: It was called with.
        result: What it returned.

    Returns:
        Bytes; None where a tensor is not stored with strides (sparse, say).
    """
    name = operator._schema.name.partition("::")[2]
    read: list[Tensor] = []
    written: list[Tensor] = []
    for argument, value in _bound(operator, args, kwargs):
        tensors = _tensors(value)
        write = argument.alias_info is not None and argument.alias_info.is_write
        if write:
            written += tensors
        # `out=` is only written; an argument that is given by position has a value of its own.
        if not (write and (argument.kwarg_only or _OVERWRITES.search(name))):
            read += tensors
    returned = _tensors(result)
    if any(tensor.layout is not torch.strided for tensor in (*read, *written, *returned)):
        return None
    given = {storage_id(tensor) for tensor in (*read, *written)}
    made = [tensor for tensor in returned if storage_id(tensor) not in given]
    # A view makes nothing, nor does a question about a shape; a question about values reads them.
    idle = not written and not made and torch.Tag.data_dependent_output not in operator.tags
    if idle or torch.Tag.inplace_view in operator.tags:
        return 0
    output = sum(map(stored_bytes, (*written, *([] if _UNWRITTEN.search(name) else made))))
    if _SHAPE_ONLY.search(name):
        return output
    sizes = [stored_bytes(tensor) for tensor in read]
    if _PICKS.search(name):
        sizes[0] = min(sizes[0], output)
    return sum(sizes) + output


def stored_bytes(tensor: Tensor) -> int:
    """Return bytes that a tensor's elements take in memory, those that several positions share once.

    Exact for slices, for broadcast dimensions (stride 0) and for windows that overlap along one dimension.
    """
    if not tensor.numel():
        return 0
    sizes = [(size, abs(stride)) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    elements = prod(size for size, stride in sizes if stride)
    span = 1 + sum((size - 1) * stride for size, stride in sizes)
    return min(elements, span) * tensor.element_size()


def _bound(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Pair what was given with the schema's arguments."""
    for place, argument in enumerate(operator._schema.arguments):
        if place < len(args):
            yield argument, args[place]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def storage_id(tensor: Tensor) -> int:
    """Identify what a tensor lives in; unlike an address, also where nothing is allocated."""
    return tensor.untyped_storage()._cdata
