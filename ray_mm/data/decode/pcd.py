"""Point clouds in the PCD format of the Point Cloud Library (version 0.7): ascii, binary and binary_compressed.

The compression is LZF: a byte below 32 announces so many literals and one, any other a copy of what came before.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ray_mm.data.decode.arrays import MAX_ARRAY_BYTES, Parts, column_parts
from ray_mm.data.decode.error import DecodeError

_MAX_HEADER = 4096
_MAX_COLUMNS = 1024
_PADDING = "_"


class _Field(NamedTuple):
    name: str
    dtype: np.dtype[np.generic]
    width: int
    """Values per point."""


def pcd_parts(payload: bytes | memoryview) -> Parts:
    """The columns of a PCD file, by the names of its FIELDS.

    Raises:
        DecodeError: not a PCD file, damaged, or of a kind that is not known.
    """
    header, start = _header(payload)
    fields = _fields(header)
    points = _number(header, "POINTS", _number(header, "WIDTH", 0) * _number(header, "HEIGHT", 1))
    width = sum(field.dtype.itemsize * field.width for field in fields)
    kind = " ".join(header.get("DATA", []))
    body = memoryview(payload)[start:]
    if kind == "ascii":
        values = _ascii(bytes(body), sum(field.width for field in fields))
    elif kind in ("binary", "binary_compressed"):
        if points * width > MAX_ARRAY_BYTES:
            raise DecodeError(f"claims {points} points of {width} bytes, over the limit of {MAX_ARRAY_BYTES} bytes")
        if kind == "binary":
            values = _rows(body, fields, points, width)
        else:
            values = _planes(_decompress(body, points * width), fields, points)
    else:
        raise DecodeError(f"is a PCD file with DATA {kind[:40]!r}; ascii, binary and binary_compressed are read")
    if len(values) < points:
        raise DecodeError(f"is a PCD file cut short: {points} points are announced, {len(values)} are there")
    names = [field.name for field in fields for _ in range(field.width)]
    kept = [place for place, name in enumerate(names) if name != _PADDING]
    return column_parts([names[place] for place in kept], values[:points, kept])


def _header(payload: bytes | memoryview) -> tuple[dict[str, list[str]], int]:
    """Keyword → its words, and where the data begins."""
    head = bytes(payload[:_MAX_HEADER])
    header: dict[str, list[str]] = {}
    start = 0
    while (end := head.find(b"\n", start)) >= 0:
        words = head[start:end].decode("ascii", "replace").split()
        start = end + 1
        if words and not words[0].startswith("#"):
            header[words[0]] = words[1:]
            if words[0] == "DATA":
                return header, start
    raise DecodeError("is a PCD file without a line DATA")


def _fields(header: dict[str, list[str]]) -> list[_Field]:
    names, sizes, types = (header.get(key, []) for key in ("FIELDS", "SIZE", "TYPE"))
    counts = header.get("COUNT", ["1"] * len(names))
    if not names or not len(names) == len(sizes) == len(types) == len(counts):
        raise DecodeError("is a PCD file whose FIELDS, SIZE, TYPE and COUNT do not have the same number of entries")
    try:
        dtypes = [np.dtype("<" + kind.lower() + size) for kind, size in zip(types, sizes, strict=True)]
        found = [_Field(*entry) for entry in zip(names, dtypes, map(int, counts), strict=True)]
    except (TypeError, ValueError) as error:
        raise DecodeError(f"is a PCD file with a type that is not known ({error})") from None
    if any(field.dtype.kind not in "iuf" or field.width < 1 for field in found) or len(found) > _MAX_COLUMNS:
        raise DecodeError("is a PCD file with columns that are no numbers")
    if sum(field.width for field in found) > _MAX_COLUMNS:
        raise DecodeError(f"is a PCD file with more than {_MAX_COLUMNS} columns")
    return found


def _number(header: dict[str, list[str]], key: str, default: int) -> int:
    words = header.get(key)
    if words is None:
        return default
    if len(words) != 1 or not words[0].isdecimal() or len(words[0]) > 12:
        raise DecodeError(f"is a PCD file with {key} {' '.join(words)[:40]!r}, expected a number")
    return int(words[0])


def _ascii(body: bytes, columns: int) -> npt.NDArray[np.float64]:
    lines = body.decode("ascii", "replace").split("\n")
    if not any(line.strip() for line in lines):
        return np.zeros((0, columns))
    try:
        values = np.loadtxt(lines, np.float64, ndmin=2)
    except ValueError as error:
        raise DecodeError(f"is a PCD file with a line that is no numbers ({str(error).splitlines()[0]})") from None
    if values.shape[1] != columns:
        raise DecodeError(f"is a PCD file with {values.shape[1]} numbers a line, expected {columns}")
    return values


def _rows(body: memoryview, fields: list[_Field], points: int, width: int) -> npt.NDArray[np.float64]:
    if len(body) < points * width:
        raise DecodeError(
            f"is a PCD file cut short: {points} points take {points * width} bytes, {len(body)} are there"
        )
    raw = np.frombuffer(body, np.uint8, points * width).reshape(points, width)
    columns, start = [], 0
    for field in fields:
        stop = start + field.dtype.itemsize * field.width
        columns.append(np.ascontiguousarray(raw[:, start:stop]).view(field.dtype).astype(np.float64))
        start = stop
    return np.concatenate(columns, axis=1)


def _planes(body: bytes, fields: list[_Field], points: int) -> npt.NDArray[np.float64]:
    """Compressed files hold one column after the other."""
    columns, start = [], 0
    for field in fields:
        count = points * field.width
        column = np.frombuffer(body, field.dtype, count, start).reshape(points, field.width)
        columns.append(column.astype(np.float64))
        start += count * field.dtype.itemsize
    return np.concatenate(columns, axis=1)


def _decompress(body: memoryview, size: int) -> bytes:
    compressed, uncompressed = (int.from_bytes(body[start : start + 4], "little") for start in (0, 4))
    if uncompressed != size or len(body) < 8 + compressed:
        raise DecodeError(f"is a PCD file cut short: {size} bytes are announced, {uncompressed} of them compressed")
    source, out, place = bytes(body[8 : 8 + compressed]), bytearray(), 0
    try:
        while place < len(source):
            control = source[place]
            place += 1
            if control < 32:
                out += source[place : place + control + 1]
                place += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += source[place]
                place += 1
            back = ((control & 31) << 8) + source[place] + 1
            place += 1
            _copy(out, back, length + 2)
            if len(out) > size:
                break
    except IndexError:
        raise DecodeError("is a PCD file whose compressed data is cut short") from None
    if len(out) != size:
        raise DecodeError(f"is a PCD file whose compressed data has {len(out)} bytes instead of {size}")
    return bytes(out)


def _copy(out: bytearray, back: int, length: int) -> None:
    start = len(out) - back
    if start < 0:
        raise DecodeError("is a PCD file whose compressed data is damaged")
    # What is copied may reach into what is being written: a run.
    piece = out[start : start + length]
    while len(piece) < length:
        piece += piece[: length - len(piece)]
    out += piece
