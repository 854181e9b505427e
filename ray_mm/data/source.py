"""The plan as a Ray datasource: read task → decoded batches, one Arrow block each.

A read task yields a block for each rank's shares of a few batches, in the order of the plan. With ``preserve_order``,
``streaming_split(equal=False)``, no locality hints and blocks of equal length, Ray hands each next block to the rank that
has got the fewest rows, the first of them if several have: block b goes to rank b mod W. The loader checks it every time.
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from ray_mm.config.cache import DecodedCache, RemoteCache
from ray_mm.data.blocks import Work, to_table
from ray_mm.data.decode.decoder import Arrays
from ray_mm.data.epochs import Epochs
from ray_mm.data.fields import field_arrays
from ray_mm.data.foresight import Foresight
from ray_mm.data.order import Shuffle
from ray_mm.data.plan import Schedule, Tasks, rank_size, rank_slice
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.reader import BatchReader
from ray_mm.data.row_cache import RowCache
from ray_mm.data.samples import Samples, open_planned
from ray_mm.storage import local_path
from ray_mm.storage.cache import BlockCache

TASKS_PER_EXECUTION = 20_000
"""What a driver plans at once without effort."""

_TASK_BYTES = 128 << 20
_TASK_SAMPLES = 8192
"""Of a read task, read or decoded, and at the most: a second of work or two. A reader rests for up to a tenth of a second
between two tasks, and what it has finished waits in Ray's store while the tasks before are not done."""

READERS_PER_CPU = 2
"""More than one, because Ray looks only ten times a second for finished tasks, and reading waits for disks and stores."""

BLOCK_BYTES = 2 << 20
_ITEMS_PER_BLOCK = 64
"""Of a block, read or decoded, and at the most: every block costs Ray some milliseconds of a processor, whatever its size."""

_POSITION_AND_WEIGHT_BYTES = 12
SAMPLES_AHEAD = 256
"""That a read task asks a store for while it decodes others."""


@dataclass(frozen=True)
class Feed:
    """Everything that decides which batch comes when. Small: it travels to every read task.

    Attributes:
        train: the samples of a training's epoch, or of an evaluation.
        validation: the samples of a validation.
        preprocessor: which fields, and how.
        shuffle: of the training samples; None: in the order of their shards.
        schedule: the whole training.
        world_size: number of ranks.
        first_item: where to start.
        quarantine: folder for bad members.
        cache: for shards that lie in a store; None: none.
        decoded: for decoded samples; None: none.
        pad: whether every batch has the same number of rows.
        block_bytes: that a block of small samples has, about, so that it carries several batches.
        samples_per_task: that one read task reads, about. None: as many as make it neither short nor long.
        tasks_per_execution: of the dataset; a longer training takes several executions.
    """

    train: Samples
    validation: Samples | None
    preprocessor: Preprocessor
    shuffle: Shuffle | None
    schedule: Schedule
    world_size: int
    first_item: int
    quarantine: Path
    cache: RemoteCache | None = None
    decoded: DecodedCache | None = None
    pad: bool = True
    block_bytes: int = BLOCK_BYTES
    samples_per_task: int | None = None
    tasks_per_execution: int = TASKS_PER_EXECUTION

    @property
    def row_bytes(self) -> int:
        """Bytes of one decoded sample."""
        arrays = [
            array for name, spec in self.preprocessor.fields.items() for array in field_arrays(name, spec).values()
        ]
        return _POSITION_AND_WEIGHT_BYTES + sum(array.dtype.itemsize * math.prod(array.shape) for array in arrays)

    @property
    def batch_rows(self) -> int:
        """Rows of a rank's share of a batch. Without padding, the most that it has."""
        return rank_size(self.schedule.batch_size, self.world_size)

    @property
    def items_per_block(self) -> int:
        """Items whose shares travel together."""
        if not self.pad:
            return 1
        share = self.batch_rows * max(1, self.row_bytes, self.train.sample_bytes)
        return max(1, min(_ITEMS_PER_BLOCK, self.block_bytes // share))

    @property
    def block_rows(self) -> int:
        """Rows of a block. Without padding, the most that it has."""
        return self.items_per_block * self.batch_rows

    def share(self, number: int, rank: int) -> tuple[int, int, int]:
        """First and after-last position of a rank's share of an item, and the rows that it takes."""
        start, stop = rank_slice(self.schedule.item(number), self.schedule.batch_size, rank, self.world_size)
        return start, stop, self.batch_rows if self.pad else stop - start

    @property
    def _task_samples(self) -> int:
        if self.samples_per_task is not None:
            return self.samples_per_task
        largest = max(self.train.sample_bytes, self.validation.sample_bytes if self.validation is not None else 0)
        return min(_TASK_SAMPLES, _TASK_BYTES // max(1, largest, self.row_bytes))

    @property
    def tasks(self) -> Tasks:
        """How the items are divided into read tasks."""
        return Tasks(
            first_item=self.first_item,
            num_items=self.schedule.num_items,
            world_size=self.world_size,
            items_per_block=self.items_per_block,
            blocks_per_task=max(1, self._task_samples // self.block_rows),
            tasks_per_execution=self.tasks_per_execution,
        )


class PlanSource(Datasource):  # type: ignore[misc]  # Ray is not typed
    """A feed's read tasks. Planning is repeated by Ray and has no side effect."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed
        # One copy in the object store instead of one per task.
        self._feed_ref = ray.put(feed)
        self._row_bytes = feed.row_bytes

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes of the decoded batches of one execution."""
        first, last = self._feed.tasks.execution_items(0)
        return (last - first) * self._feed.schedule.batch_size * self._row_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """The tasks of the execution that is about to run; Ray's wish for a parallelism is not heeded."""
        tasks, execution = self._feed.tasks, execution_index(data_context)
        read_tasks = []
        for number in range(tasks.num_tasks(execution)):
            blocks = tasks.blocks(execution, number)
            rows = self._feed.block_rows * len(blocks)
            if not self._feed.pad:
                # Exact, because Ray answers count() with it.
                rows = sum(self._feed.share(number, rank)[2] for items, rank in blocks for number in items)
            metadata = BlockMetadata(
                num_rows=rows, size_bytes=rows * self._row_bytes, exec_stats=None, input_files=None
            )
            read = functools.partial(_read_task, self._feed_ref, execution, number)
            read_tasks.append(ReadTask(read, metadata, per_task_row_limit=per_task_row_limit))
        return read_tasks


def execution_index(data_context: DataContext | None) -> int:
    """How many executions of this dataset came before.

    Ray keeps it in a private attribute; ``tests/data/test_loader.py`` fails when that changes.
    """
    return int(getattr(data_context, "_execution_idx", 0) or 0) if data_context is not None else 0


def feed_dataset(feed: Feed) -> ray.data.Dataset:
    """A Ray dataset of a feed's batches, to be split without locality hints and without equalising."""
    dataset = ray.data.read_datasource(PlanSource(feed), num_cpus=1 / READERS_PER_CPU, override_num_blocks=1)
    configure(dataset.context, feed)
    return dataset


def sequential_dataset(
    samples: Samples, preprocessor: Preprocessor, batch_size: int, quarantine: Path, cache: RemoteCache | None = None
) -> ray.data.Dataset:
    """Some samples once, in the order of their shards: a block per batch, the last one may be short."""
    schedule = Schedule(samples.epoch_samples, 0, batch_size, epochs=1)
    feed = Feed(
        train=samples,
        validation=None,
        preprocessor=preprocessor,
        shuffle=None,
        schedule=schedule,
        world_size=1,
        first_item=0,
        quarantine=quarantine,
        cache=cache,
        pad=False,
    )
    return feed_dataset(feed)


def configure(context: DataContext, feed: Feed) -> None:
    """Settings that the exact order needs, on the dataset's own context: a factory runs in another process."""
    context.execution_options.preserve_order = True
    # Ray collects what a task yields until it has this many bytes, and cuts what has 1.5 times as many. All blocks have
    # the same size, so just under it makes each that we yield one of Ray's, sent as soon as it is decoded.
    context.target_max_block_size = max(1, math.floor(feed.block_rows * feed.row_bytes * 0.9))
    # A long validation or a breakpoint is no hang.
    context.execution_no_progress_timeout_s = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _read_task(feed_ref: ray.ObjectRef[Feed], execution: int, number: int) -> Iterator[pa.Table]:
    reader = _reader(feed_ref)
    yield from reader.read(reader.feed.tasks.blocks(execution, number))


class _FeedReader:
    """Opens a feed's datasets once per process and keeps what its plan has worked out."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self._train = Epochs(open_planned(feed.train), feed.train, feed.shuffle)
        self._validation = self._train
        if feed.validation is not None:
            self._validation = Epochs(open_planned(feed.validation), feed.validation, None)
        self._foresight = None
        if feed.shuffle is not None:  # without one, all is read once
            self._foresight = Foresight(self._train, self._validation if feed.validation is not None else None)
        cache = None
        if feed.cache is not None:
            cache = BlockCache(local_path(feed.cache.folder), feed.cache.size, self._foresight)
        rows = None
        if feed.decoded is not None:
            rows = RowCache(feed.decoded, [*self._train.datasets, *self._validation.datasets], feed.preprocessor)
        self._train_reader, self._validation_reader = (
            BatchReader(epochs.datasets, feed.preprocessor, feed.quarantine, cache, rows)
            for epochs in (self._train, self._validation)
        )

    def read(self, blocks: Iterable[tuple[range, int]]) -> Iterator[pa.Table]:
        """Blocks of the plan, in their order; while one is decoded, the next ones are read ahead.

        Args:
            blocks: items and rank of each.
        """
        # A task that was stopped before its end has left something.
        for reader in (self._train_reader, self._validation_reader):
            reader.forget()
        left, begun = iter(blocks), deque[tuple[range, list[Callable[[], _Share]]]]()
        num_ahead = 1 + SAMPLES_AHEAD // self.feed.block_rows
        while True:
            for items, rank in islice(left, 1 + num_ahead - len(begun)):
                begun.append((items, [self._begin(number, rank) for number in items]))
            if not begun:
                return
            items, shares = begun.popleft()
            yield self._block(items, [finish() for finish in shares])

    def _block(self, items: range, shares: list[_Share]) -> pa.Table:
        arrays, keys, work = shares[0]
        if self.feed.items_per_block > 1:
            # The last block of a training is as large as the others, or Ray would put it to its neighbour.
            rest = self.feed.block_rows - len(shares) * self.feed.batch_rows
            parts = [share[0] for share in shares] + ([self._train_reader.padding(rest)] if rest else [])
            arrays = {name: np.concatenate([part[name] for part in parts]) for name in arrays}
            keys = [key for share in shares for key in share[1]] + [""] * rest
            done = [share[2] for share in shares]
            work = Work(
                sum(each.read_s for each in done),
                sum(each.decode_s for each in done),
                time.time(),
                tuple(count for each in done for count in each.num_cached),
            )
        return to_table(arrays, keys, items, work)

    def _begin(self, number: int, rank: int) -> Callable[[], _Share]:
        """Starts to read a rank's share of an item; the call that is returned finishes it."""
        item = self.feed.schedule.item(number)
        start, stop, size = self.feed.share(number, rank)
        draw_from = None
        if self._foresight is not None:
            self._foresight.now = item.epoch, start if item.phase == "train" else self._train.num_samples
        if item.phase == "train":
            reader, places = self._train_reader, self._train.places(start, stop, item.epoch)
            # Without a shuffle, as in an evaluation, nothing is left to chance.
            if self.feed.shuffle is not None:
                draw_from = self.feed.shuffle.seed, item.epoch
        else:
            # The same samples after every epoch.
            reader, places = self._validation_reader, self._validation.places(start, stop)
        reader.prefetch(places)

        def finish() -> _Share:
            arrays, keys = reader.read(places, start, size, draw_from)
            return arrays, keys, reader.work

        return finish


_Share = tuple[Arrays, list[str], Work]
"""Arrays and keys of a rank's share of an item, and what making it took."""

_readers: dict[Any, _FeedReader] = {}


def _reader(feed_ref: ray.ObjectRef[Feed]) -> _FeedReader:
    if feed_ref not in _readers:
        # A process serves one feed after the other; keeping the old one would keep its shards mapped.
        _readers.clear()
        _readers[feed_ref] = _FeedReader(ray.get(feed_ref))
    return _readers[feed_ref]
