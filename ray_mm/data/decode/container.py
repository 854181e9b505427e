"""Files that FFmpeg reads, through PyAV: containers with pictures and sound, and recordings that libsndfile does not know.

PyAV is optional: it is imported when the first such file is met.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_mm.data.decode.error import DecodeError, SilentError
from ray_mm.errors import UsageError

# FFmpeg also knows playlists and scripts, which name other files and addresses; none of those may be opened.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,asf,wav,w64,mp3,flac,ogg,aac,amr,aiff,au,caf,ac3,eac3"
)
MAX_RATE_HZ = 384_000
"""Recordings that claim a higher rate are refused."""
_MAX_CHANNELS = 64
_FULL_SCALE = {"u1": 128.0, "i2": 32768.0, "i4": 2147483648.0}


def require_av(what: str) -> Any:
    """The module ``av``.

    Args:
        what: what needs it, such as ``field 'clip' (video)``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise UsageError(f"{what} needs PyAV; install it with pip install 'ray_mm[video]'.") from None
    return av


@contextlib.contextmanager
def open_container(payload: bytes | memoryview | Path, what: str) -> Iterator[Any]:
    """A file, opened by PyAV; what FFmpeg reports while it is open becomes a ``DecodeError``.

    Args:
        payload: the file.
        what: it should be, such as ``recording``.

    Raises:
        DecodeError: not such a file, or damaged.
        UsageError: PyAV is not installed.
    """
    av = require_av(f"this {what}")
    with ffmpeg_errors(what):
        source = str(payload) if isinstance(payload, Path) else io.BytesIO(payload)
        with av.open(source, options={"format_whitelist": _FORMATS}, metadata_errors="replace") as container:
            yield container


@contextlib.contextmanager
def ffmpeg_errors(what: str) -> Iterator[None]:
    """What FFmpeg reports within the block becomes a ``DecodeError``.

    Args:
        what: the file should be, such as ``recording``.

    Raises:
        DecodeError: FFmpeg could not do it.
    """
    av = require_av(f"this {what}")
    try:
        yield
    except (av.FFmpegError, ValueError, IndexError, EOFError, MemoryError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DecodeError(f"not a readable {what} ({reason})") from None


def read_sound(payload: bytes | memoryview, seconds: float) -> tuple[npt.NDArray[np.float32], int]:
    """The first audio track of a file, no more of it than is needed.

    Args:
        payload: the file.
        seconds: after which reading stops.

    Returns:
        Frames float32 [frames, channels] in −1 … 1, and their rate in Hz.

    Raises:
        SilentError: it has no audio track.
        DecodeError: no such file, or damaged.
        UsageError: PyAV is not installed.
    """
    with open_container(payload, "recording") as container:
        stream = _audio_stream(container)
        parts: list[npt.NDArray[np.float32]] = []
        rate = missing = wanted = 0
        for frame in container.decode(stream):
            part = _frames(frame)
            if not parts:
                rate = int(frame.sample_rate)
                check_rate(rate)
                missing = wanted = math.ceil(seconds * rate) + 1
            elif frame.sample_rate != rate or part.shape[1] != parts[0].shape[1]:
                raise DecodeError(f"its rate changes from {rate} Hz to {frame.sample_rate} Hz, or its channels do")
            parts.append(part)
            missing -= len(part)
            if missing <= 0:
                break
    if not parts:
        raise DecodeError("the recording is empty")
    # A frame of sound may be long, and at the rate that a damaged header claims, resampled to hours.
    return np.concatenate(parts)[:wanted], rate


def check_rate(rate: int) -> None:
    """Refuses what no recording has.

    Raises:
        DecodeError: a rate of 0, or over ``MAX_RATE_HZ``.
    """
    if not 1 <= rate <= MAX_RATE_HZ:
        raise DecodeError(f"its header claims {rate} Hz; at most {MAX_RATE_HZ} are read")


def sound_length(payload: bytes | memoryview | Path) -> tuple[int, int]:
    """Frames (about) and rate in Hz of a file's first audio track, without decoding it.

    Raises:
        SilentError: it has no audio track.
        DecodeError: no such file, or damaged.
        UsageError: PyAV is not installed.
    """
    with open_container(payload, "recording") as container:
        stream = _audio_stream(container)
        rate = int(stream.codec_context.sample_rate or 0)
        start, stop = None, 0.0
        for packet in container.demux(stream):
            if packet.pts is not None and packet.time_base is not None:
                begins = float(packet.pts * packet.time_base)
                stop = max(stop, begins + float((packet.duration or 0) * packet.time_base))
                # What lies before 0 only warms the decoder up.
                start = max(0.0, begins if start is None else min(start, begins))
    check_rate(rate)
    if start is None or stop <= start:
        raise DecodeError("the recording is empty")
    return round((stop - start) * rate), rate


def _audio_stream(container: Any) -> Any:
    if not container.streams.audio:
        raise SilentError("has no audio track")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise DecodeError("has sound of a codec that is not known")
    # The read tasks share the cores already.
    stream.codec_context.thread_count = 1
    return stream


def _frames(frame: Any) -> npt.NDArray[np.float32]:
    """A frame of sound as float32 [frames, channels]."""
    channels = int(frame.layout.nb_channels)
    if not 1 <= channels <= _MAX_CHANNELS:
        raise DecodeError(f"has {channels} channels; at most {_MAX_CHANNELS} are read")
    samples = frame.to_ndarray()
    found = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
    scale = _FULL_SCALE.get(found.dtype.str[1:])
    values: npt.NDArray[np.float32] = found.astype(np.float32)
    if found.dtype == np.uint8:
        values -= 128.0
    return values if scale is None else values / np.float32(scale)
