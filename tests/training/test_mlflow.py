"""A training in MLflow: a real store in an sqlite file, one that is busy for a while, an address at which nobody answers."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_mm.auth import redacted
from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.errors import JobFileError, UsageError
from ray_mm.stages import run_stage
from ray_mm.training import mlflow_sink
from ray_mm.training.metrics_tail import MetricsTail
from ray_mm.training.mlflow_sink import mlflow_run, send_the_rest
from ray_mm.training.mlflow_store import require_mlflow, safe_text
from ray_mm.training.plan import Training
from ray_mm.training.provenance import flattened, working_copy
from ray_mm.training.tracking import Tracker, read_metrics
from tests.factories import make_dataset
from tests.training.inprocess import Killed, make_training, train

pytestmark = pytest.mark.usefixtures("one_thread")
RESULT: dict[str, Any] = {"metrics": {"accuracy": 0.75, "stopped_early": False, "gate": None}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sqlite file with MLflow's tables, which take some seconds to make."""
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "train", 40, ("vector", "label"))
    make_dataset(tmp_path / "validation", 20, ("vector", "label"), num_shards=1, seed=1)
    return tmp_path


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is new is sent ten times a second, and a store that is gone is asked again as soon."""
    monkeypatch.setattr(mlflow_sink, "_SEND_EVERY_S", 0.1)
    monkeypatch.setattr(mlflow_sink, "_MAX_PAUSE_S", 0.1)


def tracked(folder: Path, store: Path, name: str, **overrides: Any) -> Training:
    """A small training in an experiment of a test's own; its folder is claimed."""
    mlflow = {"tracking.mlflow.uri": f"sqlite:///{store}", "tracking.mlflow.experiment": name}
    training = make_training(folder, **mlflow, **overrides)
    training.run.mkdir(exist_ok=True)
    (training.run / "job.json").write_text(training.job.model_dump_json())
    return training


def client(store: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{store}")


def runs(store: Path, name: str) -> list[Any]:
    """The runs of an experiment, as MLflow shows them."""
    found = client(store)
    return list(found.search_runs([found.get_experiment_by_name(name).experiment_id]))


def history(store: Path, run: Any, metric: str) -> list[tuple[int, float]]:
    """(step, value) in the order of the steps."""
    return sorted((point.step, point.value) for point in client(store).get_metric_history(run.info.run_id, metric))


def finish(training: Training, sink: mlflow_sink.MlflowSink | None) -> None:
    """As the stage does when it is done."""
    assert sink is not None
    sink.result = RESULT | {"checkpoint": str(training.run / "best")}
    (training.run / "result.json").write_text(json.dumps(sink.result))


def test_a_training_is_told_with_all_that_makes_it_up(store: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = data / "code"
    code.mkdir()
    monkeypatch.chdir(code)
    for command in ("init -q", "-c user.name=n -c user.email=e commit -q --allow-empty -m first"):
        subprocess.run(["git", *command.split(" ")], check=True)
    training = tracked(data, store, "whole", **{"tracking.mlflow.tags": {"team": "sensors"}})
    with mlflow_run(training) as sink:
        train(training)
        finish(training, sink)
    (run,) = runs(store, "whole")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["train.optimizer.lr"] == str(training.job.train.optimizer.lr)
    assert run.data.params["data.train"] == str(data / "train")
    assert not any(key.startswith("tracking") for key in run.data.params)
    tags = run.data.tags
    commit = working_copy(code)
    assert commit is not None and (tags["mlflow.source.git.commit"], tags["git_dirty"]) == (commit.commit, "false")
    assert tags["team"] == "sensors" and tags["data_digest"] == training.data_digest and "version.torch" in tags
    assert tags["checkpoint"] == str(training.run / "best")
    inputs = {given.tags[0].value: given.dataset for given in run.inputs.dataset_inputs}
    (selection,) = training.train.selections
    assert inputs.keys() == {"training", "validation"} and inputs["training"].digest == selection.digest[:36]

    lines = read_metrics(training.run)
    for kind, name in (("train", "loss"), ("train", "samples_per_s"), ("validation", "accuracy")):
        wanted = [(line["step"], line[name]) for line in lines if line["kind"] == kind]
        assert history(store, run, f"{kind}/{name}") == wanted
    (point, *_) = client(store).get_metric_history(run.info.run_id, "train/loss")
    assert point.timestamp == round(1000 * lines[0]["time"])
    assert 0 < run.data.metrics["system/system_memory_usage_percentage"] < 100
    assert run.data.metrics["result/accuracy"] == 0.75 and "result/gate" not in run.data.metrics
    artifacts = {found.path for found in client(store).list_artifacts(run.info.run_id)}
    assert artifacts == {"job.json", "result.json"}, "a checkpoint is uploaded only if that is wanted"
    assert (store.parent / "mlartifacts").is_dir()


@pytest.mark.ray
def test_the_stage_tracks_and_profiles_through_ray(
    local_ray: None, store: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiled = {"train.profile": {"start": 2, "steps": 2}, "train.epochs": 1}
    training = tracked(data, store, "stage", **profiled)
    result = run_stage(training.job)
    page = training.run / "profile" / "steps-2-3" / "summary.html"
    assert page.exists() and f"profile: {page}" in capsys.readouterr().err.replace("\n", "")
    (run,) = runs(store, "stage")
    assert run.info.status == "FINISHED" and run.data.metrics["result/accuracy"] == result["metrics"]["accuracy"]
    assert [step for step, _ in history(store, run, "train/loss")] == [1, 2, 3]
    assert {found.path for found in client(store).list_artifacts(run.info.run_id)} >= {"profile", "result.json"}
    assert run_stage(training.job)["status"] == "unchanged" and len(runs(store, "stage")) == 1


def test_a_training_that_was_killed_goes_on_in_the_same_run(store: Path, data: Path) -> None:
    settings = {"train.checkpoints.every_steps": 2, "tracking.mlflow.upload_checkpoint": True}
    training = tracked(data, store, "killed", **settings)
    with pytest.raises(Killed), mlflow_run(training):
        train(training, stop_before=7)
    (run,) = runs(store, "killed")
    assert run.info.status == "FAILED"
    before = history(store, run, "train/loss")
    again = tracked(data, store, "killed", **settings, **{"train.log_every_steps": 2, "resources.workers": 2})
    with mlflow_run(again) as sink:
        train(again)
        finish(again, sink)
    (run,) = runs(store, "killed")
    assert run.info.status == "FINISHED"
    assert run.data.params["resources.workers"] == "1" and run.data.tags["resumed.resources.workers"] == "2"
    after = history(store, run, "train/loss")
    assert after[: len(before)] == before and [step for step, _ in after] == sorted({step for step, _ in after})
    assert after[-1] == (6, read_metrics(again.run)[-2]["loss"])
    assert "checkpoint" in {found.path for found in client(store).list_artifacts(run.info.run_id)}


@pytest.mark.usefixtures("at_once")
def test_a_store_that_is_busy_for_a_while_is_told_once_and_loses_nothing(
    store: Path, data: Path, capsys: pytest.CaptureFixture[str], wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    training = tracked(data, store, "busy")
    with mlflow_run(training) as sink:
        assert sink is not None
        with sqlite3.connect(store, timeout=60, isolation_level=None) as other:
            other.execute("BEGIN EXCLUSIVE")
            train(training)
            said: list[str] = []

            def lost() -> bool:
                said.append(capsys.readouterr().err)
                return "takes no metrics at the moment" in "".join(said)

            wait_for(lost)
            other.execute("ROLLBACK")
        other.close()

        def taken() -> bool:
            said.append(capsys.readouterr().err)
            return "takes metrics again" in "".join(said)

        wait_for(taken)
    assert "".join(said).count("takes no metrics") == 1
    (run,) = runs(store, "busy")
    steps = [line["step"] for line in read_metrics(training.run) if line["kind"] == "train"]
    assert [step for step, _ in history(store, run, "train/loss")] == steps


@pytest.mark.usefixtures("at_once")
def test_what_a_store_did_not_take_at_the_end_the_same_command_sends_later(
    store: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_sink, "_LAST_WORDS_S", 20.0)
    training = tracked(data, store, "late")
    with sqlite3.connect(store, timeout=60, isolation_level=None) as other:
        with mlflow_run(training) as sink:
            other.execute("BEGIN EXCLUSIVE")
            train(training)
            finish(training, sink)
        assert "the same command sends the rest" in capsys.readouterr().err
        other.execute("ROLLBACK")
    other.close()
    result = json.loads((training.run / "result.json").read_text())
    send_the_rest(training, result)
    (run,) = runs(store, "late")
    assert run.info.status == "FINISHED" and run.data.metrics["result/accuracy"] == 0.75
    assert len(history(store, run, "train/loss")) == training.schedule.num_steps
    notes = (training.run / mlflow_sink.NOTES).read_text()
    send_the_rest(training, result)
    assert (training.run / mlflow_sink.NOTES).read_text() == notes, "nothing is left to be sent"


def test_nobody_at_the_address_is_an_error_of_the_call(data: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        job = make_training(data, **{"tracking.mlflow.uri": uri}).job
        with pytest.raises(UsageError, match=rf"tracking\.mlflow\.uri: nothing answers at {uri} .*refused"):
            require_mlflow(job)


def test_a_file_that_is_no_store_and_a_run_that_is_gone_are_errors_of_the_call(store: Path, data: Path) -> None:
    training = tracked(data, store, "gone")
    notes = {"uri": f"sqlite:///{store}", "run_id": "0" * 32, "sent": {}, "ended": False}
    (training.run / mlflow_sink.NOTES).write_text(json.dumps(notes))
    with pytest.raises(UsageError, match=r"can't be used .*remove .*mlflow\.json"), mlflow_run(training):
        pass
    other = data / "other.db"
    other.write_text("this is no database, but a text that is long enough to be taken for one, perhaps" * 50)
    training = tracked(data, other, "other")
    with pytest.raises(UsageError, match=r"tracking\.mlflow: sqlite:.*other\.db can't be used"), mlflow_run(training):
        pass


def test_without_the_extra_the_call_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_training(data, **{"tracking.mlflow": {}}).job
    monkeypatch.setitem(sys.modules, "alembic", None)
    with pytest.raises(UsageError, match=r"pip install 'ray_mm\[mlflow\]'"):
        require_mlflow(job)
    require_mlflow(make_training(data).job)


SECRETS = (
    "https://user:hunter2@mlflow.example.org",
    "https://hunter2@mlflow.example.org/path",
    "https://mlflow.example.org/?token=hunter2",
    "postgresql://user:hunter2@db/mlflow",
)


@pytest.mark.parametrize("uri", SECRETS)
def test_a_secret_in_an_address_is_refused_and_not_repeated(data: Path, uri: str) -> None:
    content = make_training(data).job.model_dump(mode="json")
    for given, overrides in (
        (content | {"tracking": {"mlflow": {"uri": uri}}}, {}),
        (content, {"tracking.mlflow.uri": uri}),
    ):
        with pytest.raises(JobFileError) as refused:
            load_job(given, overrides)
        assert "hunter2" not in str(refused.value) and "tracking.mlflow.uri" in str(refused.value)


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:5000", "https://mlflow.example.org/path", "sqlite:///runs/mlflow.db"]
)
def test_addresses_without_secrets_are_taken(data: Path, uri: str) -> None:
    job = load_job(make_training(data).job.model_dump(mode="json"), {"tracking.mlflow.uri": uri})
    assert isinstance(job, TrainJob) and job.tracking.mlflow is not None and job.tracking.mlflow.uri == uri


def test_texts_lose_what_an_address_may_hide() -> None:
    assert safe_text("s3://key:hunter2@bucket/train") == "s3://…@bucket/train"
    assert safe_text("https://host/a.tar?X-Signature=hunter2 and more") == "https://host/a.tar?… and more"
    assert safe_text("https://host/a@b.tar") == "https://host/a@b.tar"
    assert len(safe_text("x" * 9000)) == 500
    job = json.dumps({"a": "s3://key:hunter2@bucket", "b": "https://host/x?y=hunter2", "c": "me@home"}, indent=2)
    shown = {"a": "s3://…@bucket", "b": "https://host/x?…", "c": "me@home"}
    assert json.loads(redacted(job)) == shown and len(redacted("x" * 9000)) == 9000


def test_settings_are_flat_and_named_as_in_a_job() -> None:
    content = {"a": {"b": 1, "c": [1, 2], "d": {}}, "e": [{"path": "x"}, "y"], "f": None, "g": "text", "h": True}
    assert dict(flattened(content)) == {
        "a.b": "1",
        "a.c": "[1, 2]",
        "a.d": "{}",
        "e.0.path": "x",
        "e.1": "y",
        "f": "null",
        "g": "text",
        "h": "true",
    }


def test_a_working_copy_is_dirty_when_what_git_tracks_was_changed(tmp_path: Path) -> None:
    assert working_copy(tmp_path) is None
    (tmp_path / "code.py").write_text("1")
    for command in ("init -q", "add .", "-c user.name=n -c user.email=e commit -q -m first"):
        subprocess.run(["git", "-C", str(tmp_path), *command.split(" ")], check=True)
    (tmp_path / "untracked").write_text("1")
    clean = working_copy(tmp_path)
    assert clean is not None and not clean.dirty and len(clean.commit) == 40
    (tmp_path / "code.py").write_text("2")
    dirty = working_copy(tmp_path)
    assert dirty is not None and dirty.dirty and dirty.commit == clean.commit


def test_lines_are_followed_over_a_restart_of_the_workers(tmp_path: Path) -> None:
    tail = MetricsTail(tmp_path, {})
    assert tail.read() == []
    tracker = _written(tmp_path, 0, range(1, 5))
    assert _steps(tail) == [1, 2, 3, 4] and _steps(tail) == []
    tracker.close()
    _written(tmp_path, 2, (3, 4, 5)).close()
    assert _steps(tail) == [5]
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "step": 6')
        stream.flush()
        assert _steps(tail) == []
        stream.write("}\n")
    assert _steps(tail) == [6]
    assert [line["step"] for line in MetricsTail(tmp_path, {"train": 5}).read()] == [6]


def _written(run: Path, step: int, steps: Any) -> Tracker:
    tracker = Tracker(run, step)
    for number in steps:
        tracker.write("train", number, {"loss": 1.0})
    return tracker


def _steps(tail: MetricsTail) -> list[int]:
    return [line["step"] for line in tail.read()]
