"""The rows of one shard → a tar that WebDataset reads, its index, and a receipt: rows, plan → shard, summary.

The same rows give the same bytes: no times, no owners, members sorted by name. Format: POSIX ustar, pax for names that do
not fit (IEEE Std 1003.1). The receipt is written last; a shard without one is written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from ray_mm.config.fields import FieldSpec, LabelField, SeriesField
from ray_mm.data.decode.error import DecodeError, StreamError
from ray_mm.data.decode.numeric import decode_label
from ray_mm.data.index import Labels, ShardIndex, as_labels
from ray_mm.data.sidecar import index_path, read_index, write_index
from ray_mm.errors import DatasetError, RayMMError
from ray_mm.preprocessing.files import MISSING, file_named
from ray_mm.preprocessing.members import Member, member_of
from ray_mm.preprocessing.shards import ShardPlan
from ray_mm.preprocessing.summary import BadCell, FieldCollector, ShardSummary, has_same_shape, keep_first
from ray_mm.storage import write_json

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_ROWS_AT_ONCE = 256
_RECEIPTS = ".progress"


@dataclass(frozen=True)
class WriteSettings:
    """What all shards of a job have in common.

    Attributes:
        output: the job's output folder.
        root: folder that paths in the table are relative to.
        fields: field → its spec; class labels with their classes.
        num_columns: field → number of its columns.
        on_missing: ``error`` or ``absent``.
    """

    output: Path
    root: Path
    fields: dict[str, FieldSpec]
    num_columns: dict[str, int]
    on_missing: str


def write_shard(rows: pa.Table, plan: ShardPlan, settings: WriteSettings) -> ShardSummary:
    """Writes one shard: the tar under a temporary name, then its index, then the receipt.

    Args:
        rows: the shard's rows in their order: ``key``, ``row`` (from 1), ``cell:<field>:<column number>`` and
            ``size:<field>:<column number>`` (planned size of the file that the cell names).
        plan: the shard.
        settings: of the job.

    Returns:
        What is in it. Where ``bad`` is not empty, nothing was written.

    Raises:
        RayMMError: a file changed since it was planned, or the shard can't be written.
    """
    collector = _Collector(settings)
    shard = settings.output / plan.split / plan.path
    temporary = shard.with_name(f".{shard.name}.{secrets.token_hex(4)}.tmp")
    try:
        shard.parent.mkdir(parents=True, exist_ok=True)
        try:
            index = write_tar(temporary, collector.samples(rows))
            summary = collector.summary(index)
            if summary.num_bad:
                return summary
            if summary.num_samples:
                temporary.replace(shard)
                write_index(index_path(shard), replace(index, labels=collector.labels()))
            else:  # every sample turned out to be empty
                remove_shard(shard)
            write_json(
                receipt_path(settings.output, plan), {"digest": plan.digest, "summary": summary.model_dump(mode="json")}
            )
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RayMMError(
            f"{shard}: can't be written ({error.strerror or error}); free space or choose another output, and run the job "
            "again: what is done so far is kept."
        ) from None
    return summary


def receipt_path(output: Path, plan: ShardPlan) -> Path:
    """Where the receipt of a written shard lies until all are written."""
    return output / _RECEIPTS / f"{plan.split}.{plan.number:06d}.json"


def receipts_folder(output: Path) -> Path:
    """Where all receipts lie."""
    return output / _RECEIPTS


def read_receipt(output: Path, plan: ShardPlan) -> ShardSummary | None:
    """The summary of a shard that an earlier run wrote from the same plan, or None if it must be written."""
    shard = output / plan.split / plan.path
    try:
        content = json.loads(receipt_path(output, plan).read_text())
        if content["digest"] != plan.digest:
            return None
        summary = ShardSummary.model_validate(content["summary"])
        if summary.num_samples and (
            shard.stat().st_size != summary.size_bytes
            or len(read_index(index_path(shard), str(shard))) != summary.num_samples
        ):
            return None
    except (OSError, ValueError, KeyError, TypeError, ValidationError, DatasetError):
        return None
    return summary


def remove_shard(shard: Path) -> None:
    """Removes a shard and its index."""
    index_path(shard).unlink(missing_ok=True)
    shard.unlink(missing_ok=True)


class _Collector:
    """Turns rows into samples and remembers what a summary needs."""

    def __init__(self, settings: WriteSettings) -> None:
        self._settings = settings
        self._fields = {
            name: FieldCollector(same_shape=has_same_shape(spec)) for name, spec in sorted(settings.fields.items())
        }
        # Several classes have no column in an index: nothing is selected or balanced by them.
        self._label_fields = {
            name: spec for name, spec in settings.fields.items() if isinstance(spec, LabelField) and spec.is_indexed
        }
        self._labels: dict[str, list[float | None]] = {name: [] for name in self._label_fields}
        self._num_empty = 0
        self._num_bad = 0
        self._bad: list[BadCell] = []
        self._left_absent: list[BadCell] = []

    def samples(self, rows: pa.Table) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Key and members of each row."""
        for batch in rows.to_batches(max_chunksize=_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                members = {}
                for name, spec in self._settings.fields.items():
                    member = self._member(name, spec, row)
                    if member is not None:
                        self._fields[name].add(row["row"], member)
                        members[f"{name}.{member.extension}"] = member.payload
                self._num_empty += not members
                if members:
                    self._take_labels(members)
                yield row["key"], members

    def labels(self) -> dict[str, Labels]:
        """After all samples: label field → a value for each; see ``data.index.ShardIndex``."""
        return {name: as_labels(self._labels[name], spec) for name, spec in self._label_fields.items()}

    def summary(self, index: ShardIndex) -> ShardSummary:
        """After all samples."""
        return ShardSummary(
            num_samples=len(index),
            num_empty=self._num_empty,
            size_bytes=index.shard_bytes,
            version=index.version,
            fields={name: field.summary() for name, field in self._fields.items()},
            num_bad=self._num_bad,
            bad=keep_first(self._bad),
            left_absent=tuple(self._left_absent),
        )

    def _take_labels(self, members: Mapping[str, bytes]) -> None:
        for name, spec in self._label_fields.items():
            payload = members.get(f"{name}.cls" if spec.target == "class" else f"{name}.json")
            self._labels[name].append(None if payload is None else decode_label(payload, spec))

    def _member(self, name: str, spec: FieldSpec, row: dict[str, Any]) -> Member | None:
        cells = [row[cell_column(name, number)] for number in range(self._settings.num_columns[name])]
        sizes: list[int | None] = [row.get(size_column(name, number)) for number in range(len(cells))]
        if MISSING in sizes:
            self._fields[name].add_unusable(row["row"], None)
            return None
        paths = [
            self._settings.root / named if size is not None and (named := file_named(spec, cell)) is not None else None
            for cell, size in zip(cells, sizes, strict=True)
        ]
        for path, size in zip(paths, sizes, strict=True):
            if path is not None and size is not None:
                _require_unchanged(path, size)
        try:
            return member_of(spec, cells, paths)
        except (DecodeError, OSError) as error:
            cell = BadCell(row=row["row"], field=name, reason=_reason(spec, paths, error))
        self._fields[name].add_unusable(cell.row, cell.reason)
        if self._settings.on_missing == "error":
            self._num_bad += 1
            self._bad = list(keep_first([*self._bad, cell]))
        else:
            self._left_absent.append(cell)
        return None


def cell_column(field: str, number: int) -> str:
    """Name of a column with a field's cells; a vector or a series of streams may have several."""
    return f"cell:{field}:{number}"


def size_column(field: str, number: int) -> str:
    """Name of the column with the sizes of the files that the cells of one of a field's columns name."""
    return f"size:{field}:{number}"


def _reason(spec: FieldSpec, paths: Sequence[Path | None], error: DecodeError | OSError) -> str:
    """What is wrong with which file."""
    if isinstance(error, StreamError):
        assert isinstance(spec, SeriesField)
        files = {column: f" ({path})" for column, path in zip(spec.members, paths, strict=True) if path is not None}
        return f"{', '.join(column + files.get(column, '') for column in error.members)}: {error.reason}"
    reason = str(error) if isinstance(error, DecodeError) else error.strerror or str(error)
    return f"{paths[0]}: {reason}" if paths[0] is not None else reason


def _require_unchanged(path: Path, planned: int) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        size = 0
    if size != planned:
        raise RayMMError(
            f"{path}: changed while the dataset was being made: it had {planned} bytes and has {size}; run the job again."
        )


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> ShardIndex:
    """Writes a tar, flushed to disk.

    Args:
        path: of the tar.
        samples: key and members (suffix → payload) of each; a sample without members leaves no trace in a tar.

    Returns:
        The index, as ``data.index.index_shard`` would find it with checksums; its version is the SHA-256 of the tar.
    """
    keys: list[str] = []
    rows: list[dict[str, tuple[int, int, int]]] = []
    digest = hashlib.sha256()
    with path.open("wb") as stream:
        place = 0
        for key, members in samples:
            if not members:
                continue
            keys.append(key)
            rows.append({})
            for suffix in sorted(members):
                payload = members[suffix]
                header = tar_header(f"{key}.{suffix}", len(payload))
                rows[-1][suffix] = (place + len(header), len(payload), google_crc32c.value(payload))
                padding = bytes(-len(payload) % _BLOCK)
                for part in (header, payload, padding):
                    stream.write(part)
                    digest.update(part)
                place += len(header) + len(payload) + len(padding)
        stream.write(_END)
        digest.update(_END)
        stream.flush()
        os.fsync(stream.fileno())
    suffixes = sorted({suffix for row in rows for suffix in row})
    found = {suffix: np.array([row.get(suffix, (-1, -1, 0)) for row in rows], np.int64).T for suffix in suffixes}
    return ShardIndex(
        keys=keys,
        offsets={suffix: values[0].copy() for suffix, values in found.items()},
        sizes={suffix: values[1].copy() for suffix, values in found.items()},
        checksums={suffix: values[2].astype(np.uint32) for suffix, values in found.items()},
        shard_bytes=place + len(_END),
        version=f"sha256:{digest.hexdigest()}",
    )


def tar_header(name: str, size: int) -> bytes:
    """The header of a plain file, as ``tarfile`` writes it: ustar, or pax where the name or the size does not fit."""
    info = tarfile.TarInfo(name)
    info.size = size
    if len(name) > 100 or not name.isascii() or size > _USTAR_SIZE:
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
    # The plain case by hand: tarfile takes ten times as long, most of the time of writing small members.
    name_field, size_field = name.encode().ljust(100, b"\0"), b"%011o\0" % size
    checksum = _PLAIN_SUM + sum(name_field) + sum(size_field)
    return b"".join((name_field, _PLAIN[100:124], size_field, _PLAIN[136:148], b"%06o\0 " % checksum, _PLAIN[156:]))


_USTAR_SIZE = 0o77777777777
_PLAIN = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
# The checksum is taken with spaces in its own place; name and size are added.
_PLAIN_SUM = sum(_PLAIN[100:124]) + sum(_PLAIN[136:148]) + 8 * ord(" ") + sum(_PLAIN[156:])
