from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from ray_mm.compression.calibrate import with_absences
from ray_mm.compression.export import export_onnx, random_batch, to_tensors
from ray_mm.compression.quantize import (
    Quantized,
    before_logarithm,
    quantize,
    round_rows,
    store_as_int8,
    weighted_products,
)
from ray_mm.config.compress import QuantizeConfig
from ray_mm.config.fields import AudioField, LabelField
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.models.multimodal import build_model, num_parameters
from tests.compression.conftest import Exported, model_config

INTEGER_KERNELS = {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}


@pytest.fixture(scope="module")
def quantized(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Quantized]:
    target = tmp_path_factory.mktemp("quantized") / "model.onnx"
    batches = list(with_absences(exported.batches, exported.model.fields))
    return target, quantize(exported.graph, target, batches, QuantizeConfig())


def run(graph: Path, batch: dict[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    output: npt.NDArray[np.float32] = session.run(
        None, {value.name: batch[value.name] for value in session.get_inputs()}
    )[0]
    return output


def optimised(graph: Path, folder: Path) -> onnx.GraphProto:
    """What onnxruntime really runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx").graph


def test_every_product_with_weights_becomes_an_integer_product(
    exported: Exported, quantized: tuple[Path, Quantized]
) -> None:
    _, found = quantized
    assert found.num_float == 0
    assert found.num_quantized == len(weighted_products(onnx.load(exported.graph).graph)) > 5


def test_the_runtime_runs_them_on_integers(quantized: tuple[Path, Quantized], tmp_path: Path) -> None:
    target, found = quantized
    operators = Counter(node.op_type for node in optimised(target, tmp_path).node)
    assert sum(operators[kernel] for kernel in INTEGER_KERNELS) == found.num_quantized


def test_the_file_is_little_more_than_a_byte_a_weight(exported: Exported, quantized: tuple[Path, Quantized]) -> None:
    assert quantized[0].stat().st_size < 0.35 * 4 * num_parameters(exported.model)


def test_outputs_stay_close_with_every_field_and_with_one_alone(
    exported: Exported, quantized: tuple[Path, Quantized]
) -> None:
    for batch in with_absences(exported.batches, exported.model.fields):
        with torch.inference_mode():
            expected = exported.model(to_tensors(dict(batch))).numpy()
        error = np.square(run(quantized[0], dict(batch)) - expected).mean() / np.square(expected).mean()
        assert error < 0.01


@pytest.mark.parametrize("exported", ["concat", "gated"], indirect=True)
def test_weights_of_recurrent_layers_are_small_on_disk_and_floats_when_loaded(
    exported: Exported, quantized: tuple[Path, Quantized], tmp_path: Path
) -> None:
    target, found = quantized
    assert any("weight_hh" in name for name in found.stored_as_int8)
    graph = optimised(target, tmp_path)
    constants = {constant.name: constant for constant in graph.initializer}
    recurrent = next(node for node in graph.node if node.op_type == "GRU")
    assert all(constants[name].data_type == TensorProto.FLOAT for name in recurrent.input[1:4])


@pytest.mark.parametrize("exported", ["gated"], indirect=True)
def test_the_way_from_a_waveform_to_its_spectrogram_stays_float(
    exported: Exported, quantized: tuple[Path, Quantized]
) -> None:
    signal = before_logarithm(onnx.load(exported.graph).graph)
    graph = onnx.load(quantized[0]).graph
    assert_float([node for node in graph.node if node.name in signal and node.op_type == "MatMul"], graph)


def test_the_tables_of_a_low_rate_are_constants_and_stay_float_too(tmp_path: Path) -> None:
    fields = {"sound": AudioField(rate_hz=1000, max_seconds=0.3), "label": LabelField(classes=("a", "b"))}
    preprocessor = Preprocessor(fields=fields)
    model = build_model(model_config({"sound": None}, "concat", "label", dim=32), preprocessor).eval()
    export_onnx(model, preprocessor, tmp_path / "float.onnx")
    graph = onnx.load(tmp_path / "float.onnx").graph
    signal = before_logarithm(graph)
    assert any(node.name in signal for node in weighted_products(graph))
    batches = [random_batch(preprocessor, 8, frozenset({"sound"}), seed=0)]
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", batches, QuantizeConfig())
    graph = onnx.load(tmp_path / "int8.onnx").graph
    assert_float([node for node in graph.node if node.name in signal and node.op_type == "MatMul"], graph)


def assert_float(products: list[onnx.NodeProto], graph: onnx.GraphProto) -> None:
    restored = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert len(products) == 3  # cosines, sines, filters
    assert not any(name in restored for node in products for name in node.input)


def test_a_graph_without_products_with_weights_has_nothing_quantised(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"], name="neg")], "g", values[:1], values[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "float.onnx"
    )
    batches = [{"x": np.ones(3, np.float32)}]
    found = quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", batches, QuantizeConfig())
    assert found == Quantized(0, 0, ())


@pytest.mark.parametrize("exported", ["concat"], indirect=True)
@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_the_other_ways_to_choose_ranges_work_too(exported: Exported, tmp_path: Path, method: str) -> None:
    config = QuantizeConfig.model_validate({"calibrate": method})
    found = quantize(exported.graph, tmp_path / "int8.onnx", exported.batches, config)
    assert found.num_float == 0
    assert np.isfinite(run(tmp_path / "int8.onnx", dict(exported.batches[0]))).all()


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 40)) | st.tuples(st.just(1), st.integers(1, 9), st.just(32)),
        elements=st.floats(-50, 50, width=32),
    )
)
def test_a_value_is_off_by_at_most_half_a_step_of_its_row(values: npt.NDArray[np.float32]) -> None:
    integers, scale = round_rows(values)
    assert integers.dtype == np.int8 and abs(integers.astype(int)).max() <= 127
    largest = np.abs(values).max(axis=-1 if values.shape[-1] >= 16 else None, keepdims=True)
    assert scale.shape == largest.shape
    assert (np.abs(integers * scale - values) <= largest / 254 * 1.001 + 1e-37).all()


def test_a_large_constant_is_restored_by_nodes_that_depend_on_constants_only() -> None:
    values = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")]
    nodes = [helper.make_node("Neg", ["rounded"], ["y"]), helper.make_node("Neg", ["kept"], ["z"])]
    graph = helper.make_graph(nodes, "g", [], outputs)
    graph.initializer.extend([numpy_helper.from_array(values, "rounded"), numpy_helper.from_array(values, "kept")])
    assert store_as_int8(graph, keep={"kept"}) == ("rounded",)
    assert [node.op_type for node in graph.node] == ["Cast", "Mul", "Neg", "Neg"]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    restored, kept = session.run(None, {})
    assert (kept == -values).all()
    np.testing.assert_allclose(restored, -values, atol=np.abs(values).max() / 254)


def test_small_constants_stay_as_they_are() -> None:
    graph = helper.make_graph([], "g", [], [])
    graph.initializer.append(numpy_helper.from_array(np.ones(1000, np.float32), "small"))
    graph.initializer.append(numpy_helper.from_array(np.ones(5000, np.int64), "whole"))
    assert store_as_int8(graph, keep=set()) == ()


def test_products_that_share_a_bias_get_one_each_whatever_other_tensors_are_called(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    constants = {
        "first": random.normal(size=(8, 3, 3, 3)),
        "second": random.normal(size=(8, 8, 3, 3)),
        "third": random.normal(size=(8, 8, 3, 3)),
        "val_3": np.zeros(8),
    }
    nodes = [
        helper.make_node("Conv", ["x", "first", "val_3"], ["a"], "one"),
        # The name that onnxruntime would give the first copy of the bias.
        helper.make_node("Relu", ["a"], ["val_30"], "between"),
        helper.make_node("Conv", ["val_30", "second", "val_3"], ["b"], "two"),
        helper.make_node("Conv", ["b", "third", "val_3"], ["output"], "three"),
    ]
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 9, 9])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 8, 3, 3])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in constants.items()],
    )
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), source)
    batch = {"x": random.normal(size=(4, 3, 9, 9)).astype(np.float32)}
    assert quantize(source, target, [batch], QuantizeConfig()).num_quantized == 3
    expected, found = run(source, batch), run(target, batch)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
