"""Planned samples → read and decoded by tasks, through a pool of actors that hold a model → their rows, in the plan's order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.data

from ray_mm.actors.model_actor import KEY, ModelActor
from ray_mm.config.base import Resources
from ray_mm.config.cache import RemoteCache
from ray_mm.data.blocks import to_arrays
from ray_mm.data.fields import POSITION, Arrays
from ray_mm.data.loader import check_positions
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.samples import Samples
from ray_mm.data.source import READERS_PER_CPU, sequential_dataset
from ray_mm.errors import OrderError
from ray_mm.placement import Placement, place
from ray_mm.registered import absolute


@dataclass(frozen=True)
class Pass:
    """Samples that are read once, one after the other.

    Attributes:
        samples: which.
        preprocessor: which of their fields, and how.
        batch_size: samples per forward pass.
        quarantine: folder for bad members.
        cache: for shards that lie in a store; None: none.
        first_batch: where to start.
    """

    samples: Samples
    preprocessor: Preprocessor
    batch_size: int
    quarantine: Path
    cache: RemoteCache | None
    first_batch: int = 0


def through_actors(
    planned: Pass, actor: type[ModelActor], checkpoint: str, resources: Resources, **settings: Any
) -> Iterator[tuple[Arrays, list[str]]]:
    """Sends samples through actors.

    Args:
        planned: the samples.
        actor: what is made of each block.
        checkpoint: of ``load_predictor``.
        resources: ``workers`` is the number of actors.
        settings: what else the actor's constructor takes.

    Returns:
        Rows and keys of one batch after the other, as ``actor`` made them.

    Raises:
        UsageError: there is no room for so many actors.
        OrderError: while iterating: a batch is not the planned one.
    """
    placement = place(resources)
    constructor = {
        "checkpoint": absolute(checkpoint),
        "device": "cuda" if placement.gpus_per_worker > 0 else "cpu",
        "threads": max(1, int(placement.cpus_per_worker)),
        **settings,
    }
    return _rows(planned, actor, constructor, placement)


def _rows(
    planned: Pass, actor: type[ModelActor], constructor: Mapping[str, Any], placement: Placement
) -> Iterator[tuple[Arrays, list[str]]]:
    total, position = planned.samples.epoch_samples, planned.first_batch * planned.batch_size
    while position < total:
        before = position
        tables = _dataset(planned, position // planned.batch_size, actor, constructor, placement).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=1
        )
        for table in tables:
            rows, keys = to_arrays(table), table.column(KEY).to_pylist()
            check_positions(rows[POSITION], position, position + len(keys))
            position += len(keys)
            yield rows, keys
        # One execution reads some 20,000 tasks; another one goes on behind it.
        if position == before:
            raise OrderError(f"the samples ended at {position} of {total}: this is an error in ray_mm.")
    if position > total:
        raise OrderError(f"{position} samples arrived, {total} were planned: this is an error in ray_mm.")


def _dataset(
    planned: Pass, first_batch: int, actor: type[ModelActor], constructor: Mapping[str, Any], placement: Placement
) -> ray.data.Dataset:
    return sequential_dataset(
        planned.samples, planned.preprocessor, planned.batch_size, planned.quarantine, planned.cache, first_batch
    ).map_batches(
        actor,
        fn_constructor_kwargs=dict(constructor),
        batch_format="pyarrow",
        # A block is a batch. Ray wants the number to be named where there is a GPU.
        batch_size=planned.batch_size if placement.gpus_per_worker > 0 else None,
        compute=ray.data.ActorPoolStrategy(size=placement.workers),
        num_cpus=_apart(placement.cpus_per_worker),
        num_gpus=placement.gpus_per_worker or None,
        udf_modifying_row_count=False,
    )


def _apart(cpus: float) -> float:
    """A reservation that is not a read task's.

    Where the two are equal, Ray would make one operator of them, and read, decode and answer one after the other.
    """
    return 0.999 * cpus if cpus == 1 / READERS_PER_CPU else cpus
