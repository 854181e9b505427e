"""Pictures: bytes → uint8 [height, width, channels].

A JPEG is decoded at the smallest of the scales 1, ½, ¼, ⅛ that is still at least as large as what is needed: libjpeg-turbo
has SIMD inverse transforms for these only, and decoding fewer pixels is the largest saving there is. What libjpeg-turbo's
strict reader does not take and is not damaged, goes to Pillow, as do all other formats.
"""

from __future__ import annotations

import io
import re
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from ray_mm.config.fields import ImageField
from ray_mm.data.decode.crop import View, cut_from_whole, fit_into, view_of
from ray_mm.data.decode.draw import Draw
from ray_mm.data.decode.error import DecodeError

MAX_PIXELS = 89_000_000
"""Larger pictures are refused from their header, before memory is taken for them. Pillow warns a little above."""

# No others: Pillow has readers that start programs (EPS) or that hardly anybody has looked at.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def decode_image(
    payload: bytes | memoryview,
    spec: ImageField,
    out: npt.NDArray[np.uint8],
    name: str = "",
    draw: Draw | None = None,
) -> None:
    """Decodes, fits and writes one picture; of an animation, the first.

    Args:
        payload: a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file, whatever its name says.
        spec: height, width, channels, fit, random crop and flip.
        out: uint8 [height, width, channels], filled.
        name: of the field, for what is random.
        draw: of the sample; None: nothing is left to chance.

    Transparency is dropped; 16-bit pixels keep their upper eight bits.

    Raises:
        DecodeError: not a picture, damaged, or over ``MAX_PIXELS``.
    """
    if spec.whole_side is not None:
        whole = np.empty((spec.whole_side, spec.whole_side, spec.channels), np.uint8)
        cut_from_whole(whole, decode_whole(payload, spec, whole), spec, out, name, draw)
        return
    pixels, view, _ = _decode(payload, spec, name, draw)
    fit_into(pixels, view, out)


def decode_whole(payload: bytes | memoryview, spec: ImageField, out: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """All of a picture, stretched: what ``crop.cut_from_whole`` cuts the random parts of a field with ``whole_side`` from.

    Args:
        payload: as of ``decode_image``.
        spec: with a random crop and its ``whole_side``.
        out: uint8 [whole_side, whole_side, channels], filled.

    Returns:
        Height and width of the picture in pixels, upright.

    Raises:
        DecodeError: as of ``decode_image``.
    """
    stretched = ImageField(height=out.shape[0], width=out.shape[1], channels=spec.channels, fit="stretch")
    pixels, view, size = _decode(payload, stretched, "", None)
    fit_into(pixels, view, out)
    return size


def _decode(
    payload: bytes | memoryview, spec: ImageField, name: str, draw: Draw | None
) -> tuple[npt.NDArray[np.uint8], View, tuple[int, int]]:
    """Pixels at some scale, what is seen of them, and the height and width that they had."""
    found = _decode_jpeg(payload, spec, name, draw) if bytes(payload[:3]) == _JPEG else None
    if found is None:
        if bytes(payload[:8]) == _PNG:
            check_png(payload)
        pixels = _decode_with_pillow(payload, spec)
        size = pixels.shape[0], pixels.shape[1]
        found = pixels, view_of(name, *size, spec, draw), size
    return found


def image_size(payload: bytes | memoryview | Path) -> tuple[int, int]:
    """Height and width of a picture in pixels, from its header, as it is displayed; a path is not read as a whole.

    Raises:
        DecodeError: not a picture, or over ``MAX_PIXELS``.
    """
    try:
        with Image.open(payload if isinstance(payload, Path) else io.BytesIO(payload), formats=_FORMATS) as picture:
            check_pixels(picture.height, picture.width)
            width, height = picture.size
            turned = picture.getexif().get(_ORIENTATION, 1) in _LYING
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plugins raise what they like on damaged files
        raise DecodeError(f"not a picture ({_reason(error)})") from None
    return (width, height) if turned else (height, width)


def check_pixels(height: int, width: int) -> None:
    """Refuses more than ``MAX_PIXELS``.

    Raises:
        DecodeError: that many.
    """
    if height * width > MAX_PIXELS:
        raise DecodeError(f"{width}×{height} pixels are over the limit of {MAX_PIXELS}")


_JPEG = b"\xff\xd8\xff"
_ORIENTATION = 0x0112
_EXIF = b"Exif\0\0"
_LYING = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""

# What libjpeg says when picture data is lost. A few stray bytes between segments are common and lose nothing.
_LOST = re.compile(r"[Pp]remature end|bad Huffman|found marker|Corrupt JPEG data: (\d{3,}|6[5-9]|[7-9]\d) extraneous")


def _decode_jpeg(
    payload: bytes | memoryview, spec: ImageField, name: str, draw: Draw | None
) -> tuple[npt.NDArray[np.uint8], View, tuple[int, int]] | None:
    """As ``_decode``; None for a JPEG that only Pillow reads."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(payload)
    except ValueError:
        return None
    check_pixels(height, width)
    if space not in ("YCbCr", "Gray", "RGB") or min(height, width) == 0:
        return None
    orientation = _jpeg_orientation(payload)
    upright = (width, height) if orientation in _LYING else (height, width)
    view = view_of(name, *upright, spec, draw)
    factor = _scale(*upright, spec, view)
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            payload,
            colorspace="GRAY" if spec.channels == 1 else "RGB",
            min_height=-(-height // factor),
            min_width=-(-width // factor),
            min_factor=1,
        )
    except ValueError as error:
        if _LOST.search(str(error)):
            raise DecodeError(f"damaged JPEG ({error})") from None
        return None
    return _turn(pixels, orientation), view, upright


_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT")


def check_png(payload: bytes | memoryview) -> None:
    """Compares the checksums of all that pixels are made of (ISO/IEC 15948, 5.3). Pillow passes over those of pixels, and
    leaves black what comes behind a wrong bit."""
    content, place = memoryview(payload), len(_PNG)
    while place + 12 <= len(content):
        kind, end = bytes(content[place + 4 : place + 8]), place + 8 + int.from_bytes(content[place : place + 4], "big")
        if end + 4 > len(content):
            raise DecodeError(f"damaged PNG (chunk {kind!r} at byte {place} is cut short)")
        if kind in _PNG_PIXELS and zlib.crc32(content[place + 4 : end]) != int.from_bytes(
            content[end : end + 4], "big"
        ):
            raise DecodeError(f"damaged PNG (the checksum of chunk {kind.decode()} at byte {place} is wrong)")
        if kind == b"IEND":
            return
        place = end + 4


def _turn(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """The picture as it is displayed; a view."""
    if orientation in _LYING:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _decode_with_pillow(payload: bytes | memoryview, spec: ImageField) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(payload), formats=_FORMATS) as picture:
            check_pixels(picture.height, picture.width)
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I;16"):
                # Pillow's own conversion would cut off at 255 what goes up to 65,535.
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            elif upright.mode in ("I", "F"):
                raise DecodeError("has 32-bit pixels, whose range is not known; store 8 or 16 bits")
            elif upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")
            return np.asarray(upright.convert("L" if spec.channels == 1 else "RGB"))
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plugins raise what they like on damaged files
        what = "damaged JPEG" if bytes(payload[:3]) == _JPEG else "not a readable picture"
        raise DecodeError(f"{what} ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    # Pillow names the stream's address, which tells a reader nothing.
    return "of no known format" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__


def _jpeg_orientation(payload: bytes | memoryview) -> int:
    """The EXIF orientation of a JPEG, 1 where it has none: most cameras write EXIF, few pictures are turned."""
    view = memoryview(payload)
    position = 2
    while position + 4 <= len(view) and view[position] == 0xFF and view[position + 1] != 0xDA:
        if view[position + 1] == 0xFF:  # a fill byte
            position += 1
            continue
        end = position + 2 + int.from_bytes(view[position + 2 : position + 4], "big")
        if view[position + 1] == 0xE1 and bytes(view[position + 4 : position + 10]) == _EXIF:
            return _exif_orientation(bytes(view[position + 10 : end]))
        position = end
    return 1


def _exif_orientation(tiff: bytes) -> int:
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def number(start: int, length: int) -> int:
        return int.from_bytes(tiff[start : start + length], order)

    directory = number(4, 4)
    for entry in range(directory + 2, min(directory + 2 + 12 * number(directory, 2), len(tiff)), 12):
        if number(entry, 2) == _ORIENTATION:
            return number(entry + 8, 2)
    return 1


def _scale(height: int, width: int, spec: ImageField, view: View) -> int:
    """Largest of 1, 2, 4, 8 by which the picture can be divided and what is seen of it still covers the target."""
    assert spec.height is not None and spec.width is not None
    for factor in (8, 4, 2):
        rows, columns = view.box.pixels(-(-height // factor), -(-width // factor))
        if rows >= spec.height and columns >= spec.width:
            return factor
    return 1
