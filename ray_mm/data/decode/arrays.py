"""Files of numbers, by their first bytes: NPY, NPZ, JSON, CSV → arrays, whole or by the name of a part.

Arrays with Python objects inside are refused: reading them would run pickle.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.formats import known_format

REPLACEMENT = "\ufffd"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can name one half of a pair of UTF-16, which is no character and which nothing can write."""

MAX_ARRAY_BYTES = 1 << 28
"""A compressed array that would be larger is refused from its header."""


@dataclass(frozen=True)
class Parts:
    """A file of numbers.

    Attributes:
        named: the part of that name: a key of an NPZ, a path in JSON, a column of a CSV. None: JSON has nothing there.
        rest: everything but the parts of these names, as one array.
    """

    named: Callable[[str], npt.ArrayLike | None]
    rest: Callable[[Sequence[str]], npt.ArrayLike]


def parts_of(payload: bytes | memoryview) -> Parts:
    """Opens a file of numbers.

    Raises:
        DecodeError: it is none. Parts raise it as well, when they are asked for.
    """
    found = known_format(payload)
    if found == "npz":
        return _npz(payload)
    if found is None:
        start = bytes(payload[:256]).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if start in (b"[", b"{"):
            return _json(payload)
        if (start and start in b"+-.0123456789\"'") or _is_text(payload):
            return _csv(payload)
    return _npy(payload)


def read_npy(payload: bytes | memoryview) -> npt.NDArray[np.float32]:
    """A NPY member as float32, any shape.

    Raises:
        DecodeError: not NPY, not of numbers, cut short, or with values that are not finite.
    """
    return as_finite(_npy_array(payload))


def read_integers(payload: bytes | memoryview) -> npt.NDArray[np.integer]:
    """A NPY member of whole numbers as it is, any shape.

    Raises:
        DecodeError: not NPY, cut short, or of another type.
    """
    found = _npy_array(payload)
    if found.dtype.kind not in "biu":
        raise DecodeError(f"not an array of integers (its type is {found.dtype})")
    numbers: npt.NDArray[np.integer] = found.view(np.uint8) if found.dtype.kind == "b" else found  # type: ignore[assignment]
    return numbers


def as_finite(array: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Values as float32, in C order.

    Raises:
        DecodeError: not numbers, or not all finite as float32.
    """
    values: npt.NDArray[np.float32] = _converted(array, np.float32)
    if not np.isfinite(values).all():
        raise DecodeError("has values that are not finite (NaN or infinity)")
    return values


def as_float64(array: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Values as float64, in C order; NaN and infinity are kept.

    Raises:
        DecodeError: not numbers.
    """
    values: npt.NDArray[np.float64] = _converted(array, np.float64)
    return values


def _converted(array: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    try:
        found = np.asarray(array)
        # An object array is a list with None, or integers too large for NumPy: float() decides.
        if found.dtype.kind not in "biufO":
            raise DecodeError(f"not an array of numbers (its type is {found.dtype})")
        with np.errstate(over="ignore", invalid="ignore"):
            return found.astype(dtype, order="C")
    except (TypeError, ValueError, OverflowError) as error:
        raise DecodeError(f"not an array of numbers ({error})") from None


def parse_json(payload: bytes | memoryview) -> Any:
    """The value of a JSON file (RFC 8259), its lone surrogates replaced by U+FFFD.

    Raises:
        DecodeError: it is none.
    """
    value = load_json(payload)
    if not _SURROGATE_ESCAPE.search(payload):
        return value
    try:
        return _without_lone_surrogates(value)
    except RecursionError as error:
        raise DecodeError(f"not readable JSON ({error})") from None


def load_json(payload: bytes | memoryview) -> Any:
    """As ``parse_json``, with lone surrogates as they are.

    Raises:
        DecodeError: it is none.
    """
    try:
        return json.loads(bytes(payload).removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not readable JSON ({str(error).splitlines()[0]})") from None


_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def _without_lone_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return LONE_SURROGATE.sub(REPLACEMENT, value)
    if isinstance(value, list):
        return [_without_lone_surrogates(each) for each in value]
    if isinstance(value, dict):
        return {_without_lone_surrogates(key): _without_lone_surrogates(each) for key, each in value.items()}
    return value


def at_path(value: Any, path: str) -> Any:
    """What lies at a path such as ``caption.en`` or ``boxes.0.label``; None where there is nothing."""
    for step in path.split("."):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and len(step) < 10:
            value = value[int(step)] if int(step) < len(value) else None
        else:
            return None
    return value


def parse_csv(payload: bytes | memoryview) -> tuple[list[str], npt.NDArray[np.float64]]:
    """A CSV of numbers: names of its columns (their numbers from 0 where it has no header), and float64 [rows, columns].

    Raises:
        DecodeError: it is none.
    """
    try:
        lines = bytes(payload).decode("utf-8-sig").splitlines()
        first = [cell.strip().strip('"') for cell in lines[0].split(",")] if lines else []
        header = not any(_is_number(cell) for cell in first)
        lines = lines[header:]
        if not any(lines):
            if len(first) < 2:
                raise DecodeError("is neither numbers nor the names of columns")
            return first, np.zeros((0, len(first)), np.float64)
        values = np.loadtxt(lines, np.float64, delimiter=",", quotechar='"', ndmin=2)
    except ValueError as error:
        raise DecodeError(f"is not a CSV of numbers ({str(error).splitlines()[0]})") from None
    names = first if header else [str(number) for number in range(values.shape[1])]
    if len(names) != values.shape[1]:
        raise DecodeError(f"is not a CSV of numbers ({len(names)} names for {values.shape[1]} columns)")
    return names, values


def column_parts(names: Sequence[str], values: npt.NDArray[np.float64]) -> Parts:
    """The columns of a table of numbers [rows, columns]."""

    def named(name: str) -> npt.ArrayLike:
        places = [place for place, column in enumerate(names) if column == name]
        if not places:
            raise _no_part(name, names)
        return values[:, places[0]] if len(places) == 1 else values[:, places]

    def rest(without: Sequence[str]) -> npt.ArrayLike:
        return values[:, [place for place, column in enumerate(names) if column not in without]] if without else values

    return Parts(named, rest)


def _npy(payload: bytes | memoryview) -> Parts:
    """One array has no parts: whatever is asked for, it is taken as a whole."""
    array = _npy_array(payload)
    return Parts(lambda name: array, lambda without: array)


def npz_shapes(payload: bytes | memoryview) -> dict[str, tuple[int, ...] | None]:
    """The arrays of an NPZ file and their shapes, from their headers; None for what is no array of numbers.

    Raises:
        DecodeError: not an NPZ file.
    """
    archive, names = _opened(payload)
    shapes: dict[str, tuple[int, ...] | None] = {}
    for name, entry in zip(names, archive.infolist(), strict=True):
        shapes[name] = None
        with contextlib.suppress(DecodeError, *_NOT_ZIP):
            _require_known_method(entry)
            with archive.open(entry) as stream:
                head = stream.read(_MAX_NPY_HEADER)
            shape, _, dtype = _npy_header(head[: _npy_header_size(head)])
            shapes[name] = shape if dtype.kind in "biuf" else None
    return shapes


def _opened(payload: bytes | memoryview) -> tuple[zipfile.ZipFile, list[str]]:
    """An NPZ file, and the names of its arrays in the order in which they lie there."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(payload))
        return archive, [name.removesuffix(".npy") for name in archive.namelist()]
    except _NOT_ZIP as error:
        raise DecodeError(f"not a readable NPZ file ({error})") from None


def _npz(payload: bytes | memoryview) -> Parts:
    archive, names = _opened(payload)

    def named(name: str) -> npt.ArrayLike:
        if name not in names:
            raise _no_part(name, names)
        entry = archive.infolist()[names.index(name)]
        _require_known_method(entry)
        if entry.file_size > MAX_ARRAY_BYTES:
            raise DecodeError(f"{name!r} would take {entry.file_size} bytes, over the limit of {MAX_ARRAY_BYTES}")
        try:
            return _npy_array(archive.read(entry))
        except _NOT_ZIP as error:
            raise DecodeError(f"{name!r} can't be read from the NPZ file ({error})") from None

    def rest(without: Sequence[str]) -> npt.ArrayLike:
        others = [name for name in names if name not in without]
        if len(others) != 1:
            raise DecodeError(f"has the arrays {', '.join(others)[:200]}; say with path which one is meant")
        return named(others[0])

    return Parts(named, rest)


def _require_known_method(entry: zipfile.ZipInfo) -> None:
    """NumPy writes no others; those of other writers take memory as a damaged header wants it."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DecodeError(
            f"{entry.filename!r} is compressed by method {entry.compress_type}; NPZ files are stored or deflated"
        )


_NOT_ZIP = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError, ValueError, KeyError)


def _json(payload: bytes | memoryview) -> Parts:
    value = parse_json(payload)

    def rest(without: Sequence[str]) -> npt.ArrayLike:
        if isinstance(value, dict):
            raise DecodeError(f"has the keys {', '.join(map(str, value))[:200]}; say with path which one is meant")
        found: npt.ArrayLike = value
        return found

    return Parts(lambda name: at_path(value, name), rest)


def _csv(payload: bytes | memoryview) -> Parts:
    return column_parts(*parse_csv(payload))


def _no_part(name: str, names: Sequence[str]) -> DecodeError:
    return DecodeError(f"has no part {name[:80]!r}; it has {', '.join(names)[:200] or 'none'}")


def _npy_array(payload: bytes | memoryview) -> npt.NDArray[np.generic]:
    start = _npy_header_size(payload)
    if start > _MAX_NPY_HEADER:
        raise DecodeError(f"not a readable NPY array (its header claims {start} bytes)")
    shape, fortran_order, dtype = _npy_header(bytes(payload[:start]))
    if dtype.kind not in "biuf":
        raise DecodeError(f"not an array of numbers (its type is {dtype})")
    # The header's claim is checked before memory is taken for it.
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or start + size > len(payload):
        raise DecodeError(
            f"cut short: shape {list(shape)} of {dtype} needs {size} bytes, {len(payload) - start} are there"
        )
    array = np.frombuffer(payload, dtype, math.prod(shape), start)
    return array.reshape(shape, order="F" if fortran_order else "C")


def _npy_header_size(payload: bytes | memoryview) -> int:
    """Bytes before the array: magic, version, and a header whose length stands in 2 bytes, or 4 from version 2 on."""
    width = 2 if payload[6:7] == b"\x01" else 4
    return 8 + width + int.from_bytes(payload[8 : 8 + width], "little")


# The header is a Python literal, whose parsing takes longer than all the rest; most members of a field have the same.
@functools.lru_cache(maxsize=256)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = _HEADERS.get(version)
        if read_header is None:
            raise DecodeError(f"NPY version {'.'.join(map(str, version))} is not supported")
        found: tuple[tuple[int, ...], bool, np.dtype[np.generic]] = read_header(stream)
    except _NOT_NPY as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise DecodeError(f"not a readable NPY array ({reason[:120]})") from None
    return found


_MAX_NPY_HEADER = 10_000
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# The header is a Python literal: a damaged one can make its parser fail in any of these ways.
_NOT_NPY = (ValueError, EOFError, OSError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError)


def _is_text(payload: bytes | memoryview) -> bool:
    head = bytes(payload[:256])
    return bool(head) and all(byte >= 32 or byte in b"\t\r\n" for byte in head) and not head.startswith(b"\x93")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
