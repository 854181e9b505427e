"""A dataset on disk: ``dataset.json`` and ``shards.parquet`` over the shards.

<dataset>/dataset.json        fields, counts, presence, labels, statistics, digest, checksums of itself and of the two
                              below; written last: no such file, no dataset
<dataset>/shards.parquet      a row per shard: path, index, num_samples, size_bytes, version, unpacked_bytes
<dataset>/shards/NNNNNN.tar   and NNNNNN.index.parquet
<dataset>/tokenizer.<field>.json   for every text field

A dataset can also refer to tars where they are: ``path`` is then absolute or a URL, and only the index is the dataset's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from ray_mm.config.base import Config
from ray_mm.config.fields import FieldSpec
from ray_mm.data.fields import require_complete
from ray_mm.data.fit import no_dataset
from ray_mm.data.index import ShardIndex, ShardState, is_current, require_current
from ray_mm.data.seal import checksum, require_checksum, sealed, unsealed
from ray_mm.data.sidecar import index_path, read_index, read_points
from ray_mm.errors import DatasetError, ObjectMissingError
from ray_mm.storage import local_path, sha256_file, write_atomic, write_json
from ray_mm.storage.remote import ObjectInfo, join, located, read_object
from ray_mm.version import DATASET_FORMAT

_FORMAT_NAME = "ray_mm.dataset"
_SHARDS_NAME = "shards.parquet"
_UNPACKED = "unpacked_bytes"
_SHARDS = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("index", pa.string(), nullable=False),
        pa.field("num_samples", pa.int64(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field(_UNPACKED, pa.int64()),
    ]
)


class Statistics(Config):
    """Mean and standard deviation of a series, points or vector field per channel, or of a number label."""

    mean: tuple[float, ...]
    """One value per channel."""
    std: tuple[float, ...]
    """One value per channel, never 0."""


class Manifest(Config):
    """The content of ``dataset.json``."""

    format: Literal["ray_mm.dataset"] = "ray_mm.dataset"
    version: int = DATASET_FORMAT
    name: str
    """Name of the dataset, such as ``avdigits/train``."""
    digest: str
    """Hex SHA-256 of the shards' names and versions, and of the labels and statistics; the order of an epoch depends on it."""
    num_samples: int
    num_shards: int
    size_bytes: int
    """Of all shards together."""
    fields: dict[str, FieldSpec]
    """Field → its type and shape, complete."""
    members: dict[str, tuple[str, ...]]
    """Field → the suffixes under which its member is found in a sample; the first that is there is taken. Of a series of
    streams: the suffixes of all of them, see ``data.stream_parts``."""
    presence: dict[str, int]
    """Field → number of samples that have it."""
    label_counts: dict[str, dict[str, int]] = Field(default={})
    """Class label → class → number of samples; of several classes per sample each counts."""
    statistics: dict[str, Statistics] = Field(default={})
    """Field → mean and standard deviation over the training split."""
    source: str = ""
    """Hex SHA-256 of the job and the table that this was made from; empty where it was not made from a table."""
    files: dict[str, str]
    """``shards.parquet`` and the tokenizers → CRC32C of their bytes, hex."""


@dataclass(frozen=True)
class ShardInfo:
    """A row of ``shards.parquet``.

    Attributes:
        path: of the tar, relative to the dataset; or absolute or a URL, where the tar lies elsewhere.
        index: of its index, relative to the dataset.
        num_samples: that the dataset has of it.
        size_bytes: of the tar.
        version: of the tar's bytes, see ``data.index.ShardState``.
        unpacked_bytes: of the tar within a gzip file. None: it is a plain tar, or the dataset is of the time before this was
            written down.
    """

    path: str
    index: str
    num_samples: int
    size_bytes: int
    version: str
    unpacked_bytes: int | None = None

    @property
    def tar_bytes(self) -> int:
        """Of the tar itself, which is what members are read from, and what a cache keeps."""
        return self.size_bytes if self.unpacked_bytes is None else self.unpacked_bytes

    @property
    def state(self) -> ShardState:
        """What the shard was when the dataset was made."""
        return ShardState(self.size_bytes, self.version)

    @property
    def is_content_hash(self) -> bool:
        """Whether the version is of the bytes themselves, wherever they lie."""
        return self.version.startswith("sha256:")


@dataclass(frozen=True)
class Dataset:
    """A dataset, opened for reading.

    Attributes:
        root: absolute path or URL of its folder.
        manifest: the content of ``dataset.json``.
        shards: its shards, in the order of ``shards.parquet``.
    """

    root: str
    manifest: Manifest
    shards: tuple[ShardInfo, ...]

    @cached_property
    def shard_sizes(self) -> npt.NDArray[np.int64]:
        """Samples per shard, int64 [num_shards]."""
        return np.array([shard.num_samples for shard in self.shards], np.int64)

    @property
    def sample_bytes(self) -> int:
        """Bytes that a sample has in its tar, on average."""
        return sum(shard.tar_bytes for shard in self.shards) // max(1, self.manifest.num_samples)

    def location(self, shard: int) -> str:
        """Where a shard lies: an absolute path or a URL."""
        path = self.shards[shard].path
        return path if "://" in path or path.startswith("/") else join(self.root, path)

    def shard_path(self, shard: int) -> Path:
        """Where a local shard lies."""
        return local_path(self.location(shard))

    def read_index(self, shard: int) -> ShardIndex:
        """The index of a shard, whole, and of the shard as it lies there now.

        Raises:
            DatasetError: it is missing, damaged, or of another shard; or the shard is gone or has changed.
        """
        return self.open_shard(shard)[0]

    def open_shard(self, shard: int, row: int | None = None) -> tuple[ShardIndex, ObjectInfo]:
        """The index of a shard, and the shard as it lies there now; the errors are those of ``read_index``.

        Args:
            shard: number of it.
            row: the sample that it is opened for, which errors then name; None: for none in particular.
        """
        info, location = self.shards[shard], self.location(shard)
        sidecar, remedy = join(self.root, info.index), self._remedy(shard)
        index = read_index(sidecar, location, remedy)
        name = f"{location}[{index.keys[row]}]" if row is not None and row < len(index) else location
        found = require_current(location, info.state, remedy, name)
        if len(index) != info.num_samples:
            raise DatasetError(
                f"{location}: the index has {len(index)} samples, shards.parquet says {info.num_samples}; make the dataset "
                "again."
            )
        if not is_current(info.state, ShardState(index.shard_bytes, index.version)):
            raise DatasetError(f"{sidecar}: is the index of another state of {location}; {remedy}")
        return index, found

    def read_points(self, shard: int, index: ShardIndex) -> bytes:
        """The seek points of a shard that is a gzip file.

        Args:
            shard: number of it.
            index: of it.

        Raises:
            DatasetError: they are missing or damaged.
        """
        sidecar = join(self.root, self.shards[shard].index)
        return read_points(sidecar, index, self.location(shard), self._remedy(shard))

    def _remedy(self, shard: int) -> str:
        """What to do where the index of a shard is missing or damaged."""
        info = self.shards[shard]
        lies_beside = info.index == str(index_path(Path(info.path)))
        return f"index it again with: ray-mm index {self.location(shard)}" if lies_beside else "make the dataset again."

    def tokenizer(self, field: str) -> str:
        """The tokenizer of a text field, as the JSON of the ``tokenizers`` library.

        Raises:
            DatasetError: it is missing or damaged.
        """
        name = _tokenizer_name(field)
        path = join(self.root, name)
        try:
            content = read_object(path)
            require_checksum(path, content, self.manifest.files.get(name))
            return content.decode("utf-8")
        except (ObjectMissingError, UnicodeDecodeError):
            raise DatasetError(
                f"{path}: the tokenizer of field {field!r} is missing or damaged; make the dataset again."
            ) from None


def tokenizer_path(root: Path, field: str) -> Path:
    """Where the tokenizer of a text field lies."""
    return root / _tokenizer_name(field)


def _tokenizer_name(field: str) -> str:
    return f"tokenizer.{field}.json"


def open_dataset(path: str | Path) -> Dataset:
    """Opens a dataset.

    Args:
        path: its folder, or the URL of one: ``s3://bucket/data/train``.

    Raises:
        DatasetError: no dataset there, an incomplete or damaged one, or one of a newer format.
        StorageError: the store does not answer, or refuses.
    """
    root = located(path)
    file = join(root, "dataset.json")
    try:
        content = json.loads(read_object(file))
    except ObjectMissingError:
        raise DatasetError(no_dataset(root)) from None
    except ValueError as error:
        raise DatasetError(f"{file}: can't be read ({error}); make the dataset again.") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT_NAME:
        raise DatasetError(f"{file}: is not the dataset.json of a ray_mm dataset.")
    content = unsealed(content, file)
    if not isinstance(content.get("version"), int) or content["version"] > DATASET_FORMAT:
        raise DatasetError(
            f"{file}: has format version {content.get('version')!r}, this ray_mm reads versions up to {DATASET_FORMAT}; "
            "upgrade ray_mm, or make the dataset with this version."
        )
    try:
        manifest = Manifest.model_validate(content)
        listed = read_object(join(root, _SHARDS_NAME))
        require_checksum(join(root, _SHARDS_NAME), listed, manifest.files.get(_SHARDS_NAME))
        table = pq.read_table(pa.BufferReader(listed))
        if _UNPACKED not in table.column_names:
            table = table.append_column(_UNPACKED, pa.nulls(len(table), pa.int64()))
        table = table.select(_SHARDS.names).cast(_SHARDS)
    except (ObjectMissingError, ValidationError, pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise DatasetError(f"{root}: the dataset is damaged ({str(error).splitlines()[0]}); make it again.") from None
    shards = tuple(ShardInfo(**row) for row in table.to_pylist())
    for shard in shards:
        _require_place(root, shard)
    unknown = sorted(manifest.fields.keys() ^ manifest.members.keys())
    if unknown:
        raise DatasetError(f"{root}: dataset.json does not say both what field {unknown[0]!r} is and where it lies.")
    if len(shards) != manifest.num_shards or sum(shard.num_samples for shard in shards) != manifest.num_samples:
        raise DatasetError(f"{root}: dataset.json and shards.parquet do not agree; make the dataset again.")
    require_complete(manifest.fields)
    return Dataset(root, manifest, shards)


def write_dataset(
    root: Path,
    *,
    name: str,
    shards: Sequence[ShardInfo],
    fields: dict[str, FieldSpec],
    members: dict[str, tuple[str, ...]],
    presence: dict[str, int],
    label_counts: dict[str, dict[str, int]],
    statistics: dict[str, Statistics],
    source: str = "",
) -> Manifest:
    """Writes ``shards.parquet``, then ``dataset.json``. Shards, their indexes and the tokenizers are there already."""
    require_complete(fields)
    # The same bytes may be read as other classes, or scaled by other statistics.
    described = [label_counts, {name: value.model_dump() for name, value in statistics.items()}]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for shard in shards:
        digest.update(f"{shard.path}\0{shard.version}\0".encode())
        if not shard.is_content_hash:  # of such a shard a dataset may have some of the samples
            digest.update(sha256_file(root / shard.index).encode())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([vars(shard) for shard in shards], schema=_SHARDS), sink)
    listed = sink.getvalue().to_pybytes()
    files = {_SHARDS_NAME: checksum(listed)}
    for field, spec in fields.items():
        if spec.type == "text":
            files[_tokenizer_name(field)] = checksum(tokenizer_path(root, field).read_bytes())
    manifest = Manifest(
        name=name,
        digest=digest.hexdigest(),
        num_samples=sum(shard.num_samples for shard in shards),
        num_shards=len(shards),
        size_bytes=sum(shard.size_bytes for shard in shards),
        fields=fields,
        members=members,
        presence=presence,
        label_counts=label_counts,
        statistics=statistics,
        source=source,
        files=files,
    )
    write_atomic(root / _SHARDS_NAME, listed)
    write_json(root / "dataset.json", sealed(manifest.model_dump(mode="json")))
    return manifest


def _require_place(root: str, shard: ShardInfo) -> None:
    """A dataset may come from elsewhere: what it names outside its folder is a whole address, and never the index."""
    path, index = PurePosixPath(shard.path), PurePosixPath(shard.index)
    elsewhere = "://" in shard.path or path.is_absolute()
    if index.is_absolute() or ".." in index.parts or ".." in path.parts or (elsewhere and shard.is_content_hash):
        named = shard.path if ".." in path.parts or elsewhere else shard.index
        raise DatasetError(f"{root}: shards.parquet names {named!r}, which is outside the dataset; refused.")
