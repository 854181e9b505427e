"""What is in a dataset, or in tars that nobody has indexed yet: counts, presence, sizes, labels, statistics.

The answer is data: plain tables for a front end to print, and the same as a dict for JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ray_mm.config.fields import LabelField
from ray_mm.data.fields import field_arrays
from ray_mm.data.index import ShardIndex, index_path, index_shard, write_index
from ray_mm.data.manifest import Dataset, Statistics, open_dataset
from ray_mm.errors import DatasetError
from ray_mm.storage import local_path

_MAX_CHANNELS = 8


class Table(NamedTuple):
    """A table to print: every cell is a text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        path: what was looked at.
        tables: for people.
        data: the same for programs, ready for JSON.
    """

    path: str
    tables: tuple[Table, ...]
    data: dict[str, Any]


@dataclass(frozen=True)
class ShardReport:
    """A tar that was indexed. As a text it is one line."""

    path: Path
    index: Path
    num_samples: int
    size_bytes: int
    suffixes: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.num_samples:,} samples, {size_text(self.size_bytes)}, {', '.join(self.suffixes) or 'no members'}"
            f" → {self.index.name}"
        )


def describe_dataset(path: str | Path) -> Inspection:
    """Looks into a dataset folder, a tar, or a folder of tars; writes nothing.

    Raises:
        DatasetError: nothing of the kind is there, or it is damaged.
    """
    root = local_path(path)
    if root.is_file() or (root.is_dir() and not (root / "dataset.json").is_file() and any(root.glob("*.tar"))):
        return inspect_tars([root])
    return inspect_dataset(root)


def inspect_dataset(path: str | Path) -> Inspection:
    """Looks into a dataset folder: its manifest and all its indexes.

    Raises:
        DatasetError: no dataset, or a damaged one.
    """
    dataset = open_dataset(path)
    manifest = dataset.manifest
    sizes = _member_sizes(dataset.read_index(shard) for shard in range(manifest.num_shards))
    data = manifest.model_dump(mode="json") | {"path": str(dataset.root), "member_bytes": _extents(sizes)}
    facts = (
        ("samples", f"{manifest.num_samples:,}"),
        ("shards", f"{manifest.num_shards:,}"),
        ("size", size_text(manifest.size_bytes)),
        ("format version", str(manifest.version)),
        ("digest", manifest.digest[:16]),
    )
    tables = [
        Table(f"{manifest.name} ({dataset.root})", ("what", "value"), facts),
        _fields_table(dataset, sizes),
        *(
            _label_table(field, manifest.label_counts[field])
            for field, spec in sorted(manifest.fields.items())
            if isinstance(spec, LabelField) and field in manifest.label_counts
        ),
    ]
    if manifest.statistics:
        tables.append(_statistics_table(manifest.statistics))
    return Inspection(str(dataset.root), tuple(tables), data)


def inspect_tars(paths: Sequence[str | Path]) -> Inspection:
    """Looks into tars by walking their headers, whether or not they are indexed.

    Raises:
        DatasetError: a path is missing, or no tar, or a damaged one.
    """
    shards = tars_in(paths)
    indexes = [index_shard(shard) for shard in shards]
    num_samples = sum(map(len, indexes))
    sizes = _member_sizes(indexes)
    size_bytes = sum(index.shard_bytes for index in indexes)
    data = {
        "num_samples": num_samples,
        "num_shards": len(shards),
        "size_bytes": size_bytes,
        "shards": [
            {"path": str(shard), "num_samples": len(index), "size_bytes": index.shard_bytes}
            for shard, index in zip(shards, indexes, strict=True)
        ],
        "presence": {suffix: len(found) for suffix, found in sizes.items()},
        "member_bytes": _extents(sizes),
    }
    shard_rows = tuple(
        (str(shard), f"{len(index):,}", size_text(index.shard_bytes), "yes" if index_path(shard).is_file() else "no")
        for shard, index in zip(shards, indexes, strict=True)
    )
    member_rows = tuple(
        (suffix, _presence_text(len(found), num_samples), *_extent_texts(found)) for suffix, found in sizes.items()
    )
    where = str(shards[0]) if len(shards) == 1 else f"{len(shards):,} tars"
    return Inspection(
        where,
        (
            Table(
                f"{num_samples:,} samples, {size_text(size_bytes)}", ("shard", "samples", "size", "indexed"), shard_rows
            ),
            Table("members", ("suffix", "present", "smallest", "median", "largest"), member_rows),
        ),
        data,
    )


def index_tars(paths: Sequence[str | Path]) -> list[ShardReport]:
    """Indexes tars, or all tars of a folder; writes ``<name>.index.parquet`` beside each.

    Raises:
        DatasetError: a path is missing, or no tar, or a damaged one.
    """
    reports = []
    for shard in tars_in(paths):
        index, path = index_shard(shard), index_path(shard)
        write_index(path, index)
        reports.append(ShardReport(shard, path, len(index), index.shard_bytes, tuple(sorted(index.offsets))))
    return reports


def tars_in(paths: Sequence[str | Path]) -> list[Path]:
    """The tars that are named: files, and for a folder all ``.tar`` files in it, sorted.

    Raises:
        DatasetError: nothing there, or a folder without tars.
    """
    shards: list[Path] = []
    for path in paths:
        root = local_path(path)
        if root.is_dir():
            inside = sorted(root.glob("*.tar"))
            if not inside:
                raise DatasetError(f"{root}: holds no .tar files; name a tar, or the folder that has them.")
            shards += inside
        elif root.is_file():
            shards.append(root)
        else:
            raise DatasetError(f"{root}: no such file or folder.")
    return shards


def size_text(size_bytes: float) -> str:
    """Such as ``4.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000 or unit == "GB":
            break
        size_bytes /= 1000
    return f"{size_bytes:,.0f} {unit}" if unit == "B" or size_bytes >= 100 else f"{size_bytes:.3g} {unit}"


def _member_sizes(indexes: Iterable[ShardIndex]) -> dict[str, npt.NDArray[np.int64]]:
    """Suffix → the bytes of each member that is there."""
    parts: dict[str, list[npt.NDArray[np.int64]]] = {}
    for index in indexes:
        for suffix, sizes in index.sizes.items():
            parts.setdefault(suffix, []).append(sizes[sizes >= 0])
    return {suffix: np.concatenate(found) for suffix, found in sorted(parts.items())}


def _extents(sizes: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, dict[str, int]]:
    return {
        suffix: {"count": len(found), "min": int(found.min()), "median": int(np.median(found)), "max": int(found.max())}
        for suffix, found in sizes.items()
        if len(found)
    }


def _extent_texts(sizes: npt.NDArray[np.int64]) -> tuple[str, str, str]:
    if not len(sizes):
        return ("–", "–", "–")
    return size_text(int(sizes.min())), size_text(float(np.median(sizes))), size_text(int(sizes.max()))


def _presence_text(present: int, num_samples: int) -> str:
    return f"{present:,} ({present / num_samples:.1%})" if num_samples else "0"


def _fields_table(dataset: Dataset, sizes: Mapping[str, npt.NDArray[np.int64]]) -> Table:
    manifest = dataset.manifest
    rows = []
    for name, spec in sorted(manifest.fields.items()):
        array = field_arrays(name, spec)[name]
        shape = ", ".join(map(str, array.shape))
        there = [sizes[suffix] for suffix in manifest.members[name] if suffix in sizes]
        extensions = ", ".join(
            f"{suffix.removeprefix(name + '.')} {len(sizes[suffix]):,}"
            for suffix in manifest.members[name]
            if suffix in sizes
        )
        rows.append(
            (
                name,
                f"{spec.type} ({spec.target})" if isinstance(spec, LabelField) else spec.type,
                f"{array.dtype} [{shape}]" if shape else str(array.dtype),
                _presence_text(manifest.presence.get(name, 0), manifest.num_samples),
                extensions,
                *_extent_texts(np.concatenate(there) if there else np.zeros(0, np.int64)),
            )
        )
    header = ("field", "type", "decoded", "present", "members", "smallest", "median", "largest")
    return Table("fields", header, tuple(rows))


def _label_table(field: str, counts: Mapping[str, int]) -> Table:
    total = sum(counts.values())
    rows = tuple((name, f"{count:,}", f"{count / total:.1%}" if total else "–") for name, count in counts.items())
    return Table(f"label {field}", ("class", "samples", "share"), rows)


def _statistics_table(statistics: Mapping[str, Statistics]) -> Table:
    rows = []
    for field, found in sorted(statistics.items()):
        for channel, (mean, std) in enumerate(zip(found.mean, found.std, strict=True)):
            if channel == _MAX_CHANNELS:
                rows.append((field, f"… {len(found.mean) - channel:,} more", "", ""))
                break
            rows.append((field, str(channel), f"{mean:.4g}", f"{std:.4g}"))
    return Table("statistics of the training data", ("field", "channel", "mean", "std"), tuple(rows))
