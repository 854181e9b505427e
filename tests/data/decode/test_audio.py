"""Recordings: what is decoded, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from ray_mm.config.fields import AudioField
from ray_mm.data.decode.audio import decode_audio, recording_length
from ray_mm.data.decode.error import DecodeError


def _decode(payload: bytes | memoryview, rate_hz: int = 8000, max_seconds: float = 0.5) -> npt.NDArray[np.int16]:
    out = np.zeros(round(rate_hz * max_seconds), np.int16)
    length = decode_audio(payload, AudioField(rate_hz=rate_hz, max_seconds=max_seconds), out)
    assert (out[length:] == 0).all()
    return out[:length]


def _encode(samples: npt.ArrayLike, rate_hz: int = 8000, format: str = "WAV", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.asarray(samples), rate_hz, format=format, subtype=subtype)
    return stream.getvalue()


def _tone(rate_hz: int = 8000, seconds: float = 0.5, hz: float = 440.0) -> npt.NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz)


def test_sixteen_bit_frames_come_out_as_they_are() -> None:
    frames = np.array([0, 1, -1, 32767, -32768, 1234], np.int16)
    assert (_decode(_encode(frames, subtype="PCM_16")) == frames).all()
    assert (_decode(memoryview(_encode(frames, format="FLAC"))) == frames).all()


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 256),
        ("WAV", "PCM_24", 1),
        ("WAV", "PCM_32", 1),
        ("WAV", "FLOAT", 1),
        ("WAV", "DOUBLE", 1),
        ("FLAC", "PCM_24", 1),
        ("OGG", "VORBIS", 2000),
        ("MP3", "MPEG_LAYER_III", 2000),
    ],
)
def test_every_format_has_the_same_loudness(format: str, subtype: str, tolerance: int) -> None:
    found = _decode(_encode(_tone(), format=format, subtype=subtype))
    assert abs(int(found.max()) - 16384) <= tolerance


def test_a_float_recording_over_full_scale_is_clipped_not_wrapped() -> None:
    found = _decode(_encode([0.0, 1.5, -1.5, 0.25], subtype="FLOAT"))
    assert found.tolist() == [0, 32767, -32768, 8192]


def test_channels_are_averaged() -> None:
    stereo = np.array([[100, 300], [-100, -301], [32767, 32767]], np.int16)
    assert _decode(_encode(stereo)).tolist() == [200, -200, 32767]


@pytest.mark.parametrize("rate_hz", [4000, 11025, 44100])
def test_another_rate_is_resampled_to_the_same_tone(rate_hz: int) -> None:
    found = _decode(_encode(_tone(rate_hz), rate_hz)).astype(float)
    assert abs(len(found) - 4000) <= 2
    spectrum = np.abs(np.fft.rfft(found[500:3500]))
    assert abs(spectrum.argmax() * 8000 / 3000 - 440) < 5


def test_a_long_recording_is_cut_at_the_start_of_the_rest() -> None:
    frames = np.arange(6000, dtype=np.int16)
    assert (_decode(_encode(frames)) == frames[:4000]).all()


def test_resampling_a_long_recording_is_the_same_as_cutting_the_resampled_one() -> None:
    long = _decode(_encode(_tone(16000, 2.0), 16000), max_seconds=2.0)[:4000].astype(int)
    cut = _decode(_encode(_tone(16000, 2.0), 16000)).astype(int)
    assert np.abs(long - cut)[:-50].max() <= 3


@pytest.mark.parametrize("payload", [b"RIFF\x00\x00\x00\x00WAVEfmt ", b"no recording at all", b"\0" * 64])
def test_what_is_no_recording_is_refused(payload: bytes) -> None:
    with pytest.raises(DecodeError, match="not a readable recording"):
        _decode(payload)
    with pytest.raises(DecodeError, match="not a readable recording"):
        recording_length(payload)


def test_a_recording_without_frames_is_refused() -> None:
    empty = _encode(np.zeros(0, np.int16))
    with pytest.raises(DecodeError, match="empty"):
        _decode(empty)
    with pytest.raises(DecodeError, match="empty"):
        recording_length(empty)


def test_one_frame_that_resampling_would_lose_is_refused() -> None:
    with pytest.raises(DecodeError, match="shorter than one frame at 8000 Hz"):
        _decode(_encode(np.ones(1, np.int16), 48000))


def test_a_recording_with_nan_is_refused() -> None:
    with pytest.raises(DecodeError, match="not finite"):
        _decode(_encode([0.0, np.nan], subtype="FLOAT"))


def test_length_and_rate_come_from_the_header() -> None:
    assert recording_length(_encode(np.zeros(123, np.int16), 16000)) == (123, 16000)
