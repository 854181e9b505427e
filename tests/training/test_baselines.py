"""Each field alone, with the same budget, beside the model of all fields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_mm.checkpoint import load_checkpoint, resolve_checkpoint
from ray_mm.errors import UsageError
from ray_mm.stages import run_stage
from ray_mm.training.baselines import baseline_job, comparison
from tests.factories import make_dataset
from tests.training.test_train import train_job


@pytest.fixture
def data(tmp_path: Path) -> Path:
    fields = ("image", "vector", "label")
    make_dataset(tmp_path / "train", num_samples=64, num_shards=1, fields=fields, seed=0)
    make_dataset(tmp_path / "validation", num_samples=32, num_shards=1, fields=fields, seed=1)
    return tmp_path


@pytest.mark.ray
def test_each_field_is_trained_alone_and_what_is_done_is_not_done_again(
    local_ray: None, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = train_job(data, **{"train.epochs": 1})
    alone = run_stage(job)
    assert "baselines" not in alone["metrics"]
    # Asked for later: the training itself is done.
    job = train_job(data, **{"train.epochs": 1, "train.baselines": True})
    result = run_stage(job)
    assert result["status"] == "unchanged"
    found = result["metrics"]["baselines"]
    assert set(found) == {"image", "vector"}
    kept = json.loads((data / "run" / "result.json").read_text())
    assert kept["status"] == "done" and kept["metrics"]["baselines"] == found
    for field, metrics in found.items():
        checkpoint = load_checkpoint(resolve_checkpoint(data / "run" / "baselines" / field))
        assert list(checkpoint.config.fields) == [field]
        assert metrics["steps"] == result["metrics"]["steps"] and 0 <= metrics["accuracy"] <= 1
    said = capfd.readouterr().err
    assert "accuracy: all fields" in said and "image alone" in said and "vector alone" in said
    before = {field: (data / "run" / "baselines" / field / "result.json").stat().st_mtime_ns for field in found}
    assert run_stage(job)["metrics"]["baselines"] == found
    assert {field: (data / "run" / "baselines" / field / "result.json").stat().st_mtime_ns for field in found} == before


def test_a_baseline_has_the_same_budget_and_nothing_that_needs_another_field(data: Path) -> None:
    job = train_job(
        data,
        **{
            "model.fusion": {"method": "film", "condition": "image", "dim": 32},
            "train.baselines": True,
            "train.profile": {},
            "train.gradient_modulation": {},
            "train.freeze": {"encoders.image": 0.5, "head": 0.1},
            "train.optimizer.parts": {"encoders.vector": 0.1, "fusion": 0.5},
            "train.augment": {"fields": {"image": {"color": {}}}, "cutmix": 0.5},
        },
    )
    blended = train_job(data, **{"train.baselines": True, "train.gradient_blending": {}})
    vector, image = baseline_job(job, "vector"), baseline_job(job, "image")
    for alone in (vector, image):
        assert (alone.data, alone.seed, alone.resources) == (job.data, job.seed, job.resources)
        assert (alone.train.epochs, alone.train.schedule) == (job.train.epochs, job.train.schedule)
        assert alone.train.gradient_modulation is None
        assert baseline_job(blended, "vector").train.gradient_blending is None
        assert alone.train.modality_dropout == 0 and not alone.train.baselines and alone.train.profile is None
        assert alone.model.fusion.model_dump() | {"condition": "image"} == job.model.fusion.model_dump()
    assert vector.train.freeze == {"head": 0.1} and image.train.freeze == job.train.freeze
    assert vector.train.optimizer.parts == job.train.optimizer.parts and image.train.optimizer.parts == {"fusion": 0.5}
    assert vector.train.augment is not None and image.train.augment is not None
    # There is no rectangle to be cut out of a vector.
    assert not vector.train.augment.fields and vector.train.augment.cutmix is None
    assert vector.train.augment.mixup == 0.5 and image.train.augment == job.train.augment
    assert vector.output == f"{job.output}/baselines/vector" and vector.name == "small-vector"


def test_a_model_that_is_no_better_than_its_best_field_is_told_so() -> None:
    baselines = {"image": {"accuracy": 0.9}, "vector": {"accuracy": 0.7}}
    worse = comparison("accuracy", {"accuracy": 0.88, "baselines": baselines}, higher_is_better=True)
    assert "all fields 88.0%; image alone 90.0%, vector alone 70.0%" in worse and "no better than image alone" in worse
    better = comparison("accuracy", {"accuracy": 0.95, "baselines": baselines}, higher_is_better=True)
    assert "no better" not in better
    errors = {"image": {"rmse": 2.0}, "vector": {"rmse": 3.0}}
    assert "no better" not in comparison("rmse", {"rmse": 1.5, "baselines": errors}, higher_is_better=False)
    assert "no better than image alone" in comparison(
        "rmse", {"rmse": 2.0, "baselines": errors}, higher_is_better=False
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.fields": {"image": {}}}, "this model has one field"),
        ({"train.freeze": {"encoders.image": 1, "fusion": 1, "head": 1}}, "of a model that has 'image' alone"),
    ],
)
def test_baselines_that_make_no_sense_are_refused(data: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_job(data, **{"train.baselines": True, **changes})


def test_without_a_validation_the_losses_are_compared() -> None:
    text = comparison(
        "train_loss", {"train_loss": 0.5, "baselines": {"image": {"train_loss": 0.75}}}, higher_is_better=False
    )
    assert text == "training loss at the end: all fields 0.5; image alone 0.75."
