"""A validation over several ranks gives the figures of one pass over all samples, however unevenly they are shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from ray_mm.data.fields import POSITION, WEIGHT, presence_name
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.validation import ValidationSums
from tests.factories import make_dataset
from tests.training.inprocess import make_training

SHARES = ((7, 7, 3), (7, 6, 0))
"""Samples of each rank in each batch; rows beyond them are padding."""
ROWS = 7
TASKS: dict[str, dict[str, str]] = {
    "label": {"type": "classify", "label": "label"},
    "number": {"type": "regress", "label": "number"},
}


class _Known(nn.Module):
    """Answers with what lies in a batch: the figures then follow from numbers that the test has drawn."""

    def forward(self, tensors: dict[str, Tensor]) -> Tensor:
        return tensors["output"]


def test_figures_over_uneven_ranks_are_sums_over_all_samples(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 24, ("vector", "label", "number"))
    trainings = [make_training(tmp_path, name, **{"model.task": task}) for name, task in TASKS.items()]
    mp.spawn(_rank, args=(trainings, tmp_path), nprocs=2)

    for training in trainings:
        label = training.job.model.task.label
        found = [json.loads((tmp_path / f"{label}-{rank}.json").read_text()) for rank in range(2)]
        assert found[0] == found[1], "every rank is told the same"
        batches = [_batch(label, rank, number) for rank in range(2) for number in range(3)]
        counted = [((batch[WEIGHT] > 0) & batch[presence_name(label)]).numpy() for batch in batches]
        output = np.concatenate(
            [batch["output"].double().numpy()[rows] for batch, rows in zip(batches, counted, strict=True)]
        )
        true = np.concatenate([batch[label].numpy()[rows] for batch, rows in zip(batches, counted, strict=True)])
        assert len(true) == found[0]["num_samples"] == 30 - 4 - 5, (
            "neither padding, nor the unreadable, nor the unlabelled"
        )
        if label == "label":
            chance = np.exp(output) / np.exp(output).sum(1, keepdims=True)
            wanted = {
                "loss": -np.log(chance[np.arange(len(true)), true]).mean(),
                "accuracy": (output.argmax(1) == true).mean(),
            }
        else:
            statistics = training.preprocessor.statistics[label]
            error = output * statistics.std[0] + statistics.mean[0] - true
            wanted = {
                "loss": np.square(error / statistics.std[0]).mean(),
                "mae": np.abs(error).mean(),
                "rmse": np.sqrt(np.square(error).mean()),
            }
        assert {name: found[0][name] for name in wanted} == pytest.approx(wanted, rel=1e-6)


def _batch(label: str, rank: int, number: int) -> dict[str, Tensor]:
    """The second sample of each full share can't be read; the third has no label, on rank 1 the fourth neither."""
    drawn = np.random.default_rng([rank, number])
    samples = SHARES[rank][number]
    place = np.arange(ROWS)
    weight = (place < samples) & ~((place == 1) & (samples > 3))
    present = ~((place == 2) & (samples > 3)) & ~((place == 3) & (samples == 6))
    is_class = label == "label"
    values: dict[str, Any] = {
        "output": drawn.normal(size=(ROWS, 3) if is_class else ROWS).astype(np.float32),
        label: drawn.integers(0, 3, ROWS) if is_class else drawn.normal(10, 8, ROWS).astype(np.float32),
        presence_name(label): present,
        WEIGHT: weight.astype(np.float32),
        POSITION: np.where(place < samples, place, -1),
    }
    return {name: torch.from_numpy(array) for name, array in values.items()}


def _rank(rank: int, trainings: list[Training], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    for training in trainings:
        label = training.job.model.task.label
        sums = ValidationSums(training, Ranks(rank, 2, torch.device("cpu")))
        for number in range(3):
            sums.add(_Known(), _batch(label, rank, number), "fp32")
        (folder / f"{label}-{rank}.json").write_text(json.dumps(sums.read(1)))
    dist.destroy_process_group()
