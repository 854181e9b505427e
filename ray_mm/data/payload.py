"""A plain value → the bytes of a member, so that what a program holds takes the way that training data took."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from ray_mm.config.fields import AudioField, FieldSpec, ImageField, SeriesField, TextField
from ray_mm.data.decode import DecodeError
from ray_mm.data.decode.arrays import as_finite, as_float64
from ray_mm.data.decode.error import StreamError


def member_bytes(spec: FieldSpec, value: Any) -> bytes | memoryview:
    """A value as the bytes of a member, so that it takes the way that training data took.

    Raises:
        DecodeError: it is nothing that the field can hold.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, str) and isinstance(spec, TextField):
        return value.encode() if spec.path is None else json.dumps(_nested(spec.path, value)).encode()
    if isinstance(value, (str, Path)):
        try:
            return Path(value).read_bytes()
        except OSError as error:
            raise DecodeError(f"{value}: {error.strerror}") from None
    if spec.type == "text":
        raise DecodeError(f"a text must be a str, found {type(value).__name__}")
    return _encode(spec, value)


def stream_bytes(spec: SeriesField, value: Any) -> dict[str, bytes | memoryview]:
    """The value of a series of several streams as the bytes of its members.

    Args:
        spec: of the field.
        value: member, as the streams name it → its value: bytes, a path or an array.

    Raises:
        DecodeError: it is nothing that the field can hold.
    """
    if not isinstance(value, Mapping) or not value.keys() <= set(spec.members):
        found = f"the keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise DecodeError(
            f"expected a mapping from its members {', '.join(spec.members)} to their values, found {found}"
        )
    members: dict[str, bytes | memoryview] = {}
    for member, each in value.items():
        try:
            if isinstance(each, (bytes, bytearray, memoryview, str, Path)):
                members[member] = member_bytes(spec, each)
            elif each is not None:
                sink = io.BytesIO()
                # Times since 1970 have no room in 32 bits.
                np.lib.format.write_array(sink, as_float64(each), allow_pickle=False)
                members[member] = sink.getvalue()
        except DecodeError as error:
            raise StreamError((member,), str(error)) from None
    return members


def _nested(path: str, value: str) -> Any:
    """JSON that has a value at a path."""
    nested: Any = value
    for step in reversed(path.split(".")):
        nested = [None] * int(step) + [nested] if step.isdecimal() else {step: nested}
    return nested


def _encode(spec: FieldSpec, value: Any) -> bytes:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DecodeError(f"not an array ({error})") from None
    if array.size == 0:
        raise DecodeError("an empty array; leave the field out if there is nothing")
    sink = io.BytesIO()
    match spec:
        case ImageField():
            if (
                array.dtype != np.uint8
                or array.ndim not in (2, 3)
                or (array.ndim == 3 and array.shape[2] not in (1, 3, 4))
            ):
                raise DecodeError(
                    f"a picture must be uint8 [height, width, channels], found {array.dtype} {list(array.shape)}"
                )
            pixels = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
            Image.fromarray(pixels).save(sink, format="PNG", compress_level=0)
        case AudioField():
            if array.ndim not in (1, 2) or (array.dtype != np.int16 and array.dtype.kind != "f"):
                raise DecodeError(
                    f"audio must be int16 or floats, [frames] or [frames, channels], found {array.dtype} {list(array.shape)}"
                )
            assert spec.rate_hz is not None
            wave = array if array.dtype == np.int16 else as_finite(array)
            soundfile.write(sink, wave, spec.rate_hz, format="WAV", subtype="PCM_16")
        case _:
            np.lib.format.write_array(sink, as_finite(array), allow_pickle=False)
    return sink.getvalue()
