"""Every fusion joins what is there, and only that."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from ray_mm.models.losses import loss_per_sample
from tests.models.batches import FIELDS, FUSIONS, model_config, noise, preprocessor_of, seeded_model

fusions = pytest.mark.parametrize("fusion", FUSIONS)


@fusions
def test_what_an_absent_field_holds_changes_nothing(fusion: str) -> None:
    config = model_config(FIELDS, fusion)
    model = seeded_model(config)
    batch, other = noise(config, 4, seed=1), noise(config, 4, seed=2)
    for name in FIELDS:
        absent = {**batch, f"{name}.presence": torch.zeros(4, dtype=torch.bool)}
        changed = {**absent, **{array: other[array] for array in (name, f"{name}.length") if array in other}}
        with torch.no_grad():
            assert torch.equal(model(absent), model(changed)), name
            assert not torch.equal(model(batch), model(absent)), name


@fusions
def test_absence_is_a_matter_of_each_sample(fusion: str) -> None:
    config = model_config(["image", "vector"], fusion)
    model, batch = seeded_model(config), noise(config, 6)
    batch["image.presence"] = torch.tensor([True, False] * 3)
    with torch.no_grad():
        mixed = model(batch)
        everywhere = model({**batch, "image.presence": torch.ones(6, dtype=torch.bool)})
        nowhere = model({**batch, "image.presence": torch.zeros(6, dtype=torch.bool)})
    torch.testing.assert_close(mixed[::2], everywhere[::2])
    torch.testing.assert_close(mixed[1::2], nowhere[1::2])


@fusions
@pytest.mark.parametrize("task", ["classify", "regress"])
def test_nothing_at_all_gives_a_finite_output_and_finite_gradients(fusion: str, task: str) -> None:
    config = model_config(FIELDS, fusion, task=task)
    model, batch = seeded_model(config).train(), noise(config, 3)
    empty = {
        name: torch.zeros_like(values) if name.split(".")[0] in FIELDS else values for name, values in batch.items()
    }
    output = model(empty)
    assert output.isfinite().all()
    loss_per_sample(config.task, output, empty, preprocessor_of(config)).sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@fusions
def test_fusing_an_encoded_batch_equals_running_it_with_presence_edited(fusion: str) -> None:
    config = model_config(["image", "text", "vector"], fusion)
    model, batch = seeded_model(config), noise(config, 3)
    with torch.no_grad():
        encoded = model.encode(batch)
        for pattern in product([False, True], repeat=3):
            presence = {name: torch.full((3,), there) for name, there in zip(config.fields, pattern, strict=True)}
            edited = {**batch, **{f"{name}.presence": there for name, there in presence.items()}}
            assert torch.equal(model.fuse(encoded, presence), model(edited))


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "late"])
def test_two_fields_of_which_neither_says_anything_alone_are_learned(fusion: str) -> None:
    # The exclusive or: the class depends on whether the two signs agree.
    fields = {"first": FIELDS["vector"], "second": FIELDS["vector"]}
    config = model_config(["first", "second"], fusion)
    model, batch = seeded_model(config, fields).train(), noise(config, 256, fields=fields)
    batch["kind"] = ((batch["first"][:, 0] > 0) ^ (batch["second"][:, 0] > 0)).long()
    preprocessor = preprocessor_of(config, fields)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98))
    for _ in range(150):
        output = model(batch)
        optimizer.zero_grad()
        loss_per_sample(config.task, output, batch, preprocessor).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    accuracy = (output.argmax(1) == batch["kind"]).float().mean().item()
    assert accuracy > 0.95


@pytest.mark.parametrize("fusion", ["cross_attention", "bottleneck", "latent"])
def test_attention_takes_any_heads_and_layers(fusion: str) -> None:
    for heads, layers in ((1, 1), (8, 3)):
        config = model_config(["vector", "text"], fusion, heads=heads, layers=layers)
        assert seeded_model(config)(noise(config, 2)).shape == (2, 4)


@fusions
def test_one_field_alone_is_fused_too(fusion: str) -> None:
    config = model_config(["vector"], fusion)
    model = seeded_model(config).train()
    output = model(noise(config, 3))
    output.sum().backward()
    assert output.shape == (3, 4)


@fusions
def test_every_weight_of_a_fusion_is_trained(fusion: str) -> None:
    config = model_config(FIELDS, fusion)
    model, batch = seeded_model(config).train(), noise(config, len(FIELDS))
    # Each field is there in some samples and absent in others; in one there is none.
    for number, name in enumerate(FIELDS):
        batch[f"{name}.presence"] = torch.arange(len(FIELDS)) != number
    batch = {name: torch.cat([values, values[:1]]) for name, values in batch.items()}
    for name in FIELDS:
        batch[f"{name}.presence"][-1] = False
    model(batch).square().sum().backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not idle


def test_the_late_mean_is_that_of_the_fields_that_are_there() -> None:
    config = model_config(["image", "text", "vector"], "late")
    model, batch = seeded_model(config), noise(config, 3)
    batch["text.presence"] = torch.zeros(3, dtype=torch.bool)
    with torch.no_grad():
        both = model(batch)
        alone = [model({**batch, f"{name}.presence": torch.zeros(3, dtype=torch.bool)}) for name in ("image", "vector")]
    torch.testing.assert_close(both, torch.stack(alone).mean(0))


def test_a_field_that_conditions_the_others_is_an_input() -> None:
    config = model_config(["image", "text"], "film", condition="text")
    model, batch = seeded_model(config), noise(config, 2)
    assert model.fusion.modulate.in_features == 16 and model(batch).isfinite().all()
