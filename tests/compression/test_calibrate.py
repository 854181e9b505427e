from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from ray_mm.compression.calibrate import (
    Batch,
    activation_ranges,
    clip_by_entropy,
    clip_by_percentile,
    read_spread,
    with_absences,
)
from ray_mm.data.epochs import sequence
from ray_mm.data.manifest import open_dataset
from ray_mm.data.preprocessor import preprocessor_for
from tests.factories import class_of, make_dataset

counts = hnp.arrays(np.int64, 2048, elements=st.integers(0, 1000))


def doubling_graph() -> onnx.ModelProto:
    """y = 2x, z = y + y."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Add", ["y", "y"], ["z"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "z")]
    graph = helper.make_graph(nodes, "doubling", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def cut(values: npt.NDArray[np.float32], places: list[int]) -> list[Batch]:
    return [{"x": part, "other": part} for part in np.split(values, sorted(places)) if len(part)]


def test_minmax_is_the_lowest_and_highest_value_of_all_batches() -> None:
    batches = cut(np.array([1, -3, 2, 5, 0], np.float32), [2])
    assert activation_ranges(doubling_graph(), ["x", "y", "z", "y"], batches, "minmax") == {
        "x": (-3.0, 5.0),
        "y": (-6.0, 10.0),
        "z": (-12.0, 20.0),
    }


@settings(max_examples=10, deadline=None)
@given(
    hnp.arrays(np.float32, 60, elements=st.floats(-100, 100, width=32)),
    st.lists(st.integers(1, 59), max_size=5, unique=True),
    st.sampled_from(["minmax", "percentile", "entropy"]),
)
def test_ranges_do_not_depend_on_how_samples_are_cut_into_batches(
    values: npt.NDArray[np.float32], places: list[int], method: str
) -> None:
    whole = activation_ranges(doubling_graph(), ["y"], cut(values, []), method)  # type: ignore[arg-type]
    parts = activation_ranges(doubling_graph(), ["y"], cut(values, places), method)  # type: ignore[arg-type]
    assert whole == parts
    low, high = whole["y"]
    assert 2 * values.min() <= low <= high <= 2 * values.max() or not values.any()


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_an_outlier_sets_the_range_of_minmax_only(method: str) -> None:
    values = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    values[7] = 1000.0
    batches = cut(values, [])
    assert activation_ranges(doubling_graph(), ["x"], batches, "minmax")["x"][1] == 1000.0
    assert activation_ranges(doubling_graph(), ["x"], batches, method)["x"][1] < 100.0  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(counts)
def test_clipping_keeps_at_least_a_level_per_bin_and_at_most_all_bins(values: npt.NDArray[np.int64]) -> None:
    assert 1 <= clip_by_percentile(values) <= len(values)
    assert 128 <= clip_by_entropy(values) <= len(values)


@settings(max_examples=30, deadline=None)
@given(counts, st.floats(1, 99), st.floats(0, 1))
def test_a_higher_percentile_never_clips_more(values: npt.NDArray[np.int64], percentile: float, more: float) -> None:
    assert clip_by_percentile(values, percentile) <= clip_by_percentile(values, percentile + more)


def test_entropy_keeps_everything_of_a_flat_distribution() -> None:
    assert clip_by_entropy(np.full(2048, 50, np.int64)) == 2048


@given(st.integers(1, 4), st.integers(1, 20))
def test_every_batch_comes_as_it_is_and_once_with_fields_left_out(num_fields: int, num_batches: int) -> None:
    fields = [f"field{i}" for i in range(num_fields)]
    batches: list[Batch] = [
        {f"{name}.presence": np.ones(3, np.bool_) for name in fields} | {"number": np.array([i])}
        for i in range(num_batches)
    ]
    found = list(with_absences(batches, fields))
    assert [int(batch["number"][0]) for batch in found] == [
        i for i in range(num_batches) for _ in range(1 if num_fields == 1 else 2)
    ]
    patterns = [frozenset(name for name in fields if batch[f"{name}.presence"].all()) for batch in found]
    hidden = [pattern for pattern in patterns if len(pattern) < num_fields]
    assert all(patterns) and len(set(hidden)) == min(len(hidden), 2**num_fields - 2)


def test_calibration_samples_come_from_all_over_the_dataset(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "data", 90, ("vector", "label"), num_shards=3, corrupt=[(0, "vector")])
    data = open_dataset(folder)
    preprocessor = preprocessor_for(data, {}, ["vector", "label"])
    batches = read_spread(sequence(data), preprocessor, 45)
    # Every second sample; the first one can't be read.
    assert np.concatenate([batch["label"] for batch in batches]).tolist() == [class_of(i) for i in range(2, 90, 2)]
    assert [len(batch["vector"]) for batch in batches] == [31, 13]
    everything = read_spread(sequence(data), preprocessor, 1000)
    assert sum(len(batch["vector"]) for batch in everything) == 89
