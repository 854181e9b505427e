"""A retrieval from a table to an answer: measurements and what is said of them, and two measurements of the same thing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_mm.checkpoint import load_checkpoint, save_checkpoint
from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.errors import RayMMError, UsageError
from ray_mm.predictor import load_predictor
from ray_mm.search import open_index
from ray_mm.stages import run_stage
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training
from tests.preprocessing.tables import write_json_lines
from tests.training.inprocess import train

COLOURS = ("red", "green", "blue", "black", "white")
SIZES = ("tiny", "small", "large", "huge")


def _rows(count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    centres = random.normal(0, 1, (len(COLOURS) + len(SIZES), 6))
    rows = []
    for number in range(count):
        colour, size = random.integers(len(COLOURS)), random.integers(len(SIZES))
        thing = centres[colour] + centres[len(COLOURS) + size]
        first, second = (thing + random.normal(0, 0.1, 6) for _ in range(2))
        rows.append(
            {
                "key": f"k{number:03}",
                "split": "test" if number % 4 == 3 else "train",
                "first": first.round(3).tolist(),
                "second": second.round(3).tolist() if number % 7 else None,
                "words": f"a {SIZES[size]} {COLOURS[colour]} thing" if number % 5 else None,
            }
        )
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    folder = tmp_path_factory.mktemp("retrieval")
    job: dict[str, Any] = {
        "kind": "preprocess",
        "name": "things",
        "table": str(write_json_lines(folder / "t.jsonl", _rows(480))),
        "key": "key",
        "fields": {"first": {"type": "vector"}, "second": {"type": "vector"}, "words": {"type": "text"}},
        "splits": {"by": "column", "column": "split"},
        "output": str(folder / "data"),
    }
    run_stage(load_job(job))
    return folder / "data"


def _job(data: Path, output: Path, fields: list[str], **task: Any) -> TrainJob:
    job = load_job(
        {
            "kind": "train",
            "name": "things",
            "data": {"train": str(data / "train"), "validation": str(data / "test"), "batch_size": 32},
            "model": {
                "fields": {name: {} for name in fields},
                "fusion": {"method": "gated", "dim": 32},
                "task": {"type": "retrieve", "dim": 16, **task},
            },
            "train": {"epochs": 8, "optimizer": {"lr": 3e-3}},
            "output": str(output),
        }
    )
    assert isinstance(job, TrainJob)
    return job


@pytest.mark.ray
def test_what_is_said_of_a_thing_finds_it_and_the_other_way_round(data: Path, tmp_path: Path) -> None:
    training = plan_training(_job(data, tmp_path / "run", ["first", "words"]))
    train(training)
    lines = [line for line in read_metrics(training.run) if line["kind"] == "validation"]
    # Of twenty different things each is there about five times.
    assert lines[-1]["recall_at_10"] > 0.9 > lines[0]["recall_at_10"]

    evaluation = tmp_path / "evaluation"
    job: dict[str, Any] = {
        "kind": "evaluate",
        "name": "things",
        "checkpoint": str(training.run / "best"),
        "data": str(data / "test"),
        "output": str(evaluation),
    }
    metrics = run_stage(load_job(job))["metrics"]
    best = max(lines, key=lambda line: (line["mrr"], -line["loss"]))
    for name in ("mrr", "recall_at_1", "recall_at_5", "recall_at_10"):
        assert metrics[name] == pytest.approx(best[name], abs=1e-6), "a validation has the definitions of an evaluation"
    low, high = metrics["interval"]["recall_at_10"]
    assert low <= metrics["recall_at_10"] <= high <= 1
    assert list(metrics["subsets"]) == ["first+words"] and metrics["num_unlabelled"] > 0
    assert sorted(metrics["ways"]) == ["first to words", "words to first"]
    assert metrics["baseline"]["recall_at_10"] == pytest.approx(10 / metrics["num_samples"])
    page = (evaluation / "report.html").read_text()
    assert "Worst searches" in page and "with one side only" in page and "a large " in page

    table = pq.read_table(evaluation / "predictions.parquet").to_pylist()
    rows = {row["key"]: row for row in _rows(480)}
    model = load_predictor(training.run / "best")
    for row in table[:20]:
        given = {name: rows[row["key"]][name] for name in ("first", "words")}
        said = model.predict(given)
        assert said.label is None and said.embeddings is not None
        assert (row["embedding.words"] is None) == (given["words"] is None) == ("words" not in said.embeddings)
        np.testing.assert_allclose(row["embedding.first"], said.embeddings["first"], atol=1e-5)
        assert np.linalg.norm(said.embeddings["first"]) == pytest.approx(1, abs=1e-5)

    index = open_index(evaluation)
    embedded = {row["key"]: row["embedding.first"] for row in table}
    (said,) = model.predict_many([{"words": "a huge red thing"}])
    assert said.embeddings is not None
    cosines = {key: float(np.dot(vector, said.embeddings["words"])) for key, vector in embedded.items()}
    nearest = sorted(cosines, key=lambda key: -cosines[key])
    hits = index.search({"words": "a huge red thing"}, top=7)
    assert [hit.key for hit in hits] == nearest[:7]
    assert [hit.cosine for hit in hits] == pytest.approx([cosines[key] for key in nearest[:7]], abs=1e-5)
    assert all(rows[hit.key]["words"] in ("a huge red thing", None) for hit in hits[:3])
    # Only what has words can be found by its words; by a side among itself it is found first.
    some = next(row for row in table if row["embedding.words"] is not None)
    found = index.search({"words": rows[some["key"]]["words"]}, "words", top=500)
    assert len(found) == sum(row["embedding.words"] is not None for row in table)
    assert rows[found[0].key]["words"] == rows[some["key"]]["words"] and found[0].cosine == pytest.approx(1, abs=1e-4)
    for sample, among, message in (
        ({}, None, "this has none"),
        ({"first": [0.0] * 6, "words": "a"}, None, "this has first and words"),
        ({"camera": 1}, None, "camera: the model has no such field"),
        ({"words": ""}, None, "the query has nothing of words"),
        ({"words": "a"}, "third", "--among: the model has no side 'third'"),
    ):
        with pytest.raises(UsageError, match=message):
            index.search(sample, among)

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ray_mm", "search", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    predicted = tmp_path / "predicted"
    job = {**job, "kind": "predict", "output": str(predicted), "rows_per_file": 50}
    result = run_stage(load_job(job))
    assert result["metrics"]["num_predicted"] == len(table) and "classes" not in result
    rows_found = pq.read_table(predicted / "predictions").to_pylist()
    assert [row["key"] for row in rows_found] == [row["key"] for row in table]
    for row, before in zip(rows_found, table, strict=True):
        assert row["readable"] and (row["embedding.words"] is None) == (before["embedding.words"] is None)
        np.testing.assert_allclose(row["embedding.first"], before["embedding.first"], atol=1e-5)
    assert [hit.key for hit in open_index(predicted).search({"words": "a huge red thing"}, top=7)] == nearest[:7]

    done = ask(str(evaluation), "--text", "a huge red thing", "--top", "2", "--json")
    assert [each["key"] for each in json.loads(done.stdout)] == nearest[:2], done.stderr
    np.save(tmp_path / "first.npy", np.array(rows[nearest[0]]["first"], np.float32))
    done = ask(str(evaluation), "--query", f"first={tmp_path / 'first.npy'}", "--among", "first", "--top", "1")
    assert nearest[0] in done.stdout and "1.000" in done.stdout, done.stderr
    for arguments, message in (
        ([], "give something to search by"),
        (["--image", "a.png"], "--image: the model has no field of type image"),
        (["--query", "first"], "expected FIELD=VALUE"),
        (["--query", "first=none.npy"], "there is no file none.npy"),
    ):
        done = ask(str(evaluation), *arguments)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    done = ask(str(tmp_path), "--text", "a")
    assert done.returncode == 2 and "is no finished run of kind predict or evaluate" in done.stderr
    retrained = load_checkpoint(training.run / "best")
    state = {name: tensor * 2 for name, tensor in retrained.state.items()}
    save_checkpoint(training.run / "best", state, retrained.config, retrained.preprocessor, retrained.metrics)
    with pytest.raises(UsageError, match="is another one than made its embeddings"):
        open_index(evaluation)


@pytest.mark.ray
def test_one_encoder_tells_whether_two_measurements_are_of_the_same_thing(data: Path, tmp_path: Path) -> None:
    training = plan_training(_job(data, tmp_path / "run", ["first", "second"], shared=True, loss="siglip"))
    train(training)
    last = [line for line in read_metrics(training.run) if line["kind"] == "validation"][-1]
    assert last["recall_at_10"] > 0.9
    model = load_predictor(training.run / "best")
    row = _rows(3)[1]
    found = model.predict({"first": row["first"], "second": row["first"]}).embeddings
    assert found is not None
    np.testing.assert_allclose(found["first"], found["second"], atol=1e-6)


@pytest.mark.ray
def test_a_compressed_model_finds_as_much(data: Path, tmp_path: Path) -> None:
    training = plan_training(_job(data, tmp_path / "run", ["first", "words"]))
    train(training)
    job: dict[str, Any] = {
        "kind": "compress",
        "name": "things",
        "checkpoint": str(training.run / "best"),
        "calibration_data": str(data / "train"),
        "data": str(data / "test"),
        "gate": {"max_metric_drop": 0.05, "max_size_ratio": 1.5, "min_speedup": 0.01},
        "latency": {"batch_sizes": [1], "rounds": 5},
        "output": str(tmp_path / "compress"),
    }
    result = run_stage(load_job(job))
    assert result["metrics"]["metric"] == "recall_at_10" and result["status"] == "done"
    small = load_predictor(tmp_path / "compress").predict({"words": "a tiny blue thing"}).embeddings
    assert small is not None and np.linalg.norm(small["words"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        (["first"], {}, r"model\.task\.type: retrieve finds .* this model has one field, 'first'"),
        (
            ["first", "words"],
            {"model.task.towers": {"a": ["first", "words"]}},
            r"model\.task\.type: .*has one tower, 'a'",
        ),
        (
            ["first", "words"],
            {"model.task.towers": {"a": ["first"], "b": ["camera"]}},
            r"towers\.b: 'camera' is no input",
        ),
        (
            ["first", "second", "words"],
            {"model.task.towers": {"a": ["first"], "b": ["words"]}},
            r"'second' .* no tower",
        ),
        (["first", "words"], {"model.task.towers": {"a": ["first"], "b": ["first"]}}, r"'first' stands in a and in b"),
        (["first", "words"], {"model.task.shared": True}, r"fields.*other settings|not decoded alike"),
        (["first", "words"], {"train.baselines": True}, r"train\.baselines trains each field alone"),
        (["first", "words"], {"train.micro_batches": 2}, r"train\.micro_batches 2: .*can't be cut"),
        (["first", "words"], {"data.batch_size": 1}, r"data\.batch_size 1"),
        (["first", "words"], {"train.best_metric": "accuracy"}, r"best_metric 'accuracy' is no figure of .* retrieve"),
        (["first", "words"], {"train.augment": {"mixup": 0.2}}, r"train\.augment\.mixup"),
        (["first", "words"], {"model.fusion": {"method": "film", "condition": "words"}}, r"model\.fusion\.condition"),
        (["first", "words"], {"model.task.temperature": 0}, r"temperature"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    data: Path, tmp_path: Path, fields: list[str], changes: dict[str, Any], message: str
) -> None:
    content = _job(data, tmp_path / "run", ["first", "words"]).model_dump(mode="json", exclude_unset=True)
    content["model"]["fields"] = {name: {} for name in fields}
    with pytest.raises((UsageError, RayMMError), match=message):
        job = load_job(content, changes)
        assert isinstance(job, TrainJob)
        plan_training(job)
    assert not (tmp_path / "run").exists()
