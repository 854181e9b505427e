"""Recordings: WAV, FLAC, OGG, MP3 → int16 frames of one channel at one rate."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

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
            # libsndfile does not scale floats when it is asked for integers: a float WAV would be silence.
            exact = recording.subtype in _AT_MOST_16_BITS
            frames = recording.read(frames=wanted, dtype="int16" if exact else "float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
        raise DecodeError(f"not a readable recording ({error})") from None
    if len(frames) == 0:
        raise DecodeError("the recording is empty")
    mono = _to_int16(frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1), frames.dtype)
    if rate != spec.rate_hz:
        mono = soxr.resample(mono, rate, spec.rate_hz, quality="HQ")
    length = min(len(mono), len(out))
    if length == 0:
        raise DecodeError(f"the recording is shorter than one frame at {spec.rate_hz} Hz")
    out[:length] = mono[:length]
    return length


def recording_length(payload: bytes | memoryview | Path) -> tuple[int, int]:
    """Frames and rate in Hz of a recording, from its header; a path is not read as a whole.

    Raises:
        DecodeError: not a recording, or empty.
    """
    try:
        source = payload if isinstance(payload, Path) else io.BytesIO(payload)
        with soundfile.SoundFile(source) as recording:
            frames, rate = int(recording.frames), int(recording.samplerate)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
        raise DecodeError(f"not a readable recording ({error})") from None
    if frames <= 0:
        raise DecodeError("the recording is empty")
    return frames, rate


_AT_MOST_16_BITS = ("PCM_16", "PCM_S8", "PCM_U8")


def _to_int16(mono: npt.NDArray[Any], read_as: np.dtype[Any]) -> npt.NDArray[np.int16]:
    if mono.dtype == np.int16:
        return mono  # one channel, exact
    if read_as == np.float32:
        if not np.isfinite(mono).all():
            raise DecodeError("has values that are not finite (NaN or infinity)")
        mono = mono * 32768.0
    rounded: npt.NDArray[np.int16] = np.clip(np.rint(mono), -32768, 32767).astype(np.int16)
    return rounded
