"""Depth and width of an encoder, whatever its configuration calls them. No torch at import time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """What a stack of layers is made of.

    Attributes:
        layers: Depth.
        width: Hidden size: all heads side by side.
        heads: Attention heads of a layer.
        wide: Inner size of the feed-forward part.
    """

    layers: int
    width: int
    heads: int
    wide: int

    @property
    def head_dim(self) -> int:
        """Dimensions of a head."""
        return self.width // self.heads


# What most of the library's configurations call the attributes of a shape.
KEYS: Mapping[str, str] = MappingProxyType(
    {
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "wide": "intermediate_size",
    }
)


def plain_shape(config: Mapping[str, Any], keys: Mapping[str, str] = KEYS) -> Shape:
    """Return the shape of a plain stack of equal layers.

    Args:
        config: Of the model.
        keys: What the configuration calls each attribute of a shape; with "ratio" in place of "wide", where it
            has the ratio of the inner size to the width, and without "heads", where there is no attention: the
            whole width is one head then.
    """
    values = {"heads": 1} | {name: config[key] for name, key in keys.items()}
    if "ratio" in values:
        values["wide"] = int(values.pop("ratio") * values["width"])
    return Shape(**values)
