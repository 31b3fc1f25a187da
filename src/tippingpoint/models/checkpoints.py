"""Checkpoints with an attention variant in place: converted, written and opened again.

A checkpoint stays what the Transformers library writes and reads. Its configuration carries, under a key of our own,
what stands in each layer, which `load` puts in place again; the library keeps the key and does not look at it. What a
variant has learned is among the weights, below its layer.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from tippingpoint.errors import DataError, InputError, UnsupportedError
from tippingpoint.models.catalog import ARCHITECTURES, VARIANTS, resolve
from tippingpoint.models.checkpoint_files import (
    CONFIG,
    check_output,
    companions_of,
    copy_companions,
    find_folder,
    read_config,
    read_weights,
    written_whole,
)
from tippingpoint.models.checkpoint_models import Opened, make_model, quiet_library
from tippingpoint.models.groups import REUSE, matched_heads
from tippingpoint.models.layer_attention import map_dtype_of
from tippingpoint.models.layers import layers_of
from tippingpoint.models.sharing import reuse_attention, unneeded_parameters
from tippingpoint.models.swap import CONFIG_KEY, swap_attention, variants_of
from tippingpoint.units import MODALITIES, format_bytes, format_items, format_length
from tippingpoint.workload import DTYPES, Subject, Variant, check_choice

# What the names of learned weights have in common.
_LEARNED = ".tippingpoint.learned."
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A checkpoint that was written with a variant in place.

    Attributes:
        checkpoint: Where it came from.
        output: Folder that it was written to.
        model: Class of the Transformers library.
        attention: What stands in each layer of the encoder.
        changed: Numbers of the layers that had something else before.
        parameters_before: Number of parameters of the checkpoint.
        parameters_after: Number of parameters with the variant.
        bytes: Size of what was written.
        companions: Files that were copied, such as those of a tokenizer.
        left_out: Weights of the checkpoint that its class has no place for.
        limits: What inputs it cannot take, in words.
        notes: What else the reader should know.
    """

    checkpoint: str
    output: str
    model: str
    attention: tuple[str, ...]
    changed: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    bytes: int
    companions: tuple[str, ...]
    left_out: tuple[str, ...]
    limits: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def next_command(self) -> str:
        """What to type to see that it is there."""
        code = f"import tippingpoint; print(tippingpoint.load({json.dumps(self.output)}))"
        return f"python -c {shlex.quote(code)}"

    def __str__(self) -> str:
        before, after = self.parameters_before, self.parameters_after
        of = "of the variant" if after > before else "of layers that reuse a map"
        more = f"{after:,} ({after - before:+,} {of})" if after != before else f"{after:,}, as before"
        changed = f"{len(self.changed)} of {len(self.attention)} layers changed"
        lines = [
            f"{self.model}: {_by_layers(self.attention)}; {changed}",
            f"parameters: {before:,} before, {more}" if after != before else f"parameters: {more}",
            *(f"limit: {limit}" for limit in self.limits),
            *(f"note: {note}" for note in self.notes),
            f"written to {self.output}: {format_bytes(self.bytes)} of weights, configuration"
            + "".join(f", {name}" for name in self.companions),
            f"next: {self.next_command}",
        ]
        return "\n".join(lines)


def load(
    checkpoint: str | os.PathLike[str], *, dtype: str | torch.dtype | None = None, device: str | None = None
) -> PreTrainedModel:
    """Open a checkpoint, with the variants in place that it was converted to; in evaluation mode.

    Weights are read from safetensors alone, and no code of the checkpoint runs.

    Args:
        checkpoint: Folder with config.json and model.safetensors (or its parts), or a hub id OWNER/NAME.
        dtype: Of its weights, such as "bfloat16"; that of the checkpoint by default.
        device: Where to put it, such as "cuda"; the CPU by default.

    Returns:
        A model of the class that the configuration names, or the library's encoder of its type.

    Raises:
        InputError: If there is no such checkpoint, or its model type is unknown.
        DataError: If files are damaged, or weights do not fit the configuration.
    """
    chosen = getattr(torch, check_choice("dtype", dtype, DTYPES)) if isinstance(dtype, str) else dtype
    model = _open(find_folder(checkpoint), chosen).model
    try:
        nn.Module.to(model, device)
        return model
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the device {device!r} cannot be used: {shorten(str(error), 200)}") from error


def save(
    model: PreTrainedModel,
    output: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Path:
    """Write a model with the variants that stand in it, so that `load` opens it again with them.

    Args:
        model: Any model of the Transformers library.
        output: Folder that is empty or not there yet. It appears when everything is written.
        source: Checkpoint whose tokenizer and the like are copied.
        force: Whether a checkpoint that is there is replaced.

    Raises:
        InputError: If the folder holds something.
        AnswerError: If it cannot be written.
    """
    place = Path(output).expanduser()
    folder = None if source is None else find_folder(source)
    check_output(place, source=folder, force=force)
    state = model.state_dict()
    learned = sorted(name.split(_LEARNED)[1] for name in state if _LEARNED in name)
    with written_whole(place, _bytes(model)) as temporary, quiet_library():
        model.save_pretrained(temporary)
        if folder is not None:
            copy_companions(folder, temporary)
        # The library renames weights on their way to the file; what it may have made of ours is looked at.
        written = [name for path in sorted(temporary.glob("*.safetensors")) for name in _names_in(path)]
        # Readable by those who may read the rest; the library makes weights private.
        for path in temporary.glob("*.safetensors"):
            path.chmod((temporary / CONFIG).stat().st_mode)
        if sorted(name.split(_LEARNED)[1] for name in written if _LEARNED in name) != learned:
            raise UnsupportedError(
                f"the library renames what the variants of {type(model).__name__} learned, so it cannot be written"
            )
    return place


def convert(
    checkpoint: str | os.PathLike[str],
    attention: str | Sequence[str],
    output: str | os.PathLike[str],
    *,
    force: bool = False,
) -> Conversion:
    """Put attention variants into a checkpoint and write it to a folder that `load` opens.

    Args:
        checkpoint: Folder, or a hub id OWNER/NAME.
        attention: As a subject writes it: "local:window=50", "local:window=50,layers=0-5+eager:layers=6-11", or
            several of them for layers of their own.
        output: Folder that is empty or not there yet.
        force: Whether a checkpoint that is there is replaced.

    Returns:
        What was changed, and where it is.

    Raises:
        InputError: If the checkpoint, a variant or the output folder is not legal.
        UnsupportedError: If the model cannot take the variant, with the reason.
        DataError: If the checkpoint is damaged.
        AnswerError: If the output cannot be written.
    """
    variants = _parse(attention)
    place = Path(output).expanduser()
    folder = find_folder(checkpoint)
    check_output(place, source=folder, force=force)
    opened = _open(folder)
    model = opened.model
    parameters = model.num_parameters()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)  # what a variant learns begins at random, and the same each time
        before, after = _put(model, variants)
    save(model, place, source=folder, force=force)
    return Conversion(
        checkpoint=os.fspath(checkpoint),
        output=str(output),
        model=type(model).__name__,
        attention=tuple(map(str, after)),
        changed=tuple(number for number, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]),
        parameters_before=parameters,
        parameters_after=model.num_parameters(),
        bytes=sum(path.stat().st_size for path in place.glob("*.safetensors")),
        companions=companions_of(folder),
        left_out=opened.left_out,
        limits=tuple(_limits(model, after)),
        notes=tuple(_notes(opened, model.num_parameters() - parameters)),
    )


def _parse(attention: str | Sequence[str]) -> tuple[Variant, ...]:
    """Return the variants that are named, checked against the catalogue."""
    texts = [attention] if isinstance(attention, str) else list(attention)
    variants = tuple(Variant.parse(part) for text in texts for part in text.split("+"))
    if not variants:
        raise InputError("expected at least one variant, such as local:window=50")
    for variant in variants:
        resolve(Subject("model", (variant,)), MODALITIES[0])
    return variants


def _put(model: PreTrainedModel, variants: Sequence[Variant]) -> tuple[tuple[Variant, ...], tuple[Variant, ...]]:
    """Put variants into a model; return what stood in its layers before and what stands there now."""
    taken: dict[int, Variant] = {}
    before = _standing(model)
    for variant in sorted(variants, key=lambda variant: VARIANTS[variant.name].shares_maps):
        swap_attention(model, str(variant))
        for number in () if VARIANTS[variant.name].shares_maps else layers_of(variant, len(variants_of(model))):
            if number in taken:
                raise UnsupportedError(
                    f"'{taken[number]}' and '{variant}' are both for layer {number}; give each its own, such as "
                    f"{taken[number].name}:layers=0-5 and {variant.name}:layers=6-11"
                )
            taken[number] = variant
    after = variants_of(model)
    return before or after, after


def _standing(model: PreTrainedModel) -> tuple[Variant, ...] | None:
    """Return what stands in each layer; None where a model cannot be asked."""
    try:
        return variants_of(model)
    except UnsupportedError:
        return None


def _open(folder: Path, dtype: torch.dtype | None = None) -> Opened:
    """Open a checkpoint with what stands in it."""
    weights = read_weights(folder)
    learned = {name: weights.pop(name) for name in list(weights) if _LEARNED in name}
    config = read_config(folder)
    reusing = _reusing_layers(config)
    opened = make_model(folder, config, weights, dtype, without=lambda model: unneeded_parameters(model, reusing))
    _restore(opened.model, learned, folder)
    opened.model.eval()
    return opened


def _reusing_layers(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the layers that take over the map of another, by what a configuration says stands in them."""
    record = config.get(CONFIG_KEY)
    texts = record.get("attention") if isinstance(record, dict) else None
    texts = texts if isinstance(texts, list) else ()
    return tuple(n for n, text in enumerate(texts) if isinstance(text, str) and Variant.parse(text).name == REUSE)


def _restore(model: PreTrainedModel, learned: Mapping[str, Tensor], folder: Path) -> None:
    """Put into a model what its configuration says stands in it, with what it has learned."""
    record = getattr(model.config, CONFIG_KEY, None)
    if record is not None:
        texts = record.get("attention") if isinstance(record, dict) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{CONFIG_KEY!r} in the config.json in {str(folder)!r} must hold 'attention', a list of one variant "
                "for each layer; convert the checkpoint again"
            )
        wanted = [Variant.parse(text) for text in texts]
        standing = variants_of(model)
        if len(wanted) != len(standing):
            raise DataError(
                f"the config.json in {str(folder)!r} has variants for {len(wanted)} layers, and "
                f"{type(model).__name__} has {len(standing)}; convert the checkpoint again"
            )
        reusing = {number: variant for number, variant in enumerate(wanted) if variant.name == REUSE}
        for variant in dict.fromkeys(v for v in wanted if v.name != REUSE):
            pairs = enumerate(zip(wanted, standing, strict=True))
            numbers = [number for number, (own, now) in pairs if own == variant != now]
            try:
                if numbers:
                    swap_attention(model, str(variant), layers=numbers)
            except InputError as error:
                raise DataError(
                    f"'{variant}', which {str(folder)!r} was converted to, cannot be put in place: {error} Is the "
                    "package installed that it came from?"
                ) from error
        if reusing:
            _restore_reuse(model, reusing, folder)
    _restore_learned(model, learned, folder)


def _restore_reuse(model: PreTrainedModel, reusing: Mapping[int, Variant], folder: Path) -> None:
    """Let the layers share maps that a configuration says do: `reuse:of=LAYER`, with its mode, maps and heads."""
    options: dict[int, dict[str, Any]] = {number: dict(variant.options) for number, variant in reusing.items()}
    try:
        groups = [
            [of, *(n for n in options if options[n]["of"] == of)] for of in {o["of"]: 0 for o in options.values()}
        ]
        matches = {number: matched_heads(variant) for number, variant in reusing.items()}
        heads = {number: match for number, match in matches.items() if match is not None}
        first = next(iter(reusing.values()))
        mode = str(dict(first.options)["mode"])
        reuse_attention(model, groups, mode=mode, map_dtype=map_dtype_of(first), heads=heads)
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"the config.json in {str(folder)!r} says which layers share attention maps in a way that cannot be "
            f"followed: {shorten(str(error), 200)}; convert the checkpoint again"
        ) from error


def _restore_learned(model: PreTrainedModel, learned: Mapping[str, Tensor], folder: Path) -> None:
    modules = [module for name, module in model.named_modules() if f".{name}.".endswith(_LEARNED)]
    layers: dict[str, dict[str, Tensor]] = {}
    # The library may call layers otherwise in the file than in the model; their order is the same.
    for name in sorted(learned, key=_natural):
        layer, _, own = name.partition(_LEARNED)
        layers.setdefault(layer, {})[own] = learned[name]
    if len(layers) != len(modules):
        raise DataError(
            f"{str(folder)!r} holds what variants learned in {format_items(len(layers), 'layer')}, and its "
            f"config.json has such variants in {len(modules)}; write it again with tippingpoint.save"
        )
    for module, state in zip(modules, layers.values(), strict=True):
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            reason = shorten(str(error), 300)
            raise DataError(f"what a variant learned in {str(folder)!r} does not fit it: {reason}") from error


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Order names by their numbers, not by their digits."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]


def _limits(model: PreTrainedModel, standing: Sequence[Variant]) -> Iterator[str]:
    """Say what inputs a model cannot take."""
    row = ARCHITECTURES.get(getattr(model.config, "model_type", ""))
    longest = None if row is None else row.limit(model.config.to_dict())
    table = _positions_in_table(model)
    if row and longest is not None and row.modality == "vision":
        yield f"takes images of {format_length(longest, row.unit)}; others need interpolate_pos_encoding=True"
    elif row and longest is not None:
        why = "its table of positions ends there" if table else "it was made for no more"
        yield f"takes at most {format_length(longest, row.unit)}: {why}"
    elif row is None and table:
        yield f"takes at most {table:,} positions: its table of them ends there"
    for variant in dict.fromkeys(standing):
        if "max_length" in dict(variant.options):
            longest = dict(variant.options)["max_length"]
            yield f"'{variant}' takes at most {longest:,} positions: it learns weights for each"


def _positions_in_table(model: PreTrainedModel) -> int | None:
    """Return how many positions the encoder's table of them has; None where it has none."""
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and re.search(r"position|\bwpe$", last) and "decoder" not in name:
            # Positions begin after the padding index in RoBERTa's family, and after an offset in BART's.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - int(getattr(module, "offset", first))
    return None


def _notes(opened: Opened, added: int) -> Iterator[str]:
    if added > 0:
        yield "the weights of the variant are random: train the model before it is used"
    if opened.left_out:
        first, more = opened.left_out[0], len(opened.left_out) - 1
        yield (
            f"{type(opened.model).__name__} has no place for {first}{f' and {more} more' if more else ''} of the "
            "checkpoint, left out"
        )
    if opened.new:
        yield f"the checkpoint has no {', '.join(opened.new)}: made anew, and used in training only"


def _by_layers(attention: Sequence[str]) -> str:
    """Return what stands in the layers, one entry for each run of equal ones."""
    runs: list[tuple[str, int, int]] = []
    for number, text in enumerate(attention):
        if runs and runs[-1][0] == text:
            runs[-1] = (text, runs[-1][1], number)
        else:
            runs.append((text, number, number))
    if len(runs) == 1:
        return attention[0]
    return ", ".join(
        f"{text} in {f'layers {first}-{last}' if last > first else f'layer {first}'}" for text, first, last in runs
    )


def _bytes(model: PreTrainedModel) -> int:
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def _names_in(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())
