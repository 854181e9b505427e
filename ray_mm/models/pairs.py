"""The losses of a retrieval: each side of a sample against the other sides of all samples of the batch, over all workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ray_mm.config.tasks import RetrieveTask
from ray_mm.data.fields import presence_name

Gather: TypeAlias = Callable[[Tensor], tuple[Tensor, int]]
"""A tensor of this worker's rows [B, …] → those of all workers [N, …], and at which of them its own begin. Gradients go back to
whoever made the rows."""

_NEVER = -1e9
"""Logit of what can't be the answer. Finite: a row of nothing else must not make gradients that are no numbers."""


def alone(rows: Tensor) -> tuple[Tensor, int]:
    """Of one worker alone."""
    return rows, 0


def tower_presence(towers: Mapping[str, Sequence[str]], batch: Mapping[str, Tensor]) -> Tensor:
    """Which towers have at least one of their fields: bool [B, K]."""
    return torch.stack(
        [torch.stack([batch[presence_name(name)] for name in names]).any(dim=0) for names in towers.values()], dim=1
    )


def pair_losses(task: RetrieveTask, output: Tensor, there_BK: Tensor, gather: Gather = alone) -> Tensor:
    """The loss of each sample, float32 [B]: the mean over the pairs of towers that it has; 0 where it has none.

    InfoNCE is the mean of both ways: with B samples, −ln of the probability of the right one among those that have the other
    tower. SigLIP is the sum over all of these of −ln of the probability of what is true: that they belong together, or do not.

    Args:
        task: which loss.
        output: of ``heads.RetrieveHead``, [B, K, E + 2].
        there_BK: which towers are there, bool.
        gather: brings the rows of all workers together.
    """
    output = output.float()
    rows, start = gather(output[..., :-2])
    there_NK, _ = gather(there_BK)
    own = torch.arange(start, start + output.shape[0], device=output.device)
    scale, bias = output[..., 0, -2, None], output[..., 0, -1, None]
    total = output.new_zeros(output.shape[0])
    count = output.new_zeros(output.shape[0])
    for one, other in combinations(range(there_BK.shape[1]), 2):
        both = there_BK[:, one] & there_BK[:, other]
        ways = [(one, other)] if task.loss == "siglip" else [(one, other), (other, one)]
        for near, far in ways:
            logits = scale * (output[:, near, :-2] @ rows[:, far].T) + bias
            candidate = there_NK[:, far]
            if task.loss == "siglip":
                together = torch.zeros_like(logits).scatter_(1, own[:, None], 1.0)
                costs = F.binary_cross_entropy_with_logits(logits, together, reduction="none")
                loss = torch.where(candidate, costs, 0.0).sum(dim=1)
            else:
                loss = F.cross_entropy(torch.where(candidate, logits, _NEVER), own, reduction="none") / 2
            total = total + torch.where(both, loss, 0.0)
        count = count + both
    return total / count.clamp(min=1)
