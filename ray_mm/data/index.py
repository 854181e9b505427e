"""A tar → where each member of its samples lies, by a walk of its headers. What was found is kept in a sidecar (``sidecar``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from ray_mm.config.fields import LabelField
from ray_mm.data.gzip_bytes import GzipBytes
from ray_mm.data.tar import Members, walk_tar
from ray_mm.data.tar_bytes import MAX_UNPACKED_BYTES, LocalBytes, RemoteBytes, TarBytes
from ray_mm.errors import DatasetError, ObjectMissingError, StorageError
from ray_mm.storage import is_remote, local_path
from ray_mm.storage.remote import ObjectInfo, stat

_LOG = logging.getLogger(__name__)

Labels = npt.NDArray[np.int32] | npt.NDArray[np.float32]

_GZIP = b"\x1f\x8b"
_MAX_SUFFIXES = 1000


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, in the order of the tar.

    Attributes:
        keys: a name per sample.
        offsets: suffix → int64 [num_samples], bytes from the start of the tar; −1 where absent.
        sizes: suffix → int64 [num_samples], bytes; −1 where absent.
        shard_bytes: size of the tar when it was indexed.
        version: of the tar when it was indexed; see ``ShardState``.
        labels: label field → int32 [num_samples], the number of the class, −1 where absent; or float32 [num_samples], the
            number, NaN where absent. Empty for a tar that is in no dataset.
        checksums: suffix → uint32 [num_samples], CRC32C of each member (RFC 3720), 0 where absent. Empty where they were not
            asked for.
        unpacked_bytes: of the tar within a gzip file, to which the offsets refer; None for a plain tar.
        seek_points: of a gzip file, on their way to ``points_path``.
        points_crc: CRC32C of the seek points; None for a plain tar.
    """

    keys: list[str]
    offsets: dict[str, npt.NDArray[np.int64]]
    sizes: dict[str, npt.NDArray[np.int64]]
    shard_bytes: int
    version: str
    labels: dict[str, Labels] = field(default_factory=dict)
    checksums: dict[str, npt.NDArray[np.uint32]] = field(default_factory=dict)
    unpacked_bytes: int | None = None
    seek_points: bytes | None = field(default=None, repr=False)
    points_crc: int | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: npt.NDArray[np.int64], labels: dict[str, Labels]) -> ShardIndex:
        """The index of some of the samples, with labels of theirs."""
        return replace(
            self,
            keys=[self.keys[row] for row in rows.tolist()],
            offsets={suffix: values[rows] for suffix, values in self.offsets.items()},
            sizes={suffix: values[rows] for suffix, values in self.sizes.items()},
            checksums={suffix: values[rows] for suffix, values in self.checksums.items()},
            labels=labels,
        )


@dataclass(frozen=True)
class ShardState:
    """Which bytes a shard has.

    Attributes:
        size_bytes: of the tar.
        version: changes with the bytes: ``sha256:<hex>`` for a shard that ray_mm wrote, ``mtime:<ns>`` for another local
            file, ``etag:<text>`` for an object in a store.
    """

    size_bytes: int
    version: str


def as_labels(values: Sequence[float | None], spec: LabelField) -> Labels:
    """The column of a label; see ``ShardIndex.labels``.

    Args:
        values: of each sample: the number of its class or its number; None where absent.
        spec: the field.
    """
    if spec.target == "class":
        return np.array([-1 if value is None else value for value in values], np.int32)
    return np.array([np.nan if value is None else value for value in values], np.float32)


def shard_state(location: str) -> ShardState:
    """What a shard is now, without reading it.

    Args:
        location: absolute path or URL of a tar.

    Raises:
        DatasetError: it is not there.
        StorageError: it can't be looked at.
    """
    return _state(_look(location))


def _look(location: str, name: str | None = None) -> ObjectInfo:
    try:
        return stat(location)
    except ObjectMissingError:
        raise DatasetError(f"{name or location}: the shard is missing.") from None
    except StorageError as error:
        raise StorageError(str(error).replace(location, name or location, 1)) from None


def _state(info: ObjectInfo) -> ShardState:
    return ShardState(info.size, info.version)


def is_current(known: ShardState, now: ShardState) -> bool:
    """Whether a shard still has the bytes that it had. A content hash says nothing of a time: then the size decides."""
    kinds = [state.version.partition(":")[0] for state in (known, now)]
    return known.size_bytes == now.size_bytes and (kinds[0] != kinds[1] or known.version == now.version)


def require_current(location: str, known: ShardState, remedy: str, name: str | None = None) -> ObjectInfo:
    """Checks that a shard is what it was.

    Args:
        location: of the shard.
        known: what it was.
        remedy: what to do if it is not, such as ``index it again with: …``.
        name: what to call the shard in an error. None: its location.

    Returns:
        What it is.

    Raises:
        DatasetError: it is gone or has changed.
        StorageError: it can't be looked at.
    """
    found = _look(location, name)
    now = _state(found)
    if is_current(known, now):
        return found
    if now.size_bytes != known.size_bytes:
        what = f"has {now.size_bytes} bytes and had {known.size_bytes} when it was indexed"
    else:
        what = f"has changed since it was indexed (now {now.version}, then {known.version})"
    raise DatasetError(f"{name or location}: {what}; if it was meant to change, {remedy}")


def index_shard(
    shard: str | Path | ObjectInfo, *, with_checksums: bool = False, max_unpacked: int = MAX_UNPACKED_BYTES
) -> ShardIndex:
    """Walks a tar's headers. Members of a sample may lie anywhere in it; samples are in the order of their first members.

    Args:
        shard: path or URL of a tar, also of one that is compressed with gzip; or what a listing says of it.
        with_checksums: whether to read every payload, too, for its CRC32C.
        max_unpacked: bytes; a gzip stream that is longer is refused.

    Raises:
        DatasetError: not a tar, cut short, or with members that ray_mm refuses.
        StorageError: the store does not answer, or refuses.
    """
    if isinstance(shard, ObjectInfo):
        info, location = shard, shard.url
    else:
        location = str(shard) if is_remote(shard) else str(local_path(shard))
        info = _look(location)
    if info.size == 0:
        raise DatasetError(f"{location}: is empty; expected a tar.")
    source = _source(info, max_unpacked)
    members = walk_tar(location, source)
    table = _by_sample(location, members)
    crcs = _checksums(source, table) if with_checksums else {}
    points = source.seek_points() if isinstance(source, GzipBytes) else None
    index = ShardIndex(
        keys=table.keys,
        offsets=table.offsets,
        sizes=table.sizes,
        shard_bytes=info.size,
        version=info.version,
        checksums=crcs,
        unpacked_bytes=None if points is None else members.tar_bytes,
        seek_points=points,
        points_crc=None if points is None else google_crc32c.value(points),
    )
    if not is_remote(location):
        require_current(location, ShardState(info.size, info.version), f"index it again with: ray-mm index {location}")
    return index


def _source(info: ObjectInfo, max_unpacked: int) -> TarBytes:
    source = RemoteBytes(info) if is_remote(info.url) else LocalBytes(local_path(info.url))
    return GzipBytes(info, max_unpacked) if source.read(0, min(2, info.size)) == _GZIP else source


def _by_sample(location: str, members: Members) -> ShardIndex:
    """Members → samples: WebDataset's rule, the key ends at the first dot of the last path component."""
    row_of: dict[str, int] = {}
    column_of: dict[str, int] = {}
    rows: list[int] = []
    columns: list[int] = []
    without: list[str] = []
    last, begin = -1, "\0"
    for name in members.names:
        # Nearly always the next member of the same sample.
        if name.startswith(begin) and "/" not in (suffix := name[len(begin) :]) and suffix:
            rows.append(last)
            columns.append(column_of.setdefault(suffix, len(column_of)))
            continue
        slash = name.rfind("/") + 1
        dot = name.find(".", slash)
        if dot > slash and dot + 1 < len(name):
            last, begin = row_of.setdefault(name[:dot], len(row_of)), name[: dot + 1]
            rows.append(last)
            columns.append(column_of.setdefault(name[dot + 1 :], len(column_of)))
        else:  # a file without an extension, or a hidden one, belongs to no sample
            rows.append(-1)
            columns.append(-1)
            if dot != slash:
                without.append(name)
    if without:
        _LOG.warning(
            "members without an extension belong to no sample: shard=%s members=%d first=%r",
            location,
            len(without),
            without[0],
        )
    if len(column_of) > _MAX_SUFFIXES:
        examples = ", ".join(sorted(column_of)[:3])
        raise DatasetError(
            f"{location}: has {len(column_of):,} different suffixes ({examples}, …), expected {_MAX_SUFFIXES:,} at most: a key "
            "ends at the first dot of a file's name. Rename the members, such as 000001.rgb.png."
        )
    row, column = np.array(rows, np.int64), np.array(columns, np.int64)
    there = row >= 0
    row, column, offset, size = row[there], column[there], members.offsets[there], members.sizes[there]
    offsets = np.full((len(column_of), len(row_of)), -1, np.int64)
    sizes = offsets.copy()
    offsets[column, row], sizes[column, row] = offset, size
    if np.count_nonzero(offsets >= 0) != len(row):
        _refuse_twice(location, list(row_of), list(column_of), row, column)
    names = sorted(column_of)
    return ShardIndex(
        keys=list(row_of),
        offsets={name: offsets[column_of[name]] for name in names},
        sizes={name: sizes[column_of[name]] for name in names},
        shard_bytes=members.tar_bytes,
        version="",
    )


def _refuse_twice(
    location: str, keys: list[str], suffixes: list[str], row: npt.NDArray[np.int64], column: npt.NDArray[np.int64]
) -> None:
    seen: set[tuple[int, int]] = set()
    for place in zip(row.tolist(), column.tolist(), strict=True):
        if place in seen:
            raise DatasetError(f"{location}[{keys[place[0]]}]: {suffixes[place[1]]} stands twice.")
        seen.add(place)


def _checksums(source: TarBytes, index: ShardIndex) -> dict[str, npt.NDArray[np.uint32]]:
    found = {suffix: np.zeros(len(index), np.uint32) for suffix in index.offsets}
    places = [
        (int(offset), int(index.sizes[suffix][row]), suffix, row)
        for suffix, offsets in index.offsets.items()
        for row, offset in enumerate(offsets)
        if offset >= 0
    ]
    for offset, size, suffix, row in sorted(places):
        found[suffix][row] = google_crc32c.value(source.read(offset, size))
    return found
