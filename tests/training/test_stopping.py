"""A training that is asked to end saves its state first, and goes on from there."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ray_mm.data.loader import LoadedBatch
from ray_mm.errors import RayMMError, StopRequested
from ray_mm.training.ledger import audit
from ray_mm.training.parallel import Ranks
from ray_mm.training.state import attempt_starts, begin_attempt, read_state
from ray_mm.training.stopping import LeaveRequested, StopSign
from ray_mm.training.worker import run_worker
from tests.factories import make_dataset
from tests.training.inprocess import batches, curve, make_training, newest, train

ONE = Ranks(0, 1, torch.device("cpu"))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("file", "error", "match"),
    [
        (".stop", StopRequested, "is saved at step {} of 10. Run the same command again"),
        (".leave", LeaveRequested, "left at step {}"),
    ],
)
@pytest.mark.parametrize(
    ("stop_at", "step", "next_item"),
    [
        (0, 1, 1),  # the first item
        (3, 4, 4),
        (5, 5, 5),  # in the validation, which is begun again
        (6, 5, 7),  # its last batch
    ],
)
def test_it_is_saved_at_the_item_at_which_it_is_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
    step: int,
    next_item: int,
    file: str,
    error: type[Exception],
    match: str,
) -> None:
    monkeypatch.setattr("ray_mm.training.stopping._LOOK_EVERY_S", 0.0)
    make_dataset(tmp_path / "train", 70, ("vector", "label"), num_shards=3)
    make_dataset(tmp_path / "validation", 20, ("vector", "label"), num_shards=1, seed=1)
    calm, stopped = (make_training(tmp_path, name) for name in ("calm", "stopped"))
    train(calm)
    attempt = begin_attempt(stopped.run, stopped.data_digest)

    def asked() -> Iterator[LoadedBatch]:
        for batch in batches(stopped):
            if batch.item.number == stop_at:
                (stopped.run / file).touch()
            yield batch

    with pytest.raises(error, match=match.format(step)):
        run_worker(stopped, ONE, attempt, asked())
    state = read_state(newest(stopped))
    assert (state.step, state.next_item) == (step, next_item)
    (stopped.run / ".stop").unlink(missing_ok=True)
    train(stopped)
    assert not (stopped.run / ".leave").exists(), "what those were asked for does not hold for these"
    assert attempt_starts(stopped.run) == {1: 0, 2: next_item}
    assert curve(stopped) == pytest.approx(curve(calm), abs=1e-6)
    assert all(epoch.exact for epoch in audit(stopped.run / "ledger", stopped.schedule, attempt_starts(stopped.run)))


@pytest.mark.usefixtures("one_thread")
def test_one_that_is_done_with_its_last_batch_is_done(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 20, ("vector", "label"))
    training = make_training(tmp_path)
    attempt = begin_attempt(training.run, training.data_digest)

    def asked() -> Iterator[LoadedBatch]:
        for batch in batches(training):
            if batch.item.number == training.schedule.num_items - 1:
                (training.run / ".stop").touch()
                time.sleep(0.6)  # longer than it goes without a look
            yield batch

    run_worker(training, ONE, attempt, asked())
    assert (training.run / "last").is_dir()


def test_the_first_signal_asks_and_is_forgotten_afterwards(tmp_path: Path) -> None:
    (tmp_path / ".stop").touch()
    sign = StopSign(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with sign.on_sigterm():
        assert not (tmp_path / ".stop").exists(), "left by an earlier run"
        os.kill(os.getpid(), signal.SIGTERM)
        assert (tmp_path / ".stop").exists()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "a second one ends the process"
    assert signal.getsignal(signal.SIGTERM) is before and not (tmp_path / ".stop").exists()


def test_leaving_is_no_error_of_ours_that_would_end_the_run() -> None:
    assert not issubclass(LeaveRequested, RayMMError)


def test_other_threads_take_no_signals(tmp_path: Path) -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with StopSign(tmp_path).on_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]
