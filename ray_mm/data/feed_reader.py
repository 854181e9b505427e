"""Blocks of a feed's plan → Arrow tables, in this process: what a read task does, and what a train worker does at its start."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa

from ray_mm.data.blocks import Work, to_table
from ray_mm.data.epochs import Epochs
from ray_mm.data.feed import Feed
from ray_mm.data.fields import Arrays
from ray_mm.data.foresight import Foresight
from ray_mm.data.reader import BatchReader
from ray_mm.data.row_cache import RowCache
from ray_mm.data.samples import open_planned
from ray_mm.storage import local_path
from ray_mm.storage.cache import BlockCache

SAMPLES_AHEAD = 256
"""That a read task asks a store for while it decodes others."""


class FeedReader:
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
            BatchReader(epochs.datasets, feed.preprocessor, feed.quarantine, cache, rows, feed.threads)
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


def read_head(feed: Feed, rank: int) -> Iterator[pa.Table]:
    """A rank's shares of the first items of a feed, a table each, read in this process."""
    reader = FeedReader(replace(feed, block_bytes=0))
    yield from reader.read((range(number, number + 1), rank) for number in feed.head)
