"""A run that goes on although its job says something else now: what differs is listed, and taken where the weights allow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_mm.config.train import SETTLED
from ray_mm.errors import CheckpointError, OutputFolderError, UsageError
from ray_mm.run_folder import check_output, open_run_folder
from ray_mm.stages import run_stage
from ray_mm.training.ledger import audit
from ray_mm.training.plan import Training
from ray_mm.training.resume import force_resume
from ray_mm.training.state import attempt_starts, read_state
from ray_mm.training.tracking import read_metrics
from tests.config.jobs import SMALLEST
from tests.factories import make_dataset
from tests.training.inprocess import Killed, curve, make_training, newest, train

FIELDS = ("vector", "label", "number")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """``train`` (70 samples), ``other`` (50) and ``validation`` (20)."""
    make_dataset(tmp_path / "train", 70, FIELDS, num_shards=3)
    make_dataset(tmp_path / "other", 50, FIELDS, num_shards=2, seed=2)
    make_dataset(tmp_path / "validation", 20, FIELDS, num_shards=1, seed=1)
    return tmp_path


def _interrupted(data: Path, before_item: int = 10, **settings: Any) -> Training:
    """A training of three epochs of five steps and two batches of validation, killed before an item."""
    training = make_training(data, **{"train.epochs": 3, "train.checkpoints.every_steps": 1, **settings})
    open_run_folder(training.job, SETTLED)
    with pytest.raises(Killed):
        train(training, stop_before=before_item)
    return training


def _forced(data: Path, **settings: Any) -> Training:
    training = make_training(data, **{"train.epochs": 3, "train.checkpoints.every_steps": 1, **settings})
    before = check_output(training.job)
    assert before is not None
    force_resume(training, SETTLED, before)
    open_run_folder(training.job)
    return training


def test_all_that_differs_is_listed(data: Path) -> None:
    _interrupted(data)
    other = make_training(
        data, **{"train.epochs": 4, "train.optimizer.lr": 0.5, "train.optimizer.name": "muon", "data.batch_size": 8}
    )
    with pytest.raises(OutputFolderError) as caught:
        check_output(other.job, SETTLED)
    told = str(caught.value)
    for text in (
        "data.batch_size was 16 and is now 8",
        "train.epochs was 3 and is now 4",
        "train.optimizer.lr was 0.001 and is now 0.5",
        "train.optimizer.name was 'adamw' and is now 'muon'",
        "set them back, or go on all the same: ray-mm run JOB --resume force",
    ):
        assert text in told


def test_with_the_order_as_it_was_it_goes_on_at_the_same_step(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calm = _interrupted(data, output=str(data / "calm"))
    train(calm)
    _interrupted(data)
    settings = {"train.optimizer.lr": 1e-4, "train.epochs": 4, "model.fusion.dropout": 0.5}
    training = _forced(data, **settings)
    assert "these settings are others now: model, train.epochs, train.optimizer." in capsys.readouterr().err
    assert read_state(newest(training)).step == 8
    train(training)
    assert attempt_starts(training.run) == {1: 0, 2: 10}
    assert all(epoch.exact for epoch in audit(training.run / "ledger", training.schedule, attempt_starts(training.run)))
    losses, before = curve(training), curve(calm)
    assert [step for kind, step in losses if kind == "train"] == list(range(1, 21))
    assert losses["train", 8] == pytest.approx(before["train", 8]) and losses["train", 9] != before["train", 9]
    assert [line["lr"] for line in read_metrics(training.run) if line["step"] == 9] < [1e-4]
    # The next time nothing differs.
    check_output(training.job, SETTLED)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"data.batch_size": 7}, 10),
        ({"data.train": "other"}, 4),
        ({"seed": 5}, 5),
        ({"data.validation": "other"}, 5),
    ],
)
def test_with_another_order_its_epoch_begins_anew(
    data: Path, settings: dict[str, Any], steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    _interrupted(data)
    settings = {key: str(data / value) if value == "other" else value for key, value in settings.items()}
    training = _forced(data, **settings)
    assert "epoch 2 begins anew" in capsys.readouterr().err
    state = read_state(newest(training))
    assert (state.step, state.next_item, state.trained) == (steps, training.schedule.items_per_epoch, 0)
    assert newest(training).name == f"step-{steps:08d}" and len(list((training.run / "checkpoints").iterdir())) == 1
    assert (state.best == {}) == ("data.validation" in settings)
    train(training)
    audits = audit(training.run / "ledger", training.schedule, attempt_starts(training.run))
    assert [epoch.exact for epoch in audits] == [False, True, True], (
        "the first is counted in the ledger that was put aside"
    )
    aside = list((training.run / "ledger").glob("before-0002/attempt-0001-*"))
    assert len(aside) == 1
    assert [line["step"] for line in read_metrics(training.run) if line["kind"] == "validation"][-2:] == [
        2 * steps,
        3 * steps,
    ]


def test_data_that_was_made_anew_is_other_data(data: Path) -> None:
    _interrupted(data)
    make_dataset(data / "train", 40, FIELDS, num_shards=2, seed=7)
    with pytest.raises(CheckpointError, match=r"other data .* --resume force"):
        train(make_training(data, **{"train.epochs": 3}))
    training = _forced(data)
    assert read_state(newest(training)).step == training.schedule.train_batches == 3
    train(training)


def test_a_run_that_was_done_goes_on_with_more_epochs(data: Path) -> None:
    training = make_training(data)
    open_run_folder(training.job)
    train(training)
    (training.run / "result.json").write_text(json.dumps({"status": "done"}))
    longer = _forced(data, **{"train.epochs": 3})
    assert not (longer.run / "result.json").exists()
    train(longer)
    assert attempt_starts(longer.run) == {1: 0, 2: 14}
    assert read_state(newest(longer)).step == 15


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"model.fusion.dim": 8}, r"head\S* is \[\d+(, 16)?\] in it and \[\d+(, 8)?\] in the model|tensors more"),
        ({"model.fields": {"number_": {}}}, "number_"),
        ({"train.optimizer.name": "muon"}, "train.optimizer.name was adamw"),
        ({"train.ema": 0.9}, "train.ema was unset"),
    ],
)
def test_what_the_weights_do_not_fit_is_refused_and_changes_nothing(
    data: Path, settings: dict[str, Any], match: str
) -> None:
    before = _interrupted(data)
    job = (before.run / "job.json").read_text()
    saved = (newest(before) / "training.json").read_text()
    with pytest.raises(UsageError, match=match):
        _forced(data, **settings)
    assert (before.run / "job.json").read_text() == job
    assert (newest(before) / "training.json").read_text() == saved


def test_nothing_is_forced_where_nothing_differs(data: Path) -> None:
    training = _interrupted(data)
    saved = (newest(training) / "training.json").read_text()
    _forced(data)
    assert (newest(training) / "training.json").read_text() == saved


def test_only_a_training_can_be_forced(tmp_path: Path) -> None:
    from ray_mm.config.load import load_job

    with pytest.raises(UsageError, match=r"--resume force: only a training .* this is one of kind evaluate"):
        run_stage(load_job(SMALLEST["evaluate"]), resume="force")
    with pytest.raises(UsageError, match="--resume: takes exact or force, found 'yes'"):
        run_stage(load_job(SMALLEST["train"]), resume="yes")
