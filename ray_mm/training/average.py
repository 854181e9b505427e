"""A running average of the weights over the steps, which often scores better than the weights of any one step.

average ← decay · average + (1 − decay) · weights, after every step (Polyak & Juditsky 1992; with exponential forgetting).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


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
            parameter.data, self._average[name] = self._average[name], parameter.data

    def save(self, path: Path) -> None:
        """Writes the average as safetensors, by the names of the parameters."""
        save_file({name: tensor.to("cpu").contiguous() for name, tensor in self._average.items()}, path)

    def load(self, path: Path) -> None:
        """Takes over a saved average of the same model."""
        loaded: dict[str, Tensor] = load_file(path)
        for name, tensor in self._average.items():
            tensor.copy_(loaded[name])
