"""Sizes of image files, from their headers."""

from __future__ import annotations

import io
import math

from tippingpoint.data.records import LARGEST_BYTES, TOO_LARGE
from tippingpoint.data.skipped import Skipped

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
METHOD = "image header: side of the square with the same number of pixels"


def read_side(source: str | bytes, where: str | None = None) -> float | Skipped:
    """Return the side, in whole pixels, of the square with as many pixels as the image.

    No pixel is decoded, so an image of any size is safe, and a PNG or JPEG file cut off in its pixels still
    counts with the size its header states (Pillow refuses a cut-off WebP file, which is then skipped).
    The format is told from the content, not from the suffix.

    Args:
        source: A file, or what stands in one.
        where: What to call it where it is skipped; the file itself by default.

    Returns:
        Pixels, or why there is no size.
    """
    # Pillow's format classes rather than Image.open: that one guards against decoding a huge image by
    # a warning and an error whose limit is global, and nothing is decoded here. WebP has the error all the same.
    from PIL.Image import DecompressionBombError
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    where = where or str(source)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            start = file.read(12)
            file.seek(0)
            if start.startswith(b"\x89PNG"):
                opener = PngImageFile
            elif start.startswith(b"\xff\xd8"):
                opener = JpegImageFile
            elif start.startswith(b"RIFF") and start.endswith(b"WEBP"):
                # Of this format the library takes the whole file into memory.
                if file.seek(0, io.SEEK_END) > LARGEST_BYTES:
                    return Skipped(where, TOO_LARGE)
                file.seek(0)
                opener = WebPImageFile
            else:
                return Skipped(where, "no PNG, JPEG or WebP header" if start else "empty file")
            with opener(file) as image:
                width, height = image.size
    except OSError as error:
        return Skipped(where, error.strerror or f"no readable image header: {error}")
    except (SyntaxError, ValueError, DecompressionBombError) as error:
        return Skipped(where, f"no readable image header: {error}")
    return max(1.0, float(round(math.sqrt(width * height))))
