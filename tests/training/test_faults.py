"""Killed with SIGKILL in mid-epoch: a worker, or the whole driver. The run goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_mm.training.ledger import audit
from ray_mm.training.state import attempt_starts, latest_checkpoint
from ray_mm.training.tracking import read_metrics
from ray_mm.training.train import plan_training
from tests.factories import make_dataset
from tests.training.inprocess import train
from tests.training.test_train import FIELDS, train_job

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_DRIVER = """
import sys
from ray_mm.config.load import load_job
from ray_mm.training.train import run_train
run_train(load_job(sys.argv[1]))
"""
_SETTINGS = {
    "train.epochs": 3,
    "train.checkpoints.every_steps": 4,
    "data.batch_size": 16,
    # A few batches that the workers read by themselves at each start; the others come through Ray.
    "data.head_samples": 48,
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the datasets and a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("faults")
    make_dataset(folder / "train", num_samples=300, num_shards=3, fields=FIELDS, seed=0)
    make_dataset(folder / "validation", num_samples=40, num_shards=1, fields=FIELDS, seed=1)
    process = _start(folder, "calm", workers=1)
    assert process.wait(300) == 0
    return folder


@pytest.mark.parametrize(("workers", "keeps"), [(1, False), (2, False), (1, True)])
def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_repeated(
    uninterrupted: Path, workers: int, keeps: bool
) -> None:
    name = f"worker-{workers}" + "-keeps" * keeps
    cache = {"data.cache.decoded": {"folder": str(uninterrupted / "cache"), "size": "10MB"}} if keeps else {}
    process = _start(uninterrupted, name, workers, **cache)
    _wait(lambda: _steps(uninterrupted / name) >= 25, process)
    victim = next(child for child in _children(process) if "RayTrainWorker" in " ".join(_command(child)))
    victim.send_signal(signal.SIGKILL)
    assert process.wait(300) == 0
    _check(uninterrupted, name)
    if keeps:
        last = [line for line in read_metrics(uninterrupted / name) if line["kind"] == "train" and line["epoch"] == 3]
        assert {line["cached"] for line in last} == {1}


def test_a_divided_training_outlives_a_worker_and_goes_on_undivided(uninterrupted: Path) -> None:
    folder, name = uninterrupted, "divided"
    # Dropout is drawn per rank; without it any number of workers follows one curve.
    still = {f"model.{part}.dropout": 0.0 for part in ("fields.image", "fields.vector", "fusion")}
    fsdp = _start(folder, name, 2, **still, **{"train.parallel": "fsdp"})
    _wait(lambda: _steps(folder / name) >= 10, fsdp)
    victim = next(child for child in _children(fsdp) if "RayTrainWorker" in " ".join(_command(child)))
    victim.send_signal(signal.SIGKILL)
    _wait(lambda: len(attempt_starts(folder / name)) == 2 and _steps(folder / name) >= 30, fsdp)
    fsdp.send_signal(signal.SIGTERM)
    fsdp.wait(300)
    parts = latest_checkpoint(folder / name)
    assert parts is not None and len(list(parts.glob("optimizer-*-of-00002.safetensors"))) == 2

    ddp = _start(folder, name, 1, **still)
    assert ddp.wait(300) == 0
    starts = attempt_starts(folder / name)
    assert len(starts) == 3 and 0 < starts[2] < starts[3]
    calm = plan_training(train_job(folder, **_SETTINGS, **still, output=str(folder / "calm-divided")))
    for epoch in audit(folder / name / "ledger", calm.schedule, starts):
        assert epoch.exact
    train(calm)
    assert _curve(folder / name) == pytest.approx(_curve(calm.run), abs=1e-4)


def test_a_killed_driver_is_started_again_and_nothing_is_lost_or_repeated(uninterrupted: Path) -> None:
    process = _start(uninterrupted, "driver", workers=1)
    _wait(lambda: _steps(uninterrupted / "driver") >= 25, process)
    children = _children(process)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    # Ray's processes notice that their driver is gone; what is left of them must not outlive the test.
    psutil.wait_procs(children, timeout=20)
    for child in children:
        if child.is_running():
            child.kill()
    again = _start(uninterrupted, "driver", workers=1)
    assert again.wait(300) == 0
    _check(uninterrupted, "driver")


def _start(folder: Path, name: str, workers: int, **settings: Any) -> subprocess.Popen[bytes]:
    job = train_job(folder, **_SETTINGS, **settings, **{"resources.workers": workers, "output": str(folder / name)})
    path = folder / f"{name}.json"  # JSON is YAML
    path.write_text(job.model_dump_json())
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    return subprocess.Popen([sys.executable, "-c", _DRIVER, str(path)], env=environment, cwd=folder)


def _check(folder: Path, name: str) -> None:
    run = folder / name
    job = train_job(folder, **_SETTINGS)
    starts = attempt_starts(run)
    assert len(starts) == 2, "one interruption, one new start"
    assert starts[2] > 0, "the second start resumed and did not begin anew"
    schedule = plan_training(job).schedule
    for epoch in audit(run / "ledger", schedule, starts):
        assert epoch.exact
    assert json.loads((run / "result.json").read_text())["metrics"]["starts"] == 2
    resumed, calm = _curve(run), _curve(folder / "calm")
    assert resumed.keys() == calm.keys()
    if "worker-2" not in name:
        # Dropout is drawn per rank, so two workers follow another curve than one.
        apart = {key: (resumed[key], calm[key]) for key in calm if abs(resumed[key] - calm[key]) >= 1e-4}
        assert not apart


def _curve(run: Path) -> dict[tuple[str, int], float]:
    return {(line["kind"], line["step"]): line["loss"] for line in read_metrics(run)}


def _steps(run: Path) -> int:
    return max((line["step"] for line in read_metrics(run)), default=0)


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while not ready():
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
