"""A search as a user runs it: a job in, trials and the best of them out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ray_mm.check import check_job
from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.errors import DatasetError, OutputFolderError, RayMMError, UsageError
from ray_mm.placement import Node
from ray_mm.progress import Progress
from ray_mm.training.stopping import StopSign
from ray_mm.training.train import plan_training, run_train
from ray_mm.tuning.search import Search
from ray_mm.tuning.table import State, Table
from ray_mm.tuning.tune import _Draw, run_tune, trials_at_once
from tests.factories import make_dataset
from tests.training.inprocess import Killed, curve, make_training, train
from tests.tuning.searches import make_table, tune_job

ROOT = Path(__file__).parents[2]
_GIVE_UP_S = 400


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "train", num_samples=150, num_shards=2, fields=("vector", "label"), seed=0)
    make_dataset(tmp_path / "validation", num_samples=40, num_shards=1, fields=("vector", "label"), seed=1)
    return tmp_path


def lines_of(run: Path) -> list[dict[str, Any]]:
    """What a training has written, without a line that is just being written."""
    path = run / "metrics.jsonl"
    text = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.ray
def test_a_bad_trial_is_stopped_a_failing_one_is_recorded_and_the_best_can_be_run(local_ray: None, data: Path) -> None:
    rates = {"train.optimizer.lr": {"grid": [0.01, 1e30, 1e-9]}}
    long = {"job.train.epochs": 30, "job.data.batch_size": 8, "job.train.clip_norm": None}
    job = tune_job(data, rates, method={"name": "asha", "grace": 2}, **long)
    result = run_tune(job)
    table = Table(job, data / "search")
    good, diverging, bad = table.trials

    assert good.state is State.DONE and len(good.validations) == 30
    assert diverging.state is State.DIVERGED and "lower train.optimizer.lr" in diverging.reason
    assert (bad.state, bad.epoch) == (State.STOPPED, 2)
    assert bad.reason.startswith("after epoch 2 its accuracy of ") and "number 2 of the 2 trials" in bad.reason
    assert 2 <= len(bad.validations) < 30
    # It has saved its state, and can be gone on with by hand.
    assert any((table.run(bad) / "checkpoints").iterdir()) and not (table.run(bad) / "result.json").exists()
    assert result["best"]["settings"] == {"train.optimizer.lr": 0.01}
    assert Path(result["best"]["checkpoint"]).is_dir()
    trial = load_job(table.run(good) / "job.json")
    best = load_job(data / "search" / "best.yaml")
    assert isinstance(trial, TrainJob) and isinstance(best, TrainJob)
    assert best.model_copy(update={"output": ""}) == trial.model_copy(update={"output": ""})
    # Both are jobs like any other: the trial is done, the best one begins anew and learns what its trial did.
    assert run_train(trial)["status"] == "unchanged"
    assert "train: 570 steps" in "".join(check_job(best))
    anew = plan_training(best)
    with pytest.raises(Killed):
        train(anew, stop_before=anew.schedule.items_per_epoch)
    losses = curve(plan_training(trial))
    assert curve(anew) == pytest.approx({key: losses[key] for key in curve(anew)}, abs=1e-4)
    assert (data / "search" / "report.html").stat().st_size > 10_000
    assert run_tune(job)["status"] == "unchanged"


@pytest.mark.ray
def test_too_many_failures_end_the_search_with_the_reason(local_ray: None, data: Path) -> None:
    # A batch of all workers that is too large for the object store is only known when a trial has started.
    tiny = {"job.data.object_store": 1e-9, "max_failed_trials": 0}
    with pytest.raises(
        RayMMError, match=r"1 trials failed, and max_failed_trials is 0; the last one, trial 1: data\.object"
    ):
        run_tune(tune_job(data, **tiny))
    table = Table(tune_job(data, **tiny), data / "search")
    assert [trial.state for trial in table.trials] == [State.FAILED]
    assert not (data / "search" / "result.json").exists()


_ON_THREE_CPUS = """
from ray_mm import session
session.local_cpus = lambda: 3
from ray_mm.cli import main
main()
"""


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_trials_run_side_by_side_and_a_search_that_is_killed_goes_on_as_if_it_had_not_been(
    data: Path, tmp_path: Path
) -> None:
    output = data / "search"
    command = [sys.executable, "-c", _ON_THREE_CPUS, "run", str(ROOT / "jobs/quickstart/tune.yaml")]
    overrides = {
        "job.data.train": data / "train",
        "job.data.validation": data / "validation",
        "job.data.batch_size": 8,
        "job.model.fields": "{vector: {}}",
        "job.model.task.label": "label",
        "job.resources.cpus_per_worker": 0.5,
        "search": "{train.epochs: {grid: [12, 40]}}",
        "method": "random",
        "trials": 2,
        "resources.trials_at_once": 2,
        "output": output,
    }
    for key, value in overrides.items():
        command += ["--set", f"{key}={value}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first, second = output / "trials/0001", output / "trials/0002"
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stderr=log, stdout=log) as driver,
    ):
        try:
            give_up = time.monotonic() + _GIVE_UP_S
            while not (_states(output) == ["done", "begun"] and _epochs(second) >= 3):
                assert driver.poll() is None and time.monotonic() < give_up, (tmp_path / "log").read_text()
                time.sleep(0.05)
        finally:
            driver.send_signal(signal.SIGKILL)
    drawn = json.loads((output / "trials.json").read_text())["trials"]
    finished = (first / "result.json").stat().st_mtime_ns
    assert (second / "attempts/0001.json").stat().st_mtime_ns < finished, "they ran side by side"

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=_GIVE_UP_S)
    assert done.returncode == 0, done.stderr
    assert "goes on after 1 of 2 trials; 1 were interrupted" in done.stderr
    assert "tune quickstart-tune: done in" in done.stdout
    after = json.loads((output / "trials.json").read_text())["trials"]
    assert [trial["settings"] for trial in after] == [trial["settings"] for trial in drawn]
    assert _states(output) == ["done", "done"]
    assert (first / "result.json").stat().st_mtime_ns == finished, "a finished trial is not touched"
    assert len(list((first / "attempts").glob("*.json"))) == 1
    attempts = [json.loads(path.read_text()) for path in sorted((second / "attempts").glob("*.json"))]
    assert len(attempts) == 2 and attempts[1]["first_item"] > 0, "it went on from a checkpoint"
    result = json.loads((output / "result.json").read_text())
    assert sorted(row["epochs"] for row in result["trials"]) == [12, 40], "every epoch is counted once"


def _states(output: Path) -> list[str]:
    path = output / "trials.json"
    return [trial["state"] for trial in json.loads(path.read_text())["trials"]] if path.exists() else []


def _epochs(run: Path) -> int:
    return max((line["epoch"] for line in lines_of(run) if line["kind"] == "validation"), default=0)


def test_what_does_not_fit_is_refused_before_ray_starts(data: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        run_tune(tune_job(data, **{"job.data.train": str(data / "nowhere")}))
    assert not (data / "search").exists(), "nothing is half-written"
    make_table(tune_job(data), [[0.5]])
    (data / "search" / "job.json").write_text(tune_job(data).model_dump_json())
    with pytest.raises(OutputFolderError, match=r"made with other settings \(search\.train\.optimizer\.lr\."):
        run_tune(tune_job(data, {"train.optimizer.lr": {"uniform": [0.1, 0.2]}}))
    with pytest.raises(OutputFolderError, match=r"made with other settings \(job\.train\.epochs was 4 and is now 9\)"):
        run_tune(tune_job(data, **{"job.train.epochs": 9}))


def test_a_search_in_which_too_much_diverged_does_not_start_again(data: Path) -> None:
    job = tune_job(data, max_failed_trials=0)
    make_table(job, [[]], [State.DIVERGED])
    (data / "search" / "job.json").write_text(job.model_dump_json())
    with pytest.raises(RayMMError, match=r"trial 1: because .* Or raise max_failed_trials"):
        run_tune(job)


@pytest.mark.parametrize(
    ("nodes", "overrides", "expected"),
    [
        ([Node(2)], {}, 1),
        ([Node(16)], {}, 8),
        ([Node(8), Node(8)], {}, 8),
        ([Node(16)], {"job.resources.workers": 3}, 4),
        ([Node(16)], {"job.resources.workers": {"min": 3, "max": 16}}, 4),
        ([Node(64, 8)], {"job.resources": {"workers": 2, "gpus_per_worker": 1}}, 4),
        ([Node(8, 1)] * 4, {"job.resources.gpus_per_worker": 1}, 4),
        ([Node(4, 8)], {"job.resources.gpus_per_worker": 1}, 2),
        ([Node(49, 49)], {"job.resources": {"gpus_per_worker": 2}}, 24),
        ([Node(512)], {}, 99),
        ([Node(16)], {"resources.trials_at_once": 3}, 3),
        ([Node(3)], {"job.resources.cpus_per_worker": 0.5, "resources.trials_at_once": 2}, 2),
    ],
)
def test_as_many_trials_run_at_once_as_find_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: list[Node], overrides: dict[str, Any], expected: int
) -> None:
    monkeypatch.setattr("ray_mm.tuning.tune.ray_nodes", lambda: nodes)
    job = tune_job(tmp_path, **{"job.data.batch_size": 64, **overrides})
    assert trials_at_once(job, wanted=99) == expected
    assert trials_at_once(job, wanted=1) == 1


def test_more_trials_at_once_than_find_room_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_mm.tuning.tune.ray_nodes", lambda: [Node(2)])
    with pytest.raises(
        UsageError, match=r"resources\.trials_at_once: 2 trials of 1 worker\(s\) with 1 CPU\(s\) each, .* room for 1;"
    ):
        trials_at_once(tune_job(tmp_path, **{"resources.trials_at_once": 2}), wanted=3)
    with pytest.raises(UsageError, match=r"^resources: 1 worker\(s\) with 1 GPU"):
        trials_at_once(tune_job(tmp_path, **{"job.resources.gpus_per_worker": 1}), wanted=3)


def test_settings_that_do_not_go_together_are_a_failed_trial_and_the_next_one_is_handed_out(data: Path) -> None:
    job = tune_job(data)
    (data / "search").mkdir()
    table = Table(job, data / "search")
    table.begin({"train.optimizer.lr": -1.0})
    search = Search(job, table, StopSign(table.folder), Progress("tune", 3, "trials"))
    handed_out = _Draw(job, search, 0.5).suggest("x")
    assert isinstance(handed_out, dict)
    assert (handed_out["number"], handed_out["share"], handed_out["epochs"]) == (2, 0.5, 0)
    trial = load_job(json.loads(handed_out["job"]))
    assert trial.output == str(data / "search" / "trials" / "0002")
    assert table.trial(1).state is State.FAILED
    assert table.trial(1).reason == "train.optimizer.lr: input should be greater than 0; found -1.0."


def test_each_model_of_a_search_is_held_against_what_it_begins_with(data: Path) -> None:
    before = make_training(data, "before")
    train(before)
    begins: dict[str, Any] = {
        "job.train.init_from": {"checkpoint": str(before.run / "best"), "parts": ["fusion"]},
        "job.model.fusion": {"method": "gated", "dim": 16},
        "trials": 4,
    }
    rates = {"train.optimizer.lr": {"grid": [0.1, 0.01]}}
    unfit = r"search: with model\.fusion\.dim=24.*: train\.init_from\.parts: fusion of .* does not fit"
    with pytest.raises(UsageError, match=unfit):
        check_job(tune_job(data, {"model.fusion.dim": {"grid": [16, 24]}, **rates}, **begins))
    assert any("train.init_from: fusion of" in line for line in check_job(tune_job(data, rates, **begins)))
