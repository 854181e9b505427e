"""Gradient-Blending (arXiv 1905.12681): each field alone has a loss beside that of all fields together.

loss = Σ w_k · L_k                  k: each field, the model being given it alone, and all fields; Σ w_k = 1
w_k ∝ gain_k / overfit_k²           over the epochs since the last estimate:
                                    gain_k:    by how much the loss of the validation fell
                                    overfit_k: by how much validation − training grew

A field alone is answered by the same fusion and head as all together, as where the others are absent; the paper gives each a
head of its own. The weights are equal until the first estimate. It starts from the loss of the first step, before anything
was learned: an untrained model does not overfit. The loss of the training is that of the last quarter of an epoch's
steps, as near to the validation as it can be without going through the samples again.

All of it is sums over the global batches, so it is the same for any number of ranks, and it is saved with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ray_mm.config.sharing import GradientBlending
from ray_mm.config.train import TrainJob
from ray_mm.data.fields import presence_name
from ray_mm.data.plan import Item
from ray_mm.training.parallel import Ranks

Figures = list[float | None]
"""Of each field, then of all together; None: no sample says anything of it."""

LEAST_OVERFIT = 0.1
"""As a share of the largest gain: what overfits less counts as if it overfitted so much, so that what can hardly be measured does
not take all the weight."""


class Blending:
    """The losses of a training and their weights.

    Args:
        config: of the job.
        job: the training's.
        ranks: this worker's place.
        saved: what ``state`` said when the training was saved; empty: it begins.

    Attributes:
        subsets: of the fields, for the model to be asked with: each alone, then all.
        weights: of each loss, as they are now.
    """

    def __init__(
        self, config: GradientBlending, job: TrainJob, ranks: Ranks, saved: Mapping[str, Sequence[float | None]]
    ) -> None:
        self._config = config
        self._ranks = ranks
        self._fields = sorted(job.model.fields)
        self.subsets = [*(frozenset({field}) for field in self._fields), frozenset(self._fields)]
        count = len(self.subsets)
        self.weights = [weight or 0.0 for weight in saved.get("weights", [1 / count] * count)]
        # At the last estimate, or at the start.
        self._train: Figures = list(saved.get("train", [None] * count))
        self._validation: Figures = list(saved.get("validation", [None] * count))
        # Of each loss: its sum, and of how many samples.
        self._sums = torch.zeros(2, count, dtype=torch.float64, device=ranks.device)
        if ranks.rank == 0 and "sums" in saved:
            self._sums += torch.tensor(saved["sums"], dtype=torch.float64, device=ranks.device).reshape(2, count)
        self._measures = self._is_late = False

    def begin(self, item: Item, train_batches: int) -> None:
        """A step begins.

        Args:
            item: its batch.
            train_batches: steps of an epoch.
        """
        left = (item.epoch + 1) * train_batches - item.step
        self._is_late = left < math.ceil(train_batches / 4)
        self._measures = self._is_late or item.step == 1

    def blend(
        self,
        outputs: Sequence[Tensor],
        seen: Mapping[str, Tensor],
        weights: Tensor,
        losses_of: Callable[[Tensor], Tensor],
        plain_of: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The sum over some samples of the step, to be differentiated.

        Args:
            outputs: for each of ``subsets``.
            seen: what the model was shown of them.
            weights: of the samples, [B].
            losses_of: output → loss of each sample [B].
            plain_of: likewise, as in a validation.
        """
        total = torch.zeros((), device=weights.device)
        for place, (output, share) in enumerate(zip(outputs, self.weights, strict=True)):
            there = weights > 0
            if place < len(self._fields):
                there = there & seen[presence_name(self._fields[place])]
            losses = losses_of(output)
            # What does not count may be infinite.
            total = total + share * torch.where(there, losses * weights, torch.zeros_like(losses)).sum()
            if self._measures:
                with torch.no_grad():
                    plain = plain_of(output).double()
                    there = there & plain.isfinite()
                    self._sums[0, place] += torch.where(there, plain, 0.0).sum()
                    self._sums[1, place] += there.sum()
        return total

    def end(self, item: Item) -> None:
        """The step is done; every rank has to call it."""
        if item.step == 1:
            self._train = self._measured()
            self._validation = list(self._train)
            if not self._is_late:
                self._sums.zero_()

    def estimate(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """An epoch has been validated; every rank has to call it.

        Args:
            epoch: from 0.
            metrics: of the validation, with ``loss_alone/<field>``.
        """
        train = self._measured()
        self._sums.zero_()
        if (epoch + 1) % self._config.every_epochs:
            return
        validation = [*(metrics.get(f"loss_alone/{field}") for field in self._fields), metrics["loss"]]
        self.weights = blending_weights((self._train, self._validation), (train, validation), self.weights)
        self._train, self._validation = train, validation

    def state(self) -> dict[str, Figures]:
        """All of it, to be saved; every rank has to call it."""
        return {
            "weights": list(self.weights),
            "train": list(self._train),
            "validation": list(self._validation),
            "sums": [*self._ranks.sum(self._sums.flatten().tolist())],
        }

    def read(self) -> dict[str, float]:
        """``blend_weight/<field>`` and ``blend_weight``, that of all together, as they were in this epoch."""
        *alone, together = self.weights
        named = {f"blend_weight/{field}": weight for field, weight in zip(self._fields, alone, strict=True)}
        return {name: round(weight, 4) for name, weight in {**named, "blend_weight": together}.items()}

    def _measured(self) -> Figures:
        totals = self._ranks.sum(self._sums.flatten().tolist())
        half = len(totals) // 2
        return [total / count if count else None for total, count in zip(totals[:half], totals[half:], strict=True)]


def blending_weights(
    then: tuple[Sequence[float | None], Sequence[float | None]],
    now: tuple[Sequence[float | None], Sequence[float | None]],
    before: Sequence[float],
) -> list[float]:
    """The weight of each loss.

    Args:
        then: losses of the training and of the validation, at the last estimate.
        now: likewise.
        before: the weights so far. They stay where a loss is not known, or none has gained anything.

    Returns:
        They add up to 1.
    """
    gains, overfits = [], []
    for train_then, validation_then, train_now, validation_now in zip(*then, *now, strict=True):
        if train_then is None or validation_then is None or train_now is None or validation_now is None:
            return list(before)
        gains.append(max(validation_then - validation_now, 0.0))
        overfits.append((validation_now - train_now) - (validation_then - train_then))
    least = LEAST_OVERFIT * max(gains)
    if least == 0:
        return list(before)
    ratios = [gain / max(overfit, least) ** 2 for gain, overfit in zip(gains, overfits, strict=True)]
    return [ratio / sum(ratios) for ratio in ratios]
