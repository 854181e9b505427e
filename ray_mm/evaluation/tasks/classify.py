"""One class per sample. What the actors find:

score.predictions        int64 [N, S]: predicted class, for each of S subsets of the fields
score.confidence         float32 [N, S]: probability of the predicted class
score.true_probability   float32 [N, S]: probability of the true class
score.probabilities      float32 [N, C]: of every class, with all fields
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_mm.actors.columns import list_column
from ray_mm.data.fields import presence_name
from ray_mm.evaluation.examples import Answer
from ray_mm.evaluation.intervals import wilson_interval
from ray_mm.evaluation.metrics import (
    Metrics,
    classification_metrics,
    classification_sums,
    confusion_matrix,
    majority_metrics,
    merge_classification,
    no_classification_sums,
    per_class,
    reliability,
    sample_log_loss,
)
from ray_mm.evaluation.report.content import ClassificationDetails
from ray_mm.evaluation.tasks.base import CONFIDENCE, PREDICTIONS, PROBABILITIES, TRUE_PROBABILITY, Array, OfLabel, Rows

MAX_CONFUSION_CLASSES = 500
"""Of more classes no confusion matrix is kept: it would take more memory than everything else."""


class ClassEvaluation(OfLabel):
    """See ``base.TaskEvaluation``.

    Args:
        label: its name.
        classes: in the order of their numbers.
    """

    def __init__(self, label: str, classes: Sequence[str]) -> None:
        super().__init__(label)
        self._classes = tuple(classes)

    def scored(self, outputs: npt.NDArray[np.float32], batch: Rows) -> dict[str, Array]:
        labels = batch[self.label]
        # A row without a label holds class 0; its probability is never looked at.
        true = np.broadcast_to(labels[None, :, None], (*outputs.shape[:2], 1))
        return {
            PREDICTIONS: outputs.argmax(axis=2).T,
            CONFIDENCE: outputs.max(axis=2).T,
            TRUE_PROBABILITY: np.take_along_axis(outputs, true, axis=2)[..., 0].T,
            PROBABILITIES: outputs[-1],
        }

    def tally(self, num_subsets: int) -> ClassTally:
        return ClassTally(self.label, self._classes, num_subsets)

    @property
    def columns(self) -> list[tuple[str, pa.DataType]]:
        text = pa.string()
        return [
            ("label", text),
            ("prediction", text),
            ("correct", pa.bool_()),
            ("probabilities", pa.list_(pa.float32())),
        ]

    def arrays(self, rows: Rows) -> dict[str, pa.Array]:
        labels, absent = rows[self.label], ~rows[presence_name(self.label)]
        names, predictions = pa.array(self._classes, pa.string()), rows[PREDICTIONS][:, -1]
        return {
            "label": names.take(pa.array(labels, pa.int64(), mask=absent)),
            "prediction": names.take(pa.array(predictions, pa.int64())),
            "correct": pa.array(predictions == labels, mask=absent),
            "probabilities": list_column(rows[PROBABILITIES]),
        }


class ClassTally:
    """See ``base.TaskTally``."""

    def __init__(self, label: str, classes: Sequence[str], num_subsets: int) -> None:
        self._label = label
        self._classes = tuple(classes)
        self._sums = no_classification_sums(num_subsets, len(classes))
        self.confusion: npt.NDArray[np.int64] | None = None
        if len(classes) <= MAX_CONFUSION_CLASSES:
            self.confusion = np.zeros((len(classes), len(classes)), np.int64)

    def add(self, rows: Rows) -> npt.NDArray[np.float64]:
        labels = rows[self._label]
        predictions, true = rows[PREDICTIONS].T, rows[TRUE_PROBABILITY].T
        part = classification_sums(labels, predictions, rows[CONFIDENCE].T, true, len(self._classes))
        self._sums = merge_classification(self._sums, part)
        if self.confusion is not None:
            self.confusion += confusion_matrix(labels, predictions[-1], len(self._classes))
        return sample_log_loss(true[-1])

    def answers(self, rows: Rows, row: int) -> tuple[Answer, Answer]:
        return int(rows[self._label][row]), int(rows[PREDICTIONS][row, -1])

    def metrics(self) -> list[Metrics]:
        return classification_metrics(self._sums)

    def baseline(self) -> Metrics:
        return majority_metrics(self._sums)

    def running(self) -> dict[str, float]:
        return {"accuracy": int(self._sums.hits[-1].sum()) / self._sums.num_samples}

    def details(self) -> ClassificationDetails:
        full = len(self._sums.hits) - 1
        return ClassificationDetails(
            classes=self._classes,
            figures=per_class(self._sums.hits[full], self._sums.predicted[full], self._sums.support),
            confusion=self.confusion,
            bins=reliability(self._sums, full),
            interval=wilson_interval(int(self._sums.hits[full].sum()), self._sums.num_samples),
        )
