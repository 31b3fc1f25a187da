"""What the attention maps of one sequence are made of, taken where layers hand it to the library's interface.

Queries of the rows that are examined and all keys are kept, O(layers * positions * width); maps are made of them a
few rows at a time. What a layer computes is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tippingpoint.errors import InputError, UnsupportedError

_LEAST_POSITIONS = 2
# What the library lets an attention do to its scores or their softmax beside a mask and a bias.
_BESIDE = ("softcap", "s_aux")


@contextmanager
def observed(attentions: Mapping[int, nn.Module], see: Callable[..., None]) -> Iterator[None]:
    """Let `see` have what some attentions hand to the library's interface, whichever function they get from it.

    Args:
        attentions: By the number of their layer.
        see: Called with this number and what the function is called with, but for the module and the values.
    """
    numbers = {attention: number for number, attention in attentions.items()}
    # On the one table of the process rather than its class, and away again whatever happens.
    table = vars(ALL_ATTENTION_FUNCTIONS)
    standing = table.get("get_interface")
    get_interface = ALL_ATTENTION_FUNCTIONS.get_interface

    def observing(*arguments: Any, **named: Any) -> Callable[..., Any]:
        function = get_interface(*arguments, **named)

        def call(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **others: Any
        ) -> Any:
            if module in numbers:
                see(numbers[module], query, key, attention_mask, **others)
            return function(module, query, key, value, attention_mask, **others)

        return call

    table["get_interface"] = observing
    try:
        yield
    finally:
        del table["get_interface"]
        if standing is not None:
            table["get_interface"] = standing


@dataclass(slots=True)
class Layer:
    """What the scores of the examined rows of a layer are made of.

    Attributes:
        query: [heads, rows, head_dim].
        key: [heads or fewer, positions, head_dim].
        scale: Of the products.
        added: What is added to the scores of the rows.
        hidden: What no query may look at, of the rows.
    """

    query: Tensor
    key: Tensor
    scale: float
    added: list[Tensor]
    hidden: list[Tensor]

    def maps(self, begin: int, end: int) -> Tensor:
        """Return probabilities of some of the rows: [rows, heads, positions]."""
        dtype = torch.float64 if self.query.dtype == torch.float64 else torch.float32
        key = self.key.to(dtype).repeat_interleave(len(self.query) // len(self.key), dim=0)
        scores = self.query[:, begin:end].to(dtype) @ key.mT
        scores *= self.scale
        for bias in self.added:
            scores += bias[:, begin:end] if bias.shape[1] > 1 else bias
        for mask in self.hidden:
            scores.masked_fill_(mask[:, begin:end] if mask.shape[1] > 1 else mask, -torch.inf)
        return scores.softmax(dim=-1).transpose(0, 1).contiguous()


class Seen:
    """What the layers handed to the interface in one call with one sequence.

    Args:
        name: Of model and input, for messages.
        numbers: Of the layers.
        padding: The input's mask, which says which positions are real if it has their number.
        most: Most rows to examine, or None.
        generator: Chooses them.
        start: How many of them were examined in earlier calls.
        budget: Bytes for what is kept of biases.
    """

    def __init__(
        self,
        *,
        name: str,
        numbers: Iterable[int],
        padding: Any,
        most: int | None,
        generator: torch.Generator,
        start: int,
        budget: int,
    ) -> None:
        self._name = name
        self._padding = padding
        self._most = most
        self._generator = generator
        self._start = start
        self._budget = budget
        self.layers: dict[int, Layer | None] = dict.fromkeys(numbers)

    def see(
        self,
        number: int,
        query: Tensor,
        key: Tensor,
        mask: Any,
        *,
        scaling: float | None = None,
        position_bias: Tensor | None = None,
        is_causal: bool | None = None,
        **others: Any,
    ) -> None:
        """Keep what the map of one layer is made of."""
        beside = [name for name in _BESIDE if others.get(name) is not None] + ["causal"] * bool(is_causal)
        if beside:
            raise UnsupportedError(f"{self._name}: its maps are no plain softmax of scores ({', '.join(beside)})")
        if query.shape[2] != key.shape[2] or len(query) != 1:
            raise UnsupportedError(
                f"{self._name}: layer {number} attends from {list(query.shape[:3])} to {list(key.shape[:3])} [batch, "
                "heads, positions]; a map can be shared where a sequence attends to itself"
            )
        if self.layers[number] is not None:
            raise UnsupportedError(
                f"{self._name}: one attention module runs in several layers, so they share their weights and cannot "
                "be planned apart"
            )
        positions = query.shape[2]
        added, hidden = _terms(mask, position_bias, positions, self._name)
        if not any(self.layers.values()):
            self._begin(query, added, hidden)
        if (query.shape[1], positions) != (self.heads, self.positions):
            raise UnsupportedError(
                f"{self._name}: layer {number} has {query.shape[1]} heads and {positions} positions, and others have "
                f"{self.heads} and {self.positions}; layers that share a map must have the same"
            )
        self.layers[number] = Layer(
            query=query[0][:, self.rows],
            key=key[0],
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            added=[_rows(term, self.rows) for term in added],
            hidden=[_rows(term, self.rows) for term in hidden],
        )

    def _begin(self, query: Tensor, added: list[Tensor], hidden: list[Tensor]) -> None:
        """Choose the rows that this call examines."""
        self.heads, self.positions = int(query.shape[1]), int(query.shape[2])
        real = self._real(added, hidden).to(query.device)
        places = real.nonzero()[:, 0]
        self.real = len(places)
        if self.real < _LEAST_POSITIONS:
            raise InputError(
                f"{self._name} has {self.real} real sequence position; maps can be compared from "
                f"{_LEAST_POSITIONS} on: give a longer input"
            )
        if self._most is not None and self.real > self._most:
            order = torch.randperm(self.real, generator=self._generator)[: self._most]
            places = places[order.sort().values.to(places.device)]
        self.total = len(places)
        biases = [term for term in added if term.shape[0] > 1 and term.shape[1] > 1]
        kept = len(self.layers) * self.positions * sum(len(term) * term.element_size() for term in biases)
        fit = max(1, self._budget // kept) if kept else self.total
        self.rows = places[self._start : self._start + fit]

    def _real(self, added: list[Tensor], hidden: list[Tensor]) -> Tensor:
        """Return which positions are real, bool [positions]: by the input's mask, or because some query sees them."""
        padding = self._padding
        if isinstance(padding, Tensor) and padding.shape == (1, self.positions):
            return padding[0] != 0
        real = torch.ones(self.positions, dtype=torch.bool)
        for mask in hidden:
            real = real.to(mask.device) & ~mask.all(dim=(0, 1))
        for bias in added:
            real = real.to(bias.device) & (bias.amax(dim=(0, 1)) > torch.finfo(bias.dtype).min / 2)
        return real

    def check(self) -> None:
        """See to it that every layer was seen."""
        missing = [number for number, layer in self.layers.items() if layer is None]
        if missing:
            raise UnsupportedError(
                f"{self._name}: {len(missing)} of {len(self.layers)} layers handed nothing to the library's "
                "attention interface; give the encoder's own inputs to a model that is not compiled"
            )


def _terms(mask: Any, position_bias: Tensor | None, positions: int, name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return what is added to scores and what is hidden, each [heads or 1, positions or 1, positions]."""
    added = [] if position_bias is None else [_three(position_bias, positions, name)]
    hidden = []
    if mask is not None:
        if not isinstance(mask, Tensor):
            raise UnsupportedError(
                f"{name}: its mask is a {type(mask).__name__}; load the model with attn_implementation='sdpa'"
            )
        if mask.is_floating_point():
            added.append(_three(mask, positions, name))
        elif mask.shape == (1, positions):  # padding, as fused implementations take it
            hidden.append(~mask.to(torch.bool)[None])
        else:
            hidden.append(~_three(mask, positions, name).to(torch.bool))
    return added, hidden


def _three(term: Tensor, positions: int, name: str) -> Tensor:
    """Return a mask or bias of one sequence as [heads or 1, positions or 1, positions]."""
    if term.ndim != 4 or len(term) != 1 or term.shape[3] != positions or term.shape[2] not in (1, positions):
        raise UnsupportedError(
            f"{name}: it adds a mask or bias of shape {list(term.shape)} to the scores of {positions} positions, and "
            "not one of [batch, heads, queries, keys]"
        )
    return term[0]


def _rows(term: Tensor, rows: Tensor) -> Tensor:
    return term[:, rows] if term.shape[1] > 1 else term
