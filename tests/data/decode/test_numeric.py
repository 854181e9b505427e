"""Numbers: arrays and labels."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ray_mm.config.fields import LabelField
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.numeric import (
    as_finite,
    decode_label,
    fill_points,
    fill_series,
    fill_vector,
    read_npy,
)
from tests.factories import npy_bytes

_CLASSES = LabelField(classes=("left", "right"))
_NUMBER = LabelField(target="number")


@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.int16, np.uint8, np.bool_, np.dtype(">i4"), np.float16]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements={"allow_nan": False, "allow_infinity": False, "min_value": 0, "max_value": 1},
    ),
    st.booleans(),
)
def test_every_numeric_array_comes_back_as_float32(array: npt.NDArray[np.generic], fortran: bool) -> None:
    array = np.asfortranarray(array) if fortran else array
    found = read_npy(memoryview(npy_bytes(array)))
    assert found.dtype == np.float32 and found.flags.c_contiguous
    assert found.shape == array.shape
    assert (found == array.astype(np.float32)).all()


def test_an_array_of_objects_is_refused_unread() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"run": "me"}], dtype=object), allow_pickle=True)
    with pytest.raises(DecodeError, match="not an array of numbers"):
        read_npy(stream.getvalue())


@pytest.mark.parametrize("array", [np.array(["a", "b"]), np.array([1j]), np.zeros(2, [("x", "f4")])])
def test_an_array_of_other_things_is_refused(array: npt.NDArray[np.generic]) -> None:
    with pytest.raises(DecodeError, match="not an array of numbers"):
        read_npy(npy_bytes(array))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_float32_can_not_hold_are_refused(value: float) -> None:
    with pytest.raises(DecodeError, match="not finite"):
        read_npy(npy_bytes(np.array([0.0, value])))


def test_a_cut_or_foreign_file_is_refused() -> None:
    whole = npy_bytes(np.ones((5, 2)))
    for kept in (1, 7, 40, 128, len(whole) - 1):
        with pytest.raises(DecodeError, match=r"NPY|cut short"):
            read_npy(whole[:kept])
    with pytest.raises(DecodeError, match="not a readable NPY"):
        read_npy(b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': " + b" " * 108)


def test_a_header_that_claims_a_terabyte_takes_no_memory() -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": (1_000_000, 1_000_000)}
    )
    with pytest.raises(DecodeError, match="needs 4000000000000 bytes, 0 are there"):
        read_npy(stream.getvalue())


def test_nested_lists_become_arrays_and_ragged_ones_are_refused() -> None:
    assert as_finite([[1, 2], [3, 4.5]]).tolist() == [[1.0, 2.0], [3.0, 4.5]]
    for bad in ([[1, 2], [3]], [1, None], ["1"], [[]] * 2 + [[1]]):
        with pytest.raises(DecodeError, match=r"not an array of numbers|not finite"):
            as_finite(bad)


def test_a_series_is_cut_at_its_end_and_says_its_length() -> None:
    out = np.zeros((4, 2), np.float32)
    assert fill_series(np.ones((3, 2), np.float32), out) == 3
    assert out[:, 0].tolist() == [1, 1, 1, 0]
    assert fill_series(np.full((9, 2), 5, np.float32), out) == 4
    single = np.zeros((4, 1), np.float32)
    assert fill_series(np.arange(3, dtype=np.float32), single) == 3


def test_a_large_cloud_is_thinned_evenly_from_its_first_to_its_last_point() -> None:
    out = np.zeros((5, 2), np.float32)
    cloud = np.stack([np.arange(101), np.arange(101)], axis=1).astype(np.float32)
    assert fill_points(cloud, out) == 5
    assert out[:, 0].tolist() == [0, 25, 50, 75, 100]


def test_wrong_shapes_are_refused_with_both_shapes() -> None:
    with pytest.raises(DecodeError, match=r"series of shape \[3, 4\], expected \[any, 2\]"):
        fill_series(np.ones((3, 4), np.float32), np.zeros((4, 2), np.float32))
    with pytest.raises(DecodeError, match="point cloud is empty"):
        fill_points(np.ones((0, 2), np.float32), np.zeros((4, 2), np.float32))
    with pytest.raises(DecodeError, match="has 3 values, the field has 5"):
        fill_vector(np.ones(3, np.float32), np.zeros(5, np.float32))


def test_a_vector_of_any_shape_is_flattened() -> None:
    out = np.zeros(6, np.float32)
    fill_vector(np.arange(6, dtype=np.float32).reshape(2, 3), out)
    assert out.tolist() == [0, 1, 2, 3, 4, 5]


def test_labels_are_read_from_their_text() -> None:
    assert decode_label(b"1\n", _CLASSES) == 1
    assert decode_label(memoryview(b"-2.5e-1"), _NUMBER) == -0.25


@pytest.mark.parametrize(
    ("payload", "spec", "reason"),
    [
        (b"left", _CLASSES, "'left' is not a number"),
        (b"2", _CLASSES, "class 2 is not in 0 … 1"),
        (b"-1", _CLASSES, "class -1 is not in 0 … 1"),
        (b"1.5", _CLASSES, "is not a number"),
        (b"", _NUMBER, "'' is not a number"),
        (b"nan", _NUMBER, "not a finite 32-bit number"),
        (b"1e39", _NUMBER, "not a finite 32-bit number"),
    ],
)
def test_a_bad_label_is_refused_with_its_value(payload: bytes, spec: LabelField, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_label(payload, spec)
