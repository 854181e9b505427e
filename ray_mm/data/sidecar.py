"""The index of a shard on disk: a Parquet file beside it.

    shards/000000.tar  →  shards/000000.index.parquet
    other.tgz          →  other.tgz.index.parquet, other.tgz.index.points

The sidecar has a row per sample: ``key``, and for every suffix that occurs in the shard ``<suffix>:offset`` and
``<suffix>:size`` in bytes (−1 where the sample lacks it), on request also ``<suffix>:crc32c``. In a dataset it has
``label:<field>`` for every label, so that an order can be planned without opening a shard. Its metadata says which bytes it
was made of, size and version, and has a CRC32C over all that the sidecar says: a flipped bit of an offset would give a sample
the bytes of another. Of the seek points it has one, too: they hold 32 kB of the tar each, from which what follows is unpacked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_mm.data.index import ShardIndex
from ray_mm.errors import DatasetError, ObjectMissingError
from ray_mm.storage import write_atomic
from ray_mm.storage.remote import read_object

_SIZE_KEY = b"ray_mm.shard_bytes"
_VERSION_KEY = b"ray_mm.shard_version"
_UNPACKED_KEY = b"ray_mm.unpacked_bytes"
_POINTS_CRC_KEY = b"ray_mm.points_crc32c"
_CRC_KEY = b"ray_mm.crc32c"
_LABEL = "label:"


def index_path(shard: Path) -> Path:
    """The sidecar of a shard that lies beside it."""
    # Whole names, but for plain tars: a.tar and a.tgz may lie side by side.
    return shard.with_suffix(".index.parquet") if shard.suffix == ".tar" else Path(f"{shard}.index.parquet")


def points_path(index: Path) -> Path:
    """Where the seek points of a gzip file lie: beside its index."""
    return index.with_suffix(".points")


def write_index(path: Path, index: ShardIndex) -> None:
    """Writes a sidecar, and the seek points of a gzip file beside it.

    Raises:
        DatasetError: a label's column would have the name of a suffix's.
    """
    columns: dict[str, pa.Array] = {"key": pa.array(index.keys, pa.string())}
    for suffix in index.offsets:
        columns[f"{suffix}:offset"] = pa.array(index.offsets[suffix])
        columns[f"{suffix}:size"] = pa.array(index.sizes[suffix])
        if suffix in index.checksums:
            columns[f"{suffix}:crc32c"] = pa.array(index.checksums[suffix])
    for name, values in index.labels.items():
        if _LABEL + name in columns:
            raise DatasetError(f"{path}: the members .label and the label field {name!r} clash; rename the field.")
        columns[_LABEL + name] = pa.array(values)
    metadata = {_SIZE_KEY: str(index.shard_bytes).encode(), _VERSION_KEY: index.version.encode()}
    metadata[_CRC_KEY] = f"{_content_crc(index):08x}".encode()
    if index.unpacked_bytes is not None:
        metadata[_UNPACKED_KEY] = str(index.unpacked_bytes).encode()
    if index.points_crc is not None:
        metadata[_POINTS_CRC_KEY] = f"{index.points_crc:08x}".encode()
    table = pa.table(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    # Offsets and sizes go up in steps: written as differences they take a fiftieth of what a dictionary takes.
    encodings = {name: "DELTA_BINARY_PACKED" for name in table.column_names if name.endswith((":offset", ":size"))}
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        column_encoding=encodings | {"key": "DELTA_BYTE_ARRAY"},
    )
    if index.seek_points is not None:
        write_atomic(points_path(path), index.seek_points)
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
        reason = " ".join(str(error).split())  # Arrow's are of several lines
        raise DatasetError(f"{path}: the index is damaged ({reason}); {remedy}") from None
    limit = index.shard_bytes if index.unpacked_bytes is None else index.unpacked_bytes
    for suffix, offsets in index.offsets.items():
        ends = offsets + index.sizes[suffix]
        if len(offsets) and (
            (offsets < -1).any() or ((offsets < 0) != (index.sizes[suffix] < 0)).any() or ends.max() > limit
        ):
            raise DatasetError(f"{path}: the index is damaged ({suffix}); {remedy}")
    return index


def read_points(path: Path | str, index: ShardIndex, shard: str, remedy: str | None = None) -> bytes:
    """The seek points of a gzip file.

    Args:
        path: of its sidecar; a URL, too.
        index: that the sidecar holds.
        shard: location of the gzip file, for errors.
        remedy: what to do where they are missing or damaged. None: index the shard again.

    Raises:
        DatasetError: they are missing or damaged.
    """
    place = str(path).removesuffix(".parquet") + ".points"
    remedy = remedy or f"index it again with: ray-mm index {shard}"
    try:
        points = read_object(place)
    except ObjectMissingError:
        raise DatasetError(f"{place}: the seek points of {shard} are missing; {remedy}") from None
    found = google_crc32c.value(points)
    assert index.points_crc is not None, "a gzip file's index has it"
    if found != index.points_crc:
        raise DatasetError(
            f"{place}: the seek points of {shard} are damaged: their CRC32C is {found:08x}, expected {index.points_crc:08x}; "
            f"{remedy}"
        )
    return points


def _content_crc(index: ShardIndex) -> int:
    """CRC32C (RFC 3720) of all that a sidecar says. Parquet's own sums are of pages, not of what their place means."""
    facts = [index.shard_bytes, index.version, index.unpacked_bytes, index.points_crc]
    crc: int = google_crc32c.value(json.dumps(facts).encode())
    crc = google_crc32c.extend(crc, "\0".join(index.keys).encode())
    columns: dict[str, Mapping[str, npt.NDArray[Any]]] = {
        "offset": index.offsets,
        "size": index.sizes,
        "crc32c": index.checksums,
        "label": index.labels,
    }
    for kind, found in columns.items():
        for name in sorted(found):
            crc = google_crc32c.extend(crc, f"\0{kind}:{name}:{found[name].dtype.str}\0".encode())
            crc = google_crc32c.extend(crc, found[name].tobytes())
    return crc


def _from_table(table: pa.Table) -> ShardIndex:
    index = _unchecked(table)
    # Older indexes have none.
    stored = table.schema.metadata.get(_CRC_KEY)
    if stored is not None and int(stored, 16) != _content_crc(index):
        raise ValueError(f"its CRC32C is {_content_crc(index):08x}, expected {stored.decode()}")
    return index


def _unchecked(table: pa.Table) -> ShardIndex:
    metadata, columns = table.schema.metadata, set(table.column_names)
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
        checksums={suffix: _column(table, f"{suffix}:crc32c") for suffix in suffixes if f"{suffix}:crc32c" in columns},
        unpacked_bytes=int(metadata[_UNPACKED_KEY]) if _UNPACKED_KEY in metadata else None,
        points_crc=int(metadata[_POINTS_CRC_KEY], 16) if _POINTS_CRC_KEY in metadata else None,
    )


def _column(table: pa.Table, name: str, type: pa.DataType | None = None) -> npt.NDArray[Any]:
    column = table.column(name)
    values: npt.NDArray[Any] = (
        (column if type is None else column.cast(type)).combine_chunks().to_numpy(zero_copy_only=True)
    )
    return values
