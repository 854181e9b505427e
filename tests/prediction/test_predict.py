"""The whole predict stage on real tars with a real Ray: answers, files, what is left after an interruption, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_mm.checkpoint import load_checkpoint, save_checkpoint
from ray_mm.config.predict import PredictJob
from ray_mm.data.feed import Feed
from ray_mm.errors import CheckpointError, DatasetError, JobFileError, OutputFolderError, QuarantineBudgetError
from ray_mm.model_folder import model_digest
from ray_mm.prediction.answerer import Answerer
from ray_mm.prediction.predict import run_predict
from ray_mm.predictor import load_predictor
from ray_mm.running import run_job
from tests.evaluation.scenes import Scene, decoded_blocks, make_scene
from tests.evaluation.test_evaluate import export
from tests.factories import CLASSES, edit_manifest, make_dataset

BAD = 23
NUM_SAMPLES = 40


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Two fields, some of them missing, and one picture that can't be decoded; eight samples to a shard."""
    return make_scene(
        tmp_path_factory.mktemp("scene"),
        ["image", "vector"],
        num_samples=NUM_SAMPLES,
        missing={"image": 0.3, "vector": 0.3},
        corrupt=[(BAD, "image")],
        num_shards=5,
    )


@pytest.fixture(scope="module")
def whole(scene: Scene, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run_predict(job_for(scene, output))
    return output


def job_for(scene: Scene, output: Path, **settings: Any) -> PredictJob:
    """Files end within batches."""
    return PredictJob.model_validate(
        {
            "kind": "predict",
            "name": "scene",
            "checkpoint": str(scene.checkpoint),
            "data": str(scene.dataset.root),
            "batch_size": 8,
            "rows_per_file": 12,
            "output": str(output),
            **settings,
        }
    )


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "predictions").iterdir())}


def times(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((run / "predictions").iterdir())}


def members(folder: Path, fields: list[str]) -> dict[str, dict[str, bytes]]:
    """Key → field → the bytes of its member, in the order of the shards."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("shards/*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, field, *_ = info.name.split(".")
                stream = tar.extractfile(info)
                assert stream is not None
                if field in fields:
                    found.setdefault(key, {})[field] = stream.read()
                else:
                    found.setdefault(key, {})
    return found


@pytest.mark.ray
def test_answers_are_those_of_the_predictor(scene: Scene, whole: Path) -> None:
    table = pq.read_table(whole / "predictions")
    assert table.column_names == ["key", "prediction", "probabilities", "image.presence", "vector.presence"]
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == [f"sample{i:06d}" for i in range(NUM_SAMPLES)]
    samples = members(Path(scene.dataset.root), ["image", "vector"])
    good = [row for row in rows if row["key"] != f"sample{BAD:06d}"]
    predictor = load_predictor(scene.checkpoint, device="cpu")
    expected = list(predictor.predict_many([samples[row["key"]] for row in good]))
    assert [row["prediction"] for row in good] == [one.label for one in expected]
    wanted = [[(one.probabilities or {})[name] for name in CLASSES] for one in expected]
    np.testing.assert_allclose([row["probabilities"] for row in good], wanted, atol=1e-6)
    for field in ("image", "vector"):
        assert [row[f"{field}.presence"] for row in good] == [one.presence[field] for one in expected]
    assert rows[BAD] == {
        "key": f"sample{BAD:06d}",
        "prediction": None,
        "probabilities": None,
        "image.presence": False,
        "vector.presence": False,
    }
    (record,) = (whole / "quarantine").glob("*.json")
    assert json.loads(record.read_text())["key"] == f"sample{BAD:06d}"

    result = json.loads((whole / "result.json").read_text())
    bare = sum(not any(one.presence.values()) for one in expected)
    assert bare > 0, "the label alone is there"
    assert (result["kind"], result["status"]) == ("predict", "done")
    assert result["metrics"] == {
        "num_rows": NUM_SAMPLES,
        "num_predicted": NUM_SAMPLES - 1,
        "num_quarantined": 1,
        "num_without_fields": bare,
        "num_files": 4,
    }
    labels = [row["prediction"] for row in good]
    assert result["classes"] == {name: labels.count(name) for name in CLASSES}
    assert result["data"]["digest"] == scene.dataset.manifest.digest
    assert result["checkpoint"] == str(scene.checkpoint)
    numbers = [pq.read_metadata(path).num_rows for path in sorted((whole / "predictions").iterdir())]
    assert numbers == [12, 12, 12, 4]


@pytest.mark.ray
def test_a_finished_run_is_left_as_it_is(scene: Scene, whole: Path, tmp_path: Path) -> None:
    before = times(whole)
    again = run_predict(job_for(scene, whole, bad_samples={"max_count": 3}))
    assert again["status"] == "unchanged" and times(whole) == before

    # One that was killed before it could say so says so.
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    result = run_predict(job_for(scene, tmp_path / "run"))
    assert (result["status"], result["metrics"]) == ("done", again["metrics"])
    assert times(tmp_path / "run") == before


@pytest.mark.ray
def test_two_actors_and_several_executions_write_the_same_files(
    scene: Scene, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def short(**settings: Any) -> Feed:
        begun.append(settings["first_item"])
        return Feed(**settings, tasks_per_execution=1, samples_per_task=24)

    monkeypatch.setattr("ray_mm.data.source.Feed", short)
    result = run_predict(job_for(scene, tmp_path / "run", resources={"workers": 2}))
    assert begun == [0, 3], "of five batches"
    assert files(tmp_path / "run") == files(whole)
    assert result["metrics"]["num_predicted"] == NUM_SAMPLES - 1


@pytest.mark.ray
def test_stopped_in_the_middle_it_goes_on_behind_the_last_whole_file(
    scene: Scene, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(QuarantineBudgetError, match=rf"1 of 24 samples .*max_count 0.*sample{BAD:06d}"):
        run_predict(job_for(scene, run, bad_samples={"max_count": 0}))
    before = times(run)
    assert list(before) == ["part-00000.parquet"] and not (run / "result.json").exists()
    read_before = scene.dataset.shard_path(0)
    read_before.rename(tmp_path / "away")
    try:
        result = run_predict(job_for(scene, run))
    finally:
        (tmp_path / "away").rename(read_before)
    assert "goes on behind 12 of 40 samples." in capsys.readouterr().err
    assert files(run) == files(whole)
    assert times(run)["part-00000.parquet"] == before["part-00000.parquet"]
    expected = json.loads((whole / "result.json").read_text())
    assert (result["metrics"], result["classes"]) == (expected["metrics"], expected["classes"])
    assert len(list((run / "quarantine").glob("*.json"))) == 1


_KILLED = """
import os, signal
from ray_mm.cli import main
from ray_mm.prediction.partitions import PartitionWriter

add = PartitionWriter.add

def add_and_die(self, table):
    add(self, table)
    if (self._partitions.folder / "part-00002.parquet").exists():
        os.kill(os.getpid(), signal.SIGKILL)

PartitionWriter.add = add_and_die
main()
"""


@pytest.mark.ray
def test_killed_in_the_middle_it_ends_with_the_same_files(local_ray: None, tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "scene", ["vector"], num_samples=100)
    settings: dict[str, Any] = {"rows_per_file": 5, "batch_size": 4}
    job = job_for(scene, tmp_path / "run", **settings)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", _KILLED, "run", str(tmp_path / "job.json")]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = {name: mtime for name, mtime in times(tmp_path / "run").items() if name.endswith(".parquet")}
    assert len(before) == 3
    result = run_predict(job)
    assert result["status"] == "done" and result["metrics"]["num_rows"] == 100
    after = times(tmp_path / "run")
    assert len(after) == 20 and {name: after[name] for name in before} == before
    run_predict(job_for(scene, tmp_path / "whole", **settings))
    assert files(tmp_path / "run") == files(tmp_path / "whole")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_tars_of_others_need_neither_the_label_nor_all_of_the_inputs(
    scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = make_dataset(tmp_path / "tars", 10, ("vector", "points"))
    in_place = {
        "kind": "preprocess",
        "name": "foreign",
        "shards": str(tars / "shards" / "*.tar"),
        "fields": {"vector": {"type": "vector"}},
        "splits": {"by": "hash", "fractions": {"all": 1.0}},
        "output": str(tmp_path / "data"),
    }
    run_job(in_place)
    foreign = tmp_path / "data" / "all"
    result = run_predict(job_for(scene, tmp_path / "run", data=str(foreign)))
    assert f"ray-mm: data: {foreign} has no field 'image': absent in every sample." in capsys.readouterr().err
    assert result["data"]["lacks"] == ["image"]
    expected = load_predictor(scene.checkpoint, device="cpu").predict_many(members(tars, ["vector"]).values())
    found = pq.read_table(result["predictions"]).to_pylist()
    assert [row["prediction"] for row in found] == [one.label for one in expected]
    assert not any(row["image.presence"] for row in found) and all(row["vector.presence"] for row in found)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("label", ["number", "tags"])
def test_numbers_and_several_classes_are_predicted_as_well(tmp_path: Path, label: str) -> None:
    scene = make_scene(tmp_path, ["vector"], label, num_samples=20)
    result = run_predict(job_for(scene, tmp_path / "run"))
    samples = members(Path(scene.dataset.root), ["vector"]).values()
    expected = list(load_predictor(scene.checkpoint, device="cpu").predict_many(samples))
    found = pq.read_table(result["predictions"])
    if label == "number":
        assert found.column_names == ["key", "prediction", "vector.presence"] and "classes" not in result
        np.testing.assert_allclose(found.column("prediction").to_numpy(), [one.label for one in expected], rtol=1e-5)
        return
    assert [tuple(names) for names in found.column("prediction").to_pylist()] == [one.label for one in expected]
    assert sum(result["classes"].values()) == sum(len(names) for names in found.column("prediction").to_pylist()) > 0


@pytest.mark.ray
def test_an_artifact_predicts_by_the_same_job(scene: Scene, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    artifact = export(scene, tmp_path / "artifact")
    result = run_predict(job_for(scene, tmp_path / "run", checkpoint=str(artifact), rows_per_file=100))
    assert result["checkpoint"] == str(artifact)
    found, expected = (pq.read_table(run / "predictions").to_pylist() for run in (tmp_path / "run", whole))
    assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["probabilities"] == (other["probabilities"] and pytest.approx(other["probabilities"], abs=1e-5))


@pytest.mark.ray
def test_other_settings_another_model_and_another_dataset_are_refused(
    scene: Scene, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = times(run)
    with pytest.raises(OutputFolderError, match=r"other settings \(rows_per_file was 12 and is now 10\)"):
        run_predict(job_for(scene, run, rows_per_file=10))
    part = {"path": str(scene.dataset.root), "limit": 12}
    with pytest.raises(OutputFolderError, match=r"other settings \(data was "):
        run_predict(job_for(scene, run, data=part))
    model = scene.checkpoint / "model.json"
    content = model.read_text()
    try:
        model.write_text(json.dumps(json.loads(content) | {"metrics": {"accuracy": 0.5}}))
        with pytest.raises(OutputFolderError, match=r"part-00000\.parquet was made with another model"):
            run_predict(job_for(scene, run))
    finally:
        model.write_text(content)
    manifest = Path(scene.dataset.root) / "dataset.json"
    content = manifest.read_text()
    try:
        edit_manifest(manifest.parent, lambda content: content.update(digest="0" * 64))
        with pytest.raises(OutputFolderError, match=r"part-00000\.parquet was made with another dataset"):
            run_predict(job_for(scene, run))
    finally:
        manifest.write_text(content)
    assert times(run) == before and (run / "result.json").exists()


def test_another_model_in_the_same_place_is_not_taken_for_the_one_that_was_checked(
    scene: Scene, tmp_path: Path
) -> None:
    shutil.copytree(scene.checkpoint, tmp_path / "best")
    digest = model_digest(tmp_path / "best")
    table = next(decoded_blocks(scene))
    Answerer(str(tmp_path / "best"), digest, "cpu", 1)(table)
    published = load_checkpoint(scene.checkpoint)
    state = {name: tensor + 1 for name, tensor in published.state.items()}
    save_checkpoint(tmp_path / "best", state, published.config, published.preprocessor, published.metrics)
    with pytest.raises(CheckpointError, match="another model was put there since the run began"):
        Answerer(str(tmp_path / "best"), digest, "cpu", 1)(table)


def test_what_is_not_there_is_said_before_anything_starts(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        run_predict(job_for(scene, tmp_path / "run", checkpoint=str(tmp_path / "nothing")))
    with pytest.raises(DatasetError, match="no such dataset folder"):
        run_predict(job_for(scene, tmp_path / "run", data=str(tmp_path / "nothing")))
    other = make_dataset(tmp_path / "other", 6, ("points", "label"))
    with pytest.raises(DatasetError, match="it has none of the fields that the model reads, image, vector"):
        run_predict(job_for(scene, tmp_path / "run", data=str(other)))
    content = job_for(scene, tmp_path / "run").model_dump(mode="json")
    with pytest.raises(JobFileError) as caught:
        run_job(content | {"rows_per_file": 0})
    assert "rows_per_file: " in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
