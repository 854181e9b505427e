"""A training of maps: any number of workers takes the steps of one, and its figures are sums over all cells."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_mm.models.multimodal import build_model
from ray_mm.training.parallel import Ranks
from ray_mm.training.scores import MapScores
from ray_mm.training.tracking import read_metrics
from ray_mm.training.validation import ValidationSums
from tests.factories import make_dataset
from tests.training.inprocess import Killed, batches, curve, make_training, train
from tests.training.together import Start, train_together

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS: dict[str, dict[str, str]] = {
    "mask": {"type": "segment", "label": "mask"},
    "grid": {"type": "grid", "label": "grid"},
}
INPUTS = ("image", "points", "vector")


def settings(name: str, **more: Any) -> dict[str, Any]:
    return {
        "data.batch_size": 15,
        "model.fields": {
            "image": {"dropout": 0.0},
            "points": {"encoder": "pillars", "cells": 16, "dropout": 0.0},
            "vector": {"dropout": 0.0},
        },
        "model.fusion": {"method": "concat", "dim": 16, "dropout": 0.0},
        "model.task": TASKS[name],
        "train.modality_dropout": 0.3,
        "train.precision": "fp32",
        "train.optimizer.lr": 0.003,
        **more,
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TASKS)
def test_the_number_of_workers_changes_nothing(tmp_path: Path, name: str) -> None:
    missing = {"image": 0.2, "vector": 0.2, name: 0.1}
    make_dataset(tmp_path / "train", 50, (*INPUTS, name), num_shards=2, missing=missing)
    make_dataset(tmp_path / "validation", 20, (*INPUTS, name), num_shards=1, seed=1, missing=missing)
    # A picture is not mirrored with a map of its own.
    flip = {"data.fields": {"image": {"type": "image", "random_flip": 0.5}}} if name == "mask" else {}
    starts = []
    for workers, parallel in ((1, "ddp"), (2, "ddp"), (2, "fsdp")):
        how = settings(name, **flip, **{"train.parallel": parallel})
        starts.append(Start(make_training(tmp_path, f"{parallel}-{workers}", INPUTS, **how), workers, min_unit=0))
    train_together(starts, tmp_path / "rendezvous")
    first = curve(starts[0].training)
    told = [line for line in read_metrics(starts[0].training.run) if line["kind"] == "validation"]
    assert all(0 <= line["miou"] <= line["pixel_accuracy"] + 0.5 <= 1.5 and "alone/image" in line for line in told)
    for start in starts[1:]:
        assert curve(start.training) == pytest.approx(first, abs=1e-4), start.training.run.name
        again = [line for line in read_metrics(start.training.run) if line["kind"] == "validation"]
        for figure in ("miou", "pixel_accuracy", "alone/image", "adds/vector"):
            assert [line[figure] for line in again] == pytest.approx([line[figure] for line in told], abs=0.01)


@pytest.mark.parametrize("name", TASKS)
def test_a_training_learns_its_maps_and_goes_on_where_it_was_killed(tmp_path: Path, name: str) -> None:
    make_dataset(tmp_path / "train", 60, (*INPUTS, name))
    make_dataset(tmp_path / "validation", 20, (*INPUTS, name), seed=1)
    more = {"train.epochs": 10, "train.modality_dropout": 0.0}
    whole, cut = (make_training(tmp_path, run, INPUTS, **settings(name, **more)) for run in ("whole", "cut"))
    train(whole)
    with pytest.raises(Killed):
        train(cut, stop_before=7)
    train(cut)
    assert curve(cut) == pytest.approx(curve(whole), abs=1e-6)
    told = [line["miou"] for line in read_metrics(whole.run) if line["kind"] == "validation"]
    assert told[-1] > 0.8 > told[0]


def test_figures_are_those_of_all_cells_and_not_means_of_samples(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 40, (*INPUTS, "mask"), missing={"mask": 0.3, "image": 0.2})
    training = make_training(tmp_path, "run", INPUTS, **settings("mask"))
    torch.manual_seed(0)
    model = build_model(training.job.model, training.preprocessor).eval()
    sums = ValidationSums(training, Ranks(0, 1, torch.device("cpu")))
    true, said = [], []
    for batch in itertools.islice(batches(training), training.schedule.train_batches):
        sums.add(model, batch.tensors, "fp32")
        with torch.no_grad():
            output = model(batch.tensors)
        counted = batch.tensors["mask.presence"] & (batch.tensors["weight"] > 0)
        label, predicted = batch.tensors["mask"][counted].numpy(), output.argmax(1)[counted].numpy()
        true.append(label[label != 255])
        said.append(predicted[label != 255])
    label, predicted = np.concatenate(true), np.concatenate(said)
    wanted = [
        ((label == one) & (predicted == one)).sum() / ((label == one) | (predicted == one)).sum()
        for one in range(3)
        if ((label == one) | (predicted == one)).any()
    ]
    found = sums.read(1)
    assert found["miou"] == pytest.approx(np.mean(wanted))
    assert found["pixel_accuracy"] == pytest.approx((label == predicted).mean())


def test_cells_without_a_label_and_samples_that_do_not_count_are_left_out() -> None:
    scores = MapScores("mask", 3)
    label = torch.tensor([[[0, 1], [2, 255]], [[1, 1], [1, 1]]], dtype=torch.uint8)
    output = torch.nn.functional.one_hot(torch.tensor([[[0, 2], [2, 0]], [[0, 0], [0, 0]]]), 3).permute(0, 3, 1, 2)
    main = scores.main(output.float(), {"mask": label}, torch.tensor([True, False])).tolist()
    assert main == [1, 0, 1, 1, 0, 2, 1, 1, 1]
    assert scores.figures(main, [], 1) == pytest.approx({"miou": (1 + 0 + 0.5) / 3, "pixel_accuracy": 2 / 3})
