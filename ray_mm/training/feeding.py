"""A training's data: planned anew for every group of workers, in a process of Ray Train's that knows no torch."""

from __future__ import annotations

from typing import Any

import ray.train

from ray_mm.data.feed import Feed
from ray_mm.data.order import Shuffle
from ray_mm.data.source import feed_dataset
from ray_mm.data.store_limits import StoreLimits
from ray_mm.training.plan import Training
from ray_mm.training.state import begin_attempt

FEED = "train"
"""What Ray Train calls it."""


def plan_feed(training: Training, world_size: int, first_item: int, limits: StoreLimits | None = None) -> Feed:
    """What decides which batch of a training comes when.

    Args:
        training: what to do.
        world_size: number of workers.
        first_item: where it starts or resumes.
        limits: what it may take in Ray's object store. None: what Ray thinks right.
    """
    job = training.job
    return Feed(
        train=training.train,
        validation=training.validation,
        preprocessor=training.preprocessor,
        shuffle=Shuffle(
            seed=job.seed,
            digest=training.train.digest,
            chunk_samples=job.data.shuffle.chunk_samples,
            window_chunks=job.data.shuffle.window_chunks,
        ),
        schedule=training.schedule,
        world_size=world_size,
        first_item=first_item,
        quarantine=training.quarantine,
        cache=job.data.cache.remote,
        decoded=job.data.cache.decoded,
        head_samples=job.data.head_samples,
        limits=limits,
    )


class FeedConfig(ray.train.DataConfig):  # type: ignore[misc]  # Ray is not typed
    """Plans the data anew for every group of workers: the one place that decides where it starts.

    Ray calls ``configure`` once per group, when the number of its workers is known.
    """

    def __init__(self, training: Training, limits: dict[int, StoreLimits]) -> None:
        super().__init__()
        self._training = training
        self._limits = limits

    def configure(self, datasets: dict[str, Any], world_size: int, *_: Any, **__: Any) -> list[dict[str, Any]]:
        """The splits of the feed, one per rank."""
        attempt = begin_attempt(self._training.run, self._training.data_digest)
        feed = plan_feed(self._training, world_size, attempt.first_item, self._limits[world_size])
        splits = feed_dataset(feed).streaming_split(world_size, equal=False, locality_hints=None)
        return [{FEED: split} for split in splits]
