"""Several tasks at once, from a table to an answer: a kind, tags and a number, of which a sample may lack some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ray_mm.config.load import load_job
from ray_mm.config.tasks import RegressTask, SeveralTask
from ray_mm.config.train import TrainJob
from ray_mm.errors import RayMMError, UsageError
from ray_mm.models.losses import loss_per_sample, training_terms
from ray_mm.models.multimodal import build_model
from ray_mm.predictor import load_predictor
from ray_mm.stages import run_stage
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training
from tests.preprocessing.tables import write_json_lines
from tests.training.inprocess import batches, curve, train
from tests.training.together import Start, train_together

KINDS = ("bus", "car")


def _rows(count: int) -> list[dict[str, Any]]:
    """Every fifth row lacks the kind, every seventh the speed; the rest lack nothing."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        kind, wet, speed = int(random.integers(2)), bool(random.integers(2)), float(random.normal(50, 10))
        camera = random.normal(0, 0.2, 4)
        camera[0] += 2 * kind
        camera[1] += (speed - 50) / 10
        rows.append(
            {
                "key": f"k{number:03}",
                "split": "test" if number % 4 == 3 else "train",
                "camera": camera.round(3).tolist(),
                "words": "a wet street" if wet else "a dry street",
                "kind": KINDS[kind] if number % 5 else None,
                "weather": ["rain"] if wet else [],
                "speed": round(speed, 2) if number % 7 else None,
            }
        )
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    folder = tmp_path_factory.mktemp("several")
    job: dict[str, Any] = {
        "kind": "preprocess",
        "name": "street",
        "table": str(write_json_lines(folder / "t.jsonl", _rows(400))),
        "key": "key",
        "fields": {
            "camera": {"type": "vector"},
            "words": {"type": "text"},
            "kind": {"type": "label"},
            "weather": {"type": "label", "target": "classes", "classes": ["rain", "snow"]},
            "speed": {"type": "label", "target": "number"},
        },
        "splits": {"by": "column", "column": "split"},
        "output": str(folder / "data"),
    }
    run_stage(load_job(job))
    return folder / "data"


TASKS: dict[str, Any] = {
    "vehicle": {"type": "classify", "label": "kind", "class_weights": "balanced"},
    "sky": {"type": "multilabel", "label": "weather"},
    "pace": {"type": "regress", "label": "speed"},
}


def _job(data: Path, output: Path, changes: dict[str, Any] | None = None, **task: Any) -> TrainJob:
    content: dict[str, Any] = {
        "kind": "train",
        "name": "street",
        "data": {"train": str(data / "train"), "validation": str(data / "test"), "batch_size": 16},
        "model": {
            "fields": {"camera": {}, "words": {}},
            "fusion": {"method": "gated", "dim": 32},
            "task": {"type": "several", "tasks": TASKS, **task},
        },
        "train": {"epochs": 10, "optimizer": {"lr": 3e-3}},
        "output": str(output),
    }
    job = load_job(content, changes or {})
    assert isinstance(job, TrainJob)
    return job


@pytest.mark.ray
def test_each_task_is_learned_scored_and_answered(data: Path, tmp_path: Path) -> None:
    training = plan_training(_job(data, tmp_path / "run", weighting="uncertainty", weights={"pace": 2}))
    assert sorted(training.class_counts) == ["kind"]
    train(training)
    lines = [line for line in read_metrics(training.run) if line["kind"] == "validation"]
    last = lines[-1]
    assert last["vehicle.accuracy"] > 0.95 and last["sky.micro_f1"] > 0.95 and last["pace.mae"] < 5
    assert last["adds/camera"] > 0 and last["adds/words"] > 0, "the figure of the subsets is the loss of all tasks"

    job: dict[str, Any] = {
        "kind": "evaluate",
        "name": "street",
        "checkpoint": str(training.run / "best"),
        "data": str(data / "test"),
        "output": str(tmp_path / "evaluation"),
    }
    result = run_stage(load_job(job))
    found = result["metrics"]["tasks"]
    best = min(lines, key=lambda line: line["loss"])
    assert sorted(found) == ["pace", "sky", "vehicle"]
    for task, figure in (("vehicle", "accuracy"), ("vehicle", "macro_f1"), ("sky", "map"), ("pace", "rmse")):
        assert found[task][figure] == pytest.approx(best[f"{task}.{figure}"], rel=1e-5)
        assert (tmp_path / "evaluation" / task / "report.html").is_file()
    rows = {row["key"]: row for row in _rows(400)}
    tests = [row for row in rows.values() if row["split"] == "test"]
    assert found["vehicle"]["num_unlabelled"] == sum(row["kind"] is None for row in tests)
    assert found["pace"]["num_samples"] == sum(row["speed"] is not None for row in tests)
    assert found["sky"]["num_samples"] == len(tests)
    assert set(found["vehicle"]["subsets"]) == {"camera", "words", "camera+words"}
    assert result["tasks"]["vehicle"]["classes"]["bus"]["f1"] > 0.9

    table = pq.read_table(tmp_path / "evaluation" / "predictions.parquet").to_pylist()
    model = load_predictor(training.run / "best")
    for row in table[:25]:
        true = rows[row["key"]]
        assert row["vehicle.label"] == true["kind"] and row["sky.label"] == true["weather"]
        said = model.predict({name: true[name] for name in ("camera", "words")})
        assert said.label is None and said.tasks is not None
        assert said.tasks["vehicle"].label == row["vehicle.prediction"]
        assert said.tasks["pace"].label == pytest.approx(row["pace.prediction"], rel=1e-4)
        assert list(said.tasks["sky"].label) == row["sky.prediction"]

    predicted = tmp_path / "predicted"
    result = run_stage(load_job({**job, "kind": "predict", "output": str(predicted)}))
    found_rows = {row["key"]: row for row in pq.read_table(predicted / "predictions").to_pylist()}
    for row in table:
        for name in ("vehicle.prediction", "sky.prediction"):
            assert found_rows[row["key"]][name] == row[name]
        assert found_rows[row["key"]]["pace.prediction"] == pytest.approx(row["pace.prediction"], rel=1e-4)
    assert sum(result["classes"]["vehicle"].values()) == len(table)


@pytest.mark.ray
def test_a_compressed_model_answers_all_tasks(data: Path, tmp_path: Path) -> None:
    training = plan_training(_job(data, tmp_path / "run"))
    train(training)
    job: dict[str, Any] = {
        "kind": "compress",
        "name": "street",
        "checkpoint": str(training.run / "best"),
        "calibration_data": str(data / "train"),
        "data": str(data / "test"),
        "gate": {"max_metric_drop": 0.5, "max_size_ratio": 1.5, "min_speedup": 0.01},
        "latency": {"batch_sizes": [1], "rounds": 5},
        "output": str(tmp_path / "compress"),
    }
    result = run_stage(load_job(job))
    assert result["status"] == "done" and result["metrics"]["metric"] == "the worst of all tasks"
    said = load_predictor(tmp_path / "compress").predict({"camera": [2, 0, 0, 0], "words": "a wet street"})
    assert said.tasks is not None and said.tasks["vehicle"].label == "car" and said.tasks["sky"].label == ("rain",)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_two_workers_learn_what_one_would(data: Path, tmp_path: Path, weighting: str) -> None:
    still = {
        "model.fields": {"camera": {"dropout": 0.0}, "words": {"dropout": 0.0}},
        "model.fusion": {"method": "gated", "dim": 16, "dropout": 0.0},
        "train.epochs": 2,
        "train.precision": "fp32",
        "data.batch_size": 15,
    }
    ways: list[tuple[int, dict[str, Any]]] = [
        (1, {}),
        (1, {"train.micro_batches": 4}),
        (2, {}),
        (2, {"train.parallel": "fsdp", "train.micro_batches": 2}),
    ]
    starts = [
        Start(
            plan_training(_job(data, tmp_path / f"run-{number}", still | more, weighting=weighting)),
            workers,
            min_unit=0,
        )
        for number, (workers, more) in enumerate(ways)
    ]
    train_together(starts, tmp_path / "rendezvous")
    first = curve(starts[0].training)
    for start in starts[1:]:
        assert curve(start.training) == pytest.approx(first, abs=1e-4)


def test_the_loss_is_the_weighted_sum_of_those_that_are_there(data: Path, tmp_path: Path) -> None:
    training = plan_training(_job(data, tmp_path / "run", weights={"pace": 3}, weighting="uncertainty"))
    task = training.job.model.task
    assert isinstance(task, SeveralTask)
    torch.manual_seed(0)
    model = build_model(training.job.model, training.preprocessor).eval()
    batch = next(batches(training)).tensors
    with torch.no_grad():
        output = model(batch)
    terms = training_terms(task, training.class_counts, training.classes)
    wanted = torch.zeros(16)
    log_variances = torch.tensor([0.3, -0.2, 0.5])
    output[:, -3:] = log_variances
    places = task.slices(training.preprocessor.fields)
    assert [place.stop - place.start for place in places.values()] == [1, 2, 2]
    assert isinstance(terms, dict)
    for (name, each), log_variance in zip(sorted(task.tasks.items()), log_variances, strict=True):
        own = output[:, places[name]]
        alone = loss_per_sample(
            each,
            own[:, 0] if isinstance(each, RegressTask) else own,
            batch,
            training.preprocessor,
            terms[each.label],
        )
        factor = 0.5 if isinstance(each, RegressTask) else 1.0
        cost = factor * alone * torch.exp(-log_variance) + log_variance / 2
        wanted += torch.where(batch[f"{each.label}.presence"], cost * task.weights.get(name, 1.0), 0.0)
    torch.testing.assert_close(loss_per_sample(task, output, batch, training.preprocessor, terms), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.task.tasks": {"one": TASKS["pace"]}}, r"model\.task.*tasks.*at least 2"),
        ({"model.task.tasks.sky": {"type": "regress", "label": "speed"}}, r"label 'speed' is that of sky, too"),
        (
            {"model.task.tasks": {"quarantine": TASKS["pace"], "sky": TASKS["sky"]}},
            r"tasks\.quarantine: .*name it otherwise",
        ),
        ({"model.task.weights": {"mood": 1}}, r"weights\.mood: there is no such task"),
        ({"model.task.weights": {"pace": 0}}, r"weights\.pace.*greater than 0"),
        ({"model.task.tasks.pace.label": "camera"}, r"'camera' is also an input field"),
        ({"model.task.tasks.pace.label": "mood"}, r"model\.task\.tasks\.pace\.label: the dataset has no field 'mood'"),
        ({"model.task.tasks.pace": {"type": "regress", "label": "kind"}}, r"is that of|needs a label with target"),
        ({"train.best_metric": "accuracy"}, r"best_metric 'accuracy' is no figure of the task several"),
        ({"train.augment": {"mixup": 0.2}}, r"train\.augment\.mixup mixes the labels .* several"),
        ({"train.gradient_modulation": {}}, r"train\.gradient_modulation .* several"),
        (
            {"model.task.tasks.pair": {"type": "retrieve"}},
            r"must be one of classify, multilabel, regress, segment, grid",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((UsageError, RayMMError), match=message):
        plan_training(_job(data, tmp_path / "run", changes))
    assert not (tmp_path / "run").exists()
