"""What a subject has said, as it may stand in a message: one line, plain text, not too long."""

from __future__ import annotations

import re

_LINES = 5
_LINE_CHARACTERS = 200
_CHARACTERS = 500
# Escape sequences of terminals: those with parameters, those with a text, and the short ones.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?")


def one_line(text: str, characters: int = _CHARACTERS) -> str:
    """Return a text on one line, without what would steer a terminal, cut at the end."""
    text = " ".join(_ESCAPES.sub("", text).split())
    return "".join(character for character in text if character.isprintable())[:characters]


def last_lines(output: bytes) -> str:
    """Return the last lines of an output that are not empty, of each the end.

    Of what a progress bar has written over itself, only the last state is taken.
    """
    lines = _ESCAPES.sub("", output.decode(errors="replace")).split("\n")
    # A line cut at the front would otherwise begin anywhere.
    last = (one_line(line.rstrip("\r").rpartition("\r")[2], len(line))[-_LINE_CHARACTERS:] for line in lines)
    return " | ".join([line for line in last if line][-_LINES:])
