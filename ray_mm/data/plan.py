"""The order of everything, as pure functions: (digest, seed, epoch) → samples; item → batch; (task, world size) → rank.

    Order      position in an epoch → (shard, row): chunks of shards are permuted, then rows within a window of chunks
    Schedule   item of the whole training → a training or validation batch: epochs follow each other without a gap
    Tasks      read task → the blocks (a rank's share of a batch each) that it reads

World size only decides which slice of a global batch a rank gets, so it can change between two steps while the sequence
of global batches stays. Nothing is buffered, so nothing but the item's number has to be saved to resume.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shuffle:
    """How an epoch is mixed.

    Attributes:
        seed: of the training.
        digest: of the dataset, so that two datasets differ under one seed.
        chunk_samples: consecutive samples of a shard that stay in one window.
        window_chunks: chunks whose rows are mixed with each other.
    """

    seed: int
    digest: str
    chunk_samples: int
    window_chunks: int


class Order:
    """The samples of a dataset in the order of one epoch. Memory: the chunks, and one window of rows.

    Args:
        shard_sizes: samples per shard, int64 [num_shards].
        epoch: from 0.
        shuffle: None: in the order of the shards.
    """

    def __init__(self, shard_sizes: Indices, epoch: int, shuffle: Shuffle | None) -> None:
        self.num_samples = int(shard_sizes.sum())
        self._shuffle = shuffle
        self._epoch = epoch
        if shuffle is None:
            self._shard_starts = np.concatenate([[0], np.cumsum(shard_sizes)]).astype(np.int64)
            return
        self._chunk_shards, self._chunk_rows, chunk_sizes = _chunks(shard_sizes, shuffle.chunk_samples)
        self._permuted = _permutation(len(chunk_sizes), shuffle, epoch, "chunks", 0)
        self._chunk_sizes = chunk_sizes[self._permuted]
        window_ends = np.cumsum(
            np.add.reduceat(self._chunk_sizes, np.arange(0, len(chunk_sizes), shuffle.window_chunks))
        )
        self._window_starts = np.concatenate([[0], window_ends]).astype(np.int64)
        self._window = lru_cache(maxsize=2)(self._make_window)

    def locate(self, start: int, stop: int) -> tuple[Indices, Indices]:
        """Shards and rows of the positions from ``start`` up to ``stop``, int64 [stop − start] each."""
        assert 0 <= start <= stop <= self.num_samples
        if self._shuffle is None:
            positions = np.arange(start, stop)
            shards = np.searchsorted(self._shard_starts, positions, side="right") - 1
            return shards, positions - self._shard_starts[shards]
        parts: list[tuple[Indices, Indices]] = []
        while start < stop:
            window = int(np.searchsorted(self._window_starts, start, side="right")) - 1
            first, last = int(self._window_starts[window]), int(self._window_starts[window + 1])
            shards, rows = self._window(window)
            end = min(stop, last)
            parts.append((shards[start - first : end - first], rows[start - first : end - first]))
            start = end
        empty = np.empty(0, np.int64)
        return (
            np.concatenate([shards for shards, _ in parts] or [empty]),
            np.concatenate([rows for _, rows in parts] or [empty]),
        )

    def _make_window(self, window: int) -> tuple[Indices, Indices]:
        assert self._shuffle is not None
        first = window * self._shuffle.window_chunks
        picked = slice(first, first + self._shuffle.window_chunks)
        sizes, chunks = self._chunk_sizes[picked], self._permuted[picked]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        mixed = _permutation(len(within), self._shuffle, self._epoch, "window", window)
        shards = np.repeat(self._chunk_shards[chunks], sizes)[mixed]
        rows = (np.repeat(self._chunk_rows[chunks], sizes) + within)[mixed]
        return shards, rows


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

    All shares of all batches, item by item and rank by rank within an item, form one sequence of equal blocks; a task
    reads consecutive ones. Ray hands the blocks to the ranks in turn, so block b of the sequence goes to rank b mod W.

    Attributes:
        first_item: where the training starts or resumes.
        num_items: of the whole training.
        world_size: number of ranks W.
        blocks_per_task: consecutive blocks that one task reads.
        tasks_per_execution: tasks that one execution holds; a longer training takes several.
    """

    first_item: int
    num_items: int
    world_size: int
    blocks_per_task: int
    tasks_per_execution: int

    def execution_items(self, execution: int) -> tuple[int, int]:
        """First and after-last item of an execution: whole items, so that all ranks get as many blocks."""
        items = max(1, self.tasks_per_execution * self.blocks_per_task // self.world_size)
        first = min(self.first_item + execution * items, self.num_items)
        return first, min(first + items, self.num_items)

    def num_tasks(self, execution: int) -> int:
        """Read tasks of an execution."""
        first, last = self.execution_items(execution)
        return -(-(last - first) * self.world_size // self.blocks_per_task)

    def blocks(self, execution: int, task: int) -> list[tuple[int, int]]:
        """(item, rank) of every block that a task reads, in order."""
        first, last = self.execution_items(execution)
        start = task * self.blocks_per_task
        stop = min(start + self.blocks_per_task, (last - first) * self.world_size)
        return [(first + block // self.world_size, block % self.world_size) for block in range(start, stop)]


def stable_hash(*parts: object) -> int:
    """128 bits that depend on the parts alone: the same on every machine, in every process and version."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def _permutation(size: int, shuffle: Shuffle, epoch: int, what: str, number: int) -> Indices:
    # Philox's raw bits are promised to stay the same between versions of numpy; Generator.permutation is not.
    bits = np.random.Philox(key=stable_hash(shuffle.digest, shuffle.seed, epoch, what, number)).random_raw(size)
    return np.argsort(bits, kind="stable").astype(np.int64)


def _chunks(shard_sizes: Indices, chunk_samples: int) -> tuple[Indices, Indices, Indices]:
    """Shard, first row and size of every chunk, int64 [num_chunks] each."""
    per_shard = -(-shard_sizes // chunk_samples)
    shards = np.repeat(np.arange(len(shard_sizes)), per_shard)
    number = np.arange(len(shards)) - np.repeat(np.cumsum(per_shard) - per_shard, per_shard)
    rows = number * chunk_samples
    return shards, rows, np.minimum(chunk_samples, shard_sizes[shards] - rows)
