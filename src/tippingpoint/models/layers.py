"""The layers that a variant is put into, as a subject writes them: `layers=3`, `layers=0-7`, `layers=0-11/2`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from tippingpoint.errors import InputError
from tippingpoint.workload import OptionValue, Variant

# What the option is called; every variant that is put into a model takes it.
OPTION = "layers"
MEANING = "numbers of the layers that it is put into: one (3), a range with its end (0-7), every second (0-11/2)"
# Deeper models there are none, and a range can be written down.
MOST_LAYERS = 1000
_RANGE = re.compile(r"([0-9]{1,3})-([0-9]{1,3})(?:/([0-9]{1,3}))?")


def parse_layers(value: OptionValue) -> range:
    """Return the layers that the option's value names, counted from 0.

    Raises:
        InputError: If it is no number and no range FIRST-LAST[/STEP].
    """
    if type(value) is int and 0 <= value < MOST_LAYERS:
        return range(value, value + 1)
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match:
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
        if first <= last and step:
            return range(first, last + 1, step)
    raise InputError(
        f"{OPTION} ({MEANING}) must be written N, FIRST-LAST or FIRST-LAST/STEP, got {repr(value)[:80]}; numbers lie "
        f"below {MOST_LAYERS:,}"
    )


def write_layers(layers: Iterable[int]) -> OptionValue:
    """Return layers as the option's value.

    Raises:
        InputError: If they are not evenly spaced: such layers cannot be written.
    """
    numbers = sorted(set(layers))
    steps = {later - earlier for earlier, later in itertools.pairwise(numbers)}
    if not numbers or len(steps) > 1:
        raise InputError(f"expected layers that are evenly spaced, got {numbers}")
    if not steps:
        return numbers[0]
    step = steps.pop()
    return f"{numbers[0]}-{numbers[-1]}" + (f"/{step}" if step > 1 else "")


def layers_of(variant: Variant, count: int) -> range:
    """Return the layers, of `count`, that a variant is put into.

    Raises:
        InputError: If it names a layer that there is not.
    """
    value = dict(variant.options).get(OPTION)
    if value is None:
        return range(count)
    chosen = parse_layers(value)
    if chosen[-1] >= count:
        raise InputError(f"'{variant}' names layer {chosen[-1]}, and the model has layers 0 to {count - 1}")
    return chosen


def without_layers(variant: Variant) -> Variant:
    """Return the variant itself, wherever it is put."""
    return Variant(variant.name, tuple(option for option in variant.options if option[0] != OPTION))
