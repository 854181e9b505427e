"""Recordings → int16 frames at one rate, of one channel or of as many as the field has.

libsndfile is asked first; what it can't read but FFmpeg may, such as the sound of a video, goes through PyAV.
"""

from __future__ import annotations

import importlib.util
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from ray_mm.config.fields import AudioField
from ray_mm.data.decode.container import check_rate, read_sound, sound_length
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.formats import SOUND_IN_CONTAINERS, known_format

_VALUES_AT_ONCE = 1 << 20
_AT_MOST_16_BITS = ("PCM_16", "PCM_S8", "PCM_U8")
_PYAV = importlib.util.find_spec("av") is not None
_SNDFILE_ERRORS = (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError)


class _Stream(io.BytesIO):
    """Bytes as a file. A damaged header makes libsndfile seek before its start, where an exception can't be caught."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def decode_audio(payload: bytes | memoryview, spec: AudioField, out: npt.NDArray[np.int16]) -> int:
    """Decodes the start of one recording, no more of it than fits.

    Channels are averaged for a field of one; for a field of several, a recording has as many, or one that is repeated.
    Another rate is resampled.

    Args:
        payload: a file in any format that libsndfile or FFmpeg reads, whatever its name says; a video gives its sound.
        spec: the rate and the channels.
        out: int16 [frames], or [frames, channels] of a field with several; zeros; filled from the start.

    Returns:
        Number of frames written.

    Raises:
        SilentError: a clip without an audio track.
        DecodeError: not a recording, damaged, empty, or of another number of channels.
        UsageError: only PyAV reads it, and it is not installed.
    """
    assert spec.rate_hz is not None
    frames, rate = _read(payload, len(out) / spec.rate_hz, spec.channels)
    if len(frames) == 0:
        raise DecodeError("the recording is empty")
    if rate != spec.rate_hz:
        frames = soxr.resample(frames, rate, spec.rate_hz, quality="HQ")
    length = min(len(frames), len(out))
    if length == 0:
        raise DecodeError(f"the recording is shorter than one frame at {spec.rate_hz} Hz")
    out[:length] = frames[:length, 0] if out.ndim == 1 else frames[:length]
    return length


def recording_length(payload: bytes | memoryview | Path) -> tuple[int, int]:
    """Frames and rate in Hz of a recording, from its header; a path is not read as a whole unless it is a video.

    Raises:
        SilentError: a clip without an audio track.
        DecodeError: not a recording, or empty.
        UsageError: only PyAV reads it, and it is not installed.
    """
    try:
        source = payload if isinstance(payload, Path) else _Stream(payload)
        with soundfile.SoundFile(source) as recording:
            frames, rate = int(recording.frames), int(recording.samplerate)
    except _SNDFILE_ERRORS as error:
        if not _for_pyav(payload):
            raise _unreadable(error) from None
        frames, rate = sound_length(payload)
    if frames <= 0:
        raise DecodeError("the recording is empty")
    check_rate(rate)
    return frames, rate


def _read(payload: bytes | memoryview, seconds: float, channels: int) -> tuple[npt.NDArray[np.int16], int]:
    """The start of a recording, int16 [frames, channels of the field], and its rate in Hz."""
    try:
        with soundfile.SoundFile(_Stream(payload)) as recording:
            rate = int(recording.samplerate)
            check_rate(rate)
            # libsndfile does not scale floats when it is asked for integers: a float WAV would be silence.
            dtype = "int16" if recording.subtype in _AT_MOST_16_BITS else "float32"
            # Block by block: a header may claim more frames and channels than there is memory for.
            step = max(1, _VALUES_AT_ONCE // recording.channels)
            # One frame more than needed, so that the last resampled one has neighbours on both sides.
            left = math.ceil(seconds * rate) + 1
            parts = []
            while left > 0:
                block = recording.read(frames=min(step, left), dtype=dtype, always_2d=True)
                if len(block) == 0:
                    break
                parts.append(_to_int16(_mix(block, channels), block.dtype))
                left -= len(block)
    except DecodeError:
        raise
    except _SNDFILE_ERRORS as error:
        if not _for_pyav(payload):
            raise _unreadable(error) from None
        frames, rate = read_sound(payload, seconds)
        return _to_int16(_mix(frames, channels), frames.dtype), rate
    if not parts:
        raise DecodeError("the recording is empty")
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)), rate


def _for_pyav(payload: bytes | memoryview | Path) -> bool:
    """Whether FFmpeg may read what libsndfile could not. WAV is a container as well: some hold MP3."""
    if isinstance(payload, Path):
        with payload.open("rb") as stream:
            payload = stream.read(256)
    found = known_format(payload)
    # Without PyAV, what is most likely damaged is one bad sample; what needs PyAV for certain stops the run.
    return found in SOUND_IN_CONTAINERS or (found in ("wav", "ogg", "mp3") and _PYAV)


def _unreadable(error: Exception) -> DecodeError:
    # libsndfile names the stream's address, which tells a reader nothing.
    return DecodeError(f"not a readable recording ({str(error).rpartition(': ')[2]})")


def _mix(frames: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    """[frames, channels of the recording] → [frames, channels of the field]."""
    found = frames.shape[1]
    if found == channels:
        return frames
    if channels == 1:
        mean: npt.NDArray[Any] = frames.mean(axis=1, keepdims=True)
        return mean
    if found == 1:
        return np.repeat(frames, channels, axis=1)
    raise DecodeError(f"has {found} channels, the field has {channels}")


def _to_int16(frames: npt.NDArray[Any], read_as: np.dtype[Any]) -> npt.NDArray[np.int16]:
    if frames.dtype == np.int16:
        return frames  # nothing was averaged: exact
    if read_as == np.float32:
        if not np.isfinite(frames).all():
            raise DecodeError("has values that are not finite (NaN or infinity)")
        frames = frames * 32768.0
    rounded: npt.NDArray[np.int16] = np.clip(np.rint(frames), -32768, 32767).astype(np.int16)
    return rounded
