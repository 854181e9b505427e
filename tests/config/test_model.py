"""A model that does not fit the dataset is refused before anything starts, by the key that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mm.config.encoders import ENCODERS, EncoderConfig, encoder_name
from ray_mm.config.fields import FieldSpec, ImageField, LabelField, TextField, VectorField
from ray_mm.config.model import ModelConfig, check_model
from ray_mm.errors import UsageError

FIELDS: dict[str, FieldSpec] = {
    "camera": ImageField(height=32, width=48),
    "order": TextField(max_tokens=8, vocabulary_size=100),
    "state": VectorField(size=3),
    "action": LabelField(classes=("left", "right")),
    "angle": LabelField(target="number"),
    "constant": LabelField(classes=("only",)),
}


def model(**changes: Any) -> ModelConfig:
    content: dict[str, Any] = {
        "fields": {"camera": {}, "state": {}},
        "task": {"type": "classify", "label": "action"},
    }
    return ModelConfig.model_validate(content | changes)


def test_a_model_that_fits_passes() -> None:
    check_model(model(), FIELDS)
    check_model(model(task={"type": "regress", "label": "angle"}), FIELDS)
    check_model(model(fusion={"method": "cross_attention", "dim": 24, "heads": 3}), FIELDS)


def test_every_encoder_named_for_its_type_passes() -> None:
    for encoder in ENCODERS["text"]:
        check_model(model(fields={"order": {"encoder": encoder}}), FIELDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": {"radar": {}}}, r"^model\.fields\.radar: .*no field 'radar'.*camera, order, state"),
        ({"fields": {"angle": {}}}, r"^model\.fields\.angle: 'angle' is a label"),
        (
            {"fields": {"camera": {"encoder": "recurrent"}}},
            r"^model\.fields\.camera\.encoder: 'recurrent' does not take a field of type image; choose cnn or vit",
        ),
        ({"task": {"type": "classify", "label": "goal"}}, r"^model\.task\.label: .*'goal'; labels are action, angle"),
        ({"task": {"type": "classify", "label": "order"}}, r"^model\.task\.label: 'order' is a field of type text"),
        (
            {"task": {"type": "classify", "label": "angle"}},
            r"^model\.task\.type: classify .*set model.task.type to regress",
        ),
        (
            {"task": {"type": "regress", "label": "action"}},
            r"^model\.task\.type: regress .*set model.task.type to classify",
        ),
        ({"task": {"type": "classify", "label": "constant"}}, r"^model\.task\.label: 'constant' has 1 class"),
        (
            {"fusion": {"method": "cross_attention", "dim": 128, "heads": 5}},
            r"^model\.fusion\.heads: 5 heads do not divide the width model\.fusion\.dim of 128",
        ),
        (
            {"fields": {"camera": {"encoder": "vit", "patch": 7}}},
            r"^model\.fields\.camera\.patch: 7 pixels do not divide pictures of 48×32",
        ),
        (
            {"fields": {"state": {"patch": 8}}},
            r"^model\.fields\.state\.patch: only vit has this key, and the encoder is mlp",
        ),
        (
            {"fields": {"camera": {"cell": "lstm"}}},
            r"^model\.fields\.camera\.cell: only recurrent has this key, and the encoder is cnn",
        ),
        (
            {"fields": {"state": {"layers": 2}}},
            r"^model\.fields\.state\.layers: only recurrent has this key, and the encoder is mlp",
        ),
        (
            {"fields": {"state": {"cells": 8}}},
            r"^model\.fields\.state\.cells: only pillars has this key, and the encoder is mlp",
        ),
        (
            {"fields": {"state": {"extent": [0, 10, -5, 5]}}},
            r"^model\.fields\.state\.extent: only pillars has this key, and the encoder is mlp",
        ),
        (
            {"fusion": {"method": "film", "condition": "order"}},
            r"^model\.fusion\.condition: 'order' is no input of the model; choose one of camera, state",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_model(model(**changes), FIELDS)


def test_a_picture_that_is_too_small_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^model\.fields\.camera: pictures of 48×7 pixels are too small"):
        check_model(model(), {**FIELDS, "camera": ImageField(height=7, width=48)})


def test_a_dataset_without_labels_is_named() -> None:
    with pytest.raises(UsageError, match="it has no label at all"):
        check_model(model(), {name: spec for name, spec in FIELDS.items() if spec.type != "label"})


def test_the_default_encoder_is_the_first_for_the_type() -> None:
    assert encoder_name(FIELDS["order"], EncoderConfig()) == "recurrent"
    assert encoder_name(FIELDS["order"], EncoderConfig(encoder="transformer")) == "transformer"
