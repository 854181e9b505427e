"""Parts of a model: which parameters belong to them, at what rates they learn, when they are frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_mm.config.optimize import OptimizerConfig
from ray_mm.errors import UsageError
from ray_mm.models.multimodal import MultimodalModel, build_model
from ray_mm.training.parts import frozen_parts, learning_rate_factors, model_parts, set_frozen, train_mode
from tests.factories import make_dataset
from tests.training.inprocess import make_training

INPUTS = ("image", "text", "series")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("parts")
    make_dataset(made / "train", 6, (*INPUTS, "label"))
    return made


@pytest.fixture
def model(folder: Path) -> MultimodalModel:
    training = make_training(folder, inputs=INPUTS, **{"model.fields.text": {"encoder": "transformer"}})
    return build_model(training.job.model, training.preprocessor)


def test_every_parameter_belongs_to_one_part(model: MultimodalModel) -> None:
    parts = model_parts(model)
    assert list(parts) == ["encoders.image", "encoders.series", "encoders.text", "fusion", "head"]
    found = [parameter for module in parts.values() for parameter in module.parameters()]
    assert len(found) == len(set(found)) and set(found) == set(model.parameters())
    assert learning_rate_factors(model, OptimizerConfig()) == dict.fromkeys(model.parameters(), 1.0)


def test_a_field_s_own_factor_counts_before_that_of_all_encoders(model: MultimodalModel) -> None:
    config = OptimizerConfig(parts={"encoders": 0.1, "encoders.text": 0.5, "head": 3.0})
    factors = learning_rate_factors(model, config)
    expected = {"encoders.image": 0.1, "encoders.series": 0.1, "encoders.text": 0.5, "fusion": 1.0, "head": 3.0}
    for part, module in model_parts(model).items():
        assert {factors[parameter] for parameter in module.parameters()} == {expected[part]}


def test_layers_learn_less_the_further_they_are_from_the_output(model: MultimodalModel) -> None:
    factors = learning_rate_factors(model, OptimizerConfig(layer_decay=0.5))
    text = model.encoders[model.fields.index("text")]
    found = {name: factors[parameter] for name, parameter in text.named_parameters()}
    # embedding with its places, two layers, norm
    assert found["embed.weight"] == found["place"] == 0.125
    assert {factor for name, factor in found.items() if name.startswith("layers.0.")} == {0.25}
    assert {factor for name, factor in found.items() if name.startswith("layers.1.")} == {0.5}
    assert found["norm.weight"] == 1.0
    for part, module in model_parts(model).items():
        of_part = [factors[parameter] for parameter in module.parameters()]
        assert max(of_part) == 1.0
        if part.startswith("encoders."):
            assert min(of_part) < 1.0
        else:
            assert min(of_part) == 1.0


def test_a_part_thaws_after_its_share_of_the_steps() -> None:
    freeze = {"encoders": 0.25, "encoders.b": 1.0, "head": 0.0}
    found = [frozen_parts(freeze, ["a", "b"], step, 8) for step in range(1, 9)]
    assert found == [{"encoders.a", "encoders.b"}] * 2 + [{"encoders.b"}] * 6


def test_a_frozen_part_has_no_gradient_and_no_dropout(model: MultimodalModel) -> None:
    set_frozen(model, frozenset({"encoders.text"}))
    train_mode(model)
    for part, module in model_parts(model).items():
        trained = part != "encoders.text"
        assert module.training is trained
        assert {parameter.requires_grad for parameter in module.parameters()} == {trained}
    set_frozen(model, frozenset())
    train_mode(model)
    assert all(module.training for module in model.modules())


def test_a_network_without_parts_is_trained_as_a_whole() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2)).eval()
    train_mode(network)
    assert network.training


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"train.optimizer.parts": {"encoders.radar": 0.1}},
            r"no part 'encoders\.radar'; its parts are encoders, .*head",
        ),
        ({"train.freeze": {"encoders.radar": 0.1}}, r"train\.freeze: the model has no part 'encoders\.radar'"),
        ({"train.freeze": {"body": 0.1}}, r"train\.freeze"),
        ({"train.freeze": {"head": 1.5}}, r"train\.freeze\.head"),
        (
            {"train.freeze": {"encoders": 0.1, "fusion": 1, "head": 0.2}},
            "every part of the model is frozen at the start",
        ),
        ({"train.optimizer.momentum": 0.9}, "momentum 0.9 is given, and adamw has none"),
        ({"train.schedule": {"name": "wsd", "warmup": 0.6, "decay": 0.5}}, "together more than the whole training"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_training(folder, inputs=INPUTS, **overrides)
