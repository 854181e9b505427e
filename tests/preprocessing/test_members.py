"""Cells → members: bytes kept where they are files, checked, and refused with a reason."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from ray_mm.config.fields import (
    AudioField,
    FieldSpec,
    ImageField,
    LabelField,
    PointsField,
    SeriesField,
    TextField,
    VectorField,
)
from ray_mm.data.decode.arrays import read_npy
from ray_mm.data.decode.error import DecodeError
from ray_mm.preprocessing.files import file_named
from ray_mm.preprocessing.members import Member, member_of
from tests.factories import audio_bytes, image_bytes, npy_bytes
from tests.preprocessing.tables import write_file


def _member(spec: FieldSpec, *cells: Any) -> Member:
    member = member_of(spec, cells, [None] * len(cells))
    assert member is not None
    return member


def _file(tmp_path: Path, spec: FieldSpec, payload: bytes, name: str = "file.bin") -> Member:
    write_file(tmp_path / name, payload)
    member = member_of(spec, [name], [tmp_path / name])
    assert member is not None
    return member


@pytest.mark.parametrize(
    ("format", "extension"),
    [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif")],
)
def test_a_picture_keeps_its_bytes_and_gets_the_extension_of_its_content(
    tmp_path: Path, format: str, extension: str
) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (20, 10)).save(stream, format)
    member = _file(tmp_path, ImageField(), stream.getvalue(), "wrong.mp3")
    assert (member.extension, member.payload, member.shape) == (extension, stream.getvalue(), (10, 20))


@pytest.mark.parametrize(
    ("format", "subtype", "extension"),
    [("WAV", "PCM_16", "wav"), ("FLAC", None, "flac"), ("OGG", "VORBIS", "ogg"), ("MP3", "MPEG_LAYER_III", "mp3")],
)
def test_a_recording_keeps_its_bytes_and_says_rate_and_length(
    tmp_path: Path, format: str, subtype: str | None, extension: str
) -> None:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(8000), 16000, format=format, subtype=subtype)
    member = _file(tmp_path, AudioField(), stream.getvalue())
    assert (member.extension, member.payload, member.shape) == (extension, stream.getvalue(), (16000,))
    assert member.longest == pytest.approx(0.5, abs=0.15)  # MP3 is padded


@pytest.mark.parametrize(
    ("spec", "payload", "reason"),
    [
        (ImageField(), b"a text", "is not JPEG, PNG"),
        (ImageField(), audio_bytes(0), "is not JPEG, PNG"),
        (ImageField(), image_bytes(1)[:20], "not a picture"),
        (AudioField(), image_bytes(0), "is not WAV, FLAC"),
        (AudioField(), audio_bytes(0)[:16], "not a readable recording"),
        (AudioField(), b"RIFF\0\0\0\0WEBPVP8 ", "is not WAV, FLAC"),
        (SeriesField(), b"1,2\n3,high\n", "not a CSV of numbers"),
        (SeriesField(), npy_bytes(np.zeros((2, 2, 2))), r"shape \[2, 2, 2\], expected \[any, channels\]"),
        (SeriesField(channels=3), npy_bytes(np.zeros((2, 2))), r"has shape \[2, 2\], expected \[any, 3\]"),
        (PointsField(), npy_bytes(np.zeros(6)), "of shape"),
        (PointsField(), npy_bytes(np.full((2, 3), np.nan)), "not finite"),
        (VectorField(size=3), npy_bytes(np.zeros(4)), "has 4 values, expected 3"),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, spec: FieldSpec, payload: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        _file(tmp_path, spec, payload)


def test_texts_are_kept_and_numbers_become_texts() -> None:
    assert _member(TextField(), "Grüße,\nwelt ").payload == "Grüße,\nwelt ".encode()
    assert _member(TextField(), 7).payload == b"7"


@pytest.mark.parametrize("value", [[[1, 2], [3, 4.5]], "[[1, 2], [3, 4.5]]", " [[1,2],[3,4.5]]"])
def test_a_series_is_a_nested_list_or_one_as_json(value: Any) -> None:
    assert file_named(SeriesField(), value) is None
    member = _member(SeriesField(), value)
    assert (member.extension, member.shape, member.longest) == ("npy", (2,), 2.0)
    assert read_npy(member.payload).tolist() == [[1, 2], [3, 4.5]]
    assert member.values is not None and member.values.dtype == np.float32


def test_a_flat_list_is_a_series_of_one_channel() -> None:
    assert _member(SeriesField(), [1, 2, 3]).shape == (1,)


@pytest.mark.parametrize("text", ["1,2\n3,4\n", "x,y\n1,2\n3,4", "\ufeffx,y\r\n1, 2\r\n3,4\r\n\r\n"])
def test_a_series_is_a_csv_with_or_without_a_header(tmp_path: Path, text: str) -> None:
    member = _file(tmp_path, SeriesField(), text.encode(), "t.csv")
    assert read_npy(member.payload).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("text", ["x,y\n1,2\n3\n", "1,2\n3,high\n", "1,nan\n", "1,\n"])
def test_a_csv_with_gaps_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DecodeError, match=r"not a CSV of numbers|not finite"):
        _file(tmp_path, SeriesField(), text.encode(), "t.csv")


def test_the_same_numbers_give_the_same_bytes_wherever_they_come_from(tmp_path: Path) -> None:
    values = np.array([[1, 2], [3, 4]])
    expected = _member(SeriesField(), values.tolist()).payload
    for array in (
        values,
        values.astype(np.float64),
        np.asfortranarray(values.astype(np.float32)),
        values.astype(">f4"),
    ):
        assert _file(tmp_path, SeriesField(), npy_bytes(array)).payload == expected
    assert _file(tmp_path, SeriesField(), b"1,2\n3,4\n", "t.csv").payload == expected


@pytest.mark.parametrize("cells", [("1", " 2.5", 3), ([1, 2.5, 3],), ("[1, 2.5, 3]",), ("[[1], [2.5], [3]]",)])
def test_a_vector_is_columns_or_a_list(cells: tuple[Any, ...]) -> None:
    member = _member(VectorField(), *cells)
    assert member.shape == (3,) and read_npy(member.payload).tolist() == [1, 2.5, 3]
    assert member.values is not None and member.values.shape == (1, 3)


def test_a_single_number_is_a_vector_of_one() -> None:
    assert file_named(VectorField(), "1.5") is None
    assert _member(VectorField(), "1.5").payload == _member(VectorField(), 1.5).payload


@pytest.mark.parametrize(
    ("spec", "cells", "reason"),
    [
        (SeriesField(), ("[[1, 2], [3]]",), "not an array of numbers"),
        (SeriesField(), ("[1, 2",), "not readable JSON"),
        (SeriesField(), ("[1, null]",), "not an array of numbers|not finite"),
        (VectorField(), ("1", "x"), "'x' is not a number"),
        (VectorField(), ("1", "1e50"), "not finite"),
        (PointsField(), (3.5,), "of shape"),
        (LabelField(target="number"), ("1e50",), "not a finite 32-bit number"),
    ],
)
def test_a_value_that_is_something_else_is_refused(spec: FieldSpec, cells: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        member_of(spec, cells, [None] * len(cells))


@pytest.mark.parametrize(
    ("spec", "cells"),
    [
        (TextField(), ("",)),
        (TextField(), (None,)),
        (ImageField(), (None,)),
        (SeriesField(), ([],)),
        (PointsField(), ("[]",)),
        (VectorField(), ("[]",)),
        (VectorField(), (1.0, None)),
        (LabelField(classes=("a",)), (None,)),
    ],
)
def test_an_empty_cell_is_an_absent_field(spec: FieldSpec, cells: tuple[Any, ...]) -> None:
    assert member_of(spec, cells, [None] * len(cells)) is None


def test_a_cloud_without_points_is_an_absent_field(tmp_path: Path) -> None:
    write_file(tmp_path / "p.npy", npy_bytes(np.zeros((0, 4), np.float32)))
    assert member_of(PointsField(), ["p.npy"], [tmp_path / "p.npy"]) is None
    write_file(tmp_path / "p.csv", b"x,y,z\n")
    assert member_of(PointsField(), ["p.csv"], [tmp_path / "p.csv"]) is None


def test_a_class_becomes_its_number_and_a_number_stays_exact() -> None:
    member = _member(LabelField(classes=("no", "7")), 7)
    assert (member.extension, member.payload, member.class_names) == ("cls", b"1", ("7",))
    member = _member(LabelField(target="number"), "0.1")
    assert (member.extension, json.loads(member.payload)) == ("json", 0.1)
    assert member.values is not None and member.values.tolist() == [[pytest.approx(0.1)]]


@pytest.mark.parametrize(
    ("cell", "numbers", "names"), [(["b", "a"], "[0, 1]", ("b", "a")), ([], "[]", ()), ("b;", "[1]", ("b",))]
)
def test_classes_become_a_list_of_their_numbers_and_no_class_is_no_absence(
    cell: object, numbers: str, names: tuple[str, ...]
) -> None:
    member = _member(LabelField(target="classes", classes=("a", "b")), cell)
    assert (member.extension, member.payload.decode(), member.class_names) == ("json", numbers, names)
