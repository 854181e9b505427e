"""A running average of the weights over the steps, which often scores better than the weights of any one step.

average ← decay · average + (1 − decay) · weights, after every step (Polyak & Juditsky 1992; with exponential forgetting).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ray_mm.training.sharding import is_part, local


class WeightAverage:
    """The average of a model's parameters, on their device.

    Args:
        model: whose parameters it begins with.
        decay: share of the average that a step keeps, less than that in the first steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self._decay = decay
        self._average = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def update(self, step: int) -> None:
        """Takes the weights after a step in.

        Args:
            step: from 1. The first steps count for more: the weights that a training begins with are worth nothing.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        weights = [parameter.detach() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights within the block. They change places: there is no further copy."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            average = self._average[name]
            if is_part(parameter):
                # FSDP2 puts weights together from the memory that it knows.
                weights = local(parameter.detach())
                before = weights.clone()
                weights.copy_(local(average))
                local(average).copy_(before)
            else:
                parameter.data, self._average[name] = average, parameter.data

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By the names of the parameters, divided as they are."""
        return dict(self._average)
