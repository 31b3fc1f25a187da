"""Headers of audio files, and their samples."""

from targets.scratch import read, written
from tippingpoint.data.audio import read_duration, read_waveform

TOKENS = (
    b"RIFF",
    b"WAVEfmt ",
    b"data",
    b"fLaC",
    b"OggS",
    b"\xff\xfb",
    b"ID3",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
)


def one_input(data: bytes) -> None:
    """Read a duration from a file and from memory, and the first tenth of a second."""
    read(data, ".wav", "speech")
    read_duration(data, "here")
    read_waveform(str(written(data, ".flac")), 16_000, 0.1)
