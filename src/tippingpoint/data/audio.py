"""Durations of audio files, from their headers."""

from __future__ import annotations

from tippingpoint.data.lengths import Skipped

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
METHOD = "audio header: number of frames divided by the sample rate"

# What libsndfile reports for a stream whose header does not state its length.
_UNKNOWN_FRAMES = 2**63 - 1


def read_duration(path: str) -> float | Skipped:
    """Return the duration of one audio file in seconds without decoding it.

    A file cut off in its samples counts as far as its header can tell: FLAC, and MP3 with a length in its
    header, state the whole recording; WAV and Ogg give what is left of it. An MP3 file without a length in
    its header is scanned frame by frame, which is slower.

    Returns:
        Seconds, or why there is no duration: the file cannot be opened, its header cannot be read or does
        not state a length, or it has no samples.
    """
    # Inside, because loading libsndfile can fail and only speech needs it.
    import soundfile

    try:
        with open(path, "rb") as file:
            if not file.read(1):
                return Skipped(path, "empty file")
        info = soundfile.info(path)
    except OSError as error:
        return Skipped(path, error.strerror or str(error))
    except soundfile.SoundFileError:
        # libsndfile's own reasons mislead: a cut-off MP3 file "does not exist".
        return Skipped(path, "no readable audio header")
    if info.frames >= _UNKNOWN_FRAMES:
        return Skipped(path, "the audio header does not state a length")
    if info.frames <= 0 or info.samplerate <= 0:
        return Skipped(path, "no audio samples")
    return info.frames / info.samplerate
