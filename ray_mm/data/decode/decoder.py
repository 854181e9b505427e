"""One function per field that fills a row of a batch from a member's bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_never

from ray_mm.config.fields import (
    AudioField,
    ImageField,
    LabelField,
    PointsField,
    SeriesField,
    TextField,
    VectorField,
)
from ray_mm.data.decode.audio import decode_audio
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.image import decode_image
from ray_mm.data.decode.numeric import decode_label, fill_points, fill_series, fill_vector, read_npy
from ray_mm.data.decode.text import decode_text, load_tokenizer
from ray_mm.data.fields import length_name
from ray_mm.data.preprocessor import Preprocessor

Arrays = dict[str, npt.NDArray[np.generic]]
Decoder = Callable[[bytes | memoryview, Arrays, int], None]
"""(payload, arrays of a batch, row) → fills the row, presence excluded; raises DecodeError, and may then have written
a part of the row: the caller clears it."""

__all__ = ["Arrays", "DecodeError", "Decoder", "decoder_for"]


def decoder_for(name: str, preprocessor: Preprocessor) -> Decoder:
    """The decoder of one field. Array names and shapes are those of ``data.fields``."""
    spec = preprocessor.fields[name]
    length = length_name(name)
    match spec:
        case ImageField():
            return lambda payload, arrays, row: decode_image(payload, spec, arrays[name][row])
        case TextField():
            tokenizer = load_tokenizer(preprocessor.tokenizers[name])
            return lambda payload, arrays, row: decode_text(payload, tokenizer, arrays[name][row])
        case AudioField():

            def audio(payload: bytes | memoryview, arrays: Arrays, row: int) -> None:
                arrays[length][row] = decode_audio(payload, spec, arrays[name][row])

            return audio
        case SeriesField():

            def series(payload: bytes | memoryview, arrays: Arrays, row: int) -> None:
                arrays[length][row] = fill_series(read_npy(payload), arrays[name][row])

            return series
        case PointsField():

            def points(payload: bytes | memoryview, arrays: Arrays, row: int) -> None:
                arrays[length][row] = fill_points(read_npy(payload), arrays[name][row])

            return points
        case VectorField():
            return lambda payload, arrays, row: fill_vector(read_npy(payload), arrays[name][row])
        case LabelField():

            def label(payload: bytes | memoryview, arrays: Arrays, row: int) -> None:
                arrays[name][row] = decode_label(payload, spec)

            return label
        case _:
            assert_never(spec)
