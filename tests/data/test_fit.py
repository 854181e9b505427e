"""Whether a dataset has what a model reads, told with the decisive difference first and in few words."""

from __future__ import annotations

import pytest

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


def test_a_number_that_should_be_a_class_hides_the_classes() -> None:
    with pytest.raises(DatasetError) as caught:
        require_fit("d", {"label": LabelField(target="number")}, {"label": _classes(["a", "b"])})
    assert str(caught.value) == "d does not fit the model: label.target is 'number', the model has 'class'."
