"""The train stage as a user runs it: a job in, a run folder out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_mm.checkpoint import load_checkpoint, resolve_checkpoint
from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.errors import DatasetError, OutputFolderError, QuarantineBudgetError, UsageError
from ray_mm.training.ledger import audit
from ray_mm.training.state import attempt_starts
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training, run_train
from tests.factories import edit_manifest, make_dataset

FIELDS = ("image", "vector", "label")


def train_job(folder: Path, **overrides: Any) -> TrainJob:
    """A small job on the datasets ``train`` and ``validation`` in a folder."""
    content = {
        "kind": "train",
        "name": "small",
        "data": {"train": str(folder / "train"), "validation": str(folder / "validation"), "batch_size": 32},
        "model": {"fields": {"image": {}, "vector": {}}, "task": {"type": "classify", "label": "label"}},
        "train": {"epochs": 2, "log_every_steps": 1},
        "output": str(folder / "run"),
    }
    content["model"]["fusion"] = {"method": "gated", "dim": 32}  # type: ignore[index]
    job = load_job(content, overrides)
    assert isinstance(job, TrainJob)
    return job


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "train", num_samples=150, num_shards=2, fields=FIELDS, seed=0, missing={"image": 0.2})
    make_dataset(tmp_path / "validation", num_samples=40, num_shards=1, fields=FIELDS, seed=1)
    return tmp_path


@pytest.mark.ray
def test_a_training_leaves_checkpoints_metrics_and_an_exact_ledger(local_ray: None, data: Path) -> None:
    job = train_job(data)
    result = run_train(job)
    run = data / "run"

    assert result["status"] == "done"
    assert result["metrics"]["steps"] == 10
    assert json.loads((run / "result.json").read_text()) == result
    assert load_checkpoint(run / "last").config == job.model
    assert resolve_checkpoint(run) == run / "best"
    lines = read_metrics(run)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 11))
    assert [line["epoch"] for line in lines if line["kind"] == "validation"] == [1, 2]
    assert lines[-1]["num_samples"] == 40
    schedule = plan_training(job).schedule
    assert all(epoch.exact for epoch in audit(run / "ledger", schedule, attempt_starts(run)))

    # The same command again has nothing to do.
    assert run_train(job)["status"] == "unchanged"
    assert attempt_starts(run) == {1: 0}


@pytest.mark.ray
def test_tf32_is_refused_where_there_is_no_gpu(local_ray: None, data: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.precision: tf32 .* the workers have none"):
        run_train(train_job(data, **{"train.precision": "tf32"}))
    assert not (data / "run" / "attempts").exists()


@pytest.mark.ray
def test_with_decoded_samples_kept_it_learns_the_same(
    local_ray: None, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # One that holds a part of them; that one which holds all is whole after a restart is seen in tests/cluster.
    flips = {"data.fields": {"image": {"type": "image", "random_flip": 0.5}}, "train.epochs": 3}
    run_train(train_job(data, **flips))
    assert "hold" not in capsys.readouterr().err
    small = {"data.cache.decoded": {"folder": str(data / "cache"), "size": "120kB"}}
    run_train(train_job(data, **flips, **small, output=str(data / "cached")))
    assert "data.cache.decoded.size: 120.0 kB hold" in " ".join(capsys.readouterr().err.split())
    plain, cached = read_metrics(data / "run"), read_metrics(data / "cached")
    assert [line["loss"] for line in cached] == pytest.approx([line["loss"] for line in plain], rel=1e-5)
    assert not any("cached" in line for line in plain)
    first, *later = (
        [line["cached"] for line in cached if line.get("epoch") == epoch and "cached" in line] for epoch in (1, 2, 3)
    )
    assert set(first) == {0} and all(0.5 < sum(shares) / len(shares) < 0.7 for shares in later)


@pytest.mark.ray
def test_datasets_are_mixed_classes_balanced_and_parts_read(local_ray: None, data: Path) -> None:
    make_dataset(data / "more", num_samples=60, num_shards=2, fields=FIELDS, seed=2)
    sources = [
        {"path": str(data / "train"), "require": ["image"], "weight": 1},
        {"path": str(data / "more"), "weight": 2, "fraction": 0.5},
    ]
    settings = {
        "data.train": sources,
        "data.validation": {"path": str(data / "validation"), "limit": 10},
        "data.balance": {"label": "label"},
        "data.epoch_samples": 96,
    }
    job = train_job(data, **settings)
    result = run_train(job)
    assert result["metrics"]["steps"] == 6 and result["metrics"]["num_samples"] == 10
    schedule = plan_training(job).schedule
    assert all(epoch.exact for epoch in audit(data / "run" / "ledger", schedule, attempt_starts(data / "run")))
    sources[1]["weight"] = 3
    with pytest.raises(OutputFolderError, match=r"data\.train was"):
        run_train(train_job(data, **settings))


@pytest.mark.ray
def test_corrupt_samples_are_quarantined_counted_and_budgeted(local_ray: None, tmp_path: Path) -> None:
    corrupt = {(7, "image"), (90, "image")}
    make_dataset(tmp_path / "train", num_samples=150, num_shards=2, fields=FIELDS, seed=0, corrupt=corrupt)
    make_dataset(tmp_path / "validation", num_samples=40, num_shards=1, fields=FIELDS, seed=1)
    job = train_job(tmp_path)
    result = run_train(job)

    assert result["metrics"]["num_quarantined"] == 4, "two samples in each of two epochs"
    records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "quarantine").glob("*.json")]
    assert sorted(record["key"] for record in records) == ["sample00007", "sample00090"] or len(records) == 2
    schedule = plan_training(job).schedule
    for epoch in audit(tmp_path / "run" / "ledger", schedule, attempt_starts(tmp_path / "run")):
        assert epoch.exact
        assert epoch.quarantined.sum() == 2

    strict = train_job(tmp_path, **{"data.bad_samples.max_count": 1, "output": str(tmp_path / "strict")})
    with pytest.raises(QuarantineBudgetError, match="max_count 1"):
        run_train(strict)


def test_what_does_not_fit_is_refused_before_ray_starts(data: Path) -> None:
    cases: list[tuple[dict[str, Any], type[UsageError], str]] = [
        ({"data.train": str(data / "nowhere")}, DatasetError, "nowhere"),
        ({"model.task.label": "digit"}, UsageError, "digit"),
        ({"model.fields.image.encoder": "pointnet"}, UsageError, "model.fields.image.encoder"),
        ({"model.fields.sound": {}}, UsageError, "sound"),
    ]
    for overrides, error, text in cases:
        with pytest.raises(error, match=text):
            run_train(train_job(data, **overrides))
        assert not (data / "run").exists(), "nothing is half-written"


def test_a_newer_dataset_is_refused(data: Path) -> None:
    edit_manifest(data / "train", lambda content: content.update(version=99))
    with pytest.raises(DatasetError, match="99"):
        run_train(train_job(data))


def test_an_output_folder_of_another_job_is_refused(data: Path) -> None:
    run = data / "run"
    run.mkdir()
    (run / "job.json").write_text(json.dumps({"kind": "evaluate", "name": "other"}))
    with pytest.raises(OutputFolderError, match="other"):
        run_train(train_job(data))
    (run / "job.json").write_text(train_job(data).model_dump_json())
    # A setting that shapes the model must not be taken and then ignored because a training is there already.
    for key, value in {"train.optimizer.lr": 0.5, "train.modality_dropout": 0.4, "data.batch_size": 16}.items():
        with pytest.raises(OutputFolderError, match=key.replace(".lr", "").replace(".", r"\.")):
            run_train(train_job(data, **{key: value}))
