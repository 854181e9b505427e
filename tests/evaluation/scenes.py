"""A dataset, a small model with random weights, and its scores without Ray: what the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_mm.actors.model_actor import KEY
from ray_mm.checkpoint import save_checkpoint
from ray_mm.config.model import ModelConfig
from ray_mm.data.blocks import to_arrays, to_table
from ray_mm.data.epochs import sequence
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.preprocessor import Preprocessor, preprocessor_for
from ray_mm.data.reader import BatchReader, read_batches
from ray_mm.evaluation.scorer import Scorer
from ray_mm.evaluation.subsets import Subset
from ray_mm.model_folder import model_digest
from ray_mm.models.multimodal import build_model
from tests.factories import make_dataset

TASKS = {"label": "classify", "number": "regress", "tags": "multilabel", "mask": "segment", "grid": "grid"}
ENCODERS: dict[str, dict[str, Any]] = {"points": {"encoder": "pillars", "cells": 16}}
"""Of a map, which is made from tokens on a grid."""


@dataclass(frozen=True)
class Scene:
    """A dataset and a model for it."""

    dataset: Dataset
    preprocessor: Preprocessor
    checkpoint: Path
    label: str | None

    @property
    def inputs(self) -> list[str]:
        return sorted(name for name in self.preprocessor.fields if name != self.label)


def make_scene(
    folder: Path,
    inputs: Sequence[str],
    label: str | None = "label",
    num_samples: int = 40,
    task: dict[str, Any] | None = None,
    **options: Any,
) -> Scene:
    """Writes a dataset and a checkpoint, without a label of a retrieval or of ``task``; ``options`` go to ``make_dataset``."""
    unlabelled = task or {"type": "retrieve", "dim": 8}
    fields = [*inputs] if label is None else [*inputs, label]
    dataset = open_dataset(make_dataset(folder / "data", num_samples, fields, **options))
    preprocessor = preprocessor_for(dataset, {}, fields)
    config = ModelConfig.model_validate(
        {
            "fields": {name: ENCODERS.get(name, {}) if label in ("mask", "grid") else {} for name in inputs},
            "fusion": {"method": "gated", "dim": 8},
            "task": unlabelled if label is None else {"type": TASKS[label], "label": label},
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config, preprocessor).eval()
        # Fresh heads are nearly indifferent; larger weights make predictions differ between samples.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
    save_checkpoint(folder / "checkpoint", model.state_dict(), config, preprocessor, {})
    return Scene(dataset, preprocessor, folder / "checkpoint", label)


def scored_blocks(
    scene: Scene, subsets: tuple[Subset, ...], batch_size: int = 16
) -> Iterator[tuple[dict[str, npt.NDArray[Any]], list[str]]]:
    """What the actors of an evaluation hand to the driver: rows and keys, block after block."""
    scorer = Scorer(str(scene.checkpoint), model_digest(scene.checkpoint), subsets, "cpu", 1)
    for block in decoded_blocks(scene, batch_size):
        table = scorer(block)
        yield to_arrays(table), table.column(KEY).to_pylist()


def decoded_blocks(scene: Scene, batch_size: int = 16) -> Iterator[pa.Table]:
    """What the actors get."""
    epochs = sequence(scene.dataset)
    reader = BatchReader(epochs.datasets, scene.preprocessor, None)
    for start in range(0, epochs.num_samples, batch_size):
        stop = min(start + batch_size, epochs.num_samples)
        arrays, keys = reader.read(epochs.places(start, stop), start, stop - start)
        yield to_table(arrays, keys)


def whole(scene: Scene) -> dict[str, npt.NDArray[Any]]:
    """The dataset as one batch."""
    (batch,) = read_batches(sequence(scene.dataset), scene.preprocessor, scene.dataset.manifest.num_samples)
    return {name: np.asarray(array) for name, array in batch.items()}
