"""Tars within gzip files: members are what they are in the plain tar, on a disk and in a store that misbehaves."""

from __future__ import annotations

import gzip
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import google_crc32c
import numpy as np
import pytest

from ray_mm.data.gzip_bytes import GzipRanges
from ray_mm.data.index import ShardIndex, index_shard
from ray_mm.data.sidecar import index_path, points_path, read_index, read_points, write_index
from ray_mm.errors import DatasetError, ObjectChangedError, ObjectMissingError, StorageError
from ray_mm.storage.cache import BlockCache
from ray_mm.storage.ranges import REMOTE_POLICY, Range
from ray_mm.storage.remote import stat
from tests.factories import write_tar
from tests.object_store import Fault, Faults, Proxy, Request, delete_object, put_object


def _write_gzip(path: Path, num_samples: int = 40) -> dict[str, bytes]:
    members = {f"{i:03d}.bin": np.random.default_rng(i).bytes(50_000 + i) * 2 for i in range(num_samples)}
    plain = write_tar(path.with_name("plain.tar"), members)
    path.write_bytes(gzip.compress(plain.read_bytes(), 1))
    plain.unlink()
    return members


def test_a_gzip_file_is_indexed_and_read_from_anywhere(tmp_path: Path) -> None:
    shard = tmp_path / "0.tgz"
    members = _write_gzip(shard)
    index = index_shard(shard, with_checksums=True)
    path = index_path(shard)
    assert path.name == "0.tgz.index.parquet"
    write_index(path, index)
    again = read_index(path, str(shard))
    assert again.shard_bytes == shard.stat().st_size and again.unpacked_bytes is not None
    reader = GzipRanges(stat(str(shard)), read_points(path, again, str(shard)), again.unpacked_bytes)
    for row in np.random.default_rng(0).permutation(len(again)):
        payload = bytes(reader.read([(int(again.offsets["bin"][row]), int(again.sizes["bin"][row]))])[0])
        assert payload == members[f"{again.keys[row]}.bin"]
        assert again.checksums["bin"][row] == google_crc32c.value(payload)
    os.utime(shard, ns=(0, 0))
    with pytest.raises(ObjectChangedError, match=r"0\.tgz: was replaced"):
        reader.read([(0, 512)])
    points_path(path).write_bytes(b"")
    with pytest.raises(DatasetError, match=r"0\.tgz\.index\.points: the seek points of .* are damaged.*ray-mm index"):
        read_points(path, again, str(shard))
    with pytest.raises(DatasetError, match=r"0\.tgz: its seek points can't be read .*ray-mm index"):
        GzipRanges(stat(str(shard)), b"", again.unpacked_bytes)
    points_path(path).unlink()
    with pytest.raises(DatasetError, match=r"0\.tgz\.index\.points: the seek points of .* are missing.*ray-mm index"):
        read_points(path, again, str(shard))


def test_a_gzip_file_that_is_cut_or_damaged_or_a_bomb_is_refused(tmp_path: Path) -> None:
    shard = tmp_path / "0.tgz"
    _write_gzip(shard, 4)
    with pytest.raises(DatasetError, match=r"claims \d+ bytes|unpacks to more than 100,000 bytes.*--max-unpacked"):
        index_shard(shard, max_unpacked=100_000)
    content = shard.read_bytes()
    for size in (2, 100, len(content) // 2, len(content) - 4):
        shard.write_bytes(content[:size])
        with pytest.raises(DatasetError, match=r"0\.tgz: .*cut short"):
            index_shard(shard)
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0x10
    shard.write_bytes(damaged)
    with pytest.raises(DatasetError, match="damaged"):
        index_shard(shard)
    shard.write_bytes(gzip.compress(bytes(100 << 20)))
    with pytest.raises(DatasetError, match="unpacks to more than 1,048,576 bytes"):
        index_shard(shard, max_unpacked=1 << 20)


_SPACING = 2 << 20
_SIZE = 200_000
_MEMBERS = {f"{i:03d}.bin": np.random.default_rng(i).integers(0, 16, _SIZE + i, np.uint8).tobytes() for i in range(60)}
"""12 MB of bytes that compress to about half."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tar with members of 200 kB."""
    return write_tar(tmp_path_factory.mktemp("plain") / "0.tar", _MEMBERS).read_bytes()


@pytest.fixture(scope="module")
def packed(plain: bytes) -> bytes:
    """The same as a gzip file."""
    return gzip.compress(plain, 1, mtime=0)


@pytest.fixture
def url(packed: bytes, proxy: Proxy, bucket: str) -> str:
    """The gzip file as an object behind the proxy."""
    put_object(proxy.endpoint, f"{bucket}/0.tgz", packed)
    proxy.requests.clear()
    return f"s3://{bucket}/0.tgz"


def _reader(url: str, index: ShardIndex) -> GzipRanges:
    assert index.seek_points is not None and index.unpacked_bytes is not None
    return GzipRanges(stat(url), index.seek_points, index.unpacked_bytes)


def _places(index: ShardIndex) -> list[Range]:
    return list(zip(index.offsets["bin"].tolist(), index.sizes["bin"].tolist(), strict=True))


def _fetched(proxy: Proxy) -> int:
    asked = [request.range for request in proxy.gets(".tgz")]
    return sum(found[1] - found[0] for found in asked if found is not None)


def _of_long_ones(times: int, fault: Fault) -> Faults:
    """The fault, for the first GET requests of more bytes than the fault comes after."""
    left = iter(range(times))

    def choose(request: Request) -> Fault | None:
        wanted = request.range
        is_long = request.method == "GET" and wanted is not None and wanted[1] - wanted[0] > fault.at
        return fault if is_long and next(left, None) is not None else None

    return choose


def test_an_object_is_indexed_in_one_pass_from_its_start(tmp_path: Path, packed: bytes, url: str, proxy: Proxy) -> None:
    remote = index_shard(url)
    starts = [request.range[0] for request in proxy.gets(".tgz") if request.range is not None]
    assert starts == sorted(starts) and _fetched(proxy) == len(packed) + 2  # to see what it is
    (tmp_path / "0.tgz").write_bytes(packed)
    local = index_shard(tmp_path / "0.tgz")
    assert remote.keys == local.keys and _places(remote) == _places(local)
    assert (remote.unpacked_bytes, remote.seek_points) == (local.unpacked_bytes, local.seek_points)
    assert remote.version.startswith("etag:") and remote.shard_bytes == len(packed)


def test_checksums_take_a_second_pass(url: str, packed: bytes, proxy: Proxy) -> None:
    found = index_shard(url, with_checksums=True)
    assert found.checksums["bin"].tolist() == [google_crc32c.value(member) for member in _MEMBERS.values()]
    assert _fetched(proxy) <= 2 * len(packed) + 2


def test_a_member_of_an_object_is_read_from_the_seek_point_before_it(url: str, proxy: Proxy) -> None:
    index = index_shard(url)
    reader = _reader(url, index)
    for row in np.random.default_rng(0).permutation(len(index))[:20].tolist():
        proxy.requests.clear()
        assert bytes(reader.read([_places(index)[row]])[0]) == _MEMBERS[f"{index.keys[row]}.bin"]
        assert len(proxy.gets(".tgz")) == 1
        # Packed to about half: of two spaces between points and the member in one of them, or of three.
        assert _fetched(proxy) < 3 * _SPACING * 0.6


def test_near_members_are_read_in_one_request_and_all_of_them_side_by_side(url: str, proxy: Proxy) -> None:
    index = index_shard(url)
    reader, places = _reader(url, index), _places(index)
    proxy.requests.clear()
    found = reader.read([places[20], places[24], places[22]])
    assert [bytes(view) for view in found] == [_MEMBERS[f"{row:03d}.bin"] for row in (20, 24, 22)]
    assert len(proxy.gets(".tgz")) == 1
    assert [bytes(view) for view in reader.read(places[::15])] == [*_MEMBERS.values()][::15]
    assert [bytes(view) for view in reader.read(places)] == [*_MEMBERS.values()]


def test_files_of_several_streams_are_read(proxy: Proxy, bucket: str, plain: bytes) -> None:
    cuts = [0, 1_000_000, 1_000_100, 7_000_000, len(plain)]
    streams = [gzip.compress(plain[start:stop], 1) for start, stop in itertools.pairwise(cuts)]
    put_object(proxy.endpoint, f"{bucket}/1.tgz", b"".join(streams))
    index = index_shard(f"s3://{bucket}/1.tgz")
    reader = _reader(f"s3://{bucket}/1.tgz", index)
    for place, member in zip(_places(index), _MEMBERS.values(), strict=True):
        assert bytes(reader.read([place])[0]) == member


@pytest.mark.parametrize("kind", ["status", "cut", "short", "shifted"])
def test_faults_of_the_store_are_outlasted(
    kind: Literal["status", "cut", "short", "shifted"], url: str, packed: bytes, proxy: Proxy
) -> None:
    expected = index_shard(url)
    fault = Fault(kind, at=300_000)
    proxy.faults = _of_long_ones(4, fault)
    proxy.requests.clear()
    index = index_shard(url)
    assert _places(index) == _places(expected) and index.seek_points == expected.seek_points
    proxy.faults = _of_long_ones(4, fault)
    reader = _reader(url, index)
    for row in (50, 3, 30):
        assert bytes(reader.read([_places(index)[row]])[0]) == _MEMBERS[f"{row:03d}.bin"]


def test_a_bit_that_flips_on_its_way_is_noticed(url: str, packed: bytes, proxy: Proxy) -> None:
    expected = index_shard(url)
    proxy.faults = _of_long_ones(1, Fault("flip", at=200_000))
    with pytest.raises(DatasetError, match=r"s3://.*0\.tgz: the gzip stream is cut short or damaged"):
        index_shard(url)
    reader = _reader(url, expected)
    # The first bits of a block say how it is packed: from there on nothing can be unpacked.
    proxy.faults = _of_long_ones(1, Fault("flip", at=1))
    proxy.requests.clear()
    assert bytes(reader.read([_places(expected)[30]])[0]) == _MEMBERS["030.bin"]
    assert len(proxy.gets(".tgz")) == 2


def test_an_object_that_is_damaged_is_named(url: str, packed: bytes, proxy: Proxy, bucket: str) -> None:
    index = index_shard(url)
    damaged = bytes(len(packed))
    put_object(proxy.endpoint, f"{bucket}/0.tgz", damaged)
    with pytest.raises(DatasetError, match=r"s3://.*0\.tgz: the gzip stream is damaged near byte"):
        _reader(url, index).read([_places(index)[30]])
    put_object(proxy.endpoint, f"{bucket}/1.tgz", packed[: len(packed) // 2])
    with pytest.raises(DatasetError, match=r"s3://.*1\.tgz: .*cut short"):
        index_shard(f"s3://{bucket}/1.tgz")


def test_an_object_that_is_replaced_deleted_or_refused_is_no_damaged_one(
    url: str, packed: bytes, proxy: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = index_shard(url)
    reader, place, known = _reader(url, index), _places(index)[30], stat(url)
    named = GzipRanges(known, index.seek_points or b"", index.unpacked_bytes or 0, lambda start, stop: "shard[key]")
    put_object(proxy.endpoint, f"{bucket}/0.tgz", packed[:-1] + b"x")
    for read in (reader.read, named.read):
        with pytest.raises(ObjectChangedError, match="was replaced while it was read"):
            read([place])
    with pytest.raises(ObjectChangedError, match=r"^shard\[key\]: was replaced"):
        named.read([place])
    with pytest.raises(ObjectChangedError, match=r"0\.tgz: was replaced"):
        index_shard(known)
    delete_object(proxy.endpoint, f"{bucket}/0.tgz")
    with pytest.raises(ObjectMissingError, match=r"0\.tgz: there is no such object"):
        reader.read([place])
    put_object(proxy.endpoint, f"{bucket}/0.tgz", packed)
    monkeypatch.setattr("ray_mm.storage.ranges.REMOTE_POLICY", replace(REMOTE_POLICY, give_up_s=0.2, backoff_s=0.01))
    for status, told in ((403, "refuses access"), (503, r"could not be read in 0\.2 s")):
        # The first part comes, so that it fails in the midst of being unpacked.
        left = iter(range(1))
        proxy.faults = lambda request, status=status, left=left: (  # type: ignore[misc]
            Fault("status", status=status) if request.method == "GET" and next(left, None) is None else None
        )
        with pytest.raises(StorageError, match=rf"0\.tgz: .*{told}"):
            index_shard(known)


def test_what_is_unpacked_is_kept_in_the_cache(url: str, proxy: Proxy, tmp_path: Path) -> None:
    index = index_shard(url)
    cache, places = BlockCache(tmp_path / "cache", 1 << 30), _places(index)
    for _ in range(2):
        (found,) = cache.read_many([(_reader(url, index), places[::7])])
        assert [bytes(view) for view in found] == [*_MEMBERS.values()][::7]
        proxy.faults = lambda request: Fault("status", status=404) if request.method == "GET" else None
    proxy.faults = lambda request: None
    proxy.requests.clear()
    cache.drop(_reader(url, index), places[:1])
    assert bytes(cache.read_many([(_reader(url, index), places[:1])])[0][0]) == _MEMBERS["000.bin"]
    assert len(proxy.gets(".tgz")) == 1
