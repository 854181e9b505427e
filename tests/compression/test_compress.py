from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ray_mm.compression import compress
from ray_mm.compression.compress import run_compress
from ray_mm.compression.quantize import Quantized
from ray_mm.config.compress import CompressJob
from ray_mm.data.epochs import sequence
from ray_mm.data.manifest import open_dataset
from ray_mm.data.reader import read_batches
from ray_mm.errors import CheckpointError, DatasetError, GateRefused, UsageError
from ray_mm.predictor import load_predictor
from tests.factories import make_dataset

FIELDS = ("audio", "image", "label")
LATENCY = {"batch_sizes": [1, 8], "rounds": 3}
# What a busy machine can't promise, and what a tiny model can't reach.
EASY = {"max_size_ratio": 0.6, "min_speedup": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder / "validation", 24, FIELDS, seed=1)
    make_dataset(folder / "test", 24, FIELDS, seed=2, missing={"audio": 0.2})
    return folder


def job(trained: Path, datasets: Path, output: Path, /, **more: Any) -> CompressJob:
    content: dict[str, Any] = {
        "kind": "compress",
        "name": "small",
        "checkpoint": str(trained),
        "calibration_data": str(datasets / "validation"),
        "data": str(datasets / "test"),
        "latency": LATENCY,
        "gate": EASY,
        "output": str(output),
    }
    return CompressJob.model_validate(content | more)


@pytest.mark.ray
def test_an_artifact_that_meets_the_gate_is_published_and_answers_like_its_checkpoint(
    local_ray: None, trained: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = run_compress(job(trained, data, run))
    assert result == json.loads((run / "result.json").read_text())
    assert result["status"] == "done"
    metrics = result["metrics"]
    assert metrics["gate"] == "passed"
    assert metrics["metric_drop"] == pytest.approx(metrics["original"]["accuracy"] - metrics["artifact"]["accuracy"])
    assert metrics["size_ratio"] < 0.6
    assert metrics["speedup_p50"] == min(metrics["speedups_p50"].values())
    assert sorted(metrics["latency"]) == ["1", "8"]
    assert metrics["num_quantized"] > 10
    assert sorted(metrics["metric_drop_subsets"]) == ["audio", "audio+image", "image"]
    assert not (run / "refused").exists() and not (run / "candidate").exists()

    files = sorted(path.name for path in (run / "artifact").iterdir())
    assert files == ["artifact.json", "model.json", "model.onnx", "preprocessor.json"]
    written = json.loads((run / "artifact" / "artifact.json").read_text())
    assert written["gate"] == "passed"
    assert written["parent"]["digest"] == json.loads((trained / "model.json").read_text())["digest"]
    assert sorted(written["files"]) == ["model.json", "model.onnx", "preprocessor.json"]

    for name in ("original", "artifact"):
        evaluation = json.loads((run / "evaluation" / name / "result.json").read_text())
        assert evaluation["metrics"]["accuracy"] == metrics[name]["accuracy"]
    scored = run / "evaluation" / "artifact"
    assert json.loads((scored / "job.json").read_text())["checkpoint"] == str(run / "artifact")
    assert str(run / "candidate") not in (scored / "result.json").read_text() + (scored / "report.html").read_text()

    original, artifact = load_predictor(trained), load_predictor(run)
    test = open_dataset(data / "test")
    for batch in read_batches(sequence(test), original.preprocessor, 24):
        np.testing.assert_allclose(artifact.outputs(batch), original.outputs(batch), atol=0.1)
    assert artifact.size_bytes < original.size_bytes


@pytest.mark.ray
def test_a_refusal_leaves_no_artifact_and_says_what_was_missed_and_by_how_much(
    local_ray: None, trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    older = run / "artifact"
    older.mkdir(parents=True)
    (older / "artifact.json").write_text("{}")
    (run / "job.json").write_text(job(trained, data, run).model_dump_json())
    real = compress.quantize

    def worse(source: Path, target: Path, *more: Any) -> Quantized:
        found = real(source, target, *more)
        _forget_the_head(target)
        return found

    monkeypatch.setattr(compress, "quantize", worse)
    with pytest.raises(GateRefused) as refusal:
        run_compress(job(trained, data, run, gate=EASY | {"max_size_ratio": 0.01}))
    assert refusal.value.exit_status == 3
    text = str(refusal.value)
    assert "metric_drop, size_ratio" in text and text.count("MISSED by") == 2
    assert not older.exists() and not (run / "candidate").exists()
    assert (run / "refused" / "model.onnx").is_file()
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "refused"
    assert result["metrics"]["gate"] == "refused"
    assert result["metrics"]["metric_drop"] > 0.3
    with pytest.raises(CheckpointError, match="published no artifact"):
        load_predictor(run)


def _forget_the_head(graph: Path) -> None:
    """Sets the weights of the last product to zero."""
    content = onnx.load(graph)
    last = [node for node in content.graph.node if node.op_type == "Gemm"][-1]
    source = next(node for node in content.graph.node if node.output[0] == last.input[1]).input[0]
    weights = next(constant for constant in content.graph.initializer if constant.name == source)
    weights.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(weights)), source))
    onnx.save(content, graph)


@pytest.mark.parametrize("harm", ["cut short", "not finite"])
def test_a_model_that_does_not_answer_is_refused_without_an_evaluation(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(compress, "export_onnx", lambda model, preprocessor, path: path.write_bytes(b""))

    def broken(source: Path, target: Path, *more: Any) -> Quantized:
        if harm == "cut short":
            target.write_bytes(b"no graph")
        else:
            onnx.save(_graph_of_nan(), target)
        return Quantized(7, 0, ())

    monkeypatch.setattr(compress, "quantize", broken)
    with pytest.raises(GateRefused, match=r"It can't be used: .*(can't load it|not finite)"):
        run_compress(job(trained, data, run))
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert metrics["metric_drop"] is None and metrics["speedup_p50"] is None
    assert not (run / "evaluation").exists() and not (run / "artifact").exists()


def _graph_of_nan() -> onnx.ModelProto:
    """presence [B] → [B, 3] that is NaN."""
    presence = helper.make_tensor_value_info("image.presence", TensorProto.BOOL, ["batch"])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 3])
    nan = numpy_helper.from_array(np.full((1, 3), np.nan, np.float32), "nan")
    axis = numpy_helper.from_array(np.array([1]), "axis")
    nodes = [
        helper.make_node("Cast", ["image.presence"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["number", "axis"], ["column"]),
        helper.make_node("Add", ["column", "nan"], ["output"]),
    ]
    graph = helper.make_graph(nodes, "nan", [presence], [output], [nan, axis])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_missing_package_is_named_with_what_to_install(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"onnxruntime.* pip install 'ray_mm\[onnx\]'"):
        run_compress(job(trained, data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_calibrating_with_the_data_that_judges_is_refused(trained: Path, data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data / "test", tmp_path / "copy")
    with pytest.raises(DatasetError, match="are the same dataset"):
        run_compress(job(trained, data, tmp_path / "run", calibration_data=str(copy)))


def test_a_dataset_that_does_not_fit_is_refused_with_every_difference(
    trained: Path, data: Path, tmp_path: Path
) -> None:
    other = make_dataset(tmp_path / "other", 6, ("image", "number"))
    with pytest.raises(DatasetError, match="has no field 'audio'; has no field 'label'"):
        run_compress(job(trained, data, tmp_path / "run", calibration_data=str(other)))


def test_data_without_a_label_is_refused(trained: Path, data: Path, tmp_path: Path) -> None:
    unlabelled = make_dataset(tmp_path / "unlabelled", 6, FIELDS, missing={"label": 1.0})
    with pytest.raises(DatasetError, match="no sample has the label 'label'"):
        run_compress(job(trained, data, tmp_path / "run", data=str(unlabelled)))


def test_a_missing_or_newer_checkpoint_is_refused(trained: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        run_compress(job(trained, data, tmp_path / "run", checkpoint=str(tmp_path / "nowhere")))
    newer = Path(shutil.copytree(trained, tmp_path / "newer"))
    content = json.loads((newer / "model.json").read_text())
    (newer / "model.json").write_text(json.dumps(content | {"version": 99}))
    with pytest.raises(CheckpointError, match="version 99"):
        run_compress(job(trained, data, tmp_path / "run", checkpoint=str(newer)))
    assert not (tmp_path / "run").exists()


def test_what_is_compressed_already_is_refused(trained: Path, data: Path, artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is compressed already"):
        run_compress(job(trained, data, tmp_path / "run", checkpoint=str(artifact)))
