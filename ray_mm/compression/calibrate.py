"""A float graph and batches of real samples → the range of each activation that is to become an 8-bit integer.

The batches are run one at a time, and only counts are kept: memory does not grow with the number of samples, and the ranges
do not depend on how the samples are cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from ray_mm.data.epochs import Epochs, Places
from ray_mm.data.fields import WEIGHT, presence_name
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.reader import BatchReader

if TYPE_CHECKING:
    import onnx

Batch = Mapping[str, npt.NDArray[np.generic]]
Range = tuple[float, float]
Method = Literal["minmax", "entropy", "percentile"]

_BATCH_SIZE = 32
_NUM_BINS = 2048
_NUM_LEVELS = 128
_STEP = 16
_PERCENTILE = 99.99


def read_spread(epochs: Epochs, preprocessor: Preprocessor, num_samples: int) -> list[Batch]:
    """Samples from all over a dataset, in batches: the first ones of a dataset may all be of one class.

    Args:
        epochs: which samples.
        preprocessor: which fields, and how.
        num_samples: how many, at most. Samples that can't be read are left out.
    """
    count = min(num_samples, epochs.num_samples)
    spread = (np.arange(count) * epochs.num_samples // max(count, 1)).tolist()
    located = [epochs.places(place, place + 1) for place in spread]
    reader = BatchReader(epochs.datasets, preprocessor, None)
    batches: list[Batch] = []
    for start in range(0, count, _BATCH_SIZE):
        chosen = located[start : start + _BATCH_SIZE]
        places = Places(*(np.concatenate(column) for column in zip(*chosen, strict=True)))
        batch = reader.read(places, start, len(chosen))[0]
        readable = np.asarray(batch[WEIGHT], np.bool_)
        if readable.any():
            batches.append({name: values[readable] for name, values in batch.items()})
    return batches


def with_absences(batches: Iterable[Batch], fields: Sequence[str]) -> Iterator[Batch]:
    """Each batch as it is, and once more with only some of its fields: in turn every subset, none and all left out.

    What stands in for an absent field reaches the same activations as the field does, so it must take part in their ranges.
    """
    subsets = [set(some) for count in range(1, len(fields)) for some in combinations(sorted(fields), count)]
    for number, batch in enumerate(batches):
        yield batch
        if subsets:
            subset = subsets[number % len(subsets)]
            hidden = {presence_name(name) for name in fields if name not in subset}
            yield {name: np.zeros_like(values) if name in hidden else values for name, values in batch.items()}


def activation_ranges(
    graph_file: onnx.ModelProto, tensors: Sequence[str], batches: Sequence[Batch], method: Method
) -> dict[str, Range]:
    """Runs the graph on the batches and looks at some of its intermediate values.

    Args:
        graph_file: with float weights.
        tensors: names of float values in the graph.
        batches: arrays by name; other names than the graph's inputs are ignored.
        method: ``minmax``: lowest and highest value. ``percentile``: all but the outermost ten-thousandth in magnitude.
            ``entropy``: the clipping that changes the distribution of magnitudes least (S. Migacz, 8-bit inference with
            TensorRT, GTC 2017).

    Returns:
        Tensor → lowest and highest value that an integer must represent.
    """
    lowest = dict.fromkeys(tensors, np.inf)
    highest = dict.fromkeys(tensors, -np.inf)
    for values in _observe(graph_file, tensors, batches):
        for name, array in values.items():
            lowest[name] = min(lowest[name], float(array.min(initial=np.inf)))
            highest[name] = max(highest[name], float(array.max(initial=-np.inf)))
    full = {name: (lowest[name], highest[name]) for name in tensors}
    if method == "minmax":
        return full
    largest = {name: max(abs(low), abs(high)) for name, (low, high) in full.items()}
    counts = {name: np.zeros(_NUM_BINS, np.int64) for name in tensors}
    for values in _observe(graph_file, tensors, batches):
        for name, array in values.items():
            counts[name] += np.histogram(np.abs(array), _NUM_BINS, (0.0, largest[name] or 1.0))[0]
    clip = clip_by_percentile if method == "percentile" else clip_by_entropy
    ranges = {}
    for name, (low, high) in full.items():
        limit = largest[name] * clip(counts[name]) / _NUM_BINS
        ranges[name] = (max(low, -limit), min(high, limit))
    return ranges


def clip_by_percentile(counts: npt.NDArray[np.int64], percentile: float = _PERCENTILE) -> int:
    """Number of bins, from zero, that hold the given share of the values.

    Args:
        counts: histogram of magnitudes, int64 [bins].
        percentile: share in per cent.
    """
    total = int(counts.sum())
    if total == 0:
        return len(counts)
    return min(len(counts), 1 + int(np.searchsorted(np.cumsum(counts), total * percentile / 100)))


def clip_by_entropy(counts: npt.NDArray[np.int64]) -> int:
    """Number of bins, from zero, after which to clip so that 128 levels lose the least information.

    Args:
        counts: histogram of magnitudes, int64 [bins].
    """
    counts = counts.copy()
    # Values that are exactly zero (after a ReLU, beyond a length) lose nothing to any scale; counted, they would outvote
    # the values that do.
    counts[0] = counts[1]
    best, least = len(counts), np.inf
    for kept in range(_NUM_LEVELS, len(counts) + 1, _STEP):
        reference = counts[:kept].astype(np.float64)
        # What is clipped takes the largest value that is left.
        reference[-1] += counts[kept:].sum()
        divergence = _divergence(reference, _coarsened(counts[:kept].astype(np.float64)))
        if divergence < least:
            best, least = kept, divergence
    return best


def _coarsened(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The histogram as it is seen through 128 levels: each level's count spread over its bins that are not empty."""
    level = np.arange(len(counts)) * _NUM_LEVELS // len(counts)
    there = counts > 0
    per_bin = np.bincount(level, counts) / np.maximum(np.bincount(level, there), 1)
    return np.asarray(np.where(there, per_bin[level], 0.0))


def _divergence(reference: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Kullback–Leibler divergence; a value that ``other`` never gives counts as nearly never."""
    if reference.sum() == 0 or other.sum() == 0:
        return float("inf")
    p, q = reference / reference.sum(), np.maximum(other / other.sum(), 1e-9)
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


def _observe(
    graph_file: onnx.ModelProto, tensors: Sequence[str], batches: Sequence[Batch]
) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    import onnx
    import onnxruntime

    # A value may be asked for twice, or be an output of the graph already.
    outputs = {value.name for value in graph_file.graph.output}
    probed = onnx.ModelProto()
    probed.CopyFrom(graph_file)
    probed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in dict.fromkeys(tensors)
        if name not in outputs
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]
    names = list(dict.fromkeys(tensors))
    for batch in batches:
        arrays = session.run(names, {name: np.ascontiguousarray(batch[name]) for name in inputs})
        yield dict(zip(names, arrays, strict=True))
