"""Pieces of a Linux file system, for tests of what reads /proc and /sys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CORES = "sys/devices/system/cpu"


def write(root: Path, files: Mapping[str, object]) -> Path:
    """Write files below a root, and return the root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # In place: a reader keeps files open, as the kernel's never are replaced.
        path.write_text(f"{text}\n")
    return root


def cache(core: int, index: int, level: int, kind: str, size: str, shared: str) -> dict[str, object]:
    """One cache as one core sees it."""
    folder = f"{CORES}/cpu{core}/cache/index{index}"
    return {
        f"{folder}/level": level,
        f"{folder}/type": kind,
        f"{folder}/size": size,
        f"{folder}/shared_cpu_list": shared,
    }
