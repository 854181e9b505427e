"""Epoch and position → where the sample lies: the plan, resolved to rows of shards. Plain Python, without Ray."""

from __future__ import annotations

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

    def _read_rows(self, stream: int, shard: int) -> Indices | None:
        if self.samples.is_whole(stream):
            return None
        dataset = self.datasets[self._sources[stream]]
        return self.samples.rows(dataset, stream, shard, dataset.read_index(shard))


def sequence(dataset: Dataset) -> Epochs:
    """Every sample of a dataset once, in the order of its shards."""
    return Epochs([dataset], all_of(dataset), None)
