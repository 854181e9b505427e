"""What a validation adds up for each task, and the figures that come of it: sums of samples, so that ranks can be added."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import assert_never

from ray_mm.class_scores import (
    BITS_SHIFT,
    HALF_BITS,
    LOWEST_BITS,
    NUM_SCORE_BINS,
    f1_score,
    macro_f1,
    mean_average_precision,
)
from ray_mm.config.tasks import ClassifyTask, MultilabelTask, RegressTask
from ray_mm.training.plan import Training


class TaskScores(Protocol):
    """The sums of a task. All are float64, and of the samples that count alone.

    Attributes:
        num_main: of the main figure (``config.tasks.TaskFigures``), which is told of subsets of the fields, too.
        num_more: of all other figures.
    """

    num_main: int
    num_more: int

    def main(self, output: Tensor, label: Tensor, counted: Tensor) -> Tensor:
        """The sums of the main figure over a batch.

        Args:
            output: of the model.
            label: of the batch.
            counted: which samples count, bool [B].

        Returns:
            [num_main].
        """

    def more(self, output: Tensor, label: Tensor, counted: Tensor) -> Tensor:
        """The sums of the other figures over a batch, [num_more]."""

    def figure(self, main: Sequence[float], count: float) -> float:
        """The main figure from its sums over so many samples."""

    def figures(self, main: Sequence[float], more: Sequence[float], count: float) -> Mapping[str, float]:
        """All figures but the loss, as ``config.tasks.TaskFigures`` names them."""


def task_scores(training: Training) -> TaskScores:
    """The sums of a training's task."""
    task = training.job.model.task
    match task:
        case ClassifyTask():
            return ClassScores(len(training.classes))
        case MultilabelTask():
            return MultilabelScores(len(training.classes))
        case RegressTask():
            statistics = training.preprocessor.statistics[task.label]
            return NumberScores(statistics.mean[0], statistics.std[0])
        case _:
            assert_never(task)


class ClassScores:
    """Of one class per sample: the accuracy; hits, predictions and samples of each class."""

    def __init__(self, num_classes: int) -> None:
        self.num_main = 1
        self.num_more = 3 * num_classes
        self._num_classes = num_classes

    def main(self, output: Tensor, label: Tensor, counted: Tensor) -> Tensor:
        return ((output.argmax(dim=-1) == label) & counted).double().sum().reshape(1)

    def more(self, output: Tensor, label: Tensor, counted: Tensor) -> Tensor:
        predicted, found = output.argmax(dim=-1), counted.double()
        sums = torch.zeros(3, self._num_classes, dtype=torch.float64, device=output.device)
        sums[0].index_add_(0, label, found * (predicted == label))
        sums[1].index_add_(0, predicted, found)
        sums[2].index_add_(0, label, found)
        return sums.flatten()

    def figure(self, main: Sequence[float], count: float) -> float:
        return main[0] / count

    def figures(self, main: Sequence[float], more: Sequence[float], count: float) -> Mapping[str, float]:
        sums, each = [round(value) for value in more], self._num_classes
        hits, predicted, support = sums[:each], sums[each : 2 * each], sums[2 * each :]
        return {"accuracy": self.figure(main, count), "macro_f1": macro_f1(hits, predicted, support)}


class MultilabelScores:
    """Of any number of classes per sample, predicted where more probable than not: hits, predictions and samples of all classes
    together and of each, and the histograms of their probabilities, from which the average precision follows.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_main = 3
        self.num_more = num_classes * (3 + 2 * NUM_SCORE_BINS)
        self._num_classes = num_classes

    def main(self, output: Tensor, label: Tensor, counted: Tensor) -> Tensor:
        return self._counts(output.float().sigmoid(), label, counted).sum(dim=1)

    def more(self, output: Tensor, label: Tensor, counted: Tensor) -> Tensor:
        scores = output.float().sigmoid()
        classes = torch.arange(self._num_classes, device=output.device)
        # Samples that lack a class, then those that have it; of those that don't count none is added.
        places = (2 * classes + (label > 0.5)) * NUM_SCORE_BINS + _bins(scores)
        histograms = torch.zeros(self._num_classes * 2 * NUM_SCORE_BINS, dtype=torch.float64, device=output.device)
        histograms.index_add_(0, places.flatten(), counted.double()[:, None].expand_as(scores).flatten())
        return torch.cat([self._counts(scores, label, counted).flatten(), histograms])

    def figure(self, main: Sequence[float], count: float) -> float:
        hits, predicted, support = (round(each) for each in main)
        return f1_score(hits, predicted, support) or 0.0

    def figures(self, main: Sequence[float], more: Sequence[float], count: float) -> Mapping[str, float]:
        sums, each = np.array(more).round().astype(np.int64), self._num_classes
        hits, predicted, support = sums[: 3 * each].reshape(3, each).tolist()
        histograms = sums[3 * each :].reshape(each, 2, NUM_SCORE_BINS)
        return {
            "micro_f1": self.figure(main, count),
            "macro_f1": macro_f1(hits, predicted, support),
            "map": mean_average_precision(histograms),
        }

    def _counts(self, scores: Tensor, label: Tensor, counted: Tensor) -> Tensor:
        """Hits, predictions and samples of each class, [3, C]."""
        predicted, having = scores > 0.5, label > 0.5
        found = torch.stack([predicted & having, predicted, having]) & counted[:, None]
        return found.sum(dim=1).double()


def _bins(scores: Tensor) -> Tensor:
    """``class_scores.score_bins`` on the device, int64."""
    near = torch.minimum(scores, 1 - scores)
    steps = (near.view(torch.int32) >> BITS_SHIFT).clamp(LOWEST_BITS, HALF_BITS) - LOWEST_BITS
    return torch.where(scores > 0.5, NUM_SCORE_BINS - 1 - steps, steps).long()


class NumberScores:
    """Of a number, which the model gives in standard deviations from the mean: errors and their squares, in its own unit."""

    def __init__(self, mean: float, std: float) -> None:
        self.num_main = 1
        self.num_more = 1
        self._mean = mean
        self._std = std

    def main(self, output: Tensor, label: Tensor, counted: Tensor) -> Tensor:
        return torch.where(counted, self._errors(output, label), 0.0).sum().reshape(1)

    def more(self, output: Tensor, label: Tensor, counted: Tensor) -> Tensor:
        return torch.where(counted, self._errors(output, label).square(), 0.0).sum().reshape(1)

    def figure(self, main: Sequence[float], count: float) -> float:
        return main[0] / count

    def figures(self, main: Sequence[float], more: Sequence[float], count: float) -> Mapping[str, float]:
        return {"mae": self.figure(main, count), "rmse": math.sqrt(more[0] / count)}

    def _errors(self, output: Tensor, label: Tensor) -> Tensor:
        return (output.float() * self._std + self._mean - label).abs().double()
