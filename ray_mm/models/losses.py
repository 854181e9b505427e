"""Output and label → one loss per sample. Weights are the caller's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from typing_extensions import assert_never

from ray_mm.config.model import ClassifyTask, RegressTask, TaskConfig
from ray_mm.data.fields import WEIGHT, presence_name
from ray_mm.data.preprocessor import Preprocessor


def loss_per_sample(
    task: TaskConfig, output: Tensor, batch: Mapping[str, Tensor], preprocessor: Preprocessor
) -> Tensor:
    """The loss of each sample.

    Args:
        task: what is predicted, and how it is judged.
        output: of the model: logits [B, C], or standardised values [B].
        batch: holds the label: int64 [B], or float32 [B] in its own unit.
        preprocessor: the statistics of a number label.

    Returns:
        float32 [B]. Where a sample has no label the value means nothing; see ``sample_weights``.
    """
    label = batch[task.label]
    match task:
        case ClassifyTask():
            return F.cross_entropy(output.float(), label, reduction="none", label_smoothing=task.label_smoothing)
        case RegressTask():
            statistics = preprocessor.statistics[task.label]
            target = (label - statistics.mean[0]) / statistics.std[0]
            loss = F.mse_loss if task.loss == "mse" else F.huber_loss
            return loss(output.float(), target, reduction="none")
        case _:
            assert_never(task)


def sample_weights(task: TaskConfig, batch: Mapping[str, Tensor]) -> Tensor:
    """The weight of each sample: that of the batch, and 0 where the label is absent. float32 [B]."""
    weight = batch[WEIGHT]
    return torch.where(batch[presence_name(task.label)], weight, torch.zeros_like(weight))
