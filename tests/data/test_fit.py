"""Whether a dataset has what a model reads, told with the decisive difference first and in few words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from ray_mm.config.fields import FieldSpec, LabelField, SeriesField
from ray_mm.data.fit import require_fit
from ray_mm.errors import DatasetError
from tests.factories import SPECS

_WANTED: dict[str, FieldSpec] = {name: SPECS[name] for name in ("audio", "image", "label", "series")}


def _classes(names: list[str]) -> LabelField:
    return LabelField(classes=tuple(names))


def test_a_dataset_with_all_fields_and_more_fits() -> None:
    assert require_fit("d", SPECS, _WANTED) == []


def test_only_what_may_be_lacking_may_be_lacking() -> None:
    found = {name: spec for name, spec in SPECS.items() if name not in ("audio", "series")}
    assert require_fit("d", found, _WANTED, ["audio", "image", "series"]) == ["audio", "series"]
    with pytest.raises(DatasetError, match="d does not fit the model: has no field 'series'"):
        require_fit("d", found, _WANTED, ["audio", "image"])


def test_a_field_that_is_there_must_be_the_same() -> None:
    found = {**SPECS, "series": SeriesField(channels=7), "image": SPECS["audio"]}
    with pytest.raises(
        DatasetError, match=r"image is audio, the model reads image; series\.channels is 7, the model has"
    ):
        require_fit("d", found, _WANTED, ["audio", "image", "series"])


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        (
            [str(n) for n in range(400)],
            ["a"],
            r"label has classes that the model does not know: '0', '1', '10', '100', '101' and 395 more "
            r"\(400 classes, the model has 1\)\.",
        ),
        (["a"], ["a", "b"], r"label lacks classes that the model knows: 'b' \(1 classes, the model has 2\)\."),
        (["a", "b"], ["b", "a"], "label has its classes in another order: number 0 is 'a', in the model 'b'"),
    ],
)
def test_a_difference_of_classes_is_named_not_dumped(found: list[str], wanted: list[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        require_fit("d", {"label": _classes(found)}, {"label": _classes(wanted)})


POINTS = {"type": "points", "channels": 4, "max_points": 9}
SERIES = {"type": "series", "channels": 3, "max_length": 9}


@pytest.mark.parametrize(
    ("wanted", "found", "message"),
    [
        ({"type": "text"}, {"path": "caption"}, "x.path is 'caption', the model has None"),
        (SERIES, {"path": "imu"}, "x.path is 'imu', the model has None"),
        (
            {**SERIES, "rate_hz": 50, "path": ["a", "b"], "time_path": "t"},
            {"path": ["b", "a"]},
            r"x.path is \('b', 'a'\), the model has \('a', 'b'\)",
        ),
        ({**SERIES, "rate_hz": 50, "time_path": "t"}, {"time_path": "u"}, "x.time_path is 'u', the model has 't'"),
        (
            {**SERIES, "rate_hz": 50, "source_rate_hz": 100},
            {"source_rate_hz": 200},
            "x has 200 steps per second, the model reads it as if it had 100",
        ),
        ({**SERIES, "rate_hz": 50}, {"rate_hz": 100}, "x has 100 steps per second, the model reads .* it had 50"),
        (POINTS, {"path": ["x", "y", "z", "i"]}, r"x.path is \('x', 'y', 'z', 'i'\), the model has None"),
        (POINTS, {"raw_float32": True}, "x.raw_float32 is True, the model has False"),
        ({"type": "vector", "size": 2, "path": "a"}, {"path": "b"}, "x.path is 'b', the model has 'a'"),
        ({"type": "label", "path": "kind"}, {"path": "sort"}, "x.path is 'sort', the model has 'kind'"),
        ({"type": "label"}, {"written_as": "name"}, "x.written_as is 'name', the model has 'number'"),
    ],
)
def test_members_that_are_written_in_another_way_do_not_fit(
    wanted: dict[str, Any], found: dict[str, Any], message: str
) -> None:
    specs = [TypeAdapter[FieldSpec](FieldSpec).validate_python(each) for each in (wanted | found, wanted)]
    assert require_fit("d", {"x": specs[1]}, {"x": specs[1]}) == []
    with pytest.raises(DatasetError, match=f"d does not fit the model: {message}"):
        require_fit("d", {"x": specs[0]}, {"x": specs[1]})


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        # What decoding makes the same, or nobody knows.
        ({**SERIES, "path": "imu"}, {**SERIES, "path": ["imu"], "max_length": 7}),
        ({**SERIES, "rate_hz": 25, "source_rate_hz": 100}, {**SERIES, "rate_hz": 50, "source_rate_hz": 100}),
        ({**SERIES, "rate_hz": 25, "time_path": "t"}, {**SERIES, "rate_hz": 50, "time_path": "t"}),
        ({**SERIES, "rate_hz": 25}, SERIES),
        ({"type": "image", "height": 9, "width": 9}, {"type": "image", "height": 8, "width": 8, "channels": 1}),
        ({"type": "audio", "rate_hz": 8000}, {"type": "audio", "rate_hz": 16000}),
    ],
)
def test_what_decoding_makes_the_same_fits(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    here, there = (TypeAdapter[FieldSpec](FieldSpec).validate_python(each) for each in (found, wanted))
    assert require_fit("d", {"x": here}, {"x": there}) == []


def test_a_number_that_should_be_a_class_hides_the_classes() -> None:
    with pytest.raises(DatasetError) as caught:
        require_fit("d", {"label": LabelField(target="number")}, {"label": _classes(["a", "b"])})
    assert str(caught.value) == "d does not fit the model: label.target is 'number', the model has 'class'."


def test_a_map_must_have_the_cells_of_the_models_and_a_mask_its_picture() -> None:
    def mask(**more: Any) -> dict[str, FieldSpec]:
        return {"label": LabelField(target="mask", classes=("a", "b"), **more)}

    with pytest.raises(DatasetError, match=r"label is a map of 4×6 cells, the model's of 4×8 cells"):
        require_fit("d", mask(height=4, width=6), mask(height=4, width=8))
    with pytest.raises(DatasetError, match=r"label\.like is None, the model has 'camera'"):
        require_fit("d", mask(height=4, width=6), mask(height=4, width=6, like="camera"))
    assert require_fit("d", mask(height=4, width=6, like="camera"), mask(height=8, width=8, like="camera")) == []
