"""The whole network: shapes, seeds, names, gradients."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from ray_mm.config.fields import FieldSpec, ImageField
from ray_mm.errors import UsageError
from ray_mm.models.losses import loss_per_sample
from ray_mm.models.multimodal import build_model, input_arrays, num_parameters
from tests.models.batches import (
    ENCODERS_OF,
    FIELDS,
    FUSIONS,
    model_config,
    noise,
    preprocessor_of,
    seeded_model,
)

ENCODER_SETS = [
    {kind: encoders[min(number, len(encoders) - 1)] for kind, encoders in ENCODERS_OF.items()}
    for number in range(max(len(encoders) for encoders in ENCODERS_OF.values()))
]
"""Sets that together have every encoder."""


def test_classes_become_logits_and_numbers_a_value() -> None:
    for task, shape in (("classify", (3, 4)), ("regress", (3,))):
        config = model_config(["vector"], task=task)
        output = seeded_model(config)(noise(config, 3))
        assert output.shape == shape and output.dtype == torch.float32


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("encoders", ENCODER_SETS)
def test_gradients_reach_every_parameter(fusion: str, encoders: dict[str, str]) -> None:
    config = model_config(encoders, fusion, encoders=encoders)
    model, batch = seeded_model(config).train(), noise(config, len(config.fields) + 2)
    for turn, name in enumerate(config.fields):
        # One sample lacks just this field, the last lacks all, and the one before it none.
        batch[f"{name}.presence"][[turn, -1]] = False
    loss_per_sample(config.task, model(batch), batch, preprocessor_of(config)).sum().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    # A key's bias adds the same to every score of a softmax, so nothing depends on it.
    assert [name for name in without if not name.endswith("key_value.bias")] == []


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_takes_part_even_if_every_field_is_there(fusion: str) -> None:
    # DistributedDataParallel waits for ever for a parameter that had no part in the forward pass.
    config = model_config(FIELDS, fusion)
    model, batch = seeded_model(config).train(), noise(config, 2)
    model(batch).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_order_of_fields_in_a_job_does_not_matter(fusion: str) -> None:
    names = list(FIELDS)
    forwards, backwards = model_config(names, fusion), model_config(reversed(names), fusion)
    batch = noise(forwards, 3)
    assert torch.equal(seeded_model(forwards)(batch), seeded_model(backwards)(batch))


def test_a_seed_decides_the_weights() -> None:
    config = model_config(FIELDS)
    first, second = seeded_model(config).state_dict(), seeded_model(config).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(1)
    other = build_model(config, preprocessor_of(config)).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_other_keys_of_a_batch_are_ignored() -> None:
    config = model_config(["vector", "text"])
    model, batch = seeded_model(config), noise(config, 2)
    needed = {name: batch[name] for name in input_arrays(model)}
    assert sorted(needed) == ["text", "text.presence", "vector", "vector.presence"]
    assert torch.equal(model(batch), model(needed))


def test_a_field_may_be_called_anything_that_a_job_allows() -> None:
    fields: dict[str, FieldSpec] = dict.fromkeys(("values", "type", "forward", "a-b", "keys"), FIELDS["vector"])
    config = model_config(list(fields))
    assert seeded_model(config, fields)(noise(config, 2, fields=fields)).shape == (2, 4)


def test_nothing_normalises_over_the_batch() -> None:
    for encoders in ENCODER_SETS:
        for fusion in FUSIONS:
            model = seeded_model(model_config(encoders, fusion, encoders=encoders))
            assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())


def test_statistics_are_no_weights() -> None:
    model = seeded_model(model_config(FIELDS))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("encoders", ENCODER_SETS)
def test_mixed_precision_stays_near_full_precision(encoders: dict[str, str]) -> None:
    config = model_config(encoders, "cross_attention", encoders=encoders, dim=32)
    model, batch = seeded_model(config), noise(config, 6)
    batch["image.presence"][:3] = False
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(batch).float()
    with torch.no_grad():
        full = model(batch)
    assert (mixed - full).abs().max() < 0.1 * full.abs().max() + 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_lie_in_memory_as_weights_do(channels: Literal[1, 3]) -> None:
    # Where they don't, DistributedDataParallel copies them at every step, and warns.
    fields: dict[str, FieldSpec] = {**FIELDS, "image": ImageField(height=12, width=20, channels=channels)}
    config = model_config(fields)
    model = seeded_model(config, fields).train()
    model(noise(config, 4, fields=fields)).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.stride() == weight.stride(), name


def test_a_small_digit_model_is_small() -> None:
    fields: dict[str, FieldSpec] = {"image": ImageField(height=28, width=28, channels=1), "audio": FIELDS["audio"]}
    config = model_config(fields, dim=128)
    assert num_parameters(seeded_model(config, fields)) < 1_000_000


def test_a_config_that_does_not_fit_the_fields_is_refused() -> None:
    config = model_config(["vector"])
    with pytest.raises(UsageError, match=r"model\.fields\.vector"):
        build_model(config, preprocessor_of(config).model_copy(update={"fields": {}}))
