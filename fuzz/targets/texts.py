"""Text files, whole."""

from targets.scratch import read


def one_input(data: bytes) -> None:
    """Estimate its tokens."""
    read(data, ".txt", "text")
