"""What is in a dataset, or in tars that nobody has indexed yet: counts, presence, sizes, labels, statistics.

The answer is data: plain tables for a front end to print, and the same as a dict for JSON.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ray_mm.config.fields import LabelField
from ray_mm.data.fields import field_arrays
from ray_mm.data.found import Found
from ray_mm.data.index import ShardIndex, index_shard
from ray_mm.data.indexing import IndexSettings, current_index, sidecars, size_text
from ray_mm.data.infer import count_labels, look_at_members, propose, proposed_job
from ray_mm.data.manifest import Dataset, Statistics, open_dataset
from ray_mm.data.shards import TAR_SUFFIXES, find_shards
from ray_mm.errors import DatasetError, ObjectMissingError
from ray_mm.storage import is_remote, local_path
from ray_mm.storage.remote import ObjectInfo, join, list_objects, stat

_MAX_CHANNELS = 8
_MAX_SHARDS = 20
_MAX_CLASSES = 30
_THREADS = 16
_DEFAULT = IndexSettings()


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
        job: a preprocess job to begin with, as YAML; empty for a dataset.
    """

    path: str
    tables: tuple[Table, ...]
    data: dict[str, Any]
    job: str = ""


def describe(paths: Sequence[str | Path]) -> Iterator[Inspection]:
    """Looks into datasets and tars; several tars in a row are looked at together. Writes nothing.

    Raises:
        DatasetError: nothing of the kind is there, or it is damaged.
    """
    for are_tars, group in itertools.groupby(map(str, paths), _names_tars):
        if are_tars:
            yield inspect_tars(list(group))
        else:
            yield from map(inspect_dataset, group)


def _names_tars(path: str) -> bool:
    if path.endswith(TAR_SUFFIXES) or any(mark in path for mark in "{*?["):
        return True
    if is_remote(path):
        return _holds_tars_in_a_store(path.rstrip("/"))
    root = local_path(path)
    if (root / "dataset.json").is_file():
        return False
    if root.is_file() or any(any(root.rglob(f"*{suffix}")) for suffix in TAR_SUFFIXES):
        return True
    if root.is_dir() and not any(root.rglob("dataset.json")):
        raise _holds_nothing(root)
    return False


def _holds_tars_in_a_store(folder: str) -> bool:
    if folder.startswith("http"):  # can't be listed
        return False
    with contextlib.suppress(ObjectMissingError):
        stat(join(folder, "dataset.json"))
        return False
    names = [info.url for info in list_objects(folder)]
    if any(name.endswith(TAR_SUFFIXES) for name in names):
        return True
    if not any(name.endswith("/dataset.json") for name in names):
        raise _holds_nothing(folder)
    return False


def _holds_nothing(folder: str | Path) -> DatasetError:
    return DatasetError(
        f"{folder}: holds no tars ({', '.join(TAR_SUFFIXES)}) and no dataset (no dataset.json); name another folder, or "
        "make a dataset of a table with a preprocess job."
    )


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
            _label_table(field, manifest.label_counts[field], manifest.presence[field])
            for field, spec in sorted(manifest.fields.items())
            if isinstance(spec, LabelField) and field in manifest.label_counts
        ),
    ]
    if manifest.statistics:
        tables.append(_statistics_table(manifest.statistics))
    return Inspection(str(dataset.root), tuple(tables), data)


def inspect_tars(patterns: Sequence[str | Path], settings: IndexSettings = _DEFAULT) -> Inspection:
    """Looks into tars, by their indexes where those are current, else by walking their headers.

    Args:
        patterns: files, folders, globs and braces, on this machine or in a store.
        settings: of the walk.

    Raises:
        DatasetError: a pattern names nothing, or something that is no whole tar.
    """
    shards = find_shards(patterns)
    indexes = _indexes_of(shards, settings)
    known = [(shard, index) for shard, (index, _) in zip(shards, indexes, strict=True)]
    members = look_at_members(known)
    fields, named = propose(members, [index for index, _ in indexes])
    labels = count_labels(known, fields, named)
    num_samples = sum(len(index) for index, _ in indexes)
    sizes = _member_sizes(index for index, _ in indexes)
    size_bytes = sum(index.shard_bytes for index, _ in indexes)
    data = {
        "num_samples": num_samples,
        "num_shards": len(shards),
        "size_bytes": size_bytes,
        "shards": [
            {"path": shard.url, "num_samples": len(index), "size_bytes": index.shard_bytes}
            for shard, (index, _) in zip(shards, indexes, strict=True)
        ],
        "presence": {suffix: len(found) for suffix, found in sizes.items()},
        "member_bytes": _extents(sizes),
        "fields": fields,
        "members": named,
        "label_counts": {name: dict(counts) for name, counts in labels.items()},
    }
    shard_rows = tuple(
        (shard.url, f"{len(index):,}", size_text(index.shard_bytes), "yes" if is_indexed else "no")
        for shard, (index, is_indexed) in zip(shards, indexes, strict=True)
    )
    member_rows = tuple(
        (suffix, _presence_text(len(found), num_samples), *_extent_texts(found)) for suffix, found in sizes.items()
    )
    found_rows = tuple((found.suffix, found.format, found.detail, _becomes(found)) for found in members)
    where = shards[0].url if len(shards) == 1 else f"{len(shards):,} tars"
    if len(shard_rows) > _MAX_SHARDS:
        shard_rows = (*shard_rows[:_MAX_SHARDS], (f"… {len(shard_rows) - _MAX_SHARDS:,} more", "", "", ""))
    return Inspection(
        where,
        (
            Table(
                f"{num_samples:,} samples, {size_text(size_bytes)}", ("shard", "samples", "size", "indexed"), shard_rows
            ),
            Table("members", ("suffix", "present", "smallest", "median", "largest"), member_rows),
            Table("what they are, by the bytes of a few", ("suffix", "format", "found", "field"), found_rows),
            *(_histogram(name, counts, num_samples) for name, counts in labels.items() if counts),
        ),
        data,
        proposed_job([str(pattern) for pattern in patterns], fields, named, num_samples),
    )


def _histogram(name: str, counts: Counter[str], num_samples: int) -> Table:
    total = counts.total()
    title = f"label {name}" if total >= num_samples else f"label {name}, in {total:,} of the samples"
    rows = [(text, f"{count:,}", f"{count / total:.1%}") for text, count in counts.most_common(_MAX_CLASSES)]
    if len(counts) > len(rows):
        rows.append((f"… {len(counts) - len(rows):,} more", "", ""))
    return Table(title, ("value", "samples", "share"), tuple(rows))


def _becomes(found: Found) -> str:
    if found.reason:
        return f"none: {found.reason}"
    kinds = {
        part: f"{spec['type']} ({spec['target']})" if spec.get("target") in ("mask", "classes") else spec["type"]
        for part, spec in found.specs.items()
    }
    shown = [f"{part}: {kind}" if part else kind for part, kind in kinds.items()]
    return "; ".join(filter(None, (", ".join(shown), found.passed_over and f"none: {found.passed_over}")))


def indexed_shards(patterns: Sequence[str | Path]) -> list[tuple[ObjectInfo, ShardIndex]]:
    """The shard that comes first, with its index; the errors are those of ``inspect_tars``."""
    return [(shard, _index_of(shard, _DEFAULT)[0]) for shard in find_shards(patterns)[:1]]


def _indexes_of(shards: Sequence[ObjectInfo], settings: IndexSettings) -> list[tuple[ShardIndex, bool]]:
    # Objects are walked side by side, for that is mostly waiting; local shards keep a processor busy.
    threads = _THREADS if any(is_remote(shard.url) for shard in shards) else 1
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda shard: _index_of(shard, settings), shards))


def _index_of(shard: ObjectInfo, settings: IndexSettings) -> tuple[ShardIndex, bool]:
    if not is_remote(shard.url):
        (place,) = sidecars([shard], None)
        index = current_index(place, settings)
        if index is not None:
            return index, True
    return index_shard(shard, max_unpacked=settings.max_unpacked), False


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


def _label_table(field: str, counts: Mapping[str, int], total: int) -> Table:
    """Of several classes per sample the shares add up to more than all, and how many samples the rest has is unknown."""
    shown = list(counts.items())[:_MAX_CLASSES]
    rows = tuple((name, f"{count:,}", f"{count / total:.1%}" if total else "–") for name, count in shown)
    if len(counts) > len(shown):
        rest = sum(counts.values()) - sum(count for _, count in shown)
        known = 0 < sum(counts.values()) <= total
        rest_row = (f"{rest:,}", f"{rest / total:.1%}") if known else ("–", "–")
        rows = (*rows, (f"… {len(counts) - len(shown):,} more", *rest_row))
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
