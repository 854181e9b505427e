"""Many shards: indexed where needed, kept where current, each problem named, in this process or by Ray."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from ray_mm.data import indexing
from ray_mm.data.indexing import IndexSettings, index_shards, index_tars, sidecars, size_text
from ray_mm.data.shards import find_shards
from ray_mm.data.sidecar import index_path, read_index
from ray_mm.errors import DatasetError, UsageError
from ray_mm.storage.remote import put_if_absent
from tests.factories import write_tar
from tests.object_store import put_object


def _make(folder: Path, count: int = 3) -> list[Path]:
    return [write_tar(folder / f"{i}.tar", {f"s{i}.jpg": b"x", f"s{i}.txt": b"xyz"}) for i in range(count)]


def test_tars_are_indexed_beside_themselves_once(tmp_path: Path) -> None:
    tars = _make(tmp_path)
    reports = list(index_tars([tmp_path]))
    assert [str(report) for report in reports] == [
        f"{tar}: 1 samples, 10.2 kB, jpg, txt → {tar.stem}.index.parquet" for tar in tars
    ]
    assert read_index(reports[1].index, reports[1].shard).keys == ["s1"]
    os.utime(tars[0], ns=(0, 0))
    index_path(tars[1]).write_bytes(b"damaged")
    again = {Path(report.shard).name: report.is_new for report in index_tars([tmp_path])}
    assert again == {"0.tar": True, "1.tar": True, "2.tar": False}
    assert str(next(iter(index_tars([tars[2]])))).endswith("jpg, txt (is indexed)")


def test_checksums_that_are_asked_for_later_are_added(tmp_path: Path) -> None:
    (tar,) = _make(tmp_path, 1)
    for with_checksums, is_new in ((False, True), (True, True), (True, False), (False, False)):
        (report,) = index_tars([tar], with_checksums=with_checksums)
        assert report.is_new == is_new
    assert set(read_index(index_path(tar), str(tar)).checksums) == {"jpg", "txt"}


def test_indexes_go_to_a_folder_of_their_own(tmp_path: Path) -> None:
    _make(tmp_path / "in/a")
    _make(tmp_path / "in/b", 1)
    reports = list(index_tars([tmp_path / "in"], output=tmp_path / "out"))
    assert sorted(str(report.index.relative_to(tmp_path)) for report in reports) == [
        "out/a/0.index.parquet",
        "out/a/1.index.parquet",
        "out/a/2.index.parquet",
        "out/b/0.index.parquet",
    ]
    assert not list((tmp_path / "in").rglob("*.parquet"))


def test_objects_need_a_folder_for_their_indexes(tmp_path: Path, bucket: str) -> None:
    (tar,) = _make(tmp_path, 1)
    put_if_absent(f"s3://{bucket}/x/0.tar", tar.read_bytes())
    with pytest.raises(UsageError, match=r"s3://.*0\.tar: its index can't be written beside it.*--output"):
        list(index_tars([f"s3://{bucket}/x"]))
    for is_new in (True, False):
        (report,) = index_tars([f"s3://{bucket}/x"], output=tmp_path / "out")
        assert report.is_new == is_new and report.index == tmp_path / "out/0.index.parquet"
    assert read_index(report.index, report.shard).version.startswith("etag:")


def test_tars_of_several_places_have_indexes_of_their_own(tmp_path: Path, bucket: str) -> None:
    (tar,) = _make(tmp_path, 1)
    put_if_absent(f"s3://{bucket}/x/0.tar", write_tar(tmp_path / "other/0.tar", {"t.jpg": b"x"}).read_bytes())
    reports = list(index_tars([tar, f"s3://{bucket}/x/0.tar"], output=tmp_path / "out"))
    assert [read_index(report.index, report.shard).keys for report in reports] == [["s0"], ["t"]]
    assert len({report.index for report in reports}) == 2


def test_seek_points_of_objects_go_there_too(tmp_path: Path, bucket: str) -> None:
    tar = write_tar(tmp_path / "0.tar", {"a.txt": b"1"})
    put_if_absent(f"s3://{bucket}/x/0.tar.gz", gzip.compress(tar.read_bytes()))
    for is_new in (True, False):
        (report,) = index_tars([f"s3://{bucket}/x"], output=tmp_path / "out")
        assert (report.num_samples, report.is_new) == (1, is_new)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0.tar.gz.index.parquet", "0.tar.gz.index.points"}


def test_tars_of_a_web_server_are_named_one_by_one(tmp_path: Path, s3_endpoint: str, bucket: str) -> None:
    tars = _make(tmp_path)
    for tar in tars:
        put_object(s3_endpoint, f"{bucket}/a b/{tar.name}", tar.read_bytes())
    put_object(s3_endpoint, f"{bucket}/a b/3.tgz", gzip.compress(tars[2].read_bytes()))
    site = f"{s3_endpoint}/{bucket}/a%20b"
    for is_new in (True, False):
        reports = list(index_tars([f"{site}/{{0..2}}.tar", f"{site}/3.tgz"], output=tmp_path / "out"))
        assert [report.is_new for report in reports] == [is_new] * 4
    assert [read_index(report.index, report.shard).keys for report in reports] == [["s0"], ["s1"], ["s2"], ["s2"]]
    with pytest.raises(DatasetError, match=r"3\.tar: there is no such object"):
        list(index_tars([f"{site}/{{0..3}}.tar"], output=tmp_path / "out"))
    with pytest.raises(UsageError, match="a web server can't list its files"):
        list(index_tars([f"{site}/*.tar"], output=tmp_path / "out"))


def test_good_shards_are_indexed_although_others_are_damaged(tmp_path: Path) -> None:
    tars = _make(tmp_path, 4)
    tars[1].write_bytes(b"no tar" * 100)
    found = []
    with pytest.raises(DatasetError, match=r"1\.tar: not a tar"):
        for report in index_tars([tmp_path]):
            found.append(report.shard)
    assert found == [str(tar) for tar in tars if tar != tars[1]]
    tars[2].write_bytes(b"")
    with pytest.raises(
        DatasetError, match=r"2 of 4 shards can't be indexed:\n  .*1\.tar: not a tar.\n  .*2\.tar: is empty"
    ):
        list(index_tars([tmp_path]))
    with pytest.raises(UsageError, match="expected a size such as 16GiB, found 'much'"):
        list(index_tars([tmp_path], max_unpacked="much"))


@pytest.mark.ray
def test_ray_indexes_what_would_take_long(tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "_TRIAL_S", -1.0)
    monkeypatch.setattr(indexing, "_RAY_FROM_S", -1.0)
    tars = _make(tmp_path, 20)
    tars[7].write_bytes(b"no tar" * 100)
    places = sidecars(find_shards([tmp_path]), None)
    reports = {report.shard: report for report in index_shards(places, IndexSettings())}
    assert len(reports) == 20 and [Path(shard).name for shard, report in reports.items() if report.problem] == ["7.tar"]
    for tar in tars:
        assert index_path(tar).is_file() == (tar != tars[7])


def test_sizes_are_written_with_three_digits() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 12345, 256_000_000, 5 * 10**12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "12.3 kB",
        "256 MB",
        "5,000 GB",
    ]
