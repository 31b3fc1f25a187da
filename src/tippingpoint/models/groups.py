"""Groups of layers that share one attention map, as a subject writes them. No torch at import time.

reuse:group=3           each three consecutive layers share a map
reuse:group=0-1_2_3-5   layers 0 and 1 share one, and layers 3 to 5; layer 2 has its own, as has any not named
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tippingpoint.errors import InputError
from tippingpoint.models.layers import MOST_LAYERS, layers_of, parse_layers, write_layers
from tippingpoint.workload import OptionValue, Variant

Groups = tuple[tuple[int, ...], ...]

# The variant that says how layers share maps, and its option that says which.
REUSE, GROUP = "reuse", "group"
# Between two groups.
_AND = "_"
WRITTEN = "a number of layers (3), or groups of layers, each N, FIRST-LAST or FIRST-LAST/STEP (0-1_2_3-5)"


def parse_groups(value: OptionValue) -> int | Groups:
    """Return what the option's value says: how many layers share a map, or which.

    Raises:
        InputError: If it is neither, or a layer is in two groups.
    """
    if type(value) is int and value >= 1:
        return value
    if isinstance(value, str) and value.count(_AND) < MOST_LAYERS:
        # A number that Python would not take is no layer either.
        parts = (int(part) if part.isdecimal() and len(part) < 9 else part for part in value.split(_AND))
        groups = tuple(tuple(parse_layers(part)) for part in parts)
        return check_groups(groups, None)
    raise InputError(f"groups must be written as {WRITTEN}, got {value!r}")


def write_groups(groups: Sequence[Sequence[int]]) -> str | int:
    """Return groups as the option's value; those of one layer are left out.

    Raises:
        InputError: If the layers of a group are not evenly spaced: such groups cannot be written in a subject.
    """
    return _AND.join(str(write_layers(group)) for group in groups if len(group) > 1) or 1


def check_groups(groups: Iterable[Iterable[int]], count: int | None) -> Groups:
    """Return groups, each in order, if no layer is in two.

    Args:
        groups: Numbers of layers, from 0.
        count: Layers that there are; None where that is not known.

    Raises:
        InputError: If a group is empty, or a number is no layer or is in two groups.
    """
    found: Groups = tuple(tuple(sorted(group)) for group in groups)
    numbers = [number for group in found for number in group]
    if not all(found):
        raise InputError(f"a group must hold at least one layer, got {list(map(list, found))}")
    if not all(type(number) is int and number >= 0 and (count is None or number < count) for number in numbers):
        last = "" if count is None else f" to {count - 1}"
        raise InputError(f"groups must hold numbers of layers, from 0{last}, got {list(map(list, found))}")
    twice = sorted(number for number, times in Counter(numbers).items() if times > 1)
    if twice:
        raise InputError(f"layers {twice} are in two groups; a layer takes its map from one")
    return found


def equal_groups(layers: Iterable[int], size: int, standing: Sequence[Variant]) -> Groups:
    """Return groups of `size` consecutive layers with the same attention; the last of a run may be smaller.

    Args:
        layers: Those that may share, in order.
        size: Layers of a group.
        standing: What attention each layer of the model has.
    """
    groups: list[list[int]] = []
    for layer in layers:
        if groups and len(groups[-1]) < size and standing[groups[-1][0]] == standing[layer]:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return tuple(map(tuple, groups))


def groups_of(variant: Variant, standing: Sequence[Variant], may_share: Iterable[int]) -> Groups:
    """Return the groups of more than one layer that a variant `reuse` asks for.

    Args:
        variant: With its options checked.
        standing: What attention each layer of the model has.
        may_share: Layers whose map can be kept.

    Raises:
        InputError: If it names a layer that there is not.
    """
    asked = parse_groups(dict(variant.options)[GROUP])
    if isinstance(asked, int):
        chosen = set(layers_of(variant, len(standing)))
        groups = equal_groups([layer for layer in may_share if layer in chosen], asked, standing)
    else:
        groups = check_groups(asked, len(standing))
    return tuple(group for group in groups if len(group) > 1)


def sources(groups: Groups) -> Mapping[int, int]:
    """Return, for each layer that reuses a map, the layer that computes it."""
    return {layer: group[0] for group in groups for layer in group[1:]}


def is_groups(value: OptionValue) -> bool:
    """Whether a value of the option says groups."""
    try:
        parse_groups(value)
    except InputError:
        return False
    return True


def reuse_of(layer: int, mode: str, maps: str, heads: Sequence[int] | None) -> Variant:
    """Return what stands in a layer that takes over the map of another, as a model's configuration writes it.

    Args:
        layer: The one that computes the map.
        mode: "map", "recompute" or "auto".
        maps: What maps are kept in, "same" or "bfloat16".
        heads: For each head, the other layer's head whose map it takes; None for the same ones.
    """
    options: list[tuple[str, OptionValue]] = [("of", layer), ("mode", mode)]
    if maps != "same":
        options.append(("maps", maps))
    if heads is not None:
        options.append(("heads", "-".join(map(str, heads))))
    return Variant(REUSE, tuple(options))


def matched_heads(variant: Variant) -> tuple[int, ...] | None:
    """Return the heads that `reuse_of` wrote into a variant.

    Raises:
        ValueError: If they are no numbers.
    """
    heads = dict(variant.options).get("heads")
    return None if heads is None else tuple(int(head) for head in str(heads).split("-"))
