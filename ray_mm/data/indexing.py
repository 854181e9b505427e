"""Many shards → their indexes: only those that are missing or stale, here or, where it would take long, with Ray Data."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from pydantic import TypeAdapter, ValidationError

from ray_mm.config.base import Size
from ray_mm.data.index import ShardIndex, ShardState, index_shard, is_current
from ray_mm.data.shards import find_shards
from ray_mm.data.sidecar import index_path, read_index, read_points, write_index
from ray_mm.data.tar_bytes import MAX_UNPACKED_BYTES
from ray_mm.errors import DatasetError, RayMMError, UsageError
from ray_mm.progress import progress
from ray_mm.storage import is_remote, local_path
from ray_mm.storage.remote import ObjectInfo

_TRIAL_S = 3.0
"""Time after which the rest is estimated."""
_RAY_FROM_S = 30.0
"""Starting Ray takes about 6 s; a rest that would take so long is worth it."""
_THREADS = 16
_SHOWN = 20
_SHARDS_PER_TASK = 16


_SIZE: TypeAdapter[int] = TypeAdapter(Size)


@dataclass(frozen=True)
class Sidecar:
    """A shard and the place of its index.

    Attributes:
        shard: as it lies there now.
        path: of the index.
    """

    shard: ObjectInfo
    path: Path


@dataclass(frozen=True)
class ShardReport:
    """What became of one shard. As a text it is one line.

    Attributes:
        shard: its location.
        index: path of its index.
        num_samples: in it.
        size_bytes: of it.
        suffixes: of its members.
        is_new: whether the index was made now; it was there and current else.
        problem: why it can't be indexed; empty where it was.
    """

    shard: str
    index: Path
    num_samples: int = 0
    size_bytes: int = 0
    suffixes: tuple[str, ...] = ()
    is_new: bool = True
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        sizes = f"{self.num_samples:,} samples, {size_text(self.size_bytes)}"
        done = f"→ {self.index.name}" if self.is_new else "(is indexed)"
        return f"{self.shard}: {sizes}, {', '.join(self.suffixes) or 'no members'} {done}"


@dataclass(frozen=True)
class IndexSettings:
    """How shards are indexed.

    Attributes:
        with_checksums: whether every payload is read for its CRC32C.
        max_unpacked: bytes; a gzip stream that is longer is refused.
    """

    with_checksums: bool = False
    max_unpacked: int = MAX_UNPACKED_BYTES


def sidecars(shards: Sequence[ObjectInfo], output: Path | None) -> list[Sidecar]:
    """Where the indexes of some shards lie.

    Args:
        shards: local, or in a store.
        output: a folder for all of them, which keeps the folders that the shards differ by. None: beside the shards.

    Raises:
        UsageError: shards in a store, and no folder for their indexes.
    """
    if output is None:
        remote = next((shard.url for shard in shards if is_remote(shard.url)), None)
        if remote is not None:
            raise UsageError(f"{remote}: its index can't be written beside it; name a folder with --output.")
        return [Sidecar(shard, index_path(Path(shard.url))) for shard in shards]
    # URLs as if their stores were folders of this machine, so that there is a common one for any mixture.
    folders = [PurePosixPath("/", shard.url).parent for shard in shards]
    common = PurePosixPath(os.path.commonpath(folders)) if folders else PurePosixPath()
    return [
        Sidecar(shard, index_path(output / folder.relative_to(common) / PurePosixPath(shard.url).name))
        for shard, folder in zip(shards, folders, strict=True)
    ]


def current_index(sidecar: Sidecar, settings: IndexSettings) -> ShardIndex | None:
    """The index of a shard if it is there and of the bytes that the shard has now."""
    if not sidecar.path.is_file():
        return None
    try:
        index = read_index(sidecar.path, sidecar.shard.url)
        if index.unpacked_bytes is not None:
            index = replace(index, seek_points=read_points(sidecar.path, index, sidecar.shard.url))
    except DatasetError:
        return None
    known = ShardState(index.shard_bytes, index.version)
    has_checksums = not settings.with_checksums or index.checksums.keys() == index.offsets.keys()
    current = is_current(known, ShardState(sidecar.shard.size, sidecar.shard.version))
    return index if current and has_checksums else None


def index_shards(places: Sequence[Sidecar], settings: IndexSettings) -> Iterator[ShardReport]:
    """Indexes shards whose index is missing, stale or damaged; a report for each, as they are done.

    The first ones are done in this process. Where the rest would take long, Ray Data does it.
    """
    started = time.monotonic()
    todo: list[Sidecar] = []
    for place in places:
        index = current_index(place, settings)
        if index is None:
            todo.append(place)
        else:
            yield _report(place, index, is_new=False)
    # Local shards keep a processor busy, remote ones only wait.
    threads = _THREADS if any(is_remote(place.shard.url) for place in todo) else 1
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        while done < len(todo):
            part = todo[done : done + threads]
            yield from pool.map(lambda place: make_index(place, settings), part)
            done += len(part)
            spent = time.monotonic() - started
            if spent > _TRIAL_S and spent / done * (len(todo) - done) > _RAY_FROM_S:
                break
    if done < len(todo):
        yield from _with_ray(todo[done:], settings)


def make_index(place: Sidecar, settings: IndexSettings) -> ShardReport:
    """Indexes one shard; what is wrong with it is part of the report."""
    try:
        index = index_shard(place.shard, with_checksums=settings.with_checksums, max_unpacked=settings.max_unpacked)
        write_index(place.path, index)
    except RayMMError as error:
        return ShardReport(place.shard.url, place.path, problem=str(error))
    except OSError as error:
        reason = f"{place.path}: can't be written ({error.strerror or error}); name a folder for it with --output."
        return ShardReport(place.shard.url, place.path, problem=reason)
    return _report(place, index, is_new=True)


def _report(place: Sidecar, index: ShardIndex, is_new: bool) -> ShardReport:
    return ShardReport(place.shard.url, place.path, len(index), index.shard_bytes, tuple(sorted(index.offsets)), is_new)


def _with_ray(places: Sequence[Sidecar], settings: IndexSettings) -> Iterator[ShardReport]:
    from ray_mm.session import map_on_ray, ray_session

    with ray_session(with_models=False):
        tasks = max(1, len(places) // _SHARDS_PER_TASK)
        yield from map_on_ray(partial(make_index, settings=settings), places, tasks)


def size_text(size_bytes: float) -> str:
    """Such as ``4.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000 or unit == "GB":
            break
        size_bytes /= 1000
    return f"{size_bytes:,.0f} {unit}" if unit == "B" or size_bytes >= 100 else f"{size_bytes:.3g} {unit}"


def index_tars(
    patterns: Sequence[str | Path],
    output: str | Path | None = None,
    with_checksums: bool = False,
    max_unpacked: int | str = MAX_UNPACKED_BYTES,
) -> Iterator[ShardReport]:
    """Indexes the shards that some patterns name; a report for each that has an index in the end.

    Args:
        patterns: see ``data.shards``.
        output: folder for the indexes. None: beside the shards.
        with_checksums: whether to read every member for its CRC32C.
        max_unpacked: largest tar that a gzip file may unpack to, such as ``16GiB``.

    Raises:
        UsageError: a pattern or a size that can't be read, or no place on this machine for the indexes.
        DatasetError: a pattern names nothing; or, when all others are done, some shards can't be indexed.
    """
    try:
        settings = IndexSettings(with_checksums, _SIZE.validate_python(max_unpacked))
    except ValidationError:
        raise UsageError(f"--max-unpacked: expected a size such as 16GiB, found {max_unpacked!r}.") from None
    folder = None if output is None else local_path(output)  # before anything is listed
    places = sidecars(find_shards(patterns), folder)
    problems = []
    with progress("index", len(places), "shards") as bar:
        for report in index_shards(places, settings):
            bar.advance()
            if report.problem:
                problems.append(report.problem)
            else:
                yield report
    if len(problems) == 1:
        raise DatasetError(problems[0])
    if problems:
        shown = "\n  ".join(problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        raise DatasetError(f"{len(problems):,} of {len(places):,} shards can't be indexed:\n  {shown}{more}")
