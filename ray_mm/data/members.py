"""Shard and row → the bytes of a sample's members, from this machine's disks or from a store.

A local shard is read sample by sample with ``pread``: no slower than a memory map (``docs/decisions.md``), and a shard that
is cut while it is read is an error instead of a signal that kills the process. A remote one is read ahead, a batch at a
time, in the background.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import google_crc32c
import numpy as np

from ray_mm.data.gzip_bytes import GzipRanges
from ray_mm.data.index import ShardIndex
from ray_mm.data.manifest import Dataset
from ray_mm.data.stream_parts import suffixes_of
from ray_mm.errors import DatasetError, ObjectChangedError, ObjectMissingError
from ray_mm.storage import is_remote, ranges
from ray_mm.storage.cache import BlockCache
from ray_mm.storage.ranges import Arena, Range, RangeReader, read_many, run_all
from ray_mm.storage.stores import patient

Members = dict[str, memoryview]
"""Field, or part of one (see ``data.stream_parts``) → the bytes of its member; absent ones are left out."""

_Asked = tuple[int, int, tuple[str, ...]]
"""Shard, row and fields."""

_OPEN_SHARDS = 256
_BATCHES_AT_ONCE = 4


@dataclass(frozen=True)
class _OpenShard:
    path: str
    index: ShardIndex
    suffixes: dict[str, list[str]]
    reader: RangeReader

    def found(self, row: int, fields: Collection[str]) -> dict[str, str]:
        """Field → the suffix of its member; absent ones are left out."""
        found: dict[str, str] = {}
        for field in fields:
            for suffix in self.suffixes[field]:
                if self.index.sizes[suffix][row] > 0:
                    found[field] = suffix
                    break
        return found

    def places(self, row: int, fields: Collection[str]) -> dict[str, Range]:
        """Field → where its member lies; absent ones are left out."""
        offsets, sizes = self.index.offsets, self.index.sizes
        return {
            field: (int(offsets[suffix][row]), int(sizes[suffix][row]))
            for field, suffix in self.found(row, fields).items()
        }

    def damaged(self, row: int, members: Members) -> dict[str, str]:
        """Field → what is wrong with its member, where the index knows better."""
        bad: dict[str, str] = {}
        for field, suffix in self.found(row, members).items() if self.index.checksums else ():
            wanted, is_there = int(self.index.checksums[suffix][row]), google_crc32c.value(bytes(members[field]))
            if is_there != wanted:
                bad[field] = f"has other bytes than when it was indexed: CRC32C {is_there:08x}, expected {wanted:08x}"
        return bad


class SampleReader:
    """Reads members of a dataset by shard and row; shards stay open, the least recently used is let go.

    Args:
        dataset: where from.
        fields: which members.
        cache: for shards that lie in a store; None: none.
    """

    def __init__(self, dataset: Dataset, fields: list[str], cache: BlockCache | None = None) -> None:
        self._cache = cache
        self._dataset = dataset
        self._suffixes = {
            part: found for field in fields for part, found in suffixes_of(dataset.manifest, field).items()
        }
        self._fields = tuple(self._suffixes)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._ahead: defaultdict[_Asked, deque[tuple[Future[list[Members]], int]]] = defaultdict(deque)

    def members(
        self, shard: int, row: int, arena: Arena | None = None, fields: tuple[str, ...] | None = None
    ) -> Members:
        """The members of a sample; at once where they were asked for ahead.

        Args:
            shard: number of it.
            row: in the shard.
            arena: memory for what is read now. None: it gets its own.
            fields: which of the members. None: all.

        Raises:
            DatasetError: the shard or its index is gone, damaged or changed.
            StorageError: the store does not answer, or refuses; it names shard and key.
        """
        fields = self._fields if fields is None else fields
        waiting = self._ahead.get((shard, row, fields))
        if not waiting:
            return self._read([(shard, row)], fields, arena)[0]
        future, number = waiting.popleft()
        if not waiting:
            del self._ahead[shard, row, fields]
        return future.result()[number]

    def is_ahead(self, shard: int, row: int) -> bool:
        """Whether all members of a sample were asked for ahead."""
        return (shard, row, self._fields) in self._ahead

    def name(self, shard: int, row: int) -> tuple[str, str]:
        """The shard's path, relative to the dataset or as it is given there, and the sample's key."""
        opened = self._shard(shard, row)
        return opened.path, opened.index.keys[row]

    def damaged(self, shard: int, row: int, members: Members) -> dict[str, str]:
        """Field → what is wrong with its member, for those whose CRC32C is in the index and not that of the bytes.

        Args:
            shard: number of it.
            row: in the shard.
            members: that were read.
        """
        return self._shard(shard, row).damaged(row, members)

    def in_memory(self, shard: int, row: int) -> bool | None:
        """Whether the first member of a sample lies in the system's page cache; None where that can't be told."""
        opened = self._shard(shard, row)
        places = opened.places(row, self._fields)
        return opened.reader.in_memory(min(places.values())[0]) if places else None

    def prefetch(self, shards: Sequence[int], rows: Sequence[int], fields: tuple[str, ...] | None = None) -> None:
        """Starts to read samples of remote shards that ``members`` will be asked for; returns at once."""
        fields = self._fields if fields is None else fields
        samples = [
            (shard, row) for shard, row in zip(shards, rows, strict=True) if is_remote(self._dataset.location(shard))
        ]
        if samples:
            future = _pool(os.getpid()).submit(self._read, samples, fields)
            for number, sample in enumerate(samples):
                self._ahead[(*sample, fields)].append((future, number))

    def forget(self) -> None:
        """Drops what was read ahead and not asked for."""
        self._ahead.clear()

    def _read(
        self, samples: Sequence[tuple[int, int]], fields: tuple[str, ...], arena: Arena | None = None
    ) -> list[Members]:
        first_rows = dict(reversed(samples))
        shards = sorted(first_rows)
        # A batch may be the first of many shards: their indexes are fetched side by side.
        opening = [partial(self._shard, shard, first_rows[shard]) for shard in shards]
        opened = dict(zip(shards, run_all(opening), strict=True))
        places = [opened[shard].places(row, fields) for shard, row in samples]
        wanted: dict[int, list[Range]] = {shard: [] for shard in shards}
        for (shard, _), place in zip(samples, places, strict=True):
            wanted[shard] += place.values()
        try:
            views = self._read_many([(opened[shard].reader, wanted[shard]) for shard in shards], arena)
        except (ObjectChangedError, ObjectMissingError) as error:
            raise DatasetError(
                f"{error} Nothing of it is trained on; restore the shard, or make the dataset again."
            ) from None
        left = {shard: iter(found) for shard, found in zip(shards, views, strict=True)}
        found = [
            {field: next(left[shard]) for field in place} for (shard, _), place in zip(samples, places, strict=True)
        ]
        for number, (shard, row) in enumerate(samples):
            if opened[shard].reader.is_remote and opened[shard].damaged(row, found[number]):
                # On its way, or in the cache: in the store it may be whole.
                place = places[number]
                found[number] = dict(
                    zip(place, self._read_anew(opened[shard].reader, list(place.values())), strict=True)
                )
        return found

    def _read_anew(self, reader: RangeReader, wanted: Sequence[Range]) -> list[memoryview]:
        if self._cache is not None:
            self._cache.drop(reader, wanted)
        return reader.read(wanted)

    def _read_many(
        self, wanted: Sequence[tuple[RangeReader, Sequence[Range]]], arena: Arena | None
    ) -> list[list[memoryview]]:
        # What is asked for together is all local or all remote.
        if self._cache is None or not wanted[0][0].is_remote:
            return read_many(wanted, arena)
        return self._cache.read_many(wanted)

    def _shard(self, shard: int, row: int) -> _OpenShard:
        with self._lock:
            opened = self._open.get(shard)
            if opened is not None:
                self._open.move_to_end(shard)
                return opened
        # Without the lock, so that several are opened at once; two of the same shard do no harm.
        opened = self._opened(shard, row)
        with self._lock:
            self._open[shard] = opened
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return opened

    def _opened(self, shard: int, row: int) -> _OpenShard:
        with patient(ranges.REMOTE_POLICY.give_up_s):
            index, found = self._dataset.open_shard(shard, row)
        path = self._dataset.shards[shard].path
        suffixes = {
            field: [suffix for suffix in known if suffix in index.sizes] for field, known in self._suffixes.items()
        }
        name = partial(_named, found.url, index)
        if index.unpacked_bytes is None:
            return _OpenShard(path, index, suffixes, RangeReader(found, name=name))
        with patient(ranges.REMOTE_POLICY.give_up_s):
            points = self._dataset.read_points(shard, index)
        return _OpenShard(path, index, suffixes, GzipRanges(found, points, index.unpacked_bytes, name))


def _named(location: str, index: ShardIndex, start: int, stop: int) -> str:
    """A shard and the first sample that has a member among some of its bytes."""
    touched = np.zeros(len(index), np.bool_)
    for suffix, offsets in index.offsets.items():
        touched |= (offsets >= 0) & (offsets < stop) & (offsets + index.sizes[suffix] > start)
    return f"{location}[{index.keys[int(touched.argmax())]}]" if touched.any() else location


@lru_cache(maxsize=1)
def _pool(_process: int) -> ThreadPoolExecutor:
    # The process is part of the key: threads do not survive a fork.
    return ThreadPoolExecutor(_BATCHES_AT_ONCE, thread_name_prefix="read-ahead")
