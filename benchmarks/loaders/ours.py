"""ray_mm: the loader of a train worker, fed by Ray Data with two CPUs, Ray already running; all samples shuffled."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
import torch
from common import BATCH, SERIES, SIZE, WORKERS, run

from ray_mm.config.source import Source
from ray_mm.data import source
from ray_mm.data.feed import Feed
from ray_mm.data.loader import LoadedBatch, Loader
from ray_mm.data.order import Shuffle
from ray_mm.data.plan import Schedule
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.data.samples import select_all
from ray_mm.data.source import feed_dataset
from ray_mm.session import ray_session


def make_loader(
    args: argparse.Namespace,
    quarantine: Path,
    start: float = 0.0,
    fields: tuple[str, ...] = ("image", "caption", "imu"),
    **settings: Any,
) -> Iterable[LoadedBatch]:
    """One epoch, from a share of it on; settings are those of the feed."""
    dataset, samples = select_all(Source(path=str(Path(args.data) / "tars")), "data")
    schedule = Schedule(samples.epoch_samples, 0, BATCH, epochs=1)
    first_item = int(start * schedule.num_items)
    feed = Feed(
        train=samples,
        validation=None,
        preprocessor=preprocessor_for(dataset, {}, fields),
        shuffle=Shuffle(seed=0, digest=samples.digest, chunk_samples=256, window_chunks=64),
        schedule=schedule,
        world_size=1,
        first_item=first_item,
        quarantine=quarantine,
        **{"head_samples": None, **settings},
    )
    (split,) = feed_dataset(feed).streaming_split(1, equal=False, locality_hints=None)
    return Loader(split, feed, rank=0, device=torch.device("cpu"), prefetch_batches=2)


def _size(batch: LoadedBatch) -> int:
    assert batch.tensors["image"].shape[1:] == (SIZE, SIZE, 3) and batch.tensors["imu"].shape[1:] == SERIES
    return batch.stop - batch.start


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--readers-per-cpu", type=float, default=source.READERS_PER_CPU)
    parser.add_argument("--threads", type=int, default=Feed.threads)
    parser.add_argument("--head-samples", type=int)
    own, sys.argv[1:] = parser.parse_known_args()
    source.READERS_PER_CPU = own.readers_per_cpu
    settings = {"threads": own.threads, "head_samples": own.head_samples}
    with tempfile.TemporaryDirectory() as folder, ray_session():
        assert ray.cluster_resources()["CPU"] == WORKERS, "two CPUs for everyone"

        def loader(args: argparse.Namespace) -> Iterable[Any]:
            return make_loader(args, Path(folder), **settings)

        if own.warm:  # an epoch before, as every one but the first has it
            for _ in make_loader(argparse.Namespace(data=sys.argv[2]), Path(folder), **settings):
                pass
        run(loader, _size)


if __name__ == "__main__":
    main()
