"""Everything that decides which batch of a training comes when, and in which portions it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ray_mm.config.cache import DecodedCache, RemoteCache
from ray_mm.data.fields import field_arrays
from ray_mm.data.order import Shuffle
from ray_mm.data.plan import Schedule, Tasks, rank_size, rank_slice
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.samples import Samples
from ray_mm.data.store_limits import StoreLimits

TASKS_PER_EXECUTION = 20_000
"""What a driver plans at once without effort."""

_TASK_BYTES = 128 << 20
_TASK_SAMPLES = 8192
"""Of a read task, read or decoded, and at the most: a second of work or two. A reader rests for up to a tenth of a second
between two tasks, and what it has finished waits in Ray's store while the tasks before are not done."""

_SHORT_TASKS = 8
"""Read tasks of one block at the start of an execution, then of two, and so on. Ray hands blocks out in the order of the tasks:
what later ones have read while the first ones run is of no use yet."""

BLOCK_BYTES = 48 << 20
_ITEMS_PER_BLOCK = 64
"""Of a block, read or decoded, and at the most: every block costs Ray some milliseconds of a processor, whatever its size."""

_POSITION_AND_WEIGHT_BYTES = 12


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
        samples_per_task: that one read task reads, about. None: as many as make it neither short nor long, the first ones fewer.
        head_samples: that each rank reads by itself at the start, about, while Ray starts its readers. None: as many as take
            it some seconds.
        tasks_per_execution: of the dataset; a longer training takes several executions.
        limits: what it may take in Ray's object store. None: what Ray thinks right.
        threads: that decode at once in each process that reads; ``docs/decisions.md`` tells why one.
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
    head_samples: int | None = 0
    tasks_per_execution: int = TASKS_PER_EXECUTION
    limits: StoreLimits | None = None
    threads: int = 1

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
        block_bytes = self.block_bytes if self.limits is None else min(self.block_bytes, self.limits.block_bytes)
        return max(1, min(_ITEMS_PER_BLOCK, block_bytes // share))

    @property
    def block_rows(self) -> int:
        """Rows of a block. Without padding, the most that it has."""
        return self.items_per_block * self.batch_rows

    def blocks_of(self, batches: int) -> int:
        """Blocks that hold a rank's shares of so many batches."""
        return -(-batches // self.items_per_block)

    def share(self, number: int, rank: int) -> tuple[int, int, int]:
        """First and after-last position of a rank's share of an item, and the rows that it takes."""
        start, stop = rank_slice(self.schedule.item(number), self.schedule.batch_size, rank, self.world_size)
        return start, stop, self.batch_rows if self.pad else stop - start

    @property
    def head(self) -> range:
        """The first items, of which each rank reads its share by itself. Something is always left for Ray."""
        # Ray needs a few seconds to start, and reading more than that alone would hold up workers that are fast.
        samples = 2 * self._samples_of_a_second if self.head_samples is None else self.head_samples
        left = self.schedule.num_items - self.first_item - 1
        return range(self.first_item, self.first_item + max(0, min(-(-samples // self.batch_rows), left)))

    @property
    def _samples_of_a_second(self) -> int:
        largest = max(self.train.sample_bytes, self.validation.sample_bytes if self.validation is not None else 0)
        return min(_TASK_SAMPLES, _TASK_BYTES // max(1, largest, self.row_bytes))

    @property
    def _task_samples(self) -> int:
        if self.samples_per_task is not None:
            return self.samples_per_task
        samples = self._samples_of_a_second
        return samples if self.limits is None else min(samples, self.limits.task_bytes // self.row_bytes)

    @property
    def tasks(self) -> Tasks:
        """How the items after the head are divided into read tasks."""
        return Tasks(
            first_item=self.head.stop,
            num_items=self.schedule.num_items,
            world_size=self.world_size,
            items_per_block=self.items_per_block,
            blocks_per_task=max(1, self._task_samples // self.block_rows),
            tasks_per_execution=self.tasks_per_execution,
            short_tasks=_SHORT_TASKS if self.samples_per_task is None else 0,
        )
