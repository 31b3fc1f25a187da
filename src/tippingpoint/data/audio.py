"""Audio files: durations from their headers, and samples."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from tippingpoint.data.skipped import Skipped

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
METHOD = "audio header: number of frames divided by the sample rate, to the millisecond"

_SHORTEST_S = 0.001

# What libsndfile reports for a stream whose header does not state its length.
_UNKNOWN_FRAMES = 2**63 - 1


def read_duration(source: str | bytes, where: str | None = None) -> float | Skipped:
    """Return the duration of one recording in seconds without decoding it.

    A file cut off in its samples counts as far as its header can tell: FLAC, and MP3 with a length in its
    header, state the whole recording; WAV and Ogg give what is left of it. An MP3 file without a length in
    its header is scanned frame by frame, which is slower.

    Args:
        source: A file, or what stands in one.
        where: What to call it where it is skipped; the file itself by default.

    Returns:
        Seconds to the millisecond, or why there is no duration: the file cannot be opened, its header cannot be
        read or does not state a length, or it has no samples.
    """
    # Inside, because loading libsndfile can fail and only speech needs it.
    import soundfile

    where = where or str(source)
    try:
        if isinstance(source, bytes):
            empty = not source
        else:
            with open(source, "rb") as file:
                empty = not file.read(1)
        if empty:
            return Skipped(where, "empty file")
        info = soundfile.info(io.BytesIO(source) if isinstance(source, bytes) else source)
    except OSError as error:
        return Skipped(where, error.strerror or str(error))
    except soundfile.SoundFileError:
        # libsndfile's own reasons mislead: a cut-off MP3 file "does not exist".
        return Skipped(where, "no readable audio header")
    if info.frames >= _UNKNOWN_FRAMES:
        return Skipped(where, "the audio header does not state a length")
    if info.frames <= 0 or info.samplerate <= 0:
        return Skipped(where, "no audio samples")
    return to_millisecond(info.frames / info.samplerate)


def to_millisecond(seconds: float) -> float:
    """Return a duration rounded to the millisecond, so that distinct ones stay few; at least one."""
    return max(round(seconds, 3), _SHORTEST_S)


def read_waveform(path: str, rate: int, longest: float) -> tuple[np.ndarray, bool] | Skipped:
    """Return the beginning of a recording as one channel at a sample rate, and whether there was more of it.

    Channels are averaged, and another sample rate is resampled (polyphase filtering).

    Args:
        path: The file.
        rate: Samples a second that are wanted.
        longest: At most so many seconds are decoded.

    Returns:
        float32 samples, or why there are none.
    """
    # Inside, because both take a while to load and only samples need them.
    import soundfile
    from scipy.signal import resample_poly

    try:
        with open(path, "rb") as file:
            if not file.read(1):
                return Skipped(path, "empty file")
        with soundfile.SoundFile(path) as opened:
            own = opened.samplerate
            most = max(1, round(longest * own))
            samples = opened.read(most + 1, dtype="float32", always_2d=True)
    except OSError as error:
        return Skipped(path, error.strerror or str(error))
    except soundfile.SoundFileError:
        return Skipped(path, "no readable audio")
    if not len(samples):
        return Skipped(path, "no audio samples")
    waveform = samples[:most].mean(axis=1)
    if own != rate:
        common = math.gcd(own, rate)
        waveform = resample_poly(waveform, rate // common, own // common).astype("float32")
    return waveform, len(samples) > most
