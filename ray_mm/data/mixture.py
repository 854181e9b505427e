"""Several streams of samples → one epoch, in exact proportions that every part of it keeps.

A stream is what is drawn together: a dataset, or its samples of one class. Every stream has a quota of an epoch's samples.
Sample j of a stream with quota N stands at the time (j + ½) / N of the epoch, and the epoch is all samples by their
times: so any part of it, and every global batch, holds each stream's share to within one sample. A stream goes through its
samples again and again, each pass in an order of its own; where an epoch ends, its pass goes on in the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ray_mm.data.order import Indices, Order, Shuffle

_MAX_QUOTA = 1 << 50
"""Below it the times of a stream's samples differ as 64-bit floats."""


@dataclass(frozen=True)
class Stream:
    """Samples that are drawn together.

    Attributes:
        source: number of the dataset that they are in.
        label: class label and the class that they have; None: of all classes.
        shard_sizes: samples of the stream in each shard of the dataset, int64 [num_shards].
        quota: samples of an epoch.
    """

    source: int
    label: tuple[str, int] | None
    shard_sizes: Indices
    quota: int

    @property
    def name(self) -> str:
        """Tells streams apart that have the same dataset; part of the shuffle."""
        return "" if self.label is None else f"{self.label[0]}={self.label[1]}"


class Located(NamedTuple):
    """Where samples lie: the stream, the shard, and the place among the stream's samples in that shard; int64 [n] each."""

    streams: Indices
    shards: Indices
    ranks: Indices


class Mixture:
    """The epochs of a training.

    Args:
        streams: each with samples, where its quota is not 0.
        shuffle: of every stream; None: in the order of the shards.
    """

    def __init__(self, streams: Sequence[Stream], shuffle: Shuffle | None) -> None:
        self._streams = tuple(streams)
        self._shuffle = shuffle
        self._quotas = np.array([stream.quota for stream in streams], np.int64)
        assert len(streams) > 0 and int(self._quotas.max()) < _MAX_QUOTA
        self._sizes = [int(stream.shard_sizes.sum()) for stream in streams]
        assert all(size > 0 for size, quota in zip(self._sizes, self._quotas, strict=True) if quota)
        # Of every stream the pass that is being read and the next one.
        self._order = lru_cache(maxsize=2 * len(streams))(self._make_order)

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch."""
        return int(self._quotas.sum())

    def locate(self, epoch: int, start: int, stop: int) -> Located:
        """The samples at the positions of an epoch from ``start`` up to ``stop``."""
        assert 0 <= start <= stop <= self.epoch_samples
        if len(self._streams) == 1:
            return self._of_stream(0, epoch, start, stop)
        before, after = self._counts(start), self._counts(stop)
        drawn = np.flatnonzero(after > before)
        if not len(drawn):
            return Located(*(np.empty(0, np.int64) for _ in range(3)))
        parts = [self._of_stream(int(stream), epoch, int(before[stream]), int(after[stream])) for stream in drawn]
        times = np.concatenate([_times(np.arange(before[s], after[s]), self._quotas[s]) for s in drawn])
        # Stable: of several streams at the same time the first comes first, as in _counts.
        order = np.argsort(times, kind="stable")
        return Located(*(np.concatenate(column)[order] for column in zip(*parts, strict=True)))

    def drawn(self, epoch: int, position: int) -> Indices:
        """Samples that each stream has given before a position of an epoch, since the first one, int64 [streams]."""
        return epoch * self._quotas + (self._counts(position) if len(self._streams) > 1 else position)

    def next_use(self, stream: int, shard: int, ranks: range, drawn: int) -> float:
        """When some samples of a shard are drawn next, in epochs since the first one; as exactly as windows tell.

        Of the window that is being read, all counts as wanted now.

        Args:
            stream: which is shuffled.
            shard: of its dataset.
            ranks: places among the stream's samples in that shard; not empty.
            drawn: samples that the stream has given.
        """
        assert self._shuffle is not None
        quota, size = int(self._quotas[stream]), self._sizes[stream]
        if not quota:
            return math.inf
        number, within = divmod(drawn, size)
        # One of each chunk speaks for all of it.
        spread = {*ranks[:: self._shuffle.chunk_samples], ranks[-1]}
        windows = [self._order(stream, number).window(shard, rank) for rank in spread]
        ahead = [max(start, within) for start, stop in windows if within < stop]
        if ahead:
            return (number * size + min(ahead)) / quota
        following = min(self._order(stream, number + 1).window(shard, rank)[0] for rank in spread)
        return ((number + 1) * size + following) / quota

    def _counts(self, position: int) -> Indices:
        """Samples of each stream before a position of an epoch, int64 [streams]."""
        low, high = 0.0, 1.0
        # The latest time before which there are not more samples than that; 64 halvings leave no float between.
        for _ in range(64):
            middle = (low + high) / 2
            if self._before(middle).sum() <= position:
                low = middle
            else:
                high = middle
        counts = self._before(low)
        # The rest stands at one and the same time.
        for stream in np.flatnonzero(self._next_times(counts) <= high)[: position - int(counts.sum())]:
            counts[stream] += 1
        if int(counts.sum()) != position:
            raise AssertionError(f"counts {counts.tolist()} do not add up to {position}")
        return counts

    def _before(self, time: float) -> Indices:
        """Samples of each stream at earlier times, int64 [streams]."""
        counts: Indices = np.clip(np.ceil(self._quotas * time - 0.5), 0, self._quotas).astype(np.int64)
        # The product was rounded: the times themselves decide.
        counts -= (counts > 0) & (_times(counts - 1, self._quotas) >= time)
        counts += (counts < self._quotas) & (_times(counts, self._quotas) < time)
        return counts

    def _next_times(self, counts: Indices) -> npt.NDArray[np.float64]:
        return np.where(counts < self._quotas, _times(counts, self._quotas), np.inf)

    def _of_stream(self, stream: int, epoch: int, start: int, stop: int) -> Located:
        size = self._sizes[stream]
        first = epoch * int(self._quotas[stream])
        start, stop = first + start, first + stop
        shards, ranks = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while start < stop:
            number, within = divmod(start, size)
            end = min(stop, (number + 1) * size)
            found = self._order(stream, number).locate(within, within + end - start)
            shards.append(found[0])
            ranks.append(found[1])
            start = end
        found_shards = np.concatenate(shards)
        return Located(np.full(len(found_shards), stream, np.int64), found_shards, np.concatenate(ranks))

    def _make_order(self, stream: int, number: int) -> Order:
        of = self._streams[stream]
        shuffle = self._shuffle
        if shuffle is not None:
            shuffle = replace(shuffle, digest=f"{shuffle.digest}/{of.source}/{of.name}")
        return Order(of.shard_sizes, number, shuffle)


def quotas(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in the proportion of the weights that add up to the total (largest remainders)."""
    shares = np.asarray(weights, np.float64) * (total / sum(weights))
    counts = np.floor(shares).astype(np.int64)
    # Of equal remainders the first one wins.
    largest = np.argsort(-(shares - counts), kind="stable")[: total - int(counts.sum())]
    counts[largest] += 1
    return [int(count) for count in counts]


def _times(number: npt.NDArray[np.int64], quota: npt.NDArray[np.int64] | np.int64) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = (2 * number + 1) / np.maximum(2 * quota, 1)
    return found
