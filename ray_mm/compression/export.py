"""A model in memory → a float ONNX graph on disk that gives the same outputs, whatever the batch and whatever is absent.

The graph's inputs are the arrays of the input fields, presence included, by their names in a batch; its output is
``output``. The batch axis is free.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ray_mm.config.fields import FieldSpec, ImageField, LabelField, TextField, VideoField
from ray_mm.data.fields import field_arrays, length_name, presence_name, time_name
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.errors import RayMMError
from ray_mm.models.multimodal import MultimodalModel, input_arrays

OUTPUT = "output"
OPSET = 20
"""Every onnxruntime since 1.18 runs it, and it still writes attention as matrix products, which can be quantised."""

Batch = dict[str, npt.NDArray[np.generic]]

_PARITY_BATCHES = (1, 3, 5)
_MAX_FOLDED = 1024
"""Elements of the largest formula without inputs that is evaluated at export."""
_MAX_PATTERNS = 8


def input_fields(preprocessor: Preprocessor) -> list[str]:
    """The fields that are not labels, sorted."""
    return sorted(name for name, spec in preprocessor.fields.items() if not isinstance(spec, LabelField))


def export_onnx(model: MultimodalModel, preprocessor: Preprocessor, path: Path) -> None:
    """Writes the graph of a model in eval mode, and checks that it computes what the model computes.

    Args:
        model: takes a dict of arrays as ``data.fields`` describes, returns float32 [B] or [B, C].
        preprocessor: the model's fields.
        path: the ``.onnx`` file, with the weights inside.

    Raises:
        RayMMError: the graph's outputs differ from the model's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    example = to_tensors(random_batch(preprocessor, 3, frozenset(input_fields(preprocessor)), seed=0))
    try:
        with _quiet(), torch.no_grad():
            program = _translate(model, example)
            program.save(path, external_data=False)
    except Exception as error:  # the exporter and torch's tracer raise what they like
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RayMMError(f"the model can't be exported to ONNX ({reason[0]}).") from error
    strip(path)
    check_parity(model, preprocessor, path)


def _translate(model: MultimodalModel, example: dict[str, Tensor]) -> torch.onnx.ONNXProgram:
    names = input_arrays(model)
    batch = torch.export.Dim("batch")
    # Traced here rather than by torch.onnx.export, which would unroll a GRU into a loop of small operators; ONNX has an
    # operator for the whole of it.
    traced = torch.export.export(
        _Positional(model, names).eval(),
        tuple(example[name] for name in names),
        dynamic_shapes=(tuple({0: batch} for _ in names),),
    )
    program = torch.onnx.export(
        traced,
        dynamo=True,
        verbose=False,
        optimize=False,
        opset_version=OPSET,
        input_names=names,
        output_names=[OUTPUT],
    )
    assert program is not None
    _simplify(program)
    return program


def _simplify(program: torch.onnx.ONNXProgram) -> None:
    """Evaluates what depends on constants only, and makes weights constants of the graph.

    Not as the exporter does it by default: its rewrite rules take a term of 1e-8 or less for zero, which breaks what is
    scaled by a small one; and it evaluates large formulas, such as those of a spectrogram's tables, which take more room on
    disk as values. A runtime evaluates them at load.
    """
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    optimizer.inline(program.model)
    optimizer.fold_constants(program.model, onnx_shape_inference=True, output_size_limit=_MAX_FOLDED)
    optimizer.remove_unused_nodes(program.model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(program.model)
    passes.DeduplicateInitializersPass()(program.model)
    passes.CommonSubexpressionEliminationPass()(program.model)


class _Positional(nn.Module):
    """The exporter names a graph's inputs by position, the model takes them by name."""

    def __init__(self, model: MultimodalModel, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *arrays: Tensor) -> Tensor:
        output: Tensor = self.model(dict(zip(self.names, arrays, strict=True)))
        return output


def strip(path: Path) -> None:
    """Removes what only a debugger reads: source lines, module names, types of intermediate values; names the batch axis.

    In a small model that is a fifth of the file.
    """
    import onnx

    graph_file = onnx.load(path)
    graph = graph_file.graph
    for owner in (graph_file, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del owner.metadata_props[:]
        owner.doc_string = ""
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:  # the tracer's own name, such as s21; only the batch is free
                axis.dim_param = "batch"
    onnx.checker.check_model(graph_file)
    onnx.save(graph_file, path)


def check_parity(model: MultimodalModel, preprocessor: Preprocessor, path: Path) -> float:
    """Runs model and graph on the same batches of 1, 3 and 5 samples, for every pattern of presence.

    Returns:
        The largest difference found, absolute.

    Raises:
        RayMMError: the outputs differ in shape or by more than rounding; names the batch and the pattern.
    """
    session = _open_session(path)
    fed = [value.name for value in session.get_inputs()]
    missing = sorted(set(fed) - set(input_arrays(model)))
    if missing:
        raise RayMMError(f"{path.name}: the exported graph wants inputs that no batch has: {', '.join(missing)}.")
    largest = 0.0
    for size in _PARITY_BATCHES:
        for number, (pattern, presence) in enumerate(_patterns(preprocessor, size)):
            batch = random_batch(preprocessor, size, presence, seed=1000 * size + number)
            with torch.inference_mode():
                expected = model(to_tensors(batch)).float().numpy()
            found = session.run([OUTPUT], {name: batch[name] for name in fed})[0]
            where = f"{path.name}: with {size} samples and {pattern} present"
            if found.shape != expected.shape:
                raise RayMMError(
                    f"{where} the exported graph gives an output of shape {list(found.shape)}, the model one of "
                    f"{list(expected.shape)}: the export lost the free batch axis or a branch on data."
                )
            difference = float(np.abs(found - expected).max(initial=0.0))
            limit = 1e-3 * max(1.0, float(np.abs(expected).max(initial=0.0)))
            # Not ">": a NaN on either side must fail too.
            if not difference <= limit:
                row = int(np.abs(found - expected).reshape(size, -1).max(axis=1).argmax())
                raise RayMMError(
                    f"{where} the exported graph and the model differ by {difference:.3g} (allowed: {limit:.3g}), most in "
                    f"sample {row}: the graph gives {found[row].tolist()}, the model {expected[row].tolist()}. The model "
                    "can't be exported as it is."
                )
            largest = max(largest, difference)
    return largest


def _patterns(preprocessor: Preprocessor, size: int) -> Iterator[tuple[str, frozenset[str] | None]]:
    """Subsets of the fields, the smallest and the largest first where there are many, and one that changes by sample."""
    fields = input_fields(preprocessor)
    subsets = [frozenset(some) for count in range(len(fields) + 1) for some in combinations(fields, count)]
    half = _MAX_PATTERNS // 2
    for subset in subsets if len(subsets) <= _MAX_PATTERNS else subsets[:half] + subsets[-half:]:
        yield (" and ".join(sorted(subset)) or "no field"), subset
    if size > 1:
        yield "fields that differ from sample to sample", None


def random_batch(preprocessor: Preprocessor, size: int, present: frozenset[str] | None, seed: int) -> Batch:
    """A batch of noise that is valid for the fields: labels, position and weight are left out.

    Args:
        preprocessor: the fields.
        size: number of samples.
        present: fields that every sample has. None: drawn for each sample.
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    batch: Batch = {}
    for name in input_fields(preprocessor):
        spec = preprocessor.fields[name]
        there = random.random(size) < 0.5 if present is None else np.full(size, name in present)
        for array, values in _random_field(name, spec, size, random).items():
            # What is absent is zeros in every batch that is read from disk.
            batch[array] = values * there.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
        batch[presence_name(name)] = there
    return batch


def _random_field(name: str, spec: FieldSpec, size: int, random: np.random.Generator) -> Batch:
    arrays = field_arrays(name, spec)
    shape, dtype = (size, *arrays[name].shape), arrays[name].dtype
    if isinstance(spec, ImageField):
        return {name: random.integers(0, 256, shape).astype(dtype)}
    if length_name(name) not in arrays and not isinstance(spec, TextField):
        return {name: random.normal(size=shape).astype(dtype)}
    lengths = random.integers(1, shape[1] + 1, size).astype(np.int32)
    lengths[0], lengths[-1] = 1, shape[1]  # what is special is at the ends
    values: npt.NDArray[Any]
    if isinstance(spec, TextField):
        assert spec.vocabulary_size is not None
        values = random.integers(1, spec.vocabulary_size, shape)
    elif isinstance(spec, VideoField):
        values = random.integers(0, 256, shape)
    elif np.issubdtype(dtype, np.integer):
        values = random.normal(scale=3000.0, size=shape)
    else:
        values = random.normal(size=shape)
    inside = np.arange(shape[1]) < lengths[:, None]
    content = (values * inside.reshape(*inside.shape, *[1] * (len(shape) - 2))).astype(dtype)
    if isinstance(spec, TextField):
        return {name: content}
    times = {time_name(name): (np.arange(shape[1]) / 4 * inside).astype(np.float32)}
    return {name: content, length_name(name): lengths, **(times if isinstance(spec, VideoField) else {})}


def to_tensors(batch: Batch) -> dict[str, Tensor]:
    """The same batch for torch. Arrays that may not be written to are copied: torch would warn about them."""
    return {
        name: torch.from_numpy(values if values.flags.writeable else values.copy()) for name, values in batch.items()
    }


def _open_session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what torch's exporter says about itself; what it says about the model still comes through."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # "torchvision is not installed": its operators are not used
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*LeafSpec.*deprecated", category=FutureWarning)
            # A GRU points at its own weights again when it is traced.
            warnings.filterwarnings("ignore", message=r"The tensor attributes? .*_flat_weights", category=UserWarning)
            warnings.filterwarnings("ignore", message=r"# The axis name: .* will not be used", category=UserWarning)
            yield
    finally:
        registration.setLevel(level)
