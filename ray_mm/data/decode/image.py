"""Pictures: bytes → uint8 [height, width, channels].

A JPEG is decoded at the smallest of the scales 1, ½, ¼, ⅛ that is still at least as large as what is needed: libjpeg-turbo
has SIMD inverse transforms for these only, and decoding fewer pixels is the largest saving there is.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from ray_mm.config.fields import ImageField
from ray_mm.data.decode.error import DecodeError

MAX_PIXELS = 100_000_000
"""Larger pictures are refused from their header, before memory is taken for them."""

# OpenCV's own threads would compete with the read tasks for the same cores.
cv2.setNumThreads(1)


def decode_image(payload: bytes | memoryview, spec: ImageField, out: npt.NDArray[np.uint8]) -> None:
    """Decodes, fits and writes one picture.

    Args:
        payload: a file in any format that libjpeg-turbo or Pillow reads.
        spec: height, width, channels and fit.
        out: uint8 [height, width, channels], filled.

    Transparency is dropped; 16-bit grey keeps its upper eight bits.

    Raises:
        DecodeError: not a picture, damaged, or over ``MAX_PIXELS``.
    """
    assert spec.height is not None and spec.width is not None
    pixels = _decode(payload, spec)
    fitted = _fit(pixels, spec.height, spec.width, spec.fit)
    out[...] = fitted[..., None] if fitted.ndim == 2 else fitted


def image_size(payload: bytes | memoryview | Path) -> tuple[int, int]:
    """Height and width of a picture in pixels, from its header, as it is displayed; a path is not read as a whole.

    Raises:
        DecodeError: not a picture, or over ``MAX_PIXELS``.
    """
    try:
        with Image.open(payload if isinstance(payload, Path) else io.BytesIO(payload)) as picture:
            _check_pixels(picture.height, picture.width)
            width, height = picture.size
            turned = picture.getexif().get(_ORIENTATION, 1) >= 5
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plugins raise what they like on damaged files
        raise DecodeError(f"not a picture ({_reason(error)})") from None
    return (width, height) if turned else (height, width)


_ORIENTATION = 0x0112
_EXIF = b"Exif\0\0"


def _decode(payload: bytes | memoryview, spec: ImageField) -> npt.NDArray[np.uint8]:
    if bytes(payload[:3]) == b"\xff\xd8\xff":
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(payload)
        except ValueError as error:
            raise DecodeError(f"damaged JPEG ({error})") from None
        _check_pixels(height, width)
        # A turned or four-colour JPEG takes the slow path, which knows how to undo both.
        if space in ("YCbCr", "Gray", "RGB") and _jpeg_orientation(payload) == 1:
            factor = _scale(height, width, spec)
            try:
                pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
                    payload,
                    colorspace="GRAY" if spec.channels == 1 else "RGB",
                    min_height=-(-height // factor),
                    min_width=-(-width // factor),
                    min_factor=1,
                )
            except ValueError as error:
                raise DecodeError(f"damaged JPEG ({error})") from None
            return pixels[..., 0] if spec.channels == 1 else pixels
    return _decode_with_pillow(payload, spec)


def _decode_with_pillow(payload: bytes | memoryview, spec: ImageField) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(payload)) as picture:
            _check_pixels(picture.height, picture.width)
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
        raise DecodeError(f"not a readable picture ({_reason(error)})") from None


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


def _scale(height: int, width: int, spec: ImageField) -> int:
    """Largest of 1, 2, 4, 8 by which the picture can be divided and still cover the target."""
    assert spec.height is not None and spec.width is not None
    for factor in (8, 4, 2):
        if -(-height // factor) >= spec.height and -(-width // factor) >= spec.width:
            return factor
    return 1


def _fit(pixels: npt.NDArray[np.uint8], height: int, width: int, fit: str) -> npt.NDArray[np.uint8]:
    if pixels.shape[:2] == (height, width):
        return pixels
    if fit == "crop":
        # Cropping the source before it is scaled saves scaling what would be cut off.
        scale = min(pixels.shape[0] / height, pixels.shape[1] / width)
        rows = min(pixels.shape[0], max(1, round(height * scale)))
        columns = min(pixels.shape[1], max(1, round(width * scale)))
        top, left = (pixels.shape[0] - rows) // 2, (pixels.shape[1] - columns) // 2
        pixels = pixels[top : top + rows, left : left + columns]
    shrinks = pixels.shape[0] > height or pixels.shape[1] > width
    scaled: npt.NDArray[np.uint8] = cv2.resize(
        pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return scaled


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise DecodeError(f"{width}×{height} pixels are over the limit of {MAX_PIXELS}")
