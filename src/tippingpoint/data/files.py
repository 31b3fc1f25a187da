"""The files a person means by a list of files, folders and patterns."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tippingpoint.data.records import suffix_of
from tippingpoint.data.skipped import Skipped
from tippingpoint.errors import DataError, InputError

# What the `datasets` library writes beside the Arrow files of a set, and beside those of a split.
_DATASET_INFO, _DATASET_STATE = "dataset_info.json", "state.json"
_CACHED = "cache-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which files are looked for.

    Args:
        modality: What they hold, for the messages.
        suffixes: Accepted suffixes in lower case with their dot; case is ignored in the file names.
        by_name: Suffixes that are accepted besides where a person says them, in a file name or at the end of a
            pattern; None accepts any there.
        datasets: Whether saved `datasets` folders are read although .arrow is none of the suffixes.
        hint: What else could be given, for the messages.
    """

    modality: str
    suffixes: Sequence[str]
    by_name: Sequence[str] | None = ()
    datasets: bool = False
    hint: str = ""

    def accepts(self, path: str, *, named: bool = False) -> bool:
        """Return whether a file is looked for, given by its own name or met in a folder."""
        suffix = suffix_of(path)
        return suffix in self.suffixes or (named and (self.by_name is None or suffix in self.by_name))


def find_files(
    paths: Sequence[str], suffixes: Sequence[str], modality: str
) -> tuple[tuple[str, ...], tuple[Skipped, ...]]:
    """Return the files behind `paths`, as `stream_files` finds them, and the folders that could not be listed.

    Raises:
        InputError: If a path does not exist, a pattern matches nothing, or a file given by its own name
            has another suffix.
        DataError: If a folder or a pattern leads to no file with an accepted suffix.
    """
    found = list(stream_files(paths, Wanted(modality=modality, suffixes=suffixes)))
    return (
        tuple(each for each in found if isinstance(each, str)),
        tuple(each for each in found if isinstance(each, Skipped)),
    )


def stream_files(paths: Sequence[str], wanted: Wanted) -> Iterator[str | Skipped]:
    """Yield the files behind `paths` in their order, sorted inside each folder and pattern, while they are found.

    Folders are read with everything below them, linked folders included. Inside folders and patterns,
    hidden names and other suffixes are passed over; a file reached twice, also through a link, is
    yielded once. Of a saved `datasets` folder, that is the Arrow files which belong to the set.

    Args:
        paths: Files, folders, or glob patterns in which `**` stands for any number of folders.
        wanted: What is looked for.

    Raises:
        InputError: If a path does not exist, a pattern matches nothing, or a file given by its own name
            has another suffix.
        DataError: If a folder or a pattern leads to no file with an accepted suffix.
    """
    if not paths:
        raise InputError(f"reading {wanted.modality} lengths needs at least one file, folder or pattern, got none")
    accepted = ", ".join(wanted.suffixes)
    given = [(path, os.path.expanduser(path)) for path in paths]
    # Before anything is read, which can take long.
    for name, path in given:
        if os.path.isfile(path) and not wanted.accepts(path, named=True):
            raise InputError(
                f"cannot read {name!r} as {wanted.modality}; expected a folder or a file ending in {accepted}"
                f"{wanted.hint}"
            )
        if not os.path.exists(path) and not glob.has_magic(path):
            raise InputError(f"there is no file or folder {name!r}; check the path, or use a pattern with *")
    reached = _Reached()
    for name, path in given:
        nothing, unlisted = True, None
        for each in _behind(name, path, wanted, reached):
            if isinstance(each, Skipped):
                unlisted = unlisted or each
                yield each
            else:
                nothing = False
                if each:
                    yield each
        if nothing:
            why = f"; could not list {unlisted}" if unlisted else ""
            raise DataError(f"no {wanted.modality} file in {name!r}: looked for {accepted}{wanted.hint}{why}")


def _behind(name: str, path: str, wanted: Wanted, reached: _Reached) -> Iterator[str | Skipped]:
    """The files behind one path; an empty name for one that was reached before."""
    if os.path.isfile(path):
        yield path if reached.is_new(path) else ""
    elif os.path.isdir(path):
        yield from _walk(path, wanted, reached)
    else:
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise InputError(f"the pattern {name!r} matches nothing; check it and quote it in a shell")
        named = bool(suffix_of(path)) and not glob.has_magic(suffix_of(path))
        for match in matches:
            # A folder a pattern matches counts with its contents, as it would had a shell expanded the pattern.
            if os.path.isdir(match):
                yield from _walk(match, wanted, reached)
            elif os.path.isfile(match) and wanted.accepts(match, named=named):
                yield match if reached.is_new(match) else ""


@dataclass
class _Reached:
    """What was reached so far: folders as a whole, and files that were reached by name, pattern or link.

    A folder is walked once, by its real path, so the files in it need no note of their own.
    """

    folders: dict[str, Wanted] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    _real_folders: dict[str, str] = field(default_factory=dict)

    def enter(self, folder: str, wanted: Wanted) -> bool:
        """Note a folder; return whether it is new."""
        real = os.path.realpath(folder)
        if real in self.folders:
            return False
        self.folders[real] = wanted
        return True

    def is_new(self, path: str) -> bool:
        """Note a file that was reached by name, pattern or link; return whether it is new."""
        real = os.path.realpath(path) if os.path.islink(path) else self._real(path)
        folder, name = os.path.split(real)
        walked = self.folders.get(folder)
        if real in self.files or (walked and not name.startswith(".") and walked.accepts(name)):
            return False
        self.files.add(real)
        return True

    def was_named(self, path: str) -> bool:
        """Return whether a file of a folder was reached before, by name, pattern or link."""
        return bool(self.files) and self._real(path) in self.files

    def _real(self, path: str) -> str:
        folder, name = os.path.split(path)
        if folder not in self._real_folders:
            # Paths of one folder come together.
            self._real_folders = {folder: os.path.realpath(folder or ".")}
        return os.path.join(self._real_folders[folder], name)


def _walk(top: str, wanted: Wanted, reached: _Reached) -> Iterator[str | Skipped]:
    """The files of a folder and of those below it; an empty name for one that was reached before."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        # A link to a folder above would otherwise be followed for ever.
        if not reached.enter(folder, wanted):
            yield ""
            continue
        try:
            listed = _List.of(folder, wanted)
        except OSError as error:
            yield Skipped(folder, error.strerror or "cannot be listed")
            continue
        if _DATASET_INFO in listed.others and (wanted.datasets or ".arrow" in wanted.suffixes):
            yield from listed.keep_dataset(folder)
        for name in sorted(listed.files):
            path = os.path.join(folder, name)
            fresh = reached.is_new(path) if name in listed.links else not reached.was_named(path)
            yield path if fresh else ""
        waiting += [os.path.join(folder, name) for name in sorted(listed.folders, reverse=True)]


@dataclass
class _List:
    """Names in one folder, hidden ones left out: folders, files that are looked for, links to such, other files."""

    folders: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    links: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, folder: str, wanted: Wanted) -> _List:
        listed = cls()
        with os.scandir(folder) as entries:
            for entry in entries:
                # A link that goes round in circles is as good as one that leads nowhere.
                with suppress(OSError):
                    if not entry.name.startswith("."):
                        listed._add(entry, wanted)
        return listed

    def _add(self, entry: os.DirEntry[str], wanted: Wanted) -> None:
        if entry.is_dir():
            self.folders.append(entry.name)
        elif entry.is_file() and wanted.accepts(entry.name):
            self.files.append(entry.name)
            if entry.is_symlink():
                self.links.add(entry.name)
        elif entry.is_file():
            self.others.add(entry.name)

    def keep_dataset(self, folder: str) -> Iterator[Skipped]:
        """Keep the Arrow files of a saved data set alone; yield those that should be there."""
        names = {*self.files, *self.others}
        self.files = [name for name in names if suffix_of(name) == ".arrow" and not name.startswith(_CACHED)]
        if _DATASET_STATE not in names:
            return
        path = os.path.join(folder, _DATASET_STATE)
        try:
            with open(path, encoding="utf-8") as file:
                parts = [str(each["filename"]) for each in json.load(file)["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            yield Skipped(path, "does not say which files belong to the data set; every Arrow file was read")
            return
        self.files = [name for name in self.files if name in parts]
        for name in parts:
            if name not in names:
                yield Skipped(os.path.join(folder, name), f"listed in {_DATASET_STATE} and not there")
