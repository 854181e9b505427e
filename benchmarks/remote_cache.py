"""What a local cache of remote shards saves, by the size of its blocks and the rule by which they go.

    python benchmarks/remote_cache.py

Plays the plan of a training of three epochs (64 shards of 2,000 samples of 181 kB; the default shuffle, whose window is an
eighth of the data) against a cache in memory that only counts. Printed is what is fetched from the store over the three
epochs, as a multiple of what they read; without a cache it is 1. ``plan``: what is wanted last goes first.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from ray_mm.data.order import Order, Shuffle

SHARDS, SAMPLES, SAMPLE_BYTES, EPOCHS = 64, 2_000, 181_000, 3
TOTAL_BYTES = SHARDS * SAMPLES * SAMPLE_BYTES
SHUFFLE = Shuffle(seed=0, digest="benchmark", chunk_samples=256, window_chunks=64)


def blocks_read(block_bytes: int) -> npt.NDArray[np.int64]:
    """The blocks that the training reads, in its order."""
    parts = []
    for epoch in range(EPOCHS):
        order = Order(np.full(SHARDS, SAMPLES, np.int64), epoch, SHUFFLE)
        shards, rows = order.locate(0, SHARDS * SAMPLES)
        first, last = rows * SAMPLE_BYTES // block_bytes, ((rows + 1) * SAMPLE_BYTES - 1) // block_bytes
        both = np.stack([shards * 10**6 + first, shards * 10**6 + last], axis=1)
        parts.append(both.ravel()[np.stack([np.ones_like(first, bool), first != last], axis=1).ravel()])
    return np.concatenate(parts)


def misses_lru(read: npt.NDArray[np.int64], room: int) -> int:
    """Blocks fetched when the least recently used one goes."""
    kept: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for block in read.tolist():
        if block in kept:
            kept.move_to_end(block)
            continue
        misses += 1
        kept[block] = None
        if len(kept) > room:
            kept.popitem(last=False)
    return misses


def misses_planned(read: npt.NDArray[np.int64], room: int) -> int:
    """Blocks fetched when the one goes whose next use is furthest (L. A. Belady, IBM Systems Journal 5(2), 1966)."""
    following = np.empty(len(read), np.int64)
    seen: dict[int, int] = {}
    for at in range(len(read) - 1, -1, -1):
        following[at] = seen.get(int(read[at]), len(read) + at)
        seen[int(read[at])] = at
    kept: dict[int, int] = {}
    furthest: list[tuple[int, int]] = []
    misses = 0
    for block, then in zip(read.tolist(), following.tolist(), strict=True):
        if block not in kept:
            misses += 1
            while len(kept) >= room:
                when, candidate = heapq.heappop(furthest)
                if kept.get(candidate) == -when:
                    del kept[candidate]
        kept[block] = then
        heapq.heappush(furthest, (-then, block))
    return misses


def main() -> None:
    """Prints the table."""
    print("| block | cache, share of the data | fetched, least recently used | fetched, plan |\n|---|---|---|---|")
    for block_bytes in (1 << 20, 4 << 20, 16 << 20):
        read = blocks_read(block_bytes)
        for share in (0.125, 0.25, 0.5, 0.75, 1.1):
            room = int(TOTAL_BYTES * share / block_bytes)
            found = [misses(read, room) * block_bytes / TOTAL_BYTES / EPOCHS for misses in (misses_lru, misses_planned)]
            print(f"| {block_bytes >> 20} MiB | {share} | {found[0]:.2f} | {found[1]:.2f} |")


if __name__ == "__main__":
    main()
