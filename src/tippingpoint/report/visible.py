"""Texts from outside, of which nothing is hidden."""

from __future__ import annotations

import unicodedata
from typing import Any

# Characters that show nothing, or change how others are shown.
_HIDDEN = ("Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp")


def visible(text: str) -> str:
    """Return a text of which all can be seen, in one line.

    Line breaks become spaces. Control characters, marks that turn the direction of writing and halves of characters,
    which names of files may have and no file can hold, are spelled out.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        " " if each in "\n\r\t" else each if unicodedata.category(each) not in _HIDDEN else spelled(each)
        for each in text
    )


def spelled(character: str) -> str:
    r"""Return a character as Python spells it: `\u202e`."""
    return character.encode("unicode_escape").decode()


def all_visible(value: Any) -> Any:
    """Return plain data with all its texts made visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [all_visible(each) for each in value]
    if isinstance(value, dict):
        return {key: all_visible(each) for key, each in value.items()}
    return value
