"""What planning costs: 10⁹ samples in 10⁵ shards, and how well it mixes.

    python benchmarks/plan_scale.py

Prints the time to the first planned batch, the memory, the time per batch at five places of an epoch; and for a smaller set
how far samples move and how many samples of a batch come from one shard, beside a full permutation and beside
WebDataset's shuffle of shards and a buffer.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import webdataset.filters

from ray_mm.data.mixture import Mixture, Stream
from ray_mm.data.order import Indices, Order, Shuffle, permutation

SHARDS, SAMPLES_PER_SHARD, BATCH = 100_000, 10_000, 1024
SHUFFLE = Shuffle(seed=0, digest="benchmark", chunk_samples=256, window_chunks=64)

_FIRST_BATCH = """
import re, time
import numpy as np
from ray_mm.data.mixture import Mixture, Stream
from ray_mm.data.order import Shuffle
started = time.perf_counter()
sizes = np.full({shards}, {samples}, np.int64)
mixture = Mixture([Stream(0, None, sizes, int(sizes.sum()))], Shuffle(0, "benchmark", 256, 64))
mixture.locate(0, 0, {batch})
seconds = time.perf_counter() - started
print(seconds, int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def main() -> None:
    print(f"{SHARDS * SAMPLES_PER_SHARD:,} samples in {SHARDS:,} shards, batches of {BATCH}")
    runs = [_first_batch() for _ in range(5)]
    seconds, megabytes = (statistics.median(values) for values in zip(*runs, strict=True))
    print(
        f"first batch planned in {seconds:.3f} s, in a process of {megabytes:.0f} MiB at its peak (median of 5 processes)"
    )
    print("\n| place in the epoch | ms per batch (median of 400) |\n|---|---:|")
    sizes = np.full(SHARDS, SAMPLES_PER_SHARD, np.int64)
    mixture = Mixture([Stream(0, None, sizes, int(sizes.sum()))], SHUFFLE)
    for share in (0.0, 0.25, 0.5, 0.75, 0.99):
        print(f"| {share:.0%} | {1000 * _per_batch(mixture, int(share * SHARDS * SAMPLES_PER_SHARD)):.3f} |")
    print("\nmixing: 1,000 shards of 1,000 samples, batches of 256")
    print(
        "\n| order | distance moved, share of a full permutation's | most samples of a batch from one shard |\n|---|---:|---:|"
    )
    orders: dict[str, Callable[[], Indices]] = {
        "full permutation": lambda: permutation(1_000_000, "benchmark"),
        "ray_mm, chunks of 256, windows of 64": lambda: _ours(256, 64),
        "ray_mm, chunks of 32, windows of 512": lambda: _ours(32, 512),
        "WebDataset, shards shuffled, buffer of 1,000": lambda: _webdataset(1000),
        "WebDataset, shards shuffled, buffer of 10,000": lambda: _webdataset(10_000),
    }
    reference = None
    for name, make in orders.items():
        moved, repeated = _quality(make())
        reference = reference or moved
        print(f"| {name} | {moved / reference:.2f} | {repeated:.1f} |")


def _first_batch() -> tuple[float, float]:
    code = _FIRST_BATCH.format(shards=SHARDS, samples=SAMPLES_PER_SHARD, batch=BATCH)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return float(found[0]), float(found[1])


def _per_batch(mixture: Mixture, start: int) -> float:
    seconds = []
    for number in range(400):
        started = time.perf_counter()
        mixture.locate(0, start + number * BATCH, start + (number + 1) * BATCH)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _ours(chunk_samples: int, window_chunks: int) -> Indices:
    shuffle = Shuffle(0, "benchmark", chunk_samples, window_chunks)
    shards, rows = Order(np.full(1000, 1000, np.int64), 0, shuffle).locate(0, 1_000_000)
    return shards * 1000 + rows


def _webdataset(buffer: int) -> Indices:
    """Shuffled shards one after the other through WebDataset's own buffer."""
    shards = list(range(1000))
    random.Random(0).shuffle(shards)

    def samples() -> Iterator[int]:
        for shard in shards:
            yield from range(shard * 1000, shard * 1000 + 1000)

    shuffled = webdataset.filters._shuffle(samples(), bufsize=buffer, initial=buffer, rng=random.Random(0))
    return np.fromiter(shuffled, np.int64)


def _quality(order: Indices) -> tuple[float, float]:
    """Median distance between samples that are neighbours in a shard, and the mean of the largest count per batch."""
    place: npt.NDArray[np.int64] = np.empty_like(order)
    place[order] = np.arange(len(order))
    neighbours = np.abs(np.diff(place.reshape(1000, 1000), axis=1))
    batches = (order[: len(order) // 256 * 256] // 1000).reshape(-1, 256)
    return float(np.median(neighbours)), float(np.mean([np.bincount(batch).max() for batch in batches]))


if __name__ == "__main__":
    main()
