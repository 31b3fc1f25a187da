"""A table of the catalogue: its own rows, and those that other installed packages add by entry points.

A package adds a row by an entry point of the table's group, named as the row is:

    [project.entry-points."tippingpoint.variants"]
    prefix = "prefix_attention:PREFIX"
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint
from typing import Generic, Protocol, TypeVar

from tippingpoint.errors import InputError
from tippingpoint.workload import Variant


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Row = TypeVar("Row", bound=_Named)


class Table(Mapping[str, Row], Generic[Row]):
    """Rows by name.

    A package is imported when the row that it adds is asked for, or when all rows are. One that cannot give its row
    is an error for who asks for that row, and a warning for who asks for all: it takes nothing else away.

    Args:
        kind: Class of the rows.
        group: Name of the entry points' group.
        rows: The table's own; they cannot be replaced.
    """

    def __init__(self, kind: type[Row], group: str, *rows: Row) -> None:
        self._kind = kind
        self._group = group
        self._own = {row.name: row for row in rows}
        assert len(self._own) == len(rows), "a name stands twice in the catalogue"
        self._loaded: dict[str, Row | InputError] = {}

    def __getitem__(self, name: str) -> Row:
        """Return a row.

        Raises:
            KeyError: If no row has this name.
            InputError: If an installed package says that it has it, and cannot give it.
        """
        if name in self._own:
            return self._own[name]
        found = self._added(name)
        if isinstance(found, InputError):
            raise found
        return found

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        for name in self._points:
            found = self._added(name)
            if isinstance(found, InputError):
                warnings.warn(str(found), stacklevel=2)
            else:
                yield name

    def __len__(self) -> int:
        return len(self._own) + sum(not isinstance(self._added(name), InputError) for name in self._points)

    @cached_property
    def _points(self) -> dict[str, list[EntryPoint]]:
        """Entry points of other packages by name; nothing is imported yet."""
        found: dict[str, list[EntryPoint]] = {}
        for point in importlib.metadata.entry_points(group=self._group):
            found.setdefault(point.name, []).append(point)
        return found

    def _added(self, name: str) -> Row | InputError:
        """Return the row that a package adds, or what is wrong with it."""
        if name not in self._loaded:
            self._loaded[name] = self._load(self._points[name])
        return self._loaded[name]

    def _load(self, points: list[EntryPoint]) -> Row | InputError:
        point = points[0]
        where = f"the entry point {point.name!r} = {point.value!r} of {_package(point)} in {self._group}"
        if point.name in self._own:
            return InputError(f"{where} has the name of a row of tippingpoint's own; give it another name")
        if len(points) > 1:
            others = " and ".join(map(_package, points[1:]))
            return InputError(f"{where} has the name that {others} gives too; uninstall all but one")
        try:
            Variant(point.name)
        except InputError:
            return InputError(f"{where} must have a word as its name, to be written in a subject")
        try:
            row = point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's import can raise anything
            return InputError(f"{where} cannot be loaded: {type(error).__name__}: {error}")
        if not isinstance(row, self._kind):
            return InputError(f"{where} must name one {self._kind.__name__}, and names a {type(row).__name__}")
        if row.name != point.name:
            return InputError(f"{where} must have the name of its row, which is {row.name!r}")
        return row


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist else "an installed package"
