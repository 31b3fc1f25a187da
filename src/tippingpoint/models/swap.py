"""Put an attention variant into a loaded Transformers model, through the library's attention interface.

The interface finds attention functions and mask functions by one name, which stands in a model's configuration. One
name is registered here for both: the attention function asks each layer what stands in it, so that layers may differ,
and the mask function hands over the padding as bool [batch, length] instead of a dense [length, length] mask.
Registered for attention alone, a name would be handed no padding at all, silently.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, bidirectional_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tippingpoint import __version__
from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models.catalog import ARCHITECTURES, VARIANTS, resolve
from tippingpoint.models.groups import REUSE, matched_heads
from tippingpoint.models.layer_attention import ComputingAttention, LayerAttention, ReusingAttention, map_dtype_of
from tippingpoint.models.layers import OPTION, layers_of, without_layers, write_layers
from tippingpoint.units import MODALITIES
from tippingpoint.workload import OptionValue, Subject, Variant

# What the library knows the attention of a swapped model by, where a layer keeps its own, and where the configuration
# says what stands in each layer, so that it is saved with the model.
LIBRARY_NAME = "tippingpoint"
_SLOT = "tippingpoint"
CONFIG_KEY = "tippingpoint"
_ASKED = "be asked for its variants"
# How a model's attention names what it adds to its scores, and what moves with the distance of two positions.
_IN_SCORES = re.compile(r"relative|rel_pos|distance_embedding|linear_pos|pos_bias|position_bias|bias_u")


def swap_attention(
    model: PreTrainedModel, variant: str, *, layers: Iterable[int] | None = None, **options: OptionValue
) -> PreTrainedModel:
    """Put an attention variant into a model in place of its own, in all layers or in some.

    Weights are untouched: swapping back with `swap_attention(model, "sdpa")` restores the outputs bit for bit. In a
    model with a decoder, the encoder is changed; layers that attend within a window of their own (ModernBERT's local
    ones) keep it.

    Args:
        model: Any encoder of the Transformers library that uses its attention interface.
        variant: A name of the catalogue's variants ("local", "sdpa", "eager"), or written with options
            ("local:window=100", "local:window=100,layers=0-7").
        layers: Numbers of the layers to change, from 0; all by default. Other layers keep what they have.
        options: Of the variant, such as window=100.

    Returns:
        The same model.

    Raises:
        UnsupportedError: If the model computes its attention by itself and cannot take another, or its layers share
            attention maps.
        InputError: If the variant, an option or a layer is not legal.
    """
    spec = Variant.parse(variant)
    spec = Variant(spec.name, (*spec.options, *options.items()))
    model_type = getattr(model.config, "model_type", "")
    modality = ARCHITECTURES[model_type].modality if model_type in ARCHITECTURES else MODALITIES[0]
    spec = resolve(Subject(model_type or "model", (spec,)), modality).variants[0]
    row = VARIANTS[spec.name]
    if row.shares_maps:
        # Imported where it is used: it stands above this module.
        from tippingpoint.models.sharing import put_reuse

        chosen = () if layers is None else [(OPTION, write_layers(layers))]
        put_reuse(model, Variant(spec.name, (*spec.options, *chosen)))
        return model
    full = row.library_name is not None
    attentions = find_attentions(model, f"take '{spec}'", own_scores=full)
    if any(standing_in(attention).name == REUSE for attention in attentions):
        raise UnsupportedError(
            f"layers of {type(model).__name__} share attention maps and have given up their queries and keys; load "
            f"the checkpoint again, put '{spec}' in, and share maps after that"
        )
    numbers = layers_of(spec, len(attentions)) if layers is None else _check_layers(layers, len(attentions))
    own = [number for number in numbers if has_window(attentions[number]) and not full]
    if own and (len(numbers) < len(attentions) or len(own) == len(numbers)):
        others = [number for number, attention in enumerate(attentions) if not has_window(attention)]
        raise UnsupportedError(
            f"layers {own} of {type(model).__name__} attend within a window of their own and cannot take '{spec}'; "
            f"those that can are {others or 'none'}"
        )
    limit = getattr(model.config, "max_position_embeddings", None)
    spec = with_max_length(without_layers(spec), limit if isinstance(limit, int) else None)
    standing = [standing_in(attention) for attention in attentions]
    for number in set(numbers).difference(own):
        standing[number] = spec
    install(model, attentions, standing)
    return model


def variants_of(model: PreTrainedModel) -> tuple[Variant, ...]:
    """Return what stands in each layer of a model's encoder, in the order of the layers.

    Raises:
        UnsupportedError: If the model's attention is not the library's interface's.
    """
    return tuple(standing_in(attention) for attention in find_attentions(model, _ASKED, own_scores=True))


def windowed_layers(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the layers of a model's encoder that attend within a window of their own, which no variant replaces."""
    return tuple(
        n for n, attention in enumerate(find_attentions(model, _ASKED, own_scores=True)) if has_window(attention)
    )


def standing_in(attention: nn.Module) -> Variant:
    """Return what stands in an attention of a model."""
    slot = getattr(attention, _SLOT, None)
    if isinstance(slot, LayerAttention):
        return slot.variant
    config: Any = attention.config
    return Variant(config._attn_implementation)


def has_window(attention: nn.Module) -> bool:
    """Whether an attention sees a window of the model's own."""
    return getattr(attention, "sliding_window", None) is not None


def _check_layers(layers: Iterable[int], count: int) -> list[int]:
    numbers = sorted(set(layers))
    if not numbers or not all(type(number) is int and 0 <= number < count for number in numbers):
        raise InputError(f"layers must be numbers from 0 to {count - 1} (the model has {count}), got {numbers}")
    return numbers


def with_max_length(variant: Variant, positions: int | None) -> Variant:
    """Write out the longest input of a variant that learns something for each position, if it needs one.

    Args:
        variant: With its options checked.
        positions: The longest input, or None if it is not known.

    Raises:
        InputError: If it needs one, and neither its options nor `positions` say.
    """
    options = dict(variant.options)
    if "max_length" not in VARIANTS[variant.name].options or "max_length" in options:
        return variant
    if positions is None:
        raise InputError(
            f"'{variant}' learns weights for each position and must know the longest input, which the model does not "
            f"say; add max_length=POSITIONS"
        )
    # A projection to more than there is would be no projection.
    return Variant(variant.name, (*variant.options, ("max_length", max(positions, int(options.get("rank", 1))))))


def find_attentions(model: PreTrainedModel, purpose: str, *, own_scores: bool = False) -> list[nn.Module]:
    """Return the self-attentions of a model's encoder, in the order of its layers.

    Args:
        model: Any model of the Transformers library.
        purpose: What for, for the error message: "take 'local'".
        own_scores: Whether those will do that add a position bias of their own to their scores.

    Raises:
        UnsupportedError: If there are none that will do, with the reason.
    """
    row = ARCHITECTURES.get(getattr(model.config, "model_type", ""))
    everywhere = [module for module in model.modules() if _uses_interface(module)]
    decoders = set().union(*_decoders(model))
    attentions = [module for module in everywhere if module not in decoders]
    biased = sorted({name for module in model.modules() if module not in decoders for name in in_scores(module)})
    if row and row.efficient_attention:
        reason = f"its attention is {row.efficient_attention}"
    elif row and row.own_scores and ((biased and not own_scores) or not everywhere):
        reason = f"inside its scores stands {row.own_scores}"
    elif not everywhere:
        reason = "its attention is computed inside its layers, not through the library's attention interface"
    elif not attentions:
        reason = "only encoders can, and it attends to the past only, as decoders do"
    elif biased and not own_scores:
        reason = f"its attention adds a position bias to its scores ({', '.join(biased)})"
    elif len({id(getattr(module, "config", None)) for module in attentions}) > 1:
        reason = "it holds several encoders; give one of them, such as its vision tower"
    else:
        return attentions
    raise UnsupportedError(f"{type(model).__name__} cannot {purpose}: {reason}")


def _uses_interface(module: nn.Module) -> bool:
    """Whether a module calls the library's attention interface, by what the code of its forward pass names."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _decoders(model: PreTrainedModel) -> list[set[nn.Module]]:
    """Return the modules of each innermost submodel that attends to the past only."""
    submodels = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    found = []
    for submodel in submodels:
        own = set(submodel.modules())
        for other in submodels:
            if other is not submodel and other in own:
                own -= set(other.modules())
        if any(_uses_interface(module) and getattr(module, "is_causal", False) for module in own):
            found.append(own)
    return found


def in_scores(module: nn.Module) -> list[str]:
    """Return what adds to scores by the position, by the names of a module's parts and an attention's arguments."""
    names = [
        *(inspect.signature(module.forward).parameters if _uses_interface(module) else ()),
        *(name for name, _ in module.named_children()),
        *(name for name, _ in module.named_parameters(recurse=False)),
        *(name for name, _ in module.named_buffers(recurse=False)),
    ]
    # Rotary positions turn queries and keys before any score, though the argument is called relative.
    return [name for name in names if _IN_SCORES.search(name) and name != "relative_position_embeddings"]


def install(model: PreTrainedModel, attentions: Sequence[nn.Module], standing: Sequence[Variant]) -> None:
    """Let each attention run what stands for it.

    Args:
        model: Which is changed, with its configuration.
        attentions: Of its encoder, in the order of the layers.
        standing: What is to run in each, with every option written out; `reuse:of=0` takes the map of layer 0.

    Raises:
        UnsupportedError: If the model cannot take them.
    """
    names = {getattr(VARIANTS.get(variant.name), "library_name", None) for variant in standing}
    everywhere = names.pop() if len(names) == 1 else None
    if everywhere is not None:
        _check_supported(model, everywhere)
        for attention in attentions:
            if hasattr(attention, _SLOT):
                delattr(attention, _SLOT)
    else:
        slots = [_slot(attention, number, standing) for number, attention in enumerate(attentions)]
        for attention, slot in zip(attentions, slots, strict=True):
            setattr(attention, _SLOT, slot)
    _name_in_config(model, attentions, everywhere or LIBRARY_NAME)
    config: Any = model.config
    if everywhere != "sdpa":
        setattr(config, CONFIG_KEY, {"attention": [str(variant) for variant in standing], "version": __version__})
    elif hasattr(config, CONFIG_KEY):
        delattr(config, CONFIG_KEY)


def _slot(attention: nn.Module, number: int, standing: Sequence[Variant]) -> LayerAttention:
    """Return what runs a layer's variant: what stands there already, if it is the same."""
    variant = standing[number]
    slot = getattr(attention, _SLOT, None)
    users = [user for user, other in enumerate(standing) if dict(other.options).get("of") == number]
    if isinstance(slot, LayerAttention) and slot.variant == variant and not users:
        return slot
    if variant.name not in VARIANTS:
        raise UnsupportedError(
            f"a layer that keeps its own attention runs '{variant}', which cannot stand beside another; put 'sdpa' "
            "or 'eager' into the whole model first"
        )
    options: dict[str, Any] = dict(variant.options)
    if variant.name == REUSE:
        of = options["of"]
        last = all(dict(other.options).get("of") != of for other in standing[number + 1 :])
        slot = ReusingAttention(variant, matched_heads(variant), last=last)
    elif users:
        user = standing[users[0]]
        mode = str(dict(user.options)["mode"])
        slot = ComputingAttention(variant, number, mode, map_dtype_of(user), len(users))
    else:
        slot = LayerAttention(variant)
    like = next(attention.parameters(), None)
    if like is not None:
        slot.to(like.device, like.dtype)
    return slot.train(attention.training)


def _check_supported(model: PreTrainedModel, name: str) -> None:
    try:
        model.get_correct_attn_implementation(name, is_init_check=False)
    except (ValueError, ImportError) as error:
        raise UnsupportedError(f"{type(model).__name__} cannot take '{name}': {error}") from error


def _name_in_config(model: PreTrainedModel, attentions: Sequence[nn.Module], name: str) -> None:
    """Name the attention in the configuration that the attentions and the maker of their masks read.

    The configuration is copied first: other models made from it share it, and a decoder beside the encoder, which
    keeps its own attention, may.
    """
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)
    staying = set().union(*_decoders(model))
    for module in model.modules():
        config = getattr(module, "config", None)
        if module not in staying and id(config) in copies:
            module.config = copies[id(config)]
    for attention in attentions:
        # Set as the library sets it: the public property would change the parts of a larger configuration too.
        own: Any = attention.config
        own._attn_implementation_internal = name


def _padding(
    batch_size: int,
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None = None,
    mask_function: Callable[..., Any] = bidirectional_mask_function,
    **others: Any,
) -> Tensor | None:
    """Hand the padding over as it is: bool [batch, length], True for real tokens; None where nothing is padded.

    A mask of the model's own, such as a sliding window, stays the dense one, for layers that keep their attention.
    """
    if mask_function is not bidirectional_mask_function:
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            mask_function=mask_function,
            attention_mask=attention_mask,
            **others,
        )
    if attention_mask is None:
        return None
    padding = attention_mask.to(torch.bool)
    # As the library does for its own attention: the mask is looked at, unless the graph must not depend on it.
    if not torch.compiler.is_compiling() and bool(padding.all()):
        return None
    return padding


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Run what stands in a layer, in the signature that the library calls."""
    slot = getattr(module, _SLOT, None)
    if slot is None:
        raise UnsupportedError(
            f"{type(module).__name__} was not in its model when an attention was put there; call swap_attention again"
        )
    if query.shape[2] != key.shape[2]:
        raise UnsupportedError(
            f"'{slot.variant}' is a self-attention, and {type(module).__name__} attends from {query.shape[2]} "
            f"to {key.shape[2]} positions"
        )
    extra = [name for name in ("softcap", "s_aux") if others.get(name) is not None]
    if extra or others.get("output_attentions") or others.get("is_causal"):
        raise UnsupportedError(
            f"'{slot.variant}' has no dense scores to change or to give back, and {type(module).__name__} asks for "
            f"{', '.join(extra) or 'attention maps or a causal mask'}"
        )
    if key.shape[1] != query.shape[1]:  # several query heads share a head of keys and values
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
    output = slot(query, key, value, attention_mask, others.get("position_bias"), scaling, dropout)
    # The library's convention is [batch, length, heads, head_dim].
    return output.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(LIBRARY_NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(LIBRARY_NAME, _padding)
