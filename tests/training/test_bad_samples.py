"""Bad samples in the training loop, without Ray: counted, quarantined, budgeted; they change nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ray_mm.data.quarantine import list_quarantine
from ray_mm.errors import QuarantineBudgetError
from ray_mm.training.ledger import audit
from ray_mm.training.state import attempt_starts, read_state
from ray_mm.training.tracking import read_metrics
from tests.factories import make_dataset
from tests.training.inprocess import Killed, curve, make_training, newest, train

FIELDS = ("vector", "label", "number")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_bad_samples_are_counted_quarantined_and_change_nothing_else(tmp_path: Path) -> None:
    corrupt = {(3, "vector"), (40, "vector"), (69, "label")}
    make_dataset(tmp_path / "train", 70, FIELDS, num_shards=3, corrupt=corrupt)
    make_dataset(tmp_path / "validation", 20, FIELDS, num_shards=1, seed=1, corrupt={(3, "vector")})
    training = make_training(tmp_path)
    train(training)
    assert read_state(newest(training)).total_quarantined == 6, "three in each of two epochs"
    for epoch in audit(training.run / "ledger", training.schedule, {1: 0}):
        assert epoch.exact and epoch.quarantined.sum() == 3
    assert sorted((one.error.key, one.error.field) for one in list_quarantine(training.quarantine)) == [
        ("sample000003", "vector"),
        ("sample000003", "vector"),
        ("sample000040", "vector"),
        ("sample000069", "label"),
    ]
    validation = [line for line in read_metrics(training.run) if line["kind"] == "validation"]
    assert [line["num_samples"] for line in validation] == [19, 19]


def test_a_batch_in_which_nothing_can_be_read_is_got_over(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 24, FIELDS, corrupt={(i, "vector") for i in range(16)})
    training = make_training(
        tmp_path, **{"data.batch_size": 1, "data.bad_samples.max_rate": 1.0, "model.task.label_smoothing": 0.1}
    )
    train(training)
    losses = [loss for _, loss in curve(training).items()]
    assert losses.count(0.0) == 32 and all(math.isfinite(loss) for loss in losses)


def test_samples_without_a_label_are_met_but_teach_nothing(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 40, FIELDS, missing={"label": 0.5})
    training = make_training(tmp_path, **{"data.batch_size": 40, "train.epochs": 1})
    train(training)
    (epoch,) = audit(training.run / "ledger", training.schedule, {1: 0})
    assert epoch.exact and epoch.trained.sum() == 40


def test_too_many_bad_samples_stop_the_training(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 70, FIELDS, corrupt={(i, "vector") for i in range(0, 70, 10)})
    training = make_training(tmp_path, **{"data.bad_samples.max_count": 3})
    with pytest.raises(QuarantineBudgetError, match=r"[45] of \d+ samples.*max_count 3"):
        train(training)


def test_the_budget_of_an_epoch_goes_on_after_a_resume(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 64, FIELDS, corrupt={(i, "vector") for i in range(64)})
    settings: dict[str, Any] = {"train.checkpoints.every_steps": 1, "data.bad_samples.max_rate": 1.0}
    training = make_training(tmp_path, **settings, **{"data.bad_samples.max_count": 40})
    with pytest.raises(Killed):
        train(training, stop_before=2)
    with pytest.raises(QuarantineBudgetError, match="48 of 48"):
        train(training)
    assert attempt_starts(training.run) == {1: 0, 2: 2}


def test_bad_samples_of_a_validation_are_budgeted_as_well(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 20, FIELDS)
    make_dataset(tmp_path / "validation", 20, FIELDS, corrupt={(3, "vector"), (4, "vector")})
    training = make_training(tmp_path, **{"data.bad_samples.max_count": 1})
    with pytest.raises(QuarantineBudgetError, match="2 of 20 samples"):
        train(training)


@pytest.mark.parametrize("task", [{"type": "classify", "label": "label"}, {"type": "regress", "label": "number"}])
def test_a_validation_in_which_nothing_can_be_scored_is_no_perfect_one(tmp_path: Path, task: dict[str, str]) -> None:
    make_dataset(tmp_path / "train", 20, FIELDS)
    make_dataset(tmp_path / "validation", 20, FIELDS, corrupt={(i, task["label"]) for i in range(20)})
    training = make_training(tmp_path, **{"model.task": task})
    with pytest.raises(QuarantineBudgetError, match=f"none of the 20 validation samples.*no '{task['label']}'"):
        train(training)
    assert not (training.run / "best").exists()


def test_a_dataset_of_which_nothing_can_be_read_is_no_success(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 20, FIELDS, corrupt={(i, "vector") for i in range(20)})
    training = make_training(tmp_path)
    with pytest.raises(QuarantineBudgetError, match=r"none of the 20 samples of data\.train"):
        train(training)
