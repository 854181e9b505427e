"""Files and folders appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.errors import UsageError
from ray_mm.storage import atomic_folder, local_path, sha256_file, write_atomic, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_relative_path_starts_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_path("runs/a") == tmp_path / "runs" / "a"


@pytest.mark.parametrize(
    ("text", "path"), [("file:///a/b", "/a/b"), ("file:///a%20b", "/a b"), ("/a b", "/a b"), ("/a%20b", "/a%20b")]
)
def test_a_file_url_is_a_path(text: str, path: str) -> None:
    assert local_path(text) == Path(path)


def test_the_home_folder_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert local_path("~/data") == Path("/somewhere/data")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("s3://bucket/a", "s3:// can't be used here"), ("~nobody-of-that-name/a", "no such home")],
)
def test_what_is_not_on_this_machine_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        local_path(text)
    assert text in str(caught.value)


def test_a_file_is_written_with_its_folders_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b.txt", "gr\u00fcn")
    write_atomic(tmp_path / "a" / "b.txt", b"blue")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"blue"
    assert names(tmp_path / "a") == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "before")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "after")
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(content=json_values)
def test_json_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    path = tmp_path_factory.getbasetemp() / "content.json"
    write_json(path, content)
    assert json.loads(path.read_text(encoding="utf-8")) == content


def test_json_with_nan_is_refused_because_nobody_else_could_read_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


def test_a_folder_replaces_the_earlier_one_at_the_end_of_the_block(tmp_path: Path) -> None:
    target = tmp_path / "best"
    for version in ("first", "second"):
        with atomic_folder(target) as folder:
            (folder / version).write_text(version)
            assert folder != target
            assert folder.parent == target.parent, "a rename is atomic within one file system only"
    assert names(target) == ["second"]
    assert names(tmp_path) == ["best"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_folder_whose_block_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    target = tmp_path / "best"
    with atomic_folder(target) as folder:
        (folder / "first").touch()
    with pytest.raises(RuntimeError, match="in the middle"), atomic_folder(target) as folder:
        (folder / "second").touch()
        raise RuntimeError("in the middle")
    assert names(target) == ["first"]
    assert names(tmp_path) == ["best"]


def test_a_folder_that_can_not_be_put_in_place_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "best"
    with atomic_folder(target) as folder:
        (folder / "first").touch()
    replace = Path.replace

    def refuse(self: Path, other: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError("refused")
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="refused"), atomic_folder(target):
        pass
    assert names(target) == ["first"]
    assert names(tmp_path) == ["best"]


@given(content=st.binary(max_size=5000))
def test_a_digest_is_that_of_the_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "content.bin"
    path.write_bytes(content)
    assert sha256_file(path) == hashlib.sha256(content).hexdigest()
