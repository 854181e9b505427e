"""Recordings: what is decoded, and what is refused."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from ray_mm.config.fields import AudioField
from ray_mm.data.decode.audio import decode_audio, recording_length
from ray_mm.data.decode.container import read_sound
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.fields import field_arrays
from ray_mm.errors import UsageError


def _decode(
    payload: bytes | memoryview, rate_hz: int = 8000, max_seconds: float = 0.5, channels: int = 1
) -> npt.NDArray[np.int16]:
    spec = AudioField(rate_hz=rate_hz, max_seconds=max_seconds, channels=channels)
    out = np.zeros(field_arrays("sound", spec)["sound"].shape, np.int16)
    length = decode_audio(payload, spec, out)
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


def test_a_field_of_several_channels_keeps_them_and_repeats_mono() -> None:
    stereo = np.array([[100, 300], [-100, -301], [7, 8]], np.int16)
    assert (_decode(_encode(stereo), channels=2) == stereo).all()
    assert (_decode(_encode(stereo[:, 0]), channels=2) == stereo[:, :1]).all()
    with pytest.raises(DecodeError, match="has 2 channels, the field has 6"):
        _decode(_encode(stereo), channels=6)


def test_channels_are_resampled_each_for_itself() -> None:
    low, high = _tone(16000, hz=300), _tone(16000, hz=1000)
    found = _decode(_encode(np.stack([low, high], axis=1), 16000), channels=2)
    assert found.shape == (4000, 2)
    peaks = np.abs(np.fft.rfft(found[500:3500].astype(float), axis=0)).argmax(axis=0) * 8000 / 3000
    assert peaks == pytest.approx([300, 1000], abs=5)


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


def _riff(codec: int, data: bytes, rate_hz: int = 8000, block: int = 1) -> bytes:
    """A WAV file with sound of any codec."""
    form = struct.pack("<HHIIHHH", codec, 1, rate_hz, 8000, block, 0, 0)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_a_wav_that_is_really_an_mp3_is_decoded() -> None:
    mp3 = _encode(_tone(seconds=1.0), format="MP3")
    # With MP3 inside its own wrapping, and without any: the name that a member has is never looked at.
    for payload in (mp3, _riff(0x55, mp3)):
        spectrum = np.abs(np.fft.rfft(_decode(payload)[500:3500].astype(float)))
        assert abs(spectrum.argmax() * 8000 / 3000 - 440) < 5


def test_a_recording_in_a_container_needs_pyav_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("ray_mm.data.decode.audio._PYAV", False)
    with pytest.raises(UsageError, match=r"needs PyAV; install it with pip install 'ray_mm\[video\]'"):
        _decode(b"\0\0\0\x20ftypisom" + bytes(200))
    # A damaged WAV is one bad sample, whatever is installed.
    with pytest.raises(DecodeError, match="not a readable recording"):
        _decode(_encode(_tone())[:20])


def test_a_playlist_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(_encode(_tone()))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n"
    for payload in (playlist.encode(), b"ffconcat version 1.0\nfile secret.wav\n"):
        with pytest.raises(DecodeError, match="not a readable recording"):
            read_sound(payload, 1.0)
        for read in (_decode, recording_length):
            with pytest.raises(DecodeError, match="not a readable recording"):
                read(payload)


def test_no_more_is_decoded_than_is_needed() -> None:
    # Silence takes next to nothing: a few kilobytes of FLAC would be 29 million frames.
    hour = _encode(np.zeros(8000 * 3600, np.int16), format="FLAC")
    tracemalloc.start()
    assert len(_decode(hour)) == 4000
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_rate_of_one_hertz_does_not_make_hours_of_a_second() -> None:
    # A damaged header, in a file that only FFmpeg reads: 8,000 frames at 1 Hz are two hours.
    slow = _riff(0x55, _encode(_tone(seconds=1.0), format="MP3"), rate_hz=1)
    plain = bytearray(_encode(_tone(), subtype="PCM_16"))
    plain[24:28] = (1).to_bytes(4, "little")
    tracemalloc.start()
    for payload in (slow, bytes(plain)):
        with contextlib.suppress(DecodeError):
            assert len(_decode(payload)) <= 4000
    frames, _ = read_sound(bytes(plain), 0.5)
    assert len(frames) == 2
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_rate_that_no_recording_has_is_refused() -> None:
    wav = bytearray(_encode(_tone(), subtype="PCM_16"))
    wav[24:28] = (2_000_000_000).to_bytes(4, "little")
    for read in (_decode, recording_length):
        with pytest.raises(DecodeError, match="claims 2000000000 Hz"):
            read(bytes(wav))
