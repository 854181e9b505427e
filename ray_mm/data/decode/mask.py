"""Masks: a PNG or NPY of class numbers → uint8 [height, width], 255 where a cell has no label.

Numbers are never mixed: what is scaled takes for each cell the one that lies nearest to its middle.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_mm.config.fields import UNLABELLED, ImageField, LabelField
from ray_mm.data.decode.arrays import read_integers
from ray_mm.data.decode.crop import View, cut, view_of
from ray_mm.data.decode.draw import Draw
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.formats import known_format
from ray_mm.data.decode.image import check_pixels, check_png

Mask = npt.NDArray[np.uint8]

_GREY, _PALETTE = 0, 3
"""Colour types of a PNG (ISO/IEC 15948, 11.2.2)."""


def read_mask(payload: bytes | memoryview, spec: LabelField) -> Mask:
    """The class numbers of a map, as large as it lies in its member.

    Args:
        payload: a PNG, grey with 8 or 16 bits or with a palette, whose indices are the numbers; or a NPY of integers [H, W].
        spec: with its classes.

    Returns:
        uint8 [H, W].

    Raises:
        DecodeError: no such file, or a number that is neither one of the classes nor 255.
    """
    found = known_format(payload)
    if found == "png":
        numbers = _png(payload)
    elif found == "npy":
        numbers = read_integers(payload)
    else:
        raise DecodeError(f"is {found or 'of no known format'}; a mask is a PNG or an NPY of class numbers")
    if numbers.ndim != 2 or not numbers.size:
        raise DecodeError(f"a mask of shape {list(numbers.shape)}, expected [height, width]")
    count = len(spec.classes or ())
    wrong = (numbers != UNLABELLED) & ((numbers < 0) | (numbers >= count))
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise DecodeError(
            f"has {numbers[row, column]} at row {row}, column {column}; the {count} classes are 0 … {count - 1}, and "
            f"{UNLABELLED} is a cell without a label"
        )
    return np.ascontiguousarray(numbers, np.uint8)


def decode_mask(
    payload: bytes | memoryview, spec: LabelField, picture: ImageField | None, out: Mask, draw: Draw | None = None
) -> bool:
    """Decodes a mask and writes what is seen of it.

    Args:
        payload: as of ``read_mask``.
        spec: height, width, classes, and the picture that it is like.
        picture: that field; None where it is not read, and the middle of the mask is seen.
        out: uint8 [height, width], filled.
        draw: of the sample; None: nothing is left to chance.

    Returns:
        Whether any cell that is seen has a label; if not, ``out`` is all 0.

    Raises:
        DecodeError: as of ``read_mask``; or the map has another size than all others.
    """
    numbers = read_mask(payload, spec)
    if spec.like is None:
        require_size(numbers.shape, spec)
        out[...] = numbers
    else:
        how = picture if picture is not None else ImageField(height=spec.height, width=spec.width)
        _fit(numbers, view_of(spec.like, numbers.shape[0], numbers.shape[1], how, draw), out)
    if (out == UNLABELLED).all():
        out[...] = 0
        return False
    return True


def require_size(shape: tuple[int, ...], spec: LabelField) -> None:
    """Checks the size of a map, as far as it is known.

    Raises:
        DecodeError: it is another one.
    """
    for found, wanted, what in zip(shape, (spec.height, spec.width), ("rows", "columns"), strict=True):
        if wanted is not None and found != wanted:
            raise DecodeError(
                f"a map of {shape[0]}×{shape[1]} cells, expected {wanted} {what}: it is not like a picture, so it is not scaled"
            )


def encode_mask(numbers: Mask) -> bytes:
    """A map uint8 [H, W] as a grey PNG, as ``read_mask`` reads it."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(numbers)).save(stream, "PNG")
    return stream.getvalue()


def occurring(numbers: Mask, spec: LabelField) -> tuple[str, ...]:
    """The classes that occur in a mask, in their order."""
    there = np.bincount(numbers.ravel(), minlength=UNLABELLED + 1)
    return tuple(name for name, count in zip(spec.classes or (), there.tolist(), strict=False) if count)


def mask_numbers(payloads: Sequence[bytes]) -> int | None:
    """The largest class number of PNGs that look like masks: grey or with a palette, and with few numbers, small ones. None: they
    don't. A grey photograph has many; a drawing in black and white has 0 and 255, and so no two classes."""
    seen: set[int] = set()
    for payload in payloads:
        try:
            seen.update(np.unique(_png(payload)).tolist())
        except DecodeError:
            return None
    largest = max(seen - {UNLABELLED}, default=0)
    return largest if 0 < largest < _FEW_CLASSES else None


_FEW_CLASSES = 64


def _png(payload: bytes | memoryview) -> npt.NDArray[np.integer]:
    check_png(payload)
    depth, colour = bytes(payload[24:26]).ljust(2, b"\0")
    if colour not in (_GREY, _PALETTE) or (colour == _GREY and depth not in (8, 16)):
        kind = {_GREY: "grey", 2: "RGB", 4: "grey with transparency", 6: "RGBA"}.get(colour, "of an unknown kind")
        raise DecodeError(
            f"a PNG of {depth} bits, {kind}; a mask is grey with 8 or 16 bits, or has a palette whose indices are the classes"
        )
    try:
        with Image.open(io.BytesIO(payload), formats=("PNG",)) as picture:
            check_pixels(picture.height, picture.width)
            return np.asarray(picture)
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plugins raise what they like on damaged files
        raise DecodeError(f"not a readable picture ({error or type(error).__name__})") from None


def _fit(numbers: Mask, view: View, out: Mask) -> None:
    """Writes the part of a mask that is seen, each cell the number nearest to its middle."""
    part = cut(numbers, view.box)
    rows, columns = (
        ((np.arange(wanted) + 0.5) * (there / wanted)).astype(np.int64)
        for wanted, there in zip(out.shape, part.shape, strict=True)
    )
    if view.mirrored:
        columns = columns[::-1]
    out[...] = part[rows[:, None], columns]
