"""A batch travels through Arrow without a copy, and every batch of a dataset has the same size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ray_mm.data.blocks import block_items, block_keys, to_arrays, to_table
from ray_mm.data.collate import Collator
from ray_mm.data.fields import field_arrays
from ray_mm.data.preprocessor import Preprocessor
from tests.factories import SPECS, member_of

DTYPES = st.sampled_from([np.bool_, np.uint8, np.int16, np.int32, np.int64, np.float32])


@st.composite
def batches(draw: st.DrawFn) -> dict[str, npt.NDArray[Any]]:
    rows = draw(st.integers(0, 4))
    names = draw(st.lists(st.sampled_from(["image", "image.presence", "position", "ton"]), min_size=1, unique=True))
    inner = hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
    return {name: draw(hnp.arrays(draw(DTYPES), (rows, *draw(inner)))) for name in names}


@given(arrays=batches())
def test_a_batch_comes_back_as_it_was(arrays: dict[str, npt.NDArray[Any]]) -> None:
    found = to_arrays(to_table(arrays, []))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 4, 3)])
def test_nothing_is_copied_on_either_way(dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    found = to_arrays(to_table({"a": array}, []))["a"]
    assert np.shares_memory(found, array)
    assert not found.flags.writeable


def test_a_batch_through_arrows_own_format_is_still_a_view() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    sink = pa.BufferOutputStream()
    table = to_table({"a": array}, ["w", "x", "", ""], range(7, 9))
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    buffer = sink.getvalue()
    received = pa.ipc.open_stream(buffer).read_all()
    found = to_arrays(received)["a"]
    np.testing.assert_array_equal(found, array)
    assert np.shares_memory(found, np.frombuffer(buffer, np.uint8))
    assert block_keys(received) == ["w", "x", "", ""] and block_items(received) == range(7, 9)


def test_a_part_of_a_table_and_a_table_in_pieces_are_read_as_well() -> None:
    arrays = {"a": np.arange(12, dtype=np.int16).reshape(6, 2), "b": np.array([True, False, True, True, False, False])}
    table = to_table(arrays, [])
    for found in (to_arrays(table.slice(2, 3)), to_arrays(pa.concat_tables([table.slice(2, 1), table.slice(3, 2)]))):
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array[2:5])


def test_a_block_without_a_place_in_a_plan_says_so() -> None:
    assert not block_items(to_table({"a": np.zeros(1)}, ["x"]))


def test_all_batches_have_the_same_number_of_bytes_whatever_is_in_them() -> None:
    specs = {name: SPECS[name] for name in ("image", "audio", "series", "points", "vector", "label", "number")}
    collator = Collator(Preprocessor(fields=specs))
    full, corrupt, padding = collator.empty(3), collator.empty(3), collator.empty(3)
    for row in range(3):
        collator.fill(full, row, [{name: member_of(name, row)[1] for name in specs}])
        collator.fill(corrupt, row, [{"image": b"no picture"}])
    tables = [
        to_table(full, ["a", "a/much/longer/key/ünïcode", "c"], range(3, 4)),
        to_table(corrupt, ["a", "b", "c"], range(1 << 40, (1 << 40) + 1)),
        to_table(padding, ["", "", ""]),
    ]
    row_bytes = 12 + sum(
        math.prod(array.shape) * array.dtype.itemsize
        for name, spec in specs.items()
        for array in field_arrays(name, spec).values()
    )
    assert [table.nbytes for table in tables] == [3 * row_bytes] * 3
    assert all(table.schema.equals(tables[0].schema) for table in tables), "apart from the metadata"
