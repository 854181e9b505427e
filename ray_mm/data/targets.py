"""What an autoencoder says again of each field: some numbers of a fixed shape per sample. Shapes and units; no torch.

    image    [rows, columns, channels]           the picture, averaged to 32 rows or columns at the most
    video    [frames, rows, columns, channels]   4 of its frames, spread evenly, to 16 at the most
    audio    [32, 16]                            the log-mel spectrogram: pieces of the recording × bands, mean of all channels
    series   [steps, channels]                   64 steps at the most, each the mean of some
    points   [16, 16, channels − 1]              seen from above, along x, then along y: log(1 + points) of each square, then the
                                                 mean of each channel behind x and y
    vector   [size]                              itself
    text     [words]                             which of the vocabulary occur, at most 1,024 numbers; words share them if there
                                                 are more

They are standardised, so that the squared errors of different fields can be added: pictures as their encoders see them,
spectrograms within each recording, all else by the statistics of the training data; the words so that a full text of different
ones has mean square 1. Those of all fields stand side by side in one array, fields sorted, NaN where nothing is known: an absent
field, what lies behind a sample's length, a square without points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_never

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
from ray_mm.data.manifest import Statistics

TARGET = "reconstruct.target"
"""Name of the array of a batch with the targets, float32 [B, N]. No array of a field is called so."""

GREY, GREY_STD = 128.0, 64.0
"""What is 0 in pictures that are standardised, and what is 1 above it."""

AUDIO_SHAPE = (32, 16)
CELLS = 16
MAX_STEPS = 64
_MAX_SIDE, _VIDEO_SIDE = 32, 16
_MAX_FRAMES = 4
_MAX_WORDS = 1024

Floats = npt.NDArray[np.float32]


def target_shape(spec: FieldSpec) -> tuple[int, ...]:
    """The shape of a field's target. The spec is complete."""
    match spec:
        case ImageField():
            return (*_small(spec, _MAX_SIDE), spec.channels)
        case VideoField():
            return (min(spec.num_frames, _MAX_FRAMES), *_small(spec, _VIDEO_SIDE), spec.channels)
        case AudioField():
            return AUDIO_SHAPE
        case SeriesField():
            assert spec.max_length is not None and spec.channels is not None
            return (-(-spec.max_length // steps_joined(spec)), spec.channels)
        case PointsField():
            assert spec.channels is not None
            return (CELLS, CELLS, spec.channels - 1)
        case VectorField():
            assert spec.size is not None
            return (spec.size,)
        case TextField():
            assert spec.vocabulary_size is not None
            return (min(spec.vocabulary_size, _MAX_WORDS),)
        case LabelField():
            raise AssertionError("a label is no input")
        case _:
            assert_never(spec)


def target_sizes(names: Iterable[str], fields: Mapping[str, FieldSpec]) -> list[int]:
    """How many numbers the target of each of some fields has."""
    return [math.prod(target_shape(fields[name])) for name in names]


def steps_joined(spec: SeriesField) -> int:
    """Steps of a series whose mean is one of its target."""
    assert spec.max_length is not None
    return -(-spec.max_length // MAX_STEPS)


def word_scale(spec: TextField) -> float:
    """What stands in the target of a text for a word that occurs."""
    assert spec.max_tokens is not None
    return math.sqrt(target_shape(spec)[0] / spec.max_tokens)


def in_own_unit(values: Floats, spec: FieldSpec, statistics: Statistics | None) -> Floats:
    """A target, or its reconstruction, in the unit of the field: pixels from 0 to 255, the values of series and vectors, about 1
    for a word that occurs; spectrograms and points stay as they are.

    Args:
        values: any leading shape, then ``target_shape``.
        spec: of the field.
        statistics: of it, if there are any.
    """
    match spec:
        case ImageField() | VideoField():
            return values * np.float32(GREY_STD) + np.float32(GREY)
        case SeriesField() | VectorField() if statistics is not None:
            return values * np.array(statistics.std, np.float32) + np.array(statistics.mean, np.float32)
        case TextField():
            return values / np.float32(word_scale(spec))
        case _:
            return values


def _small(spec: ImageField | VideoField, side: int) -> tuple[int, int]:
    assert spec.height is not None and spec.width is not None
    factor = max(1.0, max(spec.height, spec.width) / side)
    return max(1, round(spec.height / factor)), max(1, round(spec.width / factor))
