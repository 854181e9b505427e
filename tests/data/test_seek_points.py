"""Unpacking a gzip file from a place within it: the right bytes, or an error, and always an end."""

from __future__ import annotations

import gzip
import io
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import indexed_gzip
import pytest

from ray_mm.data.gzip_bytes import GzipBytes, GzipRanges
from ray_mm.data.seek_points import SeekPoints, unpack
from ray_mm.errors import DatasetError
from ray_mm.storage.remote import stat
from tests.fuzzing import DAMAGED, num_cases


def _content(rng: random.Random) -> bytes:
    """Some of it stored as it is, some with fixed codes, some with codes of its own."""
    kinds = (rng.randbytes, lambda size: bytes(rng.choices(b"abcdefgh ", k=size)), bytes)
    return b"".join(rng.choice(kinds)(rng.randrange(1, 100_000)) for _ in range(40))


def _packed(rng: random.Random, raw: bytes) -> bytes:
    """One stream, or several, perhaps with filling behind."""
    cuts = [0, *sorted(rng.randrange(len(raw)) for _ in range(rng.choice((0, 0, 1, 5)))), len(raw)]
    streams = [gzip.compress(raw[start:stop], rng.choice((1, 6, 9))) for start, stop in itertools.pairwise(cuts)]
    return b"".join(streams) + bytes(rng.choice((0, 100)))


def _points(packed: bytes, spacing: int) -> SeekPoints:
    file = indexed_gzip.IndexedGzipFile(io.BytesIO(packed), spacing=spacing)
    file.build_full_index()
    exported = io.BytesIO()
    file.export_index(fileobj=exported)
    return SeekPoints(exported.getvalue())


def _in_parts(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def test_any_range_comes_from_the_point_before_it() -> None:
    bits = set()
    for seed in range(12):
        rng = random.Random(seed)
        raw = _content(rng)
        packed = _packed(rng, raw)
        points = _points(packed, 150_000)
        for _ in range(30):
            offset = rng.randrange(len(raw))
            target = bytearray(min(rng.randrange(1, 100_000), len(raw) - offset))
            point, end = points.before(offset), points.end_for(offset + len(target))
            bits.add(point.bits)
            # No byte beyond the one that it names is needed.
            parts = _in_parts(packed[point.begin : end], rng.choice((1_000, 65_536, 1 << 22)))
            unpack(point, parts, offset, memoryview(target))
            assert bytes(target) == raw[offset : offset + len(target)]
    assert bits == set(range(8)), "blocks begin at every bit of a byte"


def test_a_short_file_has_no_point_and_is_unpacked_from_its_start() -> None:
    packed = gzip.compress(b"some") + gzip.compress(b"thing")
    file, exported = indexed_gzip.IndexedGzipFile(io.BytesIO(packed)), io.BytesIO()
    assert file.read() == b"something"
    file.export_index(fileobj=exported)
    points = SeekPoints(exported.getvalue())
    assert points.before(3).has_header and points.end_for(9) is None
    target = bytearray(4)
    unpack(points.before(3), iter([packed]), 3, memoryview(target))
    assert bytes(target) == b"ethi"
    with pytest.raises(ValueError, match="ends 1 bytes too early"):
        unpack(points.before(6), iter([packed]), 6, memoryview(target))


@pytest.mark.parametrize("content", [b"", b"GZIDX\x02" + bytes(40), b"GZIDX\x01\x00" + bytes(20), bytes(100)])
def test_points_that_are_none_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        SeekPoints(content)


def test_points_that_were_cut_are_refused() -> None:
    file = indexed_gzip.IndexedGzipFile(io.BytesIO(gzip.compress(random.Random(0).randbytes(300_000))), spacing=100_000)
    file.build_full_index()
    exported = io.BytesIO()
    file.export_index(fileobj=exported)
    with pytest.raises(ValueError, match="were expected"):
        SeekPoints(exported.getvalue()[:-1])


@pytest.mark.fuzz
def test_a_file_that_was_damaged_after_it_was_indexed_ends_in_bytes_or_in_an_error(tmp_path: Path) -> None:
    rng = random.Random(3)
    raw = _content(rng)
    file = tmp_path / "0.tgz"
    file.write_bytes(_packed(rng, raw))
    packing = GzipBytes(stat(str(file)), 1 << 30)
    while packing.window(packing._base + len(packing._buffer), 1 << 20)[0]:
        if packing._base + len(packing._buffer) >= len(raw):
            break
    points, whole = packing.seek_points(), file.read_bytes()
    refused = 0
    for _ in range(num_cases(150)):
        damaged = _damaged(rng, whole)
        file.write_bytes(damaged)
        reader = GzipRanges(stat(str(file)), points, len(raw))
        target = bytearray(20_000)
        try:
            reader.fetch(rng.randrange(len(raw) - len(target)), memoryview(target))
        except DatasetError as error:
            refused += "gzip stream is damaged" in str(error)
        DAMAGED["gzip files with an index of before"] += 1
    assert refused > 0


@pytest.mark.fuzz
def test_a_damaged_file_is_unpacked_to_what_was_packed_or_refused(tmp_path: Path) -> None:
    rng = random.Random(4)
    raw = bytes(rng.choices(b"abcdefgh ", k=200_000)) + rng.randbytes(50_000)
    whole = gzip.compress(raw[:100_000]) + gzip.compress(raw[100_000:])
    file = tmp_path / "0.tgz"
    taken = 0
    for _ in range(num_cases(150)):
        file.write_bytes(_damaged(rng, whole))
        try:
            found = _unpacked(file)
        except DatasetError:
            pass
        else:
            # What is no part of the content: the time and the system in a header, filling.
            assert found == raw
            taken += 1
        DAMAGED["gzip files without one"] += 1
    file.write_bytes(whole)
    assert _unpacked(file) == raw


@pytest.mark.parametrize("size", [-1, -4, -8, -9, -500])
def test_a_file_that_is_cut_near_its_end_is_refused(tmp_path: Path, size: int) -> None:
    raw = random.Random(5).randbytes(10_000) + bytes(10_240)
    file = tmp_path / "0.tgz"
    file.write_bytes(gzip.compress(raw)[:size])
    with pytest.raises(DatasetError, match="cut short or damaged"):
        _unpacked(file, stop=10_000)


def test_something_else_behind_the_end_is_refused_and_filling_is_not(tmp_path: Path) -> None:
    file = tmp_path / "0.tgz"
    file.write_bytes(gzip.compress(b"tar") + bytes(3_000_000))
    assert _unpacked(file) == b"tar"
    for behind in (b"x", bytes(2_000_000) + b"x"):
        file.write_bytes(gzip.compress(b"tar") + behind)
        with pytest.raises(DatasetError, match=r"damaged|no gzip stream stands behind its end"):
            _unpacked(file)


def _unpacked(file: Path, stop: int | None = None) -> bytes:
    """What is in a file, or its beginning, as it is read when it is indexed."""
    packing = GzipBytes(stat(str(file)), 1 << 30)
    found = b""
    while stop is None or len(found) < stop:
        buffer, base = packing.window(len(found), 1 << 16)
        part = buffer[len(found) - base :]
        if not part:
            break
        found += part
    packing.seek_points()
    return found


def _damaged(rng: random.Random, content: bytes) -> bytes:
    """A copy with some bytes flipped, cut out, doubled or cut off."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 3, 10))):
        at = rng.randrange(len(damaged))
        match rng.randrange(5):
            case 0 | 1:
                damaged[at] ^= 1 << rng.randrange(8)
            case 2:
                size = rng.randrange(1, 2_000)
                damaged[at : at + size] = rng.randbytes(size)
            case 3:
                del damaged[at : at + rng.randrange(1, 300)]
            case 4:
                del damaged[max(1, len(damaged) - rng.randrange(1, 3_000)) :]
    return bytes(damaged)
