"""Sizes of image files, from their headers."""

from __future__ import annotations

import math

from tippingpoint.data.skipped import Skipped

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
METHOD = "image header: side of the square with the same number of pixels"


def read_side(path: str) -> float | Skipped:
    """Return the side, in whole pixels, of the square with as many pixels as the image.

    No pixel is decoded, so an image of any size is safe, and a PNG or JPEG file cut off in its pixels still
    counts with the size its header states (Pillow refuses a cut-off WebP file, which is then skipped).
    The format is told from the content, not from the suffix.

    Returns:
        Pixels, or why there is no size.
    """
    # Pillow's format classes rather than Image.open: that one guards against decoding a huge image by
    # a warning and an error whose limit is global, and nothing is decoded here.
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    try:
        with open(path, "rb") as file:
            start = file.read(12)
        if start.startswith(b"\x89PNG"):
            opener = PngImageFile
        elif start.startswith(b"\xff\xd8"):
            opener = JpegImageFile
        elif start.startswith(b"RIFF") and start.endswith(b"WEBP"):
            opener = WebPImageFile
        else:
            return Skipped(path, "no PNG, JPEG or WebP header" if start else "empty file")
        with opener(path) as image:
            width, height = image.size
    except OSError as error:
        return Skipped(path, error.strerror or f"no readable image header: {error}")
    except (SyntaxError, ValueError) as error:
        return Skipped(path, f"no readable image header: {error}")
    return float(round(math.sqrt(width * height)))
