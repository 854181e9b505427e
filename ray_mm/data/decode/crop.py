"""Which part of a picture is taken, and how it gets into its row of a batch."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from ray_mm.config.fields import ImageField, RandomCrop, VideoField
from ray_mm.data.decode.draw import Draw

_LINEAR_UP_TO = 1.2
"""Times that a picture is shrunk by interpolation, which is as near to Lanczos there as averaging is, in a fifth of the time
(``benchmarks/resize.py``); further down it aliases."""

_NUMBERS = 5
"""That a sample draws for a picture: area, ratio and place of a crop, and the side."""

# OpenCV's own threads would compete with the read tasks for the same cores.
cv2.setNumThreads(1)


class Box(NamedTuple):
    """A part of a picture, as shares of its height and width, so that it holds at every scale."""

    top: float
    left: float
    height: float
    width: float

    def pixels(self, height: int, width: int) -> tuple[int, int]:
        """Its rows and columns in a picture of this height and width."""
        return max(1, round(self.height * height)), max(1, round(self.width * width))


class View(NamedTuple):
    """What of a picture is seen: a part of it, mirrored or not."""

    box: Box
    mirrored: bool


def view_of(name: str, height: int, width: int, spec: ImageField | VideoField, draw: Draw | None) -> View:
    """What a sample shows of a picture.

    Args:
        name: of the field; it keeps the choices of two fields apart.
        height: of the picture in pixels, upright.
        width: of the picture in pixels, upright.
        spec: fit, random crop and random flip.
        draw: of the sample; None: nothing is left to chance.
    """
    assert spec.height is not None and spec.width is not None
    aspect = spec.width / spec.height if spec.fit == "crop" else width / height
    if draw is None or (spec.random_crop is None and spec.random_flip == 0):
        return View(_box(height, width, aspect, math.inf, 0.5, 0.5), False)
    area, ratio, down, right, side = draw.uniform(name, _NUMBERS)
    mirrored = side < spec.random_flip
    if spec.random_crop is None:
        return View(_box(height, width, aspect, math.inf, 0.5, 0.5), mirrored)
    return View(_random_box(height, width, aspect, spec.random_crop, (area, ratio, down, right)), mirrored)


def is_mirrored(name: str, spec: ImageField | VideoField, draw: Draw) -> bool:
    """Whether a sample shows a picture mirrored; arguments as of ``view_of``."""
    return draw.uniform(name, _NUMBERS)[-1] < spec.random_flip


def mirror(pictures: npt.NDArray[np.uint8]) -> None:
    """Mirrors pictures left to right where they are: what ``fit_into`` would have written of a mirrored view.

    Args:
        pictures: uint8 [..., height, width, channels], in C order.
    """
    for picture in pictures.reshape(-1, *pictures.shape[-3:]):
        picture[...] = cv2.flip(picture, 1).reshape(picture.shape)


def _random_box(
    height: int, width: int, aspect: float, crop: RandomCrop, draws: tuple[float, float, float, float]
) -> Box:
    """A random-resized crop (Szegedy et al., arXiv 1409.4842): area uniform, ratio uniform in its logarithm."""
    area, ratio, down, right = draws
    low, high = crop.scale
    share = low + (high - low) * area
    narrow, wide = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    return _box(height, width, aspect * math.exp(narrow + (wide - narrow) * ratio), share * height * width, down, right)


def _box(height: int, width: int, aspect: float, area: float, down: float, right: float) -> Box:
    """The box of an aspect ratio (width / height) with an area in pixels, or the largest that fits if that is too much."""
    rows = min(float(height), width / aspect, math.sqrt(area / aspect))
    columns = min(float(width), rows * aspect)
    return Box((1 - rows / height) * down, (1 - columns / width) * right, rows / height, columns / width)


def fit_into(pixels: npt.NDArray[np.uint8], view: View, out: npt.NDArray[np.uint8]) -> None:
    """Writes the part of a picture that is seen into its row.

    Args:
        pixels: uint8 [height, width] or [height, width, channels], at any scale, upright.
        view: which part.
        out: uint8 [height, width, channels] of the row, in C order; filled.
    """
    height, width, channels = out.shape
    part = cut(pixels, view.box)
    target = out[..., 0] if channels == 1 else out
    part = part[..., 0] if part.ndim == 3 and channels == 1 else part
    if part.shape[:2] != (height, width):
        shrink = max(part.shape[0] / height, part.shape[1] / width)
        method = cv2.INTER_AREA if shrink > _LINEAR_UP_TO else cv2.INTER_LINEAR
        # OpenCV wants whole pixels side by side, which a view of a turned picture does not have.
        regular = part.strides[0] > 0 and part.strides[1] == (1 if part.ndim == 2 else part.shape[2])
        source = part if regular else np.ascontiguousarray(part)
        if not view.mirrored:
            cv2.resize(source, (width, height), dst=target, interpolation=method)
            return
        part = cv2.resize(source, (width, height), interpolation=method)
    target[...] = part[:, ::-1] if view.mirrored else part


def cut_from_whole(
    whole: npt.NDArray[np.uint8],
    size: tuple[int, int],
    spec: ImageField | VideoField,
    out: npt.NDArray[np.uint8],
    name: str,
    draw: Draw | None,
) -> None:
    """What a sample shows of a picture or of the frames of a clip, from all of it.

    Args:
        whole: uint8 [..., whole_side, whole_side, channels].
        size: height and width that the picture had in pixels, upright.
        spec: as of ``view_of``, with a ``whole_side``.
        out: uint8 [..., height, width, channels] of the row, in C order; filled.
        name: as of ``view_of``.
        draw: as of ``view_of``.
    """
    view = view_of(name, *size, spec, draw)
    for picture, part in zip(whole.reshape(-1, *whole.shape[-3:]), out.reshape(-1, *out.shape[-3:]), strict=True):
        fit_into(picture, view, part)


def cut(pixels: npt.NDArray[np.uint8], box: Box) -> npt.NDArray[np.uint8]:
    """A part of a picture [height, width, ...]: a view of it."""
    height, width = pixels.shape[:2]
    rows, columns = box.pixels(height, width)
    top = min(int(box.top * height), height - rows)
    left = min(int(box.left * width), width - columns)
    return pixels[top : top + rows, left : left + columns]
