"""One loss per sample, in the scale in which the model answers."""

from __future__ import annotations

import math

import pytest
import torch

from ray_mm.config.model import ClassifyTask, RegressTask
from ray_mm.models.losses import loss_per_sample, sample_weights
from tests.models.batches import STATISTICS, model_config, preprocessor_of

CLASSIFIES = preprocessor_of(model_config(["vector"]))
REGRESSES = preprocessor_of(model_config(["vector"], task="regress"))


def test_a_class_costs_its_negative_log_probability() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]]))
    loss = loss_per_sample(ClassifyTask(label="kind"), logits, {"kind": torch.tensor([0, 3])}, CLASSIFIES)
    torch.testing.assert_close(loss, torch.tensor([-math.log(0.7), math.log(4)]))


def test_label_smoothing_spreads_the_target() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.1, 0.1, 0.1]]))
    task = ClassifyTask(label="kind", label_smoothing=0.2)
    loss = loss_per_sample(task, logits, {"kind": torch.tensor([0])}, CLASSIFIES)
    torch.testing.assert_close(loss, torch.tensor([-0.85 * math.log(0.7) - 0.15 * math.log(0.1)]))


def test_a_number_is_compared_in_standard_deviations() -> None:
    (mean,), (std,) = STATISTICS["amount"].mean, STATISTICS["amount"].std
    batch = {"amount": torch.tensor([mean, mean + 3 * std])}
    output = torch.tensor([0.5, 0.0])
    squared = loss_per_sample(RegressTask(label="amount"), output, batch, REGRESSES)
    torch.testing.assert_close(squared, torch.tensor([0.25, 9.0]))
    huber = loss_per_sample(RegressTask(label="amount", loss="huber"), output, batch, REGRESSES)
    torch.testing.assert_close(huber, torch.tensor([0.125, 2.5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_in_full_precision(dtype: torch.dtype) -> None:
    loss = loss_per_sample(
        ClassifyTask(label="kind"), torch.zeros(2, 4, dtype=dtype), {"kind": torch.tensor([0, 1])}, CLASSIFIES
    )
    assert loss.dtype == torch.float32


def test_a_sample_without_a_label_has_no_weight() -> None:
    batch = {"weight": torch.tensor([1.0, 0.0, 1.0]), "kind.presence": torch.tensor([True, True, False])}
    assert sample_weights(ClassifyTask(label="kind"), batch).tolist() == [1.0, 0.0, 0.0]
