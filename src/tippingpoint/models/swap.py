"""Put an attention variant into a loaded Transformers model, through the library's attention interface.

The interface finds attention functions and mask functions by one name. A variant whose name is registered for
attention only would be handed no padding mask at all, silently; both are registered here, and the mask
function hands over the padding as bool [batch, length] instead of a dense [length, length] mask.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, bidirectional_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tippingpoint.errors import UnsupportedError
from tippingpoint.models.architecture import AttentionVariant
from tippingpoint.models.catalog import ARCHITECTURES, VARIANTS, resolve
from tippingpoint.units import MODALITIES
from tippingpoint.workload import OptionValue, Subject, Variant

_PREFIX = "tippingpoint "


def load_function(path: str) -> Callable[..., Tensor]:
    """Return the function that a catalogue row names as "module:function"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def swap_attention(model: PreTrainedModel, variant: str, **options: OptionValue) -> PreTrainedModel:
    """Put an attention variant into a model in place of its own, in every layer.

    Weights are untouched: swapping back with `swap_attention(model, "sdpa")` restores the outputs bit for bit.

    Args:
        model: Any encoder of the Transformers library that uses its attention interface.
        variant: A name of the catalogue's variants ("local", "sdpa", "eager"), or written with options
            ("local:window=100").
        options: Of the variant, such as window=100.

    Returns:
        The same model.

    Raises:
        UnsupportedError: If the model computes its attention by itself and cannot take another.
        InputError: If the variant or an option is not legal.
    """
    spec = Variant.parse(variant)
    spec = Variant(spec.name, (*spec.options, *options.items()))
    model_type = getattr(model.config, "model_type", "")
    modality = ARCHITECTURES[model_type].modality if model_type in ARCHITECTURES else MODALITIES[0]
    spec = resolve(Subject(model_type or "model", (spec,)), modality).variants[0]
    name = register(spec)
    _check_replaceable(model, spec)
    _give_own_config(model)
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise UnsupportedError(
            f"{type(model).__name__} did not accept the attention '{spec}' and kept "
            f"'{model.config._attn_implementation}'"
        )
    return model


def register(variant: Variant) -> str:
    """Make a variant known to the Transformers library and return the name it goes by there."""
    row = VARIANTS[variant.name]
    if row.library_name is not None:
        return row.library_name
    name = f"{_PREFIX}{variant}"
    ALL_ATTENTION_FUNCTIONS.register(name, _adapt(row, variant))
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, _padding_only)
    return name


def _check_replaceable(model: PreTrainedModel, variant: Variant) -> None:
    row = ARCHITECTURES.get(getattr(model.config, "model_type", ""))
    # The library's attention functions read `is_causal` of the module they serve.
    attentions = [module for module in model.modules() if hasattr(module, "is_causal")]
    if row and row.efficient_attention:
        reason = f"its attention is {row.efficient_attention}"
    elif not attentions or not type(model)._can_set_attn_implementation():
        reason = "its attention is computed inside its layers, not through the library's attention interface"
    elif any(module.is_causal for module in attentions):
        reason = "only encoders can, and it attends to the past only, as decoders do"
    elif any("position_bias" in inspect.signature(module.forward).parameters for module in attentions):
        reason = "its attention adds a position bias to its scores"
    else:
        return
    raise UnsupportedError(f"{type(model).__name__} cannot take '{variant}': {reason}")


def _give_own_config(model: PreTrainedModel) -> None:
    """Copy the model's configuration, which other models made from it share, and which names the attention."""
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)
    for module in model.modules():
        if id(getattr(module, "config", None)) in copies:
            module.config = copies[id(module.config)]


def _padding_only(
    batch_size: int,
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None = None,
    mask_function: Callable[..., Any] = bidirectional_mask_function,
    **others: Any,
) -> Tensor | None:
    """Hand the padding to the attention function as it is: bool [batch, length], True for real tokens."""
    if mask_function is not bidirectional_mask_function:
        raise UnsupportedError(
            "an attention that was put into a model takes padding only, and this model masks positions in a way of "
            "its own (a sliding window, say)"
        )
    if attention_mask is None:
        return None
    return attention_mask.to(torch.bool)


def _adapt(row: AttentionVariant, variant: Variant) -> Callable[..., tuple[Tensor, None]]:
    """Wrap an attention function in the signature the library calls."""
    assert row.function is not None
    function = load_function(row.function)
    chosen = dict(variant.options)

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **others: Any,
    ) -> tuple[Tensor, None]:
        if query.shape[2] != key.shape[2]:
            raise UnsupportedError(
                f"'{variant}' is a self-attention, and {type(module).__name__} attends from {query.shape[2]} "
                f"to {key.shape[2]} positions"
            )
        if attention_mask is not None and attention_mask.ndim != 2:
            raise UnsupportedError(
                f"'{variant}' takes padding only, and {type(module).__name__} adds a mask or position bias of "
                f"shape {list(attention_mask.shape)} to its scores"
            )
        if others.get("position_bias") is not None or others.get("output_attentions"):
            raise UnsupportedError(f"'{variant}' has no dense scores to add a bias to or to give back")
        output = function(query, key, value, padding_mask=attention_mask, scale=scaling, dropout=dropout, **chosen)
        # The library's convention is [batch, length, heads, head_dim].
        return output.transpose(1, 2).contiguous(), None

    return attention
