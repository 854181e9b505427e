"""Positions → a decoded batch, in this process and without Ray: what a read task does for each of its batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ray_mm.data.collate import Collator
from ray_mm.data.decode import Draw
from ray_mm.data.decode.decoder import Arrays
from ray_mm.data.fields import POSITION
from ray_mm.data.manifest import Dataset
from ray_mm.data.members import SampleReader
from ray_mm.data.plan import Indices, Order
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.quarantine import quarantine
from ray_mm.errors import SampleError


class BatchReader:
    """Reads and decodes batches.

    Args:
        dataset: where from.
        preprocessor: which fields, and how.
        quarantine_folder: where bad members are kept. None: they are only left out.
    """

    def __init__(self, dataset: Dataset, preprocessor: Preprocessor, quarantine_folder: Path | None) -> None:
        self._root = dataset.root
        self._samples = SampleReader(dataset, sorted(preprocessor.fields))
        self._collator = Collator(preprocessor)
        self._quarantine_folder = quarantine_folder

    def prefetch(self, shards: Indices, rows: Indices) -> None:
        """Starts to read samples that lie in a store, and returns at once; see ``read`` for the arguments."""
        self._samples.prefetch(shards.tolist(), rows.tolist())

    def forget(self) -> None:
        """Drops what was read ahead of a plan that is not carried out."""
        self._samples.forget()

    def read(
        self, shards: Indices, rows: Indices, start: int, size: int, draw_from: tuple[int, int] | None = None
    ) -> tuple[Arrays, list[str]]:
        """One batch.

        Args:
            shards: int64 [n], n ≤ size.
            rows: int64 [n], within their shards.
            start: position of the first sample.
            size: rows of the batch; those after n are padding.
            draw_from: seed and epoch of the random crops and flips; None: there are none.

        Returns:
            The arrays (see ``data.fields``) and the keys, empty for padding.
        """
        arrays = self._collator.empty(size)
        keys = [""] * size
        for slot, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            members = self._samples.members(shard, row)
            path, keys[slot] = self._samples.name(shard, row)
            arrays[POSITION][slot] = start + slot
            draw = None if draw_from is None else Draw(*draw_from, start + slot)
            for field, reason in self._collator.fill(arrays, slot, members, draw).items():
                if self._quarantine_folder is not None:
                    error = SampleError(path, keys[slot], field, reason)
                    quarantine(self._quarantine_folder, self._root, error, members[field])
        return arrays, keys


def read_batches(
    dataset: Dataset, preprocessor: Preprocessor, batch_size: int, limit: int | None = None
) -> Iterator[Arrays]:
    """The batches of a dataset in the order of its shards, without padding; the last one may be short.

    Args:
        dataset: where from.
        preprocessor: which fields, and how.
        batch_size: samples per batch.
        limit: only so many samples.
    """
    order = Order(dataset.shard_sizes, epoch=0, shuffle=None)
    reader = BatchReader(dataset, preprocessor, None)
    total = order.num_samples if limit is None else min(limit, order.num_samples)
    for start in range(0, total, batch_size):
        stop = min(start + batch_size, total)
        yield reader.read(*order.locate(start, stop), start, stop - start)[0]
