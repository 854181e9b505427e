"""Numbers: members → series, points and vectors; a label's text → a class or a number.

What the members may be is in ``arrays.py`` (NPY, NPZ, JSON, CSV) and ``pcd.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ray_mm.config.fields import LabelField, PointsField, SeriesField, SeriesStream, VectorField, names_of
from ray_mm.data.decode.arrays import Parts, as_finite, as_float64, at_path, parse_json, parts_of
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.formats import known_format
from ray_mm.data.decode.pcd import pcd_parts
from ray_mm.data.decode.resample import Stream, align

FloatArray = npt.NDArray[np.float32]
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def read_series(payload: bytes | memoryview, spec: SeriesField, max_steps: int | None = None) -> FloatArray | None:
    """A series as float32 [T, C], at the field's rate where its steps have times.

    Args:
        payload: NPY, NPZ, JSON or CSV.
        spec: where the values and their times lie, and the rates.
        max_steps: what is beyond may be left out.

    Returns:
        The series; None where the member has nothing at ``path``.

    Raises:
        DecodeError: not such a file, of other shapes, or its times make no sense.
    """
    assert spec.streams is None, "streams are read by read_streams"
    parts = parts_of(payload)
    if spec.time_path is not None or spec.source_rate_hz not in (None, spec.rate_hz):
        streams = timed_streams(parts, parts, spec)
        assert spec.rate_hz is not None, "SeriesField asks for it"
        return None if streams is None else as_finite(align(streams, spec.rate_hz, max_steps))
    values = _series_values(parts, names_of(spec.path), ())
    if values is None:
        return None
    if len({len(part) for part in values}) > 1:
        raise DecodeError(f"has parts of {', '.join(str(len(part)) for part in values)} steps and no times")
    return as_finite(np.concatenate(values, axis=1))


def timed_streams(parts: Parts, clock: Parts, where: SeriesField | SeriesStream) -> list[Stream] | None:
    """The values that a series or one of its streams names, each with its times.

    Args:
        parts: of the member with the values.
        clock: of the member with the times; where it is another one and no ``time_path`` is given, it is the times.
        where: they lie; it has a ``source_rate_hz``, or there are times.

    Returns:
        The streams; None where a member has nothing at a path.

    Raises:
        DecodeError: a member has other parts, or other shapes.
    """
    names = names_of(where.time_path)
    values = _series_values(parts, names_of(where.path), names if clock is parts else ())
    if where.source_rate_hz is not None:
        rate_hz = where.source_rate_hz
        return None if values is None else [Stream(np.arange(len(part)) / rate_hz, part) for part in values]
    found = [clock.named(name) for name in names] if names else [clock.rest(())]
    known = [_as_times(array) for array in found if array is not None]
    if values is None or len(known) < len(found):
        return None
    if len(known) not in (1, len(values)):
        raise DecodeError(f"has {len(known)} time_path for {len(values)} path; give one, or one each")
    known = known if len(known) == len(values) else known * len(values)
    return [Stream(times, part) for times, part in zip(known, values, strict=True)]


def read_points(payload: bytes | memoryview, spec: PointsField) -> FloatArray | None:
    """A cloud as float32 [N, C]. Points of a PCD with a value that is not a number are left out: they are no returns.

    Args:
        payload: NPY, NPZ, JSON, CSV or PCD; or bare float32 values.
        spec: where the values lie, and whether they are bare.

    Returns:
        The cloud; None where the member has nothing at ``path``.

    Raises:
        DecodeError: not such a file, or of other shapes.
    """
    if spec.raw_float32 and known_format(payload) != "npy":
        assert spec.channels is not None, "PointsField asks for it"
        if len(payload) % (4 * spec.channels):
            raise DecodeError(f"has {len(payload)} bytes, no whole number of points of {spec.channels} float32 values")
        return as_finite(np.frombuffer(payload, "<f4").reshape(-1, spec.channels))
    is_pcd = known_format(payload) == "pcd"
    parts = pcd_parts(payload) if is_pcd else parts_of(payload)
    values = _joined(parts, names_of(spec.path))
    if values is None:
        return None
    if is_pcd:
        values = values[np.isfinite(values).all(axis=1)]
    return as_finite(values)


def read_vector(payload: bytes | memoryview, spec: VectorField) -> FloatArray | None:
    """A vector as float32 [size], from an array of any shape.

    Args:
        payload: NPY, NPZ, JSON or CSV.
        spec: where the values lie.

    Returns:
        The values; None where the member has nothing at ``path``.

    Raises:
        DecodeError: not such a file.
    """
    parts = parts_of(payload)
    names = names_of(spec.path)
    found = [parts.named(name) for name in names] if names else [parts.rest(())]
    flat = [as_finite(array).reshape(-1) for array in found if array is not None]
    return np.concatenate(flat) if len(flat) == len(found) else None


def fill_series(values: FloatArray, out: FloatArray) -> int:
    """Writes a series [T, C] (or [T] for one channel) into ``out`` [max_length, C]; returns the steps written."""
    values = _columns(values, out.shape[1], "series")
    if len(values) == 0:
        raise DecodeError("the series is empty")
    length = min(len(values), len(out))
    out[:length] = values[:length]
    return length


def fill_points(values: FloatArray, out: FloatArray) -> int:
    """Writes a cloud [N, C] into ``out`` [max_points, C], thinned evenly if it is larger; returns the points written."""
    values = _columns(values, out.shape[1], "point cloud")
    if len(values) > len(out):
        values = values[np.linspace(0, len(values) - 1, len(out)).round().astype(np.int64)]
    out[: len(values)] = values
    return len(values)


def fill_vector(values: FloatArray, out: FloatArray) -> None:
    """Writes a vector of any shape with the right number of values into ``out`` [size]."""
    if values.size != len(out):
        raise DecodeError(f"has {values.size} values, the field has {len(out)}")
    out[...] = values.reshape(-1)


def class_text(value: Any) -> str:
    """The class that a cell or a JSON value names, the same whether it came from CSV, JSON or Parquet."""
    if isinstance(value, bool):
        return "true" if value else "false"
    # pandas writes whole numbers as floats as soon as one cell of the column is empty.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def decode_label(payload: bytes | memoryview, spec: LabelField) -> int | float | None:
    """A class number or a value from its text, or from a JSON file.

    Returns:
        The label; None where the JSON has nothing at ``path``.

    Raises:
        DecodeError: not a number, not finite, or not one of the classes.
    """
    text = bytes(payload).decode("utf-8-sig", "replace").strip()
    if spec.path is not None:
        found = at_path(parse_json(payload), spec.path)
        if found is None:
            return None
        if isinstance(found, (dict, list)):
            raise DecodeError(f"has a {type(found).__name__} at {spec.path!r}, expected one class or number")
        is_name = spec.target == "class" and spec.written_as == "name"
        text = class_text(found).strip() if is_name or not isinstance(found, bool) else str(int(found))
    if spec.written_as == "name":
        return _class_named(text, spec)
    try:
        value = int(text) if spec.target == "class" else float(text)
    except ValueError:
        raise DecodeError(f"{text[:40]!r} is not a number") from None
    if spec.target == "class" and not 0 <= value < len(spec.classes or ()):
        raise DecodeError(f"class {value} is not in 0 … {len(spec.classes or ()) - 1}")
    if not abs(value) <= _FLOAT32_MAX:
        raise DecodeError(f"{value} is not a finite 32-bit number")
    return value


def decode_classes(payload: bytes | memoryview, spec: LabelField) -> list[int] | None:
    """The numbers of the classes in a JSON list of their numbers or names, each once.

    Returns:
        None where the JSON is null, or has nothing at ``path``: that sample has no label, where one with an empty list has none
        of the classes.

    Raises:
        DecodeError: no such list, or something in it is not one of the classes.
    """
    texts = class_texts(payload, spec)
    if texts is None:
        return None
    if spec.written_as == "name":
        return [_class_named(text, spec) for text in texts]
    count, numbers = len(spec.classes or ()), []
    for text in texts:
        if not text.isdecimal() or int(text) >= count:
            raise DecodeError(f"class {text[:40]!r} is not in 0 … {count - 1}")
        numbers.append(int(text))
    return list(dict.fromkeys(numbers))


def class_texts(payload: bytes | memoryview, spec: LabelField) -> list[str] | None:
    """What stands in the JSON list of a label with any number of classes, as texts, each once; None as in ``decode_classes``."""
    found = parse_json(payload)
    if spec.path is not None:
        found = at_path(found, spec.path)
    return None if found is None else listed_classes(found)


def listed_classes(found: Any) -> list[str]:
    """The classes that a list names, each once.

    Raises:
        DecodeError: it is no list, or something in it can't name a class.
    """
    if not isinstance(found, list):
        raise DecodeError(f"has {str(found)[:40]!r}, expected a list of classes")
    texts = []
    for value in found:
        text = "" if value is None or isinstance(value, (dict, list)) else class_text(value).strip()
        if not text or len(text) > _LONGEST_CLASS:
            raise DecodeError(f"has {str(value)[:40]!r} in its list, which can't name a class")
        texts.append(text)
    return list(dict.fromkeys(texts))


_LONGEST_CLASS = 200


def _class_named(text: str, spec: LabelField) -> int:
    assert spec.classes is not None, "require_complete comes first"
    try:
        return spec.classes.index(text)
    except ValueError:
        raise DecodeError(f"{text[:40]!r} is none of the {len(spec.classes)} classes") from None


def _joined(parts: Parts, names: tuple[str, ...]) -> npt.NDArray[np.float64] | None:
    found = [parts.named(name) for name in names] if names else [parts.rest(())]
    columns = [_as_columns(array, "point cloud", named=bool(names)) for array in found if array is not None]
    if len(columns) < len(found):
        return None
    if len({len(column) for column in columns}) > 1:
        raise DecodeError(f"has parts of {', '.join(str(len(column)) for column in columns)} points")
    return np.concatenate(columns, axis=1)


def _series_values(
    parts: Parts, names: tuple[str, ...], without: tuple[str, ...]
) -> list[npt.NDArray[np.float64]] | None:
    """The parts of these names, or all but some as one; [T, C] each. None where one is not there."""
    found = [parts.named(name) for name in names] if names else [parts.rest(without)]
    values = [_as_columns(array, "series") for array in found if array is not None]
    return values if len(values) == len(found) else None


def _as_times(array: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """[T] or [T, 1], such as a CSV of one column, → [T]."""
    times = as_float64(array)
    return times[:, 0] if times.ndim == 2 and times.shape[1] == 1 else times


def _as_columns(array: npt.ArrayLike, what: str, named: bool = True) -> npt.NDArray[np.float64]:
    """[T] or [T, C] → [T, C]; not checked for values that are not finite."""
    values = as_float64(array)
    if values.size == 0:
        return np.zeros((0, 0))
    if values.ndim == 1 and (named or what == "series"):
        values = values[:, None]
    if values.ndim != 2:
        raise DecodeError(f"a {what} of shape {list(values.shape)}, expected [any, channels]")
    return values


def _columns(values: FloatArray, channels: int, what: str) -> FloatArray:
    if values.ndim == 1 and channels == 1:
        values = values[:, None]
    if values.ndim != 2 or (values.shape[1] != channels and values.size):
        raise DecodeError(f"a {what} of shape {list(values.shape)}, expected [any, {channels}]")
    return values if values.size else values.reshape(0, channels)
