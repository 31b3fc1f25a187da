"""CSV, of texts and of numbers."""

from targets.scratch import read

TOKENS = (b'"', b",", b"\r", b"\n", b"\r\n", b"text", b"image", b'""', b"\x00", b"\xff", b"=1+1", b"1e999", b"1_0")


def one_input(data: bytes) -> None:
    """Read texts or numbers, then paths of images."""
    read(data, ".csv", "text")
    read(data, ".csv", "vision", column="image")
