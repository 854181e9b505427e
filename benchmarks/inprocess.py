"""Trainings in this process, without Ray, whose start would take longer than a small training itself: the loop is that of a
worker, the samples are those of the plan, decoded once and held in memory. For jobs whose pictures are not cropped at random.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ray_mm.config.source import Source
from ray_mm.config.train import TrainJob
from ray_mm.data.epochs import Epochs, Places
from ray_mm.data.fields import POSITION, Arrays, presence_name
from ray_mm.data.loader import LoadedBatch
from ray_mm.data.order import Shuffle, stable_hash
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.reader import BatchReader
from ray_mm.data.samples import open_planned, select_all
from ray_mm.evaluation.tasks import evaluated_task
from ray_mm.predictor import load_predictor
from ray_mm.storage import write_json
from ray_mm.training.draws import uniform
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.state import begin_attempt
from ray_mm.training.train import plan_training
from ray_mm.training.worker import run_worker

Figures = Mapping[str, float]
ALL = "all fields"


@dataclass(frozen=True)
class Held:
    """A dataset in memory.

    Attributes:
        arrays: of all its samples, shard by shard.
        keys: of the samples.
        starts: number of the first sample of each shard.
    """

    arrays: Arrays
    keys: list[str]
    starts: npt.NDArray[np.int64]

    def batch(self, places: Places, start: int) -> tuple[Arrays, list[str]]:
        """Arrays and keys of some samples, whose positions begin at ``start``."""
        rows = self.starts[places.shards] + places.rows
        arrays = {name: array[rows] for name, array in self.arrays.items()}
        arrays[POSITION] = np.arange(start, start + len(rows))
        return arrays, [self.keys[row] for row in rows]

    def lacking(self, field: str, rate: float, seed: int) -> Held:
        """The same without a field in some samples, each time in the same ones: they are never seen with it."""
        name = presence_name(field)
        kept = uniform(np.arange(len(self.keys)), stable_hash(seed, field, "lacking")) >= rate
        return replace(self, arrays={**self.arrays, name: np.logical_and(self.arrays[name], kept)})


def hold(folder: str, preprocessor: Preprocessor) -> Held:
    """Decodes a dataset."""
    dataset, samples = select_all(Source(path=folder), "data")
    epochs = Epochs([dataset], samples, None)
    count = samples.epoch_samples
    arrays, keys = BatchReader([dataset], preprocessor, None).read(epochs.places(0, count), 0, count)
    return Held(arrays, keys, np.cumsum([0, *dataset.shard_sizes[:-1]]).astype(np.int64))


def fit(job: TrainJob, train: Held, validation: Held | None = None) -> Training:
    """Trains from the start to the end; what an earlier call left in the job's folder is deleted."""
    shutil.rmtree(job.output, ignore_errors=True)
    training = plan_training(job)
    attempt = begin_attempt(training.run, training.data_digest)
    run_worker(training, Ranks(0, 1, torch.device("cpu")), attempt, batches(training, train, validation))
    return training


def batches(training: Training, train: Held, validation: Held | None = None) -> Iterator[LoadedBatch]:
    """Every batch of a training."""
    shuffle = training.job.data.shuffle
    mixed = Shuffle(training.job.seed, training.train.digest, shuffle.chunk_samples, shuffle.window_chunks)
    epochs = {"train": Epochs(open_planned(training.train), training.train, mixed)}
    held = {"train": train}
    if training.validation is not None:
        assert validation is not None, "a job with a validation is given its data"
        epochs["validation"] = Epochs(open_planned(training.validation), training.validation, None)
        held["validation"] = validation
    for number in range(training.schedule.num_items):
        item = training.schedule.item(number)
        places = epochs[item.phase].places(item.start, item.stop, item.epoch)
        arrays, keys = held[item.phase].batch(places, item.start)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        yield LoadedBatch(item, tensors, keys, item.start, item.stop, wait_s=0.0)


def score(run: Path, test: Held, subsets: Sequence[Sequence[str]] | None = None) -> dict[str, Figures]:
    """The figures of a training's last weights, by the names of the fields that it was given.

    Args:
        run: of the training.
        test: what is scored.
        subsets: of the fields. None: every one of them, the smallest first.
    """
    predictor = load_predictor(run / "last", device="cpu")
    fields = predictor.input_fields
    wanted = [frozenset(subset) for subset in (subsets_of(fields) if subsets is None else subsets)]
    task = evaluated_task(predictor)
    tally = task.tally(len(wanted))
    for start in range(0, len(test.keys), 256):
        batch = {name: array[start : start + 256] for name, array in test.arrays.items()}
        rows = {**batch, **task.scored(predictor.outputs(batch, wanted), batch)}
        counted = task.counted(rows)
        tally.add({name: array[counted] for name, array in rows.items()})
    names = [ALL if len(subset) == len(fields) else " + ".join(sorted(subset)) for subset in wanted]
    return {
        name: {figure: value for figure, value in found.items() if value is not None}
        for name, found in zip(names, tally.metrics(), strict=True)
    }


def subsets_of(fields: Sequence[str]) -> list[list[str]]:
    """Every set of fields but the empty one, the smallest first."""
    numbers = sorted(range(1, 1 << len(fields)), key=lambda number: (number.bit_count(), number))
    return [[field for place, field in enumerate(fields) if number >> place & 1] for number in numbers]


def finished(job: TrainJob, name: str = "figures") -> dict[str, Any] | None:
    """What ``keep`` kept of a training, if it was of just these settings."""
    try:
        content = json.loads((Path(job.output) / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content["figures"] if _said(content["job"]) == _said(_settings(job)) else None


def keep(job: TrainJob, figures: Mapping[str, Any], name: str = "figures") -> None:
    """Keeps what came of a training, in its folder: last of all."""
    write_json(Path(job.output) / f"{name}.json", {"job": _settings(job), "figures": figures})


def _settings(job: TrainJob) -> Any:
    """What the job says. Not the defaults: a setting that is new does not make what is there another training."""
    return job.model_dump(mode="json", exclude_unset=True)


def _said(settings: Any) -> Any:
    """Without what is unset: a baseline's job says that of every key, also of new ones."""
    if not isinstance(settings, dict):
        return settings
    return {key: _said(value) for key, value in settings.items() if value is not None}


def told(values: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds; of one seed there is none."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"
