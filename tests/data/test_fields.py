"""The schema of a batch: a job's overrides of how a dataset's fields are decoded."""

from __future__ import annotations

import pytest

from ray_mm.config.fields import (
    FieldSpec,
    ImageField,
    LabelField,
    PointsField,
    RandomCrop,
    SeriesField,
    TextField,
    VectorField,
)
from ray_mm.data.fields import merge_fields
from ray_mm.errors import DatasetError

_TIMED = SeriesField(channels=3, max_length=9, rate_hz=50, path="v", time_path="t")
_SPECS: dict[str, FieldSpec] = {
    "image": ImageField(height=16, width=16),
    "text": TextField(max_tokens=8, vocabulary_size=99),
    "imu": SeriesField(channels=3, max_length=9, rate_hz=50, source_rate_hz=50),
    "unknown": SeriesField(channels=3, max_length=9, rate_hz=50),
    "timed": _TIMED,
    "radar": PointsField(channels=4, max_points=9),
    "state": VectorField(size=2),
    "label": LabelField(classes=("a", "b")),
    "mask": LabelField(target="mask", classes=("a", "b"), height=16, width=8, like="image"),
    "grid": LabelField(target="mask", classes=("a", "b"), height=4, width=4),
}


def test_what_a_job_says_replaces_what_the_dataset_says_and_nothing_else() -> None:
    crop = RandomCrop(scale=(0.5, 1.0))
    overrides: dict[str, FieldSpec] = {
        "image": ImageField(height=8, random_crop=crop),
        "imu": SeriesField(rate_hz=25),
        "timed": SeriesField(rate_hz=10),
    }
    merged = merge_fields(_SPECS, overrides)
    assert merged["image"] == ImageField(height=8, width=16, random_crop=crop)
    assert merged["imu"] == SeriesField(channels=3, max_length=9, rate_hz=25, source_rate_hz=50)
    assert merged["timed"] == _TIMED.model_copy(update={"rate_hz": 10})
    followed = {"mask": _SPECS["mask"].model_copy(update={"height": 8})}
    assert {name: spec for name, spec in merged.items() if name not in overrides} == {
        name: spec for name, spec in (_SPECS | followed).items() if name not in overrides
    }


def test_a_mask_is_as_large_as_its_picture_unless_one_says_otherwise() -> None:
    picture = ImageField(height=32, width=24)
    mask = merge_fields(_SPECS, {"image": picture})["mask"]
    assert isinstance(mask, LabelField) and (mask.height, mask.width) == (32, 8), "its width was another one"
    mask = merge_fields(_SPECS, {"image": picture, "mask": LabelField(height=4, width=6)})["mask"]
    assert isinstance(mask, LabelField) and (mask.height, mask.width, mask.target) == (4, 6, "mask")


@pytest.mark.parametrize(
    ("name", "override", "key"),
    [
        ("text", TextField(path="a"), "path"),
        ("unknown", SeriesField(rate_hz=25), "rate_hz"),
        ("imu", SeriesField(rate_hz=25, source_rate_hz=10), "source_rate_hz"),
        ("timed", SeriesField(path="w"), "path"),
        ("radar", PointsField(channels=4, raw_float32=True), "channels"),
        ("state", VectorField(path="a"), "path"),
        ("label", LabelField(written_as="name"), "written_as"),
        ("label", LabelField(height=4), "height"),
        ("mask", LabelField(target="mask", like="other"), "like"),
        ("grid", LabelField(width=2), "width"),
    ],
)
def test_what_lies_in_the_data_can_not_be_overridden(name: str, override: FieldSpec, key: str) -> None:
    with pytest.raises(DatasetError, match=rf"data\.fields\.{name}\.{key} is fixed"):
        merge_fields(_SPECS, {name: override})
