"""The course of a training, as pure functions: item → batch; (task, world size) → rank.

    Schedule   item of the whole training → a training or validation batch: epochs follow each other without a gap
    Tasks      read task → the blocks (a rank's shares of a few batches) that it reads

World size only decides which slice of a global batch a rank gets, so it can change between two steps while the sequence
of global batches stays. Which samples these are is decided by ``epochs``, ``mixture`` and ``order``.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Item:
    """One global batch of the whole training.

    Attributes:
        number: of the item; the cursor of a resumed training.
        phase: train or validation.
        epoch: from 0.
        step: optimizer steps that are done when this item is done, counted over the whole training.
        start: first position of the batch in its epoch.
        stop: position after its last.
        ends_phase: whether this is the last batch of the epoch's training or validation.
    """

    number: int
    phase: Literal["train", "validation"]
    epoch: int
    step: int
    start: int
    stop: int
    ends_phase: bool


@dataclass(frozen=True)
class Schedule:
    """The whole training as one sequence of global batches: each epoch's training, then its validation.

    The last batch of an epoch may be short: nothing is dropped and nothing is repeated.
    """

    train_samples: int
    validation_samples: int
    batch_size: int
    epochs: int

    @property
    def train_batches(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.train_samples // self.batch_size)

    @property
    def validation_batches(self) -> int:
        """Validation batches of an epoch."""
        return -(-self.validation_samples // self.batch_size)

    @property
    def items_per_epoch(self) -> int:
        """Batches of an epoch, validation included."""
        return self.train_batches + self.validation_batches

    @property
    def num_items(self) -> int:
        """Batches of the whole training."""
        return self.epochs * self.items_per_epoch

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * self.train_batches

    def item(self, number: int) -> Item:
        """The item of a number in 0 … num_items − 1."""
        assert 0 <= number < self.num_items
        epoch, batch = divmod(number, self.items_per_epoch)
        if batch < self.train_batches:
            start = batch * self.batch_size
            stop = min(start + self.batch_size, self.train_samples)
            step = epoch * self.train_batches + batch + 1
            return Item(number, "train", epoch, step, start, stop, batch + 1 == self.train_batches)
        start = (batch - self.train_batches) * self.batch_size
        stop = min(start + self.batch_size, self.validation_samples)
        step = (epoch + 1) * self.train_batches
        return Item(number, "validation", epoch, step, start, stop, batch + 1 == self.items_per_epoch)


def rank_size(batch_size: int, world_size: int) -> int:
    """Rows of a batch on every rank; those that nothing is left for are padding."""
    return -(-batch_size // world_size)


def rank_slice(item: Item, batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and after-last position of a rank's share of a global batch; empty where nothing is left for it."""
    size = rank_size(batch_size, world_size)
    start = min(item.start + rank * size, item.stop)
    return start, min(start + size, item.stop)


@dataclass(frozen=True)
class Tasks:
    """The read tasks of one execution of the dataset.

    A block is a rank's shares of consecutive items. The blocks of the first few items, rank by rank, then those of the next
    few, form one sequence; a task reads consecutive ones. Ray hands them to the ranks in turn, so block b of the sequence
    goes to rank b mod W.

    Attributes:
        first_item: where the training starts or resumes.
        num_items: of the whole training.
        world_size: number of ranks W.
        items_per_block: consecutive items that one block has; the last ones of a training may have fewer.
        blocks_per_task: consecutive blocks that one task reads; the first ones read fewer.
        tasks_per_execution: tasks that one execution holds, about; a longer training takes several.
        short_tasks: tasks at the start of an execution that have one block, then as many that have two, four and so on.
    """

    first_item: int
    num_items: int
    world_size: int
    items_per_block: int
    blocks_per_task: int
    tasks_per_execution: int
    short_tasks: int = 0

    def execution_items(self, execution: int) -> tuple[int, int]:
        """First and after-last item of an execution: all ranks get as many blocks."""
        groups = max(1, self.tasks_per_execution * self.blocks_per_task // self.world_size)
        items = groups * self.items_per_block
        first = min(self.first_item + execution * items, self.num_items)
        return first, min(first + items, self.num_items)

    def num_tasks(self, execution: int) -> int:
        """Read tasks of an execution."""
        blocks, growing = self._num_blocks(execution), self._growing_tasks
        left = blocks - self._first_block(growing)
        if left > 0:
            return growing + -(-left // self.blocks_per_task)
        return bisect_left(range(growing), blocks, key=self._first_block)

    def blocks(self, execution: int, task: int) -> list[tuple[range, int]]:
        """Items and rank of every block that a task reads, in order."""
        first, last = self.execution_items(execution)
        start, stop = self._first_block(task), self._first_block(task + 1)
        found = []
        for block in range(start, min(stop, self._num_blocks(execution))):
            group, rank = divmod(block, self.world_size)
            item = first + group * self.items_per_block
            found.append((range(item, min(item + self.items_per_block, last)), rank))
        return found

    def _first_block(self, task: int) -> int:
        """Blocks of an execution that lie before a task's."""
        doubled, rest = divmod(min(task, self._growing_tasks), max(1, self.short_tasks))
        before = (self.short_tasks + rest << doubled) - self.short_tasks
        return before + max(0, task - self._growing_tasks) * self.blocks_per_task

    @property
    def _growing_tasks(self) -> int:
        return self.short_tasks * (self.blocks_per_task - 1).bit_length()

    def _num_blocks(self, execution: int) -> int:
        first, last = self.execution_items(execution)
        return -(-(last - first) // self.items_per_block) * self.world_size
