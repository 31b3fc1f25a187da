"""Arrow files and streams; see `parquet_files`."""

from targets.parquet_files import look_into


def one_input(data: bytes) -> None:
    """Read a column of texts and one of recordings."""
    look_into(data, ".arrow")
