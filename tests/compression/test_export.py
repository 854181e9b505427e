from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from ray_mm.compression.export import OPSET, check_parity, export_onnx, input_fields, random_batch, to_tensors
from ray_mm.config.fields import AudioField, ImageField, LabelField, PointsField, TextField, VectorField, VideoField
from ray_mm.data.fields import field_arrays, length_name, presence_name
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.errors import RayMMError
from ray_mm.models.multimodal import MultimodalModel, build_model, input_arrays, num_parameters
from tests.compression.conftest import Exported, model_config

FIELDS = Preprocessor(
    fields={
        "camera": ImageField(height=8, width=6),
        "clip": VideoField(num_frames=3, height=8, width=8),
        "sound": AudioField(rate_hz=1000, max_seconds=0.05),
        "order": TextField(max_tokens=7, vocabulary_size=20),
        "radar": PointsField(channels=4, max_points=5),
        "state": VectorField(size=3),
        "action": LabelField(classes=("a", "b")),
    }
)


def test_a_graph_computes_what_the_model_computes_whatever_the_batch_and_whatever_is_absent(exported: Exported) -> None:
    assert check_parity(exported.model, exported.preprocessor, exported.graph) < 1e-4


def test_a_graph_takes_the_arrays_of_a_batch_by_name_with_a_free_batch_axis(exported: Exported) -> None:
    content = onnx.load(exported.graph)
    assert {value.name for value in content.graph.input} == set(input_arrays(exported.model))
    assert [value.name for value in content.graph.output] == ["output"]
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in content.graph.input} == {"batch"}
    assert [entry.version for entry in content.opset_import if entry.domain == ""] == [OPSET]


def test_a_graph_holds_no_more_than_the_weights(exported: Exported) -> None:
    # The tables of the spectrogram are formulas, and what only a debugger reads is gone.
    assert exported.graph.stat().st_size < 1.15 * 4 * num_parameters(exported.model)
    content = onnx.load(exported.graph)
    assert not any(node.metadata_props or node.doc_string for node in content.graph.node)


def test_a_recurrent_layer_stays_one_operator(exported: Exported) -> None:
    operators = [node.op_type for node in onnx.load(exported.graph).graph.node]
    recurrent = [encoder.encoder for encoder in exported.config.fields.values()].count("recurrent")
    assert operators.count("GRU") == recurrent
    assert "Loop" not in operators


@pytest.mark.parametrize("exported", ["gated"], indirect=True)
def test_small_constants_survive_so_that_a_recording_of_a_few_frames_means_the_same(exported: Exported) -> None:
    session = onnxruntime.InferenceSession(exported.graph, providers=["CPUExecutionProvider"])
    batch = random_batch(exported.preprocessor, 4, frozenset(exported.model.fields), seed=0)
    batch["audio.length"] = np.array([1, 2, 3, 5], np.int32)
    batch["audio"][np.arange(batch["audio"].shape[1]) >= batch["audio.length"][:, None]] = 0
    with torch.inference_mode():
        expected = exported.model(to_tensors(batch)).numpy()
    np.testing.assert_allclose(session.run(None, batch)[0], expected, atol=1e-3)


def test_exporting_says_nothing_to_the_user(exported: Exported) -> None:
    assert exported.said == ""


def test_a_graph_with_other_weights_is_refused_with_the_batch_and_the_pattern(
    exported: Exported, tmp_path: Path
) -> None:
    content = onnx.load(exported.graph)
    weights = next(constant for constant in content.graph.initializer if constant.name.endswith("head.output.weight"))
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 1.5, weights.name))
    onnx.save(content, tmp_path / "other.onnx")
    with pytest.raises(
        RayMMError, match=r"other.onnx: with 1 samples and no field present .* differ by .* in sample 0"
    ):
        check_parity(exported.model, exported.preprocessor, tmp_path / "other.onnx")


def test_a_model_that_the_tracer_does_not_follow_is_refused_in_one_line(tmp_path: Path) -> None:
    preprocessor = Preprocessor(fields={"state": VectorField(size=3), "action": LabelField(classes=("a", "b"))})
    model = _Branches(build_model(model_config({"state": None}, "concat", "action", dim=8), preprocessor).eval())
    with pytest.raises(RayMMError, match="can't be exported to ONNX") as refusal:
        export_onnx(model, preprocessor, tmp_path / "graph.onnx")  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


class _Branches(torch.nn.Module):
    """Does something else when the data is something else."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model
        self.fields, self.arrays = model.fields, model.arrays

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        output: torch.Tensor = self.model(batch)
        return output if output.sum() > 0 else -output


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.none() | st.frozensets(st.sampled_from(input_fields(FIELDS))), st.integers(0, 10**6))
def test_noise_is_a_valid_batch(size: int, present: frozenset[str] | None, seed: int) -> None:
    batch = random_batch(FIELDS, size, present, seed)
    for name in input_fields(FIELDS):
        spec = FIELDS.fields[name]
        there = batch[presence_name(name)]
        if present is not None:
            assert (there == (name in present)).all()
        for array, expected in field_arrays(name, spec).items():
            assert batch[array].dtype == expected.dtype
            assert batch[array].shape == (size, *expected.shape)
            assert not batch[array][~there].any()
        if length_name(name) in batch:
            outside = np.arange(batch[name].shape[1]) >= batch[length_name(name)][:, None]
            assert not batch[name][outside].any()
            assert (batch[length_name(name)][there] >= 1).all()
    assert batch["order"].max() < 20
    assert "action" not in batch


def test_arrays_that_may_not_be_written_to_become_tensors_of_their_own() -> None:
    values = np.zeros(3, np.float32)
    values.flags.writeable = False
    tensors = to_tensors({"state": values})
    tensors["state"][0] = 1.0
    assert values[0] == 0.0
