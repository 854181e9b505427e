"""Damaged tars: each is refused by name or read as it is; never another error, and never a payload out of place.

The tars are made here, and the beginnings of those that other projects test with where they are there.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_mm.data.index import ShardIndex, index_shard
from ray_mm.errors import DatasetError
from tests.factories import member_of, write_tar
from tests.fuzzing import DAMAGED, num_cases, real_tars

pytestmark = pytest.mark.fuzz

_HEADER = 512
_PLAIN = ["gnu", "pax", *real_tars()]
fuzzed = settings(max_examples=num_cases(150), deadline=None, suppress_health_check=list(HealthCheck))


@lru_cache
def _tar(kind: str) -> bytes:
    """A small tar with everything that headers can hold: long names, folders, sizes in extended headers; or a real one."""
    if kind in real_tars():
        return real_tars()[kind]
    members = {}
    for i in range(4):
        for field in ("image", "text", "series", "label"):
            extension, payload = member_of(field, i)
            members[f"train.d/{'k' * (120 if i == 2 else 3)}{i}.{field}.{extension}"] = payload
    members["é.txt"] = b"other letters"
    format = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "gzip": tarfile.PAX_FORMAT}[kind]
    with tempfile.TemporaryDirectory() as folder:
        content = write_tar(Path(folder) / "0.tar", members, format).read_bytes()
    return gzip.compress(content, 6, mtime=0) if kind == "gzip" else content


_PLACES = st.tuples(st.integers(0, 200), st.sampled_from([0, 3, 99, 100, 124, 130, 135, 148, 156, 257, 345, 511]))
_CHANGES = st.one_of(
    st.tuples(st.just("flip"), _PLACES, st.integers(0, 7)),
    st.tuples(st.just("set"), _PLACES, st.integers(0, 255)),
    st.tuples(st.sampled_from(["cut", "zero", "double", "insert", "remove"]), _PLACES, st.integers(0, 40)),
    st.tuples(st.just("swap"), _PLACES, st.integers(0, 200)),
)


def _mutated(kind: str, changes: list[tuple[str, tuple[int, int], int]], mend: bool) -> bytes:
    content = bytearray(_tar(kind))
    for what, (block, within), value in changes:
        start = block % (len(content) // _HEADER or 1) * _HEADER
        place = min(start + within, max(0, len(content) - 1))
        match what:
            case "flip" if content:
                content[place] ^= 1 << value
            case "set" if content:
                content[place] = value
            case "cut":
                del content[place:]
            case "zero":
                content[start : start + _HEADER] = bytes(len(content[start : start + _HEADER]))
            case "double":
                content[start:start] = content[start : start + _HEADER]
            case "insert":
                content[place:place] = bytes([value]) * value
            case "remove":
                del content[start : start + _HEADER]
            case "swap":
                other = value % (len(content) // _HEADER or 1) * _HEADER
                first, second = content[start : start + _HEADER], content[other : other + _HEADER]
                if len(first) == len(second) == _HEADER:
                    content[start : start + _HEADER], content[other : other + _HEADER] = second, first
    if mend:
        _mend(content)
    return bytes(content)


def _mend(content: bytearray) -> None:
    """Makes all checksums right, so that what a header says is believed."""
    for start in range(0, len(content) - _HEADER + 1, _HEADER):
        header = content[start : start + _HEADER]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(header)


def _without_owners(content: bytes, index: ShardIndex) -> bytes:
    """With plain modes, owners, times and devices: tarfile gives up at a bad one, an index has no use for them.

    And without a prefix in headers of GNU's dialect, which has times in its place; tarfile would take them for a name.
    """
    plain = bytearray(content)
    for start in range(0, len(plain) - _HEADER + 1, _HEADER):
        header = plain[start : start + _HEADER]
        if header[257:262] == b"ustar" and not any(
            ((offsets <= start) & (start < offsets + index.sizes[suffix])).any()
            for suffix, offsets in index.offsets.items()
        ):
            is_gnu = header[257:263] != b"ustar\0"
            for first, last in ((100, 124), (136, 148), (265, 500 if is_gnu else 345)):
                header[first:last] = bytes(last - first)
            _mend(header)
            plain[start : start + _HEADER] = header
    return bytes(plain)


def _index(folder: Path, content: bytes, name: str = "0.tar") -> ShardIndex | None:
    """The index; None where the tar is refused. Any other error is a finding."""
    path = folder / name
    path.write_bytes(content)
    try:
        return index_shard(path, max_unpacked=1 << 20)
    except DatasetError as error:
        assert str(error).startswith(str(path)), error
        return None


def _found(content: bytes, index: ShardIndex) -> dict[str, bytes]:
    return {
        f"{index.keys[row]}.{suffix}": content[offset : offset + int(index.sizes[suffix][row])]
        for suffix, offsets in index.offsets.items()
        for row, offset in enumerate(offsets.tolist())
        if offset >= 0
    }


@fuzzed
@given(kind=st.sampled_from(_PLAIN), changes=st.lists(_CHANGES, min_size=1, max_size=4), mend=st.booleans())
def test_a_damaged_tar_is_refused_or_read_as_tarfile_reads_it(
    tmp_path: Path, kind: str, changes: list[tuple[str, tuple[int, int], int]], mend: bool
) -> None:
    DAMAGED["tars"] += 1
    content = _mutated(kind, changes, mend)
    index = _index(tmp_path, content)
    if index is None:
        return
    found = _found(content, index)
    expected: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(_without_owners(content, index))) as tar:
        for info in tar:
            opened = tar.extractfile(info) if info.isreg() else None
            if opened is not None:
                name = "/".join(part for part in info.name.split("/") if part not in ("", "."))
                expected[name] = opened.read()
    for name, payload in found.items():
        assert expected[name] == payload, name


@fuzzed
@given(content=st.binary(max_size=3000), head=st.sampled_from([b"", b"\x1f\x8b\x08\x00", b"ustar"]))
def test_what_is_no_tar_is_refused_by_name(tmp_path: Path, content: bytes, head: bytes) -> None:
    DAMAGED["files that are no tar"] += 1
    index = _index(tmp_path, head + content)
    assert index is None or len(index) == 0


@fuzzed
@given(place=st.integers(0, len(_tar("gzip")) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_gzip_file_is_refused_or_says_the_same(tmp_path: Path, place: int, value: int, cut: bool) -> None:
    DAMAGED["gzip files"] += 1
    good = _tar("gzip")
    content = bytearray(good)
    content[place] = value
    if cut:
        del content[place:]
    index = _index(tmp_path, bytes(content), "0.tgz")
    if index is not None:
        plain = gzip.decompress(good)
        assert _found(plain, index) == _found(plain, _whole(tmp_path))


def _whole(folder: Path) -> ShardIndex:
    index = _index(folder, _tar("gzip"), "whole.tgz")
    assert index is not None
    return index


@pytest.mark.parametrize("kind", [*_PLAIN, "gzip"])
def test_the_whole_tar_is_read(tmp_path: Path, kind: str) -> None:
    index = _index(tmp_path, _tar(kind), "0.tgz" if kind == "gzip" else "0.tar")
    assert index is not None and (len(index) >= 3 if kind in real_tars() else len(index) == 5)
