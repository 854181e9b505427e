"""The train worker's end of the data path: batches on the device, proven to be in order, with the time spent waiting."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ray_mm.data.blocks import Work, block_items, block_keys, block_work, to_arrays
from ray_mm.data.device import CudaStream, DeviceStream, ToDevice
from ray_mm.data.feed import Feed
from ray_mm.data.fields import POSITION, Arrays
from ray_mm.data.plan import Item, rank_slice
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
        wait_s: seconds that the worker waited for it; on a GPU seconds in which that had nothing to do, and of the batch
            before, because only then they are known.
        transfer_s: seconds of bringing it to the device; on a GPU likewise.
        queued_s: seconds that it lay ready before that.
        read_s: seconds of reading its members, in some process.
        decode_s: seconds of decoding them there.
        num_cached: samples of it that were kept from an earlier epoch.
        host: the tensors as they were before they went to the device. None: it is the CPU.
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
    host: dict[str, torch.Tensor] | None = None

    @property
    def on_host(self) -> dict[str, torch.Tensor]:
        """The tensors on the CPU: looking at values there does not wait for the device."""
        return self.tensors if self.host is None else self.host


class Loader:
    """Iterates over the rest of a training.

    The first batches are read in this process while Ray starts the processes that read all others: a training begins at
    once, at whatever batch it begins.

    Args:
        shard: this worker's split of the feed's dataset.
        feed: what is read.
        rank: of this worker.
        device: of the tensors.
        prefetch_batches: batches fetched ahead.
    """

    def __init__(
        self, shard: DataIterator, feed: Feed, *, rank: int, device: torch.device, prefetch_batches: int
    ) -> None:
        self._shard = shard
        self._feed = feed
        self._rank = rank
        self._device = device
        # Ray's first block waits until so many are there, so not more of them than hold the batches that are wanted.
        self._prefetch_blocks = feed.blocks_of(prefetch_batches)

    def __iter__(self) -> Iterator[LoadedBatch]:
        batches = self._batches()
        return overlapped(batches, CudaStream(self._device)) if self._device.type == "cuda" else batches

    def _batches(self) -> Iterator[LoadedBatch]:
        """All of them, on the CPU."""
        number, num_items = self._feed.first_item, self._feed.schedule.num_items
        streamed = self._tables()
        if self._feed.head:
            # Only a worker decodes; the processes that start it get this module, too.
            from ray_mm.data.feed_reader import read_head

            # Ray begins when all ranks have asked.
            streamed = _begun(streamed)
            for table, wait_s in _timed(_ahead(read_head(self._feed, self._rank))):
                for batch in self._load(table, number, wait_s):
                    yield batch
                    number += 1
        while number < num_items:
            before = number
            for table, wait_s in _timed(streamed):
                for batch in self._load(table, number, wait_s):
                    yield batch
                    number += 1
            if number == before:
                raise OrderError(f"the data ended at batch {number} of {num_items}: this is an error in ray_mm.")
            streamed = self._tables()

    def _tables(self) -> Iterator[Any]:
        yield from self._shard.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=self._prefetch_blocks
        )

    def _load(self, table: Any, number: int, wait_s: float) -> Iterator[LoadedBatch]:
        """The batches of a block; the first one is told the time that was waited for it."""
        items, rows, schedule = block_items(table), self._feed.batch_rows, self._feed.schedule
        if items.stop > schedule.num_items:
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
        for place, item in enumerate(map(schedule.item, items)):
            received = time.perf_counter()
            share = slice(place * rows, (place + 1) * rows)
            start, stop = rank_slice(item, schedule.batch_size, self._rank, self._feed.world_size)
            check_positions(arrays[POSITION][share], start, stop)
            tensors = to_tensors(arrays, share)
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


def _timed(tables: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Each with the seconds that it was waited for."""
    while True:
        started = time.perf_counter()
        table = next(tables, None)
        if table is None:
            return
        yield table, time.perf_counter() - started


def _ahead(tables: Iterator[Any]) -> Iterator[Any]:
    """The same tables, each made by a thread while the one before is used."""
    begun = _begin(tables)
    while (table := begun.result()) is not None:
        begun = _begin(tables)
        yield table


def _begun(tables: Iterator[Any]) -> Iterator[Any]:
    """The same tables; the first one is on its way from now on."""
    first = _begin(tables)

    def each() -> Iterator[Any]:
        table = first.result()
        if table is not None:
            yield table
            yield from tables

    return each()


def _begin(tables: Iterator[Any]) -> Future[Any]:
    """The next of some tables, made by a thread; None at their end. A process may end without waiting for it."""
    made: Future[Any] = Future()

    def make() -> None:
        try:
            made.set_result(next(tables, None))
        except BaseException as error:  # whoever waits shall see it
            made.set_exception(error)

    threading.Thread(target=make, name="loader", daemon=True).start()
    return made


def to_tensors(arrays: Arrays, rows: slice) -> dict[str, torch.Tensor]:
    """Some rows of a block: views of its memory."""
    return {name: torch.from_numpy(array[rows]) for name, array in arrays.items()}


def overlapped(batches: Iterator[LoadedBatch], stream: DeviceStream) -> Iterator[LoadedBatch]:
    """The same batches on a device, each brought there while the device works on the one before."""
    to_device = ToDevice(stream)
    while True:
        held = to_device.ask()
        batch = next(batches, None)
        if batch is None:
            return
        tensors = to_device.bring(batch.tensors)
        found = replace(batch, tensors=tensors, host=batch.tensors)
        yield found if held is None else replace(found, wait_s=held.wait_s, transfer_s=held.transfer_s)


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
