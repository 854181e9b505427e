"""Unset shapes: taken from the data as the fields' documentation says."""

from __future__ import annotations

from typing import Any

import pytest

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
from ray_mm.errors import RayMMError
from ray_mm.preprocessing.complete import TextFacts, complete_fields
from ray_mm.preprocessing.summary import FieldSummary


def _complete(spec: FieldSpec, text: TextFacts | None = None, **found: Any) -> FieldSpec:
    summary = FieldSummary.model_validate(found)
    return complete_fields({"x": spec}, {"x": summary}, {} if text is None else {"x": text})["x"]


@pytest.mark.parametrize(
    ("spec", "found", "expected"),
    [
        (
            ImageField(),
            {"shapes": {"10x20": 1, "30x40": 1, "50x20": 1}},
            ImageField(height=30, width=20),
        ),
        (ImageField(), {"shapes": {"480x640": 3}}, ImageField(height=224, width=224)),
        (ImageField(), {"shapes": {"10x10": 2, "20x20": 2}}, ImageField(height=10, width=10)),
        (ImageField(height=64), {"shapes": {"10x20": 1}}, ImageField(height=64, width=20)),
        (ImageField(height=64, width=32, fit="stretch"), {}, ImageField(height=64, width=32, fit="stretch")),
        (
            AudioField(),
            {"shapes": {"8000": 3, "16000": 2}, "longest": 1.25},
            AudioField(rate_hz=8000, max_seconds=1.25),
        ),
        (
            AudioField(),
            {"shapes": {"8000": 2, "16000": 2}, "longest": 99.0},
            AudioField(rate_hz=16000, max_seconds=30),
        ),
        (AudioField(rate_hz=22050, max_seconds=2), {}, AudioField(rate_hz=22050, max_seconds=2)),
        (
            SeriesField(rate_hz=50),
            {"shapes": {"6": 3}, "longest": 9000},
            SeriesField(channels=6, max_length=4096, rate_hz=50, source_rate_hz=50),
        ),
        (
            # What is written has one rate and no parts any more.
            SeriesField(rate_hz=50, path=("a", "b"), time_path="t"),
            {"shapes": {"2": 3}, "longest": 7},
            SeriesField(channels=2, max_length=7, rate_hz=50, source_rate_hz=50),
        ),
        (
            PointsField(channels=4, raw_float32=True),
            {"shapes": {"4": 3}, "longest": 7},
            PointsField(channels=4, max_points=7),
        ),
        (SeriesField(max_length=5), {"shapes": {"1": 3}, "longest": 90}, SeriesField(channels=1, max_length=5)),
        (PointsField(), {"shapes": {"4": 3}, "longest": 77}, PointsField(channels=4, max_points=77)),
        (VectorField(), {"shapes": {"12": 3}}, VectorField(size=12)),
        (LabelField(target="number"), {}, LabelField(target="number")),
        (LabelField(classes=("a",)), {}, LabelField(classes=("a",))),
    ],
)
def test_what_is_unset_comes_from_the_data_and_what_is_set_stays(
    spec: FieldSpec, found: dict[str, Any], expected: FieldSpec
) -> None:
    assert _complete(spec, **found) == expected


def test_a_text_takes_its_tokenizers_size_and_the_longest_text() -> None:
    assert _complete(TextField(), TextFacts(120, 9)) == TextField(max_tokens=9, vocabulary_size=120)
    assert _complete(TextField(vocabulary_size=1000), TextFacts(120, 900)) == TextField(
        max_tokens=256, vocabulary_size=120
    )
    assert _complete(TextField(max_tokens=4), TextFacts(120, 0)) == TextField(max_tokens=4, vocabulary_size=120)


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (ImageField(), "height and width"),
        (AudioField(), "rate_hz and max_seconds"),
        (SeriesField(), "channels"),
        (SeriesField(channels=3), "max_length"),
        (PointsField(), "channels"),
        (VectorField(), "size"),
    ],
)
def test_a_field_that_no_row_has_must_be_given(spec: FieldSpec, what: str) -> None:
    with pytest.raises(RayMMError, match=rf"fields\.x: no row has this field, so its {what} can't be taken"):
        _complete(spec)


def test_rows_that_differ_in_their_channels_are_named() -> None:
    with pytest.raises(RayMMError) as caught:
        _complete(SeriesField(), shapes={"6": 5, "7": 1}, first_rows={"7": 4, "6": 1}, longest=3)
    assert (
        "channels must be the same in every row, but there are 2 values: 6 in 5 rows from row 1 on, 7 in 1 rows"
        in str(caught.value)
    )
    assert "set fields.x.channels to the right one" in str(caught.value)


def test_data_that_the_field_can_not_be_is_refused() -> None:
    with pytest.raises(RayMMError, match=r"fields\.x: .*greater than or equal to 2"):
        _complete(PointsField(), shapes={"1": 3}, longest=5)


def test_a_field_of_which_nothing_can_be_used_says_why() -> None:
    with pytest.raises(
        RayMMError, match=r"fields\.x: none of its 3 cells could be used \(row 4: is not JPEG\); is it the"
    ):
        _complete(ImageField(height=8, width=8), unusable=3, first_unusable=(4, "is not JPEG"))
