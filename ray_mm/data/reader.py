"""Positions → a decoded batch, in this process and without Ray: what a read task does for each of its batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ray_mm.data.collate import Collator
from ray_mm.data.decode import Draw
from ray_mm.data.decode.decoder import Arrays
from ray_mm.data.epochs import Epochs, Places
from ray_mm.data.fields import POSITION
from ray_mm.data.manifest import Dataset
from ray_mm.data.members import SampleReader
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.quarantine import quarantine
from ray_mm.errors import SampleError
from ray_mm.storage.cache import BlockCache


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

    def prefetch(self, places: Places) -> None:
        """Starts to read samples that lie in a store, and returns at once."""
        for number in np.unique(places.datasets).tolist():
            here = places.datasets == number
            self._samples[number].prefetch(places.shards[here].tolist(), places.rows[here].tolist())

    def forget(self) -> None:
        """Drops what was read ahead of a plan that is not carried out."""
        for samples in self._samples:
            samples.forget()

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
        for slot, (number, shard, row) in enumerate(zip(*(column.tolist() for column in places), strict=True)):
            samples = self._samples[number]
            members = samples.members(shard, row)
            path, keys[slot] = samples.name(shard, row)
            arrays[POSITION][slot] = start + slot
            bad = samples.damaged(shard, row, members)
            draw = None if draw_from is None else Draw(*draw_from, start + slot)
            for field, reason in (bad or self._collator.fill(arrays, slot, members, draw)).items():
                if self._quarantine_folder is not None:
                    error = SampleError(path, keys[slot], field, reason)
                    quarantine(self._quarantine_folder, self._roots[number], error, members[field])
        return arrays, keys


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
