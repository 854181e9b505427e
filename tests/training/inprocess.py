"""A training without Ray: the same batches as through it, made in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.data.epochs import Epochs
from ray_mm.data.loader import LoadedBatch
from ray_mm.data.order import Shuffle
from ray_mm.data.plan import rank_size, rank_slice
from ray_mm.data.reader import BatchReader
from ray_mm.data.samples import open_planned
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.state import begin_attempt, latest_checkpoint
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training
from ray_mm.training.worker import run_worker


def make_training(folder: Path, run: str = "run", inputs: tuple[str, ...] = ("vector",), **overrides: Any) -> Training:
    """A small training on the datasets ``train`` and, if it is there, ``validation`` in a folder."""
    return plan_training(make_job(folder, run, inputs, **overrides))


def make_job(folder: Path, run: str = "run", inputs: tuple[str, ...] = ("vector",), **overrides: Any) -> TrainJob:
    """Its job."""
    has_validation = (folder / "validation").exists()
    content: dict[str, Any] = {
        "kind": "train",
        "name": "small",
        "data": {"train": str(folder / "train"), "batch_size": 16},
        "model": {
            "fields": {name: {} for name in inputs},
            "fusion": {"method": "gated", "dim": 16},
            "task": {"type": "classify", "label": "label"},
        },
        "train": {"epochs": 2, "log_every_steps": 1},
        "output": str(folder / run),
    }
    if has_validation:
        content["data"]["validation"] = str(folder / "validation")
    job = load_job(content, overrides)
    assert isinstance(job, TrainJob)
    return job


def batches(training: Training, first_item: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[LoadedBatch]:
    """A rank's share of every batch from an item on."""
    shuffle = training.job.data.shuffle
    mixed = Shuffle(training.job.seed, training.train.digest, shuffle.chunk_samples, shuffle.window_chunks)
    epochs = {"train": Epochs(open_planned(training.train), training.train, mixed)}
    if training.validation is not None:
        epochs["validation"] = Epochs(open_planned(training.validation), training.validation, None)
    readers = {
        phase: BatchReader(found.datasets, training.preprocessor, training.quarantine)
        for phase, found in epochs.items()
    }
    batch_size = training.job.data.batch_size
    for number in range(first_item, training.schedule.num_items):
        item = training.schedule.item(number)
        start, stop = rank_slice(item, batch_size, rank, world_size)
        arrays, keys = readers[item.phase].read(
            epochs[item.phase].places(start, stop, item.epoch), start, rank_size(batch_size, world_size)
        )
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        yield LoadedBatch(item, tensors, keys, start, stop, wait_s=0.0)


def train(training: Training, *, stop_before: int | None = None) -> None:
    """One start of a single worker: from its newest checkpoint to the end, or until it is killed before an item."""
    attempt = begin_attempt(training.run, training.data_digest)

    def until_killed() -> Iterator[LoadedBatch]:
        for batch in batches(training, attempt.first_item):
            if batch.item.number == stop_before:
                raise Killed
            yield batch

    run_worker(training, Ranks(0, 1, torch.device("cpu")), attempt, until_killed())


class Killed(Exception):  # noqa: N818 - an event, not a mistake
    """Stands for the end of a process in the midst of its work."""


def curve(training: Training) -> dict[tuple[str, int], float]:
    """(kind, step) → loss, from the run's metrics."""
    return {(line["kind"], line["step"]): line["loss"] for line in read_metrics(training.run)}


def newest(training: Training) -> Path:
    """The newest checkpoint of a training."""
    found = latest_checkpoint(training.run)
    assert found is not None
    return found
