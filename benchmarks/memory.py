"""What twenty epochs through the feed of a training leave in memory: nothing that grows.

    python benchmarks/memory.py
    python benchmarks/memory.py --slow

Small pictures are read through Ray as a train worker reads them, without a cache. After each epoch it notes the memory
of the processes that read, of this process, which loads the batches, and what Ray's object store has touched so far.
With ``--slow`` the one who takes the batches is slow, stops twice for ten seconds and then hurries, beside stores of several
sizes; what lies in the store then, at the most, is held against the share that it was given (``data.object_store``).
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import ray
import torch
from PIL import Image
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from ray_mm.config.fields import ImageField
from ray_mm.data.feed import Feed
from ray_mm.data.loader import Loader
from ray_mm.data.manifest import ShardInfo, open_dataset, write_dataset
from ray_mm.data.order import Shuffle
from ray_mm.data.plan import Schedule
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.data.samples import all_of
from ray_mm.data.sidecar import index_path, write_index
from ray_mm.data.source import READERS_PER_CPU, feed_dataset
from ray_mm.data.store_limits import limits_for
from ray_mm.placement import object_store_bytes
from ray_mm.preprocessing.writer import write_tar

EPOCHS, SHARDS, SAMPLES, BATCH = 20, 8, 200, 32
SIZE = 128
STORE_BYTES = 512 << 20
SLOW_STORES_BYTES = (100 << 20, 200 << 20)
SLOW_SHARES = (0.25, 0.5)
CPUS, PREFETCH = 2, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true", help="with one who takes the batches slowly")
    slow = parser.parse_args().slow
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dataset = open_dataset(_make(root / "data"))
        samples = all_of(dataset)
        feed = Feed(
            train=samples,
            validation=None,
            preprocessor=preprocessor_for(dataset, {}, ("image",)),
            shuffle=Shuffle(seed=0, digest=samples.digest, chunk_samples=64, window_chunks=8),
            schedule=Schedule(samples.epoch_samples, 0, BATCH, EPOCHS),
            world_size=1,
            first_item=0,
            quarantine=root / "quarantine",
        )
        decoded = feed.row_bytes * samples.epoch_samples * EPOCHS / 2**20
        if slow:
            _compare_stores(feed)
            return
        _start_ray(STORE_BYTES)
        print(f"{samples.epoch_samples:,} pictures of {SIZE}×{SIZE}, {EPOCHS} epochs, {decoded:,.0f} MiB decoded")
        print(f"object store of {STORE_BYTES >> 20} MiB\n")
        print(
            "| after epoch | the largest reader, MiB | loader, MiB | object store touched, MiB |\n|---:|---:|---:|---:|"
        )
        _read(feed)
        ray.shutdown()


def _start_ray(store_bytes: int) -> None:
    ray.init(
        address="local",
        num_cpus=CPUS,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=store_bytes,
    )


def _compare_stores(feed: Feed) -> None:
    print(
        "| object store, MiB | data.object_store | its share, MiB | lay there at the most, MiB | written to disk, MiB |"
    )
    print("|---:|---:|---:|---:|---:|")
    for store_bytes in SLOW_STORES_BYTES:
        for share in SLOW_SHARES:
            _start_ray(store_bytes)
            limits = limits_for(
                share,
                store_bytes=object_store_bytes(),
                batch_bytes=feed.batch_rows * feed.row_bytes,
                block_bytes=feed.block_bytes,
                world_size=1,
                prefetch_batches=PREFETCH,
                readers=READERS_PER_CPU * CPUS,
            )
            peak, spilled = _read_slowly(replace(feed, limits=limits))
            ray.shutdown()
            given = share * store_bytes / 2**20
            print(f"| {store_bytes >> 20} | {share:g} | {given:.0f} | {peak:.0f} | {spilled:.0f} |", flush=True)


def _read_slowly(feed: Feed) -> tuple[float, float]:
    """MiB that lay in Ray's store at the most and were still needed, and MiB that it wrote to disk."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    ended, peak = threading.Event(), [0]

    def watch() -> None:
        while not ended.wait(0.05):
            peak[0] = max(peak[0], get_memory_info_reply(state).store_stats.object_store_bytes_primary_copy)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number, _ in enumerate(_loader(feed)):
        if number in (20, 300):
            time.sleep(10)
        elif number < 100:
            time.sleep(0.1)
    ended.set()
    watcher.join()
    return peak[0] / 2**20, get_memory_info_reply(state).store_stats.spilled_bytes_total / 2**20


def _loader(feed: Feed) -> Loader:
    (split,) = feed_dataset(feed).streaming_split(1, equal=False, locality_hints=None)
    return Loader(split, feed, rank=0, device=torch.device("cpu"), prefetch_batches=PREFETCH)


def _read(feed: Feed) -> None:
    for batch in _loader(feed):
        if batch.item.ends_phase:
            epoch = batch.item.epoch + 1
            if epoch in (1, 2) or epoch % 4 == 0:
                print(f"| {epoch} | {' | '.join(f'{value:.0f}' for value in _memory())} |", flush=True)


def _memory() -> tuple[float, float, float]:
    """Private memory of the largest process that reads and of this process, and shared memory of Ray's store, in MiB."""
    readers, store = [0.0], 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found, name = process.memory_info(), " ".join(process.cmdline()[:1])
            if name.startswith("ray::"):
                readers.append((found.rss - found.shared) / 2**20)
            elif name.endswith("raylet"):
                store = _touched(process.pid) / 2**20
    own = psutil.Process().memory_info()
    return max(readers), (own.rss - own.shared) / 2**20, store


def _touched(raylet: int) -> int:
    """Bytes of the memory behind Ray's store that anything was ever written into: a file without a name."""
    files = {}
    for descriptor in Path(f"/proc/{raylet}/fd").iterdir():
        with suppress(OSError):
            if "plasma" in str(descriptor.readlink()):
                found = descriptor.stat()
                files[found.st_ino] = found.st_blocks * 512
    return sum(files.values())


def _make(root: Path) -> Path:
    draw, shards = np.random.default_rng(0), []
    for number in range(SHARDS):
        path = root / "shards" / f"{number:06d}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        index = write_tar(path, [(f"{number:03d}-{row:06d}", {"image.jpg": _picture(draw)}) for row in range(SAMPLES)])
        write_index(index_path(path), index)
        name = f"shards/{number:06d}"
        shards.append(ShardInfo(f"{name}.tar", f"{name}.index.parquet", SAMPLES, index.shard_bytes, index.version))
    write_dataset(
        root,
        name="memory",
        shards=shards,
        fields={"image": ImageField(height=SIZE, width=SIZE)},
        members={"image": ("image.jpg",)},
        presence={"image": SHARDS * SAMPLES},
        label_counts={},
        statistics={},
    )
    return root


def _picture(draw: np.random.Generator) -> bytes:
    coarse = Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    stream = io.BytesIO()
    coarse.resize((160, 160)).save(stream, "JPEG")
    return stream.getvalue()


if __name__ == "__main__":
    main()
