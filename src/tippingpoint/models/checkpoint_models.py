"""A checkpoint's model as the Transformers library makes it, with every weight accounted for.

The library fills what a checkpoint lacks with random weights and leaves out what it does not know; here that is an
error, but for what changes no output: parts of another head, and parameters that only training uses.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as library_logging

from tippingpoint.errors import DataError, InputError, UnsupportedError

# Parameters that the library itself leaves out of published checkpoints: used by a training step alone.
_TRAINING_ONLY = ("masked_spec_embed",)
_SHOWN = 3
_NO_CODE = "code that comes with a checkpoint (its auto_map) is never run"


class Opened(NamedTuple):
    """A model, the weights of its checkpoint that it has no place for, and those that the checkpoint lacks."""

    model: PreTrainedModel
    left_out: tuple[str, ...]
    new: tuple[str, ...]


def make_model(
    folder: Path,
    values: Mapping[str, Any],
    weights: dict[str, Tensor],
    dtype: torch.dtype | None = None,
    *,
    without: Callable[[PreTrainedModel], Collection[str]] = lambda model: (),
) -> Opened:
    """Make the model of a configuration and its weights, in evaluation mode.

    Args:
        folder: Where they were read; for messages, and for how a model with a decoder writes.
        values: The configuration.
        weights: By the names that they have in the files.
        dtype: Of the model; that of the checkpoint by default.
        without: The model to the names of its parameters that the checkpoint need not have.

    Raises:
        InputError: If the library knows no such model.
        DataError: If the configuration makes no model, or the weights are not its own.
    """
    config, model_class = _find_class(folder, values)
    try:
        with quiet_library(), _without_network():
            # Weights alone are handed over: given the folder, the library would look for adapters and more.
            loaded: Any = model_class.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                dtype=dtype or "auto",
                generation_config=_generation_config(folder, values),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        reason = shorten(str(error), 300)
        raise DataError(f"{model_class.__name__} cannot be made of {str(folder)!r}: {reason}") from error
    model, info = loaded
    left_out, new = _check_fit(model, info, folder, without(model))
    model.config.name_or_path = str(folder)
    return Opened(model.eval(), left_out, new)


def _find_class(folder: Path, values: Mapping[str, Any]) -> tuple[PretrainedConfig, type[PreTrainedModel]]:
    """Return the library's configuration and model class of a checkpoint."""
    name = values["model_type"]
    version = f"transformers {transformers.__version__}"
    if name not in transformers.CONFIG_MAPPING:
        nearest = difflib.get_close_matches(name, transformers.CONFIG_MAPPING, n=1)
        hint = f"did you mean {nearest[0]!r}? If not, {_NO_CODE}" if nearest else _NO_CODE
        raise InputError(f"{str(folder)!r} is of model type {name!r}, which {version} does not know; {hint}")
    if values.get("quantization_config"):
        raise UnsupportedError(f"the weights in {str(folder)!r} are quantized; give the checkpoint as it was before")
    try:
        with quiet_library(), _without_network():
            config = transformers.CONFIG_MAPPING[name].from_dict(dict(values))
    except Exception as error:
        reason = shorten(str(error), 300)
        raise DataError(f"the config.json in {str(folder)!r} is no configuration of {name!r}: {reason}") from error
    wanted = values.get("architectures")
    if not wanted:
        return config, _base_class(folder, config)
    named = wanted[0] if isinstance(wanted, list) else wanted
    found = getattr(transformers, named, None) if isinstance(named, str) else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise InputError(f"{str(folder)!r} is of the class {named!r}, which {version} does not have; {_NO_CODE}")
    if found.config_class is None or not isinstance(config, found.config_class):
        raise DataError(f"the config.json in {str(folder)!r} names {named}, which is no model of type {name!r}")
    return config, found


def _base_class(folder: Path, config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the library's model without a head for a configuration."""
    found: Any = transformers.MODEL_MAPPING.get(type(config), None)
    if found is None:
        raise InputError(
            f"the config.json in {str(folder)!r} names no class in 'architectures', and the library has no model for "
            f"every {config.model_type!r}; add the name of its class"
        )
    return found[0] if isinstance(found, tuple | list) else found


def _generation_config(folder: Path, values: Mapping[str, Any]) -> GenerationConfig:
    """Return how a model that writes does so: by its file, or by what older configurations say of it."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return GenerationConfig(**{key: value for key, value in values.items() if key in vars(GenerationConfig())})


def _check_fit(
    model: PreTrainedModel, info: Mapping[str, Any], folder: Path, without: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the weights that are left out and those that are new, where both are harmless."""
    missing = sorted(set(info["missing_keys"]).difference(without))
    new = [name for name in missing if name.endswith(_TRAINING_ONLY)]
    missing = [name for name in missing if name not in new]
    unexpected = sorted(info["unexpected_keys"])
    left_out = [name for name in unexpected if _is_of_another_head(name, model)]
    unexpected = [name for name in unexpected if name not in left_out]
    other = [
        f"{name} is {list(found)} in the file and {list(own)} in the model"
        for name, found, own in sorted(info["mismatched_keys"], key=lambda entry: entry[0])
    ]
    problems = [
        f"{len(names):,} {noun} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for names, noun in (
            (missing, "weight is missing" if len(missing) == 1 else "weights are missing"),
            (unexpected, "weight has no place" if len(unexpected) == 1 else "weights have no place"),
            (other, "weight has another shape" if len(other) == 1 else "weights have another shape"),
            (info["error_msgs"], "errors"),
        )
        if names
    ]
    if problems:
        raise DataError(
            f"the weights in {str(folder)!r} do not fit {type(model).__name__} as its config.json describes it: "
            f"{'; '.join(problems)}; take both from the same checkpoint"
        )
    return tuple(left_out), tuple(new)


def _is_of_another_head(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight is of a part outside of the layers that the class does without, such as a pooler."""
    module: nn.Module = model
    parts = name.split(".")[:-1]
    base = getattr(model, model.base_model_prefix, None)
    if parts and isinstance(base, nn.Module) and parts[0] in dict(base.named_children()):
        module = base
    for part in parts:
        if part.isdecimal():
            return False
        child = dict(module.named_children()).get(part)
        if child is None:
            return True
        module = child
    return False


@contextmanager
def quiet_library() -> Iterator[None]:
    """Keep the library's own report and progress bars off the terminal: what matters is raised or returned."""
    verbosity, bars = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        library_logging.set_verbosity(verbosity)
        if bars:
            with warnings.catch_warnings(action="ignore"):  # it warns where the environment forbids some of them
                library_logging.enable_progress_bar()


@contextmanager
def _without_network() -> Iterator[None]:
    """Keep the library from asking the hub, which a configuration can make it do."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
