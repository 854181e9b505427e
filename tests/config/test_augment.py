"""What may be changed at random in which field."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mm.config.augment import AugmentConfig, check_augment, check_pairs
from ray_mm.config.fields import FieldSpec, ImageField, LabelField, VideoField
from ray_mm.config.model import ModelConfig
from ray_mm.errors import UsageError
from tests.factories import SPECS

FIELDS: dict[str, FieldSpec] = {
    **SPECS,
    "grey": ImageField(height=8, width=8, channels=1),
    "clip": VideoField(height=8, width=8),
}


def _check(config: dict[str, Any], *inputs: str, task: str = "classify") -> None:
    label = "label" if task == "classify" else "number"
    model = ModelConfig.model_validate(
        {"fields": {name: {} for name in inputs}, "task": {"type": task, "label": label}}
    )
    assert isinstance(FIELDS[label], LabelField)
    check_augment(AugmentConfig.model_validate(config), model, FIELDS)


@pytest.mark.parametrize(
    ("field", "augment"),
    [
        ("image", {"color": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}, "erase": 0.25}),
        ("clip", {"color": {"hue": 0.5}, "erase": 1.0}),
        ("grey", {"color": {"brightness": 0.4, "contrast": 0.4}}),
        ("audio", {"time_mask": 0.2, "frequency_mask": 0.2}),
        ("series", {"noise": 0.1, "scale": 0.2, "time_mask": 0.1}),
        ("vector", {"noise": 0.1}),
    ],
)
def test_every_field_takes_what_suits_it(field: str, augment: dict[str, Any]) -> None:
    _check({"fields": {field: augment}}, field)
    with pytest.raises(UsageError, match="a field of type text"):
        _check({"fields": {"text": augment}}, "text")


@pytest.mark.parametrize(
    ("config", "inputs", "message"),
    [
        ({"fields": {"image": {}}}, ("vector",), r"fields\.image: the model does not read 'image'; it reads vector\."),
        (
            {"fields": {"vector": {"erase": 0.5}}},
            ("vector",),
            r"fields\.vector\.erase: this can't be done to a field of type vector; set noise instead, or leave it out",
        ),
        ({"fields": {"text": {"noise": 0.5}}}, ("text",), r"a field of type text; leave it out"),
        ({"fields": {"audio": {"color": {"hue": 0.1}}}}, ("audio",), r"set time_mask or frequency_mask instead"),
        ({"fields": {"grey": {"color": {"saturation": 0.1}}}}, ("grey",), r"color\.saturation: 'grey' is grey"),
        ({"mixup": 0.2}, ("text", "vector"), r"augment\.mixup: the 'text' of two samples can't be mixed"),
        ({"cutmix": 1.0}, ("image", "points"), r"augment\.cutmix: the 'points' of two samples can't be mixed"),
        ({"cutmix": 1.0}, ("vector",), r"augment\.cutmix cuts a rectangle out of pictures, and the model reads none"),
    ],
)
def test_what_does_not_suit_is_refused(config: dict[str, Any], inputs: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _check(config, *inputs)


def test_numbers_are_mixed_up_and_not_cut() -> None:
    _check({"mixup": 0.2}, "image", task="regress")
    with pytest.raises(UsageError, match=r"cutmix: half of a picture says nothing of half of a number"):
        _check({"cutmix": 0.2}, "image", task="regress")


def test_pairs_are_not_cut_in_two() -> None:
    for mixing in ({"mixup": 0.2}, {"cutmix": 1.0}):
        config = AugmentConfig.model_validate(mixing)
        for batch_size, workers in ((16, (2, 2)), (48, (1, 4)), (2, (1, 1))):
            check_pairs(config, batch_size, workers)
        key = next(iter(mixing))
        with pytest.raises(UsageError, match=rf"augment\.{key} mixes pairs .* each of 2 workers gets 9, an odd number"):
            check_pairs(config, 17, (2, 2))
        with pytest.raises(UsageError, match="each of 3 workers gets 11"):
            check_pairs(config, 32, (1, 4))
    check_pairs(AugmentConfig(), 17, (1, 4))
