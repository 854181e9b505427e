"""An autoencoder from a table to a report, without a label; then its encoders in a model with few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_mm.check import check_job
from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.data.fields import presence_name
from ray_mm.errors import RayMMError, UsageError
from ray_mm.predictor import load_predictor
from ray_mm.stages import run_stage
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training
from tests.preprocessing.tables import write_json_lines
from tests.training.inprocess import train

FIELDS = ("felt", "path", "words")
WORDS = ("slow", "quick", "red", "blue", "far", "near")


def _rows(count: int) -> list[dict[str, Any]]:
    """Three views of two hidden numbers; a part of them is missing here and there."""
    random = np.random.default_rng(0)
    look = random.normal(0, 1, (2, 8))
    rows = []
    for number in range(count):
        hidden = random.normal(0, 1, 2)
        steps = np.linspace(0, 1, 12)[:, None]
        path = np.concatenate([steps * hidden[0], np.sin(6 * steps) * hidden[1]], axis=1)
        rows.append(
            {
                "key": f"k{number:03}",
                "split": "test" if number % 4 == 3 else "train",
                "felt": (hidden @ look + random.normal(0, 0.05, 8)).round(3).tolist(),
                "path": path.round(3).tolist() if number % 7 else None,
                "words": f"{WORDS[int(hidden[0] > 0)]} {WORDS[2 + int(hidden[1] > 0)]}" if number % 5 else None,
            }
        )
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    folder = tmp_path_factory.mktemp("reconstruction")
    job: dict[str, Any] = {
        "kind": "preprocess",
        "name": "walks",
        "table": str(write_json_lines(folder / "t.jsonl", _rows(480))),
        "key": "key",
        "fields": {"felt": {"type": "vector"}, "path": {"type": "series"}, "words": {"type": "text"}},
        "splits": {"by": "column", "column": "split"},
        "output": str(folder / "data"),
    }
    run_stage(load_job(job))
    return folder / "data"


def _job(data: Path, output: Path, **task: Any) -> TrainJob:
    job = load_job(
        {
            "kind": "train",
            "name": "walks",
            "data": {"train": str(data / "train"), "validation": str(data / "test"), "batch_size": 32},
            "model": {
                "fields": {name: {} for name in FIELDS},
                "fusion": {"method": "concat", "dim": 32},
                "task": {"type": "reconstruct", "mask": 0.2, **task},
            },
            "train": {"epochs": 12, "optimizer": {"lr": 3e-3}, "modality_dropout": 0.3},
            "output": str(output),
        }
    )
    assert isinstance(job, TrainJob)
    return job


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = plan_training(_job(data, tmp_path_factory.mktemp("walks") / "run"))
    train(training)
    return training.run


@pytest.mark.ray
def test_fields_are_said_again_from_each_other(data: Path, run: Path, tmp_path: Path) -> None:
    lines = [line for line in read_metrics(run) if line["kind"] == "validation"]
    best = max(lines, key=lambda line: (line["r2"], -line["loss"]))
    assert best["r2"] > 0.6 > lines[0]["r2"] and best["alone/felt"] > 0.4

    job: dict[str, Any] = {
        "kind": "evaluate",
        "name": "walks",
        "checkpoint": str(run / "best"),
        "data": str(data / "test"),
        "examples": 3,
        "output": str(tmp_path / "evaluation"),
    }
    metrics = run_stage(load_job(job))["metrics"]
    for name in ("r2", *(f"r2/{field}" for field in FIELDS)):
        assert metrics[name] == pytest.approx(best[name], abs=1e-5), "a validation has the definitions of an evaluation"
    assert len(metrics["subsets"]) == 7
    assert metrics["subsets"]["felt"]["r2"] == pytest.approx(best["alone/felt"], abs=1e-5)
    assert metrics["subsets"]["felt"]["r2/path"] > 0.6, "what is felt tells the way that was gone"
    assert metrics["baseline"]["r2"] == 0
    assert sum(metrics["contributions"].values()) == pytest.approx(metrics["r2"])
    page = (tmp_path / "evaluation" / "report.html").read_text()
    for told in ("Which field from which", "Worst samples", "R² of path", "what varies in the fields"):
        assert told in page

    rows = {row["key"]: row for row in _rows(480)}
    table = pq.read_table(tmp_path / "evaluation" / "predictions.parquet").to_pylist()
    columns = {"key", *(f"error.{name}" for name in FIELDS), *(presence_name(name) for name in FIELDS)}
    assert set(table[0]) == columns
    model = load_predictor(run / "best")
    statistics = model.preprocessor.statistics["felt"]
    for row in table[:10]:
        given = {name: rows[row["key"]][name] for name in FIELDS}
        assert (row["error.words"] is None) == (given["words"] is None)
        said = model.predict(given)
        assert said.label is None and said.reconstruction is not None
        assert said.reconstruction["path"].shape == (12, 2)
        off = (said.reconstruction["felt"] - np.array(given["felt"])) / np.array(statistics.std)
        assert row["error.felt"] == pytest.approx(np.square(off).mean(), abs=1e-3)
    guessed = model.predict({"felt": rows["k001"]["felt"]}).reconstruction
    assert guessed is not None
    assert np.abs(guessed["path"] - np.array(rows["k001"]["path"])).mean() < np.abs(rows["k001"]["path"]).mean()


@pytest.mark.ray
def test_a_compressed_model_says_as_much(data: Path, run: Path, tmp_path: Path) -> None:
    job: dict[str, Any] = {
        "kind": "compress",
        "name": "walks",
        "checkpoint": str(run / "best"),
        "calibration_data": str(data / "train"),
        "data": str(data / "test"),
        "gate": {"max_metric_drop": 0.05, "max_size_ratio": 1.5, "min_speedup": 0.01},
        "latency": {"batch_sizes": [1], "rounds": 5},
        "output": str(tmp_path / "compress"),
    }
    result = run_stage(load_job(job))
    assert result["metrics"]["metric"] == "r2" and result["status"] == "done"
    said = load_predictor(tmp_path / "compress").predict({"words": "slow red"}).reconstruction
    assert said is not None and said["felt"].shape == (8,) and np.isfinite(said["path"]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.task.fields": ["felt", "camera"]}, r"model\.task\.fields: 'camera' is no input of the model"),
        ({"model.task.fields": ["felt", "felt"]}, r"fields: 'felt' stands there twice"),
        ({"model.task.mask": 1.0}, r"model\.task.*mask: .*less than 1"),
        ({"model.task.noise": -1}, r"model\.task.*noise: .*greater than or equal to 0"),
        ({"model.task.label": "felt"}, r"model\.task.*label"),
        ({"train.baselines": True}, r"train\.baselines trains each field alone"),
        ({"train.best_metric": "accuracy"}, r"best_metric 'accuracy' is no figure of .* reconstruct"),
        ({"train.augment": {"mixup": 0.2}}, r"train\.augment\.mixup .* the task reconstruct has none"),
        ({"train.gradient_modulation": {}}, r"train\.gradient_modulation .* reconstruct"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    content = _job(data, tmp_path / "run").model_dump(mode="json", exclude_unset=True)
    with pytest.raises((UsageError, RayMMError), match=message):
        job = load_job(content, changes)
        assert isinstance(job, TrainJob)
        plan_training(job)
    assert not (tmp_path / "run").exists()


def test_a_check_says_what_is_learned(data: Path, run: Path, tmp_path: Path) -> None:
    assert any("reconstruct" in line for line in _checked(data, run, tmp_path))


def _checked(data: Path, run: Path, tmp_path: Path) -> list[str]:
    job = load_job(
        {
            "kind": "evaluate",
            "name": "walks",
            "checkpoint": str(run / "best"),
            "data": str(data / "test"),
            "output": str(tmp_path / "evaluation"),
        }
    )
    return list(check_job(job))
