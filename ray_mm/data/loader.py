"""The train worker's end of the data path: batches on the device, proven to be in order, with the time spent waiting."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ray_mm.data.blocks import Work, block_items, block_keys, block_work, to_arrays
from ray_mm.data.decode.decoder import Arrays
from ray_mm.data.fields import POSITION
from ray_mm.data.plan import Item, Schedule, rank_size, rank_slice
from ray_mm.errors import OrderError

if TYPE_CHECKING:
    from ray.data import DataIterator

# The arrays are views of shared memory and only ever read.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)


@dataclass(frozen=True)
class LoadedBatch:
    """A rank's share of one global batch.

    Attributes:
        item: which batch of the training.
        tensors: as in ``data.fields``, on the device.
        keys: of the samples; empty for padding.
        start: first position of this rank's share.
        stop: position after its last.
        wait_s: seconds that the worker waited for it.
        transfer_s: seconds of bringing it to the device.
        queued_s: seconds that it lay ready before that.
        read_s: seconds of reading its members, in some process.
        decode_s: seconds of decoding them there.
        num_cached: samples of it that were kept from an earlier epoch.
    """

    item: Item
    tensors: dict[str, torch.Tensor]
    keys: list[str]
    start: int
    stop: int
    wait_s: float
    transfer_s: float = 0.0
    queued_s: float = 0.0
    read_s: float = 0.0
    decode_s: float = 0.0
    num_cached: int = 0


class Loader:
    """Iterates over the rest of a training.

    Args:
        shard: this worker's split of the feed's dataset.
        schedule: the whole training.
        first_item: where it starts or resumes.
        rank: of this worker.
        world_size: number of workers.
        device: of the tensors.
        prefetch_blocks: blocks fetched ahead.
    """

    def __init__(
        self,
        shard: DataIterator,
        *,
        schedule: Schedule,
        first_item: int,
        rank: int,
        world_size: int,
        device: torch.device,
        prefetch_blocks: int,
    ) -> None:
        self._shard = shard
        self._schedule = schedule
        self._first_item = first_item
        self._rank = rank
        self._world_size = world_size
        self._device = device
        self._prefetch_blocks = prefetch_blocks

    def __iter__(self) -> Iterator[LoadedBatch]:
        number = self._first_item
        while number < self._schedule.num_items:
            before = number
            tables = iter(self._tables())
            while True:
                started = time.perf_counter()
                table = next(tables, None)
                if table is None:
                    break
                for batch in self._load(table, number, time.perf_counter() - started):
                    yield batch
                    number += 1
            if number == before:
                raise OrderError(
                    f"the data ended at batch {number} of {self._schedule.num_items}: this is an error in ray_mm."
                )

    def _tables(self) -> Any:
        return self._shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=self._prefetch_blocks)

    def _load(self, table: Any, number: int, wait_s: float) -> Iterator[LoadedBatch]:
        """The batches of a block; the first one is told the time that was waited for it."""
        items, rows = block_items(table), rank_size(self._schedule.batch_size, self._world_size)
        if items.stop > self._schedule.num_items:
            raise OrderError("more batches arrived than were planned: this is an error in ray_mm.")
        # Positions alone could not tell one epoch from the next.
        if items.start != number:
            raise OrderError(
                f"batch {items.start} of the training arrived where batch {number} was planned: this is an error in ray_mm."
            )
        if table.num_rows % rows or table.num_rows < rows * len(items):
            raise OrderError(
                f"a block of {table.num_rows} rows arrived where {len(items)} batches of {rows} rows were planned: this is an "
                "error in ray_mm."
            )
        work, now = block_work(table) or Work(0.0, 0.0, math.inf), time.time()
        arrays, keys = to_arrays(table), block_keys(table)
        for place, item in enumerate(map(self._schedule.item, items)):
            received = time.perf_counter()
            share = slice(place * rows, (place + 1) * rows)
            start, stop = rank_slice(item, self._schedule.batch_size, self._rank, self._world_size)
            check_positions(arrays[POSITION][share], start, stop)
            tensors = to_tensors(arrays, share, self._device)
            yield LoadedBatch(
                item,
                tensors,
                keys[share],
                start,
                stop,
                wait_s=wait_s if place == 0 else 0.0,
                transfer_s=time.perf_counter() - received,
                # Clocks of two machines may differ.
                queued_s=max(0.0, now - work.done_at),
                read_s=work.read_s / len(items),
                decode_s=work.decode_s / len(items),
                num_cached=work.num_cached[place] if work.num_cached else 0,
            )


def to_tensors(arrays: Arrays, rows: slice, device: torch.device) -> dict[str, torch.Tensor]:
    """Some rows of a block on a device; on the CPU they are views of its memory."""
    return {name: torch.from_numpy(array[rows]).to(device) for name, array in arrays.items()}


def check_positions(found: np.ndarray[Any, Any], start: int, stop: int) -> None:
    """Proves that a batch is the planned one.

    Raises:
        OrderError: it holds other samples than positions ``start`` … ``stop`` − 1, then padding.
    """
    expected = np.full(len(found), -1, np.int64)
    if stop - start > len(found):
        raise OrderError(f"a batch of {len(found)} rows arrived where {stop - start} were planned.")
    expected[: stop - start] = np.arange(start, stop)
    if not np.array_equal(found, expected):
        raise OrderError(
            f"a batch arrived out of order: positions {found[:3].tolist()}… where {start} … {stop - 1} were planned. "
            "This is an error in ray_mm, or the dataset changed while it was read."
        )
