"""A member of a tar that somebody else wrote → what the summary of the data needs to know of it. The bytes stay as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
from ray_mm.data.decode.arrays import at_path, parse_json
from ray_mm.data.decode.audio import recording_length
from ray_mm.data.decode.error import DecodeError, SilentError, StreamError
from ray_mm.data.decode.image import image_size
from ray_mm.data.decode.numeric import class_text, decode_label, read_points, read_series, read_vector
from ray_mm.data.decode.streams import Payloads, read_streams
from ray_mm.data.decode.text import read_text
from ray_mm.data.decode.video import video_shape
from ray_mm.preprocessing.members import Member, mask_member


def raw_member(payload: memoryview, spec: FieldSpec, suffix: str) -> tuple[Member, Any] | None:
    """Looks at a member.

    Args:
        payload: its bytes.
        spec: the field; of a label a number or a mask.
        suffix: of the member.

    Returns:
        The member, without its bytes, and its value if it is a text or a number; None where the member has nothing of the
        field.

    Raises:
        DecodeError: it is not what the field says.
    """
    match spec:
        case ImageField():
            return Member(suffix, b"", image_size(payload)), None
        case AudioField():
            try:
                frames, rate_hz = recording_length(payload)
            except SilentError:
                return None
            return Member(suffix, b"", (rate_hz,), frames / rate_hz), None
        case VideoField():
            height, width, seconds = video_shape(payload)
            return Member(suffix, b"", (height, width), seconds), None
        case TextField():
            text = read_text(payload, spec)
            return None if text is None else (Member(suffix, b""), text[0])
        case SeriesField():
            return _array(read_series(payload, spec), suffix, spec.channels)
        case PointsField():
            return _array(read_points(payload, spec), suffix, spec.channels)
        case VectorField():
            values = read_vector(payload, spec)
            return _array(None if values is None else values.reshape(1, -1), suffix, spec.size)
        case LabelField() if spec.target == "mask":
            mask = mask_member(payload, spec, suffix)
            return None if mask is None else (replace(mask, payload=b""), None)
        case LabelField():
            assert spec.target == "number", "classes are read by raw_label and class_texts"
            value = decode_label(payload, spec)
            return None if value is None else (Member(suffix, b"", values=np.array([[value]], np.float32)), value)
        case _:
            assert_never(spec)


def raw_streams(payloads: Payloads, spec: SeriesField) -> tuple[Member, Any] | None:
    """Looks at the members of a series of several streams; returns as ``raw_member``.

    Raises:
        StreamError: with the members that are at fault.
    """
    first = spec.members[0]
    try:
        return _array(read_streams(payloads, spec), first, spec.channels)
    except StreamError:
        raise
    except DecodeError as error:
        raise StreamError(spec.members, str(error)) from None


def raw_label(payload: memoryview, spec: LabelField) -> str | None:
    """The class that a member names, or its number, as a text; None where there is nothing at the field's path.

    Raises:
        DecodeError: it is no single value.
    """
    if spec.path is None:
        text = bytes(payload).decode("utf-8-sig", "replace").strip()
        if not text or "\n" in text or len(text) > _LONGEST_CLASS:
            raise DecodeError(f"{text[:40]!r} is not the name or the number of a class")
        return text
    found = at_path(parse_json(payload), spec.path)
    if isinstance(found, (dict, list)):
        raise DecodeError(f"has a {type(found).__name__} at {spec.path!r}, expected one class")
    return None if found is None else class_text(found).strip()


_LONGEST_CLASS = 200


def _array(values: npt.NDArray[np.float32] | None, suffix: str, channels: int | None) -> tuple[Member, None] | None:
    if values is None or values.size == 0:
        return None
    if channels is not None and values.shape[1] != channels:
        raise DecodeError(f"has shape {list(values.shape)}, expected [any, {channels}]")
    return Member(suffix, b"", (values.shape[1],), float(len(values)), values), None
