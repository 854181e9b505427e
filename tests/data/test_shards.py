"""Patterns of shards: braces, globs, folders, files; here and in a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_mm.data.shards import find_shards
from ray_mm.errors import DatasetError, UsageError
from ray_mm.storage.remote import put_if_absent
from tests.object_store import Proxy

_NAMES = ("a/0.tar", "a/1.tar", "a/2.tgz", "a/deep/3.tar.gz", "a/note.txt", "b/0.tar", "b/[1].tar")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in _NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["a/1.tar", "a/0.tar"], ["a/1.tar", "a/0.tar"]),
        (["a/{0..1}.tar"], ["a/0.tar", "a/1.tar"]),
        (["{b,a}/0.tar"], ["b/0.tar", "a/0.tar"]),
        (["a/*.tar"], ["a/0.tar", "a/1.tar"]),
        (["*/0.tar"], ["a/0.tar", "b/0.tar"]),
        (["**/*.tar*"], ["a/0.tar", "a/1.tar", "a/deep/3.tar.gz", "b/0.tar", "b/[1].tar"]),
        (["a/[!0].t?r"], ["a/1.tar"]),
        (["b/[1].tar"], ["b/[1].tar"]),
        (["a"], ["a/0.tar", "a/1.tar", "a/2.tgz", "a/deep/3.tar.gz"]),
        (["a/0.tar", "a/*.tar", "a"], ["a/0.tar", "a/1.tar", "a/2.tgz", "a/deep/3.tar.gz"]),
        (["a/note.txt"], ["a/note.txt"]),
    ],
)
def test_a_pattern_names_files(folder: Path, patterns: list[str], expected: list[str]) -> None:
    found = find_shards([folder / pattern for pattern in patterns])
    assert [str(Path(info.url).relative_to(folder)) for info in found] == expected
    for info in found:
        assert info.size == Path(info.url).stat().st_size and info.version.startswith("mtime:")


def test_a_glob_passes_over_the_indexes_beside_tars(folder: Path) -> None:
    for name in ("0.index.parquet", "0.tgz.index.points"):
        (folder / "a" / name).write_bytes(b"")
    assert [Path(info.url).name for info in find_shards([folder / "a/*"])] == ["0.tar", "1.tar", "2.tgz", "note.txt"]


def test_a_glob_looks_only_where_it_says_and_follows_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "linked").symlink_to(folder / "a" / "deep")
    found = find_shards([folder / "*/3.tar.gz"])
    assert [Path(info.url).relative_to(folder) for info in found] == [Path("linked/3.tar.gz")]
    # Below it may lie millions of files.
    monkeypatch.setattr("ray_mm.data.shards.list_objects", lambda folder: pytest.fail(f"{folder} is listed to its end"))
    assert len(find_shards([folder / "a/*.tar"])) == 2


def test_what_names_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"a/{0..2}\.tar|a/2\.tar: no such file or folder"):
        find_shards([folder / "a/{0..2}.tar"])
    with pytest.raises(DatasetError, match="matches nothing in"):
        find_shards([folder / "c*/0.tar"])
    with pytest.raises(UsageError, match="a brace is not closed"):
        find_shards([folder / "a/{0..2.tar"])
    (folder / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"holds no \.tar, \.tgz, \.tar\.gz files"):
        find_shards([folder / "empty"])


def test_objects_of_a_folder_are_listed_once(folder: Path, proxy: Proxy, bucket: str) -> None:
    for number in range(12):
        put_if_absent(f"s3://{bucket}/many/{number:02d}.tar", b"x" * number)
    proxy.requests.clear()
    found = find_shards([f"s3://{bucket}/many/{{00..11}}.tar"])
    assert [info.size for info in found] == list(range(12)) and all(info.etag for info in found)
    assert [request.method for request in proxy.requests] == ["GET"]
    assert find_shards([f"s3://{bucket}/many/*.tar"]) == find_shards([f"s3://{bucket}/many"]) == found
    assert find_shards([f"s3://{bucket}/many/{{03..04}}.tar"]) == found[3:5]
    with pytest.raises(DatasetError, match=r"12\.tar: no such object, and 1 more of the pattern"):
        find_shards([f"s3://{bucket}/many/{{00..13}}.tar"])
    with pytest.raises(DatasetError, match=r"99\.tar: there is no such object"):
        find_shards([f"s3://{bucket}/many/99.tar"])
