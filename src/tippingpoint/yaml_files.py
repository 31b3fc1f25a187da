"""YAML files of a person or a stranger: plain data, read within bounds; nothing in them runs.

What is read is the part of YAML 1.2 that can be seen: mappings, lists, texts, numbers, true, false and null. Errors
are aliases (a kilobyte of them can stand for gigabytes), tags (which name types), keys that stand twice (one would
hide the other) and keys that are no text. Words such as `no` and dates are texts.
"""

from __future__ import annotations

import math
import re
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from tippingpoint.errors import InputError

LARGEST_BYTES = 2**17
_DEEPEST = 20
_LARGEST_NUMBER = 2**63
_TEXT, _INT, _FLOAT, _NULL, _BOOL, _UNCLEAR = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "null", "bool", "unclear")
)


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, of which only plain data is left."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own way)
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _refused("aliases (& and *) are not read; write the value where it belongs", event)
        if getattr(event, "tag", None) not in (None, "!"):
            raise _refused("tags (!) are not read; leave it out", event)
        if self._depth >= _DEEPEST:
            raise _refused(f"it is nested more than {_DEEPEST} deep", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != _TEXT:
                raise _refused("a key must be a text; put it into quotes if it is one", key)
            if key.value in seen:
                raise _refused(f"the key {key.value!r} stands there twice; leave one out", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_text(self, node: Any) -> str:
        if any("\ud800" <= each <= "\udfff" for each in node.value):
            raise _refused("half of a character is no text", node)
        return node.value

    def construct_number(self, node: Any) -> int | float:
        # Digits are few before int() sees them: it refuses thousands with an error of its own.
        value = float(node.value)
        if not abs(value) < (_LARGEST_NUMBER if node.tag == _INT else math.inf):
            raise _refused(f"the number {node.value[:20]!r} is too large", node)
        return int(node.value) if node.tag == _INT else value

    def refuse_unclear(self, node: Any) -> None:
        raise _refused(
            f"{node.value[:20]!r} begins with a zero, which some read as octal; leave the zero out, or put a text "
            "into quotes",
            node,
        )


# In the order in which they are tried.
for _tag, _pattern, _first in (
    (_BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (_NULL, r"~|null|Null|NULL|", ("~", "n", "N", "")),
    (_INT, r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (_UNCLEAR, r"[-+]?0[0-9_]+", "-+0"),
    (_FLOAT, r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _PlainLoader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), list(_first))
_PlainLoader.add_constructor(_TEXT, _PlainLoader.construct_text)
_PlainLoader.add_constructor(_INT, _PlainLoader.construct_number)
_PlainLoader.add_constructor(_FLOAT, _PlainLoader.construct_number)
_PlainLoader.add_constructor(_UNCLEAR, _PlainLoader.refuse_unclear)


def _refused(why: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=where.start_mark)


def parse_yaml(text: str) -> Any:
    """Return what a YAML text holds: dicts with texts as keys, lists, texts, finite numbers, booleans, None.

    Raises:
        InputError: If it is no YAML, or something in it is not read; the message gives line and column.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        why = " ".join(str(error.problem or error.context or "it cannot be read").split())
        raise InputError(f"no YAML: {why}{place}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # The latter two: a character that is written by its number and does not exist.
        raise InputError(f"no YAML: {' '.join(str(error).split())}") from error


def read_yaml(path: str | PathLike[str], what: str, hint: str = "") -> Any:
    """Return what a YAML file holds; see `parse_yaml`.

    Args:
        path: A regular file of at most 128 KiB: a pipe or a device could go on for ever.
        what: What it is for, for the error message: "study".
        hint: What else to say where it cannot be read.

    Raises:
        InputError: If it cannot be read, is too large, or is no YAML.
    """
    path = Path(path)
    try:
        # A pipe or a device could go on for ever; opening a folder says what it is.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise OSError("it is no regular file")
        with open(path, "rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
        if len(raw) > LARGEST_BYTES:
            raise OSError(f"it is too large, over {LARGEST_BYTES // 1024} KiB")
        text = raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        # ValueError: it is not UTF-8, or its name holds a zero byte.
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the {what} {str(path)!r} ({reason}){hint}") from error
    try:
        return parse_yaml(text)
    except InputError as error:
        raise InputError(f"{path} is {error}") from error
