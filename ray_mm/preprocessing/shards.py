"""Rows of a split → their order and the shards they go to: pure, whatever the number of CPUs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ShardPlan:
    """One shard that is to be written.

    Attributes:
        split: whose shard it is.
        number: within the split, from 0.
        rows: of the table, from 0, in the order of the tar.
        digest: of everything that decides its bytes.
    """

    split: str
    number: int
    rows: tuple[int, ...]
    digest: str

    @property
    def path(self) -> str:
        """Relative to the split's folder."""
        return f"shards/{self.number:06d}.tar"


def shuffle_rows(rows: Sequence[int], keys: Sequence[str], seed: int) -> list[int]:
    """Rows in an order that depends on their keys and the seed alone.

    Args:
        rows: of one split.
        keys: of the whole table.
        seed: of the order.
    """

    def place(row: int) -> bytes:
        return hashlib.blake2b(f"{seed}\0{keys[row]}".encode(), digest_size=16).digest()

    return sorted(rows, key=place)


def cut_into_shards(rows: Sequence[int], sizes: npt.NDArray[np.int64], shard_bytes: int) -> list[tuple[int, ...]]:
    """Cuts ordered rows into shards of nearly equal size, at most about ``shard_bytes`` each.

    Args:
        rows: in their order.
        sizes: int64 [rows of the table], estimated bytes of each row's sample.
        shard_bytes: target; equal shards keep workers equally busy, so all shrink rather than one being left small.
    """
    ends = np.cumsum(sizes[np.asarray(rows, np.int64)])
    num_shards = max(1, -(-int(ends[-1]) // shard_bytes))
    starts = ends - sizes[np.asarray(rows, np.int64)]
    numbers = starts * num_shards // int(ends[-1])
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    return [tuple(int(row) for row in part) for part in np.split(np.asarray(rows, np.int64), cuts)]
