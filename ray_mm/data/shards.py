"""Patterns → the shards that they name: braces, globs, folders and single files, on this machine's disks or in a store.

    /data/train-{0000..0127}.tar    s3://bucket/train/*.tar    gs://bucket/train/    data/**/*.tgz    https://host/{0..9}.tar

A folder, or in a store what is before the first ``*`` of a glob, is listed once; no object of it is asked for by itself.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from braceexpand import braceexpand

from ray_mm.errors import DatasetError, ObjectMissingError, UsageError
from ray_mm.storage import is_remote, local_path
from ray_mm.storage.ranges import run_all
from ray_mm.storage.remote import ObjectInfo, list_objects, stat

TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz")
_GLOB = re.compile(r"[*?\[]")
_OURS = (".index.parquet", ".index.points")
"""What ``ray-mm index`` writes beside tars: a glob such as ``train.*`` never means it."""
_LISTED_FROM = 8
"""So many objects of one folder are looked up in a listing instead of one by one."""


def find_shards(patterns: Sequence[str | Path]) -> list[ObjectInfo]:
    """The shards that some patterns name, each once, with size and version; in the order of the patterns, globs sorted.

    Raises:
        DatasetError: a pattern names nothing, or a folder holds no tars.
        UsageError: a pattern that can't be read.
        StorageError: a store does not answer, or refuses.
    """
    found: dict[str, ObjectInfo] = {}
    for pattern in patterns:
        names = _expanded(str(pattern))
        globs = [name for name in names if _GLOB.search(name) and not _is_file(name)]
        for name in globs:
            for info in _glob(name):
                found.setdefault(info.url, info)
        for info in _named([name for name in names if name not in set(globs)]):
            found.setdefault(info.url, info)
    return list(found.values())


def _expanded(pattern: str) -> list[str]:
    if not pattern:
        raise UsageError("tars: found an empty name; expected a file, a folder, a glob or a URL.")
    if "{" not in pattern or _is_file(pattern):
        return [_absolute(pattern)]
    try:
        return [_absolute(name) for name in braceexpand(pattern)]
    except ValueError:
        raise UsageError(f"{pattern}: a brace is not closed; expected such as train-{{0000..0127}}.tar.") from None


def _absolute(name: str) -> str:
    return name if is_remote(name) else str(local_path(name))


def _is_file(name: str) -> bool:
    """Whether a local file has just this name, braces and stars included."""
    return not is_remote(name) and local_path(name).is_file()


def _named(names: Sequence[str]) -> list[ObjectInfo]:
    """Files and folders by their names."""
    listed = _looked_up([name for name in names if is_remote(name)])
    found: list[ObjectInfo] = []
    for name in names:
        if name in listed:
            found.append(listed[name])
        elif is_remote(name) or local_path(name).is_dir():
            found += _tars_in(name)
        else:
            try:
                found.append(stat(name))
            except ObjectMissingError:
                raise DatasetError(f"{name}: no such file or folder.") from None
    return found


def _looked_up(names: Sequence[str]) -> dict[str, ObjectInfo]:
    """URLs of objects → the objects; those that look like folders are left out."""
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        if name.endswith(TAR_SUFFIXES):
            folders[name.rpartition("/")[0]].append(name)
    found: dict[str, ObjectInfo] = {}
    for folder, inside in folders.items():
        if len(inside) >= _LISTED_FROM and not folder.startswith("http"):
            wanted = set(inside)
            found |= {info.url: info for info in list_objects(folder) if info.url in wanted}
        else:
            try:
                infos = run_all([functools.partial(stat, name) for name in inside])
            except ObjectMissingError as error:
                raise DatasetError(str(error)) from None
            found |= dict(zip(inside, infos, strict=True))
        missing = [name for name in inside if name not in found]
        if missing:
            raise DatasetError(
                f"{missing[0]}: no such object, and {len(missing) - 1:,} more of the pattern are missing."
            )
    return found


def _tars_in(folder: str) -> list[ObjectInfo]:
    inside = _sorted(info for info in list_objects(folder) if info.url.endswith(TAR_SUFFIXES))
    if not inside:
        raise DatasetError(
            f"{folder}: holds no {', '.join(TAR_SUFFIXES)} files; name a tar, or the folder that has them."
        )
    return inside


def _glob(pattern: str) -> list[ObjectInfo]:
    first = _GLOB.search(pattern)
    assert first is not None
    folder = pattern[: first.start()].rpartition("/")[0]
    if is_remote(pattern) or "**/" in pattern:
        matches = _as_regex(pattern)
        listed = (info for info in list_objects(folder or "/") if matches.fullmatch(info.url))
    else:
        # Level by level, for below a folder may lie millions of files that the pattern does not mean.
        named = pattern.removeprefix(f"{folder}/")
        listed = (stat(str(path)) for path in Path(folder or "/").glob(named) if path.is_file())
    inside = _sorted(info for info in listed if not info.url.endswith(_OURS))
    if not inside:
        raise DatasetError(f"{pattern}: matches nothing in {folder or '/'}.")
    return inside


def _as_regex(pattern: str) -> re.Pattern[str]:
    """As shells do: ``*`` and ``?`` stay within a folder, ``**/`` is any folders."""
    parts, place = [], 0
    for match in re.finditer(r"\*\*/|\*|\?|\[[!^]?[^\]]+\]", pattern):
        parts.append(re.escape(pattern[place : match.start()]))
        kind, place = match[0], match.end()
        plain = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
        parts.append(plain.get(kind) or re.sub(r"^\[!", "[^", kind))
    return re.compile("".join(parts) + re.escape(pattern[place:]))


def _sorted(infos: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    return sorted(infos, key=lambda info: info.url)
