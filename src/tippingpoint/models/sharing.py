"""Attention map reuse in a loaded model (arXiv:2301.12444): groups of layers share one attention map.

The first layer of a group computes the map. The others have no queries and keys: their projections are taken out of
the model, with what tells positions apart in a relative-position Conformer, and stand-ins that compute nothing keep
the library's code of the layer as it is.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tippingpoint.attention.reuse import MODES
from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models.catalog import VARIANTS
from tippingpoint.models.groups import GROUP, REUSE, Groups, check_groups, equal_groups, groups_of, reuse_of, sources
from tippingpoint.models.layer_attention import begin_frame, end_frame
from tippingpoint.models.reuse_plan import ReusePlan
from tippingpoint.models.swap import find_attentions, has_window, in_scores, install, standing_in
from tippingpoint.workload import Variant, check_choice

# What maps are kept in: as the model computes, or in half of the memory of float32.
MAPS = ("same", "bfloat16")
_PURPOSE = "share attention maps"
# What the library's models call their projections: q_proj, linear_q, q_lin, query, to_q ...
_NAMES = {
    "query": re.compile(r"(.*_)?(q|query)(_.*)?"),
    "key": re.compile(r"(.*_)?(k|key)(_.*)?"),
    "value": re.compile(r"(.*_)?(v|value)(_.*)?"),
    "all": re.compile(r".*qkv.*", re.IGNORECASE),
}
# What scores distances in a relative-position Conformer (Transformer-XL, arXiv:1901.02860, section 3.3).
_ARGUMENTS = ("relative_position_embeddings",)
_RELATIVE = ("linear_pos", "pos_bias_u", "pos_bias_v", "relative_k_proj", "bias_u", "bias_v")
# How a forward pass takes apart what one layer projects: queries, keys and values one after the other.
_IN_ORDER = re.compile(r"\b3,\s*(-1|self\.\w*heads?\w*),\s*(-1|self\.\w*head\w*)|\.chunk\(3, dim=-1\)")


def reuse_attention(
    model: PreTrainedModel,
    groups: int | Sequence[Iterable[int]] | ReusePlan,
    *,
    mode: str = "auto",
    map_dtype: torch.dtype | None = None,
    heads: Mapping[int, Sequence[int]] | None = None,
) -> PreTrainedModel:
    """Let groups of layers share one attention map, in place.

    The first layer of a group computes the map and every other one weighs its own values by it. Those have no
    queries and keys any more: **the projections are taken out of the model for good**, so keep a copy, or load the
    checkpoint again, to go back. A trained model must be trained on with its maps shared; `plan_reuse` says which
    layers lose least.

    Args:
        model: Any encoder that `swap_attention` takes, also after it put "local" in; and relative-position Conformers
            (wav2vec2-conformer, Parakeet).
        groups: How many consecutive layers share a map; or groups of layer numbers, from 0, where layers that are
            not named keep their own; or a plan. Groups of one layer change nothing, bit for bit. Layers that attend
            within a window of the model's own (ModernBERT) are passed over by a number, and refused in a group.
        mode: "map" keeps the map, [batch, heads, length, length]: a layer is one batched product. "recompute" keeps
            queries and keys, and every layer runs fused attention on them. "auto" measures which is faster at the
            first call of each octave of lengths.
        map_dtype: torch.bfloat16 keeps maps in half of the memory of float32; None in the model's own dtype.
        heads: For layers that reuse a map, which head of the other layer each of their heads takes it from; by
            default the plan's, else the same ones.

    Returns:
        The same model.

    Raises:
        UnsupportedError: If the model computes its attention by itself, its projections cannot be told apart, or a
            layer has no map to share.
        InputError: If groups, mode, heads or dtype are not legal.

    Reference: arXiv:2301.12444, section 3; head matching is not in the paper.
    """
    attentions = sharing_attentions(model)
    standing = [standing_in(attention) for attention in attentions]
    if isinstance(groups, int):
        if isinstance(groups, bool) or groups < 1:
            raise InputError(f"groups must be a number of layers of at least 1, or groups of layers, got {groups!r}")
        found = equal_groups(may_share(model), groups, standing)
        _check_any(model, found, groups)
    else:
        if isinstance(groups, ReusePlan):
            heads = groups.head_matches if heads is None else heads
            groups = groups.groups
        found = check_groups(groups, len(attentions))
    check_choice("mode", mode, MODES)
    if map_dtype not in (None, torch.bfloat16):
        raise InputError(f"map_dtype must be None (the model's own) or torch.bfloat16, got {map_dtype}")
    if map_dtype is not None and mode == "recompute":
        raise InputError('map_dtype is for maps, and mode "recompute" keeps none; leave it out, or choose "map"')
    maps = "same" if map_dtype is None else "bfloat16"
    _share(model, attentions, tuple(group for group in found if len(group) > 1), mode, maps, heads or {})
    return model


def put_reuse(model: PreTrainedModel, variant: Variant) -> None:
    """Let layers share maps as a variant `reuse` says, with its options checked.

    Raises:
        UnsupportedError, InputError: As `reuse_attention`.
    """
    attentions = sharing_attentions(model, f"take '{variant}'")
    standing = [standing_in(attention) for attention in attentions]
    options: dict[str, Any] = dict(variant.options)
    groups = groups_of(variant, standing, may_share(model))
    if isinstance(options[GROUP], int):
        _check_any(model, groups, options[GROUP])
    _share(model, attentions, groups, options["mode"], options.get("maps", "same"), {})


def _check_any(model: PreTrainedModel, groups: Groups, size: int) -> None:
    """Raise an error if layers are to share maps, and no two can."""
    if size > 1 and not any(len(group) > 1 for group in groups):
        able = list(may_share(model))
        raise UnsupportedError(
            f"{type(model).__name__} cannot {_PURPOSE}: no two of its layers have an attention that can be shared "
            f"(those that could, of modules of their own, are {able or 'none'})"
        )


def sharing_attentions(model: PreTrainedModel, purpose: str = _PURPOSE) -> list[nn.Module]:
    """Return the self-attentions of a model's encoder, in the order of its layers, if layers of it can share maps.

    Args:
        model: Any model of the Transformers library.
        purpose: What for, for the error message.

    Raises:
        UnsupportedError: If they cannot, with the reason.
    """
    attentions = find_attentions(model, purpose, own_scores=True)
    unknown = {name for attention in attentions for name in in_scores(attention)}.difference(_RELATIVE, _ARGUMENTS)
    if unknown:
        raise UnsupportedError(
            f"{type(model).__name__} cannot {purpose}: its attention adds a position bias to its scores "
            f"({', '.join(sorted(unknown))}) that a layer without scores could not go without"
        )
    return attentions


def may_share(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the layers whose map can be kept: of full or local attention, without a window of the model's own."""
    attentions = sharing_attentions(model)
    return tuple(number for number, attention in enumerate(attentions) if not _why_not(attention))


def _why_not(attention: nn.Module) -> str:
    """Return why an attention has no map to share; empty if it has."""
    variant = standing_in(attention)
    if variant.name == REUSE:
        return "reuses the map of another already"
    if has_window(attention):
        return "attends within a window of the model's own"
    row = VARIANTS.get(variant.name)
    return "" if row and row.keeps_map else f"runs '{variant}', whose map cannot be kept"


def _share(
    model: PreTrainedModel,
    attentions: Sequence[nn.Module],
    groups: Groups,
    mode: str,
    maps: str,
    heads: Mapping[int, Sequence[int]],
) -> None:
    """Check everything, then change the model."""
    reusing = sources(groups)
    for number in sorted({*reusing, *reusing.values()}):
        reason = _why_not(attentions[number])
        if reason:
            able = list(may_share(model))
            raise UnsupportedError(
                f"layer {number} of {type(model).__name__} {reason}; those that can share are {able or 'none'}"
            )
    count = getattr(getattr(attentions[0], "config", None), "num_attention_heads", None)
    for number, taken in heads.items():
        if (
            number not in reusing
            or (count is not None and len(taken) != count)
            or sorted(taken) != list(range(len(taken)))
        ):
            raise InputError(
                f"heads must name, for layers that reuse a map ({sorted(reusing) or 'none'}), each of their "
                f"{count or ''} heads once, from 0, got {list(taken)} for layer {number}"
            )
    if not reusing:
        return
    projections = {number: _find_projections(attentions[number]) for number in reusing}
    standing = [standing_in(attention) for attention in attentions]
    for number, source in reusing.items():
        standing[number] = reuse_of(source, mode, maps, heads.get(number))
    install(model, attentions, standing)
    for number, found in projections.items():
        _take_out(attentions[number], found)
    encoder = _common_parent(model, attentions)
    if begin_frame not in encoder._forward_pre_hooks.values():
        encoder.register_forward_pre_hook(begin_frame)
        encoder.register_forward_hook(end_frame, always_call=True)


def _common_parent(model: nn.Module, attentions: Iterable[nn.Module]) -> nn.Module:
    """Return the innermost module that holds all attentions and is called itself."""
    wanted = set(attentions)
    parent = model
    while True:
        inner = [child for child in parent.children() if wanted <= set(child.modules())]
        called = [child for child in inner if not isinstance(child, nn.ModuleList | nn.ModuleDict)]
        if not called:
            return parent
        parent = called[0]


def _find_projections(attention: nn.Module) -> dict[str, nn.Linear]:
    """Return the projections that a layer without queries and keys does without: "query" and "key"; or "all" three.

    Raises:
        UnsupportedError: If they cannot be told apart.
    """
    linears = {name: child for name, child in attention.named_children() if isinstance(child, nn.Linear)}
    found = {
        kind: [child for name, child in linears.items() if pattern.fullmatch(name) and name not in _RELATIVE]
        for kind, pattern in _NAMES.items()
    }
    counts = {kind: len(children) for kind, children in found.items()}
    if counts == {"query": 1, "key": 1, "value": 1, "all": 0}:
        return {kind: found[kind][0] for kind in ("query", "key")}
    if counts == {"query": 0, "key": 0, "value": 0, "all": 1}:
        code = inspect.getsource(inspect.unwrap(type(attention).forward))
        if found["all"][0].out_features % 3 == 0 and _IN_ORDER.search(code):
            return {"all": found["all"][0]}
    raise UnsupportedError(
        f"{type(attention).__name__} cannot {_PURPOSE}: which of its linear layers ({', '.join(linears) or 'none'}) "
        "make queries, keys and values cannot be told from their names"
    )


def unneeded_parameters(model: PreTrainedModel, layers: Sequence[int]) -> set[str]:
    """Return the names of the parameters that layers do without when they reuse a map.

    Raises:
        UnsupportedError: As `reuse_attention`.
    """
    if not layers:
        return set()
    attentions = sharing_attentions(model)
    unneeded: set[int] = set()
    for number in layers:
        attention = attentions[number]
        unneeded |= {id(p) for linear in _find_projections(attention).values() for p in linear.parameters()}
        unneeded |= {id(p) for name in _relative_parts(attention) for p in _parameters(getattr(attention, name))}
    return {name for name, parameter in model.named_parameters() if id(parameter) in unneeded}


def _parameters(part: nn.Module | nn.Parameter) -> Iterable[nn.Parameter]:
    return part.parameters() if isinstance(part, nn.Module) else (part,)


def _relative_parts(attention: nn.Module) -> tuple[str, ...]:
    """Return the names of an attention's parts that score distances."""
    return tuple(name for name in _RELATIVE if isinstance(getattr(attention, name, None), nn.Module | nn.Parameter))


def _take_out(attention: nn.Module, projections: Mapping[str, nn.Linear]) -> None:
    """Replace what makes queries and keys by stand-ins, and what scores distances by nothing."""
    for name, child in list(attention.named_children()):
        if child is projections.get("all"):
            setattr(attention, name, _ValuesAlone(child))
        elif isinstance(child, nn.Linear) and any(child is linear for linear in projections.values()):
            setattr(attention, name, _NothingProjected(child.out_features))
    relative = _relative_parts(attention)
    for name in relative:
        delattr(attention, name)
    if hasattr(attention, "position_embeddings_type"):
        attention.position_embeddings_type = None  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    elif "relative_k_proj" in relative:
        attention.__class__ = _without_scores(type(attention))


class _NothingProjected(nn.Module):
    """In place of a projection whose output nobody looks at: its shape, without arithmetic and without memory.

    Args:
        features: Width of the output.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, hidden: Tensor) -> Tensor:
        """Return zeros, [..., features]: one number, seen from everywhere."""
        return hidden.new_zeros(()).expand(*hidden.shape[:-1], self.features)

    def extra_repr(self) -> str:
        """Return the width."""
        return f"features={self.features}"


class _ValuesAlone(nn.Module):
    """In place of one projection to queries, keys and values: values, behind zeros.

    Its weights are stored as something that the library does not know, since their shape is not what it expects.
    """

    def __init__(self, together: Any) -> None:
        super().__init__()
        values = together.out_features // 3
        kept = nn.Linear(
            together.in_features,
            values,
            bias=together.bias is not None,
            device=together.weight.device,
            dtype=together.weight.dtype,
        )
        with torch.no_grad():
            kept.weight.copy_(together.weight[-values:])
            if together.bias is not None:
                kept.bias.copy_(together.bias[-values:])
        kept.requires_grad_(together.weight.requires_grad)
        self.tippingpoint = nn.ModuleDict({"learned": kept})

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [..., 3 * features]: zeros, zeros, values."""
        values = self.tippingpoint["learned"](hidden)
        nothing = values.new_zeros(()).expand(*values.shape[:-1], 2 * values.shape[-1])
        return torch.cat([nothing, values], dim=-1)


@functools.cache
def _without_scores(attention: type[nn.Module]) -> type[nn.Module]:
    """Return a class of attention that goes from values to output, for one whose own code always scores distances."""
    return type(attention.__name__, (attention,), {"forward": _weigh_values, "__module__": attention.__module__})


def _weigh_values(self: Any, hidden_states: Tensor, *others: Any, **named: Any) -> tuple[Tensor, None]:
    """Project values, weigh them by another layer's map, and project the output."""
    shape = hidden_states.shape[:-1]
    value = self.v_proj(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
    attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
    dropout = self.attention_dropout if self.training else 0.0
    output, _ = attend(self, value, value, value, None, dropout=dropout, scaling=self.scaling)
    return self.o_proj(output.reshape(*shape, -1)), None
