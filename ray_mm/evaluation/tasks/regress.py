"""A number. What the actors find:

score.predictions        float32 [N, S]: predicted value, for each of S subsets of the fields
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_mm.data.fields import presence_name
from ray_mm.evaluation.examples import Answer
from ray_mm.evaluation.intervals import bootstrap_intervals
from ray_mm.evaluation.metrics import (
    Metrics,
    merge_regression,
    no_regression_sums,
    regression_metrics,
    regression_sums,
)
from ray_mm.evaluation.report.content import RegressionDetails
from ray_mm.evaluation.tasks.base import PREDICTIONS, Array, OfLabel, Rows

_DRAWN = 1500


class NumberEvaluation(OfLabel):
    """See ``base.TaskEvaluation``.

    Args:
        label: its name.
        constant: the prediction that the model's are compared with.
    """

    def __init__(self, label: str, constant: float) -> None:
        super().__init__(label)
        self._constant = constant

    def scored(self, outputs: npt.NDArray[np.float32], batch: Rows) -> dict[str, Array]:
        return {PREDICTIONS: outputs.T}

    def tally(self, num_subsets: int) -> NumberTally:
        return NumberTally(self.label, num_subsets, self._constant)

    @property
    def columns(self) -> list[tuple[str, pa.DataType]]:
        return [(name, pa.float32()) for name in ("label", "prediction", "error")]

    def arrays(self, rows: Rows) -> dict[str, pa.Array]:
        labels, absent = rows[self.label], ~rows[presence_name(self.label)]
        predictions = rows[PREDICTIONS][:, -1]
        return {
            "label": pa.array(labels, pa.float32(), mask=absent),
            "prediction": pa.array(predictions, pa.float32()),
            "error": pa.array(predictions - labels, pa.float32(), mask=absent),
        }


class NumberTally:
    """See ``base.TaskTally``. A fair sample of the values is kept for the report."""

    def __init__(self, label: str, num_subsets: int, constant: float) -> None:
        self._label = label
        self.drawn: list[tuple[float, float]] = []
        # The constant is one prediction more.
        self._sums = no_regression_sums(num_subsets + 1)
        self._constant = constant
        self._random = random.Random(0)
        self._num_offered = 0

    def add(self, rows: Rows) -> npt.NDArray[np.float64]:
        labels = rows[self._label]
        predictions = rows[PREDICTIONS].T
        constant = np.full((1, len(labels)), self._constant, np.float32)
        self._sums = merge_regression(self._sums, regression_sums(labels, np.concatenate([predictions, constant])))
        for pair in zip(labels.tolist(), predictions[-1].tolist(), strict=True):
            self._draw(pair)
        difference: npt.NDArray[np.float64] = np.abs(predictions[-1].astype(np.float64) - labels)
        return difference

    def answers(self, rows: Rows, row: int) -> tuple[Answer, Answer]:
        return rows[self._label][row].item(), rows[PREDICTIONS][row, -1].item()

    def metrics(self) -> list[Metrics]:
        return regression_metrics(self._sums)[:-1]

    def baseline(self) -> Metrics:
        return regression_metrics(self._sums)[-1]

    def running(self) -> dict[str, float]:
        return {"mae": float(self._sums.absolute[-2].fraction() / self._sums.num_samples)}

    def details(self) -> RegressionDetails:
        true, predicted = np.array(self.drawn, np.float64).T
        intervals = bootstrap_intervals(true, predicted, self._sums.num_samples, self.metrics()[-1])
        return RegressionDetails(true, predicted, intervals)

    def _draw(self, pair: tuple[float, float]) -> None:
        """Keeps every pair with the same chance (Vitter 1985, algorithm R)."""
        self._num_offered += 1
        if len(self.drawn) < _DRAWN:
            self.drawn.append(pair)
            return
        place = self._random.randrange(self._num_offered)
        if place < _DRAWN:
            self.drawn[place] = pair
