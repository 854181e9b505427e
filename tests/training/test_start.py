"""What a train job is refused for before Ray starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.errors import CheckpointError, DatasetError, OutputFolderError
from ray_mm.training.train import run_train
from tests.factories import make_dataset
from tests.training.inprocess import Killed, make_training, train

FIELDS = ("vector", "label")


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray_mm.training.train.ray_session", refuse)
    monkeypatch.setattr("ray_mm.training.train._fit", refuse)


@pytest.mark.parametrize("which", ["train", "validation"])
def test_a_dataset_in_which_nothing_is_labelled_is_refused(tmp_path: Path, which: str) -> None:
    for name in ("train", "validation"):
        make_dataset(tmp_path / name, 6, FIELDS, missing={"label": 1.0 if name == which else 0.0})
    with pytest.raises(DatasetError, match=rf"data\.{which}: no sample of .* has the label 'label'"):
        run_train(make_training(tmp_path).job)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_run_whose_data_was_made_anew_is_refused(tmp_path: Path, form: str) -> None:
    make_dataset(tmp_path / "train", 40, FIELDS)
    training = make_training(tmp_path, **{"train.checkpoints.every_steps": 1, "output": form.format(tmp_path / "run")})
    with pytest.raises(Killed):
        train(training, stop_before=2)
    assert isinstance(training.job, TrainJob)
    (training.run / "job.json").write_text(training.job.model_dump_json())
    make_dataset(tmp_path / "train", 40, FIELDS, missing={"vector": 0.2})
    with pytest.raises(CheckpointError, match="was trained on other data"):
        run_train(load_job(training.job.model_dump(mode="json")))  # type: ignore[arg-type]
    assert [path.name for path in (training.run / "attempts").iterdir()] == ["0001.json"]


def test_a_training_goes_on_with_other_limits_but_not_with_other_batches(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 6, FIELDS)
    with pytest.raises(AssertionError, match="Ray was started"):
        run_train(make_training(tmp_path).job)
    for key, value in (("data.bad_samples.max_rate", 0.5), ("data.prefetch_batches", 2), ("resources.workers", 2)):
        with pytest.raises(AssertionError, match="Ray was started"):
            run_train(make_training(tmp_path, **{key: value}).job)
    for key, value in (("data.batch_size", 3), ("data.shuffle.window_chunks", 2), ("train.epochs", 9)):
        with pytest.raises(OutputFolderError, match=key.rsplit(".", 1)[0]):
            run_train(make_training(tmp_path, **{key: value}).job)
