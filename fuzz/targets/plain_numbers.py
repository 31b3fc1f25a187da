"""Files of plain numbers, one a line."""

from targets.scratch import read

TOKENS = (b"\n", b"#", b"1e308", b"1e-320", b"nan", b"inf", b"1_0", b"0x1p3", b"\xff", b"\x00")


def one_input(data: bytes) -> None:
    """Read lengths."""
    read(data, ".txt", "speech", plain=True)
