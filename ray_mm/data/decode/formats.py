"""What a file is, from its first bytes: names lie, and a member's decoder never sees one."""

from __future__ import annotations

import re

_STARTS = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF8": "gif",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"\xff\xfb": "mp3",
    b"\xff\xfa": "mp3",
    b"\xff\xf3": "mp3",
    b"\xff\xf2": "mp3",
    b"\xff\xe3": "mp3",  # of 8 to 12 kHz (MPEG 2.5)
    b"\xff\xe2": "mp3",
    b"\xff\xf1": "aac",
    b"\xff\xf9": "aac",
    b"#!AMR": "amr",
    b".snd": "au",
    b"\x1aE\xdf\xa3": "mkv",
    b"FLV\x01": "flv",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "wmv",
    b"\0\0\x01\xba": "mpg",
    b"\x93NUMPY": "npy",
    b"PK\x03\x04": "npz",
    b"# .PCD": "pcd",
}
_MARKS_LIKE_WORDS = (
    (re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), "bmp"),
    (re.compile(rb"P[456]\s+[#\d]"), "ppm"),
    (re.compile(rb"ID3[\x02-\x04]"), "mp3"),
    (re.compile(rb"caff\0"), "caf"),
    (re.compile(rb"VERSION\s+0?\.\d"), "pcd"),
)
"""A text may begin with the mark alone, such as ``BMW`` or ``caffeine``: what follows it decides."""
_LENGTHS = sorted({len(start) for start in _STARTS})
_RIFF = {b"WAVE": "wav", b"WEBP": "webp", b"AVI ": "avi"}
_IFF = {b"AIFF": "aiff", b"AIFC": "aiff"}
_MP4_BOXES = (b"ftyp", b"moov", b"mdat")
_SMALL_MP4_BOXES = (b"wide", b"free", b"skip")
"""Words, too, behind the length of the box, which in a text would be letters."""
_STILLS_IN_MP4 = (b"avif", b"avis", b"heic", b"heix", b"mif1")
_TS_PACKET = 188

PICTURES = ("jpg", "png", "webp", "gif", "bmp", "tif", "ppm")
"""Formats that ``image.py`` reads."""
RECORDINGS = ("wav", "flac", "ogg", "mp3", "aiff", "au", "caf")
"""Formats that libsndfile reads; where it can't, and for all others, PyAV is asked."""
VIDEOS = ("mp4", "mkv", "avi", "mpg", "ts", "flv", "wmv")
"""Formats that may hold pictures, sound or both; PyAV reads them."""
SOUND_IN_CONTAINERS = (*VIDEOS, "aac", "amr")
"""Formats whose sound only PyAV reads."""


def known_format(payload: bytes | memoryview) -> str | None:
    """The usual extension of a file's format, such as ``jpg`` or ``mp4``; None for one without a mark, such as text."""
    head = bytes(payload[: 2 * _TS_PACKET + 1])
    if head[:4] in (b"RIFF", b"RF64"):
        return _RIFF.get(head[8:12])
    if head[:4] == b"FORM":
        return _IFF.get(head[8:12])
    if head[4:8] in _MP4_BOXES or (head[4:8] in _SMALL_MP4_BOXES and head[:1] == b"\0"):
        # AVIF and HEIF are pictures in the clothes of a clip, and nothing here reads them.
        return None if head[4:8] == b"ftyp" and head[8:12] in _STILLS_IN_MP4 else "mp4"
    if head[:1] == b"G" and set(head[_TS_PACKET::_TS_PACKET]) == {0x47}:
        return "ts"
    for mark, name in _MARKS_LIKE_WORDS:
        if mark.match(head):
            return name
    return next((_STARTS[start] for length in _LENGTHS if (start := head[:length]) in _STARTS), None)
