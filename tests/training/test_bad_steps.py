"""A loss, a gradient or weights that are not finite: found, named, left out where that is allowed, and never saved."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_mm.checkpoint import load_checkpoint
from ray_mm.data.loader import LoadedBatch
from ray_mm.errors import TrainingDivergedError
from ray_mm.training.ledger import audit
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.state import begin_attempt, latest_checkpoint, read_state
from ray_mm.training.worker import run_worker
from tests.factories import make_dataset
from tests.training.inprocess import batches, curve, make_training, newest, train

FIELDS = ("vector", "label", "number")
ONE = Ranks(0, 1, torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """``train`` (70 samples) and ``validation`` (20 samples)."""
    make_dataset(tmp_path / "train", 70, FIELDS, num_shards=3)
    make_dataset(tmp_path / "validation", 20, FIELDS, num_shards=1, seed=1)
    return tmp_path


def test_a_loss_that_is_not_finite_stops_the_training(data: Path) -> None:
    training = make_training(data, **{"train.optimizer.lr": 1e30, "train.clip_norm": None})
    with pytest.raises(TrainingDivergedError, match=r"train\.optimizer\.lr"):
        train(training)


def test_no_checkpoint_is_saved_of_weights_that_are_not_finite(data: Path) -> None:
    # The loss is written down every ten steps only, the state after every one.
    training = make_training(data, **{"train.checkpoints.every_steps": 1, "train.log_every_steps": 1000})
    attempt = begin_attempt(training.run, training.data_digest)

    def poisoned() -> Iterator[LoadedBatch]:
        for batch in batches(training):
            if batch.item.number == 2:
                batch.tensors["vector"][0, 0] = math.nan
            yield batch

    with pytest.raises(TrainingDivergedError, match=r"gradient is not finite at step 3 .*named in"):
        run_worker(training, ONE, attempt, poisoned())
    (line,) = (training.run / "bad_steps" / "rank-0000.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert (found["attempt"], found["step"], found["epoch"]) == (1, 3, 1)
    assert found["keys"] == next(batch.keys for batch in batches(training, 2))
    latest = newest(training)
    assert read_state(latest).step == 2
    assert all(tensor.isfinite().all() for tensor in load_checkpoint(latest).state.values())


def test_weights_that_a_finite_gradient_made_infinite_are_not_saved(data: Path) -> None:
    settings: dict[str, Any] = {"train.optimizer.lr": 1e39, "train.schedule": {"name": "constant"}}
    training = make_training(data, **settings, **{"train.checkpoints.every_steps": 1})
    with pytest.raises(TrainingDivergedError, match="weights are not finite after step 1"):
        train(training)
    assert latest_checkpoint(training.run) is None


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_as_many_bad_steps_are_left_out_as_are_allowed(data: Path, precision: str) -> None:
    settings = {"train.skip_bad_steps": 2, "train.checkpoints.every_steps": 2, "train.precision": precision}

    def poisoned(training: Training, first: int, bad: set[int]) -> Iterator[LoadedBatch]:
        for batch in batches(training, first):
            if batch.item.phase == "train" and batch.item.step in bad:
                batch.tensors["vector"][0, 0] = math.nan
            yield batch

    training = make_training(data, "allowed", **settings)
    run_worker(training, ONE, begin_attempt(training.run, training.data_digest), poisoned(training, 0, {3, 8}))
    state = read_state(newest(training))
    assert (state.step, state.bad_steps) == (10, 2)
    lines = (training.run / "bad_steps" / "rank-0000.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 8]
    assert all(math.isfinite(loss) for (_, step), loss in curve(training).items() if step not in (3, 8))
    assert all(epoch.exact for epoch in audit(training.run / "ledger", training.schedule, {1: 0}))

    # A step that is left out changes nothing: what an earlier start met counts on.
    again = make_training(data, "again", **settings)
    with pytest.raises(
        TrainingDivergedError, match=r"at step 9, one such step more than the 2 that train\.skip_bad_steps allows"
    ):
        run_worker(again, ONE, begin_attempt(again.run, again.data_digest), poisoned(again, 0, {3, 7, 9}))
    attempt = begin_attempt(again.run, again.data_digest)
    assert read_state(newest(again)).bad_steps == 2
    with pytest.raises(TrainingDivergedError, match="at step 10"):
        run_worker(again, ONE, attempt, poisoned(again, attempt.first_item, {10}))


def test_a_validation_whose_loss_is_not_finite_stops_the_training(data: Path) -> None:
    training = make_training(data)
    attempt = begin_attempt(training.run, training.data_digest)

    def poisoned() -> Iterator[LoadedBatch]:
        for batch in batches(training):
            if batch.item.phase == "validation":
                batch.tensors["vector"][0, 0] = math.nan
            yield batch

    with pytest.raises(TrainingDivergedError, match="validation loss at step 5 is nan"):
        run_worker(training, ONE, attempt, poisoned())
    assert not (training.run / "best").exists()
