"""Epoch and position → where the sample lies: the plan, resolved to rows of shards. Plain Python, without Ray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ray_mm.data.manifest import Dataset
from ray_mm.data.mixture import Mixture
from ray_mm.data.order import Indices, Shuffle
from ray_mm.data.samples import Samples, all_of

_KEPT_SHARDS = 1024


class Places(NamedTuple):
    """Where samples lie: number of the dataset, shard, row of the shard; int64 [n] each."""

    datasets: Indices
    shards: Indices
    rows: Indices


class Epochs:
    """The epochs of some samples.

    Args:
        datasets: that the samples are in, opened.
        samples: what an epoch is made of.
        shuffle: None: in the order of the shards, for reading each once.
    """

    def __init__(self, datasets: Sequence[Dataset], samples: Samples, shuffle: Shuffle | None) -> None:
        self.datasets = tuple(datasets)
        self.num_samples = samples.epoch_samples
        """Samples of an epoch."""
        self.samples = samples
        self._mixture = Mixture(samples.streams, shuffle)
        self._sources = np.array([stream.source for stream in samples.streams], np.int64)
        self._rows = lru_cache(maxsize=_KEPT_SHARDS)(self._read_rows)

    def places(self, start: int, stop: int, epoch: int = 0) -> Places:
        """The samples at the positions of an epoch from ``start`` up to ``stop``.

        Raises:
            DatasetError: the index of a shard is gone or damaged.
        """
        streams, shards, ranks = self._mixture.locate(epoch, start, stop)
        rows = ranks.copy()
        for stream, shard in {*zip(streams.tolist(), shards.tolist(), strict=True)}:
            chosen = self._rows(stream, shard)
            if chosen is not None:
                here = (streams == stream) & (shards == shard)
                rows[here] = chosen[ranks[here]]
        return Places(self._sources[streams], shards, rows)

    def drawn(self, epoch: int, position: int) -> Indices:
        """Samples that each stream has given before a position of an epoch, int64 [streams]."""
        return self._mixture.drawn(epoch, position)

    def next_use(self, dataset: int, shard: int, share: tuple[float, float], drawn: Indices) -> float:
        """When a part of a shard is read next, in epochs since the first one; to within a window, and never too late.

        Args:
            dataset: number of it.
            shard: of the dataset.
            share: where the part begins and ends, as shares of the shard.
            drawn: see ``drawn``.
        """
        found = math.inf
        for number in np.flatnonzero(self._sources == dataset).tolist():
            size = int(self.samples.streams[number].shard_sizes[shard])
            if size:
                # Samples are about as large as each other; nothing but the order of eviction depends on it.
                first, last = (min(int(size * each), size - 1) for each in share)
                found = min(found, self._mixture.next_use(number, shard, range(first, last + 1), int(drawn[number])))
        return found

    def _read_rows(self, stream: int, shard: int) -> Indices | None:
        if self.samples.is_whole(stream):
            return None
        dataset = self.datasets[self._sources[stream]]
        return self.samples.rows(dataset, stream, shard, dataset.read_index(shard))


def sequence(dataset: Dataset) -> Epochs:
    """Every sample of a dataset once, in the order of its shards."""
    return Epochs([dataset], all_of(dataset), None)
