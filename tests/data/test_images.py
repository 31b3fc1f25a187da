import struct
import warnings
import zlib
from pathlib import Path

import pytest
from length_values import values
from PIL import Image, ImageFile

from tippingpoint.data import read_lengths
from tippingpoint.errors import DataError


def write(path: Path, width: int, height: int, kind: str | None = None) -> Path:
    Image.effect_noise((width, height), 60).convert("RGB").save(path, kind)
    return path


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "PNG"])
def test_a_side_is_that_of_the_square_with_as_many_pixels(tmp_path, suffix):
    write(tmp_path / f"a.{suffix}", 32, 32)
    write(tmp_path / f"b.{suffix}", 90, 40)
    write(tmp_path / f"c.{suffix}", 40, 91)
    data = read_lengths([tmp_path], "vision")
    assert values(data) == [32, 60, 60]
    assert (data.unit, data.estimated) == ("pixels", False)
    assert data.method == "image header: side of the square with the same number of pixels"


def test_the_format_is_told_from_the_content(tmp_path):
    assert values(read_lengths([write(tmp_path / "a.jpg", 20, 20, "PNG")], "vision")) == [20]


def test_no_pixel_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    path = tmp_path / "a.png"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"no pixels") + chunk(b"IEND", b""))
    assert values(read_lengths([path], "vision")) == [64]


def test_an_image_of_any_size_is_read_without_a_warning_or_a_changed_limit(tmp_path):
    path = tmp_path / "huge.png"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 90_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    assert values(read_lengths([path], "vision")) == [94868]
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_png_and_jpeg_cut_off_in_their_pixels_still_have_a_size(tmp_path):
    for name in ("a.png", "b.jpg"):
        path = write(tmp_path / name, 300, 300)
        raw = path.read_bytes()
        path.write_bytes(raw[: len(raw) // 2])
    assert values(read_lengths([tmp_path], "vision")) == [300, 300]


def test_files_without_a_readable_header_are_named(tmp_path):
    write(tmp_path / "a.png", 16, 16)
    raw = write(tmp_path / "b.jpg", 64, 64).read_bytes()
    (tmp_path / "b.jpg").write_bytes(raw[:40])
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:12])
    raw = write(tmp_path / "d.webp", 64, 64).read_bytes()
    (tmp_path / "d.webp").write_bytes(raw[:60])
    (tmp_path / "e.png").write_text("this is no image")
    (tmp_path / "f.png").touch()
    data = read_lengths([tmp_path], "vision")
    assert values(data) == [16]
    found = {Path(item.path).name: item.reason for item in data.skipped}
    assert (found.pop("e.png"), found.pop("f.png")) == ("no PNG, JPEG or WebP header", "empty file")
    assert sorted(found) == ["b.jpg", "c.png", "d.webp"]
    assert all(reason.startswith("no readable image header: ") for reason in found.values())


def test_nothing_but_unreadable_images_is_an_error(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"no vision length could be read, 1 of 1 failed: .*a\.png \(empty file\)"):
        read_lengths([tmp_path], "vision")
