"""Several workers of a training without Ray: processes that gloo connects, all of them started once for many trainings."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ray_mm.data.loader import LoadedBatch
from ray_mm.training import sharding
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.state import begin_attempt, current_attempt
from ray_mm.training.worker import run_worker
from tests.training.inprocess import Killed, batches


@dataclass(frozen=True)
class Start:
    """One start of a training's workers.

    Attributes:
        training: from its newest checkpoint on.
        workers: how many.
        stop_before: item before which they are killed; None: they go on to the end.
        min_unit: values of the smallest layer that is divided by itself.
    """

    training: Training
    workers: int
    stop_before: int | None = None
    min_unit: int = sharding._MIN_UNIT


def run_ranks(function: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """Calls a function of a module with each rank and the arguments, at the same time, in a process each.

    The processes are forked from one that has imported PyTorch already.
    """
    multiprocessing.set_forkserver_preload(["torch.distributed", "ray_mm.training.worker", "tests.training.inprocess"])
    mp.start_processes(function, arguments, ranks, start_method="forkserver")


def train_together(starts: Sequence[Start], folder: Path) -> None:
    """Makes these starts, one after the other.

    Args:
        starts: of any numbers of workers.
        folder: an empty one, where the workers find each other.
    """
    folder.mkdir()
    most = max(start.workers for start in starts)
    run_ranks(_process, (starts, folder), most)


def _process(rank: int, starts: Sequence[Start], folder: Path) -> None:
    torch.set_num_threads(1)
    connected = 0
    for number, start in enumerate(starts):
        if rank >= start.workers:
            continue
        if connected != start.workers:
            if connected:
                dist.destroy_process_group()
            where = f"file://{folder / str(number)}"
            dist.init_process_group("gloo", init_method=where, rank=rank, world_size=start.workers)
            connected = start.workers
        sharding._MIN_UNIT = start.min_unit
        _train(start, Ranks(rank, start.workers, torch.device("cpu")))
    if connected:
        dist.destroy_process_group()


def _train(start: Start, ranks: Ranks) -> None:
    training = start.training
    if ranks.rank == 0:
        begin_attempt(training.run, training.data_digest)
    ranks.barrier()
    attempt = current_attempt(training.run)

    def until_killed() -> Iterator[LoadedBatch]:
        for batch in batches(training, attempt.first_item, ranks.rank, ranks.world_size):
            if batch.item.number == start.stop_before:
                raise Killed
            yield batch

    try:
        run_worker(training, ranks, attempt, until_killed())
    except Killed:
        assert start.stop_before is not None
    ranks.barrier()
