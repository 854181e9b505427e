"""One function per field that fills a row of a batch from a member's bytes."""

from __future__ import annotations

from typing import Protocol

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
from ray_mm.data.decode.draw import Draw
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.image import decode_image
from ray_mm.data.decode.numeric import decode_label, fill_points, fill_series, fill_vector, read_npy
from ray_mm.data.decode.text import decode_text, load_tokenizer
from ray_mm.data.fields import length_name
from ray_mm.data.preprocessor import Preprocessor

Arrays = dict[str, npt.NDArray[np.generic]]
Payload = bytes | memoryview

__all__ = ["Arrays", "DecodeError", "Decoder", "Draw", "decoder_for"]


class Decoder(Protocol):
    """Fills one field's row of a batch, presence excluded."""

    def __call__(self, payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> None:
        """Decodes a member's bytes.

        Args:
            payload: the member.
            arrays: of a batch, see ``data.fields``; the row holds zeros.
            row: which one is filled.
            draw: makes the random choices; None: nothing is left to chance.

        Raises:
            DecodeError: it can't be decoded; a part of the row may have been written, and the caller clears it.
        """


def decoder_for(name: str, preprocessor: Preprocessor) -> Decoder:
    """The decoder of one field. Array names and shapes are those of ``data.fields``."""
    spec = preprocessor.fields[name]
    match spec:
        case ImageField():
            return _image(name, spec)
        case TextField():
            return _text(name, preprocessor.tokenizers[name])
        case AudioField():
            return _audio(name, spec)
        case SeriesField() | PointsField():
            return _rows(name, spec)
        case VectorField():
            return _vector(name)
        case LabelField():
            return _label(name, spec)
        case _:
            assert_never(spec)


def _image(name: str, spec: ImageField) -> Decoder:
    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> None:
        decode_image(payload, spec, arrays[name][row], name, draw)

    return decode


def _text(name: str, tokenizer_json: str) -> Decoder:
    tokenizer = load_tokenizer(tokenizer_json)

    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> None:
        decode_text(payload, tokenizer, arrays[name][row])

    return decode


def _audio(name: str, spec: AudioField) -> Decoder:
    length = length_name(name)

    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> None:
        arrays[length][row] = decode_audio(payload, spec, arrays[name][row])

    return decode


def _rows(name: str, spec: SeriesField | PointsField) -> Decoder:
    length = length_name(name)
    fill = fill_series if spec.type == "series" else fill_points

    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> None:
        arrays[length][row] = fill(read_npy(payload), arrays[name][row])

    return decode


def _vector(name: str) -> Decoder:
    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> None:
        fill_vector(read_npy(payload), arrays[name][row])

    return decode


def _label(name: str, spec: LabelField) -> Decoder:
    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> None:
        arrays[name][row] = decode_label(payload, spec)

    return decode
