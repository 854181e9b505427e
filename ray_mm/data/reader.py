"""Positions → a decoded batch, in this process and without Ray: what a read task does for each of its batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ray_mm.data.blocks import Work
from ray_mm.data.collate import Collator
from ray_mm.data.decode import Draw
from ray_mm.data.epochs import Epochs, Places
from ray_mm.data.fields import POSITION, Arrays
from ray_mm.data.manifest import Dataset
from ray_mm.data.members import Members, SampleReader
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.quarantine import quarantine
from ray_mm.data.row_cache import Row, RowCache
from ray_mm.errors import SampleError
from ray_mm.storage.cache import BlockCache
from ray_mm.storage.ranges import Arena

_GROUP_BYTES = 16 << 20
"""Members that are held at once, about: a batch of pictures, a few of a batch of videos."""


@dataclass
class _Batch:
    """A batch that is being read.

    Attributes:
        arrays: of the batch.
        keys: of its samples.
        where: number of the dataset, shard and row of each sample.
        draws: of each sample; None: nothing is left to chance.
        views: of the arrays, where decoded rows are kept.
        kept: places of the samples that were found kept.
        decode_s: seconds of decoding so far.
    """

    arrays: Arrays
    keys: list[str]
    where: list[tuple[int, int, int]]
    draws: list[Draw] | None
    views: Row = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    decode_s: float = 0.0


class BatchReader:
    """Reads and decodes batches.

    Args:
        datasets: where from.
        preprocessor: which fields, and how.
        quarantine_folder: where bad members are kept. None: they are only left out.
        cache: for shards that lie in a store; None: none.
        rows: keeps what was decoded; made for these datasets and this preprocessor. None: nothing is kept.
        threads: that decode at once.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        preprocessor: Preprocessor,
        quarantine_folder: Path | None,
        cache: BlockCache | None = None,
        rows: RowCache | None = None,
        threads: int = 1,
    ) -> None:
        self._roots = [dataset.root for dataset in datasets]
        self._samples = [SampleReader(dataset, sorted(preprocessor.fields), cache) for dataset in datasets]
        self._layout = rows.layout if rows is not None else None
        self._kept = [rows.of(dataset) for dataset in datasets] if rows is not None else []
        self._anew = tuple(rows.layout.decoded_anew) if rows is not None else ()
        self._collator = Collator(preprocessor) if rows is None else Collator(rows.layout.plain, rows.layout.whole)
        self._quarantine_folder = quarantine_folder
        self._arena = Arena(_GROUP_BYTES)
        self._threads = threads
        # The caller's thread is one of them.
        self._helpers = ThreadPoolExecutor(threads - 1, "decode") if threads > 1 else None
        self.work = Work(0.0, 0.0, 0.0)
        """What the last batch took."""

    def prefetch(self, places: Places) -> None:
        """Starts to read samples that are kept, or lie in a store; returns at once."""
        for number in np.unique(places.datasets).tolist():
            here = places.datasets == number
            samples, shards, rows = self._samples[number], places.shards[here], places.rows[here]
            if self._kept:
                kept = np.array([*map(self._kept[number].prefetch, shards.tolist(), rows.tolist())], np.bool_)
                if self._anew:
                    samples.prefetch(shards[kept].tolist(), rows[kept].tolist(), self._anew)
                shards, rows = shards[~kept], rows[~kept]
            samples.prefetch(shards.tolist(), rows.tolist())

    def forget(self) -> None:
        """Drops what was read ahead of a plan that is not carried out."""
        for samples in self._samples:
            samples.forget()

    def padding(self, size: int) -> Arrays:
        """Rows without a sample."""
        arrays = self._collator.empty(size)
        if self._layout is not None:
            self._layout.cut(arrays, None)
        return arrays

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
        count = len(places.rows)
        batch = _Batch(
            arrays=self._collator.empty(size),
            keys=[""] * size,
            where=list(zip(*(column.tolist() for column in places), strict=True)),
            draws=[Draw(*draw_from, start + place) for place in range(count)] if draw_from is not None else None,
        )
        batch.arrays[POSITION][:count] = np.arange(start, start + count)
        if self._layout is not None:
            batch.views = self._layout.views(batch.arrays)
        started = time.perf_counter()
        group: list[Members] = []
        group_bytes = 0
        for place in range(count):
            members = self._members(batch, place)
            group.append(members)
            group_bytes += sum(map(len, members.values()))
            if group_bytes >= _GROUP_BYTES or place + 1 == count:
                self._decode(batch, place + 1 - len(group), group)
                group, group_bytes = [], 0
                self._arena.reset()
        if self._layout is not None:
            cutting = time.perf_counter()
            self._layout.cut(batch.arrays, batch.draws)
            batch.decode_s += time.perf_counter() - cutting
        read_s = time.perf_counter() - started - batch.decode_s
        self.work = Work(read_s, batch.decode_s, time.time(), (len(batch.kept),))
        return batch.arrays, batch.keys

    def _members(self, batch: _Batch, place: int) -> Members:
        """What is to be decoded of a sample: of one that was kept, only what can't be kept."""
        number, shard, row = batch.where[place]
        samples = self._samples[number]
        # What was asked for ahead is here by now, or will be soon.
        if self._kept and not samples.is_ahead(shard, row):
            key = self._kept[number].read(batch.views, place, shard, row)
            if key is not None:
                batch.kept.add(place)
                batch.keys[place] = key or samples.name(shard, row)[1]
                return samples.members(shard, row, self._arena, self._anew) if self._anew else {}
        batch.keys[place] = samples.name(shard, row)[1]
        return samples.members(shard, row, self._arena)

    def _decode(self, batch: _Batch, first: int, group: list[Members]) -> None:
        """Fills rows from the members of consecutive samples, and keeps what was not kept yet."""
        started, places = time.perf_counter(), range(first, first + len(group))
        draws = None if batch.draws is None else [batch.draws[place] for place in places]
        bad = self._fill(batch.arrays, first, group, draws)
        batch.decode_s += time.perf_counter() - started
        for place, members in zip(places, group, strict=True):
            number, shard, row = batch.where[place]
            # It may decode all the same.
            if members and (damaged := self._samples[number].damaged(shard, row, members)):
                self._collator.clear(batch.arrays, place)
                bad[place] = damaged
            if place in bad:
                self._set_aside(batch.where[place], members, bad[place])
            elif self._layout is not None:
                if place not in batch.kept:
                    self._kept[number].write(batch.views, place, shard, row, batch.keys[place])
                if batch.draws is not None:
                    self._layout.mirror(batch.arrays, place, batch.draws[place])

    def _fill(
        self, arrays: Arrays, first: int, group: list[Members], draws: list[Draw] | None
    ) -> dict[int, dict[str, str]]:
        """``Collator.fill``, each thread a run of the samples."""
        if self._helpers is None or len(group) < 2 * self._threads:
            return self._collator.fill(arrays, first, group, draws)
        size = -(-len(group) // self._threads)
        runs = [slice(start, start + size) for start in range(0, len(group), size)]

        def fill(run: slice) -> dict[int, dict[str, str]]:
            return self._collator.fill(arrays, first + run.start, group[run], None if draws is None else draws[run])

        others = [self._helpers.submit(fill, run) for run in runs[1:]]
        bad = fill(runs[0])
        for other in others:
            bad |= other.result()
        return bad

    def _set_aside(self, where: tuple[int, int, int], members: Members, reasons: Mapping[str, str]) -> None:
        if self._quarantine_folder is None:
            return
        number, shard, row = where
        path, key = self._samples[number].name(shard, row)
        for name, reason in reasons.items():
            error = SampleError(path, key, name, reason)
            quarantine(self._quarantine_folder, self._roots[number], error, members[name])


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
