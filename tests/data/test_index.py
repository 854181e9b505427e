"""The index: what Python's tarfile finds, at the same places, and a refusal of everything doubtful."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_mm.data.index import ShardIndex, index_shard
from ray_mm.data.sidecar import index_path, read_index, write_index
from ray_mm.errors import DatasetError
from ray_mm.storage.remote import put_if_absent
from tests.factories import write_tar
from tests.object_store import Proxy

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
FORMAT_NAMES = ["ustar", "gnu", "pax"]
each_format = pytest.mark.parametrize("format", FORMATS, ids=FORMAT_NAMES)


def _payloads(shard: Path, index: ShardIndex) -> dict[str, bytes]:
    content = shard.read_bytes()
    found = {}
    for row, key in enumerate(index.keys):
        for suffix in index.offsets:
            offset, size = int(index.offsets[suffix][row]), int(index.sizes[suffix][row])
            assert (offset < 0) == (size < 0)
            if offset >= 0:
                found[f"{key}.{suffix}"] = content[offset : offset + size]
    return found


def _reheaded(content: bytes, place: int, **fields: bytes) -> bytes:
    """A tar with some bytes of one header replaced, its checksum made right again."""
    header = bytearray(content[place : place + 512])
    for name, value in fields.items():
        start, size = {"name": (0, 100), "size": (124, 12), "kind": (156, 1), "magic": (257, 8)}[name]
        header[start : start + size] = value.ljust(size, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:place] + bytes(header) + content[place + 512 :]


@each_format
def test_members_are_found_where_they_lie(tmp_path: Path, format: int) -> None:
    members = {"a.jpg": b"picture", "a.cls": b"1", "b.jpg": b"", "b.seg.png": b"x" * 600, "folder.d/c.txt": b"hello"}
    shard = write_tar(tmp_path / "0.tar", members, format)
    index = index_shard(shard)
    assert index.keys == ["a", "b", "folder.d/c"]
    assert list(index.offsets) == ["cls", "jpg", "seg.png", "txt"]
    assert index.offsets["txt"].tolist()[:2] == [-1, -1]
    assert _payloads(shard, index) == members


@pytest.mark.parametrize("format", FORMATS[1:], ids=FORMAT_NAMES[1:])
@pytest.mark.parametrize(
    "name", ["k" * 150 + ".txt", "é" * 60 + ".txt", "日本語.txt", "d" * 99 + "/" + "k" * 99 + ".txt"]
)
def test_long_names_and_other_alphabets_are_read(tmp_path: Path, format: int, name: str) -> None:
    members = {"before.txt": b"1", name: b"2", "zafter.txt": b"3"}
    shard = write_tar(tmp_path / "0.tar", members, format)
    assert _payloads(shard, index_shard(shard)) == members


def test_a_long_name_that_ustar_splits_is_joined(tmp_path: Path) -> None:
    members = {"d" * 120 + "/" + "k" * 90 + ".txt": b"2"}
    shard = write_tar(tmp_path / "0.tar", members, tarfile.USTAR_FORMAT)
    assert _payloads(shard, index_shard(shard)) == members


_KEYS = st.text(st.characters(exclude_characters="./\0", exclude_categories=["Cs"]), min_size=1, max_size=70)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(_KEYS, unique=True, min_size=1, max_size=6),
    suffixes=st.lists(st.sampled_from(["jpg", "cls", "a.b", "npy"]), unique=True, min_size=1, max_size=4),
    sizes=st.lists(st.integers(0, 1200), min_size=24, max_size=24),
    format=st.sampled_from(FORMATS[1:]),
)
def test_any_tar_is_read_as_tarfile_reads_it(
    tmp_path: Path, keys: list[str], suffixes: list[str], sizes: list[int], format: int
) -> None:
    places = iter(sizes)
    members = {
        f"{key}.{suffix}": bytes([next(places) % 256]) * next(iter(sizes)) for key in keys for suffix in suffixes
    }
    shard = write_tar(tmp_path / "0.tar", members, format)
    index = index_shard(shard)
    with tarfile.open(shard) as tar:
        expected = {info.name: (info.offset_data, info.size) for info in tar}
    found = {
        f"{key}.{suffix}": (int(index.offsets[suffix][row]), int(index.sizes[suffix][row]))
        for row, key in enumerate(index.keys)
        for suffix in index.offsets
    }
    assert found == expected
    assert index.keys == keys
    write_index(index_path(shard), index)
    again = read_index(index_path(shard), str(shard))
    assert again.keys == keys and again.shard_bytes == shard.stat().st_size and again.version == index.version
    for suffix in index.offsets:
        assert (again.offsets[suffix] == index.offsets[suffix]).all()
        assert (again.sizes[suffix] == index.sizes[suffix]).all()


@each_format
def test_a_tar_cut_at_any_block_is_refused(tmp_path: Path, format: int) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b"x" * 700, "k" * 90 + "/b.txt": b"", "c.txt": b"y" * 512}, format)
    content = shard.read_bytes()
    end = len(content) - len(content) % 512
    while content[end - 512 : end] == bytes(512):
        end -= 512
    for size in range(0, end + 1024, 512):
        shard.write_bytes(content[:size])
        with pytest.raises(DatasetError, match=r"cut short|is empty"):
            index_shard(shard)
    for size in range(1, end, 100):
        shard.write_bytes(content[:size])
        with pytest.raises(DatasetError, match="cut short"):
            index_shard(shard)
    shard.write_bytes(content[: end + 1024])  # the padding to 10,240 bytes may be missing
    assert len(index_shard(shard)) == 3


def test_every_flipped_bit_of_a_header_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b"x" * 700, "b.txt": b"y"})
    content = shard.read_bytes()
    expected = _payloads(shard, index_shard(shard))
    header = index_shard(shard).offsets["txt"][1] - 512
    unnoticed = 0
    for place in range(512):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[header + place] ^= 1 << bit
            shard.write_bytes(damaged)
            try:
                assert _payloads(shard, index_shard(shard)) == expected
                unnoticed += 1
            except DatasetError as error:
                assert "damaged" in str(error)
    # Only the checksum's own filling can be either a space or a zero.
    assert unnoticed <= 16


@pytest.mark.parametrize(
    ("kind", "reason"), [(b"1", "hard link"), (b"2", "symbolic link"), (b"S", "sparse"), (b"3", "type b'3'")]
)
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: bytes, reason: str) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b""})
    shard.write_bytes(_reheaded(shard.read_bytes(), 0, kind=kind))
    with pytest.raises(DatasetError, match=rf"\[a.txt\]: is .*{reason}"):
        index_shard(shard)


def test_a_sparse_member_in_pax_clothes_is_refused(tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.txt")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "5", "GNU.sparse.name": "its own.txt"}
        tar.addfile(info)
    with pytest.raises(DatasetError, match=r"\[its own\.txt\]: sparse members are not supported"):
        index_shard(shard)


@each_format
@pytest.mark.parametrize("name", ["/etc/a.txt", "../a.txt", "d/../../a.txt"])
def test_a_name_that_leaves_the_archive_is_refused(tmp_path: Path, format: int, name: str) -> None:
    shard = write_tar(tmp_path / "0.tar", {name: b"x"}, format)
    with pytest.raises(DatasetError, match="leaves the archive"):
        index_shard(shard)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b"x"})
    shard.write_bytes(_reheaded(shard.read_bytes(), 0, name=b"\xff.txt"))
    with pytest.raises(DatasetError, match="not UTF-8"):
        index_shard(shard)


def test_folders_hidden_files_and_leading_dots_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = tmp_path / "0.tar"
    with tarfile.open(shard, "w") as tar:
        folder = tarfile.TarInfo("./train.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("./train.d/.hidden", "./train.d/README", "./train.d/a.txt"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    assert _payloads(shard, index_shard(shard)) == {"train.d/a.txt": b"abc"}
    # A sample whose members lost their extensions must not be lost in silence.
    told = f"belong to no sample: shard={shard} members=1 first='train.d/README'"
    assert [record.message for record in caplog.records] == [f"members without an extension {told}"]


def test_the_label_of_a_whole_tar_is_no_member(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {"label": b"", "a.txt": b"abc"})
    shard.write_bytes(_reheaded(shard.read_bytes(), 0, kind=b"V"))
    assert _payloads(shard, index_shard(shard)) == {"a.txt": b"abc"}


def test_a_folder_of_an_old_tar_is_no_sample(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b"", "b.txt": b"x"})
    shard.write_bytes(_reheaded(shard.read_bytes(), 0, name=b"train.d/", kind=b"\0", magic=b""))
    assert _payloads(shard, index_shard(shard)) == {"b.txt": b"x"}


def test_sizes_beyond_eight_gigabytes_are_read_and_held_against_the_file(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b"x"})
    huge = b"\x80" + (9 << 30).to_bytes(11, "big")
    shard.write_bytes(_reheaded(shard.read_bytes(), 0, size=huge))
    with pytest.raises(DatasetError, match=f"claims {9 << 30} bytes at byte 512"):
        index_shard(shard)


@pytest.mark.parametrize(
    "size", [b"-0000000001", b"0o000000001", b"1_000", b"00000000009", b"\0" + b"0" * 9 + b"1", b"\xff" * 12]
)
def test_a_size_that_is_no_octal_number_is_refused(tmp_path: Path, size: bytes) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b"x"})
    shard.write_bytes(_reheaded(shard.read_bytes(), 0, size=size))
    with pytest.raises(DatasetError, match="claims"):
        index_shard(shard)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_an_extended_header_that_jumps_to_the_end_mark_is_refused(tmp_path: Path, format: int) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b"x", f"{'b' * 120}.txt": b"y", "c.txt": b"z"}, format)
    content = shard.read_bytes()
    start = 2 * 512 if format == tarfile.GNU_FORMAT else content.index(b"PaxHeader") // 512 * 512
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512
    shard.write_bytes(_reheaded(content, start, size=b"%011o" % (end - start - 512)))
    # Of GNU's dialect the long name is then all that follows; tarfile refuses it, too.
    with pytest.raises(DatasetError, match=r"0\.tar: damaged: an extended header"):
        index_shard(shard)
    with pytest.raises(tarfile.ReadError), tarfile.open(shard) as tar:
        tar.getmembers()


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_two_names_for_one_member_are_refused(tmp_path: Path, format: int) -> None:
    shard = write_tar(tmp_path / "0.tar", {f"{'b' * 120}.txt": b"y"}, format)
    content = shard.read_bytes()
    shard.write_bytes(content[:1024] + content)
    with pytest.raises(DatasetError, match=r"0\.tar: damaged: a second extended header of type '[Lx]' at byte 1024"):
        index_shard(shard)


def test_a_long_name_that_goes_on_behind_its_end_is_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {f"{'b' * 120}.txt": b"y"}, tarfile.GNU_FORMAT)
    shard.write_bytes(_reheaded(shard.read_bytes(), 0, size=b"%011o" % 122))
    with pytest.raises(DatasetError, match=r"0\.tar: damaged: a long name at byte 512 goes on behind the 122 bytes"):
        index_shard(shard)


def test_joined_tars_are_refused_where_other_readers_stop_silently(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "0.tar", {"a.txt": b"x"})
    second = write_tar(tmp_path / "1.tar", {"b.txt": b"x"})
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(DatasetError, match="data after the end mark at byte 1024"):
        index_shard(first)


def test_a_tar_without_members_has_no_samples(tmp_path: Path) -> None:
    assert len(index_shard(write_tar(tmp_path / "0.tar", {}))) == 0


def test_members_of_a_sample_may_lie_anywhere(tmp_path: Path) -> None:
    members = {"a.txt": b"1", "b.txt": b"2", "b.jpg": b"3", "c.jpg": b"4", "a.jpg": b"5"}
    shard = write_tar(tmp_path / "0.tar", members)
    index = index_shard(shard)
    assert index.keys == ["a", "b", "c"] and _payloads(shard, index) == members


def test_a_key_ends_at_the_first_dot_of_the_last_part_of_a_path(tmp_path: Path) -> None:
    members = {"a.txt": b"1", "a.b/c.txt": b"2", "a.b/a.txt": b"3", "a.b.txt": b"4"}
    shard = write_tar(tmp_path / "0.tar", members)
    index = index_shard(shard)
    assert index.keys == ["a", "a.b/c", "a.b/a"] and list(index.offsets) == ["b.txt", "txt"]
    assert _payloads(shard, index) == members


def test_names_that_make_every_file_a_suffix_of_its_own_are_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {f"frame.{i:06d}.jpg": b"" for i in range(1001)})
    with pytest.raises(DatasetError, match=r"1,001 different suffixes \(000000\.jpg, .*expected 1,000 at most"):
        index_shard(shard)


def test_a_suffix_that_stands_twice_is_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b"", "b.txt": b""})
    shard.write_bytes(_reheaded(shard.read_bytes(), 512, name=b"a.txt"))
    with pytest.raises(DatasetError, match=r"\[a\]: txt stands twice"):
        index_shard(shard)


@pytest.mark.parametrize(("mode", "name"), [("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_a_compressed_tar_is_refused_by_name(tmp_path: Path, mode: str, name: str) -> None:
    shard = tmp_path / "0.tar"
    with tarfile.open(shard, mode) as tar:
        for i in range(50):
            info = tarfile.TarInfo(f"{i}.txt")
            info.size = 512
            tar.addfile(info, io.BytesIO(np.random.default_rng(i).bytes(512)))
    with pytest.raises(DatasetError, match=f"compressed with {name}"):
        index_shard(shard)


def test_checksums_are_of_the_payloads(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.txt": b"123456789", "b.jpg": b"", "b.txt": b"x"})
    assert index_shard(shard).checksums == {}
    write_index(index_path(shard), index_shard(shard, with_checksums=True))
    found = read_index(index_path(shard), str(shard)).checksums
    assert found["txt"].tolist() == [0xE3069283, google_crc32c.value(b"x")]  # the check value of RFC 3720
    assert found["jpg"].tolist() == [0, 0] and found["jpg"].dtype == np.uint32


@pytest.mark.parametrize("size", [10, 300_000])
def test_an_object_in_a_store_is_indexed_by_ranges(tmp_path: Path, proxy: Proxy, bucket: str, size: int) -> None:
    members = {f"{i}.{suffix}": bytes([i]) * size for i in range(8) for suffix in ("jpg", "cls")}
    local = write_tar(tmp_path / "0.tar", members, tarfile.PAX_FORMAT)
    url = f"s3://{bucket}/0.tar"
    put_if_absent(url, local.read_bytes())
    remote, expected = index_shard(url), index_shard(local)
    assert remote.version.startswith("etag:") and remote.shard_bytes == expected.shard_bytes
    assert remote.keys == expected.keys
    for suffix in expected.offsets:
        assert (remote.offsets[suffix] == expected.offsets[suffix]).all()
        assert (remote.sizes[suffix] == expected.sizes[suffix]).all()
    with pytest.raises(DatasetError, match=r"2\.tar: the shard is missing"):
        index_shard(f"s3://{bucket}/2.tar")


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    shard.write_bytes(b"hello " * 200)
    with pytest.raises(DatasetError, match="not a tar"):
        index_shard(shard)
    with pytest.raises(DatasetError, match=r"1\.tar: the shard is missing"):
        index_shard(tmp_path / "1.tar")
