"""What a validation adds up for each task, and the figures that come of it: sums of samples, so that ranks can be added."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Protocol, TypeAlias

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
    mean_iou,
)
from ray_mm.config.fields import UNLABELLED
from ray_mm.config.tasks import (
    ClassifyTask,
    GridTask,
    MultilabelTask,
    ReconstructTask,
    RegressTask,
    RetrieveTask,
    SegmentTask,
    SeveralTask,
    TaskConfig,
)
from ray_mm.data.fields import presence_name
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.targets import TARGET
from ray_mm.models.losses import loss_per_sample, task_output
from ray_mm.models.pairs import tower_presence
from ray_mm.models.targets import reconstruction_sizes, squared_errors
from ray_mm.reconstruction_scores import explained, variation
from ray_mm.retrieval_scores import CUTOFFS
from ray_mm.retrieval_scores import ranks as ranks_of
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training

Batch: TypeAlias = Mapping[str, Tensor]


class TaskScores(Protocol):
    """The sums of a task. All are float64, and of the samples that count alone.

    Attributes:
        num_main: of the main figure (``config.tasks.TaskFigures``), which is told of subsets of the fields, too.
        num_more: of all other figures.
    """

    num_main: int
    num_more: int

    def main(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        """The sums of the main figure over a batch.

        Args:
            output: of the model.
            batch: label and presence; of a reconstruction its targets.
            counted: which samples count, bool [B].

        Returns:
            [num_main].
        """

    def more(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        """The sums of the other figures over a batch, [num_more]; here what can't be added up may be kept."""

    def figure(self, main: Sequence[float], more: Sequence[float], count: float) -> float:
        """The main figure from its sums over so many samples, with some fields or all, and the other sums, with all fields."""

    def figures(self, main: Sequence[float], more: Sequence[float], count: float) -> Mapping[str, float]:
        """All figures but the loss, as ``config.tasks.TaskFigures`` names them. All ranks call it, and nothing is kept then."""


def task_scores(training: Training, ranks: Ranks) -> TaskScores:
    """The sums of a training's task."""
    return _scores_of(training.job.model.task, training, ranks)


def _scores_of(task: TaskConfig, training: Training, ranks: Ranks) -> TaskScores:
    match task:
        case ClassifyTask():
            return ClassScores(task.label, len(training.classes[task.label]))
        case MultilabelTask():
            return MultilabelScores(task.label, len(training.classes[task.label]))
        case SeveralTask():
            scores = {name: _scores_of(each, training, ranks) for name, each in sorted(task.tasks.items())}
            return SeveralScores(task, scores, training.preprocessor)
        case RegressTask():
            statistics = training.preprocessor.statistics[task.label]
            return NumberScores(task.label, statistics.mean[0], statistics.std[0])
        case SegmentTask() | GridTask():
            return MapScores(task.label, len(training.classes[task.label]))
        case RetrieveTask():
            return RetrieveScores(task.towers_of(training.job.model.fields), ranks)
        case ReconstructTask():
            names = task.fields_of(training.job.model.fields)
            return ReconstructScores(names, reconstruction_sizes(task, training.preprocessor))
        case _:
            assert_never(task)


class ClassScores:
    """Of one class per sample: the accuracy; hits, predictions and samples of each class."""

    def __init__(self, label: str, num_classes: int) -> None:
        self._label = label
        self.num_main = 1
        self.num_more = 3 * num_classes
        self._num_classes = num_classes

    def main(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        return ((output.argmax(dim=-1) == batch[self._label]) & counted).double().sum().reshape(1)

    def more(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        label, predicted, found = batch[self._label], output.argmax(dim=-1), counted.double()
        sums = torch.zeros(3, self._num_classes, dtype=torch.float64, device=output.device)
        sums[0].index_add_(0, label, found * (predicted == label))
        sums[1].index_add_(0, predicted, found)
        sums[2].index_add_(0, label, found)
        return sums.flatten()

    def figure(self, main: Sequence[float], more: Sequence[float], count: float) -> float:
        return main[0] / count

    def figures(self, main: Sequence[float], more: Sequence[float], count: float) -> Mapping[str, float]:
        sums, each = [round(value) for value in more], self._num_classes
        hits, predicted, support = sums[:each], sums[each : 2 * each], sums[2 * each :]
        return {"accuracy": self.figure(main, more, count), "macro_f1": macro_f1(hits, predicted, support)}


class MultilabelScores:
    """Of any number of classes per sample, predicted where more probable than not: hits, predictions and samples of all classes
    together and of each, and the histograms of their probabilities, from which the average precision follows.
    """

    def __init__(self, label: str, num_classes: int) -> None:
        self._label = label
        self.num_main = 3
        self.num_more = num_classes * (3 + 2 * NUM_SCORE_BINS)
        self._num_classes = num_classes

    def main(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        return self._counts(output.float().sigmoid(), batch[self._label], counted).sum(dim=1)

    def more(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        label, scores = batch[self._label], output.float().sigmoid()
        classes = torch.arange(self._num_classes, device=output.device)
        # Samples that lack a class, then those that have it; of those that don't count none is added.
        places = (2 * classes + (label > 0.5)) * NUM_SCORE_BINS + _bins(scores)
        histograms = torch.zeros(self._num_classes * 2 * NUM_SCORE_BINS, dtype=torch.float64, device=output.device)
        histograms.index_add_(0, places.flatten(), counted.double()[:, None].expand_as(scores).flatten())
        return torch.cat([self._counts(scores, label, counted).flatten(), histograms])

    def figure(self, main: Sequence[float], more: Sequence[float], count: float) -> float:
        hits, predicted, support = (round(each) for each in main)
        return f1_score(hits, predicted, support) or 0.0

    def figures(self, main: Sequence[float], more: Sequence[float], count: float) -> Mapping[str, float]:
        sums, each = np.array(more).round().astype(np.int64), self._num_classes
        hits, predicted, support = sums[: 3 * each].reshape(3, each).tolist()
        histograms = sums[3 * each :].reshape(each, 2, NUM_SCORE_BINS)
        return {
            "micro_f1": self.figure(main, more, count),
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

    def __init__(self, label: str, mean: float, std: float) -> None:
        self._label = label
        self.num_main = 1
        self.num_more = 1
        self._mean = mean
        self._std = std

    def main(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        return torch.where(counted, self._errors(output, batch[self._label]), 0.0).sum().reshape(1)

    def more(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        return torch.where(counted, self._errors(output, batch[self._label]).square(), 0.0).sum().reshape(1)

    def figure(self, main: Sequence[float], more: Sequence[float], count: float) -> float:
        return main[0] / count

    def figures(self, main: Sequence[float], more: Sequence[float], count: float) -> Mapping[str, float]:
        return {"mae": self.figure(main, more, count), "rmse": math.sqrt(more[0] / count)}

    def _errors(self, output: Tensor, label: Tensor) -> Tensor:
        return (output.float() * self._std + self._mean - label).abs().double()


class SeveralScores:
    """Of several tasks: the sums of each over the samples that have its label. The main figure is the loss of all together.

    Args:
        task: of the model.
        scores: of each of them, sorted.
        preprocessor: of the model.
    """

    def __init__(self, task: SeveralTask, scores: Mapping[str, TaskScores], preprocessor: Preprocessor) -> None:
        self.num_main = 1
        # Of each the samples that have its label, too.
        self.num_more = sum(1 + each.num_main + each.num_more for each in scores.values())
        self._task, self._scores, self._preprocessor = task, dict(scores), preprocessor
        self._places, self._shapes = task.slices(preprocessor.fields), task.shapes(preprocessor.fields)

    def main(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        losses = loss_per_sample(self._task, output, batch, self._preprocessor)
        return torch.where(counted, losses.double(), 0.0).sum().reshape(1)

    def more(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        found = []
        for name, scores in self._scores.items():
            task = self._task.tasks[name]
            own = task_output(output, self._places[name], self._shapes[name])
            there = counted & batch[presence_name(task.label)]
            found += [there.sum().double().reshape(1), scores.main(own, batch, there), scores.more(own, batch, there)]
        return torch.cat(found)

    def figure(self, main: Sequence[float], more: Sequence[float], count: float) -> float:
        return main[0] / count

    def figures(self, main: Sequence[float], more: Sequence[float], count: float) -> Mapping[str, float]:
        """``<task>.<figure>``; of a task whose label no sample has, none."""
        found: dict[str, float] = {}
        rest = list(more)
        for name, scores in self._scores.items():
            sums = rest[1 : 1 + scores.num_main + scores.num_more]
            own_count, rest = rest[0], rest[1 + len(sums) :]
            if own_count:
                told = scores.figures(sums[: scores.num_main], sums[scores.num_main :], own_count)
                found |= {f"{name}.{figure}": value for figure, value in told.items()}
        return found


class MapScores:
    """Of a class for every cell of a map: the margins of the confusion matrix, which is all that its figures need: cells of each
    class that are right, predicted and true."""

    def __init__(self, label: str, num_classes: int) -> None:
        self._label = label
        self.num_main = 3 * num_classes
        self.num_more = 0
        self._num_classes = num_classes

    def main(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        label, predicted = batch[self._label].long(), output.argmax(dim=1)
        found = ((label != UNLABELLED) & counted[:, None, None]).flatten().double()
        label, predicted = label.clamp_max(self._num_classes - 1).flatten(), predicted.flatten()
        sums = torch.zeros(3, self._num_classes, dtype=torch.float64, device=output.device)
        sums[0].index_add_(0, label, found * (predicted == label))
        sums[1].index_add_(0, predicted, found)
        sums[2].index_add_(0, label, found)
        return sums.flatten()

    def more(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        return output.new_zeros(0, dtype=torch.float64)

    def figure(self, main: Sequence[float], more: Sequence[float], count: float) -> float:
        return mean_iou(*self._counts(main))

    def figures(self, main: Sequence[float], more: Sequence[float], count: float) -> Mapping[str, float]:
        hits, _, support = self._counts(main)
        return {"miou": self.figure(main, more, count), "pixel_accuracy": sum(hits) / max(sum(support), 1)}

    def _counts(self, main: Sequence[float]) -> tuple[list[int], list[int], list[int]]:
        sums, each = [round(value) for value in main], self._num_classes
        return sums[:each], sums[each : 2 * each], sums[2 * each :]


class RetrieveScores:
    """Of a retrieval. Nothing can be added up before all candidates are known: every rank keeps the embeddings of its samples,
    4 bytes for each of their numbers, until the validation is over.

    Args:
        towers: tower → its fields.
        ranks: this worker's place.
    """

    def __init__(self, towers: Mapping[str, Sequence[str]], ranks: Ranks) -> None:
        self.num_main = 0
        self.num_more = 0
        self._towers = dict(towers)
        self._ranks = ranks
        self._embeddings: list[Tensor] = []
        self._there: list[Tensor] = []

    def main(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        return output.new_zeros(0, dtype=torch.float64)

    def more(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        self._embeddings.append(output[..., :-2].float().cpu())
        self._there.append((tower_presence(self._towers, batch) & counted[:, None]).cpu())
        return output.new_zeros(0, dtype=torch.float64)

    def figure(self, main: Sequence[float], more: Sequence[float], count: float) -> float:
        raise AssertionError("a retrieval has no subsets of fields")

    def figures(self, main: Sequence[float], more: Sequence[float], count: float) -> Mapping[str, float]:
        """The means over all ways from one tower to another, of all samples of all ranks."""
        embeddings, start = self._ranks.gather(torch.cat(self._embeddings))
        there, _ = self._ranks.gather(torch.cat(self._there))
        stop = start + sum(len(part) for part in self._there)
        self._embeddings, self._there = [], []
        found = []
        for one, other in permutations(range(len(self._towers)), 2):
            candidates = there[:, other].nonzero()[:, 0].numpy()
            queries = (there[:, one] & there[:, other]).nonzero()[:, 0].numpy()
            # Every rank sees to the queries of its own samples.
            queries = queries[(queries >= start) & (queries < stop)]
            right = np.searchsorted(candidates, queries)
            place = ranks_of(embeddings[queries, one].numpy(), embeddings[candidates, other].numpy(), right)
            sums = [float((place <= cutoff).sum()) for cutoff in CUTOFFS]
            found.append([*sums, float((1 / place).sum()), float(len(place))])
        totals = np.array(self._ranks.sum(np.array(found).flatten().tolist())).reshape(len(found), -1)
        totals = totals[totals[:, -1] > 0]
        means = (totals[:, :-1] / totals[:, -1:]).mean(axis=0).tolist()
        return dict(zip([*(f"recall_at_{cutoff}" for cutoff in CUTOFFS), "mrr"], means, strict=True))


class ReconstructScores:
    """Of a reconstruction: the squared errors of each field, and how much each of its numbers varies.

    Args:
        names: the fields, sorted.
        sizes: numbers of each.
    """

    def __init__(self, names: Sequence[str], sizes: Sequence[int]) -> None:
        self.num_main = len(names)
        self.num_more = 3 * sum(sizes)
        self._names = list(names)
        self._sizes = list(sizes)

    def main(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        errors, _ = squared_errors(output, batch[TARGET], self._sizes)
        return torch.where(counted[:, None], errors, 0.0).double().sum(dim=0)

    def more(self, output: Tensor, batch: Batch, counted: Tensor) -> Tensor:
        target = torch.where(counted[:, None], batch[TARGET], torch.nan)
        values = target.nan_to_num().double()
        return torch.stack([(~target.isnan()).double().sum(0), values.sum(0), values.square().sum(0)]).flatten()

    def figure(self, main: Sequence[float], more: Sequence[float], count: float) -> float:
        return self.figures(main, more, count)["r2"]

    def figures(self, main: Sequence[float], more: Sequence[float], count: float) -> Mapping[str, float]:
        """``r2``, and ``r2/<field>`` of those that vary."""
        around = variation(np.array(more).reshape(3, -1), self._sizes)
        return {name: value for name, value in explained(main, around, self._names).items() if value is not None}
