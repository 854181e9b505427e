"""Maps of classes as pictures: a colour per class, the same in every picture of a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from ray_mm.config.fields import UNLABELLED

# Those of Okabe and Ito (2008), which the colour-blind can tell apart, then paler and darker ones; further classes repeat them.
_COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (148, 103, 66), (166, 206, 140), (106, 61, 154), (251, 180, 174), (44, 62, 80), (128, 205, 193), (179, 88, 6),
    (190, 174, 212), (102, 102, 0), (153, 0, 61), (191, 239, 255), (255, 233, 178), (0, 77, 64),
)  # fmt: skip
_NO_LABEL = (128, 128, 128)


def colour(number: int) -> tuple[int, int, int]:
    """Red, green and blue of a class, or of a cell without a label."""
    return _NO_LABEL if number == UNLABELLED else _COLOURS[number % len(_COLOURS)]


def mask_picture(numbers: npt.NDArray[np.uint8], text: str) -> Markup:
    """A map as an ``img``.

    Args:
        numbers: uint8 [H, W], 255 where a cell has no label.
        text: what is said of it where it can't be seen.
    """
    height, width = numbers.shape
    picture = Image.fromarray(np.ascontiguousarray(numbers), "P")
    picture.putpalette([part for number in range(UNLABELLED + 1) for part in colour(number)])
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    tag = Markup('<img class="{}" src="{}" width="{}" height="{}" alt="{}" decoding="async">')
    return tag.format("pixels" if max(width, height) <= 48 else "photo", uri, width, height, text)


def legend(classes: Sequence[str], numbers: Iterable[int]) -> Markup:
    """The colours of some classes, in the order of their numbers, and of cells without a label if 255 is among them."""
    entry = Markup('<span class="class"><i style="background:#{:02x}{:02x}{:02x}"></i>{}</span> ')
    chosen = sorted(set(numbers))
    named = ((number, "not labelled" if number == UNLABELLED else classes[number]) for number in chosen)
    return Markup("").join(entry.format(*colour(number), name) for number, name in named)
