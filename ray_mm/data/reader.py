"""Positions → a decoded batch, in this process and without Ray: what a read task does for each of its batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ray_mm.data.blocks import Work
from ray_mm.data.collate import Collator
from ray_mm.data.decode import Draw
from ray_mm.data.decode.decoder import Arrays
from ray_mm.data.epochs import Epochs, Places
from ray_mm.data.fields import POSITION
from ray_mm.data.manifest import Dataset
from ray_mm.data.members import Members, SampleReader
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.quarantine import quarantine
from ray_mm.errors import SampleError
from ray_mm.storage.cache import BlockCache
from ray_mm.storage.ranges import Arena

_GROUP_BYTES = 16 << 20
"""Members that are held at once, about: a batch of pictures, a few of a batch of videos."""


class BatchReader:
    """Reads and decodes batches.

    Args:
        datasets: where from.
        preprocessor: which fields, and how.
        quarantine_folder: where bad members are kept. None: they are only left out.
        cache: for shards that lie in a store; None: none.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        preprocessor: Preprocessor,
        quarantine_folder: Path | None,
        cache: BlockCache | None = None,
    ) -> None:
        self._roots = [dataset.root for dataset in datasets]
        self._samples = [SampleReader(dataset, sorted(preprocessor.fields), cache) for dataset in datasets]
        self._collator = Collator(preprocessor)
        self._quarantine_folder = quarantine_folder
        self._arena = Arena(_GROUP_BYTES)
        self.work = Work(0.0, 0.0, 0.0)
        """What the last batch took."""

    def prefetch(self, places: Places) -> None:
        """Starts to read samples that lie in a store, and returns at once."""
        for number in np.unique(places.datasets).tolist():
            here = places.datasets == number
            self._samples[number].prefetch(places.shards[here].tolist(), places.rows[here].tolist())

    def forget(self) -> None:
        """Drops what was read ahead of a plan that is not carried out."""
        for samples in self._samples:
            samples.forget()

    def padding(self, size: int) -> Arrays:
        """Rows without a sample."""
        return self._collator.empty(size)

    def read(
        self, places: Places, start: int, size: int, draw_from: tuple[int, int] | None = None
    ) -> tuple[Arrays, list[str]]:
        """One batch.

        Args:
            places: of n ≤ size samples.
            start: position of the first sample.
            size: rows of the batch; those after n are padding.
            draw_from: seed and epoch of the random crops and flips; None: there are none.

        Returns:
            The arrays (see ``data.fields``) and the keys, empty for padding.
        """
        arrays = self._collator.empty(size)
        keys = [""] * size
        arrays[POSITION][: len(places.rows)] = np.arange(start, start + len(places.rows))
        group: list[Members] = []
        damaged: dict[int, dict[str, str]] = {}
        group_bytes = 0
        started, decode_s = time.perf_counter(), 0.0
        where = list(zip(*(column.tolist() for column in places), strict=True))
        for slot, (number, shard, row) in enumerate(where):
            keys[slot] = self._samples[number].name(shard, row)[1]
            members = self._samples[number].members(shard, row, self._arena)
            group.append(members)
            if bad := self._samples[number].damaged(shard, row, members):
                damaged[slot] = bad
            group_bytes += sum(map(len, members.values()))
            if group_bytes >= _GROUP_BYTES or slot + 1 == len(where):
                first = slot + 1 - len(group)
                draws = None
                if draw_from is not None:
                    draws = [Draw(*draw_from, start + place) for place in range(first, slot + 1)]
                decoding = time.perf_counter()
                unread = self._collator.fill(arrays, first, group, draws)
                decode_s += time.perf_counter() - decoding
                for place in damaged:  # it may decode all the same
                    self._collator.clear(arrays, place)
                for place, reasons in {**unread, **damaged}.items():
                    self._set_aside(where[place], group[place - first], reasons)
                group, damaged, group_bytes = [], {}, 0
                self._arena.reset()
        self.work = Work(time.perf_counter() - started - decode_s, decode_s, time.time())
        return arrays, keys

    def _set_aside(self, where: tuple[int, int, int], members: Members, reasons: Mapping[str, str]) -> None:
        if self._quarantine_folder is None:
            return
        number, shard, row = where
        path, key = self._samples[number].name(shard, row)
        for field, reason in reasons.items():
            error = SampleError(path, key, field, reason)
            quarantine(self._quarantine_folder, self._roots[number], error, members[field])


def read_batches(
    epochs: Epochs, preprocessor: Preprocessor, batch_size: int, limit: int | None = None
) -> Iterator[Arrays]:
    """The batches of the first epoch, without padding; the last one may be short.

    Args:
        epochs: which samples.
        preprocessor: which fields, and how.
        batch_size: samples per batch.
        limit: only so many samples.
    """
    reader = BatchReader(epochs.datasets, preprocessor, None)
    total = epochs.num_samples if limit is None else min(limit, epochs.num_samples)
    for start in range(0, total, batch_size):
        stop = min(start + batch_size, total)
        yield reader.read(epochs.places(start, stop), start, stop - start)[0]
