"""Folders that hold a checkpoint: found, read, and written whole or not at all.

Nothing in such a folder is run: weights are safetensors, the configuration is JSON, and pickled weights and Python
files are left alone.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from textwrap import shorten
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tippingpoint.errors import AnswerError, DataError, InputError
from tippingpoint.units import format_bytes

CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")

# What turns inputs into tensors and outputs into words, by the names that the Transformers library gives it.
COMPANIONS = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "vocab*.bpe",
    "merges.txt",
    "*.model",
    "*.spm",
    "bpe.codes",
    "dict.txt",
    "alphabet.json",
    "normalizer.json",
    "*preprocessor_config.json",
    "processor_config.json",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)
# Far above what any checkpoint needs.
_LARGEST_JSON = 2**26
_MOST_LAYERS = 10_000
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")

# What a configuration may ask for beyond the model itself: code of strangers, other files, kernels from elsewhere.
_NOT_FOLLOWED = frozenset(
    {
        "auto_map",
        "backbone",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "fusion_config",
        "distributed_config",
        "transformers_weights",
        "custom_pipelines",
    }
)


def find_folder(checkpoint: str | os.PathLike[str]) -> Path:
    """Return the folder of a checkpoint: the one that is named, or that of a hub id.

    Raises:
        InputError: If there is none, or it is a file.
    """
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"a checkpoint is a folder with {CONFIG} and {_WEIGHTS}, and {str(checkpoint)!r} is a file")
    name = os.fspath(checkpoint)
    # In a folder that is here, a path was meant: a slip of the pen must not become a download.
    if not _HUB_ID.fullmatch(name) or path.parent.is_dir():
        raise InputError(
            f"there is no folder {name!r}; give one with {CONFIG} and {_WEIGHTS}, or a hub id OWNER/NAME"
        )
    return _download(name)


def _download(name: str) -> Path:
    """Return the folder of a hub id in the local cache, fetched if need be: weights, configuration and companions."""
    from huggingface_hub import snapshot_download

    wanted = [CONFIG, _WEIGHTS, "model-*.safetensors", _INDEX, *COMPANIONS]
    problem = None
    # First without the network: it may not be there, and what is in the cache needs none.
    for offline in (True, False):
        try:
            found = snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"], local_files_only=offline)
        except Exception as error:  # noqa: BLE001 - network, file and hub errors of two libraries
            problem = error
            continue
        folder = Path(found)
        if (folder / CONFIG).exists() and ((folder / _WEIGHTS).exists() or (folder / _INDEX).exists() or not offline):
            return folder
    reason = shorten(str(problem), 120) if problem else "it holds no checkpoint"
    raise InputError(
        f"there is no folder {name!r}, and the hub gives no checkpoint of that name ({reason}); give a folder, or "
        "check the id and the network"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a checkpoint, without what would lead out of the folder.

    Raises:
        InputError: If there is none.
        DataError: If it is not a JSON object that names a model type, or has absurdly many layers.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{str(folder)!r} holds no {CONFIG}; give the folder that save_pretrained wrote")
    values = _read_json(path)
    if not isinstance(values.get("model_type"), str):
        raise DataError(f"{str(path)!r} names no model_type (such as 'hubert'), so it does not say what to build")
    for key, value in values.items():
        if "layers" in key and isinstance(value, int) and value > _MOST_LAYERS:
            raise DataError(f"{str(path)!r} asks for {value:,} layers in {key!r}; no model has over {_MOST_LAYERS:,}")
    return _cleaned(values)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise DataError(f"{str(path)!r} is over {format_bytes(_LARGEST_JSON)}, too large for what it should hold")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{str(path)!r} must hold a JSON object, and holds a {type(values).__name__}")
    return values


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items() if key not in _NOT_FOLLOWED}
    return [_cleaned(item) for item in value] if isinstance(value, list) else value


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint by name, in memory of their own.

    Raises:
        InputError: If there are none, or only pickled ones.
        DataError: If a file is missing or cannot be read.
    """
    if (folder / _INDEX).is_file():
        parts = _read_json(folder / _INDEX).get("weight_map")
        if not isinstance(parts, dict) or not all(
            isinstance(part, str) and Path(part).name == part for part in parts.values()
        ):
            raise DataError(f"{str(folder / _INDEX)!r} must map each weight to a file beside it")
        names = sorted(set(parts.values()))
    elif (folder / _WEIGHTS).is_file():
        names = [_WEIGHTS]
    else:
        raise _no_weights(folder)
    weights: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{str(folder / _INDEX)!r} names {name}, which is not there; copy the checkpoint again")
        try:
            # Copied out of the mapped file: it may change, and its offsets are aligned for no kernel.
            weights |= {key: tensor.clone() for key, tensor in load_file(path).items()}
        except (SafetensorError, OSError) as error:
            raise DataError(f"{str(path)!r} cannot be read ({error}); copy the checkpoint again") from error
    return weights


def _no_weights(folder: Path) -> InputError:
    pickled = [name for name in _PICKLED if (folder / name).is_file()]
    if not pickled:
        return InputError(f"{str(folder)!r} holds no weights; expected {_WEIGHTS}, or its parts with {_INDEX}")
    # Quoted, for Python and for a shell: the line may be copied, and the folder's name may be a stranger's.
    here, config, there = (
        json.dumps(f"{folder}{end}", ensure_ascii=False) for end in ("", f"/{CONFIG}", "-safetensors")
    )
    code = (
        f'import transformers, json; name = json.load(open({config}))["architectures"][0]; '
        f"getattr(transformers, name).from_pretrained({here}).save_pretrained({there})"
    )
    return InputError(
        f"{str(folder)!r} holds pickled weights ({pickled[0]}), which can run code when they are opened; if you "
        f"trust them, write safetensors once: python -c {shlex.quote(code)}"
    )


def companions_of(folder: Path) -> tuple[str, ...]:
    """Return the names of the files of a checkpoint that turn inputs into tensors, such as a tokenizer's.

    Links that lead out of it are passed over, because they are copied: to a person's own files they could lead too.
    """
    return tuple(
        sorted(
            path.name
            for path in folder.iterdir()
            if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in COMPANIONS) and _stays_in(path)
        )
    )


def _stays_in(path: Path) -> bool:
    """Whether a file lies in its folder, or where the hub's cache keeps what such a folder links to."""
    real, folder = path.resolve(), path.parent.resolve()
    return real.is_relative_to(folder) or real.is_relative_to(folder.parent.parent / "blobs")


def copy_companions(source: Path, target: Path) -> None:
    """Copy the companions of a checkpoint, but those that are there."""
    for name in companions_of(source):
        if not (target / name).exists():
            shutil.copyfile(source / name, target / name)


def check_output(output: Path, *, source: Path | None = None, force: bool = False) -> None:
    """See to it that a checkpoint may be written to a folder.

    Raises:
        InputError: If it would overwrite something that it must not.
    """
    if source and source.resolve().is_relative_to(output.resolve()):
        raise InputError(f"the output folder {str(output)!r} holds the checkpoint itself; give another folder")
    if output.exists() and not output.is_dir():
        raise InputError(f"the output {str(output)!r} is a file; give a folder that is empty or not there yet")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not force:
        raise InputError(
            f"the output folder {str(output)!r} is not empty; give another, or replace it by --force (force=True)"
        )
    if not (output / CONFIG).is_file():
        raise InputError(
            f"the output folder {str(output)!r} holds something that is no checkpoint, which is never replaced; "
            "give another one"
        )


@contextmanager
def written_whole(output: Path, size: int) -> Iterator[Path]:
    """Give a folder beside `output` that takes its place if the block ends well, and is removed if it does not.

    Args:
        output: Does not exist, or is replaced.
        size: Bytes that will be written, about.

    Raises:
        AnswerError: If they cannot be written.
    """
    temporary = output.parent / f".{output.name}.{uuid4().hex[:8]}"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
        if size > free:
            raise AnswerError(
                f"{str(output)!r} needs {format_bytes(size)}, and {format_bytes(free)} are free there; make room or "
                "give another folder"
            )
        temporary.mkdir()
        yield temporary
        _take_place(temporary, output)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AnswerError(
            f"{str(output)!r} cannot be written ({reason}); what was there before is untouched"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(new: Path, place: Path) -> None:
    """Rename a folder to where another one may be, which is put back if that fails."""
    if not place.is_dir() or not any(place.iterdir()):
        new.rename(place)  # an empty folder is replaced in the same step
        return
    old = place.parent / f".{place.name}.{uuid4().hex[:8]}"
    place.rename(old)
    try:
        new.rename(place)
    except OSError:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
