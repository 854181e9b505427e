"""Maps of classes: their shape, that only what is there decides, that every weight takes part, and what a cell costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ray_mm.answers import Answers
from ray_mm.compression.export import export_onnx
from ray_mm.config.fields import FieldSpec, ImageField, LabelField, PointsField, VectorField
from ray_mm.config.maps import encoder_of_map, token_grid
from ray_mm.config.model import ModelConfig
from ray_mm.config.tasks import SeveralTask
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.errors import UsageError
from ray_mm.models.losses import class_terms, loss_per_sample, task_output
from ray_mm.models.multimodal import MultimodalModel, build_model

CLASSES = ("road", "car", "person")
FIELDS: dict[str, FieldSpec] = {
    "camera": ImageField(height=24, width=40),
    "radar": PointsField(channels=4, max_points=9),
    "state": VectorField(size=5),
    "mask": LabelField(target="mask", classes=CLASSES, height=24, width=40, like="camera"),
    "half": LabelField(target="mask", classes=CLASSES, height=12, width=20, like="camera"),
    "ground": LabelField(target="mask", classes=CLASSES, height=20, width=24),
    "tiny": LabelField(target="mask", classes=CLASSES, height=4, width=4),
    "kind": LabelField(classes=CLASSES),
}
SEGMENT = {"type": "segment", "label": "mask"}
GRID = {"type": "grid", "label": "ground"}
SEVERAL = {"type": "several", "tasks": {"plan": GRID, "view": SEGMENT, "what": {"type": "classify", "label": "kind"}}}


def config_of(task: dict[str, Any], inputs: dict[str, Any] | None = None, fusion: str = "gated") -> ModelConfig:
    given = inputs if inputs is not None else {"camera": {}, "radar": {"encoder": "pillars", "cells": 16}, "state": {}}
    return ModelConfig.model_validate(
        {
            "fields": {name: {"dropout": 0.0, **encoder} for name, encoder in given.items()},
            "fusion": {"method": fusion, "dim": 16, "dropout": 0.0},
            "task": task,
        }
    )


def model_of(config: ModelConfig) -> MultimodalModel:
    torch.manual_seed(0)
    return build_model(config, Preprocessor(fields=FIELDS)).eval()


def noise(size: int, seed: int = 0) -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    arrays: dict[str, Any] = {
        "camera": random.integers(0, 256, (size, 24, 40, 3)).astype(np.uint8),
        "radar": random.normal(size=(size, 9, 4)).astype(np.float32),
        "radar.length": random.integers(1, 10, size).astype(np.int32),
        "state": random.normal(size=(size, 5)).astype(np.float32),
        "weight": np.ones(size, np.float32),
    }
    for name in ("mask", "half", "ground"):
        spec = FIELDS[name]
        assert isinstance(spec, LabelField)
        numbers = random.integers(0, 4, (size, spec.height or 0, spec.width or 0))
        arrays[name] = np.where(numbers == 3, 255, numbers).astype(np.uint8)
    arrays["kind"] = random.integers(0, 3, size)
    arrays |= {f"{name}.presence": np.ones(size, np.bool_) for name in FIELDS}
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        (SEGMENT, (24, 40)),
        ({**SEGMENT, "label": "half"}, (12, 20)),
        ({**SEGMENT, "on": "radar"}, (24, 40)),
        (GRID, (20, 24)),
        ({**GRID, "on": "camera"}, (20, 24)),
    ],
    ids=str,
)
@pytest.mark.parametrize("encoder", ["cnn", "vit"])
def test_a_map_has_the_size_of_its_label(task: dict[str, Any], shape: tuple[int, int], encoder: str) -> None:
    camera = {"encoder": encoder, **({"patch": 4} if encoder == "vit" else {})}
    config = config_of(task, {"camera": camera, "radar": {"encoder": "pillars", "cells": 16}, "state": {}})
    with torch.no_grad():
        output = model_of(config)(noise(3))
    assert output.shape == (3, len(CLASSES), *shape) and output.dtype == torch.float32


def test_the_field_of_a_map_has_a_finer_grid_and_a_job_can_say_how_fine() -> None:
    config = config_of(SEGMENT)
    large = ImageField(height=64, width=96)
    assert token_grid(large, config.fields["camera"]) == (4, 6)
    assert token_grid(large, encoder_of_map(config.fields["camera"])) == (16, 24)
    coarse = config_of(SEGMENT, {"camera": {"max_places": 100}}).fields["camera"]
    assert token_grid(large, encoder_of_map(coarse)) == (8, 12)
    assert model_of(config).encoders[0].place.shape[1:] == (6, 10)


@pytest.mark.parametrize("task", [SEGMENT, GRID, SEVERAL])
def test_what_is_absent_has_no_influence(task: dict[str, Any]) -> None:
    model, batch, other = model_of(config_of(task)), noise(4), noise(4, seed=1)
    for name in ("camera", "radar", "state"):
        there = torch.tensor([True, False, True, False])
        changed = {**batch, f"{name}.presence": there}
        replaced = dict(changed)
        for array in (name, f"{name}.length"):
            if array in batch:
                mixed = there.reshape(-1, *[1] * (batch[array].ndim - 1))
                replaced[array] = torch.where(mixed, batch[array], other[array])
        with torch.no_grad():
            found, same, whole = model(changed), model(replaced), model(batch)
        assert torch.equal(found, same), name
        assert not torch.allclose(found[1], whole[1]), f"{name} says something where it is there"


@pytest.mark.parametrize("fusion", ["gated", "bottleneck", "late"])
@pytest.mark.parametrize("task", [SEGMENT, GRID, SEVERAL])
def test_gradients_reach_every_weight_and_none_is_left_out(task: dict[str, Any], fusion: str) -> None:
    config = config_of(task, fusion=fusion)
    model, batch = model_of(config).train(), noise(5)
    model(batch).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters()), "DDP waits for each"
    model.zero_grad()
    for turn, name in enumerate(("camera", "radar", "state")):
        batch[f"{name}.presence"][[turn, -1]] = False
    loss_per_sample(config.task, model(batch), batch, Preprocessor(fields=FIELDS)).sum().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert [name for name in without if not name.endswith("key_value.bias")] == []


def test_maps_and_a_class_stand_beside_each_other() -> None:
    config = config_of(SEVERAL)
    model, batch, prepared = model_of(config), noise(3), Preprocessor(fields=FIELDS)
    assert model.maps == {"plan": "radar", "view": "camera"}
    with torch.no_grad():
        output = model(batch)
    assert isinstance(config.task, SeveralTask) and output.shape == (3, 3 * 20 * 24 + 3 * 24 * 40 + 3)
    places, shapes = config.task.slices(FIELDS), config.task.shapes(FIELDS)
    parts = {name: task_output(output, places[name], shapes[name]) for name in places}
    assert {name: tuple(part.shape) for name, part in parts.items()} == {
        "plan": (3, 3, 20, 24),
        "view": (3, 3, 24, 40),
        "what": (3, 3),
    }
    wanted = sum(loss_per_sample(each, parts[name], batch, prepared) for name, each in config.task.tasks.items())
    torch.testing.assert_close(loss_per_sample(config.task, output, batch, prepared), wanted)
    # Each head is the one that a model of its task alone would have, and gets what it would get.
    encoded, presence = model.encode(batch), {name: batch[f"{name}.presence"] for name in model.fields}
    fused = model.fusion(encoded, presence)
    others = [(*encoded[name], presence[name]) for name in ("radar", "state")]
    known = [(tokens, mask & there[:, None]) for tokens, mask, there in others]
    alone = model.head.heads[1](fused, encoded["camera"][0], presence["camera"], known)
    torch.testing.assert_close(parts["view"], alone)
    answers = Answers(config.task, FIELDS, {}, config.fields)
    said = answers.of_task("view", answers.of_output(output.numpy()))
    np.testing.assert_allclose(said, parts["view"].softmax(dim=1).numpy(), rtol=1e-5, atol=1e-6)
    answer = answers.prediction(answers.of_output(output.numpy())[0], {})
    assert answer.tasks is not None and answer.tasks["plan"].mask is not None
    assert np.array_equal(answer.tasks["plan"].mask, parts["plan"][0].argmax(dim=0).numpy())
    assert answer.tasks["what"].label in CLASSES


def test_maps_beside_a_class_can_be_exported(tmp_path: Path) -> None:
    config = config_of(SEVERAL)
    prepared = Preprocessor(fields={name: FIELDS[name] for name in (*config.fields, "mask", "ground", "kind")})
    torch.manual_seed(0)
    # It raises where the graph says something else, for any fields that are there.
    export_onnx(build_model(config, prepared).eval(), prepared, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 10_000


def test_another_field_can_say_something_of_one_place() -> None:
    """Half of the pictures are black; then a number alone tells where the car is."""
    torch.manual_seed(0)
    config = config_of({**SEGMENT, "label": "half"}, {"camera": {}, "state": {}})
    model = model_of(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        batch = noise(16, seed=step)
        place = torch.randint(0, 4, (16,))
        batch["camera"] = torch.zeros_like(batch["camera"])
        batch["state"] = F.one_hot(place, 5).float()
        batch["half"] = torch.zeros_like(batch["half"])
        for row, where in enumerate(place.tolist()):
            batch["half"][row, 2:8, 5 * where : 5 * where + 4] = 1
        optimizer.zero_grad()
        output = model(batch)
        loss_per_sample(config.task, output, batch, Preprocessor(fields=FIELDS)).mean().backward()
        optimizer.step()
    assert (output.argmax(1) == batch["half"]).float().mean() > 0.97


@pytest.mark.parametrize(
    "more", [{}, {"label_smoothing": 0.1}, {"class_weights": {"road": 1, "car": 3, "person": 0.5}}]
)
def test_the_loss_is_the_mean_over_the_labelled_cells(more: dict[str, Any]) -> None:
    config, batch = config_of({**SEGMENT, **more}), noise(4)
    batch["mask"][2] = 255
    output = torch.randn(4, 3, 24, 40, generator=torch.Generator().manual_seed(0), requires_grad=True)
    terms = class_terms(config.task, None, CLASSES)
    losses = loss_per_sample(config.task, output, batch, Preprocessor(fields=FIELDS), terms)
    weight = torch.tensor([1.0, 3.0, 0.5]) if "class_weights" in more else None
    for row in (0, 1, 3):
        wanted = F.cross_entropy(
            output[row : row + 1],
            batch["mask"][row : row + 1].long(),
            weight,
            ignore_index=255,
            label_smoothing=more.get("label_smoothing", 0.0),
        )
        assert losses[row].item() == pytest.approx(wanted.item(), rel=1e-5)
    losses.sum().backward()
    assert losses[2] == 0 and output.grad is not None and output.grad.isfinite().all() and not output.grad[2].any()


@pytest.mark.parametrize(
    ("task", "inputs", "message"),
    [
        ({"type": "segment", "label": "ground"}, None, r"task\.type: 'ground' is a map of its own; set it to grid"),
        ({"type": "grid", "label": "mask"}, None, r"'mask' is a mask of the picture 'camera'; set it to segment"),
        ({"type": "grid", "label": "kind"}, None, r"grid needs a label with target mask, and 'kind' has target class"),
        ({"type": "classify", "label": "ground"}, None, r"'ground' has target mask; set model\.task\.type to grid"),
        ({"type": "classify", "label": "mask"}, None, r"'mask' has target mask; set model\.task\.type to segment"),
        (SEGMENT, {"state": {}}, r"labels the picture 'camera', which the model does not read"),
        ({**SEGMENT, "on": "state"}, None, r"task\.on: 'state' is of type vector, whose tokens lie on no grid"),
        ({**SEGMENT, "on": "lidar"}, None, r"task\.on: 'lidar' is no input of the model; its fields are camera, radar"),
        (GRID, {"camera": {}}, r"task\.on: the model reads no points"),
        (SEVERAL, {"camera": {}}, r"model\.task\.tasks\.plan\.on: the model reads no points"),
        (GRID, {"radar": {}}, r"model\.fields\.radar\.encoder: the tokens of pointnet, the default, lie on no grid"),
        (SEGMENT, {"camera": {"pretrained": "x"}}, r"model\.fields\.camera\.pretrained: nobody knows on which grid"),
        (
            {"type": "grid", "label": "tiny"},
            {"radar": {"encoder": "pillars"}},
            r"'tiny' of 4×4 cells is smaller than the 8×8 tokens of 'radar'",
        ),
        ({**SEGMENT, "class_weights": {"road": 1}}, None, r"class_weights: .*no weight: car, person"),
        ({**SEGMENT, "class_weights": {"tree": 1}}, None, r"class_weights\.tree: 'mask' has no such class"),
        (SEGMENT, {"camera": {}, "state": {"max_places": 9}}, r"state\.max_places: only cnn has this key"),
    ],
)
def test_a_mistake_is_told_by_its_key(task: dict[str, Any], inputs: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model_of(config_of(task, inputs))


def test_a_picture_that_is_mirrored_does_not_fit_a_map_of_the_ground() -> None:
    fields = {**FIELDS, "camera": ImageField(height=24, width=40, random_flip=0.5)}
    with pytest.raises(UsageError, match=r"data\.fields\.camera\.random_flip: the map 'ground' would not be mirrored"):
        build_model(config_of(GRID), Preprocessor(fields=fields))
