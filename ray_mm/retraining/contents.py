"""What samples hold, as a hash each: by it a sample of a new shard is known that is in the frozen test set, too.

A hash is of the bytes of all input fields that a sample has; labels, names and the rest of it do not count.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ray_mm.data.index import ShardIndex
from ray_mm.data.manifest import Dataset
from ray_mm.data.stream_parts import suffixes_of
from ray_mm.errors import DatasetError
from ray_mm.preprocessing.facts import open_ranges
from ray_mm.session import map_on_ray, own_errors
from ray_mm.storage import write_atomic
from ray_mm.storage.ranges import Range, RangeReader
from ray_mm.storage.remote import join

_SIZE = 16
_AT_ONCE = 256


def sample_hashes(
    index: ShardIndex, reader: RangeReader, parts: Mapping[str, Sequence[str]], rows: Iterable[int]
) -> list[bytes | None]:
    """A hash for each of some samples of a shard; None for one that has none of the parts.

    Args:
        index: of the shard.
        reader: of its bytes.
        parts: part of a field → the suffixes of its members; the first that is there is taken.
        rows: of the samples.
    """
    rows = list(rows)
    found: list[bytes | None] = []
    for start in range(0, len(rows), _AT_ONCE):
        members = [_members(index, parts, row) for row in rows[start : start + _AT_ONCE]]
        views = iter(reader.read([place for sample in members for _, place in sample]))
        for sample in members:
            digest = hashlib.blake2b(digest_size=_SIZE)
            for part, (_, size) in sample:
                digest.update(f"{part}\0{size}\0".encode())
                digest.update(next(views))
            found.append(digest.digest() if sample else None)
    return found


def write_hashes(path: Path, dataset: Dataset, fields: Sequence[str]) -> None:
    """Writes the hashes of a dataset's samples; what is there already is kept.

    Args:
        path: of the file; its name tells the dataset's digest and the fields.
        dataset: all of it.
        fields: the input fields.
    """
    if path.exists():
        return
    found: set[bytes] = set()
    numbers = list(range(len(dataset.shards)))
    with own_errors():
        for hashes in map_on_ray(lambda number: _of_shard(dataset, number, fields), numbers, len(numbers)):
            found |= hashes
    write_atomic(path, b"".join(sorted(found)))


@functools.lru_cache(maxsize=2)
def read_hashes(path: Path) -> frozenset[bytes]:
    """What ``write_hashes`` wrote; kept per process."""
    content = path.read_bytes()
    return frozenset(content[start : start + _SIZE] for start in range(0, len(content), _SIZE))


def _of_shard(dataset: Dataset, number: int, fields: Sequence[str]) -> set[bytes]:
    index, info = dataset.open_shard(number)
    reader = open_ranges(info, index, join(dataset.root, dataset.shards[number].index))
    parts = {part: found for name in fields for part, found in suffixes_of(dataset.manifest, name).items()}
    if not any(parts.values()):
        raise DatasetError(f"{dataset.root}: has none of the fields {', '.join(fields)}.")
    return {each for each in sample_hashes(index, reader, parts, range(len(index))) if each is not None}


def _members(index: ShardIndex, parts: Mapping[str, Sequence[str]], row: int) -> list[tuple[str, Range]]:
    found: list[tuple[str, Range]] = []
    for part, suffixes in sorted(parts.items()):
        for suffix in suffixes:
            if suffix in index.sizes and int(index.sizes[suffix][row]) > 0:
                found.append((part, (int(index.offsets[suffix][row]), int(index.sizes[suffix][row]))))
                break
    return found
