"""Masks: what is read, what is refused, and that one is seen exactly as its picture is."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ray_mm.config.fields import ImageField, LabelField, RandomCrop
from ray_mm.data.decode.crop import view_of
from ray_mm.data.decode.draw import Draw
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.image import decode_image
from ray_mm.data.decode.mask import decode_mask, mask_numbers, occurring, read_mask
from tests.factories import image_bytes, mask_bytes, npy_bytes

CLASSES = ("road", "car", "person")
GRID = LabelField(target="mask", classes=CLASSES, height=4, width=6)
NUMBERS = np.array([[0, 1, 2, 2, 0, 255]] * 4, np.uint8)


def _palette(numbers: npt.NDArray[np.uint8], colours: int) -> bytes:
    picture = Image.fromarray(numbers, "P")
    picture.putpalette([part for number in range(colours) for part in (number * 50 % 256, 255 - number, 7)])
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _picture(numbers: npt.NDArray[np.uint8]) -> bytes:
    """A picture that shows what its mask says: of each class another grey."""
    stream = io.BytesIO()
    Image.fromarray(np.repeat((numbers * 100)[..., None], 3, axis=2)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "payload",
    [
        mask_bytes(NUMBERS),
        mask_bytes(NUMBERS.astype(np.uint16)),
        _palette(NUMBERS, 256),
        npy_bytes(NUMBERS),
        npy_bytes(NUMBERS.astype(np.int64)),
        npy_bytes(np.asfortranarray(NUMBERS)),
    ],
)
def test_a_png_and_an_array_say_the_same(payload: bytes) -> None:
    found = read_mask(memoryview(payload), GRID)
    assert found.dtype == np.uint8 and found.flags.c_contiguous and (found == NUMBERS).all()
    out = np.full((4, 6), 9, np.uint8)
    assert decode_mask(payload, GRID, None, out) and (out == NUMBERS).all()
    assert occurring(found, GRID) == CLASSES


def test_the_indices_of_a_small_palette_are_the_numbers() -> None:
    numbers = np.tile(np.array([0, 1, 2], np.uint8), (4, 2))
    payload = _palette(numbers, 3)
    assert payload[24] < 8, "Pillow packs few colours"
    assert (read_mask(payload, GRID) == numbers).all()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (image_bytes(0), "is jpg; a mask is a PNG or an NPY"),
        (b"0 1 2", "of no known format"),
        (image_bytes(1), "a PNG of 8 bits, RGB; a mask is grey"),
        (mask_bytes(np.zeros((4, 6), np.bool_)), "a PNG of 1 bits, grey"),
        (mask_bytes(NUMBERS + 1), r"has 3 at row 0, column 2; the 3 classes are 0 … 2, and 255"),
        (npy_bytes(np.full((4, 6), -1)), r"has -1 at row 0, column 0"),
        (npy_bytes(np.full((4, 6), 256)), r"has 256"),
        (npy_bytes(NUMBERS.astype(np.float32)), "not an array of integers .*float32"),
        (npy_bytes(NUMBERS[None]), r"a mask of shape \[1, 4, 6\]"),
        (npy_bytes(NUMBERS[:0]), r"a mask of shape \[0, 6\]"),
        (mask_bytes(NUMBERS[:3]), "a map of 3×6 cells, expected 4 rows"),
        (npy_bytes(NUMBERS[:, :5]), "a map of 4×5 cells, expected 6 columns"),
        (mask_bytes(NUMBERS)[:50], "damaged PNG"),
        (npy_bytes(NUMBERS)[:-3], "cut short"),
    ],
)
def test_what_is_no_mask_is_refused(payload: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode_mask(payload, GRID, None, np.zeros((4, 6), np.uint8))


def test_a_mask_without_a_label_is_absent() -> None:
    out = np.zeros((4, 6), np.uint8)
    assert not decode_mask(npy_bytes(np.full((4, 6), 255)), GRID, None, out)
    assert not out.any()


@pytest.mark.parametrize(
    "view",
    [
        {},
        {"fit": "stretch"},
        {"random_crop": RandomCrop(scale=(0.2, 0.6))},
        {"random_crop": RandomCrop(scale=(0.2, 0.6), whole_side=64), "fit": "stretch"},
        {"random_flip": 0.5},
        {"random_crop": RandomCrop(), "random_flip": 0.5},
    ],
)
@pytest.mark.parametrize("scale", [1, 2])
def test_a_mask_is_seen_as_its_picture_is(view: dict[str, Any], scale: int) -> None:
    numbers = np.kron(np.random.default_rng(0).integers(0, 3, (6, 8)), np.ones((16, 16))).astype(np.uint8)
    image = ImageField(height=48, width=40, **view)
    spec = LabelField(target="mask", classes=CLASSES, height=48 // scale, width=40 // scale, like="camera")
    seen = set()
    for position in range(12):
        draw = Draw(3, 1, position)
        picture = np.zeros((48, 40, 3), np.uint8)
        decode_image(_picture(numbers), image, picture, "camera", draw)
        mask = np.zeros((48 // scale, 40 // scale), np.uint8)
        assert decode_mask(mask_bytes(numbers), spec, image, mask, draw)
        assert set(np.unique(mask)) <= {0, 1, 2}
        shown = (picture[..., 0].astype(int) / 100).round()
        # Where colours meet, the picture has mixtures, and the mask must not.
        assert (shown[scale // 2 :: scale, scale // 2 :: scale] == mask).mean() > 0.82, position
        seen.add(mask.tobytes())
    assert (len(seen) > 1) == bool(view.keys() & {"random_crop", "random_flip"})


def test_a_mirrored_mask_is_the_mirror_of_it_to_the_cell() -> None:
    numbers = np.random.default_rng(0).integers(0, 3, (9, 7)).astype(np.uint8)
    image = ImageField(height=9, width=7, random_flip=0.5)
    spec = LabelField(target="mask", classes=CLASSES, height=9, width=7, like="camera")
    both = set()
    for position in range(8):
        draw, mask = Draw(0, 0, position), np.zeros((9, 7), np.uint8)
        decode_mask(mask_bytes(numbers), spec, image, mask, draw)
        mirrored = view_of("camera", 9, 7, image, draw).mirrored
        assert (mask == (numbers[:, ::-1] if mirrored else numbers)).all()
        both.add(mirrored)
    assert len(both) == 2


def test_what_looks_like_a_mask_is_taken_for_one() -> None:
    assert mask_numbers([mask_bytes(NUMBERS), _palette(NUMBERS, 256)]) == 2
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    assert mask_numbers([mask_bytes(grey)]) is None
    assert mask_numbers([mask_bytes(np.where(NUMBERS > 1, 255, 0).astype(np.uint8))]) is None
    assert mask_numbers([image_bytes(1)]) is None
