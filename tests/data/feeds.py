"""Feeds over small datasets, and consumers that read them on all ranks at once, as train workers do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ray_mm.data.epochs import Epochs
from ray_mm.data.feed import Feed
from ray_mm.data.fields import POSITION
from ray_mm.data.loader import LoadedBatch, Loader
from ray_mm.data.manifest import open_dataset
from ray_mm.data.order import Shuffle
from ray_mm.data.plan import Schedule, rank_slice
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.data.samples import all_of, open_planned
from ray_mm.data.source import feed_dataset


def make_feed(
    train: Path,
    validation: Path | None = None,
    *,
    batch_size: int = 10,
    epochs: int = 2,
    world_size: int = 1,
    first_item: int = 0,
    fields: tuple[str, ...] = ("vector", "label"),
    **more: Any,
) -> Feed:
    """A feed of small windows, so that even small datasets have several."""
    dataset = open_dataset(train)
    samples = all_of(dataset)
    validated = all_of(open_dataset(validation)) if validation is not None else None
    return Feed(
        train=samples,
        validation=validated,
        preprocessor=preprocessor_for(dataset, {}, fields),
        shuffle=Shuffle(seed=1, digest=samples.digest, chunk_samples=4, window_chunks=3),
        schedule=Schedule(
            train_samples=samples.epoch_samples,
            validation_samples=validated.epoch_samples if validated is not None else 0,
            batch_size=batch_size,
            epochs=epochs,
        ),
        world_size=world_size,
        first_item=first_item,
        quarantine=train.parent / "quarantine",
        # A block per batch, where a test does not want it otherwise.
        **{"block_bytes": 1, **more},
    )


def load(feed: Feed, expected: Feed | None = None) -> list[list[LoadedBatch]]:
    """All batches of every rank, by real splits of a real Ray dataset.

    Args:
        feed: what is read.
        expected: what the loaders expect; None: what is read.
    """
    splits = feed_dataset(feed).streaming_split(feed.world_size, equal=False, locality_hints=None)

    def consume(rank: int) -> list[LoadedBatch]:
        loader = Loader(splits[rank], expected or feed, rank=rank, device=torch.device("cpu"), prefetch_batches=2)
        return [_copied(batch) for batch in loader]

    with ThreadPoolExecutor(feed.world_size) as ranks:
        return list(ranks.map(consume, range(feed.world_size)))


def planned_keys(feed: Feed, number: int, rank: int) -> list[str]:
    """The keys that the plan alone says a rank's share of an item has, padding included."""
    item = feed.schedule.item(number)
    samples = feed.train if item.phase == "train" else feed.validation
    assert samples is not None
    (dataset,) = open_planned(samples)
    epochs = Epochs([dataset], samples, feed.shuffle if item.phase == "train" else None)
    share = rank_slice(item, feed.schedule.batch_size, rank, feed.world_size)
    _, shards, rows = epochs.places(*share, item.epoch)
    # The factory numbers the samples along the shards.
    numbers = np.concatenate([[0], np.cumsum(dataset.shard_sizes)])[shards] + rows
    keys = [f"sample{number:06d}" for number in numbers]
    return keys + [""] * (feed.batch_rows - len(keys))


def _copied(batch: LoadedBatch) -> LoadedBatch:
    # What is kept for long must not pin Ray's store.
    tensors = {
        name: batch.tensors[name].clone() for name in (POSITION, "weight", "label", "image") if name in batch.tensors
    }
    return replace(batch, tensors=tensors)
