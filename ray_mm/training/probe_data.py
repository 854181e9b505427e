"""What reading and decoding a training's samples costs one process, each alone: a feed → costs per sample, and a block.

Samples are those with which the training begins, in its order, and what is decided by chance is what the training would
decide. Nothing is written, no cache is used or filled, and a bad sample is only counted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_mm.data.blocks import to_table
from ray_mm.data.collate import Collator
from ray_mm.data.decode import Draw
from ray_mm.data.epochs import Epochs, Places
from ray_mm.data.feed import Feed
from ray_mm.data.feed_reader import SAMPLES_AHEAD
from ray_mm.data.fields import POSITION, WEIGHT, Arrays
from ray_mm.data.members import Members, SampleReader
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.samples import open_planned
from ray_mm.storage import is_remote
from ray_mm.storage.ranges import Arena
from ray_mm.training.costs import DecodeCost, ReadCost

_ARENA_BYTES = 16 << 20
_KEPT_BYTES = 128 << 20
"""Members that are kept for decoding: enough different ones, and no burden on a small machine."""
_LOOKED_UP = 1024
"""Samples of which is told whether they lie in memory already."""
_LOOKS = 8
"""How often decoding looks at the clock, about."""


class Stopwatch:
    """Adds up the time within ``with`` blocks: seconds, and seconds of a CPU of this process."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets what was added up."""
        self.wall_s = self.cpu_s = 0.0

    def __enter__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall_s += time.perf_counter() - self._wall
        self.cpu_s += time.process_time() - self._cpu


def probe_data(feed: Feed, seconds: float) -> tuple[ReadCost, DecodeCost, pa.Table]:
    """Measures reading, then decoding.

    Args:
        feed: of the training.
        seconds: for each, about; a single sample is measured in any case.

    Returns:
        What it costs, and a decoded block of full size.

    Raises:
        DatasetError: a dataset or a shard is gone, damaged or changed.
        StorageError: a store does not answer.
    """
    reading = _Reading(feed)
    read = reading.measure(seconds)
    decoding = _Decoding(feed, reading.kept)
    decode = decoding.measure(seconds)
    return read, decode, decoding.block()


class _Reading:
    """Reads the first epoch, block by block."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        datasets = open_planned(feed.train)
        self._epochs = Epochs(datasets, feed.train, feed.shuffle)
        self._readers = [SampleReader(dataset, sorted(feed.preprocessor.fields)) for dataset in datasets]
        self._is_remote = any(is_remote(dataset.location(0)) for dataset in datasets if dataset.shards)
        self._arena = Arena(_ARENA_BYTES)
        self.kept: list[Members] = []
        """Of the first samples, at positions 0, 1, …"""

    def measure(self, seconds: float) -> ReadCost:
        """Reads for so long, then half as long the same once more."""
        in_memory = self._in_memory()
        counts: list[tuple[int, int]] = []
        opening, watch = Stopwatch(), Stopwatch()
        for places in self._asked_ahead():
            # The first block opens shards, which an epoch does once. It counts where there is no other.
            with watch if counts else opening:
                found, size_bytes = self._read(places)
            counts.append((len(places.rows), size_bytes))
            self._keep(places, found)
            if opening.wall_s + watch.wall_s >= seconds:
                break
        for reader in self._readers:
            reader.forget()
        counted = counts[1:] or counts
        watch = watch if len(counts) > 1 else opening
        num_samples = sum(count for count, _ in counted)
        return ReadCost(
            wall_s=watch.wall_s / num_samples,
            cpu_s=watch.cpu_s / num_samples,
            size_bytes=sum(size for _, size in counted) / num_samples,
            num_samples=num_samples,
            is_remote=self._is_remote,
            in_memory=in_memory,
            again_s=None if self._is_remote else self._again(len(counts), seconds / 2),
        )

    def _again(self, num_blocks: int, seconds: float) -> float:
        watch, num_samples = Stopwatch(), 0
        for places in islice(self._blocks(), num_blocks):
            with watch:
                self._read(places)
            num_samples += len(places.rows)
            if watch.wall_s >= seconds:
                break
        return watch.wall_s / num_samples

    def _in_memory(self) -> float | None:
        """Asked before anything is read, for reading brings neighbours, too."""
        stop = min(_LOOKED_UP, self._epochs.num_samples)
        found = [
            self._readers[number].in_memory(shard, row) for number, shard, row in _rows(self._epochs.places(0, stop))
        ]
        known = [each for each in found if each is not None]
        return sum(known) / len(known) if known else None

    def _blocks(self) -> Iterator[Places]:
        """What the read tasks of all ranks read, one after the other."""
        for number in range(self._feed.schedule.train_batches):
            for rank in range(self._feed.world_size):
                start, stop, _ = self._feed.share(number, rank)
                if stop > start:
                    yield self._epochs.places(start, stop, 0)

    def _asked_ahead(self) -> Iterator[Places]:
        """The same; samples of a store are asked for as early as a read task asks for them."""
        left, begun = self._blocks(), deque[Places]()
        num_ahead = 1 + SAMPLES_AHEAD // self._feed.batch_rows
        while True:
            for places in islice(left, 1 + num_ahead - len(begun)):
                for number in np.unique(places.datasets).tolist():
                    here = places.datasets == number
                    self._readers[number].prefetch(places.shards[here].tolist(), places.rows[here].tolist())
                begun.append(places)
            if not begun:
                return
            yield begun.popleft()

    def _read(self, places: Places) -> tuple[list[Members], int]:
        """Members of a block, of local shards in memory that is used again, and their bytes."""
        found, size_bytes, in_arena = [], 0, 0
        for number, shard, row in _rows(places):
            members = self._readers[number].members(shard, row, self._arena)
            self._readers[number].damaged(shard, row, members)
            found.append(members)
            size = sum(map(len, members.values()))
            size_bytes, in_arena = size_bytes + size, in_arena + size
            if in_arena >= _ARENA_BYTES:
                self._arena.reset()
                in_arena = 0
        self._arena.reset()
        return found, size_bytes

    def _keep(self, places: Places, found: list[Members]) -> None:
        held = sum(len(payload) for members in self.kept for payload in members.values())
        for members, (number, shard, row) in zip(found, _rows(places), strict=True):
            if self.kept and held >= _KEPT_BYTES:
                return
            # What was read into the arena is gone by now; it comes from the page cache.
            self.kept.append(members if self._is_remote else self._readers[number].members(shard, row))
            held += sum(map(len, members.values()))


class _Decoding:
    """Decodes samples again and again, field by field, as the collator does, so that each field's part is known."""

    def __init__(self, feed: Feed, samples: Sequence[Members]) -> None:
        self._samples = samples
        self._batch_rows, self._block_rows = feed.batch_rows, feed.block_rows
        self._items = range(feed.items_per_block)
        fields = sorted(feed.preprocessor.fields)
        self._collators = {name: Collator(_only(feed.preprocessor, name)) for name in fields}
        self._watches = {name: Stopwatch() for name in fields}
        seed = feed.shuffle.seed if feed.shuffle is not None else 0
        self._draws = [Draw(seed, 0, position) for position in range(len(samples))]
        self._decoded: list[Arrays] = []
        self._bad: set[int] = set()

    def measure(self, seconds: float) -> DecodeCost:
        """Decodes for so long, and at least once."""
        # The first sample brings libraries and tables; the second time tells how many make a part.
        self._decode(0, 1)
        before = self._wall_s
        self._decode(0, 1)
        size = max(
            1, min(self._batch_rows, len(self._samples), int(seconds / _LOOKS / max(self._wall_s - before, 1e-9)))
        )
        for watch in self._watches.values():
            watch.restart()
        self._decoded.clear()
        done = 0
        while not done or self._wall_s < seconds:
            first = done % len(self._samples)
            # A pass begins at the first sample.
            done += self._decode(first, min(size, len(self._samples) - first))
        fields_s = {name: watch.cpu_s / done for name, watch in self._watches.items()}
        return DecodeCost(
            wall_s=self._wall_s / done,
            cpu_s=sum(fields_s.values()),
            fields_s=fields_s,
            num_samples=min(done, len(self._samples)),
            num_bad=len(self._bad),
        )

    @property
    def _wall_s(self) -> float:
        return sum(watch.wall_s for watch in self._watches.values())

    def _decode(self, first: int, count: int) -> int:
        samples, draws = self._samples[first : first + count], self._draws[first : first + count]
        together: Arrays = {}
        for name, collator in self._collators.items():
            with self._watches[name]:
                arrays = collator.empty(count)
                bad = collator.fill(arrays, 0, samples, draws)
            self._bad |= {first + row for row in bad}
            weight = np.minimum(together.get(WEIGHT, arrays[WEIGHT]), arrays[WEIGHT])
            together |= arrays | {WEIGHT: weight}
        if sum(len(arrays[WEIGHT]) for arrays in self._decoded) < self._block_rows:
            self._decoded.append(together)
        return count

    def block(self) -> pa.Table:
        """What was decoded as a full block of the first batches; it comes round again where there is too little."""
        arrays: Arrays = {
            name: _repeated(np.concatenate([part[name] for part in self._decoded]), self._block_rows)
            for name in self._decoded[0]
        }
        arrays[POSITION] = np.arange(self._block_rows)
        return to_table(arrays, [str(row) for row in range(self._block_rows)], self._items)


def _rows(places: Places) -> Iterator[tuple[int, int, int]]:
    """Dataset, shard and row of each sample."""
    return zip(*(column.tolist() for column in places), strict=True)


def _only(preprocessor: Preprocessor, name: str) -> Preprocessor:
    return preprocessor.model_copy(update={"fields": {name: preprocessor.fields[name]}})


def _repeated(array: npt.NDArray[np.generic], rows: int) -> npt.NDArray[np.generic]:
    return array[np.arange(rows) % len(array)]
