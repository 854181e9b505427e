"""The whole evaluate stage on real tars with a real Ray: figures, predictions, report, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_mm.config.evaluate import EvaluateJob
from ray_mm.config.fields import LabelField
from ray_mm.errors import CheckpointError, DatasetError, OutputFolderError, QuarantineBudgetError
from ray_mm.evaluation.evaluate import run_evaluate
from ray_mm.predictor import load_predictor
from tests.evaluation.scenes import Scene, make_scene, whole
from tests.factories import CLASSES, class_of, edit_manifest, make_dataset, number_of

BAD = 7


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Two fields, some of them missing, and one picture that can't be decoded."""
    return make_scene(
        tmp_path_factory.mktemp("scene"),
        ["image", "vector"],
        missing={"image": 0.3, "vector": 0.2},
        corrupt=[(BAD, "image")],
    )


def job_for(scene: Scene, output: Path, **settings: Any) -> EvaluateJob:
    return EvaluateJob.model_validate(
        {
            "kind": "evaluate",
            "name": "scene",
            "checkpoint": str(scene.checkpoint),
            "data": str(scene.dataset.root),
            "batch_size": 16,
            "output": str(output),
            **settings,
        }
    )


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_figures_of_every_subset_are_those_of_the_predictor(scene: Scene, tmp_path: Path) -> None:
    result = run_evaluate(job_for(scene, tmp_path / "run", examples=4))

    batch = whole(scene)
    good = np.flatnonzero(batch["weight"])
    assert len(good) == 39
    names = {"image": ["image"], "vector": ["vector"], "image+vector": ["image", "vector"]}
    outputs = load_predictor(scene.checkpoint).outputs(batch, [frozenset(each) for each in names.values()])
    labels = batch["label"][good]
    assert labels.tolist() == [class_of(i) for i in good.tolist()]
    for name, probabilities in zip(names, outputs[:, good], strict=True):
        found = result["metrics"]["subsets"][name]
        assert found["accuracy"] == float((probabilities.argmax(1) == labels).mean())
        assert found["log_loss"] == pytest.approx(-np.log(probabilities[np.arange(len(good)), labels]).mean(), abs=1e-6)
        there = np.logical_or.reduce([batch[f"{field}.presence"][good] for field in names[name]])
        assert found["coverage"] == pytest.approx(there.mean())
    metrics = result["metrics"]
    assert {key: metrics[key] for key in ("num_samples", "num_quarantined", "num_unlabelled")} == {
        "num_samples": 39,
        "num_quarantined": 1,
        "num_unlabelled": 0,
    }
    full = metrics["subsets"]["image+vector"]
    assert {key: metrics[key] for key in ("accuracy", "macro_f1", "ece", "log_loss")} == {
        key: value for key, value in full.items() if key != "coverage"
    }
    assert sum(metrics["contributions"].values()) == pytest.approx(
        metrics["accuracy"] - metrics["baseline"]["accuracy"]
    )
    assert sum(sum(row) for row in result["confusion"]) == 39

    predictions = pq.read_table(result["predictions"]).to_pylist()
    assert [row["key"] for row in predictions] == [f"sample{i:06d}" for i in good.tolist()]
    assert [row["label"] for row in predictions] == [CLASSES[label] for label in labels.tolist()]
    np.testing.assert_allclose([row["probabilities"] for row in predictions], outputs[2, good], atol=1e-6)
    assert np.mean([row["correct"] for row in predictions]) == metrics["accuracy"]
    assert [row["image.presence"] for row in predictions] == batch["image.presence"][good].tolist()

    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    report = Path(result["report"]).read_text()
    assert "1 unreadable, not scored" in report
    assert report.count('<article class="card">') == 8
    (record,) = (tmp_path / "run" / "quarantine").glob("*.json")
    assert json.loads(record.read_text())["key"] == f"sample{BAD:06d}"


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_one_and_two_actors_give_exactly_the_same(scene: Scene, tmp_path: Path) -> None:
    one = run_evaluate(job_for(scene, tmp_path / "one", batch_size=4))
    two = run_evaluate(job_for(scene, tmp_path / "two", batch_size=4, resources={"workers": 2}))
    assert one["metrics"] == two["metrics"]
    assert one["confusion"] == two["confusion"]
    assert pq.read_table(one["predictions"]).equals(pq.read_table(two["predictions"]))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_dataset_without_one_of_the_inputs_is_scored_without_it(
    scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blind = make_dataset(tmp_path / "blind", 24, ("vector", "label"))
    result = run_evaluate(job_for(scene, tmp_path / "run", data=str(blind)))
    assert f"ray-mm: data: {blind} has no field 'image': absent in every sample." in capsys.readouterr().err
    assert result["data"]["lacks"] == ["image"]
    subsets = result["metrics"]["subsets"]
    assert subsets["image+vector"] == subsets["vector"], "nothing is there to see"
    assert subsets["image"]["coverage"] == 0
    assert result["metrics"]["num_samples"] == 24 and result["metrics"]["num_quarantined"] == 0
    assert "in no sample: image" in Path(result["report"]).read_text()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_number_is_judged_in_its_own_unit(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, ["vector", "series"], "number", 24, missing={"number": 0.2})
    result = run_evaluate(job_for(scene, tmp_path / "run", subsets="full"))
    batch = whole(scene)
    labelled = batch["number.presence"]
    values = load_predictor(scene.checkpoint).outputs(batch)[0]
    true = np.array([number_of(i) for i in range(24)])
    errors = (values - true)[labelled]
    metrics = result["metrics"]
    assert metrics["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert metrics["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-5)
    assert metrics["num_samples"] == labelled.sum() < 24
    assert metrics["num_unlabelled"] == 24 - labelled.sum()
    mean = scene.preprocessor.statistics["number"].mean[0]
    assert metrics["baseline"]["mae"] == pytest.approx(np.abs(true[labelled] - mean).mean(), rel=1e-5)
    assert list(metrics["subsets"]) == ["series+vector"]
    predictions = pq.read_table(result["predictions"])
    assert predictions.column_names == ["key", "label", "prediction", "error", "series.presence", "vector.presence"]
    assert predictions.column("label").null_count == predictions.column("error").null_count == 24 - labelled.sum()
    np.testing.assert_allclose(predictions.column("prediction").to_numpy(), values, rtol=1e-5)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_an_artifact_is_evaluated_by_the_same_job(scene: Scene, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    artifact = export(scene, tmp_path / "artifact")
    original = run_evaluate(job_for(scene, tmp_path / "original"))
    exported = run_evaluate(job_for(scene, tmp_path / "exported", checkpoint=str(artifact)))
    for name, figures in original["metrics"]["subsets"].items():
        assert exported["metrics"]["subsets"][name] == pytest.approx(figures, abs=1e-4)
    assert "onnxruntime" in Path(exported["report"]).read_text()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_too_many_bad_samples_stop_the_run_and_leave_no_result(scene: Scene, tmp_path: Path) -> None:
    run_evaluate(job_for(scene, tmp_path / "run", subsets="full"))
    strict = job_for(scene, tmp_path / "run", subsets="full", bad_samples={"max_count": 0})
    with pytest.raises(QuarantineBudgetError, match=rf"max_count 0.*sample{BAD:06d}"):
        run_evaluate(strict)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {".lock", "job.json", "quarantine"}


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_an_error_inside_ray_is_told_in_its_own_words(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, ["vector"], num_samples=8)
    scene.dataset.shard_path(1).unlink()
    with pytest.raises(DatasetError) as caught:
        run_evaluate(job_for(scene, tmp_path / "run"))
    assert re.fullmatch(rf"{scene.dataset.shard_path(1)}\[sample\d+\]: the shard is missing\.", str(caught.value))
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {".lock", "job.json", "quarantine"}


def test_a_dataset_that_does_not_fit_is_refused_with_every_difference(scene: Scene, tmp_path: Path) -> None:
    folder = make_dataset(
        tmp_path / "other", 6, ["vector", "label"], specs={"label": LabelField(classes=("left", "right", "go"))}
    )
    for section in ("fields", "members"):
        edit_manifest(
            folder, lambda content, section=section: content[section].update(image=content[section]["vector"])
        )
    with pytest.raises(DatasetError, match=r"image is vector, the model reads image; label has classes .*: 'go' "):
        run_evaluate(job_for(scene, tmp_path / "run", data=str(folder)))
    assert not (tmp_path / "run").exists()


def test_a_dataset_without_labels_is_refused(scene: Scene, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "bare", 6, ["image", "vector", "label"], missing={"label": 1.0})
    with pytest.raises(DatasetError, match="no sample has the label 'label'"):
        run_evaluate(job_for(scene, tmp_path / "run", data=str(folder)))


def test_what_is_not_there_is_said_before_anything_starts(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        run_evaluate(job_for(scene, tmp_path / "run", checkpoint=str(tmp_path / "nothing")))
    with pytest.raises(DatasetError, match="no such dataset folder"):
        run_evaluate(job_for(scene, tmp_path / "run", data=str(tmp_path / "nothing")))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputFolderError, match="is not a run's folder"):
        run_evaluate(job_for(scene, tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def export(scene: Scene, folder: Path) -> Path:
    """The scene's model as an artifact."""
    from ray_mm.checkpoint import load_checkpoint
    from ray_mm.compression.export import export_onnx

    checkpoint = load_checkpoint(scene.checkpoint)
    folder.mkdir()
    export_onnx(checkpoint.build(), checkpoint.preprocessor, folder / "model.onnx")
    from ray_mm.checkpoint import save_description
    from ray_mm.model_folder import ARTIFACT_FILE, ARTIFACT_FORMAT, ARTIFACT_FORMAT_NAME
    from ray_mm.storage import sha256_file, write_json

    save_description(folder, checkpoint.config, checkpoint.preprocessor, {}, digest=None)
    write_json(
        folder / ARTIFACT_FILE,
        {"format": ARTIFACT_FORMAT_NAME, "version": ARTIFACT_FORMAT, "digest": sha256_file(folder / "model.onnx")},
    )
    return folder
