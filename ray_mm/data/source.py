"""The plan as a Ray datasource: read task → decoded batches, one Arrow block each.

A read task yields a block for each rank's shares of a few batches, in the order of the plan. With ``preserve_order``,
``streaming_split(equal=False)``, no locality hints and blocks of equal length, Ray hands each next block to the rank that
has got the fewest rows, the first of them if several have: block b goes to rank b mod W. The loader checks it every time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from ray_mm.config.cache import RemoteCache
from ray_mm.data.feed import Feed
from ray_mm.data.plan import Schedule
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.samples import Samples

if TYPE_CHECKING:
    from ray_mm.data.feed_reader import FeedReader

READERS_PER_CPU = 2
"""More than one, because Ray looks only ten times a second for finished tasks, and reading waits for disks and stores."""


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
    dataset = ray.data.read_datasource(
        PlanSource(feed),
        num_cpus=1 / READERS_PER_CPU,
        concurrency=feed.limits.readers if feed.limits is not None else None,
        override_num_blocks=1,
    )
    configure(dataset.context, feed)
    return dataset


def sequential_dataset(
    samples: Samples,
    preprocessor: Preprocessor,
    batch_size: int,
    quarantine: Path,
    cache: RemoteCache | None = None,
    first_batch: int = 0,
) -> ray.data.Dataset:
    """Some samples once, in the order of their shards: a block per batch, the last one may be short.

    A dataset of more than ``feed.TASKS_PER_EXECUTION`` read tasks ends early; another one goes on behind it.

    Args:
        samples: which.
        preprocessor: which fields, and how.
        batch_size: samples of a block.
        quarantine: folder for bad members.
        cache: for shards that lie in a store; None: none.
        first_batch: where to start; what lies before it is not read.
    """
    schedule = Schedule(samples.epoch_samples, 0, batch_size, epochs=1)
    feed = Feed(
        train=samples,
        validation=None,
        preprocessor=preprocessor,
        shuffle=None,
        schedule=schedule,
        world_size=1,
        first_item=first_batch,
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
    if feed.limits is not None:
        context.override_object_store_memory_limit_fraction = feed.limits.ray_share
    # A long validation or a breakpoint is no hang.
    context.execution_no_progress_timeout_s = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _read_task(feed_ref: ray.ObjectRef[Feed], execution: int, number: int) -> Iterator[pa.Table]:
    reader = _reader(feed_ref)
    yield from reader.read(reader.feed.tasks.blocks(execution, number))


_readers: dict[Any, FeedReader] = {}


def _reader(feed_ref: ray.ObjectRef[Feed]) -> FeedReader:
    # Only here: the processes that plan and hand out blocks, which get this module with the read tasks, decode nothing.
    from ray_mm.data.feed_reader import FeedReader

    if feed_ref not in _readers:
        # A process serves one feed after the other; keeping the old one would keep its shards mapped.
        _readers.clear()
        _readers[feed_ref] = FeedReader(ray.get(feed_ref))
    return _readers[feed_ref]
