"""What a training resumes from: whole or not there, of the same data, and written by the newest start alone."""

from __future__ import annotations

import json
import logging
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ray_mm.checkpoint import load_checkpoint
from ray_mm.config.train import CheckpointConfig
from ray_mm.errors import CheckpointError, StorageError
from ray_mm.training.learner import Learner
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.saving import save_state
from ray_mm.training.state import (
    STATE_VERSION,
    Attempt,
    TrainingState,
    attempt_starts,
    begin_attempt,
    current_attempt,
    find_start,
    initial_state,
    latest_checkpoint,
)
from tests.factories import make_dataset
from tests.training.inprocess import make_training

DIGEST = "0123abcd"


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    folder = tmp_path_factory.mktemp("state")
    make_dataset(folder / "train", 6, ("vector", "label"))
    return make_training(folder)


def _save(run: Path, training: Training, step: int, attempt: Attempt | None = None) -> tuple[Path, Learner]:
    learner = Learner(training, Ranks(0, 1, torch.device("cpu")))
    torch.manual_seed(step)
    for parameter in learner.model.parameters():
        parameter.data += torch.randn_like(parameter)
        parameter.grad = torch.ones_like(parameter)
    learner.optimizer.step()
    state = replace(initial_state(DIGEST), next_item=step + 1, step=step, latest={"loss": float(step)})
    save_state(replace(training, run=run), attempt or current_attempt(run), state, learner.snapshot())
    return run / "checkpoints" / f"step-{step:08d}", learner


def _steps(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


def test_a_run_begins_at_the_first_item_without_a_checkpoint(tmp_path: Path) -> None:
    assert begin_attempt(tmp_path, DIGEST) == Attempt(1, 0, None) == current_attempt(tmp_path)
    assert find_start(tmp_path, DIGEST) == (None, initial_state(DIGEST))


def test_what_was_saved_comes_back(tmp_path: Path, training: Training) -> None:
    begin_attempt(tmp_path, DIGEST)
    folder, learner = _save(tmp_path, training, 4)
    state = TrainingState(5, 4, DIGEST, 0, 0, 0, {}, 0, {"loss": 4.0})
    assert find_start(tmp_path, DIGEST) == (folder, state)
    assert begin_attempt(tmp_path, DIGEST) == Attempt(2, 5, "checkpoints/step-00000004")
    assert load_checkpoint(folder).metrics == {"loss": 4.0}
    loaded = Learner(training, Ranks(0, 1, torch.device("cpu")), folder)
    for (name, one), other in zip(learner.model.named_parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(one, other)
        for what, value in learner.optimizer.state[one].items():
            assert torch.equal(value, loaded.optimizer.state[other][what]), (name, what)


def test_attempts_are_numbered_on_and_all_their_starts_are_kept(tmp_path: Path, training: Training) -> None:
    for number in range(1, 12):
        assert begin_attempt(tmp_path, DIGEST).number == number
        if number == 3:
            _save(tmp_path, training, 7)
    assert attempt_starts(tmp_path) == dict.fromkeys(range(1, 4), 0) | dict.fromkeys(range(4, 12), 8)
    assert current_attempt(tmp_path) == Attempt(11, 8, "checkpoints/step-00000007")


def test_only_the_newest_two_checkpoints_are_kept(tmp_path: Path, training: Training) -> None:
    begin_attempt(tmp_path, DIGEST)
    for step in (2, 4, 9, 10):
        _save(tmp_path, training, step)
    assert _steps(tmp_path) == [9, 10]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "preprocessor.json", "model.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, training: Training, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    begin_attempt(tmp_path, DIGEST)
    older, _ = _save(tmp_path, training, 1)
    newer, _ = _save(tmp_path, training, 2)
    content = (newer / name).read_bytes()
    match damage:
        case "cut":
            (newer / name).write_bytes(content[:-1])
        case "changed":
            (newer / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        case "gone":
            (newer / name).unlink()
    with caplog.at_level(logging.WARNING, "ray_mm.training.state"):
        assert begin_attempt(tmp_path, DIGEST) == Attempt(2, 2, str(older.relative_to(tmp_path)))
    assert f"path={newer}" in caplog.text and name in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 1, "files": [], "state": {}}'])
def test_a_checkpoint_whose_state_is_damaged_is_passed_over(tmp_path: Path, training: Training, content: str) -> None:
    begin_attempt(tmp_path, DIGEST)
    older, _ = _save(tmp_path, training, 1)
    newer, _ = _save(tmp_path, training, 2)
    (newer / "training.json").write_text(content)
    assert latest_checkpoint(tmp_path) == older


def test_new_checkpoints_outlive_damaged_ones_with_more_steps(tmp_path: Path, training: Training) -> None:
    begin_attempt(tmp_path, DIGEST)
    for step in (20, 30):
        folder, _ = _save(tmp_path, training, step)
        (folder / "model.safetensors").unlink()
    assert begin_attempt(tmp_path, DIGEST).first_item == 0
    _save(tmp_path, training, 5)
    assert _steps(tmp_path) == [5], "else the next ones would take the place of this one"
    assert begin_attempt(tmp_path, DIGEST).first_item == 6
    # A damaged one of the same step is replaced.
    folder, _ = _save(tmp_path, training, 20)
    (folder / "model.safetensors").unlink()
    _save(tmp_path, training, 20)
    assert _steps(tmp_path) == [5, 20] and latest_checkpoint(tmp_path) == folder


def test_as_many_are_kept_as_the_job_says_and_one_in_so_many_hours(
    tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeps = CheckpointConfig(keep_last=3, keep_every_hours=2)
    job = training.job.model_copy(update={"train": training.job.train.model_copy(update={"checkpoints": keeps})})
    begin_attempt(tmp_path, DIGEST)
    for hour in range(12):
        monkeypatch.setattr(time, "time", lambda hour=hour: 1e9 + hour * 3600.0)
        _save(tmp_path, replace(training, job=job), hour)
    assert _steps(tmp_path) == [0, 2, 4, 6, 8, 9, 10, 11]


def test_a_disk_that_takes_no_more_is_an_error_and_leaves_what_was_there(tmp_path: Path, training: Training) -> None:
    begin_attempt(tmp_path, DIGEST)
    older, _ = _save(tmp_path, training, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for size in (100, 9_000):  # in the weights, or after them
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            with pytest.raises(
                StorageError, match=r"step-00000002: the checkpoint can't be written .*Those before it are"
            ):
                _save(tmp_path, training, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert latest_checkpoint(tmp_path) == older and _steps(tmp_path) == [1]


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path, training: Training) -> None:
    begin_attempt(tmp_path, DIGEST)
    _save(tmp_path, training, 3)
    for refuse in (begin_attempt, find_start):
        with pytest.raises(CheckpointError, match=r"was trained on other data.*choose another output"):
            refuse(tmp_path, "of other data")
    assert attempt_starts(tmp_path) == {1: 0}


def test_a_state_of_a_newer_version_is_refused_and_not_passed_over(tmp_path: Path, training: Training) -> None:
    begin_attempt(tmp_path, DIGEST)
    _save(tmp_path, training, 3)
    folder, _ = _save(tmp_path, training, 4)
    content = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(content | {"version": STATE_VERSION + 1}))
    with pytest.raises(CheckpointError, match=f"state version {STATE_VERSION + 1}.*up to {STATE_VERSION}"):
        begin_attempt(tmp_path, DIGEST)


def test_a_start_that_was_overtaken_can_not_save(tmp_path: Path, training: Training) -> None:
    first = begin_attempt(tmp_path, DIGEST)
    _save(tmp_path, training, 1, first)
    second = begin_attempt(tmp_path, DIGEST)
    with pytest.raises(CheckpointError, match="another start of this run has taken over"):
        _save(tmp_path, training, 2, first)
    assert _steps(tmp_path) == [1]
    _save(tmp_path, training, 3, second)
    assert _steps(tmp_path) == [1, 3]


def test_what_a_killed_start_was_writing_is_cleared_away(tmp_path: Path, training: Training) -> None:
    begin_attempt(tmp_path, DIGEST)
    _save(tmp_path, training, 1)
    left = [tmp_path / "checkpoints" / ".step-00000002.abc.tmp", tmp_path / ".best.abc.old", tmp_path / ".last.abc.tmp"]
    for folder in left:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    assert begin_attempt(tmp_path, DIGEST).first_item == 2
    assert not any(folder.exists() for folder in left) and _steps(tmp_path) == [1]
