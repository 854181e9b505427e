"""A float ONNX graph and calibration batches → the same graph on 8-bit integers, and much smaller on disk.

Products with weights (Conv, MatMul, Gemm) become integer products: weights per output channel, activations by the ranges
that the calibration batches show. What stays float, and why:

- From a waveform to its log-mel spectrogram: powers span more than 8 bits can hold, and the tables are no weights.
- Attention between tokens, normalisation, pooling, gates: little arithmetic, and no weights to make smaller.
- GRUs: onnxruntime has no integer GRU. Their weights, like embeddings, are *stored* as 8-bit integers with a scale per
  row; the runtime turns them into floats once, when it loads the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ray_mm.compression.calibrate import Batch, Range, activation_ranges
from ray_mm.compression.export import strip
from ray_mm.config.compress import QuantizeConfig

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("Conv", "Gemm", "MatMul")
_SMALLEST_STORED = 1024
"""Float constants with fewer elements stay as they are: what restores them would take as much room."""
_SHORTEST_ROW = 16
"""Shorter rows share one scale: a scale of their own would take as much room as they do."""


@dataclass(frozen=True)
class Quantized:
    """What became of a graph.

    Attributes:
        num_quantized: products with weights that run on integers.
        num_float: products with weights that were left as floats.
        stored_as_int8: names of float constants that are integers on disk only.
    """

    num_quantized: int
    num_float: int
    stored_as_int8: tuple[str, ...]


def quantize(source: Path, target: Path, batches: Sequence[Batch], config: QuantizeConfig) -> Quantized:
    """Writes the quantised graph.

    Args:
        source: float graph, as ``export.export_onnx`` writes it.
        target: the ``.onnx`` file to write.
        batches: arrays of real samples, by name; other names than the graph's inputs are ignored.
        config: how ranges are chosen.
    """
    import onnx

    graph_file = onnx.shape_inference.infer_shapes(onnx.load(source))
    own_biases(graph_file.graph)
    signal = before_logarithm(graph_file.graph)
    chosen = [node for node in weighted_products(graph_file.graph) if node.name not in signal]
    if chosen:
        tensors = [tensor for node in chosen for tensor in (node.input[0], node.output[0])]
        ranges = activation_ranges(graph_file, tensors, batches, config.calibrate)
        graph_file = _to_integers(graph_file, [node.name for node in chosen], ranges)
    stored = store_as_int8(graph_file.graph, keep=_constants_of(graph_file.graph, signal))
    onnx.save(graph_file, target)
    strip(target)
    return Quantized(*count_products(graph_file.graph), stored)


def weighted_products(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The products of an activation with weights."""
    constants = {constant.name for constant in graph.initializer}
    return [node for node in graph.node if node.op_type in PRODUCTS and node.input[1] in constants]


def own_biases(graph: onnx.GraphProto) -> None:
    """Gives every product that shares its bias one of its own, in place: each is rounded with another scale. onnxruntime copies
    them, too, and calls a copy of ``val_37`` ``val_370``, whatever else has that name."""
    import onnx

    constants = {constant.name: constant for constant in graph.initializer}
    seen: set[str] = set()
    for node in graph.node:
        if node.op_type not in PRODUCTS or len(node.input) < 3 or node.input[2] not in constants:
            continue
        name = node.input[2]
        if name in seen:
            copy = onnx.TensorProto()
            copy.CopyFrom(constants[name])
            copy.name = node.input[2] = f"{node.name}.bias"
            graph.initializer.append(copy)
        seen.add(name)


def before_logarithm(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes between an int16 input (a waveform) and the first logarithm after it."""
    import onnx

    after_waveform = {value.name for value in graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.INT16}
    reached: list[onnx.NodeProto] = []
    for node in graph.node:  # in topological order, as ONNX demands
        if after_waveform & set(node.input):
            reached.append(node)
            if node.op_type != "Log":
                after_waveform |= set(node.output)
    needed: set[str] = set()
    between: set[str] = set()
    for node in reversed(reached):
        if node.op_type == "Log" or needed & set(node.output):
            between.add(node.name)
            needed |= set(node.input)
    return between


def store_as_int8(graph: onnx.GraphProto, keep: set[str]) -> tuple[str, ...]:
    """Replaces large float constants by integers, a scale per row, and the two nodes that restore them.

    The nodes depend on constants only, so a runtime evaluates them once, when it loads the graph. (A ``DequantizeLinear``
    would be evaluated at every call: runtimes keep it, to fuse it with what follows.)

    Args:
        graph: changed in place.
        keep: names of constants that must stay exact.

    Returns:
        Names of the constants that were replaced.
    """
    from onnx import TensorProto, helper, numpy_helper

    replaced = []
    nodes = []
    for constant in list(graph.initializer):
        values = numpy_helper.to_array(constant)
        if values.dtype != np.float32 or values.size < _SMALLEST_STORED or constant.name in keep:
            continue
        integers, scale = round_rows(values)
        graph.initializer.remove(constant)
        whole, restored = f"{constant.name}.int8", f"{constant.name}.float"
        graph.initializer.append(numpy_helper.from_array(integers, whole))
        graph.initializer.append(numpy_helper.from_array(scale, f"{constant.name}.scale"))
        nodes.append(helper.make_node("Cast", [whole], [restored], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [restored, f"{constant.name}.scale"], [constant.name]))
        replaced.append(constant.name)
    following = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *following])
    return tuple(replaced)


def count_products(graph: onnx.GraphProto) -> tuple[int, int]:
    """How many products with weights run on integers, and how many on floats."""
    restored = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    constants = {constant.name for constant in graph.initializer}
    integer = sum(
        node.op_type in PRODUCTS and node.input[0] in restored and node.input[1] in restored for node in graph.node
    )
    return integer, sum(node.op_type in PRODUCTS and node.input[1] in constants for node in graph.node)


def _to_integers(graph_file: onnx.ModelProto, nodes: list[str], ranges: dict[str, Range]) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    found = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    quantizer = QDQQuantizer(
        graph_file,
        per_channel=True,
        # Seven bits for weights: without VNNI instructions the sum of two products of eight bits overflows, and the
        # artifact would answer otherwise on such a machine than on the one where it was judged.
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, found),
        nodes_to_quantize=nodes,
        nodes_to_exclude=[],
        op_types_to_quantize=list(PRODUCTS),
        # A matrix product can give floats, a convolution can't; what is not rounded loses nothing.
        extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def _constants_of(graph: onnx.GraphProto, nodes: set[str]) -> set[str]:
    return {name for node in graph.node if node.name in nodes for name in node.input}


def round_rows(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Values as 8-bit integers, and the scale that each row of them (short rows: all of them) has to be multiplied with."""
    axis = -1 if values.shape[-1] >= _SHORTEST_ROW else None
    largest = np.abs(values).max(axis=axis, keepdims=True)
    scale = np.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return np.round(values / scale).astype(np.int8), scale
