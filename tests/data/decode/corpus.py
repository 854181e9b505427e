"""Good members of every kind, and ways to damage them: what the decoders are fuzzed with."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from hypothesis import strategies as st
from PIL import Image

from ray_mm.config.fields import (
    AudioField,
    FieldSpec,
    ImageField,
    LabelField,
    PointsField,
    SeriesField,
    TextField,
    VectorField,
    VideoField,
)
from tests.data.decode.videos import video_bytes
from tests.factories import mask_bytes, npy_bytes

SPECS: dict[str, FieldSpec] = {
    "image": ImageField(height=32, width=32, random_crop={}, random_flip=0.5),
    "grey": ImageField(height=20, width=40, channels=1, fit="stretch"),
    "text": TextField(max_tokens=8),
    "caption": TextField(max_tokens=8, path="captions.0.en"),
    "audio": AudioField(rate_hz=8000, max_seconds=0.5),
    "stereo": AudioField(rate_hz=16000, max_seconds=0.3, channels=2),
    "video": VideoField(num_frames=4, height=24, width=24),
    "paced": VideoField(num_frames=6, rate_hz=7, height=24, width=24, channels=1),
    "series": SeriesField(channels=2, max_length=20),
    "timed": SeriesField(channels=3, max_length=30, rate_hz=12, path=("a", "b"), time_path="t"),
    "points": PointsField(channels=4, max_points=12),
    "cloud": PointsField(channels=2, max_points=12, path=("x", "z")),
    "bare": PointsField(channels=4, max_points=12, raw_float32=True),
    "vector": VectorField(size=4),
    "label": LabelField(classes=("left", "right")),
    "named": LabelField(classes=("left", "right"), path="label", written_as="name"),
    "mask": LabelField(target="mask", classes=("left", "right"), height=16, width=20, like="image"),
    "map": LabelField(target="mask", classes=("left", "right"), height=6, width=8),
}
"""Name → a field; together they take every way through the decoders."""

_KIND = {"map": "mask", "grey": "image", "stereo": "audio", "paced": "video", "cloud": "points", "bare": "points"}


def members(field: str, real_media: Path | None) -> list[bytes]:
    """Good members of a field, the real ones among them if there is an archive of them."""
    made = _MAKERS[_KIND.get(field, field)]()
    kind = SPECS[field].type
    if real_media is not None and kind in _REAL:
        made = made + [payload for name, payload in _real(real_media).items() if Path(name).suffix in _REAL[kind]]
    return made


def damaged(sources: list[bytes]) -> st.SearchStrategy[bytes]:
    """A member with a few bits, bytes, numbers or stretches changed, cut short, or joined with another."""
    # A generator of its own: hypothesis prefers small numbers, and most damage would hit the first bytes.
    return st.integers(0, 2**63).map(lambda seed: _damage(sources, np.random.default_rng(seed)))


def _damage(sources: list[bytes], rng: np.random.Generator) -> bytes:
    payload = bytearray(sources[rng.integers(len(sources))])
    for _ in range(rng.integers(1, 5)):
        if len(payload) < 2:
            break
        # Headers are where most of the meaning is.
        place = int(rng.integers(len(payload) if rng.random() < 0.5 else min(len(payload), 400)))
        length = int(rng.integers(1, 64))
        match _DAMAGES[rng.choice(len(_DAMAGES), p=_CHANCES)]:
            case "flip":
                payload[place] ^= 1 << int(rng.integers(8))
            case "byte":
                payload[place] = int(rng.integers(256))
            case "number":
                order: Literal["little", "big"] = "little" if rng.random() < 0.5 else "big"
                number = int(rng.choice(_NUMBERS)).to_bytes(4, order)
                payload[place : place + 4] = number[: len(payload) - place]
            case "remove":
                del payload[place : place + length]
            case "repeat":
                payload[place:place] = payload[place : place + length]
            case "cut":
                del payload[place:]
            case "splice":
                other = sources[rng.integers(len(sources))]
                payload[place:] = other[int(rng.integers(len(other))) :]
    return bytes(payload)


_DAMAGES = ("flip", "byte", "number", "remove", "repeat", "cut", "splice")
_CHANCES = (0.3, 0.25, 0.25, 0.07, 0.07, 0.03, 0.03)
_NUMBERS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 0x10000)
_REAL = {
    "image": (".jpg", ".webp"),
    "audio": (".wav", ".mp3", ".flac", ".mp4"),
    "video": (".mp4", ".mkv", ".avi"),
}
_MAX_REAL_BYTES = 700_000


@functools.cache
def _real(archive: Path) -> dict[str, bytes]:
    found = {}
    with tarfile.open(archive) as tar:
        for entry in tar:
            file = tar.extractfile(entry)
            if file is not None and entry.size < _MAX_REAL_BYTES:
                found[entry.name] = file.read()
    return found


def _pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6

    def saved(image: Image.Image, format: str, **options: object) -> bytes:
        stream = io.BytesIO()
        image.save(stream, format, **options)
        return stream.getvalue()

    return [
        saved(picture, "JPEG"),
        saved(picture, "JPEG", progressive=True, exif=exif.tobytes()),
        saved(picture.convert("CMYK"), "JPEG"),
        saved(picture.convert("L"), "JPEG"),
        saved(picture, "PNG"),
        saved(picture.quantize(16), "PNG", transparency=b"\0" * 16),
        saved(Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50)), "PNG"),
        saved(picture, "WEBP"),
        saved(picture.quantize(16), "GIF", save_all=True, append_images=[picture.quantize(8)]),
        saved(picture, "TIFF"),
        saved(picture, "TIFF", compression="tiff_lzw"),
        saved(picture, "BMP"),
        saved(picture, "PPM"),
    ]


def _recordings() -> list[bytes]:
    wave = 0.5 * np.sin(np.arange(4000) / 5)

    def saved(format: str, subtype: str | None = None, channels: int = 1) -> bytes:
        stream = io.BytesIO()
        soundfile.write(stream, np.stack([wave] * channels, axis=1), 8000, format=format, subtype=subtype)
        return stream.getvalue()

    return [
        saved("WAV", "PCM_16"),
        saved("WAV", "FLOAT", 2),
        saved("WAV", "MS_ADPCM"),
        saved("WAV", "ULAW"),
        saved("FLAC", channels=2),
        saved("OGG", "VORBIS"),
        saved("OGG", "OPUS"),
        saved("MP3"),
        saved("AIFF"),
        video_bytes(3, sound_seconds=0.4),
        video_bytes(3, format="matroska", sound_seconds=0.4),
    ]


def _videos() -> list[bytes]:
    return [
        video_bytes(14),
        video_bytes(40, format="matroska", keyframe_every=3),
        video_bytes(14, format="avi"),
        video_bytes(14, format="mpegts", codec="mpeg2video"),
        video_bytes(9, sound_seconds=0.5),
    ]


def _masks() -> list[bytes]:
    numbers = np.tile(np.array([0, 1, 255, 1], np.uint8), (6, 2))
    palette = Image.fromarray(numbers, "P")
    palette.putpalette([7] * 768)
    stream = io.BytesIO()
    palette.save(stream, "PNG")
    return [
        mask_bytes(numbers),
        mask_bytes(numbers.astype(np.uint16)),
        stream.getvalue(),
        npy_bytes(numbers),
        npy_bytes(numbers.astype(np.int64)),
    ]


def _npz(**arrays: object) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _series() -> list[bytes]:
    values = np.arange(24.0).reshape(12, 2)
    return [
        npy_bytes(values),
        npy_bytes(np.asfortranarray(values.astype(np.int16))),
        _npz(only=values),
        json.dumps(values.tolist()).encode(),
        b"x,y\n" + b"\n".join(b"%d,%d" % (i, -i) for i in range(9)),
    ]


def _timed() -> list[bytes]:
    parts = {"a": np.arange(24.0).reshape(12, 2), "b": np.arange(12.0), "t": np.arange(12) / 30}
    rows = b"\n".join(b"%d,%d,%d,%d.5" % (i, i, -i, i) for i in range(12))
    return [
        _npz(**parts),
        json.dumps({name: part.tolist() for name, part in parts.items()}).encode(),
        b"a,a,b,t\n" + rows,
    ]


def _points() -> list[bytes]:
    cloud = np.arange(48, dtype="<f4").reshape(12, 4)
    header = (
        b"# .PCD v0.7\nVERSION 0.7\nFIELDS x y z i\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH 12\nHEIGHT 1\n"
        b"POINTS 12\nDATA "
    )
    planes = cloud.T.tobytes()
    literals = b"".join(bytes([31]) + planes[start : start + 32] for start in range(0, len(planes), 32))
    sizes = len(literals).to_bytes(4, "little") + len(planes).to_bytes(4, "little")
    return [
        npy_bytes(cloud),
        cloud.tobytes(),
        header + b"ascii\n" + b"\n".join(b"%d %d %d %d" % tuple(row) for row in cloud.astype(int).tolist()),
        header + b"binary\n" + cloud.tobytes(),
        header + b"binary_compressed\n" + sizes + literals,
        json.dumps({"x": [1, 2], "z": [3, 4]}).encode(),
    ]


_MAKERS: dict[str, Callable[[], list[bytes]]] = {
    "image": functools.cache(_pictures),
    "text": lambda: [b"stop at the line", "Grüße, ☃".encode(), b"\xef\xbb\xbfleft"],
    "caption": lambda: [json.dumps({"captions": [{"en": "turn left", "de": None}]}).encode()],
    "audio": functools.cache(_recordings),
    "video": functools.cache(_videos),
    "series": functools.cache(_series),
    "timed": functools.cache(_timed),
    "points": functools.cache(_points),
    "vector": lambda: [npy_bytes(np.arange(4.0)), b"[1, 2, 3, 4]", b"1,2,3,4\n", _npz(v=np.ones((2, 2)))],
    "mask": functools.cache(_masks),
    "label": lambda: [b"1", b" 0\n"],
    "named": lambda: [b'{"label": "left"}', b'{"label": ["right"]}'],
}
