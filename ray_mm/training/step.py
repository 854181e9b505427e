"""One batch: forward, backward and an optimizer step; or, of a validation, what is added to its sums."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ray_mm.config.model import ClassifyTask
from ray_mm.data.fields import POSITION, WEIGHT
from ray_mm.data.loader import LoadedBatch
from ray_mm.data.order import stable_hash
from ray_mm.data.quarantine import check_budget
from ray_mm.errors import QuarantineBudgetError, TrainingDivergedError
from ray_mm.models.losses import loss_per_sample, sample_weights
from ray_mm.training.dropout import hide_fields
from ray_mm.training.optim import learning_rate, set_learning_rate
from ray_mm.training.parallel import Ranks, autocast
from ray_mm.training.parts import train_mode
from ray_mm.training.plan import Training


@dataclass(frozen=True)
class Step:
    """What one step met.

    Attributes:
        loss_sum: this rank's weighted sum of losses, a scalar on its device.
        weight_sum: this rank's sum of weights, likewise.
        met: samples of all ranks.
        quarantined: those of them that can't be read.
        quarantined_here: positions of this rank's.
    """

    loss_sum: Tensor
    weight_sum: Tensor
    met: int
    quarantined: int
    quarantined_here: tuple[int, ...]


def train_step(
    training: Training, ranks: Ranks, model: nn.Module, optimizer: torch.optim.Optimizer, batch: LoadedBatch
) -> Step:
    """Forward, backward, and one step of the optimizer: all that is done with a training batch.

    Args:
        training: what to do.
        ranks: this worker's place.
        model: wrapped for its ranks.
        optimizer: of its parameters.
        batch: this rank's share of a global batch.
    """
    job, item = training.job, batch.item
    # Dropout differs between steps and ranks, and is the same again after a resume.
    torch.manual_seed(stable_hash(job.seed, item.step, ranks.rank) % (1 << 63))
    tensors = hide_fields(batch.tensors, sorted(job.model.fields), job.train.modality_dropout, job.seed, item.epoch)
    weights = sample_weights(job.model.task, tensors)
    position, present = tensors[POSITION].cpu(), tensors[WEIGHT].cpu() > 0
    bad = position[(position >= 0) & ~present]
    total_weight, met, quarantined = ranks.sum([float(weights.sum()), float((position >= 0).sum()), float(len(bad))])

    train_mode(model)
    set_learning_rate(
        optimizer,
        learning_rate(job.train.optimizer.lr, job.train.schedule, item.step, training.schedule.num_steps),
    )
    with autocast(job.train.precision, ranks.device):
        output = model(tensors)
    losses = loss_per_sample(job.model.task, output, tensors, training.preprocessor)
    # A sample without weight may hold anything, even what makes its loss infinite.
    loss_sum = torch.where(weights > 0, losses * weights, torch.zeros_like(losses)).sum()
    # DDP averages over the ranks; each rank's share of the global batch may differ.
    (loss_sum * ranks.world_size / max(total_weight, 1.0)).backward()  # type: ignore[no-untyped-call]
    if job.train.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), job.train.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Step(loss_sum.detach(), weights.sum(), round(met), round(quarantined), tuple(int(p) for p in bad))


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
        """One batch."""
        model.eval()
        with autocast(precision, self._ranks.device):
            # Every rank has the same number of batches; no gradients are exchanged, so DDP has nothing to do.
            output = getattr(model, "module", model)(tensors)
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


def diverged(what: str) -> TrainingDivergedError:
    """The error for a loss or weights that are not finite."""
    return TrainingDivergedError(
        f"{what}; lower train.optimizer.lr or set train.clip_norm, and choose another output, because the same settings "
        "would lead here again. Checkpoints are from before it."
    )
