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
        batch: holds the label: int64 [B], or float32 [B] in its own unit; of samples that are mixed of two, also the class of
            the other one (``other_label_name``) and the share of the first (``own_share_name``).
        preprocessor: the statistics of a number label.

    Returns:
        float32 [B]. Where a sample has no label the value means nothing; see ``sample_weights``.
    """
    label = batch[task.label]
    match task:
        case ClassifyTask():
            logits = output.float()
            loss = F.cross_entropy(logits, label, reduction="none", label_smoothing=task.label_smoothing)
            other = batch.get(other_label_name(task.label))
            if other is None:
                return loss
            of_other = F.cross_entropy(logits, other, reduction="none", label_smoothing=task.label_smoothing)
            return torch.lerp(of_other, loss, batch[own_share_name(task.label)])
        case RegressTask():
            statistics = preprocessor.statistics[task.label]
            target = (label - statistics.mean[0]) / statistics.std[0]
            measure = F.mse_loss if task.loss == "mse" else F.huber_loss
            return measure(output.float(), target, reduction="none")
        case _:
            assert_never(task)


def sample_weights(task: TaskConfig, batch: Mapping[str, Tensor]) -> Tensor:
    """The weight of each sample: that of the batch, and 0 where the label is absent. float32 [B]."""
    weight = batch[WEIGHT]
    return torch.where(batch[presence_name(task.label)], weight, torch.zeros_like(weight))


def other_label_name(label: str) -> str:
    """Name of the array with the class of the sample that each one is mixed with, int64 [B]."""
    return f"{label}.other"


def own_share_name(label: str) -> str:
    """Name of the array with the share that each sample has in its mixture, float32 [B]."""
    return f"{label}.share"
