"""Exceptions of the package: one base, split only where a caller would act differently."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TippingPointError(Exception):
    """Base of every error the package raises on purpose.

    The message is one sentence a user can act on; `exit_code` is what the command line returns for it.
    """

    exit_code = 1


class InputError(TippingPointError, ValueError):
    """What the caller gave cannot be used: what was expected, what came, and what to do."""

    exit_code = 2


class UnsupportedError(InputError):
    """A combination that exists in the grammar but not in reality, such as local attention in Swin V2."""


class WontFitError(TippingPointError):
    """A workload was refused before it was tried, because memory would not be enough.

    Args:
        message: What is needed and what there is.
        measured: True if the need was extrapolated from measured lengths or cannot be avoided, False if it is an
            upper bound in closed form, which shorter lengths may refute.
    """

    def __init__(self, message: str, *, measured: bool) -> None:
        super().__init__(message)
        self.measured = measured


class DataError(TippingPointError):
    """The person's data could not be read, or nothing usable was in it."""


class StoreError(TippingPointError):
    """A results file could not be opened, read or written."""


class AnswerError(TippingPointError):
    """Everything was understood, and yet the answer could not be had (every workload failed, say)."""


def unknown(what: str, name: str, choices: Iterable[str]) -> InputError:
    """Return the error for a name that is not in a table, with the nearest names first.

    Args:
        what: What the name should have been, in the singular: "variant".
        name: What came.
        choices: Every legal name.
    """
    legal = list(choices)
    nearest = difflib.get_close_matches(name, legal, n=2, cutoff=0.6)
    hint = f" Did you mean {' or '.join(repr(n) for n in nearest)}?" if nearest else ""
    return InputError(f"unknown {what} {name!r}; expected one of {', '.join(legal)}.{hint}")
