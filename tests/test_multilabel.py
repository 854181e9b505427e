"""Any number of classes per sample, from a table to an answer: one class can only be seen, another only be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.data.manifest import open_dataset
from ray_mm.predictor import load_predictor
from ray_mm.stages import run_stage
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training
from tests.preprocessing.tables import write_json_lines
from tests.training.inprocess import train

SEEN, READ = "car", "rain"


def _rows(count: int) -> list[dict[str, Any]]:
    """Every ninth row nobody has looked at; a quarter of the others have none of the classes."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        has = {SEEN: random.random() < 0.5, READ: random.random() < 0.5}
        camera = random.normal(0, 0.3, 4)
        camera[1] += 2.0 * has[SEEN]
        words = "a wet day" if has[READ] else "a fine day"
        tags = [name for name, there in has.items() if there]
        split = "test" if number % 4 == 3 else "train"
        rows.append(
            {
                "key": f"k{number}",
                "split": split,
                "camera": camera.round(3).tolist(),
                "words": words,
                "tags": tags if number % 9 else None,
            }
        )
    return rows


@pytest.mark.ray
def test_a_class_that_is_only_seen_and_one_that_is_only_read_are_both_found(local_ray: None, tmp_path: Path) -> None:
    rows = _rows(240)
    job: dict[str, Any] = {
        "kind": "preprocess",
        "name": "town",
        "table": str(write_json_lines(tmp_path / "t.jsonl", rows)),
        "key": "key",
        "fields": {
            "camera": {"type": "vector"},
            "words": {"type": "text"},
            "tags": {"type": "label", "target": "classes"},
        },
        "splits": {"by": "column", "column": "split"},
        "output": str(tmp_path / "data"),
    }
    run_stage(load_job(job))
    manifest = open_dataset(tmp_path / "data" / "train").manifest
    labelled = [row["tags"] for row in rows if row["split"] == "train" and row["tags"] is not None]
    assert manifest.presence["tags"] == len(labelled) < manifest.num_samples
    assert manifest.label_counts["tags"] == {name: sum(name in tags for tags in labelled) for name in (SEEN, READ)}

    job = {
        "kind": "train",
        "name": "town",
        "data": {"train": str(tmp_path / "data/train"), "validation": str(tmp_path / "data/test"), "batch_size": 16},
        "model": {
            "fields": {"camera": {}, "words": {}},
            "fusion": {"method": "gated", "dim": 32},
            "task": {"type": "multilabel", "label": "tags", "pos_weight": "balanced"},
        },
        "train": {"epochs": 8, "optimizer": {"lr": 3e-3}},
        "output": str(tmp_path / "run"),
    }
    training_job = load_job(job)
    assert isinstance(training_job, TrainJob)
    training = plan_training(training_job)
    assert training.class_counts["tags"] == pytest.approx(
        [manifest.label_counts["tags"][c] / len(labelled) for c in (SEEN, READ)]
    )
    train(training)
    last = [line for line in read_metrics(training.run) if line["kind"] == "validation"][-1]
    assert last["micro_f1"] > 0.95 and last["macro_f1"] > 0.95 and last["map"] > 0.97
    for field in ("camera", "words"):
        assert last[f"alone/{field}"] < 0.9 and last[f"adds/{field}"] > 0.1

    job = {
        "kind": "evaluate",
        "name": "town",
        "checkpoint": str(training.run / "best"),
        "data": str(tmp_path / "data/test"),
        "output": str(tmp_path / "evaluation"),
    }
    result = run_stage(load_job(job))
    metrics = result["metrics"]
    for name in ("micro_f1", "macro_f1", "map"):
        best = max(read_metrics(training.run), key=lambda line: (line.get("micro_f1", -1), -line["loss"]))
        assert metrics[name] == pytest.approx(best[name], abs=1e-6), "a validation has the definitions of an evaluation"
    assert result["classes"][SEEN]["f1"] > 0.95 and result["classes"][READ]["f1"] > 0.95
    assert metrics["subsets"]["camera"]["map"] < metrics["map"]
    table = pq.read_table(tmp_path / "evaluation" / "predictions.parquet").to_pylist()
    true = {row["key"]: row["tags"] for row in rows}
    assert {row["key"]: row["label"] for row in table} == {row["key"]: true[row["key"]] for row in table}
    assert sum(row["correct"] is None for row in table) == sum(row["label"] is None for row in table) > 0
    assert all(len(row["probabilities"]) == 2 for row in table)
    report = (tmp_path / "evaluation" / "report.html").read_text()
    assert "Which classes it finds" in report and "How far to trust its probabilities" in report
    assert 0 <= metrics["ece"] < 0.3 and metrics["subsets"]["camera"]["ece"] is None

    model = load_predictor(training.run / "best")
    for camera, words, wanted in (
        ([0, 2.0, 0, 0], "a wet day", (SEEN, READ)),
        ([0, 2.0, 0, 0], "a fine day", (SEEN,)),
        ([0, 0.0, 0, 0], "a wet day", (READ,)),
        ([0, 0.0, 0, 0], "a fine day", ()),
    ):
        answer = model.predict({"camera": camera, "words": words})
        assert answer.label == wanted and answer.probabilities is not None
        assert {name for name, chance in answer.probabilities.items() if chance > 0.5} == set(wanted)
