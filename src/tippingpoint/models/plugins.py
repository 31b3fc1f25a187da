"""A table of the catalogue: its own rows, and those that other installed packages add by entry points."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Generic, Protocol, TypeVar

from tippingpoint.errors import InputError


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Row = TypeVar("Row", bound=_Named)


class Table(Mapping[str, Row], Generic[Row]):
    """Rows by name. Other packages are looked at only when a name is not among its own rows, or all are asked for.

    A package adds a row by an entry point of the table's group: `name = "package.module:ROW"`.

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

    def __getitem__(self, name: str) -> Row:
        """Return a row.

        Raises:
            KeyError: If no row has this name.
            InputError: If an installed package says that it has it, and cannot give it.
        """
        if name in self._own:
            return self._own[name]
        found = self._plugins[name]
        if isinstance(found, InputError):
            raise found
        return found

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        for name, row in self._plugins.items():
            if isinstance(row, InputError):
                # One broken package must not take the catalogue away from everybody.
                warnings.warn(str(row), stacklevel=2)
            else:
                yield name

    def __len__(self) -> int:
        return len(self._own) + sum(not isinstance(row, InputError) for row in self._plugins.values())

    @cached_property
    def _plugins(self) -> dict[str, Row | InputError]:
        """What other packages add, or what is wrong with it, by name."""
        found: dict[str, Row | InputError] = {}
        for point in importlib.metadata.entry_points(group=self._group):
            where = f"the entry point {point.name!r} = {point.value!r} of {_package(point)} in {self._group}"
            if point.name in self._own or point.name in found:
                row = InputError(f"{where} takes a name that is taken; rename it or uninstall the package")
                if point.name in self._own:
                    warnings.warn(str(row), stacklevel=2)
                    continue
            else:
                row = self._load(point, where)
            found[point.name] = row
        return found

    def _load(self, point: importlib.metadata.EntryPoint, where: str) -> Row | InputError:
        try:
            row = point.load()
        except Exception as error:  # noqa: BLE001 - a stranger's import can raise anything
            return InputError(f"{where} cannot be loaded: {type(error).__name__}: {error}")
        if not isinstance(row, self._kind):
            return InputError(f"{where} must name a {self._kind.__name__}, and is a {type(row).__name__}")
        if row.name != point.name:
            return InputError(f"{where} must have the name of its row, which is {row.name!r}")
        return row


def _package(point: importlib.metadata.EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist else "an installed package"
