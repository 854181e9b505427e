"""A small dataset to be damaged bit by bit, and what is held against it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ray_mm.data.index import ShardIndex
from ray_mm.data.manifest import Dataset, open_dataset
from tests.faults.lab import Lab
from tests.faults.samples import make_samples


def small_dataset(lab: Lab) -> tuple[Path, Dataset, bytes]:
    """A dataset of one small shard: the shard, the dataset, the shard's bytes."""
    folder = make_samples(lab.folder / "train", range(6), num_shards=1)
    dataset = open_dataset(folder)
    return dataset.shard_path(0), dataset, dataset.shard_path(0).read_bytes()


def flips(content: bytes, places: range) -> Iterator[tuple[int, bytes]]:
    """The content with one bit flipped, over and over: the place, in bits, and the content."""
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        yield place, bytes(damaged)


def says_the_same(one: ShardIndex, other: ShardIndex) -> bool:
    """Whether two indexes send a reader to the same bytes."""
    columns = [(one.offsets, other.offsets), (one.sizes, other.sizes), (one.checksums, other.checksums)]
    return one.keys == other.keys and all(
        ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
        for ours, theirs in columns
    )
