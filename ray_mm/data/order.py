"""The order of samples, as a pure function: (digest, seed, pass) → every sample once, mixed.

    shards → permuted, cut into groups → chunks of a group permuted, cut into windows → rows of a window permuted

Two levels keep it lazy: what is held is a number per shard, one group's chunks and one window's rows, so the first batch
of a billion samples is planned as fast as any other. Chunks are consecutive samples of a shard, because disks and object
stores read those best. Nothing is buffered, so nothing but a position has to be saved to go on from it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_GROUP_CHUNKS = 65_536
"""Chunks that are permuted with each other: many windows' worth, and some milliseconds' work."""


@dataclass(frozen=True)
class Shuffle:
    """How samples are mixed.

    Attributes:
        seed: of the training.
        digest: of the samples, so that two datasets differ under one seed.
        chunk_samples: consecutive samples of a shard that stay in one window.
        window_chunks: chunks whose rows are mixed with each other.
    """

    seed: int
    digest: str
    chunk_samples: int
    window_chunks: int


class _Group(NamedTuple):
    """The chunks of one group in their order, and its windows.

    Attributes:
        shards: of each chunk.
        rows: the first of each chunk.
        sizes: samples of each chunk.
        window_chunks: first chunk of each window, and the number of chunks.
        window_starts: first sample of each window within the group, and the number of samples.
    """

    shards: Indices
    rows: Indices
    sizes: Indices
    window_chunks: Indices
    window_starts: Indices


class Order:
    """All samples once, in the order of one pass over them.

    Args:
        shard_sizes: samples per shard, int64 [num_shards].
        number: of the pass, from 0.
        shuffle: None: in the order of the shards.
    """

    def __init__(self, shard_sizes: Indices, number: int, shuffle: Shuffle | None) -> None:
        self.num_samples = int(shard_sizes.sum())
        self._number = number
        self._shuffle = shuffle
        if shuffle is None:
            self._shard_starts = _starts(shard_sizes)
            return
        self._shards = _permutation(len(shard_sizes), shuffle, number, "shards", 0)
        self._sizes = shard_sizes[self._shards]
        num_chunks = -(-self._sizes // shuffle.chunk_samples)
        group_of_shard = (np.cumsum(num_chunks) - num_chunks) // _GROUP_CHUNKS
        self._group_shards = np.flatnonzero(np.diff(group_of_shard, prepend=-1, append=-1))
        self._group_starts = _starts(self._sizes)[self._group_shards]
        self._group = lru_cache(maxsize=2)(self._make_group)
        self._window = lru_cache(maxsize=2)(self._make_window)
        self._sorted_chunks = lru_cache(maxsize=64)(self._sort_chunks)

    def locate(self, start: int, stop: int) -> tuple[Indices, Indices]:
        """Shards and rows of the positions from ``start`` up to ``stop``, int64 [stop − start] each."""
        assert 0 <= start <= stop <= self.num_samples
        if self._shuffle is None:
            positions = np.arange(start, stop)
            shards = np.searchsorted(self._shard_starts, positions, side="right") - 1
            return shards, positions - self._shard_starts[shards]
        parts: list[tuple[Indices, Indices]] = []
        while start < stop:
            group = int(np.searchsorted(self._group_starts, start, side="right")) - 1
            first = int(self._group_starts[group])
            window_starts = self._group(group).window_starts
            window = int(np.searchsorted(window_starts, start - first, side="right")) - 1
            before, after = first + int(window_starts[window]), first + int(window_starts[window + 1])
            shards, rows = self._window(group, window)
            end = min(stop, after)
            parts.append((shards[start - before : end - before], rows[start - before : end - before]))
            start = end
        empty = np.empty(0, np.int64)
        return (
            np.concatenate([shards for shards, _ in parts] or [empty]),
            np.concatenate([rows for _, rows in parts] or [empty]),
        )

    def window(self, shard: int, row: int) -> tuple[int, int]:
        """First and after-last position of the window in which a sample is drawn; of a shuffled order only."""
        assert self._shuffle is not None
        group = int(np.searchsorted(self._group_shards, self._places[shard], side="right")) - 1
        keys, chunks = self._sorted_chunks(group)
        chunk = chunks[np.searchsorted(keys, _chunk_key(shard, row // self._shuffle.chunk_samples))]
        found = self._group(group)
        window = int(np.searchsorted(found.window_chunks, chunk, side="right")) - 1
        first = int(self._group_starts[group])
        return first + int(found.window_starts[window]), first + int(found.window_starts[window + 1])

    @cached_property
    def _places(self) -> Indices:
        """Of each shard, where it stands among the permuted ones."""
        return np.argsort(self._shards)

    def _sort_chunks(self, group: int) -> tuple[Indices, Indices]:
        """Keys of a group's chunks in ascending order, and the places of these chunks in the group."""
        assert self._shuffle is not None
        found = self._group(group)
        keys = _chunk_key(found.shards, found.rows // self._shuffle.chunk_samples)
        order = np.argsort(keys)
        return keys[order], order

    def _make_group(self, group: int) -> _Group:
        assert self._shuffle is not None
        picked = slice(int(self._group_shards[group]), int(self._group_shards[group + 1]))
        shards, rows, sizes = _chunks(self._shards[picked], self._sizes[picked], self._shuffle.chunk_samples)
        mixed = _permutation(len(sizes), self._shuffle, self._number, "chunks", group)
        sizes = sizes[mixed]
        # As even as can be: a last window of a few chunks would hardly be mixed.
        num_windows = -(-len(sizes) // self._shuffle.window_chunks)
        window_chunks = np.arange(num_windows + 1) * len(sizes) // max(num_windows, 1)
        return _Group(shards[mixed], rows[mixed], sizes, window_chunks, _starts(sizes)[window_chunks])

    def _make_window(self, group: int, window: int) -> tuple[Indices, Indices]:
        assert self._shuffle is not None
        chunks = self._group(group)
        picked = slice(int(chunks.window_chunks[window]), int(chunks.window_chunks[window + 1]))
        sizes = chunks.sizes[picked]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        number = int(self._group_starts[group] + chunks.window_starts[window])
        mixed = _permutation(len(within), self._shuffle, self._number, "window", number)
        shards = np.repeat(chunks.shards[picked], sizes)[mixed]
        rows = (np.repeat(chunks.rows[picked], sizes) + within)[mixed]
        return shards, rows


def stable_hash(*parts: object) -> int:
    """128 bits that depend on the parts alone: the same on every machine, in every process and version."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def permutation(size: int, *key: object) -> Indices:
    """A permutation of 0 … size − 1 that depends on the key alone."""
    # Philox's raw bits are promised to stay the same between versions of numpy; Generator.permutation is not.
    bits = np.random.Philox(key=stable_hash(*key)).random_raw(size)
    return np.argsort(bits, kind="stable").astype(np.int64)


def _permutation(size: int, shuffle: Shuffle, number: int, what: str, part: int) -> Indices:
    return permutation(size, shuffle.digest, shuffle.seed, number, what, part)


Number = TypeVar("Number", int, Indices)


def _chunk_key(shards: Number, numbers: Number) -> Number:
    """A number for the chunk of a number within its shard."""
    return shards * (1 << 32) + numbers


def _starts(sizes: Indices) -> Indices:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _chunks(shards: Indices, shard_sizes: Indices, chunk_samples: int) -> tuple[Indices, Indices, Indices]:
    """Shard, first row and size of every chunk, int64 [num_chunks] each."""
    per_shard = -(-shard_sizes // chunk_samples)
    place = np.repeat(np.arange(len(shards)), per_shard)
    number = np.arange(len(place)) - np.repeat(np.cumsum(per_shard) - per_shard, per_shard)
    rows = number * chunk_samples
    return shards[place], rows, np.minimum(chunk_samples, shard_sizes[place] - rows)
