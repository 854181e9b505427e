"""What the driver keeps while scored rows stream by. Its size depends on the classes and the subsets, not on the dataset."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_mm.data.fields import POSITION, WEIGHT, presence_name
from ray_mm.evaluation.examples import Example, Extremes
from ray_mm.evaluation.metrics import (
    ClassificationSums,
    Metrics,
    RegressionSums,
    classification_metrics,
    classification_sums,
    confusion_matrix,
    majority_metrics,
    merge_classification,
    merge_regression,
    no_classification_sums,
    no_regression_sums,
    regression_metrics,
    regression_sums,
    sample_log_loss,
)
from ray_mm.evaluation.scorer import CONFIDENCE, PREDICTIONS, PROBABILITIES, TRUE_PROBABILITY, Rows
from ray_mm.evaluation.subsets import Subset

MAX_CONFUSION_CLASSES = 500
"""Of more classes no confusion matrix is kept: it would take more memory than everything else."""

_DRAWN = 1500


class Tally:
    """Counts, sums, extremes.

    Args:
        label: the label field.
        fields: the input fields, sorted.
        subsets: the last one has all fields.
        num_classes: None for a regression.
        baseline: the constant prediction that a regression is compared with.
        examples: how many of the worst and of the best samples are kept.
    """

    def __init__(
        self,
        label: str,
        fields: Sequence[str],
        subsets: Sequence[Subset],
        num_classes: int | None,
        baseline: float,
        examples: int,
    ) -> None:
        self.num_seen = 0
        self.num_quarantined = 0
        self.num_unlabelled = 0
        self.num_scored = 0
        self.present = np.zeros(len(fields), np.int64)
        self.covered = np.zeros(len(subsets), np.int64)
        self.extremes = Extremes(examples)
        self.classification: ClassificationSums | None = None
        self.regression: RegressionSums | None = None
        self.confusion: npt.NDArray[np.int64] | None = None
        self.drawn: list[tuple[float, float]] = []
        self._label = label
        self._fields = list(fields)
        self._members = np.array([[field in subset for field in fields] for subset in subsets])
        self._baseline = baseline
        self._random = random.Random(0)
        self._num_offered = 0
        if num_classes is None:
            # The baseline is one prediction more.
            self.regression = no_regression_sums(len(subsets) + 1)
        else:
            self.classification = no_classification_sums(len(subsets), num_classes)
            if num_classes <= MAX_CONFUSION_CLASSES:
                self.confusion = np.zeros((num_classes, num_classes), np.int64)

    def add(self, rows: Rows, keys: Sequence[str]) -> None:
        """Takes note of a block of scored rows (see ``scorer``)."""
        readable = rows[WEIGHT] > 0
        scored = readable & rows[presence_name(self._label)]
        self.num_seen += len(readable)
        self.num_quarantined += int((~readable).sum())
        self.num_unlabelled += int((readable & ~scored).sum())
        self.num_scored += int(scored.sum())
        chosen = np.flatnonzero(scored)
        if len(chosen) == 0:
            return
        there = np.stack([rows[presence_name(field)][chosen] for field in self._fields])
        self.present += there.sum(axis=1)
        self.covered += (self._members.astype(np.int64) @ there.astype(np.int64) > 0).sum(axis=1)
        labels = rows[self._label][chosen]
        predictions = rows[PREDICTIONS][chosen].T
        if self.classification is not None:
            losses = self._add_classes(rows, chosen, labels, predictions)
        else:
            losses = self._add_values(labels, predictions)

        def example(row: int) -> Example:
            place = int(chosen[row])
            probabilities = rows[PROBABILITIES][place].tolist() if PROBABILITIES in rows else ()
            return Example(
                position=int(rows[POSITION][place]),
                key=keys[place],
                loss=float(losses[row]),
                label=labels[row].item(),
                prediction=predictions[-1, row].item(),
                probabilities=tuple(probabilities),
                presence={field: bool(there[index, row]) for index, field in enumerate(self._fields)},
            )

        self.extremes.add(losses, example)

    def metrics(self) -> list[Metrics]:
        """For each subset; needs a scored sample."""
        if self.classification is not None:
            return classification_metrics(self.classification)
        assert self.regression is not None
        return regression_metrics(self.regression)[:-1]

    def baseline(self) -> Metrics:
        """What a constant prediction scores; needs a scored sample."""
        if self.classification is not None:
            return majority_metrics(self.classification)
        assert self.regression is not None
        return regression_metrics(self.regression)[-1]

    def running(self) -> dict[str, float]:
        """The main metric so far, for the progress bar."""
        if self.num_scored == 0:
            return {}
        if self.classification is not None:
            return {"accuracy": int(self.classification.hits[-1].sum()) / self.num_scored}
        assert self.regression is not None
        return {"mae": float(self.regression.absolute[-2].fraction() / self.num_scored)}

    def _add_classes(
        self, rows: Rows, chosen: npt.NDArray[np.int64], labels: npt.NDArray[Any], predictions: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        assert self.classification is not None
        confidence, true = rows[CONFIDENCE][chosen].T, rows[TRUE_PROBABILITY][chosen].T
        num_classes = len(self.classification.support)
        part = classification_sums(labels, predictions, confidence, true, num_classes)
        self.classification = merge_classification(self.classification, part)
        if self.confusion is not None:
            self.confusion += confusion_matrix(labels, predictions[-1], num_classes)
        return sample_log_loss(true[-1])

    def _add_values(self, labels: npt.NDArray[Any], predictions: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        assert self.regression is not None
        constant = np.full((1, len(labels)), self._baseline, np.float32)
        part = regression_sums(labels, np.concatenate([predictions, constant]))
        self.regression = merge_regression(self.regression, part)
        for pair in zip(labels.tolist(), predictions[-1].tolist(), strict=True):
            self._draw(pair)
        difference: npt.NDArray[np.float64] = np.abs(predictions[-1].astype(np.float64) - labels)
        return difference

    def _draw(self, pair: tuple[float, float]) -> None:
        """Keeps every pair with the same chance (Vitter 1985, algorithm R)."""
        self._num_offered += 1
        if len(self.drawn) < _DRAWN:
            self.drawn.append(pair)
            return
        place = self._random.randrange(self._num_offered)
        if place < _DRAWN:
            self.drawn[place] = pair
