"""Which part of a picture is seen: geometry, in training and outside of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.config.fields import ImageField, RandomCrop
from ray_mm.data.decode.crop import fit_into, view_of
from ray_mm.data.decode.draw import Draw

_sides = st.integers(1, 2000)
_DRAWS = [Draw(0, 0, position) for position in range(2000)]


@given(_sides, _sides, _sides, _sides, st.sampled_from(["crop", "stretch"]), st.integers(0, 10**6))
def test_what_is_seen_lies_in_the_picture(
    height: int, width: int, rows: int, columns: int, fit: str, position: int
) -> None:
    spec = ImageField.model_validate({"height": rows, "width": columns, "fit": fit, "random_crop": {}})
    for draw in (None, Draw(0, 0, position)):
        box = view_of("image", height, width, spec, draw).box
        assert box.top >= 0 and box.left >= 0 and box.height > 0 and box.width > 0
        assert box.top + box.height <= 1 + 1e-9 and box.left + box.width <= 1 + 1e-9
        assert all(side >= 1 for side in box.pixels(height, width))


def test_without_a_draw_the_middle_is_seen_and_never_mirrored() -> None:
    spec = ImageField(height=100, width=100, random_crop=RandomCrop(), random_flip=1.0)
    assert view_of("image", 480, 640, spec, None) == ((0.0, 0.125, 1.0, 0.75), False)
    stretched = spec.model_copy(update={"fit": "stretch"})
    assert view_of("image", 480, 640, stretched, None) == ((0.0, 0.0, 1.0, 1.0), False)


def test_a_random_crop_has_the_area_and_the_shape_that_the_job_allows() -> None:
    crop = RandomCrop(scale=(0.1, 0.4), ratio=(0.5, 2.0))
    spec = ImageField(height=64, width=128, random_crop=crop)
    boxes = [view_of("image", 600, 900, spec, draw).box for draw in _DRAWS]
    areas = np.array([box.height * box.width for box in boxes])
    ratios = np.array([box.width * 900 / (box.height * 600) for box in boxes]) / (128 / 64)
    assert areas.min() >= 0.1 - 1e-9 and areas.max() <= 0.4 + 1e-9
    assert areas.max() > 0.38 and areas.min() < 0.12
    assert 0.5 - 1e-9 <= ratios.min() < 0.55 and 1.8 < ratios.max() <= 2.0 + 1e-9
    assert abs(np.log(ratios).mean()) < 0.05
    places = np.array([(box.top / (1 - box.height), box.left / max(1e-9, 1 - box.width)) for box in boxes])
    assert np.abs(places.mean(axis=0) - 0.5).max() < 0.03


def test_a_crop_that_does_not_fit_shrinks_and_keeps_its_shape() -> None:
    spec = ImageField(height=10, width=10, random_crop=RandomCrop(scale=(1, 1), ratio=(1, 1)))
    box = view_of("image", 100, 400, spec, _DRAWS[0]).box
    assert (box.height, box.width) == (1.0, 0.25)


@pytest.mark.parametrize(("chance", "low", "high"), [(0.0, 0, 0), (0.25, 420, 580), (1.0, 2000, 2000)])
def test_pictures_are_mirrored_as_often_as_the_job_says(chance: float, low: int, high: int) -> None:
    spec = ImageField(height=10, width=10, random_flip=chance)
    assert low <= sum(view_of("image", 50, 50, spec, draw).mirrored for draw in _DRAWS) <= high


def test_a_mirrored_picture_is_the_same_picture_mirrored() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for size in ((40, 60), (20, 30)):
        spec = ImageField(height=size[0], width=size[1], random_flip=1.0)
        plain, mirrored = np.zeros((2, *size, 3), np.uint8)
        fit_into(pixels, view_of("image", 40, 60, spec, None), plain)
        fit_into(pixels, view_of("image", 40, 60, spec, _DRAWS[0]), mirrored)
        assert (mirrored == plain[:, ::-1]).all()
