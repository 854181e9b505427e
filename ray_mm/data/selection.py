"""Which samples of a dataset take part: decided from its index alone, without opening a shard.

    all samples of a shard → those with the required fields and classes → a fixed part of them → (those of one class)

What a training holds of a selection is a number per shard. Which rows these are is found again from the shard's index when
the shard is read, so a selection of a billion samples is no larger than one of a thousand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ray_mm.config.source import Source
from ray_mm.data.index import ShardIndex
from ray_mm.data.manifest import Dataset
from ray_mm.data.order import Indices, permutation, stable_hash
from ray_mm.data.part import kept, nothing_left, selected_classes
from ray_mm.data.stream_parts import suffixes_of

_THREADS = 8


@dataclass(frozen=True)
class Selection:
    """Some samples of one dataset.

    Attributes:
        source: as the job says it.
        digest: of the dataset.
        classes: class label → the numbers of the classes that are read.
        shard_sizes: samples of each shard that take part, int64 [num_shards].
        sample_bytes: that a sample of the dataset has in its tar, on average.
    """

    source: Source
    digest: str
    classes: dict[str, tuple[int, ...]]
    shard_sizes: Indices = field(repr=False)
    sample_bytes: int

    @property
    def num_samples(self) -> int:
        """Samples that take part."""
        return int(self.shard_sizes.sum())

    @property
    def is_whole(self) -> bool:
        """Whether every sample takes part."""
        return not self._filters and self.source.fraction is None and self.source.limit is None

    @property
    def name(self) -> str:
        """The dataset's digest and what is selected, for a digest of it all."""
        if self.is_whole:
            return self.digest
        told = [*sorted(self.source.require), *sorted(self.classes.items()), self.source.fraction, self.source.limit]
        return f"{self.digest}/{stable_hash(*told):032x}"

    def rows(self, dataset: Dataset, shard: int, index: ShardIndex) -> Indices:
        """The rows of a shard that take part, int64 [shard_sizes[shard]], ascending."""
        found = matching_rows(dataset, index, self.source.require, self.classes)
        kept = int(self.shard_sizes[shard])
        if kept == len(found):
            return found
        return np.sort(found[permutation(len(found), self.digest, "part", shard)[:kept]])

    @property
    def description(self) -> str:
        """What is selected, for people; empty: everything."""
        told = [f"with {' and '.join(self.source.require)}"] if self.source.require else []
        told += [f"{label} is {' or '.join(names)}" for label, names in self.source.where.items()]
        if self.source.fraction is not None:
            told.append(f"{self.source.fraction:.3g} of the samples")
        if self.source.limit is not None:
            told.append(f"at most {self.source.limit:,} samples")
        return ", ".join(told)

    @property
    def _filters(self) -> bool:
        return bool(self.source.require or self.classes)


def select(source: Source, dataset: Dataset, key: str) -> Selection:
    """Counts what a job wants of a dataset.

    Args:
        source: what it wants.
        dataset: opened.
        key: of the job file, for messages.

    Raises:
        DatasetError: a field or a class that the dataset does not have, or nothing is left.
    """
    classes = selected_classes(source, dataset.root, dataset.manifest.fields, key)
    sizes = dataset.shard_sizes
    if source.require or classes:
        sizes = per_shard(dataset, lambda _, index: len(matching_rows(dataset, index, source.require, classes)))
    sizes = _part(sizes, source)
    if not sizes.sum():
        raise nothing_left(dataset.root, key)
    # A read task runs in another folder than the command that started it.
    placed = source.model_copy(update={"path": str(dataset.root)})
    return Selection(placed, dataset.manifest.digest, classes, sizes, dataset.sample_bytes)


def matching_rows(
    dataset: Dataset, index: ShardIndex, require: Sequence[str], classes: dict[str, tuple[int, ...]]
) -> Indices:
    """Rows of a shard with all of the fields and one of the classes of every label, int64 [rows], ascending."""
    wanted: npt.NDArray[np.bool_] = np.ones(len(index), np.bool_)
    for name in require:
        wanted &= present(dataset, index, name)
    for name, numbers in classes.items():
        wanted &= np.isin(index.labels[name], numbers)
    return np.flatnonzero(wanted)


def present(dataset: Dataset, index: ShardIndex, name: str) -> npt.NDArray[np.bool_]:
    """Which samples of a shard have a field, bool [num_samples]; an empty member is none."""
    there: npt.NDArray[np.bool_] = np.ones(len(index), np.bool_)
    # A series is there where all of its streams are.
    for suffixes in suffixes_of(dataset.manifest, name).values():
        found = np.zeros(len(index), np.bool_)
        for suffix in suffixes:
            if suffix in index.sizes:
                found |= index.sizes[suffix] > 0
        there &= found
    return there


def per_shard(dataset: Dataset, found: Callable[[int, ShardIndex], Indices | int]) -> Indices:
    """A figure of every shard, from its index; int64 [num_shards, …]. Reading Parquet lets go of the interpreter."""
    with ThreadPoolExecutor(_THREADS) as threads:
        numbers = range(len(dataset.shards))
        return np.array(list(threads.map(lambda shard: found(shard, dataset.read_index(shard)), numbers)), np.int64)


def over_shards(dataset: Dataset, found: Callable[[int, ShardIndex], Indices]) -> Indices:
    """The sum of a figure over all shards, from their indexes; int64, of its shape. No more is held than the sum."""
    with ThreadPoolExecutor(_THREADS) as threads:
        numbers = range(len(dataset.shards))
        return functools.reduce(np.add, threads.map(lambda shard: found(shard, dataset.read_index(shard)), numbers))


def _part(sizes: Indices, source: Source) -> Indices:
    """What fraction or limit leave of each shard: as evenly as whole numbers can, and exactly so many in all."""
    total = int(sizes.sum())
    left = kept(total, source)
    if left == total:
        return sizes
    ends = np.array([int(end) * left // max(total, 1) for end in np.cumsum(sizes)], np.int64)
    return np.diff(ends, prepend=0)
