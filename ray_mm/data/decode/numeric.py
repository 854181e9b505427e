"""Numbers: NPY members → series, points and vectors; a label's text → a class or a number.

Arrays with Python objects inside are refused: reading them would run pickle.
"""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt

from ray_mm.config.fields import LabelField
from ray_mm.data.decode.error import DecodeError


def read_npy(payload: bytes | memoryview) -> npt.NDArray[np.float32]:
    """A NPY member as float32, any shape.

    Raises:
        DecodeError: not NPY, of Python objects, or with values that are not finite.
    """
    try:
        array = np.lib.format.read_array(io.BytesIO(payload), allow_pickle=False)
    except (ValueError, EOFError, OSError, TypeError, SyntaxError, MemoryError) as error:
        raise DecodeError(
            f"not a readable NPY array ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from None
    return as_finite(array)


def as_finite(array: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Values as float32.

    Raises:
        DecodeError: not numbers, or not all finite.
    """
    try:
        values = np.asarray(array).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise DecodeError(f"not an array of numbers ({error})") from None
    if not np.isfinite(values).all():
        raise DecodeError("has values that are not finite (NaN or infinity)")
    return values


def fill_series(values: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> int:
    """Writes a series [T, C] (or [T] for one channel) into ``out`` [max_length, C]; returns the steps written."""
    values = _columns(values, out.shape[1], "series")
    length = min(len(values), len(out))
    out[:length] = values[:length]
    return length


def fill_points(values: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> int:
    """Writes a cloud [N, C] into ``out`` [max_points, C], thinned evenly if it is larger; returns the points written."""
    values = _columns(values, out.shape[1], "point cloud")
    if len(values) > len(out):
        values = values[np.linspace(0, len(values) - 1, len(out)).round().astype(np.int64)]
    out[: len(values)] = values
    return len(values)


def fill_vector(values: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
    """Writes a vector of any shape with the right number of values into ``out`` [size]."""
    if values.size != len(out):
        raise DecodeError(f"has {values.size} values, the field has {len(out)}")
    out[...] = values.reshape(-1)


def decode_label(payload: bytes | memoryview, spec: LabelField) -> int | float:
    """A class number or a value from its text.

    Raises:
        DecodeError: not a number, not finite, or not one of the classes.
    """
    text = bytes(payload).decode("utf-8", "replace").strip()
    try:
        value = int(text) if spec.target == "class" else float(text)
    except ValueError:
        raise DecodeError(f"{text[:40]!r} is not a number") from None
    if spec.target == "class" and not 0 <= value < len(spec.classes or ()):
        raise DecodeError(f"class {value} is not in 0 … {len(spec.classes or ()) - 1}")
    if not math.isfinite(value):
        raise DecodeError(f"{value} is not finite")
    return value


def _columns(values: npt.NDArray[np.float32], channels: int, what: str) -> npt.NDArray[np.float32]:
    if values.ndim == 1 and channels == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] != channels:
        raise DecodeError(f"a {what} of shape {list(values.shape)}, expected [any, {channels}]")
    if len(values) == 0:
        raise DecodeError(f"the {what} is empty")
    return values
