"""Positions → a decoded batch, in this process and without Ray: what a read task does for each of its batches."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray_mm.data.collate import Collator
from ray_mm.data.decode import Draw
from ray_mm.data.decode.decoder import Arrays
from ray_mm.data.fields import POSITION
from ray_mm.data.index import ShardIndex
from ray_mm.data.manifest import Dataset
from ray_mm.data.plan import Indices, Order
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.quarantine import quarantine
from ray_mm.errors import DatasetError, SampleError

_OPEN_SHARDS = 128


@dataclass(frozen=True)
class _OpenShard:
    path: str
    index: ShardIndex
    view: memoryview
    suffixes: dict[str, list[str]]


class SampleReader:
    """Reads members of a dataset by shard and row; shards stay mapped, the least recently used is let go."""

    def __init__(self, dataset: Dataset, fields: list[str]) -> None:
        self._dataset = dataset
        self._fields = fields
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def members(self, shard: int, row: int) -> dict[str, memoryview]:
        """Field → the bytes of its member; absent ones are left out.

        Raises:
            DatasetError: the shard or its index is gone, damaged or changed.
        """
        opened = self._shard(shard)
        found: dict[str, memoryview] = {}
        for field in self._fields:
            for suffix in opened.suffixes[field]:
                size = int(opened.index.sizes[suffix][row])
                if size > 0:
                    offset = int(opened.index.offsets[suffix][row])
                    found[field] = opened.view[offset : offset + size]
                    break
        return found

    def name(self, shard: int, row: int) -> tuple[str, str]:
        """The shard's path, relative to the dataset, and the sample's key."""
        opened = self._shard(shard)
        return opened.path, opened.index.keys[row]

    def _shard(self, shard: int) -> _OpenShard:
        opened = self._open.get(shard)
        if opened is None:
            index = self._dataset.read_index(shard)
            members = self._dataset.manifest.members
            suffixes = {
                field: [suffix for suffix in members.get(field, ()) if suffix in index.sizes] for field in self._fields
            }
            opened = _OpenShard(
                self._dataset.shards[shard].path, index, _map(self._dataset.shard_path(shard)), suffixes
            )
            self._open[shard] = opened
            if len(self._open) > _OPEN_SHARDS:
                # Not closed by hand: a batch may still hold a view; the last one to let go unmaps it.
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return opened


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


def _map(path: Path) -> memoryview:
    try:
        with path.open("rb") as stream:
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: can't be read ({error}).") from None
