"""Recordings: WAV, FLAC, OGG, MP3 → int16 frames of one channel at one rate."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from ray_mm.config.fields import AudioField
from ray_mm.data.decode.error import DecodeError


def decode_audio(payload: bytes | memoryview, spec: AudioField, out: npt.NDArray[np.int16]) -> int:
    """Decodes one recording; channels are averaged, another rate is resampled, what is too long is cut.

    Args:
        payload: a file in any format that libsndfile reads, whatever its name says.
        spec: the rate.
        out: int16 [frames], zeros; filled from the start.

    Returns:
        Number of frames written.

    Raises:
        DecodeError: not a recording, damaged, or empty.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(payload)) as recording:
            rate = int(recording.samplerate)
            assert spec.rate_hz is not None
            # One resampled frame more than needed, so that the last one has neighbours on both sides.
            wanted = -(-len(out) * rate // spec.rate_hz) + 1
            frames = recording.read(frames=wanted, dtype="int16", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
        raise DecodeError(f"not a readable recording ({error})") from None
    if len(frames) == 0:
        raise DecodeError("the recording is empty")
    mono = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1).astype(np.int16)
    if rate != spec.rate_hz:
        mono = soxr.resample(mono, rate, spec.rate_hz, quality="HQ")
    length = min(len(mono), len(out))
    out[:length] = mono[:length]
    return length
