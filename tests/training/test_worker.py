"""The training loop, without Ray: its curve, its resume, what it counts and when it stops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_mm.checkpoint import load_checkpoint
from ray_mm.data.loader import LoadedBatch
from ray_mm.errors import CheckpointError, OrderError, UsageError
from ray_mm.training.ledger import audit
from ray_mm.training.parallel import Ranks
from ray_mm.training.state import attempt_starts, begin_attempt, latest_checkpoint, read_state
from ray_mm.training.tracking import read_metrics
from ray_mm.training.worker import is_better, run_worker
from tests.factories import edit_manifest, make_dataset
from tests.training.inprocess import Killed, batches, curve, make_training, newest, train

FIELDS = ("vector", "label", "number")
ONE = Ranks(0, 1, torch.device("cpu"))
GOLDEN = [
    *(1.25099, 0.82848, 0.49411, 0.39163, 0.36709),
    *(0.26686, 0.15808, 0.14888, 0.15550, 0.13165),
    *(0.11210, 0.12693, 0.11658, 0.17027, 0.10908),
]
VALIDATION = 0.20623

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """``train`` (70 samples) and ``validation`` (20 samples)."""
    make_dataset(tmp_path / "train", 70, FIELDS, num_shards=3)
    make_dataset(tmp_path / "validation", 20, FIELDS, num_shards=1, seed=1)
    return tmp_path


# --- the curve


def test_the_loss_curve_is_what_it_was(data: Path) -> None:
    # Who changes it on purpose says so in the commit, and pins the new one.
    # A dataset's own digest, and so its order, changes with the version of the library that wrote its pictures.
    edit_manifest(data / "train", lambda content: content.update(digest="golden"))
    training = make_training(data, **{"train.optimizer.lr": 0.01, "train.epochs": 3})
    train(training)
    losses = [line["loss"] for line in read_metrics(training.run) if line["kind"] == "train"]
    assert losses == pytest.approx(GOLDEN, abs=1e-4)
    assert read_metrics(training.run)[-1]["loss"] == pytest.approx(VALIDATION, abs=1e-4)


def test_every_line_says_where_the_training_is(data: Path) -> None:
    training = make_training(data)
    train(training)
    lines = read_metrics(training.run)
    assert [(line["kind"], line["step"], line["epoch"]) for line in lines] == [
        *(("train", step, 1) for step in range(1, 6)),
        ("validation", 5, 1),
        *(("train", step, 2) for step in range(6, 11)),
        ("validation", 10, 2),
    ]
    shares = {"data_wait", "data_transfer", "read_cores", "decode_cores", "queued_batches"}
    assert {"loss", "lr", "samples_per_s", "seconds", "first_batch_s", *shares} < lines[0].keys()
    assert [("first_batch_s" in line) for line in lines] == [True, *[False] * 11]
    assert lines[5]["num_samples"] == 20
    assert all(line["seconds"] > 0 and 0 <= line["data_wait"] <= 1 for line in lines if line["kind"] == "train")


def test_lines_are_means_since_the_line_before_and_an_epoch_ends_with_one(data: Path) -> None:
    each, few = make_training(data, "each"), make_training(data, "few", **{"train.log_every_steps": 2})
    train(each)
    train(few)
    losses = [loss for (kind, _), loss in curve(each).items() if kind == "train"]
    sizes = [16, 16, 16, 16, 6] * 2
    found = {step: loss for (kind, step), loss in curve(few).items() if kind == "train"}
    assert list(found) == [2, 4, 5, 6, 8, 10]
    since = 0
    for step, loss in found.items():
        assert loss == pytest.approx(np.average(losses[since:step], weights=sizes[since:step]), abs=1e-6)
        since = step


def test_the_last_line_of_an_epoch_tells_of_all_its_steps(data: Path) -> None:
    training = make_training(data, **{"train.log_every_steps": 2})
    train(training)
    lines = [line for line in read_metrics(training.run) if line["kind"] == "train"]
    assert [line["step"] for line in lines if "epoch_loss" in line] == [5, 10]
    # Steps 1, 2 | 3, 4 | 5, and 6 | 7, 8 | 9, 10: the last of the five has 6 samples.
    for told, sizes in ((lines[:3], (32, 32, 6)), (lines[3:], (16, 32, 22))):
        last, seconds = told[-1], [size / line["samples_per_s"] for size, line in zip(sizes, told, strict=True)]
        assert last["epoch_loss"] == pytest.approx(np.average([line["loss"] for line in told], weights=sizes))
        assert last["epoch_samples_per_s"] == pytest.approx(70 / sum(seconds), rel=1e-3)
        assert last["epoch_data_wait"] == 0


def test_a_regression_is_scored_in_its_own_unit(data: Path) -> None:
    training = make_training(
        data, **{"model.task": {"type": "regress", "label": "number"}, "train.epochs": 8, "train.optimizer.lr": 0.01}
    )
    train(training)
    first, *_, last = (line for line in read_metrics(training.run) if line["kind"] == "validation")
    assert first.keys() == {"kind", "step", "time", "epoch", "loss", "mae", "rmse", "num_samples"}
    # Numbers lie around 0, 10 and 20: guessing their mean is off by 8.
    assert 0 < last["mae"] < last["rmse"] < 4
    deviation = training.preprocessor.statistics["number"].std[0]
    assert last["rmse"] == pytest.approx(deviation * math.sqrt(last["loss"]), rel=1e-4)


# --- checkpoints and resume


@pytest.mark.parametrize("inputs", [("vector",), ("image", "vector")])
def test_a_training_that_was_killed_in_mid_epoch_goes_on_as_if_nothing_had_been(
    tmp_path: Path, inputs: tuple[str, ...]
) -> None:
    make_dataset(tmp_path / "train", 70, (*inputs, "label"), num_shards=3, missing={inputs[-1]: 0.2})
    make_dataset(tmp_path / "validation", 20, (*inputs, "label"), num_shards=1, seed=1)
    settings: dict[str, Any] = {"train.checkpoints.every_steps": 3, "train.epochs": 3}
    calm = make_training(tmp_path, "calm", inputs, **settings)
    train(calm)

    killed = make_training(tmp_path, "killed", inputs, **settings)
    # An epoch has 5 training and 2 validation batches: in mid-epoch, in a validation, just before the end.
    for number in (4, 13, 19):
        with pytest.raises(Killed):
            train(killed, stop_before=number)
    train(killed)

    assert attempt_starts(killed.run) == {1: 0, 2: 3, 3: 11, 4: 16}
    assert curve(killed).keys() == curve(calm).keys()
    assert curve(killed) == pytest.approx(curve(calm), abs=1e-6)
    one, other = (load_checkpoint(training.run / "last") for training in (calm, killed))
    for name, tensor in one.state.items():
        torch.testing.assert_close(tensor, other.state[name], rtol=0, atol=1e-6)
    assert all(epoch.exact for epoch in audit(killed.run / "ledger", killed.schedule, attempt_starts(killed.run)))
    (state, calm_state) = (read_state(newest(training)) for training in (killed, calm))
    assert replace(state, best={}, latest={}) == replace(calm_state, best={}, latest={})
    assert state.best == pytest.approx(calm_state.best) and state.latest == pytest.approx(calm_state.latest)


def test_a_training_that_is_done_only_publishes_its_last_checkpoint_again(data: Path) -> None:
    training = make_training(data)
    train(training)
    before = curve(training)
    (training.run / "last" / "model.json").unlink()
    train(training)
    assert load_checkpoint(training.run / "last")
    assert curve(training) == before


def test_best_is_the_best_validation_and_last_the_last(data: Path) -> None:
    training = make_training(data, **{"train.epochs": 4, "train.optimizer.lr": 0.01})
    train(training)
    validations = [line for line in read_metrics(training.run) if line["kind"] == "validation"]
    best = max(validations, key=lambda line: (line["accuracy"], -line["loss"]))
    assert load_checkpoint(training.run / "best").metrics["loss"] == best["loss"]
    assert load_checkpoint(training.run / "last").metrics["loss"] == validations[-1]["loss"]
    state = read_state(newest(training))
    assert state.best_step == best["step"] and state.latest["loss"] == validations[-1]["loss"]


def test_without_a_validation_there_is_a_last_checkpoint_and_no_best(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 20, FIELDS)
    training = make_training(tmp_path)
    train(training)
    assert load_checkpoint(training.run / "last").metrics == {} and not (training.run / "best").exists()
    assert read_state(newest(training)).next_item == training.schedule.num_items


def test_a_start_that_was_overtaken_writes_no_checkpoint_any_more(data: Path) -> None:
    training = make_training(data)
    attempt = begin_attempt(training.run, training.data_digest)

    def overtaken() -> Iterator[LoadedBatch]:
        for batch in batches(training):
            if batch.item.number == 3:
                begin_attempt(training.run, training.data_digest)
            yield batch

    with pytest.raises(CheckpointError, match="another start of this run has taken over"):
        run_worker(training, ONE, attempt, overtaken())
    assert latest_checkpoint(training.run) is None and not (training.run / "best").exists()


@pytest.mark.parametrize(
    ("metrics", "best", "better"),
    [
        ({"accuracy": 0.5, "loss": 1.0}, {}, True),
        ({"accuracy": 0.6, "loss": 2.0}, {"accuracy": 0.5, "loss": 1.0}, True),
        ({"accuracy": 0.5, "loss": 0.9}, {"accuracy": 0.5, "loss": 1.0}, True),
        ({"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.5, "loss": 1.0}, False),
        ({"accuracy": 0.4, "loss": 0.1}, {"accuracy": 0.5, "loss": 1.0}, False),
    ],
)
def test_a_classifier_is_better_by_accuracy_then_loss(
    data: Path, metrics: dict[str, float], best: dict[str, float], better: bool
) -> None:
    assert is_better(make_training(data).job, metrics, best) is better


@pytest.mark.parametrize(("metric", "better"), [("accuracy", True), ("macro_f1", False), ("loss", False)])
def test_a_job_may_say_what_better_means(data: Path, metric: str, better: bool) -> None:
    job = make_training(data, **{"train.best_metric": metric}).job
    before = {"accuracy": 0.5, "macro_f1": 0.4, "loss": 1.0}
    assert is_better(job, {"accuracy": 0.6, "macro_f1": 0.3, "loss": 2.0}, before) is better
    assert is_better(job, {"accuracy": 0.4, "macro_f1": 0.5, "loss": 0.5}, before) is not (metric == "accuracy")
    assert is_better(job, before, before) is False


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"train.best_metric": "rmse"},
            r"train\.best_metric 'rmse' is no figure of the task classify; choose accuracy, macro_f1 or loss",
        ),
        ({"data.validation": None, "train.best_metric": "loss"}, r"train\.best_metric loss needs a validation"),
        ({"data.validation": None, "train.patience": 3}, r"train\.patience 3 needs a validation"),
    ],
)
def test_a_measure_that_there_is_not_is_refused(data: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_training(data, **overrides)


def test_a_training_that_gets_no_better_ends_early_and_stays_ended(data: Path) -> None:
    settings: dict[str, Any] = {"train.epochs": 9, "train.optimizer.lr": 1e-12, "train.best_metric": "loss"}
    training = make_training(data, **settings, **{"train.patience": 2, "train.optimizer.weight_decay": 0.0})
    # So small a step changes no weight, so no validation beats the first one.
    train(training)
    assert [step for kind, step in curve(training) if kind == "validation"] == [5, 10, 15]
    state = read_state(newest(training))
    assert (state.stopped, state.since_best, state.best_step, state.step) == (True, 2, 5, 15)
    assert load_checkpoint(training.run / "last").metrics == state.latest
    (training.run / "last" / "model.json").unlink()
    before = curve(training)
    train(training)
    assert load_checkpoint(training.run / "last") and curve(training) == before


def test_time_that_a_checkpoint_takes_is_written_down(data: Path) -> None:
    training = make_training(data, **{"train.checkpoints.every_steps": 1})
    train(training)
    shares = [line["checkpoint_wait"] for line in read_metrics(training.run) if line["kind"] == "train"]
    assert shares[0] == 0 and all(0 < share < 1 for share in shares[1:])


# --- what must never pass


def test_an_epoch_that_did_not_meet_every_sample_is_an_error(data: Path) -> None:
    training = make_training(data)
    attempt = begin_attempt(training.run, training.data_digest)

    def short() -> Iterator[LoadedBatch]:
        for batch in batches(training):
            if batch.item.number == 1:
                batch.tensors["position"][0] = -1
            yield batch

    with pytest.raises(OrderError, match="an epoch of 70 samples trained on 69 and quarantined 0"):
        run_worker(training, ONE, attempt, short())


# --- parts of the model


def test_a_part_is_frozen_until_its_share_of_the_training_is_over(data: Path) -> None:
    frozen = make_training(
        data, **{"train.freeze": {"encoders": 0.5}, "train.checkpoints": {"every_steps": 1, "keep_last": 10}}
    )
    train(frozen)
    seen = [load_checkpoint(folder).state for folder in sorted((frozen.run / "checkpoints").iterdir())]
    changes = [
        {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
        for before, after in itertools.pairwise(seen)
    ]
    assert changes == [{"fusion", "head"}] * 4 + [{"encoders", "fusion", "head"}] * 5


def test_a_training_with_frozen_parts_and_muon_goes_on_as_if_it_had_not_been_killed(data: Path) -> None:
    settings: dict[str, Any] = {
        "train.checkpoints.every_steps": 2,
        "train.freeze": {"encoders.vector": 0.4},
        "train.optimizer": {"name": "muon", "lr": 0.01, "parts": {"head": 2.0}, "layer_decay": 0.5},
        "train.schedule": {"name": "wsd"},
    }
    calm, killed = (make_training(data, name, **settings) for name in ("calm", "killed"))
    train(calm)
    for number in (3, 10):
        with pytest.raises(Killed):
            train(killed, stop_before=number)
    train(killed)
    assert curve(killed) == pytest.approx(curve(calm), abs=1e-6)
