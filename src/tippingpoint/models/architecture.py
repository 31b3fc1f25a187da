"""What the catalogue says of an architecture and of a variant. No torch at import time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tippingpoint.errors import InputError
from tippingpoint.models.flops import AttentionFlops, ForwardFlops
from tippingpoint.models.shape import KEYS, Shape, plain_shape
from tippingpoint.units import UNITS, format_length
from tippingpoint.workload import OptionValue, check_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Which native lengths an architecture takes, and what they become inside it.

    Attributes:
        positions: Native length to sequence positions.
        executed: Native length to positions after the model's own padding; None where it does not pad.
        minimum: Shortest legal length, in the native unit.
        multiple_of: Legal lengths are multiples of this, in the native unit.
        reason: Why there is a minimum or a multiple, for the error message.
    """

    positions: Callable[[float], int]
    executed: Callable[[float], int] | None = None
    minimum: float = 1
    multiple_of: int = 1
    reason: str = ""

    @property
    def shortest_multiple(self) -> int:
        """Shortest legal length where lengths are whole numbers."""
        return -(-int(self.minimum) // self.multiple_of) * self.multiple_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A row of the catalogue: a model family as the Transformers library builds it.

    Attributes:
        name: The library's model type; what a subject calls it.
        title: For people.
        modality: "text", "speech" or "vision".
        paper: Where it was published.
        config_class: Name of the library's configuration class.
        model_class: Name of the library's encoder class.
        part: Name of the submodule that is the encoder, where the class holds more, such as a decoder.
        sizes: Configuration values by size; "base" is the published Base model.
        fit: Configuration values that a length asks for (maximum positions, image size ...), given the
            configuration so far; none by default.
        limit: Longest native length a given configuration takes, or None, as by default: for checkpoints, whose
            tables cannot grow.
        inputs: Tensors for a batch: (configuration, batch size, length, torch generator) to keyword arguments.
        lengths: Legal lengths and length arithmetic.
        keys: What its configuration calls depth, width, heads and inner size of a plain stack of equal layers;
            see `plain_shape`.
        stages: Configuration to the shape of the longest stage with the depth of all, where it is no plain stack.
        efficient_attention: What its own attention is, when it is not vanilla; such an architecture takes no
            variant.
        keys_seen: (configuration, positions) to the keys that a query of the longest stage scores at most, for the
            bound on memory; all positions where it is None.
        own_scores: Why it takes no other attention although its own is full: what stands inside its scores.
        scores: FLOPs that this adds in each layer that computes scores: (configuration, batch size, length) to those
            of the batch; None where nothing does.
        shares_maps: Whether its scores go through the library's attention interface, although something of its own
            stands inside them: its layers can share maps.
        mask: Bool [batch, length], True for what is real, to the mask that the model takes: that of the library's
            tokenizers by default, whole numbers.
        unmasked: Why its padded batches have no mask, where the library's own tokenizer or feature extractor hands
            none over.
        tell_length: (model, native length): tells a built model how long the next batch is, where it keeps that.
        needs_one_length: Why a model, once built, takes inputs of no other length in inference, where it does not.
        trains_at_one_length: The same in training.
        front_end_values: Native length to the values in the widest activation before the first layer, where
            that outgrows the layers.
        flops: Closed form of its forward pass at the real length: (configuration, batch size, length, what
            self-attention asks for) to FLOPs of the batch; None where there is none.
        needs_float32: Why inference cannot run in a lower precision, where it cannot.
        trains_in_float32: Why training cannot.
        notes: What the reader of its numbers should know.
    """

    name: str
    title: str
    modality: str
    paper: str
    config_class: str
    model_class: str
    part: str = ""
    sizes: Mapping[str, Mapping[str, Any]]
    fit: Callable[[Mapping[str, Any], float], Mapping[str, Any]] = lambda config, length: {}
    limit: Callable[[Mapping[str, Any]], float | None] = lambda config: None
    inputs: Callable[[Mapping[str, Any], int, float, Any], dict[str, Any]]
    lengths: Lengths
    keys: Mapping[str, str] = field(default_factory=lambda: KEYS)
    stages: Callable[[Mapping[str, Any]], Shape] | None = None
    efficient_attention: str | None = None
    keys_seen: Callable[[Mapping[str, Any], int], int] | None = None
    own_scores: str = ""
    scores: Callable[[Mapping[str, Any], int, float], ForwardFlops] | None = None
    shares_maps: bool = False
    mask: Callable[[Any], Any] = lambda real: real.long()
    unmasked: str = ""
    tell_length: Callable[[Any, float], None] = lambda model, length: None
    needs_one_length: str = ""
    trains_at_one_length: str = ""
    front_end_values: Callable[[float], int] = lambda length: 0
    flops: Callable[[Mapping[str, Any], int, float, AttentionFlops], ForwardFlops] | None = None
    needs_float32: str = ""
    trains_in_float32: str = ""
    notes: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """Native unit of its lengths."""
        return UNITS[self.modality]

    @property
    def takes_variants(self) -> bool:
        """Whether another self-attention can be put in place of its own."""
        return not (self.efficient_attention or self.own_scores)

    def takes(self, variant: AttentionVariant) -> bool:
        """Whether a variant can be put into it: with scores of its own, what leaves these as they are."""
        keeps_scores = variant.shares_maps or variant.library_name is not None
        return self.takes_variants or (self.shares_maps and keeps_scores)

    def layers(self, size: str) -> int | None:
        """Return the depth of a size; None where the architecture is no plain stack, or a person's own."""
        return None if self.stages else self.sizes[size].get(self.keys["layers"])

    def why_float32(self, phase: str) -> str:
        """Return why a phase cannot run in a lower precision; empty where it can."""
        return self.trains_in_float32 if phase == "training" else self.needs_float32

    def why_one_length(self, phase: str) -> str:
        """Return why a model, once built, takes inputs of one length only in a phase; empty where it takes others."""
        return self.trains_at_one_length if phase == "training" else self.needs_one_length

    def shape(self, config: Mapping[str, Any]) -> Shape:
        """Return depth and width of a configuration; of its longest stage, with the depth of all, if staged."""
        return self.stages(config) if self.stages else plain_shape(config, self.keys)

    def reshape(self, config: Mapping[str, Any], layers: int | None, width: int | None) -> dict[str, Any]:
        """Return the configuration values of another depth or width.

        Heads keep their dimension, and the feed-forward part its ratio to the width.

        Args:
            config: As it is for the size.
            layers: New depth, or None.
            width: New hidden size, or None.

        Raises:
            InputError: If the architecture is no plain stack, or the width is no multiple of a head's dimension.
        """
        if layers is None and width is None:
            return {}
        if self.stages:
            raise InputError(
                f"{self.name} is no plain stack of equal layers: its depth and width come with its size, so leave "
                "layers and width out"
            )
        changes = {} if layers is None else {"layers": layers}
        if width is not None:
            shape = self.shape(config)
            head = shape.head_dim if "heads" in self.keys else 1
            if width % head:
                nearest = max(head, round(width / head) * head)
                raise InputError(
                    f"the width of {self.name} must be a multiple of its heads' {head} dimensions, got {width}; the "
                    f"nearest is {nearest}"
                )
            changes |= {"width": width, "heads": width // head, "wide": shape.wide * width // shape.width}
        # A configuration that has the ratio of the feed-forward part keeps it.
        return {self.keys[name]: value for name, value in changes.items() if name in self.keys}

    def check_length(self, length: float) -> float:
        """Return `length` if the architecture takes it.

        Raises:
            InputError: If it is not positive, too short, or not the multiple it must be, with the nearest
                legal length.
        """
        check_length(length)
        rule = self.lengths
        if length < rule.minimum:
            raise InputError(
                f"{self.name} takes no input shorter than {format_length(rule.minimum, self.unit)} "
                f"({rule.reason}), got {format_length(length, self.unit)}"
            )
        if self.unit != "seconds" and length != int(length):
            raise InputError(
                f"{self.name} takes whole {self.unit}, got {length!r}; the nearest is {self.nearest_legal(length):g}"
            )
        if self.unit != "seconds" and length % rule.multiple_of:
            raise InputError(
                f"{self.name} takes multiples of {rule.multiple_of} {self.unit} ({rule.reason}), got {length:g}; "
                f"the nearest is {self.nearest_legal(length):g}"
            )
        return length

    def nearest_legal(self, length: float) -> float:
        """Return the legal length nearest to `length` (for seconds: to a millisecond)."""
        rule = self.lengths
        if self.unit == "seconds":
            return max(rule.minimum, round(length, 3))
        return max(rule.shortest_multiple, round(length / rule.multiple_of) * rule.multiple_of)

    def runs_at(self, length: float) -> float:
        """Return the legal length at which inputs of any length run.

        Text and audio are padded to the shortest; images are resized to the largest that is no larger than they are,
        or to the smallest.
        """
        rule = self.lengths
        if self.unit == "seconds":
            return max(rule.minimum, length)
        return max(rule.shortest_multiple, int(length) // rule.multiple_of * rule.multiple_of)

    def positions(self, length: float) -> int:
        """Return sequence positions of a native length."""
        return self.lengths.positions(length)

    def executed_positions(self, length: float) -> int:
        """Return sequence positions after the model's own padding."""
        return (self.lengths.executed or self.lengths.positions)(length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option of a variant.

    Attributes:
        kind: Its type: int, float, bool or str.
        default: What is used when the subject does not say; by modality where they differ.
        meaning: One line.
        minimum: Smallest legal value of a number.
        maximum: Largest legal value of a number, or None.
        choices: Legal values of a text.
        off: The value that means "not used"; an option that has it is not written out.
        legal: Whether a value is legal, where kind and bounds do not tell.
        written: How such a value is written, for error messages.
    """

    kind: type
    default: OptionValue | Mapping[str, OptionValue]
    meaning: str
    minimum: float = 0
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    off: OptionValue | None = None
    legal: Callable[[OptionValue], bool] | None = None
    written: str = ""

    def default_for(self, modality: str) -> OptionValue:
        """Return what is used when a subject of a modality does not say."""
        return self.default[modality] if isinstance(self.default, Mapping) else self.default

    @property
    def expected(self) -> str:
        """What a legal value is, in words."""
        if self.legal is not None:
            return self.written
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return f"one of {', '.join(self.choices)}"
        kind = "a whole number" if self.kind is int else "a number"
        return f"{kind} of at least {self.minimum:g}" + (
            "" if self.maximum is None else f" and at most {self.maximum:g}"
        )

    def check(self, value: OptionValue) -> OptionValue:
        """Return `value` as a value of the option.

        Raises:
            ValueError: If it is none; `expected` says what would be.
        """
        if self.legal is not None:
            if not self.legal(value):
                raise ValueError
            return value
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind:
            raise ValueError
        if isinstance(value, str):
            legal = value in self.choices
        else:
            legal = isinstance(value, bool) or (
                self.minimum <= value and (self.maximum is None or value <= self.maximum)
            )
        if not legal:
            raise ValueError
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionVariant:
    """A row of the catalogue: a self-attention that can stand in for an architecture's own.

    Attributes:
        name: What a subject calls it.
        title: For people.
        exact: True if it computes what its dense oracle computes; False for approximations of full attention.
        paper: Where it was published.
        options: By name.
        function: "module:function" on query, key, value [batch, heads, length, head_dim] with the keyword arguments
            padding_mask, scale, dropout and the options; None where `module` or `library_name` stands in its place.
        module: "module:class" of a torch module with learned parameters of its own, made of the options and called
            as `function` is.
        oracle: "module:function", dense and readable; the definition `function` is tested against.
        pairs: Positions and options to the (query, key) pairs that one head attends over; None where that is
            every pair (exact variants), or where pairs do not tell the cost (approximations).
        flops: (positions, heads, dimensions of a head) and options to the FLOPs that its definition asks for in one
            layer, for one sequence; where pairs do not tell them.
        path: "module:function" of (length, device type, name of the dtype) to the way that `function` takes there, in
            words, with the keyword arguments head_dim, dropout and the options; None where there is one way only.
        library_name: The library's name of the implementation, where it is the library's own.
        keeps_map: Whether the map that it computes can be kept for other layers.
        shares_maps: True where it is no attention itself, but says which layers share the map of another.
    """

    name: str
    title: str
    exact: bool
    paper: str
    options: Mapping[str, Option] = field(default_factory=dict)
    function: str | None = None
    module: str | None = None
    oracle: str | None = None
    pairs: Callable[..., int] | None = None
    flops: Callable[..., int] | None = None
    path: str | None = None
    library_name: str | None = None
    keeps_map: bool = False
    shares_maps: bool = False
