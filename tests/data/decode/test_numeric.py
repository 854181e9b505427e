"""Numbers: arrays and labels."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ray_mm.config.fields import LabelField, PointsField, SeriesField, VectorField
from ray_mm.data.decode.arrays import as_finite, npz_shapes, parse_csv, parse_json, read_npy
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.numeric import (
    decode_classes,
    decode_label,
    fill_points,
    fill_series,
    fill_vector,
    read_points,
    read_series,
    read_vector,
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
    with pytest.raises(DecodeError, match="series is empty"):
        fill_series(np.ones((0, 2), np.float32), np.zeros((4, 2), np.float32))
    with pytest.raises(DecodeError, match="has 3 values, the field has 5"):
        fill_vector(np.ones(3, np.float32), np.zeros(5, np.float32))


def test_a_vector_of_any_shape_is_flattened() -> None:
    out = np.zeros(6, np.float32)
    fill_vector(np.arange(6, dtype=np.float32).reshape(2, 3), out)
    assert out.tolist() == [0, 1, 2, 3, 4, 5]


def test_labels_are_read_from_their_text() -> None:
    assert decode_label(b"1\n", _CLASSES) == 1
    assert decode_label(memoryview(b"-2.5e-1"), _NUMBER) == -0.25
    # As editors on Windows write it.
    assert decode_label(b"\xef\xbb\xbf1\r\n", _CLASSES) == 1


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


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def test_a_label_lies_at_a_path_in_json_and_may_be_a_name() -> None:
    payload = _json({"label": 1, "names": ["right", "up"], "steer": "-0.5", "none": None, "good": True})
    assert decode_label(payload, LabelField(classes=("left", "right"), path="label")) == 1
    assert decode_label(payload, LabelField(classes=("left", "right"), path="good")) == 1
    named = LabelField(classes=("left", "right"), path="names.0", written_as="name")
    assert decode_label(payload, named) == 1
    flags = LabelField(classes=("false", "true"), path="flag", written_as="name")
    assert decode_label(b'{"flag": true}', flags) == 1
    sizes = LabelField(classes=("1", "2"), path="size", written_as="name")
    assert decode_label(b'{"size": 2.0}', sizes) == 1
    assert decode_label(b" left\n", named.model_copy(update={"path": None})) == 0
    assert decode_label(payload, LabelField(target="number", path="steer")) == -0.5
    for path in ("none", "absent", "names.2"):
        assert decode_label(payload, named.model_copy(update={"path": path})) is None
    with pytest.raises(DecodeError, match="'up' is none of the 2 classes"):
        decode_label(payload, named.model_copy(update={"path": "names.1"}))
    with pytest.raises(DecodeError, match="has a list at 'names'"):
        decode_label(payload, named.model_copy(update={"path": "names"}))


_SERIES = {"a": [[1, 2], [3, 4], [5, 6]], "b": [7, 8, 9], "t": [0.0, 0.5, 1.0]}


def _npz(**arrays: npt.ArrayLike) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize("payload", [_json(_SERIES), _npz(**_SERIES)], ids=["json", "npz"])
def test_parts_of_a_series_become_channels_side_by_side(payload: bytes) -> None:
    found = read_series(payload, SeriesField(path=("a", "b")))
    assert found is not None and found.dtype == np.float32
    assert found.tolist() == [[1, 2, 7], [3, 4, 8], [5, 6, 9]]
    resampled = read_series(payload, SeriesField(path=("b", "a"), time_path="t", rate_hz=4))
    assert resampled is not None
    assert resampled.tolist() == [[7, 1, 2], [7.5, 2, 3], [8, 3, 4], [8.5, 4, 5], [9, 5, 6]]
    with pytest.raises(DecodeError, match="say with path which one is meant"):
        read_series(payload, SeriesField())


def test_a_csv_is_columns_by_name_or_number_and_all_but_the_times() -> None:
    named = b"t, ax ,ay\n0,1,10\n1,3,30\n"
    quoted = b'\xef\xbb\xbf"t","ax","ay"\r\n"0","1","10"\r\n"1","3","30"\r\n'
    assert np.array_equal(parse_csv(quoted)[1], parse_csv(named)[1]) and parse_csv(quoted)[0] == ["t", "ax", "ay"]
    spec = SeriesField(time_path="t", rate_hz=2)
    expected = [[1, 10], [2, 20], [3, 30]]
    assert read_series(named, spec).tolist() == expected
    assert read_series(named, spec.model_copy(update={"path": ("ay", "ax")})).tolist() == [
        row[::-1] for row in expected
    ]
    bare = SeriesField(time_path="0", rate_hz=2)
    assert read_series(b"0,1,10\n1,3,30\n", bare).tolist() == expected
    with pytest.raises(DecodeError, match="has no part 'az'; it has t, ax, ay"):
        read_series(named, SeriesField(path="az"))


def test_a_series_of_a_known_rate_is_resampled_and_one_without_is_not() -> None:
    payload = npy_bytes(np.arange(10.0))
    assert read_series(payload, SeriesField(rate_hz=50)).tolist() == [[i] for i in range(10)]
    same = SeriesField(rate_hz=50, source_rate_hz=50)
    assert len(read_series(payload, same)) == 10
    twice = read_series(payload, SeriesField(rate_hz=100, source_rate_hz=50))
    assert twice is not None and twice[:, 0].tolist() == [i / 2 for i in range(19)]
    half = read_series(payload, SeriesField(rate_hz=25, source_rate_hz=50))
    assert half is not None and half[1:-1, 0] == pytest.approx([2, 4, 6])
    assert len(read_series(payload, SeriesField(rate_hz=100, source_rate_hz=50), max_steps=5)) == 5


def test_json_without_its_key_is_an_absent_field() -> None:
    payload = _json({"other": [1]})
    assert read_series(payload, SeriesField(path="a")) is None
    assert read_series(_json({"a": [1, 2]}), SeriesField(path="a", time_path="t", rate_hz=1)) is None
    assert read_points(payload, PointsField(path="a")) is None
    assert read_vector(payload, VectorField(path=("other", "a"))) is None


@pytest.mark.parametrize(
    ("payload", "spec", "reason"),
    [
        (_json({"a": [1, 2], "b": [1]}), SeriesField(path=("a", "b")), "parts of 2, 1 steps and no times"),
        (
            _json({"a": [1, 2], "t": [0]}),
            SeriesField(path="a", time_path="t", rate_hz=1),
            r"times of shape \[1\] for 2",
        ),
        (_json({"a": [1, 2], "t": [1, 0]}), SeriesField(path="a", time_path="t", rate_hz=1), "times that go back"),
        (
            _json({"a": [1, 2], "t": [0, None]}),
            SeriesField(path="a", time_path="t", rate_hz=1),
            "not finite|not an array",
        ),
        (b'{"a": [1, NaN]}', SeriesField(path="a"), "not finite"),
        (_json({"a": "text"}), SeriesField(path="a"), "not an array of numbers"),
        (b"PK\x03\x04 no archive", SeriesField(path="a"), "not a readable NPZ"),
        (_npz(a=np.ones(3))[:-30], SeriesField(path="a"), "not a readable NPZ"),
        (b"\x01\x02\x03", SeriesField(), "not a readable NPY"),
        (b"no array", SeriesField(), "neither numbers nor the names of columns"),
    ],
)
def test_a_bad_series_is_refused_with_a_reason(payload: bytes, spec: SeriesField, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        read_series(payload, spec)


def test_objects_in_an_npz_are_refused_unread() -> None:
    stream = io.BytesIO()
    np.savez(stream, a=np.array([{"run": "me"}], dtype=object))
    with pytest.raises(DecodeError, match="not an array of numbers"):
        read_series(stream.getvalue(), SeriesField(path="a"))


def test_an_npz_that_would_fill_the_memory_is_refused_from_its_header() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as entry:
        for _ in range(300):
            entry.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(DecodeError, match="would take 314572800 bytes, over the limit"):
        read_series(stream.getvalue(), SeriesField(path="a"))
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_an_npz_of_another_compression_is_refused() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", npy_bytes(np.ones(3)))
    # A damaged header of LZMA fails in other ways than ZIP files do, and may ask for all of the memory.
    with pytest.raises(DecodeError, match=r"'a\.npy' is compressed by method 14; NPZ files are stored or deflated"):
        read_series(stream.getvalue(), SeriesField(path="a"))
    assert npz_shapes(stream.getvalue()) == {"a": None}


def test_half_a_character_in_json_is_replaced() -> None:
    payload = b'{"a\\uD800": ["\\udfff", 1, {"b": "\\ud83d\\ude00"}], "kind": "\\ud83dcat"}'
    assert parse_json(payload) == {"a\ufffd": ["\ufffd", 1, {"b": "\U0001f600"}], "kind": "\ufffdcat"}
    spec = LabelField(path="kind", classes=("dog", "\ufffdcat"), written_as="name")
    assert decode_label(payload, spec) == 1


def test_bare_floats_are_points_only_where_the_field_says_so() -> None:
    cloud = np.arange(12, dtype="<f4").reshape(3, 4)
    spec = PointsField(channels=4, raw_float32=True)
    assert read_points(memoryview(cloud.tobytes()), spec).tolist() == cloud.tolist()
    assert read_points(npy_bytes(cloud), spec).tolist() == cloud.tolist()
    with pytest.raises(DecodeError, match="47 bytes, no whole number of points"):
        read_points(cloud.tobytes()[:-1], spec)
    with pytest.raises(DecodeError, match="not a readable NPY"):
        read_points(cloud.tobytes(), PointsField(channels=4))


def test_a_vector_is_gathered_from_parts() -> None:
    payload = _json({"speed": 2.5, "pose": {"position": [1, 2, 3]}})
    found = read_vector(payload, VectorField(path=("pose.position", "speed")))
    assert found is not None and found.tolist() == [1, 2, 3, 2.5]
    assert read_vector(b"1,2,3\n", VectorField()).tolist() == [1, 2, 3]
    assert read_vector(b"[[1, 2], [3, 4]]", VectorField()).tolist() == [1, 2, 3, 4]


_NUMBERS = LabelField(target="classes", classes=("left", "right", "stop"))
_NAMES = _NUMBERS.model_copy(update={"written_as": "name", "path": "tags"})


@pytest.mark.parametrize(
    ("spec", "content", "wanted"),
    [
        (_NUMBERS, "[2, 0, 2]", [2, 0]),
        (_NUMBERS, "[]", []),
        (_NUMBERS, "null", None),
        (_NUMBERS, '["1"]', [1]),
        (_NAMES, '{"tags": ["stop", "left"]}', [2, 0]),
        (_NAMES, '{"tags": null}', None),
        (_NAMES, "{}", None),
    ],
)
def test_a_list_has_any_number_of_classes_and_no_list_is_no_label(
    spec: LabelField, content: str, wanted: list[int] | None
) -> None:
    assert decode_classes(content.encode(), spec) == wanted


@pytest.mark.parametrize(
    ("spec", "content", "reason"),
    [
        (_NUMBERS, "[3]", r"class '3' is not in 0 … 2"),
        (_NUMBERS, "[-1]", "class '-1' is not in"),
        (_NUMBERS, "[true]", "class 'true' is not in"),
        (_NUMBERS, "1", "has '1', expected a list of classes"),
        (_NUMBERS, "[[1]]", r"has '\[1\]' in its list"),
        (_NUMBERS, "[1", "not readable JSON"),
        (_NAMES, '{"tags": ["up"]}', "'up' is none of the 3 classes"),
        (_NAMES, '{"tags": "stop"}', "has 'stop', expected a list of classes"),
    ],
)
def test_a_list_of_something_else_can_not_be_decoded(spec: LabelField, content: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_classes(content.encode(), spec)
