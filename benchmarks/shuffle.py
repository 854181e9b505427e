"""How well an epoch is mixed: ray_mm's windows of chunks, WebDataset's shards and buffer, and a full permutation.

    python benchmarks/shuffle.py --docs docs/benchmarks.md

200,000 samples lie in 200 shards in the order in which they were recorded, so neighbours are alike. Of one epoch:

    moved        how far a sample is from where it lay, as a share of the epoch; a full permutation moves it by a third
    correlation  of two samples of a batch of 128, in where they lay (intraclass); 0: a batch is like a random draw
    near pairs   pairs of samples in a batch that lay within 100 samples of each other, times as many as by chance
    held         samples that must be at hand to make the order
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ingest
import numpy as np
import webdataset.filters

from ray_mm.data.order import Order, Shuffle

SAMPLES, SHARDS, BATCH, NEAR = 200_000, 200, 128, 100
PER_SHARD = SAMPLES // SHARDS


def ray_mm(chunk: int, window: int) -> np.ndarray[Any, Any]:
    """The order of ``data.shuffle: {chunk_samples, window_chunks}``."""
    sizes = np.full(SHARDS, PER_SHARD, np.int64)
    shards, rows = Order(sizes, 0, Shuffle(0, "benchmark", chunk, window)).locate(0, SAMPLES)
    return shards * PER_SHARD + rows


def web_dataset(buffer: int) -> np.ndarray[Any, Any]:
    """Shards shuffled, then a buffer: WebDataset's own filter, in one process."""
    rng = random.Random(0)
    shards = list(range(SHARDS))
    rng.shuffle(shards)

    def samples() -> Iterator[int]:
        for shard in shards:
            yield from range(shard * PER_SHARD, (shard + 1) * PER_SHARD)

    return np.array(list(webdataset.filters._shuffle(samples(), buffer, min(buffer, 100), rng)))


def quality(order: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """Share of the epoch moved, correlation within a batch, and pairs of near neighbours times those by chance."""
    moved = float(np.abs(order - np.arange(SAMPLES)).mean() / SAMPLES)
    batches = order[: SAMPLES // BATCH * BATCH].reshape(-1, BATCH).astype(float)
    between = BATCH * batches.mean(axis=1).var(ddof=1)
    within = batches.var(axis=1, ddof=1).mean()
    correlation = float((between - within) / (between + (BATCH - 1) * within))
    batches.sort(axis=1)
    near = sum(int((batches[:, step:] - batches[:, :-step] <= NEAR).sum()) for step in range(1, BATCH))
    by_chance = len(batches) * BATCH * (BATCH - 1) / 2 * (2 * NEAR / SAMPLES)
    return moved, correlation, near / by_chance


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--docs", type=Path, help="page to write the table into")
    args = parser.parse_args()
    orders = [
        ("full permutation", SAMPLES, np.random.default_rng(0).permutation(SAMPLES)),
        ("ray_mm, 64 chunks of 256 (default)", 64 * 256, ray_mm(256, 64)),
        ("ray_mm, 256 chunks of 64", 256 * 64, ray_mm(64, 256)),
        ("ray_mm, 64 chunks of 64", 64 * 64, ray_mm(64, 64)),
        ("WebDataset, buffer of 1,000", 1000, web_dataset(1000)),
        ("WebDataset, buffer of 5,000", 5000, web_dataset(5000)),
        ("WebDataset, buffer of 16,384", 16_384, web_dataset(16_384)),
        ("as recorded", 0, np.arange(SAMPLES)),
    ]
    lines = ["| order | held | moved | correlation | near pairs |", "|---|---:|---:|---:|---:|"]
    for name, held, order in orders:
        assert np.array_equal(np.sort(order), np.arange(SAMPLES)), "every sample once"
        moved, correlation, near = quality(order)
        lines.append(f"| {name} | {held:,} | {moved:.3f} | {correlation:.3f} | {near:,.1f} |")
    print("\n".join(lines))
    if args.docs is not None:
        args.docs.write_text(ingest.replace_section(args.docs.read_text(), "shuffle", "\n".join(lines)))


if __name__ == "__main__":
    main()
