"""Numbers: NPY members → series, points and vectors; a label's text → a class or a number.

Arrays with Python objects inside are refused: reading them would run pickle.
"""

from __future__ import annotations

import io
import math
import tokenize

import numpy as np
import numpy.typing as npt

from ray_mm.config.fields import LabelField
from ray_mm.data.decode.error import DecodeError


def read_npy(payload: bytes | memoryview) -> npt.NDArray[np.float32]:
    """A NPY member as float32, any shape.

    Raises:
        DecodeError: not NPY, not of numbers, cut short, or with values that are not finite.
    """
    stream = io.BytesIO(payload)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = _HEADERS.get(version)
        if read_header is None:
            raise DecodeError(f"NPY version {'.'.join(map(str, version))} is not supported")
        shape, fortran_order, dtype = read_header(stream)
    except _NOT_NPY as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise DecodeError(f"not a readable NPY array ({reason[:120]})") from None
    if dtype.kind not in "biuf":
        raise DecodeError(f"not an array of numbers (its type is {dtype})")
    # The header's claim is checked before memory is taken for it.
    start, size = stream.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or start + size > len(payload):
        raise DecodeError(
            f"cut short: shape {list(shape)} of {dtype} needs {size} bytes, {len(payload) - start} are there"
        )
    array = np.frombuffer(payload, dtype, math.prod(shape), start)
    return as_finite(array.reshape(shape, order="F" if fortran_order else "C"))


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# The header is a Python literal: a damaged one can make its parser fail in any of these ways.
_NOT_NPY = (ValueError, EOFError, OSError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError)


def as_finite(array: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Values as float32, in C order.

    Raises:
        DecodeError: not numbers, or not all finite as float32.
    """
    try:
        found = np.asarray(array)
        # An object array is a list with None, or integers too large for NumPy: float() decides.
        if found.dtype.kind not in "biufO":
            raise DecodeError(f"not an array of numbers (its type is {found.dtype})")
        with np.errstate(over="ignore", invalid="ignore"):
            values = found.astype(np.float32, order="C")
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
    if not abs(value) <= _FLOAT32_MAX:
        raise DecodeError(f"{value} is not a finite 32-bit number")
    return value


_FLOAT32_MAX = float(np.finfo(np.float32).max)


def _columns(values: npt.NDArray[np.float32], channels: int, what: str) -> npt.NDArray[np.float32]:
    if values.ndim == 1 and channels == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] != channels:
        raise DecodeError(f"a {what} of shape {list(values.shape)}, expected [any, {channels}]")
    if len(values) == 0:
        raise DecodeError(f"the {what} is empty")
    return values
