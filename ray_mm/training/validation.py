"""A validation: batches → metrics over all ranks, in sums that are added up once.

Of a model with several fields it tells two more figures of each: ``alone/<field>``, the main figure of its task (accuracy, mean
absolute error, …) where the model is given this field only, and ``adds/<field>``, how much better it is with all fields than
without this one. A field that adds nothing while others do is one that the training has passed over. Where the training is
blended (see ``blending``), also ``loss_alone/<field>``, the loss with this field only, of the samples that have it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ray_mm.config.tasks import FIGURES, ReconstructTask, RetrieveTask, TaskConfig, labels_of
from ray_mm.data.fields import POSITION, WEIGHT, presence_name
from ray_mm.data.quarantine import check_budget
from ray_mm.errors import QuarantineBudgetError
from ray_mm.models.losses import loss_per_sample, sample_weights
from ray_mm.models.targets import build_targets
from ray_mm.training.bad_steps import diverged
from ray_mm.training.parallel import Ranks, autocast
from ray_mm.training.plan import Training
from ray_mm.training.scores import task_scores


def of_fields(metrics: Mapping[str, float], figure: str) -> dict[str, dict[str, float]]:
    """Field → ``<figure>_alone`` and ``<figure>_added``, from the flat figures of a validation; the figure is the main one. Of a
    reconstruction also ``<figure>``, of that field itself."""
    names = [name.partition("/")[2] for name in metrics if name.startswith("alone/")]
    keys = {figure: f"{figure}/", f"{figure}_alone": "alone/", f"{figure}_added": "adds/"}
    return {
        name: {key: metrics[prefix + name] for key, prefix in keys.items() if prefix + name in metrics}
        for name in names
    }


def _lacks(task: TaskConfig) -> str:
    if isinstance(task, ReconstructTask):
        return "none of the fields that are reconstructed"
    return (
        "no two of its towers"
        if isinstance(task, RetrieveTask)
        else f"no {' and no '.join(map(repr, labels_of(task)))}"
    )


class ValidationSums:
    """Sums over a validation, added up over the ranks once at its end: no mean of means."""

    def __init__(self, training: Training, ranks: Ranks) -> None:
        self._training = training
        self._task = training.job.model.task
        self._preprocessor = training.preprocessor
        self._ranks = ranks
        self._scores = task_scores(training, ranks)
        self._targets = build_targets(self._task, training.preprocessor, ranks.device)
        # Of the samples that count: loss and their number; samples met, and those that can't be read.
        self._sums = torch.zeros(4, dtype=torch.float64, device=ranks.device)
        fields = sorted(training.job.model.fields)
        # Of a retrieval nothing is left without one of its sides.
        if len(fields) == 1 or isinstance(self._task, RetrieveTask):
            fields = []
        self._alone = {field: frozenset({field}) for field in fields}
        self._without = {field: frozenset(fields) - {field} for field in fields}
        # Of two fields, one alone is the model without the other. All together come last.
        self._subsets = [*dict.fromkeys([*self._alone.values(), *self._without.values()])]
        num_main, num_more = self._scores.num_main, self._scores.num_more
        self._main = torch.zeros(len(self._subsets) + 1, num_main, dtype=torch.float64, device=ranks.device)
        self._more = torch.zeros(num_more, dtype=torch.float64, device=ranks.device)
        # Of each field alone: its losses, and of how many samples; where the training is blended by them.
        self._blends = training.job.train.gradient_blending is not None
        self._losses = torch.zeros(2, len(fields) if self._blends else 0, dtype=torch.float64, device=ranks.device)

    @torch.no_grad()
    def add(self, model: nn.Module, tensors: dict[str, Tensor], precision: str) -> None:
        """One batch.

        Args:
            model: not wrapped for its ranks: no gradients are exchanged.
            tensors: of the batch.
            precision: of the job.
        """
        model.eval()
        if self._targets is not None:
            tensors = self._targets.added_to(tensors)
        with autocast(precision, self._ranks.device):
            if self._subsets:
                outputs = model(tensors, [*self._subsets, frozenset(self._alone)])
            else:
                outputs = model(tensors)[None]
        weights = sample_weights(self._task, tensors, self._training.job.model.fields)
        counted = weights > 0
        losses = loss_per_sample(self._task, outputs[-1], tensors, self._preprocessor, gather=self._ranks.gather)
        for place, output in enumerate(outputs):
            self._main[place] += self._scores.main(output, tensors, counted)
        self._more += self._scores.more(outputs[-1], tensors, counted)
        if self._blends:
            for place, (field, subset) in enumerate(self._alone.items()):
                output = outputs[self._subsets.index(subset)]
                there = counted & tensors[presence_name(field)]
                alone = loss_per_sample(self._task, output, tensors, self._preprocessor).double()
                self._losses[0, place] += torch.where(there, alone, 0.0).sum()
                self._losses[1, place] += there.sum()
        met = tensors[POSITION] >= 0
        self._sums[0] += torch.where(counted, losses.double(), 0.0).sum()
        for place, which in enumerate((counted, met, met & (tensors[WEIGHT] == 0)), start=1):
            self._sums[place] += which.sum()

    def read(self, step: int) -> dict[str, float]:
        """The metrics over all ranks; then starts anew.

        Raises:
            QuarantineBudgetError: too many samples can't be read, or none could be scored.
            TrainingDivergedError: the loss is not finite.
        """
        loss, count, met, quarantined, *others = self._ranks.sum(
            torch.cat([self._sums, self._main.flatten(), self._more, self._losses.flatten()]).tolist()
        )
        each = self._scores.num_main
        *of_subsets, main = (others[place * each : (place + 1) * each] for place in range(len(self._main)))
        more = others[self._main.numel() : self._main.numel() + len(self._more)]
        losses = torch.tensor(others[self._main.numel() + len(self._more) :], dtype=torch.float64).reshape(2, -1)
        for sums in (self._sums, self._main, self._more, self._losses):
            sums.zero_()
        folder = self._training.quarantine
        check_budget(self._training.job.data.bad_samples, round(quarantined), round(met), folder)
        if count == 0:
            raise QuarantineBudgetError(
                f"none of the {met:.0f} validation samples could be scored: {quarantined:.0f} can't be read (see {folder}), "
                f"the others have {_lacks(self._task)}. Mend data.validation or leave it out."
            )
        if not math.isfinite(loss):
            raise diverged(f"the validation loss at step {step} is {loss / count}")
        figure, sign = self._scores.figure, FIGURES[self._task.type].sign
        found = {subset: figure(sums, more, count) for subset, sums in zip(self._subsets, of_subsets, strict=True)}
        whole = figure(main, more, count) if self._subsets else 0.0
        return {
            "loss": loss / count,
            **self._scores.figures(main, more, count),
            "num_samples": round(count),
            **{f"alone/{field}": found[subset] for field, subset in self._alone.items()},
            **{f"adds/{field}": sign * (whole - found[subset]) for field, subset in self._without.items()},
            **{
                f"loss_alone/{field}": total / count
                for field, (total, count) in zip(self._alone, losses.T.tolist(), strict=False)
                if count
            },
        }
