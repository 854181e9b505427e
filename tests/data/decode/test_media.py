"""Awkward files that other projects test with."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from ray_mm.config.fields import AudioField, ImageField, VideoField
from ray_mm.data.collate import Collator
from ray_mm.data.decode.audio import decode_audio, recording_length
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.image import decode_image, image_size
from ray_mm.data.fields import presence_name
from ray_mm.data.preprocessor import Preprocessor

pytestmark = pytest.mark.real_data
_IMAGE = ImageField(height=64, width=64)
_AUDIO = AudioField(rate_hz=16000, max_seconds=1.0)


@pytest.fixture(scope="module")
def media(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    with tarfile.open(real_data / "media.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "torchcodec_media" / "test" / "resources"


@pytest.mark.parametrize("name", ["cmyk.jpg", "gradient.jpg", "rgba.webp"])
def test_awkward_pictures_are_decoded(media: Path, name: str) -> None:
    out = np.zeros((64, 64, 3), np.uint8)
    payload = (media / name).read_bytes()
    decode_image(payload, _IMAGE, out)
    assert out.std() > 0
    assert image_size(media / name) == image_size(payload)


def test_a_corrupt_jpeg_is_refused(media: Path) -> None:
    with pytest.raises(DecodeError):
        decode_image((media / "corrupt.jpg").read_bytes(), _IMAGE, np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize("name", ["sine_mono_u8.wav", "sine_16ch_s16.wav", "nasa_13013.mp4.audio.mp3"])
def test_awkward_recordings_are_decoded(media: Path, name: str) -> None:
    out = np.zeros(16000, np.int16)
    payload = (media / name).read_bytes()
    assert decode_audio(payload, _AUDIO, out) > 1000
    assert out.std() > 10
    frames, rate_hz = recording_length(media / name)
    assert frames > 1000 and rate_hz >= 8000


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("nasa_13013.mp4", 13.06), ("../../../energon_testdata/tests/data/sync_test.mkv", 63.1)],
)
def test_the_sound_of_a_video_is_a_recording(media: Path, name: str, seconds: float) -> None:
    out = np.zeros(16000, np.int16)
    payload = (media / name).read_bytes()
    assert decode_audio(payload, _AUDIO, out) == 16000
    assert out.any()
    frames, rate_hz = recording_length(media / name)
    assert frames / rate_hz == pytest.approx(seconds, abs=0.1)
    assert recording_length(payload) == (frames, rate_hz)


def test_the_sound_of_a_video_is_that_of_the_file_that_was_made_of_it(media: Path) -> None:
    both = np.zeros((2, 16000), np.int16)
    for name, out in zip(("nasa_13013.mp4", "nasa_13013.mp4.audio.mp3"), both, strict=True):
        decode_audio((media / name).read_bytes(), AudioField(rate_hz=8000, max_seconds=2.0), out)
    spectra = np.abs(np.fft.rfft(both.astype(float)))
    assert np.corrcoef(spectra)[0, 1] > 0.98


def test_a_video_without_sound_is_no_recording(media: Path) -> None:
    with pytest.raises(DecodeError, match="no audio track"):
        decode_audio((media / "testsrc2.mp4").read_bytes(), _AUDIO, np.zeros(16000, np.int16))


def test_every_file_is_decoded_or_refused_with_a_reason(media: Path) -> None:
    fields = {
        "image": _IMAGE,
        "audio": _AUDIO,
        "stereo": AudioField(rate_hz=16000, max_seconds=1.0, channels=2),
        "video": VideoField(num_frames=4, height=64, width=64),
    }
    collator = Collator(Preprocessor(fields=fields))
    found = {}
    silent: set[tuple[str, str]] = set()
    for file in sorted(path for path in media.parents[2].rglob("*") if path.is_file() and path.name != "LICENSE"):
        members = {name: file.read_bytes() for name in fields}
        taken = set()
        for name, payload in members.items():
            arrays, bad = collator.collate([{name: payload}])
            is_there = bool(arrays[presence_name(name)][0])
            assert bad or arrays[name].any() == is_there
            assert not bad or len(bad[0][name]) > 10
            taken |= {name} if is_there else set()
            silent |= set() if bad or is_there else {(file.name, name)}
        found[file.name] = taken
    # Clips without an audio track lack their sound; nothing is wrong with them.
    assert silent == {(clip, name) for clip in ("h265_video.mp4", "testsrc2.mp4") for name in ("audio", "stereo")}
    both = {"audio", "stereo", "video"}
    assert found == {
        "cmyk.jpg": {"image"},
        "corrupt.jpg": set(),
        "gradient.jpg": {"image"},
        "h265_video.mp4": {"video"},
        "nasa_13013.mp4": both,
        "nasa_13013.mp4.audio.mp3": {"audio", "stereo"},
        "rgba.webp": {"image"},
        "sine_16ch_s16.wav": {"audio"},
        "sine_mono_u8.wav": {"audio", "stereo"},
        "sync_test.avi": both,
        "sync_test.mkv": both,
        "sync_test.mp4": both,
        "test_audio.flac": {"audio", "stereo"},
        "test_audio.wav": {"audio", "stereo"},
        "testsrc2.mp4": {"video"},
    }
