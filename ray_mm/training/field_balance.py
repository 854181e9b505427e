"""How much the encoder of each field learns: its share of the gradient; and OGM-GE, which holds back what learns fastest.

gradient_share/<field> = Σ ‖g_field‖ / Σ Σ ‖g‖    over the steps that are looked at, below over all fields, too
                                                g: the gradient of a field's encoder, of all ranks' samples

OGM-GE (arXiv 2203.15332) asks in every step how sure the model is of the true class where it is given one field alone:

ratio_field = s_field / mean of the other fields' s     s: mean probability of the true class, over the samples with the field
factor_field = 1 − tanh(alpha · ratio_field) where the ratio is above 1, else 1

and multiplies the gradient of that field's encoder by the factor. What noise the smaller gradient lacks is added again, as much
as the gradient itself varies within a matrix. Factors and noise are functions of the global batch and of (seed, step), so they
are the same for any number of ranks and after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ray_mm.config.sharing import GradientModulation
from ray_mm.config.tasks import ClassifyTask
from ray_mm.config.train import TrainJob
from ray_mm.data.fields import presence_name
from ray_mm.data.order import stable_hash
from ray_mm.models.losses import sample_weights
from ray_mm.models.multimodal import MultimodalModel
from ray_mm.training.parallel import Ranks
from ray_mm.training.sharding import whole

LOOK_EVERY = 8
"""Steps between two looks at the encoders' gradients, which cost a short step a part that can be seen."""


class GradientShares:
    """The norms of the encoders' gradients, added up over the steps that are looked at.

    Args:
        model: the encoders' owner.
        ranks: this worker's place.
    """

    def __init__(self, model: MultimodalModel, ranks: Ranks) -> None:
        self._model = model
        self._sums = torch.zeros(len(model.encoded), device=ranks.device)

    def look(self) -> None:
        """Takes note of the gradients as they are now; every rank has to. A field alone shares with none."""
        if len(self._sums) == 1:
            return
        for place, encoder in enumerate(self._model.encoders):
            grads = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
            # Of a frozen encoder there is none.
            if grads:
                norm = whole(nn.utils.get_total_norm(grads)).float()
                self._sums[place] += torch.where(norm.isfinite(), norm, 0.0)

    def read(self) -> dict[str, float]:
        """``gradient_share/<field>`` since the last time that it was read; nothing where there is nothing to share."""
        sums = self._sums.tolist()
        self._sums.zero_()
        total = sum(sums)
        if not total:
            return {}
        return {
            f"gradient_share/{field}": round(norm / total, 4)
            for field, norm in zip(self._model.encoded, sums, strict=True)
        }


class Modulation:
    """OGM-GE over a training.

    Args:
        config: of the job.
        job: the training's.
        ranks: this worker's place.

    Attributes:
        subsets: of the fields, for the model to be asked with: each alone, then all.
    """

    def __init__(self, config: GradientModulation, job: TrainJob, ranks: Ranks) -> None:
        self._config = config
        self._job = job
        self._ranks = ranks
        self._fields = sorted(job.model.fields)
        self.subsets = [*(frozenset({field}) for field in self._fields), frozenset(self._fields)]
        # Of each field: the sum of the probabilities, and of how many samples.
        self._sums = torch.zeros(2, len(self._fields), dtype=torch.float64, device=ranks.device)
        self._factors = [0.0] * len(self._fields)
        self._steps = 0

    def holds(self, step: int, num_steps: int) -> bool:
        """Whether a step, from 1 to num_steps, is modulated."""
        return step <= round(self._config.until * num_steps)

    @torch.no_grad()
    def add(self, outputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Takes note of the answers to some samples of the step.

        Args:
            outputs: for each field alone, logits [B, C].
            tensors: of the samples.
        """
        assert isinstance(self._job.model.task, ClassifyTask), "the job's validator has passed"
        label = tensors[self._job.model.task.label]
        counts = sample_weights(self._job.model.task, tensors) > 0
        for place, (field, logits) in enumerate(zip(self._fields, outputs, strict=True)):
            true = logits.float().softmax(dim=-1).gather(-1, label[:, None])[:, 0]
            there = counts & tensors[presence_name(field)]
            self._sums[0, place] += torch.where(there, true, 0.0).sum()
            self._sums[1, place] += there.sum()

    @torch.no_grad()
    def apply(self, model: MultimodalModel, step: int) -> None:
        """Changes the gradients of the encoders; every rank has to, with gradients that are exchanged already.

        Args:
            model: the encoders' owner.
            step: of the training, from 1.
        """
        sums = self._ranks.sum(self._sums.flatten().tolist())
        self._sums.zero_()
        of_each = zip(sums[: len(self._fields)], sums[len(self._fields) :], strict=True)
        factors = modulation_factors([total / count if count else None for total, count in of_each], self._config.alpha)
        noise = torch.Generator(self._ranks.device).manual_seed(stable_hash(self._job.seed, step, "noise") % (1 << 63))
        for encoder, factor in zip(model.encoders, factors, strict=True):
            for parameter in encoder.parameters():
                if parameter.grad is None:
                    continue
                # As in the paper's own code: the spread is that of the gradient before, and vectors get no noise.
                grad, is_noisy = parameter.grad, self._config.noise and parameter.grad.ndim > 1
                spread = grad.std(correction=0) if is_noisy else None
                grad.mul_(factor)
                if spread is not None:
                    grad.add_(torch.empty_like(grad).normal_(generator=noise) * spread)
        self._factors = [total + factor for total, factor in zip(self._factors, factors, strict=True)]
        self._steps += 1

    def read(self) -> dict[str, float]:
        """``gradient_factor/<field>``, the mean over the steps since the last time that it was read."""
        factors, steps = self._factors, self._steps
        self._factors, self._steps = [0.0] * len(self._fields), 0
        if not steps:
            return {}
        return {
            f"gradient_factor/{field}": round(total / steps, 4)
            for field, total in zip(self._fields, factors, strict=True)
        }


def modulation_factors(scores: Sequence[float | None], alpha: float) -> list[float]:
    """What the gradient of each field's encoder is multiplied by.

    Args:
        scores: mean probability of the true class with each field alone; None: no sample of the batch has the field.
        alpha: how strongly the surer ones are held back.
    """
    factors = []
    for place, score in enumerate(scores):
        others = [other for at, other in enumerate(scores) if at != place and other is not None]
        if score is None or not others:
            factors.append(1.0)
            continue
        mean = sum(others) / len(others)
        # Probabilities may have been rounded to 0.
        ratio = score / mean if mean > 0 else math.inf
        factors.append(1.0 - math.tanh(alpha * ratio) if ratio > 1 else 1.0)
    return factors
