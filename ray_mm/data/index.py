"""Where each member of a shard lies: a header walk of the tar → one Parquet sidecar.

    shards/000000.tar  →  shards/000000.index.parquet

The sidecar has a row per sample: ``key``, and for every suffix that occurs in the shard ``<suffix>:offset`` and
``<suffix>:size`` in bytes (−1 where the sample lacks it). In a dataset it also has ``label:<field>`` for every label, so
that an order can be planned without opening a shard. Its metadata says which bytes it was made of: size and version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_mm.config.fields import LabelField
from ray_mm.data.tar import Member, split_name, walk_tar
from ray_mm.errors import DatasetError, ObjectMissingError, StorageError
from ray_mm.storage import write_atomic
from ray_mm.storage.remote import ObjectInfo, read_object, stat

Labels = npt.NDArray[np.int32] | npt.NDArray[np.float32]

_SIZE_KEY = b"ray_mm.shard_bytes"
_VERSION_KEY = b"ray_mm.shard_version"
_LABEL = "label:"


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
    """

    keys: list[str]
    offsets: dict[str, npt.NDArray[np.int64]]
    sizes: dict[str, npt.NDArray[np.int64]]
    shard_bytes: int
    version: str
    labels: dict[str, Labels] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)


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


def index_path(shard: Path) -> Path:
    """The sidecar of a shard that lies beside it."""
    return shard.with_suffix(".index.parquet")


def shard_state(location: str) -> ShardState:
    """What a shard is now, without reading it.

    Args:
        location: absolute path or URL of a tar.

    Raises:
        DatasetError: it is not there, or can't be looked at.
    """
    return _state(_look(location))


def _look(location: str) -> ObjectInfo:
    try:
        return stat(location)
    except ObjectMissingError:
        raise DatasetError(f"{location}: the shard is missing.") from None
    except StorageError as error:
        raise DatasetError(str(error)) from None


def _state(info: ObjectInfo) -> ShardState:
    return ShardState(info.size, info.version)


def is_current(known: ShardState, now: ShardState) -> bool:
    """Whether a shard still has the bytes that it had. A content hash says nothing of a time: then the size decides."""
    kinds = [state.version.partition(":")[0] for state in (known, now)]
    return known.size_bytes == now.size_bytes and (kinds[0] != kinds[1] or known.version == now.version)


def require_current(location: str, known: ShardState, remedy: str) -> ObjectInfo:
    """Checks that a shard is what it was.

    Args:
        location: of the shard.
        known: what it was.
        remedy: what to do if it is not, such as ``index it again with: …``.

    Returns:
        What it is.

    Raises:
        DatasetError: it is gone or has changed.
    """
    found = _look(location)
    now = _state(found)
    if is_current(known, now):
        return found
    if now.size_bytes != known.size_bytes:
        what = f"has {now.size_bytes} bytes and had {known.size_bytes} when it was indexed"
    else:
        what = f"has changed since it was indexed (now {now.version}, then {known.version})"
    raise DatasetError(f"{location}: {what}; if it was meant to change, {remedy}")


def index_shard(shard: Path) -> ShardIndex:
    """Walks a tar's headers.

    Raises:
        DatasetError: not a tar, cut short, or with members that ray_mm refuses.
    """
    before = shard_state(str(shard))
    keys: list[str] = []
    rows: list[dict[str, Member]] = []
    seen: set[str] = set()
    for member in walk_tar(shard):
        key, suffix = split_name(member.name)
        if not suffix:
            continue
        if not keys or key != keys[-1]:
            if key in seen:
                raise DatasetError(f"{shard}[{key}]: the members of this sample are not next to each other in the tar.")
            seen.add(key)
            keys.append(key)
            rows.append({})
        if suffix in rows[-1]:
            raise DatasetError(f"{shard}[{key}]: {suffix} stands twice.")
        rows[-1][suffix] = member
    offsets = {suffix: np.full(len(keys), -1, np.int64) for suffix in sorted({s for row in rows for s in row})}
    sizes = {suffix: np.full(len(keys), -1, np.int64) for suffix in offsets}
    for position, row in enumerate(rows):
        for suffix, member in row.items():
            offsets[suffix][position] = member.offset
            sizes[suffix][position] = member.size
    return ShardIndex(keys, offsets, sizes, before.size_bytes, before.version)


def write_index(path: Path, index: ShardIndex) -> None:
    """Writes a sidecar.

    Raises:
        DatasetError: a label's column would have the name of a suffix's.
    """
    columns: dict[str, pa.Array] = {"key": pa.array(index.keys, pa.string())}
    for suffix in index.offsets:
        columns[f"{suffix}:offset"] = pa.array(index.offsets[suffix])
        columns[f"{suffix}:size"] = pa.array(index.sizes[suffix])
    for name, values in index.labels.items():
        if _LABEL + name in columns:
            raise DatasetError(f"{path}: the members .label and the label field {name!r} clash; rename the field.")
        columns[_LABEL + name] = pa.array(values)
    metadata = {_SIZE_KEY: str(index.shard_bytes).encode(), _VERSION_KEY: index.version.encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def read_index(path: Path | str, shard: str, remedy: str | None = None) -> ShardIndex:
    """Reads a sidecar; the shard itself is not looked at.

    Args:
        path: of the sidecar; a URL, too.
        shard: location of its shard, for errors.
        remedy: what to do where the sidecar is missing or damaged. None: index the shard again.

    Raises:
        DatasetError: it is missing or damaged.
    """
    remedy = remedy or f"make it with: ray-mm index {shard}"
    try:
        with pq.ParquetFile(pa.BufferReader(read_object(str(path)))) as file:
            index = _from_table(file.read())
    except ObjectMissingError:
        raise DatasetError(f"{path}: the shard's index is missing; {remedy}") from None
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        raise DatasetError(f"{path}: the index is damaged ({error}); {remedy}") from None
    for suffix, offsets in index.offsets.items():
        ends = offsets + index.sizes[suffix]
        if len(offsets) and (
            (offsets < -1).any() or ((offsets < 0) != (index.sizes[suffix] < 0)).any() or ends.max() > index.shard_bytes
        ):
            raise DatasetError(f"{path}: the index is damaged ({suffix}); {remedy}")
    return index


def _from_table(table: pa.Table) -> ShardIndex:
    metadata = table.schema.metadata
    suffixes = [
        name.removesuffix(":offset")
        for name in table.column_names
        if name.endswith(":offset") and table.schema.field(name).type == pa.int64()
    ]
    labels = {
        name.removeprefix(_LABEL): _column(table, name)
        for name in table.column_names
        if name.startswith(_LABEL) and table.schema.field(name).type in (pa.int32(), pa.float32())
    }
    return ShardIndex(
        keys=table.column("key").to_pylist(),
        offsets={suffix: _column(table, f"{suffix}:offset") for suffix in suffixes},
        sizes={suffix: _column(table, f"{suffix}:size", pa.int64()) for suffix in suffixes},
        shard_bytes=int(metadata[_SIZE_KEY]),
        version=metadata.get(_VERSION_KEY, b"").decode(),
        labels=labels,
    )


def _column(table: pa.Table, name: str, type: pa.DataType | None = None) -> npt.NDArray[Any]:
    column = table.column(name)
    values: npt.NDArray[Any] = (
        (column if type is None else column.cast(type)).combine_chunks().to_numpy(zero_copy_only=True)
    )
    return values
