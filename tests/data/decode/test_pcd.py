"""Point clouds as PCD files: the three kinds of data, and damage."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.config.fields import PointsField
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.numeric import read_points
from ray_mm.data.decode.pcd import pcd_parts

_HEADER = """# .PCD v0.7 - Point Cloud Data file format
VERSION 0.7
FIELDS x y z intensity _ ring
SIZE 4 4 4 4 1 2
TYPE F F F F U U
COUNT 1 1 1 1 2 1
WIDTH {count}
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS {count}
DATA {kind}
"""
_DTYPE = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("i", "<f4"), ("_", "u1", (2,)), ("ring", "<u2")])


def _cloud(count: int = 5) -> npt.NDArray[np.void]:
    cloud = np.zeros(count, _DTYPE)
    for channel, name in enumerate(("x", "y", "z", "i")):
        cloud[name] = np.arange(count) + channel / 4
    cloud["ring"] = np.arange(count) * 7
    return cloud


def _pcd(kind: str, cloud: npt.NDArray[np.void]) -> bytes:
    header = _HEADER.format(count=len(cloud), kind=kind).encode()
    if kind == "ascii":
        lines = [f"{p['x']} {p['y']} {p['z']} {p['i']} 0 0 {p['ring']}" for p in cloud]
        return header + "\n".join(lines).encode() + b"\n"
    if kind == "binary":
        return header + cloud.tobytes()
    planes = b"".join(np.ascontiguousarray(cloud[name]).tobytes() for name in _DTYPE.names or ())
    packed = _lzf(planes)
    return header + len(packed).to_bytes(4, "little") + len(planes).to_bytes(4, "little") + packed


def _lzf(data: bytes) -> bytes:
    """Compresses as LZF: greedy, with copies that overlap themselves."""
    out, literals, place = bytearray(), bytearray(), 0

    def flush() -> None:
        for start in range(0, len(literals), 32):
            piece = literals[start : start + 32]
            out.append(len(piece) - 1)
            out.extend(piece)
        literals.clear()

    while place < len(data):
        best = max(((_same(data, place, back), -back) for back in range(1, min(place, 64) + 1)), default=(0, 0))
        length, back = best[0], -best[1]
        if length < 3:
            literals.append(data[place])
            place += 1
            continue
        flush()
        code = length - 2
        out.append((min(code, 7) << 5) | ((back - 1) >> 8))
        if code >= 7:
            out.append(code - 7)
        out.append((back - 1) & 255)
        place += length
    flush()
    return bytes(out)


def _same(data: bytes, place: int, back: int) -> int:
    length = 0
    while length < 264 and place + length < len(data) and data[place + length] == data[place + length - back]:
        length += 1
    return length


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
def test_every_kind_of_data_gives_the_same_points(kind: str) -> None:
    payload = _pcd(kind, _cloud())
    found = read_points(memoryview(payload), PointsField())
    assert found is not None
    assert found.tolist() == [[i, i + 0.25, i + 0.5, i + 0.75, 7 * i] for i in range(5)]
    chosen = read_points(payload, PointsField(path=("x", "ring")))
    assert chosen is not None and chosen.tolist() == [[i, 7 * i] for i in range(5)]


@given(st.binary(min_size=1, max_size=300) | st.integers(1, 600).map(lambda n: b"ab" * n))
def test_what_was_compressed_comes_back(data: bytes) -> None:
    header = f"FIELDS v\nSIZE 1\nTYPE U\nPOINTS {len(data)}\nDATA binary_compressed\n"
    packed = _lzf(data)
    body = len(packed).to_bytes(4, "little") + len(data).to_bytes(4, "little") + packed
    found = np.asarray(pcd_parts(b"# .PCD\n" + header.encode() + body).named("v"))
    assert found.astype(np.uint8).tobytes() == data


@pytest.mark.parametrize("kind", ["ascii", "binary"])
def test_points_without_a_return_are_left_out(kind: str) -> None:
    cloud = _cloud(4)
    cloud["y"][1], cloud["z"][3] = np.nan, np.inf
    found = read_points(_pcd(kind, cloud), PointsField())
    assert found is not None and found[:, 0].tolist() == [0, 2]


def test_a_cloud_without_points_has_none() -> None:
    for kind in ("ascii", "binary"):
        found = read_points(_pcd(kind, _cloud(0)), PointsField())
        assert found is not None and found.size == 0


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
def test_a_file_that_was_cut_is_refused(kind: str) -> None:
    payload = _pcd(kind, _cloud(40))
    for kept in (7, 60, 200, len(payload) - 60, len(payload) - 40):
        with pytest.raises(DecodeError, match="PCD"):
            read_points(payload[:kept], PointsField())


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"POINTS 5", b"POINTS 90000000000", "over the limit"),
        (b"POINTS 5", b"POINTS many", "POINTS 'many', expected a number"),
        (b"SIZE 4 4", b"SIZE 4", "same number of entries"),
        (b"TYPE F", b"TYPE O", "no numbers|not known"),
        (b"COUNT 1 1 1 1 2", b"COUNT 1 1 1 1 -2", "no numbers"),
        (b"DATA binary", b"DATA secret", "DATA 'secret'"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(old: bytes, new: bytes, reason: str) -> None:
    payload = _pcd("binary", _cloud())
    assert old in payload
    with pytest.raises(DecodeError, match=reason):
        read_points(payload.replace(old, new), PointsField())
