"""Videos: which frames are decoded, with and without seeking, and what is refused."""

from __future__ import annotations

import io
import struct
import sys
import tarfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from ray_mm.config.fields import AudioField, RandomCrop, VideoField
from ray_mm.data.collate import Collator
from ray_mm.data.decode import DecodeError, Draw, decoder_for
from ray_mm.data.decode.audio import decode_audio
from ray_mm.data.decode.video import decode_video, video_shape
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.errors import UsageError
from tests.data.decode.videos import number_of, video_bytes


def _decode(
    payload: bytes | memoryview, draw: Draw | None = None, **spec: Any
) -> tuple[npt.NDArray[np.uint8], list[float]]:
    field = VideoField.model_validate({"num_frames": 6, "height": 24, "width": 32, **spec})
    assert field.height is not None and field.width is not None
    out = np.zeros((field.num_frames, field.height, field.width, field.channels), np.uint8)
    times = np.zeros(field.num_frames, np.float32)
    count = decode_video(payload, field, out, times, "clip", draw)
    assert not out[count:].any() and not times[count:].any()
    return out[:count], times[:count].tolist()


@pytest.mark.parametrize("keyframe_every", [1, 7, 12, 300])
@pytest.mark.parametrize(
    ("format", "codec"), [("mp4", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4"), ("mpegts", "mpeg2video")]
)
def test_frames_are_spread_evenly_over_the_clip(format: str, codec: str, keyframe_every: int) -> None:
    payload = video_bytes(format=format, codec=codec, keyframe_every=keyframe_every)
    pixels, times = _decode(memoryview(payload))
    # Six parts of three seconds; the frame in the middle of each.
    assert times == pytest.approx([0.2, 0.7, 1.2, 1.7, 2.2, 2.7], abs=0.011)
    assert [number_of(frame) for frame in pixels] == pytest.approx([2, 7, 12, 17, 22, 27], abs=0.5)


def test_frames_at_a_rate_begin_with_the_clip_and_end_with_it() -> None:
    payload = video_bytes()
    pixels, times = _decode(payload, rate_hz=5)
    assert times == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert [number_of(frame) for frame in pixels] == pytest.approx([0, 2, 4, 6, 8, 10], abs=0.5)
    _, times = _decode(payload, rate_hz=1)
    assert times == pytest.approx([0, 1, 2])
    # Above the video's own rate, a frame stands for as long as it is shown.
    _, times = _decode(payload, rate_hz=20)
    assert times == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2])


def test_a_short_clip_gives_all_of_its_frames() -> None:
    pixels, times = _decode(video_bytes(4))
    assert times == pytest.approx([0, 0.1, 0.2, 0.3])
    assert [number_of(frame) for frame in pixels] == pytest.approx([0, 1, 2, 3], abs=0.5)
    assert _decode(video_bytes(1))[1] == [0]


def test_frames_are_fitted_as_pictures_are() -> None:
    payload = video_bytes(10)
    cropped, _ = _decode(payload, height=24, width=24)
    stretched, _ = _decode(payload, height=24, width=24, fit="stretch")
    for pixels in (cropped, stretched):
        # The brighter half begins in the middle.
        assert np.abs(pixels[:, :, 16:].astype(int) - pixels[:, :, 4:5] - 20).max() <= 8
    grey, _ = _decode(payload, channels=1)
    assert grey.shape == (6, 24, 32, 1) and [number_of(frame) for frame in grey] == sorted(map(number_of, grey))
    assert _decode(payload, height=96, width=128)[0].shape == (6, 96, 128, 3)


def test_all_frames_of_a_clip_are_cropped_and_mirrored_alike() -> None:
    payload = video_bytes(10)
    crop = RandomCrop(scale=(0.3, 0.5))
    first, _ = _decode(payload, Draw(0, 0, 1), random_crop=crop, random_flip=0.5)
    again, _ = _decode(payload, Draw(0, 0, 1), random_crop=crop, random_flip=0.5)
    assert (first == again).all()
    edges = [np.abs(np.diff(frame.astype(int).mean(axis=(0, 2)))).argmax() for frame in first]
    assert max(edges) - min(edges) <= 1
    mirrored, _ = _decode(payload, Draw(0, 0, 1), random_flip=1.0)
    assert (mirrored == _decode(payload)[0][:, :, ::-1]).all()


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),
        ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
        ((0, -1, 1, 0), lambda pixels: np.rot90(pixels, 1)),
    ],
    ids=["clockwise", "upside down", "anticlockwise"],
)
def test_a_clip_is_decoded_as_it_is_displayed(matrix: tuple[int, ...], turn: Any) -> None:
    plain = video_bytes(6)
    payload = bytearray(plain)
    # The matrix of a track's header (ISO 14496-12, 8.3.2), as a telephone writes it.
    start = payload.index(b"tkhd") + 44
    a, b, c, d = (value * 65536 for value in matrix)
    payload[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    shape = turn(np.zeros((48, 64))).shape
    assert video_shape(bytes(payload))[:2] == shape
    upright, _ = _decode(plain, height=48, width=64)
    turned, _ = _decode(bytes(payload), height=shape[0], width=shape[1])
    for found, frame in zip(turned, upright, strict=True):
        assert np.abs(found.astype(int) - turn(frame)).max() <= 1
    # A clip that lies on its side is twice as high in the square that its parts are cut from.
    parts = [_decode(bytes(payload), height=16, width=12, random_crop={"whole_side": side})[0] for side in (None, 64)]
    assert np.abs(parts[0].astype(int) - parts[1]).mean() < 2


def test_shape_and_duration_are_told_without_decoding_it_all() -> None:
    assert video_shape(video_bytes(30)) == pytest.approx((48, 64, 3.0))


def test_the_sound_of_the_same_member_is_an_audio_field() -> None:
    payload = video_bytes(sound_seconds=2.0)
    out = np.zeros(8000, np.int16)
    assert decode_audio(payload, AudioField(rate_hz=8000, max_seconds=1.0), out) == 8000
    assert abs(np.abs(np.fft.rfft(out[1000:7000].astype(float))).argmax() * 8000 / 6000 - 440) < 5
    assert len(_decode(payload)[1]) == 6
    with pytest.raises(DecodeError, match="no audio track"):
        decode_audio(video_bytes(), AudioField(rate_hz=8000, max_seconds=1.0), out)


@pytest.mark.parametrize("payload", [b"no video at all", b"\0\0\0\x20ftypisom" + bytes(200), b"", b"\x1aE\xdf\xa3" * 9])
def test_what_is_no_video_is_refused(payload: bytes) -> None:
    for decode in (_decode, video_shape):
        with pytest.raises(DecodeError, match="video"):
            decode(payload)


def test_a_video_whose_end_is_missing_is_refused() -> None:
    payload = video_bytes(format="matroska")
    assert len(_decode(payload)[1]) == 6
    # What is left of it is a shorter video, or none.
    for kept in (len(payload) // 2, 900, 100):
        try:
            _, times = _decode(payload[:kept])
        except DecodeError:
            continue
        assert max(times) < 2.5


def test_pictures_over_the_pixel_limit_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_mm.data.decode.image.MAX_PIXELS", 3000)
    with pytest.raises(DecodeError, match="64×48 pixels are over the limit"):
        _decode(video_bytes(3))


def test_a_batch_holds_frames_times_and_their_number() -> None:
    collator = Collator(Preprocessor(fields={"clip": VideoField(num_frames=6, height=24, width=32)}))
    arrays, bad = collator.collate([{"clip": video_bytes(4)}, {}, {"clip": b"damaged"}, {"clip": video_bytes()}])
    assert list(bad) == [2] and arrays["clip"].shape == (4, 6, 24, 32, 3)
    assert arrays["clip.presence"].tolist() == [True, False, False, True]
    assert arrays["clip.length"].tolist() == [4, 0, 0, 6]
    assert arrays["clip.time"].shape == (4, 6) and not arrays["clip.time"][1:3].any()


def test_a_field_that_needs_pyav_says_so_before_the_first_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    fields = {"clip": VideoField(num_frames=6, height=24, width=32)}
    with pytest.raises(
        UsageError, match=r"field 'clip' \(video\) needs PyAV; install it with pip install 'ray_mm\[video\]'"
    ):
        decoder_for("clip", Preprocessor(fields=fields))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "height", "width", "seconds"),
    [
        ("torchcodec_media/test/resources/nasa_13013.mp4", 270, 480, 13.013),
        ("torchcodec_media/test/resources/h265_video.mp4", 128, 128, 1.0),
        ("torchcodec_media/test/resources/testsrc2.mp4", 720, 1280, 2.0),
        ("energon_testdata/tests/data/sync_test.avi", 108, 192, 63.07),
        ("energon_testdata/tests/data/sync_test.mkv", 108, 192, 63.05),
        ("energon_testdata/tests/data/sync_test.mp4", 108, 192, 63.03),
    ],
)
def test_seeking_finds_the_frames_that_decoding_all_finds(
    real_data: Path, name: str, height: int, width: int, seconds: float
) -> None:
    with tarfile.open(real_data / "media.tar.gz") as archive:
        file = archive.extractfile(name)
        assert file is not None
        payload = file.read()
    assert video_shape(payload) == (height, width, pytest.approx(seconds, abs=0.05))
    pixels, times = _decode(payload, num_frames=5, height=108, width=192, fit="stretch")
    with av.open(io.BytesIO(payload)) as container:
        stream = container.streams.best("video")
        shown: dict[float, npt.NDArray[np.uint8]] = {}
        start = None
        for frame in container.decode(stream):
            start = frame.time if start is None else start
            nearest = min(times, key=lambda time: abs(time - (frame.time - start)))
            if abs(nearest - (frame.time - start)) < 0.001:
                shown[nearest] = frame.to_ndarray(format="rgb24", width=192, height=108, interpolation="AREA")
    assert sorted(shown) == times
    for time, found in zip(times, pixels, strict=True):
        assert np.abs(found.astype(int) - shown[time]).mean() < 2


@pytest.mark.parametrize("error", [av.error.InvalidDataError(1, "no such conversion"), MemoryError()])
def test_a_frame_that_can_not_be_converted_is_a_bad_video(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("ray_mm.data.decode.video.fit_into", fail)
    with pytest.raises(DecodeError, match=r"not a readable video \((no such conversion|MemoryError)\)"):
        _decode(video_bytes(3))


@pytest.mark.parametrize("draw", [None, Draw(0, 1, 2)])
@pytest.mark.parametrize("spec", [{}, {"rate_hz": 25.0}, {"num_frames": 40}])
def test_parts_of_whole_frames_show_what_parts_of_the_file_show(draw: Draw | None, spec: dict[str, Any]) -> None:
    payload = video_bytes(height=96, width=128)
    (file, times), (whole, whole_times) = (
        _decode(payload, draw, random_crop={"scale": [0.3, 0.6], "whole_side": side}, random_flip=0.5, **spec)
        for side in (None, 96)
    )
    assert whole_times == times and whole.shape == file.shape
    assert np.abs(file.astype(int) - whole).mean() < 2 < np.abs(file.astype(int) - whole[:, :, ::-1]).mean()
