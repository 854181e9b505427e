"""Pictures: bytes → uint8 [height, width, channels].

A JPEG is decoded at the smallest of the scales 1, ½, ¼, ⅛ that is still at least as large as what is needed: libjpeg-turbo
has SIMD inverse transforms for these only, and decoding fewer pixels is the largest saving there is.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

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

    Raises:
        DecodeError: not a picture, damaged, or over ``MAX_PIXELS``.
    """
    assert spec.height is not None and spec.width is not None
    pixels = _decode(payload, spec)
    fitted = _fit(pixels, spec.height, spec.width, spec.fit)
    out[...] = fitted[..., None] if fitted.ndim == 2 else fitted


def image_size(payload: bytes | memoryview) -> tuple[int, int]:
    """Height and width of a picture in pixels, from its header, as it is displayed.

    Raises:
        DecodeError: not a picture.
    """
    try:
        with Image.open(io.BytesIO(payload)) as picture:
            width, height = picture.size
            turned = picture.getexif().get(_ORIENTATION, 1) >= 5
    except Exception as error:
        raise DecodeError(f"not a picture ({error})") from None
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
        if space in ("YCbCr", "Gray", "RGB") and _EXIF not in bytes(payload[:4096]):
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
            return np.asarray(upright.convert("L" if spec.channels == 1 else "RGB"))
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plugins raise what they like on damaged files
        raise DecodeError(f"not a readable picture ({error})") from None


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
        rows, columns = min(pixels.shape[0], round(height * scale)), min(pixels.shape[1], round(width * scale))
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
