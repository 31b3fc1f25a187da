"""The files a person means by a list of files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence

from tippingpoint.data.skipped import Skipped
from tippingpoint.errors import DataError, InputError


def find_files(
    paths: Sequence[str], suffixes: Sequence[str], modality: str
) -> tuple[tuple[str, ...], tuple[Skipped, ...]]:
    """Return the files behind `paths` in their order, sorted inside each folder and pattern.

    Folders are read with everything below them, linked folders included. Inside folders and patterns,
    hidden names and other suffixes are passed over; a file reached twice, also through a link, is
    returned once.

    Args:
        paths: Files, folders, or glob patterns in which `**` stands for any number of folders.
        suffixes: Accepted suffixes in lower case with their dot; case is ignored in the file names.
        modality: What is looked for, for the messages.

    Returns:
        The files, and the folders that could not be listed.

    Raises:
        InputError: If a path does not exist, a pattern matches nothing, or a file given by its own name
            has another suffix.
        DataError: If a folder or a pattern leads to no file with an accepted suffix.
    """
    if not paths:
        raise InputError(f"reading {modality} lengths needs at least one file, folder or pattern, got none")
    accepted = ", ".join(suffixes)
    found: dict[str, str] = {}
    skipped: list[Skipped] = []
    for given in paths:
        path = os.path.expanduser(given)
        if os.path.isfile(path):
            if not _has_suffix(path, suffixes):
                raise InputError(
                    f"cannot read {given!r} as {modality}; expected a folder or a file ending in {accepted}"
                )
            files = [path]
        elif os.path.isdir(path):
            files = list(_walk(path, suffixes, skipped))
        elif glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                raise InputError(f"the pattern {given!r} matches nothing; check it and quote it in a shell")
            files = list(_walk_matches(matches, suffixes, skipped))
        else:
            raise InputError(f"there is no file or folder {given!r}; check the path, or use a pattern with *")
        if not files:
            why = f"; could not list {skipped[0]}" if skipped else ""
            raise DataError(f"no {modality} file in {given!r}: looked for {accepted}{why}")
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    return tuple(found.values()), tuple(skipped)


def _has_suffix(path: str, suffixes: Sequence[str]) -> bool:
    return os.path.splitext(path)[1].lower() in suffixes


def _walk_matches(matches: list[str], suffixes: Sequence[str], skipped: list[Skipped]) -> Iterator[str]:
    """A folder a pattern matches counts with its contents, as it would had a shell expanded the pattern."""
    for match in matches:
        if os.path.isdir(match):
            yield from _walk(match, suffixes, skipped)
        elif os.path.isfile(match) and _has_suffix(match, suffixes):
            yield match


def _walk(folder: str, suffixes: Sequence[str], skipped: list[Skipped]) -> Iterator[str]:
    def note(error: OSError) -> None:
        skipped.append(Skipped(str(error.filename), error.strerror or "cannot be listed"))

    entered: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=note):
        # A link to a folder above would otherwise be followed for ever.
        entered.add(os.path.realpath(parent))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(parent, name)) not in entered
        )
        for name in sorted(names):
            path = os.path.join(parent, name)
            if not name.startswith(".") and _has_suffix(name, suffixes) and os.path.isfile(path):
                yield path
