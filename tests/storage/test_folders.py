"""Folders that never change: two at a time come to the same, and nobody takes away what the other one reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ray_mm.storage import folders
from ray_mm.storage.folders import damaged_file, describe_files, fetch_folder, keep_folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_bytes(b"a" * 1000)
    (folder / "deep" / "b").write_bytes(b"b")
    (folder / ".hidden").write_bytes(b"no part of it")
    return folder


def with_another_at_its_side(monkeypatch: pytest.MonkeyPatch, name: str, other: Callable[[], object]) -> None:
    """Another process is faster: it does all that it does when this one has begun to copy."""
    real = getattr(folders, name)

    def slower(*args: object) -> None:
        monkeypatch.setattr(folders, name, real)
        other()
        real(*args)

    monkeypatch.setattr(folders, name, slower)


def test_what_another_process_has_fetched_meanwhile_stays(
    source: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, url, place = describe_files(source), f"s3://{bucket}/kept", tmp_path / "cache" / "kept"
    keep_folder(source, files, url)
    seen: list[int] = []

    def other() -> None:
        assert fetch_folder(url, files, place) is None
        seen.append(place.stat().st_ino)

    with_another_at_its_side(monkeypatch, "_download", other)
    assert fetch_folder(url, files, place) is None
    assert seen == [place.stat().st_ino] and list(place.parent.iterdir()) == [place]
    assert describe_files(place) == files and set(files) == {"a", "deep/b"}
    # What is damaged is fetched again.
    (place / "a").write_bytes(b"x")
    assert fetch_folder(url, files, place) is None and damaged_file(str(place), files) is None


def test_what_another_process_has_kept_meanwhile_stays(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, place = describe_files(source), tmp_path / "registry" / "kept"
    seen: list[int] = []

    def other() -> None:
        keep_folder(source, files, str(place))
        seen.append(place.stat().st_ino)

    with_another_at_its_side(monkeypatch, "_copy", other)
    keep_folder(source, files, str(place))
    assert seen == [place.stat().st_ino] and list(place.parent.iterdir()) == [place]
    (place / "a").unlink()
    assert damaged_file(str(place), files) == "a"
    keep_folder(source, files, str(place))
    assert damaged_file(str(place), files) is None and list(place.parent.iterdir()) == [place]
