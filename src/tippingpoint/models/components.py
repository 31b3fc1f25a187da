"""What the parts of a model are called, by the names of its modules. No torch at import time.

A module that no rule names belongs to what it stands in; if that has no name either, it is listed by its class, so
that nothing vanishes. What runs inside an attention between its projections is told apart by what it does: see
`tippingpoint.profiling.attribution`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tippingpoint.errors import InputError

INPUT = "input"
ATTENTION = "attention"
FEED_FORWARD = "feed-forward"
CONVOLUTION = "convolution module"
NORMS = "norms and residuals"
RESAMPLING = "down- and upsampling"
HEAD = "head"
LOSS = "loss"
OPTIMIZER = "optimizer"
OTHER = "other"
# In the order of a forward pass.
GROUPS = (INPUT, ATTENTION, CONVOLUTION, FEED_FORWARD, NORMS, RESAMPLING, HEAD, LOSS, OPTIMIZER, OTHER)

PROJECTIONS = "QKV projections"
OUTPUT_PROJECTION = "output projection"
# Work of an attention that stays, whatever stands between its projections.
AROUND = (PROJECTIONS, OUTPUT_PROJECTION)


@dataclass(frozen=True, slots=True)
class Label:
    """What a part is called.

    Attributes:
        group: The larger part it belongs to, such as "attention".
        name: Its own name, such as "QKV projections"; that of the group where it is the whole of it.
    """

    group: str
    name: str

    def __str__(self) -> str:
        return self.name if self.group in (self.name, OTHER) else f"{self.group}: {self.name}"


# An attention as a whole: its operators are told apart one by one.
ATTENTION_ITSELF = Label(ATTENTION, ATTENTION)
RESIDUALS = Label(NORMS, NORMS)
RELATIVE = Label(ATTENTION, "relative positions")

# By the class of the module: attentions, less layers that hold one beside their norm and residual (T5).
_ATTENTION_CLASS = re.compile(r"Attention(?!Layer|Output|Block|Structure)\w*$|FourierTransform$")
_HOLDS_ATTENTION = re.compile(r"Layer\w*Attention$")
# These are never a part of their own.
_INSIDE_OTHERS = re.compile(r"^(Dropout\w*|Identity|ModuleList|ModuleDict|Sequential|ParameterList)$")
_NORM_CLASS = re.compile(r"Norm(\d?d)?$|LayerScale|DropPath|StochasticDepth")


def _somewhere(names: str) -> re.Pattern[str]:
    """Match a module of one of these names, and everything in it."""
    return re.compile(rf"(?:^|\.)(?:{names})(?:\.|$)")


def _at_end(names: str) -> re.Pattern[str]:
    """Match a module of one of these names alone."""
    return re.compile(rf"(?:^|\.)(?:{names})$")


# What is a part with everything in it, in this order.
_WHOLE: tuple[tuple[re.Pattern[str], Label], ...] = (
    (re.compile(r"^activation$"), Label(HEAD, HEAD)),  # of BigBird's pooler
    (_somewhere(r"\w*relative_position_bias|attention_structure"), RELATIVE),
    (_somewhere(r"pooler|classifier|lm_head|qa_outputs|cls|score"), Label(HEAD, HEAD)),
    (_somewhere(r"feature_extractor|subsampl\w*"), Label(INPUT, "convolutional front end")),
    (re.compile(r"^conv[12]$"), Label(INPUT, "convolutional front end")),
    (_somewhere(r"feature_projection|project_features"), Label(INPUT, "feature projection")),
    (_somewhere(r"pos_conv_embed"), Label(INPUT, "positional convolution")),
    (_somewhere(r"patch_embed\w*"), Label(INPUT, "patch embedding")),
    (
        _somewhere(
            r"(\w+_)?embeddings?|embed_tokens|\w*embed_positions|encode_positions|shared|wte|wpe"
            r"|layernorm_embedding|\w*rotary\w*"
        ),
        Label(INPUT, "embedding"),
    ),
    (_somewhere(r"conv_module|conv"), Label(CONVOLUTION, CONVOLUTION)),
    # In Hiera a layer has a shortcut of its own where the width changes.
    (_somewhere(r"(down|up)_?sampl\w*|pool(ing)?|\w*merging|layers\.\d+\.proj"), Label(RESAMPLING, RESAMPLING)),
)
# Inside an attention, with everything in it.
_WHOLE_IN_ATTENTION: tuple[tuple[re.Pattern[str], Label], ...] = (
    (
        _somewhere(r"\w*relative\w*|rel_\w+|gru_rel\w*|linear_pos|distance_embedding|continuous_position_bias_mlp"),
        RELATIVE,
    ),
    (_somewhere(r"sr|spatial_reduction|sequence_reduction|pool"), Label(ATTENTION, "spatial reduction")),
    (_somewhere(r"conv"), Label(ATTENTION, "convolution of values")),
)
_IN_ATTENTION: tuple[tuple[re.Pattern[str], Label], ...] = (
    (
        _at_end(
            r"(query|key|value)(_global)?|query_key(_value)?|[qkv]|[qkv]_(proj|lin|head)|linear_[qkv]|W?qkv(_proj)?"
            r"|in_proj|c_attn|to_(q|k|v|qkv)"
        ),
        Label(ATTENTION, PROJECTIONS),
    ),
    (
        _at_end(r"dense|out_proj|o_proj|o|Wo|linear_out|out_lin|proj|post_proj|c_proj|to_out(\.\d+)?"),
        Label(ATTENTION, OUTPUT_PROJECTION),
    ),
)
_IN_LAYER: tuple[tuple[re.Pattern[str], Label], ...] = (
    (
        _at_end(
            r"intermediate\.dense|intermediate_dense|feed_forward\.dense\.dense|fc1|lin1|linear_?1|dense1|wi(_\d)?|Wi"
            r"|up_proj|gate_proj|weights_in|c_fc"
        ),
        Label(FEED_FORWARD, "up"),
    ),
    (
        _at_end(
            r"output\.dense|output_dense|fc2|lin2|linear_?2|dense2|wo|Wo|down_proj|weights_out|c_proj"
            r"|feed_forward\.output\.dense"
        ),
        Label(FEED_FORWARD, "down"),
    ),
    (_somewhere(r"dwconv|depthwise_conv\w*"), Label(FEED_FORWARD, "depthwise convolution")),
    (
        _at_end(
            r"intermediate|mlp|ffn\d?|ff\d?|feed_forward\d?|DenseReluDense|feed_forward\.(dense|output)"
            r"|\w*act(ivation)?(_fn)?\d?"
        ),
        Label(FEED_FORWARD, "activation"),
    ),
    # A dense layer with the residual and the norm behind it: what is not the dense layer.
    (_at_end(r"output"), RESIDUALS),
)

Patterns = Mapping[str, Label]


def label_of(path: str, kind: str, *, inside: bool, leaf: bool) -> Label | None:
    """Return what a module is called; None where it belongs to what it stands in.

    Args:
        path: Its name in the model, such as "encoder.layer.3.attention.self.query"; empty for the model itself.
        kind: Name of its class.
        inside: Whether it stands in an attention.
        leaf: Whether it has no modules of its own.
    """
    if inside:
        return _inside_attention(path, kind, leaf=leaf)
    for pattern, label in _WHOLE:
        if pattern.search(path):
            return label
    if _ATTENTION_CLASS.search(kind) and not _HOLDS_ATTENTION.search(kind):
        return ATTENTION_ITSELF
    return RESIDUALS if _NORM_CLASS.search(kind) else _first(_IN_LAYER, path)


def chosen_label(path: str, patterns: Patterns) -> Label | None:
    """Return what a person calls a module; None where no pattern fits."""
    return next((label for pattern, label in patterns.items() if fnmatchcase(path, pattern)), None)


def _inside_attention(path: str, kind: str, *, leaf: bool) -> Label | None:
    if _NORM_CLASS.search(kind):
        return RESIDUALS
    if _ATTENTION_CLASS.search(kind):
        return ATTENTION_ITSELF
    # Some call the projection "output", others what holds it beside a norm and the residual.
    if re.search(r"(?:^|\.)output$", path):
        return Label(ATTENTION, OUTPUT_PROJECTION) if leaf else RESIDUALS
    return _first(_WHOLE_IN_ATTENTION, path) or _first(_IN_ATTENTION, path)


def is_part(kind: str) -> bool:
    """Whether a module of a class that no rule names is a part of its own, and not of what it stands in."""
    return not _INSIDE_OTHERS.search(kind)


def _first(rules: Sequence[tuple[re.Pattern[str], Label]], path: str) -> Label | None:
    return next((label for pattern, label in rules if pattern.search(path)), None)


def parse_patterns(record: object) -> dict[str, Label]:
    """Return a person's own names of parts.

    Args:
        record: Module names to parts, as a YAML file holds them: `"blocks.*.mixer": attention`,
            `"blocks.*.mlp.0": feed-forward/up`. `*` stands for anything, the first pattern that fits a module
            counts, and what stands in the module goes with it. A module that is called "attention" has its
            operators told apart (QK^T, mask and softmax, AV).

    Raises:
        InputError: If it is no such mapping.
    """
    if not isinstance(record, Mapping) or not record:
        raise InputError(
            "names of components must be a mapping from module names to parts, such as "
            f"'\"blocks.*.mlp.0\": feed-forward/up', got {record!r}"
        )
    found = {}
    for pattern, text in record.items():
        parts = [part.strip() for part in text.split("/")] if isinstance(text, str) else []
        if not isinstance(pattern, str) or len(parts) not in (1, 2) or not all(parts):
            raise InputError(
                f"a module name must be given a part as GROUP or GROUP/NAME, got {pattern!r}: {text!r}; groups of "
                f"ours are {', '.join(GROUPS)}"
            )
        found[pattern] = Label(parts[0], parts[-1])
    return found
