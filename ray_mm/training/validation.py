"""A validation: batches → metrics over all ranks, in sums that are added up once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ray_mm.config.model import ClassifyTask
from ray_mm.data.fields import POSITION, WEIGHT
from ray_mm.data.quarantine import check_budget
from ray_mm.errors import QuarantineBudgetError
from ray_mm.models.losses import loss_per_sample, sample_weights
from ray_mm.training.bad_steps import diverged
from ray_mm.training.parallel import Ranks, autocast
from ray_mm.training.plan import Training


class ValidationSums:
    """Sums over a validation, added up over the ranks once at its end: no mean of means."""

    def __init__(self, training: Training, ranks: Ranks) -> None:
        self._training = training
        self._task = training.job.model.task
        self._preprocessor = training.preprocessor
        self._ranks = ranks
        # Of the samples that count: loss, two figures and their number; samples met, and those that can't be read.
        self._sums = torch.zeros(6, dtype=torch.float64, device=ranks.device)

    @torch.no_grad()
    def add(self, model: nn.Module, tensors: dict[str, Tensor], precision: str) -> None:
        """One batch.

        Args:
            model: not wrapped for its ranks: no gradients are exchanged.
            tensors: of the batch.
            precision: of the job.
        """
        model.eval()
        with autocast(precision, self._ranks.device):
            output = model(tensors)
        weights = sample_weights(self._task, tensors)
        counted = weights > 0
        losses = loss_per_sample(self._task, output, tensors, self._preprocessor)
        label = tensors[self._task.label]
        if isinstance(self._task, ClassifyTask):
            first, second = (output.argmax(dim=-1) == label).double(), torch.zeros_like(losses)
        else:
            statistics = self._preprocessor.statistics[self._task.label]
            error = output.float() * statistics.std[0] + statistics.mean[0] - label
            first, second = error.abs().double(), error.square()
        for place, values in enumerate((losses, first, second, torch.ones_like(losses))):
            self._sums[place] += torch.where(counted, values.double(), 0.0).sum()
        met = tensors[POSITION] >= 0
        self._sums[4] += met.sum()
        self._sums[5] += (met & (tensors[WEIGHT] == 0)).sum()

    def read(self, step: int) -> dict[str, float]:
        """The metrics over all ranks; then starts anew.

        Raises:
            QuarantineBudgetError: too many samples can't be read, or none could be scored.
            TrainingDivergedError: the loss is not finite.
        """
        loss, first, second, count, met, quarantined = self._ranks.sum(self._sums.tolist())
        self._sums.zero_()
        folder = self._training.quarantine
        check_budget(self._training.job.data.bad_samples, round(quarantined), round(met), folder)
        if count == 0:
            raise QuarantineBudgetError(
                f"none of the {met:.0f} validation samples could be scored: {quarantined:.0f} can't be read (see {folder}), "
                f"the others have no {self._task.label!r}. Mend data.validation or leave it out."
            )
        if not math.isfinite(loss):
            raise diverged(f"the validation loss at step {step} is {loss / count}")
        if isinstance(self._task, ClassifyTask):
            metrics = {"loss": loss / count, "accuracy": first / count}
        else:
            metrics = {"loss": loss / count, "mae": first / count, "rmse": math.sqrt(second / count)}
        return {**metrics, "num_samples": round(count)}
