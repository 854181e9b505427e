"""A training that is asked to end saves its state first, and goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ray_mm.data.loader import LoadedBatch
from ray_mm.errors import StopRequested
from ray_mm.training.ledger import audit, read_entries
from ray_mm.training.parallel import Ranks
from ray_mm.training.state import attempt_starts, begin_attempt, read_state
from ray_mm.training.stopping import StopSign
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training
from ray_mm.training.worker import run_worker
from tests.factories import make_dataset
from tests.training.inprocess import batches, curve, make_training, newest, train
from tests.training.test_train import FIELDS, train_job

ONE = Ranks(0, 1, torch.device("cpu"))


@pytest.mark.usefixtures("one_thread")
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, step: int, next_item: int
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
                (stopped.run / ".stop").touch()
            yield batch

    with pytest.raises(StopRequested, match=f"is saved at step {step} of 10. Run the same command again"):
        run_worker(stopped, ONE, attempt, asked())
    state = read_state(newest(stopped))
    assert (state.step, state.next_item) == (step, next_item)
    (stopped.run / ".stop").unlink()
    train(stopped)
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


def test_other_threads_take_no_signals(tmp_path: Path) -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with StopSign(tmp_path).on_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_saves_and_ends_with_143_and_nothing_is_done_twice(tmp_path: Path, workers: int) -> None:
    make_dataset(tmp_path / "train", num_samples=300, num_shards=3, fields=FIELDS, seed=0)
    make_dataset(tmp_path / "validation", num_samples=40, num_shards=1, fields=FIELDS, seed=1)
    # No checkpoint but that of the epoch's end: what is there in mid-epoch was saved on request.
    job = train_job(
        tmp_path, **{"train.epochs": 20, "data.batch_size": 16, "data.head_samples": 48, "resources.workers": workers}
    )
    (tmp_path / "job.json").write_text(job.model_dump_json())
    run = tmp_path / "run"
    command = [sys.executable, "-m", "ray_mm", "run", str(tmp_path / "job.json")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 180
    while not any(line["step"] >= 24 for line in read_metrics(run)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 143, told
    assert "was asked to end and is saved at step" in told and "Traceback" not in told
    assert not (run / ".stop").exists()

    entries = [entry.item for entry in read_entries(run / "ledger" / "attempt-0001-rank-0000.jsonl")]
    again = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    starts, schedule = attempt_starts(run), plan_training(job).schedule
    assert len(starts) == 2 and starts[2] > entries[-1], "no step was done twice"
    assert all(epoch.exact for epoch in audit(run / "ledger", schedule, starts))
