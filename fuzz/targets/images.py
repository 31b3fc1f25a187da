"""Headers of images."""

from targets.scratch import read
from tippingpoint.data.images import read_side

TOKENS = (
    b"\x89PNG\r\n\x1a\n",
    b"IHDR",
    b"IDAT",
    b"iCCP",
    b"zTXt",
    b"eXIf",
    b"acTL",
    b"\xff\xd8",
    b"\xff\xe1",
    b"RIFF",
    b"WEBPVP8X",
    b"\xff\xff\xff\xff",
)


def one_input(data: bytes) -> None:
    """Read a size from a file and from memory."""
    read(data, ".png", "vision")
    read_side(data, "here")
