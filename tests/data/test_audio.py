from pathlib import Path

import numpy as np
import pytest
import soundfile
from length_values import values

from tippingpoint.data import Skipped, read_lengths
from tippingpoint.data.audio import read_duration
from tippingpoint.errors import DataError

FORMATS = ["wav", "flac", "ogg", *(["mp3"] if "MP3" in soundfile.available_formats() else [])]


def write(path: Path, seconds: float, rate: int = 16_000, channels: int = 1) -> Path:
    samples = np.random.default_rng(0).normal(scale=0.1, size=(round(seconds * rate), channels))
    soundfile.write(path, samples, rate)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_duration_is_frames_divided_by_sample_rate_whatever_the_format(tmp_path, suffix):
    write(tmp_path / f"a.{suffix}", 1.5)
    write(tmp_path / f"b.{suffix}", 0.25, rate=44_100, channels=2)
    data = read_lengths([tmp_path], "speech")
    assert values(data) == [0.25, 1.5]
    assert (data.unit, data.estimated, data.skipped) == ("seconds", False, ())
    assert data.method == "audio header: number of frames divided by the sample rate, to the millisecond"


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_recording_in_memory_has_the_duration_of_its_file(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", 1.2344)
    assert read_duration(path.read_bytes(), "here") == read_duration(str(path)) == 1.234
    assert read_duration(path.read_bytes()[:20], "here") == Skipped("here", "no readable audio header")
    assert read_duration(b"", "here") == Skipped("here", "empty file")


def test_no_sample_is_decoded(tmp_path, monkeypatch):
    write(tmp_path / "a.wav", 1)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(soundfile.SoundFile, "buffer_read", lambda *_: pytest.fail("decoded"))
    assert values(read_lengths([tmp_path], "speech")) == [1.0]


def test_files_that_are_empty_cut_off_or_something_else_are_named(tmp_path):
    write(tmp_path / "a.wav", 2)
    write(tmp_path / "b.wav", 0)
    (tmp_path / "c.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:20])
    (tmp_path / "d.flac").write_text("this is no recording")
    (tmp_path / "e.ogg").touch()
    data = read_lengths([tmp_path], "speech")
    assert values(data) == [2.0]
    assert [(Path(item.path).name, item.reason) for item in data.skipped] == [
        ("b.wav", "no audio samples"),
        ("c.wav", "no readable audio header"),
        ("d.flac", "no readable audio header"),
        ("e.ogg", "empty file"),
    ]


def test_a_wav_file_cut_off_in_its_samples_counts_with_what_is_left(tmp_path):
    path = write(tmp_path / "a.wav", 2)
    path.write_bytes(path.read_bytes()[: 44 + 16_000 * 2])
    assert values(read_lengths([path], "speech")) == [1.0]


def test_a_header_that_does_not_state_its_length_is_no_length(tmp_path):
    path = write(tmp_path / "a.flac", 1)
    raw = bytearray(path.read_bytes())
    raw[21] &= 0xF0  # the 36 bits of the stream's total number of samples
    raw[22:26] = bytes(4)
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"1 of 1 failed: .*a\.flac \(the audio header does not state a length\)"):
        read_lengths([path], "speech")


def test_a_file_that_cannot_be_opened_is_named_with_the_reason(tmp_path, monkeypatch):
    write(tmp_path / "a.wav", 1)

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(soundfile, "info", refuse)
    with pytest.raises(DataError, match=r"a\.wav \(Permission denied\)"):
        read_lengths([tmp_path], "speech")
