"""Maps from a table to an answer: what a camera shows and what lies on the ground, of pictures and points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.data.manifest import open_dataset
from ray_mm.errors import RayMMError, UsageError
from ray_mm.predictor import load_predictor
from ray_mm.stages import run_stage
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training
from tests.factories import mask_bytes, npy_bytes
from tests.preprocessing.tables import write_csv, write_file
from tests.training.inprocess import train

CLASSES = ("ground", "car", "tree")
NUM_ROWS = 160


def _scene(number: int) -> dict[str, npt.NDArray[Any]]:
    """Things on the ground, seen by a camera from above and by a radar that can't tell a car from a tree."""
    random = np.random.default_rng(number)
    mask = np.zeros((32, 32), np.uint8)
    ground, points = np.zeros((8, 8), np.uint8), []
    for _ in range(int(random.integers(1, 4))):
        row, column = random.integers(0, 7, 2)
        kind = int(random.integers(1, 3))
        mask[4 * row : 4 * row + 8, 4 * column : 4 * column + 8] = kind
        ground[row : row + 2, column : column + 2] = kind
        where = np.array([row, column]) + random.uniform(0, 2, (8, 2))
        points += np.concatenate([where, np.full((8, 1), 1.0)], axis=1).tolist()
    colours = np.array([[90, 90, 90], [200, 40, 40], [40, 170, 60]])
    picture = np.clip(colours[mask] + random.integers(-25, 26, (32, 32, 3)), 0, 255).astype(np.uint8)
    labelled = mask.copy()
    labelled[:, 0] = 255
    return {"camera": picture, "radar": np.array(points, np.float32), "mask": labelled, "ground": ground}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    rows = []
    for number in range(NUM_ROWS):
        scene = _scene(number)
        files = {
            "camera": mask_bytes(scene["camera"]),
            "radar": npy_bytes(scene["radar"]),
            "mask": mask_bytes(scene["mask"]),
            "ground": npy_bytes(scene["ground"]),
        }
        row: dict[str, Any] = {"key": f"k{number:03}", "split": "test" if number % 4 == 3 else "train"}
        for name, payload in files.items():
            row[name] = f"files/{name}{number}"
            write_file(folder / row[name], payload)
        if number % 10 == 4:
            row["mask"] = None
        rows.append(row)
    mask = {"type": "label", "target": "mask", "classes": list(CLASSES)}
    job: dict[str, Any] = {
        "kind": "preprocess",
        "name": "maps",
        "table": str(write_csv(folder / "t.csv", rows)),
        "key": "key",
        "fields": {
            "camera": {"type": "image"},
            "radar": {"type": "points"},
            "mask": {**mask, "like": "camera"},
            "ground": mask,
        },
        "splits": {"by": "column", "column": "split"},
        "output": str(folder / "data"),
    }
    run_stage(load_job(job))
    return folder / "data"


SEGMENT = {"type": "segment", "label": "mask"}


def _job(data: Path, output: Path, task: dict[str, Any], **more: Any) -> TrainJob:
    content: dict[str, Any] = {
        "kind": "train",
        "name": "maps",
        "data": {"train": str(data / "train"), "validation": str(data / "test"), "batch_size": 16},
        "model": {
            "fields": {"camera": {}, "radar": {"encoder": "pillars", "cells": 16, "extent": [0, 8, 0, 8]}},
            "fusion": {"method": "gated", "dim": 32},
            "task": task,
        },
        "train": {"epochs": 6, "optimizer": {"lr": 3e-3}},
        "output": str(output),
    }
    job = load_job(content, more)
    assert isinstance(job, TrainJob)
    return job


@pytest.mark.ray
@pytest.mark.parametrize("label", ["mask", "ground"])
def test_a_map_is_learned_scored_compressed_and_predicted(data: Path, tmp_path: Path, label: str) -> None:
    # The camera looks down, and its rows are those of the ground.
    task = SEGMENT if label == "mask" else {"type": "grid", "label": "ground", "on": "camera"}
    flip = {"data.fields": {"camera": {"type": "image", "random_flip": 0.5}}} if label == "mask" else {}
    training = plan_training(_job(data, tmp_path / "run", task, **flip))
    train(training)
    lines = [line for line in read_metrics(training.run) if line["kind"] == "validation"]
    assert max(line["miou"] for line in lines) > 0.75

    job: dict[str, Any] = {
        "kind": "evaluate",
        "name": "maps",
        "checkpoint": str(training.run / "best"),
        "data": str(data / "test"),
        "output": str(tmp_path / "evaluation"),
    }
    result = run_stage(load_job(job))
    metrics = result["metrics"]
    best = max(lines, key=lambda line: (line["miou"], -line["loss"]))
    for name in ("miou", "pixel_accuracy"):
        assert metrics[name] == pytest.approx(best[name], abs=1e-6), "a validation has the definitions of an evaluation"
    assert sorted(metrics["subsets"]) == ["camera", "camera+radar", "radar"]
    assert metrics["subsets"]["camera"]["miou"] == pytest.approx(best["alone/camera"], abs=1e-6)
    assert metrics["miou"] > metrics["baseline"]["miou"] + 0.3 and list(result["classes"]) == list(CLASSES)
    assert "Which cells it finds" in (tmp_path / "evaluation" / "report.html").read_text()

    table = pq.read_table(tmp_path / "evaluation" / "predictions.parquet").to_pylist()
    model = load_predictor(training.run / "best")
    for row in table[:5]:
        number = int(row["key"][1:])
        scene = _scene(number)
        said = model.predict({"camera": scene["camera"], "radar": scene["radar"]})
        assert said.mask is not None and said.label is None and said.probabilities is None
        assert said.mask.dtype == np.uint8 and said.mask.shape == scene[label].shape
        true = scene[label]
        if label == "mask" and number % 10 == 4:
            assert row["pixel_accuracy"] is None
        else:
            right = (said.mask == true)[true != 255].mean()
            assert row["pixel_accuracy"] == pytest.approx(right, abs=0.01)

    job = {
        "kind": "compress",
        "name": "maps",
        "checkpoint": str(training.run / "best"),
        "calibration_data": str(data / "train"),
        "data": str(data / "test"),
        "gate": {"max_metric_drop": 0.05, "max_size_ratio": 1.5, "min_speedup": 0.01},
        "latency": {"batch_sizes": [1], "rounds": 5},
        "output": str(tmp_path / "compress"),
    }
    result = run_stage(load_job(job))
    assert result["metrics"]["metric"] == "miou" and result["status"] == "done"
    small = load_predictor(tmp_path / "compress").predict({"camera": _scene(3)["camera"]}).mask
    large = model.predict({"camera": _scene(3)["camera"]}).mask
    assert small is not None and large is not None and (small == large).mean() > 0.95


@pytest.mark.ray
def test_two_maps_are_learned_at_once(data: Path, tmp_path: Path) -> None:
    tasks = {"view": SEGMENT, "plan": {"type": "grid", "label": "ground", "on": "camera"}}
    training = plan_training(_job(data, tmp_path / "run", {"type": "several", "tasks": tasks}))
    train(training)
    lines = [line for line in read_metrics(training.run) if line["kind"] == "validation"]
    assert lines[-1]["view.miou"] > 0.7 and lines[-1]["plan.miou"] > 0.7
    job: dict[str, Any] = {
        "kind": "evaluate",
        "name": "maps",
        "checkpoint": str(training.run / "last"),
        "data": str(data / "test"),
        "output": str(tmp_path / "evaluation"),
    }
    found = run_stage(load_job(job))["metrics"]["tasks"]
    for task in tasks:
        assert found[task]["miou"] == pytest.approx(lines[-1][f"{task}.miou"], abs=1e-6)
        assert "Which cells it finds" in (tmp_path / "evaluation" / task / "report.html").read_text()
    table = pq.read_table(tmp_path / "evaluation" / "predictions.parquet").to_pylist()
    model = load_predictor(training.run / "last")
    for row in table[:5]:
        scene = _scene(int(row["key"][1:]))
        said = model.predict({"camera": scene["camera"], "radar": scene["radar"]}).tasks
        assert said is not None
        for task, label in (("view", "mask"), ("plan", "ground")):
            mask, true = said[task].mask, scene[label]
            assert mask is not None and mask.shape == true.shape
            if row[f"{task}.pixel_accuracy"] is not None:
                right = (mask == true)[true != 255].mean()
                assert row[f"{task}.pixel_accuracy"] == pytest.approx(right, abs=0.01)


def test_a_dataset_says_how_often_each_class_occurs(data: Path) -> None:
    manifest = open_dataset(data / "train").manifest
    numbers = [number for number in range(NUM_ROWS) if number % 4 != 3]
    for name, lacking in (("mask", 4), ("ground", None)):
        had = [np.unique(_scene(number)[name]) for number in numbers if number % 10 != lacking]
        assert manifest.label_counts[name] == {
            each: sum(place in found for found in had) for place, each in enumerate(CLASSES)
        }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.baselines": True}, r"train\.baselines trains each field alone, and the task segment"),
        ({"train.best_metric": "accuracy"}, r"best_metric 'accuracy' is no figure of .* segment; choose miou"),
        (
            {
                "train.baselines": True,
                "model.task": {
                    "type": "several",
                    "tasks": {"a": SEGMENT, "b": {"type": "grid", "label": "ground"}},
                },
            },
            r"train\.baselines trains each field alone, and the task several makes a map",
        ),
        ({"train.augment": {"mixup": 0.2}}, r"train\.augment\.mixup mixes the labels of two samples"),
        ({"model.task.label": "camera"}, r"model\.task\.label 'camera' is also an input field"),
        ({"model.task.label": "ground"}, r"'ground' is a map of its own; set it to grid"),
        ({"model.task.on": "radar", "model.fields.radar.encoder": "pointnet"}, r"radar\.(encoder|cells|extent)"),
        ({"train.gradient_modulation": {}}, r"train\.gradient_modulation"),
        (
            {"data.balance": {"label": "mask"}},
            r"data\.balance\.label: 'mask' is not a class label.*every cell of a map",
        ),
        ({"data.fields": {"mask": {"type": "label", "like": "x"}}}, r"data\.fields\.mask\.like is fixed"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((UsageError, RayMMError), match=message):
        plan_training(_job(data, tmp_path / "run", SEGMENT, **changes))
    assert not (tmp_path / "run").exists()
