"""Texts from outside, of which nothing is hidden."""

from __future__ import annotations

import unicodedata
from typing import Any

# Characters that show nothing, or change how others are shown.
_HIDDEN = ("Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp")
# What a spreadsheet takes for the beginning of a formula, where it begins a cell.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    """Return a text of which all can be seen, in one line.

    Line breaks become spaces. Control characters, marks that turn the direction of writing and halves of characters,
    which names of files may have and no file can hold, are spelled out.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(" " if each in "\n\r\t" else spelled_if_hidden(each) for each in text)


def spelled_if_hidden(character: str) -> str:
    """Return a character that can be seen as it is, and another as Python spells it."""
    return character if unicodedata.category(character) not in _HIDDEN else spelled(character)


def visible_lines(text: str) -> str:
    """Return a text of which all can be seen, in the lines that it has: nothing in it steers a terminal."""
    return "\n".join(map(visible, text.split("\n")))


def as_cell(value: Any) -> Any:
    """Return a value as a cell of CSV: a text that a spreadsheet took for a formula has a ' before it.

    Line breaks and tabs stay; what steers a terminal is spelled out.
    """
    if not isinstance(value, str):
        return value
    shown = value if value.isprintable() else "".join(e if e in "\n\t" else spelled_if_hidden(e) for e in value)
    return f"'{shown}" if value.startswith(_FORMULAS) else shown


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
