"""What a file is, by its first bytes; and a text is never taken for one."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from ray_mm.data.decode.formats import PICTURES, RECORDINGS, VIDEOS, known_format
from tests.data.decode.videos import video_bytes


def _picture(format: str, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (7, 5)).save(stream, format)
    return stream.getvalue()


def test_what_is_read_is_known() -> None:
    pictures = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "ppm": "PPM"}
    assert pictures.keys() == set(PICTURES)
    for name, format in pictures.items():
        assert known_format(_picture(format)) == name
    assert known_format(_picture("BMP", "1")) == "bmp" and known_format(_picture("PPM", "1")) == "ppm"
    assert known_format(b"P5 # a comment\n7 5 255\n") == "ppm"
    sounds = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "mp3": "MP3", "aiff": "AIFF", "au": "AU", "caf": "CAF"}
    assert sounds.keys() == set(RECORDINGS)
    for name, format in sounds.items():
        stream = io.BytesIO()
        soundfile.write(stream, np.zeros(4000), 8000, format=format)
        assert known_format(stream.getvalue()) == name
    assert known_format(b"ID3\x04\0\0") == "mp3"
    assert known_format(b"# .PCD v0.7\n") == known_format(b"VERSION 0.7\n") == known_format(b"VERSION .7\n") == "pcd"


@pytest.mark.parametrize(
    ("name", "format", "codec"),
    [
        ("mp4", "mp4", "mpeg4"),
        ("mp4", "mov", "mpeg4"),
        ("mkv", "matroska", "mpeg4"),
        ("avi", "avi", "mpeg4"),
        ("ts", "mpegts", "mpeg2video"),
        ("mpg", "vob", "mpeg2video"),
        ("flv", "flv", "flv"),
        ("wmv", "asf", "mpeg4"),
    ],
)
def test_clips_are_known(name: str, format: str, codec: str) -> None:
    # MPEG-2 has no ten frames a second.
    payload = video_bytes(12, format=format, codec=codec) if codec != "mpeg2video" else _mpeg2(format)
    assert known_format(payload) == name and name in VIDEOS


def _mpeg2(format: str) -> bytes:
    import av

    stream = io.BytesIO()
    with av.open(stream, "w", format=format) as container:
        video = container.add_stream("mpeg2video", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(video.encode(None))
    return stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "BMW in a garage, seen from the left side of the street",
        "P5 is a vitamin",
        "ID3 tags of a song",
        "caffeine in a cup",
        "VERSION 2 of the story",
        "The free world",
        "the skip ahead",
        "all wide open",
        "G" + "o" * 187 + "G" + "o" * 187 + "al",
        "",
    ],
)
def test_a_text_is_none(text: str) -> None:
    assert known_format(text.encode()) is None


@pytest.mark.parametrize("brand", [b"avif", b"heic", b"mif1"])
def test_a_picture_in_the_clothes_of_a_clip_is_no_clip(brand: bytes) -> None:
    assert known_format(b"\0\0\0\x20ftyp" + brand + bytes(20)) is None
